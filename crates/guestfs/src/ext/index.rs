//! The index of a directory (htree): from the hash of a name to the blocks that may have it.
//!
//! ```text
//!   block 0: . and .. │ spare:4 hash:1 length:1 levels:1 flags:1 │ limit:2 count:2 block:4 (hash:4 block:4)…
//!   node:    an empty entry of 8 bytes                           │ the same
//!     an entry covers hashes from its own up to the next one's; one with its lowest bit set goes on with the same hash
//! ```
//!
//! **Invariants.** At most [`MAX_LEVELS`] levels, and no block twice: an index that is longer is damaged.
//!
//! Source: Linux `fs/ext4/namei.c`, `fs/ext4/hash.c`; what debugfs says of hashes.

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

use std::collections::HashSet;
use std::ops::ControlFlow;
use std::sync::Arc;

use super::Ext;
use super::inode::Inode;
use super::map::Place;
use crate::field::{slice, u8_at, u16_le, u32_le};
use crate::filesystem::DirectoryCursor;
use crate::{Error, FileId, FileName, Result};

/// Levels below the root: two, three with `large_dir`.
const MAX_LEVELS: u8 = 3;
const UNSIGNED: u8 = 3;

/// How names are hashed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Legacy,
    HalfMd4,
    Tea,
}

/// Whether bytes above 127 count as negative, as on the machine that made the file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sign {
    Signed,
    Unsigned,
}

impl Ext {
    /// Whose name this is in a directory with an index.
    pub(super) fn find_indexed(&self, inode: &Inode, name: &FileName) -> Result<Option<FileId>> {
        let root = self.index_block(inode, 0)?;
        let info = usize::from(u8_at(&root, 29)?);
        let levels = u8_at(&root, 30)?;
        if info != 8 || levels > MAX_LEVELS {
            return Err(Error::corrupt(format!("an index of {levels} levels")));
        }
        let (kind, sign) = self.hash_kind(u8_at(&root, 28)?)?;
        let wanted = hash(name.as_bytes(), kind, sign, &self.superblock.hash_seed);
        let mut seen = HashSet::new();
        let mut blocks = covering(&root, 32, wanted)?;
        for _ in 0..levels {
            let mut below = Vec::new();
            for block in blocks {
                if !seen.insert(block) {
                    return Err(Error::corrupt("an index that meets itself"));
                }
                let node = self.index_block(inode, block)?;
                below.extend(covering(&node, 8, wanted)?);
            }
            blocks = below;
        }
        for block in blocks {
            if !seen.insert(block) {
                return Err(Error::corrupt("an index that meets itself"));
            }
            if let Some(found) = self.find_in_block(inode, block, name)? {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }

    fn hash_kind(&self, stored: u8) -> Result<(Kind, Sign)> {
        let sign = if stored >= UNSIGNED || self.superblock.has_unsigned_hash {
            Sign::Unsigned
        } else {
            Sign::Signed
        };
        let kind = match stored {
            0 | 3 => Kind::Legacy,
            1 | 4 => Kind::HalfMd4,
            2 | 5 => Kind::Tea,
            other => {
                return Err(Error::unsupported(format!(
                    "names hashed by method {other}"
                )));
            }
        };
        Ok((kind, sign))
    }

    fn index_block(&self, inode: &Inode, logical: u64) -> Result<Arc<[u8]>> {
        let run = self.run_at(inode, logical)?;
        let Place::Written(block) = run.place else {
            return Err(Error::corrupt(format!("a hole at block {logical}")));
        };
        let block = self.cache.block(block)?;
        self.check_directory_block(inode, &block)?;
        Ok(block)
    }

    fn find_in_block(
        &self,
        inode: &Inode,
        logical: u64,
        name: &FileName,
    ) -> Result<Option<FileId>> {
        let block = self.index_block(inode, logical)?;
        let mut found = None;
        let _ = self.tell_block(&block, DirectoryCursor::default(), &mut |entry| {
            if entry.name == *name {
                found = Some(entry.file);
                return ControlFlow::Break(());
            }
            ControlFlow::Continue(())
        })?;
        Ok(found)
    }
}

/// The blocks below a node that may have a hash.
fn covering(node: &[u8], at: usize, wanted: u32) -> Result<Vec<u64>> {
    let count = usize::from(u16_le(node, at.saturating_add(2))?);
    let entries = slice(node, at, count.saturating_mul(8))?;
    let mut blocks = Vec::new();
    for (index, entry) in entries.chunks_exact(8).enumerate() {
        // The first covers everything from zero on; limit and count stand in its place.
        let hash = if index == 0 { 0 } else { u32_le(entry, 0)? };
        if hash <= wanted {
            blocks.clear();
        } else if hash & !1 != wanted {
            break;
        }
        blocks.push(u64::from(u32_le(entry, 4)? & 0x0FFF_FFFF));
    }
    if blocks.is_empty() {
        return Err(Error::corrupt("an index without entries"));
    }
    Ok(blocks)
}

/// The hash of a name; its lowest bit is always clear.
fn hash(name: &[u8], kind: Kind, sign: Sign, seed: &[u32; 4]) -> u32 {
    const DEFAULT: [u32; 4] = [0x6745_2301, 0xEFCD_AB89, 0x98BA_DCFE, 0x1032_5476];
    let mut state = if seed.iter().all(|&word| word == 0) {
        DEFAULT
    } else {
        *seed
    };
    let found = match kind {
        Kind::Legacy => legacy(name, sign),
        Kind::HalfMd4 => {
            for start in (0..name.len()).step_by(32) {
                half_md4(&mut state, &words(name.get(start..).unwrap_or(&[]), sign));
            }
            let [_, hash, ..] = state;
            hash
        }
        Kind::Tea => {
            for start in (0..name.len()).step_by(16) {
                tea(&mut state, &words(name.get(start..).unwrap_or(&[]), sign));
            }
            let [hash, ..] = state;
            hash
        }
    };
    // The largest is kept for the end of a directory.
    match found & !1 {
        0xFFFF_FFFE => 0xFFFF_FFFC,
        hash => hash,
    }
}

fn widen(byte: u8, sign: Sign) -> u32 {
    match sign {
        Sign::Unsigned => u32::from(byte),
        Sign::Signed => i32::from(byte.cast_signed()).cast_unsigned(),
    }
}

fn legacy(name: &[u8], sign: Sign) -> u32 {
    let (mut newer, mut older) = (0x12A3_FE2D_u32, 0x37AB_E8F9_u32);
    for &byte in name {
        let mixed = newer ^ widen(byte, sign).wrapping_mul(7_152_373);
        let mut hash = older.wrapping_add(mixed);
        if hash & 0x8000_0000 != 0 {
            hash = hash.wrapping_sub(0x7FFF_FFFF);
        }
        older = newer;
        newer = hash;
    }
    newer << 1
}

/// Up to `N` words of a name, most significant byte first, filled up with its length.
fn words<const N: usize>(name: &[u8], sign: Sign) -> [u32; N] {
    let length = u32::try_from(name.len()).unwrap_or(u32::MAX);
    let pad = length | length << 8;
    let pad = pad | pad << 16;
    let mut words = [pad; N];
    for (word, bytes) in words.iter_mut().zip(name.chunks(4)) {
        *word = bytes
            .iter()
            .fold(pad, |word, &byte| widen(byte, sign).wrapping_add(word << 8));
    }
    words
}

fn half_md4(state: &mut [u32; 4], input: &[u32; 8]) {
    /// Which word, and how far to turn.
    type Step = (usize, u32);
    type Mix = fn(u32, u32, u32) -> u32;
    const ROUNDS: [(u32, Mix, [Step; 8]); 3] = [
        (
            0,
            |x, y, z| z ^ (x & (y ^ z)),
            [
                (0, 3),
                (1, 7),
                (2, 11),
                (3, 19),
                (4, 3),
                (5, 7),
                (6, 11),
                (7, 19),
            ],
        ),
        (
            0x5A82_7999,
            |x, y, z| (x & y).wrapping_add((x ^ y) & z),
            [
                (1, 3),
                (3, 5),
                (5, 9),
                (7, 13),
                (0, 3),
                (2, 5),
                (4, 9),
                (6, 13),
            ],
        ),
        (
            0x6ED9_EBA1,
            |x, y, z| x ^ y ^ z,
            [
                (3, 3),
                (7, 9),
                (2, 11),
                (6, 15),
                (1, 3),
                (5, 9),
                (0, 11),
                (4, 15),
            ],
        ),
    ];
    let [mut a, mut b, mut c, mut d] = *state;
    for (constant, mix, steps) in ROUNDS {
        for (word, turn) in steps {
            let word = input.get(word).copied().unwrap_or(0);
            let sum = a
                .wrapping_add(mix(b, c, d))
                .wrapping_add(word)
                .wrapping_add(constant);
            (a, b, c, d) = (d, sum.rotate_left(turn), b, c);
        }
    }
    for (word, more) in state.iter_mut().zip([a, b, c, d]) {
        *word = word.wrapping_add(more);
    }
}

fn tea(state: &mut [u32; 4], input: &[u32; 4]) {
    let [a, b, c, d] = *input;
    let [mut first, mut second, ..] = *state;
    let mut sum = 0_u32;
    let mix = |word: u32, low: u32, sum: u32, high: u32| {
        (word << 4).wrapping_add(low) ^ word.wrapping_add(sum) ^ (word >> 5).wrapping_add(high)
    };
    for _ in 0..16 {
        sum = sum.wrapping_add(0x9E37_79B9);
        first = first.wrapping_add(mix(second, a, sum, b));
        second = second.wrapping_add(mix(first, c, sum, d));
    }
    for (word, more) in state.iter_mut().zip([first, second]) {
        *word = word.wrapping_add(more);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_are_those_of_debugfs() {
        // Its command `dx_hash`, without a seed and with 00112233-4455-6677-8899-aabbccddeeff.
        let seed = [0x3322_1100, 0x7766_5544, 0xBBAA_9988, 0xFFEE_DDCC];
        let long = "a_longer_name_than_thirty_two_characters_is_this_one";
        for (kind, name, bare, seeded) in [
            (Kind::Legacy, "foobar", 0xADC0_8FBA, 0xADC0_8FBA),
            (Kind::Legacy, long, 0xB7EB_0C76, 0xB7EB_0C76),
            (Kind::Legacy, "naïve", 0x442F_7420, 0x442F_7420),
            (Kind::HalfMd4, "foobar", 0xF8B1_8EA8, 0x5AF1_D050),
            (Kind::HalfMd4, long, 0x75D7_EA24, 0x2DB6_7F18),
            (Kind::HalfMd4, "naïve", 0x1B42_012A, 0x58C3_EE5C),
            (Kind::Tea, "foobar", 0x2A00_48C2, 0x4E64_46A8),
            (Kind::Tea, long, 0x38F4_E95C, 0xFB13_DC12),
            (Kind::Tea, "naïve", 0x784C_5732, 0x82A8_9006),
        ] {
            let found = hash(name.as_bytes(), kind, Sign::Signed, &[0; 4]);
            assert_eq!(found, bare, "{kind:?} {name}: {found:#x}");
            let found = hash(name.as_bytes(), kind, Sign::Signed, &seed);
            assert_eq!(found, seeded, "{kind:?} {name}: {found:#x}");
        }
    }

    #[test]
    fn the_same_hash_may_go_on_in_the_next_block() {
        let mut node = vec![0; 8 + 5 * 8];
        for (index, (hash, block)) in [(0, 1), (100, 2), (201, 3), (201, 4), (300, 5)]
            .into_iter()
            .enumerate()
        {
            let at = 8 + index * 8;
            node[at..at + 4].copy_from_slice(&u32::to_le_bytes(hash));
            node[at + 4..at + 8].copy_from_slice(&u32::to_le_bytes(block));
        }
        node[8..12].copy_from_slice(&[10, 0, 5, 0]);
        assert_eq!(covering(&node, 8, 50).expect("sound"), [1]);
        assert_eq!(covering(&node, 8, 200).expect("sound"), [2, 3, 4]);
        assert_eq!(covering(&node, 8, 202).expect("sound"), [4]);
        assert_eq!(covering(&node, 8, 300).expect("sound"), [5]);
    }
}
