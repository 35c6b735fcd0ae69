//! From the bytes of a message to text and back: UTF-8 and UTF-16.
//!
//! **Invariant.** A byte order mark wins over the charset of the content type, as XML 1.0 §F says. Text never grows to more than
//! three times its bytes, so the bound on bytes bounds it.

use std::borrow::Cow;

use crate::{Error, Result};

/// How a message is encoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Charset {
    /// UTF-8.
    Utf8,
    /// UTF-16, low byte first, with a byte order mark.
    Utf16,
    /// UTF-16, high byte first, with a byte order mark.
    Utf16BigEndian,
}

impl Charset {
    /// As `Content-Type` spells it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Utf8 => "UTF-8",
            Self::Utf16 | Self::Utf16BigEndian => "UTF-16",
        }
    }
}

/// Reads a message; says how it was encoded. `charset` is what the content type names, if anything.
///
/// # Errors
/// [`Malformed`](crate::ErrorKind::Malformed) for broken text, [`Unsupported`](crate::ErrorKind::Unsupported) for another charset.
pub fn decode<'a>(bytes: &'a [u8], charset: Option<&str>) -> Result<(Cow<'a, str>, Charset)> {
    let named = charset.map(|it| it.trim().trim_matches('"').to_ascii_lowercase());
    let charset = match (bytes, named.as_deref()) {
        ([0xff, 0xfe, ..], _) => Charset::Utf16,
        ([0xfe, 0xff, ..], _) => Charset::Utf16BigEndian,
        ([0xef, 0xbb, 0xbf, ..], _) => Charset::Utf8,
        // Without a mark: what a message begins with tells.
        ([b'<', 0, ..], _) => Charset::Utf16,
        ([0, b'<', ..], _) => Charset::Utf16BigEndian,
        (_, None | Some("utf-8" | "utf8" | "us-ascii" | "ascii")) => Charset::Utf8,
        (_, Some("utf-16" | "utf-16le" | "unicode")) => Charset::Utf16,
        (_, Some("utf-16be")) => Charset::Utf16BigEndian,
        (_, Some(other)) => {
            let shown: String = other.chars().take(40).collect();
            return Err(Error::new(
                crate::ErrorKind::Unsupported,
                format!("message in charset {shown:?}"),
            ));
        }
    };
    let text = match charset {
        Charset::Utf8 => {
            let bytes = bytes.strip_prefix(&[0xef, 0xbb, 0xbf]).unwrap_or(bytes);
            Cow::Borrowed(
                std::str::from_utf8(bytes)
                    .map_err(|cause| Error::malformed("message is no UTF-8").caused_by(cause))?,
            )
        }
        Charset::Utf16 => Cow::Owned(utf16(bytes, u16::from_le_bytes)?),
        Charset::Utf16BigEndian => Cow::Owned(utf16(bytes, u16::from_be_bytes)?),
    };
    Ok((text, charset))
}

fn utf16(bytes: &[u8], unit: impl Fn([u8; 2]) -> u16) -> Result<String> {
    let (pairs, rest) = bytes.as_chunks::<2>();
    if !rest.is_empty() {
        return Err(Error::malformed(
            "message in UTF-16 has an odd number of bytes",
        ));
    }
    let units = pairs.iter().map(|it| unit(*it));
    let text: String = char::decode_utf16(units)
        .collect::<std::result::Result<_, _>>()
        .map_err(|cause| Error::malformed("message is no UTF-16").caused_by(cause))?;
    Ok(match text.strip_prefix('\u{feff}') {
        Some(rest) => rest.to_owned(),
        None => text,
    })
}

/// The bytes of a text; UTF-16 gets its byte order mark.
pub fn encode(text: String, charset: Charset) -> Vec<u8> {
    let units = |text: &str| {
        "\u{feff}"
            .encode_utf16()
            .chain(text.encode_utf16())
            .collect::<Vec<u16>>()
    };
    match charset {
        Charset::Utf8 => text.into_bytes(),
        Charset::Utf16 => units(&text)
            .iter()
            .flat_map(|it| it.to_le_bytes())
            .collect(),
        Charset::Utf16BigEndian => units(&text)
            .iter()
            .flat_map(|it| it.to_be_bytes())
            .collect(),
    }
}
