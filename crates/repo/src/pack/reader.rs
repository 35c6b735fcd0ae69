//! Taking packs apart: directories, single blobs, and what can still be saved of a damaged one.
#![deny(
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    clippy::as_conversions,
    clippy::unwrap_used,
    clippy::expect_used
)]

use std::fmt;

use block::{BlockHash, NodeHash};
use store::{ObjectName, Store};

use crate::compress::decompress_into;
use crate::crypto::{self, AeadKey, SecretKey};
use crate::format::blob::BLOCK_BYTES;
use crate::format::pack::{self as layout, FIRST_FRAME, FrameHeader, Trailer};
use crate::format::{
    BlobName, CHECKSUM_BYTES, Cipher, DIRECTORY_LEVEL, DirectoryEntry, FRAME_HEADER_BYTES,
    MAX_PACK_ENTRIES, MAX_STORED_BLOB_BYTES, PACK_HEADER_BYTES, PACK_TRAILER_BYTES, PackHeader,
    PackKind, TAG_BYTES, context,
};
use crate::{Error, ErrorKind, KeyId, PackId, Result};

/// Frame headers that lead to nothing until a damaged pack is given up: as many as a pack can have blobs.
const MAX_FAILED_FRAMES: usize = 1 << 16;
/// Bytes that are read from the end of a pack at first: holds the trailer and most directories.
const TAIL_BYTES: u64 = 64 << 10;

/// What is wrong with one blob of a pack.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum PackFault {
    /// Its frame is not the one that the directory speaks of.
    Frame,
    /// The bytes were not encrypted with this key at this place.
    Authenticity,
    /// It cannot be decompressed to its length.
    Encoding,
    /// It decodes to bytes of another hash.
    Hash,
}

impl fmt::Display for PackFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Frame => "its frame is not what the directory says",
            Self::Authenticity => "it was not written with this key at this place",
            Self::Encoding => "it does not decompress to its length",
            Self::Hash => "it decodes to other bytes than its name says",
        })
    }
}

/// Decodes the blobs of one pack.
pub(crate) struct BlobDecoder {
    header: PackHeader,
    key: Option<AeadKey>,
}

impl BlobDecoder {
    /// For a pack with this header; `find_key` gives the data key of an id.
    pub(crate) fn new(
        header: PackHeader,
        find_key: &dyn Fn(KeyId) -> Option<SecretKey>,
    ) -> Result<Self> {
        let key = match header.cipher {
            Cipher::Plain => None,
            Cipher::Aes256Gcm => {
                let data_key = find_key(header.key_id).ok_or_else(|| {
                    let what = format!(
                        "pack {}: encrypted with key {}, which is not here",
                        header.pack_id, header.key_id
                    );
                    Error::new(ErrorKind::WrongKey, what)
                })?;
                let parts: [&[u8]; 3] = [data_key.bytes(), &header.salt, header.pack_id.as_bytes()];
                Some(AeadKey::new(&crypto::derive(context::PACK_KEY, &parts))?)
            }
        };
        Ok(Self { header, key })
    }

    pub(crate) fn with_key(header: PackHeader, key: Option<AeadKey>) -> Self {
        Self { header, key }
    }

    /// Encrypts the stored bytes of one frame in place; the last sixteen are room for the tag.
    pub(crate) fn seal(&self, frame: &FrameHeader, stored: &mut [u8]) -> Result<()> {
        let Some(key) = &self.key else { return Ok(()) };
        let Some((text, tag)) = stored.split_last_chunk_mut::<TAG_BYTES>() else {
            return Err(Error::new(
                ErrorKind::Invalid,
                "a frame without room for its tag",
            ));
        };
        let aad = frame.associated_data(self.header.kind, self.header.pack_id);
        *tag = key.seal_in_place(frame.nonce(), &aad, text)?;
        Ok(())
    }

    pub(crate) fn header(&self) -> &PackHeader {
        &self.header
    }

    /// Decodes one frame into `plain`, which has the blob's length, and compares its hash. The frame's bytes are used up.
    pub(crate) fn decode(
        &self,
        entry: &DirectoryEntry,
        ordinal: u32,
        frame: &mut [u8],
        plain: &mut [u8],
    ) -> std::result::Result<(), PackFault> {
        let (head, stored) = frame
            .split_at_mut_checked(FRAME_HEADER_BYTES)
            .ok_or(PackFault::Frame)?;
        let wanted = entry.frame(ordinal);
        if FrameHeader::decode(head) != Some(wanted) {
            return Err(PackFault::Frame);
        }
        let text = self.decrypt(&wanted, stored)?;
        match decompress_into(entry.codec, text, plain) {
            Ok(true) => {}
            _ => return Err(PackFault::Encoding),
        }
        if entry.name.names(plain) {
            Ok(())
        } else {
            Err(PackFault::Hash)
        }
    }

    /// Decrypts the stored bytes of a frame in place.
    pub(crate) fn decrypt<'a>(
        &self,
        frame: &FrameHeader,
        stored: &'a mut [u8],
    ) -> std::result::Result<&'a [u8], PackFault> {
        if usize::try_from(frame.stored_len) != Ok(stored.len()) {
            return Err(PackFault::Frame);
        }
        let Some(key) = &self.key else {
            return Ok(stored);
        };
        let aad = frame.associated_data(self.header.kind, self.header.pack_id);
        let length = key
            .open_in_place(frame.nonce(), &aad, stored)
            .ok_or(PackFault::Authenticity)?;
        stored.get(..length).ok_or(PackFault::Frame)
    }
}

/// Decodes a frame without a directory: its name is computed from what is in it.
fn open_frame(
    decoder: &BlobDecoder,
    header: &FrameHeader,
    stored: &mut [u8],
    plain: &mut [u8],
) -> std::result::Result<BlobName, PackFault> {
    let text = decoder.decrypt(header, stored)?;
    match decompress_into(header.codec, text, plain) {
        Ok(true) => {}
        _ => return Err(PackFault::Encoding),
    }
    Ok(match header.level {
        0 => BlobName::Block(BlockHash::of(plain)),
        level => BlobName::Node {
            level,
            hash: NodeHash::of(level, plain),
        },
    })
}

fn check_header(name: &ObjectName, kind: PackKind, id: PackId, bytes: &[u8]) -> Result<PackHeader> {
    let header = PackHeader::decode(bytes).map_err(|what| Error::corrupt(name, what))?;
    if header.kind == kind && header.pack_id == id {
        Ok(header)
    } else {
        Err(Error::corrupt(name, "it is another pack"))
    }
}

/// Reads a pack's header and directory from the store.
///
/// # Errors
/// [`ErrorKind::NotFound`] when there is no such pack, [`ErrorKind::Corrupt`] when its ends are damaged.
pub(crate) fn read_directory(
    store: &dyn Store,
    name: &ObjectName,
    kind: PackKind,
    id: PackId,
    find_key: &dyn Fn(KeyId) -> Option<SecretKey>,
) -> Result<(BlobDecoder, Vec<DirectoryEntry>, u64)> {
    let size = store.size(name)?;
    let header_len = u64::try_from(PACK_HEADER_BYTES).unwrap_or(u64::MAX);
    if size < FIRST_FRAME.saturating_mul(2) {
        return Err(Error::corrupt(name, "shorter than any pack"));
    }
    let header = check_header(name, kind, id, &store.get_range(name, 0, header_len)?)?;
    let decoder = BlobDecoder::new(header, find_key)?;
    let tail_len = size.min(TAIL_BYTES);
    let mut tail = store.get_range(name, size.saturating_sub(tail_len), tail_len)?;
    let corrupt = |what: &'static str| Error::corrupt(name, what);
    let trailer = tail
        .last_chunk::<PACK_TRAILER_BYTES>()
        .ok_or_else(|| corrupt("shorter than a trailer"))
        .and_then(|bytes| Trailer::decode(bytes, header.cipher, size).map_err(corrupt))?;
    let from_end = size.saturating_sub(u64::from(trailer.directory_offset));
    if from_end > tail_len {
        tail = store.get_range(name, u64::from(trailer.directory_offset), from_end)?;
    }
    let start = u64::try_from(tail.len())
        .unwrap_or(0)
        .saturating_sub(from_end);
    let start = usize::try_from(start).unwrap_or(usize::MAX);
    let bytes = tail
        .get_mut(start..)
        .ok_or_else(|| corrupt("shorter than its directory"))?;
    let entries = open_directory(&decoder, &trailer, bytes).map_err(corrupt)?;
    Ok((decoder, entries, size))
}

/// Decrypts and reads the directory at the front of `bytes`, which reach to the end of the pack.
fn open_directory(
    decoder: &BlobDecoder,
    trailer: &Trailer,
    bytes: &mut [u8],
) -> std::result::Result<Vec<DirectoryEntry>, &'static str> {
    const SHORT: &str = "shorter than its directory";
    let header = decoder.header();
    let frame = trailer.directory_frame(header.cipher);
    let length = usize::try_from(trailer.directory_stored_len).map_err(|_| SHORT)?;
    let (head, rest) = bytes
        .split_at_mut_checked(FRAME_HEADER_BYTES)
        .ok_or(SHORT)?;
    if FrameHeader::decode(head) != Some(frame) {
        return Err("the directory's frame is damaged");
    }
    let stored = rest.get_mut(..length).ok_or(SHORT)?;
    if layout::directory_check(head, stored) != trailer.directory_check {
        return Err("its directory is damaged");
    }
    let plain = decoder
        .decrypt(&frame, stored)
        .map_err(|_| "its directory is damaged")?;
    let entries = layout::decode_directory(header.kind, trailer.directory_offset, plain)?;
    if usize::try_from(trailer.count) == Ok(entries.len()) {
        Ok(entries)
    } else {
        Err("a directory of another length than its trailer says")
    }
}

/// Checks the bytes of a whole pack: header, trailer and checksum; with a key also its directory, which it gives.
///
/// # Errors
/// [`ErrorKind::Unsupported`] for a pack of a newer program that is byte for byte what was written, else
/// [`ErrorKind::Corrupt`].
pub(crate) fn check_whole_pack(
    name: &ObjectName,
    kind: PackKind,
    id: PackId,
    bytes: &[u8],
    find_key: &dyn Fn(KeyId) -> Option<SecretKey>,
) -> Result<Vec<DirectoryEntry>> {
    let corrupt = |what: &'static str| Error::corrupt(name, what);
    let (body, sum) = bytes
        .split_last_chunk::<CHECKSUM_BYTES>()
        .ok_or_else(|| corrupt("shorter than a trailer"))?;
    if layout::checksum(body) != *sum {
        return Err(corrupt("its checksum does not fit its bytes"));
    }
    if layout::is_newer(bytes) {
        let what = format!("{name}: of a newer format version than this program knows");
        return Err(Error::new(ErrorKind::Unsupported, what));
    }
    let header = check_header(name, kind, id, bytes)?;
    let size = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
    let trailer = bytes
        .last_chunk::<PACK_TRAILER_BYTES>()
        .ok_or_else(|| corrupt("shorter than a trailer"))
        .and_then(|end| Trailer::decode(end, header.cipher, size).map_err(corrupt))?;
    let decoder = match BlobDecoder::new(header, find_key) {
        Ok(decoder) => decoder,
        Err(error) if error.kind() == ErrorKind::WrongKey => {
            return Ok(Vec::new());
        }
        Err(error) => return Err(error),
    };
    let start = usize::try_from(trailer.directory_offset).unwrap_or(usize::MAX);
    let mut end = bytes
        .get(start..)
        .ok_or_else(|| corrupt("shorter than its directory"))?
        .to_vec();
    open_directory(&decoder, &trailer, &mut end).map_err(corrupt)
}

/// Finds the blobs of a damaged pack by its frames alone: every entry that it returns was decrypted and hashed.
///
/// A frame whose header is damaged is skipped by looking for the next one that opens, within a bound of attempts. Ordinals are those of the frames, so
/// that the entries may have gaps.
pub(crate) fn scan_frames(decoder: &BlobDecoder, bytes: &[u8]) -> Vec<(u32, DirectoryEntry)> {
    let mut found = Vec::new();
    let mut at = PACK_HEADER_BYTES;
    let mut next_ordinal = 0u32;
    let mut failed = 0usize;
    let mut plain = vec![0u8; BLOCK_BYTES];
    while let Some(rest) = bytes.get(at..) {
        if rest.len() < FRAME_HEADER_BYTES {
            break;
        }
        match frame_at(decoder, rest, next_ordinal, &mut plain) {
            Some((header, name)) => {
                let entry = DirectoryEntry {
                    name,
                    offset: u32::try_from(at).unwrap_or(u32::MAX),
                    stored_len: header.stored_len,
                    codec: header.codec,
                };
                found.push((header.ordinal, entry));
                next_ordinal = header.ordinal.saturating_add(1);
                at = usize::try_from(entry.end()).unwrap_or(usize::MAX);
            }
            None => {
                // A pack made of nothing but beginnings of frames would be decrypted at every byte.
                if FrameHeader::decode(rest).is_some() {
                    failed = failed.saturating_add(1);
                    if failed > MAX_FAILED_FRAMES {
                        break;
                    }
                }
                at = at.saturating_add(1);
            }
        }
    }
    found
}

fn frame_at(
    decoder: &BlobDecoder,
    bytes: &[u8],
    next_ordinal: u32,
    plain: &mut [u8],
) -> Option<(FrameHeader, BlobName)> {
    let header = FrameHeader::decode(bytes)?;
    let stored_len = usize::try_from(header.stored_len).ok()?;
    let name = BlobName::from_parts(header.level, [0; 32])?;
    let plausible = header.level != DIRECTORY_LEVEL
        && header.ordinal >= next_ordinal
        && usize::try_from(header.ordinal).is_ok_and(|ordinal| ordinal < MAX_PACK_ENTRIES)
        && usize::try_from(header.plain_len) == Ok(name.plain_len())
        && stored_len <= MAX_STORED_BLOB_BYTES
        && stored_len >= decoder.header().cipher.overhead_bytes()
        && PackKind::holding(&name) == decoder.header().kind;
    if !plausible {
        return None;
    }
    let end = FRAME_HEADER_BYTES.checked_add(stored_len)?;
    let mut stored = bytes.get(FRAME_HEADER_BYTES..end)?.to_vec();
    let plain = plain.get_mut(..name.plain_len())?;
    let name = open_frame(decoder, &header, &mut stored, plain).ok()?;
    Some((header, name))
}
