//! Virtual disk images: read, write, create, check, repair, convert, merge.

mod error;
mod info;

pub use error::{Error, ErrorKind, Result};
pub use info::{DiskId, Format, ImageInfo, Subformat};
