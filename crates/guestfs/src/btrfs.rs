//! Btrfs, read without mounting it.
//!
//! ```text
//!   superblock ─► chunks ─► tree of roots ─┬─ subvolume × n ─► inodes, names, extents, attributes
//!                                          ├─ checksums ─────► proof of contents
//!                                          └─ extents ───────► used ranges
//!              └► log ────► items over the subvolumes' trees
//! ```
//! Source: the kernel's `include/uapi/linux/btrfs_tree.h` and the on-disk format pages of btrfs.readthedocs.io.
//!
//! **What is the root.** What a mount without options shows: the default subvolume. Subvolumes and snapshots below it
//! are directories. Where the default is not the top level, the name [`TOP_LEVEL`] finds the top level in the root,
//! unless a file is called so; it is not listed.
//!
//! **Invariants.** Metadata is always proved by its checksum, and contents are where they have one; what is wrong in one
//! copy is read from another. The log is replayed in memory.
//!
//! It does not read zoned file systems, extent tree v2 and the stripe tree, which it names, nor quotas.

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

mod checksum;
mod chunk;
mod compression;
mod contents;
mod data;
mod device;
mod inode;
mod log;
mod names;
pub mod pool;
mod space;
mod superblock;
mod tree;

use std::collections::HashMap;
use std::ops::{ControlFlow, Range};
use std::sync::{Arc, Mutex, PoisonError};

use block::ReadAt;

use crate::filesystem::{
    Cleanliness, DirectoryCursor, DirectoryEntry, ExtendedAttribute, FileKind, FileSystem,
    FileSystemFacts, FileSystemKind, FileTimes, Metadata, UnixOwner, VolumeRange,
};
use crate::{Error, ErrorKind, FileId, FileName, Result, field};
use chunk::{Chunk, ChunkMap};
use contents::{Contents, ExtentData, Form};
use data::{Data, Proof};
use device::Devices;
use inode::{Inode, Moment};
use superblock::{DeviceId, Superblock};
use tree::{Forest, Key, Overlay, Root, Tree, kind};

/// The name by which the root finds the top level where that is not the root. It is not listed.
pub const TOP_LEVEL: &str = ".btrfs-top-level";

const EXTENT_TREE: u64 = 2;
const TOP_TREE: u64 = 5;
const CHECKSUM_TREE: u64 = 7;
const FIRST_SUBVOLUME: u64 = 256;
const LAST_SUBVOLUME: u64 = 256_u64.wrapping_neg();
/// The number of a directory that stands where a snapshot was taken of a subvolume's place: it holds nothing.
const EMPTY_DIRECTORY: u64 = 2;
const MAX_LINK_BYTES: u64 = 64 << 10;
/// Subvolumes whose roots are remembered.
const KNOWN_SUBVOLUMES: usize = 1024;

/// A Btrfs opened for reading.
pub struct Btrfs {
    forest: Forest,
    superblock: Superblock,
    facts: FileSystemFacts,
    roots: Tree,
    data: Data,
    overlays: HashMap<u64, Arc<Overlay>>,
    /// Addresses that the log needs.
    logged: Vec<Range<u64>>,
    default: u64,
    /// The default subvolume, when it is not there.
    lost_default: Option<u64>,
    device_ids: Vec<(u64, DeviceId)>,
    subvolumes: Mutex<HashMap<u64, Subvolume>>,
}

#[derive(Debug, Clone)]
struct Subvolume {
    tree: Tree,
    directory: u64,
}

/// An id as its tools write it.
struct Uuid([u8; 16]);

impl std::fmt::Display for Uuid {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (index, byte) in self.0.iter().enumerate() {
            if matches!(index, 4 | 6 | 8 | 10) {
                f.write_str("-")?;
            }
            write!(f, "{byte:02x}")?;
        }
        Ok(())
    }
}

/// Opens a Btrfs: on one device, or on several in the form that [`pool`] gives them.
///
/// # Errors
/// [`ErrorKind::Corrupt`] when it is none or its first trees are damaged; [`ErrorKind::Unsupported`] for features that
/// are not known; [`ErrorKind::NotFound`] when devices are missing without which nothing can be read.
pub fn open(volume: Arc<dyn ReadAt>) -> Result<Btrfs> {
    let (superblock, devices) = Devices::find(volume)?;
    let (forest, device_ids) = read_chunks(&superblock, devices)?;
    let roots = Tree::plain(Root {
        place: superblock.root,
        level: superblock.root_level,
        generation: superblock.generation,
    });
    let sums = find_root(&forest, &roots, CHECKSUM_TREE)?.map(|(root, _)| Tree::plain(root));
    let default = default_subvolume(&forest, &roots, &superblock)?;
    let mut btrfs = Btrfs {
        data: Data::new(sums, superblock.sector_bytes),
        facts: facts(&superblock, &forest.chunks),
        forest,
        superblock,
        roots,
        overlays: HashMap::new(),
        logged: Vec::new(),
        default,
        lost_default: None,
        device_ids,
        subvolumes: Mutex::default(),
    };
    if btrfs.superblock.log_root != 0 {
        btrfs.replay();
    }
    // Linux refuses a mount then; the files are there all the same.
    if btrfs.default != TOP_TREE
        && let Err(error) = btrfs.subvolume(btrfs.default)
        && error.kind() == ErrorKind::NotFound
    {
        btrfs.lost_default = Some(btrfs.default);
        btrfs.default = TOP_TREE;
    }
    Ok(btrfs)
}

/// The whole map of chunks, from the few that the superblock knows; and the devices that there should be.
fn read_chunks(
    superblock: &Superblock,
    devices: Devices,
) -> Result<(Forest, Vec<(u64, DeviceId)>)> {
    let mut first = Vec::new();
    let mut rest = superblock.system_chunks.as_slice();
    while !rest.is_empty() {
        let key = Key::parse(rest, 0).map_err(|error| error.within("system chunks"))?;
        let item = rest.get(17..).unwrap_or_default();
        let (chunk, length) = Chunk::parse(key.offset, item)?;
        first.push(chunk);
        rest = item.get(length..).unwrap_or_default();
    }
    let known: Vec<Chunk> = first.clone();
    let map = ChunkMap::new(first)?;
    let mut forest = Forest::new(devices, map, superblock.checksum, superblock.node_bytes);
    let root = Root {
        place: superblock.chunk_root,
        level: superblock.chunk_root_level,
        generation: superblock.chunk_root_generation,
    };
    let mut chunks = Vec::new();
    let mut ids = Vec::new();
    forest
        .walk_plain(root, Key::new(0, 0, 0), &mut |key, item| {
            match key.kind {
                kind::CHUNK => chunks.push(Chunk::parse(key.offset, item.bytes())?.0),
                kind::DEVICE => {
                    let id = DeviceId(superblock::uuid(item.bytes(), 66)?);
                    ids.push((key.offset, id));
                }
                _ => {}
            }
            Ok(ControlFlow::Continue(()))
        })
        .map_err(|error| error.within("chunk tree"))?;
    for chunk in known {
        if chunks.iter().all(|other| other.logical != chunk.logical) {
            chunks.push(chunk);
        }
    }
    forest.chunks = ChunkMap::new(chunks)?;
    Ok((forest, ids))
}

/// Where a tree begins, from its item in the tree of roots.
fn root_of(item: &[u8]) -> Result<Root> {
    let level = field::u8_at(item, 238)?;
    if level > 7 {
        return Err(Error::corrupt(format!("a tree of {level} levels")));
    }
    Ok(Root {
        generation: field::u64_le(item, 160)?,
        place: field::u64_le(item, 176)?,
        level,
    })
}

/// The root of a tree, and the number of its first directory.
fn find_root(forest: &Forest, roots: &Tree, id: u64) -> Result<Option<(Root, u64)>> {
    let (from, to) = (
        Key::new(id, kind::ROOT, 0),
        Key::new(id, kind::ROOT, u64::MAX),
    );
    let Some((_, item)) = forest.last(roots, from, to)? else {
        return Ok(None);
    };
    let bytes = item.bytes();
    Ok(Some((root_of(bytes)?, field::u64_le(bytes, 168)?)))
}

fn default_subvolume(forest: &Forest, roots: &Tree, superblock: &Superblock) -> Result<u64> {
    let hash = u64::from(checksum::name_hash(b"default"));
    let key = Key::new(superblock.root_directory, kind::DIR_ITEM, hash);
    let Some(item) = forest.get(roots, key)? else {
        return Ok(TOP_TREE);
    };
    let found = inode::names(item.bytes())?;
    let found = found.iter().find(|one| one.name == b"default");
    Ok(found.map_or(TOP_TREE, |one| one.location.object))
}

fn facts(superblock: &Superblock, chunks: &ChunkMap) -> FileSystemFacts {
    // Bytes of the devices: contents count as often as their profile keeps them.
    let data = chunks.iter().find(|chunk| chunk.flags & 1 != 0);
    let (kept, held) = data.map_or((1, 1), |chunk| {
        (chunk.stripes.len(), chunk.data_stripes().max(1))
    });
    let used = u128::from(superblock.used_bytes)
        .saturating_mul(u128::from(field::bytes(kept)))
        .checked_div(u128::from(field::bytes(held)))
        .and_then(|used| u64::try_from(used).ok())
        .unwrap_or(u64::MAX);
    FileSystemFacts {
        kind: FileSystemKind::Btrfs,
        version: None,
        label: (!superblock.label.is_empty()).then(|| superblock.label.clone()),
        id: Some(Uuid(superblock.id).to_string()),
        size_bytes: superblock.total_bytes,
        free_bytes: superblock.total_bytes.saturating_sub(used),
        cluster_bytes: superblock.sector_bytes,
        cleanliness: Cleanliness::Clean,
        times_are_local: false,
        is_case_insensitive: false,
    }
}

impl Btrfs {
    /// How contents and metadata lie on the devices: `raid1, metadata raid1c3`.
    pub fn profiles(&self) -> String {
        let name = |bit: u64| {
            let found = self.forest.chunks.iter().find(|one| one.flags & bit != 0);
            found.map(Chunk::profile_name)
        };
        match (name(1), name(4)) {
            (Some(data), Some(metadata)) if data == metadata => data.to_owned(),
            (Some(data), Some(metadata)) => format!("{data}, metadata {metadata}"),
            (one, other) => one.or(other).unwrap_or("empty").to_owned(),
        }
    }

    /// The subvolume that a mount without options shows, where that is not the top level: its number.
    pub fn default_subvolume(&self) -> Option<u64> {
        (self.default != TOP_TREE).then_some(self.default)
    }

    fn device_ids(&self) -> impl Iterator<Item = (u64, DeviceId)> {
        self.device_ids.iter().copied()
    }

    fn replay(&mut self) {
        let replayed = log::replay(&self.forest, &self.superblock, &|id| {
            find_root(&self.forest, &self.roots, id)?
                .map(|(root, _)| root)
                .ok_or_else(|| Error::corrupt(format!("a log of subvolume {id}")))
        });
        match replayed {
            Ok(replayed) => {
                self.overlays = replayed.overlays;
                self.logged = replayed.used;
                self.data.logged = replayed.sums;
                self.facts.cleanliness = Cleanliness::Replayed;
            }
            Err(error) => {
                self.facts.cleanliness = Cleanliness::Dirty(format!(
                    "its log was not replayed ({error}): files are as they were at the last commit"
                ));
            }
        }
    }

    /// A tree that is no subvolume.
    fn tree(&self, id: u64) -> Result<Tree> {
        find_root(&self.forest, &self.roots, id)?
            .map(|(root, _)| Tree::plain(root))
            .ok_or_else(|| Error::corrupt(format!("tree {id} is not there")))
    }

    fn subvolume(&self, id: u64) -> Result<Subvolume> {
        let lock = || {
            self.subvolumes
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
        };
        if let Some(known) = lock().get(&id) {
            return Ok(known.clone());
        }
        let nothing = || Error::new(ErrorKind::NotFound, format!("there is no subvolume {id}"));
        if id != TOP_TREE && !(FIRST_SUBVOLUME..=LAST_SUBVOLUME).contains(&id) {
            return Err(nothing());
        }
        let (root, directory) = find_root(&self.forest, &self.roots, id)?.ok_or_else(nothing)?;
        let found = Subvolume {
            tree: Tree {
                root,
                overlay: self.overlays.get(&id).cloned(),
            },
            directory,
        };
        let mut known = lock();
        if known.len() >= KNOWN_SUBVOLUMES {
            known.clear();
        }
        known.insert(id, found.clone());
        Ok(found)
    }

    fn inode(&self, file: FileId) -> Result<(Tree, Inode)> {
        let tree = self.subvolume(file.tree)?.tree;
        let place = || format!("inode {} of subvolume {}", file.number, file.tree);
        let key = Key::new(file.number, kind::INODE, 0);
        let item = (self.forest.get(&tree, key))
            .map_err(|error| error.within(place()))?
            .ok_or_else(|| Error::new(ErrorKind::NotFound, place()))?;
        let inode = Inode::parse(item.bytes()).map_err(|error| error.within(place()))?;
        Ok((tree, inode))
    }

    fn contents(&self, file: FileId, wanted: FileKind) -> Result<Contents<'_>> {
        if file.number == EMPTY_DIRECTORY {
            return Err(invalid(file, "is a directory"));
        }
        let (tree, inode) = self.inode(file)?;
        if inode.kind()? != wanted {
            return Err(invalid(file, "is something else"));
        }
        if inode.size > 1 << 63 {
            return Err(Error::corrupt(format!(
                "inode {}: {} bytes",
                file.number, inode.size
            )));
        }
        Ok(Contents {
            btrfs: self,
            tree,
            inode: file.number,
            size: inode.size,
            proof: if inode.has_sums() {
                Proof::Summed
            } else {
                Proof::Unsummed
            },
        })
    }

    /// Whose name this is.
    fn target(&self, directory: FileId, one: &inode::NameItem<'_>) -> Result<FileId> {
        let tree = directory.tree;
        if one.location.kind != kind::ROOT {
            return Ok(FileId {
                tree,
                number: one.location.object,
            });
        }
        // In a snapshot, the place of a subvolume below is an empty directory: the subvolume has one parent only.
        let child = one.location.object;
        let key = Key::new(tree, kind::ROOT_REF, child);
        let is_here = match self.forest.get(&self.roots, key)? {
            None => false,
            Some(item) => {
                let bytes = item.bytes();
                let length = usize::from(field::u16_le(bytes, 16)?);
                field::u64_le(bytes, 0)? == directory.number
                    && field::slice(bytes, 18, length)? == one.name
            }
        };
        if !is_here {
            return Ok(FileId {
                tree,
                number: EMPTY_DIRECTORY,
            });
        }
        Ok(FileId {
            tree: child,
            number: self.subvolume(child)?.directory,
        })
    }

    fn directory(&self, file: FileId) -> Result<Tree> {
        let (tree, inode) = self.inode(file)?;
        if inode.kind()? != FileKind::Directory {
            return Err(invalid(file, "is no directory"));
        }
        Ok(tree)
    }
}

fn invalid(file: FileId, what: &str) -> Error {
    Error::new(
        ErrorKind::Invalid,
        format!("inode {} of subvolume {} {what}", file.number, file.tree),
    )
}

impl FileSystem for Btrfs {
    fn facts(&self) -> &FileSystemFacts {
        &self.facts
    }

    fn remarks(&self) -> Vec<String> {
        let root = self.default_subvolume().map(|id| {
            format!(
                "its root is subvolume {id}, as a mount shows it; all others are found through /{TOP_LEVEL}"
            )
        });
        let lost = self
            .lost_default
            .map(|id| format!("its default subvolume {id} is not there: the top level is shown"));
        root.into_iter().chain(lost).collect()
    }

    fn root(&self) -> FileId {
        let directory = self.subvolume(self.default).map(|found| found.directory);
        FileId {
            tree: self.default,
            number: directory.unwrap_or(FIRST_SUBVOLUME),
        }
    }

    fn metadata(&self, file: FileId) -> Result<Metadata> {
        if file.number == EMPTY_DIRECTORY {
            self.subvolume(file.tree)?;
            return Ok(Metadata {
                kind: FileKind::Directory,
                size_bytes: 0,
                allocated_bytes: 0,
                link_count: 1,
                times: FileTimes::default(),
                owner: Some(UnixOwner {
                    user: 0,
                    group: 0,
                    mode: 0o755,
                }),
                windows_attributes: None,
                obstacle: None,
            });
        }
        let (_, inode) = self.inode(file)?;
        let kind = inode.kind()?;
        let has_size = matches!(kind, FileKind::Regular | FileKind::SymbolicLink);
        let sector_bytes = u64::from(self.superblock.sector_bytes);
        let mode = u16::try_from(inode.mode & 0o7777).unwrap_or(0);
        Ok(Metadata {
            kind,
            size_bytes: if has_size { inode.size } else { 0 },
            allocated_bytes: (inode.bytes.checked_next_multiple_of(sector_bytes))
                .unwrap_or(u64::MAX),
            link_count: inode.links,
            times: FileTimes {
                created: inode.time(Moment::Created),
                modified: inode.time(Moment::Modified),
                changed: inode.time(Moment::Changed),
                accessed: inode.time(Moment::Accessed),
            },
            owner: Some(UnixOwner {
                user: inode.user,
                group: inode.group,
                mode,
            }),
            windows_attributes: None,
            obstacle: None,
        })
    }

    fn list(
        &self,
        directory: FileId,
        after: DirectoryCursor,
        visit: &mut dyn FnMut(DirectoryEntry) -> ControlFlow<()>,
    ) -> Result<()> {
        if directory.number == EMPTY_DIRECTORY {
            return self.subvolume(directory.tree).map(|_| ());
        }
        let tree = self.directory(directory)?;
        let from = Key::new(directory.number, kind::DIR_INDEX, after.0);
        let to = Key::new(directory.number, kind::DIR_INDEX, u64::MAX);
        let place = || {
            format!(
                "directory {} of subvolume {}",
                directory.number, directory.tree
            )
        };
        self.forest
            .walk(&tree, from..=to, &mut |key, item| {
                let next = (key.offset.checked_add(1))
                    .ok_or_else(|| Error::corrupt("a name behind all names"))?;
                let found = inode::names(item)?;
                let [one] = found.as_slice() else {
                    return Err(Error::corrupt(format!(
                        "{} names at one index",
                        found.len()
                    )));
                };
                Ok(visit(DirectoryEntry {
                    name: FileName::from_bytes(one.name),
                    file: self.target(directory, one)?,
                    kind: inode::kind_told(one.kind),
                    next: DirectoryCursor(next),
                }))
            })
            .map_err(|error| error.within(place()))
    }

    fn find(&self, directory: FileId, name: &FileName) -> Result<Option<FileId>> {
        if directory.number == EMPTY_DIRECTORY {
            self.subvolume(directory.tree)?;
            return Ok(None);
        }
        let tree = self.directory(directory)?;
        let hash = u64::from(checksum::name_hash(name.as_bytes()));
        let key = Key::new(directory.number, kind::DIR_ITEM, hash);
        if let Some(item) = self.forest.get(&tree, key)? {
            for one in inode::names(item.bytes())? {
                if one.name == name.as_bytes() {
                    return self.target(directory, &one).map(Some);
                }
            }
        }
        if name.as_bytes() == TOP_LEVEL.as_bytes()
            && self.default != TOP_TREE
            && directory == self.root()
        {
            return Ok(Some(FileId {
                tree: TOP_TREE,
                number: self.subvolume(TOP_TREE)?.directory,
            }));
        }
        Ok(None)
    }

    fn open(&self, file: FileId, stream: Option<&FileName>) -> Result<Box<dyn ReadAt + '_>> {
        let contents = self.contents(file, FileKind::Regular)?;
        if let Some(name) = stream {
            return Err(Error::new(
                ErrorKind::NotFound,
                format!("inode {} has no stream {name}", file.number),
            ));
        }
        Ok(Box::new(contents))
    }

    fn read_link(&self, file: FileId) -> Result<FileName> {
        let contents = self.contents(file, FileKind::SymbolicLink)?;
        if contents.size > MAX_LINK_BYTES {
            return Err(Error::corrupt(format!(
                "link {}: {} bytes",
                file.number, contents.size
            )));
        }
        let mut target = vec![0; usize::try_from(contents.size).unwrap_or(0)];
        contents.read(0, &mut target)?;
        Ok(FileName::from_bytes(target))
    }

    fn extended_attributes(&self, file: FileId) -> Result<Vec<ExtendedAttribute>> {
        if file.number == EMPTY_DIRECTORY {
            return self.subvolume(file.tree).map(|_| Vec::new());
        }
        let (tree, _) = self.inode(file)?;
        let from = Key::new(file.number, kind::XATTR, 0);
        let to = Key::new(file.number, kind::XATTR, u64::MAX);
        let mut found = Vec::new();
        self.forest
            .walk(&tree, from..=to, &mut |_, item| {
                for one in inode::names(item)? {
                    found.push(ExtendedAttribute {
                        name: FileName::from_bytes(one.name),
                        value: one.value.to_vec(),
                    });
                }
                Ok(ControlFlow::Continue(()))
            })
            .map_err(|error| error.within(format!("attributes of inode {}", file.number)))?;
        Ok(found)
    }

    fn used_ranges(&self, visit: &mut dyn FnMut(VolumeRange) -> ControlFlow<()>) -> Result<()> {
        if let Cleanliness::Dirty(why) = &self.facts.cleanliness {
            return Err(Error::unsupported(format!(
                "what is free is not known: {why}"
            )));
        }
        let members = self.forest.devices.members();
        let is_there = |id| members.iter().any(|member| member.id == id);
        if let Some((number, id)) = self.device_ids().find(|(_, id)| !is_there(*id)) {
            return Err(Error::unsupported(format!(
                "what is free is not told while device {number} ({id}) is missing"
            )));
        }
        space::used_ranges(self, visit)
    }

    /// Only of files without checksums (`nodatasum`, as swap files have to be) in extents of one copy: what lies
    /// elsewhere cannot be left out without harm.
    fn file_ranges(
        &self,
        file: FileId,
        visit: &mut dyn FnMut(VolumeRange) -> ControlFlow<()>,
    ) -> Result<()> {
        let contents = self.contents(file, FileKind::Regular)?;
        if contents.proof == Proof::Summed {
            return Err(Error::unsupported(format!(
                "inode {}: its contents have checksums",
                file.number
            )));
        }
        let from = Key::new(file.number, kind::EXTENT_DATA, 0);
        let to = Key::new(file.number, kind::EXTENT_DATA, u64::MAX);
        let mut stopped = ControlFlow::Continue(());
        self.forest.walk(&contents.tree, from..=to, &mut |_, item| {
            let (extent, length) = ExtentData::parse(item)?;
            let (Form::Regular(place) | Form::Reserved(place), None) =
                (extent.form, extent.packing)
            else {
                return match extent.form {
                    Form::Hole => Ok(ControlFlow::Continue(())),
                    _ => Err(Error::unsupported("contents in metadata, or packed")),
                };
            };
            let start = (place.logical.checked_add(place.offset))
                .ok_or_else(|| Error::corrupt("an extent behind every address"))?;
            let chunk = self.forest.chunks.at(start)?;
            let ([stripe], true) = (
                chunk.stripes.as_slice(),
                start.saturating_add(length) <= chunk.end(),
            ) else {
                return Err(Error::unsupported("contents on more than one stripe"));
            };
            let base = self.forest.devices.member(stripe)?.base;
            let within = start.saturating_sub(chunk.logical);
            let offset = base.saturating_add(stripe.offset).saturating_add(within);
            stopped = visit(VolumeRange {
                offset,
                length_bytes: length,
            });
            Ok(stopped)
        })
    }
}
