//! Writing XML into one text.
//!
//! **Invariants.** Names are ours and are written as they stand; texts are escaped. A character that XML cannot hold makes
//! [`XmlWriter::finish`] an error, so that nothing is sent that the other side cannot read.

use crate::{Error, Result};

/// A text that grows.
#[derive(Debug)]
pub struct XmlWriter {
    out: String,
    bad_character: Option<char>,
}

impl Default for XmlWriter {
    fn default() -> Self {
        Self::new()
    }
}

impl XmlWriter {
    /// An empty one.
    pub fn new() -> Self {
        Self {
            out: String::with_capacity(4096),
            bad_character: None,
        }
    }

    /// Bytes so far.
    pub fn len(&self) -> usize {
        self.out.len()
    }

    /// Whether nothing was written yet.
    pub fn is_empty(&self) -> bool {
        self.out.is_empty()
    }

    /// Takes back what was written after it was that long.
    pub fn truncate(&mut self, length: usize) {
        self.out.truncate(length);
    }

    /// Puts another behind what is there.
    pub fn append(&mut self, other: Self) -> &mut Self {
        self.out.push_str(&other.out);
        self.bad_character = self.bad_character.or(other.bad_character);
        self
    }

    /// Markup as it stands.
    pub fn raw(&mut self, markup: &str) -> &mut Self {
        self.out.push_str(markup);
        self
    }

    /// `<prefix:name>`; without a colon where the prefix is empty.
    pub fn start(&mut self, prefix: &str, name: &str) -> &mut Self {
        self.open(prefix, name);
        self.out.push('>');
        self
    }

    /// `<prefix:name`, for attributes to follow.
    pub fn open(&mut self, prefix: &str, name: &str) -> &mut Self {
        self.out.push('<');
        self.name(prefix, name);
        self
    }

    /// `</prefix:name>`.
    pub fn end(&mut self, prefix: &str, name: &str) -> &mut Self {
        self.out.push_str("</");
        self.name(prefix, name);
        self.out.push('>');
        self
    }

    fn name(&mut self, prefix: &str, name: &str) {
        if !prefix.is_empty() {
            self.out.push_str(prefix);
            self.out.push(':');
        }
        self.out.push_str(name);
    }

    /// ` name="value"`.
    pub fn attribute(&mut self, name: &str, value: &str) -> &mut Self {
        self.out.push(' ');
        self.out.push_str(name);
        self.out.push_str("=\"");
        self.escape(value, Place::Attribute);
        self.out.push('"');
        self
    }

    /// A text, escaped.
    pub fn text(&mut self, text: &str) -> &mut Self {
        self.escape(text, Place::Text);
        self
    }

    /// `<prefix:name>text</prefix:name>`; `<prefix:name/>` where the text is empty.
    pub fn element(&mut self, prefix: &str, name: &str, text: &str) -> &mut Self {
        self.open(prefix, name);
        if text.is_empty() {
            self.out.push_str("/>");
            return self;
        }
        self.out.push('>');
        self.text(text);
        self.end(prefix, name)
    }

    fn escape(&mut self, text: &str, place: Place) {
        let mut rest = text;
        let is_plain = |it: u8| it >= b' ' && !matches!(it, b'&' | b'<' | b'>' | b'"');
        while let Some(at) = rest.bytes().position(|it| !is_plain(it)) {
            let (plain, special) = rest.split_at(at);
            self.out.push_str(plain);
            let mut characters = special.chars();
            match characters.next() {
                Some('&') => self.out.push_str("&amp;"),
                Some('<') => self.out.push_str("&lt;"),
                Some('>') => self.out.push_str("&gt;"),
                Some('"') if place == Place::Attribute => self.out.push_str("&quot;"),
                Some('\t') if place == Place::Attribute => self.out.push_str("&#9;"),
                Some('\n') if place == Place::Attribute => self.out.push_str("&#10;"),
                // As itself it would be read as a line feed.
                Some('\r') => self.out.push_str("&#13;"),
                Some(other @ ('"' | '\t' | '\n')) => self.out.push(other),
                Some(other) => self.bad_character = Some(other),
                None => {}
            }
            rest = characters.as_str();
        }
        self.out.push_str(rest);
        // Both are three bytes that begin with this one.
        if text.as_bytes().contains(&0xef) {
            let mut all = text.chars();
            let bad = all.find(|it| matches!(it, '\u{fffe}' | '\u{ffff}'));
            self.bad_character = self.bad_character.or(bad);
        }
    }

    /// The text.
    ///
    /// # Errors
    /// [`Invalid`](crate::ErrorKind::Invalid) if a text held a character that XML cannot hold.
    pub fn finish(self) -> Result<String> {
        match self.bad_character {
            Some(bad) => Err(Error::invalid(format!(
                "character U+{:04X} cannot be sent in XML",
                u32::from(bad)
            ))),
            None => Ok(self.out),
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    Text,
    Attribute,
}
