//! Integration tests of `block`: trees against a naive model.

#![expect(clippy::unwrap_used, reason = "what fails in a test fails the test")]

mod model;
mod tree;
