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
//! - [`check`] and [`repair`] look after the two footers and the table; [`merge`] writes a child into its parent.
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

mod format;
mod reader;
mod table;

pub(crate) use format::UNFINISHED_COOKIE;
pub use format::{DiskType, VhdTime};
pub use reader::{ParentIdentity, VhdReader};
