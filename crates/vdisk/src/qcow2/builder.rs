//! A new image that nobody else sees before it is finished: conversion and restore.
//!
//! ```text
//! │ header │ L1 table │ data and L2 tables as they come … │ refcount blocks │ refcount table │
//!    └ an incompatible feature bit says "unfinished" until `finish` ───────── made by `finish` ┘
//! ```
//!
//! **Invariants.** Writes come from any thread, in any order. Zeros take no space. Whatever stops the build, no program takes
//! the file for an image; [`Qcow2Builder::resume`] goes on with everything that was flushed. Finished images have no leak.

use std::sync::Arc;

use block::{Extent, ReadAt, WriteAt};

use super::check::set_incompatible;
use super::codec::{self, Compression};
use super::editor::{Editor, State};
use super::entry::encode_compressed;
use super::header::{
    BackingName, COMPRESSION_TYPE, EXTENSION_BACKING_FORMAT, EXTENSION_FEATURES, MAGIC,
    MAX_L1_BYTES, Qcow2Header, UNFINISHED, UNFINISHED_NAME, clusters_in_file,
};
use super::rebuild::{self, OwnedBits};
use super::references::{self, Counters, Met};
use super::space::BumpSpace;
use super::tables::Tables;
use crate::field::{bytes, index, is_zero, put};
use crate::{Error, ErrorKind, Result};

/// What a new image shall be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Qcow2Options {
    /// Bytes of the virtual disk, a multiple of 512.
    pub size_bytes: u64,
    /// Bytes of a cluster: a power of two from 512 to 2 MiB.
    pub cluster_bytes: u64,
    /// The parent to name, for an overlay.
    pub backing: Option<BackingName>,
    /// Compress whole clusters as they are written; pieces of clusters are stored as they are.
    pub compression: Option<Compression>,
}

impl Qcow2Options {
    /// QEMU's defaults: clusters of 64 KiB, no parent, no compression.
    pub fn new(size_bytes: u64) -> Self {
        Self {
            size_bytes,
            cluster_bytes: 64 * 1024,
            backing: None,
            compression: None,
        }
    }

    fn header(&self) -> Result<Qcow2Header> {
        let invalid =
            |text: String| Error::new(ErrorKind::Invalid, format!("qcow2 creation: {text}"));
        let cluster_bits = self.cluster_bytes.trailing_zeros();
        if !self.cluster_bytes.is_power_of_two() || !(9..=21).contains(&cluster_bits) {
            return Err(invalid(format!("clusters of {} bytes", self.cluster_bytes)));
        }
        if !self.size_bytes.is_multiple_of(512) || self.size_bytes > i64::MAX.unsigned_abs() {
            return Err(invalid(format!(
                "a disk of {} bytes is not a whole number of 512-byte sectors below 8 EiB",
                self.size_bytes
            )));
        }
        let incompatible = match self.compression {
            Some(Compression::Zstd) => UNFINISHED | COMPRESSION_TYPE,
            _ => UNFINISHED,
        };
        let mut header = Qcow2Header {
            version: 3,
            cluster_bits,
            size_bytes: self.size_bytes,
            l1_entries: 0,
            l1_offset: self.cluster_bytes,
            refcount_table_offset: 0,
            refcount_table_clusters: 0,
            snapshot_count: 0,
            snapshots_offset: 0,
            incompatible,
            autoclear: 0,
            refcount_order: 4,
            compression: self.compression.unwrap_or(Compression::Zlib),
            backing: self.backing.clone(),
            data_file_name: None,
            bitmaps: None,
        };
        header.l1_entries = self.size_bytes.div_ceil(header.bytes_per_l2().max(1));
        if header.l1_entries.saturating_mul(8) > MAX_L1_BYTES {
            return Err(invalid(format!(
                "a disk of {} bytes needs larger clusters than {}",
                self.size_bytes, self.cluster_bytes
            )));
        }
        Ok(header)
    }
}

/// The first cluster of a new image.
fn encode_header(header: &Qcow2Header) -> Result<Vec<u8>> {
    let mut first = vec![0u8; index(header.cluster_bytes())];
    put(&mut first, 0, &MAGIC.to_be_bytes());
    put(&mut first, 4, &header.version.to_be_bytes());
    put(&mut first, 20, &header.cluster_bits.to_be_bytes());
    put(&mut first, 24, &header.size_bytes.to_be_bytes());
    put(
        &mut first,
        36,
        &u32::try_from(header.l1_entries)
            .unwrap_or(u32::MAX)
            .to_be_bytes(),
    );
    put(&mut first, 40, &header.l1_offset.to_be_bytes());
    put(&mut first, 72, &header.incompatible.to_be_bytes());
    put(&mut first, 96, &header.refcount_order.to_be_bytes());
    put(&mut first, 100, &112u32.to_be_bytes());
    let compression_type = match header.compression {
        Compression::Zlib => 0u8,
        Compression::Zstd => 1,
    };
    put(&mut first, 104, &[compression_type]);
    let mut at = 112usize;
    if let Some(format) = header
        .backing
        .as_ref()
        .and_then(|backing| backing.format.as_ref())
    {
        at = put_extension(&mut first, at, EXTENSION_BACKING_FORMAT, format.as_bytes())?;
    }
    at = put_extension(&mut first, at, EXTENSION_FEATURES, &feature_names())?;
    // The end mark is eight zero bytes.
    at = at.saturating_add(8);
    if let Some(backing) = &header.backing {
        let name = backing.path.as_bytes();
        if name.is_empty() || name.len() > 1023 || at.saturating_add(name.len()) > first.len() {
            return Err(Error::new(
                ErrorKind::Invalid,
                format!(
                    "qcow2 creation: a backing name of {} bytes does not fit",
                    name.len()
                ),
            ));
        }
        put(&mut first, 8, &bytes(at).to_be_bytes());
        put(
            &mut first,
            16,
            &u32::try_from(name.len()).unwrap_or(u32::MAX).to_be_bytes(),
        );
        put(&mut first, at, name);
    }
    Ok(first)
}

fn put_extension(first: &mut [u8], at: usize, kind: u32, body: &[u8]) -> Result<usize> {
    let end = at
        .saturating_add(8)
        .saturating_add(body.len())
        .next_multiple_of(8);
    if end > first.len() {
        return Err(Error::new(
            ErrorKind::Invalid,
            "qcow2 creation: the header does not fit into one cluster",
        ));
    }
    put(first, at, &kind.to_be_bytes());
    put(
        first,
        at.saturating_add(4),
        &u32::try_from(body.len()).unwrap_or(u32::MAX).to_be_bytes(),
    );
    put(first, at.saturating_add(8), body);
    Ok(end)
}

/// Names of the feature bits that images made here can carry.
fn feature_names() -> Vec<u8> {
    let names: [(u8, &str); 4] = [
        (0, "dirty bit"),
        (1, "corrupt bit"),
        (3, "compression type"),
        (
            u8::try_from(UNFINISHED.trailing_zeros()).unwrap_or(u8::MAX),
            UNFINISHED_NAME,
        ),
    ];
    let mut table = Vec::new();
    for (bit, name) in names {
        let mut entry = [0u8; 48];
        put(&mut entry, 1, &[bit]);
        put(&mut entry, 2, name.as_bytes());
        table.extend_from_slice(&entry);
    }
    table
}

/// Makes an empty image in an empty file.
///
/// # Errors
/// As [`Qcow2Builder::create`].
pub fn create(file: Arc<dyn WriteAt>, options: &Qcow2Options) -> Result<()> {
    Qcow2Builder::create(file, options, None)?.finish()
}

/// Writes a new image.
pub struct Qcow2Builder {
    editor: Editor<BumpSpace>,
    compression: Option<Compression>,
}

impl Qcow2Builder {
    /// Begins an image in an empty file. `parent` is the content of the backing disk: writes that leave gaps in a cluster need it.
    ///
    /// # Errors
    /// `AlreadyExists` when the file is not empty, `Invalid` when the options contradict the format or themselves.
    pub fn create(
        file: Arc<dyn WriteAt>,
        options: &Qcow2Options,
        parent: Option<Arc<dyn ReadAt>>,
    ) -> Result<Self> {
        let header = options.header()?;
        if file.size_bytes() != 0 {
            return Err(Error::new(
                ErrorKind::AlreadyExists,
                "qcow2 creation: the file is not empty",
            ));
        }
        if parent.is_some() && header.backing.is_none() {
            return Err(Error::new(
                ErrorKind::Invalid,
                "qcow2 creation: a parent without a name for it",
            ));
        }
        let first = encode_header(&header)?;
        let l1_bytes = header.l1_entries.saturating_mul(8);
        let end = header
            .l1_offset
            .saturating_add(l1_bytes)
            .checked_next_multiple_of(header.cluster_bytes())
            .unwrap_or(u64::MAX);
        file.set_size(end)?;
        file.write_at(0, &first)?;
        file.flush()?;
        let tables = Tables::empty(&header);
        let space = BumpSpace::new(&header, end);
        let compression = options.compression;
        Ok(Self {
            editor: Editor::new(file, parent, header, tables, space),
            compression,
        })
    }

    /// Goes on with an image that was not finished: everything up to the last [`WriteAt::flush`] is there. What was
    /// compressed stays so; further clusters are compressed if `compression` says so.
    ///
    /// # Errors
    /// `Invalid` when the image was finished already; otherwise as [`Qcow2Header::read`].
    pub fn resume(
        file: Arc<dyn WriteAt>,
        compression: Option<Compression>,
        parent: Option<Arc<dyn ReadAt>>,
    ) -> Result<Self> {
        let header = Qcow2Header::read_any(&file)?;
        if header.incompatible & UNFINISHED == 0
            || header.has_extended_l2()
            || header.needs_data_file()
        {
            return Err(Error::new(
                ErrorKind::Invalid,
                "qcow2: not an unfinished build",
            ));
        }
        if compression.is_some_and(|wanted| wanted != header.compression) {
            return Err(Error::new(
                ErrorKind::Invalid,
                "qcow2: the image has another compression type",
            ));
        }
        let tables = Tables::load(&header, &*file)?;
        let mut end = clusters_in_file(&header, &file);
        references::walk(&header, &*file, Counters::LeftOut, |met| {
            // Tables may have reached the disk before the data that they refer to: space is then taken, and reads as zeros.
            if let Met::Reference(reference) = met {
                let behind = reference.offset.saturating_add(reference.length);
                end = end.max(behind.div_ceil(header.cluster_bytes().max(1)));
            }
            Ok(())
        })?;
        let end = end.saturating_mul(header.cluster_bytes());
        let space = BumpSpace::new(&header, end);
        Ok(Self {
            editor: Editor::new(file, parent, header, tables, space),
            compression,
        })
    }

    /// The header as it is so far.
    pub fn header(&self) -> &Qcow2Header {
        &self.editor.header
    }

    /// Makes the image whole and durable: tables, then counters, then the mark goes.
    ///
    /// # Errors
    /// `Io` when writing fails: the file stays unfinished.
    pub fn finish(self) -> Result<()> {
        let mut state = self.editor.lock()?;
        self.editor.sync(&mut state)?;
        let file = &*self.editor.file;
        let end = state.space.end();
        if file.size_bytes() < end {
            file.set_size(end)?;
        }
        let mut header = self.editor.header.clone();
        rebuild::rebuild(file, &mut header, OwnedBits::Trusted)?;
        set_incompatible(file, &mut header, !UNFINISHED)
    }

    /// Writes one whole cluster compressed; `false` when it does not get smaller that way.
    fn write_compressed(
        &self,
        guest: u64,
        cluster: &[u8],
        compression: Compression,
    ) -> Result<bool> {
        let Some(packed) = codec::compress(compression, cluster)? else {
            return Ok(false);
        };
        let length = bytes(packed.len());
        let offset = self.editor.lock()?.space.take_packed(length)?;
        self.editor.file.write_at(offset, &packed)?;
        let word = encode_compressed(&self.editor.header, offset, length);
        self.editor.assign(guest, word)?;
        Ok(true)
    }
}

/// The builder's space never fills a counter table: it has none.
fn no_growth(_: &Editor<BumpSpace>, _: &mut State<BumpSpace>) -> Result<()> {
    Err(Error::new(
        ErrorKind::Unsupported,
        "qcow2: no room for another cluster",
    ))
}

impl ReadAt for Qcow2Builder {
    fn size_bytes(&self) -> u64 {
        self.editor.header.size_bytes
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> block::Result<()> {
        Ok(self.editor.read(offset, buffer)?)
    }

    fn extent_at(&self, offset: u64, limit_bytes: u64) -> block::Result<Extent> {
        Ok(self.editor.extent(offset, limit_bytes)?)
    }
}

impl WriteAt for Qcow2Builder {
    fn write_at(&self, offset: u64, buffer: &[u8]) -> block::Result<()> {
        let Some(compression) = self.compression else {
            return Ok(self.editor.write(offset, buffer, no_growth)?);
        };
        super::reader::check_range(self.editor.header.size_bytes, offset, bytes(buffer.len()))?;
        let mut at = offset;
        let mut rest = buffer;
        while !rest.is_empty() {
            let room = self
                .editor
                .header
                .cluster_bytes()
                .saturating_sub(at & self.editor.header.cluster_mask());
            let (head, tail) = rest.split_at(index(room).min(rest.len()));
            let is_whole = bytes(head.len()) == self.editor.header.cluster_bytes();
            if !is_whole || is_zero(head) || !self.write_compressed(at, head, compression)? {
                self.editor.write(at, head, no_growth)?;
            }
            at = at.saturating_add(bytes(head.len()));
            rest = tail;
        }
        Ok(())
    }

    fn zero_range(&self, offset: u64, length_bytes: u64) -> block::Result<()> {
        Ok(self.editor.zero(offset, length_bytes, no_growth)?)
    }

    fn flush(&self) -> block::Result<()> {
        let mut state = self.editor.lock()?;
        self.editor.sync(&mut state)?;
        drop(state);
        self.editor.file.flush()
    }
}
