//! Bundles: many points in one object, and the same object once more beside it.
//!
//! ```text
//!   bundles/<id>  bundles/<id>.copy      { "points": [ … ] }, each sealed under its own name
//! ```
//!
//! Four thousand points in one object must not hang on one bit: either of the two is enough, and garbage collection
//! makes them two again where one is gone, a repair also where one is damaged.
//!
//! **Invariants.** Both are durable before what they replace goes. The copy is put second and deleted first, so that it stands
//! alone only when somebody took the bundle itself away.

use std::collections::{BTreeMap, BTreeSet};

use store::{ObjectName, Store, list_all};

use crate::format::{MAX_ENVELOPE_TEXT_BYTES, ObjectKind};
use crate::gc::mark::is_damage;
use crate::points::Bundle;
use crate::vault::Vault;
use crate::{BundleId, Error, ErrorKind, Result, names};

/// How many of a bundle's two objects are good.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum BundleHalves {
    Both,
    One,
}

/// Bundles of which one of the two objects is not listed.
pub(crate) fn list_lone_bundles(store: &dyn Store) -> Result<Vec<BundleId>> {
    let mut listed: BTreeMap<BundleId, usize> = BTreeMap::new();
    for entry in list_all(store, &names::bundles()?) {
        if let Some(id) = names::parse_bundle(&entry?.name) {
            let count = listed.entry(id).or_default();
            *count = count.saturating_add(1);
        }
    }
    let lone = listed.into_iter().filter(|(_, count)| *count == 1);
    Ok(lone.map(|(id, _)| id).collect())
}

/// All bundles of which something is listed.
pub(crate) fn list_bundles(store: &dyn Store) -> Result<BTreeSet<BundleId>> {
    let mut ids = BTreeSet::new();
    for entry in list_all(store, &names::bundles()?) {
        ids.extend(names::parse_bundle(&entry?.name));
    }
    Ok(ids)
}

/// A bundle from whichever of its two objects is readable.
///
/// # Errors
/// [`ErrorKind::NotFound`] when neither is there; what is wrong with the one that is there when neither is good.
pub(crate) fn read_bundle(vault: &Vault, id: BundleId) -> Result<Bundle> {
    match read_half(vault, &names::bundle(id)?)? {
        Ok(bundle) => Ok(bundle),
        Err(error) => match read_half(vault, &names::bundle_copy(id)?)? {
            Ok(bundle) => Ok(bundle),
            // One whose key is not here may be good: then it is not called damaged.
            Err(copy) if error.kind() == ErrorKind::NotFound || may_be_good(&copy) => Err(copy),
            Err(_) => Err(error),
        },
    }
}

/// A bundle of which at least one object is good, and whether the other may be as well; `None` when neither is.
pub(crate) fn read_both(vault: &Vault, id: BundleId) -> Result<Option<(Bundle, BundleHalves)>> {
    let first = read_half(vault, &names::bundle(id)?)?;
    let copy = read_half(vault, &names::bundle_copy(id)?)?;
    Ok(match (first, copy) {
        (Ok(bundle), Ok(_)) => Some((bundle, BundleHalves::Both)),
        (Ok(bundle), Err(error)) | (Err(error), Ok(bundle)) if !may_be_good(&error) => {
            Some((bundle, BundleHalves::One))
        }
        (Ok(bundle), Err(_)) | (Err(_), Ok(bundle)) => Some((bundle, BundleHalves::Both)),
        (Err(_), Err(_)) => None,
    })
}

/// Whether an object may be good for somebody with another key or a newer program.
pub(crate) fn may_be_good(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::WrongKey | ErrorKind::Unsupported)
}

/// Damage and absence are inner errors.
fn read_half(vault: &Vault, name: &ObjectName) -> Result<Result<Bundle>> {
    let limit = u64::try_from(MAX_ENVELOPE_TEXT_BYTES).unwrap_or(u64::MAX);
    match vault.get_json(ObjectKind::Bundle, name, limit) {
        Ok(bundle) => Ok(Ok(bundle)),
        Err(error) if is_damage(&error) => Ok(Err(error)),
        Err(error) => Err(error),
    }
}

/// Puts a bundle and its copy under a new id.
pub(crate) fn put_bundle(vault: &Vault, bundle: &Bundle) -> Result<()> {
    let id = BundleId::generate(vault.environment().random.as_ref())?;
    vault.put_json(ObjectKind::Bundle, &names::bundle(id)?, bundle)?;
    vault.put_json(ObjectKind::Bundle, &names::bundle_copy(id)?, bundle)
}

/// Deletes a bundle and its copy.
pub(crate) fn delete_bundle(store: &dyn Store, id: BundleId) -> Result<()> {
    store.delete(&names::bundle_copy(id)?)?;
    store.delete(&names::bundle(id)?).map_err(Error::from)
}
