//! The error of image files: where in which image, what is wrong, and what a caller can do.

use std::fmt;

/// Result of an operation on an image.
pub type Result<T> = std::result::Result<T, Error>;

/// What a caller can do about an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The file below could not be read or written; trying again may help.
    Io,
    /// The image contradicts its format: repair may help, another copy will.
    Corrupt,
    /// Well-formed, but uses something this build does not do.
    Unsupported,
    /// Creation of the image was interrupted, or the file is cut short.
    Incomplete,
    /// The parent of a differencing image is not where its locators or the caller's map say.
    ParentNotFound,
    /// A parent was found, but it is not the one that the child was made on, or has changed since.
    ParentMismatch,
    /// The range lies outside the disk.
    OutOfRange,
    /// A write to an image opened for reading.
    ReadOnly,
    /// What was asked contradicts itself (a block size that is no power of two, a size beyond the format's limit).
    Invalid,
    /// The target of a creation is already there.
    AlreadyExists,
    /// The operation was told to stop.
    Cancelled,
}

/// An error that names the place; its cause is in `source`, never in the text.
#[derive(Debug, thiserror::Error)]
pub struct Error {
    kind: ErrorKind,
    context: String,
    #[source]
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

impl Error {
    /// An error without a deeper cause; `context` is a lower-case fragment that names the place ("vhdx log entry at 0x5000: …").
    pub fn new(kind: ErrorKind, context: impl Into<String>) -> Self {
        Self {
            kind,
            context: context.into(),
            source: None,
        }
    }

    /// An error with its cause.
    pub fn with_source(
        kind: ErrorKind,
        context: impl Into<String>,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        Self {
            kind,
            context: context.into(),
            source: Some(source.into()),
        }
    }

    /// Shorthand for the commonest kind.
    pub fn corrupt(context: impl Into<String>) -> Self {
        Self::new(ErrorKind::Corrupt, context)
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

impl From<block::Error> for Error {
    fn from(error: block::Error) -> Self {
        let kind = match error.kind() {
            block::ErrorKind::Corrupt => ErrorKind::Corrupt,
            block::ErrorKind::Unsupported => ErrorKind::Unsupported,
            block::ErrorKind::OutOfRange => ErrorKind::OutOfRange,
            block::ErrorKind::ReadOnly => ErrorKind::ReadOnly,
            block::ErrorKind::NotFound => ErrorKind::ParentNotFound,
            block::ErrorKind::Cancelled => ErrorKind::Cancelled,
            _ => ErrorKind::Io,
        };
        Self::with_source(kind, error.to_string(), error)
    }
}

impl From<std::io::Error> for Error {
    fn from(error: std::io::Error) -> Self {
        Self::with_source(ErrorKind::Io, "input or output on the image file", error)
    }
}

impl From<Error> for block::Error {
    fn from(error: Error) -> Self {
        let kind = match error.kind {
            ErrorKind::Corrupt | ErrorKind::Incomplete | ErrorKind::ParentMismatch => {
                block::ErrorKind::Corrupt
            }
            ErrorKind::Unsupported | ErrorKind::Invalid => block::ErrorKind::Unsupported,
            ErrorKind::ParentNotFound => block::ErrorKind::NotFound,
            ErrorKind::OutOfRange => block::ErrorKind::OutOfRange,
            ErrorKind::ReadOnly => block::ErrorKind::ReadOnly,
            ErrorKind::Cancelled => block::ErrorKind::Cancelled,
            ErrorKind::Io | ErrorKind::AlreadyExists => block::ErrorKind::Io,
        };
        block::Error::with_source(kind, error.to_string(), error)
    }
}
