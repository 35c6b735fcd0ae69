//! Reading an image: the active state, through its parent where nothing is allocated.
//!
//! ```text
//! read_at ─► run_at(offset): L1 page ─► L2 page ─► longest run of one kind, contiguous in the file
//!               │ Data        one positioned read of the run
//!               │ Compressed  one cluster, decompressed into a small cache
//!               │ Zero        fill
//!               └ Unallocated parent (what lies behind its end is zero) or zeros
//! ```
//!
//! **Invariants.** Memory: the page cache, eight decompressed clusters, and one cluster per reading thread.
//! A file that ends inside a cluster of data has zeros there, as QEMU leaves the last cluster short; a cluster that begins
//! behind the end of the file is an error.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use block::{Extent, ExtentKind, ReadAt};

use super::codec;
use super::entry::{self, Cluster, SUBCLUSTERS};
use super::header::{BackingName, Qcow2Header};
use super::snapshot::{self, Snapshot};
use crate::field::{bytes, index};
use crate::pages::Pages;
use crate::{Error, ErrorKind, Format, ImageInfo, Result, Subformat};

/// Decompressed clusters kept for small sequential reads.
const KEPT_CLUSTERS: usize = 8;
/// Runs that one `extent_at` merges at most: its cost stays bounded on a fragmented image.
const MAX_MERGED_RUNS: usize = 256;

/// The other files that an image leans on, as far as the caller resolved them.
#[derive(Clone, Default)]
pub struct Qcow2Sources {
    /// The parent disk's content. Without it, ranges of a child that lie in the parent report `InParent` and cannot be read.
    pub parent: Option<Arc<dyn ReadAt>>,
    /// The external data file; needed if and only if the header says so.
    pub data_file: Option<Arc<dyn ReadAt>>,
}

/// What holds a run of guest bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Unallocated,
    Zero,
    Data { host: u64 },
    Compressed { offset: u64, length: u64 },
}

#[derive(Debug, Clone, Copy)]
struct Run {
    length: u64,
    place: Place,
}

/// A qcow2 image, opened for reading.
pub struct Qcow2Reader {
    file: Arc<dyn ReadAt>,
    data: Arc<dyn ReadAt>,
    parent: Option<Arc<dyn ReadAt>>,
    header: Qcow2Header,
    pages: Pages,
    kept: Mutex<VecDeque<(u64, Arc<[u8]>)>>,
}

impl Qcow2Reader {
    /// Opens an image; `parent` is the content of its backing disk, if the caller resolved it.
    ///
    /// # Errors
    /// As [`Qcow2Header::read`]; `Invalid` for a parent without a backing name; `ParentNotFound` when the image
    /// needs an external data file ([`Self::open_with`] takes one).
    pub fn open(file: Arc<dyn ReadAt>, parent: Option<Arc<dyn ReadAt>>) -> Result<Self> {
        Self::open_with(
            file,
            Qcow2Sources {
                parent,
                data_file: None,
            },
        )
    }

    /// Opens an image together with the other files it leans on.
    ///
    /// # Errors
    /// As [`Self::open`]; `Invalid` for a data file that the image does not use.
    pub fn open_with(file: Arc<dyn ReadAt>, sources: Qcow2Sources) -> Result<Self> {
        let header = Qcow2Header::read(&file)?;
        if sources.parent.is_some() && header.backing.is_none() {
            return Err(Error::new(
                ErrorKind::Invalid,
                "qcow2: a parent was given for an image without a backing name",
            ));
        }
        let data = match (header.needs_data_file(), sources.data_file) {
            (false, None) => Arc::clone(&file),
            (true, Some(data)) => data,
            (true, None) => {
                let name = header.data_file_name().unwrap_or("of unrecorded name");
                return Err(Error::new(
                    ErrorKind::ParentNotFound,
                    format!("qcow2: the external data file {name} was not given"),
                ));
            }
            (false, Some(_)) => {
                return Err(Error::new(
                    ErrorKind::Invalid,
                    "qcow2: a data file was given for an image without an external one",
                ));
            }
        };
        let pages = Pages::new(header.cluster_bytes());
        Ok(Self {
            file,
            data,
            parent: sources.parent,
            header,
            pages,
            kept: Mutex::default(),
        })
    }

    /// Reads through this parent from now on; an image without a backing name has no use for one and ignores it.
    #[must_use]
    pub fn with_parent(mut self, parent: Arc<dyn ReadAt>) -> Self {
        if self.header.backing.is_some() {
            self.parent = Some(parent);
        }
        self
    }

    /// The parsed header.
    pub fn header(&self) -> &Qcow2Header {
        &self.header
    }

    /// What the image says about itself.
    pub fn info(&self) -> ImageInfo {
        info_of(&self.header)
    }

    /// The parent's name, when the image has one.
    pub fn backing(&self) -> Option<&BackingName> {
        self.header.backing()
    }

    /// The internal snapshots, in table order. The disk that this reader shows is the active state, not one of them.
    ///
    /// # Errors
    /// `Corrupt` when the table contradicts itself, `Io` when it cannot be read.
    pub fn snapshots(&self) -> Result<Vec<Snapshot>> {
        snapshot::read_table(&self.header, &self.file).map(|(snapshots, _)| snapshots)
    }

    /// The longest run from `offset` on that one L2 page (or one empty stretch of the L1 table) describes.
    fn run_at(&self, offset: u64, limit: u64) -> Result<Run> {
        let header = &self.header;
        let per_l2 = header.bytes_per_l2().max(1);
        let l1_index = offset.checked_div(per_l2).unwrap_or(0);
        let l1_at = header.l1_offset.saturating_add(l1_index.saturating_mul(8));
        let l1_page = self.pages.get(&*self.file, l1_at)?;
        let l1_entry = u64::from_be_bytes(l1_page.array(l1_at, "qcow2 L1 table")?);
        let table_end = l1_index.saturating_add(1).saturating_mul(per_l2);
        let Some(l2_offset) = entry::l2_offset(header, l1_entry, l1_index)? else {
            let length = table_end.saturating_sub(offset).min(limit);
            return Ok(Run {
                length,
                place: Place::Unallocated,
            });
        };
        let first = header.cluster_of(offset) & header.l2_entries().saturating_sub(1);
        let entry_bytes = header.l2_entry_bytes();
        let mut at = l2_offset.saturating_add(first.saturating_mul(entry_bytes));
        let page_end = self.pages.page_end(at);
        let page = self.pages.get(&*self.file, at)?;
        let mut run: Option<Run> = None;
        let mut guest = offset & !header.cluster_mask();
        while at < page_end {
            let word = u64::from_be_bytes(page.array(at, "qcow2 L2 table")?);
            let bitmap = if header.has_extended_l2() {
                Some(u64::from_be_bytes(
                    page.array(at.saturating_add(8), "qcow2 L2 table")?,
                ))
            } else {
                None
            };
            let within = offset.max(guest).saturating_sub(guest);
            let next = self.cluster_run(entry::decode(header, word, bitmap, guest)?, within);
            match join(run, next) {
                Some(joined) => run = Some(joined),
                None => break,
            }
            let covers = within.saturating_add(next.length);
            if run.is_some_and(|run| run.length >= limit) || covers < header.cluster_bytes() {
                break;
            }
            at = at.saturating_add(entry_bytes);
            guest = guest.saturating_add(header.cluster_bytes());
        }
        let run = run.unwrap_or(Run {
            length: 0,
            place: Place::Unallocated,
        });
        Ok(Run {
            length: run.length.min(limit),
            place: run.place,
        })
    }

    /// The run of one kind that begins `within` bytes into a cluster.
    fn cluster_run(&self, cluster: Cluster, within: u64) -> Run {
        let cluster_bytes = self.header.cluster_bytes();
        let rest = cluster_bytes.saturating_sub(within);
        match cluster {
            Cluster::Unallocated => Run {
                length: rest,
                place: Place::Unallocated,
            },
            Cluster::Zero { .. } => Run {
                length: rest,
                place: Place::Zero,
            },
            Cluster::Data { host, .. } => Run {
                length: rest,
                place: Place::Data {
                    host: host.saturating_add(within),
                },
            },
            Cluster::Compressed { offset, length } => Run {
                length: rest,
                place: Place::Compressed { offset, length },
            },
            Cluster::Split {
                host,
                allocated,
                zero,
            } => {
                let size = (cluster_bytes / SUBCLUSTERS).max(1);
                let first = within.checked_div(size).unwrap_or(0);
                let kind = |number: u64| {
                    let bit = 1u32
                        .checked_shl(u32::try_from(number).unwrap_or(32))
                        .unwrap_or(0);
                    (allocated & bit != 0, zero & bit != 0)
                };
                let mut end = first.saturating_add(1);
                while end < SUBCLUSTERS && kind(end) == kind(first) {
                    end = end.saturating_add(1);
                }
                let length = end.saturating_mul(size).saturating_sub(within);
                let place = match kind(first) {
                    (true, _) => Place::Data {
                        host: host.saturating_add(within),
                    },
                    (false, true) => Place::Zero,
                    (false, false) => Place::Unallocated,
                };
                Run { length, place }
            }
        }
    }

    fn read_data(&self, host: u64, guest: u64, buffer: &mut [u8]) -> Result<()> {
        let length = self.data.size_bytes();
        let end = host.saturating_add(bytes(buffer.len()));
        // Only the cluster that the file ends in may be short.
        let last_cluster = end.saturating_sub(1) & !self.header.cluster_mask();
        if last_cluster >= length {
            return Err(Error::corrupt(format!(
                "qcow2 cluster of guest offset {guest:#x}: host offset {last_cluster:#x} is outside the file of {length} bytes"
            )));
        }
        Ok(block::read_padded(&*self.data, host, buffer)?)
    }

    fn read_compressed(
        &self,
        (offset, length): (u64, u64),
        guest: u64,
        buffer: &mut [u8],
    ) -> Result<()> {
        let cluster_start = guest & !self.header.cluster_mask();
        let kept = {
            let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
            kept.iter()
                .find(|(at, _)| *at == cluster_start)
                .map(|(_, cluster)| Arc::clone(cluster))
        };
        let cluster = match kept {
            Some(cluster) => cluster,
            None => {
                let cluster: Arc<[u8]> =
                    load_compressed(&self.header, &*self.file, (offset, length), cluster_start)?
                        .into();
                let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
                kept.truncate(KEPT_CLUSTERS.saturating_sub(1));
                kept.push_front((cluster_start, Arc::clone(&cluster)));
                cluster
            }
        };
        let from = index(guest.saturating_sub(cluster_start));
        let source = cluster
            .get(from..from.saturating_add(buffer.len()))
            .ok_or_else(|| {
                Error::corrupt(format!(
                    "qcow2 compressed cluster of guest offset {guest:#x} is short"
                ))
            })?;
        buffer.copy_from_slice(source);
        Ok(())
    }

    fn read_run(&self, run: Run, guest: u64, buffer: &mut [u8]) -> Result<()> {
        match run.place {
            Place::Zero => buffer.fill(0),
            Place::Data { host } => self.read_data(host, guest, buffer)?,
            Place::Compressed { offset, length } => {
                self.read_compressed((offset, length), guest, buffer)?;
            }
            Place::Unallocated => match (&self.parent, &self.header.backing) {
                (Some(parent), _) => block::read_padded(parent, guest, buffer)?,
                (None, None) => buffer.fill(0),
                (None, Some(backing)) => {
                    return Err(Error::new(
                        ErrorKind::ParentNotFound,
                        format!(
                            "qcow2 guest offset {guest:#x} lies in the parent {}",
                            backing.path
                        ),
                    ));
                }
            },
        }
        Ok(())
    }

    fn kind_of(&self, run: Run, offset: u64) -> Result<Extent> {
        let extent = |kind| Extent {
            offset,
            length_bytes: run.length,
            kind,
        };
        Ok(match run.place {
            Place::Data { .. } | Place::Compressed { .. } => extent(ExtentKind::Data),
            Place::Zero => extent(ExtentKind::Zero),
            Place::Unallocated => match (&self.parent, &self.header.backing) {
                (Some(parent), _) if offset < parent.size_bytes() => {
                    parent.extent_at(offset, run.length)?
                }
                (None, Some(_)) => extent(ExtentKind::InParent),
                _ => extent(ExtentKind::Unallocated),
            },
        })
    }
}

/// One run longer by its neighbour, if both are of one kind and, for data, contiguous. Compressed clusters stand alone.
fn join(run: Option<Run>, next: Run) -> Option<Run> {
    let Some(run) = run else { return Some(next) };
    let fits = match (run.place, next.place) {
        (Place::Data { host }, Place::Data { host: next_host }) => {
            host.checked_add(run.length) == Some(next_host)
        }
        (Place::Compressed { .. }, _) => false,
        (one, other) => one == other,
    };
    fits.then(|| Run {
        length: run.length.saturating_add(next.length),
        place: run.place,
    })
}

/// Reads and decompresses one cluster.
pub(super) fn load_compressed(
    header: &Qcow2Header,
    file: &dyn ReadAt,
    (offset, length): (u64, u64),
    guest: u64,
) -> Result<Vec<u8>> {
    let available = file.size_bytes().saturating_sub(offset).min(length);
    if available == 0 {
        return Err(Error::corrupt(format!(
            "qcow2 compressed cluster of guest offset {guest:#x}: host offset {offset:#x} is outside the file"
        )));
    }
    // At most twice a cluster: the field for the length has no more bits.
    let mut input = vec![0u8; index(available)];
    file.read_at(offset, &mut input)?;
    let mut output = vec![0u8; index(header.cluster_bytes())];
    codec::decompress(header.compression, &input, &mut output, guest)?;
    Ok(output)
}

/// What a header says about its image.
pub(super) fn info_of(header: &Qcow2Header) -> ImageInfo {
    ImageInfo {
        format: Format::Qcow2,
        subformat: if header.backing.is_some() {
            Subformat::Differencing
        } else {
            Subformat::Dynamic
        },
        size_bytes: header.size_bytes,
        logical_sector_bytes: 512,
        physical_sector_bytes: 512,
        allocation_unit_bytes: Some(header.cluster_bytes()),
        disk_id: None,
        parent_paths: header
            .backing
            .iter()
            .map(|backing| backing.path.clone())
            .collect(),
        has_pending_log: header.is_dirty(),
        creator: None,
    }
}

impl ReadAt for Qcow2Reader {
    fn size_bytes(&self) -> u64 {
        self.header.size_bytes
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> block::Result<()> {
        check_range(self.header.size_bytes, offset, bytes(buffer.len()))?;
        let mut at = offset;
        let mut rest = buffer;
        while !rest.is_empty() {
            let run = self.run_at(at, bytes(rest.len()))?;
            if run.length == 0 {
                return Err(Error::corrupt(format!("qcow2: no run at {at:#x}")).into());
            }
            let (head, tail) = rest.split_at_mut(index(run.length).min(rest.len()));
            self.read_run(run, at, head)?;
            at = at.saturating_add(run.length);
            rest = tail;
        }
        Ok(())
    }

    fn extent_at(&self, offset: u64, limit_bytes: u64) -> block::Result<Extent> {
        let left = self.header.size_bytes.saturating_sub(offset);
        if left == 0 || limit_bytes == 0 {
            return Err(block::Error::new(
                block::ErrorKind::OutOfRange,
                format!(
                    "qcow2: extent at {offset} of a disk of {}",
                    self.header.size_bytes
                ),
            ));
        }
        let limit = left.min(limit_bytes);
        let first = self.kind_of(self.run_at(offset, limit)?, offset)?;
        let mut extent = first;
        for _ in 0..MAX_MERGED_RUNS {
            let at = extent.end();
            let more = limit.saturating_sub(extent.length_bytes);
            if more == 0 {
                break;
            }
            let next = self.kind_of(self.run_at(at, more)?, at)?;
            if next.kind != extent.kind || next.length_bytes == 0 {
                break;
            }
            extent.length_bytes = extent.length_bytes.saturating_add(next.length_bytes);
        }
        Ok(extent)
    }
}

/// Refuses a range that reaches out of the disk.
pub(super) fn check_range(size_bytes: u64, offset: u64, length: u64) -> block::Result<()> {
    match offset.checked_add(length) {
        Some(end) if end <= size_bytes => Ok(()),
        _ => Err(block::Error::new(
            block::ErrorKind::OutOfRange,
            format!("qcow2: {length} bytes at {offset} of a disk of {size_bytes}"),
        )),
    }
}
