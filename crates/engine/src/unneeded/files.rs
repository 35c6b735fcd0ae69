//! Files whose contents nobody needs after a boot: page files of Windows, swap files of Linux, what a sleep left behind.
//!
//! | file | left out | kept |
//! |---|---|---|
//! | `\pagefile.sys` | its contents | with a crash dump in it that Windows has not saved yet |
//! | `\swapfile.sys` | its contents | |
//! | `\hiberfil.sys` | zeroed, or after waking up | a Windows that sleeps, or may, keeps the whole disk |
//! | swap file in `/etc/fstab` on ext | all behind its header | with holes; a Linux that sleeps, or may, keeps the whole disk |
//!
//! What Windows writes while it goes down, it writes past NTFS: the beginning of its files is looked at where it lies, also
//! behind the length that NTFS calls initialized.
//!
//! The files of Windows are taken for such only with the attributes that Windows gives them and under one name.
//! A swap file on a file system that shares clusters between files is kept: another file may have them, too.

use std::ops::ControlFlow;

use block::ReadAt;
use guestfs::filesystem::{FileKind, FileSystemKind, VolumeRange};
use guestfs::{FileId, FileName, FileSystem};

use super::swap::{self, SwapHead};
use crate::inside::{InsideDisks, LastLink, VolumeNumber, read_file};
use crate::transfer::explained;
use crate::{Cancellation, Error, ErrorKind, Result};

/// Longest `fstab` that is read.
const FSTAB_BYTES_MAX: u64 = 256 << 10;
/// Most swap files of it that are looked at.
const SWAP_FILES_MAX: usize = 64;
/// `FILE_ATTRIBUTE_*` of Windows.
const HIDDEN: u32 = 0x2;
const SYSTEM: u32 = 0x4;
const SPARSE: u32 = 0x200;
const COMPRESSED: u32 = 0x800;
const ENCRYPTED: u32 = 0x4000;
/// The first page of a hibernation file.
const PAGE_BYTES: usize = 4_096;

/// What becomes of a file's contents.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum FileFate {
    /// Left out from here on.
    LeaveOut {
        /// First byte of the file.
        from_bytes: u64,
        /// Up to here, or to its end.
        to_bytes: u64,
    },
    /// Kept, for this reason.
    Keep(String),
}

/// One such file.
pub(super) struct SpecialFile {
    pub path: String,
    pub file: FileId,
    pub fate: FileFate,
}

/// The files of a file system, and why the system that they belong to is asleep, if it is.
pub(super) fn find(
    inside: &InsideDisks,
    number: VolumeNumber,
    kind: FileSystemKind,
    fs: &dyn FileSystem,
) -> (Vec<SpecialFile>, Option<String>) {
    let found = match kind {
        FileSystemKind::Ntfs => find_windows(inside, number, fs),
        FileSystemKind::Ext2 | FileSystemKind::Ext3 | FileSystemKind::Ext4 => {
            find_linux(inside, number, fs)
        }
        // Only whether a system sleeps there: other files may share the bytes of a swap file.
        FileSystemKind::Xfs | FileSystemKind::Btrfs => find_linux(inside, number, fs)
            .into_iter()
            .map(|(path, file, state)| {
                let is_shared = matches!(state, Ok(State::Unneeded { .. }));
                let shared = || Ok(State::Needed("other files may share its bytes"));
                (path, file, if is_shared { shared() } else { state })
            })
            .collect(),
        _ => Vec::new(),
    };
    let mut files = Vec::new();
    let mut asleep = None;
    for (path, file, state) in found {
        let fate = match state {
            Ok(State::Unneeded {
                from_bytes,
                to_bytes,
            }) => FileFate::LeaveOut {
                from_bytes,
                to_bytes,
            },
            Ok(State::Needed(why)) => FileFate::Keep(why.to_owned()),
            Ok(State::Asleep(system)) => {
                asleep = Some(format!("volume {number} holds a sleeping {system}: {path}"));
                FileFate::Keep(format!("{system} sleeps in it"))
            }
            Ok(State::PerhapsAsleep(system)) => {
                asleep = Some(format!(
                    "volume {number} may hold a sleeping {system}: the beginning of {path} is not known"
                ));
                FileFate::Keep(format!("{system} may sleep in it"))
            }
            Err(error) => FileFate::Keep(explained(&error)),
        };
        files.push(SpecialFile { path, file, fate });
    }
    (files, asleep)
}

/// What the beginning of a file tells.
enum State {
    Unneeded { from_bytes: u64, to_bytes: u64 },
    Needed(&'static str),
    Asleep(&'static str),
    PerhapsAsleep(&'static str),
}

type Found = Vec<(String, FileId, Result<State>)>;

fn find_windows(inside: &InsideDisks, number: VolumeNumber, fs: &dyn FileSystem) -> Found {
    let volume = inside.volume(number).ok();
    let volume = volume.and_then(|volume| volume.reader.as_ref().ok());
    let root = fs.root();
    let mut found = Vec::new();
    for name in ["pagefile.sys", "swapfile.sys", "hiberfil.sys"] {
        match fs.find(root, &FileName::from(name)) {
            Ok(Some(file)) => {
                let state = windows_state(fs, volume.map(|it| &**it), file, name);
                found.push((format!("/{name}"), file, state));
            }
            Ok(None) => {}
            Err(error) => found.push((format!("/{name}"), root, Err(error.into()))),
        }
    }
    found
}

fn windows_state(
    fs: &dyn FileSystem,
    volume: Option<&dyn ReadAt>,
    file: FileId,
    name: &str,
) -> Result<State> {
    let metadata = fs.metadata(file)?;
    if metadata.kind != FileKind::Regular || metadata.obstacle.is_some() {
        return Ok(State::Needed("it is no plain file"));
    }
    let attributes = metadata.windows_attributes.unwrap_or(0);
    // Windows makes them so. A copy that somebody keeps is a file as any other; under a second name it is one, too.
    if metadata.link_count != 1
        || attributes & (SYSTEM | HIDDEN) != SYSTEM | HIDDEN
        || attributes & (SPARSE | COMPRESSED | ENCRYPTED) != 0
    {
        return Ok(State::Needed(
            "it is not as Windows makes it: a hidden system file",
        ));
    }
    let reader = fs.open(file, None)?;
    let mut head = vec![0; PAGE_BYTES];
    block::read_padded(&*reader, 0, &mut head)?;
    let told = state_of_head(name, &head);
    if !matches!(told, State::Unneeded { .. }) {
        return Ok(told);
    }
    let volume = volume.ok_or_else(|| Error::new(ErrorKind::Invalid, "its volume is closed"))?;
    let raw = raw_head(fs, volume, file)?;
    Ok(state_of_head(name, &raw))
}

/// The first page of a file as it lies on its volume, whatever its file system says of its length.
fn raw_head(fs: &dyn FileSystem, volume: &dyn ReadAt, file: FileId) -> Result<Vec<u8>> {
    let mut head = Vec::with_capacity(PAGE_BYTES);
    let mut ranges = Vec::new();
    let mut left = PAGE_BYTES;
    fs.file_ranges(file, &mut |range| {
        let length = usize::try_from(range.length_bytes).unwrap_or(left);
        let length = length.min(left);
        ranges.push((range.offset, length));
        left = left.saturating_sub(length);
        if left == 0 {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        }
    })?;
    for (offset, length) in ranges {
        let mut part = vec![0; length];
        block::read_padded(volume, offset, &mut part)?;
        head.extend(part);
    }
    head.resize(PAGE_BYTES, 0);
    Ok(head)
}

/// What the first page of a file of Windows tells.
fn state_of_head(name: &str, head: &[u8]) -> State {
    let mark = head.get(..4).unwrap_or_default().to_ascii_lowercase();
    match (name, mark.as_slice()) {
        ("hiberfil.sys", b"hibr" | b"rstr") => State::Asleep("Windows"),
        ("hiberfil.sys", b"wake") => State::Unneeded {
            from_bytes: 0,
            to_bytes: u64::MAX,
        },
        ("hiberfil.sys", _) if head.iter().any(|byte| *byte != 0) => {
            State::PerhapsAsleep("Windows")
        }
        ("pagefile.sys", b"page") if head.get(4..8).is_some_and(is_dump) => {
            State::Needed("it holds a crash dump that Windows has not saved yet")
        }
        _ => State::Unneeded {
            from_bytes: 0,
            to_bytes: u64::MAX,
        },
    }
}

/// The second half of the signature of a dump, of 32 and of 64 bits.
fn is_dump(mark: &[u8]) -> bool {
    matches!(mark, b"DUMP" | b"DU64")
}

fn find_linux(inside: &InsideDisks, number: VolumeNumber, fs: &dyn FileSystem) -> Found {
    let fstab = match fstab(inside, number) {
        Ok(Some(text)) => text,
        Ok(None) => return Vec::new(),
        Err(error) => {
            return vec![("/etc/fstab".to_owned(), fs.root(), Err(error))];
        }
    };
    let mut found = Vec::new();
    for path in swap_files(&fstab).into_iter().take(SWAP_FILES_MAX) {
        // Names that are not UTF-8 in the file would be lost as text: then it is not found, and kept.
        match inside.locate(&format!("{number}:{path}"), LastLink::Follow) {
            Ok(Some(place)) => {
                let state = swap_state(fs, place.file);
                found.push((place.display_path(), place.file, state));
            }
            Ok(None) => {}
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => found.push((path, fs.root(), Err(error))),
        }
    }
    found
}

/// `/etc/fstab` of a volume, if it has one.
fn fstab(inside: &InsideDisks, number: VolumeNumber) -> Result<Option<String>> {
    let place = match inside.locate(&format!("{number}:/etc/fstab"), LastLink::Follow) {
        Ok(Some(place)) => place,
        Ok(None) => return Ok(None),
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let size_bytes = place.file_system.metadata(place.file)?.size_bytes;
    if size_bytes > FSTAB_BYTES_MAX {
        let what = format!("/etc/fstab has {size_bytes} bytes");
        return Err(Error::new(ErrorKind::Unsupported, what));
    }
    let mut bytes = Vec::new();
    read_file(&place, &Cancellation::default(), |piece| {
        bytes.extend_from_slice(piece);
        Ok(())
    })?;
    Ok(Some(String::from_utf8_lossy(&bytes).into_owned()))
}

/// Paths of the swap files that an `fstab` names.
fn swap_files(fstab: &str) -> Vec<String> {
    let mut paths = Vec::new();
    for line in fstab.lines() {
        let mut words = line.split_ascii_whitespace();
        let (Some(place), Some(_), Some("swap")) = (words.next(), words.next(), words.next())
        else {
            continue;
        };
        let path = unescaped(place);
        if path.starts_with('/') && !path.starts_with("/dev/") && !paths.contains(&path) {
            paths.push(path);
        }
    }
    paths
}

/// `\040` and the like, as fstab(5) writes blanks.
fn unescaped(word: &str) -> String {
    ["\\040", "\\011", "\\012", "\\134"]
        .into_iter()
        .zip([" ", "\t", "\n", "\\"])
        .fold(word.to_owned(), |text, (from, to)| text.replace(from, to))
}

fn swap_state(fs: &dyn FileSystem, file: FileId) -> Result<State> {
    let metadata = fs.metadata(file)?;
    if metadata.kind != FileKind::Regular || metadata.obstacle.is_some() {
        return Ok(State::Needed("it is no plain file"));
    }
    if metadata.link_count != 1 {
        return Ok(State::Needed("it has more names than one"));
    }
    let reader = fs.open(file, None)?;
    Ok(match swap::head(&*reader)? {
        SwapHead::Asleep => State::Asleep("Linux"),
        SwapHead::Other => State::PerhapsAsleep("Linux"),
        SwapHead::Used(end_bytes) => {
            // With holes it could not be used, and where its bytes lie would not tell which of the file they are.
            let mut allocated = 0_u64;
            fs.file_ranges(file, &mut |range| {
                allocated = allocated.saturating_add(range.length_bytes);
                ControlFlow::Continue(())
            })?;
            if allocated < reader.size_bytes() {
                State::Needed("it has holes")
            } else {
                // What its header does not claim may be anything.
                State::Unneeded {
                    from_bytes: swap::HEADER_BYTES,
                    to_bytes: end_bytes,
                }
            }
        }
    })
}

/// Tells where the contents of a file lie, between two bytes of it; or why that is not known.
pub(super) fn ranges(
    fs: &dyn FileSystem,
    file: &SpecialFile,
    (from_bytes, to_bytes): (u64, u64),
    add: &mut dyn FnMut(VolumeRange),
) -> std::result::Result<(), String> {
    let mut passed = 0_u64;
    fs.file_ranges(file.file, &mut |range| {
        let skip = from_bytes.saturating_sub(passed).min(range.length_bytes);
        let end = to_bytes.saturating_sub(passed).min(range.length_bytes);
        passed = passed.saturating_add(range.length_bytes);
        if skip < end {
            add(VolumeRange {
                offset: range.offset.saturating_add(skip),
                length_bytes: end.saturating_sub(skip),
            });
        }
        ControlFlow::Continue(())
    })
    .map_err(|error| explained(&error.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_paths_of_swap_files_are_taken_from_an_fstab() {
        let fstab = "# /commented none swap sw 0 0\n\
            UUID=1234 / ext4 defaults 0 1\n\
            /dev/sda2 none swap sw 0 0\n\
            /swap.img\tnone\tswap\tsw\t0\t0\n\
            /var/my\\040swap none swap defaults 0 0\n\
            /swap.img none swap sw 0 0\n\
            UUID=5678 none swap sw 0 0\n\
            /data /mnt none bind\n\
            /short none\n";
        assert_eq!(swap_files(fstab), ["/swap.img", "/var/my swap"]);
    }
}
