//! Resource URIs, which name a class, and actions.
//!
//! ```text
//!   http://schemas.microsoft.com/wbem/wsman/1/wmi/root/virtualization/v2/Msvm_ComputerSystem
//!   └──────────────────── family ───────────────┘└─────── namespace ────┘└──── class or * ─┘
//! ```
//!
//! **Invariant.** URIs compare without case and white space around them does not count: clients in use send it.

use std::fmt;

use crate::cim::{ClassName, Namespace};

const MICROSOFT: &str = "http://schemas.microsoft.com/wbem/wsman/1/wmi";
const DMTF_CLASS: &str = "http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/";
const DMTF_ALL: &str = "http://schemas.dmtf.org/wbem/wscim/1/*";
const URI_MAX_BYTES: usize = 2048;

/// Whose way of naming classes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum UriFamily {
    /// The namespace stands in the URI.
    Microsoft,
    /// The namespace stands in the selector `__cimnamespace`.
    Dmtf,
}

/// What a URI names in its namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ResourceTarget {
    /// `*`: all classes, as queries need it.
    AllClasses,
    /// One class.
    Class(ClassName),
}

/// What a message is about: a class, or all.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResourceUri {
    /// Whose form it has.
    pub family: UriFamily,
    /// The namespace; [`Namespace::unspecified`] in DMTF's form, where a selector has it.
    pub namespace: Namespace,
    /// The class, or all.
    pub target: ResourceTarget,
}

impl ResourceUri {
    /// One class.
    pub fn class(namespace: &Namespace, class: &ClassName) -> Self {
        Self {
            family: UriFamily::Microsoft,
            namespace: namespace.clone(),
            target: ResourceTarget::Class(class.clone()),
        }
    }

    /// All classes of a namespace.
    pub fn all(namespace: &Namespace) -> Self {
        Self {
            family: UriFamily::Microsoft,
            namespace: namespace.clone(),
            target: ResourceTarget::AllClasses,
        }
    }

    /// Reads a URI; `None` if it names no class of WMI.
    pub fn parse(text: &str) -> Option<Self> {
        let text = text.trim();
        if text.len() > URI_MAX_BYTES {
            return None;
        }
        if strip_folded(text, DMTF_ALL).is_some_and(str::is_empty) {
            return Some(Self {
                family: UriFamily::Dmtf,
                namespace: Namespace::unspecified(),
                target: ResourceTarget::AllClasses,
            });
        }
        if let Some(rest) = strip_folded(text, DMTF_CLASS) {
            let (class, query) = rest.split_once('?').unwrap_or((rest, ""));
            let namespace = strip_folded(query, "__cimnamespace=").unwrap_or_default();
            return Some(Self {
                family: UriFamily::Dmtf,
                namespace: Namespace::new(namespace),
                target: target(class)?,
            });
        }
        let rest = strip_folded(text, MICROSOFT)?;
        let (namespace, class) = match strip_folded(rest, "cimv2/") {
            Some(class) => ("root/cimv2", class),
            None => rest.strip_prefix('/')?.rsplit_once('/')?,
        };
        if namespace.is_empty() || namespace.contains(['?', '*']) {
            return None;
        }
        Some(Self {
            family: UriFamily::Microsoft,
            namespace: Namespace::new(namespace),
            target: target(class)?,
        })
    }

    /// The class, if it is one.
    pub fn class_name(&self) -> Option<&ClassName> {
        match &self.target {
            ResourceTarget::AllClasses => None,
            ResourceTarget::Class(class) => Some(class),
        }
    }

    /// The same form for another class.
    pub fn for_class(&self, class: &ClassName) -> Self {
        Self {
            target: ResourceTarget::Class(class.clone()),
            ..self.clone()
        }
    }
}

fn target(class: &str) -> Option<ResourceTarget> {
    match class {
        "*" => Some(ResourceTarget::AllClasses),
        class if is_class_name(class) => Some(ResourceTarget::Class(ClassName::new(class))),
        _ => None,
    }
}

fn is_class_name(text: &str) -> bool {
    !text.is_empty()
        && text.len() <= 256
        && text.chars().all(|it| it.is_alphanumeric() || it == '_')
}

/// What follows a beginning that is compared without case.
fn strip_folded<'t>(text: &'t str, prefix: &str) -> Option<&'t str> {
    let (start, rest) = text.split_at_checked(prefix.len())?;
    start.eq_ignore_ascii_case(prefix).then_some(rest)
}

impl fmt::Display for ResourceUri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.family, &self.target) {
            (UriFamily::Microsoft, ResourceTarget::AllClasses) => {
                write!(f, "{MICROSOFT}/{}/*", self.namespace)
            }
            (UriFamily::Microsoft, ResourceTarget::Class(class)) => {
                write!(f, "{MICROSOFT}/{}/{class}", self.namespace)
            }
            (UriFamily::Dmtf, ResourceTarget::AllClasses) => f.write_str(DMTF_ALL),
            (UriFamily::Dmtf, ResourceTarget::Class(class)) => write!(f, "{DMTF_CLASS}{class}"),
        }
    }
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names are those of the specifications")]
pub enum Action {
    Enumerate,
    Pull,
    Release,
    Get,
    Put,
    Create,
    Delete,
    /// A method of the class that its URI names.
    Invoke {
        method: String,
    },
}

const ENUMERATION: &str = "http://schemas.xmlsoap.org/ws/2004/09/enumeration/";
const TRANSFER: &str = "http://schemas.xmlsoap.org/ws/2004/09/transfer/";

impl Action {
    /// Reads an action on `resource`; `None` if it is none of those that are known here. Matched by the namespace that it stands
    /// in; a method's must begin with the URI of the resource.
    pub fn parse(text: &str, resource: &ResourceUri) -> Option<Self> {
        let text = text.trim();
        if let Some(verb) = strip_folded(text, ENUMERATION) {
            return match verb {
                "Enumerate" => Some(Self::Enumerate),
                "Pull" => Some(Self::Pull),
                "Release" => Some(Self::Release),
                _ => None,
            };
        }
        if let Some(verb) = strip_folded(text, TRANSFER) {
            return match verb {
                "Get" => Some(Self::Get),
                "Put" => Some(Self::Put),
                "Create" => Some(Self::Create),
                "Delete" => Some(Self::Delete),
                _ => None,
            };
        }
        let (uri, method) = text.rsplit_once('/')?;
        let named = ResourceUri::parse(uri)?;
        let is_same = named.target == resource.target
            && (named.namespace == resource.namespace || resource.family == UriFamily::Dmtf);
        (is_same && is_class_name(method) && named.class_name().is_some()).then(|| Self::Invoke {
            method: method.to_owned(),
        })
    }

    /// As it is sent.
    pub fn to_uri(&self, resource: &ResourceUri) -> String {
        match self {
            Self::Enumerate => format!("{ENUMERATION}Enumerate"),
            Self::Pull => format!("{ENUMERATION}Pull"),
            Self::Release => format!("{ENUMERATION}Release"),
            Self::Get => format!("{TRANSFER}Get"),
            Self::Put => format!("{TRANSFER}Put"),
            Self::Create => format!("{TRANSFER}Create"),
            Self::Delete => format!("{TRANSFER}Delete"),
            Self::Invoke { method } => format!("{resource}/{method}"),
        }
    }
}
