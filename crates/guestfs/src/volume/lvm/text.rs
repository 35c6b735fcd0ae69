//! The text that LVM2 keeps its metadata in.
//!
//! ```text
//!   name { key = 12  key = "text"  key = [ "a", 1, … ]  name { … } }     # comment
//! ```
//!
//! Parsed without recursion into one flat list of nodes; depth, nodes and text are bounded. Source: LVM2
//! `lib/config/config.c` and `man lvm.conf`.

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

use crate::{Error, ErrorKind, Result};

/// Deeper than LVM writes (volume group, logical_volumes, volume, segment).
const MAX_DEPTH: usize = 16;
/// About ten per segment: a volume group of a hundred thousand segments.
const MAX_NODES: usize = 2_000_000;

/// A value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Value {
    Number(i64),
    Text(String),
    List(Vec<Value>),
}

/// A section with what stands in it.
#[derive(Debug, Default)]
pub(super) struct Section {
    values: Vec<(String, Value)>,
    sections: Vec<(String, Section)>,
}

impl Section {
    pub(super) fn value(&self, key: &str) -> Option<&Value> {
        self.values
            .iter()
            .find(|(name, _)| name == key)
            .map(|(_, value)| value)
    }

    pub(super) fn section(&self, key: &str) -> Option<&Self> {
        self.sections
            .iter()
            .find(|(name, _)| name == key)
            .map(|(_, section)| section)
    }

    pub(super) fn sections(&self) -> impl Iterator<Item = (&str, &Self)> {
        self.sections
            .iter()
            .map(|(name, section)| (name.as_str(), section))
    }

    pub(super) fn text(&self, key: &str) -> Result<&str> {
        match self.value(key) {
            Some(Value::Text(text)) => Ok(text),
            _ => Err(Error::corrupt(format!("no text {key:?} in the metadata"))),
        }
    }

    pub(super) fn number(&self, key: &str) -> Result<u64> {
        match self.value(key) {
            Some(Value::Number(number)) => u64::try_from(*number)
                .map_err(|_| Error::corrupt(format!("{key} is {number} in the metadata"))),
            _ => Err(Error::corrupt(format!("no number {key:?} in the metadata"))),
        }
    }

    pub(super) fn list(&self, key: &str) -> &[Value] {
        match self.value(key) {
            Some(Value::List(values)) => values,
            _ => &[],
        }
    }

    /// Whether a list of words holds one.
    pub(super) fn has_word(&self, key: &str, word: &str) -> bool {
        self.list(key)
            .iter()
            .any(|value| matches!(value, Value::Text(text) if text == word))
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Token {
    Word(String),
    Text(String),
    Number(i64),
    Sign(u8),
}

struct Lexer<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Lexer<'_> {
    fn peek(&self) -> Option<u8> {
        self.bytes.get(self.at).copied()
    }

    fn bump(&mut self) {
        self.at = self.at.saturating_add(1);
    }

    fn wrong(&self, what: &str) -> Error {
        Error::corrupt(format!("metadata, byte {}: {what}", self.at))
    }

    fn next(&mut self) -> Result<Option<Token>> {
        loop {
            match self.peek() {
                None | Some(0) => return Ok(None),
                Some(byte) if byte.is_ascii_whitespace() => self.bump(),
                Some(b'#') => {
                    while self.peek().is_some_and(|byte| byte != b'\n') {
                        self.bump();
                    }
                }
                Some(byte @ (b'{' | b'}' | b'[' | b']' | b'=' | b',')) => {
                    self.bump();
                    return Ok(Some(Token::Sign(byte)));
                }
                Some(quote @ (b'"' | b'\'')) => return self.quoted(quote).map(Some),
                Some(_) => return self.word().map(Some),
            }
        }
    }

    fn quoted(&mut self, quote: u8) -> Result<Token> {
        self.bump();
        let mut text = Vec::new();
        loop {
            let Some(byte) = self.peek() else {
                return Err(self.wrong("a text without an end"));
            };
            self.bump();
            if byte == quote {
                return Ok(Token::Text(String::from_utf8_lossy(&text).into_owned()));
            }
            if byte == b'\\' && quote == b'"' {
                if let Some(escaped) = self.peek() {
                    text.push(escaped);
                    self.bump();
                }
            } else {
                text.push(byte);
            }
        }
    }

    fn word(&mut self) -> Result<Token> {
        let start = self.at;
        while self
            .peek()
            .is_some_and(|byte| !byte.is_ascii_whitespace() && !b"{}[]=,#\"'\0".contains(&byte))
        {
            self.bump();
        }
        let bytes = self.bytes.get(start..self.at).unwrap_or_default();
        let text = String::from_utf8_lossy(bytes).into_owned();
        let is_number = text
            .trim_start_matches('-')
            .bytes()
            .next()
            .is_some_and(|byte| byte.is_ascii_digit());
        if is_number && let Ok(number) = text.parse() {
            return Ok(Token::Number(number));
        }
        // A fraction is nowhere of use here, but stands in some files.
        Ok(Token::Word(text))
    }
}

/// Parses a whole text.
pub(super) fn parse(bytes: &[u8]) -> Result<Section> {
    let mut lexer = Lexer { bytes, at: 0 };
    let mut open: Vec<(String, Section)> = vec![(String::new(), Section::default())];
    let mut nodes = 0_usize;
    while let Some(token) = lexer.next()? {
        nodes = nodes.saturating_add(1);
        if nodes > MAX_NODES {
            return Err(Error::new(
                ErrorKind::Limit,
                "more metadata than any volume group has",
            ));
        }
        match token {
            Token::Word(name) | Token::Text(name) => match lexer.next()? {
                Some(Token::Sign(b'{')) => {
                    if open.len() >= MAX_DEPTH {
                        return Err(lexer.wrong("sections too deep"));
                    }
                    open.push((name, Section::default()));
                }
                Some(Token::Sign(b'=')) => {
                    let value = value(&mut lexer, &mut nodes)?;
                    if let Some((_, section)) = open.last_mut() {
                        section.values.push((name, value));
                    }
                }
                _ => return Err(lexer.wrong("neither a section nor a value")),
            },
            Token::Sign(b'}') => {
                let (Some((name, section)), Some((_, parent))) = (open.pop(), open.last_mut())
                else {
                    return Err(lexer.wrong("a section ends that never began"));
                };
                parent.sections.push((name, section));
            }
            _ => return Err(lexer.wrong("no name")),
        }
    }
    match (open.pop(), open.is_empty()) {
        (Some((_, root)), true) => Ok(root),
        _ => Err(lexer.wrong("a section without an end")),
    }
}

fn value(lexer: &mut Lexer<'_>, nodes: &mut usize) -> Result<Value> {
    match lexer.next()? {
        Some(Token::Number(number)) => Ok(Value::Number(number)),
        Some(Token::Text(text) | Token::Word(text)) => Ok(Value::Text(text)),
        Some(Token::Sign(b'[')) => {
            let mut values = Vec::new();
            loop {
                *nodes = nodes.saturating_add(1);
                if *nodes > MAX_NODES {
                    return Err(Error::new(ErrorKind::Limit, "a list too long"));
                }
                match lexer.next()? {
                    Some(Token::Number(number)) => values.push(Value::Number(number)),
                    Some(Token::Text(text) | Token::Word(text)) => values.push(Value::Text(text)),
                    Some(Token::Sign(b',')) => {}
                    Some(Token::Sign(b']')) => return Ok(Value::List(values)),
                    _ => return Err(lexer.wrong("a list without an end")),
                }
            }
        }
        _ => Err(lexer.wrong("no value")),
    }
}
