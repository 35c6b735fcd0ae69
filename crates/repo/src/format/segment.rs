//! Index segments: whole pack directories, collected so that a writer need not read each pack's own.
//!
//! ```text
//!   0  packs          u32        4  replaced segments   u32      8  reserved   8
//!   16 replaced       16 each
//!      per pack:  pack id 16 ‖ key id 16 ‖ stored size u32 ‖ entries u32 ‖ kind u8 ‖ cipher u8 ‖ reserved 6
//!                 directory entries, 48 each, as in the pack
//! ```
//!
//! **Invariant.** A segment is an accelerator: an entry counts only while its pack is listed in the store.

use super::cursor::Cursor;
use super::pack::{DirectoryEntry, PackKind};
use super::{Cipher, DIRECTORY_ENTRY_BYTES, MAX_PACK_BYTES, MAX_PACK_ENTRIES};
use crate::{KeyId, PackId, SegmentId};

/// Bytes before the entries of one pack.
const PACK_RECORD_BYTES: usize = 48;

/// One pack in a segment: what its own directory says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PackDirectory {
    /// The pack.
    pub pack_id: PackId,
    /// What it holds.
    pub kind: PackKind,
    /// The data key it is encrypted with.
    pub key_id: KeyId,
    /// Whether it is encrypted.
    pub cipher: Cipher,
    /// Bytes of the whole object.
    pub stored_size_bytes: u32,
    /// Its blobs, by ordinal.
    pub entries: Vec<DirectoryEntry>,
}

/// An index segment.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Segment {
    /// Segments that this one stands for; they may be deleted once it is durable.
    pub replaces: Vec<SegmentId>,
    /// The packs.
    pub packs: Vec<PackDirectory>,
}

impl PackDirectory {
    /// Bytes that it takes in a segment.
    pub(crate) fn encoded_bytes(&self) -> usize {
        self.entries
            .len()
            .saturating_mul(DIRECTORY_ENTRY_BYTES)
            .saturating_add(PACK_RECORD_BYTES)
    }
}

/// Writes a segment's text.
pub(crate) fn encode(segment: &Segment) -> Vec<u8> {
    let count = |length: usize| u32::try_from(length).unwrap_or(u32::MAX).to_le_bytes();
    let size: usize = segment.packs.iter().map(PackDirectory::encoded_bytes).sum();
    let mut bytes = Vec::with_capacity(size.saturating_add(64));
    bytes.extend_from_slice(&count(segment.packs.len()));
    bytes.extend_from_slice(&count(segment.replaces.len()));
    bytes.extend_from_slice(&[0; 8]);
    for id in &segment.replaces {
        bytes.extend_from_slice(id.as_bytes());
    }
    for pack in &segment.packs {
        bytes.extend_from_slice(pack.pack_id.as_bytes());
        bytes.extend_from_slice(pack.key_id.as_bytes());
        bytes.extend_from_slice(&pack.stored_size_bytes.to_le_bytes());
        bytes.extend_from_slice(&count(pack.entries.len()));
        bytes.extend_from_slice(&[pack.kind.byte(), pack.cipher.byte(), 0, 0, 0, 0, 0, 0]);
        for entry in &pack.entries {
            entry.encode(&mut bytes);
        }
    }
    bytes
}

/// Reads a segment's text; what is wrong with it otherwise.
pub(crate) fn decode(text: &[u8]) -> Result<Segment, &'static str> {
    const SHORT: &str = "shorter than it says";
    let mut cursor = Cursor::new(text);
    let packs = cursor.u32().ok_or(SHORT)?;
    let replaced = cursor.u32().ok_or(SHORT)?;
    cursor.array::<8>().ok_or(SHORT)?;
    // Each round takes bytes off the text or fails, so that a lying count ends the loop, and nothing is reserved for it.
    let mut segment = Segment::default();
    for _ in 0..replaced {
        segment
            .replaces
            .push(SegmentId::from_bytes(cursor.array().ok_or(SHORT)?));
    }
    for _ in 0..packs {
        segment.packs.push(decode_pack(&mut cursor)?);
    }
    if cursor.rest().is_empty() {
        Ok(segment)
    } else {
        Err("longer than it says")
    }
}

fn decode_pack(cursor: &mut Cursor<'_>) -> Result<PackDirectory, &'static str> {
    const SHORT: &str = "shorter than it says";
    let pack_id = PackId::from_bytes(cursor.array().ok_or(SHORT)?);
    let key_id = KeyId::from_bytes(cursor.array().ok_or(SHORT)?);
    let stored_size_bytes = cursor.u32().ok_or(SHORT)?;
    let count = usize::try_from(cursor.u32().ok_or(SHORT)?).map_err(|_| "a count too great")?;
    let kind = PackKind::from_byte(cursor.u8().ok_or(SHORT)?).ok_or("an unknown pack kind")?;
    let cipher = Cipher::from_byte(cursor.u8().ok_or(SHORT)?).ok_or("an unknown cipher")?;
    cursor.array::<6>().ok_or(SHORT)?;
    if count > MAX_PACK_ENTRIES
        || usize::try_from(stored_size_bytes).is_ok_and(|s| s > MAX_PACK_BYTES)
    {
        return Err("a pack above the limits");
    }
    let length = count.checked_mul(DIRECTORY_ENTRY_BYTES).ok_or(SHORT)?;
    let mut entries = Vec::new();
    for entry in cursor
        .bytes(length)
        .ok_or(SHORT)?
        .chunks_exact(DIRECTORY_ENTRY_BYTES)
    {
        entries.push(DirectoryEntry::decode(entry).ok_or("a malformed directory entry")?);
    }
    Ok(PackDirectory {
        pack_id,
        kind,
        key_id,
        cipher,
        stored_size_bytes,
        entries,
    })
}
