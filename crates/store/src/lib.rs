//! Named immutable objects: where a repository's bytes lie.
//!
//! ```text
//!             repo, conformance::check
//!                       │  Store: put_new · get · get_range · size · list · delete
//!    ┌──────────────────┼──────────────────────┐
//!    │   faulty · recording · throttled · traced │   wrap any store
//!    └───────┬──────────┼──────────────┬───────┘
//!        directory     s3            memory        hold the bytes
//! ```
//!
//! - [`Store`]: the seam. An object is written once, whole, under a name nobody took before, and never changed.
//! - [`ObjectName`], [`Prefix`]: names that every driver can hold as they are.
//! - [`directory`], [`memory`], `s3`: the drivers; [`open_url`] picks one by its address.
//! - [`faulty`], [`recording`], [`throttled`], `traced`: what is put around a driver.
//! - [`conformance`]: the suite that tells whether a store keeps its promises.
//!
//! **Invariants.** Any thread may call any method at any time. An object is there whole or not at all, whatever dies
//! when. A caller can tell "the name is taken" from "try again" by [`ErrorKind`] alone.
//!
//! **What it does not do.** It knows nothing of packs, points or keys; it does not encrypt, hash, cache or retry for
//! its caller, except that the S3 driver repeats requests which the network lost.

pub mod conformance;
#[cfg(unix)]
pub mod directory;
mod error;
pub mod faulty;
pub mod memory;
mod name;
mod open;
pub mod recording;
#[cfg(feature = "s3")]
pub mod s3;
mod store;
pub mod throttled;
#[cfg(unix)]
pub mod traced;

pub use error::{Error, ErrorKind, Result, Verb};
pub use name::{MAX_COMPONENT_BYTES, MAX_COMPONENTS, MAX_NAME_BYTES, ObjectName, Prefix};
pub use open::{create_url, open_url};
pub use store::{
    ListAll, ListEntry, ListPage, MAX_OBJECT_SIZE_BYTES, MAX_PAGE_ENTRIES, Store, list_all,
};
