//! Building packs and taking them apart.
//!
//! ```text
//!   PackBuilder: push blobs ──► seal (encrypt, directory, trailer) ──► check (decode and hash all) ──► put
//!   directory from the store: trailer ──► directory ──► entries; damaged: scan the frames instead
//! ```

use crate::format::{PackKind, TARGET_DATA_PACK_BYTES, TARGET_NODE_PACK_BYTES};

mod builder;
mod file;
mod reader;

pub(crate) use builder::PackBuilder;
pub(crate) use file::{PackCache, PackFile};
#[cfg(test)]
pub(crate) use reader::{BlobDecoder, scan_frames};
pub(crate) use reader::{check_whole_pack, read_directory};

/// Where packs are closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PackTargets {
    data_bytes: usize,
    node_bytes: usize,
}

impl Default for PackTargets {
    fn default() -> Self {
        Self {
            data_bytes: TARGET_DATA_PACK_BYTES,
            node_bytes: TARGET_NODE_PACK_BYTES,
        }
    }
}

impl PackTargets {
    /// Smaller packs than usual: many packs of little data, which tests want. Never larger ones.
    pub fn small(data_bytes: usize, node_bytes: usize) -> Self {
        Self {
            data_bytes: data_bytes.min(TARGET_DATA_PACK_BYTES),
            node_bytes: node_bytes.min(TARGET_NODE_PACK_BYTES),
        }
    }

    /// Bytes that a full pack has.
    pub(crate) fn bytes(self, kind: PackKind) -> usize {
        match kind {
            PackKind::Data => self.data_bytes,
            PackKind::Node => self.node_bytes,
        }
    }
}
