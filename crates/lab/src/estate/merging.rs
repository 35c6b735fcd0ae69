//! Files that nothing names any more: removed, or merged with the one file that stands on them.
//!
//! ```text
//!   base (unnamed) ◄── leaf (named)                    ─► leaf merges into base; what named leaf names base
//!   base (named)   ◄── a (unnamed) ◄── leaf (named)    ─► leaf merges into a
//!   base (named)   ◄── a (unnamed), no child           ─► a is removed
//!   base (unnamed) ◄── leaf, ◄── other                 ─► nothing: it takes one child to merge
//! ```
//!
//! **Invariants.** Only files that the VM named once are touched: a parent that it never named is somebody's template. A merge changes no byte that anybody can see. It runs beside everything but other changes of the same
//! files; while merging is suspended nothing is merged, and files stay.

use std::collections::BTreeSet;
use std::time::Duration;

use super::fault::FaultKind;
use super::ids::{HostName, SystemKey, VmId};
use super::job::{Affected, JobClass, JobFailure, Started};
use super::storage::FilePlace;
use super::vm::{MergeState, VirtualMachine};
use super::work::{Event, JobPlan, Outcome};
use super::{Estate, WindowsPath};
use crate::{HResult, Result, ReturnCode};

/// After a merge that failed, the host tries again.
const RETRY: Duration = Duration::from_secs(30);

/// A file that can go, and how.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Step {
    /// Nothing stands on it.
    Remove(FilePlace),
    /// The child stands on it alone.
    MergeUp { child: FilePlace },
}

impl Estate {
    /// Files that the VM no longer names may go.
    pub(super) fn release_files(&mut self, places: impl IntoIterator<Item = FilePlace>) {
        for place in places {
            if let Some(disk) = self.storage.disks.get_mut(&place) {
                disk.is_released = true;
            }
        }
    }

    /// Every file that the VM or one of its checkpoints names.
    pub(super) fn named_files(&self, vm: &VirtualMachine) -> BTreeSet<FilePlace> {
        let settings =
            std::iter::once(&vm.settings).chain(vm.checkpoints.values().map(|it| &it.settings));
        settings
            .flat_map(|it| it.hardware.own_disks())
            .filter_map(|(_, medium)| self.locate(&vm.host, &medium.path).ok())
            .collect()
    }

    /// What can be done about files in the chains of a VM that nothing names.
    fn plan_merge(&self, key: SystemKey) -> Option<Step> {
        let vm = self.systems.get(&key)?;
        let named = self.named_files(vm);
        let mut chain: BTreeSet<FilePlace> = BTreeSet::new();
        for place in &named {
            let mut at = Some(place.clone());
            while let Some(place) = at.filter(|place| chain.insert(place.clone())) {
                at = self
                    .storage
                    .disk(&place)
                    .and_then(|disk| disk.parent.clone());
            }
        }
        // Removed leaves are not in any chain: look at what stands on the files of the chains.
        let mut all = chain.clone();
        for place in &chain {
            all.extend(self.storage.children(place));
        }
        let is_free = |place: &&FilePlace| {
            !named.contains(*place)
                && self
                    .storage
                    .disk(place)
                    .is_some_and(|disk| disk.is_released)
        };
        all.iter().filter(is_free).find_map(|place| {
            let children = self.storage.children(place);
            let has_parent = self
                .storage
                .disk(place)
                .is_some_and(|disk| disk.parent.is_some());
            match children.as_slice() {
                [] if has_parent => Some(Step::Remove(place.clone())),
                [child] => Some(Step::MergeUp {
                    child: child.clone(),
                }),
                _ => None,
            }
        })
    }

    /// Begins a merge if there is something to merge and nothing is in the way.
    pub(super) fn look_for_merges(&mut self, key: SystemKey) {
        loop {
            let Some(vm) = self.systems.get(&key) else {
                return;
            };
            if vm.merging.is_some() || vm.merge_state == MergeState::Suspended {
                return;
            }
            if vm.activity.is_some() {
                let again = self.timings.guest_tick;
                self.timeline.schedule_in(again, Event::LookForMerges(key));
                return;
            }
            let (id, host) = (vm.id, vm.host.clone());
            match self.plan_merge(key) {
                None => return,
                Some(Step::Remove(place)) => {
                    if self.storage.remove(&place).is_err() {
                        return;
                    }
                    self.touch();
                }
                Some(Step::MergeUp { child }) => {
                    self.begin_merge(key, id, &host, child);
                    return;
                }
            }
        }
    }

    fn begin_merge(&mut self, key: SystemKey, id: VmId, host: &HostName, child: FilePlace) {
        let bytes = self
            .storage
            .disk(&child)
            .map_or(0, |disk| disk.file_bytes());
        let plan = JobPlan {
            host: host.clone(),
            class: JobClass::Concrete,
            job_type: 50,
            system: Some(key),
            activity: None,
            lasts: self.moving(self.timings.merge, bytes),
            affected: vec![Affected::System(id)],
            destination: None,
        };
        let job = self.begin_job(plan, move |estate| estate.finish_merge(key, &child));
        if let Some(vm) = self.systems.get_mut(&key) {
            vm.merging = Some(job);
        }
    }

    fn finish_merge(&mut self, key: SystemKey, child: &FilePlace) -> Outcome {
        let vm = self.vm_of(key)?;
        let (id, host) = (vm.id, vm.host.clone());
        if self.strikes(FaultKind::MergeFails, Some(id), &host) {
            self.timeline.schedule_in(RETRY, Event::LookForMerges(key));
            return Err(
                JobFailure::new(ReturnCode::Failed, "the disks could not be merged")
                    .caused_by(HResult::FAILED),
            );
        }
        let outcome = self.merge_now(key, child);
        let again = if outcome.is_ok() {
            Duration::ZERO
        } else {
            RETRY
        };
        self.timeline.schedule_in(again, Event::LookForMerges(key));
        outcome?;
        Ok(Vec::new())
    }

    /// Merges a file into its parent; whoever named it names the parent.
    fn merge_now(&mut self, key: SystemKey, child: &FilePlace) -> Result<()> {
        let Some(parent) = self.storage.known(child)?.parent.clone() else {
            return Ok(());
        };
        let below = self.storage.known(&parent)?.path.clone();
        let was_open = self.vm_of(key)?.session.is_some();
        self.close_session(key)?;
        let ids = self.disk_ids.clone();
        let merged = self.storage.merge(child, &ids);
        if merged.is_ok() {
            if let Some(disk) = self.storage.disks.get_mut(&parent) {
                disk.is_released = false;
            }
            self.rename_medium(key, child, &below)?;
            self.write_configuration(key)?;
        }
        if was_open {
            self.reopen_session(key)?;
        }
        merged
    }

    /// Drops all checkpoints of a VM that is off and merges everything now: it is about to go.
    pub(super) fn settle_files(&mut self, key: SystemKey) -> Result<()> {
        let ids: Vec<_> = self.vm_of(key)?.checkpoints.keys().copied().collect();
        for id in ids {
            if let Some(gone) = self.take_checkpoint(key, id)? {
                for state in gone.tracked.values() {
                    self.storage.forget_moment(&state.id);
                }
            }
        }
        while let Some(step) = self.plan_merge(key) {
            match step {
                Step::Remove(place) => self.storage.remove(&place)?,
                Step::MergeUp { child } => self.merge_now(key, &child)?,
            }
        }
        Ok(())
    }

    pub(super) fn reopen_session(&mut self, key: SystemKey) -> Result<()> {
        self.open_session(key)
            .map_err(|failure| crate::Error::returned(failure.code, failure.text))
    }

    /// Whatever of the VM and its checkpoints named a file names another.
    fn rename_medium(&mut self, key: SystemKey, old: &FilePlace, new: &WindowsPath) -> Result<()> {
        let vm = self.vm_of(key)?;
        let host = vm.host.clone();
        let cluster = self.host(&host)?.cluster.clone();
        let Self {
            systems, storage, ..
        } = self;
        let Some(vm) = systems.get_mut(&key) else {
            return Ok(());
        };
        let now = std::iter::once(&mut vm.settings);
        for settings in now.chain(vm.checkpoints.values_mut().map(|it| &mut it.settings)) {
            for (_, medium) in settings.hardware.disks_mut() {
                let place = storage.locate(&host, cluster.as_ref(), &medium.path);
                if place.is_ok_and(|place| place == *old) {
                    medium.path = new.clone();
                }
            }
        }
        self.touch();
        Ok(())
    }

    /// Whether files of a VM wait to be merged.
    pub fn is_merge_pending(&self, key: SystemKey) -> bool {
        matches!(self.plan_merge(key), Some(Step::MergeUp { .. }))
    }

    /// `ModifyDiskMergeSettings`: switches merging of a VM on or off.
    ///
    /// # Errors
    /// `NotFound`, `Unreachable`.
    pub fn set_merge_state(
        &mut self,
        host: &HostName,
        id: VmId,
        state: MergeState,
    ) -> Result<Started> {
        self.live_host(host)?;
        let key = self.vm(host, id)?.key;
        self.vm_mut(key)?.merge_state = state;
        self.timeline
            .schedule_in(Duration::ZERO, Event::LookForMerges(key));
        self.touch();
        Ok(Started::Done(Vec::new()))
    }
}
