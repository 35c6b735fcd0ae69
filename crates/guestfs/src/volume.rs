//! Volumes that lie on several disks or in parts of them: dynamic disks of Windows, LVM, MD.
//!
//! ```text
//!   members (partitions, disks) ─► metadata of one manager ─► which set, which member where ─► one ReadAt per volume
//! ```
//!
//! Each manager has a reader that is given everything that might be a member, and gives [`LogicalVolume`]s. A volume
//! of which members are missing is given all the same: it says which, and reading what only they held is an error that
//! names them.

pub(crate) mod checksum;
pub(crate) mod galois;
pub mod ldm;
pub mod lvm;
pub mod md;
pub mod pieces;
pub mod raid;

use pieces::Source;

/// Who manages a volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum VolumeScheme {
    /// The logical disk manager of Windows: dynamic disks.
    Ldm,
    /// LVM2 of Linux.
    Lvm,
    /// MD of Linux.
    Md,
    /// Btrfs on several devices.
    Btrfs,
}

impl VolumeScheme {
    /// Its usual name in lower case.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ldm => "ldm",
            Self::Lvm => "lvm",
            Self::Md => "md",
            Self::Btrfs => "btrfs",
        }
    }
}

/// A volume that a manager puts together.
#[derive(Clone)]
pub struct LogicalVolume {
    /// Who manages it.
    pub manager: VolumeScheme,
    /// Disk group, volume group; empty for MD.
    pub group: String,
    /// Its name there.
    pub name: String,
    /// Its id as its manager writes it.
    pub id: Option<String>,
    /// How it is made: "linear", "mirror", "raid5", "thin".
    pub layout: String,
    /// Members that are missing, by name.
    pub missing: Vec<String>,
    /// What else is not as it should be: an array that was not in step, metadata that is out of date.
    pub findings: Vec<String>,
    /// Its bytes, or why it cannot be read.
    pub reader: Result<Source, Obstacle>,
}

/// Why a volume cannot be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Obstacle {
    /// What a caller can do about it.
    pub kind: crate::ErrorKind,
    /// What it is.
    pub why: String,
}

impl From<crate::Error> for Obstacle {
    fn from(error: crate::Error) -> Self {
        Self {
            kind: error.kind(),
            why: error.to_string(),
        }
    }
}

impl std::fmt::Debug for LogicalVolume {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LogicalVolume")
            .field("manager", &self.manager)
            .field("group", &self.group)
            .field("name", &self.name)
            .field("id", &self.id)
            .field("layout", &self.layout)
            .field("missing", &self.missing)
            .field("findings", &self.findings)
            .field(
                "size_bytes",
                &self.reader.as_ref().map(|one| one.size_bytes()),
            )
            .finish()
    }
}

/// Something that may be a member of a set, and what to call it.
#[derive(Clone)]
pub struct Candidate {
    /// Its name for people: "disk 1 partition 2".
    pub name: String,
    /// Its bytes.
    pub source: Source,
}

impl std::fmt::Debug for Candidate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Candidate")
            .field("name", &self.name)
            .field("size_bytes", &self.source.size_bytes())
            .finish()
    }
}
