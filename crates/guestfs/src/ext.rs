//! ext2, ext3 and ext4, read without mounting.
//!
//! ```text
//!   volume ─► superblock ─► journal? replay in memory ─► overlay ─► block cache
//!                                                                     ├─ groups ─► inodes ─► map ─► contents
//!   FileId.number = inode                                             └─ directories, attributes
//! ```
//!
//! | feature | here |
//! |---|---|
//! | `extents`, block pointers, `64bit`, `flex_bg`, `meta_bg`, `sparse_super2`, `bigalloc`, blocks up to 64 KiB | read |
//! | `metadata_csum`, `metadata_csum_seed`, `uninit_bg` | verified |
//! | `inline_data`, `ea_inode`, `large_dir`, `dir_nlink`, `huge_file`, `extra_isize`, `mmp`, `verity`, `project` | read |
//! | journal: checksums of versions 1 to 3, revokes, 64 bits, escaped blocks | replayed in memory |
//! | `casefold` | found by lower case, without Unicode normalisation |
//! | `encrypt` | listed up to the encrypted directory, which is an obstacle |
//! | fast commits, journal on another device | said to be dirty |
//! | compression, `dirdata`, unknown incompatible features | refused by name |
//!
//! **Invariants.** Nothing is believed whose checksum is wrong. All reading goes through the overlay, so that what is
//! seen is what a mount would show. Memory: the cache, and 32 bytes or so for each block in the live journal.
//!
//! A superblock that is damaged is replaced by one of its copies; the file system is then said to be dirty.
//!
//! **Not done.** Project ids and inode generations are not told; a directory without case is searched from its beginning,
//! not through its index.

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

mod contents;
mod directory;
mod groups;
mod index;
mod inode;
mod journal;
mod map;
mod superblock;
mod xattr;

use std::ops::ControlFlow;
use std::sync::Arc;

use block::ReadAt;

use self::map::Place;
use self::superblock::{STATE_ERROR, STATE_VALID, Superblock, compat, incompat, ro_compat};
use crate::cache::BlockCache;
use crate::filesystem::{
    Cleanliness, DirectoryCursor, DirectoryEntry, ExtendedAttribute, FileKind, FileSystemFacts,
    FileSystemKind, Metadata, VolumeRange,
};
use crate::{Error, ErrorKind, FileId, FileName, FileSystem, Result};

const ROOT: u32 = 2;
/// What the cache may hold.
const CACHE_BYTES: usize = 8 << 20;
/// Groups up to which free blocks are counted when a file system is opened: 128 TiB with blocks of 4 KiB.
const MAX_COUNTED_GROUPS: u32 = 1 << 20;
/// A link's target is shorter than a page.
const MAX_LINK_BYTES: u64 = 4096;

/// The volume and what every part of the reader asks.
struct Ext {
    superblock: Superblock,
    volume: Arc<dyn ReadAt>,
    cache: BlockCache,
}

impl Ext {
    fn new(superblock: Superblock, volume: Arc<dyn ReadAt>) -> Self {
        let width = superblock.block_length();
        let capacity = CACHE_BYTES.checked_div(width).unwrap_or(1).max(64);
        Self {
            superblock,
            cache: BlockCache::new(Arc::clone(&volume), width, capacity),
            volume,
        }
    }
}

/// An ext2, ext3 or ext4 file system.
pub struct ExtFileSystem {
    ext: Ext,
    facts: FileSystemFacts,
}

/// A sound copy of the superblock, for a volume whose first one is gone.
pub(crate) fn superblock_copy(volume: &dyn ReadAt) -> Result<Option<Vec<u8>>> {
    Ok(Superblock::copy(volume)?.map(|(bytes, _)| bytes.to_vec()))
}

/// Opens the file system on a volume.
///
/// # Errors
/// [`ErrorKind::Corrupt`] without a sound superblock; [`ErrorKind::Unsupported`] names the feature.
pub fn open(volume: Arc<dyn ReadAt>) -> Result<ExtFileSystem> {
    let (superblock, damage) = Superblock::read_any(&*volume)?;
    let (ext, mut cleanliness) = replay(Ext::new(superblock, volume))?;
    if let Some(damage) = damage {
        cleanliness = Cleanliness::Dirty(damage);
    }
    let root = ext.inode(ROOT)?;
    if root.kind != FileKind::Directory {
        return Err(Error::corrupt("its root is no directory"));
    }
    let superblock = &ext.superblock;
    // The superblock's own count is brought up to date at unmount only. Counting is for sane numbers of groups.
    let free_blocks = match cleanliness {
        Cleanliness::Replayed if superblock.group_count <= MAX_COUNTED_GROUPS => {
            ext.free_blocks()?
        }
        _ => superblock.free_block_count,
    };
    let label = superblock::until_nul(&superblock.label);
    let facts = FileSystemFacts {
        kind: kind(superblock),
        version: Some(format!(
            "{}.{}",
            superblock.revision.0, superblock.revision.1
        )),
        label: (!label.is_empty()).then(|| String::from_utf8_lossy(label).into_owned()),
        id: id(&superblock.uuid),
        size_bytes: superblock.size_bytes(),
        free_bytes: free_blocks.saturating_mul(u64::from(superblock.block_bytes)),
        cluster_bytes: superblock
            .block_bytes
            .saturating_mul(superblock.cluster_blocks),
        cleanliness,
        times_are_local: false,
        is_case_insensitive: false,
    };
    Ok(ExtFileSystem { ext, facts })
}

/// Lays the journal over the volume, if it has one that is live.
fn replay(ext: Ext) -> Result<(Ext, Cleanliness)> {
    let superblock = &ext.superblock;
    let has_journal = superblock.has_compat(compat::HAS_JOURNAL);
    let mut cleanliness = own_cleanliness(superblock, ext.volume.size_bytes());
    if !superblock.has_incompat(incompat::RECOVER) || !has_journal {
        return Ok((ext, cleanliness));
    }
    if superblock.journal_inode == 0 {
        let why =
            "its journal is on another device and was not replayed: the newest changes are missing";
        return Ok((ext, Cleanliness::Dirty(why.to_owned())));
    }
    let replayed = match journal::replay(&ext) {
        Ok(Some(replayed)) => replayed,
        Ok(None) => return Ok((ext, cleanliness)),
        Err(error) if matches!(error.kind(), ErrorKind::Io | ErrorKind::Cancelled) => {
            return Err(error);
        }
        Err(error) => {
            let why = format!(
                "its journal could not be replayed ({error}): the newest changes are missing"
            );
            return Ok((ext, Cleanliness::Dirty(why)));
        }
    };
    if let Some(trouble) = replayed.trouble {
        cleanliness = Cleanliness::Dirty(trouble);
    } else if cleanliness == Cleanliness::Clean {
        cleanliness = Cleanliness::Replayed;
    }
    if replayed.overlay.is_empty() {
        return Ok((ext, cleanliness));
    }
    let volume: Arc<dyn ReadAt> = Arc::new(replayed.overlay);
    // The journal may hold a newer superblock.
    let (superblock, _) = Superblock::read_any(&*volume)?;
    if superblock.block_bytes != ext.superblock.block_bytes {
        return Err(Error::corrupt("its journal changes the size of its blocks"));
    }
    Ok((Ext::new(superblock, volume), cleanliness))
}

/// What the superblock says of the last unmount, apart from the journal.
fn own_cleanliness(superblock: &Superblock, volume_bytes: u64) -> Cleanliness {
    if superblock.size_bytes() > volume_bytes {
        return Cleanliness::Dirty(format!(
            "it has {} bytes, the volume only {volume_bytes}",
            superblock.size_bytes()
        ));
    }
    if superblock.state & STATE_ERROR != 0 {
        return Cleanliness::Dirty("errors were found in it and not repaired".to_owned());
    }
    if superblock.state & STATE_VALID == 0 && !superblock.has_incompat(incompat::RECOVER) {
        return Cleanliness::Dirty("it was not unmounted, and has no journal to replay".to_owned());
    }
    Cleanliness::Clean
}

fn kind(superblock: &Superblock) -> FileSystemKind {
    let old = incompat::FILETYPE | incompat::RECOVER | incompat::META_BG;
    let is_old = superblock.incompat & !old == 0 && superblock.ro_compat & !ro_compat::EXT3 == 0;
    match (is_old, superblock.has_compat(compat::HAS_JOURNAL)) {
        (false, _) => FileSystemKind::Ext4,
        (true, true) => FileSystemKind::Ext3,
        (true, false) => FileSystemKind::Ext2,
    }
}

/// A UUID as everybody writes it; none when it is all zeros.
fn id(uuid: &[u8; 16]) -> Option<String> {
    if uuid.iter().all(|&byte| byte == 0) {
        return None;
    }
    let mut text = String::new();
    for (index, byte) in uuid.iter().enumerate() {
        if matches!(index, 4 | 6 | 8 | 10) {
            text.push('-');
        }
        text.push_str(&format!("{byte:02x}"));
    }
    Some(text)
}

impl FileSystem for ExtFileSystem {
    fn facts(&self) -> &FileSystemFacts {
        &self.facts
    }

    fn root(&self) -> FileId {
        FileId {
            tree: 0,
            number: u64::from(ROOT),
        }
    }

    fn metadata(&self, file: FileId) -> Result<Metadata> {
        Ok(self.ext.inode_of(file)?.metadata())
    }

    fn list(
        &self,
        directory: FileId,
        after: DirectoryCursor,
        visit: &mut dyn FnMut(DirectoryEntry) -> ControlFlow<()>,
    ) -> Result<()> {
        let inode = self.ext.inode_of(directory)?;
        self.ext.list_names(&inode, after, visit)
    }

    fn find(&self, directory: FileId, name: &FileName) -> Result<Option<FileId>> {
        let inode = self.ext.inode_of(directory)?;
        // A damaged index is no reason not to find a name.
        if inode.is_indexed()
            && !inode.is_case_folded()
            && !inode.is_inline()
            && inode.kind == FileKind::Directory
            && inode.refuse_obstacle().is_ok()
            && let Ok(found) = self.ext.find_indexed(&inode, name)
        {
            return Ok(found);
        }
        let folded = inode.is_case_folded().then(|| fold(name));
        let mut found = None;
        self.ext
            .list_names(&inode, DirectoryCursor::default(), &mut |entry| {
                let is_it = entry.name == *name
                    || folded
                        .as_ref()
                        .is_some_and(|folded| *folded == fold(&entry.name));
                if is_it {
                    found = Some(entry.file);
                    return ControlFlow::Break(());
                }
                ControlFlow::Continue(())
            })?;
        Ok(found)
    }

    fn open(&self, file: FileId, stream: Option<&FileName>) -> Result<Box<dyn ReadAt + '_>> {
        let inode = self.ext.inode_of(file)?;
        if let Some(stream) = stream {
            return Err(Error::new(
                ErrorKind::NotFound,
                format!("inode {}: no stream {stream}", inode.number),
            ));
        }
        if inode.kind != FileKind::Regular {
            return Err(Error::new(
                ErrorKind::Invalid,
                format!("inode {} is no regular file", inode.number),
            ));
        }
        Ok(Box::new(self.ext.contents(inode)?))
    }

    fn read_link(&self, file: FileId) -> Result<FileName> {
        let inode = self.ext.inode_of(file)?;
        if inode.kind != FileKind::SymbolicLink {
            return Err(Error::new(
                ErrorKind::Invalid,
                format!("inode {} is no link", inode.number),
            ));
        }
        inode.refuse_obstacle()?;
        let length = usize::try_from(inode.size_bytes.min(MAX_LINK_BYTES)).unwrap_or(0);
        if inode.size_bytes > MAX_LINK_BYTES {
            return Err(Error::corrupt(format!(
                "inode {}: a link to {} bytes",
                inode.number, inode.size_bytes
            )));
        }
        let superblock = &self.ext.superblock;
        let cluster =
            u64::from(superblock.block_bytes).saturating_mul(u64::from(superblock.cluster_blocks));
        if inode.is_fast_link(cluster) {
            return Ok(FileName::from_bytes(crate::field::slice(
                &inode.map, 0, length,
            )?));
        }
        let mut target = vec![0; length];
        self.ext.contents(inode)?.read_at(0, &mut target)?;
        Ok(FileName::from_bytes(target))
    }

    fn extended_attributes(&self, file: FileId) -> Result<Vec<ExtendedAttribute>> {
        let inode = self.ext.inode_of(file)?;
        self.ext.attributes(&inode)
    }

    fn used_ranges(&self, visit: &mut dyn FnMut(VolumeRange) -> ControlFlow<()>) -> Result<()> {
        if let Cleanliness::Dirty(why) = &self.facts.cleanliness {
            return Err(Error::unsupported(format!(
                "what is in use is not known for sure: {why}"
            )));
        }
        let unknown = self.ext.superblock.unknown_to_bitmaps();
        if unknown != 0 {
            return Err(Error::unsupported(format!(
                "what is in use is not known for sure: features {unknown:#x}"
            )));
        }
        self.ext.used(visit)
    }

    fn file_ranges(
        &self,
        file: FileId,
        visit: &mut dyn FnMut(VolumeRange) -> ControlFlow<()>,
    ) -> Result<()> {
        let inode = self.ext.inode_of(file)?;
        let has_blocks = matches!(inode.kind, FileKind::Regular | FileKind::Directory);
        if !has_blocks || inode.is_inline() {
            return Ok(());
        }
        let width = u64::from(self.ext.superblock.block_bytes);
        let total = inode.size_bytes.div_ceil(width.max(1));
        let (mut logical, mut seen) = (0_u64, 0_u64);
        while logical < total {
            let run = self.ext.run_at(&inode, logical)?;
            let count = run.block_count.min(total.saturating_sub(logical));
            logical = logical.saturating_add(count);
            let (Place::Written(start) | Place::Unwritten(start)) = run.place else {
                continue;
            };
            seen = seen.saturating_add(count);
            if seen > self.ext.superblock.block_count {
                return Err(Error::corrupt(format!(
                    "inode {}: it has more blocks than the volume",
                    inode.number
                )));
            }
            let range = VolumeRange {
                offset: start.saturating_mul(width),
                length_bytes: count.saturating_mul(width),
            };
            if visit(range).is_break() {
                break;
            }
        }
        Ok(())
    }
}

/// A name without its case.
fn fold(name: &FileName) -> String {
    name.to_string().to_lowercase()
}
