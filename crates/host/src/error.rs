//! The error of the hypervisor boundary: what a caller can do, where it happened, the host's own code, the cause below.

use std::error::Error as StdError;
use std::fmt;

use serde::Serialize;

/// Result of something asked of a host.
pub type Result<T> = std::result::Result<T, Error>;

/// What a caller can do about an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum ErrorKind {
    /// No node answered: the network, or the node is down. Trying again later may help.
    Unreachable,
    /// The account may not.
    Denied,
    /// The machine, checkpoint or file is nowhere that was asked.
    NotFound,
    /// Something has the name already.
    AlreadyExists,
    /// Something else is being done to it (a merge, a migration, another product): wait, then again.
    Busy,
    /// It is in a state in which this cannot be done.
    State,
    /// Refused for safety: going on might touch what is not ours.
    Refused,
    /// This host, generation or driver cannot.
    Unsupported,
    /// What was asked contradicts itself.
    Invalid,
    /// The host tried, and says that it failed.
    Failed,
    /// No level of consistency that the policy allows was reached.
    Consistency,
    /// The other side contradicts itself or its protocol.
    Protocol,
    /// No answer in the time allowed.
    TimedOut,
    /// The operation was told to stop.
    Cancelled,
    /// The custody journal could not be written, so nothing was made.
    Custody,
    /// Bytes of a file could not be read or written.
    Io,
}

/// A number by which the host calls what happened: a return value, a job's error code, a Win32 or WMI code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(transparent)]
pub struct HostCode(pub u32);

impl fmt::Display for HostCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0 >= 0x8000_0000 {
            write!(f, "0x{:08X}", self.0)
        } else {
            write!(f, "{}", self.0)
        }
    }
}

/// An error that says where it happened; its cause is in [`StdError::source`], never in the text.
#[derive(Debug)]
pub struct Error {
    kind: ErrorKind,
    context: String,
    code: Option<HostCode>,
    source: Option<Box<dyn StdError + Send + Sync>>,
}

impl Error {
    /// An error without a deeper cause. `context` is a lower-case fragment that names the place.
    pub fn new(kind: ErrorKind, context: impl Into<String>) -> Self {
        Self {
            kind,
            context: context.into(),
            code: None,
            source: None,
        }
    }

    /// An error with the cause that led to it.
    pub fn with_source(
        kind: ErrorKind,
        context: impl Into<String>,
        source: impl Into<Box<dyn StdError + Send + Sync>>,
    ) -> Self {
        Self {
            source: Some(source.into()),
            ..Self::new(kind, context)
        }
    }

    /// The same error, with the number by which the host calls it.
    #[must_use]
    pub fn coded(mut self, code: HostCode) -> Self {
        self.code = Some(code);
        self
    }

    /// The same error, told of a larger place: the old context becomes its cause.
    #[must_use]
    pub fn within(self, context: impl Into<String>) -> Self {
        Self {
            kind: self.kind,
            context: context.into(),
            code: self.code,
            source: Some(Box::new(self)),
        }
    }

    pub(crate) fn cancelled(what: &str) -> Self {
        Self::new(ErrorKind::Cancelled, format!("{what} was told to stop"))
    }

    /// What a caller can do about it.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// The number by which the host calls it, where it gave one.
    pub fn code(&self) -> Option<HostCode> {
        self.code
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.context)?;
        match self.code {
            Some(code) => write!(f, " (the host's code {code})"),
            None => Ok(()),
        }
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

/// The whole chain of an error in one line, for a report that keeps it as text.
pub fn chain_text(error: &(dyn StdError + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    // A chain is as deep as our own layers; the bound is for an error that names itself.
    for _ in 0..16 {
        let Some(source) = next else { break };
        text.push_str(": ");
        text.push_str(&source.to_string());
        next = source.source();
    }
    text
}
