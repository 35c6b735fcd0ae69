//! Requests: written by the client, read by the server.

use super::filter::Filter;
use super::header::{EnumerationContext, RequestHeader};
use super::uri::{Action, ResourceUri};
use super::value::{
    NAMESPACE_SELECTOR, ReferenceForm, read_instance, read_value, write_instance, write_value,
};
use super::{Fault, FaultCode, wsman_code};
use crate::cim::{CimInstance, CimPath, CimValue, ClassName, Namespace};
use crate::xml::{Document, Element, XmlWriter, namespace};
use crate::{Error, Result};

/// Whether items come with the first answer already.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Delivery {
    /// The first answer has items (`OptimizeEnumeration`).
    Optimized,
    /// The first answer has the context alone.
    ContextOnly,
}

/// What the items are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Items {
    /// Instances.
    Objects,
    /// Their paths (`EnumerateEPR`).
    References,
    /// Both (`EnumerateObjectAndEPR`).
    Both,
}

/// Whether instances of subclasses belong to an enumeration (DSP0227 §8.7).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Polymorphism {
    /// They do, as they are. The default.
    Include,
    /// They do not.
    Exclude,
}

/// What Enumerate asks for.
#[derive(Debug, Clone, PartialEq)]
pub struct Enumerate {
    /// Which instances; all without.
    pub filter: Option<Filter>,
    /// Instances or paths.
    pub items: Items,
    /// When the first items come.
    pub delivery: Delivery,
    /// Most items per answer; one without.
    pub max_elements: Option<u32>,
    /// Subclasses too?
    pub polymorphism: Polymorphism,
}

/// What a request asks for.
#[derive(Debug, Clone, PartialEq)]
pub enum RequestBody {
    /// Who are you?
    Identify,
    /// Begin an enumeration.
    Enumerate(Enumerate),
    /// Go on with it.
    Pull {
        /// Which one.
        context: EnumerationContext,
        /// Most items; one without.
        max_elements: Option<u32>,
    },
    /// End it.
    Release {
        /// Which one.
        context: EnumerationContext,
    },
    /// The instance of the selectors.
    Get,
    /// Change the instance of the selectors.
    Put(CimInstance),
    /// Create and Delete, which Hyper-V does not do.
    Unsupported,
    /// Run a method.
    Invoke {
        /// Its name.
        method: String,
        /// What it is given, in order. Arrays are arrays only if they have two values or more.
        parameters: Vec<(String, CimValue)>,
    },
}

/// A request.
#[derive(Debug, Clone, PartialEq)]
pub struct Request {
    /// Its headers; `None` for Identify, which needs none.
    pub header: Option<RequestHeader>,
    /// What it asks for.
    pub body: RequestBody,
}

const ENVELOPE: &str = concat!(
    "<s:Envelope xmlns:s=\"http://www.w3.org/2003/05/soap-envelope\"",
    " xmlns:a=\"http://schemas.xmlsoap.org/ws/2004/08/addressing\"",
    " xmlns:n=\"http://schemas.xmlsoap.org/ws/2004/09/enumeration\"",
    " xmlns:w=\"http://schemas.dmtf.org/wbem/wsman/1/wsman.xsd\"",
    " xmlns:p=\"http://schemas.microsoft.com/wbem/wsman/1/wsman.xsd\"",
    " xmlns:cim=\"http://schemas.dmtf.org/wbem/wscim/1/common\"",
    " xmlns:xsi=\"http://www.w3.org/2001/XMLSchema-instance\">"
);

/// Most parameters of a method, arrays counted by their values.
const PARAMETERS_MAX: usize = 100_000;

impl Request {
    /// As text.
    ///
    /// # Errors
    /// [`Invalid`](crate::ErrorKind::Invalid) where something cannot be sent.
    pub fn write(&self) -> Result<String> {
        let mut out = XmlWriter::new();
        out.raw(ENVELOPE);
        match &self.header {
            Some(header) => header.write(&mut out),
            None => {
                out.raw("<s:Header/>");
            }
        }
        out.raw("<s:Body>");
        self.write_body(&mut out)?;
        out.raw("</s:Body></s:Envelope>");
        out.finish()
    }

    fn resource(&self) -> Result<&ResourceUri> {
        self.header
            .as_ref()
            .and_then(|it| it.resource.as_ref())
            .ok_or_else(|| Error::invalid("a request without a resource"))
    }

    fn write_body(&self, out: &mut XmlWriter) -> Result<()> {
        match &self.body {
            RequestBody::Identify => {
                out.open("wsmid", "Identify")
                    .attribute("xmlns:wsmid", namespace::IDENTITY)
                    .raw("/>");
            }
            RequestBody::Enumerate(enumerate) => write_enumerate(out, enumerate),
            RequestBody::Pull {
                context,
                max_elements,
            } => {
                out.raw("<n:Pull>")
                    .element("n", "EnumerationContext", context.as_str());
                if let Some(count) = max_elements {
                    out.element("n", "MaxElements", &count.to_string());
                }
                out.raw("</n:Pull>");
            }
            RequestBody::Release { context } => {
                out.raw("<n:Release>")
                    .element("n", "EnumerationContext", context.as_str())
                    .raw("</n:Release>");
            }
            RequestBody::Get => {}
            RequestBody::Put(instance) => {
                let uri = self.resource()?.to_string();
                write_instance(out, instance, &uri, None)?;
            }
            RequestBody::Unsupported => {
                return Err(Error::invalid("a request that is not supported"));
            }
            RequestBody::Invoke { method, parameters } => {
                let name = format!("{method}_INPUT");
                out.open("p", &name)
                    .attribute("xmlns:p", &self.resource()?.to_string())
                    .raw(">");
                for (parameter, value) in parameters {
                    write_value(out, "p", parameter, value);
                }
                out.end("p", &name);
            }
        }
        Ok(())
    }

    /// Reads a request as strictly as Windows does.
    ///
    /// # Errors
    /// The fault that goes with what is wrong.
    pub fn read(document: &Document<'_>) -> std::result::Result<Self, Fault> {
        let envelope = document.root();
        if envelope.local() == "Envelope" && envelope.namespace() != namespace::SOAP {
            return Err(Fault::new(FaultCode::VersionMismatch));
        }
        let schema = || Fault::new(FaultCode::SchemaValidationError);
        if !envelope.is(namespace::SOAP, "Envelope") {
            return Err(schema());
        }
        let body = envelope.child(namespace::SOAP, "Body").ok_or_else(schema)?;
        let first = body.children().next();
        if first.is_some_and(|it| it.is(namespace::IDENTITY, "Identify")) {
            return Ok(Self {
                header: None,
                body: RequestBody::Identify,
            });
        }
        let header = envelope
            .child(namespace::SOAP, "Header")
            .ok_or_else(schema)?;
        let mut header = RequestHeader::read(header)?;
        settle_namespace(&mut header)?;
        let resource = header.resource.as_ref().ok_or_else(schema)?;
        let action = Action::parse(&header.action, resource).ok_or_else(|| {
            Fault::new(FaultCode::ActionNotSupported)
                .with_wsman_code(wsman_code::INVALID_ACTIONURI)
                .with_detail("InvalidAction")
        })?;
        let body = read_body(&action, first, resource)?;
        Ok(Self {
            header: Some(header),
            body,
        })
    }

    /// The instance that the selectors name; `None` without resource or for all classes.
    pub fn path(&self) -> Option<CimPath> {
        let header = self.header.as_ref()?;
        let resource = header.resource.as_ref()?;
        Some(CimPath {
            namespace: resource.namespace.clone(),
            class: resource.class_name()?.clone(),
            keys: header.selectors.clone(),
        })
    }
}

/// The namespace that a selector names must be the URI's, or stands for it.
fn settle_namespace(header: &mut RequestHeader) -> std::result::Result<(), Fault> {
    let named = header
        .selectors
        .iter()
        .find(|it| it.0.eq_ignore_ascii_case(NAMESPACE_SELECTOR))
        .map(|it| it.0.clone());
    let named = named.and_then(|it| header.selectors.remove(&it));
    let named = named.and_then(|it| it.to_wire_text()).map(Namespace::new);
    let Some(resource) = header.resource.as_mut() else {
        return Ok(());
    };
    match named {
        Some(named) if resource.namespace.is_unspecified() => resource.namespace = named,
        Some(named) if named != resource.namespace => {
            return Err(Fault::new(FaultCode::InvalidSelectors)
                .because("The resource URI and __cimnamespace selector attempted to use different namespaces."));
        }
        None if resource.namespace.is_unspecified() => {
            resource.namespace = Namespace::new("root/cimv2")
        }
        _ => {}
    }
    Ok(())
}

fn write_enumerate(out: &mut XmlWriter, enumerate: &Enumerate) {
    out.raw("<n:Enumerate>");
    if enumerate.delivery == Delivery::Optimized {
        out.raw("<w:OptimizeEnumeration/>");
    }
    if let Some(count) = enumerate.max_elements {
        out.element("w", "MaxElements", &count.to_string());
    }
    match enumerate.items {
        Items::Objects => {}
        Items::References => {
            out.element("w", "EnumerationMode", "EnumerateEPR");
        }
        Items::Both => {
            out.element("w", "EnumerationMode", "EnumerateObjectAndEPR");
        }
    }
    if enumerate.polymorphism == Polymorphism::Exclude {
        out.open("b", "PolymorphismMode")
            .attribute("xmlns:b", namespace::BINDING)
            .raw(">None</b:PolymorphismMode>");
    }
    if let Some(filter) = &enumerate.filter {
        filter.write(out);
    }
    out.raw("</n:Enumerate>");
}

fn read_body(
    action: &Action,
    first: Option<Element<'_, '_>>,
    resource: &ResourceUri,
) -> std::result::Result<RequestBody, Fault> {
    let expected = |uri: &str, name: &str| {
        first.filter(|it| it.is(uri, name)).ok_or_else(|| {
            Fault::new(FaultCode::SchemaValidationError).because(format_args!("{name} expected."))
        })
    };
    match action {
        Action::Enumerate => {
            let enumerate =
                read_enumerate(expected(namespace::ENUMERATION, "Enumerate")?, resource)?;
            Ok(RequestBody::Enumerate(enumerate))
        }
        Action::Pull => {
            let pull = expected(namespace::ENUMERATION, "Pull")?;
            Ok(RequestBody::Pull {
                context: read_context(pull)?,
                max_elements: read_count(pull.child(namespace::ENUMERATION, "MaxElements"))?,
            })
        }
        Action::Release => Ok(RequestBody::Release {
            context: read_context(expected(namespace::ENUMERATION, "Release")?)?,
        }),
        Action::Get => Ok(RequestBody::Get),
        Action::Put => {
            let element = first.ok_or_else(|| Fault::new(FaultCode::SchemaValidationError))?;
            read_instance(element, &resource.namespace, ReferenceForm::Direct)
                .map(RequestBody::Put)
                .map_err(|error| Fault::new(FaultCode::SchemaValidationError).because(error))
        }
        Action::Create | Action::Delete => Ok(RequestBody::Unsupported),
        Action::Invoke { method } => {
            let class = resource
                .class_name()
                .ok_or_else(|| Fault::new(FaultCode::ActionNotSupported))?;
            let parameters = match first {
                None => Vec::new(),
                Some(input) => read_input(input, method, &resource.namespace, class)?,
            };
            Ok(RequestBody::Invoke {
                method: method.clone(),
                parameters,
            })
        }
    }
}

/// Reads `<X_INPUT>`: its own namespace does not count, that of what is in it does.
fn read_input(
    input: Element<'_, '_>,
    method: &str,
    at: &Namespace,
    class: &ClassName,
) -> std::result::Result<Vec<(String, CimValue)>, Fault> {
    let schema = |reason: String| Fault::new(FaultCode::SchemaValidationError).because(reason);
    if input.local() != format!("{method}_INPUT") {
        return Err(schema(format!("{method}_INPUT expected.")));
    }
    let mut parameters: Vec<(String, CimValue)> = Vec::new();
    for (count, element) in input.children().enumerate() {
        if count >= PARAMETERS_MAX {
            return Err(Fault::new(FaultCode::EncodingLimit).because("Too many parameters."));
        }
        let name = element.local();
        let is_ours = ResourceUri::parse(element.namespace()).is_some_and(|it| {
            it.class_name() == Some(class) && (it.namespace == *at || it.namespace.is_unspecified())
        });
        if !is_ours {
            return Err(schema(format!(
                "Parameter {name:.60} is not in the namespace of the class."
            ))
            .with_wsman_code(wsman_code::INVALID_XML_NAMESPACE));
        }
        let value = read_value(element, at, ReferenceForm::Direct)
            .map_err(|error| schema(format!("{error}.")))?;
        match parameters.last_mut() {
            // An array is its element again and again, with nothing between.
            Some((last, values)) if last == name => match values {
                CimValue::Array(values) => values.push(value),
                first => {
                    let taken = std::mem::take(first);
                    *first = CimValue::Array(vec![taken, value]);
                }
            },
            _ => parameters.push((name.to_owned(), value)),
        }
    }
    Ok(parameters)
}

fn read_context(element: Element<'_, '_>) -> std::result::Result<EnumerationContext, Fault> {
    element
        .child(namespace::ENUMERATION, "EnumerationContext")
        .map(|it| EnumerationContext::new(it.trimmed()))
        .ok_or_else(|| {
            Fault::new(FaultCode::SchemaValidationError).because("EnumerationContext is missing.")
        })
}

fn read_count(element: Option<Element<'_, '_>>) -> std::result::Result<Option<u32>, Fault> {
    element
        .map(|it| {
            it.trimmed()
                .parse::<u32>()
                .ok()
                .filter(|it| *it > 0)
                .ok_or_else(|| {
                    Fault::new(FaultCode::SchemaValidationError).because("MaxElements is no count.")
                })
        })
        .transpose()
}

fn read_enumerate(
    element: Element<'_, '_>,
    resource: &ResourceUri,
) -> std::result::Result<Enumerate, Fault> {
    let mut enumerate = Enumerate {
        filter: None,
        items: Items::Objects,
        delivery: Delivery::ContextOnly,
        max_elements: None,
        polymorphism: Polymorphism::Include,
    };
    for child in element.children() {
        let unknown = || {
            Fault::new(FaultCode::SchemaValidationError)
                .because(format_args!("{:.60} in Enumerate.", child.local()))
        };
        match (child.namespace(), child.local()) {
            (namespace::WSMAN | namespace::ENUMERATION, "Filter") => {
                enumerate.filter = Some(Filter::read(child, &resource.namespace)?);
            }
            (namespace::WSMAN, "OptimizeEnumeration") => enumerate.delivery = Delivery::Optimized,
            (namespace::WSMAN, "MaxElements") => enumerate.max_elements = read_count(Some(child))?,
            (namespace::WSMAN, "EnumerationMode") => {
                enumerate.items = match child.trimmed() {
                    "EnumerateObject" => Items::Objects,
                    "EnumerateEPR" => Items::References,
                    "EnumerateObjectAndEPR" => Items::Both,
                    _ => {
                        return Err(Fault::new(FaultCode::UnsupportedFeature)
                            .with_detail("EnumerationMode"));
                    }
                };
            }
            (namespace::BINDING | namespace::WSMAN, "PolymorphismMode") => {
                enumerate.polymorphism = match child.trimmed() {
                    "IncludeSubClassProperties" => Polymorphism::Include,
                    "None" => Polymorphism::Exclude,
                    _ => {
                        return Err(Fault::new(FaultCode::UnsupportedFeature)
                            .with_detail("PolymorphismMode"));
                    }
                };
            }
            (namespace::ENUMERATION, "Expires" | "EndTo") => {}
            _ => return Err(unknown()),
        }
    }
    Ok(enumerate)
}
