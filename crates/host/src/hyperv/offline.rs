//! Offline backup: save, checkpoint, start again, whatever happens in between.
//!
//! ```text
//!   intend(saved state) ─► mark ─► save ─► CreateSnapshot ─► start ─► entry closed
//!            │                      │            │            └─ fails: entry stays open, the custodian starts it
//!            └──────────────────────┴────────────┴─ error, cancel: start all the same
//! ```
//!
//! A clustered machine is saved and started through its cluster when its resource is known to save on going offline; else by
//! Hyper-V, and the cluster sets the resource offline and online by itself.

use std::time::Duration;

use super::HyperV;
use super::recovery::Taken;
use crate::boundary::{ClusterMembership, Power, StopMode};
use crate::checkpoint::{CheckpointRequest, StillFacts, Warning, WarningCode};
use crate::clock::CancelToken;
use crate::cluster::RoleTarget;
use crate::custody::{Closing, Custody, EntryId, HeldKind, MachineMark};
use crate::error::chain_text;
use crate::facts::{PowerState, VmFacts};
use crate::ids::VmId;
use crate::{Error, ErrorKind, Result};

/// How often starting again is tried before it is left to the custodian.
const START_ATTEMPTS: usize = 5;

impl HyperV {
    /// Saves a running machine, takes the checkpoint, and starts it again at once.
    pub(super) fn take_saved(
        &self,
        _request: &CheckpointRequest,
        machine: &VmFacts,
        attempt: &super::recovery::Attempt,
        custody: &Custody,
        cancel: &CancelToken,
    ) -> Result<(Taken, StillFacts)> {
        let vm = machine.id;
        let (node, _) = self.find_owner(vm, cancel)?;
        let entry = custody.intend(
            HeldKind::SavedState,
            vm,
            node.name(),
            self.moment(&node),
            Vec::new(),
        )?;
        custody.made(entry, &vm.to_string())?;
        let mark = MachineMark {
            kind: HeldKind::SavedState,
            mark: custody.mark().clone(),
            id: None,
        };
        let mut warnings = Vec::new();
        self.mark_machine(&node, vm, &mark, &mut warnings);
        let began = self.clock.elapsed();
        let taken = self
            .save(machine, cancel)
            .and_then(|()| self.take(vm, attempt, custody, cancel));
        let started = self.start_again(machine, entry, &mark, custody, &mut warnings);
        let downtime = self.clock.elapsed().saturating_sub(began);
        let mut taken = taken?;
        taken.warnings.append(&mut warnings);
        let downtime_ms = started.then(|| u64::try_from(downtime.as_millis()).unwrap_or(u64::MAX));
        Ok((
            taken,
            StillFacts {
                frozen_at_most_ms: None,
                downtime_ms,
            },
        ))
    }

    fn save(&self, machine: &VmFacts, cancel: &CancelToken) -> Result<()> {
        if !goes_through_cluster(machine) {
            return self.stop(machine.id, StopMode::Save, cancel);
        }
        self.set_role(machine.id, RoleTarget::Offline, cancel)?;
        match self.power_state(machine.id, cancel)? {
            PowerState::Saved => Ok(()),
            state => Err(Error::new(
                ErrorKind::State,
                format!(
                    "machine {} is {state} after its role went offline, not saved",
                    machine.id
                ),
            )),
        }
    }

    fn resume(&self, machine: &VmFacts, calm: &CancelToken) -> Result<()> {
        if goes_through_cluster(machine)
            && self.set_role(machine.id, RoleTarget::Online, calm).is_ok()
        {
            return self.await_state(machine.id, PowerState::Running, calm);
        }
        self.start(machine.id, calm)
    }

    /// Starts a machine that we saved. Nobody's wish to stop keeps it from running again.
    fn start_again(
        &self,
        machine: &VmFacts,
        entry: EntryId,
        mark: &MachineMark,
        custody: &Custody,
        warnings: &mut Vec<Warning>,
    ) -> bool {
        let vm = machine.id;
        let calm = CancelToken::new();
        let mut pause = Duration::from_secs(1);
        let mut last = String::new();
        for _ in 0..START_ATTEMPTS {
            match self.resume(machine, &calm) {
                Ok(()) => {
                    self.close_saved(vm, entry, mark, custody, warnings);
                    return true;
                }
                Err(error) => last = chain_text(&error),
            }
            // The state may have been reached although an answer was lost.
            if matches!(self.power_state(vm, &calm), Ok(PowerState::Running)) {
                self.close_saved(vm, entry, mark, custody, warnings);
                return true;
            }
            self.clock.pause(pause, &calm);
            pause = pause.saturating_mul(2);
        }
        warnings.push(Warning {
            code: WarningCode::NotResumed,
            text: format!("machine {vm} could not be started again yet: {last}"),
        });
        false
    }

    fn close_saved(
        &self,
        vm: VmId,
        entry: EntryId,
        mark: &MachineMark,
        custody: &Custody,
        warnings: &mut Vec<Warning>,
    ) {
        let calm = CancelToken::new();
        let closed = custody
            .close(entry, Closing::Removed)
            .and_then(|()| self.unmark_machine(vm, mark, &calm));
        if let Err(error) = closed {
            warnings.push(Warning {
                code: WarningCode::Unmarked,
                text: chain_text(&error),
            });
        }
    }
}

fn goes_through_cluster(machine: &VmFacts) -> bool {
    machine
        .role
        .as_ref()
        .is_some_and(|role| role.saves_when_offline == Some(true))
}
