//! Tests of the hypervisor boundary.

mod custody;
mod eligibility;
mod words;
