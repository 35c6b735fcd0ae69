//! The master file table: records by number, files with all their extensions.
//!
//! ```text
//!  boot sector ─► record 0 ($MFT itself) ─► its runs ─► every other record
//!                    └─ damaged: $MFTMirr
//!  record n ─► attribute list ─► extension records ─► all attributes of the file
//! ```
//!
//! **Invariants.** A file is all its attributes or an error, never some of them. An attribute list is at most 256 KiB, as for Windows;
//! extension records have no lists of their own, so nothing here can go round in circles.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

use super::arithmetic::{add, length, multiply};
use super::boot::BootSector;
use super::cache::GenerationCache;
use super::device::Device;
use super::record::{ATTRIBUTE_LIST, Attribute, AttributeBody, DATA, FileRecord, NUMBER_MASK};
use super::runs::RunList;
use super::stream::{AttributeReader, ClusterGeometry};
use crate::{Error, ErrorKind, FileId, Result, field};

const MAX_LIST_BYTES: u64 = 256 << 10;
const CACHED_FILES: usize = 512;
/// Heavier files are read anew each time.
const MAX_CACHED_BYTES: usize = 8 << 10;

/// A file with all its attributes; parts of one stream ascend.
#[derive(Debug)]
pub(super) struct File {
    pub(super) number: u64,
    pub(super) sequence: u16,
    pub(super) is_directory: bool,
    pub(super) attributes: Vec<Attribute>,
}

impl File {
    /// The parts of one attribute.
    pub(super) fn parts(&self, kind: u32, name: &[u16]) -> Vec<&Attribute> {
        self.of_kind(kind)
            .filter(|attribute| attribute.name == name)
            .collect()
    }

    pub(super) fn of_kind(&self, kind: u32) -> impl Iterator<Item = &Attribute> {
        self.attributes
            .iter()
            .filter(move |attribute| attribute.kind == kind)
    }

    /// The value of an attribute that always stands in its record.
    pub(super) fn resident(&self, kind: u32) -> Option<&[u8]> {
        self.of_kind(kind).find_map(Attribute::resident)
    }

    pub(super) fn id(&self) -> FileId {
        FileId {
            tree: 0,
            number: self.number | u64::from(self.sequence).wrapping_shl(48),
        }
    }
}

/// The table, opened.
pub(super) struct FileTable {
    pub(super) device: Arc<Device>,
    pub(super) geometry: ClusterGeometry,
    record_bytes: u64,
    stream: AttributeReader,
    files: Mutex<GenerationCache<u64, Arc<File>>>,
}

impl FileTable {
    pub(super) fn open(device: &Arc<Device>, boot: &BootSector) -> Result<Self> {
        let geometry = ClusterGeometry {
            cluster_bytes: boot.cluster_bytes,
            total_clusters: boot.total_clusters(),
        };
        let first = match Self::open_at(device, boot, geometry, boot.mft_cluster) {
            Ok(table) => return Ok(table),
            Err(error) => error,
        };
        Self::open_at(device, boot, geometry, boot.mirror_cluster).map_err(|_| first.within("$MFT"))
    }

    fn open_at(
        device: &Arc<Device>,
        boot: &BootSector,
        geometry: ClusterGeometry,
        cluster: u64,
    ) -> Result<Self> {
        let mut block = vec![0; length(boot.record_bytes)?];
        device.read(multiply(cluster, boot.cluster_bytes)?, &mut block)?;
        let record = FileRecord::parse(block)?;
        if !record.is_in_use || record.base & NUMBER_MASK != 0 {
            return Err(Error::corrupt("record 0 is not that of a file"));
        }
        let own = |attributes: &[Attribute]| -> Result<AttributeReader> {
            let parts: Vec<&Attribute> = attributes
                .iter()
                .filter(|attribute| attribute.kind == DATA && attribute.name.is_empty())
                .collect();
            AttributeReader::open(device, geometry, &parts)
        };
        let mut attributes = record.attributes;
        let mut table = Self {
            device: Arc::clone(device),
            geometry,
            record_bytes: boot.record_bytes,
            stream: own(&attributes)?,
            files: Mutex::new(GenerationCache::new(CACHED_FILES)),
        };
        // The parts of the table's own runs lie in the table: each is found with those before it.
        for number in table.extensions(0, &attributes)? {
            let extension = table.extension(number, 0)?;
            attributes.extend(extension.attributes);
            sort_parts(&mut attributes);
            table.stream = own(&attributes)?;
        }
        Ok(table)
    }

    /// A record, whether it is in use or not.
    fn record(&self, number: u64) -> Result<FileRecord> {
        let offset = multiply(number, self.record_bytes)?;
        if add(offset, self.record_bytes)? > self.stream.size_bytes() {
            return Err(Error::new(
                ErrorKind::NotFound,
                format!("file record {number} lies behind the table"),
            ));
        }
        let mut block = vec![0; length(self.record_bytes)?];
        self.stream
            .read(offset, &mut block)
            .and_then(|()| FileRecord::parse(block))
            .map_err(|error| error.within(format!("file record {number}")))
    }

    /// Where a record lies on the volume, as offsets and lengths; `None` behind the end of the table.
    pub(super) fn places(&self, number: u64) -> Result<Option<Vec<(u64, u64)>>> {
        let start = multiply(number, self.record_bytes)?;
        let end = add(start, self.record_bytes)?;
        if end > self.stream.size_bytes() {
            return Ok(None);
        }
        let cluster_bytes = self.geometry.cluster_bytes;
        let runs = self
            .stream
            .plain_runs()?
            .ok_or_else(|| Error::corrupt("a file table in its own record"))?;
        let mut places = Vec::new();
        let mut offset = start;
        while offset < end {
            let cluster = offset.checked_div(cluster_bytes).unwrap_or(0);
            let inside = offset.checked_rem(cluster_bytes).unwrap_or(0);
            let place = runs
                .at(cluster)
                .and_then(|run| run.place)
                .ok_or_else(|| Error::corrupt(format!("file record {number} lies nowhere")))?;
            let size = cluster_bytes
                .saturating_sub(inside)
                .min(end.saturating_sub(offset));
            places.push((add(multiply(place, cluster_bytes)?, inside)?, size));
            offset = add(offset, size)?;
        }
        Ok(Some(places))
    }

    /// Whether a record can be parsed.
    pub(super) fn check(&self, number: u64) -> Result<()> {
        self.record(number).map(drop)
    }

    /// Clusters that a record names, whatever file it belongs to: first and count. None when it is not in use.
    pub(super) fn clusters_of_record(&self, number: u64) -> Result<Vec<(u64, u64)>> {
        let mut found = Vec::new();
        for attribute in &self.record(number)?.attributes {
            let AttributeBody::Runs(body) = &attribute.body else {
                continue;
            };
            let runs = RunList::from_part(body.lowest, &body.pairs, self.geometry.total_clusters)?;
            found.extend(
                runs.runs()
                    .iter()
                    .filter_map(|run| Some((run.place?, run.clusters))),
            );
        }
        Ok(found)
    }

    fn extension(&self, number: u64, base: u64) -> Result<FileRecord> {
        let record = self.record(number)?;
        if !record.is_in_use || record.base & NUMBER_MASK != base {
            return Err(Error::corrupt(format!(
                "file record {number} should extend {base}"
            )));
        }
        Ok(record)
    }

    /// The records that extend a file, in the order of its list.
    fn extensions(&self, base: u64, attributes: &[Attribute]) -> Result<Vec<u64>> {
        let parts: Vec<&Attribute> = attributes
            .iter()
            .filter(|attribute| attribute.kind == ATTRIBUTE_LIST)
            .collect();
        if parts.is_empty() {
            return Ok(Vec::new());
        }
        let list = AttributeReader::open(&self.device, self.geometry, &parts)?
            .read_all(MAX_LIST_BYTES)
            .map_err(|error| error.within("attribute list"))?;
        let mut seen = BTreeSet::new();
        let mut found = Vec::new();
        let mut rest = list.as_slice();
        while rest.len() >= 26 {
            let size = usize::from(field::u16_le(rest, 4)?);
            if size < 26 {
                return Err(Error::corrupt(format!(
                    "an entry of {size} bytes in an attribute list"
                )));
            }
            let number = field::u64_le(rest, 16)? & NUMBER_MASK;
            if number != base && seen.insert(number) {
                found.push(number);
            }
            rest = rest.get(size..).unwrap_or_default();
        }
        Ok(found)
    }

    /// A file by its reference. A sequence of 0 asks for whichever file is there.
    pub(super) fn file(&self, reference: u64) -> Result<Arc<File>> {
        let number = reference & NUMBER_MASK;
        let lock = || self.files.lock().unwrap_or_else(PoisonError::into_inner);
        let cached = lock().get(&number);
        let file = if let Some(file) = cached {
            file
        } else {
            let file = Arc::new(self.load(number)?);
            let weight = file.attributes.iter().map(Attribute::weight_bytes);
            if weight.fold(0, usize::saturating_add) <= MAX_CACHED_BYTES {
                lock().insert(number, Arc::clone(&file));
            }
            file
        };
        let sequence = reference >> 48;
        if sequence != 0 && sequence != u64::from(file.sequence) {
            return Err(Error::new(
                ErrorKind::NotFound,
                format!("file record {number} belongs to another file by now"),
            ));
        }
        Ok(file)
    }

    fn load(&self, number: u64) -> Result<File> {
        let record = self.record(number)?;
        if !record.is_in_use || record.base & NUMBER_MASK != 0 {
            return Err(Error::new(
                ErrorKind::NotFound,
                format!("file record {number} is not that of a file"),
            ));
        }
        let mut attributes = record.attributes;
        let place = || format!("file record {number}");
        let extensions = self
            .extensions(number, &attributes)
            .map_err(|error| error.within(place()))?;
        for extension in extensions {
            let extension = self
                .extension(extension, number)
                .map_err(|error| corrupt_if_missing(error).within(place()))?;
            attributes.extend(extension.attributes);
        }
        sort_parts(&mut attributes);
        Ok(File {
            number,
            sequence: record.sequence,
            is_directory: record.is_directory,
            attributes,
        })
    }

    /// Opens an attribute of a file.
    pub(super) fn reader(&self, file: &File, kind: u32, name: &[u16]) -> Result<AttributeReader> {
        AttributeReader::open(&self.device, self.geometry, &file.parts(kind, name)).map_err(
            |error| {
                error.within(format!(
                    "attribute {kind:#x} of file record {}",
                    file.number
                ))
            },
        )
    }

    /// The whole value of an attribute, wherever it stands; `None` when the file has none.
    pub(super) fn value(
        &self,
        file: &File,
        kind: u32,
        name: &[u16],
        limit_bytes: u64,
    ) -> Result<Option<Vec<u8>>> {
        if file.parts(kind, name).is_empty() {
            return Ok(None);
        }
        let reader = self.reader(file, kind, name)?;
        reader.read_all(limit_bytes).map(Some).map_err(|error| {
            error.within(format!(
                "attribute {kind:#x} of file record {}",
                file.number
            ))
        })
    }
}

/// Whose extension is missing is damaged; he is not missing himself.
fn corrupt_if_missing(error: Error) -> Error {
    if error.kind() == ErrorKind::NotFound {
        return Error::corrupt(error.to_string());
    }
    error
}

/// Puts the parts of each stream into their order; the rest stays as it was.
fn sort_parts(attributes: &mut [Attribute]) {
    attributes.sort_by_key(|attribute| match &attribute.body {
        AttributeBody::Resident(_) => 0,
        AttributeBody::Runs(runs) => runs.lowest,
    });
}
