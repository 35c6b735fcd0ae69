//! What things are called: ids as types, so that a checkpoint never passes for a machine.
//!
//! Ids that the hypervisor spells with any case ([`VmId`], [`NodeName`]) compare without it. Ids that are opaque
//! ([`CheckpointId`], [`TrackingToken`]) are kept as they came, byte for byte.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::{Error, ErrorKind, Result};

/// Longest text of an id that is believed.
const MAX_ID_BYTES: usize = 2048;

/// A machine, wherever it runs: the GUID that it keeps through renames and migrations.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct VmId(Uuid);

impl VmId {
    /// The machine of this GUID, as 16 bytes in the order in which they are written.
    pub fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(Uuid::from_bytes(bytes))
    }

    /// The 16 bytes in the order in which they are written.
    pub fn bytes(self) -> [u8; 16] {
        *self.0.as_bytes()
    }
}

impl fmt::Display for VmId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut buffer = Uuid::encode_buffer();
        f.pad(self.0.hyphenated().encode_upper(&mut buffer))
    }
}

impl fmt::Debug for VmId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for VmId {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        parse_guid(text).map(Self).ok_or_else(|| {
            Error::new(
                ErrorKind::Invalid,
                format!("{:?} is no id of a machine", shortened(text)),
            )
        })
    }
}

impl From<VmId> for String {
    fn from(id: VmId) -> Self {
        id.to_string()
    }
}

impl TryFrom<String> for VmId {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

/// The identity that an image of a disk carries inside, shared by the images of a chain.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct DiskIdentity(Uuid);

impl DiskIdentity {
    /// The identity of these 16 bytes, in the order in which they are written.
    pub fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(Uuid::from_bytes(bytes))
    }
}

impl fmt::Display for DiskIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut buffer = Uuid::encode_buffer();
        f.pad(self.0.hyphenated().encode_upper(&mut buffer))
    }
}

impl fmt::Debug for DiskIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for DiskIdentity {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        parse_guid(text).map(Self).ok_or_else(|| {
            Error::new(
                ErrorKind::Invalid,
                format!("{:?} is no identity of a disk", shortened(text)),
            )
        })
    }
}

impl From<DiskIdentity> for String {
    fn from(id: DiskIdentity) -> Self {
        id.to_string()
    }
}

impl TryFrom<String> for DiskIdentity {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

/// One run of a job, chosen at random by whoever starts it; part of the mark on what the job makes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct JobId(Uuid);

impl JobId {
    /// The job of these random bytes.
    pub fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(Uuid::from_bytes(bytes))
    }
}

impl fmt::Display for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut buffer = Uuid::encode_buffer();
        f.pad(self.0.hyphenated().encode_lower(&mut buffer))
    }
}

impl fmt::Debug for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for JobId {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        parse_guid(text).map(Self).ok_or_else(|| {
            Error::new(
                ErrorKind::Invalid,
                format!("{:?} is no id of a job", shortened(text)),
            )
        })
    }
}

impl From<JobId> for String {
    fn from(id: JobId) -> Self {
        id.to_string()
    }
}

impl TryFrom<String> for JobId {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

fn parse_guid(text: &str) -> Option<Uuid> {
    let text = text.trim();
    if text.len() > 40 {
        return None;
    }
    Uuid::parse_str(text).ok()
}

fn shortened(text: &str) -> String {
    text.chars().take(80).collect()
}

macro_rules! opaque_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(into = "String", try_from = "String")]
        pub struct $name(Box<str>);

        impl $name {
            /// Takes the text as it came; empty and overlong texts are refused.
            pub fn new(text: impl Into<String>) -> Result<Self> {
                let text: String = text.into();
                if text.is_empty() || text.len() > MAX_ID_BYTES {
                    return Err(Error::new(
                        ErrorKind::Invalid,
                        format!("{:?} is no {}", shortened(&text), stringify!($name)),
                    ));
                }
                Ok(Self(text.into_boxed_str()))
            }

            /// The text, as it came.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(&self.0, f)
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> Self {
                id.0.into()
            }
        }

        impl TryFrom<String> for $name {
            type Error = Error;

            fn try_from(text: String) -> Result<Self> {
                Self::new(text)
            }
        }
    };
}

opaque_id! {
    /// A checkpoint, by the hypervisor's own name (Hyper-V: `Microsoft:GUID` of its settings; KVM: the name of a job).
    CheckpointId
}
opaque_id! {
    /// Where change tracking starts from: a reference point (Hyper-V), a dirty bitmap (KVM).
    TrackingPointId
}
opaque_id! {
    /// A device of a machine's configuration, by the hypervisor's own name (Hyper-V: a setting's `InstanceID`).
    DeviceId
}
opaque_id! {
    /// Who made something: one protection server, known by its key and so the same after it was rebuilt.
    OwnerId
}

/// A node on which machines run. `HV01` and `hv01.example.net` are the same node; addresses compare whole.
#[derive(Clone, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct NodeName {
    text: Box<str>,
    key: Box<str>,
}

impl NodeName {
    /// Takes a host name or an address.
    pub fn new(text: impl Into<String>) -> Result<Self> {
        let text: String = text.into();
        let text = text.trim();
        if text.is_empty() || text.len() > 255 || text.contains(char::is_whitespace) {
            return Err(Error::new(
                ErrorKind::Invalid,
                format!("{:?} is no name of a node", shortened(text)),
            ));
        }
        let is_address = text.parse::<std::net::IpAddr>().is_ok();
        let label = if is_address {
            text
        } else {
            text.split('.').next().unwrap_or(text)
        };
        Ok(Self {
            key: label.to_lowercase().into_boxed_str(),
            text: text.into(),
        })
    }

    /// The name, as it was given.
    pub fn as_str(&self) -> &str {
        &self.text
    }
}

impl PartialEq for NodeName {
    fn eq(&self, other: &Self) -> bool {
        self.key == other.key
    }
}

impl Eq for NodeName {}

impl PartialOrd for NodeName {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for NodeName {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.key.cmp(&other.key)
    }
}

impl Hash for NodeName {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.key.hash(state);
    }
}

impl fmt::Display for NodeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.text)
    }
}

impl fmt::Debug for NodeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.text, f)
    }
}

impl From<NodeName> for String {
    fn from(name: NodeName) -> Self {
        name.text.into()
    }
}

impl TryFrom<String> for NodeName {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        Self::new(text)
    }
}

/// A checkpoint that a job made: all that is needed to find it again, on whatever node its machine lives by then.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct CheckpointRef {
    /// The machine.
    pub vm: VmId,
    /// The checkpoint.
    pub checkpoint: CheckpointId,
}

/// Where change tracking of a machine starts from, findable on whatever node the machine lives.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct TrackingPointRef {
    /// The machine.
    pub vm: VmId,
    /// The point.
    pub point: TrackingPointId,
}

/// Who tracks changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum TrackingScheme {
    /// Hyper-V's Resilient Change Tracking: the value is an identifier out of a reference point.
    Rct,
    /// A dirty bitmap of QEMU: the value is its name.
    DirtyBitmap,
}

/// "Everything since here": kept with exactly one version of one disk, meaningless with any other.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct TrackingToken {
    /// Who tracks.
    pub scheme: TrackingScheme,
    /// The tracker's own word, opaque.
    pub value: String,
    /// The disk's identity at that time, where the image has one: tracking of another disk says nothing about this one.
    pub disk: Option<DiskIdentity>,
    /// The disk's size at that time.
    pub size_bytes: u64,
}
