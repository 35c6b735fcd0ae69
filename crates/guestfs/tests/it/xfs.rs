//! XFS: the given images, and ones made by mkfs.xfs and filled by Linux.

mod damage;
mod given;
mod made;

use std::sync::Arc;

use block::ReadAt;
use guestfs::FileSystem;

/// Opens as the suites want it.
pub fn open(volume: Arc<dyn ReadAt>) -> Box<dyn FileSystem> {
    Box::new(guestfs::xfs::open(volume).expect("an XFS"))
}
