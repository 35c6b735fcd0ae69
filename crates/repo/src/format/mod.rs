//! The repository's format: every constant and every byte layout, with nothing that reads or writes a store.
//!
//! | part | what |
//! |---|---|
//! | [`envelope`] | the frame around each small object |
//! | [`pack`] | packs: header, blob frames, directory, trailer |
//! | [`segment`] | index segments: whole pack directories, collected |
//! | [`blob`] | what a blob is called, how it is compressed |
//!
//! `docs/FORMAT.md` is the normative text; a test compares its constants with these.
//!
//! **Invariants.** All integers are little-endian. Nothing here panics, allocates from an untrusted length without a
//! bound, or loops without one: everything parsed may come from a hostile store.
#![deny(
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    clippy::as_conversions,
    clippy::unwrap_used,
    clippy::expect_used
)]

pub(crate) mod blob;
pub(crate) mod cursor;
pub(crate) mod envelope;
pub(crate) mod pack;
pub(crate) mod segment;
#[cfg(test)]
mod tests;

pub use blob::{BlobName, Codec};
pub use pack::{DirectoryEntry, PackHeader, PackKind};

/// Version of everything in this module; a reader refuses any other.
pub const FORMAT_VERSION: u16 = 2;

/// First bytes of every small object.
pub const ENVELOPE_MAGIC: [u8; 8] = *b"HIKAEOBJ";
/// Bytes before an envelope's text.
pub const ENVELOPE_HEADER_BYTES: usize = 80;
/// Longest text of an envelope.
pub const MAX_ENVELOPE_TEXT_BYTES: usize = 64 << 20;
/// Bytes of a BLAKE3 checksum.
pub const CHECKSUM_BYTES: usize = 32;
/// Bytes of an AES-256-GCM tag.
pub const TAG_BYTES: usize = 16;

/// First bytes of every pack.
pub const PACK_MAGIC: [u8; 8] = *b"HIKAEPCK";
/// First bytes of every pack's trailer.
pub const TRAILER_MAGIC: [u8; 8] = *b"HIKAEEND";
/// Bytes of a pack's header.
pub const PACK_HEADER_BYTES: usize = 64;
/// Bytes of a pack's trailer.
pub const PACK_TRAILER_BYTES: usize = 64;
/// First bytes of every frame.
pub const FRAME_MAGIC: u16 = 0x5246;
/// Bytes of a frame's clear header.
pub const FRAME_HEADER_BYTES: usize = 16;
/// Bytes of one directory entry.
pub const DIRECTORY_ENTRY_BYTES: usize = 48;
/// The ordinal of the directory's own frame.
pub const DIRECTORY_ORDINAL: u32 = 0xFFFF_FFFF;
/// The level that says that a frame is the directory.
pub const DIRECTORY_LEVEL: u8 = 0xFF;
/// Most blobs of a pack.
pub const MAX_PACK_ENTRIES: usize = 1 << 16;
/// Longest pack in bytes, read or written.
pub const MAX_PACK_BYTES: usize = 64 << 20;
/// Where a data pack is closed.
pub const TARGET_DATA_PACK_BYTES: usize = 32 << 20;
/// Where a node pack is closed.
pub const TARGET_NODE_PACK_BYTES: usize = 6 << 20;
/// Longest stored form of a blob, its tag included.
pub const MAX_STORED_BLOB_BYTES: usize = 65_536 + TAG_BYTES;

/// BLAKE3 derive-key contexts.
pub mod context {
    /// Key of a small object, from a data key (or the master key) and the object's salt.
    pub const OBJECT_KEY: &str = "hikae v1 object key";
    /// Checksum of a small object, over its name's length, its name and its bytes.
    pub const OBJECT_CHECKSUM: &str = "hikae v1 object checksum";
    /// Key of a pack, from a data key, the pack's salt and its id.
    pub const PACK_KEY: &str = "hikae v1 pack key";
    /// Checksum of a pack.
    pub const PACK_CHECKSUM: &str = "hikae v1 pack checksum";
    /// Check of a pack's directory.
    pub const PACK_DIRECTORY: &str = "hikae v1 pack directory";
    /// Key that wraps the master key, from a 32-byte secret and the slot id.
    pub const SLOT_KEY: &str = "hikae v1 slot key";
    /// Id of a master key.
    pub const MASTER_ID: &str = "hikae v1 master key id";
    /// Name ids where nothing is encrypted.
    pub const PLAIN_NAME: &str = "hikae v1 plain name id";
    /// Key of the local index where nothing is encrypted.
    pub const PLAIN_INDEX_KEY: &str = "hikae v1 plain index key";
    /// Checksum in key files and recovery keys.
    pub const SECRET_CHECKSUM: &str = "hikae v1 secret checksum";
}

/// Whether objects are encrypted, and how.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Cipher {
    /// Not at all.
    Plain,
    /// AES-256-GCM.
    Aes256Gcm,
}

impl Cipher {
    /// Its byte in headers.
    pub const fn byte(self) -> u8 {
        match self {
            Self::Plain => 0,
            Self::Aes256Gcm => 1,
        }
    }

    /// From its byte.
    pub const fn from_byte(byte: u8) -> Option<Self> {
        match byte {
            0 => Some(Self::Plain),
            1 => Some(Self::Aes256Gcm),
            _ => None,
        }
    }

    /// Bytes that it adds to what it encrypts.
    pub const fn overhead_bytes(self) -> usize {
        match self {
            Self::Plain => 0,
            Self::Aes256Gcm => TAG_BYTES,
        }
    }
}

/// What a small object is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ObjectKind {
    /// The configuration or its copy.
    Config,
    /// A key slot.
    Slot,
    /// A keyring.
    Ring,
    /// An index segment.
    Segment,
    /// A recovery point.
    Point,
    /// What stands where a fenced writer would have put its point.
    Tombstone,
    /// Many recovery points.
    Bundle,
    /// A mark on a recovery point.
    Mark,
    /// A beat of a lease.
    Lease,
    /// What a generation of garbage collection wants to delete.
    Condemned,
    /// What it decided to delete.
    Verdict,
}

impl ObjectKind {
    /// Every kind.
    pub const ALL: [Self; 11] = [
        Self::Config,
        Self::Slot,
        Self::Ring,
        Self::Segment,
        Self::Point,
        Self::Tombstone,
        Self::Bundle,
        Self::Mark,
        Self::Lease,
        Self::Condemned,
        Self::Verdict,
    ];

    /// Its byte in the envelope.
    pub const fn byte(self) -> u8 {
        match self {
            Self::Config => 1,
            Self::Slot => 2,
            Self::Ring => 3,
            Self::Segment => 4,
            Self::Point => 5,
            Self::Tombstone => 6,
            Self::Bundle => 7,
            Self::Mark => 8,
            Self::Lease => 9,
            Self::Condemned => 10,
            Self::Verdict => 11,
        }
    }

    /// From its byte.
    pub fn from_byte(byte: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.byte() == byte)
    }
}
