//! Which points there are: single objects and bundles, with their marks.
//!
//! **Invariants.** A place (name, number) is listed once, whether it lies singly, in a bundle, or in both while garbage
//! collection moves it. A damaged point is listed as damaged, never left out. In an encrypted repository a point without
//! a good signature is damaged. A point that a verdict removed is gone from then on, wherever a copy of it still lies.
//!
//! **Why the order of looks matters.** Garbage collection puts its verdict, then deletes points, then their marks. Whoever
//! lists points and reads their marks afterwards may hold a forgotten point whose mark is gone already. So verdicts are
//! read last: a point whose marks are gone is in the retired table of a verdict that was there before.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};

use store::{ObjectName, list_all};

use crate::access::ObjectAccess;
use crate::bundles::{list_bundles, read_bundle};
use crate::format::ObjectKind;
use crate::gc::mark::absent_or_damaged;
use crate::gc::numbers::NUMBER_GAP_MAX;
use crate::gc::records::{self, union_of_numbers};
use crate::gc::{NumberSet, Numbers, retired_points};
use crate::marks::{PointMarks, PointVisibility, read_all_marks, read_marks_of};
use crate::parallel::read_each;
use crate::points::{
    Bundle, PointKey, PointSelector, ProtectedName, RecoveryPoint, SignatureState, SignedPoint,
    Which, verify_signature,
};
use crate::vault::Vault;
use crate::{BundleId, Error, ErrorKind, NameId, Result, names};

/// Longest text of a point.
pub(crate) const MAX_POINT_BYTES: u64 = 16 << 20;

/// A point with what was said about it since.
#[derive(Debug)]
pub struct PointRecord {
    /// The point.
    pub point: RecoveryPoint,
    /// Its marks.
    pub marks: PointMarks,
}

/// What lies at a place.
#[derive(Debug)]
pub(crate) enum PlaceState {
    /// A point, and the exact form that it was committed in.
    Point {
        point: Box<RecoveryPoint>,
        signed: SignedPoint,
    },
    /// A fenced writer's tombstone.
    Tombstone,
    /// Something that cannot be read.
    Damaged(Error),
}

/// One place.
#[derive(Debug)]
pub(crate) struct PointPlace {
    /// The object that it was read from: a single point or a bundle.
    pub(crate) object: ObjectName,
    pub(crate) state: PlaceState,
}

/// Everything that was listed.
#[derive(Debug, Default)]
pub(crate) struct PointListing {
    pub(crate) places: BTreeMap<PointKey, PointPlace>,
    /// Bundles that cannot be read: whatever they held is not in `places`.
    pub(crate) damaged_bundles: Vec<(ObjectName, Error)>,
}

/// Remembers what cannot change: the bodies of points and bundles.
#[derive(Default)]
pub(crate) struct PointMemory {
    bundles: Mutex<HashMap<BundleId, Arc<Bundle>>>,
    points: Mutex<HashMap<PointKey, Arc<SignedPoint>>>,
}

/// Whose points.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Whose {
    All,
    Of(NameId),
}

impl Whose {
    fn includes(self, key: PointKey) -> bool {
        match self {
            Self::All => true,
            Self::Of(name_id) => key.name_id == name_id,
        }
    }
}

impl PointListing {
    /// Takes out what garbage collection decided to remove. What a collector that was stopped for long put back lies
    /// there for a while, and is no point any more.
    pub(crate) fn drop_retired(&mut self, retired: &NumberSet) {
        self.places.retain(|key, _| !retired.contains(*key));
    }

    /// Adds what of a bundle is wanted and not known as good already. Signatures are most of the work: all cores share it.
    fn add_bundled(
        &mut self,
        vault: &Vault,
        object: &ObjectName,
        bundle: &Bundle,
        whose: Whose,
    ) -> Result<()> {
        let is_wanted = |places: &BTreeMap<PointKey, PointPlace>, key: &PointKey| {
            let known = places.get(key).map(|place| &place.state);
            known.is_none_or(|state| matches!(state, PlaceState::Damaged(_)))
        };
        let members = bundle.points.iter();
        let members: Vec<_> = members
            .filter(|member| whose.includes(member.key) && is_wanted(&self.places, &member.key))
            .collect();
        let states = read_each(&members, |member| {
            Ok(judge(vault, object, member.key, &member.point))
        })?;
        for (member, state) in members.into_iter().zip(states) {
            if is_wanted(&self.places, &member.key) {
                let object = object.clone();
                self.places.insert(member.key, PointPlace { object, state });
            }
        }
        Ok(())
    }
}

/// Lists places. Marks that belong to it are read before: then none of a point that is listed can be gone.
pub(crate) fn list_points(
    vault: &Vault,
    memory: &PointMemory,
    whose: Whose,
) -> Result<PointListing> {
    let mut listing = list_places(vault, memory, whose)?;
    listing.drop_retired(&retired_points(vault)?);
    Ok(listing)
}

/// What lies there, removed or not. The caller reads marks, and what is retired after that.
pub(crate) fn list_places(
    vault: &Vault,
    memory: &PointMemory,
    whose: Whose,
) -> Result<PointListing> {
    let mut listing = PointListing::default();
    let prefix = match whose {
        Whose::All => names::points()?,
        Whose::Of(name_id) => names::points_of(name_id)?,
    };
    // Single points first, bundles second: a point that moves meanwhile is seen at least once.
    let mut singles = Vec::new();
    for entry in list_all(vault.store(), &prefix) {
        let object = entry?.name;
        singles.extend(names::parse_point(&object).map(|key| (key, object)));
    }
    let states = read_each(&singles, |(key, object)| {
        read_place(vault, memory, *key, object)
    })?;
    for ((key, object), state) in singles.into_iter().zip(states) {
        if let Some(state) = state {
            listing.places.insert(key, PointPlace { object, state });
        }
    }
    let bundles: Vec<BundleId> = list_bundles(vault.store())?.into_iter().collect();
    let read = read_each(&bundles, |id| Ok(recall_bundle(vault, memory, *id)))?;
    for (id, bundle) in bundles.into_iter().zip(read) {
        let object = names::bundle(id)?;
        let bundle = match bundle {
            Ok(bundle) => bundle,
            Err(error) => {
                let damage = absent_or_damaged(error)?;
                listing
                    .damaged_bundles
                    .extend(damage.map(|error| (object, error)));
                continue;
            }
        };
        listing.add_bundled(vault, &object, &bundle, whose)?;
    }
    Ok(listing)
}

/// What lies at a single point's place now; `None` when nothing does.
pub(crate) fn read_place(
    vault: &Vault,
    memory: &PointMemory,
    key: PointKey,
    object: &ObjectName,
) -> Result<Option<PlaceState>> {
    let kept = memory
        .points
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .get(&key)
        .cloned();
    if let Some(signed) = kept {
        return Ok(Some(judge(vault, object, key, &signed)));
    }
    let read = vault
        .get_any(object, MAX_POINT_BYTES)
        .and_then(|(kind, text)| match kind {
            ObjectKind::Tombstone => Ok(None),
            ObjectKind::Point => serde_json::from_slice::<SignedPoint>(&text)
                .map(Some)
                .map_err(|error| Error::corrupt(object, "a malformed point").caused_by(error)),
            _ => Err(Error::corrupt(
                object,
                format_args!("a {kind:?} where a point belongs"),
            )),
        });
    match read {
        Ok(None) => Ok(Some(PlaceState::Tombstone)),
        Ok(Some(signed)) => {
            let state = judge(vault, object, key, &signed);
            if matches!(state, PlaceState::Point { .. }) {
                let mut kept = memory.points.lock().unwrap_or_else(PoisonError::into_inner);
                kept.insert(key, Arc::new(signed));
            }
            Ok(Some(state))
        }
        Err(error) => Ok(absent_or_damaged(error)?.map(PlaceState::Damaged)),
    }
}

fn recall_bundle(vault: &Vault, memory: &PointMemory, id: BundleId) -> Result<Arc<Bundle>> {
    if let Some(bundle) = memory
        .bundles
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .get(&id)
    {
        return Ok(Arc::clone(bundle));
    }
    let bundle = Arc::new(read_bundle(vault, id)?);
    let mut kept = memory
        .bundles
        .lock()
        .unwrap_or_else(PoisonError::into_inner);
    kept.insert(id, Arc::clone(&bundle));
    Ok(bundle)
}

/// Reads a body and checks its signature.
fn judge(vault: &Vault, object: &ObjectName, key: PointKey, signed: &SignedPoint) -> PlaceState {
    match open_point(vault, object, key, signed) {
        Ok(point) => PlaceState::Point {
            point: Box::new(point),
            signed: signed.clone(),
        },
        Err(error) => PlaceState::Damaged(error),
    }
}

/// The point in a signed body.
pub(crate) fn open_point(
    vault: &Vault,
    object: &ObjectName,
    key: PointKey,
    signed: &SignedPoint,
) -> Result<RecoveryPoint> {
    let mut point = signed.parse(object, key, |name| vault.name_id(name))?;
    point.signature = match (&vault.config().signing_public_key, &signed.signature) {
        (None, _) => SignatureState::Absent,
        (Some(root), Some(signature)) if verify_signature(root, &signed.body, signature) => {
            SignatureState::Good
        }
        _ => return Err(Error::corrupt(object, "its signature is not good")),
    };
    Ok(point)
}

/// Every point with its marks, forgotten ones included.
pub(crate) fn point_records(
    vault: &Vault,
    memory: &PointMemory,
) -> Result<(Vec<PointRecord>, Vec<Error>)> {
    let mut listing = list_places(vault, memory, Whose::All)?;
    let mut marks = read_all_marks(vault)?;
    listing.drop_retired(&retired_points(vault)?);
    let mut records = Vec::new();
    let mut damaged: Vec<Error> = listing
        .damaged_bundles
        .into_iter()
        .map(|(_, error)| error)
        .collect();
    for (key, place) in listing.places {
        match place.state {
            PlaceState::Point { point, .. } => records.push(PointRecord {
                point: *point,
                marks: marks.remove(&key).unwrap_or_default(),
            }),
            PlaceState::Tombstone => {}
            PlaceState::Damaged(error) => damaged.push(error),
        }
    }
    records
        .sort_by(|a, b| (&a.point.name, a.point.sequence).cmp(&(&b.point.name, b.point.sequence)));
    Ok((records, damaged))
}

/// The visible point that a selector names.
pub(crate) fn find_point(
    vault: &Vault,
    memory: &PointMemory,
    selector: &PointSelector,
) -> Result<PointRecord> {
    let name_id = vault.name_id(&selector.name);
    let listing = list_points(vault, memory, Whose::Of(name_id))?;
    let mut found = None;
    let mut damaged = listing
        .damaged_bundles
        .into_iter()
        .map(|(_, error)| error)
        .next();
    for (key, place) in listing.places.into_iter().rev() {
        let point = match place.state {
            PlaceState::Point { point, .. } => point,
            PlaceState::Tombstone => continue,
            PlaceState::Damaged(error) => {
                if selector.which == Which::Sequence(key.sequence) {
                    return Err(error);
                }
                damaged = damaged.or(Some(error));
                continue;
            }
        };
        let wanted = match &selector.which {
            Which::Latest => true,
            Which::Sequence(sequence) => key.sequence == *sequence,
            Which::IdPrefix(prefix) => point.point.to_string().starts_with(prefix.as_str()),
        };
        if !wanted {
            continue;
        }
        let marks = read_marks_of(vault, key)?;
        if selector.which == Which::Latest && marks.visibility() == PointVisibility::Forgotten {
            continue;
        }
        if retired_points(vault)?.contains(key) {
            continue;
        }
        if found.is_some() {
            let what = format!("point {selector}: more than one id begins so");
            return Err(Error::new(ErrorKind::Invalid, what));
        }
        found = Some(PointRecord {
            point: *point,
            marks,
        });
        if !matches!(selector.which, Which::IdPrefix(_)) {
            break;
        }
    }
    found.ok_or_else(|| {
        let error = Error::new(ErrorKind::NotFound, format!("no point {selector}"));
        match damaged {
            Some(cause) => error.caused_by(cause),
            None => error,
        }
    })
}

/// The newest visible point of a name, and the number that the next one gets.
///
/// A bundle that cannot be read does not stand in the way: before it was put, a verdict told the numbers of all its members.
///
/// # Errors
/// [`ErrorKind::Corrupt`] while a verdict cannot be read, or a bundle while no verdict tells of numbers: which ones were given
/// already is not known then, and none is given twice.
pub(crate) fn newest_and_next(
    vault: &Vault,
    memory: &PointMemory,
    name: &ProtectedName,
) -> Result<(Option<RecoveryPoint>, u64)> {
    let name_id = vault.name_id(name);
    let listing = list_places(vault, memory, Whose::Of(name_id))?;
    let mut parent = None;
    let mut readable = 0;
    let mut damaged = Vec::new();
    for (key, place) in listing.places.into_iter().rev() {
        match place.state {
            PlaceState::Damaged(_) => damaged.push(key.sequence),
            PlaceState::Tombstone => readable = readable.max(key.sequence),
            PlaceState::Point { point, .. } => {
                readable = readable.max(key.sequence);
                if parent.is_none()
                    && read_marks_of(vault, key)?.visibility() == PointVisibility::Visible
                    && !certain_numbers(vault, name)?.retired.contains(key)
                {
                    parent = Some(*point);
                }
            }
        }
    }
    let numbers = certain_numbers(vault, name)?;
    if let Some((object, error)) = listing.damaged_bundles.into_iter().next()
        && !numbers.tell_of_bundles()
    {
        return Err(numbers_unknown(name, &object, error));
    }
    let readable = readable.max(numbers.highest(name_id));
    let plausible = readable.saturating_add(NUMBER_GAP_MAX);
    let highest = damaged
        .into_iter()
        .filter(|sequence| *sequence <= plausible)
        .fold(readable, u64::max);
    let next = highest
        .checked_add(1)
        .ok_or_else(|| Error::new(ErrorKind::Refused, format!("{name}: no number is left")))?;
    Ok((parent, next))
}

/// What is known of numbers, from verdicts that are all readable.
fn certain_numbers(vault: &Vault, name: &ProtectedName) -> Result<Numbers> {
    let records = records::read_records(vault)?;
    for record in &records {
        if let Some(Err(error)) = &record.verdict {
            let object = names::verdict(record.generation)?;
            return Err(numbers_unknown(name, &object, error.again()));
        }
    }
    Ok(union_of_numbers(&records))
}

fn numbers_unknown(name: &ProtectedName, object: &ObjectName, error: Error) -> Error {
    let what = format!(
        "{object} cannot be read, so that nobody knows which numbers {name} has used: repair the repository first"
    );
    Error::new(ErrorKind::Corrupt, what).caused_by(error)
}
