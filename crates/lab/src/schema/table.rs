//! Reads a class table: the text that `cargo xtask gen lab-schema` writes.
//!
//! ```text
//!   namespace root/virtualization/v2
//!   class Msvm_X : CIM_Base < where it comes from
//!    key InstanceID
//!    uint16[] OperationalStatus
//!    method Do(in string A, out ref(CIM_ConcreteJob) Job) uint32
//! ```

use wsman::cim::{CimType, ClassName};
use wsman::schema::{Arity, ClassSchema, Direction, MethodSchema, ValueSchema};

use crate::{Error, Result};

/// A class with the note where it comes from.
#[derive(Debug, Clone)]
pub(super) struct TableClass {
    pub schema: ClassSchema,
    pub origin: String,
}

/// Classes by namespace, in the order of the text.
#[derive(Debug, Clone, Default)]
pub(super) struct Table {
    pub namespaces: Vec<(String, Vec<TableClass>)>,
}

impl Table {
    /// Reads a table.
    pub(super) fn parse(text: &str) -> Result<Self> {
        let mut table = Self::default();
        for (number, line) in text.lines().enumerate() {
            let place = || format!("class table, line {}: {line}", number.saturating_add(1));
            if line.starts_with('#') || line.is_empty() {
                continue;
            }
            table.line(line).ok_or_else(|| Error::invalid(place()))?;
        }
        Ok(table)
    }

    fn line(&mut self, line: &str) -> Option<()> {
        if let Some(name) = line.strip_prefix("namespace ") {
            self.namespaces.push((name.to_owned(), Vec::new()));
            return Some(());
        }
        let (_, classes) = self.namespaces.last_mut()?;
        if let Some(declared) = line.strip_prefix("class ") {
            let (head, origin) = declared.split_once(" < ")?;
            let schema = match head.split_once(" : ") {
                Some((name, base)) => ClassSchema::new(name).extends(base),
                None => ClassSchema::new(head),
            };
            classes.push(TableClass {
                schema,
                origin: origin.to_owned(),
            });
            return Some(());
        }
        let schema = &mut classes.last_mut()?.schema;
        let member = line.strip_prefix(' ')?;
        if let Some(keys) = member.strip_prefix("key ") {
            schema.keys = keys.split(' ').map(str::to_owned).collect();
        } else if let Some(declared) = member.strip_prefix("method ") {
            let method = method(declared)?;
            schema.methods.insert(method.name.clone(), method);
        } else {
            let (value, name) = member.rsplit_once(' ')?;
            schema
                .properties
                .insert(name.to_owned(), value_schema(value)?);
        }
        Some(())
    }
}

/// `Do(in string A, out ref(CIM_X) B) uint32`.
fn method(declared: &str) -> Option<MethodSchema> {
    let (name, rest) = declared.split_once('(')?;
    let (parameters, returns) = rest.rsplit_once(')')?;
    // The last bracket is that of the list only if nothing but the return type follows.
    let mut method = MethodSchema::new(name);
    if returns.trim().is_empty() {
        method = method.without_return();
    } else if returns.trim() != "uint32" {
        return None;
    }
    for parameter in parameters.split(", ").filter(|it| !it.is_empty()) {
        let (direction, rest) = parameter.split_once(' ')?;
        let (value, name) = rest.rsplit_once(' ')?;
        let direction = match direction {
            "in" => Direction::In,
            "out" => Direction::Out,
            "inout" => Direction::InOut,
            _ => return None,
        };
        method = method.parameter(name, direction, value_schema(value)?);
    }
    Some(method)
}

/// `uint16`, `string[]`, `ref(CIM_X)`, `object(CIM_X)[]`.
fn value_schema(text: &str) -> Option<ValueSchema> {
    let (element, arity) = match text.strip_suffix("[]") {
        Some(element) => (element, Arity::Many),
        None => (text, Arity::One),
    };
    let inside = |kind: &str| {
        element
            .strip_prefix(kind)?
            .strip_prefix('(')?
            .strip_suffix(')')
    };
    let (cim_type, embedded) = if inside("ref").is_some() {
        (CimType::Reference, None)
    } else if let Some(class) = inside("object") {
        (CimType::Object, Some(ClassName::new(class)))
    } else {
        (CimType::from_name(element)?, None)
    };
    Some(ValueSchema {
        cim_type,
        arity,
        embedded,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_is_read_with_types_keys_and_methods() {
        let table = Table::parse(
            "# words\nnamespace root/x\n\nclass CIM_A < here\n key Id\n string Id\n\nclass B : CIM_A < there page.md\n \
             ref(CIM_A)[] Others\n object(CIM_A) One\n method Do(in string[] A, inout ref(B) C, out uint16 D) uint32\n \
             method Go()\n",
        )
        .expect("a table");
        let (name, classes) = &table.namespaces[0];
        assert_eq!(name, "root/x");
        let schema = &classes[1].schema;
        assert_eq!(classes[1].origin, "there page.md");
        assert_eq!(schema.superclass, Some(ClassName::new("CIM_A")));
        assert_eq!(schema.properties["Others"].arity, Arity::Many);
        assert_eq!(schema.properties["One"].cim_type, CimType::Object);
        let parameters = &schema.methods["Do"].parameters;
        let names: Vec<&str> = parameters.iter().map(|it| it.name.as_str()).collect();
        assert_eq!(names, ["A", "C", "D"]);
        assert_eq!(parameters[1].direction, Direction::InOut);
        assert_eq!(schema.methods["Go"].returns, None);
    }

    #[test]
    fn a_line_that_is_not_understood_is_told_with_its_number() {
        let error = Table::parse("namespace root/x\nclass A < x\n fancy Name\n").unwrap_err();
        assert!(error.to_string().contains("line 3"), "{error}");
    }
}
