//! One BAT entry.
//!
//! ```text
//!   63                          20 19        3 2   0
//!   │ file offset in mebibytes    │ must be 0 │state│
//! ```
//! Source: MS-VHDX 2.5.1.
//!
//! **Invariants.** A state that the format does not define, or one that only a differencing image may use, never decodes.

use super::geometry::Lineage;
use super::header::MIB;

const STATE_MASK: u64 = 0b111;
const RESERVED_MASK: u64 = 0xF_FFF8;

/// What a payload block is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PayloadState {
    /// Never written: the parent's, or zeros where there is none.
    NotPresent,
    /// Contents undefined; zeros here.
    Undefined,
    Zero,
    Unmapped,
    Full,
    /// Sector by sector, as the bitmap says.
    Partial,
}

/// A decoded payload entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct PayloadEntry {
    pub(super) state: PayloadState,
    /// Byte offset in the file; 0 when it has no space.
    pub(super) offset: u64,
}

/// Why an entry is no entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum EntryFault {
    ReservedBits,
    State(u8),
}

impl std::fmt::Display for EntryFault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::ReservedBits => f.write_str("reserved bits are set"),
            Self::State(state) => write!(f, "state {state} is not allowed here"),
        }
    }
}

fn state_of(raw: u64) -> u8 {
    u8::try_from(raw & STATE_MASK).unwrap_or(u8::MAX)
}

fn offset_of(raw: u64) -> u64 {
    (raw >> 20).saturating_mul(MIB)
}

impl PayloadEntry {
    pub(super) fn decode(raw: u64, lineage: Lineage) -> Result<Self, EntryFault> {
        if raw & RESERVED_MASK != 0 {
            return Err(EntryFault::ReservedBits);
        }
        let state = match (state_of(raw), lineage) {
            (0, _) => PayloadState::NotPresent,
            (1, _) => PayloadState::Undefined,
            (2, _) => PayloadState::Zero,
            (3, _) => PayloadState::Unmapped,
            (6, _) => PayloadState::Full,
            (7, Lineage::Differencing) => PayloadState::Partial,
            (other, _) => return Err(EntryFault::State(other)),
        };
        Ok(Self {
            state,
            offset: offset_of(raw),
        })
    }

    pub(super) fn encode(self) -> u64 {
        let state = match self.state {
            PayloadState::NotPresent => 0,
            PayloadState::Undefined => 1,
            PayloadState::Zero => 2,
            PayloadState::Unmapped => 3,
            PayloadState::Full => 6,
            PayloadState::Partial => 7,
        };
        (self.offset & !(MIB - 1)) | state
    }

    /// Whether its payload is read.
    pub(super) fn is_used(self) -> bool {
        matches!(self.state, PayloadState::Full | PayloadState::Partial)
    }

    /// Whether it owns space in the file, read or not ("soft anchor").
    pub(super) fn owns_space(self) -> bool {
        self.is_used() || self.offset != 0
    }
}

/// A sector bitmap entry: where the bitmap lies, if there is one.
pub(super) fn decode_bitmap(raw: u64) -> Result<Option<u64>, EntryFault> {
    if raw & RESERVED_MASK != 0 {
        return Err(EntryFault::ReservedBits);
    }
    match state_of(raw) {
        0 => Ok(None),
        6 => Ok(Some(offset_of(raw))),
        other => Err(EntryFault::State(other)),
    }
}

/// The entry of a bitmap that lies at `offset`.
pub(super) fn encode_bitmap(offset: u64) -> u64 {
    (offset & !(MIB - 1)) | 6
}
