//! Requests, answers and faults.

/// What the other side answered instead of what was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {}
