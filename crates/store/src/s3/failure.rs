//! What an S3 server's refusal, or its silence, means.
//!
//! The client library gives the server's status only inside a text, except for the few that it has words for. The text
//! is read in one place, here, and the tests hold it to a real server's answers.

use std::error::Error as StdError;

use object_store::client::{HttpError, HttpErrorKind};

use crate::{Error, ErrorKind, Verb};

/// What the answer to a put tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Answer {
    /// The condition failed: the name is taken.
    Taken,
    /// Another writer is at the same name right now, and this put did not happen.
    Rival,
    /// There was no answer, or one that leaves open what happened.
    Lost,
    /// It did not happen, and will not.
    Refused,
}

/// The status in the library's text of an error.
const STATUS_MARK: &str = "status code: ";

pub(super) fn answer_of(error: &object_store::Error) -> Answer {
    if let object_store::Error::AlreadyExists { source, .. } = error {
        // The library says "already exists" for 412 and 409 alike; S3 means another thing with each.
        let condition = source.downcast_ref::<object_store::Error>();
        return if condition.is_some() {
            Answer::Taken
        } else {
            Answer::Rival
        };
    }
    match kind_of(error) {
        ErrorKind::Unavailable | ErrorKind::Io => Answer::Lost,
        _ => Answer::Refused,
    }
}

/// Turns the library's error into ours.
pub(super) fn error_of(
    verb: Verb,
    name: impl std::fmt::Display,
    error: object_store::Error,
) -> Error {
    let kind = kind_of(&error);
    let what = match kind {
        ErrorKind::NotFound => "no such object",
        ErrorKind::AlreadyExists => "the name is taken",
        ErrorKind::Denied => "the server refuses these credentials",
        ErrorKind::Unavailable => "the server did not serve",
        ErrorKind::Full => "the server has no space left",
        ErrorKind::Io => "the answer could not be read",
        _ => "the server refuses this request",
    };
    Error::of(kind, verb, name, what).caused_by(error)
}

fn kind_of(error: &object_store::Error) -> ErrorKind {
    match error {
        // A missing bucket must never look like a missing object: whoever looks for objects would find none.
        object_store::Error::NotFound { .. } if text_of(error).contains("NoSuchBucket") => {
            ErrorKind::Invalid
        }
        object_store::Error::NotFound { .. } => ErrorKind::NotFound,
        object_store::Error::AlreadyExists { .. } => ErrorKind::AlreadyExists,
        object_store::Error::PermissionDenied { .. }
        | object_store::Error::Unauthenticated { .. } => denied_or_full(error),
        object_store::Error::Generic { .. } => kind_of_cause(error),
        _ => ErrorKind::Invalid,
    }
}

/// Servers answer "forbidden" to a put beyond a quota, too.
fn denied_or_full(error: &object_store::Error) -> ErrorKind {
    if text_of(error).contains("QuotaExceeded") {
        ErrorKind::Full
    } else {
        ErrorKind::Denied
    }
}

fn kind_of_cause(error: &object_store::Error) -> ErrorKind {
    let mut cause: Option<&(dyn StdError + 'static)> = Some(error);
    while let Some(below) = cause {
        if let Some(http) = below.downcast_ref::<HttpError>() {
            return match http.kind() {
                HttpErrorKind::Connect
                | HttpErrorKind::Request
                | HttpErrorKind::Timeout
                | HttpErrorKind::Interrupted => ErrorKind::Unavailable,
                _ => ErrorKind::Io,
            };
        }
        cause = below.source();
    }
    let text = text_of(error);
    match status_in(&text) {
        Some(507) => ErrorKind::Full,
        Some(_) if text.contains("QuotaExceeded") || text.contains("StorageFull") => {
            ErrorKind::Full
        }
        Some(408 | 429 | 500..=599) => ErrorKind::Unavailable,
        Some(401 | 403) => ErrorKind::Denied,
        Some(_) => ErrorKind::Invalid,
        None => ErrorKind::Io,
    }
}

fn text_of(error: &object_store::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(below) = cause {
        text.push('\n');
        text.push_str(&below.to_string());
        cause = below.source();
    }
    text
}

fn status_in(text: &str) -> Option<u16> {
    let (_, behind) = text.split_once(STATUS_MARK)?;
    behind.get(..3)?.parse().ok()
}
