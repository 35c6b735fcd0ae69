//! Sums and products of numbers that strangers wrote: checked, with an error that says so.

use crate::{Error, Result};

fn overflow() -> Error {
    Error::corrupt("a position behind everything that can be counted")
}

pub(super) fn add(left: u64, right: u64) -> Result<u64> {
    left.checked_add(right).ok_or_else(overflow)
}

pub(super) fn multiply(left: u64, right: u64) -> Result<u64> {
    left.checked_mul(right).ok_or_else(overflow)
}

/// A number of the disk as a length in memory.
pub(super) fn length(number: u64) -> Result<usize> {
    usize::try_from(number).map_err(|_| overflow())
}

/// The shorter of a length in memory and one on the disk.
pub(super) fn shorter(length: usize, limit_bytes: u64) -> usize {
    usize::try_from(limit_bytes).map_or(length, |limit| limit.min(length))
}

/// The sum of two lengths in memory.
pub(super) fn plus(left: usize, right: usize) -> Result<usize> {
    left.checked_add(right).ok_or_else(overflow)
}

/// What is left of a length in memory.
pub(super) fn minus(left: usize, right: usize) -> Result<usize> {
    left.checked_sub(right)
        .ok_or_else(|| Error::corrupt(format!("{right} bytes of {left}")))
}

/// The next multiple of eight.
pub(super) fn align_eight(length: usize) -> Result<usize> {
    length.checked_next_multiple_of(8).ok_or_else(overflow)
}
