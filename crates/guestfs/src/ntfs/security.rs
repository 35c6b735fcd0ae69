//! Security descriptors: by id in `$Secure`, or in the record of the file.
//!
//! ```text
//!  $STANDARD_INFORMATION ─ id ─► $Secure:$SII (index: id ─► place, length) ─► $Secure:$SDS  hash │ id │ place │ length │ descriptor
//!                                                                             and once more 256 KiB further
//! ```

use super::arithmetic::{add, length};
use super::index::Index;
use super::record::{DATA, SECURITY_DESCRIPTOR, STANDARD_INFORMATION};
use super::table::{File, FileTable};
use crate::filesystem::SecurityDescriptor;
use crate::{Error, ErrorKind, Result, field};

const SECURE_RECORD: u64 = 9;
const MAX_DESCRIPTOR_BYTES: u64 = 256 << 10;
const MIRROR_DISTANCE: u64 = 256 << 10;
const HEAD_BYTES: u64 = 20;
/// From here on `$STANDARD_INFORMATION` has an id.
const WITH_ID_BYTES: usize = 72;

pub(super) fn read(table: &FileTable, file: &File) -> Result<Option<SecurityDescriptor>> {
    let standard = file.resident(STANDARD_INFORMATION).unwrap_or_default();
    let id = if standard.len() >= WITH_ID_BYTES {
        field::u32_le(standard, 52)?
    } else {
        0
    };
    if id != 0 {
        return by_id(table, id).map(Some).map_err(|error| {
            error.within(format!("security id {id} of file record {}", file.number))
        });
    }
    Ok(table
        .value(file, SECURITY_DESCRIPTOR, &[], MAX_DESCRIPTOR_BYTES)?
        .map(SecurityDescriptor))
}

fn by_id(table: &FileTable, id: u32) -> Result<SecurityDescriptor> {
    let secure = table.file(SECURE_RECORD)?;
    let name: Vec<u16> = "$SII".encode_utf16().collect();
    let index = Index::open(table, &secure, &name)?;
    let entry = index.descend(&mut |entry| {
        let key = field::u32_le(entry.key, 0)?;
        Ok(id.cmp(&key))
    })?;
    let entry = entry.ok_or_else(|| Error::corrupt("no descriptor with this id"))?;
    let at = usize::from(field::u16_le(&entry, 0)?);
    let place = field::u64_le(&entry, at.saturating_add(8))?;
    let size = u64::from(field::u32_le(&entry, at.saturating_add(16))?);
    let name: Vec<u16> = "$SDS".encode_utf16().collect();
    let stream = table.reader(&secure, DATA, &name)?;
    let mut trouble = None;
    for place in [place, add(place, MIRROR_DISTANCE)?] {
        match descriptor(&stream, id, place, size) {
            Ok(descriptor) => return Ok(descriptor),
            Err(error) => trouble = trouble.or(Some(error)),
        }
    }
    Err(trouble.unwrap_or_else(|| Error::corrupt("no descriptor with this id")))
}

fn descriptor(
    stream: &super::stream::AttributeReader,
    id: u32,
    place: u64,
    size: u64,
) -> Result<SecurityDescriptor> {
    if !(HEAD_BYTES..=MAX_DESCRIPTOR_BYTES).contains(&size) {
        return Err(Error::corrupt(format!("a descriptor of {size} bytes")));
    }
    if add(place, size)? > stream.size_bytes() {
        return Err(Error::new(
            ErrorKind::Corrupt,
            "a descriptor behind all of them",
        ));
    }
    let mut bytes = vec![0; length(size)?];
    stream.read(place, &mut bytes)?;
    let descriptor = bytes.get(length(HEAD_BYTES)?..).unwrap_or_default();
    if field::u32_le(&bytes, 4)? != id || field::u32_le(&bytes, 0)? != hash(descriptor) {
        return Err(Error::corrupt(format!("another descriptor at {place}")));
    }
    Ok(SecurityDescriptor(descriptor.to_vec()))
}

fn hash(descriptor: &[u8]) -> u32 {
    descriptor
        .chunks_exact(4)
        .filter_map(|word| word.first_chunk::<4>())
        .fold(0, |hash: u32, word| {
            hash.rotate_left(3).wrapping_add(u32::from_le_bytes(*word))
        })
}
