//! VHDX version 1 and AVHDX: the disk format of Hyper-V.
//!
//! ```text
//!   0        header section: identifier, 2 headers, 2 region tables     header, region
//!   1 MiB    log: metadata changes, never payload                       log, journal
//!   2 MiB    metadata: sizes, identity, parent locator                  metadata, locator
//!   3 MiB    BAT: one entry per payload block, one per sector bitmap    geometry, entry, pages
//!   ...      payload blocks and sector bitmaps, in whole mebibytes      body, space
//! ```
//! (Where Windows puts them; only the header section has a fixed place.) Source: MS-VHDX, and where Windows does otherwise
//! than written, what its own files show.
//!
//! **Invariants.** Everything in a file is hostile until checked: no length of a file sizes an allocation without a
//! bound, no chain of references is followed without one. No operation keeps the BAT in memory: a disk of 64 TiB costs
//! what a small one does. Readers change nothing; who changes does it in an order that a crash cannot break.

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

mod body;
mod builder;
mod bytes;
mod check;
mod create;
mod entry;
mod geometry;
mod grow;
mod header;
mod info;
mod journal;
mod locator;
mod log;
mod metadata;
mod overlay;
mod pages;
mod reader;
mod region;
mod relink;
mod repair;
mod space;
mod structure;
mod view;
mod writer;

pub use builder::VhdxBuilder;
pub use check::check;
pub use create::{Allocation, CreateOptions, create};
pub use geometry::MAX_DISK_BYTES;
pub use grow::grow;
pub use info::{IdSource, WriteId};
pub use locator::{
    ABSOLUTE_WIN32_PATH, PARENT_LINKAGE, PARENT_LINKAGE2, ParentLocator, RELATIVE_PATH, VOLUME_PATH,
};
pub use reader::VhdxReader;
pub use relink::relink;
pub use repair::{RepairReport, repair};
pub use view::VhdxView;
pub use writer::VhdxWriter;
