//! What happens while disks are served, told to whoever wants to know.

/// Something that happened.
#[derive(Debug)]
#[non_exhaustive]
pub enum Event<'a> {
    /// A client chose an export.
    Connected {
        /// Who.
        peer: &'a str,
        /// The export's name.
        export: &'a str,
    },
    /// A client went, or was sent away; why, when it did not simply leave.
    Left {
        /// Who.
        peer: &'a str,
        /// What was wrong with it.
        why: Option<&'a crate::Error>,
    },
    /// A client was not let in.
    Refused {
        /// Who.
        peer: &'a str,
        /// Why.
        why: &'a str,
    },
    /// Bytes could not be read; the client was told so (EIO).
    ReadFailed {
        /// The export or file.
        disk: &'a str,
        /// First byte that was asked for.
        offset: u64,
        /// How many.
        length_bytes: u64,
        /// Why.
        error: &'a block::Error,
    },
    /// A server cannot go on listening.
    Deaf {
        /// Why.
        error: &'a crate::Error,
    },
}

/// Hears of events, from any thread. Must be quick, and must not call back.
pub trait Watch: Send + Sync {
    /// Something happened.
    fn tell(&self, event: &Event<'_>);
}

/// Hears nothing.
#[derive(Debug, Clone, Copy, Default)]
pub struct Unwatched;

impl Watch for Unwatched {
    fn tell(&self, _event: &Event<'_>) {}
}
