//! Raw images: the bytes of the disk and nothing else.
//!
//! ```text
//!   | byte 0 of the disk … last byte of the disk |      holes of the file are extents that were never written
//! ```
//!
//! A raw image has no identity, no sector size and no parent; what it is given here are the defaults of the field.
//! Any content is a valid raw image, so nothing can be corrupt, and probing can never *prove* that an image is raw.

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

use std::sync::Arc;

use block::{Extent, ReadAt};

use crate::{Format, ImageInfo, Subformat};

/// A raw image opened for reading.
pub struct RawReader {
    file: Arc<dyn ReadAt>,
}

impl RawReader {
    /// Takes the file as it is.
    pub fn open(file: Arc<dyn ReadAt>) -> Self {
        Self { file }
    }

    /// What can be said about it, which is its size.
    pub fn info(&self) -> ImageInfo {
        ImageInfo {
            format: Format::Raw,
            subformat: Subformat::Fixed,
            size_bytes: self.file.size_bytes(),
            logical_sector_bytes: 512,
            physical_sector_bytes: 512,
            allocation_unit_bytes: None,
            disk_id: None,
            parent_paths: Vec::new(),
            has_pending_log: false,
            creator: None,
        }
    }
}

impl ReadAt for RawReader {
    fn size_bytes(&self) -> u64 {
        self.file.size_bytes()
    }
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> block::Result<()> {
        self.file.read_at(offset, buffer)
    }
    fn extent_at(&self, offset: u64, limit_bytes: u64) -> block::Result<Extent> {
        self.file.extent_at(offset, limit_bytes)
    }
}
