//! Packs: many blobs in one object, readable from either end.
//!
//! ```text
//!   header 64 │ frame │ frame │ … │ directory frame │ trailer 64
//!
//!   header    magic "HIKAEPCK" 8 ‖ version u16 ‖ kind u8 ‖ cipher u8 ‖ flags u32 (zeros) ‖ pack id 16 ‖ key id 16 ‖ salt 16
//!   frame     magic u16 ‖ level u8 ‖ codec u8 ‖ ordinal u32 ‖ plain length u32 ‖ stored length u32 ‖ stored bytes
//!   directory a frame with level 0xFF, codec 0, ordinal 0xFFFFFFFF; its plain bytes are 48 per blob:
//!             hash 32 ‖ offset of the frame u32 ‖ stored length u32 ‖ plain length u32 ‖ codec u8 ‖ level u8 ‖ zeros 2
//!   trailer   magic "HIKAEEND" 8 ‖ directory offset u32 ‖ directory stored length u32 ‖ blobs u32 ‖ directory check 12
//!             ‖ checksum 32: BLAKE3 derive-key "hikae v1 pack checksum" over everything before it
//!             directory check: the first 12 bytes of derive-key "hikae v1 pack directory" over the directory's whole frame
//! ```
//!
//! Encrypted: stored bytes are ciphertext and a 16-byte tag; key = derive-key("hikae v1 pack key", data key ‖ salt ‖
//! pack id), nonce = ordinal as 96-bit little-endian, associated data = pack id ‖ ordinal ‖ kind ‖ level ‖ codec ‖
//! plain length ‖ stored length. Hashes stand only in the encrypted directory.
//!
//! **Invariants.** Blobs lie in the order of their ordinals, without gaps. A pack's kind, id and object name agree.

use super::cursor::Cursor;
use super::{
    BlobName, Cipher, Codec, DIRECTORY_ENTRY_BYTES, DIRECTORY_LEVEL, DIRECTORY_ORDINAL,
    FORMAT_VERSION, FRAME_HEADER_BYTES, FRAME_MAGIC, MAX_PACK_BYTES, MAX_PACK_ENTRIES,
    MAX_STORED_BLOB_BYTES, PACK_HEADER_BYTES, PACK_MAGIC, PACK_TRAILER_BYTES, TRAILER_MAGIC,
    context,
};
use crate::{KeyId, PackId};

/// What a pack holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum PackKind {
    /// Blocks.
    Data,
    /// Nodes of disk trees.
    Node,
}

impl PackKind {
    /// Both kinds.
    pub const ALL: [Self; 2] = [Self::Data, Self::Node];

    /// Its byte in headers.
    pub const fn byte(self) -> u8 {
        match self {
            Self::Data => 1,
            Self::Node => 2,
        }
    }

    /// From its byte.
    pub const fn from_byte(byte: u8) -> Option<Self> {
        match byte {
            1 => Some(Self::Data),
            2 => Some(Self::Node),
            _ => None,
        }
    }

    /// The first component of its packs' names.
    pub const fn directory(self) -> &'static str {
        match self {
            Self::Data => "data",
            Self::Node => "node",
        }
    }

    /// The kind of pack that a blob belongs in.
    pub const fn holding(name: &BlobName) -> Self {
        match name {
            BlobName::Block(_) => Self::Data,
            BlobName::Node { .. } => Self::Node,
        }
    }
}

/// A pack's header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PackHeader {
    /// What it holds.
    pub kind: PackKind,
    /// Whether it is encrypted.
    pub cipher: Cipher,
    /// The pack.
    pub pack_id: PackId,
    /// The data key it is encrypted with.
    pub key_id: KeyId,
    /// What its own key is derived with.
    pub salt: [u8; 16],
}

impl PackHeader {
    pub(crate) fn encode(&self) -> [u8; PACK_HEADER_BYTES] {
        let mut bytes = [0; PACK_HEADER_BYTES];
        let parts: [&[u8]; 7] = [
            &PACK_MAGIC,
            &FORMAT_VERSION.to_le_bytes(),
            &[self.kind.byte(), self.cipher.byte()],
            &[0; 4],
            self.pack_id.as_bytes(),
            self.key_id.as_bytes(),
            &self.salt,
        ];
        fill(&mut bytes, &parts);
        bytes
    }

    /// Reads the header; what is wrong with it otherwise.
    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, &'static str> {
        const SHORT: &str = "shorter than a header";
        let mut cursor = Cursor::new(bytes);
        if cursor.array::<8>().ok_or(SHORT)? != PACK_MAGIC {
            return Err("not a pack");
        }
        if cursor.u16().ok_or(SHORT)? != FORMAT_VERSION {
            return Err("an unknown format version");
        }
        let kind = PackKind::from_byte(cursor.u8().ok_or(SHORT)?).ok_or("an unknown pack kind")?;
        let cipher = Cipher::from_byte(cursor.u8().ok_or(SHORT)?).ok_or("an unknown cipher")?;
        if cursor.u32().ok_or(SHORT)? != 0 {
            return Err("unknown flags");
        }
        Ok(Self {
            kind,
            cipher,
            pack_id: PackId::from_bytes(cursor.array().ok_or(SHORT)?),
            key_id: KeyId::from_bytes(cursor.array().ok_or(SHORT)?),
            salt: cursor.array().ok_or(SHORT)?,
        })
    }
}

/// Whether these are the first bytes of a pack in a version after this one.
pub(crate) fn is_newer(bytes: &[u8]) -> bool {
    let mut cursor = Cursor::new(bytes);
    cursor.array::<8>() == Some(PACK_MAGIC)
        && cursor.u16().is_some_and(|version| version > FORMAT_VERSION)
}

/// A frame's clear header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FrameHeader {
    pub(crate) level: u8,
    pub(crate) codec: Codec,
    pub(crate) ordinal: u32,
    pub(crate) plain_len: u32,
    pub(crate) stored_len: u32,
}

impl FrameHeader {
    pub(crate) fn encode(&self) -> [u8; FRAME_HEADER_BYTES] {
        let mut bytes = [0; FRAME_HEADER_BYTES];
        let parts: [&[u8]; 5] = [
            &FRAME_MAGIC.to_le_bytes(),
            &[self.level, self.codec.byte()],
            &self.ordinal.to_le_bytes(),
            &self.plain_len.to_le_bytes(),
            &self.stored_len.to_le_bytes(),
        ];
        fill(&mut bytes, &parts);
        bytes
    }

    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let mut cursor = Cursor::new(bytes);
        if cursor.u16()? != FRAME_MAGIC {
            return None;
        }
        Some(Self {
            level: cursor.u8()?,
            codec: Codec::from_byte(cursor.u8()?)?,
            ordinal: cursor.u32()?,
            plain_len: cursor.u32()?,
            stored_len: cursor.u32()?,
        })
    }

    /// The associated data of this frame in this pack.
    pub(crate) fn associated_data(&self, kind: PackKind, pack_id: PackId) -> [u8; 31] {
        let mut bytes = [0; 31];
        let parts: [&[u8]; 5] = [
            pack_id.as_bytes(),
            &self.ordinal.to_le_bytes(),
            &[kind.byte(), self.level, self.codec.byte()],
            &self.plain_len.to_le_bytes(),
            &self.stored_len.to_le_bytes(),
        ];
        fill(&mut bytes, &parts);
        bytes
    }

    /// The nonce of this frame.
    pub(crate) fn nonce(&self) -> [u8; 12] {
        let mut bytes = [0; 12];
        fill(&mut bytes, &[&self.ordinal.to_le_bytes()]);
        bytes
    }
}

/// Copies the parts one after the other; what does not fit is dropped, and callers give parts that fit.
fn fill(bytes: &mut [u8], parts: &[&[u8]]) {
    let from = parts.iter().flat_map(|part| part.iter());
    for (to, from) in bytes.iter_mut().zip(from) {
        *to = *from;
    }
}

/// One blob of a pack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DirectoryEntry {
    /// The blob.
    pub name: BlobName,
    /// Where its frame begins.
    pub offset: u32,
    /// Bytes behind the frame's header, the tag included.
    pub stored_len: u32,
    /// How it is compressed.
    pub codec: Codec,
}

impl DirectoryEntry {
    /// Bytes of the plain blob.
    pub fn plain_len(&self) -> u32 {
        u32::try_from(self.name.plain_len()).unwrap_or(u32::MAX)
    }

    /// The first byte behind its frame.
    pub(crate) fn end(&self) -> u64 {
        u64::from(self.offset)
            .saturating_add(u64::from(self.stored_len))
            .saturating_add(FRAME_HEADER_LENGTH)
    }

    pub(crate) fn frame(&self, ordinal: u32) -> FrameHeader {
        FrameHeader {
            level: self.name.level(),
            codec: self.codec,
            ordinal,
            plain_len: self.plain_len(),
            stored_len: self.stored_len,
        }
    }

    pub(crate) fn encode(&self, bytes: &mut Vec<u8>) {
        bytes.extend_from_slice(self.name.hash_bytes());
        bytes.extend_from_slice(&self.offset.to_le_bytes());
        bytes.extend_from_slice(&self.stored_len.to_le_bytes());
        bytes.extend_from_slice(&self.plain_len().to_le_bytes());
        bytes.extend_from_slice(&[self.codec.byte(), self.name.level(), 0, 0]);
    }

    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let mut cursor = Cursor::new(bytes);
        let hash = cursor.array()?;
        let offset = cursor.u32()?;
        let stored_len = cursor.u32()?;
        let plain_len = cursor.u32()?;
        let codec = Codec::from_byte(cursor.u8()?)?;
        let name = BlobName::from_parts(cursor.u8()?, hash)?;
        let entry = Self {
            name,
            offset,
            stored_len,
            codec,
        };
        let bounded = usize::try_from(stored_len).is_ok_and(|len| len <= MAX_STORED_BLOB_BYTES);
        (bounded && entry.plain_len() == plain_len).then_some(entry)
    }
}

/// Bytes of a frame's header, for offsets.
pub(crate) const FRAME_HEADER_LENGTH: u64 = 16;

/// Reads the plain bytes of a directory; what is wrong with it otherwise.
pub(crate) fn decode_directory(
    kind: PackKind,
    directory_offset: u32,
    plain: &[u8],
) -> Result<Vec<DirectoryEntry>, &'static str> {
    if !plain.len().is_multiple_of(DIRECTORY_ENTRY_BYTES) {
        return Err("a directory of a broken length");
    }
    let mut entries = Vec::with_capacity(plain.len() / DIRECTORY_ENTRY_BYTES);
    let mut end = FIRST_FRAME;
    for bytes in plain.chunks_exact(DIRECTORY_ENTRY_BYTES) {
        let entry = DirectoryEntry::decode(bytes).ok_or("a malformed directory entry")?;
        if u64::from(entry.offset) != end || PackKind::holding(&entry.name) != kind {
            return Err("a directory that contradicts its pack");
        }
        end = entry.end();
        entries.push(entry);
    }
    if end != u64::from(directory_offset) {
        return Err("a directory that does not end its frames");
    }
    Ok(entries)
}

/// Where the first frame begins.
pub(crate) const FIRST_FRAME: u64 = 64;

/// A pack's trailer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Trailer {
    pub(crate) directory_offset: u32,
    pub(crate) directory_stored_len: u32,
    pub(crate) count: u32,
    /// Of the directory's frame as it is stored: without a key, nothing else tells a flipped hash from a right one.
    pub(crate) directory_check: [u8; 12],
    pub(crate) checksum: [u8; 32],
}

impl Trailer {
    /// The trailer without its checksum.
    pub(crate) fn encode_fields(&self) -> [u8; 32] {
        let mut bytes = [0; 32];
        let parts: [&[u8]; 5] = [
            &TRAILER_MAGIC,
            &self.directory_offset.to_le_bytes(),
            &self.directory_stored_len.to_le_bytes(),
            &self.count.to_le_bytes(),
            &self.directory_check,
        ];
        fill(&mut bytes, &parts);
        bytes
    }

    /// Reads the trailer of a pack of this size; what is wrong with it otherwise.
    pub(crate) fn decode(
        bytes: &[u8],
        cipher: Cipher,
        size_bytes: u64,
    ) -> Result<Self, &'static str> {
        const SHORT: &str = "shorter than a trailer";
        let mut cursor = Cursor::new(bytes);
        if cursor.array::<8>().ok_or(SHORT)? != TRAILER_MAGIC {
            return Err("no trailer at its end");
        }
        let directory_offset = cursor.u32().ok_or(SHORT)?;
        let directory_stored_len = cursor.u32().ok_or(SHORT)?;
        let count = cursor.u32().ok_or(SHORT)?;
        let directory_check = cursor.array().ok_or(SHORT)?;
        let checksum = cursor.array().ok_or(SHORT)?;
        let trailer = Self {
            directory_offset,
            directory_stored_len,
            count,
            directory_check,
            checksum,
        };
        if trailer.fits(cipher, size_bytes) == Some(true) {
            Ok(trailer)
        } else {
            Err("a trailer that contradicts the pack's size")
        }
    }

    fn fits(&self, cipher: Cipher, size_bytes: u64) -> Option<bool> {
        let count = usize::try_from(self.count).ok()?;
        let directory = count
            .checked_mul(DIRECTORY_ENTRY_BYTES)?
            .checked_add(cipher.overhead_bytes())?;
        let end = u64::from(self.directory_offset)
            .checked_add(FRAME_HEADER_LENGTH)?
            .checked_add(u64::from(self.directory_stored_len))?
            .checked_add(u64::try_from(PACK_TRAILER_BYTES).ok()?)?;
        Some(
            count <= MAX_PACK_ENTRIES
                && usize::try_from(self.directory_stored_len).ok()? == directory
                && end == size_bytes
                && usize::try_from(size_bytes).ok()? <= MAX_PACK_BYTES
                && u64::from(self.directory_offset) >= FIRST_FRAME,
        )
    }

    /// The frame of the directory that it points at.
    pub(crate) fn directory_frame(&self, cipher: Cipher) -> FrameHeader {
        let overhead = u32::try_from(cipher.overhead_bytes()).unwrap_or(0);
        FrameHeader {
            level: DIRECTORY_LEVEL,
            codec: Codec::Stored,
            ordinal: DIRECTORY_ORDINAL,
            plain_len: self.directory_stored_len.saturating_sub(overhead),
            stored_len: self.directory_stored_len,
        }
    }
}

/// The check of a directory's frame: header and stored bytes.
pub(crate) fn directory_check(frame_header: &[u8], stored: &[u8]) -> [u8; 12] {
    let mut hasher = blake3::Hasher::new_derive_key(context::PACK_DIRECTORY);
    hasher.update(frame_header);
    hasher.update(stored);
    let mut check = [0; 12];
    hasher.finalize_xof().fill(&mut check);
    check
}

/// The checksum of a pack's bytes before its checksum.
pub(crate) fn checksum(bytes: &[u8]) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new_derive_key(context::PACK_CHECKSUM);
    hasher.update(bytes);
    *hasher.finalize().as_bytes()
}
