//! Starting and stopping machines: a request, its job, and the state that it was for.

use wsman::cim::CimValue;

use super::HyperV;
use super::decode::power_state;
use super::jobs::is_passing;
use super::node::{Node, Realm, quoted};
use crate::boundary::{Power, StopMode};
use crate::clock::CancelToken;
use crate::facts::PowerState;
use crate::ids::VmId;
use crate::{Error, ErrorKind, Result};

/// Values of `RequestedState`.
const RUN: u64 = 2;
const TURN_OFF: u64 = 3;
const SAVE: u64 = 6;
const PAUSE: u64 = 9;
/// The guest's screen is locked: it shuts down only when forced.
const GUEST_LOCKED: u32 = 32_781;

impl Power for HyperV {
    fn power_state(&self, vm: VmId, cancel: &CancelToken) -> Result<PowerState> {
        let (state, _) = self.on_owner(vm, cancel, |node| state_of(node, vm))?;
        Ok(state)
    }

    fn start(&self, vm: VmId, cancel: &CancelToken) -> Result<()> {
        self.bring_to(vm, RUN, PowerState::Running, cancel)
    }

    fn stop(&self, vm: VmId, mode: StopMode, cancel: &CancelToken) -> Result<()> {
        match mode {
            StopMode::TurnOff => self.bring_to(vm, TURN_OFF, PowerState::Off, cancel),
            StopMode::Save => self.bring_to(vm, SAVE, PowerState::Saved, cancel),
            StopMode::Pause => self.bring_to(vm, PAUSE, PowerState::Paused, cancel),
            StopMode::Shutdown => self.shut_down(vm, cancel),
        }
    }
}

impl HyperV {
    fn bring_to(
        &self,
        vm: VmId,
        request: u64,
        wanted: PowerState,
        cancel: &CancelToken,
    ) -> Result<()> {
        let (asked, _) = self.on_owner(vm, cancel, |node| {
            if state_of(node, vm)? == wanted {
                return Ok(false);
            }
            let inputs = [("RequestedState", CimValue::Uint(request))];
            let target = node.machine(vm);
            self.run(node, &target, "RequestStateChange", &inputs, cancel)
                .map(|_| true)
        })?;
        if asked {
            self.await_state(vm, wanted, cancel)?;
        }
        Ok(())
    }

    /// Waits until a machine is in a state, wherever it is by then.
    pub(super) fn await_state(
        &self,
        vm: VmId,
        wanted: PowerState,
        cancel: &CancelToken,
    ) -> Result<()> {
        let what = format!("waiting for machine {vm} to be {wanted}");
        let mut last = PowerState::Changing;
        let reached = self.poll(self.options.job_timeout, &what, cancel, || {
            match self.power_state(vm, cancel) {
                Ok(state) => {
                    last = state;
                    Ok((state == wanted).then_some(()))
                }
                Err(error) if is_passing(&error) => Ok(None),
                Err(error) => Err(error),
            }
        })?;
        reached.ok_or_else(|| {
            Error::new(
                ErrorKind::TimedOut,
                format!("machine {vm} is {last}, not {wanted}"),
            )
        })
    }

    fn shut_down(&self, vm: VmId, cancel: &CancelToken) -> Result<()> {
        let (asked, _) = self.on_owner(vm, cancel, |node| {
            match state_of(node, vm)? {
                PowerState::Off => return Ok(false),
                PowerState::Running => {}
                other => {
                    return Err(Error::new(
                        ErrorKind::State,
                        format!("machine {vm} is {other}: its guest cannot shut down"),
                    ));
                }
            }
            self.ask_guest(node, vm)?;
            Ok(true)
        })?;
        if !asked {
            return Ok(());
        }
        let what = format!("waiting for the guest of {vm} to shut down");
        let reached = self.poll(self.options.shutdown_timeout, &what, cancel, || match self
            .power_state(vm, cancel)
        {
            Ok(state) => Ok((state == PowerState::Off).then_some(())),
            Err(error) if is_passing(&error) => Ok(None),
            Err(error) => Err(error),
        })?;
        reached.ok_or_else(|| {
            Error::new(
                ErrorKind::TimedOut,
                format!("the guest of machine {vm} did not shut down"),
            )
        })
    }

    fn ask_guest(&self, node: &Node, vm: VmId) -> Result<()> {
        let condition = format!("SystemName = {}", quoted(&vm.to_string()));
        let rows = node.rows(
            Realm::Virtualization,
            "Msvm_ShutdownComponent",
            Some(&condition),
        )?;
        let row = rows.first().ok_or_else(|| {
            Error::new(
                ErrorKind::Unsupported,
                format!("machine {vm} has no shutdown service"),
            )
        })?;
        let target = row
            .path(&[
                "CreationClassName",
                "DeviceID",
                "SystemCreationClassName",
                "SystemName",
            ])
            .map_err(|error| super::cim::told(error, format!("the shutdown service of {vm}")))?;
        let inputs = [
            ("Force", CimValue::Boolean(false)),
            ("Reason", CimValue::Text("hikae".to_owned())),
        ];
        let output = node.call(&target, "InitiateShutdown", &inputs)?;
        match output.u32("ReturnValue") {
            Ok(0 | 4096) => Ok(()),
            Ok(GUEST_LOCKED) => Err(super::node::return_error(
                GUEST_LOCKED,
                format!("the guest of machine {vm} is locked"),
            )),
            Ok(code) => Err(super::node::return_error(
                code,
                format!("the guest of machine {vm} does not shut down"),
            )),
            Err(error) => Err(super::cim::told(error, format!("shutting {vm} down"))),
        }
    }
}

/// State of a machine on a node that has it.
pub(super) fn state_of(node: &Node, vm: VmId) -> Result<PowerState> {
    let row = node.find(&node.machine(vm))?.ok_or_else(|| {
        Error::new(
            ErrorKind::NotFound,
            format!("machine {vm} is not on {}", node.name()),
        )
    })?;
    let number = row
        .u32("EnabledState")
        .map_err(|error| super::cim::told(error, format!("the state of machine {vm}")))?;
    Ok(power_state(number))
}
