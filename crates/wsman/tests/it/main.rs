//! Tests of the crate from outside.

mod transport;
mod transport_stage;
