//! Instances as text inside of other instances, as WMI writes them: every property of the class, null where there is none.

use std::sync::LazyLock;

use wsman::cim::embedded::{Extent, read_strict, write};
use wsman::cim::{CimInstance, ClassName};

use super::identity::VIRTUALIZATION;
use crate::estate::WindowsGeneration;
use crate::schema::ClassTables;

/// The classes that are embedded have not changed since 2019.
static TABLES: LazyLock<Option<ClassTables>> =
    LazyLock::new(|| ClassTables::load(WindowsGeneration::Server2019).ok());

/// The text of an instance of `root/virtualization/v2`. Characters that XML cannot hold are left out, as guests may say any.
pub(super) fn text_of(instance: &CimInstance) -> String {
    let mut clean = instance.clone();
    for value in clean.properties.values_mut() {
        if let wsman::cim::CimValue::Text(text) = value {
            text.retain(is_xml);
        }
    }
    let schema = TABLES
        .as_ref()
        .and_then(|tables| tables.namespace(&VIRTUALIZATION))
        .and_then(|set| set.class(&clean.class));
    let text = schema.map(|schema| write(&clean, schema, Extent::All));
    match text {
        Some(Ok(text)) => text,
        // The instances that come here are made in this crate, of classes in its tables.
        other => panic!("{} cannot be written as text: {other:?}", clean.class),
    }
}

/// Reads an instance with the classes of 2019, whatever the host is.
pub(super) fn read_newer(text: &str, class: &str) -> Option<CimInstance> {
    let set = TABLES.as_ref()?.namespace(&VIRTUALIZATION)?;
    read_strict(text, set, Some(&ClassName::new(class))).ok()
}

fn is_xml(c: char) -> bool {
    matches!(c, '\t' | '\n' | '\r' | '\u{20}'..='\u{d7ff}' | '\u{e000}'..='\u{fffd}' | '\u{10000}'..)
}
