//! A message without what does not count: prefixes, the order of attributes, white space between elements.

use wsman::xml::{Document, Element, XmlLimits};

const ATTRIBUTES: &[(&str, &str)] = &[
    ("", "Name"),
    ("", "NAME"),
    ("", "TYPE"),
    ("", "CLASSNAME"),
    ("", "Dialect"),
    ("", "Code"),
    ("", "Machine"),
    ("http://www.w3.org/2003/05/soap-envelope", "mustUnderstand"),
    ("http://www.w3.org/2001/XMLSchema-instance", "nil"),
    ("http://www.w3.org/2001/XMLSchema-instance", "type"),
    ("http://www.w3.org/XML/1998/namespace", "lang"),
];

/// One line per element.
pub fn canonical(text: &str) -> Vec<String> {
    let document = Document::parse(text, &XmlLimits::default()).expect("well-formed");
    let mut lines = Vec::new();
    walk(document.root(), 0, &mut lines);
    lines
}

fn walk(element: Element<'_, '_>, depth: usize, lines: &mut Vec<String>) {
    let attributes: Vec<String> = ATTRIBUTES
        .iter()
        .filter_map(|(uri, name)| Some(format!("{name}={}", element.attribute(uri, name)?)))
        .collect();
    let text = if element.has_children() {
        assert_eq!(element.trimmed(), "", "text beside elements");
        ""
    } else {
        element.text()
    };
    lines.push(format!(
        "{}{{{}}}{} {attributes:?} {text:?}",
        " ".repeat(depth),
        element.namespace(),
        element.local()
    ));
    for child in element.children() {
        walk(child, depth + 1, lines);
    }
}
