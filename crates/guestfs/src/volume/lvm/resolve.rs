//! From a group's text to the bytes of its volumes.
//!
//! Volumes stand on volumes: each is put together once and kept, one that stands on itself is refused, and so is a tower
//! higher than [`MAX_DEPTH`].

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

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::group::{Area, SNAPSHOT_BEING_MERGED, Segment, SegmentKind, VolumeGroup};
use super::label::{Label, PhysicalVolumeId};
use super::snapshot::Snapshot;
use super::thin::{ThinPool, ThinVolume};
use crate::volume::pieces::{Absent, Concat, Source, Window, Zeros, read_head};
use crate::volume::raid::{
    FarCopies, Member, Mirrored, Parity, ParityCount, ParityLayout, Redundant, Striped,
};
use crate::volume::{LogicalVolume, Obstacle, VolumeScheme};
use crate::{Error, Result, field};

/// LVM makes towers of five (thin on pool on cached data on raid on image).
const MAX_DEPTH: usize = 16;

/// A volume put together, and what of it is missing.
#[derive(Clone)]
struct Built {
    source: Source,
    missing: BTreeSet<String>,
    findings: Vec<String>,
}

struct Resolver<'a> {
    group: &'a VolumeGroup,
    present: &'a BTreeMap<PhysicalVolumeId, (Source, Label)>,
    built: BTreeMap<String, Built>,
    pools: BTreeMap<String, Arc<ThinPool>>,
    open: Vec<String>,
}

/// All visible volumes of a group.
pub(super) fn volumes(
    group: &VolumeGroup,
    present: &BTreeMap<PhysicalVolumeId, (Source, Label)>,
) -> Vec<LogicalVolume> {
    let mut resolver = Resolver {
        group,
        present,
        built: BTreeMap::new(),
        pools: BTreeMap::new(),
        open: Vec::new(),
    };
    // A snapshot's own volume is its store; which origin it belongs to stands in a hidden one.
    let mut snapshots: BTreeMap<&str, &str> = BTreeMap::new();
    for logical in group.logical.values() {
        for segment in &logical.segments {
            if let SegmentKind::Snapshot { origin, store } = &segment.kind {
                snapshots.insert(store, origin);
            }
        }
    }
    let merging = merging(group);
    let mut volumes = Vec::new();
    for (name, logical) in &group.logical {
        let origin = snapshots.get(name.as_str());
        let is_pool = logical
            .segments
            .iter()
            .any(|segment| matches!(segment.kind, SegmentKind::ThinPool { .. }));
        // A store of a snapshot is not called visible, but the snapshot is.
        if is_pool || (!logical.is_visible && origin.is_none()) {
            continue;
        }
        let outcome = match origin {
            Some(origin) => resolver.snapshot(origin, name),
            None => resolver.logical(name),
        };
        let (reader, missing, mut findings) = match outcome {
            Ok(built) => (Ok(built.source), built.missing, built.findings),
            Err(error) => (Err(Obstacle::from(error)), BTreeSet::new(), Vec::new()),
        };
        findings.extend(merging.clone());
        volumes.push(LogicalVolume {
            manager: VolumeScheme::Lvm,
            group: group.name.clone(),
            name: name.clone(),
            id: Some(logical.id.clone()),
            layout: match origin {
                Some(_) => "snapshot".to_owned(),
                None => layout(logical.segments.first()),
            },
            missing: missing.into_iter().collect(),
            findings,
            reader,
        });
    }
    volumes
}

/// While a snapshot is merged into its origin, some of the origin's bytes are still in the snapshot's store.
fn merging(group: &VolumeGroup) -> Option<String> {
    let mut segments = group.logical.values().flat_map(|logical| &logical.segments);
    let is_merging = segments.any(|segment| {
        matches!(&segment.kind, SegmentKind::Other(kind) if kind == SNAPSHOT_BEING_MERGED)
    });
    is_merging.then(|| {
        "a snapshot of its group is being merged: its origin's bytes are not all in place yet"
            .to_owned()
    })
}

fn layout(segment: Option<&Segment>) -> String {
    match segment.map(|segment| &segment.kind) {
        Some(SegmentKind::Striped { areas, .. }) if areas.len() == 1 => "linear".to_owned(),
        Some(SegmentKind::Striped { .. }) => "striped".to_owned(),
        Some(SegmentKind::Mirror { .. }) => "mirror".to_owned(),
        Some(SegmentKind::Raid { kind, .. } | SegmentKind::Other(kind)) => kind.clone(),
        Some(SegmentKind::ThinPool { .. }) => "thin-pool".to_owned(),
        Some(SegmentKind::Thin { .. }) => "thin".to_owned(),
        Some(SegmentKind::Snapshot { .. }) => "snapshot".to_owned(),
        Some(SegmentKind::Zero) => "zero".to_owned(),
        Some(SegmentKind::Error) | None => "error".to_owned(),
    }
}

impl Resolver<'_> {
    fn bytes(&self, extents: u64) -> Result<u64> {
        extents
            .checked_mul(self.group.extent_bytes)
            .ok_or_else(|| Error::corrupt(format!("{extents} extents are more than any disk has")))
    }

    /// A whole logical volume.
    fn logical(&mut self, name: &str) -> Result<Built> {
        if let Some(built) = self.built.get(name) {
            return Ok(built.clone());
        }
        if self.open.iter().any(|open| open == name) || self.open.len() >= MAX_DEPTH {
            return Err(Error::corrupt(format!("volume {name} stands on itself")));
        }
        let group = self.group;
        let Some(logical) = group.logical.get(name) else {
            return Err(Error::corrupt(format!("there is no volume {name}")));
        };
        self.open.push(name.to_owned());
        let outcome = self.segments(&logical.segments);
        self.open.pop();
        let built = outcome.map_err(|error| error.within(format!("volume {name}")))?;
        self.built.insert(name.to_owned(), built.clone());
        Ok(built)
    }

    fn segments(&mut self, segments: &[Segment]) -> Result<Built> {
        let mut sources = Vec::new();
        let mut missing = BTreeSet::new();
        let mut findings = Vec::new();
        let mut next = 0;
        for segment in segments {
            if segment.start != next {
                return Err(Error::corrupt(format!(
                    "a segment begins at extent {} instead of {next}",
                    segment.start
                )));
            }
            next = next
                .checked_add(segment.extents)
                .ok_or_else(|| Error::corrupt("segments longer than every disk"))?;
            let built = self.segment(segment)?;
            let size = self.bytes(segment.extents)?;
            if built.source.size_bytes() < size {
                return Err(Error::corrupt(format!(
                    "a segment of {size} bytes has {}",
                    built.source.size_bytes()
                )));
            }
            sources.push(window(built.source, 0, size));
            missing.extend(built.missing);
            findings.extend(built.findings);
        }
        Ok(Built {
            source: Arc::new(Concat::new(sources)?),
            missing,
            findings,
        })
    }

    fn segment(&mut self, segment: &Segment) -> Result<Built> {
        let size = self.bytes(segment.extents)?;
        match &segment.kind {
            SegmentKind::Striped {
                areas,
                stripe_bytes,
            } => {
                let count = field::bytes(areas.len());
                let extents = segment.extents.checked_div(count).unwrap_or(0);
                self.over(areas, extents, |mut members| match members.len() {
                    1 => Ok(members.remove(0)),
                    _ => Ok(Arc::new(Striped::new(
                        members.into_iter().map(Member::Present).collect(),
                        *stripe_bytes,
                        None,
                    )?)),
                })
            }
            SegmentKind::Mirror { areas } => self.over(areas, segment.extents, |members| {
                Ok(Arc::new(Mirrored::new(
                    members.into_iter().map(Member::Present).collect(),
                )?))
            }),
            SegmentKind::Raid {
                kind,
                members,
                stripe_bytes,
                copies,
            } => self.raid(kind, members, *stripe_bytes, *copies, size),
            SegmentKind::Thin {
                pool,
                device,
                external_origin,
            } => self.thin(pool, *device, external_origin.as_deref(), size),
            SegmentKind::Zero => Ok(Built {
                source: Arc::new(Zeros::new(size)),
                missing: BTreeSet::new(),
                findings: Vec::new(),
            }),
            SegmentKind::Error => Err(Error::new(
                crate::ErrorKind::NotFound,
                "a segment that was given up",
            )),
            SegmentKind::ThinPool { .. } => Err(Error::unsupported("a pool is no volume")),
            SegmentKind::Snapshot { .. } => Err(Error::unsupported("a snapshot within a volume")),
            SegmentKind::Other(kind) => Err(Error::unsupported(format!("a segment of {kind}"))),
        }
    }

    /// The areas of a segment, joined.
    fn over(
        &mut self,
        areas: &[Area],
        extents: u64,
        join: impl FnOnce(Vec<Source>) -> Result<Source>,
    ) -> Result<Built> {
        let mut sources = Vec::new();
        let mut missing = BTreeSet::new();
        let mut findings = Vec::new();
        for area in areas {
            let built = self.area(area, extents)?;
            sources.push(built.source);
            missing.extend(built.missing);
            findings.extend(built.findings);
        }
        Ok(Built {
            source: join(sources)?,
            missing,
            findings,
        })
    }

    fn area(&mut self, area: &Area, extents: u64) -> Result<Built> {
        let size = self.bytes(extents)?;
        let offset = self.bytes(area.extent)?;
        let group = self.group;
        let Some(physical) = group.physical.get(&area.name) else {
            let mut built = self.logical(&area.name)?;
            built.source = window(built.source, offset, size);
            return Ok(built);
        };
        if area.extent.saturating_add(extents) > physical.extents {
            return Err(Error::corrupt(format!(
                "{extents} extents at {} of {}, which has {}",
                area.extent, area.name, physical.extents
            )));
        }
        let mut missing = BTreeSet::new();
        let source = match self.present.get(&physical.id) {
            Some((source, _)) => window(
                Arc::clone(source),
                physical.start.saturating_add(offset),
                size,
            ),
            None => {
                let name = format!("physical volume {} ({})", physical.id, physical.device);
                missing.insert(name.clone());
                Arc::new(Absent::new(name, size))
            }
        };
        Ok(Built {
            source,
            missing,
            findings: Vec::new(),
        })
    }

    fn raid(
        &mut self,
        kind: &str,
        members: &[(Option<String>, String)],
        chunk: u64,
        copies: u32,
        size: u64,
    ) -> Result<Built> {
        let mut missing = BTreeSet::new();
        let mut findings = Vec::new();
        let mut states = Vec::new();
        let mut columns = Vec::new();
        for (metadata, image) in members {
            let built = self.logical(image)?;
            let is_gone = !built.missing.is_empty();
            missing.extend(built.missing);
            findings.extend(built.findings);
            states.push(match metadata {
                Some(name) if !is_gone => member_state(&*self.logical(name)?.source)?,
                _ => None,
            });
            columns.push(built.source);
        }
        let newest = states
            .iter()
            .flatten()
            .max_by_key(|state| state.events)
            .copied();
        let columns: Vec<Member> = columns
            .into_iter()
            .zip(&states)
            .enumerate()
            .map(|(number, (source, state))| match (state, newest) {
                (Some(state), Some(newest)) if !state.is_fresh(number, &newest) => {
                    let name = format!("member {number}, which is out of date,");
                    missing.insert(name.clone());
                    Member::Missing(name)
                }
                _ => Member::Present(source),
            })
            .collect();
        if newest.is_some_and(|state| {
            state.resynced != u64::MAX && state.resynced.saturating_mul(512) < size
        }) {
            findings.push("the set was not in step: copies or parity may be old".to_owned());
        }
        Ok(Built {
            source: join_raid(kind, columns, chunk, copies)?,
            missing,
            findings,
        })
    }

    fn thin(
        &mut self,
        pool_name: &str,
        device: u64,
        external_origin: Option<&str>,
        size: u64,
    ) -> Result<Built> {
        let group = self.group;
        let parts = group
            .logical
            .get(pool_name)
            .and_then(|pool| pool.segments.first())
            .map(|segment| &segment.kind);
        let Some(SegmentKind::ThinPool { metadata, data }) = parts else {
            return Err(Error::corrupt(format!("{pool_name} is no pool")));
        };
        let metadata = self.logical(metadata)?;
        let data = self.logical(data)?;
        let pool = match self.pools.get(pool_name) {
            Some(pool) => Arc::clone(pool),
            None => {
                let pool = Arc::new(ThinPool::open(metadata.source, data.source)?);
                self.pools.insert(pool_name.to_owned(), Arc::clone(&pool));
                pool
            }
        };
        let mut missing = metadata.missing;
        missing.extend(data.missing);
        let mut findings = metadata.findings;
        findings.extend(data.findings);
        let origin = match external_origin {
            Some(name) => {
                let built = self.logical(name)?;
                missing.extend(built.missing);
                findings.extend(built.findings);
                Some(built.source)
            }
            None => None,
        };
        Ok(Built {
            source: Arc::new(ThinVolume::open(pool, device, size, origin)?),
            missing,
            findings,
        })
    }

    fn snapshot(&mut self, origin: &str, store: &str) -> Result<Built> {
        let origin = self.logical(origin)?;
        let store = self.logical(store)?;
        let mut missing = origin.missing;
        missing.extend(store.missing);
        let mut findings = origin.findings;
        findings.extend(store.findings);
        Ok(Built {
            source: Arc::new(Snapshot::open(origin.source, store.source)?),
            missing,
            findings,
        })
    }
}

fn window(source: Source, offset: u64, size: u64) -> Source {
    Arc::new(Window::new(source, offset, size))
}

/// What device-mapper keeps about a member of a raid.
#[derive(Debug, Clone, Copy)]
struct MemberState {
    events: u64,
    failed: u64,
    recovered: u64,
    resynced: u64,
}

impl MemberState {
    fn is_fresh(&self, number: usize, newest: &Self) -> bool {
        let bit = u32::try_from(number)
            .ok()
            .and_then(|at| newest.failed.checked_shr(at));
        self.events.saturating_add(1) >= newest.events
            && self.recovered == u64::MAX
            && bit.is_none_or(|bits| bits & 1 == 0)
    }
}

/// `None` where nothing was written yet.
fn member_state(metadata: &dyn block::ReadAt) -> Result<Option<MemberState>> {
    let head = read_head(metadata, 0, 512)?;
    if field::slice(&head, 0, 4)? != b"DmRd" {
        return Ok(None);
    }
    Ok(Some(MemberState {
        events: field::u64_le(&head, 16)?,
        failed: field::u64_le(&head, 24)?,
        recovered: field::u64_le(&head, 32)?,
        resynced: field::u64_le(&head, 40)?,
    }))
}

fn join_raid(kind: &str, columns: Vec<Member>, chunk: u64, copies: u32) -> Result<Source> {
    let parity = |columns, layout, count| -> Result<Source> {
        Ok(Arc::new(Parity::new(columns, chunk, layout, count, None)?))
    };
    let one = ParityCount::One;
    let two = ParityCount::Two;
    match kind {
        "raid0" | "raid0_meta" => Ok(Arc::new(Striped::new(columns, chunk, None)?)),
        "raid1" => Ok(Arc::new(Mirrored::new(columns)?)),
        "raid10" | "raid10_near" => Ok(Arc::new(Redundant::new(
            columns,
            chunk,
            copies,
            FarCopies::None,
            None,
        )?)),
        // Device-mapper's RAID-4 has its parity first, MD's has it last.
        "raid4" | "raid5_0" => parity(columns, ParityLayout::First, one),
        "raid5_n" => parity(columns, ParityLayout::Last, one),
        "raid5" | "raid5_ls" => parity(columns, ParityLayout::LeftSymmetric, one),
        "raid5_la" => parity(columns, ParityLayout::LeftAsymmetric, one),
        "raid5_ra" => parity(columns, ParityLayout::RightAsymmetric, one),
        "raid5_rs" => parity(columns, ParityLayout::RightSymmetric, one),
        "raid6" | "raid6_zr" => parity(columns, ParityLayout::ZeroRestart, two),
        "raid6_nr" => parity(columns, ParityLayout::LastRestart, two),
        "raid6_nc" => parity(columns, ParityLayout::LastContinue, two),
        "raid6_n_6" => parity(columns, ParityLayout::Last, two),
        "raid6_la_6" => parity(columns, ParityLayout::LeftAsymmetricQ, two),
        "raid6_ra_6" => parity(columns, ParityLayout::RightAsymmetricQ, two),
        "raid6_ls_6" => parity(columns, ParityLayout::LeftSymmetricQ, two),
        "raid6_rs_6" => parity(columns, ParityLayout::RightSymmetricQ, two),
        other => Err(Error::unsupported(format!("a segment of {other}"))),
    }
}
