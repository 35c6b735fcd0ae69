//! Tests of the crate from outside: corpora, other programs as second opinion, properties, crashes, hostile bytes.

mod convert;
mod image;
mod corpora;
mod merge;
mod vhd;
mod vhdx_read;
mod qcow2_read;
mod qcow2_tool;
mod vmdk_read;
mod vhdx_model;
mod vhdx_write;
mod vhdx_crash;
mod vhdx_repair;
mod vhdx_hostile;
mod qcow2_write;
mod qcow2_hostile;
mod vmdk_write;
