//! The index of names: every folder of every version, each distinct one once, on local disk.
//!
//! ```text
//!   version record ─► volumes ─► tree of the root ─┬─ listing: names, kinds, ids of one folder
//!                                                   └─ trees of its folders, in the order of the listing
//!   folder key (hashes of the blocks that the folder lies in) ─► listing: a folder that did not change is not listed again
//! ```
//!
//! Listings and trees are named by their contents, as blocks are: equal folders of a hundred versions are one object, and
//! a search looks at each once. A record also keeps which blocks its walk looked at: a version in which none of them
//! changed has the same record, and nothing is read for it.
//!
//! **Invariants.** Everything here can be deleted and is made again. What could not be read wholly is searched, told as
//! damaged, and not kept as if it were whole. Files are sealed with a key of the repository ([`repo::local`]) and appear
//! whole or not at all; runs at the same time write files of their own. Why it is built so: RFD 15.

mod build;
mod object;
mod search;
mod segments;

use std::collections::HashMap;

use repo::PointId;
use serde::{Deserialize, Serialize};

use super::VolumeNumber;
use super::identity::VolumeIdentity;

pub(super) use build::{Built, index_version};
pub(super) use object::NameKind;
pub(super) use search::{NameSearch, Wanted, enumerate};
pub(super) use segments::{Keeping, Segments};

use object::ObjectId;

/// Two versions of a volume as the index knows them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct IndexedVolume {
    pub(super) number: usize,
    pub(super) identity: VolumeIdentity,
    pub(super) label: Option<String>,
    pub(super) ignores_case: bool,
    root: ObjectId,
    pub(super) folders: u64,
}

impl IndexedVolume {
    pub(super) fn number(&self) -> VolumeNumber {
        VolumeNumber(self.number)
    }
}

/// One version as the index knows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct VersionRecord {
    pub(super) point: PointId,
    pub(super) volumes: Vec<IndexedVolume>,
    /// Volumes that may hold files and could not be read, and why.
    pub(super) skipped: Vec<(usize, String)>,
    /// Blocks that the walk looked at: first and count, disk by disk.
    looked_at: Vec<Vec<(u64, u64)>>,
}

/// What is shown of a file besides its name, kept once it was looked up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct KnownFile {
    pub(super) size_bytes: u64,
    pub(super) modified: Option<(i64, u32)>,
}

/// Which file of which version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(super) struct FileKey {
    pub(super) point: PointId,
    pub(super) volume: usize,
    pub(super) tree: u64,
    pub(super) number: u64,
}

/// What a name turned out to be, by the file that has it.
pub(super) type KnownFiles = HashMap<FileKey, KnownFile>;
