//! The header, its extensions and the geometry that follows from it.
//!
//! ```text
//!   0 magic "QFI\xfb"      24 size             48 refcount table      72 incompatible (v3)   96 refcount order (v3)
//!   4 version 2|3          32 crypt method     56 … clusters          80 compatible (v3)    100 header length (v3)
//!   8 backing offset, 16 … length              60 snapshots           88 autoclear (v3)     104 compression type (v3)
//!  20 cluster bits         36 L1 entries, 40 L1 offset, 64 snapshot table     extensions ─► end mark ─► backing name
//! ```
//!
//! **Invariants.** What parses has a cluster size of 512 bytes to 2 MiB, an L1 table of at most 32 MiB that covers the disk
//! and lies inside the file, and no feature that this code does not know.

use block::ReadAt;

use super::codec::Compression;
use crate::field::{array, be32, be64, index};
use crate::{Error, ErrorKind, Result};

pub(super) const MAGIC: u32 = 0x5146_49fb;
/// Greatest L1 table, as in QEMU.
pub(super) const MAX_L1_BYTES: u64 = 32 << 20;
/// Greatest refcount table, as in QEMU.
pub(super) const MAX_REFCOUNT_TABLE_BYTES: u64 = 8 << 20;

pub(super) const DIRTY: u64 = 1;
pub(super) const CORRUPT: u64 = 1 << 1;
pub(super) const EXTERNAL_DATA: u64 = 1 << 2;
pub(super) const COMPRESSION_TYPE: u64 = 1 << 3;
pub(super) const EXTENDED_L2: u64 = 1 << 4;
/// Ours: the image is still being built. QEMU refuses it by the name in the feature table.
pub(super) const UNFINISHED: u64 = 1 << 62;
pub(super) const UNFINISHED_NAME: &str = "unfinished build (resume or discard)";
const KNOWN: u64 = DIRTY | CORRUPT | EXTERNAL_DATA | COMPRESSION_TYPE | EXTENDED_L2 | UNFINISHED;

/// Autoclear: the bitmaps extension is consistent.
pub(super) const BITMAPS: u64 = 1;

pub(super) const EXTENSION_BACKING_FORMAT: u32 = 0xe279_2aca;
pub(super) const EXTENSION_FEATURES: u32 = 0x6803_f857;
pub(super) const EXTENSION_BITMAPS: u32 = 0x2385_2875;
pub(super) const EXTENSION_DATA_FILE: u32 = 0x4441_5441;

/// What an image says about its parent. Resolution is the caller's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackingName {
    /// The name as stored, usually a path relative to the image; may be a `json:` or protocol name. At most 1023 bytes.
    pub path: String,
    /// The parent's format, if recorded ("raw", "qcow2", …). Without it, never guess: a raw disk's content can pose as an image.
    pub format: Option<String>,
}

/// Where the directory of persistent bitmaps lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct BitmapsExtension {
    pub count: u32,
    pub directory_bytes: u64,
    pub directory_offset: u64,
}

/// The parsed header: what can be known about an image without opening anything else.
#[derive(Debug, Clone)]
pub struct Qcow2Header {
    pub(super) version: u32,
    pub(super) cluster_bits: u32,
    pub(super) size_bytes: u64,
    pub(super) l1_entries: u64,
    pub(super) l1_offset: u64,
    pub(super) refcount_table_offset: u64,
    pub(super) refcount_table_clusters: u32,
    pub(super) snapshot_count: u32,
    pub(super) snapshots_offset: u64,
    pub(super) incompatible: u64,
    pub(super) autoclear: u64,
    pub(super) refcount_order: u32,
    pub(super) compression: Compression,
    pub(super) backing: Option<BackingName>,
    pub(super) data_file_name: Option<String>,
    pub(super) bitmaps: Option<BitmapsExtension>,
}

/// Header extensions that matter here.
#[derive(Default)]
struct Extensions {
    backing_format: Option<String>,
    data_file_name: Option<String>,
    bitmaps: Option<BitmapsExtension>,
    features: Vec<(u8, u8, String)>,
}

impl Qcow2Header {
    /// Reads and judges the header of `file`.
    ///
    /// # Errors
    /// `Corrupt` for what contradicts the format, `Unsupported` for encryption and unknown incompatible features (named
    /// from the image's feature table), `Incomplete` for a build that was not finished.
    pub fn read(file: &(impl ReadAt + ?Sized)) -> Result<Self> {
        let header = Self::read_any(file)?;
        if header.incompatible & UNFINISHED != 0 {
            return Err(Error::new(
                ErrorKind::Incomplete,
                "qcow2 header: the image was not finished",
            ));
        }
        Ok(header)
    }

    /// As [`Self::read`], but accepts an unfinished build.
    pub(super) fn read_any(file: &(impl ReadAt + ?Sized)) -> Result<Self> {
        let mut fixed = [0u8; 112];
        let length = file.size_bytes();
        if length < 72 {
            return Err(Error::corrupt(format!(
                "qcow2 header: the file has only {length} bytes"
            )));
        }
        block::read_padded(file, 0, &mut fixed)?;
        let mut header = Self::parse_fixed(&fixed)?;
        let header_length = if header.version == 2 {
            72
        } else {
            be32(&fixed, 100, "header length")?
        };
        if header.version == 3
            && (header_length < 104 || u64::from(header_length) > header.cluster_bytes())
        {
            return Err(Error::corrupt(format!(
                "qcow2 header: length {header_length}"
            )));
        }
        let mut first = vec![0u8; index(header.cluster_bytes().min(length))];
        file.read_at(0, &mut first)?;

        let backing_offset = be64(&fixed, 8, "backing offset")?;
        let area_end = if backing_offset == 0 {
            header.cluster_bytes()
        } else {
            backing_offset
        };
        let extensions = parse_extensions(&first, index(u64::from(header_length)), area_end)?;
        header.refuse_unknown(&extensions.features)?;
        header.compression = header.parse_compression(&fixed, header_length)?;
        if backing_offset != 0 {
            let path = backing_path(&first, backing_offset, be32(&fixed, 16, "backing length")?)?;
            header.backing = Some(BackingName {
                path,
                format: extensions.backing_format,
            });
        }
        header.data_file_name = extensions.data_file_name;
        if header.autoclear & BITMAPS != 0 {
            header.bitmaps = extensions.bitmaps;
        }
        header.judge_l1(length)?;
        Ok(header)
    }

    fn parse_fixed(fixed: &[u8]) -> Result<Self> {
        let magic = be32(fixed, 0, "magic")?;
        if magic != MAGIC {
            return Err(Error::corrupt(format!(
                "qcow2 header: magic is {magic:#010x}"
            )));
        }
        let version = be32(fixed, 4, "version")?;
        if version != 2 && version != 3 {
            return Err(Error::new(
                ErrorKind::Unsupported,
                format!("qcow2 header: version {version}"),
            ));
        }
        let cluster_bits = be32(fixed, 20, "cluster bits")?;
        if !(9..=21).contains(&cluster_bits) {
            return Err(Error::corrupt(format!(
                "qcow2 header: cluster bits are {cluster_bits}"
            )));
        }
        let crypt = be32(fixed, 32, "crypt method")?;
        if crypt != 0 {
            return Err(Error::new(
                ErrorKind::Unsupported,
                format!("qcow2 header: the image is encrypted (method {crypt})"),
            ));
        }
        let v3 = |at: usize| {
            if version == 3 {
                be64(fixed, at, "features")
            } else {
                Ok(0)
            }
        };
        let header = Self {
            version,
            cluster_bits,
            size_bytes: be64(fixed, 24, "size")?,
            l1_entries: u64::from(be32(fixed, 36, "L1 entries")?),
            l1_offset: be64(fixed, 40, "L1 offset")?,
            refcount_table_offset: be64(fixed, 48, "refcount table offset")?,
            refcount_table_clusters: be32(fixed, 56, "refcount table clusters")?,
            snapshot_count: be32(fixed, 60, "snapshots")?,
            snapshots_offset: be64(fixed, 64, "snapshot table offset")?,
            incompatible: v3(72)?,
            autoclear: v3(88)?,
            refcount_order: if version == 3 {
                be32(fixed, 96, "refcount order")?
            } else {
                4
            },
            compression: Compression::Zlib,
            backing: None,
            data_file_name: None,
            bitmaps: None,
        };
        if header.refcount_order > 6 {
            return Err(Error::corrupt(format!(
                "qcow2 header: refcount order {}",
                header.refcount_order
            )));
        }
        if header.size_bytes > i64::MAX.unsigned_abs() {
            return Err(Error::corrupt(format!(
                "qcow2 header: size {}",
                header.size_bytes
            )));
        }
        Ok(header)
    }

    fn refuse_unknown(&self, names: &[(u8, u8, String)]) -> Result<()> {
        let unknown = self.incompatible & !KNOWN;
        if unknown == 0 {
            return Ok(());
        }
        let named: Vec<String> = (0u8..64)
            .filter(|bit| unknown.checked_shr(u32::from(*bit)).unwrap_or(0) & 1 != 0)
            .map(|bit| {
                names
                    .iter()
                    .find(|(kind, number, _)| *kind == 0 && *number == bit)
                    .map_or_else(
                        || format!("incompatible bit {bit}"),
                        |(_, _, name)| format!("{name} (bit {bit})"),
                    )
            })
            .collect();
        Err(Error::new(
            ErrorKind::Unsupported,
            format!("qcow2 header: unknown features: {}", named.join(", ")),
        ))
    }

    fn parse_compression(&self, fixed: &[u8], header_length: u32) -> Result<Compression> {
        let stored = if self.version == 3 && header_length > 104 {
            fixed.get(104).copied().unwrap_or(0)
        } else {
            0
        };
        match (self.incompatible & COMPRESSION_TYPE != 0, stored) {
            (false, 0) => Ok(Compression::Zlib),
            (true, 1) => Ok(Compression::Zstd),
            (false, other) | (true, other @ 0) => Err(Error::corrupt(format!(
                "qcow2 header: compression type {other} contradicts the feature bit"
            ))),
            (true, other) => Err(Error::new(
                ErrorKind::Unsupported,
                format!("qcow2 header: compression type {other}"),
            )),
        }
    }

    fn judge_l1(&self, file_length: u64) -> Result<()> {
        if self.incompatible & EXTENDED_L2 != 0 && self.cluster_bits < 14 {
            return Err(Error::corrupt(
                "qcow2 header: extended L2 entries need clusters of 16 KiB or more",
            ));
        }
        let table_bytes = self.l1_entries.saturating_mul(8);
        if table_bytes > MAX_L1_BYTES {
            return Err(Error::corrupt(format!(
                "qcow2 header: L1 table of {} entries is too big",
                self.l1_entries
            )));
        }
        let needed = self.size_bytes.div_ceil(self.bytes_per_l2().max(1));
        if self.l1_entries < needed {
            return Err(Error::corrupt(format!(
                "qcow2 header: L1 table has {} entries, the disk needs {needed}",
                self.l1_entries
            )));
        }
        if !self.is_aligned(self.l1_offset) {
            return Err(Error::corrupt(format!(
                "qcow2 header: L1 table at {:#x} is not on a cluster",
                self.l1_offset
            )));
        }
        let inside = self.l1_offset.checked_add(needed.saturating_mul(8));
        if needed > 0 && (self.l1_offset == 0 || inside.is_none_or(|end| end > file_length)) {
            return Err(Error::corrupt(format!(
                "qcow2 header: L1 table at {:#x} reaches out of the file of {file_length} bytes",
                self.l1_offset
            )));
        }
        Ok(())
    }

    /// Bytes of the virtual disk.
    pub fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// Version of the format: 2 (`compat=0.10`) or 3 (`compat=1.1`).
    pub fn version(&self) -> u32 {
        self.version
    }

    /// Bytes of a cluster, 512 to 2 MiB.
    pub fn cluster_bytes(&self) -> u64 {
        1u64.checked_shl(self.cluster_bits).unwrap_or(0)
    }

    /// The parent's name, when the image has one.
    pub fn backing(&self) -> Option<&BackingName> {
        self.backing.as_ref()
    }

    /// Whether guest data lies in a second file.
    pub fn needs_data_file(&self) -> bool {
        self.incompatible & EXTERNAL_DATA != 0
    }

    /// Name of the external data file, if the image needs one and records its name.
    pub fn data_file_name(&self) -> Option<&str> {
        self.data_file_name
            .as_deref()
            .filter(|_| self.needs_data_file())
    }

    /// Counters may lag behind references (lazy refcounts, interrupted); reading is not affected.
    pub fn is_dirty(&self) -> bool {
        self.incompatible & DIRTY != 0
    }

    /// A program found the image corrupt and marked it: it may be read with care and must not be written.
    pub fn is_marked_corrupt(&self) -> bool {
        self.incompatible & CORRUPT != 0
    }

    /// How compressed clusters are compressed.
    pub fn compression(&self) -> Compression {
        self.compression
    }

    /// Whether L2 entries carry 32 subclusters each.
    pub fn has_extended_l2(&self) -> bool {
        self.incompatible & EXTENDED_L2 != 0
    }

    pub(super) fn is_aligned(&self, offset: u64) -> bool {
        offset & self.cluster_mask() == 0
    }

    pub(super) fn cluster_mask(&self) -> u64 {
        self.cluster_bytes().saturating_sub(1)
    }

    /// `offset / cluster size`.
    pub(super) fn cluster_of(&self, offset: u64) -> u64 {
        offset.checked_shr(self.cluster_bits).unwrap_or(0)
    }

    pub(super) fn l2_entry_bytes(&self) -> u64 {
        if self.has_extended_l2() { 16 } else { 8 }
    }

    pub(super) fn l2_entries(&self) -> u64 {
        let bytes = self.cluster_bytes();
        if self.has_extended_l2() {
            bytes / 16
        } else {
            bytes / 8
        }
    }

    /// Guest bytes under one L2 table.
    pub(super) fn bytes_per_l2(&self) -> u64 {
        self.l2_entries().saturating_mul(self.cluster_bytes())
    }
}

fn backing_path(first: &[u8], offset: u64, length: u32) -> Result<String> {
    let start = index(offset);
    if length > 1023 {
        return Err(Error::corrupt(format!(
            "qcow2 header: backing name of {length} bytes"
        )));
    }
    let end = start.saturating_add(index(u64::from(length)));
    first
        .get(start..end)
        .map(|name| String::from_utf8_lossy(name).into_owned())
        .ok_or_else(|| {
            Error::corrupt(format!(
                "qcow2 header: backing name at {offset:#x} leaves the first cluster"
            ))
        })
}

fn parse_extensions(first: &[u8], start: usize, area_end: u64) -> Result<Extensions> {
    let mut found = Extensions::default();
    let end = index(area_end).min(first.len());
    let mut at = start;
    while at.saturating_add(8) <= end {
        let kind = be32(first, at, "header extension")?;
        let length = index(u64::from(be32(
            first,
            at.saturating_add(4),
            "header extension",
        )?));
        if kind == 0 {
            break;
        }
        let body_at = at.saturating_add(8);
        let body_end = body_at.saturating_add(length);
        let body = first.get(body_at..body_end).filter(|_| body_end <= end).ok_or_else(|| {
            Error::corrupt(format!(
                "qcow2 header extension {kind:#010x} at {at:#x}: {length} bytes leave the header"
            ))
        })?;
        match kind {
            EXTENSION_BACKING_FORMAT => {
                found.backing_format = Some(String::from_utf8_lossy(body).into_owned());
            }
            EXTENSION_DATA_FILE => {
                found.data_file_name = Some(String::from_utf8_lossy(body).into_owned());
            }
            EXTENSION_BITMAPS => {
                found.bitmaps = Some(BitmapsExtension {
                    count: be32(body, 0, "bitmaps extension")?,
                    directory_bytes: be64(body, 8, "bitmaps extension")?,
                    directory_offset: be64(body, 16, "bitmaps extension")?,
                });
            }
            EXTENSION_FEATURES => found.features = parse_features(body),
            _ => {}
        }
        at = body_end.checked_next_multiple_of(8).unwrap_or(usize::MAX);
    }
    Ok(found)
}

/// Entries of the feature name table: kind, bit, name. At most 64 bits of 3 kinds make sense.
fn parse_features(body: &[u8]) -> Vec<(u8, u8, String)> {
    body.chunks_exact(48)
        .take(192)
        .filter_map(|entry| {
            let [kind, bit] = array::<2>(entry, 0, "feature name").ok()?;
            let name = entry.get(2..)?;
            let text = name.split(|byte| *byte == 0).next().unwrap_or(name);
            Some((kind, bit, String::from_utf8_lossy(text).into_owned()))
        })
        .collect()
}

/// Length of a file as the header sees it, in whole clusters.
pub(super) fn clusters_in_file(header: &Qcow2Header, file: &(impl ReadAt + ?Sized)) -> u64 {
    file.size_bytes().div_ceil(header.cluster_bytes().max(1))
}
