//! XFS, versions 4 and 5, read without mounting it.
//!
//! ```text
//!   superblock ─► group × n ─┬─ AGF ─► free space by block ─► used ranges
//!                            └─ inodes (their number says where) ─► extents or tree ─► bytes │ names │ target
//! ```
//! Source: the on-disk format documentation of the kernel's XFS developers.
//!
//! | feature | here |
//! |---|---|
//! | checksums (`crc`), `bigtime`, `nrext64`, `sparse`, `reflink`, `rmapbt`, `finobt`, `inobtcount`, `ftype`, `parent`, `exchange` | read |
//! | the log, versions 1 and 2, with stripes | replayed in memory |
//! | names without case (`-n version=ci`) | found as Linux finds them |
//! | files on a real-time device | told with their obstacle |
//! | a log on another device, one of the other byte order | said to be dirty |
//! | `metadir`, zones, unknown incompatible features | refused by name |
//!
//! **Invariants.** Version 5 carries checksums, and each that is passed is proved. All reading goes through what the log
//! brought; used ranges are only told when nothing lies in the log, or all of it was replayed.
//!
//! It does not read the real-time device and quotas.

#![cfg_attr(
    not(test),
    deny(
        clippy::indexing_slicing,
        clippy::arithmetic_side_effects,
        clippy::as_conversions,
        clippy::unwrap_used,
        clippy::expect_used
    )
)]

mod attributes;
mod directory;
mod inode;
mod log;
mod lookup;
mod overlay;
mod space;
mod superblock;

use std::collections::HashMap;
use std::ops::ControlFlow;
use std::sync::Arc;

use block::{Extent, ExtentKind, ReadAt};

use crate::cache::BlockCache;
use crate::filesystem::{
    Cleanliness, DeviceNumber, DirectoryCursor, DirectoryEntry, ExtendedAttribute, FileKind,
    FileSystem, FileSystemFacts, FileSystemKind, FileTimes, Metadata, UnixOwner, VolumeRange,
};
use crate::{Error, ErrorKind, FileId, FileName, Result, field};
use inode::{Fork, ForkForm, Inode, Run};
use log::Mapping;
use overlay::Overlay;
use superblock::Superblock;

/// 4 MiB of metadata at the usual block size.
const CACHED_BLOCKS: usize = 1024;
const MAX_LINK_BYTES: u64 = 1024;
const MAX_LINK_RUN_BYTES: u64 = 128 << 10;
/// Groups up to which free blocks are counted after a replay: 16 PiB when they are as large as they can be.
const MAX_COUNTED_GROUPS: u32 = 1 << 14;
const MAX_TREE_LEVELS: u32 = 9;

/// An XFS opened for reading.
pub struct Xfs {
    blocks: BlockCache,
    superblock: Superblock,
    facts: FileSystemFacts,
    /// What the log changed, when something lay in it.
    overlay: Option<Arc<Overlay>>,
    /// Changes of files that the log promises, by inode.
    mappings: HashMap<u64, Vec<Mapping>>,
}

/// Opens an XFS. A log in which something lies is replayed in memory.
///
/// # Errors
/// [`ErrorKind::Corrupt`] when it is none or its superblock is damaged; [`ErrorKind::Unsupported`] for features that are
/// not known.
pub fn open(volume: Arc<dyn ReadAt>) -> Result<Xfs> {
    let mut superblock = Superblock::read(&volume)?;
    let recovered = log::recover(&volume, &superblock)?;
    let volume = match &recovered.overlay {
        None => volume,
        Some(overlay) => {
            let overlay = Arc::clone(overlay);
            let replayed: Arc<dyn ReadAt> = overlay;
            // It may have grown since.
            let newer = Superblock::read(&replayed)?;
            if newer.block_bytes != superblock.block_bytes {
                return Err(Error::corrupt("its log changes the size of its blocks"));
            }
            superblock = newer;
            replayed
        }
    };
    let volume_bytes = volume.size_bytes();
    let block_bytes = usize::try_from(superblock.block_bytes).unwrap_or(4096);
    let facts = facts(&superblock, recovered.cleanliness, volume_bytes);
    let mut xfs = Xfs {
        blocks: BlockCache::new(volume, block_bytes, CACHED_BLOCKS),
        superblock,
        facts,
        overlay: recovered.overlay,
        mappings: recovered.mappings,
    };
    if xfs.overlay.is_some()
        && xfs.superblock.group_count <= MAX_COUNTED_GROUPS
        && let Ok(free) = space::free_blocks(&xfs)
    {
        let free = free.min(xfs.superblock.blocks);
        xfs.facts.free_bytes = free.saturating_mul(u64::from(xfs.superblock.block_bytes));
    }
    Ok(xfs)
}

fn facts(superblock: &Superblock, cleanliness: Cleanliness, volume_bytes: u64) -> FileSystemFacts {
    let mut id = String::new();
    for (index, byte) in superblock.uuid.iter().enumerate() {
        if matches!(index, 4 | 6 | 8 | 10) {
            id.push('-');
        }
        id.push_str(&format!("{byte:02x}"));
    }
    let size = |blocks: u64| blocks.saturating_mul(u64::from(superblock.block_bytes));
    let size_bytes = size(superblock.blocks);
    let cleanliness = if superblock.needs_repair {
        Cleanliness::Dirty("it is marked as in need of repair".to_owned())
    } else if size_bytes > volume_bytes {
        Cleanliness::Dirty(format!(
            "it has {size_bytes} bytes, the volume only {volume_bytes}"
        ))
    } else {
        cleanliness
    };
    FileSystemFacts {
        kind: FileSystemKind::Xfs,
        version: Some(if superblock.is_v5 { "5" } else { "4" }.to_owned()),
        label: (!superblock.label.is_empty()).then(|| superblock.label.clone()),
        id: Some(id),
        size_bytes,
        free_bytes: size(superblock.free_blocks.min(superblock.blocks)),
        cluster_bytes: superblock.block_bytes,
        cleanliness,
        times_are_local: false,
        is_case_insensitive: superblock.is_case_insensitive,
    }
}

impl Xfs {
    fn block(&self, block: u64) -> Result<Arc<[u8]>> {
        let offset = self.superblock.block_offset(block)?;
        let bytes = self.blocks.block(offset >> self.superblock.block_log)?;
        if bytes.len() != self.blocks.block_bytes() {
            return Err(Error::corrupt(format!(
                "block {block:#x} is cut by the end of the volume"
            )));
        }
        Ok(bytes)
    }

    fn inode(&self, file: FileId) -> Result<Inode> {
        let place = || format!("inode {}", file.number);
        if file.tree != 0 {
            return Err(Error::new(ErrorKind::NotFound, place()));
        }
        let offset = (self.superblock.inode_offset(file.number))
            .map_err(|error| Error::new(ErrorKind::NotFound, error.to_string()))?;
        let mut bytes = vec![0; usize::from(self.superblock.inode_bytes)];
        self.blocks.read(offset, &mut bytes)?;
        Inode::parse(file.number, bytes, self.superblock.has_wide_counts)
            .map_err(|error| error.within(place()))
    }

    /// The run over a byte of a fork, or how far the hole there reaches.
    fn place(&self, runs: &[Run], offset: u64) -> (Option<Run>, u64) {
        let block = offset >> self.superblock.block_log;
        let behind = runs.partition_point(|run| run.file_block <= block);
        let before = behind.checked_sub(1).and_then(|index| runs.get(index));
        if let Some(run) = before {
            let end = run.file_block.saturating_add(run.count);
            if block < end {
                return (
                    Some(*run),
                    end.saturating_mul(u64::from(self.superblock.block_bytes)),
                );
            }
        }
        let next = runs.get(behind).map_or(u64::MAX, |run| {
            run.file_block
                .saturating_mul(u64::from(self.superblock.block_bytes))
        });
        (None, next)
    }

    /// Bytes of a fork; holes are zeros.
    fn read_runs(&self, runs: &[Run], offset: u64, buffer: &mut [u8]) -> Result<()> {
        let mut position = offset;
        let mut rest = buffer;
        while !rest.is_empty() {
            let (run, end) = self.place(runs, position);
            let count = usize::try_from(end.saturating_sub(position))
                .unwrap_or(usize::MAX)
                .min(rest.len());
            let (head, tail) = rest.split_at_mut(count);
            match run.filter(|run| !run.is_unwritten) {
                None => head.fill(0),
                Some(run) => {
                    let start = self.superblock.block_offset(run.volume_block)?;
                    let first = run
                        .file_block
                        .saturating_mul(u64::from(self.superblock.block_bytes));
                    let at = start.saturating_add(position.saturating_sub(first));
                    self.blocks.volume().read_at(at, head)?;
                }
            }
            position = position.saturating_add(field::bytes(count));
            rest = tail;
        }
        Ok(())
    }

    fn kind(&self, inode: &Inode) -> Result<FileKind> {
        let device = || -> Result<DeviceNumber> {
            let word = match inode.fork(Fork::Data)? {
                Some((ForkForm::Device, bytes)) => field::u32_be(bytes, 0)?,
                _ => return Err(Error::corrupt("a device without a number")),
            };
            Ok(DeviceNumber {
                major: word >> 18,
                minor: word & 0x3_FFFF,
            })
        };
        Ok(match inode.mode & 0xF000 {
            0x1000 => FileKind::Fifo,
            0x2000 => FileKind::CharacterDevice(device()?),
            0x4000 => FileKind::Directory,
            0x6000 => FileKind::BlockDevice(device()?),
            0x8000 => FileKind::Regular,
            0xA000 => FileKind::SymbolicLink,
            0xC000 => FileKind::Socket,
            other => return Err(Error::corrupt(format!("inode of kind {other:#x}"))),
        })
    }

    fn directory(&self, file: FileId) -> Result<Inode> {
        let inode = self.inode(file)?;
        if inode.mode & 0xF000 != 0x4000 {
            return Err(Error::new(
                ErrorKind::Invalid,
                format!("inode {} is no directory", file.number),
            ));
        }
        Ok(inode)
    }

    fn regular(&self, file: FileId) -> Result<Inode> {
        let inode = self.inode(file)?;
        if inode.mode & 0xF000 != 0x8000 {
            return Err(Error::new(
                ErrorKind::Invalid,
                format!("inode {} is no regular file", file.number),
            ));
        }
        if inode.is_realtime {
            return Err(Error::unsupported(format!(
                "inode {}: its contents lie on the real-time device",
                file.number
            )));
        }
        Ok(inode)
    }
}

/// The contents of a file.
struct Contents<'f> {
    xfs: &'f Xfs,
    runs: Vec<Run>,
    size: u64,
}

impl Contents<'_> {
    fn check(&self, offset: u64, length: u64) -> block::Result<()> {
        if offset.checked_add(length).is_none_or(|end| end > self.size) {
            return Err(block::Error::new(
                block::ErrorKind::OutOfRange,
                format!("{length} bytes at {offset} of {}", self.size),
            ));
        }
        Ok(())
    }
}

impl ReadAt for Contents<'_> {
    fn size_bytes(&self) -> u64 {
        self.size
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> block::Result<()> {
        self.check(offset, field::bytes(buffer.len()))?;
        Ok(self.xfs.read_runs(&self.runs, offset, buffer)?)
    }

    fn extent_at(&self, offset: u64, limit_bytes: u64) -> block::Result<Extent> {
        self.check(offset, 1)?;
        if limit_bytes == 0 {
            return Err(block::Error::new(
                block::ErrorKind::OutOfRange,
                "an extent of no bytes",
            ));
        }
        let (run, end) = self.xfs.place(&self.runs, offset);
        Ok(Extent {
            offset,
            length_bytes: end.min(self.size).saturating_sub(offset).min(limit_bytes),
            kind: match run {
                Some(run) if run.is_unwritten => ExtentKind::Zero,
                Some(_) => ExtentKind::Data,
                None => ExtentKind::Unallocated,
            },
        })
    }
}

impl FileSystem for Xfs {
    fn facts(&self) -> &FileSystemFacts {
        &self.facts
    }

    fn root(&self) -> FileId {
        FileId {
            tree: 0,
            number: self.superblock.root,
        }
    }

    fn metadata(&self, file: FileId) -> Result<Metadata> {
        let inode = self.inode(file)?;
        let kind = self.kind(&inode)?;
        let has_size = matches!(kind, FileKind::Regular | FileKind::SymbolicLink);
        Ok(Metadata {
            kind,
            size_bytes: if has_size { inode.size } else { 0 },
            allocated_bytes: inode
                .blocks
                .saturating_mul(u64::from(self.superblock.block_bytes)),
            link_count: inode.links,
            times: FileTimes {
                accessed: inode.time(32),
                modified: inode.time(40),
                changed: inode.time(48),
                created: inode.time(144),
            },
            owner: Some(UnixOwner {
                user: inode.user,
                group: inode.group,
                mode: inode.mode & 0o7777,
            }),
            windows_attributes: None,
            obstacle: (inode.is_realtime && kind == FileKind::Regular)
                .then(|| "its contents lie on the real-time device".to_owned()),
        })
    }

    fn list(
        &self,
        directory: FileId,
        after: DirectoryCursor,
        visit: &mut dyn FnMut(DirectoryEntry) -> ControlFlow<()>,
    ) -> Result<()> {
        let inode = self.directory(directory)?;
        self.list_directory(&inode, after, visit)
    }

    fn find(&self, directory: FileId, name: &FileName) -> Result<Option<FileId>> {
        let inode = self.directory(directory)?;
        self.lookup(&inode, name)
    }

    fn open(&self, file: FileId, stream: Option<&FileName>) -> Result<Box<dyn ReadAt + '_>> {
        if let Some(name) = stream {
            return Err(Error::new(
                ErrorKind::NotFound,
                format!("inode {} has no stream {name}", file.number),
            ));
        }
        let inode = self.regular(file)?;
        let size = inode.size;
        if size > 1 << 63 {
            return Err(Error::corrupt(format!(
                "inode {}: {size} bytes",
                file.number
            )));
        }
        let runs = self.runs(&inode, Fork::Data)?;
        Ok(Box::new(Contents {
            xfs: self,
            runs,
            size,
        }))
    }

    fn read_link(&self, file: FileId) -> Result<FileName> {
        let inode = self.inode(file)?;
        let place = || format!("link {}", file.number);
        if inode.mode & 0xF000 != 0xA000 {
            return Err(Error::new(
                ErrorKind::Invalid,
                format!("{}: no link", place()),
            ));
        }
        if inode.size > MAX_LINK_BYTES {
            return Err(Error::corrupt(format!("{}: {} bytes", place(), inode.size)));
        }
        let size = usize::try_from(inode.size).unwrap_or(0);
        if let Some((ForkForm::Local, bytes)) = inode.fork(Fork::Data)? {
            return Ok(FileName::from_bytes(field::slice(bytes, 0, size)?));
        }
        let mut target = Vec::new();
        for run in self.runs(&inode, Fork::Data)? {
            let left = size.saturating_sub(target.len());
            let length = (run.count).saturating_mul(u64::from(self.superblock.block_bytes));
            if left == 0 || length > MAX_LINK_RUN_BYTES {
                break;
            }
            let mut bytes = vec![0; usize::try_from(length).unwrap_or(0)];
            let offset = (self.superblock).run_offset(run.volume_block, run.count)?;
            self.blocks.volume().read_at(offset, &mut bytes)?;
            if !self.superblock.is_v5 {
                target.extend(bytes.iter().take(left));
                continue;
            }
            // One header for a run, however many blocks it has.
            if field::slice(&bytes, 0, 4)? != b"XSLM" {
                return Err(Error::corrupt(format!("{}: no block of a link", place())));
            }
            superblock::check_sum(&bytes, 12).map_err(|error| error.within(place()))?;
            let length = usize::try_from(field::u32_be(&bytes, 8)?).unwrap_or(usize::MAX);
            target.extend_from_slice(field::slice(&bytes, 56, length.min(left))?);
        }
        if target.len() != size {
            return Err(Error::corrupt(format!(
                "{}: it is shorter than it says",
                place()
            )));
        }
        Ok(FileName::from_bytes(target))
    }

    fn extended_attributes(&self, file: FileId) -> Result<Vec<ExtendedAttribute>> {
        let inode = self.inode(file)?;
        self.attributes(&inode)
            .map_err(|error| error.within(format!("attributes of inode {}", file.number)))
    }

    fn used_ranges(&self, visit: &mut dyn FnMut(VolumeRange) -> ControlFlow<()>) -> Result<()> {
        if let Cleanliness::Dirty(why) = &self.facts.cleanliness {
            return Err(Error::unsupported(format!(
                "what is free is not known: {why}"
            )));
        }
        if self.superblock.has_unknown_space {
            return Err(Error::unsupported(
                "what is free is not known: it has features of a newer Linux",
            ));
        }
        let _ = space::used_ranges(self, visit)?;
        Ok(())
    }

    fn file_ranges(
        &self,
        file: FileId,
        visit: &mut dyn FnMut(VolumeRange) -> ControlFlow<()>,
    ) -> Result<()> {
        let inode = match self.inode(file)? {
            inode if inode.mode & 0xF000 == 0x4000 && !inode.is_realtime => inode,
            _ => self.regular(file)?,
        };
        for run in self.runs(&inode, Fork::Data)? {
            let range = VolumeRange {
                offset: self.superblock.block_offset(run.volume_block)?,
                length_bytes: run
                    .count
                    .saturating_mul(u64::from(self.superblock.block_bytes)),
            };
            if visit(range).is_break() {
                break;
            }
        }
        Ok(())
    }
}
