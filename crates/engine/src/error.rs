//! The error of a job: what a caller can do, at which step, and the cause below.

use std::error::Error as StdError;
use std::fmt;

/// Result of a job or one of its steps.
pub type Result<T> = std::result::Result<T, Error>;

/// What a caller can do about an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// Something below could not be read or written; trying again may help.
    Io,
    /// No room is left where something was to be written.
    Full,
    /// Something named is not there: a version, an image, a parent, a key slot.
    NotFound,
    /// The target is there already, and nobody said to replace it.
    AlreadyExists,
    /// Stored bytes or an image contradict themselves.
    Corrupt,
    /// Well-formed, but not something this build does.
    Unsupported,
    /// The key opens nothing here.
    WrongKey,
    /// Another operation holds what is needed.
    Busy,
    /// This writer was declared dead and can no longer commit.
    Fenced,
    /// What was asked contradicts itself.
    Invalid,
    /// Refused for safety.
    Refused,
    /// The job was told to stop.
    Cancelled,
    /// A host does not answer.
    Unreachable,
    /// A host does not let this account in, or not do this.
    Denied,
    /// A host tried and failed, or contradicts its protocol.
    HostFailed,
}

/// An error that says at which step it happened; its cause is in [`StdError::source`], never in the text.
#[derive(Debug)]
pub struct Error {
    kind: ErrorKind,
    context: String,
    source: Option<Box<dyn StdError + Send + Sync>>,
    advice: Option<String>,
}

impl Error {
    /// An error without a deeper cause. `context` is a lower-case fragment that names the step and the place.
    pub fn new(kind: ErrorKind, context: impl Into<String>) -> Self {
        Self {
            kind,
            context: context.into(),
            source: None,
            advice: None,
        }
    }

    /// Adds the cause that led to it.
    #[must_use]
    pub fn caused_by(mut self, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// Adds the next command, where it is known better than from the kind of failure.
    #[must_use]
    pub fn advised(mut self, next: impl Into<String>) -> Self {
        self.advice = Some(next.into());
        self
    }

    /// The next command, if it is known better than from the kind of failure.
    pub fn advice(&self) -> Option<&str> {
        self.advice.as_deref()
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

impl From<repo::Error> for Error {
    fn from(source: repo::Error) -> Self {
        use repo::ErrorKind as Below;
        let kind = match source.kind() {
            Below::Full => ErrorKind::Full,
            Below::NotFound => ErrorKind::NotFound,
            Below::AlreadyExists | Below::Conflict => ErrorKind::AlreadyExists,
            Below::Corrupt => ErrorKind::Corrupt,
            Below::Unsupported => ErrorKind::Unsupported,
            Below::WrongKey => ErrorKind::WrongKey,
            Below::Busy => ErrorKind::Busy,
            Below::Fenced => ErrorKind::Fenced,
            Below::Invalid => ErrorKind::Invalid,
            Below::Refused => ErrorKind::Refused,
            Below::Cancelled => ErrorKind::Cancelled,
            _ => ErrorKind::Io,
        };
        Self::new(kind, "the repository").caused_by(source)
    }
}

impl From<vdisk::Error> for Error {
    fn from(source: vdisk::Error) -> Self {
        use vdisk::ErrorKind as Below;
        let kind = match source.kind() {
            Below::Corrupt | Below::Incomplete | Below::ParentMismatch => ErrorKind::Corrupt,
            Below::Unsupported => ErrorKind::Unsupported,
            Below::ParentNotFound => ErrorKind::NotFound,
            Below::OutOfRange | Below::Invalid | Below::ReadOnly => ErrorKind::Invalid,
            Below::AlreadyExists => ErrorKind::AlreadyExists,
            _ => ErrorKind::Io,
        };
        Self::new(kind, "the image").caused_by(source)
    }
}

impl From<block::Error> for Error {
    fn from(source: block::Error) -> Self {
        use block::ErrorKind as Below;
        let kind = match source.kind() {
            Below::Corrupt => ErrorKind::Corrupt,
            Below::Unsupported => ErrorKind::Unsupported,
            Below::NotFound => ErrorKind::NotFound,
            Below::OutOfRange | Below::ReadOnly => ErrorKind::Invalid,
            Below::Cancelled => ErrorKind::Cancelled,
            _ => ErrorKind::Io,
        };
        Self::new(kind, "the disk").caused_by(source)
    }
}

impl From<guestfs::Error> for Error {
    fn from(source: guestfs::Error) -> Self {
        use guestfs::ErrorKind as Below;
        let kind = match source.kind() {
            Below::Corrupt | Below::Limit => ErrorKind::Corrupt,
            Below::Unsupported => ErrorKind::Unsupported,
            Below::Locked => ErrorKind::WrongKey,
            Below::NotFound => ErrorKind::NotFound,
            Below::Invalid => ErrorKind::Invalid,
            Below::Cancelled => ErrorKind::Cancelled,
            _ => ErrorKind::Io,
        };
        Self::new(kind, "inside the disk").caused_by(source)
    }
}

impl From<store::Error> for Error {
    fn from(source: store::Error) -> Self {
        Self::from(repo::Error::from(source))
    }
}

impl From<host::Error> for Error {
    fn from(source: host::Error) -> Self {
        use host::ErrorKind as Below;
        let kind = match source.kind() {
            Below::Unreachable | Below::TimedOut => ErrorKind::Unreachable,
            Below::Denied => ErrorKind::Denied,
            Below::NotFound => ErrorKind::NotFound,
            Below::AlreadyExists => ErrorKind::AlreadyExists,
            Below::Busy => ErrorKind::Busy,
            Below::State | Below::Invalid => ErrorKind::Invalid,
            Below::Unsupported => ErrorKind::Unsupported,
            Below::Refused => ErrorKind::Refused,
            Below::Cancelled => ErrorKind::Cancelled,
            Below::Io | Below::Custody => ErrorKind::Io,
            _ => ErrorKind::HostFailed,
        };
        let advice = match source.kind() {
            Below::NotFound => Some("See what is there: hikae vm list"),
            Below::Busy => Some(
                "Wait until the host is done with it (hikae vm show VM), then run the command again",
            ),
            Below::Cancelled => Some("See what the host did by then: hikae vm show VM"),
            Below::Consistency => Some(
                "See what stands in the way: hikae vm eligibility VM; or take less: --or file-system, --or crash, --or saved-state",
            ),
            _ => None,
        };
        // The same text twice in a row is told once.
        let error = Self::new(kind, source.to_string());
        let error = match advice {
            Some(advice) => error.advised(advice),
            None => error,
        };
        error.caused_by(source)
    }
}
