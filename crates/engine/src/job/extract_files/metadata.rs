//! What of a file stands beside its bytes: set on the host as far as it can, else noted in the side file.
//!
//! ```text
//!   {"path": "/ann/x.txt", "written_as": "…", "kind": "file", "owner": […], "mode": "0644",
//!    "windows_attributes": 32, "created": [seconds, nanoseconds], "security_descriptor": "0100…",
//!    "extended_attributes": {"security.x": "00ff…"}, "streams": {"Zone.Identifier": "5b5a…"}, "link_target": "…"}
//! ```
//!
//! A line has only what the host does not hold. Bytes are hexadecimal digits.

use std::collections::BTreeMap;

use guestfs::filesystem::{ExtendedAttribute, FileTimes, Metadata, Timestamp};
use rustix::fs::{AtFlags, Gid, Mode, Timespec, Timestamps, Uid, XattrFlags};
use serde::Serialize;

/// A line of the side file.
#[derive(Debug, Default, Serialize)]
pub(super) struct Note {
    pub(super) path: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) path_bytes: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) written_as: Option<String>,
    pub(super) kind: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) owner: Option<[u32; 2]>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) mode: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) windows_attributes: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) created: Option<(i64, u32)>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) security_descriptor: Option<String>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub(super) extended_attributes: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub(super) streams: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) link_target: Option<String>,
}

impl Note {
    /// Whether it says anything that the host does not hold.
    pub(super) fn is_needed(&self) -> bool {
        self.written_as.is_some()
            || self.owner.is_some()
            || self.windows_attributes.is_some()
            || self.security_descriptor.is_some()
            || !self.extended_attributes.is_empty()
            || !self.streams.is_empty()
            || self.link_target.is_some()
    }
}

/// Bytes as hexadecimal digits.
pub(super) fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn timespec(time: Option<Timestamp>) -> Timespec {
    time.map_or(
        Timespec {
            tv_sec: 0,
            tv_nsec: rustix::fs::UTIME_OMIT,
        },
        |time| Timespec {
            tv_sec: time.seconds,
            tv_nsec: time.nanoseconds.into(),
        },
    )
}

fn timestamps(times: &FileTimes) -> Timestamps {
    Timestamps {
        last_access: timespec(times.accessed),
        last_modification: timespec(times.modified),
    }
}

/// Sets everything of an open file or folder; what cannot be set goes into the note. Times come last.
pub(super) fn set(
    file: impl std::os::fd::AsFd,
    metadata: &Metadata,
    attributes: &[ExtendedAttribute],
    note: &mut Note,
) -> rustix::io::Result<()> {
    let file = file.as_fd();
    if let Some(owner) = metadata.owner {
        let (user, group) = (Uid::from_raw(owner.user), Gid::from_raw(owner.group));
        let is_owned = rustix::fs::fchown(file, Some(user), Some(group)).is_ok();
        // What runs with its owner's rights must not do so with another's.
        let bits = if is_owned { 0o7777 } else { 0o777 };
        if !is_owned {
            note.owner = Some([owner.user, owner.group]);
            note.mode = Some(format!("{:04o}", owner.mode));
        }
        rustix::fs::fchmod(file, Mode::from_raw_mode(u32::from(owner.mode & bits)))?;
    }
    for attribute in attributes {
        let name = attribute.name.as_bytes();
        if rustix::fs::fsetxattr(file, name, &attribute.value, XattrFlags::empty()).is_err() {
            let value = hexadecimal(&attribute.value);
            note.extended_attributes
                .insert(attribute.name.to_string(), value);
        }
    }
    rustix::fs::futimens(file, &timestamps(&metadata.times))
}

/// Sets owner and times of a link.
pub(super) fn set_link(
    folder: impl std::os::fd::AsFd,
    name: &str,
    metadata: &Metadata,
    note: &mut Note,
) -> rustix::io::Result<()> {
    let flags = AtFlags::SYMLINK_NOFOLLOW;
    if let Some(owner) = metadata.owner {
        let (user, group) = (Uid::from_raw(owner.user), Gid::from_raw(owner.group));
        if rustix::fs::chownat(&folder, name, Some(user), Some(group), flags).is_err() {
            note.owner = Some([owner.user, owner.group]);
        }
    }
    rustix::fs::utimensat(&folder, name, &timestamps(&metadata.times), flags)
}
