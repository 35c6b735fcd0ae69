//! What a heartbeat says: JSON, sealed like every small object, one object per beat.
//!
//! ```text
//!   leases/<lease>/0000000000000001   the first beat stays for as long as the lease: its reserved key is needed to fence
//!   leases/<lease>/000000000000002a   the newest beat; the one before it is deleted once this one is durable
//! ```
//!
//! **Invariants.** The reserved point key, the kind and the owner never change between beats. Roots, reserved pack ids and
//! observed generations only grow. Unknown fields are ignored: a newer program may say more.

use std::fmt;

use block::NodeHash;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::environment::HostIdentity;
use crate::points::{DiskVersion, PointKey};
use crate::{LeaseId, PackId};

/// Most bytes of a beat that are read: room for some hundred thousand claimed packs.
pub(crate) const BEAT_SIZE_BYTES_MAX: u64 = 32 << 20;

/// What the owner of a lease is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LeaseKind {
    /// Writes a new version: has a reserved point.
    Backup,
    /// Reads versions out.
    Restore,
    /// Reads everything against its hashes.
    Verify,
    /// Reads versions for another repository.
    Copy,
    /// Collects garbage; at most one.
    Gc,
    /// Replaces damaged objects.
    Repair,
    /// Makes a forgotten point visible again.
    Undelete,
    /// Anything else that needs its points to stay.
    Other,
}

impl fmt::Display for LeaseKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Backup => "backup",
            Self::Restore => "restore",
            Self::Verify => "verify",
            Self::Copy => "copy",
            Self::Gc => "gc",
            Self::Repair => "repair",
            Self::Undelete => "undelete",
            Self::Other => "other",
        })
    }
}

/// A subtree that must stay readable: everything below `top`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct TreeRoot {
    /// Level of the node.
    pub height: u8,
    /// The node.
    #[serde(serialize_with = "hash_to_text", deserialize_with = "hash_from_text")]
    pub top: NodeHash,
}

fn hash_to_text<S: Serializer>(hash: &NodeHash, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(hash)
}

fn hash_from_text<'de, D: Deserializer<'de>>(deserializer: D) -> Result<NodeHash, D::Error> {
    let text = String::deserialize(deserializer)?;
    text.parse().map_err(serde::de::Error::custom)
}

/// A disk alone is what earlier programs wrote.
fn one_or_many<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<DiskVersion>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum OneOrMany {
        One(Box<DiskVersion>),
        Many(Vec<DiskVersion>),
    }
    Ok(match OneOrMany::deserialize(deserializer)? {
        OneOrMany::One(disk) => vec![*disk],
        OneOrMany::Many(disks) => disks,
    })
}

/// One heartbeat.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LeaseBody {
    /// Whose heartbeat it is; equal to the id in the object's name.
    pub lease: LeaseId,
    /// 1, 2, 3, …
    pub beat: u64,
    /// What the owner does.
    pub kind: LeaseKind,
    /// The process that beats.
    pub owner: HostIdentity,
    /// The server's stamp of the first beat, for people: nothing is decided by it.
    pub started_unix_ms: u64,
    /// The point that a writer will commit: whoever puts a tombstone there first ends the writer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reserved: Option<PointKey>,
    /// Points that the owner relies on.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub points: Vec<PointKey>,
    /// Trees that the owner relies on, also those of its points (which may be forgotten meanwhile).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub roots: Vec<TreeRoot>,
    /// How far an interrupted transfer came, disk by disk; every node and block below is durable.
    #[serde(
        default,
        rename = "partial",
        skip_serializing_if = "Vec::is_empty",
        deserialize_with = "one_or_many"
    )]
    pub partials: Vec<DiskVersion>,
    /// The newest generation of garbage collection whose condemned packs the owner no longer uses.
    pub observed_generation: u64,
    /// Condemned packs that the owner had already counted on when it learnt of their condemnation.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub claims: Vec<PackId>,
    /// How many pack ids the owner may have used: ids `0..own_packs` of [`own_pack_id`].
    pub own_packs: u64,
}

impl LeaseBody {
    /// Everything that must stay because of this lease, the partial version included.
    pub fn all_roots(&self) -> impl Iterator<Item = TreeRoot> + '_ {
        let partials = self.partials.iter().map(|disk| TreeRoot {
            height: disk.height,
            top: disk.top,
        });
        self.roots.iter().copied().chain(partials)
    }

    /// The ids of all packs that the owner may have put or be putting.
    pub fn own_pack_ids(&self) -> impl Iterator<Item = PackId> + '_ {
        (0..self.own_packs.min(OWN_PACKS_MAX)).map(|number| own_pack_id(self.lease, number))
    }
}

/// Most packs of one lease: 128 TiB of 32 MiB packs. A greater number in a beat is taken for this one.
pub const OWN_PACKS_MAX: u64 = 1 << 22;

/// The id of the `number`-th pack that the owner of a lease puts: drawn from the lease's random id, so that a short
/// heartbeat tells garbage collection which packs belong to a running session, before the first byte of them is there.
pub fn own_pack_id(lease: LeaseId, number: u64) -> PackId {
    let mut hasher = blake3::Hasher::new_derive_key("hikae v1 pack id");
    hasher.update(lease.as_bytes());
    hasher.update(&number.to_le_bytes());
    let mut id = [0; PackId::LENGTH];
    hasher.finalize_xof().fill(&mut id);
    PackId::from_bytes(id)
}
