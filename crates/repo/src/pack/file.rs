//! Packs in the store, opened: decoder and directory kept, blobs read by range.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};

use store::ObjectName;

use crate::access::ObjectAccess;
use crate::format::{Cipher, DirectoryEntry, FRAME_HEADER_BYTES, MAX_PACK_BYTES, PackKind};
use crate::vault::Vault;
use crate::{Error, ErrorKind, KeyId, PackId, Result, names};

use super::reader::{BlobDecoder, PackFault, read_directory, scan_frames};
use crate::format::PackHeader;

/// An opened pack.
pub(crate) struct PackFile {
    name: ObjectName,
    decoder: BlobDecoder,
    /// By ordinal. A pack whose directory is damaged may have gaps.
    entries: Entries,
}

/// Entries of a healthy pack are dense.
enum Entries {
    Dense(Vec<DirectoryEntry>),
    Sparse(BTreeMap<u32, DirectoryEntry>),
}

impl PackFile {
    /// Opens a pack; when its directory is damaged, by its frames.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`]; [`ErrorKind::Corrupt`] when not even its header can be read.
    pub(crate) fn open(vault: &Vault, kind: PackKind, id: PackId) -> Result<Self> {
        let name = names::pack(kind, id)?;
        let find = |key: KeyId| vault.data_key(key);
        match read_directory(vault.store(), &name, kind, id, &find) {
            Ok((decoder, entries, _)) => {
                check_cipher(vault, &name, decoder.header())?;
                Ok(Self {
                    name,
                    decoder,
                    entries: Entries::Dense(entries),
                })
            }
            Err(error) if error.kind() == ErrorKind::Corrupt => {
                Self::salvage(vault, name, kind, id).map_err(|_| error)
            }
            // Where nothing is encrypted there is no key that could be missing: the header is damaged.
            Err(error)
                if error.kind() == ErrorKind::WrongKey && vault.cipher() == Cipher::Plain =>
            {
                Err(Error::corrupt(
                    &name,
                    "its encryption is not the repository's",
                ))
            }
            Err(error) => Err(error),
        }
    }

    /// A pack of which all bytes are here and fit its checksum, with the directory that they hold.
    ///
    /// # Errors
    /// [`ErrorKind::WrongKey`] when its key is not here; [`ErrorKind::Corrupt`] when it is not encrypted as the repository is.
    pub(crate) fn of_whole(
        vault: &Vault,
        name: &ObjectName,
        bytes: &[u8],
        entries: Vec<DirectoryEntry>,
    ) -> Result<Self> {
        let header = PackHeader::decode(bytes).map_err(|what| Error::corrupt(name, what))?;
        check_cipher(vault, name, &header)?;
        Ok(Self {
            name: name.clone(),
            decoder: BlobDecoder::new(header, &|key| vault.data_key(key))?,
            entries: Entries::Dense(entries),
        })
    }

    fn salvage(vault: &Vault, name: ObjectName, kind: PackKind, id: PackId) -> Result<Self> {
        let limit = u64::try_from(MAX_PACK_BYTES).unwrap_or(u64::MAX);
        let bytes = vault.store().get_bounded(&name, limit)?;
        let header = PackHeader::decode(&bytes).map_err(|what| Error::corrupt(&name, what))?;
        if header.kind != kind || header.pack_id != id {
            return Err(Error::corrupt(&name, "it is another pack"));
        }
        check_cipher(vault, &name, &header)?;
        let decoder = BlobDecoder::new(header, &|key| vault.data_key(key))?;
        let entries = Entries::Sparse(scan_frames(&decoder, &bytes).into_iter().collect());
        Ok(Self {
            name,
            decoder,
            entries,
        })
    }

    pub(crate) fn name(&self) -> &ObjectName {
        &self.name
    }

    pub(crate) fn key_id(&self) -> KeyId {
        self.decoder.header().key_id
    }

    pub(crate) fn header(&self) -> &PackHeader {
        self.decoder.header()
    }

    pub(crate) fn entry(&self, ordinal: u32) -> Option<&DirectoryEntry> {
        match &self.entries {
            Entries::Dense(entries) => entries.get(usize::try_from(ordinal).ok()?),
            Entries::Sparse(entries) => entries.get(&ordinal),
        }
    }

    /// Its blobs by ordinal.
    pub(crate) fn blobs(&self) -> Box<dyn Iterator<Item = (u32, &DirectoryEntry)> + '_> {
        match &self.entries {
            Entries::Dense(entries) => Box::new((0u32..).zip(entries)),
            Entries::Sparse(entries) => Box::new(entries.iter().map(|(at, entry)| (*at, entry))),
        }
    }

    /// Whether its own directory could be read.
    pub(crate) fn is_whole(&self) -> bool {
        matches!(self.entries, Entries::Dense(_))
    }

    fn weight(&self) -> usize {
        match &self.entries {
            Entries::Dense(entries) => entries.len(),
            Entries::Sparse(entries) => entries.len(),
        }
        .saturating_mul(64)
        .saturating_add(1024)
    }

    /// Decodes one blob from its frame's bytes, which are used up.
    pub(crate) fn decode(&self, ordinal: u32, frame: &mut [u8], plain: &mut [u8]) -> Result<()> {
        let entry = self
            .entry(ordinal)
            .ok_or_else(|| self.fault(ordinal, PackFault::Frame))?;
        self.decoder
            .decode(entry, ordinal, frame, plain)
            .map_err(|fault| self.fault(ordinal, fault))
    }

    fn fault(&self, ordinal: u32, fault: PackFault) -> Error {
        Error::corrupt(&self.name, format_args!("blob {ordinal}: {fault}"))
    }

    /// Reads and decodes one blob.
    pub(crate) fn read_blob(&self, vault: &Vault, ordinal: u32) -> Result<Vec<u8>> {
        let entry = self
            .entry(ordinal)
            .ok_or_else(|| self.fault(ordinal, PackFault::Frame))?;
        let length = u64::from(entry.stored_len)
            .saturating_add(u64::try_from(FRAME_HEADER_BYTES).unwrap_or(0));
        let mut frame = vault
            .store()
            .get_range(&self.name, u64::from(entry.offset), length)?;
        let mut plain = vec![0; entry.name.plain_len()];
        self.decode(ordinal, &mut frame, &mut plain)?;
        Ok(plain)
    }
}

/// Refuses a pack that was not written the way this repository writes: a plain one among encrypted ones could be
/// anybody's.
fn check_cipher(vault: &Vault, name: &ObjectName, header: &PackHeader) -> Result<()> {
    if header.cipher == vault.cipher() {
        Ok(())
    } else {
        Err(Error::corrupt(
            name,
            "its encryption is not the repository's",
        ))
    }
}

/// Opened packs, the ones used last kept: bounded by the bytes of their directories.
pub(crate) struct PackCache {
    limit_bytes: usize,
    inner: Mutex<Kept>,
}

#[derive(Default)]
struct Kept {
    packs: HashMap<PackId, (u64, Arc<PackFile>)>,
    bytes: usize,
    clock: u64,
}

impl PackCache {
    pub(crate) fn new(limit_bytes: usize) -> Self {
        Self {
            limit_bytes,
            inner: Mutex::new(Kept::default()),
        }
    }

    /// The pack, opened now if it was not.
    pub(crate) fn open(&self, vault: &Vault, kind: PackKind, id: PackId) -> Result<Arc<PackFile>> {
        {
            let mut kept = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
            kept.clock = kept.clock.wrapping_add(1);
            let now = kept.clock;
            if let Some((used, pack)) = kept.packs.get_mut(&id) {
                *used = now;
                return Ok(Arc::clone(pack));
            }
        }
        // Two readers may open the same pack at once: cheaper than making all others wait for it.
        let pack = Arc::new(PackFile::open(vault, kind, id)?);
        let mut kept = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let now = kept.clock;
        if kept.packs.insert(id, (now, Arc::clone(&pack))).is_none() {
            kept.bytes = kept.bytes.saturating_add(pack.weight());
        }
        while kept.bytes > self.limit_bytes && kept.packs.len() > 1 {
            let oldest = kept
                .packs
                .iter()
                .min_by_key(|(_, (used, _))| *used)
                .map(|(id, _)| *id);
            let Some((_, gone)) = oldest.and_then(|id| kept.packs.remove(&id)) else {
                break;
            };
            kept.bytes = kept.bytes.saturating_sub(gone.weight());
        }
        Ok(pack)
    }

    /// Forgets a pack that turned out to be gone.
    pub(crate) fn forget(&self, id: PackId) {
        let mut kept = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, gone)) = kept.packs.remove(&id) {
            kept.bytes = kept.bytes.saturating_sub(gone.weight());
        }
    }
}
