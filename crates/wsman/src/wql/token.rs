//! Words, texts, numbers and signs of a query.
//!
//! **Invariant.** Each token has at least one byte, so there are no more than the query has bytes.

use crate::{Error, Result};

/// A piece of a query.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Token {
    /// A keyword or a name.
    Word(String),
    /// In quotes, without them.
    Text(String),
    /// Digits, with a sign or a fraction.
    Number(String),
    /// What stands in braces.
    Braced(String),
    /// `=` and the like, `(`, `)`, `,`, `*`, `.`.
    Sign(&'static str),
}

const SIGNS: [&str; 12] = [
    "<>", "!=", "<=", ">=", "=", "<", ">", "(", ")", ",", "*", ".",
];

/// Cuts a query into its pieces, each with the byte where it begins.
pub(super) fn tokens(query: &str) -> Result<Vec<(usize, Token)>> {
    let mut out = Vec::new();
    let mut at = 0;
    while let Some(rest) = query.get(at..) {
        let Some(first) = rest.chars().next() else {
            break;
        };
        if first.is_whitespace() {
            at = at.saturating_add(first.len_utf8());
            continue;
        }
        let (token, length) = token(rest, first)
            .ok_or_else(|| Error::malformed(format!("query, byte {at}: no word of WQL")))?;
        out.push((at, token));
        at = at.saturating_add(length.max(1));
    }
    Ok(out)
}

fn token(rest: &str, first: char) -> Option<(Token, usize)> {
    if first.is_alphabetic() || first == '_' {
        let end = end_of(rest, |it| it.is_alphanumeric() || it == '_');
        return Some((Token::Word(rest.get(..end)?.to_owned()), end));
    }
    let second = rest.chars().nth(1);
    let is_number = first.is_ascii_digit()
        || matches!(first, '-' | '+') && second.is_some_and(|it| it.is_ascii_digit());
    if is_number {
        let end =
            end_of(rest.get(1..)?, |it| it.is_ascii_alphanumeric() || it == '.').checked_add(1)?;
        return Some((Token::Number(rest.get(..end)?.to_owned()), end));
    }
    match first {
        '\'' | '"' => quoted(rest, first).map(|(text, end)| (Token::Text(text), end)),
        '{' => braced(rest),
        _ => SIGNS
            .iter()
            .find(|sign| rest.starts_with(**sign))
            .map(|sign| (Token::Sign(sign), sign.len())),
    }
}

fn end_of(text: &str, is_inside: impl Fn(char) -> bool) -> usize {
    text.find(|it| !is_inside(it)).unwrap_or(text.len())
}

/// A text in quotes and the bytes that it takes. A backslash stands before a backslash or a quote; before anything else it is itself.
fn quoted(rest: &str, quote: char) -> Option<(String, usize)> {
    let mut text = String::new();
    let mut characters = rest.char_indices().skip(1).peekable();
    while let Some((at, character)) = characters.next() {
        if character == quote {
            return Some((text, at.checked_add(1)?));
        }
        match characters.peek().map(|it| it.1) {
            Some(next) if character == '\\' && matches!(next, '\\' | '\'' | '"') => {
                text.push(next);
                characters.next();
            }
            _ => text.push(character),
        }
    }
    None
}

/// What stands in braces, as it stands; braces in quotes do not count.
fn braced(rest: &str) -> Option<(Token, usize)> {
    let mut quote = None;
    let mut is_escaped = false;
    for (at, character) in rest.char_indices().skip(1) {
        match (quote, character) {
            _ if is_escaped => is_escaped = false,
            (Some(_), '\\') => is_escaped = true,
            (Some(open), _) if open == character => quote = None,
            (None, '\'' | '"') => quote = Some(character),
            (None, '}') => {
                let inner = rest.get(1..at)?.trim().to_owned();
                return Some((Token::Braced(inner), at.checked_add(1)?));
            }
            _ => {}
        }
    }
    None
}
