//! The little of ASN.1 DER that SPNEGO and certificates need.
//!
//! ```text
//!   tag (1) | length (1, or 0x80+n and n bytes) | content
//! ```
//!
//! **Invariants.** Reading never leaves its slice, copies nothing and does not recurse. Lengths are definite and at most four
//! bytes; tags have one byte.

use crate::{Error, Result};

pub(super) const SEQUENCE: u8 = 0x30;
pub(super) const OID: u8 = 0x06;
pub(super) const OCTETS: u8 = 0x04;
pub(super) const ENUMERATED: u8 = 0x0a;

/// The context tag `[number]`, constructed.
pub(super) const fn context(number: u8) -> u8 {
    0xa0 | number
}

/// One element.
#[derive(Debug, Clone, Copy)]
pub(super) struct Element<'a> {
    pub(super) tag: u8,
    pub(super) content: &'a [u8],
    /// Tag and length included.
    pub(super) whole: &'a [u8],
}

/// Elements one after another.
#[derive(Debug, Clone, Copy)]
pub(super) struct DerReader<'a> {
    rest: &'a [u8],
}

impl<'a> DerReader<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    /// The next element, whatever it is.
    pub(super) fn element(&mut self) -> Result<Element<'a>> {
        let whole = self.rest;
        let truncated = || Error::malformed("a DER element is cut short");
        let (&tag, rest) = whole.split_first().ok_or_else(truncated)?;
        if tag & 0x1f == 0x1f {
            return Err(Error::malformed("a DER tag of several bytes"));
        }
        let (&first, rest) = rest.split_first().ok_or_else(truncated)?;
        let (length, rest) = if first < 0x80 {
            (usize::from(first), rest)
        } else {
            let count = usize::from(first & 0x7f);
            if count == 0 || count > 4 {
                return Err(Error::malformed(
                    "a DER length that is not definite or too long",
                ));
            }
            let (digits, rest) = rest.split_at_checked(count).ok_or_else(truncated)?;
            let length = digits
                .iter()
                .fold(0u64, |sum, digit| (sum << 8) | u64::from(*digit));
            let length = usize::try_from(length)
                .map_err(|_| Error::malformed("a DER length that no memory has"))?;
            (length, rest)
        };
        let (content, rest) = rest.split_at_checked(length).ok_or_else(truncated)?;
        self.rest = rest;
        let used = whole.len().saturating_sub(rest.len());
        let whole = whole.get(..used).ok_or_else(truncated)?;
        Ok(Element {
            tag,
            content,
            whole,
        })
    }

    /// The content of the next element, which must have that tag.
    pub(super) fn expect(&mut self, tag: u8, what: &str) -> Result<&'a [u8]> {
        let element = self.element()?;
        if element.tag == tag {
            Ok(element.content)
        } else {
            Err(Error::malformed(format!(
                "{what}: DER tag {:#04x} instead of {tag:#04x}",
                element.tag
            )))
        }
    }

    /// The content of the next element if it has that tag.
    pub(super) fn optional(&mut self, tag: u8) -> Result<Option<&'a [u8]>> {
        if self.rest.first() == Some(&tag) {
            Ok(Some(self.element()?.content))
        } else {
            Ok(None)
        }
    }
}

/// An element of these parts.
pub(super) fn element(tag: u8, parts: &[&[u8]]) -> Vec<u8> {
    let length: usize = parts.iter().map(|part| part.len()).sum();
    let mut out = Vec::with_capacity(length.saturating_add(6));
    out.push(tag);
    match u8::try_from(length) {
        Ok(short) if short < 0x80 => out.push(short),
        _ => {
            let bytes = length.to_be_bytes();
            let skipped = bytes.iter().take_while(|byte| **byte == 0).count();
            let digits = bytes.get(skipped..).unwrap_or(&[]);
            out.push(0x80 | u8::try_from(digits.len()).unwrap_or(8));
            out.extend_from_slice(digits);
        }
    }
    for part in parts {
        out.extend_from_slice(part);
    }
    out
}
