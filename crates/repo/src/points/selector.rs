//! How people name points: `NAME`, `NAME@3`, `NAME@latest`, `NAME@<first digits of the point's id>`.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::{Error, ErrorKind, Result};

/// Longest protected name in bytes.
const MAX_NAME_BYTES: usize = 200;
/// Fewest digits of an id that are taken for one; shorter texts are sequence numbers or mistakes.
const MIN_ID_DIGITS: usize = 6;

/// What is protected under one history: a VM, a disk. Any printable text without `@` and spaces at its ends.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ProtectedName(String);

impl ProtectedName {
    /// Checks a text.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] with what is wrong with it.
    pub fn new(text: impl Into<String>) -> Result<Self> {
        let text = text.into();
        let what = if text.is_empty() {
            "empty"
        } else if text.len() > MAX_NAME_BYTES {
            "longer than 200 bytes"
        } else if text.trim() != text {
            "with spaces at its ends"
        } else if text.contains('@') {
            "with @, which separates a name from a point"
        } else if text.chars().any(char::is_control) {
            "with control characters"
        } else {
            return Ok(Self(text));
        };
        let shown: String = text.chars().take(80).collect();
        Err(Error::new(
            ErrorKind::Invalid,
            format!("name {shown:?}: {what}"),
        ))
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for ProtectedName {
    type Error = Error;
    fn try_from(text: String) -> Result<Self> {
        Self::new(text)
    }
}

impl From<ProtectedName> for String {
    fn from(name: ProtectedName) -> Self {
        name.0
    }
}

impl FromStr for ProtectedName {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self> {
        Self::new(text)
    }
}

impl fmt::Display for ProtectedName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Which point of a name.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Which {
    /// The newest.
    Latest,
    /// The one with this number.
    Sequence(u64),
    /// The one whose id begins so.
    IdPrefix(String),
}

/// A point, as a person says it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct PointSelector {
    /// Whose point.
    pub name: ProtectedName,
    /// Which one.
    pub which: Which,
}

impl FromStr for PointSelector {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let Some((name, which)) = text.split_once('@') else {
            return Ok(Self {
                name: text.parse()?,
                which: Which::Latest,
            });
        };
        let digits = |c: char| c.is_ascii_digit();
        let which = if which == "latest" {
            Which::Latest
        } else if !which.is_empty() && which.len() < MIN_ID_DIGITS && which.chars().all(digits) {
            Which::Sequence(which.parse().unwrap_or(0))
        } else if (MIN_ID_DIGITS..=32).contains(&which.len())
            && which.chars().all(|c| digits(c) || ('a'..='f').contains(&c))
        {
            Which::IdPrefix(which.to_owned())
        } else {
            let what = format!(
                "point {text:?}: behind the @ stands a number, \"latest\", or at least \
                 {MIN_ID_DIGITS} digits of the point's id"
            );
            return Err(Error::new(ErrorKind::Invalid, what));
        };
        Ok(Self {
            name: name.parse()?,
            which,
        })
    }
}

impl fmt::Display for PointSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.which {
            Which::Latest => write!(f, "{}@latest", self.name),
            Which::Sequence(sequence) => write!(f, "{}@{sequence}", self.name),
            Which::IdPrefix(prefix) => write!(f, "{}@{prefix}", self.name),
        }
    }
}
