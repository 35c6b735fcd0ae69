//! Tests of the estate: rules one by one, and random sequences against what must always hold.

#![expect(clippy::unwrap_used, reason = "what fails in a test fails the test")]

mod checkpoints;
mod clusters;
mod definitions;
mod guests;
mod jobs;
mod lazy;
mod migrations;
mod power;
mod random;
mod rig;
mod switches;
mod tracking;
mod volumes;
