//! Names of classes and namespaces: compared without case, kept as they were written.

use std::cmp::Ordering;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

/// Compares text without the case of ASCII.
fn compare_folded(a: &str, b: &str) -> Ordering {
    let fold = |it: u8| it.to_ascii_lowercase();
    a.bytes().map(fold).cmp(b.bytes().map(fold))
}

fn hash_folded<H: Hasher>(text: &str, state: &mut H) {
    for byte in text.bytes() {
        state.write_u8(byte.to_ascii_lowercase());
    }
    state.write_u8(0xff);
}

macro_rules! folded_name {
    ($name:ident) => {
        impl $name {
            /// As it was written.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl PartialEq for $name {
            fn eq(&self, other: &Self) -> bool {
                self.0.eq_ignore_ascii_case(&other.0)
            }
        }

        impl Eq for $name {}

        impl PartialEq<str> for $name {
            fn eq(&self, other: &str) -> bool {
                *self == Self::new(other)
            }
        }

        impl PartialEq<&str> for $name {
            fn eq(&self, other: &&str) -> bool {
                *self == Self::new(other)
            }
        }

        impl PartialOrd for $name {
            fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
                Some(self.cmp(other))
            }
        }

        impl Ord for $name {
            fn cmp(&self, other: &Self) -> Ordering {
                compare_folded(&self.0, &other.0)
            }
        }

        impl Hash for $name {
            fn hash<H: Hasher>(&self, state: &mut H) {
                hash_folded(&self.0, state);
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(&self.0, f)
            }
        }

        impl From<&str> for $name {
            fn from(text: &str) -> Self {
                Self::new(text)
            }
        }

        impl From<&$name> for $name {
            fn from(name: &$name) -> Self {
                name.clone()
            }
        }
    };
}

/// Name of a class, such as `Msvm_ComputerSystem`. Cheap to clone.
#[derive(Clone)]
pub struct ClassName(Arc<str>);

folded_name!(ClassName);

impl ClassName {
    /// A name as it stands.
    pub fn new(name: impl AsRef<str>) -> Self {
        Self(Arc::from(name.as_ref()))
    }
}

/// A namespace with `/` between its parts, such as `root/virtualization/v2`. Cheap to clone.
///
/// The empty one stands for "not said", as in an instance that is embedded in another.
#[derive(Clone)]
pub struct Namespace(Arc<str>);

folded_name!(Namespace);

impl Namespace {
    /// A namespace; `\` counts as `/`, and none stands at either end.
    pub fn new(name: impl AsRef<str>) -> Self {
        let trimmed = name.as_ref().trim_matches(['/', '\\']);
        if trimmed.contains('\\') {
            Self(Arc::from(trimmed.replace('\\', "/")))
        } else {
            Self(Arc::from(trimmed))
        }
    }

    /// Not said.
    pub fn unspecified() -> Self {
        Self(Arc::from(""))
    }

    /// Whether it was not said.
    pub fn is_unspecified(&self) -> bool {
        self.0.is_empty()
    }
}

impl Default for Namespace {
    fn default() -> Self {
        Self::unspecified()
    }
}
