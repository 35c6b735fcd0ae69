//! Writing the HyperVStorage container of `.vmcx` and `.vmrs` files.
//!
//! ```text
//!   0 header ─ 4096 header ─ 8192 object table ─ 12288 replay log, empty ─ 16384 key table
//!   header 46: sig:4 crc:4 seq:2 version:4 data-version:4 flags:4 alignment:4 log:8 log-size:8 log-header-size:4
//!   object table: sig:4 count:4 entries of 18: kind:1 crc:4 offset:8 size:4 flags:1
//!   key table: sig:2 index:2 seq:2 crc:4 entries: kind:1 flags:1 size:4 parent-table:2 parent-offset:4 crc:4 order:4
//!              name-length:1 name NUL data
//! ```
//! Source: openvmm `support/hvs_file/FORMAT.md`. Checksums are CRC-32 with the field itself zero. Version 4.0, one key table.
//!
//! **Invariant.** What is written here is what `guestfs` reads; a test holds the two together.

use guestfs::vmconfig::{ConfigValue, Node};

use crate::{Error, Result};

const HEADER_SIGNATURE: u32 = 0x0128_2014;
const OBJECT_TABLE_SIGNATURE: u32 = 0x0111_0001;
const LOG_SIGNATURE: u32 = 0x0111_0003;
const PAGE_BYTES: usize = 4096;
const OBJECT_TABLE_AT: usize = 8192;
const LOG_AT: usize = 12288;
const KEY_TABLE_AT: usize = 16384;
const KEY_TABLE_INDEX: u16 = 1;
const MAX_KEY_TABLE_BYTES: usize = 1 << 20;

/// A value to be written.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Value {
    Number(i64),
    Text(String),
    Flag(bool),
    Node(Tree),
}

/// Named values in order.
#[derive(Debug, Clone, PartialEq, Default)]
pub(super) struct Tree(Vec<(String, Value)>);

impl Tree {
    /// With one more value.
    pub(super) fn with(mut self, name: impl Into<String>, value: impl Into<Value>) -> Self {
        self.0.push((name.into(), value.into()));
        self
    }

    /// One more value.
    pub(super) fn put(&mut self, name: impl Into<String>, value: impl Into<Value>) {
        self.0.push((name.into(), value.into()));
    }
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}
impl From<String> for Value {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}
impl From<i64> for Value {
    fn from(number: i64) -> Self {
        Self::Number(number)
    }
}
impl From<u64> for Value {
    fn from(number: u64) -> Self {
        Self::Number(i64::try_from(number).unwrap_or(i64::MAX))
    }
}
impl From<bool> for Value {
    fn from(flag: bool) -> Self {
        Self::Flag(flag)
    }
}
impl From<Tree> for Value {
    fn from(tree: Tree) -> Self {
        Self::Node(tree)
    }
}

fn checksum(record: &[u8], field_at: usize) -> u32 {
    let mut sum = crc32fast::Hasher::new();
    sum.update(&record[..field_at]);
    sum.update(&[0; 4]);
    sum.update(&record[field_at + 4..]);
    sum.finalize()
}

fn seal(record: &mut [u8], field_at: usize) {
    let sum = checksum(record, field_at);
    record[field_at..field_at + 4].copy_from_slice(&sum.to_le_bytes());
}

/// The bytes of a container.
pub(super) fn encode(tree: &Tree) -> Result<Vec<u8>> {
    let mut table = Vec::new();
    table.extend_from_slice(&2_u16.to_le_bytes());
    table.extend_from_slice(&KEY_TABLE_INDEX.to_le_bytes());
    table.extend_from_slice(&1_u16.to_le_bytes());
    table.extend_from_slice(&[0; 4]);
    seal(&mut table, 6);
    encode_entries(tree, (0, 0), &mut table)?;
    // The rest of the table is one entry of kind 1: free.
    let free_at = table.len();
    table.resize((free_at + 64).next_multiple_of(PAGE_BYTES), 0);
    let free_bytes = u32::try_from(table.len() - free_at).unwrap_or(u32::MAX);
    table[free_at] = 1;
    table[free_at + 2..free_at + 6].copy_from_slice(&free_bytes.to_le_bytes());
    if table.len() > MAX_KEY_TABLE_BYTES {
        return Err(Error::invalid("a configuration of more than 1 MiB"));
    }
    let mut file = vec![0; KEY_TABLE_AT];
    for (at, sequence) in [(0, 1_u16), (PAGE_BYTES, 2)] {
        let header = &mut file[at..at + 46];
        header[..4].copy_from_slice(&HEADER_SIGNATURE.to_le_bytes());
        header[8..10].copy_from_slice(&sequence.to_le_bytes());
        header[10..14].copy_from_slice(&0x0400_u32.to_le_bytes());
        header[22..26].copy_from_slice(&4096_u32.to_le_bytes());
        header[26..34].copy_from_slice(&to_u64(LOG_AT).to_le_bytes());
        header[34..42].copy_from_slice(&to_u64(PAGE_BYTES).to_le_bytes());
        header[42..46].copy_from_slice(&4096_u32.to_le_bytes());
        seal(header, 4);
    }
    let objects = &mut file[OBJECT_TABLE_AT..OBJECT_TABLE_AT + 26];
    objects[..4].copy_from_slice(&OBJECT_TABLE_SIGNATURE.to_le_bytes());
    objects[4..8].copy_from_slice(&1_u32.to_le_bytes());
    let entry = &mut objects[8..];
    entry[0] = 2;
    entry[5..13].copy_from_slice(&to_u64(KEY_TABLE_AT).to_le_bytes());
    let size = u32::try_from(table.len()).unwrap_or(u32::MAX);
    entry[13..17].copy_from_slice(&size.to_le_bytes());
    seal(entry, 1);
    let log = &mut file[LOG_AT..LOG_AT + 34];
    log[..4].copy_from_slice(&LOG_SIGNATURE.to_le_bytes());
    seal(log, 4);
    file.extend_from_slice(&table);
    Ok(file)
}

fn to_u64(value: usize) -> u64 {
    u64::try_from(value).unwrap_or(u64::MAX)
}

fn encode_entries(tree: &Tree, parent: (u16, u32), table: &mut Vec<u8>) -> Result<()> {
    for (order, (name, value)) in (0_u32..).zip(&tree.0) {
        let at = table.len();
        let (kind, data): (u8, Vec<u8>) = match value {
            Value::Number(number) => (3, number.to_le_bytes().to_vec()),
            Value::Text(text) => {
                let units = text.encode_utf16().chain([0]);
                let text: Vec<u8> = units.flat_map(u16::to_le_bytes).collect();
                let length = u32::try_from(text.len()).unwrap_or(u32::MAX);
                (6, [&length.to_le_bytes()[..], &text].concat())
            }
            Value::Flag(flag) => (8, u32::from(*flag).to_le_bytes().to_vec()),
            Value::Node(_) => (9, vec![0; 12]),
        };
        let name_length = u8::try_from(name.len() + 1)
            .map_err(|_| Error::invalid(format!("a key of {} bytes", name.len())))?;
        let mut entry = vec![kind, 0];
        let size = 21 + name.len() + 1 + data.len();
        entry.extend_from_slice(&u32::try_from(size).unwrap_or(u32::MAX).to_le_bytes());
        entry.extend_from_slice(&parent.0.to_le_bytes());
        entry.extend_from_slice(&parent.1.to_le_bytes());
        entry.extend_from_slice(&[0; 4]);
        entry.extend_from_slice(&order.to_le_bytes());
        entry.push(name_length);
        entry.extend_from_slice(name.as_bytes());
        entry.push(0);
        entry.extend_from_slice(&data);
        seal(&mut entry, 12);
        table.extend_from_slice(&entry);
        if let Value::Node(below) = value {
            let place = (KEY_TABLE_INDEX, u32::try_from(at).unwrap_or(u32::MAX));
            encode_entries(below, place, table)?;
        }
    }
    Ok(())
}

/// The same tree as XML, as hosts up to 2012 R2 wrote it.
pub(super) fn encode_xml(tree: &Tree) -> Vec<u8> {
    let mut text = String::from("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\r\n");
    write_xml(tree, 0, &mut text);
    text.into_bytes()
}

fn write_xml(tree: &Tree, depth: usize, text: &mut String) {
    let indent = "  ".repeat(depth);
    for (name, value) in &tree.0 {
        let (kind, shown) = match value {
            Value::Number(number) => ("integer", number.to_string()),
            Value::Text(it) => ("string", escape(it)),
            Value::Flag(flag) => ("bool", if *flag { "True" } else { "False" }.to_owned()),
            Value::Node(below) => {
                text.push_str(&format!("{indent}<{name}>\r\n"));
                write_xml(below, depth + 1, text);
                text.push_str(&format!("{indent}</{name}>\r\n"));
                continue;
            }
        };
        text.push_str(&format!(
            "{indent}<{name} type=\"{kind}\">{shown}</{name}>\r\n"
        ));
    }
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}

/// The text of a node of a read tree.
pub(super) fn text_at<'n>(node: &'n Node, path: &str) -> Option<&'n str> {
    match node.at(path)? {
        ConfigValue::Text(text) => Some(text),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use guestfs::vmconfig::StoredConfiguration;

    use super::*;

    struct Bytes(Vec<u8>);

    impl block::ReadAt for Bytes {
        fn size_bytes(&self) -> u64 {
            self.0.len() as u64
        }
        fn read_at(&self, offset: u64, buffer: &mut [u8]) -> block::Result<()> {
            let at = usize::try_from(offset).unwrap();
            buffer.copy_from_slice(&self.0[at..at + buffer.len()]);
            Ok(())
        }
    }

    #[test]
    fn what_is_written_is_what_the_reader_of_real_files_reads() {
        let tree = Tree::default().with(
            "configuration",
            Tree::default()
                .with(
                    "properties",
                    Tree::default()
                        .with("name", "a <b> & ü")
                        .with("version", 2304_i64),
                )
                .with("flag", true)
                .with("empty", Tree::default()),
        );
        for bytes in [encode(&tree).unwrap(), encode_xml(&tree)] {
            let source: Arc<dyn block::ReadAt> = Arc::new(Bytes(bytes));
            let read = StoredConfiguration::read(&source).unwrap();
            assert_eq!(read.damage, Vec::<String>::new());
            let root = read.tree.node("configuration").unwrap();
            assert_eq!(root.text("properties/name"), Some("a <b> & ü"));
            assert_eq!(root.number("properties/version"), Some(2304));
            assert_eq!(root.flag("flag"), Some(true));
        }
    }
}
