//! The superblocks of MD.

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

use block::ReadAt;

use crate::partition::Guid;
use crate::volume::pieces::read_head;
use crate::{Result, field};

const MAGIC: u32 = 0xA92B_4EFC;
const MAGIC_BYTES: [u8; 4] = MAGIC.to_le_bytes();
/// More members than the format can name.
const MAX_ROLES: u32 = 384 * 16;

/// What a member is in its set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// The column of this number.
    Active(u32),
    /// Nothing yet.
    Spare,
    /// Thrown out.
    Faulty,
    /// Holds the journal.
    Journal,
}

/// What a member says about its set and itself.
#[derive(Debug, Clone)]
pub struct Superblock {
    /// "0.90" or "1.2".
    pub version: &'static str,
    /// Id of the set.
    pub set: Guid,
    /// Id of the member, where members have one.
    pub member: Option<Guid>,
    /// Name of the set, where sets have one.
    pub name: String,
    /// RAID level; -1 is linear.
    pub level: i32,
    /// Layout number of the level.
    pub layout: u32,
    /// Bytes of a chunk.
    pub chunk_bytes: u64,
    /// Columns of the set.
    pub columns: u32,
    /// Changes of the set so far.
    pub events: u64,
    /// Bytes of a column that are used; 0 where members may differ.
    pub column_bytes: u64,
    /// First byte of this member's data.
    pub data_offset: u64,
    /// Bytes of this member's data.
    pub data_bytes: u64,
    /// What this member is by its own superblock.
    pub role: Role,
    /// What every member is, by number of the device.
    pub roles: Vec<Role>,
    /// Number of this device in `roles`.
    pub device: u32,
    /// A reshape is under way.
    pub is_reshaping: bool,
    /// The member was being rebuilt, and how many bytes of it are right.
    pub recovered_bytes: Option<u64>,
    /// The set was not in step: parity or copies may be old.
    pub is_dirty: bool,
    /// The set has a journal.
    pub has_journal: bool,
}

/// Reads the superblock of a member, whatever its version.
///
/// # Errors
/// [`crate::ErrorKind::Io`] when the candidate cannot be read; a superblock that is damaged is none.
pub fn read_superblock(source: &dyn ReadAt) -> Result<Option<Superblock>> {
    let size = source.size_bytes();
    let sectors = size / 512;
    // As the kernel places it: 8 KiB before the end, on a 4 KiB boundary.
    let at_end = sectors.saturating_sub(16) & !7;
    for (place, version) in [(at_end, "1.0"), (0, "1.1"), (8, "1.2")] {
        if let Some(found) = read_one(source, place, version)? {
            return Ok(Some(found));
        }
    }
    let old = (size & !0xFFFF).saturating_sub(0x1_0000);
    let bytes = read_head(source, old, 4096)?;
    Ok(parse_old(&bytes, old).ok().flatten())
}

fn read_one(source: &dyn ReadAt, sector: u64, version: &'static str) -> Result<Option<Superblock>> {
    let offset = sector.saturating_mul(512);
    let head = read_head(source, offset, 256)?;
    if field::slice(&head, 0, 4)? != MAGIC_BYTES || field::u32_le(&head, 4)? != 1 {
        return Ok(None);
    }
    let count = field::u32_le(&head, 220)?;
    if count > MAX_ROLES || field::u64_le(&head, 144)? != sector {
        return Ok(None);
    }
    let length = usize::try_from(count)
        .unwrap_or(0)
        .saturating_mul(2)
        .saturating_add(256);
    let whole = read_head(source, offset, length)?;
    if !field::sum_holds(checksum(&whole)?, field::u32_le(&whole, 216)?) {
        return Ok(None);
    }
    parse_new(&whole, version).map(Some)
}

/// The sum of all words, folded; the field of the sum itself counts as zero.
fn checksum(bytes: &[u8]) -> Result<u32> {
    let mut sum = 0_u64;
    for (number, word) in bytes.chunks(4).enumerate() {
        if number == 54 {
            continue;
        }
        let value = match word.len() {
            4 => u64::from(field::u32_le(word, 0)?),
            2 | 3 => u64::from(field::u16_le(word, 0)?),
            _ => 0,
        };
        sum = sum.wrapping_add(value);
    }
    let folded = (sum & 0xFFFF_FFFF).wrapping_add(sum >> 32);
    Ok(u32::try_from(folded & 0xFFFF_FFFF).unwrap_or(0))
}

fn role(number: u16) -> Role {
    match number {
        0xFFFF => Role::Spare,
        0xFFFE => Role::Faulty,
        0xFFFD => Role::Journal,
        number => Role::Active(u32::from(number)),
    }
}

fn parse_new(bytes: &[u8], version: &'static str) -> Result<Superblock> {
    let features = field::u32_le(bytes, 8)?;
    let name = field::slice(bytes, 32, 32)?;
    let end = name.iter().position(|byte| *byte == 0).unwrap_or(32);
    let roles = bytes
        .get(256..)
        .unwrap_or_default()
        .chunks_exact(2)
        .map(|pair| field::u16_le(pair, 0).map(role))
        .collect::<Result<Vec<Role>>>()?;
    let device = field::u32_le(bytes, 160)?;
    let own = usize::try_from(device)
        .ok()
        .and_then(|at| roles.get(at))
        .copied()
        .unwrap_or(Role::Spare);
    let sectors = |at: usize| -> Result<u64> { Ok(field::u64_le(bytes, at)?.saturating_mul(512)) };
    let level = i32::from_le_bytes(field::u32_le(bytes, 72)?.to_le_bytes());
    Ok(Superblock {
        version,
        set: Guid::from_plain(bytes, 16)?,
        member: Some(Guid::from_plain(bytes, 168)?),
        name: String::from_utf8_lossy(field::slice(name, 0, end)?).into_owned(),
        level,
        layout: field::u32_le(bytes, 76)?,
        chunk_bytes: u64::from(field::u32_le(bytes, 88)?).saturating_mul(512),
        columns: field::u32_le(bytes, 92)?,
        events: field::u64_le(bytes, 200)?,
        column_bytes: sectors(80)?,
        data_offset: sectors(128)?,
        data_bytes: sectors(136)?,
        role: own,
        roles,
        device,
        is_reshaping: features & 4 != 0,
        recovered_bytes: if features & 2 == 0 {
            None
        } else {
            Some(sectors(152)?)
        },
        is_dirty: field::u64_le(bytes, 208)? != u64::MAX,
        has_journal: features & 0x200 != 0,
    })
}

/// Version 0.90, in the byte order of the machine that made it: only little-endian is read.
fn parse_old(bytes: &[u8], offset: u64) -> Result<Option<Superblock>> {
    if field::slice(bytes, 0, 4)? != MAGIC_BYTES || field::u32_le(bytes, 4)? != 0 {
        return Ok(None);
    }
    let word = |number: usize| field::u32_le(bytes, number.saturating_mul(4));
    let mut sum = 0_u64;
    for number in 0..1024 {
        if number != 38 {
            sum = sum.wrapping_add(u64::from(word(number)?));
        }
    }
    let folded = (sum & 0xFFFF_FFFF).wrapping_add(sum >> 32);
    if folded & 0xFFFF_FFFF != u64::from(word(38)?) || word(2)? != 90 {
        return Ok(None);
    }
    let mut id = Vec::new();
    for number in [5, 13, 14, 15] {
        id.extend(word(number)?.to_be_bytes());
    }
    let device = word(992)?;
    let mut roles = Vec::new();
    for number in 0..27_usize {
        // disk descriptor: number, major, minor, raid disk, state, 27 reserved
        let at = number.saturating_mul(32).saturating_add(128);
        let state = word(at.saturating_add(4))?;
        let column = word(at.saturating_add(3))?;
        roles.push(match state {
            _ if state & 1 != 0 => Role::Faulty,
            _ if state & 6 == 6 => Role::Active(column),
            _ => Role::Spare,
        });
    }
    let own_state = word(996)?;
    let role = match own_state {
        _ if own_state & 1 != 0 => Role::Faulty,
        _ if own_state & 6 == 6 => Role::Active(word(995)?),
        _ => Role::Spare,
    };
    let events = u64::from(word(40)?) << 32 | u64::from(word(39)?);
    let level = i32::from_le_bytes(word(7)?.to_le_bytes());
    Ok(Some(Superblock {
        version: "0.90",
        set: Guid::from_plain(&id, 0)?,
        member: None,
        name: String::new(),
        level,
        layout: word(64)?,
        chunk_bytes: u64::from(word(65)?),
        columns: word(10)?,
        events,
        column_bytes: u64::from(word(8)?).saturating_mul(1024),
        data_offset: 0,
        data_bytes: offset,
        role,
        roles,
        device,
        is_reshaping: word(3)? >= 91,
        recovered_bytes: None,
        is_dirty: word(32)? & 1 == 0,
        has_journal: false,
    }))
}
