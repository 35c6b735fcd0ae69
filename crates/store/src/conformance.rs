//! Whether a store keeps its promises: the suite that every driver passes, offered to whoever brings a store.
//!
//! ```text
//!   scratch empty? ──no──► Failed, nothing else is tried (somebody's objects are there)
//!        │yes
//!        ▼
//!   each check in its own prefix under the scratch prefix ──► Passed | Failed | Undecided
//!        │
//!        ▼
//!   clean up, and look whether it is clean
//! ```
//!
//! A repository needs create-if-absent, reading after writing and listing after writing; a store that lacks any of
//! them, or gives other bytes than it was given, is refused: [`CheckReport::is_usable`].
//!
//! **What it cannot see.** Durability (it pulls no plug), and what another machine sees (run it on each).

mod checks;

use std::fmt;

use crate::{Error, ErrorKind, Prefix, Store, list_all};

/// What the suite does, and how much of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CheckOptions {
    /// Where it works; nothing else may be there. Make it unlike any other run's.
    pub scratch: Prefix,
    /// How many threads race for one name.
    pub racers: usize,
    /// How many names they race for.
    pub race_rounds: usize,
    /// Size of the big object in bytes.
    pub big_object_bytes: usize,
}

impl CheckOptions {
    /// The usual amount of work, in this scratch prefix: 16 racers, 8 rounds, 32 MiB.
    pub fn new(scratch: Prefix) -> Self {
        Self {
            scratch,
            racers: 16,
            race_rounds: 8,
            big_object_bytes: 32 << 20,
        }
    }
}

/// Which check; stable, for machines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CheckId(&'static str);

impl CheckId {
    /// Nothing may lie in the scratch prefix.
    pub const SCRATCH_IS_EMPTY: Self = Self("scratch-is-empty");
    /// An object can be read as soon as it was put.
    pub const READ_AFTER_WRITE: Self = Self("read-after-write");
    /// A put of a taken name is refused and changes nothing.
    pub const CREATE_IF_ABSENT: Self = Self("create-if-absent");
    /// Of many puts of one name at once exactly one succeeds.
    pub const ONE_WINNER: Self = Self("one-winner");
    /// A reader sees an object whole or not at all while it is put.
    pub const WHOLE_OR_ABSENT: Self = Self("whole-or-absent");
    /// A listing shows what was put.
    pub const LIST_AFTER_WRITE: Self = Self("list-after-write");
    /// Neither a listing nor a read shows what was deleted.
    pub const GONE_AFTER_DELETE: Self = Self("gone-after-delete");
    /// What is absent is said to be absent.
    pub const ABSENT_IS_NOT_FOUND: Self = Self("absent-is-not-found");
    /// Ranges are exact, and refused behind the end.
    pub const RANGES: Self = Self("ranges");
    /// An object larger than the reader's limit is refused.
    pub const READ_LIMIT: Self = Self("read-limit");
    /// An object may be empty.
    pub const EMPTY_OBJECT: Self = Self("empty-object");
    /// A pack-sized object comes back as it was.
    pub const BIG_OBJECT: Self = Self("big-object");
    /// Every valid name works.
    pub const NAMES: Self = Self("names");
    /// Listings are in order, whole, and can be gone through page by page.
    pub const ORDER_AND_PAGES: Self = Self("order-and-pages");
    /// Nothing is left behind.
    pub const CLEAN_UP: Self = Self("clean-up");

    /// The id as text.
    pub fn as_str(self) -> &'static str {
        self.0
    }
}

impl fmt::Display for CheckId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

/// What came of one check.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// The store does what it must.
    Passed,
    /// It does not: what was seen instead.
    Failed(String),
    /// It could not be told, because the store did not serve: its error and the causes below.
    Undecided(String),
}

/// One check with its verdict.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CheckResult {
    /// Which.
    pub id: CheckId,
    /// What the store must do, as a sentence.
    pub title: &'static str,
    /// What came of it.
    pub verdict: Verdict,
    /// What to do when it did not pass.
    pub remedy: &'static str,
}

/// All checks that were made, in order.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct CheckReport {
    /// The store's own description.
    pub store: String,
    /// The checks.
    pub results: Vec<CheckResult>,
}

impl CheckReport {
    /// Whether a repository may lie here: every check was made, and every one passed.
    pub fn is_usable(&self) -> bool {
        self.results
            .last()
            .is_some_and(|last| last.id == CheckId::CLEAN_UP)
            && self
                .results
                .iter()
                .all(|result| result.verdict == Verdict::Passed)
    }

    /// The checks that did not pass.
    pub fn defects(&self) -> impl Iterator<Item = &CheckResult> {
        self.results
            .iter()
            .filter(|result| result.verdict != Verdict::Passed)
    }

    /// The verdict of one check, if it was made.
    pub fn verdict(&self, id: CheckId) -> Option<&Verdict> {
        self.results
            .iter()
            .find(|result| result.id == id)
            .map(|result| &result.verdict)
    }
}

/// Why a check did not pass.
enum Defect {
    Wrong(String),
    Answer(Error),
}

type Outcome = Result<(), Defect>;

impl From<Error> for Defect {
    fn from(error: Error) -> Self {
        Self::Answer(error)
    }
}

impl From<Defect> for Verdict {
    fn from(defect: Defect) -> Self {
        match defect {
            Defect::Wrong(seen) => Self::Failed(seen),
            Defect::Answer(error) => {
                let kind = error.kind();
                let mut text = error.to_string();
                let mut cause = std::error::Error::source(&error);
                while let Some(below) = cause {
                    // Some libraries repeat their causes in their own text.
                    let below_text = below.to_string();
                    if !text.contains(&below_text) {
                        text = format!("{text}: {below_text}");
                    }
                    cause = below.source();
                }
                match kind {
                    ErrorKind::Denied
                    | ErrorKind::Unavailable
                    | ErrorKind::Full
                    | ErrorKind::Io
                    | ErrorKind::Cancelled => Self::Undecided(text),
                    _ => Self::Failed(text),
                }
            }
        }
    }
}

/// What a check works with.
struct Scratch<'a> {
    store: &'a dyn Store,
    options: &'a CheckOptions,
    /// This check's own prefix.
    prefix: Prefix,
}

struct Check {
    id: CheckId,
    title: &'static str,
    remedy: &'static str,
    run: fn(&Scratch<'_>) -> Outcome,
}

/// Runs the suite on `store`, adding each result to `report` as it comes.
///
/// It writes about three big objects and some dozens of small ones, reads them, and removes them all.
pub fn check(store: &dyn Store, options: &CheckOptions, report: &mut CheckReport) {
    report.store = store.describe();
    let empty = judge(scratch_is_empty(store, options));
    let usable = empty == Verdict::Passed;
    report.results.push(CheckResult {
        id: CheckId::SCRATCH_IS_EMPTY,
        title: "nothing lies where the check works",
        verdict: empty,
        remedy: "give the check a prefix of its own, or remove what an interrupted check left there",
    });
    if !usable {
        return;
    }
    for check in checks::ALL {
        let outcome = options
            .scratch
            .join(check.id.as_str())
            .map_err(Defect::from)
            .and_then(|prefix| {
                (check.run)(&Scratch {
                    store,
                    options,
                    prefix,
                })
            });
        report.results.push(CheckResult {
            id: check.id,
            title: check.title,
            verdict: judge(outcome),
            remedy: check.remedy,
        });
    }
    report.results.push(CheckResult {
        id: CheckId::CLEAN_UP,
        title: "nothing is left behind",
        verdict: judge(clean_up(store, options)),
        remedy: "allow this identity to list and delete, then remove what is under the scratch prefix",
    });
}

fn judge(outcome: Outcome) -> Verdict {
    outcome.map_or_else(Verdict::from, |()| Verdict::Passed)
}

fn scratch_is_empty(store: &dyn Store, options: &CheckOptions) -> Outcome {
    match store.list(&options.scratch, None, 1)?.entries.first() {
        None => Ok(()),
        Some(entry) => Err(Defect::Wrong(format!("{} is there", entry.name))),
    }
}

fn clean_up(store: &dyn Store, options: &CheckOptions) -> Outcome {
    let mut found = Vec::new();
    for entry in list_all(store, &options.scratch) {
        found.push(entry?.name);
    }
    for name in &found {
        store.delete(name)?;
    }
    scratch_is_empty(store, options)
}
