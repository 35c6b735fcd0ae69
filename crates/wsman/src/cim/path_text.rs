//! Object paths as text.
//!
//! ```text
//!   \\HOST\root\virtualization\v2:Msvm_VirtualSystemSettingData.InstanceID="Microsoft:5B7E…\\0\\L"
//!   └────────────┬──────────────┘ └────────────┬─────────────┘ └────┬────┘  └───── value ────┘
//!      may be left out, `/` too              class            keys, `,` between
//! ```
//!
//! **Invariants.** A backslash in a value is doubled when written. When read, a single one before any other character stands for
//! itself, because hosts write both. Bounded: 32 KiB, 64 keys.

use super::getters::excerpt;
use super::{CimPath, CimValue, ClassName, Namespace};
use crate::{Error, Result};

const TEXT_MAX_BYTES: usize = 32 * 1024;
const KEYS_MAX: usize = 64;

impl CimPath {
    /// Reads a path; what it leaves out of the namespace is `default`.
    ///
    /// # Errors
    /// [`Malformed`](crate::ErrorKind::Malformed) if it is no path.
    pub fn parse(text: &str, default: &Namespace) -> Result<Self> {
        Self::parse_with_host(text, default).map(|it| it.1)
    }

    /// Reads a path and the host that it names, if any.
    ///
    /// # Errors
    /// As [`CimPath::parse`].
    pub fn parse_with_host(text: &str, default: &Namespace) -> Result<(Option<String>, Self)> {
        parse(text.trim(), default)
            .ok_or_else(|| Error::malformed(format!("{} is no object path", excerpt(text))))
    }

    /// As text; with a host it begins with `\\HOST\`.
    pub fn to_text(&self, host: Option<&str>) -> String {
        let mut out = String::with_capacity(128);
        if let Some(host) = host {
            out.push_str("\\\\");
            out.push_str(host);
            out.push('\\');
        }
        if !self.namespace.is_unspecified() {
            out.push_str(&self.namespace.as_str().replace('/', "\\"));
            out.push(':');
        }
        out.push_str(&self.to_relative_text());
        out
    }

    /// The class and its keys alone: `Msvm_X.Key="value"`.
    pub fn to_relative_text(&self) -> String {
        let mut out = self.class.as_str().to_owned();
        for (count, (name, value)) in self.keys.iter().enumerate() {
            out.push(if count == 0 { '.' } else { ',' });
            out.push_str(name);
            out.push('=');
            match value {
                CimValue::Boolean(true) => out.push_str("TRUE"),
                CimValue::Boolean(false) => out.push_str("FALSE"),
                CimValue::Uint(value) => out.push_str(&value.to_string()),
                CimValue::Sint(value) => out.push_str(&value.to_string()),
                CimValue::Reference(path) => quote(&mut out, &path.to_text(None)),
                value => quote(&mut out, &value.to_wire_text().unwrap_or_default()),
            }
        }
        out
    }
}

fn quote(out: &mut String, text: &str) {
    out.push('"');
    for character in text.chars() {
        if matches!(character, '\\' | '"') {
            out.push('\\');
        }
        out.push(character);
    }
    out.push('"');
}

fn parse(text: &str, default: &Namespace) -> Option<(Option<String>, CimPath)> {
    if text.len() > TEXT_MAX_BYTES || text.is_empty() {
        return None;
    }
    let mut rest = text;
    let mut host = None;
    if let Some(after) = rest
        .strip_prefix("\\\\")
        .or_else(|| rest.strip_prefix("//"))
    {
        let (name, after) = after.split_once(['\\', '/'])?;
        if name.is_empty() || name.contains(['"', '=', ':', ',']) {
            return None;
        }
        host = Some(name.to_owned());
        rest = after;
    }
    let mut namespace = default.clone();
    let end = rest.find([':', '.', '=', '"', '\'']).unwrap_or(rest.len());
    match rest.split_at_checked(end)? {
        (name, after) if after.starts_with(':') => {
            namespace = Namespace::new(name);
            rest = after.get(1..)?;
        }
        _ if host.is_some() => return None,
        _ => {}
    }
    let end = rest.find(['.', '=']).unwrap_or(rest.len());
    let (class, keys) = rest.split_at_checked(end)?;
    if !is_name(class) {
        return None;
    }
    let mut path = CimPath::new(namespace, ClassName::new(class));
    if let Some(keys) = keys.strip_prefix('.') {
        parse_keys(keys, &mut path)?;
    } else if !keys.is_empty() && keys != "=@" {
        return None;
    }
    Some((host, path))
}

/// Whether it can be the name of a class or a property.
pub(crate) fn is_name(text: &str) -> bool {
    !text.is_empty()
        && text.len() <= 256
        && text.chars().all(|it| it.is_alphanumeric() || it == '_')
        && !text.starts_with(|it: char| it.is_ascii_digit())
}

fn parse_keys(text: &str, path: &mut CimPath) -> Option<()> {
    let mut rest = text;
    loop {
        let (name, after) = rest.split_once('=')?;
        if !is_name(name) || path.keys.len() >= KEYS_MAX {
            return None;
        }
        let (value, after) = parse_value(after)?;
        if path.keys.insert(name.to_owned(), value).is_some() {
            return None;
        }
        if after.is_empty() {
            return Some(());
        }
        rest = after.strip_prefix(',')?;
    }
}

fn parse_value(text: &str) -> Option<(CimValue, &str)> {
    let quote = text.chars().next()?;
    if !matches!(quote, '"' | '\'') {
        let end = text.find(',').unwrap_or(text.len());
        let (word, rest) = text.split_at_checked(end)?;
        return bare_value(word).map(|value| (value, rest));
    }
    let mut value = String::new();
    let mut characters = text.char_indices().skip(1).peekable();
    while let Some((at, character)) = characters.next() {
        if character == quote {
            return Some((CimValue::Text(value), text.get(at.checked_add(1)?..)?));
        }
        let next = characters.peek().map(|it| it.1);
        if character == '\\' && next.is_some_and(|it| matches!(it, '\\' | '"' | '\'')) {
            value.extend(next);
            characters.next();
        } else {
            value.push(character);
        }
    }
    None
}

fn bare_value(word: &str) -> Option<CimValue> {
    if let Some(value) = super::value::parse_boolean(word) {
        return Some(CimValue::Boolean(value));
    }
    if let Ok(value) = word.parse::<u64>() {
        return Some(CimValue::Uint(value));
    }
    word.parse::<i64>().ok().map(CimValue::Sint)
}
