//! The error of everything that reads or writes a disk by position.

use std::error::Error as StdError;
use std::fmt;

/// Result of a positioned read or write.
pub type Result<T> = std::result::Result<T, Error>;

/// What a caller can do about an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The bytes below could not be read or written; trying again may help.
    Io,
    /// The source contradicts itself: no retry will help, another copy may.
    Corrupt,
    /// Well-formed, but uses something this build does not do.
    Unsupported,
    /// The range lies outside the disk.
    OutOfRange,
    /// A write to something opened for reading.
    ReadOnly,
    /// Something named (a parent, a block, an object) is not there.
    NotFound,
    /// The operation was told to stop.
    Cancelled,
}

/// An error that says where it happened; its cause, if any, is in [`StdError::source`], never in the text.
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

    /// An error with the cause that led to it.
    pub fn with_source(
        kind: ErrorKind,
        context: impl Into<String>,
        source: impl Into<Box<dyn StdError + Send + Sync>>,
    ) -> Self {
        Self {
            kind,
            context: context.into(),
            source: Some(source.into()),
        }
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

impl From<std::io::Error> for Error {
    fn from(source: std::io::Error) -> Self {
        Self::with_source(ErrorKind::Io, "input or output", source)
    }
}
