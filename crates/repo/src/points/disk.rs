//! One disk of a recovery point: its tree, and what is needed to give it back as the image it was.

use block::geometry::{self, MAX_DISK_SIZE_BYTES};
use block::tree::DiskTree;
use block::{DiskRoot, NodeHash, OmissionHash};
use serde::{Deserialize, Serialize};

use super::UnknownFields;
use crate::{Error, Result};

/// Hashes as 64 hexadecimal digits in JSON.
pub(crate) mod hash_text {
    use std::fmt::Display;
    use std::str::FromStr;

    use serde::{Deserialize, Deserializer, Serializer};

    pub(crate) fn serialize<T: Display, S: Serializer>(hash: &T, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(hash)
    }

    pub(crate) fn deserialize<'de, T, D>(d: D) -> Result<T, D::Error>
    where
        T: FromStr,
        T::Err: Display,
        D: Deserializer<'de>,
    {
        String::deserialize(d)?
            .parse()
            .map_err(serde::de::Error::custom)
    }
}

/// A run of bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ByteRange {
    /// First byte.
    pub offset: u64,
    /// How many.
    pub length_bytes: u64,
}

/// Ranges left out on purpose; they read as zeros, and the root commits to them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Omissions {
    /// The ranges, ascending, not touching.
    pub ranges: Vec<ByteRange>,
    /// Why, in words: `swap`, `page file`, `free space`.
    #[serde(default)]
    pub reason: String,
}

impl Omissions {
    /// What the root commits to: offset u64 LE ‖ length u64 LE per range.
    pub fn hash(&self) -> OmissionHash {
        let mut encoded = Vec::with_capacity(self.ranges.len().saturating_mul(16));
        for range in &self.ranges {
            encoded.extend_from_slice(&range.offset.to_le_bytes());
            encoded.extend_from_slice(&range.length_bytes.to_le_bytes());
        }
        OmissionHash::of(&encoded)
    }
}

/// What the image was, so that it can be made again. Every field may be absent: a raw disk has none.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct ImageProfile {
    /// `vhdx`, `vhd`, `qcow2`, `vmdk`, `raw`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub format: Option<String>,
    /// `fixed`, `dynamic`, `differencing`, …
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subformat: Option<String>,
    /// Bytes of a logical sector.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub logical_sector_bytes: Option<u32>,
    /// Bytes of a physical sector.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub physical_sector_bytes: Option<u32>,
    /// Bytes of an allocation unit of the image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub block_size_bytes: Option<u64>,
    /// The image's own id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk_id: Option<String>,
    /// Anything else.
    #[serde(flatten)]
    pub more: UnknownFields,
}

/// One disk at one instant.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DiskVersion {
    /// Which disk of the machine.
    #[serde(default)]
    pub label: String,
    /// Its root.
    #[serde(with = "hash_text")]
    pub root: DiskRoot,
    /// Its length.
    pub length_bytes: u64,
    /// Level of its top node.
    pub height: u8,
    /// Its top node.
    #[serde(with = "hash_text")]
    pub top: NodeHash,
    /// What was left out on purpose.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub omissions: Option<Omissions>,
    /// What image it was.
    #[serde(default)]
    pub image: ImageProfile,
    /// What could not be read and was taken for zeros because the run was told to.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unreadable: Vec<ByteRange>,
    /// What to ask the source's change tracking with next time; belongs to exactly this version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tracking_token: Option<String>,
    /// What this program does not know.
    #[serde(flatten)]
    pub more: UnknownFields,
}

impl DiskVersion {
    /// A version with this content and nothing else to say.
    pub fn new(label: impl Into<String>, tree: DiskTree) -> Self {
        Self {
            label: label.into(),
            root: tree.root(None),
            length_bytes: tree.length_bytes,
            height: tree.height(),
            top: tree.top,
            omissions: None,
            image: ImageProfile::default(),
            unreadable: Vec::new(),
            tracking_token: None,
            more: UnknownFields::new(),
        }
    }

    /// The same content with ranges left out, which the root then commits to.
    #[must_use]
    pub fn with_omissions(mut self, omissions: Omissions) -> Self {
        self.root = self.tree().root(Some(omissions.hash()));
        self.omissions = Some(omissions);
        self
    }

    /// Its content.
    pub fn tree(&self) -> DiskTree {
        DiskTree {
            length_bytes: self.length_bytes,
            top: self.top,
        }
    }

    /// Whether the root binds the length, the height, the top and what was left out.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Corrupt`] naming `object`.
    pub fn check(&self, object: &dyn std::fmt::Display) -> Result<()> {
        let omitted = self.omissions.as_ref().map(Omissions::hash);
        let bound = self.length_bytes <= MAX_DISK_SIZE_BYTES
            && self.height == geometry::height(self.length_bytes)
            && self.tree().root(omitted) == self.root;
        if bound {
            Ok(())
        } else {
            let shown: String = self.label.chars().take(80).collect();
            Err(Error::corrupt(
                object,
                format_args!("disk {shown:?} has a root that is not its own"),
            ))
        }
    }
}

/// A configuration file of a machine, kept as a tree like a disk.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ConfigurationFile {
    /// Its name.
    pub path: String,
    /// Its bytes.
    pub content: DiskVersion,
}
