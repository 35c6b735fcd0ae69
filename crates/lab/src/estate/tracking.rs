//! Resilient change tracking: which parts of a disk changed between two moments.
//!
//! ```text
//!   epoch 0 │ epoch 1 │ epoch 2 …        a freeze ends an epoch and names it; writes go into the open one
//!           ▲ named "rct…1"  ▲ asked now: epochs 2 …
//! ```
//!
//! **Invariants.** While honest, what it answers holds every byte that differs between the two moments. A name that nobody
//! holds any more is unknown.

use std::collections::{BTreeMap, BTreeSet};

use block::ByteRange;
use uuid::Uuid;

use super::ids::RctId;

/// What one bit stands for. Not a multiple of anybody's block on purpose: answers are arbitrary byte ranges.
pub const GRANULARITY_BYTES: u64 = 4096;
/// More chunks than this in one epoch, and everything counts as changed.
const MAX_CHUNKS: usize = 1 << 20;

/// What changed in one epoch.
#[derive(Debug, Clone, Default)]
struct Epoch {
    chunks: BTreeSet<u64>,
    is_everything: bool,
}

/// Whether a tracker says the truth.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Honesty {
    Honest,
    /// Leaves chunks out whose number has this remainder by three.
    LeavesOut(u64),
}

/// Tracks the writes of one disk, through all files that its chain ever has.
#[derive(Debug, Clone)]
pub struct ChangeTracker {
    /// Its id, part of every name it gives.
    pub id: Uuid,
    size_bytes: u64,
    open: u64,
    epochs: BTreeMap<u64, Epoch>,
    names: BTreeMap<RctId, u64>,
    pub(super) honesty: Honesty,
}

impl ChangeTracker {
    pub(super) fn new(id: Uuid, size_bytes: u64) -> Self {
        Self {
            id,
            size_bytes,
            open: 0,
            epochs: BTreeMap::new(),
            names: BTreeMap::new(),
            honesty: Honesty::Honest,
        }
    }

    /// Notes a write of the running guest.
    pub(super) fn note(&mut self, offset: u64, length_bytes: u64) {
        Self::note_in(
            self.epochs.entry(self.open).or_default(),
            offset,
            length_bytes,
        );
    }

    /// Notes a write that belongs to the moment an epoch ended at, and to none before: the guest's writers finishing a
    /// frozen disk. Both the step to that moment and the step from it to the next differ there.
    pub(super) fn note_around(&mut self, epoch: u64, offset: u64, length_bytes: u64) {
        for number in [epoch, epoch + 1] {
            Self::note_in(self.epochs.entry(number).or_default(), offset, length_bytes);
        }
    }

    fn note_in(epoch: &mut Epoch, offset: u64, length_bytes: u64) {
        if length_bytes == 0 || epoch.is_everything {
            return;
        }
        let last = offset.saturating_add(length_bytes - 1) / GRANULARITY_BYTES;
        for chunk in offset / GRANULARITY_BYTES..=last {
            epoch.chunks.insert(chunk);
            if epoch.chunks.len() > MAX_CHUNKS {
                epoch.chunks.clear();
                epoch.is_everything = true;
                return;
            }
        }
    }

    /// Ends the open epoch and names the moment.
    pub(super) fn freeze(&mut self) -> (u64, RctId) {
        let epoch = self.open;
        self.open += 1;
        let text = self.id.as_simple().to_string();
        let mut fields = [
            text.get(..8),
            text.get(8..12),
            text.get(12..16),
            text.get(16..20),
            text.get(20..),
        ]
        .into_iter()
        .flatten();
        let mut name = String::from("rctX");
        for field in fields.by_ref() {
            name.push(':');
            name.push_str(field);
        }
        let id = RctId(format!("{name}:{epoch:08x}"));
        self.names.insert(id.clone(), epoch);
        (epoch, id)
    }

    /// The epoch that a name ended.
    pub(super) fn epoch_of(&self, id: &RctId) -> Option<u64> {
        self.names.get(id).copied()
    }

    /// The epoch that is being written.
    pub(super) fn open_epoch(&self) -> u64 {
        self.open
    }

    /// Nobody asks from this moment any more.
    pub(super) fn forget(&mut self, id: &RctId) {
        self.names.remove(id);
        let oldest = self.names.values().copied().min().unwrap_or(self.open);
        self.epochs = self.epochs.split_off(&(oldest + 1).min(self.open));
    }

    /// What changed behind the moment `from` up to and with the epoch `until`, cut to a window.
    pub(super) fn changed(&self, from: u64, until: u64, window: ByteRange) -> Vec<ByteRange> {
        let end = window.end().min(self.size_bytes);
        let epochs = || {
            self.epochs
                .range(from + 1..=until.max(from + 1))
                .filter(|(number, _)| **number <= until)
        };
        if epochs().any(|(_, epoch)| epoch.is_everything) {
            return vec![ByteRange {
                offset: window.offset,
                length_bytes: end.saturating_sub(window.offset),
            }];
        }
        let first = window.offset / GRANULARITY_BYTES;
        let behind = end.div_ceil(GRANULARITY_BYTES);
        let mut chunks = BTreeSet::new();
        if first < behind {
            for (_, epoch) in epochs() {
                chunks.extend(epoch.chunks.range(first..behind).copied());
            }
        }
        if let Honesty::LeavesOut(rest) = self.honesty {
            chunks.retain(|chunk| chunk % 3 != rest);
        }
        let mut ranges: Vec<ByteRange> = Vec::new();
        for chunk in chunks {
            let from = (chunk * GRANULARITY_BYTES).max(window.offset);
            let to = ((chunk + 1) * GRANULARITY_BYTES).min(end);
            match ranges.last_mut() {
                Some(last) if last.end() == from => last.length_bytes += to - from,
                _ => ranges.push(ByteRange {
                    offset: from,
                    length_bytes: to - from,
                }),
            }
        }
        ranges
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn whole() -> ByteRange {
        ByteRange {
            offset: 0,
            length_bytes: 1 << 20,
        }
    }

    fn range(offset: u64, length_bytes: u64) -> ByteRange {
        ByteRange {
            offset,
            length_bytes,
        }
    }

    #[test]
    fn changes_between_two_moments_are_those_of_the_epochs_between() {
        let mut tracker = ChangeTracker::new(Uuid::from_u128(7), 1 << 20);
        tracker.note(0, 10);
        let (first, first_id) = tracker.freeze();
        tracker.note(4096, 8192);
        let (second, _) = tracker.freeze();
        tracker.note(40960, 1);
        assert_eq!(tracker.epoch_of(&first_id), Some(first));
        assert_eq!(tracker.changed(first, second, whole()), [range(4096, 8192)]);
        assert_eq!(
            tracker.changed(first, tracker.open_epoch(), whole()),
            [range(4096, 8192), range(40960, 4096)]
        );
        assert_eq!(
            tracker.changed(first, second, range(5000, 100)),
            [range(5000, 100)]
        );
        assert_eq!(tracker.changed(second, second, whole()), []);
    }

    #[test]
    fn a_forgotten_moment_is_unknown_and_its_epochs_go() {
        let mut tracker = ChangeTracker::new(Uuid::from_u128(7), 1 << 20);
        let (_, first) = tracker.freeze();
        tracker.note(0, 1);
        let (second, second_id) = tracker.freeze();
        tracker.note(8192, 1);
        tracker.forget(&first);
        assert_eq!(tracker.epoch_of(&first), None);
        assert_eq!(tracker.epoch_of(&second_id), Some(second));
        assert_eq!(tracker.epochs.len(), 1);
        assert_eq!(
            tracker.changed(second, tracker.open_epoch(), whole()),
            [range(8192, 4096)]
        );
    }
}
