//! Names and ids of the estate.
//!
//! **Invariants.** Ids are shown as Hyper-V shows them: upper case, without braces. Names compare without case, as Windows
//! compares them, and keep the spelling that they were given.

use std::cmp::Ordering;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::str::FromStr;
use std::sync::Arc;

use uuid::Uuid;

use crate::Error;

macro_rules! guid {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub Uuid);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                let mut text = Uuid::encode_buffer();
                f.write_str(self.0.hyphenated().encode_upper(&mut text))
            }
        }

        impl FromStr for $name {
            type Err = Error;

            /// With or without braces, in any case.
            fn from_str(text: &str) -> Result<Self, Error> {
                Uuid::try_parse(text.trim_matches(['{', '}']))
                    .map(Self)
                    .map_err(|_| Error::invalid(format!("{text:?} is no GUID")))
            }
        }
    };
}

guid! {
    /// A virtual machine: `Msvm_ComputerSystem.Name`. The same VM has the same id on whichever host it lives.
    VmId
}
guid! {
    /// A checkpoint: the GUID behind `Microsoft:` in the InstanceID of its settings.
    CheckpointId
}
guid! {
    /// A reference point.
    ReferencePointId
}
guid! {
    /// A job.
    JobId
}
guid! {
    /// A device or controller of a VM.
    DeviceId
}
guid! {
    /// A group or resource of a cluster.
    ClusterObjectId
}

macro_rules! name {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone)]
        pub struct $name(Arc<str>);

        impl $name {
            /// The name as it was spelled.
            pub fn new(name: impl AsRef<str>) -> Self {
                Self(Arc::from(name.as_ref()))
            }

            /// As it was spelled.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl PartialEq for $name {
            fn eq(&self, other: &Self) -> bool {
                self.cmp(other) == Ordering::Equal
            }
        }

        impl Eq for $name {}

        impl PartialOrd for $name {
            fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
                Some(self.cmp(other))
            }
        }

        impl Ord for $name {
            fn cmp(&self, other: &Self) -> Ordering {
                compare_without_case(&self.0, &other.0)
            }
        }

        impl Hash for $name {
            fn hash<H: Hasher>(&self, state: &mut H) {
                for c in self.0.chars().flat_map(char::to_lowercase) {
                    c.hash(state);
                }
            }
        }

        impl From<&str> for $name {
            fn from(name: &str) -> Self {
                Self::new(name)
            }
        }
    };
}

name! {
    /// A host: its NetBIOS name, as Hyper-V's `SystemName` has it.
    HostName
}
name! {
    /// A failover cluster.
    ClusterName
}
name! {
    /// A group (role) of a cluster.
    GroupName
}
name! {
    /// A resource of a cluster.
    ResourceName
}
name! {
    /// A virtual switch of a host.
    SwitchName
}

/// Compares as Windows compares names.
pub(crate) fn compare_without_case(left: &str, right: &str) -> Ordering {
    left.chars()
        .flat_map(char::to_lowercase)
        .cmp(right.chars().flat_map(char::to_lowercase))
}

/// One system of one host, realized or planned, for as long as it exists: what events and jobs hold on to. A VM that moves
/// keeps it; a copy of a VM on another host, with the same [`VmId`], has another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SystemKey(pub(super) u64);

/// Where a drive sits: controller device, number of the controller among its kind, slot on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DriveAddress {
    /// The controller's device id.
    pub controller: DeviceId,
    /// Which controller of its kind, from 0.
    pub number: u32,
    /// Where on it.
    pub slot: u32,
}

impl fmt::Display for DriveAddress {
    /// As it stands in an InstanceID: `83F8638B-8DCA-4152-9EDA-2CA8B33039B4\0\1`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}\\{}\\{}", self.controller, self.number, self.slot)
    }
}

/// The text by which resilient change tracking names a state of a disk. Opaque to whoever is given it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RctId(pub(super) String);

impl RctId {
    /// A text that somebody says is one.
    pub fn from_text(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for RctId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
