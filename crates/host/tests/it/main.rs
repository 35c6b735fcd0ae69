//! Tests of the hypervisor boundary: words, pure rules, custody, and the driver against a host that lives in the test.

mod access;
mod changes;
mod conformance;
mod coverage;
mod custody;
mod definition;
mod eligibility;
mod facts;
mod fake;
mod fake_client;
mod fake_definition;
mod files;
mod inventory;
mod journal;
mod kvm;
mod limits;
mod operations;
mod recovery;
mod smb;
mod words;
