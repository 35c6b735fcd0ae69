//! Whether an NTFS volume has shadow copies: they read, through the volume, what its files have left behind since.
//!
//! ```text
//!   0x1E00  header: id │ version │ type 1 │ … │ 48: catalog │ 56: most bytes │ 64: volume │ 80: where copies are stored
//!   catalog block (16 KiB): id │ version │ 20: type 2 │ … │ 40: next block │ 128: entries of 128 bytes, type first
//! ```
//!
//! Entries of types 2 and 3 describe a copy; 0 and 1 are empty. Whatever is not understood counts as copies. Source: the
//! libyal project's description of the format, "Volume Shadow Snapshot (VSS) format".

use block::ReadAt;

const HEADER_OFFSET: u64 = 0x1E00;
/// {3808876b-c176-4e48-b7ae-04046e6cc752}
const ID: [u8; 16] = [
    0x6B, 0x87, 0x08, 0x38, 0x76, 0xC1, 0x48, 0x4E, 0xB7, 0xAE, 0x04, 0x04, 0x6E, 0x6C, 0xC7, 0x52,
];
const BLOCK_BYTES: usize = 16 << 10;
const ENTRY_BYTES: usize = 128;
/// Windows keeps at most 512 copies: two entries each, 127 in a block.
const MAX_BLOCKS: usize = 64;

/// Where the header of a volume says that its shadow copies are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Storage {
    /// There is no header: none was ever set up.
    NotSet,
    /// On the volume itself.
    Same,
    /// On the volume with this id, in the byte order of Windows.
    Other([u8; 16]),
}

type Header = [u8; 96];

/// Looks for the header of an NTFS volume.
///
/// # Errors
/// Why it could not be read.
pub(crate) fn storage(volume: &(impl ReadAt + ?Sized)) -> Result<Storage, String> {
    header(volume).map(|header| storage_in(&header))
}

fn header(volume: &(impl ReadAt + ?Sized)) -> Result<Header, String> {
    let mut header = [0; 96];
    block::read_padded(volume, HEADER_OFFSET, &mut header).map_err(unread)?;
    Ok(header)
}

fn unread(error: block::Error) -> String {
    format!("its shadow copies could not be read: {error}")
}

fn storage_in(header: &Header) -> Storage {
    let id = |from: usize| header.get(from..)?.first_chunk::<16>().copied();
    let (own, stored) = (id(64), id(80));
    match stored {
        _ if header.get(..16) != Some(&ID[..]) => Storage::NotSet,
        Some(stored) if Some(stored) != own && stored != [0; 16] => Storage::Other(stored),
        _ => Storage::Same,
    }
}

/// Fails with a reason when there are shadow copies, or may be.
pub(super) fn look(volume: &impl ReadAt) -> Result<(), String> {
    let header = header(volume)?;
    let strange = || Err("its shadow copies are not understood".to_owned());
    match storage_in(&header) {
        Storage::NotSet => return Ok(()),
        Storage::Same => {}
        Storage::Other(_) => {
            return Err("its shadow copies are stored on another volume".to_owned());
        }
    }
    let Some(mut at) = number(&header, 48) else {
        return strange();
    };
    let mut block = vec![0; BLOCK_BYTES];
    for _ in 0..MAX_BLOCKS {
        if at == 0 {
            return Ok(());
        }
        volume.read_at(at, &mut block).map_err(unread)?;
        if block.get(..16) != Some(&ID[..]) || block.get(20..24) != Some(&[2, 0, 0, 0][..]) {
            return strange();
        }
        let entries = block.get(ENTRY_BYTES..).unwrap_or_default();
        for entry in entries.chunks_exact(ENTRY_BYTES) {
            match number(entry, 0) {
                Some(0 | 1) => {}
                Some(2 | 3) => {
                    return Err(
                        "it has shadow copies, which need what its files have freed".to_owned()
                    );
                }
                _ => return strange(),
            }
        }
        let Some(next) = number(&block, 40) else {
            return strange();
        };
        at = next;
    }
    strange()
}

fn number(bytes: &[u8], at: usize) -> Option<u64> {
    let eight = bytes.get(at..at.checked_add(8)?)?;
    eight.try_into().ok().map(u64::from_le_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Bytes(Vec<u8>);

    impl ReadAt for Bytes {
        fn size_bytes(&self) -> u64 {
            self.0.len() as u64
        }

        fn read_at(&self, offset: u64, buffer: &mut [u8]) -> block::Result<()> {
            let from = usize::try_from(offset).unwrap_or(usize::MAX);
            let found = self.0.get(from..from.saturating_add(buffer.len()));
            let found = found
                .ok_or_else(|| block::Error::new(block::ErrorKind::OutOfRange, "behind the end"))?;
            buffer.copy_from_slice(found);
            Ok(())
        }
    }

    fn put(bytes: &mut [u8], at: usize, what: &[u8]) {
        bytes[at..at + what.len()].copy_from_slice(what);
    }

    /// A volume with a header, and a catalog of two blocks with one entry of this type in the second.
    fn made(entry: u64) -> Bytes {
        let mut bytes = vec![0; 1 << 18];
        put(&mut bytes, 0x1E00, &ID);
        put(&mut bytes, 0x1E00 + 48, &0x10000_u64.to_le_bytes());
        for (block, next) in [(0x10000_usize, 0x18000_u64), (0x18000, 0)] {
            put(&mut bytes, block, &ID);
            put(&mut bytes, block + 20, &[2]);
            put(&mut bytes, block + 40, &next.to_le_bytes());
        }
        put(&mut bytes, 0x18000 + 3 * 128, &entry.to_le_bytes());
        Bytes(bytes)
    }

    #[test]
    fn shadow_copies_are_seen_and_an_empty_catalog_is_none() {
        assert_eq!(look(&Bytes(vec![0; 1 << 18])), Ok(()));
        assert_eq!(look(&made(0)), Ok(()));
        assert_eq!(look(&made(1)), Ok(()));
        for entry in [2, 3, 4, u64::MAX] {
            assert!(look(&made(entry)).is_err(), "{entry}");
        }
        assert_eq!(storage(&Bytes(vec![0; 1 << 18])), Ok(Storage::NotSet));
        assert_eq!(storage(&made(2)), Ok(Storage::Same));
        let mut elsewhere = made(0);
        put(&mut elsewhere.0, 0x1E00 + 80, &[7; 16]);
        assert_eq!(storage(&elsewhere), Ok(Storage::Other([7; 16])));
        assert!(look(&elsewhere).is_err());
        let mut looped = made(0);
        put(&mut looped.0, 0x18000 + 40, &0x10000_u64.to_le_bytes());
        assert!(look(&looped).is_err());
        let mut far = made(0);
        put(&mut far.0, 0x1E00 + 48, &u64::MAX.to_le_bytes());
        assert!(look(&far).is_err());
    }
}
