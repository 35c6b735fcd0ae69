//! The error of everything that looks inside a disk.

use std::error::Error as StdError;

/// Result of looking inside a disk.
pub type Result<T> = std::result::Result<T, Error>;

/// What a caller can do about an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The disk below could not be read; trying again may help.
    Io,
    /// The structure contradicts itself: this part is lost to this reader, others may be readable.
    Corrupt,
    /// Well-formed, but uses something this reader does not do. The text names it.
    Unsupported,
    /// Needs a key, or another one.
    Locked,
    /// No such file, directory, stream or volume.
    NotFound,
    /// Not what was asked for: a directory where a file was, a range behind the end.
    Invalid,
    /// A limit on time, memory, depth or length was met: the disk is hostile or larger than this reader allows.
    Limit,
    /// The operation was told to stop.
    Cancelled,
}

/// An error that says where it happened; its cause, if any, is in [`StdError::source`], never in the text.
#[derive(Debug, thiserror::Error)]
#[error("{context}")]
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

    /// The same with what led to it.
    #[must_use]
    pub fn caused_by(mut self, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// The same, seen from further out: `while` stands before what is there.
    #[must_use]
    pub fn within(mut self, place: impl std::fmt::Display) -> Self {
        self.context = format!("{place}: {}", self.context);
        self
    }

    /// What a caller can do about it.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// The structure contradicts itself here.
    pub fn corrupt(context: impl Into<String>) -> Self {
        Self::new(ErrorKind::Corrupt, context)
    }

    /// This is well-formed and not done here.
    pub fn unsupported(context: impl Into<String>) -> Self {
        Self::new(ErrorKind::Unsupported, context)
    }
}

impl From<block::Error> for Error {
    fn from(error: block::Error) -> Self {
        let kind = match error.kind() {
            block::ErrorKind::Corrupt => ErrorKind::Corrupt,
            block::ErrorKind::Unsupported => ErrorKind::Unsupported,
            block::ErrorKind::OutOfRange => ErrorKind::Corrupt,
            block::ErrorKind::Cancelled => ErrorKind::Cancelled,
            block::ErrorKind::NotFound => ErrorKind::NotFound,
            _ => ErrorKind::Io,
        };
        Self::new(kind, error.to_string()).caused_by(error)
    }
}

/// For readers of file contents, which speak `block`'s language.
impl From<Error> for block::Error {
    fn from(error: Error) -> Self {
        let kind = match error.kind() {
            ErrorKind::Io => block::ErrorKind::Io,
            ErrorKind::Corrupt | ErrorKind::Limit => block::ErrorKind::Corrupt,
            ErrorKind::Unsupported | ErrorKind::Locked => block::ErrorKind::Unsupported,
            ErrorKind::NotFound => block::ErrorKind::NotFound,
            ErrorKind::Invalid => block::ErrorKind::OutOfRange,
            ErrorKind::Cancelled => block::ErrorKind::Cancelled,
        };
        Self::with_source(kind, error.to_string(), error)
    }
}
