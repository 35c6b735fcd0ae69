//! The bytes of an attribute: in its record, in runs, or compressed in units of 16 clusters.
//!
//! ```text
//!  0 ──── data ──── hole ──── data ──── initialized ──── zeros, whatever lies there ──── size
//!
//!  compressed: every unit is all allocated (bytes as they are), all hole (zeros),
//!              or some clusters of LZNT1 and then a hole
//! ```
//!
//! **Invariants.** Memory follows a unit, never the stream, except in [`AttributeReader::read_all`], which has a limit. What lies
//! behind the initialized size is never read from the volume: somebody else's deleted bytes lie there.

use std::sync::{Arc, Mutex, PoisonError};

use block::{Extent, ExtentKind};

use super::arithmetic::{add, length, multiply, shorter};
use super::device::Device;
use super::lznt1;
use super::record::{Attribute, AttributeBody};
use super::runs::RunList;
use crate::{Error, ErrorKind, Result, field};

const MAX_UNIT_BYTES: u64 = 4 << 20;

/// Sizes that every stream of a volume needs.
#[derive(Debug, Clone, Copy)]
pub(super) struct ClusterGeometry {
    pub(super) cluster_bytes: u64,
    pub(super) total_clusters: u64,
}

/// A stream opened for reading.
pub(super) struct AttributeReader {
    device: Arc<Device>,
    geometry: ClusterGeometry,
    content: Content,
    size_bytes: u64,
}

enum Content {
    Resident(Arc<[u8]>),
    Plain {
        runs: RunList,
        initialized_bytes: u64,
    },
    Compressed {
        runs: RunList,
        initialized_bytes: u64,
        unit_clusters: u64,
        /// The unit read last.
        unit: Mutex<Option<(u64, Arc<[u8]>)>>,
    },
}

/// Where a piece of a stream is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Volume(u64),
    Hole,
    Zero,
}

impl AttributeReader {
    /// Opens a stream of which these are all parts, in ascending order.
    pub(super) fn open(
        device: &Arc<Device>,
        geometry: ClusterGeometry,
        parts: &[&Attribute],
    ) -> Result<Self> {
        let first = *parts
            .first()
            .ok_or_else(|| Error::new(ErrorKind::NotFound, "no such stream"))?;
        let reader = |content, size_bytes| Self {
            device: Arc::clone(device),
            geometry,
            content,
            size_bytes,
        };
        let head = match &first.body {
            AttributeBody::Resident(value) => {
                let size = field::bytes(value.len());
                return Ok(reader(Content::Resident(Arc::clone(value)), size));
            }
            AttributeBody::Runs(head) => head,
        };
        let mut runs = RunList::default();
        for part in parts {
            let AttributeBody::Runs(body) = &part.body else {
                return Err(Error::corrupt("a stream partly in its record"));
            };
            runs.append(body.lowest, &body.pairs, geometry.total_clusters)?;
        }
        if head.size_bytes > i64::MAX.unsigned_abs() {
            return Err(Error::corrupt(format!(
                "a stream of {} bytes",
                head.size_bytes
            )));
        }
        let initialized_bytes = head.initialized_bytes.min(head.size_bytes);
        let content = if first.is_compressed() && head.unit_shift != 0 {
            let unit_clusters = 1_u64
                .checked_shl(u32::from(head.unit_shift))
                .filter(|clusters| {
                    clusters
                        .checked_mul(geometry.cluster_bytes)
                        .is_some_and(|bytes| bytes <= MAX_UNIT_BYTES)
                })
                .ok_or_else(|| {
                    Error::corrupt(format!(
                        "compression units of 2^{} clusters",
                        head.unit_shift
                    ))
                })?;
            Content::Compressed {
                runs,
                initialized_bytes,
                unit_clusters,
                unit: Mutex::new(None),
            }
        } else {
            Content::Plain {
                runs,
                initialized_bytes,
            }
        };
        Ok(reader(content, head.size_bytes))
    }

    pub(super) fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// Its runs, where its bytes lie in them as they are.
    pub(super) fn plain_runs(&self) -> Result<Option<&RunList>> {
        match &self.content {
            Content::Resident(_) => Ok(None),
            Content::Plain { runs, .. } => Ok(Some(runs)),
            Content::Compressed { .. } => Err(Error::unsupported(
                "a compressed file has no bytes that lie anywhere as they are",
            )),
        }
    }

    /// Fills the buffer; everything asked for must lie inside the stream.
    pub(super) fn read(&self, mut offset: u64, mut buffer: &mut [u8]) -> Result<()> {
        let end = add(offset, field::bytes(buffer.len()))?;
        if end > self.size_bytes {
            return Err(Error::new(
                ErrorKind::Invalid,
                format!("bytes {offset}..{end} of a stream of {}", self.size_bytes),
            ));
        }
        if let Content::Resident(value) = &self.content {
            buffer.copy_from_slice(field::slice(value, length(offset)?, buffer.len())?);
            return Ok(());
        }
        while !buffer.is_empty() {
            let (place, bytes) = self.place(offset, field::bytes(buffer.len()))?;
            let (head, rest) = buffer.split_at_mut(shorter(buffer.len(), bytes));
            match place {
                Some(Place::Volume(at)) => self.device.read(at, head)?,
                Some(Place::Hole | Place::Zero) => head.fill(0),
                None => self.read_compressed(offset, head)?,
            }
            offset = add(offset, field::bytes(head.len()))?;
            buffer = rest;
        }
        Ok(())
    }

    /// The whole stream, when it is no longer than `limit_bytes`.
    pub(super) fn read_all(&self, limit_bytes: u64) -> Result<Vec<u8>> {
        if self.size_bytes > limit_bytes {
            return Err(Error::new(
                ErrorKind::Limit,
                format!(
                    "{} bytes where at most {limit_bytes} can be",
                    self.size_bytes
                ),
            ));
        }
        let mut bytes = vec![0; length(self.size_bytes)?];
        self.read(0, &mut bytes)?;
        Ok(bytes)
    }

    /// What lies at an offset, without reading it.
    pub(super) fn extent(&self, offset: u64, limit_bytes: u64) -> Result<Extent> {
        let left = self.size_bytes.saturating_sub(offset).min(limit_bytes);
        if left == 0 {
            return Err(Error::new(
                ErrorKind::Invalid,
                format!("an extent at {offset} of a stream of {}", self.size_bytes),
            ));
        }
        let (kind, bytes) = match &self.content {
            Content::Resident(_) => (ExtentKind::Data, left),
            Content::Plain { .. } | Content::Compressed { .. } => {
                let (place, bytes) = self.place(offset, left)?;
                let kind = match place {
                    None | Some(Place::Volume(_)) => ExtentKind::Data,
                    Some(Place::Hole) => ExtentKind::Unallocated,
                    Some(Place::Zero) => ExtentKind::Zero,
                };
                (kind, bytes)
            }
        };
        Ok(Extent {
            offset,
            length_bytes: bytes.min(left),
            kind,
        })
    }

    /// Where the bytes from an offset on are, and for how many that holds; nowhere when they must be decompressed.
    fn place(&self, offset: u64, limit_bytes: u64) -> Result<(Option<Place>, u64)> {
        let (runs, initialized, unit_clusters) = match &self.content {
            Content::Resident(_) => return Ok((Some(Place::Zero), 0)),
            Content::Plain {
                runs,
                initialized_bytes,
            } => (runs, *initialized_bytes, None),
            Content::Compressed {
                runs,
                initialized_bytes,
                unit_clusters,
                ..
            } => (runs, *initialized_bytes, Some(*unit_clusters)),
        };
        let Some(limit) = initialized.checked_sub(offset).filter(|left| *left > 0) else {
            return Ok((Some(Place::Zero), limit_bytes));
        };
        let limit = limit.min(limit_bytes);
        let cluster_bytes = self.geometry.cluster_bytes;
        let cluster = offset.checked_div(cluster_bytes).unwrap_or(0);
        let inside = offset.checked_rem(cluster_bytes).unwrap_or(0);
        if let Some(unit_clusters) = unit_clusters {
            let unit = cluster.checked_div(unit_clusters).unwrap_or(0);
            let unit_bytes = multiply(unit_clusters, cluster_bytes)?;
            let left = unit_bytes.saturating_sub(offset.checked_rem(unit_bytes).unwrap_or(0));
            match unit_filling(runs, multiply(unit, unit_clusters)?, unit_clusters)? {
                0 => return Ok((Some(Place::Hole), left.min(limit))),
                filling if filling < unit_clusters => return Ok((None, left.min(limit))),
                _ => {}
            }
            // A whole unit lies there as it is: read it like any run, but no further, since the next may be compressed.
            return run_place(runs, cluster, inside, cluster_bytes)
                .map(|(place, bytes)| (Some(place), bytes.min(left).min(limit)));
        }
        run_place(runs, cluster, inside, cluster_bytes)
            .map(|(place, bytes)| (Some(place), bytes.min(limit)))
    }

    /// Bytes of one compressed unit.
    fn read_compressed(&self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        let Content::Compressed {
            runs,
            unit_clusters,
            unit,
            ..
        } = &self.content
        else {
            return Err(Error::corrupt("a stream that is not compressed"));
        };
        let unit_bytes = multiply(*unit_clusters, self.geometry.cluster_bytes)?;
        let number = offset.checked_div(unit_bytes).unwrap_or(0);
        let inside = length(offset.checked_rem(unit_bytes).unwrap_or(0))?;
        let lock = || unit.lock().unwrap_or_else(PoisonError::into_inner);
        let cached = lock()
            .as_ref()
            .filter(|(cached, _)| *cached == number)
            .map(|(_, bytes)| Arc::clone(bytes));
        let bytes = if let Some(bytes) = cached {
            bytes
        } else {
            let bytes: Arc<[u8]> = self
                .unpack(runs, multiply(number, *unit_clusters)?, *unit_clusters)
                .map_err(|error| error.within(format!("compression unit {number}")))?
                .into();
            *lock() = Some((number, Arc::clone(&bytes)));
            bytes
        };
        buffer.copy_from_slice(field::slice(&bytes, inside, buffer.len())?);
        Ok(())
    }

    fn unpack(&self, runs: &RunList, first: u64, clusters: u64) -> Result<Vec<u8>> {
        let filling = unit_filling(runs, first, clusters)?;
        let mut packed = vec![0; length(multiply(filling, self.geometry.cluster_bytes)?)?];
        let mut cluster = first;
        let mut rest = packed.as_mut_slice();
        while !rest.is_empty() {
            let (place, bytes) = run_place(runs, cluster, 0, self.geometry.cluster_bytes)?;
            let (head, behind) = rest.split_at_mut(shorter(rest.len(), bytes));
            let Place::Volume(at) = place else {
                return Err(Error::corrupt("a hole among the clusters of a unit"));
            };
            self.device.read(at, head)?;
            let read = field::bytes(head.len())
                .checked_div(self.geometry.cluster_bytes)
                .unwrap_or(0);
            cluster = add(cluster, read)?;
            rest = behind;
        }
        lznt1::decompress(
            &packed,
            length(multiply(clusters, self.geometry.cluster_bytes)?)?,
        )
    }
}

fn run_place(
    runs: &RunList,
    cluster: u64,
    inside: u64,
    cluster_bytes: u64,
) -> Result<(Place, u64)> {
    let run = runs
        .at(cluster)
        .ok_or_else(|| Error::corrupt(format!("no run holds cluster {cluster} of the stream")))?;
    let bytes = multiply(run.clusters, cluster_bytes)?.saturating_sub(inside);
    let place = match run.place {
        Some(place) => Place::Volume(add(multiply(place, cluster_bytes)?, inside)?),
        None => Place::Hole,
    };
    Ok((place, bytes))
}

/// How many clusters of a compression unit are allocated; they come first.
fn unit_filling(runs: &RunList, first: u64, clusters: u64) -> Result<u64> {
    let end = add(first, clusters)?;
    let mut cluster = first;
    while cluster < end {
        // What no run tells of at the end of a stream is a hole.
        let Some(run) = runs.at(cluster) else { break };
        if run.place.is_none() {
            break;
        }
        cluster = add(cluster, run.clusters)?.min(end);
    }
    Ok(cluster.saturating_sub(first))
}
