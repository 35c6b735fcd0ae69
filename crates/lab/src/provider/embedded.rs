//! Instances as text inside of other instances, as WMI writes them: every property of the class, null where there is none.

use std::sync::LazyLock;

use wsman::cim::embedded::{Extent, read_strict, write};
use wsman::cim::{CimInstance, ClassName};

use super::identity::VIRTUALIZATION;
use crate::estate::WindowsGeneration;
use crate::schema::ClassTables;
use crate::{Error, Result};

/// The classes that are embedded have not changed since 2019.
static TABLES: LazyLock<Option<ClassTables>> =
    LazyLock::new(|| ClassTables::load(WindowsGeneration::Server2019).ok());

/// The text of an instance of `root/virtualization/v2`. Characters that XML cannot hold are left out, as guests may say any.
///
/// # Errors
/// `Invalid` for a class that is not in the tables and for values that do not fit its properties.
pub(super) fn text_of(instance: &CimInstance) -> Result<String> {
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
    let schema = schema.ok_or_else(|| Error::invalid(format!("no class {}", clean.class)))?;
    write(&clean, schema, Extent::All)
        .map_err(|error| Error::invalid(format!("{} as text: {error}", clean.class)))
}

/// Reads an instance with the classes of 2019, whatever the host is.
pub(super) fn read_newer(text: &str, class: &str) -> Option<CimInstance> {
    let set = TABLES.as_ref()?.namespace(&VIRTUALIZATION)?;
    read_strict(text, set, Some(&ClassName::new(class))).ok()
}

fn is_xml(c: char) -> bool {
    matches!(c, '\t' | '\n' | '\r' | '\u{20}'..='\u{d7ff}' | '\u{e000}'..='\u{fffd}' | '\u{10000}'..)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ErrorKind;

    #[test]
    fn what_cannot_be_written_is_an_error_that_names_it() {
        for broken in [
            CimInstance::new("Msvm_Nothing"),
            CimInstance::new("Msvm_Error").with("Message", vec!["a", "b"]),
            CimInstance::new("Msvm_Error").with("NoSuchProperty", "x"),
        ] {
            let error = text_of(&broken).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
            assert!(error.to_string().contains(broken.class.as_str()), "{error}");
        }
    }

    #[test]
    fn characters_that_xml_cannot_hold_are_left_out() {
        let said = CimInstance::new("Msvm_KvpExchangeDataItem").with("Data", "a\u{1}b\u{ffff}c");
        assert!(text_of(&said).unwrap().contains("abc"));
    }
}
