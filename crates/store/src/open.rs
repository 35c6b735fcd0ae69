//! From an address that a person writes to a store.
//!
//! | address | store |
//! |---|---|
//! | `/srv/backup`, `relative/place` | a directory |
//! | `file:///srv/backup` | a directory |
//! | `s3://bucket/prefix` | a bucket, with credentials and endpoint from the `AWS_*` environment |
//! | `memory:` | memory, empty |

use std::sync::Arc;

use crate::memory::MemoryStore;
use crate::{Error, ErrorKind, Result, Store};

#[derive(Clone, Copy)]
enum Presence {
    Required,
    Created,
}

/// Opens the store at an address. A directory must be there already: one that is missing may be a disk that is not
/// mounted.
///
/// # Errors
/// [`ErrorKind::NotFound`] when there is nothing; [`ErrorKind::Invalid`] when the address makes no sense.
pub fn open_url(text: &str) -> Result<Arc<dyn Store>> {
    locate(text, Presence::Required)
}

/// Opens the store at an address, making a directory that is not there yet (a bucket is never made).
///
/// # Errors
/// As [`open_url`], and what making the directory met.
pub fn create_url(text: &str) -> Result<Arc<dyn Store>> {
    locate(text, Presence::Created)
}

fn locate(text: &str, presence: Presence) -> Result<Arc<dyn Store>> {
    if text.is_empty() {
        return Err(invalid(text, "the address is empty"));
    }
    if text == "memory:" {
        return Ok(Arc::new(MemoryStore::new()));
    }
    if let Some(rest) = text.strip_prefix("file://") {
        if !rest.starts_with('/') {
            return Err(invalid(
                text,
                "a file address has three slashes and an absolute path",
            ));
        }
        if rest.contains('%') {
            return Err(invalid(
                text,
                "escapes are not read: give the directory as a plain path",
            ));
        }
        return directory(rest, presence);
    }
    if text.starts_with("s3://") {
        return bucket(text);
    }
    match text.split_once("://") {
        Some((scheme, _)) if !scheme.contains('/') => Err(invalid(
            text,
            "the known addresses are DIR, file:///DIR, s3://BUCKET/PREFIX, memory:",
        )),
        _ => directory(text, presence),
    }
}

fn invalid(text: &str, what: &str) -> Error {
    Error::new(
        ErrorKind::Invalid,
        format!("store address {text:?}: {what}"),
    )
}

#[cfg(unix)]
fn directory(path: &str, presence: Presence) -> Result<Arc<dyn Store>> {
    let path = std::path::Path::new(path);
    Ok(Arc::new(match presence {
        Presence::Required => crate::directory::DirectoryStore::open(path)?,
        Presence::Created => crate::directory::DirectoryStore::create(path)?,
    }))
}

#[cfg(not(unix))]
fn directory(path: &str, _presence: Presence) -> Result<Arc<dyn Store>> {
    Err(invalid(path, "directories are stores on Unix only"))
}

#[cfg(feature = "s3")]
fn bucket(text: &str) -> Result<Arc<dyn Store>> {
    let options = crate::s3::S3Options::from_url(text)?.with_environment();
    Ok(Arc::new(crate::s3::S3Store::open(&options)?))
}

#[cfg(not(feature = "s3"))]
fn bucket(text: &str) -> Result<Arc<dyn Store>> {
    Err(invalid(text, "built without S3"))
}
