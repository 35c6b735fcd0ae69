//! Tests of what is inside disks.

mod btrfs;
mod conformance;
mod corpus;
mod encrypted;
mod ext;
mod fat;
mod images;
mod names;
mod ntfs;
mod partition;
mod probe;
mod registry;
mod vmconfig;
mod volumes;
mod xfs;
