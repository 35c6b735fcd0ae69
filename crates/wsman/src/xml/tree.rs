//! A document as a tree whose names and texts borrow from the text that was read.
//!
//! ```text
//!   nodes: [ Envelope │ Header │ To │ … │ Body │ … ]      one flat list, in the order of the document
//!             └ first child ──► next sibling ──► …
//! ```
//!
//! **Invariants.** Every name is resolved to a namespace; an unbound prefix is an error. Links point only forwards, so walking
//! ends. What is not asked for costs no allocation of its own.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fmt;

use quick_xml::Reader;
use quick_xml::XmlVersion;
use quick_xml::escape::resolve_xml_entity;
use quick_xml::events::attributes::Attributes;
use quick_xml::events::{BytesRef, Event};

use super::namespace;
use crate::{Error, ErrorKind, Result};

/// Bounds of a document.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct XmlLimits {
    /// Elements inside of elements.
    pub depth: usize,
    /// Elements altogether.
    pub elements: usize,
    /// Attributes of one element.
    pub attributes: usize,
    /// Different namespaces.
    pub namespaces: usize,
    /// Prefixes that are bound at one place.
    pub bindings: usize,
}

impl Default for XmlLimits {
    /// What an envelope of some megabytes may need.
    fn default() -> Self {
        Self {
            depth: 64,
            elements: 1_000_000,
            attributes: 64,
            namespaces: 1024,
            bindings: 256,
        }
    }
}

type Index = u32;
const NONE: Index = Index::MAX;
/// The namespace of names without one.
const UNQUALIFIED: u16 = 0;

#[derive(Debug)]
struct Node<'t> {
    namespace: u16,
    local: &'t str,
    text: Cow<'t, str>,
    attributes: (Index, Index),
    parent: Index,
    first_child: Index,
    next_sibling: Index,
}

#[derive(Debug)]
struct Attribute<'t> {
    namespace: u16,
    local: &'t str,
    value: Cow<'t, str>,
}

/// A prefix that some attribute's value may use; kept by element.
#[derive(Debug)]
struct Binding<'t> {
    owner: Index,
    prefix: &'t str,
    namespace: u16,
}

/// A document; its elements borrow from it.
#[derive(Debug)]
pub struct Document<'t> {
    nodes: Vec<Node<'t>>,
    attributes: Vec<Attribute<'t>>,
    bindings: Vec<Binding<'t>>,
    namespaces: Vec<Cow<'t, str>>,
}

impl<'t> Document<'t> {
    /// Reads a document.
    ///
    /// # Errors
    /// [`Malformed`](ErrorKind::Malformed) with the byte where it is not well-formed, [`Limit`](ErrorKind::Limit),
    /// [`Refused`](ErrorKind::Refused) where it has a document type.
    pub fn parse(text: &'t str, limits: &XmlLimits) -> Result<Self> {
        Builder::new(text, limits).read()
    }

    /// The outermost element.
    pub fn root(&self) -> Element<'_, 't> {
        Element {
            document: self,
            index: 0,
        }
    }
}

struct Builder<'t, 'l> {
    text: &'t str,
    limits: &'l XmlLimits,
    document: Document<'t>,
    known: HashMap<Cow<'t, str>, u16>,
    /// Elements that are open, each with its last child.
    open: Vec<(Index, Index)>,
    /// Bindings in force, innermost last, with the depth of their element.
    scope: Vec<(usize, &'t str, u16)>,
    is_done: bool,
}

impl<'t, 'l> Builder<'t, 'l> {
    fn new(text: &'t str, limits: &'l XmlLimits) -> Self {
        let mut known = HashMap::new();
        known.insert(Cow::Borrowed(""), UNQUALIFIED);
        Self {
            text,
            limits,
            document: Document {
                nodes: Vec::new(),
                attributes: Vec::new(),
                bindings: Vec::new(),
                namespaces: vec![Cow::Borrowed("")],
            },
            known,
            open: Vec::new(),
            scope: Vec::new(),
            is_done: false,
        }
    }

    fn read(mut self) -> Result<Document<'t>> {
        let mut reader = Reader::from_str(self.text);
        reader.config_mut().allow_dangling_amp = false;
        let mut at: u64 = 0;
        loop {
            let event = reader
                .read_event()
                .map_err(|cause| Error::malformed(format!("xml, byte {at}")).caused_by(cause))?;
            let end = reader.buffer_position();
            let place = |error: Error| error.within(format_args!("xml, byte {at}"));
            match event {
                Event::Start(_) => self.start(at, end, 1).map_err(place)?,
                Event::Empty(_) => {
                    self.start(at, end, 2).map_err(place)?;
                    self.end();
                }
                Event::End(_) => self.end(),
                Event::Text(text) => {
                    let text = text
                        .xml_content(XmlVersion::Implicit1_0)
                        .map_err(|cause| place(Error::malformed("text").caused_by(cause)))?;
                    self.push_text(text).map_err(place)?;
                }
                Event::CData(text) => {
                    let text = text
                        .xml_content(XmlVersion::Implicit1_0)
                        .map_err(|cause| place(Error::malformed("cdata").caused_by(cause)))?;
                    self.push_inner(text).map_err(place)?;
                }
                Event::GeneralRef(name) => {
                    let text = resolve(&name).map_err(place)?;
                    self.push_inner(text).map_err(place)?;
                }
                Event::DocType(_) => {
                    return Err(place(Error::new(
                        ErrorKind::Refused,
                        "a document type is not for messages",
                    )));
                }
                Event::Comment(_) | Event::PI(_) | Event::Decl(_) => {}
                Event::Eof => break,
            }
            at = end;
        }
        if !self.is_done || !self.open.is_empty() {
            return Err(Error::malformed(
                "xml ends inside of an element, or before any",
            ));
        }
        Ok(self.document)
    }

    /// The piece of the text between two positions of the reader.
    fn slice(&self, from: u64, to: u64) -> Result<&'t str> {
        usize::try_from(from)
            .ok()
            .zip(usize::try_from(to).ok())
            .and_then(|(from, to)| self.text.get(from..to))
            .ok_or_else(|| Error::malformed("tag"))
    }

    fn start(&mut self, from: u64, to: u64, tail: usize) -> Result<()> {
        if self.is_done {
            return Err(Error::malformed("a second outermost element"));
        }
        if self.open.len() >= self.limits.depth {
            return Err(Error::limit(format!(
                "more than {} levels",
                self.limits.depth
            )));
        }
        if self.document.nodes.len() >= self.limits.elements {
            return Err(Error::limit(format!(
                "more than {} elements",
                self.limits.elements
            )));
        }
        let raw = self.slice(from, to)?;
        let inner = raw
            .get(1..raw.len().saturating_sub(tail))
            .ok_or_else(|| Error::malformed("tag"))?;
        let name_end = inner.find([' ', '\t', '\r', '\n']).unwrap_or(inner.len());
        let name = inner.get(..name_end).unwrap_or_default();
        let index = as_index(self.document.nodes.len())?;
        let first_attribute = as_index(self.document.attributes.len())?;
        let others = self.declare(index, inner, name_end)?;
        self.attributes(others)?;
        let (prefix, local) = split_name(name)?;
        let namespace = self.namespace_of(prefix)?;
        let last_attribute = as_index(self.document.attributes.len())?;
        let parent = self.open.last_mut().map_or(NONE, |(parent, last_child)| {
            let link = match self.document.nodes.get_mut(*last_child as usize) {
                Some(sibling) => &mut sibling.next_sibling,
                None => match self.document.nodes.get_mut(*parent as usize) {
                    Some(node) => &mut node.first_child,
                    None => return *parent,
                },
            };
            *link = index;
            *last_child = index;
            *parent
        });
        self.document.nodes.push(Node {
            namespace,
            local,
            text: Cow::Borrowed(""),
            attributes: (first_attribute, last_attribute),
            parent,
            first_child: NONE,
            next_sibling: NONE,
        });
        self.open.push((index, NONE));
        Ok(())
    }

    /// Takes the declarations of namespaces out of a tag; gives back its other attributes.
    fn declare(
        &mut self,
        owner: Index,
        inner: &'t str,
        name_end: usize,
    ) -> Result<Vec<(&'t str, Cow<'t, str>)>> {
        let depth = self.open.len();
        let mut others = Vec::new();
        for (count, attribute) in Attributes::new(inner, name_end).enumerate() {
            if count >= self.limits.attributes {
                return Err(Error::limit(format!(
                    "more than {} attributes",
                    self.limits.attributes
                )));
            }
            let attribute =
                attribute.map_err(|cause| Error::malformed("attribute").caused_by(cause))?;
            let key = std::str::from_utf8(attribute.key.into_inner())
                .map_err(|cause| Error::malformed("attribute").caused_by(cause))?;
            let value = attribute
                .normalized_value(XmlVersion::Implicit1_0)
                .map_err(|cause| {
                    Error::malformed(format!("attribute {key:.40}")).caused_by(cause)
                })?;
            let declared = match key.strip_prefix("xmlns:") {
                Some(prefix) => Some(prefix),
                None if key == "xmlns" => Some(""),
                None => None,
            };
            let Some(prefix) = declared else {
                others.push((key, value));
                continue;
            };
            if !prefix.is_empty() && value.is_empty() {
                return Err(Error::malformed(format!(
                    "prefix {prefix:.40} bound to nothing"
                )));
            }
            // Each name is looked up among all that are bound.
            if self.scope.len() >= self.limits.bindings {
                return Err(Error::limit(format!(
                    "more than {} prefixes at one place",
                    self.limits.bindings
                )));
            }
            let namespace = self.intern(value)?;
            self.scope.push((depth, prefix, namespace));
            self.document.bindings.push(Binding {
                owner,
                prefix,
                namespace,
            });
        }
        Ok(others)
    }

    fn attributes(&mut self, others: Vec<(&'t str, Cow<'t, str>)>) -> Result<()> {
        let first = self.document.attributes.len();
        for (name, value) in others {
            let (prefix, local) = split_name(name)?;
            let namespace = match prefix {
                "" => UNQUALIFIED,
                prefix => self.namespace_of(prefix)?,
            };
            let own = self.document.attributes.get(first..).unwrap_or_default();
            if own
                .iter()
                .any(|it| it.namespace == namespace && it.local == local)
            {
                return Err(Error::malformed(format!("attribute {local:.40} twice")));
            }
            self.document.attributes.push(Attribute {
                namespace,
                local,
                value,
            });
        }
        Ok(())
    }

    fn intern(&mut self, uri: Cow<'t, str>) -> Result<u16> {
        if let Some(known) = self.known.get(&uri) {
            return Ok(*known);
        }
        let next = self.document.namespaces.len();
        if next >= self.limits.namespaces {
            return Err(Error::limit(format!(
                "more than {} namespaces",
                self.limits.namespaces
            )));
        }
        let id = u16::try_from(next).map_err(|_| Error::limit("namespaces"))?;
        self.document.namespaces.push(uri.clone());
        self.known.insert(uri, id);
        Ok(id)
    }

    fn namespace_of(&mut self, prefix: &str) -> Result<u16> {
        if prefix == "xml" {
            return self.intern(Cow::Borrowed(namespace::XML));
        }
        match self.scope.iter().rev().find(|it| it.1 == prefix) {
            Some(bound) => Ok(bound.2),
            None if prefix.is_empty() => Ok(UNQUALIFIED),
            None => Err(Error::malformed(format!(
                "prefix {prefix:.40} is not bound"
            ))),
        }
    }

    fn end(&mut self) {
        self.open.pop();
        let depth = self.open.len();
        while self.scope.last().is_some_and(|it| it.0 >= depth) {
            self.scope.pop();
        }
        self.is_done = depth == 0;
    }

    fn push_text(&mut self, text: Cow<'t, str>) -> Result<()> {
        if self.open.is_empty() {
            return if text.trim().is_empty() {
                Ok(())
            } else {
                Err(Error::malformed("text outside of the outermost element"))
            };
        }
        self.push_inner(text)
    }

    fn push_inner(&mut self, text: Cow<'t, str>) -> Result<()> {
        let node = self
            .open
            .last()
            .and_then(|it| self.document.nodes.get_mut(it.0 as usize))
            .ok_or_else(|| Error::malformed("text outside of the outermost element"))?;
        if node.text.is_empty() {
            node.text = text;
        } else if !text.is_empty() {
            node.text.to_mut().push_str(&text);
        }
        Ok(())
    }
}

/// The text of `&name;`: one of the five, or a character by number.
fn resolve<'t>(name: &BytesRef<'t>) -> Result<Cow<'t, str>> {
    let bad = || Error::malformed("a reference to an entity that XML does not define");
    if name.is_char_ref() {
        let character = name
            .resolve_char_ref()
            .map_err(|cause| bad().caused_by(cause))?
            .ok_or_else(bad)?;
        return Ok(Cow::Owned(character.to_string()));
    }
    let text = name.decode().map_err(|cause| bad().caused_by(cause))?;
    resolve_xml_entity(&text).map(Cow::Borrowed).ok_or_else(bad)
}

fn as_index(count: usize) -> Result<Index> {
    Index::try_from(count)
        .ok()
        .filter(|it| *it != NONE)
        .ok_or_else(|| Error::limit("xml too long"))
}

fn split_name(name: &str) -> Result<(&str, &str)> {
    let (prefix, local) = match name.split_once(':') {
        Some((prefix, local)) if !prefix.is_empty() => (prefix, local),
        Some(_) => return Err(Error::malformed("a name that begins with a colon")),
        None => ("", name),
    };
    let is_start = |it: char| it.is_alphabetic() || it == '_';
    if local.contains(':') || !local.starts_with(is_start) {
        return Err(Error::malformed(format!("{name:.40?} is no name")));
    }
    Ok((prefix, local))
}

/// An element of a [`Document`]; cheap to copy.
#[derive(Clone, Copy)]
pub struct Element<'d, 't> {
    document: &'d Document<'t>,
    index: Index,
}

impl<'d, 't> Element<'d, 't> {
    fn node(self) -> &'d Node<'t> {
        // An index is made only from a node that is in the list, which never shrinks.
        #[expect(
            clippy::indexing_slicing,
            reason = "an index of this document, never data"
        )]
        &self.document.nodes[self.index as usize]
    }

    fn at(self, index: Index) -> Option<Self> {
        (index != NONE).then_some(Self {
            document: self.document,
            index,
        })
    }

    fn namespace_text(self, id: u16) -> &'d str {
        self.document
            .namespaces
            .get(usize::from(id))
            .map_or("", AsRef::as_ref)
    }

    /// URI of its namespace; empty where it has none.
    pub fn namespace(self) -> &'d str {
        self.namespace_text(self.node().namespace)
    }

    /// Its name without a prefix.
    pub fn local(self) -> &'t str {
        self.node().local
    }

    /// Whether it has this name.
    pub fn is(self, namespace: &str, local: &str) -> bool {
        let node = self.node();
        node.local == local && self.namespace() == namespace
    }

    /// Its own text, all pieces together, as it stands.
    pub fn text(self) -> &'d str {
        &self.node().text
    }

    /// Its own text without white space around.
    pub fn trimmed(self) -> &'d str {
        self.text().trim()
    }

    /// Its child elements, in order.
    pub fn children(self) -> Children<'d, 't> {
        Children {
            next: self.at(self.node().first_child),
        }
    }

    /// Whether it has child elements.
    pub fn has_children(self) -> bool {
        self.node().first_child != NONE
    }

    /// The first child of this name.
    pub fn child(self, namespace: &str, local: &str) -> Option<Self> {
        self.children().find(|it| it.is(namespace, local))
    }

    /// The first child of this name.
    ///
    /// # Errors
    /// [`Malformed`](ErrorKind::Malformed) if there is none.
    pub fn require(self, namespace: &str, local: &str) -> Result<Self> {
        self.child(namespace, local)
            .ok_or_else(|| Error::malformed(format!("{:.60} without {local}", self.local())))
    }

    /// The value of an attribute; its namespace is empty where the name has no prefix.
    pub fn attribute(self, namespace: &str, local: &str) -> Option<&'d str> {
        let (first, end) = self.node().attributes;
        self.document
            .attributes
            .get(first as usize..end as usize)?
            .iter()
            .find(|it| it.local == local && self.namespace_text(it.namespace) == namespace)
            .map(|it| &*it.value)
    }

    /// All attributes, in order: namespace (empty where the name has no prefix), local name, value. Bindings of prefixes are none.
    pub fn attributes(self) -> impl Iterator<Item = (&'d str, &'t str, &'d str)> {
        let (first, end) = self.node().attributes;
        let all = self.document.attributes.get(first as usize..end as usize);
        all.unwrap_or_default()
            .iter()
            .map(move |it| (self.namespace_text(it.namespace), it.local, &*it.value))
    }

    /// Whether `xsi:nil` says that there is no value.
    pub fn is_nil(self) -> bool {
        self.attribute(namespace::XSI, "nil")
            .is_some_and(|it| matches!(it.trim(), "true" | "1"))
    }

    /// Whether SOAP's `mustUnderstand` says so.
    pub fn must_be_understood(self) -> bool {
        self.attribute(namespace::SOAP, "mustUnderstand")
            .is_some_and(|it| matches!(it.trim(), "true" | "1"))
    }

    /// A name in a value, such as `w:TimedOut`, resolved by the prefixes in force here: namespace and local name.
    pub fn resolve_name<'v>(self, value: &'v str) -> (&'d str, &'v str) {
        let value = value.trim();
        let (prefix, local) = value.split_once(':').unwrap_or(("", value));
        let mut current = Some(self);
        while let Some(element) = current {
            let bindings = &self.document.bindings;
            let from = bindings.partition_point(|it| it.owner < element.index);
            let own = bindings
                .get(from..)
                .unwrap_or_default()
                .iter()
                .take_while(|it| it.owner == element.index);
            if let Some(found) = own.clone().find(|it| it.prefix == prefix) {
                return (self.namespace_text(found.namespace), local);
            }
            current = self.at(element.node().parent);
        }
        ("", local)
    }
}

impl fmt::Debug for Element<'_, '_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{{{}}}{}", self.namespace(), self.local())
    }
}

/// Child elements, in order.
#[derive(Debug, Clone)]
pub struct Children<'d, 't> {
    next: Option<Element<'d, 't>>,
}

impl<'d, 't> Iterator for Children<'d, 't> {
    type Item = Element<'d, 't>;

    fn next(&mut self) -> Option<Self::Item> {
        let element = self.next?;
        self.next = element.at(element.node().next_sibling);
        Some(element)
    }
}
