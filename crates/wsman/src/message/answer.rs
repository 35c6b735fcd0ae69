//! Answers: written by the server, read by the client.
//!
//! ```text
//!   EnumerateResponse   n:EnumerationContext   w:Items   w:EndOfSequence
//!   PullResponse        n:EnumerationContext   n:Items   n:EndOfSequence
//!   an item             instance │ a:EndpointReference │ w:Item (both) │ w:XmlFragment (some properties)
//! ```
//!
//! **Invariant.** Reading checks that the answer relates to the question.

use super::fault::Fault;
use super::header::{EnumerationContext, MessageId};
use super::value::{
    ANONYMOUS, ReferenceForm, read_instance, read_properties, read_reference, write_instance,
    write_properties, write_reference,
};
use crate::cim::{CimInstance, CimPath, ClassName, Namespace};
use crate::schema::ClassSchema;
use crate::xml::{Document, Element, XmlWriter, namespace};
use crate::{Error, Result};

/// Who the other side is.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Identity {
    /// URI of the version of WS-Management.
    pub protocol_version: String,
    /// `Microsoft Corporation`.
    pub product_vendor: String,
    /// `OS: 10.0.17763 SP: 0.0 Stack: 3.0`; zeros to those who did not prove who they are.
    pub product_version: String,
}

/// One result of an enumeration.
#[derive(Debug, Clone, PartialEq)]
pub enum Item {
    /// An instance.
    Object(CimInstance),
    /// A path.
    Reference(CimPath),
    /// An instance and its path.
    Both(CimInstance, CimPath),
    /// Some properties, of a class that the query named.
    Fragment(CimInstance),
}

/// What one answer of an enumeration brings.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Batch {
    /// The items.
    pub items: Vec<Item>,
    /// How to go on, if it says so: absent after the last, and where the one before stays good.
    pub context: Option<EnumerationContext>,
    /// Whether nothing follows.
    pub is_last: bool,
}

/// Opens an answer: its body's first element, or the fault that it is.
///
/// # Errors
/// The fault as an error; [`Malformed`](crate::ErrorKind::Malformed) if it is no answer to `asked`.
pub fn read_answer<'d, 't>(
    document: &'d Document<'t>,
    asked: Option<&MessageId>,
) -> Result<Option<Element<'d, 't>>> {
    let envelope = document.root();
    if !envelope.is(namespace::SOAP, "Envelope") {
        return Err(Error::malformed(format!(
            "answer is no envelope of SOAP 1.2 but {:.60}",
            envelope.local()
        )));
    }
    let body = envelope.require(namespace::SOAP, "Body")?;
    let first = body.children().next();
    if let Some(fault) = first.filter(|it| it.is(namespace::SOAP, "Fault")) {
        return Err(Fault::read(fault).into_error());
    }
    let relates = envelope
        .child(namespace::SOAP, "Header")
        .and_then(|it| it.child(namespace::ADDRESSING, "RelatesTo"));
    if let (Some(relates), Some(asked)) = (relates, asked)
        && !relates.trimmed().eq_ignore_ascii_case(asked.as_str())
    {
        return Err(Error::malformed("answer relates to another message"));
    }
    Ok(first)
}

fn expected<'d, 't>(body: Option<Element<'d, 't>>, what: &str) -> Result<Element<'d, 't>> {
    body.ok_or_else(|| Error::malformed(format!("answer is empty, {what} expected")))
}

/// Reads the answer to Identify.
///
/// # Errors
/// [`Malformed`](crate::ErrorKind::Malformed).
pub fn read_identity(body: Option<Element<'_, '_>>) -> Result<Identity> {
    let body = expected(body, "IdentifyResponse")?;
    if !body.is(namespace::IDENTITY, "IdentifyResponse") {
        return Err(Error::malformed("answer is no IdentifyResponse"));
    }
    let text = |name: &str| {
        body.child(namespace::IDENTITY, name)
            .map(|it| it.trimmed().to_owned())
            .unwrap_or_default()
    };
    Ok(Identity {
        protocol_version: text("ProtocolVersion"),
        product_vendor: text("ProductVendor"),
        product_version: text("ProductVersion"),
    })
}

/// Reads the answer to Get or Put.
///
/// # Errors
/// [`Malformed`](crate::ErrorKind::Malformed).
pub fn read_instance_answer(
    body: Option<Element<'_, '_>>,
    default: &Namespace,
) -> Result<CimInstance> {
    read_instance(
        expected(body, "an instance")?,
        default,
        ReferenceForm::DirectOrWrapped,
    )
}

/// Reads `<X_OUTPUT>` of a method.
///
/// # Errors
/// [`Malformed`](crate::ErrorKind::Malformed).
pub fn read_output(
    body: Option<Element<'_, '_>>,
    method: &str,
    default: &Namespace,
) -> Result<CimInstance> {
    let body = expected(body, "an output")?;
    if body.local().strip_suffix("_OUTPUT") != Some(method) {
        return Err(Error::malformed(format!(
            "answer is {:.60}, {method}_OUTPUT expected",
            body.local()
        )));
    }
    read_instance(body, default, ReferenceForm::DirectOrWrapped)
}

/// Reads the answer to Enumerate or Pull. `from` is the class that the query named, for items that do not say theirs.
///
/// # Errors
/// [`Malformed`](crate::ErrorKind::Malformed).
pub fn read_batch(
    body: Option<Element<'_, '_>>,
    default: &Namespace,
    from: Option<&ClassName>,
) -> Result<Batch> {
    let body = expected(body, "an enumeration")?;
    if body.namespace() != namespace::ENUMERATION
        || !matches!(body.local(), "EnumerateResponse" | "PullResponse")
    {
        return Err(Error::malformed(format!(
            "answer is {:.60}, an enumeration expected",
            body.local()
        )));
    }
    // Either namespace is legal for either answer: hosts use one, the specification the other.
    let either = |name: &str| {
        body.child(namespace::WSMAN, name)
            .or_else(|| body.child(namespace::ENUMERATION, name))
    };
    let is_last = either("EndOfSequence").is_some();
    let context = body
        .child(namespace::ENUMERATION, "EnumerationContext")
        .map(Element::trimmed)
        .filter(|it| !is_last && !it.is_empty())
        .map(EnumerationContext::new);
    let mut items = Vec::new();
    if let Some(list) = either("Items") {
        for item in list.children() {
            items.push(read_item(item, default, from)?);
        }
    }
    Ok(Batch {
        items,
        context,
        is_last,
    })
}

fn read_item(item: Element<'_, '_>, default: &Namespace, from: Option<&ClassName>) -> Result<Item> {
    const FORM: ReferenceForm = ReferenceForm::DirectOrWrapped;
    if item.is(namespace::ADDRESSING, "EndpointReference") {
        return read_reference(item, default, FORM).map(Item::Reference);
    }
    if item.is(namespace::WSMAN, "XmlFragment") {
        let class = from.cloned().unwrap_or_else(|| ClassName::new(""));
        let mut instance = CimInstance::new(class).in_namespace(default);
        read_properties(item, &mut instance, FORM)?;
        return Ok(Item::Fragment(instance));
    }
    if item.is(namespace::WSMAN, "Item") {
        let path = item.require(namespace::ADDRESSING, "EndpointReference")?;
        let object = item
            .children()
            .find(|it| it.namespace() != namespace::ADDRESSING)
            .ok_or_else(|| Error::malformed("item without an object"))?;
        return Ok(Item::Both(
            read_instance(object, default, FORM)?,
            read_reference(path, default, FORM)?,
        ));
    }
    read_instance(item, default, FORM).map(Item::Object)
}

/// Writes one answer.
#[derive(Debug)]
pub struct AnswerWriter {
    out: XmlWriter,
}

const ENVELOPE: &str = concat!(
    " xmlns:s=\"http://www.w3.org/2003/05/soap-envelope\"",
    " xmlns:a=\"http://schemas.xmlsoap.org/ws/2004/08/addressing\"",
    " xmlns:n=\"http://schemas.xmlsoap.org/ws/2004/09/enumeration\"",
    " xmlns:x=\"http://schemas.xmlsoap.org/ws/2004/09/transfer\"",
    " xmlns:w=\"http://schemas.dmtf.org/wbem/wsman/1/wsman.xsd\"",
    " xmlns:p=\"http://schemas.microsoft.com/wbem/wsman/1/wsman.xsd\">"
);

/// What stands behind the items of a full answer, and a context, at most.
pub(crate) const TAIL_BYTES: usize = 256;

impl AnswerWriter {
    /// Begins an answer with its headers. `relates_to` is the question, where it was readable.
    pub fn new(
        action: &str,
        message_id: &MessageId,
        relates_to: Option<&MessageId>,
        language: &str,
    ) -> Self {
        let mut out = XmlWriter::new();
        out.open("s", "Envelope")
            .attribute("xml:lang", language)
            .raw(ENVELOPE)
            .raw("<s:Header>")
            .element("a", "Action", action)
            .element("a", "MessageID", message_id.as_str())
            .element("a", "To", ANONYMOUS);
        if let Some(relates_to) = relates_to {
            out.element("a", "RelatesTo", relates_to.as_str());
        }
        out.raw("</s:Header><s:Body>");
        Self { out }
    }

    /// A piece of an answer, to be put into one by [`AnswerWriter::append`].
    pub(crate) fn fragmentary() -> Self {
        Self {
            out: XmlWriter::new(),
        }
    }

    /// Puts a piece behind what is there.
    pub(crate) fn append(&mut self, piece: Self) {
        self.out.append(piece.out);
    }

    /// Bytes so far, with what still must follow.
    pub(crate) fn len(&self) -> usize {
        self.out.len().saturating_add(TAIL_BYTES)
    }

    /// Where it stands, for [`AnswerWriter::take_back`].
    pub(crate) fn mark(&self) -> usize {
        self.out.len()
    }

    /// Takes back what was written since.
    pub(crate) fn take_back(&mut self, mark: usize) {
        self.out.truncate(mark);
    }

    /// Writes who the server is. It has no headers of addressing.
    ///
    /// # Errors
    /// As [`AnswerWriter::finish`].
    pub fn identity(identity: &Identity) -> Result<String> {
        let mut out = XmlWriter::new();
        out.raw("<s:Envelope xml:lang=\"\" xmlns:s=\"")
            .raw(namespace::SOAP)
            .raw("\"><s:Header/><s:Body><wsmid:IdentifyResponse xmlns:wsmid=\"")
            .raw(namespace::IDENTITY)
            .raw("\">")
            .element("wsmid", "ProtocolVersion", &identity.protocol_version)
            .element("wsmid", "ProductVendor", &identity.product_vendor)
            .element("wsmid", "ProductVersion", &identity.product_version)
            .raw("</wsmid:IdentifyResponse></s:Body></s:Envelope>");
        out.finish()
    }

    /// Writes a fault.
    pub fn fault(&mut self, fault: &Fault, language: &str) {
        fault.write(&mut self.out, language);
    }

    /// Writes an instance, as the answer to Get or an item.
    ///
    /// # Errors
    /// As [`write_instance`].
    pub fn instance(
        &mut self,
        instance: &CimInstance,
        class_uri: &str,
        schema: Option<&ClassSchema>,
    ) -> Result<()> {
        write_instance(&mut self.out, instance, class_uri, schema)
    }

    /// Writes a path as an item.
    pub fn reference(&mut self, path: &CimPath) {
        write_reference(&mut self.out, path);
    }

    /// Writes an instance and its path as one item.
    ///
    /// # Errors
    /// As [`write_instance`].
    pub fn both(
        &mut self,
        instance: &CimInstance,
        class_uri: &str,
        schema: Option<&ClassSchema>,
        path: &CimPath,
    ) -> Result<()> {
        self.out.raw("<w:Item>");
        self.instance(instance, class_uri, schema)?;
        self.reference(path);
        self.out.raw("</w:Item>");
        Ok(())
    }

    /// Writes some properties as an item.
    ///
    /// # Errors
    /// As [`write_instance`].
    pub fn fragment(&mut self, instance: &CimInstance) -> Result<()> {
        self.out.raw(concat!(
            "<w:XmlFragment xmlns:xsi=\"http://www.w3.org/2001/XMLSchema-instance\"",
            " xmlns:cim=\"http://schemas.dmtf.org/wbem/wscim/1/common\">"
        ));
        write_properties(&mut self.out, "", instance, None)?;
        self.out.raw("</w:XmlFragment>");
        Ok(())
    }

    /// Writes what a method gives back, in the order of names, as Windows does.
    ///
    /// # Errors
    /// As [`write_instance`]; `schema` has the outputs as properties.
    pub fn output(
        &mut self,
        method: &str,
        class_uri: &str,
        output: &CimInstance,
        schema: Option<&ClassSchema>,
    ) -> Result<()> {
        let name = format!("{method}_OUTPUT");
        self.out
            .open("p", &name)
            .raw(" xmlns:xsi=\"http://www.w3.org/2001/XMLSchema-instance\"")
            .attribute("xmlns:p", class_uri)
            .raw(" xmlns:cim=\"http://schemas.dmtf.org/wbem/wscim/1/common\">");
        write_properties(&mut self.out, "p", output, schema)?;
        self.out.end("p", &name);
        Ok(())
    }

    /// Markup of our own.
    pub(crate) fn raw(&mut self, markup: &str) {
        self.out.raw(markup);
    }

    /// Writes the context of an enumeration.
    pub(crate) fn context(&mut self, context: &EnumerationContext) {
        self.out
            .element("n", "EnumerationContext", context.as_str());
    }

    /// The whole answer.
    ///
    /// # Errors
    /// [`Invalid`](crate::ErrorKind::Invalid) if a text held what XML cannot hold.
    pub fn finish(mut self) -> Result<String> {
        self.out.raw("</s:Body></s:Envelope>");
        self.out.finish()
    }
}
