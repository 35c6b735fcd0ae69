//! The shape of an image, between the words of `vdisk` and the words of a recovery point.
//!
//! A point keeps texts, so that a later program's formats do no harm; what this program does not know is not restored as
//! such, and the caller must say which format to write instead.

use uuid::Uuid;
use vdisk::image::ImageProfile;
use vdisk::{DiskId, Format, ImageInfo, Subformat};

use crate::{Error, ErrorKind, Result};

const FORMATS: [(Format, &str); 5] = [
    (Format::Vhdx, "vhdx"),
    (Format::Vhd, "vhd"),
    (Format::Qcow2, "qcow2"),
    (Format::Vmdk, "vmdk"),
    (Format::Raw, "raw"),
];

const SUBFORMATS: [(Subformat, &str); 4] = [
    (Subformat::Fixed, "fixed"),
    (Subformat::Dynamic, "dynamic"),
    (Subformat::Differencing, "differencing"),
    (Subformat::StreamOptimized, "stream-optimized"),
];

/// The word of a format, as points keep it.
pub fn format_word(format: Format) -> &'static str {
    FORMATS
        .iter()
        .find(|(one, _)| *one == format)
        .map_or("raw", |(_, word)| word)
}

/// The word of a subformat, as points keep it.
pub fn subformat_word(subformat: Subformat) -> &'static str {
    SUBFORMATS
        .iter()
        .find(|(one, _)| *one == subformat)
        .map_or("fixed", |(_, word)| word)
}

/// What a point keeps of an image's shape.
pub fn profile_of(info: &ImageInfo) -> repo::ImageProfile {
    repo::ImageProfile {
        format: Some(format_word(info.format).to_owned()),
        subformat: Some(subformat_word(info.subformat).to_owned()),
        logical_sector_bytes: Some(info.logical_sector_bytes),
        physical_sector_bytes: Some(info.physical_sector_bytes),
        block_size_bytes: info.allocation_unit_bytes,
        disk_id: info.disk_id.map(|id| id.to_string()),
        ..repo::ImageProfile::default()
    }
}

/// The shape that a point says its disk had; a raw disk when it says nothing.
///
/// # Errors
/// [`ErrorKind::Unsupported`] when it names a format that this program does not know.
pub fn profile_from(kept: &repo::ImageProfile) -> Result<ImageProfile> {
    let Some(word) = &kept.format else {
        return Ok(ImageProfile::of(Format::Raw));
    };
    let Some((format, _)) = FORMATS.iter().find(|(_, known)| known == word) else {
        let shown: String = word.chars().take(40).collect();
        let what = format!("the version was an image of format {shown:?}; say which to write");
        return Err(Error::new(ErrorKind::Unsupported, what));
    };
    let mut profile = ImageProfile::of(*format);
    let known = SUBFORMATS
        .iter()
        .find(|(_, known)| kept.subformat.as_deref() == Some(*known));
    if let Some((subformat, _)) = known {
        profile.subformat = match subformat {
            // What a differencing image read through its parents comes back whole.
            Subformat::Differencing => Subformat::Dynamic,
            other => *other,
        };
    }
    profile.logical_sector_bytes = kept
        .logical_sector_bytes
        .unwrap_or(profile.logical_sector_bytes);
    profile.physical_sector_bytes = kept
        .physical_sector_bytes
        .unwrap_or(profile.physical_sector_bytes);
    profile.allocation_unit_bytes = kept.block_size_bytes;
    profile.disk_id = kept
        .disk_id
        .as_deref()
        .and_then(|id| Uuid::parse_str(id).ok())
        .map(DiskId);
    Ok(profile)
}
