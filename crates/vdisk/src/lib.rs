//! Virtual disk images: read, write, create, check, repair, convert, merge.
//!
//! ```text
//!   HostFile ──► vhd, vhdx, qcow2, vmdk, raw ──► chain ──► Image ──► map, compare, convert
//!    (file)         one reader per format       parents    one disk        └──► ImageWriter ──► file
//! ```
//!
//! Every format has a reader that answers [`block::ReadAt`] and, where it can, extents; [`Image`] puts the files of a
//! chain on one another and is what the rest of the product reads. Nothing here is async, and nothing here reads a clock
//! or draws an id that it was not given.
//!
//! **Invariants.** What lies in an image is a stranger's word: any content gives bytes or a typed [`Error`] that says
//! where, in bounded memory and time. Reading never writes.

pub mod chain;
mod check;
pub mod compare;
pub mod convert;
mod error;
mod field;
pub mod file;
pub mod image;
mod info;
pub mod map;
pub mod memory;
pub mod merge;
mod pages;
mod pipeline;
pub mod qcow2;
pub mod raw;
pub mod vhd;
pub mod vhdx;
pub mod vmdk;

pub use check::{CheckReport, Finding, RepairMode, Severity};
pub use error::{Error, ErrorKind, Result};
pub use image::{Image, OpenOptions};
pub use info::{DiskId, Format, ImageInfo, Subformat};
