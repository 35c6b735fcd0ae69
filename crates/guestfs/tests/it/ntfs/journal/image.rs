//! The structures of an NTFS image as tests need them to write a log: read simply, and only where they are sound.

use std::ops::Range;

pub const STANDARD: u32 = 0x10;
pub const FILE_NAME: u32 = 0x30;
pub const DATA: u32 = 0x80;
pub const INDEX_ROOT: u32 = 0x90;
pub const INDEX_ALLOCATION: u32 = 0xA0;
pub const BITMAP: u32 = 0xB0;
pub const END: u32 = 0xFFFF_FFFF;

pub fn short(bytes: &[u8], at: usize) -> usize {
    usize::from(u16::from_le_bytes([bytes[at], bytes[at + 1]]))
}

pub fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

pub fn long(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

pub fn size(number: impl TryInto<usize>) -> usize {
    number.try_into().ok().expect("it fits into memory")
}

/// Takes the marks off the ends of the sectors, or puts them there; both are the same exchange.
pub fn unprotect(block: &mut [u8]) {
    let at = short(block, 4);
    for sector in 1..short(block, 6) {
        let end = sector * 512;
        let saved = [block[at + 2 * sector], block[at + 2 * sector + 1]];
        block[end - 2..end].copy_from_slice(&saved);
    }
}

pub fn protect(block: &mut [u8]) {
    let at = short(block, 4);
    let mark = [block[at], block[at + 1]];
    for sector in 1..short(block, 6) {
        let end = sector * 512;
        let saved = [block[end - 2], block[end - 1]];
        block[at + 2 * sector..][..2].copy_from_slice(&saved);
        block[end - 2..end].copy_from_slice(&mark);
    }
}

/// Attributes of a file record: where each stands, and its bytes.
pub fn attributes(record: &[u8]) -> Vec<(usize, &[u8])> {
    let mut found = Vec::new();
    let mut at = short(record, 20);
    while word(record, at) != END {
        let length = size(word(record, at + 4));
        found.push((at, &record[at..at + length]));
        at += length;
    }
    found
}

pub fn is_resident(attribute: &[u8]) -> bool {
    attribute[8] == 0
}

pub fn name(attribute: &[u8]) -> String {
    let at = short(attribute, 10);
    let units: Vec<u16> = attribute[at..at + 2 * usize::from(attribute[9])]
        .chunks_exact(2)
        .map(|pair| u16::from_le_bytes([pair[0], pair[1]]))
        .collect();
    String::from_utf16(&units).expect("a name")
}

pub fn value(attribute: &[u8]) -> Range<usize> {
    let at = short(attribute, 20);
    at..at + size(word(attribute, 16))
}

/// Clusters of a stream, one by one; 0 for holes.
pub fn clusters(attribute: &[u8]) -> Vec<u64> {
    let mut found = Vec::new();
    let mut at = short(attribute, 32);
    let mut place = 0_i64;
    while attribute[at] != 0 {
        let (count_bytes, place_bytes) = (attribute[at] & 15, attribute[at] >> 4);
        let number = |from: usize, bytes: u8| {
            let digits = &attribute[from..from + usize::from(bytes)];
            let is_negative = digits.last().is_some_and(|byte| byte & 0x80 != 0);
            let mut all = [if is_negative { 0xFF } else { 0 }; 8];
            all[..digits.len()].copy_from_slice(digits);
            i64::from_le_bytes(all)
        };
        let count = number(at + 1, count_bytes);
        place += number(at + 1 + usize::from(count_bytes), place_bytes);
        for index in 0..count {
            let cluster = if place_bytes == 0 { 0 } else { place + index };
            found.push(u64::try_from(cluster).expect("a place"));
        }
        at += 1 + usize::from(count_bytes + place_bytes);
    }
    found
}

/// A stream outside of its record.
#[derive(Debug, Clone, Default)]
pub struct Stream {
    pub clusters: Vec<u64>,
    pub size_bytes: usize,
}

#[derive(Clone)]
pub struct Image {
    pub bytes: Vec<u8>,
    pub cluster_bytes: usize,
    pub record_bytes: usize,
    pub index_bytes: usize,
}

impl Image {
    pub fn new(bytes: Vec<u8>) -> Self {
        let cluster_bytes = short(&bytes, 11) * usize::from(bytes[13]);
        let encoded = |code: u8| {
            if code < 0x80 {
                usize::from(code) * cluster_bytes
            } else {
                1 << (256 - usize::from(code))
            }
        };
        Self {
            cluster_bytes,
            record_bytes: encoded(bytes[64]),
            index_bytes: encoded(bytes[68]),
            bytes,
        }
    }

    /// Where a byte of a stream lies.
    pub fn place(&self, stream: &Stream, offset: usize) -> usize {
        let cluster = stream.clusters[offset / self.cluster_bytes];
        assert_ne!(cluster, 0, "a hole");
        size(cluster) * self.cluster_bytes + offset % self.cluster_bytes
    }

    pub fn read(&self, stream: &Stream, range: Range<usize>) -> Vec<u8> {
        range
            .step_by(512)
            .flat_map(|offset| {
                let place = self.place(stream, offset);
                self.bytes[place..place + 512].to_vec()
            })
            .collect()
    }

    pub fn write(&mut self, stream: &Stream, offset: usize, bytes: &[u8]) {
        for (number, sector) in bytes.chunks(512).enumerate() {
            let place = self.place(stream, offset + 512 * number);
            self.bytes[place..place + sector.len()].copy_from_slice(sector);
        }
    }

    pub fn table(&self) -> Stream {
        let first = size(long(&self.bytes, 48)) * self.cluster_bytes;
        let mut record = self.bytes[first..first + self.record_bytes].to_vec();
        unprotect(&mut record);
        stream_of(&record, DATA, "").expect("the file table")
    }

    /// A file record without its marks; `None` where there is none.
    pub fn record(&self, number: usize) -> Option<Vec<u8>> {
        let table = self.table();
        let start = number * self.record_bytes;
        if start + self.record_bytes > table.size_bytes {
            return None;
        }
        let mut record = self.read(&table, start..start + self.record_bytes);
        if !record.starts_with(b"FILE") {
            return None;
        }
        unprotect(&mut record);
        Some(record)
    }

    pub fn put_record(&mut self, number: usize, mut record: Vec<u8>) {
        protect(&mut record);
        let table = self.table();
        self.write(&table, number * self.record_bytes, &record);
    }

    pub fn count(&self) -> usize {
        self.table().size_bytes / self.record_bytes
    }

    pub fn stream(&self, number: usize, kind: u32, name: &str) -> Option<Stream> {
        stream_of(&self.record(number)?, kind, name)
    }
}

pub fn is_in_use(record: &[u8]) -> bool {
    short(record, 22) & 1 != 0
}

fn stream_of(record: &[u8], kind: u32, wanted: &str) -> Option<Stream> {
    attributes(record)
        .into_iter()
        .map(|(_, attribute)| attribute)
        .find(|attribute| word(attribute, 0) == kind && name(attribute) == wanted)
        .filter(|attribute| !is_resident(attribute))
        .map(|attribute| Stream {
            clusters: clusters(attribute),
            size_bytes: size(long(attribute, 48)),
        })
}
