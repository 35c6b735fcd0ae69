//! Finding the parents of differencing images.
//!
//! ```text
//!   child ──► ParentMap (what the caller knows) ──► paths the child gives, under a ParentPolicy ──► identity check
//!                 hit: nothing else is tried           each tried in turn, all named in the error
//! ```
//!
//! An image is a stranger's word: the paths inside it are followed only as far as the policy says, and a parent counts
//! only when its identity is the one that the child remembers. Formats that remember none (qcow2, VMDK without a
//! content id) may, unless the caller says [`ParentPolicy::Anywhere`] or maps them, only name files in or below their
//! own directory.
//!
//! **Invariants.** At most [`MAX_DEPTH`] images; a file that comes back in its own chain is an error. Which paths to try
//! is decided purely ([`plan_candidates`]); opening is the caller's [`FileOpener`].

#![cfg_attr(
    not(test),
    deny(
        clippy::indexing_slicing,
        clippy::arithmetic_side_effects,
        clippy::as_conversions,
        clippy::unwrap_used,
        clippy::expect_used
    )
)]

use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use block::ReadAt;

use crate::file::{AccessPattern, FileAccess, HostFile};
use crate::{Error, ErrorKind, Result};

/// The longest chain that is opened, leaf and root included.
pub const MAX_DEPTH: usize = 256;

/// How far the paths inside an image are followed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ParentPolicy {
    /// Only what the [`ParentMap`] says.
    MapOnly,
    /// Also a file of the right name beside the child.
    SameDirectory,
    /// Also paths relative to the child, `..` included where the parent's identity can be checked.
    #[default]
    Relative,
    /// Also absolute paths: for images of one's own.
    Anywhere,
}

/// Where parents lie, as far as the caller knows better than the images do.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ParentMap {
    by_child: BTreeMap<PathBuf, PathBuf>,
    by_locator: BTreeMap<String, PathBuf>,
}

impl ParentMap {
    /// The parent of the image at `child` lies at `parent`.
    #[must_use]
    pub fn with_child(mut self, child: impl Into<PathBuf>, parent: impl Into<PathBuf>) -> Self {
        self.by_child.insert(lexical(&child.into()), parent.into());
        self
    }

    /// What images call `locator` (a Windows path, compared without case) lies at `parent`.
    #[must_use]
    pub fn with_locator(mut self, locator: &str, parent: impl Into<PathBuf>) -> Self {
        self.by_locator.insert(locator_key(locator), parent.into());
        self
    }

    fn find(&self, child: &Path, locators: &[String]) -> Option<&PathBuf> {
        self.by_child.get(&lexical(child)).or_else(|| {
            locators
                .iter()
                .find_map(|path| self.by_locator.get(&locator_key(path)))
        })
    }
}

/// Opens files by path: the local disk, or whatever else the caller reads from.
pub trait FileOpener: Send + Sync {
    /// The file, or `None` when nothing is there.
    fn open_file(&self, path: &Path) -> Result<Option<Arc<dyn ReadAt>>>;

    /// One name per file, however it was reached: what cycles are found by.
    fn canonical_path(&self, path: &Path) -> Result<PathBuf>;
}

/// Files of this host.
#[derive(Debug, Clone, Copy, Default)]
pub struct HostFiles {
    /// How they are going to be read.
    pub pattern: AccessPattern,
}

impl FileOpener for HostFiles {
    fn open_file(&self, path: &Path) -> Result<Option<Arc<dyn ReadAt>>> {
        match HostFile::open(path, FileAccess::ReadOnly) {
            Ok(file) => {
                file.advise(self.pattern);
                Ok(Some(Arc::new(file)))
            }
            Err(error) if is_not_found(&error) => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn canonical_path(&self, path: &Path) -> Result<PathBuf> {
        std::fs::canonicalize(path).map_err(|error| crate::file::at_path("resolving", path, error))
    }
}

fn is_not_found(error: &Error) -> bool {
    let source =
        std::error::Error::source(error).and_then(|it| it.downcast_ref::<std::io::Error>());
    source.is_some_and(|io| {
        matches!(
            io.kind(),
            std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory
        )
    })
}

/// Whether a child remembers who its parent is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ParentCheck {
    /// By an id that the parent must carry.
    ById,
    /// By its path alone.
    ByPathOnly,
}

/// The places to try, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Candidates {
    /// The caller named it; nothing else is tried.
    Mapped(PathBuf),
    /// From the paths in the child.
    Found(Vec<PathBuf>),
}

/// Decides which paths may be tried for the parent of `child`, without touching any of them.
pub fn plan_candidates(
    child: &Path,
    locators: &[String],
    check: ParentCheck,
    policy: ParentPolicy,
    map: &ParentMap,
) -> Candidates {
    if let Some(parent) = map.find(child, locators) {
        return Candidates::Mapped(parent.clone());
    }
    let directory = child.parent().unwrap_or(Path::new(""));
    let mut found: Vec<PathBuf> = Vec::new();
    let mut add = |path: PathBuf| {
        let path = lexical(&path);
        if !found.contains(&path) {
            found.push(path);
        }
    };
    if matches!(policy, ParentPolicy::Relative | ParentPolicy::Anywhere) {
        let may_climb = check == ParentCheck::ById || policy == ParentPolicy::Anywhere;
        for relative in locators.iter().filter_map(|path| relative_path(path)) {
            let climbs = relative
                .components()
                .any(|part| part == Component::ParentDir);
            if may_climb || !climbs {
                add(directory.join(relative));
            }
        }
    }
    if policy != ParentPolicy::MapOnly {
        for name in locators.iter().filter_map(|path| base_name(path)) {
            add(directory.join(name));
        }
    }
    if policy == ParentPolicy::Anywhere {
        for path in locators
            .iter()
            .map(Path::new)
            .filter(|path| path.is_absolute())
        {
            add(path.to_owned());
        }
    }
    Candidates::Found(found)
}

/// The error for a parent that is nowhere, naming what was tried.
pub(crate) fn parent_not_found(child: &Path, locators: &[String], tried: &[PathBuf]) -> Error {
    let list = |items: Vec<String>| {
        if items.is_empty() {
            "nothing".to_owned()
        } else {
            items.join(", ")
        }
    };
    Error::new(
        ErrorKind::ParentNotFound,
        format!(
            "the parent of {} was not found: the image names {}; tried {}",
            child.display(),
            list(locators.iter().map(|path| format!("{path:?}")).collect()),
            list(
                tried
                    .iter()
                    .map(|path| path.display().to_string())
                    .collect()
            ),
        ),
    )
}

/// A path as images write it, as a relative path of this host; `None` for an absolute one of either world.
fn relative_path(locator: &str) -> Option<PathBuf> {
    let has_drive = locator.as_bytes().get(1) == Some(&b':');
    if locator.is_empty()
        || locator.starts_with(['/', '\\'])
        || has_drive
        || locator.contains("://")
        || locator.starts_with("json:")
    {
        return None;
    }
    Some(
        locator
            .split(['/', '\\'])
            .filter(|part| !part.is_empty() && *part != ".")
            .collect(),
    )
}

/// The last part of a path of either world.
fn base_name(locator: &str) -> Option<&str> {
    let name = locator.rsplit(['/', '\\']).next()?;
    (!name.is_empty() && name != "." && name != ".." && !name.contains(':')).then_some(name)
}

/// Windows paths are the same whatever their case and slashes.
fn locator_key(locator: &str) -> String {
    locator
        .replace('/', "\\")
        .trim_start_matches(".\\")
        .to_lowercase()
}

/// The path with `.` and `x/..` taken out, as text; links are not followed.
fn lexical(path: &Path) -> PathBuf {
    let mut clean = PathBuf::new();
    for part in path.components() {
        match part {
            Component::CurDir => {}
            Component::ParentDir => {
                let climbs = matches!(clean.components().next_back(), Some(Component::Normal(_)));
                if !(climbs && clean.pop()) {
                    clean.push("..");
                }
            }
            other => clean.push(other),
        }
    }
    clean
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(locators: &[&str], check: ParentCheck, policy: ParentPolicy) -> Vec<String> {
        let locators: Vec<String> = locators.iter().map(|path| (*path).to_owned()).collect();
        let child = Path::new("/vm/disks/child.avhdx");
        match plan_candidates(child, &locators, check, policy, &ParentMap::default()) {
            Candidates::Found(paths) => paths
                .iter()
                .map(|path| path.display().to_string())
                .collect(),
            Candidates::Mapped(path) => panic!("nothing is mapped, got {}", path.display()),
        }
    }

    const WINDOWS: [&str; 2] = ["..\\base\\parent.vhdx", "C:\\VMs\\base\\parent.vhdx"];

    #[test]
    fn relative_paths_come_before_the_bare_name_and_absolute_ones_are_not_followed() {
        assert_eq!(
            plan(&WINDOWS, ParentCheck::ById, ParentPolicy::Relative),
            ["/vm/base/parent.vhdx", "/vm/disks/parent.vhdx"]
        );
        assert_eq!(
            plan(&["/etc/shadow"], ParentCheck::ById, ParentPolicy::Relative),
            ["/vm/disks/shadow"]
        );
        assert_eq!(
            plan(
                &["/etc/shadow"],
                ParentCheck::ByPathOnly,
                ParentPolicy::Anywhere
            ),
            ["/vm/disks/shadow", "/etc/shadow"]
        );
    }

    #[test]
    fn a_parent_without_identity_must_lie_below_its_child() {
        assert_eq!(
            plan(
                &["../../etc/shadow", "sub/base.img"],
                ParentCheck::ByPathOnly,
                ParentPolicy::Relative
            ),
            [
                "/vm/disks/sub/base.img",
                "/vm/disks/shadow",
                "/vm/disks/base.img"
            ]
        );
    }

    #[test]
    fn the_map_wins_by_child_and_by_windows_path_without_case() {
        let locators = ["C:\\VMs\\Base.vhdx".to_owned()];
        let child = Path::new("/vm/./disks/../disks/child.avhdx");
        let by_child = ParentMap::default().with_child("/vm/disks/child.avhdx", "/x");
        let by_locator = ParentMap::default().with_locator("c:/vms/base.VHDX", "/y");
        for (map, wanted) in [(by_child, "/x"), (by_locator, "/y")] {
            assert_eq!(
                plan_candidates(
                    child,
                    &locators,
                    ParentCheck::ById,
                    ParentPolicy::MapOnly,
                    &map
                ),
                Candidates::Mapped(PathBuf::from(wanted))
            );
        }
        let none = ParentMap::default();
        assert_eq!(
            plan_candidates(
                child,
                &locators,
                ParentCheck::ById,
                ParentPolicy::MapOnly,
                &none
            ),
            Candidates::Found(Vec::new())
        );
    }
}
