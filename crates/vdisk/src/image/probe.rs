//! What format a file is in, told by its content.
//!
//! | format | where it says so |
//! |---|---|
//! | VHDX | `vhdxfile` at 0 |
//! | qcow2 | `QFI\xfb` at 0 |
//! | VMDK | `KDMV` or `COWD` at 0, or a text that begins `# Disk DescriptorFile` or, behind comments, `version=` |
//! | VHD | `conectix` 512 or 511 bytes before the end, or at 0 |
//! | raw | nothing: it is what is left |
//!
//! A guest can write any of these marks on its own raw disk. Whoever knows that an image is raw must say so
//! ([`FormatHint::Exactly`](super::FormatHint)) instead of asking here.

use block::ReadAt;

use crate::{Format, Result, vmdk};

/// Bytes looked at on either end.
const LOOK_BYTES: u64 = 512;

/// The format of a file by its content; [`Format::Raw`] when no other mark is found.
pub fn probe(file: &dyn ReadAt) -> Result<Format> {
    let size = file.size_bytes();
    let head = read(file, 0, size.min(LOOK_BYTES))?;
    if head.starts_with(b"vhdxfile") {
        return Ok(Format::Vhdx);
    }
    if head.starts_with(b"QFI\xfb") {
        return Ok(Format::Qcow2);
    }
    if head.starts_with(b"KDMV") || head.starts_with(b"COWD") || vmdk::begins_descriptor(&head) {
        return Ok(Format::Vmdk);
    }
    let tail = read(file, size.saturating_sub(LOOK_BYTES), size.min(LOOK_BYTES))?;
    let cookies = [Some(tail.as_slice()), tail.get(1..), Some(head.as_slice())];
    let is_vhd = cookies.into_iter().flatten().any(|bytes| {
        bytes.starts_with(b"conectix") || bytes.starts_with(&crate::vhd::UNFINISHED_COOKIE)
    });
    Ok(if is_vhd { Format::Vhd } else { Format::Raw })
}

fn read(file: &dyn ReadAt, offset: u64, length: u64) -> Result<Vec<u8>> {
    let mut bytes = vec![0; usize::try_from(length).unwrap_or(0)];
    file.read_at(offset, &mut bytes)?;
    Ok(bytes)
}
