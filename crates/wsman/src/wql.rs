//! WQL, the query language of WMI: read, and evaluated on instances.
//!
//! ```text
//!   SELECT * | a, b, c.d  FROM Class [WHERE condition]
//!   ASSOCIATORS OF {path} [WHERE AssocClass = X ResultClass = Y Role = r ResultRole = s ClassDefsOnly …]
//!   REFERENCES OF {path} [WHERE ResultClass = X Role = r …]
//!
//!   condition:  NOT, AND, OR, ( )   = != <> < > <= >=   LIKE   IS [NOT] NULL   ISA   __SERVER   a.b
//! ```
//! After "WQL (SQL for WMI)" in Microsoft's documentation of WMI.
//!
//! **Invariants.** Texts compare without case. A comparison with a property that is null is false, `NOT` turns that round. Length,
//! depth and number of conditions are bounded.
//!
//! **What it does not do.** No `GROUP`, no events (`WITHIN`), no `__CLASS` tests beyond `__CLASS =`, no schema queries.

mod evaluate;
mod like;
mod parse;
mod token;

use crate::cim::ClassName;
use crate::message::AssociationQuery;
use crate::{Error, Result};

pub use evaluate::Scope;
pub use like::LikePattern;

/// The longest query that is read.
pub const QUERY_MAX_BYTES: usize = 64 * 1024;

/// A query.
#[derive(Debug, Clone, PartialEq)]
pub enum Query {
    /// Instances of a class.
    Select(Select),
    /// What is related to an instance.
    Related(Related),
}

/// `SELECT`.
#[derive(Debug, Clone, PartialEq)]
pub struct Select {
    /// Which properties; empty for `*`.
    pub properties: Vec<PropertyName>,
    /// Of which class.
    pub class: ClassName,
    /// Under which condition.
    pub condition: Option<Condition>,
}

/// `ASSOCIATORS OF`, `REFERENCES OF`.
#[derive(Debug, Clone, PartialEq)]
pub struct Related {
    /// What is asked for. The namespace of the object is unspecified where the query does not say it.
    pub query: AssociationQuery,
    /// How much of each result.
    pub extent: RelatedExtent,
}

/// How much of each result is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RelatedExtent {
    /// Instances.
    Instances,
    /// Instances with their keys alone (`KeysOnly`).
    Keys,
    /// Their classes (`ClassDefsOnly`).
    Classes,
}

/// Name of a property, with the names of properties inside of embedded instances behind it: `PrivateProperties.VmID`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PropertyName {
    /// The property of the class.
    pub name: String,
    /// Inside of it, one after the other.
    pub inside: Vec<String>,
}

/// What stands on the right of a comparison.
#[derive(Debug, Clone, PartialEq)]
pub enum Literal {
    /// A text.
    Text(String),
    /// An integer; wider than both kinds that CIM has.
    Integer(i128),
    /// A real.
    Real(f64),
    /// `TRUE`, `FALSE`.
    Boolean(bool),
    /// `NULL`.
    Null,
    /// `__SERVER`: the name of the host.
    Server,
}

/// A comparison.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "the names say it")]
pub enum Comparison {
    Equal,
    NotEqual,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
}

/// A condition on an instance.
#[derive(Debug, Clone, PartialEq)]
pub enum Condition {
    /// Both hold; of more than two, all.
    All(Vec<Condition>),
    /// One holds.
    Any(Vec<Condition>),
    /// It does not hold.
    Not(Box<Condition>),
    /// A property compared with a literal.
    Compare(PropertyName, Comparison, Literal),
    /// A property matches a pattern.
    Like(PropertyName, LikePattern),
    /// A property is null.
    IsNull(PropertyName),
    /// The class of an embedded instance, or of the instance itself (`__this`), is this class or inherits from it.
    IsA(PropertyName, ClassName),
}

impl Query {
    /// Reads a query.
    ///
    /// # Errors
    /// [`Malformed`](crate::ErrorKind::Malformed) with the byte where it stops making sense, [`Limit`](crate::ErrorKind::Limit).
    pub fn parse(text: &str) -> Result<Self> {
        if text.len() > QUERY_MAX_BYTES {
            return Err(Error::limit(format!("query of {} bytes", text.len())));
        }
        parse::parse(text)
    }
}

impl Select {
    /// All properties that the query names, those of its condition too.
    pub fn named_properties(&self) -> Vec<&PropertyName> {
        let mut names: Vec<&PropertyName> = self.properties.iter().collect();
        let mut pending: Vec<&Condition> = self.condition.iter().collect();
        while let Some(condition) = pending.pop() {
            match condition {
                Condition::All(inner) | Condition::Any(inner) => pending.extend(inner),
                Condition::Not(inner) => pending.push(inner),
                Condition::Compare(name, ..)
                | Condition::Like(name, _)
                | Condition::IsNull(name)
                | Condition::IsA(name, _) => names.push(name),
            }
        }
        names
    }

    /// The text that the condition demands a property to equal, if it does so on every path: what a provider may look up by.
    ///
    /// Compare it without case.
    pub fn demanded_text(&self, property: &str) -> Option<&str> {
        let mut pending: Vec<&Condition> = self.condition.iter().collect();
        while let Some(condition) = pending.pop() {
            match condition {
                Condition::All(inner) => pending.extend(inner),
                Condition::Compare(name, Comparison::Equal, Literal::Text(text))
                    if name.inside.is_empty() && name.name.eq_ignore_ascii_case(property) =>
                {
                    return Some(text);
                }
                _ => {}
            }
        }
        None
    }
}

/// A text as a literal of WQL, in single quotes.
pub fn quote(text: &str) -> String {
    let mut out = String::with_capacity(text.len().saturating_add(2));
    out.push('\'');
    for character in text.chars() {
        if matches!(character, '\\' | '\'') {
            out.push('\\');
        }
        out.push(character);
    }
    out.push('\'');
    out
}
