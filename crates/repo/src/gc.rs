//! Garbage collection: the records of its generations.

pub(crate) mod records;
