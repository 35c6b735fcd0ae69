//! What a file is and what belongs to it besides its bytes.

use super::record::{
    Attribute, DATA, EXTENDED_ATTRIBUTES, FILE_NAME, REPARSE_POINT, STANDARD_INFORMATION, utf16,
};
use super::reparse::{MAX_REPARSE_BYTES, Reparse};
use super::table::{File, FileTable};
use super::{WOF_STREAM, names};
use crate::filesystem::{
    DeviceNumber, ExtendedAttribute, FileKind, FileTimes, Metadata, Stream, Timestamp,
};
use crate::{Error, FileName, Result, field};

const SYSTEM_ATTRIBUTE: u32 = 0x0000_0004;
const READ_ONLY_OR_HIDDEN: u32 = 0x0000_0003;
const DIRECTORY_ATTRIBUTE: u32 = 0x0000_0010;
const SPARSE_OR_REPARSE: u32 = 0x0000_0600;
/// What Windows shows; the rest is its own.
const SHOWN_ATTRIBUTES: u32 = 0x00FF_FFFF;
const MAX_EXTENDED_BYTES: u64 = 1 << 20;
const EPOCH_SECONDS: i64 = 11_644_473_600;
const TICKS_PER_SECOND: u64 = 10_000_000;

/// Interix and NFS services keep Unix links and devices in system files; `ntfs-3g` does likewise.
const INTERIX_LINK: &[u8] = b"IntxLNK\x01";
const INTERIX_CHARACTER: &[u8] = b"IntxCHR\x00";
const INTERIX_BLOCK: &[u8] = b"IntxBLK\x00";
/// Of a target of 4096 units.
const MAX_INTERIX_BYTES: u64 = 8 + 8192;

/// What a file is in the end.
pub(super) enum Nature {
    Plain,
    Link(FileName),
    Special(FileKind),
    Reparse(Reparse),
}

pub(super) fn attributes(file: &File) -> u32 {
    let standard = file.resident(STANDARD_INFORMATION).unwrap_or_default();
    field::u32_le(standard, 32).unwrap_or(0) & SHOWN_ATTRIBUTES
}

pub(super) fn nature(table: &FileTable, file: &File) -> Result<Nature> {
    let attributes = attributes(file);
    if let Some(data) = table.value(file, REPARSE_POINT, &[], MAX_REPARSE_BYTES)? {
        let reparse = Reparse::parse(&data, file.is_directory, attributes).map_err(|error| {
            error.within(format!("reparse point of file record {}", file.number))
        })?;
        return Ok(match reparse {
            Reparse::Link(target) => Nature::Link(target),
            Reparse::Kind(kind) => Nature::Special(kind),
            Reparse::Transparent => Nature::Plain,
            other => Nature::Reparse(other),
        });
    }
    if file.is_directory || attributes & SYSTEM_ATTRIBUTE == 0 {
        return Ok(Nature::Plain);
    }
    interix(table, file, attributes)
}

fn interix(table: &FileTable, file: &File, attributes: u32) -> Result<Nature> {
    let Some(first) = contents(file) else {
        return Ok(Nature::Plain);
    };
    let size = first.size_bytes();
    if size > MAX_INTERIX_BYTES || first.is_compressed() || first.is_encrypted() {
        return Ok(Nature::Plain);
    }
    if size <= 1 {
        // System files of Windows have one of these attributes as a rule, those of Interix none.
        return Ok(match size {
            _ if attributes & READ_ONLY_OR_HIDDEN != 0 => Nature::Plain,
            0 => Nature::Special(FileKind::Fifo),
            _ => Nature::Special(FileKind::Socket),
        });
    }
    let Some(bytes) = table.value(file, DATA, &[], MAX_INTERIX_BYTES)? else {
        return Ok(Nature::Plain);
    };
    let device = || -> Option<DeviceNumber> {
        Some(DeviceNumber {
            major: u32::try_from(field::u64_le(&bytes, 8).ok()?).ok()?,
            minor: u32::try_from(field::u64_le(&bytes, 16).ok()?).ok()?,
        })
    };
    if let Some(target) = bytes.strip_prefix(INTERIX_LINK) {
        return Ok(Nature::Link(FileName::from_utf16(utf16(target))));
    }
    let kind = if bytes.starts_with(INTERIX_CHARACTER) {
        device().map(FileKind::CharacterDevice)
    } else if bytes.starts_with(INTERIX_BLOCK) {
        device().map(FileKind::BlockDevice)
    } else {
        None
    };
    Ok(kind.map_or(Nature::Plain, Nature::Special))
}

/// The first part of the contents.
pub(super) fn contents(file: &File) -> Option<&Attribute> {
    file.of_kind(DATA)
        .find(|attribute| attribute.name.is_empty() && attribute.is_first())
}

pub(super) fn metadata(table: &FileTable, file: &File) -> Result<Metadata> {
    let nature = nature(table, file)?;
    let contents = contents(file);
    let mut size_bytes = contents.map_or(0, Attribute::size_bytes);
    let mut allocated_bytes = contents.map_or(0, allocated);
    let mut windows_attributes = attributes(file);
    if file.is_directory {
        windows_attributes |= DIRECTORY_ATTRIBUTE;
    }
    let mut obstacle = None;
    let kind = match nature {
        Nature::Plain if file.is_directory => FileKind::Directory,
        Nature::Plain => FileKind::Regular,
        Nature::Link(target) => {
            size_bytes = field::bytes(target.as_bytes().len());
            FileKind::SymbolicLink
        }
        Nature::Special(kind) => {
            size_bytes = 0;
            kind
        }
        Nature::Reparse(Reparse::Elsewhere { tag, reason }) => {
            obstacle = Some(reason);
            FileKind::ReparsePoint(tag)
        }
        Nature::Reparse(_) => {
            // Windows hides how it compressed the file.
            windows_attributes &= !SPARSE_OR_REPARSE;
            allocated_bytes = file
                .of_kind(DATA)
                .find(|part| part.is_first() && is_wof_stream(part))
                .map_or(0, allocated);
            FileKind::Regular
        }
    };
    if kind == FileKind::Regular && contents.is_some_and(Attribute::is_encrypted) {
        obstacle = Some(ENCRYPTED.to_owned());
    }
    let names = file.of_kind(FILE_NAME).filter_map(Attribute::resident);
    let link_count = names.filter(|value| names::is_own_name(value)).count();
    Ok(Metadata {
        kind,
        size_bytes,
        allocated_bytes,
        link_count: u32::try_from(link_count).unwrap_or(u32::MAX),
        times: times(file),
        owner: None,
        windows_attributes: Some(windows_attributes),
        obstacle,
    })
}

/// Why files of EFS cannot be read.
pub(super) const ENCRYPTED: &str =
    "encrypted by Windows (EFS): only its owner's key opens it, which is not read here";

fn allocated(part: &Attribute) -> u64 {
    match &part.body {
        super::record::AttributeBody::Resident(_) => 0,
        super::record::AttributeBody::Runs(runs) => runs.allocated_bytes,
    }
}

pub(super) fn is_wof_stream(part: &Attribute) -> bool {
    part.name.iter().copied().eq(WOF_STREAM.encode_utf16())
}

fn times(file: &File) -> FileTimes {
    let standard = file.resident(STANDARD_INFORMATION).unwrap_or_default();
    let time = |at| field::u64_le(standard, at).ok().and_then(timestamp);
    FileTimes {
        created: time(0),
        modified: time(8),
        changed: time(16),
        accessed: time(24),
    }
}

/// Ticks of 100 ns since 1601.
fn timestamp(ticks: u64) -> Option<Timestamp> {
    Some(Timestamp {
        seconds: i64::try_from(ticks / TICKS_PER_SECOND)
            .ok()?
            .checked_sub(EPOCH_SECONDS)?,
        nanoseconds: u32::try_from(ticks % TICKS_PER_SECOND)
            .ok()?
            .checked_mul(100)?,
    })
}

pub(super) fn streams(table: &FileTable, file: &File) -> Result<Vec<Stream>> {
    let nature = nature(table, file)?;
    let has_contents = !file.is_directory && matches!(nature, Nature::Plain | Nature::Reparse(_));
    let is_wof = matches!(nature, Nature::Reparse(Reparse::Wof(_)));
    let mut found: Vec<Stream> = contents(file)
        .filter(|_| has_contents)
        .map(|part| Stream {
            name: None,
            size_bytes: part.size_bytes(),
        })
        .into_iter()
        .collect();
    found.extend(
        file.of_kind(DATA)
            .filter(|part| part.is_first() && !part.name.is_empty())
            .filter(|part| !(is_wof && is_wof_stream(part)))
            .map(|part| Stream {
                name: Some(FileName::from_utf16(part.name.iter().copied())),
                size_bytes: part.size_bytes(),
            }),
    );
    Ok(found)
}

/// `$EA`: distance to the next (u32), flags, bytes of the name, bytes of the value (u16), name, 0, value.
pub(super) fn extended_attributes(
    table: &FileTable,
    file: &File,
) -> Result<Vec<ExtendedAttribute>> {
    let Some(bytes) = table.value(file, EXTENDED_ATTRIBUTES, &[], MAX_EXTENDED_BYTES)? else {
        return Ok(Vec::new());
    };
    let mut found = Vec::new();
    let mut rest = bytes.as_slice();
    while !rest.is_empty() {
        let entry = extended_attribute(rest).map_err(|error| {
            error.within(format!(
                "extended attributes of file record {}",
                file.number
            ))
        })?;
        found.push(entry);
        let step = super::arithmetic::length(u64::from(field::u32_le(rest, 0)?))?;
        if step == 0 {
            break;
        }
        if step < 8 {
            return Err(Error::corrupt(format!(
                "an extended attribute of {step} bytes in file record {}",
                file.number
            )));
        }
        rest = rest.get(step..).unwrap_or_default();
    }
    Ok(found)
}

fn extended_attribute(bytes: &[u8]) -> Result<ExtendedAttribute> {
    let name_bytes = usize::from(field::u8_at(bytes, 5)?);
    let value_bytes = usize::from(field::u16_le(bytes, 6)?);
    let value_at = name_bytes.saturating_add(9);
    Ok(ExtendedAttribute {
        name: FileName::from_bytes(field::slice(bytes, 8, name_bytes)?),
        value: field::slice(bytes, value_at, value_bytes)?.to_vec(),
    })
}
