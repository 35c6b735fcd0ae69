//! The error of the whole crate: what a caller can do, where it happened, what the other side said, and the cause below.

use std::error::Error as StdError;

use crate::message::Fault;

/// Result of everything here.
pub type Result<T> = std::result::Result<T, Error>;

/// What a caller can do about an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The connection could not be made or broke; trying again may help.
    Io,
    /// The other side did not answer in time.
    TimedOut,
    /// The operation was told to stop.
    Cancelled,
    /// The other side wants credentials, or better ones.
    Unauthorized,
    /// The other side's rights say no.
    AccessDenied,
    /// No such instance, class or namespace.
    NotFound,
    /// The other side answered with a fault that has no kind of its own here; [`Error::fault`] has it.
    Fault,
    /// Too much at once for the other side; later may work.
    Busy,
    /// What came over the wire is not what the protocol says. The text says where.
    Malformed,
    /// A value is absent or of another type than asked for. The text names class and property.
    Type,
    /// A limit on size, depth, count or time was met.
    Limit,
    /// What the caller asked for makes no sense.
    Invalid,
    /// Well-formed, but not done here.
    Unsupported,
    /// Refused for safety: a password over a line that is not sealed, a certificate that is not trusted.
    Refused,
}

/// An error that says where it happened; its cause, if any, is in [`StdError::source`], never in the text.
#[derive(Debug, thiserror::Error)]
#[error("{context}")]
pub struct Error {
    kind: ErrorKind,
    context: String,
    fault: Option<Box<Fault>>,
    source: Option<Box<dyn StdError + Send + Sync>>,
}

impl Error {
    /// An error without a deeper cause. `context` is a lower-case fragment that names the place.
    pub fn new(kind: ErrorKind, context: impl Into<String>) -> Self {
        Self {
            kind,
            context: context.into(),
            fault: None,
            source: None,
        }
    }

    /// The same with what led to it.
    #[must_use]
    pub fn caused_by(mut self, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// The same, seen from further out: `place` stands before what is there.
    #[must_use]
    pub fn within(mut self, place: impl std::fmt::Display) -> Self {
        self.context = format!("{place}: {}", self.context);
        self
    }

    /// The same with the fault that the other side answered.
    #[must_use]
    pub fn with_fault(mut self, fault: Fault) -> Self {
        self.fault = Some(Box::new(fault));
        self
    }

    /// What a caller can do about it.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// What the other side answered, if it was a fault.
    pub fn fault(&self) -> Option<&Fault> {
        self.fault.as_deref()
    }

    /// What came over the wire is not what the protocol says.
    pub fn malformed(context: impl Into<String>) -> Self {
        Self::new(ErrorKind::Malformed, context)
    }

    /// A limit was met.
    pub fn limit(context: impl Into<String>) -> Self {
        Self::new(ErrorKind::Limit, context)
    }

    /// A value is absent or of another type than asked for.
    pub fn wrong_type(context: impl Into<String>) -> Self {
        Self::new(ErrorKind::Type, context)
    }

    /// What the caller asked for makes no sense.
    pub fn invalid(context: impl Into<String>) -> Self {
        Self::new(ErrorKind::Invalid, context)
    }
}
