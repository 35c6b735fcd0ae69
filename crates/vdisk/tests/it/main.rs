//! Tests of the crate from outside: corpora, other programs as second opinion, properties, crashes, hostile bytes.

mod corpora;
mod vhd;
mod vhdx_read;
