//! Reading a VMDK: the extents of its descriptor one behind the other, its parent where nothing is allocated.
//!
//! **Invariants.** Extents are opened once, when the image is; every name was judged before the opener saw it.
//! Memory: one bounded page cache and eight inflated grains per sparse extent.

use std::sync::Arc;

use block::{Extent, ReadAt};

use super::descriptor::{
    self, ContentId, ExtentKind, ExtentLine, ExtentPaths, MAX_DESCRIPTOR_BYTES, VmdkDescriptor,
};
use super::sparse::{Place, Run, SparseExtent, SparseMagic};
use crate::field::{bytes, index};
use crate::{Error, ErrorKind, Format, ImageInfo, Result, Subformat};

/// Runs that one `extent_at` merges at most: its cost stays bounded on a fragmented image.
const MAX_MERGED_RUNS: usize = 256;

/// Opens the files that a descriptor names.
///
/// An implementer **may rely on** the name having passed [`ExtentPaths`]; it **must** resolve it against the descriptor's
/// directory, and should not follow a symbolic link out of it.
pub trait ExtentOpener {
    /// Opens one extent's file for reading.
    fn open_extent(&self, name: &str) -> Result<Arc<dyn ReadAt>>;
}

impl<F: Fn(&str) -> Result<Arc<dyn ReadAt>>> ExtentOpener for F {
    fn open_extent(&self, name: &str) -> Result<Arc<dyn ReadAt>> {
        self(name)
    }
}

/// The opener for images that stand in one file: refuses every name.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoExtents;

impl ExtentOpener for NoExtents {
    fn open_extent(&self, name: &str) -> Result<Arc<dyn ReadAt>> {
        Err(Error::new(
            ErrorKind::ParentNotFound,
            format!("vmdk: extent {name:?} is in another file, and none may be opened"),
        ))
    }
}

/// What an image leans on besides its own file.
#[derive(Clone, Default)]
pub struct VmdkSources {
    /// The parent disk's content, for a delta link. Without it, ranges that lie in the parent report `InParent`.
    pub parent: Option<Arc<dyn ReadAt>>,
    /// Which extent names are followed.
    pub paths: ExtentPaths,
}

enum Source {
    Flat { file: Arc<dyn ReadAt>, at: u64 },
    Zero,
    Sparse(Box<SparseExtent>),
}

struct Placed {
    start: u64,
    end: u64,
    source: Source,
}

/// A VMDK image, opened for reading.
pub struct VmdkReader {
    descriptor: Option<VmdkDescriptor>,
    extents: Vec<Placed>,
    size_bytes: u64,
    parent: Option<Arc<dyn ReadAt>>,
}

impl VmdkReader {
    /// Opens an image from its descriptor file or from the one file that it stands in.
    ///
    /// # Errors
    /// `Corrupt` for what is no VMDK or contradicts itself, `Incomplete` for a file cut short, `Unsupported` for layouts
    /// not read here and for names outside the directory, `Invalid` for a parent given to an image that has none.
    pub fn open(
        file: Arc<dyn ReadAt>,
        opener: &dyn ExtentOpener,
        parent: Option<Arc<dyn ReadAt>>,
    ) -> Result<Self> {
        Self::open_with(
            file,
            opener,
            VmdkSources {
                parent,
                paths: ExtentPaths::Inside,
            },
        )
    }

    /// Opens an image with a choice of which names are followed.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn open_with(
        file: Arc<dyn ReadAt>,
        opener: &dyn ExtentOpener,
        sources: VmdkSources,
    ) -> Result<Self> {
        let mut first = [0u8; 512];
        block::read_padded(&file, 0, &mut first)?;
        let image = if SparseMagic::of(&first).is_some() {
            Self::open_single(file, sources.parent)?
        } else {
            let text = read_text(&*file, 0, file.size_bytes())?;
            let descriptor = VmdkDescriptor::parse(&text)?;
            Self::open_extents(descriptor, opener, sources)?
        };
        if image.parent.is_some() && !image.has_parent() {
            return Err(Error::new(
                ErrorKind::Invalid,
                "vmdk: a parent was given for an image without one",
            ));
        }
        Ok(image)
    }

    /// Reads only the descriptor of an image: what to look for before opening it. `None` for a sparse file without one.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn read_descriptor(file: &Arc<dyn ReadAt>) -> Result<Option<VmdkDescriptor>> {
        let mut first = [0u8; 512];
        block::read_padded(file, 0, &mut first)?;
        if SparseMagic::of(&first).is_some() {
            return embedded(&**file, SparseExtent::open(Arc::clone(file))?.descriptor);
        }
        VmdkDescriptor::parse(&read_text(&**file, 0, file.size_bytes())?).map(Some)
    }

    fn open_single(file: Arc<dyn ReadAt>, parent: Option<Arc<dyn ReadAt>>) -> Result<Self> {
        let sparse = SparseExtent::open(Arc::clone(&file))?;
        let descriptor = embedded(&*file, sparse.descriptor)?;
        let size_bytes = sparse.capacity_bytes;
        let extents = vec![Placed {
            start: 0,
            end: size_bytes,
            source: Source::Sparse(Box::new(sparse)),
        }];
        Ok(Self {
            descriptor,
            extents,
            size_bytes,
            parent,
        })
    }

    fn open_extents(
        descriptor: VmdkDescriptor,
        opener: &dyn ExtentOpener,
        sources: VmdkSources,
    ) -> Result<Self> {
        if descriptor.extents.is_empty() {
            return Err(Error::corrupt("vmdk descriptor: names no extent"));
        }
        let mut extents = Vec::with_capacity(descriptor.extents.len());
        let mut start = 0u64;
        for line in &descriptor.extents {
            let end = start
                .checked_add(line.size_bytes)
                .filter(|end| *end <= i64::MAX.unsigned_abs())
                .ok_or_else(|| Error::corrupt("vmdk descriptor: extents longer than any disk"))?;
            let source = open_source(line, opener, sources.paths)?;
            extents.push(Placed { start, end, source });
            start = end;
        }
        Ok(Self {
            descriptor: Some(descriptor),
            extents,
            size_bytes: start,
            parent: sources.parent,
        })
    }

    /// Reads through this parent from now on; an image that is no delta link has no use for one and ignores it.
    #[must_use]
    pub fn with_parent(mut self, parent: Arc<dyn ReadAt>) -> Self {
        if self.has_parent() {
            self.parent = Some(parent);
        }
        self
    }

    /// The descriptor; `None` for a lone sparse extent that has none.
    pub fn descriptor(&self) -> Option<&VmdkDescriptor> {
        self.descriptor.as_ref()
    }

    /// This image's content id.
    pub fn cid(&self) -> Option<ContentId> {
        self.descriptor
            .as_ref()
            .and_then(|descriptor| descriptor.cid)
    }

    /// The content id that the parent had when this delta link was made.
    pub fn parent_cid(&self) -> Option<ContentId> {
        self.descriptor
            .as_ref()
            .and_then(|descriptor| descriptor.parent_cid)
    }

    /// Whether this is a delta link.
    pub fn has_parent(&self) -> bool {
        self.parent_cid().is_some()
    }

    /// What the image says about itself.
    pub fn info(&self) -> ImageInfo {
        let sparse = self.extents.iter().find_map(|placed| match &placed.source {
            Source::Sparse(sparse) => Some(sparse),
            _ => None,
        });
        let subformat = match sparse {
            _ if self.has_parent() => Subformat::Differencing,
            None => Subformat::Fixed,
            Some(sparse) if sparse.is_compressed => Subformat::StreamOptimized,
            Some(_) => Subformat::Dynamic,
        };
        let hint = self
            .descriptor
            .as_ref()
            .and_then(|descriptor| descriptor.parent_hint.clone());
        ImageInfo {
            format: Format::Vmdk,
            subformat,
            size_bytes: self.size_bytes,
            logical_sector_bytes: 512,
            physical_sector_bytes: 512,
            allocation_unit_bytes: sparse.map(|sparse| sparse.grain_bytes),
            disk_id: None,
            parent_paths: hint.into_iter().collect(),
            has_pending_log: sparse.is_some_and(|sparse| sparse.is_unclean),
            creator: None,
        }
    }

    fn placed_at(&self, offset: u64) -> Result<&Placed> {
        let number = self.extents.partition_point(|placed| placed.end <= offset);
        self.extents
            .get(number)
            .ok_or_else(|| Error::corrupt(format!("vmdk: no extent holds {offset:#x}")))
    }

    /// The run from `offset` on, and the extent that it lies in.
    fn run_at(&self, offset: u64, limit: u64) -> Result<(&Placed, Run)> {
        let placed = self.placed_at(offset)?;
        let limit = limit.min(placed.end.saturating_sub(offset));
        let inner = offset.saturating_sub(placed.start);
        let run = match &placed.source {
            Source::Flat { at, .. } => Run {
                length: limit,
                place: Place::Data {
                    host: at.saturating_add(inner),
                },
            },
            Source::Zero => Run {
                length: limit,
                place: Place::Zero,
            },
            Source::Sparse(sparse) => sparse.run_at(inner, limit)?,
        };
        if run.length == 0 {
            return Err(Error::corrupt(format!("vmdk: no run at {offset:#x}")));
        }
        Ok((placed, run))
    }

    fn read_run(&self, placed: &Placed, run: Run, offset: u64, buffer: &mut [u8]) -> Result<()> {
        let inner = offset.saturating_sub(placed.start);
        match (run.place, &placed.source) {
            (Place::Data { host }, Source::Flat { file, .. }) => file.read_at(host, buffer)?,
            (Place::Data { host }, Source::Sparse(sparse)) => {
                sparse.read_data(host, inner, buffer)?;
            }
            (Place::Compressed { host, grain }, Source::Sparse(sparse)) => {
                sparse.read_compressed((host, grain), inner, buffer)?;
            }
            (Place::Unallocated, _) => match &self.parent {
                Some(parent) => block::read_padded(parent, offset, buffer)?,
                None if self.has_parent() => {
                    return Err(Error::new(
                        ErrorKind::ParentNotFound,
                        format!("vmdk offset {offset:#x} lies in the parent, which was not given"),
                    ));
                }
                None => buffer.fill(0),
            },
            _ => buffer.fill(0),
        }
        Ok(())
    }

    fn extent_of(&self, offset: u64, limit: u64) -> Result<Extent> {
        let (placed, run) = self.run_at(offset, limit)?;
        let inner = offset.saturating_sub(placed.start);
        let extent = |kind| Extent {
            offset,
            length_bytes: run.length,
            kind,
        };
        Ok(match (run.place, &placed.source) {
            (Place::Data { .. }, Source::Flat { file, at }) => {
                let found = file.extent_at(at.saturating_add(inner), run.length)?;
                Extent {
                    offset,
                    length_bytes: found.length_bytes.min(run.length),
                    kind: found.kind,
                }
            }
            (Place::Data { .. } | Place::Compressed { .. }, _) => extent(block::ExtentKind::Data),
            (Place::Zero, _) => extent(block::ExtentKind::Zero),
            (Place::Unallocated, _) => match &self.parent {
                Some(parent) if offset < parent.size_bytes() => {
                    parent.extent_at(offset, run.length)?
                }
                None if self.has_parent() => extent(block::ExtentKind::InParent),
                _ => extent(block::ExtentKind::Unallocated),
            },
        })
    }
}

fn open_source(line: &ExtentLine, opener: &dyn ExtentOpener, paths: ExtentPaths) -> Result<Source> {
    let Some(name) = &line.name else {
        return Ok(Source::Zero);
    };
    descriptor::judge_name(name, paths)?;
    let file = opener.open_extent(name)?;
    if line.kind == ExtentKind::Flat {
        let end = line.offset_bytes.checked_add(line.size_bytes);
        if end.is_none_or(|end| end > file.size_bytes()) {
            return Err(Error::new(
                ErrorKind::Incomplete,
                format!(
                    "vmdk flat extent {name:?}: the file has only {} bytes",
                    file.size_bytes()
                ),
            ));
        }
        return Ok(Source::Flat {
            file,
            at: line.offset_bytes,
        });
    }
    let sparse = SparseExtent::open(file)?;
    if sparse.capacity_bytes < line.size_bytes {
        return Err(Error::corrupt(format!(
            "vmdk sparse extent {name:?}: holds {} bytes, the descriptor says {}",
            sparse.capacity_bytes, line.size_bytes
        )));
    }
    Ok(Source::Sparse(Box::new(sparse)))
}

/// The descriptor inside a sparse file.
fn embedded(file: &dyn ReadAt, (at, length): (u64, u64)) -> Result<Option<VmdkDescriptor>> {
    if at == 0 || length == 0 {
        return Ok(None);
    }
    VmdkDescriptor::parse(&read_text(file, at, length)?).map(Some)
}

fn read_text(file: &dyn ReadAt, at: u64, length: u64) -> Result<Vec<u8>> {
    let present = file.size_bytes().saturating_sub(at);
    let mut text = vec![0u8; index(length.min(present).min(MAX_DESCRIPTOR_BYTES))];
    if !text.is_empty() {
        file.read_at(at, &mut text)?;
    }
    Ok(text)
}

impl ReadAt for VmdkReader {
    fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> block::Result<()> {
        let end = offset.checked_add(bytes(buffer.len()));
        if end.is_none_or(|end| end > self.size_bytes) {
            return Err(block::Error::new(
                block::ErrorKind::OutOfRange,
                format!(
                    "vmdk: {} bytes at {offset} of a disk of {}",
                    buffer.len(),
                    self.size_bytes
                ),
            ));
        }
        let mut at = offset;
        let mut rest = buffer;
        while !rest.is_empty() {
            let (placed, run) = self.run_at(at, bytes(rest.len()))?;
            let (head, tail) = rest.split_at_mut(index(run.length).min(rest.len()));
            self.read_run(placed, run, at, head)?;
            at = at.saturating_add(run.length);
            rest = tail;
        }
        Ok(())
    }

    fn extent_at(&self, offset: u64, limit_bytes: u64) -> block::Result<Extent> {
        let left = self.size_bytes.saturating_sub(offset);
        if left == 0 || limit_bytes == 0 {
            return Err(block::Error::new(
                block::ErrorKind::OutOfRange,
                format!("vmdk: extent at {offset} of a disk of {}", self.size_bytes),
            ));
        }
        let limit = left.min(limit_bytes);
        let mut extent = self.extent_of(offset, limit)?;
        for _ in 0..MAX_MERGED_RUNS {
            let more = limit.saturating_sub(extent.length_bytes);
            if more == 0 {
                break;
            }
            let next = self.extent_of(extent.end(), more)?;
            if next.kind != extent.kind || next.length_bytes == 0 {
                break;
            }
            extent.length_bytes = extent.length_bytes.saturating_add(next.length_bytes);
        }
        Ok(extent)
    }
}
