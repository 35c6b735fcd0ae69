//! What maintenance stands on: the sealed objects, the index, and tree nodes read a whole pack at a time.
//!
//! **Invariants.** Every node that is handed out was decrypted and hashed. Memory is a handful of node packs. A blob that
//! cannot be read in one place is looked for in its other places before it is called damaged.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use block::NodeHash;
use block::tree::{Node, NodeSource};
use store::ObjectName;

use crate::access::ObjectAccess;
use crate::format::{FRAME_HEADER_BYTES, MAX_PACK_BYTES, PackKind};
use crate::index::{BlobPlace, Index, PackState};
use crate::lease::LeaseTerms;
use crate::pack::PackFile;
use crate::repository::Repository;
use crate::vault::Vault;
use crate::{BlobName, Error, ErrorKind, PackId, Result, names};

use super::mark::{BlobHomes, is_damage};

/// Node packs held in memory.
const NODE_PACKS_HELD: usize = 6;

/// An open repository, as maintenance sees it.
pub(crate) struct Ground {
    pub(crate) repository: Repository,
    pub(crate) vault: Arc<Vault>,
    pub(crate) index: Arc<Index>,
    pub(crate) terms: LeaseTerms,
    pub(crate) nodes: HeldNodes,
}

impl Ground {
    pub(crate) fn new(repository: &Repository) -> Result<Self> {
        let repository = repository.clone();
        let vault = Arc::clone(repository.vault());
        let index = repository.index()?;
        let nodes = HeldNodes::new(Arc::clone(&vault), Arc::clone(&index));
        let terms = repository.lease_terms();
        Ok(Self {
            repository,
            vault,
            index,
            terms,
            nodes,
        })
    }

    pub(crate) fn access(&self) -> Arc<dyn ObjectAccess> {
        Arc::clone(&self.vault) as Arc<dyn ObjectAccess>
    }

    pub(crate) fn homes(&self) -> &dyn BlobHomes {
        &self.nodes
    }

    /// Brings the index up to what the store lists.
    pub(crate) fn refresh(&self) -> Result<()> {
        self.index.refresh(&self.vault)
    }

    /// Whether a listed pack that the index does not know is damaged, and not merely new.
    pub(crate) fn directory_fails(&self, name: &ObjectName, kind: PackKind) -> Result<bool> {
        let Some(id) = names::last_id::<PackId>(name) else {
            return Ok(true);
        };
        match PackFile::open(&self.vault, kind, id) {
            Ok(_) => Ok(false),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
            Err(error) if is_damage(&error) => Ok(true),
            Err(error) => Err(error),
        }
    }
}

/// Tree nodes through the index, with the packs used last in memory.
pub(crate) struct HeldNodes {
    vault: Arc<Vault>,
    index: Arc<Index>,
    held: Mutex<VecDeque<Arc<HeldPack>>>,
}

struct HeldPack {
    id: PackId,
    file: PackFile,
    bytes: Vec<u8>,
}

impl HeldNodes {
    pub(crate) fn new(vault: Arc<Vault>, index: Arc<Index>) -> Self {
        Self {
            vault,
            index,
            held: Mutex::new(VecDeque::new()),
        }
    }

    fn pack(&self, number: u32) -> Result<Arc<HeldPack>> {
        let row = self
            .index
            .pack(number)
            .ok_or_else(|| Error::new(ErrorKind::NotFound, format!("pack number {number}")))?;
        {
            let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(at) = held.iter().position(|pack| pack.id == row.id)
                && let Some(pack) = held.remove(at)
            {
                held.push_back(Arc::clone(&pack));
                return Ok(pack);
            }
        }
        let file = PackFile::open(&self.vault, row.kind, row.id)?;
        let limit = u64::try_from(MAX_PACK_BYTES).unwrap_or(u64::MAX);
        let bytes = self.vault.store().get_bounded(file.name(), limit)?;
        let pack = Arc::new(HeldPack {
            id: row.id,
            file,
            bytes,
        });
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        held.push_back(Arc::clone(&pack));
        while held.len() > NODE_PACKS_HELD {
            held.pop_front();
        }
        Ok(pack)
    }

    fn read(&self, name: &BlobName, place: BlobPlace) -> Result<Vec<u8>> {
        let pack = self.pack(place.pack)?;
        let corrupt =
            || Error::corrupt(pack.file.name(), format_args!("no blob {}", place.ordinal));
        let entry = pack.file.entry(place.ordinal).ok_or_else(corrupt)?;
        if entry.name != *name {
            return Err(corrupt());
        }
        let start = usize::try_from(entry.offset).map_err(|_| corrupt())?;
        let stored = usize::try_from(entry.stored_len).map_err(|_| corrupt())?;
        let end = start
            .saturating_add(FRAME_HEADER_BYTES)
            .saturating_add(stored);
        let mut frame = pack.bytes.get(start..end).ok_or_else(corrupt)?.to_vec();
        let mut plain = vec![0; name.plain_len()];
        pack.file.decode(place.ordinal, &mut frame, &mut plain)?;
        Ok(plain)
    }

    /// A blob from whichever of its places gives it.
    pub(crate) fn blob(&self, name: &BlobName) -> Result<Vec<u8>> {
        match self.try_blob(name) {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                // It may have been moved by a repack since the index was loaded.
                self.index.refresh(&self.vault)?;
                self.try_blob(name)
            }
            outcome => outcome,
        }
    }

    fn try_blob(&self, name: &BlobName) -> Result<Vec<u8>> {
        let mut last = Error::new(ErrorKind::NotFound, format!("{name}: in no pack"));
        for place in self.homes(name)? {
            match self.read(name, place) {
                Ok(plain) => return Ok(plain),
                Err(error) if is_damage(&error) => {
                    if error.kind() == ErrorKind::NotFound {
                        self.index.mark_absent(place.pack);
                    }
                    last = error;
                }
                Err(error) => return Err(error),
            }
        }
        Err(last)
    }
}

impl NodeSource for HeldNodes {
    fn node(&self, level: u8, hash: NodeHash) -> block::Result<Node> {
        let plain = self.blob(&BlobName::Node { level, hash })?;
        Node::from_bytes(&plain)
    }
}

impl BlobHomes for HeldNodes {
    /// Packs that may be counted on come first; condemned ones are the last resort.
    fn homes(&self, name: &BlobName) -> Result<Vec<BlobPlace>> {
        let mut places = self.index.find_all(name)?;
        places.sort_by_key(|place| {
            let present = self
                .index
                .pack(place.pack)
                .is_some_and(|row| row.state == PackState::Present);
            (!present, *place)
        });
        Ok(places)
    }
}
