//! Encrypted volumes: what cryptsetup and QEMU write, and what dislocker reads.

mod bitlocker;
mod bitlocker_writer;
mod luks;
mod luks_damage;

use std::sync::Arc;

use block::ReadAt;
use guestfs::encrypted::{OpenedVolume, UnlockKey, open};
use guestfs::probe::{ContentKind, probe};

use crate::corpus::Bytes;
use crate::images::MemoryVolume;

/// Opens a volume as what a probe calls it.
fn unlock(volume: Arc<dyn ReadAt>, keys: &[UnlockKey]) -> guestfs::Result<OpenedVolume> {
    let ContentKind::Encrypted(kind) = probe(&*volume)?.kind else {
        panic!("not called encrypted");
    };
    open(volume, kind, keys)
}

/// All bytes of a volume, read in pieces that cut sectors.
fn whole(volume: &dyn ReadAt) -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(volume.size_bytes()).expect("small")];
    let mut at = 0;
    for length in [1, 511, 513, 4096, 5000, 1 << 20].into_iter().cycle() {
        let end = (at + length).min(bytes.len());
        volume
            .read_at(at as u64, &mut bytes[at..end])
            .expect("inside");
        at = end;
        if at == bytes.len() {
            break;
        }
    }
    bytes
}

/// Two images that should be equal; says where they differ instead of printing them.
fn assert_same(found: &[u8], wanted: &[u8], what: &str) {
    assert_eq!(found.len(), wanted.len(), "{what}: length");
    let differs = found.iter().zip(wanted).position(|(a, b)| a != b);
    assert_eq!(differs, None, "{what}: first byte that differs");
}

fn memory(bytes: Vec<u8>) -> Arc<dyn ReadAt> {
    Arc::new(MemoryVolume(bytes))
}

#[test]
fn a_volume_of_another_kind_is_an_error_and_no_panic() {
    use guestfs::probe::Encryption;
    for kind in [Encryption::Luks1, Encryption::Luks2, Encryption::BitLocker] {
        for length in [0, 1, 511, 512, 4096, 1 << 20] {
            for byte in [0, 0x55, 0xFF] {
                let volume = Bytes::shared(vec![byte; length]);
                open(volume, kind, &[UnlockKey::passphrase("x")]).expect_err("nothing is there");
            }
        }
    }
}
