//! Bytes of what is written: headers, markers, descriptors. Pure.

use super::SECTOR_BYTES;
use super::descriptor::ContentId;
use crate::field::{bytes, put};
use crate::{Error, ErrorKind, Result};

/// Bytes of a grain, the same in every image written here.
pub(super) const GRAIN_BYTES: u64 = 64 * 1024;
/// Entries of a grain table.
pub(super) const TABLE_ENTRIES: u64 = 512;
/// Bytes of a grain table.
pub(super) const TABLE_BYTES: u64 = TABLE_ENTRIES * 4;
/// Guest bytes under one grain table.
pub(super) const TABLE_COVERS: u64 = TABLE_ENTRIES * GRAIN_BYTES;
/// Sectors kept for the descriptor, behind the header.
pub(super) const DESCRIPTOR_SECTORS: u64 = 20;

/// What a new VMDK shall be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VmdkOptions {
    /// Bytes of the virtual disk, a multiple of 512, at most 2 TiB.
    pub size_bytes: u64,
    /// Content id to record; any value but `ffffffff` and `fffffffe`, different for every content.
    pub cid: ContentId,
    /// Name of the file, as the descriptor repeats it.
    pub name: String,
}

/// The two layouts written here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Written {
    MonolithicSparse,
    StreamOptimized,
}

impl VmdkOptions {
    /// Refuses what no VMDK can be.
    pub(super) fn judge(&self) -> Result<()> {
        let invalid = |text: String| {
            Err(Error::new(
                ErrorKind::Invalid,
                format!("vmdk creation: {text}"),
            ))
        };
        if self.size_bytes == 0
            || !self.size_bytes.is_multiple_of(SECTOR_BYTES)
            || self.size_bytes > 2 << 40
        {
            return invalid(format!(
                "a disk of {} bytes is not a whole number of 512-byte sectors up to 2 TiB",
                self.size_bytes
            ));
        }
        if self.cid.0 >= u32::MAX.saturating_sub(1) {
            return invalid(format!("content id {}", self.cid));
        }
        if self.name.is_empty()
            || self.name.len() > 1024
            || self.name.contains(['"', '\n', '\r', '\0'])
        {
            return invalid(format!("file name {:?}", self.name));
        }
        Ok(())
    }

    pub(super) fn table_count(&self) -> u64 {
        self.size_bytes.div_ceil(TABLE_COVERS)
    }

    /// The descriptor, padded to its sectors.
    pub(super) fn descriptor(&self, written: Written) -> Vec<u8> {
        let create_type = match written {
            Written::MonolithicSparse => "monolithicSparse",
            Written::StreamOptimized => "streamOptimized",
        };
        let sectors = self.size_bytes / SECTOR_BYTES;
        let cylinders = (sectors / (255 * 63)).clamp(1, 65_535);
        let text = format!(
            "# Disk DescriptorFile\nversion=1\nCID={}\nparentCID=ffffffff\ncreateType=\"{create_type}\"\n\n\
             # Extent description\nRW {sectors} SPARSE \"{}\"\n\n\
             # The Disk Data Base\n#DDB\n\n\
             ddb.adapterType = \"lsilogic\"\n\
             ddb.geometry.cylinders = \"{cylinders}\"\n\
             ddb.geometry.heads = \"255\"\n\
             ddb.geometry.sectors = \"63\"\n\
             ddb.virtualHWVersion = \"4\"\n",
            self.cid, self.name
        );
        let mut padded =
            vec![0u8; crate::field::index(DESCRIPTOR_SECTORS.saturating_mul(SECTOR_BYTES))];
        put(&mut padded, 0, text.as_bytes());
        debug_assert!(text.len() < padded.len());
        padded
    }

    /// The header, or the footer of a stream. Places are in sectors.
    pub(super) fn header(&self, written: Written, places: Places) -> [u8; 512] {
        let (version, flags, algorithm) = match written {
            // Valid newline test, redundant tables.
            Written::MonolithicSparse => (1u32, 0x3u32, 0u16),
            // Valid newline test, compressed grains, markers.
            Written::StreamOptimized => (3, 0x3_0001, 1),
        };
        let mut header = [0u8; 512];
        put(&mut header, 0, b"KDMV");
        put(&mut header, 4, &version.to_le_bytes());
        put(&mut header, 8, &flags.to_le_bytes());
        put(
            &mut header,
            12,
            &(self.size_bytes / SECTOR_BYTES).to_le_bytes(),
        );
        put(&mut header, 20, &(GRAIN_BYTES / SECTOR_BYTES).to_le_bytes());
        put(&mut header, 28, &1u64.to_le_bytes());
        put(&mut header, 36, &DESCRIPTOR_SECTORS.to_le_bytes());
        put(
            &mut header,
            44,
            &u32::try_from(TABLE_ENTRIES).unwrap_or(0).to_le_bytes(),
        );
        put(&mut header, 48, &places.redundant_directory.to_le_bytes());
        put(&mut header, 56, &places.directory.to_le_bytes());
        put(&mut header, 64, &places.first_grain.to_le_bytes());
        // Broken by a transfer that takes the file for text.
        put(&mut header, 73, b"\n \r\n");
        put(&mut header, 77, &algorithm.to_le_bytes());
        header
    }
}

/// Where a header says that things are, in sectors.
#[derive(Debug, Clone, Copy)]
pub(super) struct Places {
    pub redundant_directory: u64,
    pub directory: u64,
    pub first_grain: u64,
}

/// A marker of metadata in a stream: how many sectors follow, and of what.
pub(super) fn marker(sectors: u64, kind: u32) -> [u8; 512] {
    let mut marker = [0u8; 512];
    put(&mut marker, 0, &sectors.to_le_bytes());
    put(&mut marker, 12, &kind.to_le_bytes());
    marker
}

/// Little-endian entries, padded to whole sectors.
pub(super) fn encode_entries(entries: &[u32]) -> Vec<u8> {
    let mut raw: Vec<u8> = entries
        .iter()
        .flat_map(|entry| entry.to_le_bytes())
        .collect();
    let padded = bytes(raw.len())
        .checked_next_multiple_of(SECTOR_BYTES)
        .unwrap_or(0);
    raw.resize(crate::field::index(padded), 0);
    raw
}

/// A file offset as a table entry.
pub(super) fn sector_of(offset: u64) -> Result<u32> {
    u32::try_from(offset / SECTOR_BYTES).map_err(|_| {
        Error::new(
            ErrorKind::Unsupported,
            "vmdk: the file is longer than 2 TiB",
        )
    })
}
