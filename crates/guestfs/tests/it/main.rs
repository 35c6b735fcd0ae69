//! Tests of what is inside disks.

mod names;
mod corpus;
mod registry;
mod conformance;
mod images;
mod ntfs;
mod ext;
mod fat;
mod vmconfig;
mod xfs;
