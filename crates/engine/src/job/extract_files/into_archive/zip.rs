//! Members of a zip archive with its 64-bit form, Unix modes, and moments (APPNOTE 6.3.10, and Info-ZIP's extra fields).
//!
//! ```text
//!   [local header │ bytes │ descriptor]…  [central record]…  [64-bit end │ its locator]  [end]
//! ```
//!
//! Small members are packed whole by the threads; of large ones each piece is deflated alone and ended on a byte, so that
//! all threads pack one file and the pieces still are one stream. Their sizes stand behind them in a descriptor.
//!
//! **Why not a crate.** The `zip` crate packs on the thread that writes, and holds the whole directory in memory; the
//! format is these few records, and `flate2` does the packing.

use flate2::{Compress, Compression, Crc, FlushCompress, Status};
use guestfs::filesystem::{FileKind, Timestamp};

use super::super::metadata::windows_ticks;
use super::Member;
use super::tar::default_mode;
use crate::{Error, ErrorKind, Result};

const STORED: u16 = 0;
const DEFLATED: u16 = 8;
const FLAG_DESCRIPTOR: u16 = 1 << 3;
const FLAG_UTF8: u16 = 1 << 11;
/// Version of the format that a reader must know: 64-bit sizes.
const VERSION: u16 = 45;
const MADE_BY_UNIX: u16 = 3 << 8;
const LARGE: u32 = u32::MAX;
/// Members at least as large have 64-bit sizes, with room for bytes that do not shrink.
const LARGE_BYTES_MIN: u64 = 0xF000_0000;

/// What the central directory says of a member.
pub(super) struct Record {
    name: Vec<u8>,
    flags: u16,
    method: u16,
    moment: [u16; 2],
    external: u32,
    extra: Vec<u8>,
    is_large: bool,
    pub(super) crc: u32,
    pub(super) packed_bytes: u64,
    pub(super) size_bytes: u64,
    /// Where its local header begins; within its own bytes as long as nobody knows more.
    pub(super) offset: u64,
}

/// Sums over bytes in pieces, put together in order.
#[derive(Default)]
pub(super) struct Sum(Crc);

impl Sum {
    pub(super) fn add(&mut self, piece: &Crc) {
        self.0.combine(piece);
    }

    pub(super) fn value(&self) -> u32 {
        self.0.sum()
    }
}

fn put16(bytes: &mut Vec<u8>, value: u16) {
    bytes.extend(value.to_le_bytes());
}

fn put32(bytes: &mut Vec<u8>, value: u32) {
    bytes.extend(value.to_le_bytes());
}

fn put64(bytes: &mut Vec<u8>, value: u64) {
    bytes.extend(value.to_le_bytes());
}

fn short(length: usize) -> u16 {
    u16::try_from(length).unwrap_or(u16::MAX)
}

fn packing() -> Error {
    Error::new(ErrorKind::Io, "packing bytes")
}

/// How a piece ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PieceEnd {
    /// On a byte, and more follows.
    Open,
    /// As the last of its member.
    Last,
}

/// Deflates a piece on its own.
pub(super) fn deflate(bytes: &[u8], end: PieceEnd) -> Result<Vec<u8>> {
    let mut packer = Compress::new(Compression::fast(), false);
    let mut packed = Vec::with_capacity(bytes.len() / 2 + 64);
    let flush = match end {
        PieceEnd::Open => FlushCompress::Sync,
        PieceEnd::Last => FlushCompress::Finish,
    };
    loop {
        let done = usize::try_from(packer.total_in()).map_err(|_| packing())?;
        let rest = bytes.get(done..).ok_or_else(packing)?;
        packed.reserve(rest.len().max(1024));
        let status = packer.compress_vec(rest, &mut packed, flush);
        let has_room = packed.len() < packed.capacity();
        match status.map_err(|_| packing())? {
            Status::StreamEnd => return Ok(packed),
            // All taken and room left over: what had to be flushed was.
            Status::Ok | Status::BufError
                if end == PieceEnd::Open
                    && has_room
                    && u64::try_from(bytes.len()) == Ok(packer.total_in()) =>
            {
                return Ok(packed);
            }
            Status::Ok | Status::BufError => {}
        }
    }
}

/// The sum over a piece.
pub(super) fn sum(bytes: &[u8]) -> Crc {
    let mut sum = Crc::new();
    sum.update(bytes);
    sum
}

/// A member that is packed whole: its bytes in the archive, and its record.
pub(super) fn whole(member: &Member<'_>, bytes: &[u8]) -> Result<(Vec<u8>, Record)> {
    let mut record = record(member);
    record.size_bytes = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
    record.crc = sum(bytes).sum();
    let packed = if bytes.is_empty() || member.kind != FileKind::Regular {
        Vec::new()
    } else {
        deflate(bytes, PieceEnd::Last)?
    };
    let is_shorter = !packed.is_empty() && packed.len() < bytes.len();
    let stored = if is_shorter { &packed[..] } else { bytes };
    record.method = if is_shorter { DEFLATED } else { STORED };
    record.packed_bytes = u64::try_from(stored.len()).unwrap_or(u64::MAX);
    let mut out = local(&record);
    out.extend(stored);
    Ok((out, record))
}

/// The local header of a member whose pieces follow.
pub(super) fn begin(member: &Member<'_>) -> (Vec<u8>, Record) {
    let mut record = record(member);
    record.flags |= FLAG_DESCRIPTOR;
    record.method = DEFLATED;
    record.is_large = member.size_bytes >= LARGE_BYTES_MIN;
    (local(&record), record)
}

/// What stands behind the pieces.
pub(super) fn descriptor(record: &Record) -> Vec<u8> {
    let mut bytes = b"PK\x07\x08".to_vec();
    put32(&mut bytes, record.crc);
    for size in [record.packed_bytes, record.size_bytes] {
        if record.is_large {
            put64(&mut bytes, size);
        } else {
            put32(&mut bytes, u32::try_from(size).unwrap_or(LARGE));
        }
    }
    bytes
}

fn record(member: &Member<'_>) -> Record {
    let mut name = member.path.to_vec();
    let (kind, attributes) = match member.kind {
        FileKind::Directory => (0o040_000, 0x10),
        FileKind::SymbolicLink => (0o120_000, 0),
        _ => (0o100_000, 0),
    };
    if member.kind == FileKind::Directory {
        name.push(b'/');
    }
    let mode = member
        .owner
        .map_or(default_mode(member.kind), |owner| owner.mode);
    let windows = member.windows_attributes.unwrap_or(0) & 0x27;
    Record {
        flags: if name.is_ascii() { 0 } else { FLAG_UTF8 },
        name,
        method: STORED,
        moment: member.times.modified.map_or([0, 0x21], dos_moment),
        external: ((kind | u32::from(mode)) << 16) | attributes | windows,
        extra: extra(member),
        is_large: false,
        crc: 0,
        packed_bytes: 0,
        size_bytes: 0,
        offset: 0,
    }
}

/// Moments and owner, as Info-ZIP and 7-Zip write them.
fn extra(member: &Member<'_>) -> Vec<u8> {
    let (times, mut extra) = (&member.times, Vec::new());
    let modified = times.modified;
    if let Some(seconds) = modified.and_then(|time| i32::try_from(time.seconds).ok()) {
        put16(&mut extra, 0x5455);
        put16(&mut extra, 5);
        extra.push(1);
        extra.extend(seconds.to_le_bytes());
    }
    if let Some(ticks) = modified.and_then(windows_ticks) {
        let or_modified = |time: Option<Timestamp>| time.and_then(windows_ticks).unwrap_or(ticks);
        put16(&mut extra, 0x000a);
        put16(&mut extra, 32);
        put32(&mut extra, 0);
        put16(&mut extra, 1);
        put16(&mut extra, 24);
        put64(&mut extra, ticks);
        put64(&mut extra, or_modified(times.accessed));
        put64(&mut extra, or_modified(times.created));
    }
    if let Some(owner) = member.owner {
        put16(&mut extra, 0x7875);
        put16(&mut extra, 11);
        extra.push(1);
        for id in [owner.user, owner.group] {
            extra.push(4);
            put32(&mut extra, id);
        }
    }
    extra
}

fn local(record: &Record) -> Vec<u8> {
    let mut bytes = b"PK\x03\x04".to_vec();
    put16(&mut bytes, VERSION);
    put16(&mut bytes, record.flags);
    put16(&mut bytes, record.method);
    put16(&mut bytes, record.moment[0]);
    put16(&mut bytes, record.moment[1]);
    put32(&mut bytes, record.crc);
    let mut extra = Vec::new();
    if record.is_large {
        // Zeros: the sizes follow in the descriptor. That this field is here says that those have 64 bits.
        put32(&mut bytes, LARGE);
        put32(&mut bytes, LARGE);
        put16(&mut extra, 1);
        put16(&mut extra, 16);
        put64(&mut extra, 0);
        put64(&mut extra, 0);
    } else {
        put32(
            &mut bytes,
            u32::try_from(record.packed_bytes).unwrap_or(LARGE),
        );
        put32(
            &mut bytes,
            u32::try_from(record.size_bytes).unwrap_or(LARGE),
        );
    }
    extra.extend(&record.extra);
    put16(&mut bytes, short(record.name.len()));
    put16(&mut bytes, short(extra.len()));
    bytes.extend(&record.name);
    bytes.extend(extra);
    bytes
}

/// The central record of a member.
pub(super) fn central(record: &Record) -> Vec<u8> {
    let mut bytes = b"PK\x01\x02".to_vec();
    put16(&mut bytes, MADE_BY_UNIX | VERSION);
    put16(&mut bytes, VERSION);
    put16(&mut bytes, record.flags);
    put16(&mut bytes, record.method);
    put16(&mut bytes, record.moment[0]);
    put16(&mut bytes, record.moment[1]);
    put32(&mut bytes, record.crc);
    let mut wide = Vec::new();
    let mut narrow = |value: u64| match u32::try_from(value) {
        Ok(value) if value != LARGE => value,
        _ => {
            put64(&mut wide, value);
            LARGE
        }
    };
    // In the order of the field: size, packed size, place.
    let size = narrow(record.size_bytes);
    let packed = narrow(record.packed_bytes);
    let offset = narrow(record.offset);
    put32(&mut bytes, packed);
    put32(&mut bytes, size);
    let mut extra = Vec::new();
    if !wide.is_empty() {
        put16(&mut extra, 1);
        put16(&mut extra, short(wide.len()));
        extra.extend(wide);
    }
    extra.extend(&record.extra);
    put16(&mut bytes, short(record.name.len()));
    put16(&mut bytes, short(extra.len()));
    put16(&mut bytes, 0);
    put16(&mut bytes, 0);
    put16(&mut bytes, 0);
    put32(&mut bytes, record.external);
    put32(&mut bytes, offset);
    bytes.extend(&record.name);
    bytes.extend(extra);
    bytes
}

/// What ends an archive with so many members, whose central directory lies there.
pub(super) fn end(count: u64, offset: u64, length_bytes: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    let is_large = count >= u64::from(u16::MAX)
        || offset >= u64::from(LARGE)
        || length_bytes >= u64::from(LARGE);
    if is_large {
        bytes.extend(b"PK\x06\x06");
        put64(&mut bytes, 44);
        put16(&mut bytes, MADE_BY_UNIX | VERSION);
        put16(&mut bytes, VERSION);
        put32(&mut bytes, 0);
        put32(&mut bytes, 0);
        put64(&mut bytes, count);
        put64(&mut bytes, count);
        put64(&mut bytes, length_bytes);
        put64(&mut bytes, offset);
        bytes.extend(b"PK\x06\x07");
        put32(&mut bytes, 0);
        put64(&mut bytes, offset.saturating_add(length_bytes));
        put32(&mut bytes, 1);
    }
    bytes.extend(b"PK\x05\x06");
    put16(&mut bytes, 0);
    put16(&mut bytes, 0);
    let count = u16::try_from(count).unwrap_or(u16::MAX);
    put16(&mut bytes, count);
    put16(&mut bytes, count);
    put32(&mut bytes, u32::try_from(length_bytes).unwrap_or(LARGE));
    put32(&mut bytes, u32::try_from(offset).unwrap_or(LARGE));
    put16(&mut bytes, 0);
    bytes
}

/// Time and date as MS-DOS counts them, of UTC, from 1980 to 2107.
fn dos_moment(time: Timestamp) -> [u16; 2] {
    let seconds = time.seconds.clamp(315_532_800, 4_354_819_199);
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    // Days in eras of 400 years that begin on 1 March, so that the odd day comes last.
    let shifted = days + 719_468;
    let (era, day) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day_of_year = day - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let from_march = (5 * day_of_year + 2) / 153;
    let day_of_month = day_of_year - (153 * from_march + 2) / 5 + 1;
    let month = if from_march < 10 {
        from_march + 3
    } else {
        from_march - 9
    };
    let year = era * 400 + year_of_era + i64::from(month <= 2);
    let date = ((year - 1980) << 9) | (month << 5) | day_of_month;
    let clock = ((rest / 3600) << 11) | ((rest / 60 % 60) << 5) | (rest % 60 / 2);
    [
        u16::try_from(clock).unwrap_or(0),
        u16::try_from(date).unwrap_or(0x21),
    ]
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    #[test]
    fn pieces_that_are_packed_alone_are_one_stream() {
        let bytes: Vec<u8> = (0..300_000_u32)
            .map(|it| (it.wrapping_mul(it) >> 7).to_le_bytes()[0])
            .collect();
        let mut packed = Vec::new();
        let mut total = Sum::default();
        for piece in bytes.chunks(70_000) {
            packed.extend(deflate(piece, PieceEnd::Open).expect("packed"));
            total.add(&sum(piece));
        }
        packed.extend(deflate(&[], PieceEnd::Last).expect("ended"));
        let mut back = Vec::new();
        let mut reader = flate2::read::DeflateDecoder::new(&packed[..]);
        reader.read_to_end(&mut back).expect("unpacked");
        assert!(back == bytes);
        assert_eq!(total.value(), sum(&bytes).sum());
    }

    #[test]
    fn moments_are_told_as_ms_dos_counts_them() {
        let told = |seconds| {
            dos_moment(Timestamp {
                seconds,
                nanoseconds: 0,
            })
        };
        assert_eq!(told(0), [0, (1 << 5) | 1]);
        let date = ((2026 - 1980) << 9) | (11 << 5) | 22;
        assert_eq!(told(1_795_327_825), [(6 << 11) | (10 << 5) | 12, date]);
        assert_eq!(told(951_782_400), [0, (20 << 9) | (2 << 5) | 29]);
        let last = [(23 << 11) | (59 << 5) | 29, (127 << 9) | (12 << 5) | 31];
        assert_eq!(told(i64::MAX), last);
    }
}
