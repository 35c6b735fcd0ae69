//! The error of serving: what a caller can do, where it happened, and the cause below.

use std::error::Error as StdError;
use std::fmt;

/// Result of serving.
pub type Result<T> = std::result::Result<T, Error>;

/// What a caller can do about an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The operating system would not.
    Io,
    /// What was asked for makes no sense: an address, two exports of one name.
    Invalid,
    /// Somebody else serves there.
    Busy,
    /// Something else lies there.
    AlreadyExists,
    /// Refused for safety.
    Refused,
    /// Not on this system.
    Unsupported,
    /// The other side does not keep to the protocol.
    Protocol,
}

/// An error that says where it happened; its cause is in [`StdError::source`], never in the text.
#[derive(Debug)]
pub struct Error {
    kind: ErrorKind,
    context: String,
    source: Option<Box<dyn StdError + Send + Sync>>,
}

impl Error {
    /// An error without a deeper cause. `context` is a lower-case fragment that names the place.
    pub fn new(kind: ErrorKind, context: impl Into<String>) -> Self {
        Self {
            kind,
            context: context.into(),
            source: None,
        }
    }

    /// What the operating system answered.
    pub(crate) fn io(context: impl Into<String>, source: std::io::Error) -> Self {
        Self {
            kind: ErrorKind::Io,
            context: context.into(),
            source: Some(Box::new(source)),
        }
    }

    pub(crate) fn protocol(context: impl Into<String>) -> Self {
        Self::new(ErrorKind::Protocol, context)
    }

    /// What a caller can do about it.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.context)
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.source.as_ref().map(|source| {
            let source: &(dyn StdError + 'static) = source.as_ref();
            source
        })
    }
}
