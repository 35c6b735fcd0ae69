//! What an image says about itself, the same words for every format.

use std::fmt;

/// A 16-byte identity as images carry it; shown the way Windows shows a GUID.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct DiskId(pub uuid::Uuid);

impl fmt::Display for DiskId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// The file format.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Format {
    /// Microsoft VHDX version 1 (`.vhdx`, `.avhdx`).
    Vhdx,
    /// Microsoft VHD version 1 (`.vhd`, `.avhd`).
    Vhd,
    /// QEMU qcow2, version 2 or 3.
    Qcow2,
    /// VMware VMDK.
    Vmdk,
    /// The bytes themselves.
    Raw,
}

/// How space is taken in the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Subformat {
    /// All space is there from the start.
    Fixed,
    /// Space is taken as the disk is written.
    Dynamic,
    /// Holds only what differs from a parent.
    Differencing,
    /// VMDK: compressed grains in one pass, as in an OVA.
    StreamOptimized,
}

/// What an image says about itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageInfo {
    /// The file format.
    pub format: Format,
    /// How space is taken in the file.
    pub subformat: Subformat,
    /// Bytes of the virtual disk.
    pub size_bytes: u64,
    /// Smallest unit the guest addresses: 512 or 4096.
    pub logical_sector_bytes: u32,
    /// Smallest unit the guest believes the medium writes: 512 or 4096.
    pub physical_sector_bytes: u32,
    /// Unit of allocation in the file, where there is one.
    pub allocation_unit_bytes: Option<u64>,
    /// Identity of the virtual disk, which clones and children inherit (VHDX page 83, VHD unique id).
    pub disk_id: Option<DiskId>,
    /// Where the parent is said to lie, most trusted first; empty when there is none.
    pub parent_paths: Vec<String>,
    /// A journal waits to be replayed (VHDX log, qcow2 dirty bit); reads already see it replayed.
    pub has_pending_log: bool,
    /// Program that wrote the image, if it says so.
    pub creator: Option<String>,
}
