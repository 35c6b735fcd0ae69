//! Every store kept to what it promises.

mod conformance;
mod directory;
mod memory;
mod names;
mod wrappers;

use store::ObjectName;

fn name(text: &str) -> ObjectName {
    ObjectName::new(text).expect("a valid name")
}
