//! Every store kept to what it promises.

#[cfg(feature = "s3")]
mod bucket_server;
mod conformance;
mod crash;
mod directory;
mod memory;
mod model;
mod names;
mod open;
#[cfg(feature = "s3")]
mod s3;
mod wrappers;

use store::ObjectName;

fn name(text: &str) -> ObjectName {
    ObjectName::new(text).expect("a valid name")
}
