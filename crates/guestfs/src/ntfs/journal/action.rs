//! What NTFS itself writes into a record of the log: an operation to redo, one to undo, and what they act upon.
//!
//! ```text
//!  0 redo │ 2 undo │ 4 redo data at, length │ 8 undo data at, length │ 12 attribute (offset in the table of open ones)
//!  14 clusters that follow │ 16 record offset │ 18 attribute offset │ 20 block of 512 in the cluster │ 24 cluster of the attribute
//!  32 where these clusters lie …
//! ```

use std::borrow::Cow;

use super::super::arithmetic::{length, plus};
use super::log::LogRecord;
use crate::{Error, Result, field};

const CLUSTERS_AT: usize = 32;
/// A flag of a record: what its redo data lacks is zeros. NTFS leaves a file's own bytes out of its log so.
const LACKS_ZEROS: u16 = 4;

/// What can be done or undone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Operation {
    Noop,
    Compensation,
    InitializeFileRecord,
    DeallocateFileRecord,
    WriteEndOfFileRecord,
    CreateAttribute,
    DeleteAttribute,
    UpdateResidentValue,
    UpdateNonresidentValue,
    UpdateMappingPairs,
    DeleteDirtyClusters,
    SetNewAttributeSizes,
    AddIndexEntryRoot,
    DeleteIndexEntryRoot,
    AddIndexEntryAllocation,
    DeleteIndexEntryAllocation,
    WriteEndOfIndexBuffer,
    SetIndexEntryVcnRoot,
    SetIndexEntryVcnAllocation,
    UpdateFileNameRoot,
    UpdateFileNameAllocation,
    SetBits,
    ClearBits,
    HotFix,
    EndTopLevelAction,
    PrepareTransaction,
    CommitTransaction,
    ForgetTransaction,
    OpenNonresidentAttribute,
    OpenAttributeTableDump,
    AttributeNamesDump,
    DirtyPageTableDump,
    TransactionTableDump,
    UpdateRecordDataRoot,
    UpdateRecordDataAllocation,
    ZeroEndOfFileRecord,
    /// One that nobody described.
    Unknown(u16),
}

/// By their numbers.
const OPERATIONS: [Operation; 35] = [
    Operation::Noop,
    Operation::Compensation,
    Operation::InitializeFileRecord,
    Operation::DeallocateFileRecord,
    Operation::WriteEndOfFileRecord,
    Operation::CreateAttribute,
    Operation::DeleteAttribute,
    Operation::UpdateResidentValue,
    Operation::UpdateNonresidentValue,
    Operation::UpdateMappingPairs,
    Operation::DeleteDirtyClusters,
    Operation::SetNewAttributeSizes,
    Operation::AddIndexEntryRoot,
    Operation::DeleteIndexEntryRoot,
    Operation::AddIndexEntryAllocation,
    Operation::DeleteIndexEntryAllocation,
    Operation::WriteEndOfIndexBuffer,
    Operation::SetIndexEntryVcnRoot,
    Operation::SetIndexEntryVcnAllocation,
    Operation::UpdateFileNameRoot,
    Operation::UpdateFileNameAllocation,
    Operation::SetBits,
    Operation::ClearBits,
    Operation::HotFix,
    Operation::EndTopLevelAction,
    Operation::PrepareTransaction,
    Operation::CommitTransaction,
    Operation::ForgetTransaction,
    Operation::OpenNonresidentAttribute,
    Operation::OpenAttributeTableDump,
    Operation::AttributeNamesDump,
    Operation::DirtyPageTableDump,
    Operation::TransactionTableDump,
    Operation::UpdateRecordDataRoot,
    Operation::UpdateRecordDataAllocation,
];

/// What an operation acts upon.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Subject {
    /// No page at all.
    Nothing,
    FileRecord,
    IndexBlock,
    /// Bits of a bitmap.
    Bits,
    /// Bytes of a stream, or an index block as a whole.
    Value,
    Unknown,
}

impl Operation {
    fn from_number(number: u16) -> Self {
        if number == 37 {
            return Self::ZeroEndOfFileRecord;
        }
        OPERATIONS
            .get(usize::from(number))
            .copied()
            .unwrap_or(Self::Unknown(number))
    }

    pub(super) fn subject(self) -> Subject {
        match self {
            Self::InitializeFileRecord
            | Self::DeallocateFileRecord
            | Self::WriteEndOfFileRecord
            | Self::CreateAttribute
            | Self::DeleteAttribute
            | Self::UpdateResidentValue
            | Self::UpdateMappingPairs
            | Self::SetNewAttributeSizes
            | Self::AddIndexEntryRoot
            | Self::DeleteIndexEntryRoot
            | Self::SetIndexEntryVcnRoot
            | Self::UpdateFileNameRoot
            | Self::UpdateRecordDataRoot
            | Self::ZeroEndOfFileRecord => Subject::FileRecord,
            Self::AddIndexEntryAllocation
            | Self::DeleteIndexEntryAllocation
            | Self::WriteEndOfIndexBuffer
            | Self::SetIndexEntryVcnAllocation
            | Self::UpdateFileNameAllocation
            | Self::UpdateRecordDataAllocation => Subject::IndexBlock,
            Self::SetBits | Self::ClearBits => Subject::Bits,
            Self::UpdateNonresidentValue => Subject::Value,
            Self::Unknown(_) => Subject::Unknown,
            _ => Subject::Nothing,
        }
    }
}

/// A change of NTFS, parsed.
#[derive(Debug)]
pub(super) struct Action<'a> {
    pub(super) lsn: u64,
    pub(super) redo: Operation,
    pub(super) undo: Operation,
    pub(super) target: u32,
    /// The first cluster of the attribute that is changed.
    pub(super) vcn: u64,
    /// Where it and those behind it lie.
    pub(super) clusters: Vec<u64>,
    pub(super) record_offset: usize,
    pub(super) attribute_offset: usize,
    /// Bytes from the beginning of the first cluster to the block that is changed.
    pub(super) block_offset: u64,
    flags: u16,
    data: &'a [u8],
    redo_data: (usize, usize),
    undo_data: (usize, usize),
}

/// One of the two directions of an action.
#[derive(Debug)]
pub(super) struct Change<'a> {
    pub(super) operation: Operation,
    pub(super) record_offset: usize,
    pub(super) attribute_offset: usize,
    pub(super) data: Cow<'a, [u8]>,
    /// How many bytes it replaces.
    pub(super) replaced_bytes: usize,
}

impl<'a> Action<'a> {
    pub(super) fn parse(record: &'a LogRecord) -> Result<Self> {
        let data = record.data.as_slice();
        let number = |at| field::u16_le(data, at).map(usize::from);
        let count = number(14)?;
        let clusters = (0..count)
            .map(|index| field::u64_le(data, plus(CLUSTERS_AT, index.saturating_mul(8))?))
            .collect::<Result<Vec<u64>>>()?;
        Ok(Self {
            lsn: record.lsn,
            redo: Operation::from_number(field::u16_le(data, 0)?),
            undo: Operation::from_number(field::u16_le(data, 2)?),
            target: u32::from(field::u16_le(data, 12)?),
            vcn: field::u64_le(data, 24)?,
            clusters,
            record_offset: number(16)?,
            attribute_offset: number(18)?,
            block_offset: u64::from(field::u16_le(data, 20)?).saturating_mul(512),
            flags: record.flags,
            data,
            redo_data: (number(4)?, number(6)?),
            undo_data: (number(8)?, number(10)?),
        })
    }

    fn change(
        &self,
        operation: Operation,
        data: Cow<'a, [u8]>,
        replaced_bytes: usize,
    ) -> Change<'a> {
        Change {
            operation,
            record_offset: self.record_offset,
            attribute_offset: self.attribute_offset,
            data,
            replaced_bytes,
        }
    }

    /// What to do again.
    pub(super) fn redo_change(&self) -> Result<Change<'a>> {
        let (at, size) = self.redo_data;
        let there = self.data.get(at..).unwrap_or_default();
        let there = there.get(..size.min(there.len())).unwrap_or_default();
        if there.len() == size {
            return Ok(self.change(self.redo, Cow::Borrowed(there), self.undo_data.1));
        }
        let is_known = matches!(
            self.redo,
            Operation::UpdateResidentValue
                | Operation::UpdateNonresidentValue
                | Operation::ZeroEndOfFileRecord
        );
        if !is_known || (self.flags & LACKS_ZEROS == 0 && !there.is_empty()) {
            return Err(Error::corrupt(format!(
                "{} bytes of {size} to redo {:?}",
                there.len(),
                self.redo
            )));
        }
        let mut filled = there.to_vec();
        filled.resize(size, 0);
        Ok(self.change(self.redo, Cow::Owned(filled), self.undo_data.1))
    }

    /// What to take back.
    pub(super) fn undo_change(&self) -> Result<Change<'a>> {
        let (at, size) = self.undo_data;
        let data = field::slice(self.data, at, size)
            .map_err(|error| error.within(format!("data to undo with {:?}", self.undo)))?;
        Ok(self.change(self.undo, Cow::Borrowed(data), self.redo_data.1))
    }

    /// A table, or anything else that reaches to the end of the record.
    pub(super) fn rest(&self) -> &'a [u8] {
        self.data.get(self.redo_data.0..).unwrap_or_default()
    }

    /// The name of an attribute that is opened.
    pub(super) fn name(&self) -> Result<&'a [u8]> {
        let (at, size) = self.undo_data;
        if size == 0 {
            return Ok(&[]);
        }
        field::slice(self.data, at, size)
    }

    /// Ranges of clusters that were given up: first and count.
    pub(super) fn ranges(&self) -> impl Iterator<Item = (u64, u64)> + 'a {
        let (at, size) = self.redo_data;
        let end = at.saturating_add(size).min(self.data.len());
        let ranges = self.data.get(at..end).unwrap_or_default();
        ranges.chunks_exact(16).filter_map(|range| {
            let first = field::u64_le(range, 0).ok()?;
            Some((first, field::u64_le(range, 8).ok()?))
        })
    }
}

/// First bit and count of an operation upon a bitmap.
pub(super) fn bits(data: &[u8]) -> Result<(u64, u64)> {
    Ok((
        u64::from(field::u32_le(data, 0)?),
        u64::from(field::u32_le(data, 4)?),
    ))
}

/// A length of the disk that a table in memory has.
pub(super) fn size(number: u32) -> Result<usize> {
    length(u64::from(number))
}
