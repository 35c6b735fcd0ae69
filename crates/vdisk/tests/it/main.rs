//! Tests of the crate from outside: corpora, other programs as second opinion, properties, crashes, hostile bytes.

mod convert;
mod corpora;
mod hostile;
mod image;
mod merge;
mod qcow2_hostile;
mod qcow2_read;
mod qcow2_tool;
mod qcow2_write;
mod resize;
mod vhd;
mod vhdx_crash;
mod vhdx_hostile;
mod vhdx_model;
mod vhdx_read;
mod vhdx_repair;
mod vhdx_view;
mod vhdx_write;
mod vmdk_read;
mod vmdk_write;
