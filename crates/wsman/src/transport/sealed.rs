//! Bodies that are sealed over plain HTTP (MS-WSMV 2.2.9.1): two parts, the second of them binary.
//!
//! ```text
//!   --Encrypted Boundary␍␊
//!   ␉Content-Type: application/HTTP-SPNEGO-session-encrypted␍␊
//!   ␉OriginalContent: type=application/soap+xml;charset=UTF-8;Length=<plain + padding>␍␊
//!   --Encrypted Boundary␍␊
//!   ␉Content-Type: application/octet-stream␍␊
//!   <u32 LE length of header><header><data>--Encrypted Boundary--␍␊
//! ```
//!
//! **Invariants.** Written exactly so, since clients in use compare bytes. Read tolerantly: blanks for the tab or none, a blank
//! behind the dashes, empty lines, line ends before the last boundary; but `Length` says where the data ends, nothing is searched in it.
//!
//! **What it does not do.** No `multipart/x-multi-encrypted`, which only CredSSP uses.

use crate::auth::Sealed;
use crate::{Error, ErrorKind, Result};

const BOUNDARY: &str = "Encrypted Boundary";

/// Lines before the binary part may not be more, nor longer.
const LINES_MAX: usize = 32;
const LINE_MAX_BYTES: usize = 1024;

/// Longer than the header of any mechanism.
const HEADER_MAX_BYTES: usize = 1024;

/// What a sealed body has more than its plain text, at most.
pub(super) const OVERHEAD_MAX_BYTES: usize = 4096 + HEADER_MAX_BYTES;

/// How the protocol is called when the keys come from Negotiate.
pub(super) const SPNEGO: &str = "application/HTTP-SPNEGO-session-encrypted";
/// And from bare Kerberos.
pub(super) const KERBEROS: &str = "application/HTTP-Kerberos-session-encrypted";

/// The protocol's name for keys from that scheme.
pub(super) fn protocol(scheme: &str) -> &'static str {
    if scheme.eq_ignore_ascii_case("Kerberos") {
        KERBEROS
    } else {
        SPNEGO
    }
}

/// Value of `Content-Type`.
pub(super) fn content_type(protocol: &str) -> String {
    format!("multipart/encrypted;protocol=\"{protocol}\";boundary=\"{BOUNDARY}\"")
}

/// Whether a content type says that the body is sealed.
pub(super) fn is_sealed(content_type: &str) -> bool {
    let kind = content_type.split(';').next().unwrap_or_default().trim();
    kind.eq_ignore_ascii_case("multipart/encrypted")
}

/// The body of these parts.
pub(super) fn write(protocol: &str, plain_type: &str, sealed: &Sealed) -> Result<Vec<u8>> {
    let header_bytes = u32::try_from(sealed.header.len())
        .map_err(|_| Error::limit("sealed body: the header is too long"))?;
    let length = sealed.data.len();
    let mut out = format!(
        "--{BOUNDARY}\r\n\tContent-Type: {protocol}\r\n\
         \tOriginalContent: type={plain_type};Length={length}\r\n\
         --{BOUNDARY}\r\n\tContent-Type: application/octet-stream\r\n"
    )
    .into_bytes();
    out.reserve(sealed.header.len() + length + 64);
    out.extend_from_slice(&header_bytes.to_le_bytes());
    out.extend_from_slice(&sealed.header);
    out.extend_from_slice(&sealed.data);
    out.extend_from_slice(format!("--{BOUNDARY}--\r\n").as_bytes());
    Ok(out)
}

/// A sealed body, taken apart.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct SealedBody<'a> {
    pub(super) protocol: String,
    /// What the content type was before sealing.
    pub(super) plain_type: String,
    pub(super) header: &'a [u8],
    pub(super) data: &'a [u8],
}

/// Takes a body apart; `content_type` names the boundary.
pub(super) fn read<'a>(content_type: &str, body: &'a [u8]) -> Result<SealedBody<'a>> {
    let boundary = parameter(content_type, "boundary").unwrap_or_else(|| BOUNDARY.to_owned());
    let mut lines = Lines {
        rest: body,
        left: LINES_MAX,
    };
    if !is_boundary(lines.next_line()?, &boundary) {
        return Err(Error::malformed(
            "sealed body: no boundary at its beginning",
        ));
    }
    let mut protocol = None;
    let mut original = None;
    loop {
        let line = lines.next_line()?;
        if is_boundary(line, &boundary) {
            break;
        }
        if let Some(value) = field(line, "Content-Type") {
            protocol = Some(value);
        } else if let Some(value) = field(line, "OriginalContent") {
            original = Some(value);
        }
    }
    let protocol = protocol.ok_or_else(|| Error::malformed("sealed body: no protocol"))?;
    let original = original.ok_or_else(|| Error::malformed("sealed body: no OriginalContent"))?;
    let (plain_type, length) = original_content(&original)?;
    while field(lines.next_line()?, "Content-Type").is_none() {}
    let (header, data, rest) = binary(lines.rest, length)?;
    let rest = rest.strip_prefix(b"\r\n").unwrap_or(rest);
    let end = rest.strip_suffix(b"\r\n").unwrap_or(rest);
    let is_end = end
        .strip_suffix(b"--")
        .is_some_and(|end| is_boundary(end, &boundary));
    if !is_end {
        return Err(Error::malformed(
            "sealed body: no boundary where its Length says that it ends",
        ));
    }
    Ok(SealedBody {
        protocol,
        plain_type,
        header,
        data,
    })
}

type Binary<'a> = (&'a [u8], &'a [u8], &'a [u8]);

/// Header, data and what comes behind them.
fn binary(bytes: &[u8], data_bytes: usize) -> Result<Binary<'_>> {
    let truncated = || Error::malformed("sealed body: cut short");
    // Two bytes that would make a header of kilobytes are an empty line.
    let bytes = bytes.strip_prefix(b"\r\n").unwrap_or(bytes);
    let (length, rest) = bytes.split_first_chunk::<4>().ok_or_else(truncated)?;
    let header_bytes = usize::try_from(u32::from_le_bytes(*length)).map_err(|_| truncated())?;
    if header_bytes > HEADER_MAX_BYTES {
        return Err(Error::new(
            ErrorKind::Malformed,
            format!("sealed body: a header of {header_bytes} bytes"),
        ));
    }
    let (header, rest) = rest.split_at_checked(header_bytes).ok_or_else(truncated)?;
    let (data, rest) = rest.split_at_checked(data_bytes).ok_or_else(truncated)?;
    Ok((header, data, rest))
}

struct Lines<'a> {
    rest: &'a [u8],
    left: usize,
}

impl<'a> Lines<'a> {
    fn next_line(&mut self) -> Result<&'a [u8]> {
        let too_long = || Error::limit("sealed body: too many lines, or too long ones");
        self.left = self.left.checked_sub(1).ok_or_else(too_long)?;
        let window = self.rest.get(..LINE_MAX_BYTES).unwrap_or(self.rest);
        let end = window.iter().position(|byte| *byte == b'\n');
        let end = end.ok_or_else(|| {
            if window.len() == LINE_MAX_BYTES {
                too_long()
            } else {
                Error::malformed("sealed body: cut short")
            }
        })?;
        let (line, rest) = self.rest.split_at(end);
        self.rest = rest.split_first().map_or(&[], |(_, rest)| rest);
        Ok(line.strip_suffix(b"\r").unwrap_or(line))
    }
}

fn is_boundary(line: &[u8], boundary: &str) -> bool {
    line.trim_ascii_end()
        .strip_prefix(b"--")
        .is_some_and(|name| name.trim_ascii_start() == boundary.as_bytes())
}

/// The value of a line `Name: value`, if it has that name.
fn field(line: &[u8], name: &str) -> Option<String> {
    let line = std::str::from_utf8(line).ok()?;
    let (found, value) = line.split_once(':')?;
    found
        .trim()
        .eq_ignore_ascii_case(name)
        .then(|| value.trim().to_owned())
}

/// `type=application/soap+xml;charset=UTF-8;Length=1432`: type and length.
fn original_content(value: &str) -> Result<(String, usize)> {
    let mut length = None;
    let mut kind: Vec<&str> = Vec::new();
    for part in value.split(';').map(str::trim) {
        match part.split_once('=') {
            Some((name, number)) if name.trim().eq_ignore_ascii_case("Length") => {
                length = number.trim().parse().ok();
            }
            Some((name, rest)) if name.trim().eq_ignore_ascii_case("type") => kind.push(rest),
            _ => kind.push(part),
        }
    }
    let length = length.ok_or_else(|| Error::malformed("sealed body: no Length"))?;
    Ok((kind.join(";"), length))
}

/// A parameter of a content type, without its quotes.
pub(super) fn parameter(content_type: &str, name: &str) -> Option<String> {
    content_type.split(';').skip(1).find_map(|part| {
        let (found, value) = part.split_once('=')?;
        found
            .trim()
            .eq_ignore_ascii_case(name)
            .then(|| value.trim().trim_matches('"').to_owned())
    })
}

/// The charset that a content type names, lower case.
pub(super) fn charset(content_type: &str) -> Option<String> {
    parameter(content_type, "charset").map(|name| name.to_ascii_lowercase())
}
