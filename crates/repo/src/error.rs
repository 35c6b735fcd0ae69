//! The error of the repository: what a caller can do about it, which object it is about, and the cause below.

use std::error::Error as StdError;
use std::fmt;

/// Result of everything that a repository does.
pub type Result<T> = std::result::Result<T, Error>;

/// What a caller can do about an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The store below failed; trying again may help.
    Store,
    /// The store does not allow it to whoever asks: a read-only mount, or credentials that may only read.
    Denied,
    /// The store has no room left.
    Full,
    /// Something named (a point, a pack, a blob, a slot) is not there.
    NotFound,
    /// The name is taken.
    AlreadyExists,
    /// An object is not what its writer wrote: flipped, cut short, swapped, or contradicting itself.
    Corrupt,
    /// Well-formed, but of a format version or kind that this build does not know.
    Unsupported,
    /// The key, passphrase or recovery key opens nothing here.
    WrongKey,
    /// Another operation of the same kind is alive: wait for it.
    Busy,
    /// This session was declared dead while it did not show signs of life: nothing of it can be committed any more.
    Fenced,
    /// Another writer committed under the reserved name first.
    Conflict,
    /// What the caller gave is not usable: a name, a selector, an option.
    Invalid,
    /// Refused for safety: wall time went backwards, a policy would drop everything, a key would be the last one.
    Refused,
    /// The operation was told to stop.
    Cancelled,
    /// The local cache directory failed, or a thread of the session died.
    Local,
}

/// An error that says where it happened; its cause, if any, is in [`StdError::source`], never in the text.
#[derive(Debug)]
pub struct Error {
    kind: ErrorKind,
    context: String,
    source: Option<Box<dyn StdError + Send + Sync>>,
}

impl Error {
    /// An error without a deeper cause. `context` is a lower-case fragment that names the object.
    pub fn new(kind: ErrorKind, context: impl Into<String>) -> Self {
        Self {
            kind,
            context: context.into(),
            source: None,
        }
    }

    /// Adds the cause that led to it.
    #[must_use]
    pub fn caused_by(mut self, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// A damaged object: `what` is wrong with `object`.
    pub fn corrupt(object: impl fmt::Display, what: impl fmt::Display) -> Self {
        Self::new(ErrorKind::Corrupt, format!("{object}: {what}"))
    }

    /// A failure of a local file.
    pub fn local(what: impl Into<String>, source: std::io::Error) -> Self {
        Self::new(ErrorKind::Local, what).caused_by(source)
    }

    /// What a caller can do about it.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// The same error a second time, for another caller who waits for the same outcome; the cause becomes text.
    pub(crate) fn again(&self) -> Self {
        let mut context = self.context.clone();
        let mut next = self.source();
        while let Some(source) = next {
            context.push_str(": ");
            context.push_str(&source.to_string());
            next = source.source();
        }
        Self::new(self.kind, context)
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

impl From<store::Error> for Error {
    fn from(source: store::Error) -> Self {
        let kind = match source.kind() {
            store::ErrorKind::NotFound => ErrorKind::NotFound,
            store::ErrorKind::AlreadyExists => ErrorKind::AlreadyExists,
            store::ErrorKind::Full => ErrorKind::Full,
            store::ErrorKind::Denied => ErrorKind::Denied,
            store::ErrorKind::Cancelled => ErrorKind::Cancelled,
            // An object shorter than its own directory says, or longer than anything we write.
            store::ErrorKind::OutOfRange => ErrorKind::Corrupt,
            store::ErrorKind::Invalid => ErrorKind::Invalid,
            _ => ErrorKind::Store,
        };
        Self::new(kind, "the store refused").caused_by(source)
    }
}

impl From<block::Error> for Error {
    fn from(source: block::Error) -> Self {
        // A tree walk over a repository wraps the repository's own errors: what they say is not lost on the way back.
        let own = source
            .source()
            .and_then(|inner| inner.downcast_ref::<Self>())
            .map(Self::kind);
        let kind = own.unwrap_or_else(|| match source.kind() {
            block::ErrorKind::Corrupt => ErrorKind::Corrupt,
            block::ErrorKind::Unsupported => ErrorKind::Unsupported,
            block::ErrorKind::NotFound => ErrorKind::NotFound,
            block::ErrorKind::Cancelled => ErrorKind::Cancelled,
            block::ErrorKind::OutOfRange | block::ErrorKind::ReadOnly => ErrorKind::Invalid,
            _ => ErrorKind::Store,
        });
        Self::new(kind, "reading a disk").caused_by(source)
    }
}

impl From<Error> for block::Error {
    fn from(source: Error) -> Self {
        let kind = match source.kind() {
            ErrorKind::Corrupt => block::ErrorKind::Corrupt,
            ErrorKind::Unsupported => block::ErrorKind::Unsupported,
            ErrorKind::NotFound | ErrorKind::Fenced => block::ErrorKind::NotFound,
            ErrorKind::Cancelled => block::ErrorKind::Cancelled,
            ErrorKind::Invalid => block::ErrorKind::OutOfRange,
            _ => block::ErrorKind::Io,
        };
        Self::with_source(kind, "the repository", source)
    }
}
