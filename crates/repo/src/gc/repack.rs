//! Moving blobs into new packs: for packs that are mostly garbage, small, or damaged.
//!
//! ```text
//!   old pack ── runs of wanted frames ──► decode, compare hashes ──► new pack, new key ──► seal (decodes again) ──► put
//!                                                                                           index segment at the end
//! ```
//!
//! **Invariants.** Ids of new packs are covered by a durable beat before the pack is put. A blob whose bytes are not what its
//! name says ends the pack it is in with [`crate::ErrorKind::Corrupt`]; what was moved before is a harmless second copy.

use std::sync::Arc;

use crate::access::ObjectAccess;
use crate::format::blob::BLOCK_BYTES;
use crate::format::segment::PackDirectory;
use crate::format::{Codec, DirectoryEntry, FRAME_HEADER_BYTES, PackKind};
use crate::index::put_segment;
use crate::lease::Lease;
use crate::pack::{PackBuilder, PackFile};
use crate::vault::{Vault, WriteKey};
use crate::{BlobName, Error, ErrorKind, Result, names};

use super::ground::Ground;
use super::run::target_bytes;

/// Longest run of frames read with one call.
const RUN_BYTES_MAX: u64 = 8 << 20;
/// Unwanted bytes that are read along with a run rather than ending it.
const GAP_BYTES_MAX: u64 = 128 << 10;
/// Directories are put as a segment when they have this many bytes.
const SEGMENT_BYTES: usize = 4 << 20;

/// Collects blobs into new packs.
pub(crate) struct BlobMover<'a> {
    ground: &'a Ground,
    vault: &'a Vault,
    lease: &'a Lease,
    write: Arc<WriteKey>,
    data: Option<PackBuilder>,
    node: Option<PackBuilder>,
    written: Vec<PackDirectory>,
    plain: Vec<u8>,
}

impl<'a> BlobMover<'a> {
    pub(crate) fn new(ground: &'a Ground, lease: &'a Lease) -> Result<Self> {
        let vault = ground.vault.as_ref();
        Ok(Self {
            ground,
            vault,
            lease,
            write: Arc::new(vault.write_key()?),
            data: None,
            node: None,
            written: Vec::new(),
            plain: vec![0; BLOCK_BYTES],
        })
    }

    /// Moves the wanted blobs of a pack.
    pub(crate) fn take_pack(&mut self, number: u32, is_wanted: impl Fn(u32) -> bool) -> Result<()> {
        let row = self
            .ground
            .index
            .pack(number)
            .ok_or_else(|| Error::new(ErrorKind::NotFound, format!("pack number {number}")))?;
        let file = PackFile::open(self.vault, row.kind, row.id)?;
        self.take_file(&file, is_wanted)
    }

    /// Moves the wanted blobs of an opened pack.
    pub(crate) fn take_file(
        &mut self,
        file: &PackFile,
        is_wanted: impl Fn(u32) -> bool,
    ) -> Result<()> {
        let wanted: Vec<(u32, DirectoryEntry)> = file
            .blobs()
            .filter(|(ordinal, _)| is_wanted(*ordinal))
            .map(|(ordinal, entry)| (ordinal, *entry))
            .collect();
        let mut rest = wanted.as_slice();
        while let Some((_, first)) = rest.first() {
            let start = u64::from(first.offset);
            let mut end = first.end();
            let mut count = 1usize;
            for (_, entry) in rest.get(1..).unwrap_or_default() {
                let gap = u64::from(entry.offset).saturating_sub(end);
                if gap > GAP_BYTES_MAX || entry.end().saturating_sub(start) > RUN_BYTES_MAX {
                    break;
                }
                end = entry.end();
                count = count.saturating_add(1);
            }
            let (run, later) = rest.split_at(count.min(rest.len()));
            let length = end.saturating_sub(start);
            let mut bytes = self.vault.store().get_range(file.name(), start, length)?;
            for (ordinal, entry) in run {
                self.move_blob(file, *ordinal, entry, start, &mut bytes)?;
            }
            rest = later;
        }
        Ok(())
    }

    fn move_blob(
        &mut self,
        file: &PackFile,
        ordinal: u32,
        entry: &DirectoryEntry,
        start: u64,
        bytes: &mut [u8],
    ) -> Result<()> {
        let short = || Error::corrupt(file.name(), format_args!("blob {ordinal} is cut short"));
        let at = u64::from(entry.offset)
            .checked_sub(start)
            .ok_or_else(short)?;
        let at = usize::try_from(at).map_err(|_| short())?;
        let stored = usize::try_from(entry.stored_len).map_err(|_| short())?;
        let end = at.saturating_add(FRAME_HEADER_BYTES).saturating_add(stored);
        let frame = bytes.get_mut(at..end).ok_or_else(short)?;
        let plain = self
            .plain
            .get_mut(..entry.name.plain_len())
            .ok_or_else(short)?;
        file.decode(ordinal, frame, plain)?;
        // Decoding decrypted the frame in place, so that the compressed form stands behind its header. Were it not so,
        // sealing the new pack would find out.
        let overhead = file.header().cipher.overhead_bytes();
        let length = stored.saturating_sub(overhead);
        let text = frame
            .get(FRAME_HEADER_BYTES..)
            .and_then(|text| text.get(..length));
        let text = text.ok_or_else(short)?.to_vec();
        self.push(entry.name, entry.codec, &text)
    }

    /// Adds a blob in its compressed form; its name must be the hash of what it decodes to.
    pub(crate) fn push(&mut self, name: BlobName, codec: Codec, bytes: &[u8]) -> Result<()> {
        let kind = PackKind::holding(&name);
        let target = target_bytes(self.vault, kind);
        if self.open(kind).as_ref().is_some_and(|pack| {
            !pack.has_room(bytes.len())
                || u64::try_from(pack.size_bytes()).unwrap_or(u64::MAX) >= target
        }) {
            self.close(kind)?;
        }
        if self.open(kind).is_none() {
            let id = self.lease.next_pack_id()?;
            let random = self.vault.environment().random.as_ref();
            let pack = PackBuilder::new(kind, id, Arc::clone(&self.write), random, Vec::new())?;
            *self.open(kind) = Some(pack);
        }
        match self.open(kind) {
            Some(pack) => pack.push_parts(name, codec, bytes).map(|_| ()),
            None => Err(Error::new(ErrorKind::Local, "no open pack")),
        }
    }

    fn open(&mut self, kind: PackKind) -> &mut Option<PackBuilder> {
        match kind {
            PackKind::Data => &mut self.data,
            PackKind::Node => &mut self.node,
        }
    }

    fn close(&mut self, kind: PackKind) -> Result<()> {
        let Some(pack) = self.open(kind).take().filter(|pack| !pack.is_empty()) else {
            return Ok(());
        };
        let sealed = pack.seal()?;
        self.lease.check()?;
        let name = names::pack(kind, sealed.directory.pack_id)?;
        self.vault.store().put_new(&name, &sealed.bytes)?;
        self.written.push(sealed.directory);
        Ok(())
    }

    /// Closes what is open and puts the index segments; gives the new packs.
    pub(crate) fn finish(mut self) -> Result<Vec<PackDirectory>> {
        self.close(PackKind::Data)?;
        self.close(PackKind::Node)?;
        let mut batch = Vec::new();
        let mut batch_bytes = 0usize;
        for directory in &self.written {
            batch_bytes = batch_bytes.saturating_add(directory.encoded_bytes());
            batch.push(directory.clone());
            if batch_bytes >= SEGMENT_BYTES {
                put_segment(self.vault, Vec::new(), std::mem::take(&mut batch))?;
                batch_bytes = 0;
            }
        }
        if !batch.is_empty() {
            put_segment(self.vault, Vec::new(), batch)?;
        }
        Ok(self.written)
    }
}
