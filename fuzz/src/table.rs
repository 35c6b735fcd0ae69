//! An input taken apart: sizes and runs, as [`crate::case`] says.

use crate::case::{FILES, SECTOR_BYTES};

/// Bytes of the header.
pub const HEADER_BYTES: usize = FILES * 8 + 2;
/// Bytes of a run in the table.
pub const RUN_BYTES: usize = 8;

/// A run of sectors of a file, and where its bytes begin in the input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Run {
    /// Which file.
    pub file: usize,
    /// First sector there.
    pub first: u64,
    /// Sectors.
    pub sectors: usize,
    /// First byte in the input.
    pub at: usize,
}

/// The sizes and runs of a case.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Table {
    /// Bytes of each file.
    pub sizes: [u64; FILES],
    /// Its runs.
    pub runs: Vec<Run>,
}

impl Table {
    /// Reads the header and the table of an input.
    pub fn of(input: &[u8]) -> Self {
        let mut table = Self::default();
        let Some((header, rest)) = input.split_at_checked(HEADER_BYTES) else {
            return table;
        };
        for (size, bytes) in table.sizes.iter_mut().zip(header.chunks_exact(8)) {
            *size = u64::from_le_bytes(bytes.try_into().unwrap_or_default());
        }
        let count = usize::from(u16::from_le_bytes([
            header[FILES * 8],
            header[FILES * 8 + 1],
        ]));
        let entries: Vec<&[u8]> = rest.chunks_exact(RUN_BYTES).take(count).collect();
        let mut at = HEADER_BYTES + entries.len() * RUN_BYTES;
        for entry in entries {
            let sectors = usize::from(u16::from_le_bytes([entry[2], entry[3]]));
            table.runs.push(Run {
                file: usize::from(entry[0]) % FILES,
                first: u64::from(u32::from_le_bytes([entry[4], entry[5], entry[6], entry[7]])),
                sectors,
                at,
            });
            at = at.saturating_add(sectors * SECTOR_BYTES);
        }
        table
    }
}
