//! A line of the side file: what of a file the place that it goes to cannot hold. Every field stands in docs/EXTRACT.md.
//!
//! **Invariants.** One line for a file. Bytes are hexadecimal digits, moments are seconds since 1970 and nanoseconds on top.

use std::collections::BTreeMap;

use guestfs::FileName;
use guestfs::FileSystem;
use guestfs::filesystem::{
    ExtendedAttribute, FileKind, FileTimes, SecurityDescriptor, Stream, Timestamp,
};
use serde::{Deserialize, Serialize};

use super::sddl;
use super::walk::Found;
use crate::{Error, ErrorKind, Result};

pub(super) type Moment = (i64, u32);

/// An alternate stream, and the file that holds its bytes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct StreamNote {
    pub(super) name: String,
    pub(super) size_bytes: u64,
    pub(super) written_as: String,
}

/// A line.
#[derive(Debug, Default, Serialize)]
pub(super) struct Note {
    pub(super) volume: usize,
    pub(super) path: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) path_bytes: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) written_as: Option<String>,
    pub(super) kind: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) device: Option<[u32; 2]>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) reparse_tag: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) owner: Option<[u32; 2]>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) mode: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) windows_attributes: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) created: Option<Moment>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) changed: Option<Moment>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) modified: Option<Moment>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) accessed: Option<Moment>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) security_descriptor: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) security_descriptor_sddl: Option<String>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub(super) extended_attributes: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) streams: Vec<StreamNote>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) link_target: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) same_file_as: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) damage: Option<String>,
}

/// What tells lines apart: the file that they are about.
#[derive(Debug, Deserialize, Hash)]
pub(super) struct NoteKey {
    #[serde(default)]
    volume: usize,
    path: String,
    #[serde(default)]
    path_bytes: Option<String>,
}

/// All of a file that stands beside its bytes.
pub(super) struct Beside {
    pub(super) note: Note,
    pub(super) attributes: Vec<ExtendedAttribute>,
    pub(super) streams: Vec<(FileName, u64)>,
    pub(super) security: Option<SecurityDescriptor>,
}

/// Bytes as hexadecimal digits.
pub(super) fn hexadecimal(bytes: &[u8]) -> String {
    const DIGITS: [char; 16] = [
        '0', '1', '2', '3', '4', '5', '6', '7', '8', '9', 'a', 'b', 'c', 'd', 'e', 'f',
    ];
    let digit = |value: u8| DIGITS.get(usize::from(value & 15)).copied().unwrap_or('?');
    let mut text = String::with_capacity(bytes.len().saturating_mul(2));
    for byte in bytes {
        text.push(digit(byte >> 4));
        text.push(digit(*byte));
    }
    text
}

/// A moment as a line holds it.
pub(super) fn moment(time: Option<Timestamp>) -> Option<Moment> {
    time.map(|time| (time.seconds, time.nanoseconds))
}

/// How a kind is called.
pub(super) fn kind_word(kind: FileKind) -> &'static str {
    match kind {
        FileKind::Regular => "file",
        FileKind::Directory => "folder",
        FileKind::SymbolicLink => "link",
        FileKind::ReparsePoint(_) => "reparse-point",
        FileKind::CharacterDevice(_) => "character-device",
        FileKind::BlockDevice(_) => "block-device",
        FileKind::Fifo => "fifo",
        FileKind::Socket => "socket",
    }
}

impl Note {
    /// What no place but a side file holds of it.
    pub(super) fn new(volume: usize, source: &[u8], written: &[u8], found: &Found) -> Self {
        let metadata = &found.metadata;
        let is_same = source.strip_prefix(b"/") == Some(written);
        let (device, reparse_tag) = match metadata.kind {
            FileKind::CharacterDevice(number) | FileKind::BlockDevice(number) => {
                (Some([number.major, number.minor]), None)
            }
            FileKind::ReparsePoint(tag) => (None, Some(tag)),
            _ => (None, None),
        };
        Self {
            volume,
            path: String::from_utf8_lossy(source).into_owned(),
            path_bytes: std::str::from_utf8(source)
                .is_err()
                .then(|| hexadecimal(source)),
            written_as: (!is_same).then(|| String::from_utf8_lossy(written).into_owned()),
            kind: kind_word(metadata.kind),
            device,
            reparse_tag,
            windows_attributes: metadata.windows_attributes,
            created: moment(metadata.times.created),
            changed: moment(metadata.times.changed),
            ..Self::default()
        }
    }

    /// Notes times that the place cannot hold at all.
    pub(super) fn add_times(&mut self, times: &FileTimes) {
        self.modified = moment(times.modified);
        self.accessed = moment(times.accessed);
    }

    /// Notes owner and mode.
    pub(super) fn add_owner(&mut self, found: &Found) {
        if let Some(owner) = found.metadata.owner {
            self.owner = Some([owner.user, owner.group]);
            self.mode = Some(format!("{:04o}", owner.mode));
        }
    }

    /// Notes a named value.
    pub(super) fn add_attribute(&mut self, attribute: &ExtendedAttribute) {
        let value = hexadecimal(&attribute.value);
        self.extended_attributes
            .insert(attribute.name.to_string(), value);
    }

    /// Whether it says anything at all.
    pub(super) fn is_needed(&self) -> bool {
        self.written_as.is_some()
            || self.created.is_some()
            || self.owner.is_some()
            || self.modified.is_some()
            || self.windows_attributes.is_some()
            || self.security_descriptor.is_some()
            || !self.extended_attributes.is_empty()
            || !self.streams.is_empty()
            || self.link_target.is_some()
            || self.same_file_as.is_some()
            || self.device.is_some()
            || self.reparse_tag.is_some()
            || self.damage.is_some()
            || self.kind == "socket"
    }

    /// The line with its end.
    pub(super) fn line(&self) -> Result<Vec<u8>> {
        let mut line = serde_json::to_vec(self).map_err(|error| {
            Error::new(ErrorKind::Io, "a line of the side file").caused_by(error)
        })?;
        line.push(b'\n');
        Ok(line)
    }
}

impl Beside {
    /// Asks the file system for all of it.
    pub(super) fn read(
        fs: &dyn FileSystem,
        volume: usize,
        (source, written): (&[u8], &[u8]),
        found: &Found,
    ) -> Result<Self> {
        let mut note = Note::new(volume, source, written, found);
        let security = fs.security(found.file)?;
        if let Some(security) = &security {
            note.security_descriptor = Some(hexadecimal(&security.0));
            note.security_descriptor_sddl = sddl::text(&security.0);
        }
        let has_streams = matches!(
            found.metadata.kind,
            FileKind::Regular | FileKind::Directory | FileKind::ReparsePoint(_)
        ) && found.metadata.windows_attributes.is_some();
        let streams = if has_streams {
            alternate(fs.streams(found.file)?)
        } else {
            Vec::new()
        };
        Ok(Self {
            note,
            attributes: fs.extended_attributes(found.file)?,
            streams,
            security,
        })
    }
}

fn alternate(streams: Vec<Stream>) -> Vec<(FileName, u64)> {
    let named = |stream: Stream| Some((stream.name?, stream.size_bytes));
    streams.into_iter().filter_map(named).collect()
}
