//! The scheme Basic (RFC 7617): name and password in every request. Only for lines that are sealed below.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use zeroize::Zeroizing;

use super::Secret;
use crate::{Error, Result};

/// What goes behind `Authorization: `.
pub(crate) fn encode(user: &str, password: &Secret) -> Zeroizing<String> {
    let plain = Zeroizing::new(format!("{user}:{}", password.expose()));
    let mut text = Zeroizing::new(String::from("Basic "));
    STANDARD.encode_string(plain.as_bytes(), &mut text);
    text
}

/// Name and password of what stood behind the word `Basic`.
///
/// # Errors
/// [`Malformed`](crate::ErrorKind::Malformed).
pub(crate) fn decode(token: &str) -> Result<(String, Secret)> {
    let bytes = STANDARD
        .decode(token.trim())
        .map_err(|cause| Error::malformed("basic credentials: base64").caused_by(cause))?;
    let bytes = Zeroizing::new(bytes);
    // RFC 7617 leaves the charset open; clients send UTF-8 or Latin-1.
    let text = Zeroizing::new(match std::str::from_utf8(&bytes) {
        Ok(text) => text.to_owned(),
        Err(_) => bytes.iter().copied().map(char::from).collect(),
    });
    let (user, password) = text
        .split_once(':')
        .ok_or_else(|| Error::malformed("basic credentials: no colon"))?;
    Ok((user.to_owned(), Secret::new(password)))
}
