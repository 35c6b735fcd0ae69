//! Jobs: what went wrong, and stopping them.

use uuid::Uuid;

use super::{Answer, Call, Outcome, Refusal, not_found};
use crate::ReturnCode;
use crate::estate::{Job, JobId};
use crate::provider::rows::jobs::errors;

fn target<'c>(call: &'c Call<'_>) -> Result<&'c Job, Refusal> {
    let text = call.target.key("InstanceID").unwrap_or_default();
    let id = Uuid::try_parse(&text).map_err(|_| not_found(text))?;
    Ok(call.estate.job(&call.host, JobId(id))?)
}

/// `GetErrorEx`: every error as text of an embedded instance; none for a job that did not fail.
pub(super) fn get_error_ex(call: &mut Call<'_>) -> Answer {
    let errors = errors(target(call)?)?;
    Ok(Outcome::code(0).with("Errors", (!errors.is_empty()).then_some(errors)))
}

/// `GetError`: the first of them.
pub(super) fn get_error(call: &mut Call<'_>) -> Answer {
    let first = errors(target(call)?)?.into_iter().next();
    Ok(Outcome::code(0).with("Error", first))
}

/// `RequestStateChange`: 4 terminate, 5 kill; nothing else.
pub(super) fn request_state_change(call: &mut Call<'_>) -> Answer {
    let id = target(call)?.id;
    match call.inputs.required_number("RequestedState")? {
        4 | 5 => {
            let host = call.host.clone();
            call.estate.cancel_job(&host, id)?;
            Ok(Outcome::code(0))
        }
        _ => Err(Refusal::Code(ReturnCode::InvalidParameter.value())),
    }
}
