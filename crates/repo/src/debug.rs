//! What is in an object, for people and tools that look for trouble.

use crate::format::{DirectoryEntry, PackHeader};
use crate::index::IndexStats;
use crate::pack::PackFile;
use crate::points::PointSelector;
use crate::repository::Repository;
use crate::{PackId, PackKind, Result};

/// A pack taken apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PackDump {
    /// Its header.
    pub header: PackHeader,
    /// Whether its own directory could be read; otherwise the blobs were found by their frames.
    pub is_whole: bool,
    /// Its blobs by ordinal.
    pub blobs: Vec<(u32, DirectoryEntry)>,
}

/// The index taken apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IndexDump {
    /// What it holds and costs.
    pub stats: IndexStats,
    /// Packs that are listed.
    pub packs: Vec<IndexedPack>,
}

/// One pack in the index.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IndexedPack {
    /// The pack.
    pub id: PackId,
    /// What it holds.
    pub kind: PackKind,
    /// Bytes of the object.
    pub size_bytes: u32,
    /// Blobs in it.
    pub blobs: u32,
    /// Whether garbage collection condemned it.
    pub is_condemned: bool,
}

impl Repository {
    /// Takes a pack apart.
    ///
    /// # Errors
    /// [`crate::ErrorKind::NotFound`]; [`crate::ErrorKind::Corrupt`] when not even its header can be read.
    pub fn dump_pack(&self, kind: PackKind, id: PackId) -> Result<PackDump> {
        let pack = PackFile::open(self.vault(), kind, id)?;
        Ok(PackDump {
            header: *pack.header(),
            is_whole: pack.is_whole(),
            blobs: pack
                .blobs()
                .map(|(ordinal, entry)| (ordinal, *entry))
                .collect(),
        })
    }

    /// Takes the index apart.
    ///
    /// # Errors
    /// What loading it answered.
    pub fn dump_index(&self) -> Result<IndexDump> {
        use crate::index::PackState;
        let index = self.index()?;
        let packs = index
            .packs()
            .into_iter()
            .filter(|(_, row)| row.state != PackState::Absent)
            .map(|(_, row)| IndexedPack {
                id: row.id,
                kind: row.kind,
                size_bytes: row.size_bytes,
                blobs: row.blobs,
                is_condemned: row.state == PackState::Condemned,
            })
            .collect();
        Ok(IndexDump {
            stats: index.stats(),
            packs,
        })
    }

    /// A point's body as JSON, unknown fields included.
    ///
    /// # Errors
    /// As [`Repository::find_point`].
    pub fn dump_point(&self, selector: &PointSelector) -> Result<String> {
        let record = self.find_point(selector)?;
        serde_json::to_string_pretty(&record.point).map_err(|error| {
            crate::Error::new(crate::ErrorKind::Local, "writing JSON").caused_by(error)
        })
    }
}
