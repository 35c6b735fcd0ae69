//! One pack being filled, sealed and checked.
//!
//! **Invariant.** A [`SealedPack`] has been decrypted, decompressed and hashed blob by blob from the very bytes that will
//! be put.

use std::sync::Arc;

use crate::blobs::EncodedBlob;
use crate::crypto::{self, AeadKey};
use crate::format::blob::BLOCK_BYTES;
use crate::format::pack::{self as layout, Trailer};
use crate::format::segment::PackDirectory;
use crate::format::{
    Cipher, Codec, DIRECTORY_ENTRY_BYTES, DIRECTORY_ORDINAL, DirectoryEntry, FRAME_HEADER_BYTES,
    MAX_PACK_BYTES, MAX_PACK_ENTRIES, PACK_TRAILER_BYTES, PackHeader, PackKind, TAG_BYTES,
    TARGET_DATA_PACK_BYTES, TARGET_NODE_PACK_BYTES, context,
};
use crate::vault::WriteKey;
use crate::{BlobName, Error, ErrorKind, PackId, Random, Result};

use super::reader::BlobDecoder;

/// A pack that blobs are added to; nothing is encrypted yet, room for the tags is left.
pub(crate) struct PackBuilder {
    header: PackHeader,
    write: Arc<WriteKey>,
    bytes: Vec<u8>,
    entries: Vec<DirectoryEntry>,
}

/// A pack that can be put.
pub(crate) struct SealedPack {
    pub(crate) directory: PackDirectory,
    pub(crate) bytes: Vec<u8>,
}

impl PackBuilder {
    /// Starts a pack in a buffer that is used again.
    pub(crate) fn new(
        kind: PackKind,
        pack_id: PackId,
        write: Arc<WriteKey>,
        random: &dyn Random,
        mut buffer: Vec<u8>,
    ) -> Result<Self> {
        let mut salt = [0; 16];
        if write.cipher == Cipher::Aes256Gcm {
            random.fill(&mut salt)?;
        }
        let header = PackHeader {
            kind,
            cipher: write.cipher,
            pack_id,
            key_id: write.id,
            salt,
        };
        buffer.clear();
        // Address space only: pages are touched as the pack grows, and nothing is moved when it does.
        buffer.reserve(reserved_bytes(kind));
        buffer.extend_from_slice(&header.encode());
        Ok(Self {
            header,
            write,
            bytes: buffer,
            entries: Vec::new(),
        })
    }

    pub(crate) fn pack_id(&self) -> PackId {
        self.header.pack_id
    }

    /// Bytes so far.
    pub(crate) fn size_bytes(&self) -> usize {
        self.bytes.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Whether a blob of this many bytes still keeps the pack within the limits.
    pub(crate) fn has_room(&self, bytes: usize) -> bool {
        let directory = (self.entries.len() + 1) * DIRECTORY_ENTRY_BYTES;
        let frames = 2 * (FRAME_HEADER_BYTES + TAG_BYTES) + PACK_TRAILER_BYTES;
        self.entries.len() < MAX_PACK_ENTRIES
            && self.bytes.len() + bytes + directory + frames <= MAX_PACK_BYTES
    }

    /// Adds a blob; its ordinal.
    pub(crate) fn push(&mut self, blob: &EncodedBlob) -> Result<u32> {
        self.push_parts(blob.name, blob.codec, &blob.bytes)
    }

    /// Adds a blob in its compressed form; its ordinal.
    pub(crate) fn push_parts(&mut self, name: BlobName, codec: Codec, bytes: &[u8]) -> Result<u32> {
        let too_big = || Error::new(ErrorKind::Invalid, "a pack above the limits");
        if !self.has_room(bytes.len()) {
            return Err(too_big());
        }
        let ordinal = u32::try_from(self.entries.len()).map_err(|_| too_big())?;
        let tag = self.header.cipher.overhead_bytes();
        let entry = DirectoryEntry {
            name,
            offset: u32::try_from(self.bytes.len()).map_err(|_| too_big())?,
            stored_len: u32::try_from(bytes.len() + tag).map_err(|_| too_big())?,
            codec,
        };
        self.bytes.extend_from_slice(&entry.frame(ordinal).encode());
        self.bytes.extend_from_slice(bytes);
        self.bytes.resize(self.bytes.len() + tag, 0);
        self.entries.push(entry);
        Ok(ordinal)
    }

    /// Encrypts, closes and checks the pack.
    ///
    /// # Errors
    /// [`ErrorKind::Corrupt`] when a blob does not decode to what its name says: the memory or the processor lied, or
    /// the caller gave bytes of another name.
    pub(crate) fn seal(mut self) -> Result<SealedPack> {
        let parts: [&[u8]; 3] = [
            self.write.key.bytes(),
            &self.header.salt,
            self.header.pack_id.as_bytes(),
        ];
        let key = match self.header.cipher {
            Cipher::Plain => None,
            Cipher::Aes256Gcm => Some(AeadKey::new(&crypto::derive(context::PACK_KEY, &parts))?),
        };
        let decoder = BlobDecoder::with_key(self.header, key);
        self.seal_and_check(&decoder)?;
        self.append_directory(&decoder)?;
        let too_big = || Error::new(ErrorKind::Invalid, "a pack above the limits");
        Ok(SealedPack {
            directory: PackDirectory {
                pack_id: self.header.pack_id,
                kind: self.header.kind,
                key_id: self.header.key_id,
                cipher: self.header.cipher,
                stored_size_bytes: u32::try_from(self.bytes.len()).map_err(|_| too_big())?,
                entries: self.entries,
            },
            bytes: self.bytes,
        })
    }
    fn append_directory(&mut self, decoder: &BlobDecoder) -> Result<()> {
        let too_big = |_| Error::new(ErrorKind::Invalid, "a pack above the limits");
        let overhead = self.header.cipher.overhead_bytes();
        let mut plain = Vec::with_capacity(self.entries.len() * DIRECTORY_ENTRY_BYTES + overhead);
        for entry in &self.entries {
            entry.encode(&mut plain);
        }
        plain.resize(plain.len() + overhead, 0);
        let mut trailer = Trailer {
            directory_offset: u32::try_from(self.bytes.len()).map_err(too_big)?,
            directory_stored_len: u32::try_from(plain.len()).map_err(too_big)?,
            count: u32::try_from(self.entries.len()).map_err(too_big)?,
            directory_check: [0; 12],
            checksum: [0; 32],
        };
        let frame = trailer.directory_frame(self.header.cipher);
        decoder.seal(&frame, &mut plain)?;
        let frame = frame.encode();
        trailer.directory_check = layout::directory_check(&frame, &plain);
        self.bytes.extend_from_slice(&frame);
        self.bytes.extend_from_slice(&plain);
        self.bytes.extend_from_slice(&trailer.encode_fields());
        trailer.checksum = layout::checksum(&self.bytes);
        self.bytes.extend_from_slice(&trailer.checksum);
        Ok(())
    }

    /// Encrypts each blob in place, and decodes and hashes what that gave while it is still in the processor's cache.
    fn seal_and_check(&mut self, decoder: &BlobDecoder) -> Result<()> {
        let mut plain = vec![0; BLOCK_BYTES];
        let mut copy = Vec::new();
        for (ordinal, entry) in self.entries.iter().enumerate() {
            let ordinal = u32::try_from(ordinal).unwrap_or(DIRECTORY_ORDINAL);
            let start = index(entry.offset);
            let end = start + FRAME_HEADER_BYTES + index(entry.stored_len);
            let bytes = &mut self.bytes[start..end];
            decoder.seal(&entry.frame(ordinal), &mut bytes[FRAME_HEADER_BYTES..])?;
            copy.clear();
            copy.extend_from_slice(bytes);
            let plain = &mut plain[..entry.name.plain_len()];
            decoder
                .decode(entry, ordinal, &mut copy, plain)
                .map_err(|fault| {
                    let what = format!("new pack {}: {}: {fault}", self.header.pack_id, entry.name);
                    Error::new(ErrorKind::Corrupt, what)
                })?;
        }
        Ok(())
    }
}

/// An offset or length that the builder wrote itself.
fn index(value: u32) -> usize {
    usize::try_from(value).unwrap_or(usize::MAX)
}

/// The longest that a pack of a kind usually gets.
fn reserved_bytes(kind: PackKind) -> usize {
    let target = match kind {
        PackKind::Data => TARGET_DATA_PACK_BYTES,
        PackKind::Node => TARGET_NODE_PACK_BYTES,
    };
    target + (target >> 4)
}
