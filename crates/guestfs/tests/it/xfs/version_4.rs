//! A version 4 file system that Linux 6.1 left behind in a crash, and what the same Linux then made of it.
//!
//! Linux of today does not mount that version, so both lie here, packed: the image as the crash left it (48 MiB, made by
//! `mkfs.xfs -m crc=0 -l size=4m`, filled as `replay.rs` fills, shut down), and the listing after the next mount.

use std::io::Read;

use guestfs::FileSystem;
use guestfs::filesystem::Cleanliness;

use super::linux;
use crate::conformance;
use crate::corpus::Bytes;

const IMAGE: &[u8] = include_bytes!("../../data/xfs/crashed-v4.img.xz");
const LISTING: &[u8] = include_bytes!("../../data/xfs/crashed-v4.list.xz");

fn unpack(packed: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut reader = lzma_rust2::XzReader::new(packed, true);
    reader.read_to_end(&mut bytes).expect("packed well");
    bytes
}

#[test]
fn a_crashed_version_4_is_as_the_linux_of_its_time_makes_it() {
    let folder = tempfile::tempdir().expect("a folder");
    let listing = folder.path().join("listing");
    std::fs::write(&listing, unpack(LISTING)).expect("room");
    let volume = Bytes::shared(unpack(IMAGE));
    let fs = guestfs::xfs::open(std::sync::Arc::clone(&volume)).expect("XFS");
    assert_eq!(fs.facts().version.as_deref(), Some("4"));
    assert_eq!(fs.facts().cleanliness, Cleanliness::Replayed);
    let tree = conformance::check(&fs);
    assert!(tree.len() > 60, "{}", tree.len());
    linux::compare("version 4", &tree, &listing);
    conformance::check_unused(volume, &tree, &super::open);
}
