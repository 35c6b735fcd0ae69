//! The configuration of a Hyper-V VM, from whichever form its host wrote.
//!
//! ```text
//!   .vmcx .vmrs .vsv (2016 on)  HyperVStorage container ─┐
//!   .xml (up to 2012 R2)        typed elements          ─┴─► Node (one tree) ─► VmConfiguration (typed) ─► text
//! ```
//!
//! **Invariants.** Both forms give the same tree for the same settings. What the typed model does not name stays in the
//! tree. Entries keep the order in which they were put.
//!
//! It does not read saved memory, nor `.vmgs`.

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

mod container;
mod model;
mod xml;

use std::fmt;
use std::sync::Arc;

use block::ReadAt;

use crate::{Error, ErrorKind, Result};

pub use container::FormatVersion;
pub use model::{
    ControllerKind, DiskAttachment, DriveKind, Generation, MemorySettings, NetworkAdapter,
    SecuritySettings, VmConfiguration,
};

/// A configuration above this is none.
const MAX_XML_BYTES: u64 = 16 << 20;
/// Levels of a tree.
const MAX_DEPTH: usize = 64;

/// A value of a configuration.
#[derive(Debug, Clone, PartialEq)]
pub enum ConfigValue {
    /// A signed number.
    Integer(i64),
    /// An unsigned number.
    Unsigned(u64),
    /// A fraction.
    Double(f64),
    /// Text.
    Text(String),
    /// Bytes.
    Bytes(Vec<u8>),
    /// Yes or no.
    Bool(bool),
    /// More below.
    Node(Node),
}

/// A place in the tree: named values, in the order in which they were put.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Node {
    entries: Vec<(String, ConfigValue)>,
}

impl Node {
    /// Its entries.
    pub fn entries(&self) -> &[(String, ConfigValue)] {
        &self.entries
    }

    /// The entry of a name; case does not count.
    pub fn get(&self, name: &str) -> Option<&ConfigValue> {
        self.entries
            .iter()
            .find(|(known, _)| known.eq_ignore_ascii_case(name))
            .map(|(_, value)| value)
    }

    /// The value at a path, its parts between slashes.
    pub fn at(&self, path: &str) -> Option<&ConfigValue> {
        let mut node = self;
        let mut parts = path.split('/').filter(|part| !part.is_empty()).peekable();
        while let Some(part) = parts.next() {
            let value = node.get(part)?;
            if parts.peek().is_none() {
                return Some(value);
            }
            let ConfigValue::Node(below) = value else {
                return None;
            };
            node = below;
        }
        None
    }

    /// The node at a path.
    pub fn node(&self, path: &str) -> Option<&Self> {
        match self.at(path)? {
            ConfigValue::Node(node) => Some(node),
            _ => None,
        }
    }

    /// The text at a path, if it is text and not empty.
    pub fn text(&self, path: &str) -> Option<&str> {
        match self.at(path)? {
            ConfigValue::Text(text) if !text.is_empty() => Some(text),
            _ => None,
        }
    }

    /// The number at a path.
    pub fn number(&self, path: &str) -> Option<u64> {
        match self.at(path)? {
            ConfigValue::Integer(number) => u64::try_from(*number).ok(),
            ConfigValue::Unsigned(number) => Some(*number),
            _ => None,
        }
    }

    /// The yes or no at a path.
    pub fn flag(&self, path: &str) -> Option<bool> {
        match self.at(path)? {
            ConfigValue::Bool(flag) => Some(*flag),
            ConfigValue::Integer(number) => Some(*number != 0),
            ConfigValue::Unsigned(number) => Some(*number != 0),
            _ => None,
        }
    }

    /// Puts a value behind the others.
    fn put(&mut self, name: String, value: ConfigValue) {
        self.entries.push((name, value));
    }
}

/// The tree as lines `path = value`, for people and for comparing two versions.
impl fmt::Display for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut waiting: Vec<(String, &ConfigValue)> = Vec::new();
        for (name, value) in self.entries.iter().rev() {
            waiting.push((name.clone(), value));
        }
        while let Some((path, value)) = waiting.pop() {
            match value {
                ConfigValue::Node(node) => {
                    if node.entries.is_empty() {
                        writeln!(f, "{path}/")?;
                    }
                    for (name, value) in node.entries.iter().rev() {
                        waiting.push((format!("{path}/{name}"), value));
                    }
                }
                value => writeln!(f, "{path} = {value}")?,
            }
        }
        Ok(())
    }
}

impl fmt::Display for ConfigValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Integer(number) => write!(f, "{number}"),
            Self::Unsigned(number) => write!(f, "{number}"),
            Self::Double(number) => write!(f, "{number:?}"),
            Self::Text(text) => write!(f, "{text:?}"),
            Self::Bool(flag) => write!(f, "{flag}"),
            Self::Node(node) => write!(f, "{{{} entries}}", node.entries.len()),
            Self::Bytes(bytes) => {
                f.write_str("0x")?;
                for byte in bytes.iter().take(64) {
                    write!(f, "{byte:02x}")?;
                }
                match bytes.len() {
                    0..=64 => Ok(()),
                    length => write!(f, "… ({length} bytes)"),
                }
            }
        }
    }
}

/// In which form a configuration was stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum StoredForm {
    /// A HyperVStorage container.
    Container(FormatVersion),
    /// XML.
    Xml,
}

/// A configuration as it was stored.
#[derive(Debug, Clone, PartialEq)]
pub struct StoredConfiguration {
    /// How it was stored.
    pub form: StoredForm,
    /// Its values, with the root's names on top: `configuration`.
    pub tree: Node,
    /// Entries of the container's log that had to be applied.
    pub replayed_entries: usize,
    /// What is damaged and left out.
    pub damage: Vec<String>,
}

impl StoredConfiguration {
    /// Reads a `.vmcx`, `.vmrs`, `.vsv` or `.xml`.
    ///
    /// # Errors
    /// [`ErrorKind::Corrupt`] when it is neither or no header is whole; [`ErrorKind::Unsupported`] for format versions
    /// that are not known; [`ErrorKind::Limit`].
    pub fn read(source: &Arc<dyn ReadAt>) -> Result<Self> {
        let mut first = [0; 4];
        if source.size_bytes() < 4 {
            return Err(Error::corrupt("a configuration of fewer than 4 bytes"));
        }
        source.read_at(0, &mut first)?;
        if xml::is_likely(&first) {
            let size = source.size_bytes();
            if size > MAX_XML_BYTES {
                return Err(Error::new(
                    ErrorKind::Limit,
                    format!("an XML configuration of {size} bytes"),
                ));
            }
            let mut bytes = vec![0; usize::try_from(size).unwrap_or(0)];
            source.read_at(0, &mut bytes)?;
            return Ok(Self {
                form: StoredForm::Xml,
                tree: xml::parse(&bytes)?,
                replayed_entries: 0,
                damage: Vec::new(),
            });
        }
        container::read(source)
    }

    /// What it says of the VM.
    ///
    /// # Errors
    /// [`ErrorKind::Corrupt`] when it describes no VM.
    pub fn model(&self) -> Result<VmConfiguration> {
        model::of(&self.tree)
    }
}
