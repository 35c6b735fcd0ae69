//! Where a file lies, from what an operator typed.
//!
//! ```text
//!   /etc/hosts            the only file system        C:\Users\x   a drive letter, where Windows tells which volume it is
//!   2:/etc/hosts          volume 2                    DATA:/x      a label, or a volume's name (`vg/root:/etc`)
//! ```
//!
//! A path that begins with a slash names no volume. On file systems of Windows `\` parts names, too, and case does not
//! count. Symbolic links on the way are followed on file systems of Unix, inside their own file system, at most 40;
//! those of Windows are not. `..` is refused where it is typed: it has no meaning that everybody shares.

use std::sync::Arc;

use guestfs::disk::Lock;
use guestfs::filesystem::{FileKind, FileSystemKind};
use guestfs::{FileId, FileName, FileSystem};

use super::{InsideDisks, VolumeNumber, is_of_windows};
use crate::{Error, ErrorKind, Result};

/// As many links as Linux follows.
const LINKS_MAX: usize = 40;
/// Longest path: components.
const COMPONENTS_MAX: usize = 10_000;
/// Longest target of a link that is followed.
const TARGET_BYTES_MAX: usize = 64 << 10;

/// A file that was found.
#[derive(Clone)]
pub struct Place {
    /// On which volume.
    pub volume: VolumeNumber,
    /// Its file system.
    pub file_system: Arc<dyn FileSystem>,
    /// The file.
    pub file: FileId,
    /// Its path there, from the root.
    pub path: Vec<FileName>,
}

impl Place {
    /// Its path as text, from the root, with slashes.
    pub fn display_path(&self) -> String {
        display_path(&self.path)
    }
}

/// A path as text, from the root, with slashes.
pub fn display_path(path: &[FileName]) -> String {
    if path.is_empty() {
        return "/".to_owned();
    }
    path.iter().map(|name| format!("/{name}")).collect()
}

/// Whether a link is followed when it is the last of a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LastLink {
    /// What it leads to is meant.
    Follow,
    /// The link itself is meant.
    Keep,
}

/// What parts the names of a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Separators {
    /// `/` only.
    Unix,
    /// `/` and `\`.
    Windows,
}

impl Separators {
    /// As on a file system of this kind.
    pub fn of(kind: FileSystemKind) -> Self {
        if is_of_windows(kind) {
            Self::Windows
        } else {
            Self::Unix
        }
    }
}

/// The names of a typed path.
///
/// # Errors
/// [`ErrorKind::Invalid`] for `..` and for paths that are too long.
pub(super) fn components(path: &str, separators: Separators) -> Result<Vec<FileName>> {
    let is_separator = |c: char| c == '/' || (separators == Separators::Windows && c == '\\');
    let mut names = Vec::new();
    for part in path.split(is_separator) {
        match part {
            "" | "." => {}
            ".." => {
                let what = format!("{path}: write the path without `..`");
                return Err(Error::new(ErrorKind::Invalid, what));
            }
            _ if names.len() >= COMPONENTS_MAX => {
                return Err(Error::new(ErrorKind::Invalid, "the path is too long"));
            }
            part => names.push(FileName::from(part)),
        }
    }
    Ok(names)
}

/// What stands before the colon, and the path behind it.
pub(super) fn split_volume(typed: &str) -> (Option<&str>, &str) {
    if typed.starts_with(['/', '\\']) {
        return (None, typed);
    }
    for (at, _) in typed.match_indices(':') {
        let (before, after) = (typed.get(..at), typed.get(at.saturating_add(1)..));
        if let (Some(before), Some(after)) = (before, after)
            && !before.is_empty()
            && (after.is_empty() || after.starts_with(['/', '\\']))
        {
            return (Some(before), after);
        }
    }
    (None, typed)
}

impl InsideDisks {
    /// Which volume a typed path means, and the rest of the path; no volume when it means the list of all.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] when the volume is not there, [`ErrorKind::Invalid`] when it is needed and not said.
    pub fn choose_volume<'p>(&self, typed: &'p str) -> Result<(Option<VolumeNumber>, &'p str)> {
        let (wish, path) = split_volume(typed);
        if let Some(wish) = wish {
            return Ok((Some(self.volume_called(wish)?), path));
        }
        let readable: Vec<_> = self.readable().map(|(number, _)| number).collect();
        if let [only] = readable.as_slice() {
            return Ok((Some(*only), path));
        }
        // One that a key would open says more than a list, or than that there is none.
        let locked = self
            .volumes()
            .find(|(_, volume)| matches!(volume.lock, Some(Lock::Closed(_))));
        if let (true, Some((number, _))) = (readable.is_empty(), locked) {
            return Ok((Some(number), path));
        }
        if components(path, Separators::Windows).is_ok_and(|names| names.is_empty()) {
            return Ok((None, path));
        }
        let Some(first) = readable.first() else {
            let what = "no file system that can be read was found; `inspect` shows what is there";
            return Err(Error::new(ErrorKind::NotFound, what));
        };
        let what = format!(
            "there are {} file systems: say on which volume {path} lies, as in `{first}:{path}` (`inspect` shows their numbers)",
            readable.len()
        );
        Err(Error::new(ErrorKind::Invalid, what))
    }

    fn volume_called(&self, wish: &str) -> Result<VolumeNumber> {
        if let Ok(number) = wish.parse::<usize>() {
            self.volume(VolumeNumber(number))?;
            return Ok(VolumeNumber(number));
        }
        if let Some((number, _)) = self.volumes().find(|(_, volume)| volume.name == wish) {
            return Ok(number);
        }
        let labelled: Vec<_> = self
            .volumes()
            .filter(|(_, volume)| {
                let label = volume.content.label.as_deref();
                label.is_some_and(|label| label.eq_ignore_ascii_case(wish))
            })
            .map(|(number, _)| number)
            .collect();
        // NTFS tells its label only once it is opened.
        let opened = || {
            self.readable().map(|(number, _)| number).filter(|number| {
                let facts = self.file_system(*number);
                facts.is_ok_and(|fs| {
                    let label = fs.facts().label.as_deref();
                    label.is_some_and(|label| label.eq_ignore_ascii_case(wish))
                })
            })
        };
        let found = if labelled.is_empty() {
            opened().collect()
        } else {
            labelled
        };
        match found.as_slice() {
            [one] => return Ok(*one),
            [] => {}
            more => {
                let numbers: Vec<String> = more.iter().map(ToString::to_string).collect();
                let what = format!(
                    "volumes {} are all called {wish:?}: use a number",
                    numbers.join(", ")
                );
                return Err(Error::new(ErrorKind::Invalid, what));
            }
        }
        if let Some(number) = self.volume_of_letter(wish)? {
            return Ok(number);
        }
        let what = format!(
            "no volume is called {wish:?}; `inspect` shows their numbers, names and labels"
        );
        Err(Error::new(ErrorKind::NotFound, what))
    }

    /// Finds the file that a typed path means; `None` when it means the list of volumes.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] with the part of the path that is not there; what reading answered.
    pub fn locate(&self, typed: &str, last: LastLink) -> Result<Option<Place>> {
        let (Some(volume), path) = self.choose_volume(typed)? else {
            return Ok(None);
        };
        let file_system = self.file_system(volume)?;
        let names = components(path, Separators::of(file_system.facts().kind))?;
        let start = Place {
            volume,
            file: file_system.root(),
            file_system,
            path: Vec::new(),
        };
        walk(&start, names, last).map(Some)
    }
}

/// Goes from a directory down a path.
pub(super) fn walk(from: &Place, names: Vec<FileName>, last: LastLink) -> Result<Place> {
    let fs = &from.file_system;
    let follows = !is_of_windows(fs.facts().kind);
    let mut way: Vec<(FileName, FileId)> = Vec::new();
    let mut left: Vec<FileName> = names.into_iter().rev().collect();
    let mut links = 0_usize;
    let (mut prefix, mut base) = (from.path.clone(), from.file);
    while let Some(name) = left.pop() {
        if name.as_bytes() == b".." {
            if way.pop().is_none() {
                // Above where this began: down again from the root. The root is above itself.
                prefix.pop();
                left.extend(prefix.drain(..).rev());
                base = fs.root();
            }
            continue;
        }
        let directory = way.last().map_or(base, |(_, file)| *file);
        let path_of = |way: &[(FileName, FileId)]| {
            let names = prefix.iter().chain(way.iter().map(|(name, _)| name));
            display_path(&names.cloned().collect::<Vec<_>>())
        };
        let found = fs.find(directory, &name).map_err(|error| {
            if error.kind() == guestfs::ErrorKind::Invalid {
                let what = format!("{} is no folder", path_of(&way));
                guestfs::Error::new(guestfs::ErrorKind::NotFound, what)
            } else {
                error.within(path_of(&way))
            }
        })?;
        let Some(file) = found else {
            let what = format!("{} has no {name}", path_of(&way));
            return Err(Error::new(ErrorKind::NotFound, what));
        };
        let is_followed = follows && (!left.is_empty() || last == LastLink::Follow);
        if is_followed && fs.metadata(file)?.kind == FileKind::SymbolicLink {
            links = links.saturating_add(1);
            let target = fs.read_link(file)?;
            if links > LINKS_MAX || target.as_bytes().len() > TARGET_BYTES_MAX {
                let what = format!("{}/{name}: too many links", path_of(&way));
                return Err(Error::new(ErrorKind::Corrupt, what));
            }
            if target.as_bytes().starts_with(b"/") {
                way.clear();
                prefix.clear();
                base = fs.root();
            }
            let parts = target.as_bytes().split(|byte| *byte == b'/').rev();
            left.extend(
                parts
                    .filter(|part| !matches!(*part, b"" | b"."))
                    .map(FileName::from_bytes),
            );
            continue;
        }
        way.push((name, file));
        if way.len().saturating_add(left.len()) > COMPONENTS_MAX {
            return Err(Error::new(ErrorKind::Invalid, "the path is too long"));
        }
    }
    let file = way.last().map_or(base, |(_, file)| *file);
    Ok(Place {
        volume: from.volume,
        file_system: Arc::clone(fs),
        file,
        path: prefix
            .into_iter()
            .chain(way.into_iter().map(|(name, _)| name))
            .collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_colon_before_a_separator_ends_the_name_of_a_volume() {
        assert_eq!(split_volume("/a:/b"), (None, "/a:/b"));
        assert_eq!(split_volume("2:/a:/b"), (Some("2"), "/a:/b"));
        assert_eq!(split_volume("C:\\Users"), (Some("C"), "\\Users"));
        assert_eq!(split_volume("vg/root:/etc"), (Some("vg/root"), "/etc"));
        assert_eq!(split_volume("C:"), (Some("C"), ""));
        assert_eq!(split_volume("a:b"), (None, "a:b"));
        assert_eq!(split_volume(":/b"), (None, ":/b"));
        assert_eq!(split_volume("a/b"), (None, "a/b"));
    }

    #[test]
    fn backslashes_part_names_on_windows_only() {
        let names = |path, separators| components(path, separators).map_err(|error| error.kind());
        assert_eq!(
            names("/a\\b/./c//", Separators::Unix),
            Ok(vec!["a\\b".into(), "c".into()])
        );
        assert_eq!(
            names("\\a\\b/c", Separators::Windows),
            Ok(vec!["a".into(), "b".into(), "c".into()])
        );
        assert_eq!(names("/a/../b", Separators::Unix), Err(ErrorKind::Invalid));
        assert_eq!(
            names("a\\..\\b", Separators::Windows),
            Err(ErrorKind::Invalid)
        );
    }
}
