//! Every store kept to what it promises.

mod directory;
mod memory;
mod names;

use store::ObjectName;

fn name(text: &str) -> ObjectName {
    ObjectName::new(text).expect("a valid name")
}
