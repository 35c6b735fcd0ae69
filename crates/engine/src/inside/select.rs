//! Files that patterns mean: `*` and `?` within one name, as a shell would take them; `**` is any number of folders.
//!
//! A name that is there literally is meant literally, so that files with such characters in their names can be named.
//! Where the file system takes no notice of case, neither do patterns. Links are never followed by a pattern.

use std::collections::{BTreeSet, HashSet};
use std::ops::ControlFlow;
use std::sync::Arc;

use guestfs::filesystem::{DirectoryCursor, FileKind};
use guestfs::{FileName, FileSystem};

use super::place::{components, walk};
use super::{InsideDisks, LastLink, Place, Separators};
use crate::{Error, ErrorKind, Result};

/// Most files that patterns may mean by name; folders are extracted whole, so that this is no limit on their contents.
const SELECTED_MAX: usize = 1_000_000;
/// How deep `**` goes.
const DEPTH_MAX: usize = 4096;

impl InsideDisks {
    /// All files that typed paths mean, without those that lie in a folder that is meant, too.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] when one of them means nothing; [`ErrorKind::Invalid`].
    pub fn select(&self, typed: &[String]) -> Result<Vec<Place>> {
        let mut places = Vec::new();
        for one in typed {
            let (volume, path) = self.choose_volume(one)?;
            let volumes = match volume {
                Some(volume) => vec![volume],
                None => self.readable().map(|(number, _)| number).collect(),
            };
            let before = places.len();
            for volume in volumes {
                let file_system = self.file_system(volume)?;
                let names = components(path, Separators::of(file_system.facts().kind))?;
                let root = Place {
                    volume,
                    file: file_system.root(),
                    file_system,
                    path: Vec::new(),
                };
                expand(root, names, &mut places)?;
            }
            if places.len() == before {
                let what = format!("nothing is called {one}");
                return Err(Error::new(ErrorKind::NotFound, what));
            }
        }
        Ok(without_nested(places))
    }
}

fn expand(root: Place, names: Vec<FileName>, into: &mut Vec<Place>) -> Result<()> {
    let mut places = vec![root];
    let mut is_below_pattern = false;
    let count = names.len();
    for (index, name) in names.into_iter().enumerate() {
        let is_last = index.saturating_add(1) == count;
        if name.as_bytes() == b"**" {
            // As the last name it means everything: the folders themselves.
            if !is_last {
                places = with_folders_below(places)?;
            }
            is_below_pattern = true;
            continue;
        }
        let last = if is_last {
            LastLink::Keep
        } else {
            LastLink::Follow
        };
        let mut next = Vec::new();
        for place in &places {
            match walk(place, vec![name.clone()], last) {
                Ok(found) => next.push(found),
                Err(error) if error.kind() == ErrorKind::NotFound && is_pattern(&name) => {
                    matching(place, &name, is_last, &mut next)?;
                }
                // Below a pattern, not every folder has what is looked for.
                Err(error) if error.kind() == ErrorKind::NotFound && is_below_pattern => {}
                Err(error) => return Err(error),
            }
            check_count(next.len())?;
        }
        is_below_pattern |= is_pattern(&name);
        places = next;
    }
    into.append(&mut places);
    Ok(())
}

fn check_count(count: usize) -> Result<()> {
    if count > SELECTED_MAX {
        let what = format!("more than {SELECTED_MAX} files are meant: name their folder");
        return Err(Error::new(ErrorKind::Invalid, what));
    }
    Ok(())
}

/// Folders and all folders below them. Links are not followed; a folder that is met again is not entered again.
fn with_folders_below(tops: Vec<Place>) -> Result<Vec<Place>> {
    let mut found: Vec<Place> = Vec::new();
    let mut seen = HashSet::new();
    let mut waiting: Vec<Place> = tops.into_iter().rev().collect();
    while let Some(place) = waiting.pop() {
        let fs = Arc::clone(&place.file_system);
        if place.path.len() > DEPTH_MAX || !seen.insert(place.file) {
            continue;
        }
        if fs.metadata(place.file)?.kind != FileKind::Directory {
            continue;
        }
        let mut folders = Vec::new();
        fs.list(place.file, DirectoryCursor::default(), &mut |entry| {
            let may_be = entry.kind.is_none_or(|kind| kind == FileKind::Directory);
            if may_be {
                folders.push((entry.name, entry.file));
            }
            if folders.len() > SELECTED_MAX {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            }
        })?;
        folders.sort();
        for (name, file) in folders.into_iter().rev() {
            let mut path = place.path.clone();
            path.push(name);
            waiting.push(Place {
                volume: place.volume,
                file_system: Arc::clone(&fs),
                file,
                path,
            });
        }
        found.push(place);
        check_count(found.len().saturating_add(waiting.len()))?;
    }
    Ok(found)
}

fn is_pattern(name: &FileName) -> bool {
    name.as_bytes()
        .iter()
        .any(|byte| matches!(byte, b'*' | b'?'))
}

/// One name with `*` and `?` in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Pattern {
    text: Vec<char>,
    ignores_case: bool,
}

impl Pattern {
    pub(super) fn new(text: &str, ignores_case: bool) -> Self {
        Self {
            text: fold(text, ignores_case),
            ignores_case,
        }
    }

    /// Whether a name fits: in time of name times pattern, without recursion.
    pub(super) fn fits(&self, name: &str) -> bool {
        let name = fold(name, self.ignores_case);
        let (mut at, mut wanted) = (0_usize, 0_usize);
        // Where the last `*` stands, and how much of the name it has taken.
        let mut star: Option<(usize, usize)> = None;
        while let Some(have) = name.get(at) {
            match self.text.get(wanted) {
                Some('*') => {
                    star = Some((wanted, at));
                    wanted = wanted.saturating_add(1);
                }
                Some(want) if *want == '?' || want == have => {
                    at = at.saturating_add(1);
                    wanted = wanted.saturating_add(1);
                }
                _ => {
                    let Some((place, taken)) = star else {
                        return false;
                    };
                    let taken = taken.saturating_add(1);
                    star = Some((place, taken));
                    at = taken;
                    wanted = place.saturating_add(1);
                }
            }
        }
        let rest = self.text.get(wanted..).unwrap_or_default();
        rest.iter().all(|character| *character == '*')
    }
}

fn fold(text: &str, ignores_case: bool) -> Vec<char> {
    if ignores_case {
        text.chars().flat_map(char::to_uppercase).collect()
    } else {
        text.chars().collect()
    }
}

fn matching(place: &Place, name: &FileName, is_last: bool, into: &mut Vec<Place>) -> Result<()> {
    let fs: &Arc<dyn FileSystem> = &place.file_system;
    if fs.metadata(place.file)?.kind != FileKind::Directory {
        return Ok(());
    }
    let pattern = Pattern::new(&name.to_string(), fs.facts().is_case_insensitive);
    let mut found = Vec::new();
    fs.list(place.file, DirectoryCursor::default(), &mut |entry| {
        if pattern.fits(&entry.name.to_string()) {
            found.push((entry.name, entry.file));
        }
        if found.len() > SELECTED_MAX {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        }
    })?;
    found.sort();
    for (name, file) in found {
        if !is_last && fs.metadata(file)?.kind != FileKind::Directory {
            continue;
        }
        let mut path = place.path.clone();
        path.push(name);
        into.push(Place {
            volume: place.volume,
            file_system: Arc::clone(fs),
            file,
            path,
        });
    }
    Ok(())
}

/// Leaves out what is named twice or lies in a folder that is named itself.
fn without_nested(places: Vec<Place>) -> Vec<Place> {
    let named: BTreeSet<_> = places
        .iter()
        .map(|place| (place.volume, place.path.clone()))
        .collect();
    let mut told = BTreeSet::new();
    places
        .into_iter()
        .filter(|place| {
            let is_inside = (0..place.path.len()).any(|length| {
                let above = place.path.get(..length).unwrap_or_default();
                named.contains(&(place.volume, above.to_vec()))
            });
            !is_inside && told.insert((place.volume, place.path.clone()))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_fit_as_in_a_shell() {
        let fits = |pattern: &str, name: &str| Pattern::new(pattern, false).fits(name);
        assert!(fits("*", "") && fits("*", "a.txt") && fits("*.txt", "a.txt"));
        assert!(!fits("*.txt", "a.txt2") && !fits("?", "") && !fits("", "a"));
        assert!(fits("a*b*c", "a--b-b--c") && !fits("a*b*c", "a--c--b"));
        assert!(fits("?ä?", "xäy") && fits("**a", "ba"));
        assert!(!fits("A*", "abc") && Pattern::new("A*", true).fits("abc"));
        let slow = format!("{}c", "a*".repeat(20));
        assert!(!fits(&slow, &"a".repeat(5000)));
    }
}
