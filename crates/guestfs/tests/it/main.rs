//! Tests of what is inside disks.

mod names;
mod conformance;
mod images;
mod ext;
