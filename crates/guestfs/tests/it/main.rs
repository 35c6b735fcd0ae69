//! Tests of what is inside disks.

mod corpus;
mod names;
mod conformance;
mod images;
mod ext;
mod registry;
mod ntfs;
