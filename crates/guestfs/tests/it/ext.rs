//! ext2, ext3 and ext4: the corpora, images made by mke2fs and filled by Linux, damage.

mod corpora;
pub mod damage;
mod made;

use std::sync::Arc;

use block::ReadAt;
use guestfs::FileSystem;

/// Opens as the suites want it.
pub fn open(volume: Arc<dyn ReadAt>) -> Box<dyn FileSystem> {
    Box::new(guestfs::ext::open(volume).expect("a file system of ext"))
}
