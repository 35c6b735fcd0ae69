//! Building packs and taking them apart.
//!
//! ```text
//!   PackBuilder: push blobs ──► seal (encrypt, directory, trailer) ──► check (decode and hash all) ──► put
//!   directory from the store: trailer ──► directory ──► entries; damaged: scan the frames instead
//! ```

mod builder;
mod file;
mod reader;

pub(crate) use builder::PackBuilder;
pub(crate) use file::{PackCache, PackFile};
#[cfg(test)]
pub(crate) use reader::{BlobDecoder, scan_frames};
pub(crate) use reader::{check_whole_pack, read_directory};
