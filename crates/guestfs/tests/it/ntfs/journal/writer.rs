//! Writes a log as Windows would have left it: records into pages, tables of a checkpoint, copies of unfinished pages, restart pages.

use std::collections::BTreeMap;

use super::difference::{Operation, Target};
use super::image::{Image, protect, size};

pub const PAGE: usize = 4096;
const DATA_OFFSET: usize = 64;
const HEAD: usize = 48;
const IN_USE: u32 = 0xFFFF_FFFF;
/// The number of the transaction that does everything, and that of the one that dumps tables.
const TRANSACTION: u32 = 0x18;
const DUMPING: u32 = 0x40;
const FORGET: u16 = 27;
const OPEN: u16 = 28;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    One,
    Two,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    Old,
    New,
}

/// Whether attributes are opened behind the checkpoint, or written down by it, with all changes before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tables {
    Opened,
    Dumped,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    Forgotten,
    /// The transaction never ended.
    Open,
    /// It never ended, and all that it did was written home.
    OpenAndFlushed,
}

#[derive(Debug, Clone)]
pub struct Plan {
    pub version: Version,
    pub form: Form,
    pub tables: Tables,
    pub end: End,
    /// The page where the log begins.
    pub first_page: usize,
    /// Newest pages that are only in the copies (one at most in version 1).
    pub only_copies: usize,
}

impl Default for Plan {
    fn default() -> Self {
        Self {
            version: Version::One,
            form: Form::New,
            tables: Tables::Opened,
            end: End::Forgotten,
            first_page: 40,
            only_copies: 1,
        }
    }
}

struct Page {
    bytes: Vec<u8>,
    last: u64,
    last_end: u64,
    has_end: bool,
    next_record: usize,
}

/// A log being written.
pub struct Writer {
    plan: Plan,
    log_bytes: usize,
    offset_bits: u32,
    lap: u64,
    at: usize,
    /// Pages in the order in which they are written, by lap and place.
    pages: BTreeMap<(u64, usize), Page>,
    last_bytes: usize,
}

fn put(bytes: &mut [u8], at: usize, data: &[u8]) {
    bytes[at..at + data.len()].copy_from_slice(data);
}

impl Writer {
    pub fn new(plan: Plan, log_bytes: usize) -> Self {
        Self {
            at: plan.first_page * PAGE + DATA_OFFSET,
            plan,
            log_bytes,
            offset_bits: usize::BITS - log_bytes.leading_zeros() - 3,
            lap: 3,
            pages: BTreeMap::new(),
            last_bytes: 0,
        }
    }

    fn first_page(&self) -> usize {
        match self.plan.version {
            Version::One => 4 * PAGE,
            Version::Two => 0x22 * PAGE,
        }
    }

    fn page(&mut self) -> &mut Page {
        let home = self.at / PAGE * PAGE;
        self.pages.entry((self.lap, home)).or_insert_with(|| Page {
            bytes: vec![0; PAGE],
            last: 0,
            last_end: 0,
            has_end: false,
            next_record: 0,
        })
    }

    fn turn_page(&mut self) {
        let next = self.at.next_multiple_of(PAGE);
        if next + PAGE > self.log_bytes {
            self.lap += 1;
            self.at = self.first_page() + DATA_OFFSET;
        } else {
            self.at = next + DATA_OFFSET;
        }
    }

    /// Appends a record; its LSN.
    pub fn append(&mut self, kind: u32, transaction: u32, links: (u64, u64), data: &[u8]) -> u64 {
        assert_eq!(data.len() % 8, 0, "NTFS pads its records");
        let lsn = self.lap << self.offset_bits | self.at as u64 >> 3;
        let mut head = vec![0; HEAD];
        put(&mut head, 0, &lsn.to_le_bytes());
        put(&mut head, 8, &links.0.to_le_bytes());
        put(&mut head, 16, &links.1.to_le_bytes());
        put(&mut head, 24, &(data.len() as u32).to_le_bytes());
        put(&mut head, 32, &kind.to_le_bytes());
        put(&mut head, 36, &transaction.to_le_bytes());
        let whole = [&head, data].concat();
        let room = PAGE - self.at % PAGE;
        head[40] = u8::from(whole.len() > room);
        let whole = [&head, data].concat();
        let mut rest = whole.as_slice();
        while !rest.is_empty() {
            let inside = self.at % PAGE;
            let (part, behind) = rest.split_at(rest.len().min(PAGE - inside));
            let page = self.page();
            put(&mut page.bytes, inside, part);
            page.last = lsn;
            if behind.is_empty() {
                page.last_end = lsn;
                page.has_end = true;
                page.next_record = inside + part.len();
            }
            self.at += part.len();
            rest = behind;
            if !rest.is_empty() || PAGE - self.at % PAGE < HEAD || self.at.is_multiple_of(PAGE) {
                self.at -= usize::from(self.at.is_multiple_of(PAGE));
                self.turn_page();
            }
        }
        self.last_bytes = data.len();
        lsn
    }

    /// A record that changes nothing, with as many bytes as wanted.
    pub fn noop(&mut self, data_bytes: usize) -> u64 {
        self.append(1, DUMPING, (0, 0), &vec![0; data_bytes])
    }

    /// The log: pages where they belong, the newest in copies, and restart pages.
    pub fn finish(self, checkpoint: u64, oldest: u64) -> Vec<u8> {
        let mut log = vec![0xFF; self.log_bytes];
        let newest = self
            .pages
            .values()
            .map(|page| page.last_end)
            .max()
            .expect("a page");
        let count = self.pages.len();
        let (first_copy, second_copy) = (2, 3);
        for (number, ((_, home), page)) in self.pages.iter().enumerate() {
            let mut bytes = page.bytes.clone();
            put(&mut bytes, 0, b"RCRD\x28\0\x09\0");
            put(&mut bytes, 8, &page.last.to_le_bytes());
            bytes[16] = u8::from(page.has_end);
            put(&mut bytes, 20, &[1, 0, 1, 0]);
            put(&mut bytes, 24, &(page.next_record as u16).to_le_bytes());
            put(&mut bytes, 32, &page.last_end.to_le_bytes());
            put(&mut bytes, 40, &[7, 0]);
            let from_end = count - 1 - number;
            let copy = match self.plan.version {
                Version::One if from_end < 2 => {
                    let mut copy = bytes.clone();
                    put(&mut copy, 8, &(*home as u64).to_le_bytes());
                    Some((
                        copy,
                        if from_end == 0 {
                            second_copy
                        } else {
                            first_copy
                        },
                    ))
                }
                Version::Two if from_end < self.plan.only_copies => {
                    let mut copy = bytes.clone();
                    put(&mut copy, 60, &(*home as u32).to_le_bytes());
                    Some((copy, self.plan.only_copies + 1 - from_end))
                }
                _ => None,
            };
            if let Some((mut copy, at)) = copy {
                protect(&mut copy);
                put(&mut log, at * PAGE, &copy);
            }
            if from_end >= self.plan.only_copies {
                protect(&mut bytes);
                put(&mut log, *home, &bytes);
            }
        }
        self.restart_pages(&mut log, newest, checkpoint, oldest);
        log
    }

    fn restart_pages(&self, log: &mut [u8], newest: u64, checkpoint: u64, oldest: u64) {
        let mut page = vec![0; PAGE];
        put(&mut page, 0, b"RSTR\x1E\0\x09\0");
        put(&mut page, 16, &(PAGE as u32).to_le_bytes());
        put(&mut page, 20, &(PAGE as u32).to_le_bytes());
        put(&mut page, 24, &[0x30, 0]);
        let version: [u8; 4] = match self.plan.version {
            Version::One => [1, 0, 1, 0],
            Version::Two => [0, 0, 2, 0],
        };
        put(&mut page, 26, &version);
        put(&mut page, 30, &[9, 0]);
        let area = 0x30;
        put(&mut page, area, &newest.to_le_bytes());
        put(&mut page, area + 8, &[1, 0, 0xFF, 0xFF, 0, 0, 0, 0]);
        put(&mut page, area + 16, &(64 - self.offset_bits).to_le_bytes());
        put(&mut page, area + 20, &[0xE0, 0, 0x40, 0]);
        put(&mut page, area + 24, &(self.log_bytes as u64).to_le_bytes());
        put(
            &mut page,
            area + 32,
            &(self.last_bytes as u32).to_le_bytes(),
        );
        put(&mut page, area + 36, &[48, 0, 64, 0, 1, 0, 0, 0]);
        let client = area + 0x40;
        put(&mut page, client, &oldest.to_le_bytes());
        put(&mut page, client + 8, &checkpoint.to_le_bytes());
        put(&mut page, client + 16, &[0xFF; 4]);
        put(
            &mut page,
            client + 28,
            &[8, 0, 0, 0, b'N', 0, b'T', 0, b'F', 0, b'S', 0],
        );
        protect(&mut page);
        put(log, 0, &page);
        put(log, PAGE, &page);
    }
}

fn padded(mut bytes: Vec<u8>) -> Vec<u8> {
    bytes.resize(bytes.len().next_multiple_of(8), 0);
    bytes
}

/// What NTFS puts into a record.
pub fn action(operation: &Operation, target: u16) -> Vec<u8> {
    let redo_at = 32 + 8 * operation.clusters.len().max(1);
    let redo = padded(operation.redo_data.clone());
    let undo_at = redo_at + redo.len();
    let mut bytes = Vec::new();
    for number in [
        usize::from(operation.redo),
        usize::from(operation.undo),
        redo_at,
        operation.redo_data.len(),
        undo_at,
        operation.undo_data.len(),
        usize::from(target),
        operation.clusters.len(),
        operation.record_offset,
        operation.attribute_offset,
        operation.block,
        operation.blocks,
    ] {
        bytes.extend_from_slice(&u16::try_from(number).expect("short").to_le_bytes());
    }
    bytes.extend_from_slice(&operation.vcn.to_le_bytes());
    for cluster in &operation.clusters {
        bytes.extend_from_slice(&cluster.to_le_bytes());
    }
    bytes.resize(redo_at, 0);
    bytes.extend_from_slice(&redo);
    bytes.extend_from_slice(&padded(operation.undo_data.clone()));
    bytes
}

/// A record of NTFS without clusters: tables, and the end of a transaction.
fn plain(redo: u16, undo: u16, target: u16, redo_data: Vec<u8>, undo_data: Vec<u8>) -> Vec<u8> {
    let operation = Operation {
        redo,
        undo,
        redo_data,
        undo_data,
        target: super::difference::table_target(),
        vcn: 0,
        clusters: Vec::new(),
        record_offset: 0,
        attribute_offset: 0,
        block: 0,
        blocks: 0,
    };
    action(&operation, target)
}

/// A table with all its entries in use.
fn table(entries: &[Vec<u8>]) -> Vec<u8> {
    let width = entries.first().map_or(8, Vec::len);
    let mut bytes = vec![0; 24];
    put(&mut bytes, 0, &(width as u16).to_le_bytes());
    put(&mut bytes, 2, &(entries.len() as u16).to_le_bytes());
    put(&mut bytes, 4, &(entries.len() as u16).to_le_bytes());
    put(&mut bytes, 12, &IN_USE.to_le_bytes());
    for entry in entries {
        bytes.extend_from_slice(entry);
    }
    bytes
}

fn open_attribute(image: &Image, target: &Target, form: Form) -> Vec<u8> {
    let record = image.record(target.record).expect("its record");
    let sequence = super::image::short(&record, 16) as u64;
    let reference = (target.record as u64 | sequence << 48).to_le_bytes();
    let index = if target.kind == super::image::INDEX_ALLOCATION {
        image.index_bytes as u32
    } else {
        0
    };
    let (mut bytes, kind_at, reference_at, index_at) = match form {
        Form::New => (vec![0; 40], 8, 16, 4),
        Form::Old => (vec![0; 44], 28, 8, 40),
    };
    put(&mut bytes, 0, &IN_USE.to_le_bytes());
    put(&mut bytes, kind_at, &target.kind.to_le_bytes());
    put(&mut bytes, reference_at, &reference);
    put(&mut bytes, index_at, &index.to_le_bytes());
    bytes
}

fn utf16(text: &str) -> Vec<u8> {
    text.encode_utf16().flat_map(u16::to_le_bytes).collect()
}

/// A log with one transaction that does all these operations upon a volume in its later state.
pub struct Story<'a> {
    writer: Writer,
    image: &'a Image,
    targets: BTreeMap<Target, u16>,
    /// Pages that were changed: the oldest LSN, and where their clusters lie.
    dirty: BTreeMap<(u16, u64), (u64, Vec<u64>)>,
    first: u64,
    last: u64,
}

impl<'a> Story<'a> {
    pub fn new(plan: Plan, image: &'a Image, log_bytes: usize, operations: &[Operation]) -> Self {
        let step = if plan.form == Form::New { 40 } else { 44 };
        let mut targets = BTreeMap::new();
        for operation in operations {
            let next = 24 + step * u16::try_from(targets.len()).expect("few");
            targets.entry(operation.target.clone()).or_insert(next);
        }
        Self {
            writer: Writer::new(plan, log_bytes),
            image,
            targets,
            dirty: BTreeMap::new(),
            first: 0,
            last: 0,
        }
    }

    /// Writes everything; the log.
    pub fn tell(mut self, operations: &[Operation]) -> Vec<u8> {
        let plan = self.writer.plan.clone();
        // A page of records from before, exactly full: whoever walks backwards must find where this one begins.
        for _ in 0..42 {
            self.writer.noop(48);
        }
        let begin = self.writer.noop(40);
        let mut checkpoint = 0;
        if plan.tables == Tables::Opened {
            checkpoint = self.checkpoint([(0, 0); 4]);
            self.open_all();
        }
        for operation in operations {
            self.operation(operation);
        }
        if plan.end == End::Forgotten {
            let data = plain(FORGET, 1, 0, Vec::new(), Vec::new());
            self.writer.append(1, TRANSACTION, (self.last, 0), &data);
        }
        if plan.tables == Tables::Dumped {
            checkpoint = self.dump();
        }
        let oldest = if plan.tables == Tables::Opened {
            checkpoint
        } else {
            begin
        };
        self.writer.finish(checkpoint, oldest)
    }

    fn operation(&mut self, operation: &Operation) {
        let target = self.targets[&operation.target];
        let data = action(operation, target);
        let lsn = self
            .writer
            .append(1, TRANSACTION, (self.last, self.last), &data);
        if self.first == 0 {
            self.first = lsn;
        }
        self.last = lsn;
        let width = (PAGE / self.image.cluster_bytes).max(1) as u64;
        for (vcn, cluster) in (operation.vcn..).zip(&operation.clusters) {
            let page = self
                .dirty
                .entry((target, vcn / width * width))
                .or_insert_with(|| (lsn, vec![0; size(width)]));
            page.1[size(vcn % width)] = *cluster;
        }
    }

    fn open_all(&mut self) {
        let form = self.writer.plan.form;
        for (target, number) in &self.targets {
            let entry = open_attribute(self.image, target, form);
            let data = plain(OPEN, 0, *number, entry, utf16(&target.name));
            self.writer.append(1, DUMPING, (0, 0), &data);
        }
    }

    /// Writes a table down: its LSN and length.
    fn table(&mut self, operation: u16, bytes: Vec<u8>) -> (u64, u32) {
        let length = bytes.len() as u32;
        let data = plain(operation, 0, 0, bytes, Vec::new());
        (self.writer.append(1, DUMPING, (0, 0), &data), length)
    }

    fn dump(&mut self) -> u64 {
        let plan = self.writer.plan.clone();
        let mut by_number: Vec<_> = self.targets.iter().collect();
        by_number.sort_by_key(|(_, number)| **number);
        let open: Vec<_> = by_number
            .iter()
            .map(|(target, _)| open_attribute(self.image, target, plan.form))
            .collect();
        let mut names = Vec::new();
        for (target, number) in by_number
            .iter()
            .filter(|(target, _)| !target.name.is_empty())
        {
            let name = utf16(&target.name);
            names.extend_from_slice(&number.to_le_bytes());
            names.extend_from_slice(&(name.len() as u16).to_le_bytes());
            names.extend_from_slice(&name);
            names.extend_from_slice(&[0; 2]);
        }
        names.extend_from_slice(&[0; 4]);
        let open = self.table(29, table(&open));
        let names = self.table(30, names);
        let mut dirty = (0, 0);
        if plan.end != End::OpenAndFlushed {
            let entries: Vec<_> = self.dirty_entries(plan.form);
            dirty = self.table(31, table(&entries));
        }
        let mut transactions = (0, 0);
        if plan.end != End::Forgotten {
            let mut entry = vec![0; 40];
            put(&mut entry, 0, &IN_USE.to_le_bytes());
            entry[4] = 1;
            put(&mut entry, 8, &self.first.to_le_bytes());
            put(&mut entry, 16, &self.last.to_le_bytes());
            put(&mut entry, 24, &self.last.to_le_bytes());
            transactions = self.table(32, table(&[entry]));
        }
        // Those who dump are no transaction of ours.
        let data = plain(FORGET, 1, 0, Vec::new(), Vec::new());
        self.writer.append(1, DUMPING, (0, 0), &data);
        self.checkpoint([open, names, dirty, transactions])
    }

    fn dirty_entries(&self, form: Form) -> Vec<Vec<u8>> {
        self.dirty
            .iter()
            .map(|((target, vcn), (oldest, clusters))| {
                let mut entry = vec![0; 16];
                put(&mut entry, 0, &IN_USE.to_le_bytes());
                put(&mut entry, 4, &u32::from(*target).to_le_bytes());
                put(&mut entry, 8, &(PAGE as u32).to_le_bytes());
                put(&mut entry, 12, &(clusters.len() as u32).to_le_bytes());
                if form == Form::Old {
                    entry.extend_from_slice(&[0; 4]);
                }
                for number in [vcn, oldest].into_iter().chain(clusters) {
                    entry.extend_from_slice(&number.to_le_bytes());
                }
                entry
            })
            .collect()
    }

    fn checkpoint(&mut self, tables: [(u64, u32); 4]) -> u64 {
        let mut bytes = vec![0; 0x70];
        bytes[0] = u8::from(self.writer.plan.form == Form::New);
        for (number, (lsn, length)) in tables.into_iter().enumerate() {
            put(&mut bytes, 16 + 8 * number, &lsn.to_le_bytes());
            put(&mut bytes, 48 + 4 * number, &length.to_le_bytes());
        }
        self.writer.append(2, 0, (0, 0), &bytes)
    }
}
