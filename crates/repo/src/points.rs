//! Recovery points: what a version is, how it is named, and how it lies in the store.
//!
//! ```text
//!   points/<name id>/<sequence>   envelope(kind point)  { "body": "<exact JSON text>", "signature": { … } | null }
//!                                 envelope(kind tombstone)                  a fenced writer's place: nothing there
//!   bundles/<bundle>              envelope(kind bundle) { "points": [ { "key", "point": as above } ], … }
//! ```
//!
//! The body is kept as the exact text that was signed; fields that this program does not know stay in it.
//!
//! **Invariants.** Create-if-absent at a point's name is the only commit. A body says its own key; read under another
//! one it is corrupt. Sequence numbers of a name only grow and are never used twice.

mod disk;
mod selector;
mod signature;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

pub use disk::{ByteRange, ConfigurationFile, DiskVersion, ImageProfile, Omissions};
pub use selector::{PointSelector, ProtectedName, Which};
pub use signature::{PointSignature, SignatureState};
pub(crate) use signature::{Signer, root_public_key, verify_signature};

use crate::{Error, NameId, PointId, Result};

/// Fields that this program does not know, kept as they are.
pub type UnknownFields = serde_json::Map<String, serde_json::Value>;

/// Where a point lies: its name's id and its number among the points of that name, from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct PointKey {
    /// Whose point.
    pub name_id: NameId,
    /// Which one.
    pub sequence: u64,
}

impl std::fmt::Display for PointKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "point {} of {}", self.sequence, self.name_id)
    }
}

/// The point that a point was made upon.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ParentPoint {
    /// Its number.
    pub sequence: u64,
    /// Its id.
    pub point: PointId,
}

/// What a guest's applications knew of the checkpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Consistency {
    /// As after a power cut.
    #[default]
    Crash,
    /// File systems were flushed and frozen.
    FileSystem,
    /// Applications took part.
    Application,
    /// The machine was off or saved.
    Offline,
}

/// What the writer of a point wants to say; the rest is stamped at commit.
#[derive(Debug, Clone, Default)]
pub struct PointDraft {
    /// The disks.
    pub disks: Vec<DiskVersion>,
    /// Configuration files of the machine.
    pub configuration: Vec<ConfigurationFile>,
    /// What was reached.
    pub consistency: Consistency,
    /// Facts about the source.
    pub source: UnknownFields,
    /// What the run measured: bytes read, hashed, sent, stored.
    pub counters: BTreeMap<String, u64>,
    /// Anything else to be kept.
    pub more: UnknownFields,
    /// What to take over from the point of another repository that this one is a copy of.
    pub copied: Option<CopiedPoint>,
}

/// What a copy keeps of the point that it was copied from.
#[derive(Debug, Clone, PartialEq)]
pub struct CopiedPoint {
    /// The original's stamp, RFC 3339.
    pub created: String,
    /// The same, in milliseconds since 1970.
    pub created_unix_ms: u64,
    /// The original's parent.
    pub parent: Option<ParentPoint>,
    /// The original's id.
    pub point: PointId,
}

/// Who wrote a point.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct PointWriter {
    /// Host name.
    pub host: String,
    /// Program and version.
    pub program: String,
}

/// A committed version of a name.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RecoveryPoint {
    /// Version of this body.
    pub format: u16,
    /// Whose point, in words.
    pub name: ProtectedName,
    /// Its number among the points of the name.
    pub sequence: u64,
    /// Its id.
    pub point: PointId,
    /// What it was made upon.
    pub parent: Option<ParentPoint>,
    /// When it was committed, RFC 3339, stamped by the writer's server.
    pub created: String,
    /// The same, in milliseconds since 1970.
    pub created_unix_ms: u64,
    /// The disks.
    pub disks: Vec<DiskVersion>,
    /// Configuration files of the machine.
    #[serde(default)]
    pub configuration: Vec<ConfigurationFile>,
    /// What was reached.
    #[serde(default)]
    pub consistency: Consistency,
    /// Facts about the source.
    #[serde(default)]
    pub source: UnknownFields,
    /// What the run measured.
    #[serde(default)]
    pub counters: BTreeMap<String, u64>,
    /// Who wrote it.
    #[serde(default)]
    pub writer: PointWriter,
    /// Whose place it has, filled in by the reader.
    #[serde(skip, default = "nowhere")]
    pub name_id: NameId,
    /// Whether its signature is good, filled in by the reader.
    #[serde(skip, default)]
    pub signature: SignatureState,
    /// What this program does not know.
    #[serde(flatten)]
    pub more: UnknownFields,
}

/// Greatest version of a point's body that this program reads.
pub(crate) const POINT_FORMAT: u16 = 1;

fn nowhere() -> NameId {
    NameId::from_bytes([0; 16])
}

impl RecoveryPoint {
    /// Where it lies.
    pub fn key(&self) -> PointKey {
        PointKey {
            name_id: self.name_id,
            sequence: self.sequence,
        }
    }

    /// Every tree that it needs: disks, then configuration files.
    pub fn trees(&self) -> impl Iterator<Item = &DiskVersion> {
        self.disks
            .iter()
            .chain(self.configuration.iter().map(|file| &file.content))
    }

    /// The disk of this label.
    pub fn disk(&self, label: &str) -> Option<&DiskVersion> {
        self.disks.iter().find(|disk| disk.label == label)
    }
}

/// A point as it is written: exact text and signature.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SignedPoint {
    /// The exact JSON text of the body.
    pub body: String,
    /// Absent in repositories without encryption, which have no secret to sign with.
    pub signature: Option<PointSignature>,
}

impl SignedPoint {
    /// Reads the body, which must be the one of `key`.
    pub(crate) fn parse(
        &self,
        object: &dyn std::fmt::Display,
        key: PointKey,
        name_id: impl Fn(&ProtectedName) -> NameId,
    ) -> Result<RecoveryPoint> {
        let mut point: RecoveryPoint = serde_json::from_str(&self.body)
            .map_err(|error| Error::corrupt(object, "a malformed point").caused_by(error))?;
        if point.format > POINT_FORMAT {
            let what = format!("{object}: a point of format {}", point.format);
            return Err(Error::new(crate::ErrorKind::Unsupported, what));
        }
        if point.sequence != key.sequence || name_id(&point.name) != key.name_id {
            return Err(Error::corrupt(object, "the point of another place"));
        }
        point.name_id = key.name_id;
        for disk in point.trees() {
            disk.check(object)?;
        }
        Ok(point)
    }
}

/// One member of a bundle.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BundledPoint {
    /// Where it lay.
    pub key: PointKey,
    /// What lay there.
    pub point: SignedPoint,
}

/// Many points in one object.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Bundle {
    /// The points, each exactly as it was committed.
    pub points: Vec<BundledPoint>,
    /// Places whose single objects this bundle replaces without holding a point: tombstones, dropped points.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub retired: Vec<PointKey>,
    /// What this program does not know.
    #[serde(flatten)]
    pub more: UnknownFields,
}
