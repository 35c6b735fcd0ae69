//! The same document in other words: prefixes, order of attributes, white space, comments, CDATA, characters by number, nil.
//!
//! ```text
//!   text ─► Document ─► OddWriter(seed) ─► text that means the same ─► bytes of some encoding
//! ```
//!
//! **Invariant.** Only what XML, SOAP and WS-Management call equal is changed: names keep their namespaces, texts their
//! characters, elements their order.

use lab::estate::Random;
use wsman::xml::{Charset, Document, Element, XmlLimits, encode, namespace};

/// Writes documents oddly, always the same way for a seed.
pub struct OddWriter {
    dice: Random,
    out: String,
    /// Prefixes in force, innermost last: prefix, namespace.
    scope: Vec<(String, String)>,
    serial: u32,
    /// Whether items are in the other namespace: both are seen in the field.
    has_other_items: bool,
    /// Whether references are wrapped.
    wraps_references: bool,
}

/// What becomes of an answer.
pub fn oddly(text: &str, seed: u64) -> Vec<u8> {
    let document = Document::parse(text, &XmlLimits::default()).expect("an answer of the lab");
    let mut writer = OddWriter {
        dice: Random::seeded(seed),
        out: String::with_capacity(text.len() * 2),
        scope: Vec::new(),
        serial: 0,
        has_other_items: seed & 1 == 1,
        wraps_references: seed & 2 == 2,
    };
    if writer.dice.below(2) == 0 {
        writer.out.push_str("<?xml version='1.0'?>\n");
    }
    writer.noise();
    writer.element(document.root());
    writer.noise();
    match writer.dice.below(4) {
        0 => encode(writer.out, Charset::Utf16),
        1 => encode(writer.out, Charset::Utf16BigEndian),
        2 => [&[0xef, 0xbb, 0xbf], writer.out.as_bytes()].concat(),
        _ => writer.out.into_bytes(),
    }
}

impl OddWriter {
    fn one_in(&mut self, count: u64) -> bool {
        self.dice.below(count) == 0
    }

    /// What may stand between elements and means nothing.
    fn noise(&mut self) {
        match self.dice.below(8) {
            0 => self.out.push_str("\r\n\t "),
            1 => self.out.push_str("<!-- <s:Fault> & co. -->"),
            2 => self.out.push_str("\n<?odd but=\"legal\"?>\n"),
            _ => {}
        }
    }

    /// The namespace that a prefix stands for here.
    fn bound(&self, prefix: &str) -> &str {
        let found = self.scope.iter().rev().find(|it| it.0 == prefix);
        found.map_or("", |it| it.1.as_str())
    }

    /// A prefix for a namespace, bound already or to be bound by the element that is being written.
    fn prefix(&mut self, namespace: &str, fresh: &mut Vec<(String, String)>) -> String {
        let known = self.scope.iter().rev().find(|it| it.1 == namespace);
        if let Some((prefix, _)) = known.cloned()
            && !prefix.is_empty()
            && self.bound(&prefix) == namespace
            && !self.one_in(16)
        {
            return prefix;
        }
        self.serial += 1;
        // Names that others use for other things are as good as any.
        let prefix = match self.dice.below(3) {
            0 => format!("ns{}", self.serial),
            1 => format!("s-{}.{}", self.serial, self.dice.below(10)),
            _ => format!("_{}Ä", self.serial),
        };
        let binding = (prefix.clone(), namespace.to_owned());
        self.scope.push(binding.clone());
        fresh.push(binding);
        prefix
    }

    fn element(&mut self, element: Element<'_, '_>) {
        let depth = self.scope.len();
        let mut fresh = Vec::new();
        let is_of_items = matches!(element.local(), "Items" | "EndOfSequence");
        let namespace = match element.namespace() {
            namespace::WSMAN if is_of_items && self.has_other_items => namespace::ENUMERATION,
            namespace::ENUMERATION if is_of_items && self.has_other_items => namespace::WSMAN,
            other => other,
        };
        let name = self.name_of(element, namespace, &mut fresh);
        let mut attributes = self.attributes(element, &mut fresh);
        // Codes of faults are names with prefixes.
        let code = element
            .is(namespace::SOAP, "Value")
            .then(|| self.qualified(element, element.text(), &mut fresh));
        let bindings = fresh.into_iter().map(|(prefix, namespace)| {
            if prefix.is_empty() {
                ("xmlns".to_owned(), namespace)
            } else {
                (format!("xmlns:{prefix}"), namespace)
            }
        });
        attributes.extend(bindings);
        self.shuffle(&mut attributes);
        self.out.push('<');
        self.out.push_str(&name);
        for (name, value) in attributes {
            self.attribute(&name, &value);
        }
        if self.one_in(6) {
            self.out.push('\n');
        }
        let is_bare = !element.has_children() && element.text().is_empty();
        if is_bare && self.one_in(2) {
            self.out.push_str("/>");
        } else {
            self.out.push('>');
            match code {
                Some(code) => self.escaped(&format!("\n {code} ")),
                None => self.content(element),
            }
            self.out.push_str("</");
            self.out.push_str(&name);
            if self.one_in(6) {
                self.out.push(' ');
            }
            self.out.push('>');
        }
        self.scope.truncate(depth);
    }

    /// The name as it is written: with the default namespace, or with a prefix.
    fn name_of(
        &mut self,
        element: Element<'_, '_>,
        namespace: &str,
        fresh: &mut Vec<(String, String)>,
    ) -> String {
        let local = element.local();
        let is_default = self.bound("") == namespace;
        if namespace.is_empty() || (!is_default && self.one_in(5)) {
            if !is_default {
                let binding = (String::new(), namespace.to_owned());
                self.scope.push(binding.clone());
                fresh.push(binding);
            }
            return local.to_owned();
        }
        if is_default && self.one_in(2) {
            return local.to_owned();
        }
        let prefix = self.prefix(namespace, fresh);
        format!("{prefix}:{local}")
    }

    fn attributes(
        &mut self,
        element: Element<'_, '_>,
        fresh: &mut Vec<(String, String)>,
    ) -> Vec<(String, String)> {
        let mut written = Vec::new();
        for (namespace, local, value) in element.attributes() {
            if namespace == namespace::XML {
                written.push((format!("xml:{local}"), value.to_owned()));
                continue;
            }
            let name = if namespace.is_empty() {
                local.to_owned()
            } else {
                format!("{}:{local}", self.prefix(namespace, fresh))
            };
            let value = match (namespace, local) {
                (namespace::XSI, "type") => self.qualified(element, value, fresh),
                (namespace::XSI, "nil") if self.one_in(2) => "1".to_owned(),
                _ => value.to_owned(),
            };
            written.push((name, value));
        }
        if self.one_in(12) {
            let foreign = self.prefix("urn:odd", fresh);
            written.push((format!("{foreign}:note"), "a 'quoted' \"note\"".to_owned()));
        }
        written
    }

    /// A name in a value, under a prefix that is in force.
    fn qualified(
        &mut self,
        element: Element<'_, '_>,
        value: &str,
        fresh: &mut Vec<(String, String)>,
    ) -> String {
        let (namespace, local) = element.resolve_name(value);
        if namespace.is_empty() {
            return value.to_owned();
        }
        let prefix = self.prefix(namespace, fresh);
        format!("{prefix}:{local}")
    }

    fn shuffle(&mut self, values: &mut [(String, String)]) {
        for last in (1..values.len()).rev() {
            let other = self.dice.below(last as u64 + 1);
            values.swap(last, usize::try_from(other).expect("a small number"));
        }
    }

    fn attribute(&mut self, name: &str, value: &str) {
        let gap = if self.one_in(5) { "\n  " } else { " " };
        let equals = if self.one_in(5) { " = " } else { "=" };
        self.out.push_str(gap);
        self.out.push_str(name);
        self.out.push_str(equals);
        let quote = if self.one_in(2) { '\'' } else { '"' };
        self.out.push(quote);
        for letter in value.chars() {
            match letter {
                '<' => self.out.push_str("&lt;"),
                '&' => self.out.push_str("&amp;"),
                '\'' | '"' if letter == quote => self.number(letter),
                '\t' | '\r' | '\n' => self.number(letter),
                _ => self.out.push(letter),
            }
        }
        self.out.push(quote);
    }

    fn number(&mut self, letter: char) {
        let number = u32::from(letter);
        let written = if self.one_in(2) {
            format!("&#{number};")
        } else {
            format!("&#x{number:x};")
        };
        self.out.push_str(&written);
    }

    fn content(&mut self, element: Element<'_, '_>) {
        if !element.has_children() {
            self.text(element.text());
            return;
        }
        // Texts beside elements are those of faults, for people.
        self.escaped(element.text());
        let is_reference = element
            .child(namespace::ADDRESSING, "ReferenceParameters")
            .is_some();
        let depth = self.scope.len();
        let wrapping =
            is_reference && self.wraps_references && element.namespace() != namespace::ADDRESSING;
        if wrapping {
            self.scope
                .push(("epr".to_owned(), namespace::ADDRESSING.to_owned()));
            let uri = namespace::ADDRESSING;
            self.out
                .push_str(&format!("<epr:EndpointReference xmlns:epr='{uri}'>"));
        }
        for child in element.children() {
            self.noise();
            self.element(child);
        }
        self.noise();
        if wrapping {
            self.out.push_str("</epr:EndpointReference>");
        }
        self.scope.truncate(depth);
    }

    /// A text in pieces: as it is, as CDATA, by number, with comments between.
    fn text(&mut self, text: &str) {
        let mut rest = text;
        while !rest.is_empty() {
            let wanted = usize::try_from(self.dice.below(200)).expect("a small number") + 1;
            let mut end = wanted.min(rest.len());
            while !rest.is_char_boundary(end) {
                end += 1;
            }
            let (piece, after) = rest.split_at(end);
            match self.dice.below(6) {
                0 if !piece.contains("]]>") && !piece.contains('\r') => {
                    self.out.push_str("<![CDATA[");
                    self.out.push_str(piece);
                    self.out.push_str("]]>");
                }
                1 => {
                    let first = piece.chars().next().expect("not empty");
                    self.number(first);
                    self.escaped(&piece[first.len_utf8()..]);
                    self.out.push_str("<!-- - -->");
                }
                _ => self.escaped(piece),
            }
            rest = after;
        }
    }

    fn escaped(&mut self, piece: &str) {
        for letter in piece.chars() {
            match letter {
                '<' => self.out.push_str("&lt;"),
                '>' => self.out.push_str("&gt;"),
                '&' => self.out.push_str("&amp;"),
                '\r' => self.out.push_str("&#13;"),
                _ => self.out.push(letter),
            }
        }
    }
}
