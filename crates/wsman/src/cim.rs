//! The values of CIM: names, scalars, instances and the paths that name them.
//!
//! ```text
//!   CimPath      = namespace : class . key = value , …          which instance
//!   CimInstance  = class + properties by name                   what is known of it
//!   CimValue     = Null | scalar | Reference | Instance | Array
//! ```
//!
//! **Invariants.** Class and namespace names compare without case, property names with it. A value that came off the wire is
//! [`CimValue::Text`] where the wire has no type; the getters of [`CimInstance`] parse, and say which property was wrong.
//!
//! **What it does not do.** It knows no class: what a class has is [`crate::schema`]'s.

mod datetime;
pub mod embedded;
mod getters;
mod instance;
mod name;
mod path;
mod path_text;
mod value;

pub use datetime::{CimDatetime, CimInterval};
pub use instance::CimInstance;
pub use name::{ClassName, Namespace};
pub use path::{CimPath, CimPathId};
pub use value::{CimType, CimValue};
