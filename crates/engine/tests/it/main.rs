//! What jobs promise, seen from outside: whole rounds over a repository in memory.

#![expect(clippy::unwrap_used, reason = "what fails in a test fails the test")]

mod backup;
mod check;
mod cost;
mod eligibility;
mod files;
mod healing;
mod interrupted;
mod left_out;
mod looking;
mod quickstart;
mod restore;
mod support;
mod vm;
