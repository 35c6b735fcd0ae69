//! Records of the workload: 4 KiB each, numbered, checksummed, and where they lie.
//!
//! ```text
//!   record   magic:8 kind:4 index:4 sequence:8 value:8 tag:8 filler… blake3:32
//!   ledger   file system state │ head │ recovery mark │ 64 ledger records
//!   copy     32 cells
//!   ballast  so many blocks that are written over and over
//! ```
//!
//! **Invariant.** A record that is not exactly what was written does not pass [`Record::decode`].

use serde::{Deserialize, Serialize};

/// Bytes of a record.
pub const RECORD_BYTES: usize = 4096;
/// Records in the ledger's ring.
pub(super) const LEDGER_RECORDS: u64 = 64;
/// Cells in a copy.
pub(super) const CELLS: u64 = 32;

const MAGIC: [u8; 8] = *b"hikaewl1";
const HASH_BYTES: usize = 32;
const FILLER_AT: usize = 40;

/// What a record is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RecordKind {
    /// State of the file system: `value` 1 clean, 2 dirty.
    FileSystem,
    /// The last committed transaction.
    Head,
    /// What the guest's writers leave in a frozen disk when they finish it.
    Recovered,
    /// Intent of a transaction.
    Ledger,
    /// A cell of a copy.
    Cell,
    /// Ballast.
    Ballast,
}

impl RecordKind {
    fn code(self) -> u32 {
        match self {
            Self::FileSystem => 1,
            Self::Head => 2,
            Self::Recovered => 3,
            Self::Ledger => 4,
            Self::Cell => 5,
            Self::Ballast => 6,
        }
    }
}

/// A place on a disk of the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Place {
    /// Which disk of the guest, in the order of its drives.
    pub disk: usize,
    /// First byte.
    pub offset: u64,
}

impl Place {
    /// The place of a record from here.
    pub(super) fn record(self, index: u64) -> Self {
        let bytes = u64::try_from(RECORD_BYTES).unwrap_or(0);
        Self {
            disk: self.disk,
            offset: self.offset.saturating_add(index.saturating_mul(bytes)),
        }
    }
}

/// Where the workload lies on the disks of a guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Layout {
    /// State, head, ledger: [`Layout::LEDGER_BYTES`].
    pub ledger: Place,
    /// First copy: [`Layout::COPY_BYTES`].
    pub copy_a: Place,
    /// Second copy, perhaps on another disk.
    pub copy_b: Place,
    /// Ballast.
    pub ballast: Place,
    /// How many records of ballast; 0 for none.
    pub ballast_records: u64,
}

impl Layout {
    /// What the ledger takes.
    pub const LEDGER_BYTES: u64 = (3 + LEDGER_RECORDS) * 4096;
    /// What a copy takes.
    pub const COPY_BYTES: u64 = CELLS * 4096;

    /// Everything from an offset of the first disk on; the second copy at the same offset of the second disk, when there is one.
    pub fn from_offset(offset: u64, disks: usize, ballast_records: u64) -> Self {
        let copy_a = offset + Self::LEDGER_BYTES;
        let copy_b = copy_a + Self::COPY_BYTES;
        Self {
            ledger: Place { disk: 0, offset },
            copy_a: Place {
                disk: 0,
                offset: copy_a,
            },
            copy_b: Place {
                disk: usize::from(disks > 1),
                offset: copy_b,
            },
            ballast: Place {
                disk: 0,
                offset: copy_b + Self::COPY_BYTES,
            },
            ballast_records,
        }
    }

    /// The first byte behind the workload on the disks it uses, for checks of size.
    pub fn end(&self) -> u64 {
        [
            self.ledger.offset + Self::LEDGER_BYTES,
            self.copy_a.offset + Self::COPY_BYTES,
            self.copy_b.offset + Self::COPY_BYTES,
            self.ballast.offset + self.ballast_records * 4096,
        ]
        .into_iter()
        .max()
        .unwrap_or(0)
    }

    pub(super) fn file_system(&self) -> Place {
        self.ledger.record(0)
    }
    pub(super) fn head(&self) -> Place {
        self.ledger.record(1)
    }
    pub(super) fn recovered(&self) -> Place {
        self.ledger.record(2)
    }
    pub(super) fn ledger_slot(&self, sequence: u64) -> Place {
        self.ledger.record(3 + sequence % LEDGER_RECORDS)
    }
}

/// What a record says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Record {
    /// What it is.
    pub kind: RecordKind,
    /// Which of its kind.
    pub index: u32,
    /// Of which transaction.
    pub sequence: u64,
    /// What it holds.
    pub value: u64,
}

impl Record {
    /// The bytes. `tag` is the guest's own.
    pub fn encode(&self, tag: u64) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(RECORD_BYTES);
        bytes.extend_from_slice(&MAGIC);
        bytes.extend_from_slice(&self.kind.code().to_le_bytes());
        bytes.extend_from_slice(&self.index.to_le_bytes());
        bytes.extend_from_slice(&self.sequence.to_le_bytes());
        bytes.extend_from_slice(&self.value.to_le_bytes());
        bytes.extend_from_slice(&tag.to_le_bytes());
        debug_assert_eq!(bytes.len(), FILLER_AT);
        let mut filler = vec![0; RECORD_BYTES - FILLER_AT - HASH_BYTES];
        blake3::Hasher::new()
            .update(&bytes)
            .finalize_xof()
            .fill(&mut filler);
        bytes.extend_from_slice(&filler);
        let sum = blake3::hash(&bytes);
        bytes.extend_from_slice(sum.as_bytes());
        bytes
    }

    /// Reads a record of that kind; `None` when it is not one that this guest wrote whole.
    pub fn decode(kind: RecordKind, tag: u64, bytes: &[u8]) -> Option<Self> {
        let (body, sum) = bytes.split_at_checked(RECORD_BYTES - HASH_BYTES)?;
        if sum != blake3::hash(body).as_bytes() || body.get(..8)? != MAGIC {
            return None;
        }
        let u32_at = |at: usize| Some(u32::from_le_bytes(body.get(at..at + 4)?.try_into().ok()?));
        let u64_at = |at: usize| Some(u64::from_le_bytes(body.get(at..at + 8)?.try_into().ok()?));
        if u32_at(8)? != kind.code() || u64_at(32)? != tag {
            return None;
        }
        Some(Self {
            kind,
            index: u32_at(12)?,
            sequence: u64_at(16)?,
            value: u64_at(24)?,
        })
    }
}

/// Which cell a transaction changes, and to what.
pub(super) fn effect(tag: u64, sequence: u64) -> (u64, u64) {
    let mut mixed = tag ^ sequence.wrapping_mul(0x9E37_79B9_7F4A_7C15);
    mixed = (mixed ^ (mixed >> 31)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    mixed ^= mixed >> 29;
    (mixed % CELLS, mixed)
}
