//! Marks: what was decided about a point after it was committed. Append-only, never edited.
//!
//! ```text
//!   marks/<name id>-<sequence>/<kind>-<mark id>      {key, point, kind, number, stamp, reason, …}
//! ```
//!
//! | kinds | the newest of them says |
//! |---|---|
//! | `hold`, `release` | whether retention and forget must leave the point alone |
//! | `verified`, `damaged` | what the last verification found |
//! | `forgotten`, `undeleted` | whether the point is still shown and still keeps its bytes |
//!
//! Newest is the highest `number` (one more than the highest that the writer saw), then the greater mark id.
//!
//! **Invariants.** A mark names the point's id besides its key. What cannot be read errs to the safe side: an unreadable
//! `hold` holds, an unreadable `forgotten` forgets nothing, an unreadable `verified` proves nothing.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use store::{ObjectName, Prefix, list_all};

use crate::access::ObjectAccess;
use crate::environment::Environment;
use crate::format::ObjectKind;
use crate::gc::mark::absent_or_damaged;
use crate::parallel::read_each;
use crate::points::PointKey;
use crate::retention::{HoldState, PointHealth};
use crate::{Error, ErrorKind, MarkId, PointId, Result, names};

/// Most bytes of a mark that are read.
pub(crate) const MARK_SIZE_BYTES_MAX: u64 = 1 << 20;

/// What a mark says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MarkKind {
    /// Nothing may forget the point.
    Hold,
    /// Ends all holds before it.
    Release,
    /// All of it was read and is good.
    Verified,
    /// Some of it is missing or wrong.
    Damaged,
    /// It shall go.
    Forgotten,
    /// It shall stay after all.
    Undeleted,
}

impl MarkKind {
    /// All of them.
    pub const ALL: [Self; 6] = [
        Self::Hold,
        Self::Release,
        Self::Verified,
        Self::Damaged,
        Self::Forgotten,
        Self::Undeleted,
    ];

    /// Its word in names and texts.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Hold => "hold",
            Self::Release => "release",
            Self::Verified => "verified",
            Self::Damaged => "damaged",
            Self::Forgotten => "forgotten",
            Self::Undeleted => "undeleted",
        }
    }
}

impl fmt::Display for MarkKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

impl FromStr for MarkKind {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self> {
        Self::ALL
            .into_iter()
            .find(|kind| kind.word() == text)
            .ok_or_else(|| {
                let shown: String = text.chars().take(40).collect();
                Error::new(ErrorKind::Invalid, format!("{shown:?} is no kind of mark"))
            })
    }
}

/// A mark as it is stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mark {
    /// Its id, equal to the one in the object's name.
    pub id: MarkId,
    /// The point's place.
    pub name_id: crate::NameId,
    /// The point's number.
    pub sequence: u64,
    /// The point itself.
    pub point: PointId,
    /// What it says.
    pub kind: MarkKind,
    /// Orders the marks of one point.
    pub number: u64,
    /// The server's stamp, ms since 1970 UTC: for people.
    pub created_unix_ms: u64,
    /// Why, in the words of who put it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
    /// Objects found damaged, for `damaged`; at most [`MARK_OBJECTS_MAX`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub objects: Vec<String>,
}

/// Most objects that a `damaged` mark names; the report of the verification names them all.
pub const MARK_OBJECTS_MAX: usize = 64;

/// All marks of one point, the oldest first, and those that cannot be read.
#[derive(Debug, Default)]
pub struct PointMarks {
    /// Readable ones by number.
    pub marks: Vec<Mark>,
    /// Kinds (as their names say) and errors of unreadable ones.
    pub unreadable: Vec<(MarkKind, Error)>,
}

/// Whether a point is shown and keeps its bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum PointVisibility {
    /// It is.
    #[default]
    Visible,
    /// It goes with the next garbage collection, unless it is undeleted before.
    Forgotten,
}

impl PointMarks {
    /// The newest readable mark of two opposite kinds.
    fn newest(&self, one: MarkKind, other: MarkKind) -> Option<&Mark> {
        self.marks
            .iter()
            .filter(|mark| mark.kind == one || mark.kind == other)
            .max_by_key(|mark| (mark.number, mark.id))
    }

    fn cannot_read(&self, kind: MarkKind) -> bool {
        self.unreadable
            .iter()
            .any(|(unreadable, _)| *unreadable == kind)
    }

    /// Whether it is held.
    pub fn hold(&self) -> HoldState {
        let newest = self.newest(MarkKind::Hold, MarkKind::Release);
        if newest.is_some_and(|mark| mark.kind == MarkKind::Hold)
            || self.cannot_read(MarkKind::Hold)
        {
            HoldState::Held
        } else {
            HoldState::Free
        }
    }

    /// What verification found last.
    pub fn health(&self) -> PointHealth {
        match self.newest(MarkKind::Verified, MarkKind::Damaged) {
            Some(mark) if mark.kind == MarkKind::Damaged => PointHealth::Damaged,
            _ if self.cannot_read(MarkKind::Damaged) => PointHealth::Damaged,
            Some(_) => PointHealth::Verified,
            None => PointHealth::Unverified,
        }
    }

    /// Whether it is forgotten.
    pub fn visibility(&self) -> PointVisibility {
        match self.newest(MarkKind::Forgotten, MarkKind::Undeleted) {
            Some(mark)
                if mark.kind == MarkKind::Forgotten && !self.cannot_read(MarkKind::Undeleted) =>
            {
                PointVisibility::Forgotten
            }
            _ => PointVisibility::Visible,
        }
    }

    /// The number of the newest readable one; zero when there is none.
    pub(crate) fn highest_number(&self) -> u64 {
        self.marks.iter().map(|mark| mark.number).max().unwrap_or(0)
    }
}

/// What a new mark shall say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MarkDraft {
    /// The point's place.
    pub key: PointKey,
    /// The point itself.
    pub point: PointId,
    /// What it says.
    pub kind: MarkKind,
    /// Why.
    pub reason: String,
    /// For `damaged`: the damaged objects.
    pub objects: Vec<String>,
}

/// Puts a mark behind all marks that the point has now.
pub(crate) fn put_mark(
    access: &dyn ObjectAccess,
    environment: &Environment,
    draft: MarkDraft,
) -> Result<Mark> {
    let before = read_marks_of(access, draft.key)?;
    let id = MarkId::generate(environment.random.as_ref())?;
    let mut objects = draft.objects;
    objects.truncate(MARK_OBJECTS_MAX);
    let mark = Mark {
        id,
        name_id: draft.key.name_id,
        sequence: draft.key.sequence,
        point: draft.point,
        kind: draft.kind,
        number: before.highest_number().saturating_add(1),
        created_unix_ms: environment.clock.unix_ms(),
        reason: draft.reason,
        objects,
    };
    let text = serde_json::to_vec(&mark)
        .map_err(|error| Error::new(ErrorKind::Local, "writing a mark").caused_by(error))?;
    access.put_sealed(
        ObjectKind::Mark,
        &names::mark(draft.key, draft.kind.word(), id)?,
        &text,
    )?;
    Ok(mark)
}

/// The marks of one point.
pub(crate) fn read_marks_of(access: &dyn ObjectAccess, key: PointKey) -> Result<PointMarks> {
    let mut marks = read_under(access, &names::marks_of(key)?)?;
    Ok(marks.remove(&key).unwrap_or_default())
}

/// All marks of all points, also of points that are not there.
pub(crate) fn read_all_marks(access: &dyn ObjectAccess) -> Result<BTreeMap<PointKey, PointMarks>> {
    read_under(access, &names::marks()?)
}

/// Reads marks many at once: there may be one for each verification of each point.
fn read_under(
    access: &dyn ObjectAccess,
    prefix: &Prefix,
) -> Result<BTreeMap<PointKey, PointMarks>> {
    let mut names = Vec::new();
    for entry in list_all(access.store(), prefix) {
        let name = entry?.name;
        names.extend(marked_point(&name).map(|key| (key, name)));
    }
    let read = read_each(&names, |(key, name)| read_mark(access, *key, name))?;
    let mut all: BTreeMap<PointKey, PointMarks> = BTreeMap::new();
    for ((key, _), read) in names.iter().zip(read) {
        let marks = all.entry(*key).or_default();
        match read {
            MarkRead::Mark(mark) => marks.marks.push(*mark),
            MarkRead::Unreadable(kind, error) => marks.unreadable.push((kind, error)),
            MarkRead::Nothing => {}
        }
    }
    for marks in all.values_mut() {
        marks.marks.sort_by_key(|mark| (mark.number, mark.id));
    }
    Ok(all)
}

/// The point that a mark's name speaks of.
pub(crate) fn marked_point(name: &ObjectName) -> Option<PointKey> {
    let rest = name.as_str().strip_prefix("marks/")?;
    let (point, _) = rest.split_once('/')?;
    let (name_id, sequence) = point.split_once('-')?;
    Some(PointKey {
        name_id: name_id.parse().ok()?,
        sequence: names::parse_number(sequence)?,
    })
}

/// What lay under a mark's name.
enum MarkRead {
    Mark(Box<Mark>),
    Unreadable(MarkKind, Error),
    /// Gone since the listing, together with its point, or nothing that this program could respect.
    Nothing,
}

fn read_mark(access: &dyn ObjectAccess, key: PointKey, name: &ObjectName) -> Result<MarkRead> {
    let (_, last) = name.split();
    let Some((kind, id)) = last.split_once('-') else {
        return Ok(MarkRead::Nothing);
    };
    // A kind of a newer program says nothing that this one could respect.
    let Ok(kind) = kind.parse::<MarkKind>() else {
        return Ok(MarkRead::Nothing);
    };
    let read = access
        .get_sealed(ObjectKind::Mark, name, MARK_SIZE_BYTES_MAX)
        .and_then(|text| {
            let mark: Mark = serde_json::from_slice(&text)
                .map_err(|error| Error::corrupt(name, "not a mark").caused_by(error))?;
            let fits = mark.name_id == key.name_id
                && mark.sequence == key.sequence
                && mark.kind == kind
                && mark.id.to_string() == id;
            if fits {
                Ok(mark)
            } else {
                Err(Error::corrupt(name, "the mark of another name"))
            }
        });
    match read {
        Ok(mark) => Ok(MarkRead::Mark(Box::new(mark))),
        // Absent: deleted since the listing, together with its point.
        Err(error) => Ok(match absent_or_damaged(error)? {
            Some(error) => MarkRead::Unreadable(kind, error),
            None => MarkRead::Nothing,
        }),
    }
}
