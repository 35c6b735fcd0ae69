//! State changes of VMs.

use super::{Answer, Call, Outcome, Refusal};
use crate::ReturnCode;
use crate::provider::identity::PartedId;

/// `Msvm_ComputerSystem.RequestStateChange`. `TimeoutPeriod` is refused, as nobody knows what Windows does with it.
pub(super) fn request_state_change(call: &mut Call<'_>) -> Answer {
    let requested = call.inputs.required_number("RequestedState")?;
    let requested = u16::try_from(requested).map_err(|_| super::arguments::invalid_parameter())?;
    if call.inputs.text("TimeoutPeriod").is_some() {
        return Err(Refusal::Code(ReturnCode::NotSupported.value()));
    }
    let id = call.vm_of_path(call.target)?;
    let host = call.host.clone();
    let started = call.estate.request_state_change(&host, id, requested)?;
    Ok(call.answer(&started, None))
}

/// `Msvm_ShutdownComponent.InitiateShutdown`: no job. The lab's guests are never locked, so `Force` makes no difference.
pub(super) fn initiate_shutdown(call: &mut Call<'_>) -> Answer {
    call.inputs.flag("Force")?;
    call.inputs.required_text("Reason")?;
    let device = call.target.key("DeviceID").unwrap_or_default();
    let parted = PartedId::parse(&device);
    let parted = parted.ok_or_else(|| super::not_found(device))?;
    let host = call.host.clone();
    call.estate.vm(&host, parted.vm())?;
    call.estate.initiate_shutdown(&host, parted.vm())?;
    Ok(Outcome::code(0))
}
