//! Microsoft VHD version 1: fixed, dynamic and differencing images.
//!
//! ```text
//!   fixed         │ disk bytes … │ footer │
//!   dynamic       │ footer copy │ header │ table │ bitmap 0 │ block │ bitmap │ block │ … │ footer │
//!   differencing  │ footer copy │ header │ path │ table │ path │ bitmap │ block │ … │ footer │
//! ```
//!
//! - [`VhdReader`] reads any of them; a differencing image reads through its parent.
//! - [`create`] makes an empty image as Windows lays it out.
//! - [`VhdWriter`] changes an image in place and survives a crash; [`VhdBuilder`] fills a new one and is faster for it.
//! - [`check`] and [`repair`] look after the two footers and the table.
//!
//! **Invariants.** The size is the footer's current size, never its geometry. The footer at the end rules; the copy at
//! the beginning rules when the end is damaged. Data lie at 4 KiB boundaries, as Windows puts them.
//!
//! Saved-state files, split images and the undocumented types 0, 1, 5 and 6 are refused.

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

mod check;
mod create;
mod format;
mod grow;
mod placement;
mod reader;
mod table;
mod writer;

pub use check::{check, repair};
pub use create::{Allocation, CreateOptions, DEFAULT_BLOCK_BYTES, ParentLink, create};
pub(crate) use format::UNFINISHED_COOKIE;
pub use format::{DiskType, MAX_DISK_BYTES, VhdTime};
pub use grow::grow;
pub use reader::{ParentIdentity, VhdReader};
pub use writer::{VhdBuilder, VhdWriter};
