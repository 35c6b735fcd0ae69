//! The error of every store: what the caller can do, which call it was, which object, and the cause below.

use std::error::Error as StdError;
use std::fmt;

use crate::ObjectName;

/// Result of a call on a store.
pub type Result<T> = std::result::Result<T, Error>;

/// What a caller can do about an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// No object of that name: another name, or another store.
    NotFound,
    /// The name is taken, by whole and durable content: read it, or take another name.
    AlreadyExists,
    /// The range reaches behind the object's end, or the object is larger than the caller's limit.
    OutOfRange,
    /// The store refuses this identity: ask its owner.
    Denied,
    /// The store did not answer, or was busy: the same call may succeed later. What a put did is not known.
    Unavailable,
    /// No space, or the quota is used up: make room first.
    Full,
    /// The request, the address or what was found in the store makes no sense: no retry will help.
    Invalid,
    /// The bytes below could not be read or written.
    Io,
    /// The operation was told to stop.
    Cancelled,
}

/// The calls of a store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Verb {
    /// [`crate::Store::put_new`].
    PutNew,
    /// [`crate::Store::get`] and [`crate::Store::get_bounded`].
    Get,
    /// [`crate::Store::get_range`].
    GetRange,
    /// [`crate::Store::size`].
    Size,
    /// [`crate::Store::list`].
    List,
    /// [`crate::Store::delete`].
    Delete,
}

impl fmt::Display for Verb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::PutNew => "put",
            Self::Get => "get",
            Self::GetRange => "get range",
            Self::Size => "size",
            Self::List => "list",
            Self::Delete => "delete",
        })
    }
}

/// An error that says which call on which object; its cause, if any, is in [`StdError::source`], never in the text.
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

    /// An error of one call on one object (or prefix); `what` says what went wrong.
    pub fn of(
        kind: ErrorKind,
        verb: Verb,
        name: impl fmt::Display,
        what: impl fmt::Display,
    ) -> Self {
        Self::new(kind, format!("{verb} {name}: {what}"))
    }

    /// There is no object `name`.
    pub fn not_found(verb: Verb, name: &ObjectName) -> Self {
        Self::of(ErrorKind::NotFound, verb, name, "no such object")
    }

    /// The name is taken.
    pub fn already_exists(name: &ObjectName) -> Self {
        Self::of(
            ErrorKind::AlreadyExists,
            Verb::PutNew,
            name,
            "the name is taken",
        )
    }

    /// The same error with the cause that led to it.
    #[must_use]
    pub fn caused_by(mut self, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// What a caller can do about it.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// Whether the same call may succeed later without anyone doing anything.
    pub fn is_retryable(&self) -> bool {
        self.kind == ErrorKind::Unavailable
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
