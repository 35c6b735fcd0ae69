//! What of a file stands beside its bytes: set on the host as far as it can, else noted.
//!
//! **Invariants.** Named values are set before the mode, which may forbid it, and after the owner, whose change takes
//! capabilities away; times come last. What runs with its owner's rights does not do so with another's. What the host
//! took but does not hold (a time out of its range) is noted like what it refused.

use guestfs::filesystem::{FileTimes, SecurityDescriptor, Timestamp};
use rustix::fs::{AtFlags, Gid, Mode, Stat, Timespec, Timestamps, Uid, XattrFlags};

use super::note::{Beside, Note, moment};
use super::walk::Found;

/// Seconds from 1601, where Windows begins to count, to 1970.
const WINDOWS_EPOCH_SECONDS: i64 = 11_644_473_600;

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
    // A host would take the moment of extraction where the disk knows none.
    Timestamps {
        last_access: timespec(times.accessed.or(times.modified)),
        last_modification: timespec(times.modified),
    }
}

/// What the host can do that others cannot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum HostKind {
    /// A Unix file system.
    Unix,
    /// An NTFS volume mounted with ntfs-3g: it takes security descriptors, attributes and times of Windows.
    Ntfs,
}

/// Whether a folder of the host lies on NTFS.
pub(super) fn host_kind(folder: impl std::os::fd::AsFd) -> HostKind {
    let mut value = [0; 4];
    match rustix::fs::fgetxattr(folder, "system.ntfs_attrib_be", &mut value) {
        Ok(4) => HostKind::Ntfs,
        _ => HostKind::Unix,
    }
}

/// Sets everything of an open file or folder that is not so already; what cannot be set goes into the note. `held` is
/// how it stands now.
pub(super) fn set(
    file: impl std::os::fd::AsFd,
    held: &Stat,
    found: &Found,
    beside: &mut Beside,
    host: HostKind,
) -> rustix::io::Result<()> {
    let file = file.as_fd();
    let (metadata, note) = (&found.metadata, &mut beside.note);
    let is_owned = metadata.owner.is_none_or(|owner| {
        let (user, group) = (Uid::from_raw(owner.user), Gid::from_raw(owner.group));
        (held.st_uid, held.st_gid) == (owner.user, owner.group)
            || rustix::fs::fchown(file, Some(user), Some(group)).is_ok()
    });
    let has_attributes = !beside.attributes.is_empty();
    for attribute in &beside.attributes {
        let name = attribute.name.as_bytes();
        if rustix::fs::fsetxattr(file, name, &attribute.value, XattrFlags::empty()).is_err() {
            note.add_attribute(attribute);
        }
    }
    if let Some(owner) = metadata.owner {
        let bits = if is_owned { 0o7777 } else { 0o777 };
        let mode = Mode::from_raw_mode(u32::from(owner.mode & bits));
        // An access control list among the named values changes the mode.
        let is_same = !has_attributes && held.st_mode & 0o7777 == mode.as_raw_mode();
        let is_set = is_same || rustix::fs::fchmod(file, mode).is_ok();
        if !is_owned || !is_set {
            note.add_owner(found);
        }
    }
    let is_timed = rustix::fs::futimens(file, &timestamps(&metadata.times)).is_ok();
    if !is_timed || !is_ordinary(&metadata.times) {
        let held = rustix::fs::fstat(file)?;
        note_times(note, &metadata.times, is_timed.then_some(&held));
    }
    if host == HostKind::Ntfs {
        set_windows(file, found, beside.security.as_ref(), note);
    }
    Ok(())
}

/// Whether every host holds these times.
fn is_ordinary(times: &FileTimes) -> bool {
    // From when FAT counts to when 31 bits end.
    let is_one = |time: Timestamp| (315_532_800..i64::from(i32::MAX)).contains(&time.seconds);
    [times.modified, times.accessed]
        .into_iter()
        .flatten()
        .all(is_one)
}

/// Notes times that the host does not hold to the second. (FAT counts in two seconds.)
fn note_times(note: &mut Note, times: &FileTimes, held: Option<&Stat>) {
    let is_held = |wanted: Option<Timestamp>, seconds: i64| {
        wanted.is_none_or(|wanted| seconds == wanted.seconds || seconds == (wanted.seconds & !1))
    };
    if held.is_none_or(|held| !is_held(times.modified, held.st_mtime)) {
        note.modified = moment(times.modified);
    }
    if held.is_none_or(|held| !is_held(times.accessed, held.st_atime)) {
        note.accessed = moment(times.accessed);
    }
}

/// What ntfs-3g takes; what it took is not noted.
fn set_windows(
    file: std::os::fd::BorrowedFd<'_>,
    found: &Found,
    security: Option<&SecurityDescriptor>,
    note: &mut Note,
) {
    let give = |name: &str, value: &[u8]| {
        rustix::fs::fsetxattr(file, name, value, XattrFlags::empty()).is_ok()
    };
    if let Some(security) = security
        && give("system.ntfs_acl", &security.0)
    {
        note.security_descriptor = None;
        note.security_descriptor_sddl = None;
    }
    if let Some(attributes) = found.metadata.windows_attributes
        && give("system.ntfs_attrib_be", &attributes.to_be_bytes())
    {
        note.windows_attributes = None;
    }
    if let Some(ticks) = found.metadata.times.created.and_then(windows_ticks)
        && give("system.ntfs_crtime_be", &ticks.to_be_bytes())
    {
        note.created = None;
    }
}

/// A moment in ticks of 100 nanoseconds since 1601.
pub(super) fn windows_ticks(time: Timestamp) -> Option<u64> {
    let seconds = time.seconds.checked_add(WINDOWS_EPOCH_SECONDS)?;
    let seconds = u64::try_from(seconds).ok()?;
    seconds
        .checked_mul(10_000_000)?
        .checked_add(u64::from(time.nanoseconds / 100))
}

/// Sets owner, times and, unless it is a link, the mode of something that has no bytes, by its name.
pub(super) fn set_by_name(
    folder: impl std::os::fd::AsFd,
    name: &str,
    found: &Found,
    beside: &mut Beside,
) -> rustix::io::Result<()> {
    let flags = AtFlags::SYMLINK_NOFOLLOW;
    let (metadata, note) = (&found.metadata, &mut beside.note);
    if let Some(owner) = metadata.owner {
        let (user, group) = (Uid::from_raw(owner.user), Gid::from_raw(owner.group));
        let owned = rustix::fs::chownat(&folder, name, Some(user), Some(group), flags);
        let is_link = metadata.kind == guestfs::filesystem::FileKind::SymbolicLink;
        let mode = Mode::from_raw_mode(u32::from(owner.mode));
        // It lies in a folder of ours, so that there is no link that this could follow.
        let has_mode =
            is_link || rustix::fs::chmodat(&folder, name, mode, AtFlags::empty()).is_ok();
        if owned.is_err() || !has_mode {
            note.add_owner(found);
        }
    }
    for attribute in &beside.attributes {
        note.add_attribute(attribute);
    }
    let times = rustix::fs::utimensat(&folder, name, &timestamps(&metadata.times), flags);
    let held = rustix::fs::statat(&folder, name, flags)?;
    note_times(note, &metadata.times, times.is_ok().then_some(&held));
    Ok(())
}
