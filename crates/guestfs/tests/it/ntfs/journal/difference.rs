//! What NTFS would have logged on its way from one state of a volume to another: found by comparing two images.
//!
//! ```text
//!  file records ─► new, gone, attributes made, deleted, values, mapping pairs, sizes, entries of index roots
//!  index blocks ─► new ones as a whole, entries added, deleted, updated
//!  bitmaps      ─► runs of bits set and cleared
//!  everything else (contents of files) is not logged: it is as in the later state
//! ```

use super::image::{
    BITMAP, DATA, FILE_NAME, INDEX_ALLOCATION, INDEX_ROOT, Image, Stream, attributes, is_in_use,
    is_resident, name, short, size, unprotect, value, word,
};

pub const NOOP: u16 = 0;
pub const INITIALIZE: u16 = 2;
pub const DEALLOCATE: u16 = 3;
const CREATE: u16 = 5;
const DELETE: u16 = 6;
const RESIDENT_VALUE: u16 = 7;
pub const NONRESIDENT_VALUE: u16 = 8;
const MAPPING_PAIRS: u16 = 9;
const SIZES: u16 = 11;
const SET_BITS: u16 = 21;
const CLEAR_BITS: u16 = 22;

/// Add, delete, child, name: in a root, then in a block.
const ENTRY_OPERATIONS: [[u16; 4]; 2] = [[12, 13, 17, 19], [14, 15, 18, 20]];

/// The attribute that an operation is for.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Target {
    pub record: usize,
    pub kind: u32,
    pub name: String,
}

/// One operation as it stands in a record of the log.
#[derive(Debug, Clone)]
pub struct Operation {
    pub redo: u16,
    pub undo: u16,
    pub redo_data: Vec<u8>,
    pub undo_data: Vec<u8>,
    pub target: Target,
    pub vcn: u64,
    pub clusters: Vec<u64>,
    pub record_offset: usize,
    pub attribute_offset: usize,
    /// In the first cluster, in blocks of 512.
    pub block: usize,
    /// Blocks of 512 of the structure.
    pub blocks: usize,
}

/// An edit before its place on the volume is known.
struct Edit {
    redo: u16,
    undo: u16,
    redo_data: Vec<u8>,
    undo_data: Vec<u8>,
    record_offset: usize,
    attribute_offset: usize,
}

pub struct Difference {
    pub operations: Vec<Operation>,
    /// The later state, with everything that is logged as it was before.
    pub crashed: Image,
}

fn placed(
    image: &Image,
    target: &Target,
    stream: &Stream,
    range: (usize, usize),
    edit: Edit,
) -> Operation {
    let (offset, length) = range;
    let first = offset / image.cluster_bytes;
    let last = (offset + length - 1) / image.cluster_bytes;
    Operation {
        redo: edit.redo,
        undo: edit.undo,
        redo_data: edit.redo_data,
        undo_data: edit.undo_data,
        target: target.clone(),
        vcn: first as u64,
        clusters: stream.clusters[first..=last].to_vec(),
        record_offset: edit.record_offset,
        attribute_offset: edit.attribute_offset,
        block: offset % image.cluster_bytes / 512,
        blocks: match target.kind {
            INDEX_ALLOCATION => image.index_bytes / 512,
            _ if target.record == 0 && target.kind == DATA => image.record_bytes / 512,
            _ => 0,
        },
    }
}

/// Everything that leads from one image to the other.
pub fn between(before: &Image, after: &Image) -> Difference {
    let mut operations = Vec::new();
    let mut crashed = after.clone();
    records(before, after, &mut operations, &mut crashed);
    for number in 0..after.count() {
        let Some(record) = after.record(number).filter(|record| is_in_use(record)) else {
            continue;
        };
        for (_, attribute) in attributes(&record) {
            let target = Target {
                record: number,
                kind: word(attribute, 0),
                name: name(attribute),
            };
            if is_resident(attribute) {
                continue;
            }
            match target.kind {
                INDEX_ALLOCATION => {
                    index_blocks(before, after, &target, &mut operations, &mut crashed);
                }
                BITMAP => bitmap(before, after, &target, &mut operations, &mut crashed),
                DATA if number == 6 => {
                    bitmap(before, after, &target, &mut operations, &mut crashed);
                }
                DATA if target.name == "$SDS" => {
                    bytes(before, after, &target, &mut operations, &mut crashed);
                }
                _ => {}
            }
        }
    }
    // The mirror is written with the table.
    let mirror = after.stream(1, DATA, "").expect("the mirror");
    let old = before.read(&mirror, 0..mirror.size_bytes);
    crashed.write(&mirror, 0, &old);
    Difference {
        operations,
        crashed,
    }
}

/// The target where file records are changed.
pub fn table_target() -> Target {
    Target {
        record: 0,
        kind: DATA,
        name: String::new(),
    }
}

fn records(before: &Image, after: &Image, operations: &mut Vec<Operation>, crashed: &mut Image) {
    let table = after.table();
    let record_bytes = after.record_bytes;
    for number in 0..after.count() {
        let range = (number * record_bytes, record_bytes);
        let old = before.record(number);
        let new = after.record(number);
        let edits = record_edits(old.clone(), new);
        operations.extend(
            edits
                .into_iter()
                .map(|edit| placed(after, &table_target(), &table, range, edit)),
        );
    }
    for offset in (0..table.clusters.len() * after.cluster_bytes).step_by(512) {
        let place = after.place(&table, offset);
        crashed.bytes[place..place + 512].copy_from_slice(&before.bytes[place..place + 512]);
    }
}

fn record_edits(old: Option<Vec<u8>>, new: Option<Vec<u8>>) -> Vec<Edit> {
    let old = old.filter(|record| is_in_use(record));
    let new = new.filter(|record| is_in_use(record));
    let whole = |redo, undo, redo_data: &[u8], undo_data: &[u8]| Edit {
        redo,
        undo,
        redo_data: redo_data.to_vec(),
        undo_data: undo_data.to_vec(),
        record_offset: 0,
        attribute_offset: 0,
    };
    if let (Some(old), Some(new)) = (&old, &new)
        && short(old, 16) == short(new, 16)
    {
        return attribute_edits(old.clone(), new);
    }
    // Another file took its place, if there is one on both sides.
    let mut edits = Vec::new();
    if let Some(old) = old {
        edits.push(whole(DEALLOCATE, INITIALIZE, &[], &old[..24]));
    }
    if let Some(new) = new {
        let used = size(word(&new, 24));
        edits.push(whole(NOOP, DEALLOCATE, &[], &[]));
        edits.push(whole(INITIALIZE, NOOP, &new[..used], &[]));
    }
    edits
}

/// What makes an attribute the same one.
fn key(attribute: &[u8]) -> (u32, String, Vec<u8>) {
    let kind = word(attribute, 0);
    let own = if kind == FILE_NAME {
        let value = &attribute[value(attribute)];
        [&value[..8], &value[64..]].concat()
    } else {
        Vec::new()
    };
    (kind, name(attribute), own)
}

fn attribute_edits(mut current: Vec<u8>, wanted: &[u8]) -> Vec<Edit> {
    let mut edits = Vec::new();
    let keys: Vec<_> = attributes(wanted)
        .iter()
        .map(|(_, attribute)| key(attribute))
        .collect();
    while let Some((at, attribute)) = attributes(&current)
        .into_iter()
        .find(|(_, attribute)| !keys.contains(&key(attribute)))
    {
        edits.push(whole_attribute(DELETE, CREATE, &[], attribute, at));
        let end = at + attribute.len();
        current.drain(at..end);
    }
    for (index, (_, attribute)) in attributes(wanted).into_iter().enumerate() {
        let there = attributes(&current)
            .get(index)
            .map(|(at, there)| (*at, there.to_vec()));
        let at = there.as_ref().map_or_else(
            || {
                attributes(&current)
                    .last()
                    .map_or(56, |(at, last)| at + last.len())
            },
            |(at, _)| *at,
        );
        let there = there
            .map(|(_, there)| there)
            .filter(|there| key(there) == key(attribute));
        if let Some(there) = &there {
            current.drain(at..at + there.len());
            if is_resident(there) == is_resident(attribute) {
                edits.extend(attribute_edit(there, attribute, at));
                current.splice(at..at, attribute.iter().copied());
                continue;
            }
            edits.push(whole_attribute(DELETE, CREATE, &[], there, at));
        }
        // Windows numbers attributes as they come.
        let mut numbered = attribute.to_vec();
        let number = short(&current, 40);
        numbered[14..16].copy_from_slice(&current[40..42]);
        current[40..42].copy_from_slice(&(number as u16 + 1).to_le_bytes());
        edits.push(whole_attribute(CREATE, DELETE, &numbered, &[], at));
        current.splice(at..at, numbered);
    }
    edits
}

fn whole_attribute(redo: u16, undo: u16, redo_data: &[u8], undo_data: &[u8], at: usize) -> Edit {
    Edit {
        redo,
        undo,
        redo_data: redo_data.to_vec(),
        undo_data: undo_data.to_vec(),
        record_offset: at,
        attribute_offset: 0,
    }
}

fn attribute_edit(old: &[u8], new: &[u8], at: usize) -> Vec<Edit> {
    let edit = |operation, inside, redo: &[u8], undo: &[u8]| Edit {
        redo: operation,
        undo: operation,
        redo_data: redo.to_vec(),
        undo_data: undo.to_vec(),
        record_offset: at,
        attribute_offset: inside,
    };
    match (is_resident(old), is_resident(new)) {
        (true, true) => {
            if word(new, 0) == INDEX_ROOT
                && let Some(edits) = entry_edits(old, new, value(new).start + 16, 0)
            {
                return edits
                    .into_iter()
                    .map(|edit| Edit {
                        record_offset: at,
                        ..edit
                    })
                    .collect();
            }
            let (old_value, new_value) = (&old[value(old)], &new[value(new)]);
            let start = value(new).start;
            if old_value.len() != new_value.len() {
                return vec![edit(RESIDENT_VALUE, start, new_value, old_value)];
            }
            let first = (0..old_value.len()).find(|at| old_value[*at] != new_value[*at]);
            let last = (0..old_value.len()).rfind(|at| old_value[*at] != new_value[*at]);
            let (Some(first), Some(last)) = (first, last) else {
                return Vec::new();
            };
            let range = first..=last;
            vec![edit(
                RESIDENT_VALUE,
                start + first,
                &new_value[range.clone()],
                &old_value[range],
            )]
        }
        (false, false) => {
            let (old_pairs, new_pairs) = (short(old, 32), short(new, 32));
            let mut edits = Vec::new();
            let sizes = |bytes: &[u8]| [&bytes[40..48], &bytes[56..64], &bytes[48..56]].concat();
            if sizes(old) != sizes(new) {
                edits.push(edit(SIZES, 0, &sizes(new), &sizes(old)));
            }
            // Behind the sizes: `ntfsrecover` checks pairs against them.
            if old[old_pairs..] != new[new_pairs..] {
                edits.push(edit(
                    MAPPING_PAIRS,
                    new_pairs,
                    &new[new_pairs..],
                    &old[old_pairs..],
                ));
            }
            edits
        }
        _ => panic!("an attribute in another form is another one"),
    }
}

/// Entries of an index with its head at a place, but for the last one, and that.
fn entries(bytes: &[u8], head: usize) -> (Vec<Vec<u8>>, Vec<u8>) {
    let mut at = head + size(word(bytes, head));
    let mut found = Vec::new();
    loop {
        let entry = bytes[at..at + short(bytes, at + 8)].to_vec();
        if short(&entry, 12) & 2 != 0 {
            return (found, entry);
        }
        at += entry.len();
        found.push(entry);
    }
}

/// Without what is updated in place: times and sizes of a file name, and the block below.
fn identity(entry: &[u8]) -> Vec<u8> {
    let end = entry.len() - if short(entry, 12) & 1 != 0 { 8 } else { 0 };
    if end > 82 {
        [&entry[..24], &entry[80..end]].concat()
    } else {
        entry[..end].to_vec()
    }
}

/// How entries change; `None` when more than entries does. `place` is 0 for a root and 1 for a block.
fn entry_edits(old: &[u8], new: &[u8], head: usize, place: usize) -> Option<Vec<Edit>> {
    let [add, delete, child, copy] = ENTRY_OPERATIONS[place];
    let (mut current, old_last) = entries(old, head);
    let (wanted, new_last) = entries(new, head);
    if old_last != new_last {
        return None;
    }
    let first = head + size(word(new, head));
    let offset =
        |list: &[Vec<u8>], index: usize| first + list[..index].iter().map(Vec::len).sum::<usize>();
    let edit = |redo, undo, at, redo_data: &[u8], undo_data: &[u8]| Edit {
        redo,
        undo,
        redo_data: redo_data.to_vec(),
        undo_data: undo_data.to_vec(),
        record_offset: 0,
        attribute_offset: at,
    };
    let mut edits = Vec::new();
    let identities: Vec<_> = wanted.iter().map(|entry| identity(entry)).collect();
    while let Some(index) = current
        .iter()
        .position(|entry| !identities.contains(&identity(entry)))
    {
        edits.push(edit(
            delete,
            add,
            offset(&current, index),
            &[],
            &current[index],
        ));
        current.remove(index);
    }
    for (index, entry) in wanted.iter().enumerate() {
        let at = offset(&current, index);
        if current.get(index).map(|there| identity(there)) != Some(identity(entry)) {
            edits.push(edit(add, delete, at, entry, &[]));
            current.insert(index, entry.clone());
            continue;
        }
        let there = &current[index];
        if there.len() > 82 && there[24..80] != entry[24..80] {
            edits.push(edit(copy, copy, at, &entry[24..80], &there[24..80]));
        }
        let end = there.len() - 8;
        if there[end..] != entry[end..] && short(there, 12) & 1 != 0 {
            edits.push(edit(child, child, at, &entry[end..], &there[end..]));
        }
        current[index] = entry.clone();
    }
    (current == wanted).then_some(edits)
}

fn index_blocks(
    before: &Image,
    after: &Image,
    target: &Target,
    operations: &mut Vec<Operation>,
    crashed: &mut Image,
) {
    let stream = after
        .stream(target.record, target.kind, &target.name)
        .expect("it is there");
    let old_stream = before.stream(target.record, target.kind, &target.name);
    let length = after.index_bytes;
    for offset in (0..stream.size_bytes).step_by(length) {
        let read = |image: &Image, stream: &Stream| {
            let mut block = image.read(stream, offset..offset + length);
            block.starts_with(b"INDX").then(|| {
                unprotect(&mut block);
                block
            })
        };
        let Some(new) = read(after, &stream) else {
            continue;
        };
        let old = old_stream
            .as_ref()
            .filter(|stream| offset < stream.size_bytes)
            .and_then(|stream| read(before, stream));
        let whole = |undo, undo_data: &[u8]| Edit {
            redo: NONRESIDENT_VALUE,
            undo,
            redo_data: new.clone(),
            undo_data: undo_data.to_vec(),
            record_offset: 0,
            attribute_offset: 0,
        };
        let edits = match &old {
            None => vec![whole(NOOP, &[])],
            Some(old) if *old == new => Vec::new(),
            Some(old) => {
                entry_edits(old, &new, 24, 1).unwrap_or_else(|| vec![whole(NONRESIDENT_VALUE, old)])
            }
        };
        for edit in edits {
            operations.push(placed(after, target, &stream, (offset, length), edit));
        }
        for sector in (offset..offset + length).step_by(512) {
            let place = after.place(&stream, sector);
            crashed.bytes[place..place + 512].copy_from_slice(&before.bytes[place..place + 512]);
        }
    }
}

/// Both states of a stream of which each cluster is compared where it lies in the later one.
fn clusters_of(
    before: &Image,
    after: &Image,
    target: &Target,
    crashed: &mut Image,
) -> Vec<(usize, Vec<u8>, Vec<u8>, Stream)> {
    let stream = after
        .stream(target.record, target.kind, &target.name)
        .expect("it is there");
    let width = after.cluster_bytes;
    (0..stream.clusters.len())
        .filter(|index| stream.clusters[*index] != 0)
        .map(|index| {
            let place = after.place(&stream, index * width);
            let old = before.bytes[place..place + width].to_vec();
            let new = after.bytes[place..place + width].to_vec();
            crashed.bytes[place..place + width].copy_from_slice(&old);
            (index * width, old, new, stream.clone())
        })
        .collect()
}

fn bitmap(
    before: &Image,
    after: &Image,
    target: &Target,
    operations: &mut Vec<Operation>,
    crashed: &mut Image,
) {
    for (offset, old, new, stream) in clusters_of(before, after, target, crashed) {
        let bit = |bytes: &[u8], number: usize| bytes[number / 8] >> (number % 8) & 1;
        let change = |number: usize| match (bit(&old, number), bit(&new, number)) {
            (0, 1) => SET_BITS,
            (1, 0) => CLEAR_BITS,
            _ => NOOP,
        };
        let mut number = 0;
        while number < old.len() * 8 {
            let redo = change(number);
            let count = (number..old.len() * 8)
                .take_while(|next| change(*next) == redo)
                .count();
            if redo != NOOP {
                let range = [(number as u32).to_le_bytes(), (count as u32).to_le_bytes()].concat();
                let edit = Edit {
                    redo,
                    undo: SET_BITS + CLEAR_BITS - redo,
                    redo_data: range.clone(),
                    undo_data: range,
                    record_offset: 0,
                    attribute_offset: 0,
                };
                operations.push(placed(after, target, &stream, (offset, old.len()), edit));
            }
            number += count;
        }
    }
}

fn bytes(
    before: &Image,
    after: &Image,
    target: &Target,
    operations: &mut Vec<Operation>,
    crashed: &mut Image,
) {
    for (offset, old, new, stream) in clusters_of(before, after, target, crashed) {
        for at in (0..old.len()).step_by(512) {
            if old[at..at + 512] == new[at..at + 512] {
                continue;
            }
            let edit = Edit {
                redo: NONRESIDENT_VALUE,
                undo: NONRESIDENT_VALUE,
                redo_data: new[at..at + 512].to_vec(),
                undo_data: old[at..at + 512].to_vec(),
                record_offset: at,
                attribute_offset: 0,
            };
            operations.push(placed(after, target, &stream, (offset, old.len()), edit));
        }
    }
}
