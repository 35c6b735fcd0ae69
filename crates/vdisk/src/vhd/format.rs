//! The structures of a VHD as they lie on disk. Pure: bytes in, values out, and back.
//!
//! ```text
//!   footer (512, at the end; copy at 0)          dynamic header (1024)
//!     0 "conectix"   48 current size               0 "cxsparse"    36 checksum
//!     8 features     56 geometry                   8 all ones      40 parent's unique id
//!    12 version      60 disk type                 16 table offset  56 parent's time
//!    16 data offset  64 checksum                  24 version       64 parent's name, UTF-16BE, 512 bytes
//!    24 time         68 unique id                 28 table entries 576 eight locators of 24 bytes
//!    28 creator      84 saved state               32 block bytes
//!    36 creator's OS
//!    40 original size
//! ```
//!
//! Everything is big-endian, except the paths that the locators point at (UTF-16LE). Source: "Virtual Hard Disk Image
//! Format Specification" 1.0 (Microsoft, 2006), and what Windows writes where the two differ.

use crate::{DiskId, Error, ErrorKind, Result};

/// Bytes of the footer.
pub const FOOTER_BYTES: usize = 512;
/// The same, in the unit of offsets.
pub const FOOTER_SIZE: u64 = 512;
/// Bytes of the dynamic header.
pub const HEADER_BYTES: usize = 1024;
/// The same, in the unit of offsets.
pub const HEADER_SIZE: u64 = 1024;
/// The unit of every on-disk address.
pub const SECTOR_BYTES: u64 = 512;
/// A block that was never written.
pub const UNUSED_BLOCK: u32 = u32::MAX;
/// The largest disk that Hyper-V opens as VHD.
pub const MAX_DISK_BYTES: u64 = 2040 << 30;
/// Locators of one header.
pub const LOCATOR_COUNT: usize = 8;

/// Cookie of a footer.
pub const COOKIE: [u8; 8] = *b"conectix";
/// Cookie of the footer of an image that is still being built: no reader takes it for a VHD.
pub const UNFINISHED_COOKIE: [u8; 8] = *b"unfinish";
const HEADER_COOKIE: [u8; 8] = *b"cxsparse";
const VERSION: u32 = 0x0001_0000;
const FOOTER_CHECKSUM_AT: usize = 64;
const HEADER_CHECKSUM_AT: usize = 36;
const NO_OFFSET: u64 = u64::MAX;

/// What kind of image a footer announces.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DiskType {
    /// The disk's bytes, then the footer.
    Fixed,
    /// Blocks as they were written.
    Dynamic,
    /// Sectors as they were written, on a parent.
    Differencing,
}

/// Seconds since 2000-01-01 00:00 UTC, as VHD counts them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct VhdTime(pub u32);

impl VhdTime {
    /// 2000-01-01 in seconds of the Unix era.
    const EPOCH_UNIX_SECONDS: u64 = 946_684_800;

    /// From seconds since 1970; what lies before 2000 or behind 2136 is clamped.
    pub fn from_unix_seconds(seconds: u64) -> Self {
        Self(u32::try_from(seconds.saturating_sub(Self::EPOCH_UNIX_SECONDS)).unwrap_or(u32::MAX))
    }
}

/// Cylinders, heads and sectors per track: a hint, never the size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Geometry {
    /// Cylinders.
    pub cylinders: u16,
    /// Heads.
    pub heads: u8,
    /// Sectors per track.
    pub sectors: u8,
}

impl Geometry {
    /// The specification's algorithm (appendix "CHS calculation").
    pub fn for_size(size_bytes: u64) -> Self {
        let total = (size_bytes / SECTOR_BYTES).min(65535 * 16 * 255);
        let tracks_of = |sectors: u64| total.checked_div(sectors).unwrap_or(0);
        let fits = |heads: u64, tracks: u64| tracks < heads.saturating_mul(1024);
        let small_heads = tracks_of(17).div_ceil(1024).max(4);
        let (sectors, heads) = if total >= 65535 * 16 * 63 {
            (255, 16)
        } else if small_heads <= 16 && fits(small_heads, tracks_of(17)) {
            (17, small_heads)
        } else if fits(16, tracks_of(31)) {
            (31, 16)
        } else {
            (63, 16)
        };
        let tracks = tracks_of(sectors);
        let cylinders = tracks.checked_div(heads).unwrap_or(0);
        Self {
            cylinders: u16::try_from(cylinders).unwrap_or(u16::MAX),
            heads: u8::try_from(heads).unwrap_or(u8::MAX),
            sectors: u8::try_from(sectors).unwrap_or(u8::MAX),
        }
    }
}

/// The footer, decoded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Footer {
    /// Where the dynamic header lies; `None` for a fixed disk.
    pub header_offset: Option<u64>,
    /// When the image was made.
    pub time: VhdTime,
    /// Four characters that name the program that made it.
    pub creator: [u8; 4],
    /// Its version.
    pub creator_version: u32,
    /// Its operating system.
    pub creator_os: u32,
    /// Bytes of the disk when it was made.
    pub original_size_bytes: u64,
    /// Bytes of the disk now.
    pub current_size_bytes: u64,
    /// A hint for old guests.
    pub geometry: Geometry,
    /// Fixed, dynamic or differencing.
    pub disk_type: DiskType,
    /// Identity of the image; a child names its parent by it.
    pub unique_id: DiskId,
    /// The machine was saved while the disk was attached.
    pub saved_state: u8,
}

/// The dynamic header, decoded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// Where the block allocation table lies.
    pub table_offset: u64,
    /// Entries it has room for, possibly more than the disk needs.
    pub table_entries: u32,
    /// Bytes of disk per block.
    pub block_bytes: u32,
    /// The parent's unique id (all zero when there is none).
    pub parent_id: DiskId,
    /// The parent's time of last change when the child was made.
    pub parent_time: VhdTime,
    /// The parent's file name.
    pub parent_name: String,
    /// Where the parent's paths lie.
    pub locators: [Locator; LOCATOR_COUNT],
}

/// One entry of the header's table of parent paths.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Locator {
    /// `W2ku` (absolute), `W2ru` (relative), `MacX`, …; zero when unused.
    pub platform: [u8; 4],
    /// Room in the file: bytes as Windows writes it, sectors as the specification once said.
    pub space: u32,
    /// Bytes of the path.
    pub length_bytes: u32,
    /// Where the path lies.
    pub offset: u64,
}

/// One's complement of the sum of all bytes, the checksum field counted as zero.
fn checksum(bytes: &[u8], field_at: usize) -> u32 {
    let sum = bytes.iter().enumerate().fold(0_u32, |sum, (at, byte)| {
        let in_field = at >= field_at && at < field_at.saturating_add(4);
        sum.wrapping_add(if in_field { 0 } else { u32::from(*byte) })
    });
    !sum
}

/// The length of a buffer in the unit of offsets.
pub fn length_u64(bytes: &[u8]) -> u64 {
    u64::try_from(bytes.len()).unwrap_or(u64::MAX)
}

/// `N` bytes at a constant place of a structure; the structures are arrays, so the place is always inside.
fn field<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut value = [0; N];
    if let Some(found) = bytes.get(at..).and_then(|tail| tail.get(..N)) {
        value.copy_from_slice(found);
    }
    value
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(field(bytes, at))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_be_bytes(field(bytes, at))
}

/// Puts bytes at a constant place of a structure.
fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
    if let Some(place) = bytes
        .get_mut(at..)
        .and_then(|tail| tail.get_mut(..value.len()))
    {
        place.copy_from_slice(value);
    }
}

impl Footer {
    /// Decodes and verifies; `place` says which copy it is, for the error.
    pub fn decode(bytes: &[u8; FOOTER_BYTES], place: &str) -> Result<Self> {
        let cookie: [u8; 8] = field(bytes, 0);
        if cookie == UNFINISHED_COOKIE {
            let context = format!("vhd footer {place}: the image was never finished");
            return Err(Error::new(ErrorKind::Incomplete, context));
        }
        Self::decode_as(bytes, place, COOKIE)
    }

    /// The same for a footer under another cookie: an image that is still being built.
    pub fn decode_as(bytes: &[u8; FOOTER_BYTES], place: &str, wanted: [u8; 8]) -> Result<Self> {
        let cookie: [u8; 8] = field(bytes, 0);
        if cookie != wanted {
            return Err(Error::corrupt(format!("vhd footer {place}: no cookie")));
        }
        let (stored, computed) = (
            u32_at(bytes, FOOTER_CHECKSUM_AT),
            checksum(bytes, FOOTER_CHECKSUM_AT),
        );
        if stored != computed && !cfg!(fuzzing) {
            return Err(Error::corrupt(format!(
                "vhd footer {place}: checksum {stored:#010x}, computed {computed:#010x}"
            )));
        }
        let version = u32_at(bytes, 12);
        if version >> 16 != VERSION >> 16 {
            let context = format!("vhd footer {place}: version {version:#x}");
            return Err(Error::new(ErrorKind::Unsupported, context));
        }
        let disk_type = match u32_at(bytes, 60) {
            2 => DiskType::Fixed,
            3 => DiskType::Dynamic,
            4 => DiskType::Differencing,
            other => {
                let context = format!("vhd footer {place}: disk type {other}");
                return Err(Error::new(ErrorKind::Unsupported, context));
            }
        };
        let data_offset = u64_at(bytes, 16);
        Ok(Self {
            header_offset: (disk_type != DiskType::Fixed).then_some(data_offset),
            time: VhdTime(u32_at(bytes, 24)),
            creator: field(bytes, 28),
            creator_version: u32_at(bytes, 32),
            creator_os: u32_at(bytes, 36),
            original_size_bytes: u64_at(bytes, 40),
            current_size_bytes: u64_at(bytes, 48),
            geometry: Geometry {
                cylinders: u16::from_be_bytes(field(bytes, 56)),
                heads: u8::from_be_bytes(field(bytes, 58)),
                sectors: u8::from_be_bytes(field(bytes, 59)),
            },
            disk_type,
            unique_id: DiskId(uuid::Uuid::from_bytes(field(bytes, 68))),
            saved_state: u8::from_be_bytes(field(bytes, 84)),
        })
    }

    /// The bytes of a finished image's footer.
    pub fn encode(&self) -> [u8; FOOTER_BYTES] {
        self.encode_as(COOKIE)
    }

    /// The bytes under the cookie given.
    pub fn encode_as(&self, cookie: [u8; 8]) -> [u8; FOOTER_BYTES] {
        let mut bytes = [0; FOOTER_BYTES];
        let disk_type: u32 = match self.disk_type {
            DiskType::Fixed => 2,
            DiskType::Dynamic => 3,
            DiskType::Differencing => 4,
        };
        put(&mut bytes, 0, &cookie);
        // The one feature bit that is always set.
        put(&mut bytes, 8, &2_u32.to_be_bytes());
        put(&mut bytes, 12, &VERSION.to_be_bytes());
        put(
            &mut bytes,
            16,
            &self.header_offset.unwrap_or(NO_OFFSET).to_be_bytes(),
        );
        put(&mut bytes, 24, &self.time.0.to_be_bytes());
        put(&mut bytes, 28, &self.creator);
        put(&mut bytes, 32, &self.creator_version.to_be_bytes());
        put(&mut bytes, 36, &self.creator_os.to_be_bytes());
        put(&mut bytes, 40, &self.original_size_bytes.to_be_bytes());
        put(&mut bytes, 48, &self.current_size_bytes.to_be_bytes());
        put(&mut bytes, 56, &self.geometry.cylinders.to_be_bytes());
        put(
            &mut bytes,
            58,
            &[self.geometry.heads, self.geometry.sectors],
        );
        put(&mut bytes, 60, &disk_type.to_be_bytes());
        put(&mut bytes, 68, self.unique_id.0.as_bytes());
        put(&mut bytes, 84, &[self.saved_state]);
        let sum = checksum(&bytes, FOOTER_CHECKSUM_AT);
        put(&mut bytes, FOOTER_CHECKSUM_AT, &sum.to_be_bytes());
        bytes
    }

    /// The creator's four characters as text, when they are text.
    pub fn creator_name(&self) -> Option<String> {
        let text = std::str::from_utf8(&self.creator)
            .ok()?
            .trim_end_matches(['\0', ' ']);
        (!text.is_empty() && text.chars().all(|c| !c.is_control())).then(|| text.to_owned())
    }
}

impl Header {
    /// Decodes and verifies.
    pub fn decode(bytes: &[u8; HEADER_BYTES], offset: u64) -> Result<Self> {
        let cookie: [u8; 8] = field(bytes, 0);
        if cookie != HEADER_COOKIE {
            return Err(Error::corrupt(format!(
                "vhd dynamic header at {offset}: no cookie"
            )));
        }
        let (stored, computed) = (
            u32_at(bytes, HEADER_CHECKSUM_AT),
            checksum(bytes, HEADER_CHECKSUM_AT),
        );
        if stored != computed && !cfg!(fuzzing) {
            return Err(Error::corrupt(format!(
                "vhd dynamic header at {offset}: checksum {stored:#010x}, computed {computed:#010x}"
            )));
        }
        let version = u32_at(bytes, 24);
        if version >> 16 != VERSION >> 16 {
            let context = format!("vhd dynamic header at {offset}: version {version:#x}");
            return Err(Error::new(ErrorKind::Unsupported, context));
        }
        let mut locators = [Locator::default(); LOCATOR_COUNT];
        let entries = bytes.get(576..).unwrap_or_default().chunks_exact(24);
        for (locator, entry) in locators.iter_mut().zip(entries) {
            *locator = Locator {
                platform: field(entry, 0),
                space: u32_at(entry, 4),
                length_bytes: u32_at(entry, 8),
                offset: u64_at(entry, 16),
            };
        }
        let name: [u8; 512] = field(bytes, 64);
        let units: Vec<u16> = name
            .chunks_exact(2)
            .map(|pair| u16::from_be_bytes(field(pair, 0)))
            .take_while(|unit| *unit != 0)
            .collect();
        Ok(Self {
            table_offset: u64_at(bytes, 16),
            table_entries: u32_at(bytes, 28),
            block_bytes: u32_at(bytes, 32),
            parent_id: DiskId(uuid::Uuid::from_bytes(field(bytes, 40))),
            parent_time: VhdTime(u32_at(bytes, 56)),
            parent_name: String::from_utf16_lossy(&units),
            locators,
        })
    }

    /// Gives a header, as it lies in the file, a table of so many entries at another place. All that changes lies in its
    /// first sector; what is not understood stays.
    pub fn move_table(bytes: &mut [u8; HEADER_BYTES], table_offset: u64, table_entries: u32) {
        put(bytes, 16, &table_offset.to_be_bytes());
        put(bytes, 28, &table_entries.to_be_bytes());
        let sum = checksum(bytes, HEADER_CHECKSUM_AT);
        put(bytes, HEADER_CHECKSUM_AT, &sum.to_be_bytes());
    }

    /// The bytes, checksum included. A parent's name longer than 255 characters is cut.
    pub fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        put(&mut bytes, 0, &HEADER_COOKIE);
        put(&mut bytes, 8, &NO_OFFSET.to_be_bytes());
        put(&mut bytes, 16, &self.table_offset.to_be_bytes());
        put(&mut bytes, 24, &VERSION.to_be_bytes());
        put(&mut bytes, 28, &self.table_entries.to_be_bytes());
        put(&mut bytes, 32, &self.block_bytes.to_be_bytes());
        put(&mut bytes, 40, self.parent_id.0.as_bytes());
        put(&mut bytes, 56, &self.parent_time.0.to_be_bytes());
        let name: Vec<u8> = self
            .parent_name
            .encode_utf16()
            .take(255)
            .flat_map(u16::to_be_bytes)
            .collect();
        put(&mut bytes, 64, &name);
        for (locator, entry) in self.locators.iter().zip(
            bytes
                .get_mut(576..)
                .unwrap_or_default()
                .chunks_exact_mut(24),
        ) {
            put(entry, 0, &locator.platform);
            put(entry, 4, &locator.space.to_be_bytes());
            put(entry, 8, &locator.length_bytes.to_be_bytes());
            put(entry, 16, &locator.offset.to_be_bytes());
        }
        let sum = checksum(&bytes, HEADER_CHECKSUM_AT);
        put(&mut bytes, HEADER_CHECKSUM_AT, &sum.to_be_bytes());
        bytes
    }
}

/// The path that a `W2ku` or `W2ru` locator holds: UTF-16LE, with or without a NUL at its end.
pub fn decode_locator_path(bytes: &[u8]) -> String {
    let units: Vec<u16> = bytes
        .chunks_exact(2)
        .map(|pair| u16::from_le_bytes(field(pair, 0)))
        .take_while(|unit| *unit != 0)
        .collect();
    String::from_utf16_lossy(&units)
}

/// The path that a `Wi2r` or `Wi2k` locator holds: single bytes, of which only ASCII is the same everywhere.
pub fn decode_narrow_path(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|byte| *byte == 0);
    let text = bytes.get(..end.unwrap_or(bytes.len())).unwrap_or_default();
    String::from_utf8_lossy(text).into_owned()
}

/// The path that a `MacX` locator holds: `file://host/path`, or `file://./path` for a relative one (RFC 8089; Xen).
pub fn decode_url_path(bytes: &[u8]) -> String {
    let text = decode_narrow_path(bytes);
    let path = match text.strip_prefix("file://") {
        Some(rest) => rest.strip_prefix("localhost").unwrap_or(rest),
        None => text.as_str(),
    };
    let mut decoded = Vec::new();
    let mut rest = path.as_bytes();
    while let Some((first, tail)) = rest.split_first() {
        let escaped = (*first == b'%')
            .then(|| tail.get(..2))
            .flatten()
            .and_then(|digits| std::str::from_utf8(digits).ok())
            .and_then(|digits| u8::from_str_radix(digits, 16).ok());
        decoded.push(escaped.unwrap_or(*first));
        rest = match escaped {
            Some(_) => tail.get(2..).unwrap_or_default(),
            None => tail,
        };
    }
    String::from_utf8_lossy(&decoded).into_owned()
}

/// A path as a `W2ku` or `W2ru` locator holds it.
pub fn encode_locator_path(path: &str) -> Vec<u8> {
    path.encode_utf16().flat_map(u16::to_le_bytes).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Geometries read from images that Windows wrote.
    #[test]
    fn geometry_is_what_windows_stores() {
        let four_mib = Geometry {
            cylinders: 120,
            heads: 4,
            sectors: 17,
        };
        assert_eq!(Geometry::for_size(4 << 20), four_mib);
        let huge = Geometry {
            cylinders: 65535,
            heads: 16,
            sectors: 255,
        };
        assert_eq!(Geometry::for_size(2040 << 30), huge);
    }

    #[test]
    fn a_footer_survives_encoding() {
        let footer = Footer {
            header_offset: Some(512),
            time: VhdTime::from_unix_seconds(1_700_000_000),
            creator: *b"win ",
            creator_version: 0x000A_0000,
            creator_os: 0x5769_326B,
            original_size_bytes: 1 << 30,
            current_size_bytes: 1 << 31,
            geometry: Geometry::for_size(1 << 31),
            disk_type: DiskType::Differencing,
            unique_id: DiskId(uuid::Uuid::from_bytes([7; 16])),
            saved_state: 0,
        };
        assert_eq!(Footer::decode(&footer.encode(), "here").unwrap(), footer);
        let mut damaged = footer.encode();
        damaged[100] ^= 1;
        assert_eq!(
            Footer::decode(&damaged, "here").unwrap_err().kind(),
            ErrorKind::Corrupt
        );
        let unfinished = footer.encode_as(UNFINISHED_COOKIE);
        assert_eq!(
            Footer::decode(&unfinished, "here").unwrap_err().kind(),
            ErrorKind::Incomplete
        );
    }
}
