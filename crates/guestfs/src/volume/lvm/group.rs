//! A volume group, as its text says.

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

use std::collections::BTreeMap;

use super::label::PhysicalVolumeId;
use super::text::{Section, Value};
use crate::{Error, Result};

/// More segments than a text of the allowed length can hold.
const MAX_SEGMENTS: u64 = 1_000_000;

/// How a segment is named of which the bytes are on their way into another volume.
pub(super) const SNAPSHOT_BEING_MERGED: &str = "a snapshot that is being merged";

/// A volume group.
#[derive(Debug)]
pub(super) struct VolumeGroup {
    pub(super) name: String,
    pub(super) id: String,
    pub(super) sequence: u64,
    pub(super) extent_bytes: u64,
    pub(super) physical: BTreeMap<String, Physical>,
    pub(super) logical: BTreeMap<String, Logical>,
}

/// A physical volume of it.
#[derive(Debug)]
pub(super) struct Physical {
    pub(super) id: PhysicalVolumeId,
    /// First byte of the first extent.
    pub(super) start: u64,
    pub(super) extents: u64,
    pub(super) device: String,
}

/// A logical volume of it, visible or not.
#[derive(Debug)]
pub(super) struct Logical {
    pub(super) id: String,
    pub(super) is_visible: bool,
    pub(super) segments: Vec<Segment>,
}

/// A part of a volume, or of a physical one.
#[derive(Debug, Clone)]
pub(super) struct Area {
    pub(super) name: String,
    pub(super) extent: u64,
}

/// Part of a logical volume.
#[derive(Debug)]
pub(super) struct Segment {
    pub(super) start: u64,
    pub(super) extents: u64,
    pub(super) kind: SegmentKind,
}

/// How a segment is made.
#[derive(Debug)]
pub(super) enum SegmentKind {
    Striped {
        areas: Vec<Area>,
        stripe_bytes: u64,
    },
    Mirror {
        areas: Vec<Area>,
    },
    Raid {
        kind: String,
        /// Hidden volumes: metadata (where there is some) and image.
        members: Vec<(Option<String>, String)>,
        stripe_bytes: u64,
        copies: u32,
    },
    ThinPool {
        metadata: String,
        data: String,
    },
    Thin {
        pool: String,
        device: u64,
        external_origin: Option<String>,
    },
    Snapshot {
        origin: String,
        store: String,
    },
    Zero,
    Error,
    Other(String),
}

impl VolumeGroup {
    /// The text holds one group besides a few lines about its writer.
    pub(super) fn parse(root: &Section) -> Result<Self> {
        let (name, section) = root
            .sections()
            .find(|(_, section)| section.value("seqno").is_some())
            .ok_or_else(|| Error::corrupt("metadata without a volume group"))?;
        let mut group = Self {
            name: name.to_owned(),
            id: section.text("id")?.to_owned(),
            sequence: section.number("seqno")?,
            extent_bytes: sectors(section, "extent_size")?,
            physical: BTreeMap::new(),
            logical: BTreeMap::new(),
        };
        if group.extent_bytes == 0 {
            return Err(Error::corrupt("extents of no length"));
        }
        if let Some(physical) = section.section("physical_volumes") {
            for (name, section) in physical.sections() {
                group.physical.insert(
                    name.to_owned(),
                    Physical {
                        id: PhysicalVolumeId::new(section.text("id")?),
                        start: sectors(section, "pe_start")?,
                        extents: section.number("pe_count")?,
                        device: section.text("device").unwrap_or(name).to_owned(),
                    },
                );
            }
        }
        if let Some(logical) = section.section("logical_volumes") {
            for (name, section) in logical.sections() {
                group
                    .logical
                    .insert(name.to_owned(), logical_volume(section)?);
            }
        }
        Ok(group)
    }
}

fn sectors(section: &Section, key: &str) -> Result<u64> {
    section
        .number(key)?
        .checked_mul(512)
        .ok_or_else(|| Error::corrupt(format!("{key} is longer than every disk")))
}

fn logical_volume(section: &Section) -> Result<Logical> {
    let count = section.number("segment_count")?;
    if count > MAX_SEGMENTS {
        return Err(Error::corrupt(format!("a volume of {count} segments")));
    }
    let mut segments = Vec::new();
    for (name, segment) in section.sections() {
        if name.starts_with("segment") {
            segments.push(parse_segment(segment)?);
        }
    }
    if crate::field::bytes(segments.len()) != count {
        return Err(Error::corrupt(format!(
            "{} segments of {count} are there",
            segments.len()
        )));
    }
    segments.sort_by_key(|segment| segment.start);
    Ok(Logical {
        id: section.text("id")?.to_owned(),
        is_visible: section.has_word("status", "VISIBLE"),
        segments,
    })
}

fn parse_segment(section: &Section) -> Result<Segment> {
    let kind = section.text("type")?;
    // Flags may follow: "striped+LOCKED".
    let kind = kind.split('+').next().unwrap_or(kind);
    let stripe_bytes = || match section.value("stripe_size") {
        Some(_) => sectors(section, "stripe_size"),
        None => Ok(0),
    };
    let owned = |key: &str| section.text(key).map(str::to_owned);
    let kind = match kind {
        "striped" | "linear" => SegmentKind::Striped {
            areas: areas(section.list("stripes"))?,
            stripe_bytes: stripe_bytes()?,
        },
        "mirror" => SegmentKind::Mirror {
            areas: areas(section.list("mirrors"))?,
        },
        "thin-pool" => SegmentKind::ThinPool {
            metadata: owned("metadata")?,
            data: owned("pool")?,
        },
        "thin" => SegmentKind::Thin {
            pool: owned("thin_pool")?,
            device: section.number("device_id")?,
            external_origin: owned("external_origin").ok(),
        },
        "snapshot" if section.value("merging_store").is_some() => {
            SegmentKind::Other(SNAPSHOT_BEING_MERGED.to_owned())
        }
        "snapshot" => SegmentKind::Snapshot {
            origin: owned("origin")?,
            store: owned("cow_store")?,
        },
        "zero" => SegmentKind::Zero,
        "error" => SegmentKind::Error,
        raid if raid.starts_with("raid") => SegmentKind::Raid {
            kind: raid.to_owned(),
            members: members(section)?,
            stripe_bytes: stripe_bytes()?,
            copies: section
                .number("data_copies")
                .ok()
                .and_then(|copies| u32::try_from(copies).ok())
                .unwrap_or(2),
        },
        other => SegmentKind::Other(other.to_owned()),
    };
    Ok(Segment {
        start: section.number("start_extent")?,
        extents: section.number("extent_count")?,
        kind,
    })
}

/// Names and extents in turn.
fn areas(values: &[Value]) -> Result<Vec<Area>> {
    let mut areas = Vec::new();
    for pair in values.chunks(2) {
        match pair {
            [Value::Text(name), Value::Number(extent)] => areas.push(Area {
                name: name.clone(),
                extent: u64::try_from(*extent)
                    .map_err(|_| Error::corrupt(format!("extent {extent}")))?,
            }),
            _ => return Err(Error::corrupt("areas are not names and extents in turn")),
        }
    }
    if areas.is_empty() {
        return Err(Error::corrupt("a segment without areas"));
    }
    Ok(areas)
}

/// `raids` names metadata and image in turn, `raid0_lvs` images (with their first extents, which are 0).
fn members(section: &Section) -> Result<Vec<(Option<String>, String)>> {
    let words = |key: &str| -> Vec<String> {
        section
            .list(key)
            .iter()
            .filter_map(|value| match value {
                Value::Text(text) => Some(text.clone()),
                _ => None,
            })
            .collect()
    };
    let images = words("raid0_lvs");
    if !images.is_empty() {
        return Ok(images.into_iter().map(|image| (None, image)).collect());
    }
    let mut members = Vec::new();
    for pair in words("raids").chunks(2) {
        match pair {
            [metadata, image] => members.push((Some(metadata.clone()), image.clone())),
            _ => return Err(Error::corrupt("raids are not metadata and images in turn")),
        }
    }
    if members.is_empty() {
        return Err(Error::corrupt("a raid without members"));
    }
    Ok(members)
}
