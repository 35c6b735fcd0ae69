//! Operations of records, put together to transactions and their items.
//!
//! ```text
//!   record: (transaction:4 length:4 client:1 flags:1 spare:2 region)…      regions may be cut and go on in the next record
//!   transaction: start │ header:16 │ region… │ commit         item: its first region says (type:2 regions:2), others follow
//! ```
//!
//! **Invariants.** Only committed transactions are told, in the order of their commits. At most [`MAX_HELD_BYTES`] of
//! open ones are held; what does not fit together is an error.

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

use std::collections::HashMap;

use super::ring::Record;
use crate::{Error, ErrorKind, Result, field};

const OPERATION_BYTES: usize = 12;
const HEADER_BYTES: usize = 16;
/// `TRAN`, as a little-endian machine writes it.
const HEADER_MAGIC: u32 = 0x5452_414E;
/// Regions of one item.
const MAX_REGIONS: u16 = 4096;
/// A checkpoint of Linux is at most 32 MiB; several may be open.
const MAX_HELD_BYTES: usize = 64 << 20;
/// What a region costs besides its bytes.
const REGION_COST: usize = 64;

const TRANSACTION: u8 = 0x69;
const LOG: u8 = 0xAA;

const START: u8 = 1;
const COMMIT: u8 = 2;
const CONTINUES: u8 = 4;
const CONTINUED: u8 = 8;
const END: u8 = 0x10;
const UNMOUNT: u8 = 0x20;

/// Which regions are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Keep {
    /// The first of each item.
    Formats,
    All,
}

/// Something that a transaction changed.
#[derive(Debug, Default)]
pub(super) struct Item {
    total: u16,
    pub(super) regions: Vec<Vec<u8>>,
}

impl Item {
    /// What it is.
    pub(super) fn kind(&self) -> Result<u16> {
        field::u16_le(self.region(0)?, 0)
    }

    pub(super) fn region(&self, index: usize) -> Result<&[u8]> {
        self.regions
            .get(index)
            .map(Vec::as_slice)
            .ok_or_else(|| Error::corrupt(format!("an item without region {index}")))
    }
}

#[derive(Debug, Default)]
struct Open {
    lsn: u64,
    header: Vec<u8>,
    items: Vec<Item>,
    held_bytes: usize,
}

/// Transactions that are not committed yet.
pub(super) struct Transactions {
    keep: Keep,
    open: HashMap<u32, Open>,
    held_bytes: usize,
}

/// Is told of a committed transaction: when it began, and its items.
type Commit<'c> = &'c mut dyn FnMut(u64, Vec<Item>) -> Result<()>;

impl Transactions {
    pub(super) fn new(keep: Keep) -> Self {
        Self {
            keep,
            open: HashMap::new(),
            held_bytes: 0,
        }
    }

    /// Takes the operations of a record.
    pub(super) fn record(
        &mut self,
        record: &Record,
        body: &[u8],
        commit: Commit<'_>,
    ) -> Result<()> {
        let mut at = 0_usize;
        for _ in 0..record.operations {
            if at >= body.len() {
                break;
            }
            let transaction = field::u32_be(body, at)?;
            let length = field::u32_be(body, at.saturating_add(4))?;
            let client = field::u8_at(body, at.saturating_add(8))?;
            let flags = field::u8_at(body, at.saturating_add(9))?;
            if !matches!(client, TRANSACTION | LOG) {
                return Err(Error::corrupt(format!(
                    "an operation of client {client:#x}"
                )));
            }
            at = at.saturating_add(OPERATION_BYTES);
            let length = usize::try_from(length).unwrap_or(usize::MAX);
            let region = field::slice(body, at, length)?;
            at = at.saturating_add(length);
            self.operation(record.lsn, transaction, flags, region, commit)?;
        }
        Ok(())
    }

    fn operation(
        &mut self,
        lsn: u64,
        transaction: u32,
        flags: u8,
        region: &[u8],
        commit: Commit<'_>,
    ) -> Result<()> {
        let Some(open) = self.open.get_mut(&transaction) else {
            // The rest of one that began before the tail is not needed: all of it is in place.
            if flags & START != 0 {
                let open = Open {
                    lsn,
                    held_bytes: REGION_COST,
                    ..Open::default()
                };
                self.held_bytes = self.held_bytes.saturating_add(open.held_bytes);
                self.open.insert(transaction, open);
            }
            return self.check_room();
        };
        let mut kind = flags & !END;
        if kind & CONTINUED != 0 {
            kind &= !CONTINUES;
        }
        let before = open.held_bytes;
        match kind {
            0 | CONTINUES => open.add(region, self.keep)?,
            CONTINUED => open.go_on(region, self.keep)?,
            COMMIT | UNMOUNT => {
                let open = self.open.remove(&transaction).unwrap_or_default();
                self.held_bytes = self.held_bytes.saturating_sub(open.held_bytes);
                if kind == COMMIT {
                    commit(open.lsn, open.finish()?)?;
                }
                return Ok(());
            }
            other => {
                return Err(Error::corrupt(format!(
                    "an operation with flags {other:#x}"
                )));
            }
        }
        let grown = open.held_bytes.saturating_sub(before);
        self.held_bytes = self.held_bytes.saturating_add(grown);
        self.check_room()
    }

    fn check_room(&self) -> Result<()> {
        if self.held_bytes > MAX_HELD_BYTES {
            return Err(Error::new(
                ErrorKind::Limit,
                "its transactions are larger than is held in memory",
            ));
        }
        Ok(())
    }
}

impl Open {
    fn add(&mut self, region: &[u8], keep: Keep) -> Result<()> {
        if region.is_empty() {
            return Ok(());
        }
        if self.header.len() < HEADER_BYTES {
            let is_header = self.header.is_empty()
                && region.len() <= HEADER_BYTES
                && field::u32_le(region, 0)? == HEADER_MAGIC;
            if !is_header {
                return Err(Error::corrupt("a transaction without a header"));
            }
            self.header.extend_from_slice(region);
            return Ok(());
        }
        let is_full = |item: &Item| item.regions.len() >= usize::from(item.total);
        if self.items.last().is_none_or(is_full) {
            let total = field::u16_le(region, 2)?;
            if total == 0 || total > MAX_REGIONS {
                return Err(Error::corrupt(format!("an item of {total} regions")));
            }
            self.items.push(Item {
                total,
                regions: Vec::new(),
            });
        }
        if let Some(item) = self.items.last_mut() {
            item.regions.push(Vec::new());
        }
        self.held_bytes = self.held_bytes.saturating_add(REGION_COST);
        self.extend(region, keep);
        Ok(())
    }

    fn go_on(&mut self, region: &[u8], keep: Keep) -> Result<()> {
        if self.header.len() < HEADER_BYTES {
            self.header.extend_from_slice(region);
            if self.header.len() > HEADER_BYTES {
                return Err(Error::corrupt("a transaction with too long a header"));
            }
            return Ok(());
        }
        if self.items.is_empty() && !region.is_empty() {
            return Err(Error::corrupt("a region goes on that did not begin"));
        }
        self.extend(region, keep);
        Ok(())
    }

    fn extend(&mut self, bytes: &[u8], keep: Keep) {
        let Some(item) = self.items.last_mut() else {
            return;
        };
        let is_kept = keep == Keep::All || item.regions.len() == 1;
        if let Some(region) = item.regions.last_mut().filter(|_| is_kept) {
            region.extend_from_slice(bytes);
            self.held_bytes = self.held_bytes.saturating_add(bytes.len());
        }
    }

    fn finish(self) -> Result<Vec<Item>> {
        let whole = |item: &Item| item.regions.len() == usize::from(item.total);
        if !self.items.iter().all(whole) {
            return Err(Error::corrupt("an item without all its regions"));
        }
        Ok(self.items)
    }
}
