//! Searching one version's tree of names: folders that are known to hold no match are not entered again.

use std::collections::HashSet;

use guestfs::{FileId, FileName};

use super::object::{NameKind, ObjectId, decode_tree, each_name};
use super::{IndexedVolume, Segments};
use crate::inside::select::Pattern;
use crate::{Cancellation, Result};

/// What names are looked for.
#[derive(Debug, Clone)]
pub(in crate::inside) enum Wanted {
    /// Names that contain this text.
    Containing(String),
    /// Names that fit a pattern with `*` and `?`, or are just this.
    Fitting(String),
    /// Paths from the root, each component fitting a pattern.
    Path(Vec<String>),
}

/// A search as one volume understands it.
struct Matcher {
    kind: MatcherKind,
    ignores_case: bool,
}

enum MatcherKind {
    Containing(String),
    Fitting(Pattern),
    Path(Vec<Pattern>),
}

fn folded(text: &str) -> String {
    text.chars().flat_map(char::to_uppercase).collect()
}

impl Matcher {
    fn new(wanted: &Wanted, ignores_case: bool) -> Self {
        let pattern = |text: &String| Pattern::new(text, ignores_case);
        let kind = match wanted {
            Wanted::Containing(text) if ignores_case => MatcherKind::Containing(folded(text)),
            Wanted::Containing(text) => MatcherKind::Containing(text.clone()),
            Wanted::Fitting(text) => MatcherKind::Fitting(pattern(text)),
            Wanted::Path(names) => MatcherKind::Path(names.iter().map(pattern).collect()),
        };
        Self { kind, ignores_case }
    }

    /// Whether a name at this depth (0 below the root) is a hit.
    fn hits(&self, name: &str, depth: usize) -> bool {
        match &self.kind {
            MatcherKind::Containing(text) if self.ignores_case => folded(name).contains(text),
            MatcherKind::Containing(text) => name.contains(text.as_str()),
            MatcherKind::Fitting(pattern) => pattern.fits(name),
            MatcherKind::Path(names) => {
                depth.saturating_add(1) == names.len()
                    && names.get(depth).is_some_and(|pattern| pattern.fits(name))
            }
        }
    }

    /// Whether a folder at this depth may hold hits.
    fn enters(&self, name: &str, depth: usize) -> bool {
        match &self.kind {
            MatcherKind::Path(names) => {
                depth.saturating_add(1) < names.len()
                    && names.get(depth).is_some_and(|pattern| pattern.fits(name))
            }
            _ => true,
        }
    }

    /// Whether what a folder holds does not depend on where it lies.
    fn is_free_of_place(&self) -> bool {
        !matches!(self.kind, MatcherKind::Path(_))
    }
}

/// A search over many versions.
pub(in crate::inside) struct NameSearch {
    exact: Matcher,
    folding: Matcher,
    /// Trees without a hit, for either way of looking at case.
    barren: [HashSet<ObjectId>; 2],
}

/// Something found.
pub(in crate::inside) struct Found<'a> {
    pub(in crate::inside) path: &'a [FileName],
    pub(in crate::inside) file: FileId,
    pub(in crate::inside) kind: NameKind,
}

struct Entered {
    tree: ObjectId,
    folders: Vec<(FileName, ObjectId)>,
    next: usize,
    found_before: u64,
}

impl NameSearch {
    /// A search for this, in which case counts only where `ignores_case` and the volume say so.
    pub(in crate::inside) fn new(wanted: &Wanted, ignores_case: bool) -> Self {
        Self {
            exact: Matcher::new(wanted, ignores_case),
            folding: Matcher::new(wanted, true),
            barren: [HashSet::new(), HashSet::new()],
        }
    }
}

/// Tells every hit on one volume of one version.
pub(in crate::inside) fn enumerate(
    search: &mut NameSearch,
    index: &mut Segments,
    volume: &IndexedVolume,
    cancel: &Cancellation,
    visit: &mut dyn FnMut(Found<'_>) -> Result<()>,
) -> Result<()> {
    let (matcher, barren) = match (volume.ignores_case, &mut search.barren) {
        (false, [exact, _]) => (&search.exact, exact),
        (true, [_, folding]) => (&search.folding, folding),
    };
    let mut path: Vec<FileName> = Vec::new();
    let mut found = 0_u64;
    let mut open: Vec<Entered> = Vec::new();
    let mut enter = Some(volume.root);
    loop {
        cancel.check()?;
        if let Some(tree) = enter.take() {
            let found_before = found;
            let folders = names_of(index, tree, matcher, &mut path, &mut found, visit)?;
            open.push(Entered {
                tree,
                folders,
                next: 0,
                found_before,
            });
        }
        let Some(top) = open.last_mut() else {
            return Ok(());
        };
        match top.folders.get(top.next) {
            Some((name, tree)) => {
                top.next = top.next.saturating_add(1);
                let is_known_barren = matcher.is_free_of_place() && barren.contains(tree);
                if *tree != ObjectId::UNREAD && !is_known_barren {
                    path.push(name.clone());
                    enter = Some(*tree);
                }
            }
            None => {
                if found == top.found_before && matcher.is_free_of_place() {
                    barren.insert(top.tree);
                }
                open.pop();
                path.pop();
            }
        }
    }
}

/// Tells the hits of one folder, and which of its folders are to be entered.
fn names_of(
    index: &mut Segments,
    tree: ObjectId,
    matcher: &Matcher,
    path: &mut Vec<FileName>,
    found: &mut u64,
    visit: &mut dyn FnMut(Found<'_>) -> Result<()>,
) -> Result<Vec<(FileName, ObjectId)>> {
    let decoded = decode_tree(&index.object(tree)?);
    let (listed, children) = decoded.ok_or_else(|| index.malformed(tree))?;
    let listing = index.object(listed)?;
    let mut children = children.into_iter();
    let mut folders = Vec::new();
    let depth = path.len();
    let mut outcome = Ok(());
    let whole = each_name(&listing, |kind, file, name| {
        let text = String::from_utf8_lossy(name);
        if kind == NameKind::Folder {
            let child = children.next()?;
            if matcher.enters(&text, depth) {
                folders.push((FileName::from_bytes(name), child));
            }
        }
        if matcher.hits(&text, depth) {
            *found = found.saturating_add(1);
            path.push(FileName::from_bytes(name));
            outcome = visit(Found { path, file, kind });
            path.pop();
        }
        outcome.is_ok().then_some(())
    });
    outcome?;
    whole.ok_or_else(|| index.malformed(listed))?;
    Ok(folders)
}
