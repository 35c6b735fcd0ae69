//! The descriptor: text that names the extents, the content id and the parent. Pure.
//!
//! ```text
//! # Disk DescriptorFile
//! CID=64ea27d4                              changes whenever the content does
//! parentCID=ffffffff                        the parent's CID when this was made; ffffffff: no parent
//! createType="monolithicSparse"
//! parentFileNameHint="base.vmdk"
//! RW 8192 SPARSE "disk-s001.vmdk"           access, sectors, kind, name, offset (sectors, flat kinds)
//! ddb.adapterType = "lsilogic"
//! ```
//!
//! **Invariants.** At most 1 MiB of text; keys in any case and order; unknown keys are ignored.

use std::fmt;

use crate::{Error, ErrorKind, Result};

/// Greatest descriptor looked at.
pub(super) const MAX_DESCRIPTOR_BYTES: u64 = 1 << 20;
/// The content id that means "no parent".
const NO_PARENT: u32 = u32::MAX;

/// A content id (CID): a child remembers its parent's, so that a parent which changed since is found out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ContentId(pub u32);

impl fmt::Display for ContentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08x}", self.0)
    }
}

/// How an extent keeps its bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ExtentKind {
    /// The bytes as they are (`FLAT`, `VMFS`).
    Flat,
    /// A hosted sparse extent (`SPARSE`).
    Sparse,
    /// All zeros, no file (`ZERO`).
    Zero,
    /// An ESX redo log, "COWD" (`VMFSSPARSE`).
    VmfsSparse,
    /// ESX 5.5 and newer (`SESPARSE`).
    SeSparse,
}

/// One extent as the descriptor lists it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExtentLine {
    /// Bytes of disk that it holds.
    pub size_bytes: u64,
    /// How it keeps them.
    pub kind: ExtentKind,
    /// Name of its file, as written; `None` for `ZERO`.
    pub name: Option<String>,
    /// Where its bytes begin in the file (flat kinds).
    pub offset_bytes: u64,
}

/// Which extent names of a descriptor are followed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum ExtentPaths {
    /// Only names that stay inside the descriptor's directory.
    #[default]
    Inside,
    /// Any name: the descriptor is trusted.
    Anywhere,
}

/// The parsed descriptor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VmdkDescriptor {
    /// This image's content id.
    pub cid: Option<ContentId>,
    /// The parent's content id when this delta link was made; `None` without a parent.
    pub parent_cid: Option<ContentId>,
    /// The layout's name ("monolithicSparse", "twoGbMaxExtentFlat", "streamOptimized", "vmfs", …).
    pub create_type: String,
    /// Where the parent was when this delta link was made.
    pub parent_hint: Option<String>,
    /// The extents, in disk order.
    pub extents: Vec<ExtentLine>,
}

impl VmdkDescriptor {
    /// Parses the text of a descriptor.
    ///
    /// # Errors
    /// `Corrupt` for text that is no descriptor or contradicts itself, `Unsupported` for extents that this code cannot read.
    pub fn parse(text: &[u8]) -> Result<Self> {
        let text = decode_text(text);
        if !looks_like_descriptor(&text) {
            return Err(Error::corrupt(
                "vmdk: no descriptor, and no sparse extent either",
            ));
        }
        let mut found = Self {
            cid: None,
            parent_cid: None,
            create_type: String::new(),
            parent_hint: None,
            extents: Vec::new(),
        };
        for (number, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let number = number.saturating_add(1);
            if let Some(extent) = parse_extent(line, number)? {
                found.extents.push(extent);
            } else if let Some((key, value)) = line.split_once('=') {
                found.take_key(key.trim(), value.trim().trim_matches('"'), number)?;
            }
        }
        Ok(found)
    }

    fn take_key(&mut self, key: &str, value: &str, line: usize) -> Result<()> {
        let id = |value: &str| {
            u32::from_str_radix(value, 16).map(ContentId).map_err(|_| {
                Error::corrupt(format!("vmdk descriptor line {line}: content id {value:?}"))
            })
        };
        match key.to_ascii_lowercase().as_str() {
            "cid" => self.cid = Some(id(value)?),
            "parentcid" => self.parent_cid = Some(id(value)?).filter(|id| id.0 != NO_PARENT),
            "createtype" => self.create_type = value.to_owned(),
            "parentfilenamehint" => self.parent_hint = Some(value.to_owned()),
            _ => {}
        }
        Ok(())
    }
}

/// The text, whatever ended its lines and whoever wrote its letters: UTF-8, or else single bytes as `windows-1252` and
/// `ISO-8859-1` have them. Names in other encodings come out wrong, and their files are then not found.
fn decode_text(bytes: &[u8]) -> String {
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    let bytes = bytes.split(|byte| *byte == 0).next().unwrap_or_default();
    let text = match std::str::from_utf8(bytes) {
        Ok(text) => text.to_owned(),
        Err(_) => bytes.iter().map(|byte| char::from(*byte)).collect(),
    };
    // Lines end in LF, CR LF, or, from old Macs, in CR alone.
    text.replace("\r\n", "\n").replace('\r', "\n")
}

/// Whether the beginning of a file is that of a descriptor. It may be cut anywhere.
pub(crate) fn begins_descriptor(head: &[u8]) -> bool {
    let is_text = head
        .iter()
        .all(|byte| *byte >= 32 || b"\t\r\n\0".contains(byte));
    let begins_so = head
        .strip_prefix(b"\xef\xbb\xbf")
        .unwrap_or(head)
        .first()
        .is_some_and(|byte| b"#vV \t\r\n".contains(byte));
    is_text && begins_so && looks_like_descriptor(&decode_text(head))
}

/// The first line that is no comment is a key of a descriptor, or the usual comment opens it.
fn looks_like_descriptor(text: &str) -> bool {
    let mut lines = text
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .take(64);
    let Some(first) = lines.next() else {
        return false;
    };
    if first.eq_ignore_ascii_case("# Disk DescriptorFile") {
        return true;
    }
    std::iter::once(first)
        .chain(lines)
        .find(|line| !line.starts_with('#'))
        .is_some_and(|line| {
            line.to_ascii_lowercase()
                .replace(' ', "")
                .starts_with("version=")
        })
}

/// `RW 8192 SPARSE "name" 0`, or `None` when the line is no extent.
fn parse_extent(line: &str, number: usize) -> Result<Option<ExtentLine>> {
    let Some((access, rest)) = line.split_once(char::is_whitespace) else {
        return Ok(None);
    };
    if !matches!(
        access.to_ascii_uppercase().as_str(),
        "RW" | "RDONLY" | "NOACCESS"
    ) {
        return Ok(None);
    }
    let bad = |what: &str| Error::corrupt(format!("vmdk descriptor line {number}: {what}"));
    if access.eq_ignore_ascii_case("NOACCESS") {
        return Err(Error::new(
            ErrorKind::Unsupported,
            format!("vmdk descriptor line {number}: an extent without access"),
        ));
    }
    let (sectors, rest) = rest
        .trim_start()
        .split_once(char::is_whitespace)
        .ok_or_else(|| bad("extent without kind"))?;
    let size_bytes = sectors
        .parse::<u64>()
        .ok()
        .and_then(|sectors| sectors.checked_mul(super::SECTOR_BYTES))
        .filter(|bytes| *bytes <= i64::MAX.unsigned_abs())
        .ok_or_else(|| bad("extent size"))?;
    let rest = rest.trim_start();
    let (kind, rest) = rest.split_once(char::is_whitespace).unwrap_or((rest, ""));
    let kind = match kind.to_ascii_uppercase().as_str() {
        "FLAT" | "VMFS" => ExtentKind::Flat,
        "SPARSE" => ExtentKind::Sparse,
        "ZERO" => ExtentKind::Zero,
        "VMFSSPARSE" => ExtentKind::VmfsSparse,
        "SESPARSE" => ExtentKind::SeSparse,
        other => {
            return Err(Error::new(
                ErrorKind::Unsupported,
                format!("vmdk descriptor line {number}: extents of kind {other:?}"),
            ));
        }
    };
    if kind == ExtentKind::Zero {
        return Ok(Some(ExtentLine {
            size_bytes,
            kind,
            name: None,
            offset_bytes: 0,
        }));
    }
    let quoted = rest
        .trim_start()
        .strip_prefix('"')
        .ok_or_else(|| bad("extent without a file"))?;
    let (name, rest) = quoted
        .split_once('"')
        .ok_or_else(|| bad("file name without an end"))?;
    let offset = rest.split_whitespace().next().unwrap_or("0");
    let offset_bytes = offset
        .parse::<u64>()
        .ok()
        .and_then(|sectors| sectors.checked_mul(super::SECTOR_BYTES))
        .ok_or_else(|| bad("extent offset"))?;
    Ok(Some(ExtentLine {
        size_bytes,
        kind,
        name: Some(name.to_owned()),
        offset_bytes,
    }))
}

/// Refuses a name that leaves the descriptor's directory.
pub(super) fn judge_name(name: &str, paths: ExtentPaths) -> Result<()> {
    if paths == ExtentPaths::Anywhere {
        return Ok(());
    }
    let has_drive = name.get(1..2) == Some(":");
    let steps_out = name
        .split(['/', '\\'])
        .any(|component| component.is_empty() || component == "." || component == "..");
    if name.contains('\0') || has_drive || steps_out {
        return Err(Error::new(
            ErrorKind::Unsupported,
            format!("vmdk descriptor: extent {name:?} lies outside the descriptor's directory"),
        ));
    }
    Ok(())
}
