//! Thin volumes of device-mapper.
//!
//! ```text
//!   block 0  crc │ … │ magic 27022010 at 32 │ version │ … │ 320 root of mappings │ 328 details │ 336 chunk sectors
//!   mappings   device ─► root of its tree;   virtual chunk ─► data chunk << 24 | time
//!   node       crc │ flags (1 inner, 2 leaf) │ its block u64 │ entries │ most │ value bytes │ 0 ; keys u64 … ; values …
//! ```
//!
//! Metadata blocks have 4096 bytes; all numbers are little-endian. Source: Linux `drivers/md/dm-thin-metadata.c`,
//! `persistent-data/dm-btree-internal.h`.

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

use std::sync::{Arc, Mutex};

use block::{Extent, ExtentKind, ReadAt};

use crate::volume::pieces::{Source, check_extent, check_range, distance, read_exact, take};
use crate::{Error, Result, field};

const BLOCK_BYTES: u64 = 4096;
const SUPERBLOCK_SALT: u32 = 160_774;
const NODE_SALT: u32 = 121_107;
const MAGIC: u64 = 27_022_010;
/// A tree of 4096-byte nodes over 2^64 keys has at most nine levels.
const MAX_DEPTH: usize = 16;
const CACHED_NODES: usize = 512;

/// The checksum of device-mapper: CRC-32C without the last inversion, salted by the kind of block.
fn checksum(block: &[u8], salt: u32) -> Result<u32> {
    let covered = field::slice(block, 4, block.len().saturating_sub(4))?;
    Ok(!crc32c::crc32c(covered) ^ salt)
}

/// A node, checked.
struct Node {
    bytes: Vec<u8>,
    is_leaf: bool,
    entries: usize,
    values_at: usize,
}

impl Node {
    fn key(&self, number: usize) -> Result<u64> {
        field::u64_le(&self.bytes, number.saturating_mul(8).saturating_add(32))
    }

    fn value(&self, number: usize) -> Result<u64> {
        field::u64_le(
            &self.bytes,
            number.saturating_mul(8).saturating_add(self.values_at),
        )
    }

    /// How many keys are not above this one.
    fn up_to(&self, key: u64) -> Result<usize> {
        let (mut low, mut high) = (0, self.entries);
        while low < high {
            let middle = low.midpoint(high);
            if self.key(middle)? <= key {
                low = middle.saturating_add(1);
            } else {
                high = middle;
            }
        }
        Ok(low)
    }
}

/// What a tree says about a key.
enum Found {
    Value(u64),
    /// Nothing below this key.
    NothingBelow(u64),
}

/// A pool: its metadata and its data.
pub(super) struct ThinPool {
    metadata: Source,
    data: Source,
    root: u64,
    chunk_bytes: u64,
    /// Most recently used last.
    nodes: Mutex<Vec<(u64, Arc<Node>)>>,
}

impl ThinPool {
    pub(super) fn open(metadata: Source, data: Source) -> Result<Self> {
        let head = read_exact(&*metadata, 0, 4096)?;
        if field::u64_le(&head, 32)? != MAGIC {
            return Err(Error::corrupt("the pool's metadata has no magic"));
        }
        let sum = checksum(&head, SUPERBLOCK_SALT)?;
        if !field::sum_holds(sum, field::u32_le(&head, 0)?) {
            return Err(Error::corrupt("checksum of the pool's superblock is wrong"));
        }
        let version = field::u32_le(&head, 40)?;
        if !matches!(version, 1 | 2) {
            return Err(Error::unsupported(format!(
                "thin pool of version {version}"
            )));
        }
        let chunk_bytes = u64::from(field::u32_le(&head, 336)?).saturating_mul(512);
        if !(64 * 1024..=1024 * 1024 * 1024).contains(&chunk_bytes) {
            return Err(Error::corrupt(format!(
                "pool with chunks of {chunk_bytes} bytes"
            )));
        }
        Ok(Self {
            root: field::u64_le(&head, 320)?,
            metadata,
            data,
            chunk_bytes,
            nodes: Mutex::new(Vec::new()),
        })
    }

    fn node(&self, block: u64) -> Result<Arc<Node>> {
        let mut nodes = self
            .nodes
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some(at) = nodes.iter().rposition(|(known, _)| *known == block) {
            let entry = nodes.remove(at);
            let node = Arc::clone(&entry.1);
            nodes.push(entry);
            return Ok(node);
        }
        let node = Arc::new(self.read_node(block)?);
        if nodes.len() >= CACHED_NODES {
            nodes.remove(0);
        }
        nodes.push((block, Arc::clone(&node)));
        Ok(node)
    }

    fn read_node(&self, block: u64) -> Result<Node> {
        let wrong = |what: &str| Error::corrupt(format!("thin metadata, block {block}: {what}"));
        let offset = block
            .checked_mul(BLOCK_BYTES)
            .filter(|_| block != 0)
            .ok_or_else(|| wrong("cannot be there"))?;
        let bytes = read_exact(&*self.metadata, offset, 4096)
            .map_err(|error| error.within(format!("thin metadata, block {block}")))?;
        let sum = checksum(&bytes, NODE_SALT)?;
        if !field::sum_holds(sum, field::u32_le(&bytes, 0)?) {
            return Err(wrong("checksum is wrong"));
        }
        if field::u64_le(&bytes, 8)? != block {
            return Err(wrong("says that it lies elsewhere"));
        }
        let is_leaf = match field::u32_le(&bytes, 4)? & 3 {
            1 => false,
            2 => true,
            _ => return Err(wrong("is neither inner node nor leaf")),
        };
        let entries = usize::try_from(field::u32_le(&bytes, 16)?).unwrap_or(usize::MAX);
        let most = usize::try_from(field::u32_le(&bytes, 20)?).unwrap_or(usize::MAX);
        let fits = most
            .checked_mul(16)
            .is_some_and(|length| length <= 4096 - 32);
        if entries > most || !fits || field::u32_le(&bytes, 24)? != 8 {
            return Err(wrong("has impossible numbers"));
        }
        Ok(Node {
            bytes,
            is_leaf,
            entries,
            values_at: most.saturating_mul(8).saturating_add(32),
        })
    }

    fn find(&self, root: u64, key: u64) -> Result<Found> {
        let mut block = root;
        let mut bound = u64::MAX;
        for _ in 0..MAX_DEPTH {
            let node = self.node(block)?;
            let up_to = node.up_to(key)?;
            if up_to < node.entries {
                bound = bound.min(node.key(up_to)?);
            }
            let Some(at) = up_to.checked_sub(1) else {
                return Ok(Found::NothingBelow(bound));
            };
            if !node.is_leaf {
                block = node.value(at)?;
            } else if node.key(at)? == key {
                return node.value(at).map(Found::Value);
            } else {
                return Ok(Found::NothingBelow(bound));
            }
        }
        Err(Error::corrupt("thin metadata: a tree deeper than any"))
    }
}

/// One thin volume.
pub(super) struct ThinVolume {
    pool: Arc<ThinPool>,
    root: u64,
    size_bytes: u64,
    origin: Option<Source>,
}

impl ThinVolume {
    pub(super) fn open(
        pool: Arc<ThinPool>,
        device: u64,
        size_bytes: u64,
        origin: Option<Source>,
    ) -> Result<Self> {
        let Found::Value(root) = pool.find(pool.root, device)? else {
            return Err(Error::corrupt(format!("the pool has no device {device}")));
        };
        Ok(Self {
            pool,
            root,
            size_bytes,
            origin,
        })
    }

    /// Where a byte lies in the data (if anywhere), and for how many bytes that answer holds.
    fn place(&self, offset: u64) -> Result<(Option<u64>, u64)> {
        let chunk_bytes = self.pool.chunk_bytes;
        let chunk = offset.checked_div(chunk_bytes).unwrap_or(0);
        let inside = offset.checked_rem(chunk_bytes).unwrap_or(0);
        Ok(match self.pool.find(self.root, chunk)? {
            Found::Value(value) => (
                Some(
                    (value >> 24)
                        .saturating_mul(chunk_bytes)
                        .saturating_add(inside),
                ),
                chunk_bytes.saturating_sub(inside),
            ),
            Found::NothingBelow(next) => {
                let end = next
                    .max(chunk.saturating_add(1))
                    .saturating_mul(chunk_bytes);
                (None, end.saturating_sub(offset))
            }
        })
    }

    fn read_unmapped(&self, offset: u64, buffer: &mut [u8]) -> block::Result<()> {
        match &self.origin {
            // An origin may be shorter than the volume that stands on it.
            Some(origin) => block::read_padded(&**origin, offset, buffer),
            None => {
                buffer.fill(0);
                Ok(())
            }
        }
    }
}

impl ReadAt for ThinVolume {
    fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> block::Result<()> {
        check_range(offset, distance(buffer.len()), self.size_bytes)?;
        let mut at = offset;
        let mut rest = buffer;
        while !rest.is_empty() {
            let (place, length) = self.place(at)?;
            let here = take(length, &mut rest);
            match place {
                Some(place) => self.pool.data.read_at(place, here)?,
                None => self.read_unmapped(at, here)?,
            }
            at = at.saturating_add(distance(here.len()));
        }
        Ok(())
    }

    fn extent_at(&self, offset: u64, limit_bytes: u64) -> block::Result<Extent> {
        let limit = check_extent(offset, limit_bytes, self.size_bytes)?;
        let (place, length) = self.place(offset)?;
        let is_nothing = place.is_none() && self.origin.is_none();
        Ok(Extent {
            offset,
            length_bytes: length.min(limit),
            kind: if is_nothing {
                ExtentKind::Unallocated
            } else {
                ExtentKind::Data
            },
        })
    }
}
