//! Files with several names: which of them was met first, so that the others become names of it.
//!
//! **Invariants.** What is remembered is bounded. Files behind the bound are extracted once for each name, and counted.

use std::collections::HashMap;

use guestfs::FileId;
use guestfs::filesystem::FileKind;

use super::walk::Found;

const FILES_MAX: usize = 1_000_000;
const PATH_BYTES_MAX: usize = 128 << 20;

/// What a name is.
pub(super) enum Name {
    /// The only one, or the first of several.
    First,
    /// One more of a file that was written there.
    Another(Vec<u8>),
    /// One of several; more are known than can be remembered.
    Forgotten,
}

/// The first names.
#[derive(Default)]
pub(super) struct LinkTable {
    first: HashMap<(usize, FileId), Box<[u8]>>,
    bytes: usize,
}

impl LinkTable {
    /// Meets a name.
    pub(super) fn meet(&mut self, volume: usize, found: &Found, written: &[u8]) -> Name {
        if found.metadata.kind != FileKind::Regular || found.metadata.link_count < 2 {
            return Name::First;
        }
        let key = (volume, found.file);
        if let Some(first) = self.first.get(&key) {
            return Name::Another(first.to_vec());
        }
        if self.first.len() >= FILES_MAX || self.bytes >= PATH_BYTES_MAX {
            return Name::Forgotten;
        }
        self.bytes = self.bytes.saturating_add(written.len());
        self.first.insert(key, written.into());
        Name::First
    }
}
