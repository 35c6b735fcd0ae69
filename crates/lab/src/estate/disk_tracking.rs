//! Which disks are tracked, and the files that say so.
//!
//! ```text
//!   disk.vhdx   disk.vhdx.rct   disk.vhdx.mrt      beside the bottom of the chain
//! ```
//!
//! **Invariants.** A tracker belongs to a chain, not to a file of it. Whoever takes the tracking files away, or changes the
//! disk, takes the tracking away.

use uuid::Uuid;

use super::disk::{DiskFormat, Tracked};
use super::disk_file::beside;
use super::ids::RctId;
use super::storage::{FilePlace, Storage};
use super::tracking::ChangeTracker;
use crate::{Error, Result};

impl Storage {
    /// Begins to track a disk if it is not tracked yet; `None` when it cannot be.
    pub(super) fn track(&mut self, place: &FilePlace, id: Uuid) -> Result<Option<Uuid>> {
        let disk = self.known(place)?;
        if disk.facts.format == DiskFormat::Vhd {
            return Ok(None);
        }
        if let Some(tracked) = disk.tracked {
            if self.tracking_files_are_there(place)? {
                return Ok(Some(tracked.tracker));
            }
            self.lose_tracking(place);
        }
        let size = self.known(place)?.facts.size_bytes;
        self.trackers.insert(id, ChangeTracker::new(id, size));
        self.known_mut(place)?.tracked = Some(Tracked {
            tracker: id,
            frozen: None,
        });
        self.write_tracking_files(place)?;
        Ok(Some(id))
    }

    /// The bottom of a chain: tracking files lie beside it.
    pub(super) fn root_of(&self, place: &FilePlace) -> FilePlace {
        let mut at = place.clone();
        for _ in 0..vdisk::chain::MAX_DEPTH {
            match self.disks.get(&at).and_then(|disk| disk.parent.clone()) {
                Some(parent) => at = parent,
                None => break,
            }
        }
        at
    }

    /// `.rct` and `.mrt` hold the tracker's id: whoever takes them away takes the tracking away.
    pub(super) fn write_tracking_files(&self, place: &FilePlace) -> Result<()> {
        let disk = self.known(place)?;
        let root = self.known(&self.root_of(place))?;
        let Some(tracked) = disk.tracked.filter(|_| root.is_file) else {
            return Ok(());
        };
        for extension in ["rct", "mrt"] {
            let file = beside(&root.backing, extension);
            let mut bytes = format!("HIKAE-LAB {extension} ").into_bytes();
            bytes.extend_from_slice(tracked.tracker.as_bytes());
            bytes.resize(4096, 0);
            std::fs::write(&file, bytes)
                .map_err(|error| Error::io(format!("writing {}", file.display()), error))?;
        }
        Ok(())
    }

    fn tracking_files_are_there(&self, place: &FilePlace) -> Result<bool> {
        let disk = self.known(place)?;
        let root = self.known(&self.root_of(place))?;
        let Some(tracked) = disk.tracked.filter(|_| root.is_file) else {
            return Ok(true);
        };
        let holds = |extension: &str| {
            std::fs::read(beside(&root.backing, extension)).is_ok_and(|bytes| {
                let head = format!("HIKAE-LAB {extension} ");
                bytes.get(head.len()..head.len() + 16) == Some(tracked.tracker.as_bytes())
            })
        };
        Ok(holds("rct") && holds("mrt"))
    }

    /// The tracker of a disk and the epoch that the file shows, if it is tracked.
    pub(super) fn tracker_of(&self, place: &FilePlace) -> Result<Option<(&ChangeTracker, u64)>> {
        let Some(tracked) = self.known(place)?.tracked else {
            return Ok(None);
        };
        if !self.tracking_files_are_there(place)? {
            return Ok(None);
        }
        Ok(self.trackers.get(&tracked.tracker).map(|tracker| {
            let until = tracked.frozen.unwrap_or(tracker.open_epoch());
            (tracker, until)
        }))
    }

    /// Ends the epoch of a live disk.
    pub(super) fn freeze(&mut self, place: &FilePlace) -> Result<Option<(u64, RctId)>> {
        let Some(tracked) = self.known(place)?.tracked else {
            return Ok(None);
        };
        let Some(tracker) = self.trackers.get_mut(&tracked.tracker) else {
            return Ok(None);
        };
        let (epoch, id) = tracker.freeze();
        self.known_mut(place)?.tracked = Some(Tracked {
            frozen: Some(epoch),
            ..tracked
        });
        Ok(Some((epoch, id)))
    }

    /// Names the moment of a live disk, which goes on being live.
    pub(super) fn name_moment(&mut self, place: &FilePlace) -> Result<Option<RctId>> {
        let tracked = self.known(place)?.tracked;
        let tracker = tracked.and_then(|it| self.trackers.get_mut(&it.tracker));
        Ok(tracker.map(|tracker| tracker.freeze().1))
    }

    /// Forgets the name of a moment, whichever tracker gave it.
    pub(super) fn forget_moment(&mut self, id: &RctId) {
        for tracker in self.trackers.values_mut() {
            if tracker.epoch_of(id).is_some() {
                tracker.forget(id);
            }
        }
    }

    /// Forgets all tracking of the chain that a disk belongs to.
    pub(super) fn lose_tracking(&mut self, place: &FilePlace) {
        let Some(tracked) = self.disks.get(place).and_then(|disk| disk.tracked) else {
            return;
        };
        self.trackers.remove(&tracked.tracker);
        for disk in self.disks.values_mut() {
            if disk.tracked.is_some_and(|it| it.tracker == tracked.tracker) {
                disk.tracked = None;
            }
        }
    }
}
