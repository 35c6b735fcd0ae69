//! Into an existing image or device: it is read and hashed, and only the blocks that differ are fetched and written.
//!
//! What differs is known window by window, so that memory does not grow with the disk. Interrupted, it is run again.

use std::sync::{Mutex, PoisonError};

use block::geometry;
use block::sync::SlotSet;
use block::{BLOCK_SIZE_BYTES, BlockIndex, LeafIndex, ReadAt};
use repo::BulkRead;

use super::{FirstFailure, RestoreReport, Run};
use crate::compare::{LeafWindow, compare_with_tree};
use crate::job::Steps;
use crate::job::target::{InPlaceTarget, open_in_place};
use crate::{Error, ErrorKind, Result};

/// Leaves compared and then written: what differs in them is held in memory.
const LEAVES_PER_WINDOW: u64 = 16_384;

impl Run<'_> {
    pub(super) fn in_place(&self, report: &mut RestoreReport, steps: &mut Steps<'_>) -> Result<()> {
        let shown = self.request.target.display().to_string();
        let target = steps.step("open", &shown, || {
            open_in_place(&self.request.target, self.request.format, &self.request.ids)
        })?;
        let (has, needs) = (target.disk().size_bytes(), self.disk.length_bytes);
        if has != needs {
            let what = format!("{shown} is a disk of {has} bytes, the version one of {needs}");
            return Err(Error::new(ErrorKind::Invalid, what));
        }
        steps.step("write what differs", &shown, || {
            self.write_differences(&target, report)
        })?;
        steps.step("finish", &shown, || target.finish())
    }

    fn write_differences(&self, target: &InPlaceTarget, report: &mut RestoreReport) -> Result<()> {
        let leaves = geometry::leaf_count(self.disk.length_bytes);
        self.context
            .progress
            .begin("restoring in place", Some(self.disk.length_bytes));
        let mut next = 0;
        let mut result = Ok(());
        while next < leaves && result.is_ok() {
            let end = next.saturating_add(LEAVES_PER_WINDOW).min(leaves);
            let window = LeafWindow {
                first: LeafIndex(next),
                end: LeafIndex(end),
            };
            result = self.write_differences_in(target, window, report);
            next = end;
        }
        self.context.progress.end();
        result
    }

    fn write_differences_in(
        &self,
        target: &InPlaceTarget,
        window: LeafWindow,
        report: &mut RestoreReport,
    ) -> Result<()> {
        let disk = target.disk();
        let mut missing: Vec<(LeafIndex, SlotSet)> = Vec::new();
        let mut zeroed = 0u64;
        let zero = block::BlockHash::zero();
        let shown: &dyn ReadAt = disk;
        let tree = self.disk.tree();
        let cost = compare_with_tree(
            shown,
            tree,
            self.repository,
            window,
            self.context,
            |found| {
                let mut wanted = SlotSet::EMPTY;
                for slot in found.slots.iter() {
                    if found.wanted.block(slot) != zero {
                        wanted.insert(slot);
                        continue;
                    }
                    let offset = found
                        .leaf
                        .offset()
                        .saturating_add((slot as u64).saturating_mul(BLOCK_SIZE_BYTES));
                    let length =
                        BLOCK_SIZE_BYTES.min(self.disk.length_bytes.saturating_sub(offset));
                    disk.zero_range(offset, length)?;
                    zeroed = zeroed.saturating_add(length);
                }
                if !wanted.is_empty() {
                    missing.push((found.leaf, wanted));
                }
                Ok(())
            },
        )?;
        report.read_back_bytes = report.read_back_bytes.saturating_add(cost.read_bytes);
        report.zeroed_bytes = report.zeroed_bytes.saturating_add(zeroed);
        let Some(((first, _), (last, _))) = missing.first().zip(missing.last()) else {
            return Ok(());
        };
        let options = BulkRead {
            first: *first,
            end: Some(LeafIndex(last.0.saturating_add(1))),
            ..BulkRead::default()
        };
        let wanted = |block: BlockIndex, _| {
            let at = missing.binary_search_by_key(&block.leaf(), |(leaf, _)| *leaf);
            at.ok()
                .and_then(|at| missing.get(at))
                .is_some_and(|(_, slots)| slots.contains(block.slot()))
        };
        let written = Mutex::new(0u64);
        let failed = FirstFailure::default();
        let read = self.reader.read_leaves(&options, &wanted, &|leaf| {
            failed.keep(self.context.cancel.check())?;
            for (offset, run) in leaf.runs() {
                failed.keep(disk.write_at(offset, run).map_err(Error::from))?;
                *written.lock().unwrap_or_else(PoisonError::into_inner) += run.len() as u64;
            }
            Ok(())
        });
        failed.take_or(read)?;
        let written = written.into_inner().unwrap_or_else(PoisonError::into_inner);
        report.written_bytes = report.written_bytes.saturating_add(written);
        Ok(())
    }
}
