//! Integration tests of `block`: trees, differences, ranges and transfers against a naive model.

#![expect(clippy::unwrap_used, reason = "what fails in a test fails the test")]

mod diff;
mod model;
mod ranges;
mod sync;
mod sync_hostile;
mod tree;
