//! Values, references and instances as elements (DSP0230, in the form of WinRM).
//!
//! ```text
//!   <p:Msvm_X xsi:type="p:Msvm_X_Type">
//!     <p:Count>5</p:Count>   <p:Name xsi:nil="true"/>   <p:Many>1</p:Many><p:Many>2</p:Many>      scalar, null, array
//!     <p:When><cim:Datetime>…</cim:Datetime></p:When>                                             datetime
//!     <p:Whose><a:Address/><a:ReferenceParameters>…</a:ReferenceParameters></p:Whose>             reference
//!     <p:Inner xmlns:p1="…/Msvm_Y"><p1:Name>…</p1:Name></p:Inner>                                 embedded object
//!   </p:Msvm_X>
//! ```
//!
//! **Invariants.** Reading never looks at a type that the message claims: scalars are text, repeated elements an array. Recursion is
//! bounded by the depth of the document.

use std::collections::BTreeMap;

use super::uri::{ResourceTarget, ResourceUri};
use crate::cim::{CimDatetime, CimInstance, CimInterval, CimPath, CimValue, ClassName, Namespace};
use crate::schema::{Arity, ClassSchema, ValueSchema};
use crate::xml::{Element, XmlWriter, namespace};
use crate::{Error, Result};

/// The address that stands for "here".
pub(crate) const ANONYMOUS: &str =
    "http://schemas.xmlsoap.org/ws/2004/08/addressing/role/anonymous";
/// The selector that names a namespace and is no key.
pub(crate) const NAMESPACE_SELECTOR: &str = "__cimnamespace";
const SELECTORS_MAX: usize = 64;

/// Which forms of a reference are taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ReferenceForm {
    /// Address and parameters directly inside, as Windows wants it.
    Direct,
    /// Or an `a:EndpointReference` around them, as some write it.
    DirectOrWrapped,
}

/// Reads the value of one element.
///
/// # Errors
/// [`Malformed`](crate::ErrorKind::Malformed) where a reference is broken, or not in a form that is taken.
pub fn read_value(
    element: Element<'_, '_>,
    default: &Namespace,
    form: ReferenceForm,
) -> Result<CimValue> {
    if element.is_nil() {
        return Ok(CimValue::Null);
    }
    let Some(first) = element.children().next() else {
        return Ok(CimValue::Text(element.text().to_owned()));
    };
    if first.namespace() == namespace::CIM
        && let Some(value) = read_time(first)
    {
        return Ok(value);
    }
    let is_reference = element.children().any(|it| {
        it.is(namespace::ADDRESSING, "ReferenceParameters")
            || it.is(namespace::ADDRESSING, "EndpointReference")
    });
    if is_reference {
        return read_reference(element, default, form).map(CimValue::from);
    }
    let class = embedded_class(element, first);
    let mut instance = CimInstance::new(class).in_namespace(default);
    read_properties(element, &mut instance, form)?;
    Ok(instance.into())
}

fn read_time(element: Element<'_, '_>) -> Option<CimValue> {
    let text = element.trimmed();
    match element.local() {
        "Interval" => Some(match CimInterval::parse(text) {
            Some(interval) => CimValue::Interval(interval),
            None => CimValue::Text(text.to_owned()),
        }),
        "Datetime" | "CIM_DateTime" => {
            Some(match (CimDatetime::parse(text), CimInterval::parse(text)) {
                (Some(datetime), _) => CimValue::Datetime(datetime),
                (None, Some(interval)) => CimValue::Interval(interval),
                (None, None) => CimValue::Text(text.to_owned()),
            })
        }
        "Date" | "Time" => Some(CimValue::Text(text.to_owned())),
        _ => None,
    }
}

/// The class of an embedded object: by its type, else by the namespace of its properties.
fn embedded_class(element: Element<'_, '_>, first: Element<'_, '_>) -> ClassName {
    let typed = element
        .attribute(namespace::XSI, "type")
        .map(|it| it.rsplit_once(':').map_or(it, |it| it.1))
        .map(|it| it.strip_suffix("_Type").unwrap_or(it));
    if let Some(class) = typed {
        return ClassName::new(class);
    }
    match ResourceUri::parse(first.namespace()).map(|it| it.target) {
        Some(ResourceTarget::Class(class)) => class,
        _ => ClassName::new(first.local()),
    }
}

/// Reads a reference: the address and parameters inside of `element`.
///
/// # Errors
/// As [`read_value`].
pub fn read_reference(
    element: Element<'_, '_>,
    default: &Namespace,
    form: ReferenceForm,
) -> Result<CimPath> {
    let place = element.local();
    let inner = match element.child(namespace::ADDRESSING, "EndpointReference") {
        None => element,
        Some(inner) if form == ReferenceForm::DirectOrWrapped => inner,
        Some(_) => {
            return Err(Error::malformed(format!(
                "reference {place:.60} with an EndpointReference around it"
            )));
        }
    };
    let parameters = inner
        .require(namespace::ADDRESSING, "ReferenceParameters")
        .map_err(|error| error.within(format_args!("reference {place:.60}")))?;
    let uri = parameters.require(namespace::WSMAN, "ResourceURI")?;
    let uri = ResourceUri::parse(uri.text())
        .ok_or_else(|| Error::malformed(format!("reference {place:.60}: no class in its URI")))?;
    let class = uri
        .class_name()
        .cloned()
        .ok_or_else(|| Error::malformed(format!("reference {place:.60} to all classes")))?;
    let mut keys = match parameters.child(namespace::WSMAN, "SelectorSet") {
        Some(set) => read_selectors(set, form)?,
        None => BTreeMap::new(),
    };
    let named = keys
        .remove(NAMESPACE_SELECTOR)
        .and_then(|it| it.to_wire_text());
    let namespace = match (uri.namespace.is_unspecified(), named) {
        (false, _) => uri.namespace,
        (true, Some(named)) => Namespace::new(named),
        (true, None) => default.clone(),
    };
    Ok(CimPath {
        namespace,
        class,
        keys,
    })
}

/// Reads the selectors of a set.
///
/// # Errors
/// [`Malformed`](crate::ErrorKind::Malformed) where one has no name or comes twice, [`Limit`](crate::ErrorKind::Limit).
pub(crate) fn read_selectors(
    set: Element<'_, '_>,
    form: ReferenceForm,
) -> Result<BTreeMap<String, CimValue>> {
    let mut selectors = BTreeMap::new();
    for selector in set
        .children()
        .filter(|it| it.is(namespace::WSMAN, "Selector"))
    {
        if selectors.len() >= SELECTORS_MAX {
            return Err(Error::limit(format!("more than {SELECTORS_MAX} selectors")));
        }
        let name = selector
            .attribute("", "Name")
            .or_else(|| selector.attribute(namespace::WSMAN, "Name"))
            .ok_or_else(|| Error::malformed("selector without a name"))?;
        let value = if selector.has_children() {
            let inner = selector
                .child(namespace::ADDRESSING, "EndpointReference")
                .unwrap_or(selector);
            read_reference(inner, &Namespace::unspecified(), form)?.into()
        } else {
            CimValue::Text(selector.text().to_owned())
        };
        if selectors.insert(name.to_owned(), value).is_some() {
            return Err(Error::malformed(format!("selector {name:.60} twice")));
        }
    }
    Ok(selectors)
}

/// Reads an instance: its class is the name of the element, its namespace stands in the element's, else it is `default`.
///
/// # Errors
/// As [`read_value`].
pub fn read_instance(
    element: Element<'_, '_>,
    default: &Namespace,
    form: ReferenceForm,
) -> Result<CimInstance> {
    let namespace = ResourceUri::parse(element.namespace())
        .map(|it| it.namespace)
        .filter(|it| !it.is_unspecified())
        .unwrap_or_else(|| default.clone());
    let mut instance = CimInstance::new(element.local()).in_namespace(namespace);
    read_properties(element, &mut instance, form)?;
    Ok(instance)
}

/// Reads the children of an element as properties.
pub(crate) fn read_properties(
    element: Element<'_, '_>,
    into: &mut CimInstance,
    form: ReferenceForm,
) -> Result<()> {
    for child in element.children() {
        let value = read_value(child, &into.namespace, form)?;
        match into.properties.get_mut(child.local()) {
            None => {
                into.properties.insert(child.local().to_owned(), value);
            }
            Some(CimValue::Array(values)) => values.push(value),
            Some(first) => {
                let taken = std::mem::take(first);
                *first = CimValue::Array(vec![taken, value]);
            }
        }
    }
    Ok(())
}

/// Writes `a:Address` and `a:ReferenceParameters`.
pub(crate) fn write_reference_children(out: &mut XmlWriter, path: &CimPath) {
    let uri = ResourceUri::class(&path.namespace, &path.class);
    out.raw("<a:Address>")
        .raw(ANONYMOUS)
        .raw("</a:Address><a:ReferenceParameters>")
        .element("w", "ResourceURI", &uri.to_string());
    write_selectors(out, &path.keys);
    out.raw("</a:ReferenceParameters>");
}

/// Writes a reference as `a:EndpointReference`, the form of items of an enumeration.
pub fn write_reference(out: &mut XmlWriter, path: &CimPath) {
    out.raw("<a:EndpointReference>");
    write_reference_children(out, path);
    out.raw("</a:EndpointReference>");
}

/// Writes `w:SelectorSet`.
pub(crate) fn write_selectors(out: &mut XmlWriter, selectors: &BTreeMap<String, CimValue>) {
    out.raw("<w:SelectorSet>");
    for (name, value) in selectors {
        out.raw("<w:Selector").attribute("Name", name).raw(">");
        match value {
            CimValue::Reference(path) => write_reference(out, path),
            value => {
                out.text(&value.to_wire_text().unwrap_or_default());
            }
        }
        out.raw("</w:Selector>");
    }
    out.raw("</w:SelectorSet>");
}

/// Writes a value as one element, or as several where it is an array; nothing for an empty array.
pub fn write_value(out: &mut XmlWriter, prefix: &str, name: &str, value: &CimValue) {
    match value {
        CimValue::Null => {
            out.open(prefix, name).raw(" xsi:nil=\"true\"/>");
        }
        CimValue::Text(text) => {
            out.element(prefix, name, text);
        }
        CimValue::Array(values) => {
            for value in values {
                write_value(out, prefix, name, value);
            }
        }
        CimValue::Datetime(value) => {
            out.start(prefix, name)
                .element("cim", "Datetime", &value.to_iso())
                .end(prefix, name);
        }
        CimValue::Interval(value) => {
            out.start(prefix, name)
                .element("cim", "Interval", &value.to_iso())
                .end(prefix, name);
        }
        CimValue::Reference(path) => {
            out.start(prefix, name);
            write_reference_children(out, path);
            out.end(prefix, name);
        }
        CimValue::Instance(instance) => write_embedded(out, prefix, name, instance),
        CimValue::Boolean(_) | CimValue::Uint(_) | CimValue::Sint(_) | CimValue::Real(_) => {
            out.element(prefix, name, &value.to_wire_text().unwrap_or_default());
        }
    }
}

/// An embedded object: its properties are in the namespace of its own class, under a prefix other than that around it.
fn write_embedded(out: &mut XmlWriter, prefix: &str, name: &str, instance: &CimInstance) {
    let own = if prefix == "p1" { "p2" } else { "p1" };
    let uri = ResourceUri::class(&instance.namespace, &instance.class);
    out.open(prefix, name)
        .attribute(&format!("xmlns:{own}"), &uri.to_string())
        .attribute("xsi:type", &format!("{own}:{}_Type", instance.class))
        .raw(">");
    for (name, value) in &instance.properties {
        write_value(out, own, name, value);
    }
    out.end(prefix, name);
}

/// Writes an instance as Windows does. `class_uri` is the URI of its class.
///
/// With a schema every scalar of the class is there, null where the instance has none; without, what the instance has.
///
/// # Errors
/// [`Invalid`](crate::ErrorKind::Invalid) where a property is not of the class or not of its type.
pub fn write_instance(
    out: &mut XmlWriter,
    instance: &CimInstance,
    class_uri: &str,
    schema: Option<&ClassSchema>,
) -> Result<()> {
    let name = instance.class.as_str();
    out.raw("<p:")
        .raw(name)
        .raw(" xmlns:xsi=\"http://www.w3.org/2001/XMLSchema-instance\" xmlns:p=\"")
        .raw(class_uri)
        .raw("\" xmlns:cim=\"http://schemas.dmtf.org/wbem/wscim/1/common\" xsi:type=\"p:")
        .raw(name)
        .raw("_Type\">");
    write_properties(out, "p", instance, schema)?;
    out.raw("</p:").raw(name).raw(">");
    Ok(())
}

/// Writes the properties of an instance, as [`write_instance`] says.
pub(crate) fn write_properties(
    out: &mut XmlWriter,
    prefix: &str,
    instance: &CimInstance,
    schema: Option<&ClassSchema>,
) -> Result<()> {
    let Some(schema) = schema else {
        for (name, value) in &instance.properties {
            write_value(out, prefix, name, value);
        }
        return Ok(());
    };
    // An instance in place of its text: some outputs are element trees although MOF declares a string.
    let fits = |declared: &ValueSchema, value: &CimValue| {
        declared.cim_type.fits(value)
            || declared.embedded.is_some() && matches!(value, CimValue::Instance(_))
    };
    // Both are in the order of names: one walk.
    let mut given = instance.properties.iter().peekable();
    for (name, declared) in &schema.properties {
        let value = given.next_if(|it| it.0 == name).map(|it| it.1);
        let is_right = match (value, declared.arity) {
            (None | Some(CimValue::Null), Arity::One) => {
                write_value(out, prefix, name, &CimValue::Null);
                continue;
            }
            (None | Some(CimValue::Null), Arity::Many) => continue,
            (Some(CimValue::Array(values)), Arity::Many) => {
                values.iter().all(|it| fits(declared, it))
            }
            (Some(value), Arity::One) => fits(declared, value),
            (Some(_), Arity::Many) => false,
        };
        let value = value.filter(|_| is_right).ok_or_else(|| {
            Error::invalid(format!(
                "{}.{name} is no {}",
                schema.name, declared.cim_type
            ))
        })?;
        write_value(out, prefix, name, value);
    }
    match given.next() {
        None => Ok(()),
        Some((name, _)) => Err(Error::invalid(format!(
            "{} has no property {name}",
            schema.name
        ))),
    }
}
