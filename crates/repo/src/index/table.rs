//! The packs that the index speaks of, by number: a number is given once and keeps its pack.

use std::collections::{HashMap, HashSet};

use crate::format::PackKind;
use crate::{Error, ErrorKind, KeyId, PackId, Result};

/// Whether a pack can be counted on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum PackState {
    /// Listed, not condemned.
    Present,
    /// Listed; garbage collection wants to delete it: readable, but nothing new may count on it.
    Condemned,
    /// Not listed.
    Absent,
}

/// One pack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PackRow {
    pub(crate) id: PackId,
    pub(crate) kind: PackKind,
    pub(crate) key_id: KeyId,
    pub(crate) size_bytes: u32,
    pub(crate) blobs: u32,
    pub(crate) state: PackState,
}

/// All packs by number and by id.
#[derive(Default)]
pub(crate) struct PackTable {
    rows: Vec<PackRow>,
    numbers: HashMap<PackId, u32>,
    /// By which generation a pack was condemned, also packs that are not in the table yet.
    condemned: HashMap<PackId, u64>,
    changed: bool,
}

impl PackTable {
    pub(crate) fn row(&self, number: u32) -> Option<PackRow> {
        self.rows.get(usize::try_from(number).ok()?).copied()
    }

    pub(crate) fn number(&self, id: PackId) -> Option<u32> {
        self.numbers.get(&id).copied()
    }

    pub(crate) fn rows(&self) -> Vec<(u32, PackRow)> {
        (0u32..).zip(self.rows.iter().copied()).collect()
    }

    /// Adds a pack, or finds it again.
    pub(crate) fn add(&mut self, mut row: PackRow) -> Result<u32> {
        if self.condemned.contains_key(&row.id) {
            row.state = PackState::Condemned;
        }
        self.changed = true;
        if let Some(number) = self.number(row.id) {
            if let Some(old) = self
                .rows
                .get_mut(usize::try_from(number).unwrap_or(usize::MAX))
            {
                *old = row;
            }
            return Ok(number);
        }
        let number = u32::try_from(self.rows.len())
            .map_err(|_| Error::new(ErrorKind::Local, "the local index holds no more packs"))?;
        self.rows.push(row);
        self.numbers.insert(row.id, number);
        Ok(number)
    }

    pub(crate) fn set_state(&mut self, number: u32, state: PackState) {
        let row = usize::try_from(number)
            .ok()
            .and_then(|at| self.rows.get_mut(at));
        if let Some(row) = row {
            self.changed |= row.state != state;
            row.state = state;
        }
    }

    /// Everything that is not listed is absent.
    pub(crate) fn retain_listed(&mut self, is_listed: impl Fn(PackId) -> bool) {
        for row in &mut self.rows {
            if row.state != PackState::Absent && !is_listed(row.id) {
                row.state = PackState::Absent;
                self.changed = true;
            }
        }
        self.condemned.retain(|id, _| is_listed(*id));
    }

    pub(crate) fn condemn(&mut self, generation: u64, packs: &[PackId]) {
        for id in packs {
            self.condemned.insert(*id, generation);
            if let Some(number) = self.number(*id)
                && self
                    .row(number)
                    .is_some_and(|row| row.state == PackState::Present)
            {
                self.set_state(number, PackState::Condemned);
            }
        }
    }

    /// A generation's verdict spared everything but `lost`.
    pub(crate) fn pardon(&mut self, generation: u64, lost: &[PackId]) {
        let lost: HashSet<PackId> = lost.iter().copied().collect();
        let spared: Vec<PackId> = self
            .condemned
            .iter()
            .filter(|(id, by)| **by == generation && !lost.contains(id))
            .map(|(id, _)| *id)
            .collect();
        for id in spared {
            self.condemned.remove(&id);
            if let Some(number) = self.number(id)
                && self
                    .row(number)
                    .is_some_and(|row| row.state == PackState::Condemned)
            {
                self.set_state(number, PackState::Present);
            }
        }
    }

    /// Packs that need not be loaded again.
    pub(crate) fn present_ids(&self) -> HashSet<PackId> {
        self.rows
            .iter()
            .filter(|row| row.state != PackState::Absent)
            .map(|row| row.id)
            .collect()
    }

    pub(crate) fn present_count(&self) -> u64 {
        let present = self
            .rows
            .iter()
            .filter(|row| row.state != PackState::Absent)
            .count();
        u64::try_from(present).unwrap_or(u64::MAX)
    }

    pub(crate) fn memory_bytes(&self) -> u64 {
        let row = size_of::<PackRow>() + size_of::<(PackId, u32)>() * 2;
        u64::try_from(self.rows.len().saturating_mul(row)).unwrap_or(u64::MAX)
    }

    pub(crate) fn is_changed(&self) -> bool {
        self.changed
    }

    pub(crate) fn set_saved(&mut self) {
        self.changed = false;
    }
}
