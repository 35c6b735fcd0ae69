//! Btrfs: the given images, and ones made by mkfs.btrfs and filled by Linux, on one device and on several.

mod damage;
mod given;
mod lived;
mod logged;
mod made;
mod pools;
mod told;

use std::sync::Arc;

use block::ReadAt;
use guestfs::FileSystem;

/// Opens as the suites want it.
pub fn open(volume: Arc<dyn ReadAt>) -> Box<dyn FileSystem> {
    Box::new(guestfs::btrfs::open(volume).expect("a Btrfs"))
}
