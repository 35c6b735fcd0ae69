//! What objects are called: names that mean the same in a directory, in a bucket and in memory.
//!
//! ```text
//!   packs/3f/3f9a…c1.pack        ObjectName: 1..=16 components of [a-z0-9._-], none with a leading dot
//!   └─ Prefix "packs/3f/" ─┘     Prefix: 0..=15 whole components, always ending in '/', or empty for everything
//! ```
//!
//! **Invariants.** A valid name needs no escaping in a path or a URL, differs from every other name on a file system
//! that ignores case, and can never leave its root. Names order by their bytes, in every driver.
//! One name must not be a prefix of another one's components (`a` and `a/b`): a directory cannot hold both.

use std::borrow::Borrow;
use std::fmt;
use std::str::FromStr;

use crate::{Error, ErrorKind, Result};

/// Longest name in bytes: with a root in front it stays far below what paths (4,096) and S3 keys (1,024) may have.
pub const MAX_NAME_BYTES: usize = 512;
/// Longest component in bytes: fits file systems that encrypt names (143) with room for nothing else.
pub const MAX_COMPONENT_BYTES: usize = 128;
/// Most components of a name: bounds how deep a listing descends.
pub const MAX_COMPONENTS: usize = 16;

/// Name of one object.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectName(String);

impl ObjectName {
    /// Checks a text.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] with what is wrong with it.
    pub fn new(text: impl Into<String>) -> Result<Self> {
        let text = text.into();
        match defect(&text) {
            None => Ok(Self(text)),
            Some(what) => Err(invalid("object name", &text, what)),
        }
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The components before the last, if any, joined by `/`, and the last.
    pub fn split(&self) -> (Option<&str>, &str) {
        match self.0.rsplit_once('/') {
            Some((parents, last)) => (Some(parents), last),
            None => (None, &self.0),
        }
    }
}

impl fmt::Display for ObjectName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for ObjectName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ObjectName({})", self.0)
    }
}

impl FromStr for ObjectName {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self> {
        Self::new(text)
    }
}

impl Borrow<str> for ObjectName {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl AsRef<str> for ObjectName {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

/// The first components of names: whole ones, so that `packs` never matches `packs-old/x`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Prefix(String);

impl Prefix {
    /// The prefix of every name.
    pub const fn root() -> Self {
        Self(String::new())
    }

    /// Checks a text; one `/` at its end is optional, the empty text is [`Prefix::root`].
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] with what is wrong with it.
    pub fn new(text: impl Into<String>) -> Result<Self> {
        let mut text = text.into();
        if text.is_empty() {
            return Ok(Self::root());
        }
        let components = text.strip_suffix('/').unwrap_or(&text);
        if let Some(what) = defect(components) {
            return Err(invalid("prefix", &text, what));
        }
        if !text.ends_with('/') {
            text.push('/');
        }
        Ok(Self(text))
    }

    /// The text: empty, or ending in `/`.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The components joined by `/`, without the slash at the end; empty for the root.
    pub fn as_directory(&self) -> &str {
        self.0.strip_suffix('/').unwrap_or("")
    }

    /// Whether `name` lies under this prefix.
    pub fn contains(&self, name: &ObjectName) -> bool {
        name.as_str().starts_with(&self.0)
    }

    /// The name of `rest` under this prefix.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] when the whole is no valid name.
    pub fn name(&self, rest: impl AsRef<str>) -> Result<ObjectName> {
        ObjectName::new(format!("{}{}", self.0, rest.as_ref()))
    }

    /// The prefix `rest` under this prefix.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] when the whole is no valid prefix.
    pub fn join(&self, rest: impl AsRef<str>) -> Result<Self> {
        Self::new(format!("{}{}", self.0, rest.as_ref()))
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_empty() { "/" } else { &self.0 })
    }
}

impl fmt::Debug for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Prefix({})", self.0)
    }
}

impl FromStr for Prefix {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self> {
        Self::new(text)
    }
}

fn invalid(kind: &str, text: &str, what: &str) -> Error {
    // Names can come from a stranger's listing: quote them, and never repeat more than a line of one.
    let shown: String = text.chars().take(80).collect();
    Error::new(ErrorKind::Invalid, format!("{kind} {shown:?}: {what}"))
}

fn defect(text: &str) -> Option<&'static str> {
    if text.len() > MAX_NAME_BYTES {
        return Some("longer than 512 bytes");
    }
    let mut components = 0usize;
    for component in text.split('/') {
        components = components.saturating_add(1);
        if component.is_empty() {
            return Some("an empty component");
        }
        if component.len() > MAX_COMPONENT_BYTES {
            return Some("a component longer than 128 bytes");
        }
        if component.starts_with('.') {
            return Some("a component with a leading dot");
        }
        let plain = |byte: u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'_' | b'-');
        if !component.bytes().all(plain) {
            return Some("a character outside a-z 0-9 . _ -");
        }
    }
    (components > MAX_COMPONENTS).then_some("more than 16 components")
}
