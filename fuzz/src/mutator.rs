//! Lies that are worth telling: fields of the images are changed where they stand, so that the rest stays an image.
//!
//! Three of four mutations set a field of 1, 2, 4 or 8 bytes, in either order, to a value that breaks programs: zero, the
//! largest, a power of two, one more or less, the value of another field. The others change sizes and runs, or are
//! left to libFuzzer. The choice follows from the seed alone.

use crate::case::{FILES, SECTOR_BYTES};
use crate::table::{HEADER_BYTES, RUN_BYTES, Table};

/// Numbers from a seed (SplitMix64).
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit.max(1) as u64) as usize
    }
}

/// Changes an input of `size` bytes in place; the new size. `other` is libFuzzer's own way.
pub fn mutate(
    data: &mut [u8],
    size: usize,
    max_size: usize,
    seed: u32,
    other: impl FnOnce(&mut [u8], usize, usize) -> usize,
) -> usize {
    let mut numbers = Numbers(u64::from(seed));
    let table = Table::of(&data[..size]);
    if table.runs.is_empty() || numbers.below(16) == 0 {
        return other(data, size, max_size);
    }
    let input = &mut data[..size];
    for _ in 0..=numbers.below(4) {
        match numbers.below(12) {
            0 => change_size(input, &mut numbers),
            1 => change_run(input, &table, &mut numbers),
            2 => copy_sector(input, &table, &mut numbers),
            _ => change_field(input, &table, &mut numbers),
        }
    }
    size
}

fn change_size(input: &mut [u8], numbers: &mut Numbers) {
    let at = numbers.below(FILES) * 8;
    let Some(Ok(bytes)) = input.get(at..at + 8).map(<[u8; 8]>::try_from) else {
        return;
    };
    let size = u64::from_le_bytes(bytes);
    let new = match numbers.below(6) {
        0 => size / 2,
        1 => size.saturating_sub(1 + numbers.next() % 4096),
        2 => size.saturating_add(1 + numbers.next() % 65536),
        3 => size.saturating_mul(2),
        4 => numbers.next() >> (numbers.next() % 64),
        _ => size.checked_next_multiple_of(1 << 20).unwrap_or(size),
    };
    input[at..at + 8].copy_from_slice(&new.to_le_bytes());
}

fn change_run(input: &mut [u8], table: &Table, numbers: &mut Numbers) {
    let one = HEADER_BYTES + numbers.below(table.runs.len()) * RUN_BYTES;
    let two = HEADER_BYTES + numbers.below(table.runs.len()) * RUN_BYTES;
    if one.max(two) + RUN_BYTES > input.len() {
        return;
    }
    match numbers.below(3) {
        // The contents of two runs change places.
        0 => (4..8).for_each(|byte| input.swap(one + byte, two + byte)),
        1 => input[one] = numbers.below(FILES) as u8,
        _ => {
            let number = (numbers.next() >> (32 + numbers.next() % 32)) as u32;
            input[one + 4..one + 8].copy_from_slice(&number.to_le_bytes());
        }
    }
}

/// A byte of the data of some run, which every sector is as likely to hold as every other.
fn place(input: &[u8], table: &Table, numbers: &mut Numbers) -> Option<usize> {
    let total: usize = table.runs.iter().map(|run| run.sectors).sum();
    let mut sector = numbers.below(total);
    for run in &table.runs {
        if sector < run.sectors {
            let at = run.at + sector * SECTOR_BYTES;
            return (at + SECTOR_BYTES <= input.len()).then_some(at);
        }
        sector -= run.sectors;
    }
    None
}

fn copy_sector(input: &mut [u8], table: &Table, numbers: &mut Numbers) {
    let (Some(from), Some(to)) = (place(input, table, numbers), place(input, table, numbers))
    else {
        return;
    };
    match numbers.below(3) {
        0 => input[to..to + SECTOR_BYTES].fill(0),
        1 => input[to..to + SECTOR_BYTES].fill(0xFF),
        _ => input.copy_within(from..from + SECTOR_BYTES, to),
    }
}

fn change_field(input: &mut [u8], table: &Table, numbers: &mut Numbers) {
    let Some(sector) = place(input, table, numbers) else {
        return;
    };
    let width = 1 << numbers.below(4);
    // Zeros are mostly padding: looked for is a field that says something.
    let mut at = sector;
    for _ in 0..16 {
        at = sector + numbers.below(SECTOR_BYTES / width) * width;
        if input[at..at + width].iter().any(|byte| *byte != 0) {
            break;
        }
    }
    if numbers.below(8) == 0 {
        at = (at + numbers.below(width)).min(sector + SECTOR_BYTES - width);
    }
    let is_big_endian = numbers.below(3) == 0;
    let mut bytes = [0; 8];
    bytes[..width].copy_from_slice(&input[at..at + width]);
    if is_big_endian {
        bytes[..width].reverse();
    }
    let old = u64::from_le_bytes(bytes);
    let new = match numbers.below(12) {
        0 => 0,
        1 => u64::MAX,
        2 => 1 << numbers.below(width * 8),
        3 => (1_u64 << numbers.below(width * 8)).wrapping_sub(1),
        4 => old.wrapping_add(1),
        5 => old.wrapping_sub(1),
        6 => old ^ 1 << numbers.below(width * 8),
        7 => old.wrapping_mul(2),
        8 => old / 2,
        9 => old.wrapping_add(numbers.next() % 4096),
        10 => numbers.next(),
        _ => {
            let from = sector + numbers.below(SECTOR_BYTES / width) * width;
            bytes[..width].copy_from_slice(&input[from..from + width]);
            u64::from_le_bytes(bytes)
        }
    };
    bytes = new.to_le_bytes();
    if is_big_endian {
        bytes[..width].reverse();
    }
    input[at..at + width].copy_from_slice(&bytes[..width]);
}
