//! Making a new, empty VHD as Windows lays it out.
//!
//! ```text
//!   dynamic        0 footer copy │ 512 header │ 1536 table, to a multiple of 4 KiB │ … first block
//!   differencing   0 footer copy │ 512 header │ 4 KiB absolute path │ 8 KiB table │ relative path, 64 KiB │ … first block
//! ```
//!
//! A block is its bitmap and its data; it begins so that the *data* lie at a multiple of 4 KiB, and the footer stands
//! where the next block would begin.

use block::WriteAt;

use super::format::{
    COOKIE, DiskType, FOOTER_SIZE, Footer, Geometry, HEADER_SIZE, Header, LOCATOR_COUNT, Locator,
    MAX_DISK_BYTES, SECTOR_BYTES, VhdTime, encode_locator_path, length_u64,
};
use crate::{DiskId, Error, ErrorKind, Result};

/// Alignment of tables and data.
const PAGE_BYTES: u64 = 4096;
/// Room for the absolute path of a parent.
const ABSOLUTE_PATH_SPACE: u32 = 4096;
/// Room for the relative path of a parent.
const RELATIVE_PATH_SPACE: u32 = 65536;
/// What Windows uses.
pub const DEFAULT_BLOCK_BYTES: u32 = 2 << 20;

/// The parent of a new differencing image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ParentLink {
    /// The parent's unique id.
    pub id: DiskId,
    /// The parent's time of last change.
    pub time: VhdTime,
    /// The parent's path from the child's directory, in Windows' form (`.\parent.vhd`).
    pub relative_path: Option<String>,
    /// The parent's full path on Windows (`C:\disks\parent.vhd`).
    pub absolute_path: Option<String>,
}

/// How a new image takes its space.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Allocation {
    /// All of it from the start.
    Fixed,
    /// By blocks, as they are written.
    Dynamic,
    /// By blocks, on a parent.
    Differencing(ParentLink),
}

/// What a new image shall be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CreateOptions {
    /// Bytes of the disk: a multiple of 512, at most 2040 GiB. (Azure wants a multiple of 1 MiB, fixed.)
    pub size_bytes: u64,
    /// How it takes its space.
    pub allocation: Allocation,
    /// Bytes of a block: a power of two from 4 KiB to 256 MiB; Hyper-V writes 2 MiB.
    pub block_bytes: u32,
    /// Identity of the image.
    pub unique_id: DiskId,
    /// When it is made.
    pub time: VhdTime,
}

/// `win `, so that every reader takes the size and not the geometry; version 10 as on Windows 10 and later; `Wi2k`.
pub(super) const CREATOR: ([u8; 4], u32, u32) = (*b"win ", 0x000A_0000, 0x5769_326B);

/// Whether a disk may have this size.
pub(super) fn check_size(size_bytes: u64) -> Result<()> {
    if size_bytes == 0 || !size_bytes.is_multiple_of(SECTOR_BYTES) || size_bytes > MAX_DISK_BYTES {
        let context = format!("vhd of {size_bytes} bytes: must be whole sectors, at most 2040 GiB");
        return Err(Error::new(ErrorKind::Invalid, context));
    }
    Ok(())
}

/// Where the parts of a new image lie. Pure.
pub(super) struct Plan {
    pub footer: Footer,
    pub header: Option<Header>,
    /// Where the first block begins; for a fixed disk the footer's place.
    pub first_block: u64,
    table_bytes: u64,
    paths: Vec<(u64, Vec<u8>)>,
}

/// The first place from `from` on where a block may begin, so that its data are aligned behind its bitmap.
pub(super) fn next_block_start(from: u64, bitmap_bytes: u64) -> u64 {
    from.saturating_add(bitmap_bytes)
        .next_multiple_of(PAGE_BYTES)
        .saturating_sub(bitmap_bytes)
}

/// Bytes of the bitmap of a block: one bit per sector, to whole sectors.
pub(super) fn bitmap_bytes(block_bytes: u64) -> u64 {
    (block_bytes / SECTOR_BYTES)
        .div_ceil(8)
        .next_multiple_of(SECTOR_BYTES)
}

/// Decides the layout, or says what is wrong with the options.
pub(super) fn plan_layout(options: &CreateOptions) -> Result<Plan> {
    let size = options.size_bytes;
    check_size(size)?;
    let mut footer = Footer {
        header_offset: Some(FOOTER_SIZE),
        time: options.time,
        creator: CREATOR.0,
        creator_version: CREATOR.1,
        creator_os: CREATOR.2,
        original_size_bytes: size,
        current_size_bytes: size,
        geometry: Geometry::for_size(size),
        disk_type: DiskType::Dynamic,
        unique_id: options.unique_id,
        saved_state: 0,
    };
    let mut paths = Vec::new();
    let mut header = Header {
        table_offset: FOOTER_SIZE.saturating_add(HEADER_SIZE),
        table_entries: 0,
        block_bytes: options.block_bytes,
        parent_id: DiskId(uuid::Uuid::nil()),
        parent_time: VhdTime::default(),
        parent_name: String::new(),
        locators: [Locator::default(); LOCATOR_COUNT],
    };
    let block_bytes = u64::from(options.block_bytes);
    if !block_bytes.is_power_of_two() || !(4096..=256 << 20).contains(&block_bytes) {
        let context = format!("vhd block of {block_bytes} bytes: a power of two, 4 KiB to 256 MiB");
        return Err(Error::new(ErrorKind::Invalid, context));
    }
    header.table_entries = u32::try_from(size.div_ceil(block_bytes)).unwrap_or(u32::MAX);
    let table_bytes = u64::from(header.table_entries)
        .saturating_mul(4)
        .next_multiple_of(PAGE_BYTES);
    match &options.allocation {
        Allocation::Fixed => {
            (footer.header_offset, footer.disk_type) = (None, DiskType::Fixed);
            return Ok(Plan {
                footer,
                header: None,
                first_block: size,
                table_bytes: 0,
                paths,
            });
        }
        Allocation::Dynamic => {}
        Allocation::Differencing(parent) => {
            footer.disk_type = DiskType::Differencing;
            header.table_offset = PAGE_BYTES.saturating_mul(2);
            paths = plan_parent(&mut header, parent, table_bytes)?;
        }
    }
    let mut end = header.table_offset.saturating_add(table_bytes);
    for locator in header.locators.iter().filter(|it| it.length_bytes > 0) {
        end = end.max(locator.offset.saturating_add(u64::from(locator.space)));
    }
    let first_block = next_block_start(end, bitmap_bytes(block_bytes));
    Ok(Plan {
        footer,
        header: Some(header),
        first_block,
        table_bytes,
        paths,
    })
}

/// Puts the parent's identity and paths into the header; returns the paths' bytes and places.
fn plan_parent(
    header: &mut Header,
    parent: &ParentLink,
    table_bytes: u64,
) -> Result<Vec<(u64, Vec<u8>)>> {
    header.parent_id = parent.id;
    header.parent_time = parent.time;
    let name = parent
        .absolute_path
        .as_ref()
        .or(parent.relative_path.as_ref());
    header.parent_name = name.cloned().unwrap_or_default();
    let behind_table = header.table_offset.saturating_add(table_bytes);
    let wanted = [
        (
            *b"W2ku",
            &parent.absolute_path,
            PAGE_BYTES,
            ABSOLUTE_PATH_SPACE,
        ),
        (
            *b"W2ru",
            &parent.relative_path,
            behind_table,
            RELATIVE_PATH_SPACE,
        ),
    ];
    let mut paths = Vec::new();
    for ((platform, path, offset, space), locator) in wanted.into_iter().zip(&mut header.locators) {
        let Some(path) = path else { continue };
        let bytes = encode_locator_path(path);
        let length_bytes = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        if length_bytes > space {
            let context = format!("vhd parent path of {length_bytes} bytes");
            return Err(Error::new(ErrorKind::Invalid, context));
        }
        *locator = Locator {
            platform,
            space,
            length_bytes,
            offset,
        };
        paths.push((offset, bytes));
    }
    Ok(paths)
}

/// Writes everything but the footer at the end: header, empty table, parent's paths, and the footer copy under `cookie`.
pub(super) fn write_layout(file: &dyn WriteAt, plan: &Plan, cookie: [u8; 8]) -> Result<()> {
    let Some(header) = &plan.header else {
        file.set_size(plan.first_block)?;
        return Ok(());
    };
    static UNUSED: [u8; 64 * 1024] = [0xFF; 64 * 1024];
    file.write_at(FOOTER_SIZE, &header.encode())?;
    let (mut at, mut left) = (header.table_offset, plan.table_bytes);
    while left > 0 {
        let step = left.min(length_u64(&UNUSED));
        let (piece, _) = UNUSED.split_at(usize::try_from(step).unwrap_or(0).min(UNUSED.len()));
        file.write_at(at, piece)?;
        (at, left) = (at.saturating_add(step), left.saturating_sub(step));
    }
    for (offset, path) in &plan.paths {
        file.write_at(*offset, path)?;
    }
    file.set_size(plan.first_block)?;
    file.write_at(0, &plan.footer.encode_as(cookie))?;
    Ok(())
}

/// Makes an empty image in an empty file, durable when it returns. Filling a new image is faster through
/// [`VhdBuilder`](super::VhdBuilder).
pub fn create(file: &dyn WriteAt, options: &CreateOptions) -> Result<()> {
    let plan = plan_layout(options)?;
    write_layout(file, &plan, COOKIE)?;
    file.write_at(plan.first_block, &plan.footer.encode())?;
    file.flush()?;
    Ok(())
}
