//! Merges the sources into one text per generation.
//!
//! ```text
//!   namespace root/virtualization/v2
//!   class Msvm_X : CIM_Base < server2019/root/virtualization/v2/Msvm_X.go msvm-x.md
//!    key InstanceID
//!    uint16[] OperationalStatus
//!    ref(CIM_ConcreteJob) AffectingElement
//!    method Do(in string A, out ref(CIM_ConcreteJob) Job) uint32
//! ```
//!
//! Bases stand before what is built on them. Properties and methods are a class's own: what is inherited is not repeated.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::Path;

use anyhow::{Context, Result, ensure};

use super::classes::{ClassList, NamespaceList};
use super::go::{self, Direction, GoClass};
use super::mof::{Documentation, MofType};

/// The table of one generation.
pub(super) fn generation(
    list: &ClassList,
    server: &str,
    wmi: &Path,
    win32: &Path,
) -> Result<String> {
    let mut text = format!(
        "# Class tables from {server}: made by `cargo xtask gen lab-schema` from classes.txt, microsoft/wmi (MIT) and\n\
         # MicrosoftDocs/win32. Behind `<` stands where each class comes from. Not edited by hand.\n"
    );
    for namespace in &list.namespaces {
        let folder = wmi.join(server).join(&namespace.package);
        let documentation = match &namespace.documentation {
            Some(pages) => Documentation::read(&win32.join(pages))?,
            None => Documentation::default(),
        };
        let tables = NamespaceTables {
            list: namespace,
            origin: format!("{server}/{}", namespace.package),
            classes: go::read_package(&folder)?,
            documentation,
        };
        writeln!(text, "\nnamespace {}", namespace.name)?;
        tables.write(&mut text)?;
    }
    Ok(text)
}

struct NamespaceTables<'a> {
    list: &'a NamespaceList,
    origin: String,
    classes: BTreeMap<String, GoClass>,
    documentation: Documentation,
}

impl NamespaceTables<'_> {
    fn write(&self, text: &mut String) -> Result<()> {
        let mut written = BTreeSet::new();
        for class in &self.list.classes {
            self.write_with_bases(class, &mut written, text)
                .with_context(|| class.clone())?;
        }
        for named in self.list.keys.keys() {
            ensure!(
                written.contains(named),
                "keys of {named}, which is not in the table"
            );
        }
        Ok(())
    }

    fn write_with_bases(
        &self,
        class: &str,
        written: &mut BTreeSet<String>,
        text: &mut String,
    ) -> Result<()> {
        if !written.insert(class.to_owned()) {
            return Ok(());
        }
        let found = self
            .classes
            .get(class)
            .with_context(|| format!("{class} is not in {}", self.origin))?;
        if let Some(base) = &found.base {
            self.write_with_bases(base, written, text)?;
        }
        let base = found.base.as_ref().map(|base| format!(" : {base}"));
        write!(
            text,
            "\nclass {class}{} < {}/{class}.go",
            base.unwrap_or_default(),
            self.origin
        )?;
        if let Some(page) = self.documentation.page_of(class) {
            write!(text, " {page}")?;
        }
        writeln!(text)?;
        if let Some(keys) = self.list.keys.get(class) {
            writeln!(text, " key {}", keys.join(" "))?;
        }
        let mut properties: Vec<&(String, String)> = found.properties.iter().collect();
        properties.sort();
        for (property, go_type) in properties {
            let type_name = self.property_type(class, property, go_type);
            writeln!(text, " {type_name} {property}")?;
        }
        for method in &found.methods {
            let mut parameters = Vec::new();
            for parameter in &method.parameters {
                let documented = self
                    .documentation
                    .parameter(class, &method.name, &parameter.name);
                let type_name = self.type_text(&parameter.go_type, documented);
                let direction = match parameter.direction {
                    Direction::In => "in",
                    Direction::Out => "out",
                    Direction::InOut => "inout",
                };
                parameters.push(format!("{direction} {type_name} {}", parameter.name));
            }
            let returns = if method.returns { " uint32" } else { "" };
            writeln!(
                text,
                " method {}({}){returns}",
                method.name,
                parameters.join(", ")
            )?;
        }
        Ok(())
    }

    fn property_type(&self, class: &str, property: &str, go_type: &str) -> String {
        if let Some(type_name) = self.list.types.get(&format!("{class}.{property}")) {
            return type_name.clone();
        }
        self.type_text(go_type, self.documented(class, property))
    }

    /// What the documentation says of a property: on the class's page, or on one of a class that inherits it.
    fn documented(&self, class: &str, property: &str) -> Option<&MofType> {
        if let Some(found) = self.documentation.property(class, property) {
            return Some(found);
        }
        let below = self
            .classes
            .keys()
            .filter(|name| self.is_below(name, class));
        below
            .filter_map(|name| self.documentation.property(name, property))
            .next()
    }

    fn is_below(&self, class: &str, base: &str) -> bool {
        let mut at = class;
        let mut bases = BTreeSet::new();
        while let Some(next) = self.classes.get(at).and_then(|found| found.base.as_deref()) {
            if next == base {
                return true;
            }
            if !bases.insert(next) {
                return false;
            }
            at = next;
        }
        false
    }

    fn type_text(&self, go_type: &str, documented: Option<&MofType>) -> String {
        let element = go_type.trim_start_matches("[]");
        let array = if element.len() == go_type.len() {
            ""
        } else {
            "[]"
        };
        let documented_name = documented.map(|found| found.name.as_str());
        let name = match element {
            "bool" => "boolean".to_owned(),
            "float32" => "real32".to_owned(),
            "float64" => "real64".to_owned(),
            "string" if documented_name == Some("datetime") => "datetime".to_owned(),
            "string" => "string".to_owned(),
            "interface{}" => "string".to_owned(),
            number if number.starts_with("uint") => number.to_owned(),
            number if number.starts_with("int") => format!("s{number}"),
            class if self.classes.contains_key(class) => {
                let is_reference = !self.list.embedded.iter().any(|name| name == class)
                    && documented
                        .is_none_or(|found| found.is_reference || !found.name.contains('_'));
                let kind = if is_reference { "ref" } else { "object" };
                format!("{kind}({class})")
            }
            // An enumeration: the schema's type is lost in Go, most are uint16.
            _ => documented_name
                .filter(|name| {
                    ["uint", "sint", "string"]
                        .iter()
                        .any(|kind| name.starts_with(kind))
                })
                .unwrap_or("uint16")
                .to_owned(),
        };
        format!("{name}{array}")
    }
}
