//! Objects in memory: for tests, trials, and as the model of what survives a crash.
//!
//! ```text
//!   alive ──survive()──► dead       every later call on this handle: Unavailable
//!               └──────► alive      another store, with what was put before the crash
//! ```
//!
//! **Invariants.** A put that was in flight at the crash is absent or whole. A thread that outlives the crash cannot
//! reach the survivor. What was read stays what it was.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::store::{check_body, check_limit, check_page_limit, check_range, page_of};
use crate::{Error, ErrorKind, ListEntry, ListPage, ObjectName, Prefix, Result, Store, Verb};

/// A store that lives as long as its handle.
#[derive(Debug, Default)]
pub struct MemoryStore {
    state: Mutex<State>,
}

#[derive(Debug, Clone, Default)]
struct State {
    objects: BTreeMap<ObjectName, Arc<Vec<u8>>>,
    used_bytes: u64,
    capacity_bytes: Option<u64>,
    life: Life,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Life {
    #[default]
    Alive,
    Dead,
}

impl MemoryStore {
    /// An empty store.
    pub fn new() -> Self {
        Self::default()
    }

    /// An empty store that answers [`ErrorKind::Full`] to a put that would take it above `capacity_bytes` of bodies.
    pub fn with_capacity(capacity_bytes: u64) -> Self {
        let store = Self::default();
        store.state().capacity_bytes = Some(capacity_bytes);
        store
    }

    /// Crashes this store: the handle is dead, and what was put is in the store that comes back.
    pub fn survive(&self) -> Self {
        let mut state = self.state();
        let survivor = state.clone();
        state.life = Life::Dead;
        Self {
            state: Mutex::new(survivor),
        }
    }

    /// A second store with the same objects; neither sees what happens to the other afterwards.
    pub fn snapshot(&self) -> Self {
        Self {
            state: Mutex::new(self.state().clone()),
        }
    }

    /// How many bytes all bodies have together.
    pub fn used_bytes(&self) -> u64 {
        self.state().used_bytes
    }

    /// Sets or lifts the capacity.
    pub fn set_capacity(&self, capacity_bytes: Option<u64>) {
        self.state().capacity_bytes = capacity_bytes;
    }

    /// Changes the bytes of an object behind the back of everyone: how tests damage a repository.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`].
    pub fn damage(&self, name: &ObjectName, change: impl FnOnce(&mut Vec<u8>)) -> Result<()> {
        let mut state = self.state();
        let Some(body) = state.objects.get(name) else {
            return Err(Error::not_found(Verb::PutNew, name));
        };
        let mut bytes = body.as_ref().clone();
        let before = length_of(&bytes);
        change(&mut bytes);
        state.used_bytes = state
            .used_bytes
            .saturating_sub(before)
            .saturating_add(length_of(&bytes));
        state.objects.insert(name.clone(), Arc::new(bytes));
        Ok(())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // No code under the lock leaves the map half changed, so a panic elsewhere does not spoil it.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn alive(&self, verb: Verb, name: &impl std::fmt::Display) -> Result<MutexGuard<'_, State>> {
        let state = self.state();
        match state.life {
            Life::Alive => Ok(state),
            Life::Dead => Err(Error::of(
                ErrorKind::Unavailable,
                verb,
                name,
                "this store has crashed",
            )),
        }
    }

    fn body(&self, verb: Verb, name: &ObjectName) -> Result<Arc<Vec<u8>>> {
        let state = self.alive(verb, name)?;
        state
            .objects
            .get(name)
            .cloned()
            .ok_or_else(|| Error::not_found(verb, name))
    }
}

fn length_of(body: &[u8]) -> u64 {
    u64::try_from(body.len()).unwrap_or(u64::MAX)
}

impl State {
    /// Whether `name` would make an object out of a prefix, or the other way round.
    fn clashes(&self, name: &ObjectName) -> bool {
        let below = format!("{name}/");
        let is_prefix = self
            .objects
            .range::<str, _>((Bound::Excluded(below.as_str()), Bound::Unbounded))
            .next()
            .is_some_and(|(other, _)| other.as_str().starts_with(&below));
        let text = name.as_str();
        let mut parents = text.match_indices('/').filter_map(|(at, _)| text.get(..at));
        is_prefix || parents.any(|parent| self.objects.contains_key(parent))
    }
}

impl Store for MemoryStore {
    fn put_new(&self, name: &ObjectName, body: &[u8]) -> Result<()> {
        check_body(name, body)?;
        let shared = Arc::new(body.to_vec());
        let mut state = self.alive(Verb::PutNew, name)?;
        if state.objects.contains_key(name) {
            return Err(Error::already_exists(name));
        }
        if state.clashes(name) {
            return Err(Error::of(
                ErrorKind::Invalid,
                Verb::PutNew,
                name,
                "a name cannot be an object and a prefix",
            ));
        }
        let used_bytes = state.used_bytes.saturating_add(length_of(body));
        if state
            .capacity_bytes
            .is_some_and(|capacity| used_bytes > capacity)
        {
            return Err(Error::of(
                ErrorKind::Full,
                Verb::PutNew,
                name,
                "no space left",
            ));
        }
        state.used_bytes = used_bytes;
        state.objects.insert(name.clone(), shared);
        Ok(())
    }

    fn get_bounded(&self, name: &ObjectName, limit_bytes: u64) -> Result<Vec<u8>> {
        let body = self.body(Verb::Get, name)?;
        check_limit(name, length_of(&body), limit_bytes)?;
        Ok(body.as_ref().clone())
    }

    fn get_range(&self, name: &ObjectName, offset: u64, length_bytes: u64) -> Result<Vec<u8>> {
        let body = self.body(Verb::GetRange, name)?;
        let size_bytes = length_of(&body);
        let length = check_range(name, offset, length_bytes, size_bytes)?;
        let range = usize::try_from(offset)
            .ok()
            .and_then(|start| body.get(start..start.checked_add(length)?));
        range
            .map(<[u8]>::to_vec)
            .ok_or_else(|| crate::store::out_of_range(name, offset, length_bytes, size_bytes))
    }

    fn size(&self, name: &ObjectName) -> Result<u64> {
        Ok(length_of(&self.body(Verb::Size, name)?))
    }

    fn list(&self, prefix: &Prefix, after: Option<&ObjectName>, limit: usize) -> Result<ListPage> {
        let limit = check_page_limit(prefix, limit)?;
        let state = self.alive(Verb::List, prefix)?;
        let start = match after {
            Some(after) if after.as_str() >= prefix.as_str() => Bound::Excluded(after.as_str()),
            _ => Bound::Included(prefix.as_str()),
        };
        let entries = state
            .objects
            .range::<str, _>((start, Bound::Unbounded))
            .take_while(|(name, _)| prefix.contains(name))
            .take(limit.saturating_add(1))
            .map(|(name, body)| ListEntry {
                name: name.clone(),
                size_bytes: length_of(body),
            })
            .collect();
        Ok(page_of(entries, limit))
    }

    fn delete(&self, name: &ObjectName) -> Result<()> {
        let mut state = self.alive(Verb::Delete, name)?;
        if let Some(body) = state.objects.remove(name) {
            state.used_bytes = state.used_bytes.saturating_sub(length_of(&body));
        }
        Ok(())
    }

    fn describe(&self) -> String {
        "memory".to_owned()
    }
}
