//! FAT12, FAT16, FAT32 and exFAT: the corpora, images made on the spot, damage.

mod corpora;
mod made;

use std::sync::Arc;

use block::ReadAt;
use guestfs::FileSystem;

/// Opens whichever of the four it is.
pub fn open(volume: Arc<dyn ReadAt>) -> guestfs::Result<Box<dyn FileSystem>> {
    let mut name = [0; 8];
    volume.read_at(3, &mut name)?;
    Ok(if &name == b"EXFAT   " {
        Box::new(guestfs::fat::exfat::open(volume)?)
    } else {
        Box::new(guestfs::fat::open(volume)?)
    })
}
