//! A file record or an index block in memory, while the journal changes it: every place is checked.

use super::super::arithmetic::{minus, plus};
use super::super::record::{apply_fixups, protect};
use super::action::size;
use crate::{Error, Result, field};

/// Where both kinds have the LSN of the newest change in them.
const LSN_AT: usize = 8;

#[derive(Debug)]
pub(super) struct Block {
    bytes: Vec<u8>,
}

impl Block {
    /// Takes what lies on the volume.
    pub(super) fn open(mut bytes: Vec<u8>, magic: &[u8; 4]) -> Result<Self> {
        apply_fixups(&mut bytes, magic)?;
        Ok(Self { bytes })
    }

    /// A block that is about to be written as a whole.
    pub(super) fn zeroed(length: usize) -> Self {
        Self {
            bytes: vec![0; length],
        }
    }

    /// What is to lie on the volume.
    pub(super) fn finish(mut self) -> Result<Vec<u8>> {
        protect(&mut self.bytes)?;
        Ok(self.bytes)
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    pub(super) fn lsn(&self) -> Result<u64> {
        field::u64_le(&self.bytes, LSN_AT)
    }

    pub(super) fn set_lsn(&mut self, lsn: u64) -> Result<()> {
        self.put(LSN_AT, &lsn.to_le_bytes())
    }

    pub(super) fn byte(&self, at: usize) -> Result<u8> {
        field::u8_at(&self.bytes, at)
    }

    pub(super) fn short(&self, at: usize) -> Result<usize> {
        field::u16_le(&self.bytes, at).map(usize::from)
    }

    pub(super) fn size(&self, at: usize) -> Result<usize> {
        size(field::u32_le(&self.bytes, at)?)
    }

    pub(super) fn set_size(&mut self, at: usize, value: usize) -> Result<()> {
        let value = u32::try_from(value)
            .map_err(|_| Error::corrupt(format!("a length of {value} bytes")))?;
        self.put(at, &value.to_le_bytes())
    }

    /// Adds to a length, or takes away from it.
    pub(super) fn grow_size(&mut self, at: usize, count: usize) -> Result<()> {
        let value = plus(self.size(at)?, count)?;
        self.set_size(at, value)
    }

    pub(super) fn shrink_size(&mut self, at: usize, count: usize) -> Result<()> {
        let value = minus(self.size(at)?, count)?;
        self.set_size(at, value)
    }

    pub(super) fn put(&mut self, at: usize, data: &[u8]) -> Result<()> {
        let length = self.bytes.len();
        at.checked_add(data.len())
            .and_then(|end| self.bytes.get_mut(at..end))
            .ok_or_else(|| {
                Error::corrupt(format!(
                    "{} bytes put at {at} of a block of {length}",
                    data.len()
                ))
            })?
            .copy_from_slice(data);
        Ok(())
    }

    /// Moves what lies at `at..used` up by `count` bytes.
    pub(super) fn open_gap(&mut self, at: usize, count: usize, used: usize) -> Result<()> {
        let end = plus(used, count)?;
        if at > used || end > self.bytes.len() {
            return Err(Error::corrupt(format!(
                "{count} bytes do not fit at {at}, where {used} of {} are in use",
                self.bytes.len()
            )));
        }
        self.bytes.copy_within(at..used, plus(at, count)?);
        Ok(())
    }

    /// Moves what lies behind `count` bytes at `at` down over them.
    pub(super) fn close_gap(&mut self, at: usize, count: usize, used: usize) -> Result<()> {
        let from = plus(at, count)?;
        if from > used || used > self.bytes.len() {
            return Err(Error::corrupt(format!(
                "{count} bytes at {at} are not among the {used} in use"
            )));
        }
        self.bytes.copy_within(from..used, at);
        Ok(())
    }
}
