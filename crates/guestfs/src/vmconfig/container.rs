//! The HyperVStorage container of `.vmcx`, `.vmrs` and `.vsv` files.
//!
//! ```text
//!   0 header ─ 4096 header ─ 8192 object table ─► key tables, file objects, further object tables
//!   header 46: sig:4 crc:4 seq:2 version:4 data-version:4 flags:4 alignment:4 log:8 log-size:8 log-header-size:4
//!   object table: sig:4 count:4 entries of 18: kind:1 crc:4 offset:8 size:4 flags:1
//!   key table: sig:2 index:2 seq:2 crc:4 entries: kind:1 flags:1 size:4 parent-table:2 parent-offset:4 crc:4 order:4
//!              name-length:1 name NUL data
//!   replay log: sig:4 crc:4 count:4 … (34) entries of 28: target:8 size:4 offset-in-log:8 crc:4 data-crc:4
//! ```
//! Source: openvmm `support/hvs_file/FORMAT.md`; the order of a log entry's fields was found in real files, where their
//! checksums prove it. All checksums are CRC-32 (zlib) with the field itself zero.
//!
//! **Invariants.** The whole header with the newer sequence number counts. Entries whose checksum is wrong are left out
//! and told. Pending log entries are applied in memory. Objects, entries, values and depth are bounded.

#![cfg_attr(
    not(test),
    deny(
        clippy::indexing_slicing,
        clippy::arithmetic_side_effects,
        clippy::as_conversions,
        clippy::unwrap_used,
        clippy::expect_used
    )
)]

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;
use std::sync::Arc;

use block::ReadAt;

use super::{ConfigValue, MAX_DEPTH, Node, StoredConfiguration, StoredForm};
use crate::{Error, ErrorKind, Result, field};

const HEADER_SIGNATURE: u32 = 0x0128_2014;
const OBJECT_TABLE_SIGNATURE: u32 = 0x0111_0001;
const LOG_SIGNATURE: u32 = 0x0111_0003;
const KEY_TABLE_SIGNATURE: u16 = 2;
const HEADER_BYTES: usize = 46;
const OBJECT_ENTRY_BYTES: usize = 18;
const KEY_TABLE_HEADER_BYTES: usize = 10;
const KEY_ENTRY_BYTES: usize = 21;
const LOG_HEADER_BYTES: usize = 34;
const LOG_ENTRY_BYTES: usize = 28;
const FIRST_TABLE_OFFSET: u64 = 8192;
/// Limits against lies: real files have a handful of each.
const MAX_OBJECT_TABLES: usize = 4096;
const MAX_OBJECT_TABLE_BYTES: usize = 4 << 20;
const MAX_KEY_TABLE_BYTES: u32 = 1 << 20;
const MAX_KEY_BYTES: usize = 64 << 20;
const MAX_VALUE_BYTES: u32 = 16 << 20;
const MAX_VALUES_BYTES: usize = 64 << 20;
const MAX_LOG_BYTES: u64 = 32 << 20;
const DAMAGE_LIMIT: usize = 100;

/// Version of the container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FormatVersion {
    /// Before the point.
    pub major: u8,
    /// Behind it.
    pub minor: u8,
}

impl fmt::Display for FormatVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

struct Header {
    sequence: u16,
    version: FormatVersion,
    log_offset: u64,
    log_bytes: u64,
    log_header_bytes: u32,
}

/// The file with pending log entries over it.
struct Patched<'a> {
    source: &'a dyn ReadAt,
    patches: Vec<(u64, Vec<u8>)>,
}

impl Patched<'_> {
    fn read(&self, offset: u64, length: usize) -> Result<Vec<u8>> {
        let end = offset
            .checked_add(field::bytes(length))
            .ok_or_else(|| Error::corrupt(format!("{length} bytes at {offset}")))?;
        let size = self.source.size_bytes();
        let patched_end = self
            .patches
            .iter()
            .map(|(at, bytes)| at.saturating_add(field::bytes(bytes.len())))
            .max()
            .unwrap_or(0);
        if end > size.max(patched_end) {
            return Err(Error::corrupt(format!(
                "{length} bytes at {offset} of a file of {size}"
            )));
        }
        let mut bytes = vec![0; length];
        let there = usize::try_from(size.saturating_sub(offset))
            .unwrap_or(usize::MAX)
            .min(length);
        if let Some(part) = bytes.get_mut(..there).filter(|part| !part.is_empty()) {
            self.source.read_at(offset, part)?;
        }
        for (at, patch) in &self.patches {
            let from = offset.max(*at);
            let to = end.min(at.saturating_add(field::bytes(patch.len())));
            if from >= to {
                continue;
            }
            let count = usize::try_from(to.saturating_sub(from)).unwrap_or(0);
            let target = usize::try_from(from.saturating_sub(offset)).unwrap_or(usize::MAX);
            let origin = usize::try_from(from.saturating_sub(*at)).unwrap_or(usize::MAX);
            let new = field::slice(patch, origin, count)?;
            if let Some(place) = bytes.get_mut(target..target.saturating_add(count)) {
                place.copy_from_slice(new);
            }
        }
        Ok(bytes)
    }
}

/// CRC-32 of a record with its own field zero.
fn checksum(record: &[u8], field_at: usize) -> u32 {
    let (head, rest) = record.split_at(field_at.min(record.len()));
    let tail = rest.get(4..).unwrap_or(&[]);
    let mut sum = crc32fast::Hasher::new();
    sum.update(head);
    sum.update(&[0; 4]);
    sum.update(tail);
    sum.finalize()
}

/// Reads a container whole.
pub(super) fn read(source: &Arc<dyn ReadAt>) -> Result<StoredConfiguration> {
    let header = newest_header(source)?;
    let known = [(1, 1), (2, 0), (3, 0), (3, 1), (4, 0)];
    let version = header.version;
    if !known.contains(&(version.major, version.minor)) {
        return Err(Error::unsupported(format!(
            "container version {version}: 1.1 to 4.0 are read"
        )));
    }
    let mut damage = Vec::new();
    let file = Patched {
        source,
        patches: pending(source, &header, &mut damage)?,
    };
    let tables = key_tables(&file, version, &mut damage)?;
    let tree = build(&file, &tables, version, &mut damage);
    if tree.entries.is_empty() {
        return Err(Error::corrupt(format!(
            "a container without any value{}",
            damage
                .first()
                .map(|why| format!(" ({why})"))
                .unwrap_or_default()
        )));
    }
    Ok(StoredConfiguration {
        form: StoredForm::Container(version),
        tree,
        replayed_entries: file.patches.len(),
        damage,
    })
}

fn note(damage: &mut Vec<String>, what: impl Into<String>) {
    if damage.len() < DAMAGE_LIMIT {
        damage.push(what.into());
    }
}

fn newest_header(source: &Arc<dyn ReadAt>) -> Result<Header> {
    let mut found: Option<Header> = None;
    let mut trouble = String::from("no header");
    for offset in [0_u64, 4096] {
        let mut bytes = vec![0; HEADER_BYTES];
        if source.size_bytes() < offset.saturating_add(field::bytes(HEADER_BYTES)) {
            continue;
        }
        source.read_at(offset, &mut bytes)?;
        if field::u32_le(&bytes, 0)? != HEADER_SIGNATURE {
            trouble = format!("header at {offset}: no HyperVStorage signature");
            continue;
        }
        if !field::sum_holds(checksum(&bytes, 4), field::u32_le(&bytes, 4)?) {
            trouble = format!("header at {offset}: wrong checksum");
            continue;
        }
        let [minor, major, above @ ..] = field::u32_le(&bytes, 10)?.to_le_bytes();
        if above != [0, 0] {
            return Err(Error::unsupported(format!(
                "header at {offset}: container version {major}.{minor} and {above:?}"
            )));
        }
        let header = Header {
            sequence: field::u16_le(&bytes, 8)?,
            version: FormatVersion { major, minor },
            log_offset: field::u64_le(&bytes, 26)?,
            log_bytes: field::u64_le(&bytes, 34)?,
            log_header_bytes: field::u32_le(&bytes, 42)?,
        };
        // The number is short and wraps.
        let is_newer = found.as_ref().is_none_or(|other| {
            let ahead = header.sequence.wrapping_sub(other.sequence);
            (1..0x8000).contains(&ahead)
        });
        if is_newer {
            found = Some(header);
        }
    }
    found.ok_or_else(|| Error::corrupt(trouble))
}

/// What a commit had logged and may not have written: all or, when its log is torn, nothing.
fn pending(
    source: &Arc<dyn ReadAt>,
    header: &Header,
    damage: &mut Vec<String>,
) -> Result<Vec<(u64, Vec<u8>)>> {
    if header.log_bytes > MAX_LOG_BYTES {
        return Err(Error::new(
            ErrorKind::Limit,
            format!("replay log of {} bytes", header.log_bytes),
        ));
    }
    let file = Patched {
        source,
        patches: Vec::new(),
    };
    let length = usize::try_from(header.log_bytes).unwrap_or(0);
    let log = match file.read(header.log_offset, length) {
        Ok(log) if length >= LOG_HEADER_BYTES => log,
        Ok(_) => {
            note(damage, "replay log: shorter than its header");
            return Ok(Vec::new());
        }
        Err(error) => {
            note(damage, format!("replay log: {error}"));
            return Ok(Vec::new());
        }
    };
    let head = field::slice(&log, 0, LOG_HEADER_BYTES)?;
    if field::u32_le(head, 0)? != LOG_SIGNATURE
        || !field::sum_holds(checksum(head, 4), field::u32_le(head, 4)?)
    {
        note(damage, "replay log: damaged header");
        return Ok(Vec::new());
    }
    let count = usize::try_from(field::u32_le(head, 8)?).unwrap_or(usize::MAX);
    let most = usize::try_from(header.log_header_bytes)
        .unwrap_or(usize::MAX)
        .min(log.len())
        .saturating_sub(LOG_HEADER_BYTES)
        .checked_div(LOG_ENTRY_BYTES)
        .unwrap_or(0);
    if count > most {
        note(
            damage,
            format!("replay log: {count} entries of at most {most}"),
        );
        return Ok(Vec::new());
    }
    let mut patches = Vec::new();
    let mut total = 0_usize;
    for index in 0..count {
        match log_entry(&log, index) {
            Ok(patch) => {
                total = total.saturating_add(patch.1.len());
                patches.push(patch);
            }
            Err(error) => {
                // A commit whose log is not whole was never begun in place.
                note(
                    damage,
                    format!("replay log, entry {index}: {error}; none is applied"),
                );
                return Ok(Vec::new());
            }
        }
        if total > MAX_VALUES_BYTES {
            return Err(Error::new(ErrorKind::Limit, "replay log: too much data"));
        }
    }
    Ok(patches)
}

fn log_entry(log: &[u8], index: usize) -> Result<(u64, Vec<u8>)> {
    let at = LOG_HEADER_BYTES.saturating_add(index.saturating_mul(LOG_ENTRY_BYTES));
    let entry = field::slice(log, at, LOG_ENTRY_BYTES)?;
    if !field::sum_holds(checksum(entry, 20), field::u32_le(entry, 20)?) {
        return Err(Error::corrupt("wrong checksum"));
    }
    let target = field::u64_le(entry, 0)?;
    let size = usize::try_from(field::u32_le(entry, 8)?).unwrap_or(usize::MAX);
    let offset = usize::try_from(field::u64_le(entry, 12)?).unwrap_or(usize::MAX);
    let data = field::slice(log, offset, size)?;
    if !field::sum_holds(crc32fast::hash(data), field::u32_le(entry, 24)?) {
        return Err(Error::corrupt("wrong checksum of its data"));
    }
    Ok((target, data.to_vec()))
}

/// Key tables by index, the newest of each.
fn key_tables(
    file: &Patched<'_>,
    version: FormatVersion,
    damage: &mut Vec<String>,
) -> Result<BTreeMap<u16, Vec<u8>>> {
    let mut tables: BTreeMap<u16, (u16, Vec<u8>)> = BTreeMap::new();
    let mut waiting = vec![FIRST_TABLE_OFFSET];
    let mut seen = HashSet::new();
    let mut key_bytes = 0_usize;
    while let Some(offset) = waiting.pop() {
        if !seen.insert(offset) || seen.len() > MAX_OBJECT_TABLES {
            note(
                damage,
                format!("object table at {offset}: named twice, or too many"),
            );
            continue;
        }
        let entries = match object_table(file, offset) {
            Ok(entries) => entries,
            Err(error) if offset == FIRST_TABLE_OFFSET => return Err(error),
            Err(error) => {
                note(damage, error.to_string());
                continue;
            }
        };
        for entry in entries.chunks_exact(OBJECT_ENTRY_BYTES) {
            let kind = field::u8_at(entry, 0)?;
            if !matches!(kind, 1 | 2) {
                continue;
            }
            let at = field::u64_le(entry, 5)?;
            // Up to 3.0 this sum was computed over something else.
            let is_checked = (version.major, version.minor) >= (3, 1);
            if is_checked && !field::sum_holds(checksum(entry, 1), field::u32_le(entry, 1)?) {
                note(
                    damage,
                    format!("entry of the object table at {offset}: wrong checksum"),
                );
                continue;
            }
            if kind == 1 {
                waiting.push(at);
                continue;
            }
            let size = field::u32_le(entry, 13)?;
            match key_table(file, at, size) {
                Ok((index, sequence, bytes)) => {
                    key_bytes = key_bytes.saturating_add(bytes.len());
                    if key_bytes > MAX_KEY_BYTES {
                        return Err(Error::new(ErrorKind::Limit, "key tables: too much data"));
                    }
                    let old = tables.get(&index).map(|(old, _)| *old);
                    if old.is_none_or(|old| sequence.wrapping_sub(old) < 0x8000) {
                        tables.insert(index, (sequence, bytes));
                    }
                }
                Err(error) => note(
                    damage,
                    error.within(format!("key table at {at}")).to_string(),
                ),
            }
        }
    }
    Ok(tables
        .into_iter()
        .map(|(index, (_, bytes))| (index, bytes))
        .collect())
}

fn object_table(file: &Patched<'_>, offset: u64) -> Result<Vec<u8>> {
    let place = || format!("object table at {offset}");
    let head = file
        .read(offset, 8)
        .map_err(|error| error.within(place()))?;
    if field::u32_le(&head, 0)? != OBJECT_TABLE_SIGNATURE {
        return Err(Error::corrupt(format!("{}: no signature", place())));
    }
    let count = usize::try_from(field::u32_le(&head, 4)?).unwrap_or(usize::MAX);
    let bytes = count.saturating_mul(OBJECT_ENTRY_BYTES);
    if bytes > MAX_OBJECT_TABLE_BYTES {
        return Err(Error::new(
            ErrorKind::Limit,
            format!("{}: {count} entries", place()),
        ));
    }
    file.read(offset.saturating_add(8), bytes)
        .map_err(|error| error.within(place()))
}

fn key_table(file: &Patched<'_>, offset: u64, size: u32) -> Result<(u16, u16, Vec<u8>)> {
    if size > MAX_KEY_TABLE_BYTES {
        return Err(Error::new(ErrorKind::Limit, format!("{size} bytes")));
    }
    let bytes = file.read(offset, usize::try_from(size).unwrap_or(0))?;
    let head = field::slice(&bytes, 0, KEY_TABLE_HEADER_BYTES)?;
    if field::u16_le(head, 0)? != KEY_TABLE_SIGNATURE {
        return Err(Error::corrupt("no signature"));
    }
    if !field::sum_holds(checksum(head, 6), field::u32_le(head, 6)?) {
        return Err(Error::corrupt("wrong checksum"));
    }
    Ok((field::u16_le(head, 2)?, field::u16_le(head, 4)?, bytes))
}

/// Where a key lies: its table, and the place in it. (0, 0) is the root.
type Place = (u16, u32);
/// The children of each place, by order of insertion and then by where they lie.
type Children = BTreeMap<Place, Vec<((u32, u16, u32), Place)>>;

/// A key before it hangs in the tree.
struct Entry {
    parent: Place,
    order: u32,
    name: String,
    /// `None`: a node.
    value: Option<ConfigValue>,
}

fn build(
    file: &Patched<'_>,
    tables: &BTreeMap<u16, Vec<u8>>,
    version: FormatVersion,
    damage: &mut Vec<String>,
) -> Node {
    let mut entries: HashMap<Place, Entry> = HashMap::new();
    let mut children: Children = BTreeMap::new();
    let mut budget = MAX_VALUES_BYTES;
    for (index, table) in tables {
        let mut at = KEY_TABLE_HEADER_BYTES;
        while at.saturating_add(KEY_ENTRY_BYTES) < table.len() {
            let place = (*index, u32::try_from(at).unwrap_or(u32::MAX));
            let size = match entry_at(file, table, at, &mut budget) {
                Ok((size, Some(entry))) => {
                    // Before 4.0 entries have no order of their own.
                    let order = if version.major >= 4 { entry.order } else { 0 };
                    children
                        .entry(entry.parent)
                        .or_default()
                        .push(((order, place.0, place.1), place));
                    entries.insert(place, entry);
                    size
                }
                Ok((size, None)) => size,
                Err((size, error)) => {
                    let place = format!("key table {index}, entry at {at}");
                    note(damage, error.within(place).to_string());
                    size
                }
            };
            if size < KEY_ENTRY_BYTES {
                break;
            }
            at = at.saturating_add(size);
        }
    }
    for list in children.values_mut() {
        list.sort_unstable();
    }
    let tree = hang(&mut entries, &children);
    if !entries.is_empty() {
        note(
            damage,
            format!(
                "{} keys hang nowhere, in a circle, or too deep",
                entries.len()
            ),
        );
    }
    tree
}

/// Hangs all entries that can be reached from the root, depth first without recursion.
fn hang(entries: &mut HashMap<Place, Entry>, children: &Children) -> Node {
    struct Open<'a> {
        name: String,
        node: Node,
        rest: std::slice::Iter<'a, ((u32, u16, u32), Place)>,
    }
    let of = |place: Place| children.get(&place).map_or(&[][..], Vec::as_slice).iter();
    let mut path = vec![Open {
        name: String::new(),
        node: Node::default(),
        rest: of((0, 0)),
    }];
    loop {
        let depth = path.len();
        let Some(top) = path.last_mut() else {
            return Node::default();
        };
        match top.rest.next() {
            Some((_, place)) => {
                let Some(entry) = entries.remove(place) else {
                    continue;
                };
                match entry.value {
                    Some(value) => top.node.put(entry.name, value),
                    None if depth > MAX_DEPTH => {
                        entries.insert(*place, entry);
                    }
                    None => path.push(Open {
                        name: entry.name,
                        node: Node::default(),
                        rest: of(*place),
                    }),
                }
            }
            None => {
                let Some(done) = path.pop() else {
                    return Node::default();
                };
                let Some(above) = path.last_mut() else {
                    return done.node;
                };
                above.node.put(done.name, ConfigValue::Node(done.node));
            }
        }
    }
}

type EntryResult = std::result::Result<(usize, Option<Entry>), (usize, Error)>;

/// The entry at a place, and how long it is even when it is damaged; 0: nobody knows.
fn entry_at(file: &Patched<'_>, table: &[u8], at: usize, budget: &mut usize) -> EntryResult {
    let unknown = |error| (0, error);
    let size = field::u32_le(table, at.saturating_add(2)).map_err(unknown)?;
    let size = usize::try_from(size).unwrap_or(usize::MAX);
    let bytes = field::slice(table, at, size).map_err(unknown)?;
    let kind = field::u8_at(bytes, 0).map_err(unknown)?;
    if kind == 1 || kind == 0 {
        return Ok((size, None));
    }
    parse_entry(file, bytes, kind, budget)
        .map(|entry| (size, Some(entry)))
        .map_err(|error| (size, error))
}

fn parse_entry(file: &Patched<'_>, bytes: &[u8], kind: u8, budget: &mut usize) -> Result<Entry> {
    const POINTS_TO_FILE_OBJECT: u8 = 1;
    let is_pointer = field::u8_at(bytes, 1)? & POINTS_TO_FILE_OBJECT != 0;
    let name_length = usize::from(field::u8_at(bytes, 20)?);
    let name = field::slice(bytes, KEY_ENTRY_BYTES, name_length)?;
    let data_at = KEY_ENTRY_BYTES.saturating_add(name_length);
    let length: usize = match (kind, is_pointer) {
        (_, true) | (9, _) => 12,
        (3..=5, _) => 8,
        (8, _) => 4,
        (6 | 7, _) => {
            let length = field::u32_le(bytes, data_at)?;
            usize::try_from(length)
                .unwrap_or(usize::MAX)
                .saturating_add(4)
        }
        (other, _) => return Err(Error::unsupported(format!("value of kind {other}"))),
    };
    let data = field::slice(bytes, data_at, length)?;
    let meant = field::slice(bytes, 0, data_at.saturating_add(length))?;
    if !field::sum_holds(checksum(meant, 12), field::u32_le(bytes, 12)?) {
        return Err(Error::corrupt("wrong checksum"));
    }
    let name = name.strip_suffix(b"\0").unwrap_or(name);
    let bytes_of = |skip: usize, budget: &mut usize| -> Result<Vec<u8>> {
        if !is_pointer {
            return Ok(data.get(skip..).unwrap_or(&[]).to_vec());
        }
        let size = field::u32_le(data, 0)?;
        let wanted = usize::try_from(size).unwrap_or(usize::MAX);
        if size > MAX_VALUE_BYTES || wanted > *budget {
            return Err(Error::new(
                ErrorKind::Limit,
                format!("value of {size} bytes"),
            ));
        }
        *budget = budget.saturating_sub(wanted);
        file.read(field::u64_le(data, 4)?, wanted)
    };
    let value = match kind {
        3 => Some(ConfigValue::Integer(field::i64_le(
            &bytes_of(0, budget)?,
            0,
        )?)),
        4 => Some(ConfigValue::Unsigned(field::u64_le(
            &bytes_of(0, budget)?,
            0,
        )?)),
        5 => Some(ConfigValue::Double(f64::from_bits(field::u64_le(
            &bytes_of(0, budget)?,
            0,
        )?))),
        6 => Some(ConfigValue::Text(text_of(&bytes_of(4, budget)?))),
        7 => Some(ConfigValue::Bytes(bytes_of(4, budget)?)),
        8 => Some(ConfigValue::Bool(
            field::u32_le(&bytes_of(0, budget)?, 0)? != 0,
        )),
        _ => None,
    };
    Ok(Entry {
        parent: (field::u16_le(bytes, 6)?, field::u32_le(bytes, 8)?),
        order: field::u32_le(bytes, 16)?,
        name: String::from_utf8_lossy(name).into_owned(),
        value,
    })
}

/// UTF-16 up to its closing NUL.
fn text_of(bytes: &[u8]) -> String {
    let units: Vec<u16> = bytes
        .chunks_exact(2)
        .filter_map(|pair| pair.try_into().ok().map(u16::from_le_bytes))
        .collect();
    let text = String::from_utf16_lossy(&units);
    text.trim_end_matches('\0').to_owned()
}
