//! Where each object lies: the one place that knows the repository's layout.
//!
//! ```text
//!   config  config.copy
//!   keys/slot-<slot>                 keys/ring-<n, 8 hex>  keys/ring-<n, 8 hex>.copy
//!   data/<first byte>/<pack>         node/<first byte>/<pack>
//!   index/<segment>
//!   points/<name id>/<sequence, 16 hex>
//!   bundles/<bundle>  bundles/<bundle>.copy
//!   marks/<name id>-<sequence, 16 hex>/<kind>-<mark>
//!   leases/<lease>/<beat, 16 hex>
//!   gc/<generation, 16 hex>.condemned   gc/<generation, 16 hex>.verdict   gc/<generation, 16 hex>.verdict.copy
//!   quarantine/<name of an object that nobody can read>
//! ```

use store::{ObjectName, Prefix};

use crate::format::PackKind;
use crate::ids::hex;
use crate::points::PointKey;
use crate::{BundleId, LeaseId, MarkId, NameId, PackId, Result, SegmentId, SlotId};

fn name(text: String) -> Result<ObjectName> {
    Ok(ObjectName::new(text)?)
}

fn prefix(text: &str) -> Result<Prefix> {
    Ok(Prefix::new(text)?)
}

/// The configuration.
pub(crate) fn config() -> Result<ObjectName> {
    name("config".to_owned())
}

/// Its second copy.
pub(crate) fn config_copy() -> Result<ObjectName> {
    name("config.copy".to_owned())
}

/// Slots and rings.
pub(crate) fn keys() -> Result<Prefix> {
    prefix("keys")
}

/// One slot.
pub(crate) fn slot(id: SlotId) -> Result<ObjectName> {
    name(format!("keys/slot-{id}"))
}

/// One keyring generation.
pub(crate) fn ring(generation: u32) -> Result<ObjectName> {
    name(format!("keys/ring-{generation:08x}"))
}

/// Its second copy: without a keyring nothing can be read, so one damaged object must be survivable.
pub(crate) fn ring_copy(generation: u32) -> Result<ObjectName> {
    name(format!("keys/ring-{generation:08x}.copy"))
}

/// Packs of one kind.
pub(crate) fn packs(kind: PackKind) -> Result<Prefix> {
    prefix(kind.directory())
}

/// One pack.
pub(crate) fn pack(kind: PackKind, id: PackId) -> Result<ObjectName> {
    let [first, ..] = id.as_bytes();
    name(format!("{}/{}/{id}", kind.directory(), hex(&[*first])))
}

/// Index segments.
pub(crate) fn segments() -> Result<Prefix> {
    prefix("index")
}

/// One index segment.
pub(crate) fn segment(id: SegmentId) -> Result<ObjectName> {
    name(format!("index/{id}"))
}

/// All single points.
pub(crate) fn points() -> Result<Prefix> {
    prefix("points")
}

/// The points of one name.
pub(crate) fn points_of(id: NameId) -> Result<Prefix> {
    prefix(&format!("points/{id}"))
}

/// One point, or the tombstone that stands in its place.
pub(crate) fn point(key: PointKey) -> Result<ObjectName> {
    name(format!("points/{}/{:016x}", key.name_id, key.sequence))
}

/// Bundles of points.
pub(crate) fn bundles() -> Result<Prefix> {
    prefix("bundles")
}

/// One bundle.
pub(crate) fn bundle(id: BundleId) -> Result<ObjectName> {
    name(format!("bundles/{id}"))
}

/// The same points once more.
pub(crate) fn bundle_copy(id: BundleId) -> Result<ObjectName> {
    name(format!("bundles/{id}.copy"))
}

/// A bundle's id from the name of either of its two objects.
pub(crate) fn parse_bundle(object: &ObjectName) -> Option<BundleId> {
    let (_, last) = object.split();
    last.strip_suffix(".copy").unwrap_or(last).parse().ok()
}

/// All marks.
pub(crate) fn marks() -> Result<Prefix> {
    prefix("marks")
}

/// The marks of one point.
pub(crate) fn marks_of(key: PointKey) -> Result<Prefix> {
    prefix(&format!("marks/{}-{:016x}", key.name_id, key.sequence))
}

/// One mark; `kind` is its lower-case word.
pub(crate) fn mark(key: PointKey, kind: &str, id: MarkId) -> Result<ObjectName> {
    name(format!(
        "marks/{}-{:016x}/{kind}-{id}",
        key.name_id, key.sequence
    ))
}

/// All leases.
pub(crate) fn leases() -> Result<Prefix> {
    prefix("leases")
}

/// The beats of one lease.
pub(crate) fn beats_of(id: LeaseId) -> Result<Prefix> {
    prefix(&format!("leases/{id}"))
}

/// One beat.
pub(crate) fn beat(id: LeaseId, beat: u64) -> Result<ObjectName> {
    name(format!("leases/{id}/{beat:016x}"))
}

/// Records of garbage collection.
pub(crate) fn gc() -> Result<Prefix> {
    prefix("gc")
}

/// What a generation wants to delete.
pub(crate) fn condemned(generation: u64) -> Result<ObjectName> {
    name(format!("gc/{generation:016x}.condemned"))
}

/// What a generation decided to delete.
pub(crate) fn verdict(generation: u64) -> Result<ObjectName> {
    name(format!("gc/{generation:016x}.verdict"))
}

/// The same decision once more.
pub(crate) fn verdict_copy(generation: u64) -> Result<ObjectName> {
    name(format!("gc/{generation:016x}.verdict.copy"))
}

/// Where an object that nobody can read is put away.
pub(crate) fn put_away(object: &ObjectName) -> Result<ObjectName> {
    name(format!("quarantine/{object}"))
}

/// The other one of two objects that hold the same text, for kinds that lie there twice.
pub(crate) fn twin(object: &ObjectName) -> Option<ObjectName> {
    let text = object.as_str();
    let doubled = text.starts_with("bundles/") || text.contains(".verdict");
    let twin = match text.strip_suffix(".copy") {
        Some(first) => first.to_owned(),
        None => format!("{text}.copy"),
    };
    doubled.then(|| name(twin).ok()).flatten()
}

/// The part of a name behind its last slash, as an id.
pub(crate) fn last_id<T: std::str::FromStr>(name: &ObjectName) -> Option<T> {
    let (_, last) = name.split();
    last.parse().ok()
}

/// A key slot's id from the name of its object.
pub(crate) fn parse_slot(name: &ObjectName) -> Option<SlotId> {
    name.as_str().strip_prefix("keys/slot-")?.parse().ok()
}

/// A point's key from the name of its object.
pub(crate) fn parse_point(name: &ObjectName) -> Option<PointKey> {
    let rest = name.as_str().strip_prefix("points/")?;
    let (id, sequence) = rest.split_once('/')?;
    Some(PointKey {
        name_id: id.parse().ok()?,
        sequence: parse_number(sequence)?,
    })
}

/// Sixteen hexadecimal digits as a number.
pub(crate) fn parse_number(text: &str) -> Option<u64> {
    crate::ids::unhex::<8>(text).map(u64::from_be_bytes)
}
