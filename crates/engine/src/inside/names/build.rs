//! Makes the record of a version: its folders are walked, those that did not change are taken from the index.
//!
//! A folder is known again by its key: the hashes of the blocks that it lies in, with its id and the shape of its file
//! system. The key is there without reading the folder. Where a file system does not tell where a folder lies (a folder in
//! its inode; the trees of NTFS and Btrfs), it is listed in every version whose metadata changed at all.
//!
//! Over a journal that was replayed in memory, blocks are not the whole truth: there the folder's own times of change are
//! part of its key, and a folder that changed within two seconds of the newest change seen is not kept under one, since a
//! later change could carry the same time.

use std::collections::HashSet;
use std::ops::ControlFlow;
use std::sync::Arc;

use block::geometry::BLOCK_SIZE_BYTES;
use block::{BlockIndex, ByteRange, ChangedRanges};
use guestfs::filesystem::{DirectoryCursor, DirectoryEntry, Metadata, Timestamp};
use guestfs::{FileId, FileName, FileSystem};
use repo::RecoveryPoint;

use super::object::{ListedName, ListingBuilder, ObjectId, encode_tree, folders_of};
use super::segments::SegmentWriter;
use super::{IndexedVolume, Segments, VersionRecord};
use crate::inside::chain::{OpenedVersion, VersionChain, ends_all};
use crate::inside::contents::{ranges_on_disk, stamp_bytes, stamp_of};
use crate::inside::identity::VolumeIdentity;
use crate::inside::list::is_local;
use crate::inside::place::display_path;
use crate::inside::{Place, VolumeNumber};
use crate::job::JobContext;
use crate::transfer::explained;
use crate::{Error, ErrorKind, Result};

const DEPTH_MAX: usize = 10_000;
const FOLDERS_MAX: usize = 4 << 20;
const DAMAGE_MAX: usize = 1000;
/// Ranges that a record keeps of a disk; neighbours are taken together beyond.
const RANGES_MAX: usize = 4096;
/// How close to the newest change a folder's own may be told apart.
const CLOSE_SECONDS: i64 = 2;

/// What making a record cost and met.
#[derive(Debug, Default)]
pub(in crate::inside) struct Built {
    /// Folders that were listed.
    pub(in crate::inside) listed: u64,
    /// Folders that were known by their key.
    pub(in crate::inside) known: u64,
    /// Whether the version was walked at all.
    pub(in crate::inside) was_walked: bool,
    /// What could not be read.
    pub(in crate::inside) damage: Vec<String>,
}

/// The record of a version: from the index, from one `beside` it in which nothing that matters differs, or from a walk.
/// When the index turns out to be damaged meanwhile this fails, [`Segments::faults`] tells that it was for that, and the
/// next try does without what was damaged.
pub(in crate::inside) fn index_version(
    chain: &VersionChain<'_>,
    point: &RecoveryPoint,
    beside: &[&RecoveryPoint],
    index: &mut Segments,
    context: JobContext<'_>,
) -> Result<(VersionRecord, Built)> {
    if let Some(record) = index.records.get(&point.point).cloned()
        && is_current(chain, point, &record)?
    {
        return Ok((record, Built::default()));
    }
    for other in beside.iter().copied() {
        let Some(known) = index.records.get(&other.point) else {
            continue;
        };
        let ranges = looked_at(known)?;
        if chain.is_same((other, point), &ranges)? && is_current(chain, point, known)? {
            let record = VersionRecord {
                point: point.point,
                ..known.clone()
            };
            index.note(record.clone());
            return Ok((record, Built::default()));
        }
    }
    let version = chain.look_into(point)?;
    let faults = index.faults();
    let mut walk = Walk {
        version: &version,
        writer: index.begin()?,
        index,
        context,
        built: Built {
            was_walked: true,
            ..Built::default()
        },
        keys: Vec::new(),
        newest: None,
    };
    let outcome = walk.record(point)?;
    let (writer, built) = walk.end();
    if index.faults() != faults {
        // Objects were left out because the index had them; it does not any more.
        let what = "the local index of names is damaged";
        return Err(Error::new(ErrorKind::Corrupt, what));
    }
    let kept = if built.damage.is_empty() {
        vec![outcome.clone()]
    } else {
        Vec::new()
    };
    index.end(writer, kept, Vec::new())?;
    Ok((outcome, built))
}

/// Whether volumes that could not be read still cannot: another program or a key may open them by now.
fn is_current(
    chain: &VersionChain<'_>,
    point: &RecoveryPoint,
    record: &VersionRecord,
) -> Result<bool> {
    if record.skipped.is_empty() {
        return Ok(true);
    }
    let version = chain.look_into(point)?;
    Ok(record
        .skipped
        .iter()
        .all(|(number, _)| version.inside.file_system(VolumeNumber(*number)).is_err()))
}

fn looked_at(record: &VersionRecord) -> Result<Vec<ChangedRanges>> {
    let disk = |runs: &Vec<(u64, u64)>| {
        let range = |(first, count): &(u64, u64)| ByteRange {
            offset: first.saturating_mul(BLOCK_SIZE_BYTES),
            length_bytes: count.saturating_mul(BLOCK_SIZE_BYTES),
        };
        ChangedRanges::new(runs.iter().map(range))
    };
    let disks: block::Result<Vec<_>> = record.looked_at.iter().map(disk).collect();
    Ok(disks?)
}

struct Walk<'a> {
    version: &'a OpenedVersion,
    writer: SegmentWriter,
    index: &'a mut Segments,
    context: JobContext<'a>,
    built: Built,
    /// Keys found, with when the folder changed where blocks alone do not tell.
    keys: Vec<(ObjectId, ObjectId, Option<Timestamp>)>,
    /// The newest change seen on a file system whose journal was replayed.
    newest: Option<Timestamp>,
}

/// A folder whose folders are being walked.
struct OpenFolder {
    listing: ObjectId,
    folders: Vec<ListedName>,
    next: usize,
    trees: Vec<ObjectId>,
}

impl Walk<'_> {
    fn record(&mut self, point: &RecoveryPoint) -> Result<VersionRecord> {
        let version = self.version;
        let mut record = VersionRecord {
            point: point.point,
            volumes: Vec::new(),
            skipped: Vec::new(),
            looked_at: Vec::new(),
        };
        for (number, volume) in version.inside.volumes() {
            let may_hold_files = volume.reader.is_err()
                || matches!(
                    volume.content.kind,
                    guestfs::probe::ContentKind::FileSystem(_)
                        | guestfs::probe::ContentKind::OtherFileSystem(_)
                        | guestfs::probe::ContentKind::Encrypted(_)
                );
            // What a key opened is a volume of its own.
            let is_opened = matches!(volume.lock, Some(guestfs::disk::Lock::Opened { .. }));
            if !may_hold_files || is_opened {
                continue;
            }
            let opened = version.inside.file_system(number);
            let indexed = opened.and_then(|fs| self.volume(number, &fs));
            match indexed {
                Ok(indexed) => record.volumes.push(indexed),
                Err(error) if ends_all(&error) => return Err(error),
                Err(error) => record.skipped.push((number.0, explained(&error))),
            }
        }
        for ranges in version.looked_at()? {
            let ranges = ranges.coarsened(RANGES_MAX);
            let blocks = |range: ByteRange| {
                let first = range.offset / BLOCK_SIZE_BYTES;
                (first, range.length_bytes.div_ceil(BLOCK_SIZE_BYTES))
            };
            record.looked_at.push(ranges.iter().map(blocks).collect());
        }
        Ok(record)
    }

    /// Notes the keys that will still be right when a later change may carry the same time.
    fn end(mut self) -> (SegmentWriter, Built) {
        for (key, listing, changed) in self.keys {
            let is_settled = match (changed, self.newest) {
                (None, _) => true,
                (Some(changed), Some(newest)) => {
                    changed.seconds < newest.seconds.saturating_sub(CLOSE_SECONDS)
                }
                (Some(_), None) => false,
            };
            if is_settled {
                self.writer.note_key(key, listing);
            }
        }
        (self.writer, self.built)
    }

    fn volume(&mut self, number: VolumeNumber, fs: &Arc<dyn FileSystem>) -> Result<IndexedVolume> {
        let gone = || Error::new(ErrorKind::NotFound, format!("there is no volume {number}"));
        let identity = VolumeIdentity::of(&self.version.inside, number).ok_or_else(gone)?;
        let before = self.built.listed.saturating_add(self.built.known);
        let mut seen = HashSet::from([fs.root()]);
        let mut open = vec![self.folder(number, fs, fs.root(), &[])?];
        let root = loop {
            self.context.cancel.check()?;
            let Some(top) = open.last_mut() else {
                return Err(gone());
            };
            let Some(next) = top.folders.get(top.next) else {
                let tree = encode_tree(top.listing, &top.trees);
                let id = ObjectId::of_tree(&tree);
                self.writer.put_new(self.index, id, &tree)?;
                open.pop();
                match open.last_mut() {
                    Some(above) => {
                        above.trees.push(id);
                        continue;
                    }
                    None => break id,
                }
            };
            let file = next.file;
            top.next = top.next.saturating_add(1);
            if open.len() > DEPTH_MAX || seen.len() >= FOLDERS_MAX || !seen.insert(file) {
                let path = path_of(&open);
                self.damage(&path, "met before, or too deep");
                if let Some(top) = open.last_mut() {
                    top.trees.push(ObjectId::UNREAD);
                }
                continue;
            }
            let path = path_of(&open);
            match self.folder(number, fs, file, &path) {
                Ok(folder) => open.push(folder),
                Err(error) if ends_all(&error) => return Err(error),
                Err(error) => {
                    self.damage(&path, &explained(&error));
                    if let Some(top) = open.last_mut() {
                        top.trees.push(ObjectId::UNREAD);
                    }
                }
            }
        };
        let facts = fs.facts();
        let folders = self.built.listed.saturating_add(self.built.known);
        Ok(IndexedVolume {
            number: number.0,
            identity,
            label: facts.label.clone(),
            ignores_case: facts.is_case_insensitive,
            root,
            folders: folders.saturating_sub(before),
        })
    }

    fn damage(&mut self, path: &[FileName], why: &str) {
        if self.built.damage.len() < DAMAGE_MAX {
            let what = format!("{}: {why}", display_path(path));
            self.built.damage.push(what);
        }
    }

    /// One folder: by its key from the index, or listed.
    fn folder(
        &mut self,
        volume: VolumeNumber,
        fs: &Arc<dyn FileSystem>,
        file: FileId,
        path: &[FileName],
    ) -> Result<OpenFolder> {
        let place = Place {
            volume,
            file_system: Arc::clone(fs),
            file,
            path: Vec::new(),
        };
        let metadata = fs.metadata(file)?;
        let key = folder_key(self.version, &place, &metadata)?;
        let changed = stamp_of(&place, &metadata).and_then(|(_, times)| times.changed);
        self.newest = self.newest.max(changed);
        if let Some(key) = key
            && let Some(listing) = self.index.listing_of(key)
            && let Some(folders) = folders_of(&self.index.object(listing)?)
        {
            self.built.known = self.built.known.saturating_add(1);
            self.keys.push((key, listing, changed));
            return Ok(OpenFolder {
                listing,
                folders,
                next: 0,
                trees: Vec::new(),
            });
        }
        self.built.listed = self.built.listed.saturating_add(1);
        let (bytes, is_whole) = self.listed(fs, file, path)?;
        let listing = ObjectId::of_listing(&bytes);
        self.writer.put_new(self.index, listing, &bytes)?;
        if let Some(key) = key.filter(|_| is_whole) {
            // A stamp without a time of change tells nothing.
            let is_stamped = stamp_of(&place, &metadata).is_some();
            if !is_stamped || changed.is_some() {
                self.keys.push((key, listing, changed));
            }
        }
        let malformed = || Error::new(ErrorKind::Corrupt, "a listing that cannot be read back");
        Ok(OpenFolder {
            listing,
            folders: folders_of(&bytes).ok_or_else(malformed)?,
            next: 0,
            trees: Vec::new(),
        })
    }

    /// Lists a folder; also tells whether wholly.
    fn listed(
        &mut self,
        fs: &Arc<dyn FileSystem>,
        file: FileId,
        path: &[FileName],
    ) -> Result<(Vec<u8>, bool)> {
        let mut builder = ListingBuilder::default();
        let mut has_room = true;
        let mut visit = |entry: DirectoryEntry| {
            has_room = builder.add(entry.kind, entry.file, &entry.name);
            if has_room {
                ControlFlow::Continue(())
            } else {
                ControlFlow::Break(())
            }
        };
        let outcome = fs.list(file, DirectoryCursor::default(), &mut visit);
        let mut is_whole = has_room;
        match outcome {
            Ok(()) if has_room => {}
            Ok(()) => self.damage(path, "too many names"),
            Err(error) if is_local(error.kind()) => {
                is_whole = false;
                self.damage(path, &explained(&error.into()));
            }
            Err(error) => return Err(error.into()),
        }
        for (at, file) in builder.take_unknown() {
            match fs.metadata(file) {
                Ok(metadata) => builder.set_kind(at, metadata.kind),
                // The folder is as it is; what the file is stays unknown.
                Err(error) if is_local(error.kind()) => is_whole = false,
                Err(error) => return Err(error.into()),
            }
        }
        Ok((builder.into_bytes(), is_whole))
    }
}

fn path_of(open: &[OpenFolder]) -> Vec<FileName> {
    open.iter()
        .filter_map(|folder| {
            let at = folder.next.checked_sub(1)?;
            folder.folders.get(at).map(|listed| listed.name.clone())
        })
        .collect()
}

/// What a folder is known by: everything that its listing is made from.
fn folder_key(
    version: &OpenedVersion,
    place: &Place,
    metadata: &Metadata,
) -> Result<Option<ObjectId>> {
    let Some((disk, ranges)) = ranges_on_disk(version, place)? else {
        return Ok(None);
    };
    let Some(disk) = version.disks.get(disk).filter(|_| !ranges.is_empty()) else {
        return Ok(None);
    };
    let facts = place.file_system.facts();
    let mut hasher = blake3::Hasher::new_derive_key("hikae v1 index of names: key of a folder");
    let mut field = |bytes: &[u8]| {
        hasher.update(&u64::try_from(bytes.len()).unwrap_or(u64::MAX).to_le_bytes());
        hasher.update(bytes);
    };
    field(facts.kind.name().as_bytes());
    field(facts.id.as_deref().unwrap_or_default().as_bytes());
    field(facts.version.as_deref().unwrap_or_default().as_bytes());
    field(&facts.size_bytes.to_le_bytes());
    field(&facts.cluster_bytes.to_le_bytes());
    field(&[u8::from(facts.is_case_insensitive)]);
    field(&place.file.tree.to_le_bytes());
    field(&place.file.number.to_le_bytes());
    field(&metadata.size_bytes.to_le_bytes());
    field(&stamp_bytes(stamp_of(place, metadata).as_ref()));
    let mut hashes = disk.hashes()?;
    for range in ranges {
        field(&range.offset.to_le_bytes());
        field(&range.length_bytes.to_le_bytes());
        let mut block = BlockIndex::holding(range.offset);
        while block.offset() < range.end() {
            field(hashes.block_hash(block)?.as_bytes());
            block = BlockIndex(block.0.saturating_add(1));
        }
    }
    Ok(Some(ObjectId::cut(&hasher.finalize())))
}
