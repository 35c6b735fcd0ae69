//! What the driver needs of WS-Management, and how its errors read here.

pub use wsman::client::CimClient;

use crate::error::HostCode;
use crate::{Error, ErrorKind};

/// An error of WS-Management, told of a place.
pub(super) fn told(error: wsman::Error, context: impl Into<String>) -> Error {
    let kind = match error.kind() {
        wsman::ErrorKind::Io => ErrorKind::Unreachable,
        wsman::ErrorKind::TimedOut => ErrorKind::TimedOut,
        wsman::ErrorKind::Cancelled => ErrorKind::Cancelled,
        wsman::ErrorKind::Unauthorized
        | wsman::ErrorKind::AccessDenied
        | wsman::ErrorKind::Refused => ErrorKind::Denied,
        wsman::ErrorKind::NotFound => ErrorKind::NotFound,
        wsman::ErrorKind::Busy => ErrorKind::Busy,
        wsman::ErrorKind::Invalid => ErrorKind::Invalid,
        wsman::ErrorKind::Unsupported => ErrorKind::Unsupported,
        wsman::ErrorKind::Fault => ErrorKind::Failed,
        _ => ErrorKind::Protocol,
    };
    let code = code_of(&error);
    let told = Error::with_source(kind, context, error);
    match code {
        Some(code) => told.coded(HostCode(code)),
        None => told,
    }
}

/// The number that says most about a fault: the provider's, else the protocol's.
fn code_of(error: &wsman::Error) -> Option<u32> {
    let fault = error.fault()?;
    let provider = fault.provider.as_ref().and_then(|it| it.hresult);
    provider.or(fault.wsman_code)
}

/// Whether the other side could not put its answer into an envelope of the size allowed.
pub(super) fn is_too_large(error: &wsman::Error) -> bool {
    error.kind() == wsman::ErrorKind::Limit
        || error
            .fault()
            .is_some_and(|fault| fault.code == wsman::message::FaultCode::EncodingLimit)
}
