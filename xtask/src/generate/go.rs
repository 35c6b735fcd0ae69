//! Classes as the Go packages of microsoft/wmi write them down: one file per class, one struct, one function per method.
//!
//! ```text
//!   type Msvm_X struct {
//!       *CIM_Base                                        the base
//!       Name []string                                    a property
//!   }
//!   func (instance *Msvm_X) Do( /* IN */ A string,       a method, parameters in the order of the schema
//!       /* OUT */ Job CIM_ConcreteJob) (result uint32, err error) {
//! ```

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result};

/// Which way a parameter goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Direction {
    In,
    Out,
    InOut,
}

/// A parameter with its Go type.
#[derive(Debug, Clone)]
pub(super) struct Parameter {
    pub direction: Direction,
    pub name: String,
    pub go_type: String,
}

/// A method.
#[derive(Debug, Clone)]
pub(super) struct Method {
    pub name: String,
    pub parameters: Vec<Parameter>,
    /// Whether it has a return value (always `uint32`).
    pub returns: bool,
}

/// A class.
#[derive(Debug, Clone, Default)]
pub(super) struct GoClass {
    pub base: Option<String>,
    /// Name and Go type, in the order of the file.
    pub properties: Vec<(String, String)>,
    pub methods: Vec<Method>,
}

/// Reads every class of a package's folder.
pub(super) fn read_package(folder: &Path) -> Result<BTreeMap<String, GoClass>> {
    let mut classes = BTreeMap::new();
    let entries =
        std::fs::read_dir(folder).with_context(|| format!("list {}", folder.display()))?;
    for entry in entries {
        let path = entry?.path();
        if path.extension().is_none_or(|ending| ending != "go") {
            continue;
        }
        let Some(name) = path.file_stem().and_then(|stem| stem.to_str()) else {
            continue;
        };
        let text =
            std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
        if let Some(class) = parse(name, &text) {
            classes.insert(name.to_owned(), class);
        }
    }
    Ok(classes)
}

/// The class in a file; nothing where it is an enumeration.
fn parse(name: &str, text: &str) -> Option<GoClass> {
    let opening = format!("type {name} struct {{");
    let (_, behind) = text.split_once(&opening)?;
    let (body, _) = behind.split_once("\n}")?;
    let mut class = GoClass::default();
    for line in body.lines().map(str::trim) {
        if line.is_empty() || line.starts_with("//") {
            continue;
        }
        if let Some(base) = line.strip_prefix('*') {
            // What has no base in the schema is built on the package's own type.
            class.base = (!base.contains('.')).then(|| base.to_owned());
        } else if let Some((property, go_type)) = line.split_once(' ') {
            class
                .properties
                .push((property.to_owned(), go_type.trim().to_owned()));
        }
    }
    class.methods = methods(name, text);
    Some(class)
}

fn methods(class: &str, text: &str) -> Vec<Method> {
    let opening = format!("func (instance *{class}) ");
    let mut methods = Vec::new();
    for part in text.split(&opening).skip(1) {
        let Some((name, rest)) = part.split_once('(') else {
            continue;
        };
        if ["SetProperty", "GetProperty", "GetRelated"]
            .iter()
            .any(|prefix| name.starts_with(prefix))
        {
            continue;
        }
        let Some((signature, _)) = rest.split_once("err error) {") else {
            continue;
        };
        methods.push(Method {
            name: name.to_owned(),
            parameters: parameters(signature),
            returns: signature.contains("(result "),
        });
    }
    methods
}

fn parameters(signature: &str) -> Vec<Parameter> {
    let mut parameters = Vec::new();
    for part in signature.split("/*").skip(1) {
        let Some((mark, rest)) = part.split_once("*/") else {
            continue;
        };
        let direction = match mark.trim() {
            "IN" | "OPTIONAL IN" => Direction::In,
            "OUT" => Direction::Out,
            "IN/OUT" => Direction::InOut,
            // Parameters of the package itself.
            _ => continue,
        };
        let declared = rest.split([',', ')']).next().unwrap_or("").trim();
        if let Some((name, go_type)) = declared.split_once(' ') {
            parameters.push(Parameter {
                direction,
                name: name.to_owned(),
                go_type: go_type.to_owned(),
            });
        }
    }
    parameters
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "package v2\n\n// Msvm_X struct\ntype Msvm_X struct {\n\t*CIM_Base\n\n\t//\n\tNames []string\n\n\t///a\n\tState X_State\n}\n\
        func (instance *Msvm_X) SetPropertyNames(value []string) (err error) {\n}\n\
        func (instance *Msvm_X) Do( /* IN */ A string,\n\t/* OUT */ Job CIM_ConcreteJob,\n\t/* OPTIONAL IN */ B uint16,\n\t/*Custom IN*/ Action cim.UserAction) (result uint32, err error) {\n}\n\
        func (instance *Msvm_X) Go() (err error) {\n}\n";

    #[test]
    fn a_class_is_read_with_base_properties_and_methods_in_order() {
        let class = parse("Msvm_X", TEXT).expect("a class");
        assert_eq!(class.base.as_deref(), Some("CIM_Base"));
        let names: Vec<&str> = class
            .properties
            .iter()
            .map(|(name, _)| name.as_str())
            .collect();
        assert_eq!(names, ["Names", "State"]);
        assert_eq!(class.methods.len(), 2);
        let shown: Vec<(&str, Direction)> = class.methods[0]
            .parameters
            .iter()
            .map(|parameter| (parameter.name.as_str(), parameter.direction))
            .collect();
        assert_eq!(
            shown,
            [
                ("A", Direction::In),
                ("Job", Direction::Out),
                ("B", Direction::In)
            ]
        );
        assert!(class.methods[0].returns);
        assert!(!class.methods[1].returns);
    }

    #[test]
    fn an_enumeration_is_no_class() {
        assert!(parse("X_State", "type X_State int\n").is_none());
    }
}
