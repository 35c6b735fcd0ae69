//! XFS: the given images, ones made by mkfs.xfs and filled by Linux, and ones that Linux left behind in a crash.

mod damage;
mod given;
mod linux;
mod made;
mod replay;
mod version_4;

use std::sync::Arc;

use block::ReadAt;
use guestfs::FileSystem;

/// Opens as the suites want it.
pub fn open(volume: Arc<dyn ReadAt>) -> Box<dyn FileSystem> {
    Box::new(guestfs::xfs::open(volume).expect("an XFS"))
}
