//! What the threads of an extraction do for an archive: read files and pack them, each whole or piece by piece.

use std::sync::{Mutex, PoisonError};

use guestfs::filesystem::{ExtendedAttribute, FileKind, FileTimes, UnixOwner};
use guestfs::{FileName, FileSystem};

use super::super::content::{self, Run};
use super::super::into_folder::{Done, Named, link_target, stream_path};
use super::super::manifest::ContentHash;
use super::super::note::{Beside, StreamNote};
use super::super::walk::is_of_file;
use super::tar::Holes;
use super::{ArchiveKind, tar, zip};
use crate::job::JobContext;
use crate::transfer::explained;
use crate::{Error, ErrorKind, Result};

/// What an archive holds of a file besides its bytes.
#[derive(Clone, Copy)]
pub(super) struct Member<'a> {
    pub(super) path: &'a [u8],
    pub(super) kind: FileKind,
    pub(super) size_bytes: u64,
    pub(super) times: &'a FileTimes,
    pub(super) owner: Option<UnixOwner>,
    pub(super) windows_attributes: Option<u32>,
    pub(super) attributes: &'a [ExtendedAttribute],
    /// Where a link leads, or the first name of a file.
    pub(super) link: &'a [u8],
    pub(super) is_another_name: bool,
}

/// Packed members, ready to be written one after the other.
#[derive(Default)]
pub(super) struct Packed {
    pub(super) bytes: Vec<u8>,
    pub(super) records: Vec<zip::Record>,
    pub(super) notes: Vec<u8>,
    pub(super) done: Done,
    /// Names of files with several, which hold all of their bytes.
    pub(super) first_names: Vec<Box<[u8]>>,
}

/// Something to be packed, with the streams that go with it.
pub(super) struct Item {
    pub(super) named: Named,
    pub(super) streams: Vec<(FileName, u64)>,
}

/// What all threads share.
pub(super) struct Shared<'env> {
    pub(super) kind: ArchiveKind,
    pub(super) has_manifest: bool,
    pub(super) context: JobContext<'env>,
    /// What was written, to be filled again: fresh memory costs more than filling it.
    pub(super) spare: Mutex<Vec<Vec<u8>>>,
}

/// Buffers that wait to be filled again, and how large they may be.
const SPARE_MAX: usize = 8;
const SPARE_BYTES: std::ops::RangeInclusive<usize> = 64 << 10..=8 << 20;

/// The member of a file. What it holds of the note is taken out of it.
pub(super) fn member<'a>(named: &'a Named, beside: &'a Beside, link: &'a [u8]) -> Member<'a> {
    let metadata = &named.found.metadata;
    Member {
        path: &named.written,
        kind: metadata.kind,
        size_bytes: metadata.size_bytes,
        times: &metadata.times,
        owner: metadata.owner,
        windows_attributes: metadata.windows_attributes,
        attributes: &beside.attributes,
        link,
        is_another_name: false,
    }
}

/// The member of a stream: a file of its own.
pub(super) fn stream_member<'a>(path: &'a [u8], size_bytes: u64, named: &'a Named) -> Member<'a> {
    Member {
        path,
        kind: FileKind::Regular,
        size_bytes,
        times: &named.found.metadata.times,
        owner: None,
        windows_attributes: None,
        attributes: &[],
        link: &[],
        is_another_name: false,
    }
}

impl Shared<'_> {
    /// An empty buffer.
    pub(super) fn buffer(&self) -> Vec<u8> {
        let mut spare = self.spare.lock().unwrap_or_else(PoisonError::into_inner);
        spare.pop().unwrap_or_default()
    }

    /// Takes back what was written.
    pub(super) fn take_back(&self, mut buffer: Vec<u8>) {
        buffer.clear();
        let mut spare = self.spare.lock().unwrap_or_else(PoisonError::into_inner);
        if spare.len() < SPARE_MAX && SPARE_BYTES.contains(&buffer.capacity()) {
            spare.push(buffer);
        }
    }

    /// Packs neighbours.
    pub(super) fn group(&self, fs: &dyn FileSystem, volume: usize, items: &[Item]) -> Packed {
        let mut packed = Packed {
            bytes: self.buffer(),
            ..Packed::default()
        };
        for item in items {
            let checked = self.context.cancel.check();
            let outcome = checked.and_then(|()| self.item(fs, volume, item, &mut packed));
            match outcome {
                Ok(()) => {}
                Err(error) if is_of_file(&error) => {
                    packed.done.fail(&item.named.source, &explained(&error));
                }
                Err(error) => {
                    packed.done.fatal = Some(error);
                    break;
                }
            }
        }
        packed
    }

    fn item(
        &self,
        fs: &dyn FileSystem,
        volume: usize,
        item: &Item,
        packed: &mut Packed,
    ) -> Result<()> {
        let mut beside = self.beside(fs, volume, &item.named)?;
        let kind = item.named.found.metadata.kind;
        match kind {
            FileKind::Regular => {
                let source = fs.open(item.named.found.file, None)?;
                let member = member(&item.named, &beside, &[]);
                self.bytes(&*source, &member, packed)?;
                if item.named.found.metadata.link_count > 1 {
                    packed
                        .first_names
                        .push(item.named.written.as_slice().into());
                }
                packed.done.files = packed.done.files.saturating_add(1);
            }
            FileKind::SymbolicLink => {
                let target = link_target(fs, &item.named.found, &mut beside)?;
                self.plain(&member(&item.named, &beside, &target), packed)?;
                packed.done.links = packed.done.links.saturating_add(1);
            }
            FileKind::Fifo | FileKind::CharacterDevice(_) | FileKind::BlockDevice(_)
                if self.kind == ArchiveKind::Tar =>
            {
                beside.note.device = None;
                self.plain(&member(&item.named, &beside, &[]), packed)?;
                packed.done.specials = packed.done.specials.saturating_add(1);
            }
            _ => {
                beside.note.add_owner(&item.named.found);
                beside.note.add_times(&item.named.found.metadata.times);
            }
        }
        self.streams(fs, item, packed)?;
        self.tell(&beside, packed)
    }

    /// Packs the streams that go with a file.
    pub(super) fn streams(
        &self,
        fs: &dyn FileSystem,
        item: &Item,
        packed: &mut Packed,
    ) -> Result<()> {
        let mut streams = item.streams.iter();
        streams.try_for_each(|(stream, _)| self.stream(fs, &item.named, stream, packed))
    }

    /// Asks for all that stands beside the bytes, and leaves in the note what this kind of archive does not hold.
    pub(super) fn beside(
        &self,
        fs: &dyn FileSystem,
        volume: usize,
        named: &Named,
    ) -> Result<Beside> {
        let paths = (&named.source[..], &named.written[..]);
        let mut beside = Beside::read(fs, volume, paths, &named.found)?;
        if self.kind == ArchiveKind::Zip {
            beside.note.created = None;
        }
        for attribute in &beside.attributes {
            if self.kind == ArchiveKind::Zip || tar::attribute_name(attribute).is_none() {
                beside.note.add_attribute(attribute);
            }
        }
        for (name, size_bytes) in &beside.streams {
            let path = stream_path(&named.written, name, named.found.file.number);
            beside.note.streams.push(StreamNote {
                name: name.to_string(),
                size_bytes: *size_bytes,
                written_as: String::from_utf8_lossy(&path).into_owned(),
            });
        }
        Ok(beside)
    }

    pub(super) fn tell(&self, beside: &Beside, packed: &mut Packed) -> Result<()> {
        if beside.note.is_needed() {
            packed.notes.extend(beside.note.line()?);
            packed.done.noted = packed.done.noted.saturating_add(1);
        }
        Ok(())
    }

    /// Packs something without bytes: a link, a folder, a pipe.
    pub(super) fn plain(&self, member: &Member<'_>, packed: &mut Packed) -> Result<()> {
        match self.kind {
            ArchiveKind::Tar => {
                packed.bytes.extend(tar::head(member, &[], Holes::Filled));
            }
            ArchiveKind::Zip => self.add_whole(member, member.link, packed)?,
        }
        Ok(())
    }

    fn add_whole(&self, member: &Member<'_>, bytes: &[u8], packed: &mut Packed) -> Result<()> {
        let (whole, mut record) = zip::whole(member, bytes)?;
        record.offset = u64::try_from(packed.bytes.len()).unwrap_or(0);
        packed.bytes.extend(whole);
        packed.records.push(record);
        Ok(())
    }

    /// Packs a file whole.
    fn bytes(
        &self,
        source: &dyn block::ReadAt,
        member: &Member<'_>,
        packed: &mut Packed,
    ) -> Result<()> {
        let size = source.size_bytes();
        if size != member.size_bytes || size > super::LARGE_BYTES {
            let what = format!("it has {size} bytes, not {}", member.size_bytes);
            return Err(Error::new(ErrorKind::Corrupt, what));
        }
        let stored = match self.kind {
            ArchiveKind::Zip => {
                let mut bytes = Vec::new();
                let whole = Run {
                    offset: 0,
                    length_bytes: size,
                };
                content::read(source, whole, &mut bytes)?;
                if self.has_manifest {
                    let mut hash = ContentHash::default();
                    hash.add(&bytes);
                    packed.done.manifest.extend(hash.line(member.path));
                }
                self.add_whole(member, &bytes, packed)?;
                size
            }
            ArchiveKind::Tar => {
                let begin = packed.bytes.len();
                let added = self.add_to_tar(source, member, packed);
                if added.is_err() {
                    packed.bytes.truncate(begin);
                }
                added?
            }
        };
        self.context.progress.advance(size);
        packed.done.written_bytes = packed.done.written_bytes.saturating_add(stored);
        Ok(())
    }

    /// Adds a file to a tar, its bytes straight from where they come; how many those were.
    fn add_to_tar(
        &self,
        source: &dyn block::ReadAt,
        member: &Member<'_>,
        packed: &mut Packed,
    ) -> Result<u64> {
        let found = content::runs(source, self.context.cancel)?;
        let (runs, holes) = tar::stored_runs(member.size_bytes, &found);
        packed.bytes.extend(tar::head(member, &runs, holes));
        let first = packed.bytes.len();
        let mut stored = 0_u64;
        for run in &runs {
            let begin = packed.bytes.len();
            let length = usize::try_from(run.length_bytes).unwrap_or(usize::MAX);
            packed.bytes.resize(begin.saturating_add(length), 0);
            let room = packed.bytes.get_mut(begin..).unwrap_or_default();
            source.read_at(run.offset, room)?;
            stored = stored.saturating_add(run.length_bytes);
        }
        let bytes = packed.bytes.get(first..).unwrap_or_default();
        if self.has_manifest {
            let mut hash = ContentHash::default();
            let (mut at, mut rest) = (0_u64, bytes);
            for run in &runs {
                let length = usize::try_from(run.length_bytes).unwrap_or(usize::MAX);
                let (piece, behind) = rest.split_at_checked(length).unwrap_or((rest, &[]));
                hash.add_zeros(run.offset.saturating_sub(at));
                hash.add(piece);
                (at, rest) = (run.end(), behind);
            }
            hash.add_zeros(member.size_bytes.saturating_sub(at));
            packed.done.manifest.extend(hash.line(member.path));
        }
        let length = packed.bytes.len().saturating_add(tar::padding(stored));
        packed.bytes.resize(length, 0);
        Ok(stored)
    }

    fn stream(
        &self,
        fs: &dyn FileSystem,
        named: &Named,
        stream: &FileName,
        packed: &mut Packed,
    ) -> Result<()> {
        let path = stream_path(&named.written, stream, named.found.file.number);
        let outcome = fs
            .open(named.found.file, Some(stream))
            .map_err(Error::from)
            .and_then(|source| {
                let member = stream_member(&path, source.size_bytes(), named);
                self.bytes(&*source, &member, packed)
            });
        match outcome {
            Err(error) if is_of_file(&error) => {
                let why = format!("its stream {stream}: {}", explained(&error));
                packed.done.fail(&named.source, &why);
                Ok(())
            }
            outcome => outcome,
        }
    }
}
