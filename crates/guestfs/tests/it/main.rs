//! Tests of what is inside disks.

mod names;
mod corpus;
mod registry;
mod conformance;
mod images;
mod ntfs;
mod ext;
mod vmconfig;
mod partition;
mod probe;
mod volumes;
mod fat;
mod xfs;
