//! The files of an index: segments, each written once by one run, together one index.
//!
//! ```text
//!   segment:  frame of objects (256 KiB) … ‖ directory: where each object lies ‖ keys ‖ records and known files (JSON)
//! ```
//!
//! A segment names the generation of the readers ([`guestfs::READER_GENERATION`]) that it was made with: what others read is
//! passed over and removed as if it could not be opened, so that a Hikae that reads more looks again.
//!
//! A segment that cannot be opened is passed over and removed when nobody else works: what it held is made again. One that
//! turns out to be damaged, or gone, while it is used is dropped and removed at once, with all records, since any of them
//! may need what it held; [`Segments::faults`] counts that, and whoever met it begins its version anew. Many segments are
//! made one when a run has the folder for itself; what no version needs any more is left out then.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use guestfs::READER_GENERATION;
use repo::local::{FolderUse, LocalFileId, LocalFileReader, LocalFileWriter, LocalFolder};
use repo::{PointId, ProtectedName, Repository};
use serde::{Deserialize, Serialize};

use super::object::{ObjectId, decode_tree, encode_tree};
use super::{FileKey, KnownFile, KnownFiles, VersionRecord};
use crate::{Error, ErrorKind, Result};

/// Bytes of objects in one frame.
const FRAME_BYTES: usize = 256 << 10;
/// Frames that are kept decoded: 16 MiB.
const FRAMES_KEPT: usize = 64;
/// Segments that may stand side by side.
const SEGMENTS_MAX: usize = 16;
/// Most objects of an index.
const OBJECTS_MAX: usize = 6 << 20;
/// Most objects of a frame's directory, so that it fits a frame.
const DIRECTORY_OBJECTS_MAX: usize = 1 << 20;
const TOPIC: &str = "names-2";
const DIRECTORY_ROW_BYTES: usize = 28;
const KEY_ROW_BYTES: usize = 32;

/// Where an object lies.
#[derive(Debug, Clone, Copy)]
struct Spot {
    segment: u32,
    frame: u32,
    offset: u32,
    length: u32,
}

/// What stands at the end of a segment besides objects and keys.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Notes {
    /// Of the readers that read all this. Before there was this number it was 0.
    #[serde(default)]
    generation: u32,
    records: Vec<VersionRecord>,
    files: Vec<(FileKey, KnownFile)>,
}

/// How long an index is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::inside) enum Keeping {
    /// In the local cache.
    BetweenRuns,
    /// Sealed with a key that nobody else has, and removed at the end.
    ThisRun,
}

/// Which frame of which reader, and what it holds.
type KeptFrame = ((u32, u32), Arc<Vec<u8>>);

/// The index of one protected name.
pub(in crate::inside) struct Segments {
    folder: LocalFolder,
    generation: u32,
    /// Those that were dropped leave a gap: the others keep their numbers.
    readers: Vec<Option<(LocalFileId, LocalFileReader)>>,
    faults: u64,
    places: HashMap<ObjectId, Spot>,
    keys: HashMap<ObjectId, ObjectId>,
    pub(in crate::inside) records: BTreeMap<PointId, VersionRecord>,
    pub(in crate::inside) files: KnownFiles,
    frames: Vec<KeptFrame>,
    pending: Vec<VersionRecord>,
    pending_files: Vec<(FileKey, KnownFile)>,
}

/// A segment while it is written.
pub(super) struct SegmentWriter {
    writer: LocalFileWriter,
    frame: Vec<u8>,
    frames: u32,
    objects: Vec<(ObjectId, u32, u32, u32)>,
    known: HashSet<ObjectId>,
    keys: Vec<(ObjectId, ObjectId)>,
}

fn damaged(what: &str) -> Error {
    let what = format!("the local index of names: {what}");
    Error::new(ErrorKind::Corrupt, what)
}

fn count(value: usize) -> Result<u32> {
    u32::try_from(value).map_err(|_| damaged("too large"))
}

impl Segments {
    /// Opens the index of a name; where what is kept cannot be used, one for this run, and [`Self::is_kept`] says so.
    /// `alive` are the versions that there are.
    pub(in crate::inside) fn open(
        repository: &Repository,
        name: &ProtectedName,
        alive: &HashSet<PointId>,
        keeping: Keeping,
    ) -> Result<Self> {
        if keeping == Keeping::BetweenRuns {
            let kept = repository.local_folder(TOPIC, name).map_err(Error::from);
            let opened = kept.and_then(|folder| Self::open_in(folder, READER_GENERATION, alive));
            if let Ok(segments) = opened {
                return Ok(segments);
            }
        }
        Self::open_in(repository.temporary_folder()?, READER_GENERATION, alive)
    }

    fn open_in(folder: LocalFolder, generation: u32, alive: &HashSet<PointId>) -> Result<Self> {
        let mut segments = Self {
            folder,
            generation,
            readers: Vec::new(),
            faults: 0,
            places: HashMap::new(),
            keys: HashMap::new(),
            records: BTreeMap::new(),
            files: KnownFiles::new(),
            frames: Vec::new(),
            pending: Vec::new(),
            pending_files: Vec::new(),
        };
        let is_alone = segments.folder.held() == FolderUse::Alone;
        let ids = segments.load(is_alone)?;
        if is_alone {
            if ids.len() > SEGMENTS_MAX {
                let old = ids;
                if segments.rewrite(alive).is_ok() {
                    for id in &old {
                        segments.folder.remove(id)?;
                    }
                }
            }
            let own = segments.folder.files()?;
            segments.folder.share()?;
            // Somebody may have been alone in between, and made many segments one.
            if segments.folder.files()? != own {
                segments.clear();
                segments.load(false)?;
            }
        }
        Ok(segments)
    }

    /// Takes in the segments that are there; those that cannot be read go, if that is for this process to say.
    fn load(&mut self, is_alone: bool) -> Result<Vec<LocalFileId>> {
        let ids = self.folder.files()?;
        for id in &ids {
            let opened = self.folder.open(id).map_err(Error::from);
            let added = opened.and_then(|reader| self.add(id.clone(), reader));
            if added.is_err() && is_alone {
                self.folder.remove(id)?;
            }
        }
        Ok(ids)
    }

    /// Forgets all segments.
    fn clear(&mut self) {
        self.readers.clear();
        self.places.clear();
        self.keys.clear();
        self.records.clear();
        self.files.clear();
        self.frames.clear();
    }

    /// How often something that should be in the index could not be read so far.
    pub(in crate::inside) fn faults(&self) -> u64 {
        self.faults
    }

    /// Segments that are in use.
    pub(in crate::inside) fn count(&self) -> usize {
        self.readers.iter().flatten().count()
    }

    /// Counts a fault; the segment goes, if it lies in one, and every record, since any may need what it held.
    fn drop_segment(&mut self, segment: Option<u32>) {
        self.faults = self.faults.saturating_add(1);
        self.records.clear();
        self.pending.clear();
        let Some(segment) = segment else {
            return;
        };
        let at = usize::try_from(segment).unwrap_or(usize::MAX);
        if let Some((id, _)) = self.readers.get_mut(at).and_then(Option::take) {
            // What cannot be removed is met and dropped again by the next run.
            drop(self.folder.remove(&id));
        }
        self.places.retain(|_, spot| spot.segment != segment);
        self.frames.retain(|((of, _), _)| *of != segment);
    }

    /// Drops what holds an object that is not what it should be; the error to tell it with.
    pub(super) fn malformed(&mut self, id: ObjectId) -> Error {
        let segment = self.places.get(&id).map(|spot| spot.segment);
        self.drop_segment(segment);
        damaged("an object is malformed")
    }

    /// Whether the next run finds what this one writes.
    pub(in crate::inside) fn is_kept(&self) -> bool {
        self.folder.is_kept()
    }

    /// Takes a segment in.
    fn add(&mut self, id: LocalFileId, reader: LocalFileReader) -> Result<()> {
        let segment = count(self.readers.len())?;
        let frames = reader.frame_count();
        let last = |back: usize| {
            let at = frames.checked_sub(back);
            at.ok_or_else(|| damaged("a segment without its end"))
        };
        let notes: Notes = serde_json::from_slice(&reader.frame(last(1)?)?)
            .map_err(|error| damaged("malformed notes").caused_by(error))?;
        if notes.generation != self.generation {
            return Err(damaged("a segment of other readers"));
        }
        let keys = reader.frame(last(2)?)?;
        let directories = reader.frame(last(3)?)?;
        let directories = u32::from_le_bytes(
            directories
                .try_into()
                .map_err(|_| damaged("a malformed directory"))?,
        );
        let directories = usize::try_from(directories).unwrap_or(usize::MAX);
        let first = frames.checked_sub(directories.saturating_add(3));
        let first = first.ok_or_else(|| damaged("a segment without its directory"))?;
        let mut places = Vec::new();
        for number in first..first.saturating_add(directories) {
            let rows = reader.frame(number)?;
            for row in rows.as_chunks::<DIRECTORY_ROW_BYTES>().0 {
                let (id, spot) = row.split_at(16);
                let mut numbers = spot
                    .as_chunks::<4>()
                    .0
                    .iter()
                    .copied()
                    .map(u32::from_le_bytes);
                let mut next = || numbers.next().unwrap_or(0);
                let spot = Spot {
                    segment,
                    frame: next(),
                    offset: next(),
                    length: next(),
                };
                places.push((ObjectId(id.try_into().unwrap_or([0; 16])), spot));
            }
        }
        if self.places.len().saturating_add(places.len()) > OBJECTS_MAX {
            return Err(damaged("too many folders"));
        }
        // Nothing is taken in of a segment that is not whole.
        self.readers.push(Some((id, reader)));
        self.places.extend(places);
        for row in keys.as_chunks::<KEY_ROW_BYTES>().0 {
            let (key, id) = row.split_at(16);
            let part = |bytes: &[u8]| ObjectId(bytes.try_into().unwrap_or([0; 16]));
            self.keys.insert(part(key), part(id));
        }
        for record in notes.records {
            self.records.insert(record.point, record);
        }
        self.files.extend(notes.files);
        Ok(())
    }

    /// Begins a segment.
    pub(super) fn begin(&self) -> Result<SegmentWriter> {
        Ok(SegmentWriter {
            writer: self.folder.create()?,
            frame: Vec::new(),
            frames: 0,
            objects: Vec::new(),
            known: HashSet::new(),
            keys: Vec::new(),
        })
    }

    /// Ends a segment and takes it in.
    pub(super) fn end(
        &mut self,
        writer: SegmentWriter,
        records: Vec<VersionRecord>,
        files: Vec<(FileKey, KnownFile)>,
    ) -> Result<()> {
        let id = writer.finish(&self.notes(records, files))?;
        let reader = self.folder.open(&id)?;
        self.add(id, reader)
    }

    fn notes(&self, records: Vec<VersionRecord>, files: Vec<(FileKey, KnownFile)>) -> Notes {
        Notes {
            generation: self.generation,
            records,
            files,
        }
    }

    /// Takes a record in that needs no new objects; [`Self::flush`] keeps it.
    pub(super) fn note(&mut self, record: VersionRecord) {
        self.pending.push(record.clone());
        self.records.insert(record.point, record);
    }

    /// Takes in what a file turned out to be.
    pub(in crate::inside) fn note_file(&mut self, key: FileKey, file: KnownFile) {
        self.pending_files.push((key, file));
        self.files.insert(key, file);
    }

    /// Keeps what was noted.
    pub(in crate::inside) fn flush(&mut self) -> Result<()> {
        let records = std::mem::take(&mut self.pending);
        let files = std::mem::take(&mut self.pending_files);
        if records.is_empty() && files.is_empty() {
            return Ok(());
        }
        let writer = self.begin()?;
        self.end(writer, records, files)
    }

    /// The listing that a folder with this key has.
    pub(super) fn listing_of(&self, key: ObjectId) -> Option<ObjectId> {
        let listing = self.keys.get(&key)?;
        self.places.contains_key(listing).then_some(*listing)
    }

    /// An object. When it cannot be read, [`Self::faults`] grows.
    pub(super) fn object(&mut self, id: ObjectId) -> Result<Vec<u8>> {
        let spot = self.places.get(&id).copied();
        let outcome = match spot {
            Some(spot) => self.object_at(spot),
            None => Err(damaged("an object is missing")),
        };
        if outcome.is_err() {
            self.drop_segment(spot.map(|spot| spot.segment));
        }
        outcome
    }

    fn object_at(&mut self, spot: Spot) -> Result<Vec<u8>> {
        let frame = self.frame(spot)?;
        let from = usize::try_from(spot.offset).unwrap_or(usize::MAX);
        let length = usize::try_from(spot.length).unwrap_or(usize::MAX);
        let bytes = frame.get(from..from.saturating_add(length));
        Ok(bytes
            .ok_or_else(|| damaged("an object behind its frame"))?
            .to_vec())
    }

    fn frame(&mut self, spot: Spot) -> Result<Arc<Vec<u8>>> {
        let key = (spot.segment, spot.frame);
        if let Some(at) = self.frames.iter().position(|(known, _)| *known == key) {
            let found = self.frames.remove(at);
            let frame = Arc::clone(&found.1);
            self.frames.push(found);
            return Ok(frame);
        }
        let reader = usize::try_from(spot.segment)
            .ok()
            .and_then(|at| self.readers.get(at)?.as_ref())
            .map(|(_, reader)| reader)
            .ok_or_else(|| damaged("a segment is missing"))?;
        let number = usize::try_from(spot.frame).unwrap_or(usize::MAX);
        let frame = Arc::new(reader.frame(number)?);
        if self.frames.len() >= FRAMES_KEPT {
            self.frames.remove(0);
        }
        self.frames.push((key, Arc::clone(&frame)));
        Ok(frame)
    }

    /// Writes all that living versions need into one segment.
    fn rewrite(&mut self, alive: &HashSet<PointId>) -> Result<()> {
        let mut writer = self.begin()?;
        let records: Vec<_> = self.records.values().cloned().collect();
        let records: Vec<_> = records
            .into_iter()
            .filter(|record| alive.contains(&record.point))
            .collect();
        let mut left: Vec<ObjectId> = records
            .iter()
            .flat_map(|record| record.volumes.iter().map(|volume| volume.root))
            .collect();
        let mut listings = HashSet::new();
        while let Some(tree) = left.pop() {
            if tree == ObjectId::UNREAD || writer.has(tree) {
                continue;
            }
            let (listing, children) =
                decode_tree(&self.object(tree)?).ok_or_else(|| damaged("a malformed tree"))?;
            if listings.insert(listing) {
                let bytes = self.object(listing)?;
                writer.put(listing, &bytes)?;
            }
            writer.put(tree, &encode_tree(listing, &children))?;
            left.extend(children);
        }
        writer.keys = self
            .keys
            .iter()
            .filter(|(_, listing)| listings.contains(listing))
            .map(|(key, listing)| (*key, *listing))
            .collect();
        let files = self.files.iter();
        let files = files.filter(|(key, _)| alive.contains(&key.point));
        let files = files.map(|(key, file)| (*key, *file)).collect();
        let id = writer.finish(&self.notes(records, files))?;
        let reader = self.folder.open(&id)?;
        // The old segments go: nothing may point into them.
        self.clear();
        self.add(id, reader)
    }
}

impl SegmentWriter {
    /// Whether it holds this object.
    pub(super) fn has(&self, id: ObjectId) -> bool {
        self.known.contains(&id)
    }

    /// Adds an object.
    pub(super) fn put(&mut self, id: ObjectId, bytes: &[u8]) -> Result<()> {
        if self.known.len() >= OBJECTS_MAX {
            return Err(damaged("too many folders"));
        }
        if !self.known.insert(id) {
            return Ok(());
        }
        if !self.frame.is_empty() && self.frame.len().saturating_add(bytes.len()) > FRAME_BYTES {
            self.close_frame()?;
        }
        let offset = count(self.frame.len())?;
        self.objects
            .push((id, self.frames, offset, count(bytes.len())?));
        self.frame.extend_from_slice(bytes);
        Ok(())
    }

    /// Adds an object that the index may have already.
    pub(super) fn put_new(&mut self, index: &Segments, id: ObjectId, bytes: &[u8]) -> Result<()> {
        if index.places.contains_key(&id) {
            return Ok(());
        }
        self.put(id, bytes)
    }

    /// Notes which listing a folder with this key has.
    pub(super) fn note_key(&mut self, key: ObjectId, listing: ObjectId) {
        self.keys.push((key, listing));
    }

    fn close_frame(&mut self) -> Result<()> {
        let number = self.writer.frame(&self.frame)?;
        self.frames = count(number)?.saturating_add(1);
        self.frame.clear();
        Ok(())
    }

    fn finish(mut self, notes: &Notes) -> Result<LocalFileId> {
        if !self.frame.is_empty() {
            self.close_frame()?;
        }
        let mut directories = 0_u32;
        for rows in self.objects.chunks(DIRECTORY_OBJECTS_MAX) {
            let mut bytes = Vec::with_capacity(rows.len().saturating_mul(DIRECTORY_ROW_BYTES));
            for (id, frame, offset, length) in rows {
                bytes.extend_from_slice(&id.0);
                for number in [frame, offset, length] {
                    bytes.extend_from_slice(&number.to_le_bytes());
                }
            }
            self.writer.frame(&bytes)?;
            directories = directories.saturating_add(1);
        }
        self.writer.frame(&directories.to_le_bytes())?;
        let mut keys = Vec::with_capacity(self.keys.len().saturating_mul(KEY_ROW_BYTES));
        for (key, listing) in &self.keys {
            keys.extend_from_slice(&key.0);
            keys.extend_from_slice(&listing.0);
        }
        self.writer.frame(&keys)?;
        let notes = serde_json::to_vec(notes)
            .map_err(|error| damaged("its notes cannot be written").caused_by(error))?;
        self.writer.frame(&notes)?;
        Ok(self.writer.finish()?)
    }
}

#[cfg(test)]
mod tests {
    use repo::{CreateOptions, Encryption, Environment, OpenOptions};
    use store::memory::MemoryStore;

    use super::*;

    #[test]
    fn an_index_of_older_readers_is_made_again() {
        let cache = tempfile::tempdir().expect("a folder");
        let options = CreateOptions {
            encryption: Encryption::None,
            ..CreateOptions::default()
        };
        let open = OpenOptions {
            cache_dir: Some(cache.path().to_owned()),
            ..OpenOptions::default()
        };
        let store = Arc::new(MemoryStore::new());
        let made = Repository::create(store, &options, &open, &Environment::system("tests"));
        let repository = made.expect("a repository").repository;
        let name: ProtectedName = "vm".parse().expect("a name");
        let none = HashSet::new();
        let open = |generation| {
            let folder = repository.local_folder(TOPIC, &name).expect("a folder");
            Segments::open_in(folder, generation, &none).expect("an index")
        };
        let record = VersionRecord {
            point: PointId::from_bytes([7; 16]),
            volumes: Vec::new(),
            skipped: Vec::new(),
            looked_at: Vec::new(),
        };
        let mut index = open(7);
        assert!(index.is_kept());
        index.note(record.clone());
        index.flush().expect("kept");
        drop(index);
        assert_eq!(open(7).records.get(&record.point), Some(&record));
        // Readers of another generation know nothing of it, and take it away when nobody else works with it.
        let other = open(8);
        assert_eq!((other.count(), other.records.len()), (0, 0));
        drop(other);
        assert_eq!(open(7).count(), 0);
    }
}
