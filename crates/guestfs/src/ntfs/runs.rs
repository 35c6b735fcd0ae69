//! Where the clusters of a stream lie: mapping pairs, decoded.
//!
//! ```text
//!  0x21 0x18 0x34 0x56   header: 1 byte of length, 2 bytes of distance │ 0x18 clusters │ at the last place + 0x5634
//!  0x01 0x40             no distance: a hole of 0x40 clusters
//!  0x00                  the end
//! ```
//!
//! **Invariants.** Runs ascend without gaps, every place lies inside the volume, all of them together take no more clusters than
//! it has, and there are at most [`MAX_RUNS`].

use super::arithmetic::add;
use crate::{Error, ErrorKind, Result, field};

/// More than Windows itself can make of one file (its attribute list ends at 256 KiB).
const MAX_RUNS: usize = 4 << 20;

/// Clusters beside each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Run {
    /// Its first cluster in the stream.
    pub(super) first: u64,
    pub(super) clusters: u64,
    /// Its first cluster on the volume; `None` for a hole.
    pub(super) place: Option<u64>,
}

/// The runs of a stream.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct RunList {
    runs: Vec<Run>,
    end: u64,
    allocated: u64,
}

impl RunList {
    /// A list of which the first part begins at another cluster than 0: a piece of a stream for itself.
    pub(super) fn from_part(lowest: u64, pairs: &[u8], total_clusters: u64) -> Result<Self> {
        let mut list = Self {
            end: lowest,
            ..Self::default()
        };
        list.append(lowest, pairs, total_clusters)?;
        Ok(list)
    }

    /// The cluster of the stream behind the last one.
    pub(super) fn end(&self) -> u64 {
        self.end
    }

    pub(super) fn runs(&self) -> &[Run] {
        &self.runs
    }

    /// What lies from a cluster of the stream on, as far as it is one run; `None` behind the end.
    pub(super) fn at(&self, cluster: u64) -> Option<Run> {
        let behind = self.runs.partition_point(|run| run.first <= cluster);
        let run = self.runs.get(behind.checked_sub(1)?)?;
        let inside = cluster.checked_sub(run.first)?;
        let clusters = run.clusters.checked_sub(inside).filter(|left| *left > 0)?;
        Some(Run {
            first: cluster,
            clusters,
            place: match run.place {
                Some(place) => Some(place.checked_add(inside)?),
                None => None,
            },
        })
    }

    /// Puts the mapping pairs of one attribute record behind what is there.
    pub(super) fn append(&mut self, lowest: u64, pairs: &[u8], total_clusters: u64) -> Result<()> {
        if lowest != self.end {
            return Err(Error::corrupt(format!(
                "runs go on at cluster {lowest} where {} ended",
                self.end
            )));
        }
        let mut rest = pairs;
        let mut place = 0_i64;
        while let Some((&header, behind)) = rest.split_first() {
            if header == 0 {
                break;
            }
            let (clusters, behind) = number(behind, header & 0x0F, Sign::Positive)?;
            let (distance, behind) = number(behind, header >> 4, Sign::Either)?;
            rest = behind;
            let clusters = u64::try_from(clusters)
                .ok()
                .filter(|clusters| *clusters > 0)
                .ok_or_else(|| Error::corrupt("a run of no clusters"))?;
            let mut at = None;
            if header >> 4 != 0 {
                place = place
                    .checked_add(distance)
                    .ok_or_else(|| Error::corrupt("a run at no place that can be counted"))?;
                // Windows NT 4 wrote -1 for a hole.
                if place != -1 {
                    at = Some(self.place(place, clusters, total_clusters)?);
                }
            }
            self.push(clusters, at)?;
        }
        Ok(())
    }

    fn place(&mut self, place: i64, clusters: u64, total_clusters: u64) -> Result<u64> {
        let first = u64::try_from(place)
            .map_err(|_| Error::corrupt(format!("a run at cluster {place}")))?;
        self.allocated = add(self.allocated, clusters)?;
        if add(first, clusters)? > total_clusters || self.allocated > total_clusters {
            return Err(Error::corrupt(format!(
                "a run of {clusters} clusters at {first} of {total_clusters}"
            )));
        }
        Ok(first)
    }

    fn push(&mut self, clusters: u64, place: Option<u64>) -> Result<()> {
        if self.runs.len() >= MAX_RUNS {
            return Err(Error::new(
                ErrorKind::Limit,
                format!("more than {MAX_RUNS} runs"),
            ));
        }
        let first = self.end;
        self.end = add(first, clusters)?;
        self.runs.push(Run {
            first,
            clusters,
            place,
        });
        Ok(())
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Sign {
    Positive,
    Either,
}

/// A little-endian number of `length` bytes, and what lies behind it.
fn number(bytes: &[u8], length: u8, sign: Sign) -> Result<(i64, &[u8])> {
    let length = usize::from(length);
    if length > 8 {
        return Err(Error::corrupt(format!(
            "a number of {length} bytes in a run"
        )));
    }
    let digits = field::slice(bytes, 0, length)?;
    let is_negative = digits.last().is_some_and(|byte| byte & 0x80 != 0);
    let filling = if sign == Sign::Either && is_negative {
        0xFF
    } else {
        0
    };
    let mut all = [filling; 8];
    for (to, from) in all.iter_mut().zip(digits) {
        *to = *from;
    }
    let rest = bytes.get(length..).unwrap_or_default();
    Ok((i64::from_le_bytes(all), rest))
}
