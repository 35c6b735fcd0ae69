//! The XML form of a configuration (Hyper-V up to Windows Server 2012 R2).
//!
//! ```text
//!   <configuration><settings><processors><count type="integer">2</count>…     leaves have a type, nodes have none
//!   types: string, integer, bool | boolean, bytes (base64), double
//! ```
//!
//! **Invariants.** UTF-8 and UTF-16 with a byte order mark are read. No entity is expanded but the five of XML and
//! numbers; a document type is refused. Depth is bounded; the length is bounded by the caller.

#![cfg_attr(
    not(test),
    deny(
        clippy::indexing_slicing,
        clippy::arithmetic_side_effects,
        clippy::as_conversions,
        clippy::unwrap_used,
        clippy::expect_used
    )
)]

use quick_xml::Reader;
use quick_xml::events::{BytesStart, Event};

use super::{ConfigValue, MAX_DEPTH, Node};
use crate::{Error, ErrorKind, Result};

/// Whether these first bytes can begin XML.
pub(super) fn is_likely(first: &[u8; 4]) -> bool {
    matches!(
        first,
        [b'<', ..] | [0xEF, 0xBB, 0xBF, b'<'] | [0xFF, 0xFE, b'<', 0] | [0xFE, 0xFF, 0, b'<']
    ) || first.iter().all(u8::is_ascii_whitespace)
}

fn text_of(bytes: &[u8]) -> Result<String> {
    let wide = |rest: &[u8], unit: fn([u8; 2]) -> u16| {
        let units: Vec<u16> = rest
            .chunks_exact(2)
            .filter_map(|pair| pair.try_into().ok().map(unit))
            .collect();
        String::from_utf16(&units).map_err(|_| Error::corrupt("XML: no valid UTF-16"))
    };
    match bytes {
        [0xFF, 0xFE, rest @ ..] => wide(rest, u16::from_le_bytes),
        [0xFE, 0xFF, rest @ ..] => wide(rest, u16::from_be_bytes),
        [0xEF, 0xBB, 0xBF, rest @ ..] => utf8(rest),
        rest => utf8(rest),
    }
}

fn utf8(bytes: &[u8]) -> Result<String> {
    String::from_utf8(bytes.to_vec()).map_err(|_| Error::corrupt("XML: no valid UTF-8"))
}

struct Open {
    name: String,
    kind: Option<String>,
    text: String,
    node: Node,
}

impl Open {
    fn begin(start: &BytesStart<'_>) -> Result<Self> {
        let name = String::from_utf8_lossy(start.name().as_ref()).into_owned();
        let mut kind = None;
        for attribute in start.attributes() {
            let attribute = attribute
                .map_err(|error| Error::corrupt(format!("XML: element {name}")).caused_by(error))?;
            if attribute.key.as_ref() == b"type" {
                kind = Some(String::from_utf8_lossy(&attribute.value).to_lowercase());
            }
        }
        Ok(Self {
            name,
            kind,
            text: String::new(),
            node: Node::default(),
        })
    }

    fn value(self) -> Result<(String, ConfigValue)> {
        let wrong = |what: &str| Error::corrupt(format!("XML: element {}: {what}", self.name));
        let text = self.text.trim();
        let value = match self.kind.as_deref() {
            None => ConfigValue::Node(self.node),
            Some("string") => ConfigValue::Text(self.text),
            Some("integer") => match text.parse() {
                Ok(number) => ConfigValue::Integer(number),
                Err(_) => text
                    .parse()
                    .map(ConfigValue::Unsigned)
                    .map_err(|_| wrong("no integer"))?,
            },
            Some("bool" | "boolean") => match text.to_ascii_lowercase().as_str() {
                "true" | "1" => ConfigValue::Bool(true),
                "false" | "0" => ConfigValue::Bool(false),
                _ => return Err(wrong("neither true nor false")),
            },
            Some("double") => ConfigValue::Double(text.parse().map_err(|_| wrong("no number"))?),
            Some("bytes") => ConfigValue::Bytes(base64(text).ok_or_else(|| wrong("no base64"))?),
            Some(other) => return Err(wrong(&format!("type {other:?} is not known"))),
        };
        Ok((self.name, value))
    }
}

/// Reads a document.
pub(super) fn parse(bytes: &[u8]) -> Result<Node> {
    let text = text_of(bytes)?;
    let mut reader = Reader::from_str(&text);
    let mut path = vec![Open {
        name: String::new(),
        kind: None,
        text: String::new(),
        node: Node::default(),
    }];
    loop {
        let position = reader.buffer_position();
        let event = reader.read_event().map_err(|error| {
            Error::corrupt(format!("XML: near byte {position}")).caused_by(error)
        })?;
        let top = path
            .last_mut()
            .ok_or_else(|| Error::corrupt("XML: an end without a beginning"))?;
        match event {
            Event::Start(start) => {
                let open = Open::begin(&start)?;
                if path.len() > MAX_DEPTH {
                    return Err(Error::new(ErrorKind::Limit, "XML: nested too deep"));
                }
                path.push(open);
            }
            Event::Empty(start) => {
                let (name, value) = Open::begin(&start)?.value()?;
                top.node.put(name, value);
            }
            Event::End(_) => {
                let Some(done) = path.pop() else { continue };
                let (name, value) = done.value()?;
                if let Some(above) = path.last_mut() {
                    above.node.put(name, value);
                }
            }
            Event::Text(piece) => top.text.push_str(&String::from_utf8_lossy(&piece)),
            Event::CData(piece) => top.text.push_str(&String::from_utf8_lossy(&piece)),
            Event::GeneralRef(name) => {
                let name = String::from_utf8_lossy(&name).into_owned();
                let character =
                    entity(&name).ok_or_else(|| Error::corrupt(format!("XML: entity {name:?}")))?;
                top.text.push(character);
            }
            Event::DocType(_) => return Err(Error::unsupported("XML: a document type")),
            Event::Eof => break,
            Event::Decl(_) | Event::PI(_) | Event::Comment(_) => {}
        }
    }
    match (path.pop(), path.is_empty()) {
        (Some(root), true) if !root.node.entries.is_empty() => Ok(root.node),
        _ => Err(Error::corrupt("XML: it ends before its elements do")),
    }
}

fn entity(name: &str) -> Option<char> {
    if let Some(number) = name.strip_prefix('#') {
        let code = match number.strip_prefix(['x', 'X']) {
            Some(hex) => u32::from_str_radix(hex, 16).ok()?,
            None => number.parse().ok()?,
        };
        return char::from_u32(code);
    }
    Some(match name {
        "amp" => '&',
        "lt" => '<',
        "gt" => '>',
        "quot" => '"',
        "apos" => '\'',
        _ => return None,
    })
}

/// Bytes out of base64, white space between them allowed.
fn base64(text: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    let (mut bits, mut count) = (0_u32, 0_u32);
    let mut padding = 0_u32;
    for byte in text.bytes().filter(|byte| !byte.is_ascii_whitespace()) {
        let six = match byte {
            b'A'..=b'Z' => byte.checked_sub(b'A')?,
            b'a'..=b'z' => byte.checked_sub(b'a')?.checked_add(26)?,
            b'0'..=b'9' => byte.checked_sub(b'0')?.checked_add(52)?,
            b'+' => 62,
            b'/' => 63,
            b'=' => {
                padding = padding.checked_add(1)?;
                continue;
            }
            _ => return None,
        };
        if padding > 0 {
            return None;
        }
        bits = bits << 6 & 0xFF_FFFF | u32::from(six);
        count = count.checked_add(6)?;
        if count >= 8 {
            count = count.checked_sub(8)?;
            bytes.push(u8::try_from(bits >> count & 0xFF).ok()?);
        }
    }
    (padding <= 2 && count < 6).then_some(bytes)
}
