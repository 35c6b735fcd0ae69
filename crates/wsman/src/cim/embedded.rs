//! Instances as text inside of a message: CIM-XML as DSP0201 has it (`INSTANCE`), in the dialect of WMI (DTD 2.0).
//!
//! ```text
//!   <INSTANCE CLASSNAME="Msvm_StorageAllocationSettingData">
//!     <PROPERTY NAME="ResourceType" TYPE="uint16"><VALUE>31</VALUE></PROPERTY>
//!     <PROPERTY.ARRAY NAME="HostResource" TYPE="string"><VALUE.ARRAY><VALUE>D:\vm\a.vhdx</VALUE></VALUE.ARRAY></PROPERTY.ARRAY>
//!   </INSTANCE>
//! ```
//!
//! Two readers: [`read`] takes what hosts send (attributes and qualifiers more than needed, any order), [`read_strict`] takes what
//! hosts accept, and says which rule was broken so that a provider can answer with the code that Windows has for it.
//!
//! **Invariants.** Times are written in DMTF's spelling. At most [`TEXT_MAX_BYTES`] are read, and four levels of instances.
//!
//! **What it does not do.** References as `PROPERTY.REFERENCE`: the settings of Hyper-V hold paths as strings.

use std::fmt;

use super::path_text::is_name;
use super::{CimInstance, CimType, CimValue, ClassName};
use crate::schema::{Arity, ClassSchema, SchemaSet, ValueSchema};
use crate::xml::{Document, Element, XmlLimits, XmlWriter};
use crate::{Error, ErrorKind, Result};

/// The longest text that is read.
pub const TEXT_MAX_BYTES: usize = 1 << 20;

const LIMITS: XmlLimits = XmlLimits {
    depth: 32,
    elements: 50_000,
    attributes: 16,
    namespaces: 16,
    bindings: 16,
};

/// Instances inside of instances, as `PROPERTY.OBJECT` holds them.
const NESTING_MAX: usize = 4;

/// Which properties are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Extent {
    /// Those that the instance has: what a caller of a method writes.
    Given,
    /// All of the class, null where the instance has none: what WMI writes.
    All,
}

/// Writes an instance; the class says the types.
///
/// # Errors
/// [`Invalid`](ErrorKind::Invalid) if a property is not of the class or not of its type, or a text cannot be in XML.
pub fn write(instance: &CimInstance, schema: &ClassSchema, extent: Extent) -> Result<String> {
    let mut out = XmlWriter::new();
    if instance.class != schema.name {
        return Err(Error::invalid(format!(
            "an instance of {} written as {}",
            instance.class, schema.name
        )));
    }
    for name in instance.properties.keys() {
        if !schema.properties.contains_key(name) {
            return Err(Error::invalid(format!(
                "{} has no property {name}",
                schema.name
            )));
        }
    }
    out.open("", "INSTANCE")
        .attribute("CLASSNAME", schema.name.as_str())
        .raw(">");
    for (name, value_schema) in &schema.properties {
        let value = match (instance.properties.get(name), extent) {
            (Some(value), _) => value,
            (None, Extent::All) => &CimValue::Null,
            (None, Extent::Given) => continue,
        };
        write_property(&mut out, name, value, value_schema)
            .map_err(|error| error.within(format_args!("{}.{name}", schema.name)))?;
    }
    out.raw("</INSTANCE>");
    out.finish()
}

fn write_property(
    out: &mut XmlWriter,
    name: &str,
    value: &CimValue,
    schema: &ValueSchema,
) -> Result<()> {
    let element = match schema.arity {
        Arity::One => "PROPERTY",
        Arity::Many => "PROPERTY.ARRAY",
    };
    out.open("", element)
        .attribute("NAME", name)
        .attribute("TYPE", schema.cim_type.as_str())
        .raw(">");
    match (schema.arity, value) {
        (_, CimValue::Null) => {}
        (Arity::One, value) => write_scalar(out, value, schema.cim_type)?,
        (Arity::Many, CimValue::Array(values)) => {
            out.raw("<VALUE.ARRAY>");
            for value in values {
                write_scalar(out, value, schema.cim_type)?;
            }
            out.raw("</VALUE.ARRAY>");
        }
        (Arity::Many, value) => {
            return Err(Error::invalid(format!(
                "{} where an array belongs",
                value.kind_name()
            )));
        }
    }
    out.end("", element);
    Ok(())
}

fn write_scalar(out: &mut XmlWriter, value: &CimValue, cim_type: CimType) -> Result<()> {
    // Text that came off the wire stands for any scalar, if it reads as one.
    let parsed = match value {
        CimValue::Text(text) => cim_type.parse(text),
        value => cim_type.fits(value).then(|| value.clone()),
    };
    let text = match parsed {
        Some(CimValue::Datetime(value)) => Some(value.to_dmtf()),
        Some(CimValue::Interval(value)) => Some(value.to_dmtf()),
        Some(CimValue::Boolean(value)) => Some(if value { "TRUE" } else { "FALSE" }.to_owned()),
        Some(value) => value.to_wire_text(),
        None => None,
    };
    let text =
        text.ok_or_else(|| Error::invalid(format!("{} is no {cim_type}", value.kind_name())))?;
    out.raw("<VALUE>").text(&text).raw("</VALUE>");
    Ok(())
}

/// Reads an instance as a host sends it. Values have the types that the text names.
///
/// # Errors
/// [`Malformed`](ErrorKind::Malformed), [`Limit`](ErrorKind::Limit), [`Unsupported`](ErrorKind::Unsupported) for references.
pub fn read(text: &str) -> Result<CimInstance> {
    let document = parse(text)?;
    read_lenient(document.root(), 0)
}

fn parse(text: &str) -> Result<Document<'_>> {
    if text.len() > TEXT_MAX_BYTES {
        return Err(Error::limit(format!(
            "embedded instance of {} bytes",
            text.len()
        )));
    }
    Document::parse(text.trim(), &LIMITS).map_err(|error| error.within("embedded instance"))
}

fn attribute<'d>(element: Element<'d, '_>, name: &str) -> Result<&'d str> {
    element.attribute("", name).ok_or_else(|| {
        Error::malformed(format!(
            "embedded instance: {:.40} without {name}",
            element.local()
        ))
    })
}

fn read_lenient(root: Element<'_, '_>, level: usize) -> Result<CimInstance> {
    if root.local() != "INSTANCE" {
        return Err(Error::malformed(format!(
            "embedded instance begins with {:.40?}",
            root.local()
        )));
    }
    if level >= NESTING_MAX {
        return Err(Error::limit("instances inside of instances"));
    }
    let class = attribute(root, "CLASSNAME")?;
    if !is_name(class) {
        return Err(Error::malformed("embedded instance: CLASSNAME is no name"));
    }
    let mut instance = CimInstance::new(class);
    for property in root.children() {
        let place = |error: Error| error.within(format_args!("embedded {class}"));
        let value = match property.local() {
            "QUALIFIER" => continue,
            "PROPERTY" => match property.children().find(|it| it.local() == "VALUE") {
                Some(value) => lenient_scalar(property, value)?,
                None => CimValue::Null,
            },
            "PROPERTY.ARRAY" => match property.children().find(|it| it.local() == "VALUE.ARRAY") {
                Some(values) => lenient_array(property, values)?,
                None => CimValue::Null,
            },
            "PROPERTY.OBJECT" => {
                let inner = property
                    .children()
                    .find(|it| it.local() == "VALUE.OBJECT")
                    .and_then(|it| it.children().next());
                match inner {
                    Some(inner) => read_lenient(inner, level.saturating_add(1))
                        .map_err(place)?
                        .into(),
                    None => CimValue::Null,
                }
            }
            other => {
                return Err(place(Error::new(
                    ErrorKind::Unsupported,
                    format!("element {other:.40}"),
                )));
            }
        };
        instance.set(attribute(property, "NAME")?, value);
    }
    Ok(instance)
}

fn lenient_scalar(property: Element<'_, '_>, value: Element<'_, '_>) -> Result<CimValue> {
    let named = attribute(property, "TYPE")?;
    // What a text calls itself is believed only as far as the value agrees: hosts write types that DMTF does not know.
    let cim_type = CimType::from_name(named).unwrap_or(CimType::String);
    let value_text = value.text();
    if let Some(value) = cim_type.parse(value_text) {
        return Ok(value);
    }
    let name = attribute(property, "NAME")?;
    Err(Error::malformed(format!(
        "embedded property {name:.60}: {} is no {cim_type}",
        super::getters::excerpt(value_text)
    )))
}

fn lenient_array(property: Element<'_, '_>, values: Element<'_, '_>) -> Result<CimValue> {
    values
        .children()
        .map(|value| match value.local() {
            "VALUE.NULL" => Ok(CimValue::Null),
            _ => lenient_scalar(property, value),
        })
        .collect::<Result<Vec<_>>>()
        .map(CimValue::Array)
}

/// Which rule of Windows an embedded instance breaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum EmbeddedProblem {
    /// It is no CIM-XML at all: an element tree, another root, not well-formed.
    NotCimXml,
    /// No such class.
    UnknownClass,
    /// A class that does not belong where it was given.
    WrongClass,
    /// The class has no such property.
    UnknownProperty,
    /// `PROPERTY` where the class has an array.
    ArrayExpected,
    /// `PROPERTY.ARRAY` where the class has a scalar.
    ScalarExpected,
    /// `TYPE` is not the type that the class has.
    WrongType,
    /// The value is none of its type; intervals in ISO's spelling are among these.
    BadValue,
}

/// Why [`read_strict`] refused a text.
#[derive(Debug)]
pub struct EmbeddedError {
    /// The rule.
    pub problem: EmbeddedProblem,
    /// The property, if it was one.
    pub property: Option<String>,
    /// The class, as far as it was read.
    pub class: Option<ClassName>,
    source: Option<Error>,
}

impl EmbeddedError {
    fn new(problem: EmbeddedProblem) -> Self {
        Self {
            problem,
            property: None,
            class: None,
            source: None,
        }
    }

    fn of_property(problem: EmbeddedProblem, property: &str) -> Self {
        Self {
            property: Some(property.chars().take(80).collect()),
            ..Self::new(problem)
        }
    }
}

impl fmt::Display for EmbeddedError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = match self.problem {
            EmbeddedProblem::NotCimXml => "is no CIM-XML",
            EmbeddedProblem::UnknownClass => "has an unknown class",
            EmbeddedProblem::WrongClass => "has a class that does not belong here",
            EmbeddedProblem::UnknownProperty => "has a property that its class does not have",
            EmbeddedProblem::ArrayExpected => "has a scalar where an array belongs",
            EmbeddedProblem::ScalarExpected => "has an array where a scalar belongs",
            EmbeddedProblem::WrongType => "names another type than the class has",
            EmbeddedProblem::BadValue => "has a value that is none of its type",
        };
        f.write_str("embedded instance")?;
        if let Some(class) = &self.class {
            write!(f, " of {class}")?;
        }
        write!(f, " {what}")?;
        match &self.property {
            Some(property) => write!(f, ": {property}"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for EmbeddedError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_ref().map(|source| {
            let source: &(dyn std::error::Error + 'static) = source;
            source
        })
    }
}

impl From<EmbeddedError> for Error {
    fn from(error: EmbeddedError) -> Self {
        Self::new(ErrorKind::Malformed, error.to_string()).caused_by(error)
    }
}

/// Reads an instance as a host would: of `expected` or what inherits from it, every property in the class and of its type.
///
/// # Errors
/// [`EmbeddedError`] with the first rule that is broken.
pub fn read_strict(
    text: &str,
    schemas: &SchemaSet,
    expected: Option<&ClassName>,
) -> std::result::Result<CimInstance, EmbeddedError> {
    let document = parse(text).map_err(|error| EmbeddedError {
        source: Some(error),
        ..EmbeddedError::new(EmbeddedProblem::NotCimXml)
    })?;
    let root = document.root();
    let class = root
        .attribute("", "CLASSNAME")
        .filter(|_| root.is("", "INSTANCE"))
        .ok_or_else(|| EmbeddedError::new(EmbeddedProblem::NotCimXml))?;
    let class: String = class.chars().take(256).collect();
    let name = ClassName::new(&class);
    let in_class = |error: EmbeddedError| EmbeddedError {
        class: Some(name.clone()),
        ..error
    };
    let schema = schemas
        .class(&name)
        .ok_or_else(|| in_class(EmbeddedError::new(EmbeddedProblem::UnknownClass)))?;
    if expected.is_some_and(|it| !schemas.is_a(&name, it)) {
        return Err(in_class(EmbeddedError::new(EmbeddedProblem::WrongClass)));
    }
    let mut instance = CimInstance::new(schema.name.clone()).in_namespace(schemas.namespace());
    for property in root.children().filter(|it| it.local() != "QUALIFIER") {
        let (name, value) = strict_property(property, schema).map_err(in_class)?;
        if instance.properties.insert(name.clone(), value).is_some() {
            return Err(in_class(EmbeddedError::of_property(
                EmbeddedProblem::NotCimXml,
                &name,
            )));
        }
    }
    Ok(instance)
}

fn strict_property(
    property: Element<'_, '_>,
    schema: &ClassSchema,
) -> std::result::Result<(String, CimValue), EmbeddedError> {
    let no_form = || EmbeddedError::new(EmbeddedProblem::NotCimXml);
    let name = property.attribute("", "NAME").ok_or_else(no_form)?;
    let problem = |problem| EmbeddedError::of_property(problem, name);
    let value_schema = schema
        .properties
        .get(name)
        .ok_or_else(|| problem(EmbeddedProblem::UnknownProperty))?;
    let arity = match property.local() {
        "PROPERTY" => Arity::One,
        "PROPERTY.ARRAY" => Arity::Many,
        _ => return Err(problem(EmbeddedProblem::NotCimXml)),
    };
    match (value_schema.arity, arity) {
        (Arity::Many, Arity::One) => return Err(problem(EmbeddedProblem::ArrayExpected)),
        (Arity::One, Arity::Many) => return Err(problem(EmbeddedProblem::ScalarExpected)),
        _ => {}
    }
    let named = property.attribute("", "TYPE").ok_or_else(no_form)?;
    if CimType::from_name(named) != Some(value_schema.cim_type) {
        return Err(problem(EmbeddedProblem::WrongType));
    }
    let scalar = |element: Element<'_, '_>| {
        strict_scalar(element.text(), value_schema.cim_type)
            .ok_or_else(|| problem(EmbeddedProblem::BadValue))
    };
    let inner = property.children().find(|it| it.local() != "QUALIFIER");
    let value = match (inner, arity) {
        (None, _) => CimValue::Null,
        (Some(value), Arity::One) if value.local() == "VALUE" => scalar(value)?,
        (Some(values), Arity::Many) if values.local() == "VALUE.ARRAY" => {
            let values = values.children().map(|value| match value.local() {
                "VALUE" => scalar(value),
                "VALUE.NULL" => Ok(CimValue::Null),
                _ => Err(problem(EmbeddedProblem::NotCimXml)),
            });
            CimValue::Array(values.collect::<std::result::Result<_, _>>()?)
        }
        _ => return Err(problem(EmbeddedProblem::NotCimXml)),
    };
    Ok((name.to_owned(), value))
}

/// As [`CimType::parse`], but times in DMTF's spelling alone.
fn strict_scalar(text: &str, cim_type: CimType) -> Option<CimValue> {
    if cim_type == CimType::Datetime && text.trim().len() != 25 {
        return None;
    }
    cim_type.parse(text)
}
