//! What a buffer of metadata is, told by its first words: where it keeps when it was written, and its checksum.
//!
//! ```text
//!   magic at 0 (4 bytes), or at 8 (2 bytes, trees of directories and attributes)
//!     ─► place of the log sequence number, of the file system's id, of the checksum
//! ```
//!
//! **Invariants.** Version 5 only; a buffer of unknown kind has neither, and is then always replayed, as Linux does.

#![cfg_attr(
    not(test),
    deny(
        clippy::indexing_slicing,
        clippy::arithmetic_side_effects,
        clippy::as_conversions,
        clippy::unwrap_used,
        clippy::expect_used
    )
)]

use crate::{Result, field};

/// Where a kind of buffer keeps what.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Layout {
    pub(super) lsn: usize,
    pub(super) uuid: usize,
    pub(super) checksum: usize,
    /// It may lie in pieces, of which the log tells one at a time.
    pub(super) is_directory: bool,
}

const fn layout(lsn: usize, uuid: usize, checksum: usize, is_directory: bool) -> Option<Layout> {
    Some(Layout {
        lsn,
        uuid,
        checksum,
        is_directory,
    })
}

/// The layout of a buffer, by its first sector.
pub(super) fn layout_of(sector: &[u8], has_meta_uuid: bool) -> Result<Option<Layout>> {
    let short = layout(24, 32, 52, false);
    Ok(match field::slice(sector, 0, 4)? {
        b"AB3B" | b"AB3C" | b"IAB3" | b"FIB3" | b"RMB3" | b"R3FC" => short,
        b"BMA3" => layout(32, 40, 64, false),
        b"XAGF" => layout(208, 64, 216, false),
        b"XAFL" => layout(24, 8, 32, false),
        b"XAGI" => layout(320, 296, 312, false),
        b"XSLM" => layout(48, 16, 12, false),
        b"XDB3" | b"XDD3" | b"XDF3" => layout(16, 24, 4, true),
        b"XFSB" => layout(240, if has_meta_uuid { 248 } else { 32 }, 224, false),
        // Values outside of attributes are written before the log tells of them.
        b"XARM" => None,
        [b'I', b'N', ..] | [b'D', b'Q', ..] => None,
        _ => match field::u16_be(sector, 8)? {
            0x3DF1 | 0x3DFF | 0x3EBE | 0x3BEE => layout(24, 32, 12, true),
            _ => None,
        },
    })
}
