//! The headers of a request.
//!
//! **Invariants.** Read: a header that must be understood and is not known is a fault; what the specification demands must be
//! there. Written: in the order and with the marks of Windows' own client.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use super::uri::ResourceUri;
use super::value::{ANONYMOUS, ReferenceForm, read_selectors, write_selectors};
use super::{Fault, FaultCode, wsman_code};
use crate::cim::{CimInterval, CimValue};
use crate::xml::{Element, XmlWriter, namespace};

/// Id of a message, such as `uuid:3F0B6E5C-6E3E-4D5B-9E55-1E6A6F0F2B01`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MessageId(String);

impl MessageId {
    /// An id as it stands.
    pub fn new(id: impl Into<String>) -> Self {
        Self(id.into())
    }

    /// An id of 16 bytes that nobody else has: `uuid:` and they.
    pub fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(uuid_text(bytes))
    }

    /// As text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for MessageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What names an enumeration under way; opaque to the client.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EnumerationContext(String);

impl EnumerationContext {
    /// A context as it stands.
    pub fn new(context: impl Into<String>) -> Self {
        Self(context.into())
    }

    /// A context of 16 bytes that nobody else has.
    pub fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(uuid_text(bytes))
    }

    /// As text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

fn uuid_text(bytes: [u8; 16]) -> String {
    let mut text = String::with_capacity(41);
    text.push_str("uuid:");
    for (at, byte) in bytes.iter().enumerate() {
        if matches!(at, 4 | 6 | 8 | 10) {
            text.push('-');
        }
        for digit in [byte >> 4, byte & 15] {
            text.extend(char::from_digit(digit.into(), 16).map(|it| it.to_ascii_uppercase()));
        }
    }
    text
}

/// The headers of a request, as far as they matter.
#[derive(Debug, Clone, PartialEq)]
pub struct RequestHeader {
    /// The address that it was sent to.
    pub to: String,
    /// What it is about; absent in Identify.
    pub resource: Option<ResourceUri>,
    /// The action as it was sent.
    pub action: String,
    /// Its id.
    pub message_id: MessageId,
    /// The longest answer that the sender takes, in bytes.
    pub max_envelope_bytes: Option<u32>,
    /// How long the operation may take.
    pub timeout: Option<Duration>,
    /// The language that is asked for, such as `en-US`.
    pub locale: Option<String>,
    /// Which instance.
    pub selectors: BTreeMap<String, CimValue>,
}

/// The least that a client may allow for an answer (MS-WSMV).
pub const MAX_ENVELOPE_LEAST_BYTES: u32 = 8192;

const KNOWN: &[(&str, &[&str])] = &[
    (
        namespace::ADDRESSING,
        &[
            "To",
            "Action",
            "MessageID",
            "RelatesTo",
            "ReplyTo",
            "FaultTo",
            "From",
        ],
    ),
    (
        namespace::WSMAN,
        &[
            "ResourceURI",
            "SelectorSet",
            "OptionSet",
            "MaxEnvelopeSize",
            "OperationTimeout",
            "Locale",
            "RequestEPR",
            "RequestTotalItemsCountEstimate",
        ],
    ),
    (
        namespace::WSMAN_MICROSOFT,
        &[
            "DataLocale",
            "SessionId",
            "OperationID",
            "SequenceId",
            "FragmentTransfer",
            "ActivityId",
        ],
    ),
];

impl RequestHeader {
    /// Writes `s:Header`.
    pub fn write(&self, out: &mut XmlWriter) {
        out.raw("<s:Header>").element("a", "To", &self.to);
        if let Some(resource) = &self.resource {
            out.raw("<w:ResourceURI s:mustUnderstand=\"true\">")
                .text(&resource.to_string())
                .raw("</w:ResourceURI>");
        }
        out.raw("<a:ReplyTo><a:Address s:mustUnderstand=\"true\">")
            .raw(ANONYMOUS)
            .raw("</a:Address></a:ReplyTo><a:Action s:mustUnderstand=\"true\">")
            .text(&self.action)
            .raw("</a:Action>");
        if let Some(bytes) = self.max_envelope_bytes {
            out.raw("<w:MaxEnvelopeSize s:mustUnderstand=\"true\">")
                .raw(&bytes.to_string())
                .raw("</w:MaxEnvelopeSize>");
        }
        out.element("a", "MessageID", self.message_id.as_str());
        if let Some(locale) = &self.locale {
            for element in ["w:Locale", "p:DataLocale"] {
                out.raw("<")
                    .raw(element)
                    .attribute("xml:lang", locale)
                    .raw(" s:mustUnderstand=\"false\"/>");
            }
        }
        if let Some(timeout) = self.timeout {
            let millis = timeout.as_millis();
            let fraction = match millis % 1000 {
                0 => String::new(),
                rest => format!(".{rest:03}"),
            };
            out.element(
                "w",
                "OperationTimeout",
                &format!("PT{}{fraction}S", millis / 1000),
            );
        }
        if !self.selectors.is_empty() {
            write_selectors(out, &self.selectors);
        }
        out.raw("</s:Header>");
    }

    /// Reads `s:Header` of a request other than Identify.
    ///
    /// # Errors
    /// The fault that goes with what is wrong.
    pub fn read(header: Element<'_, '_>) -> Result<Self, Fault> {
        for element in header.children() {
            let is_known = KNOWN.iter().any(|(uri, names)| {
                element.namespace() == *uri && names.contains(&element.local())
            });
            if !is_known && element.must_be_understood() {
                return Err(Fault::new(FaultCode::MustUnderstand).because(element.local()));
            }
        }
        let text = |uri: &str, name: &str| header.child(uri, name).map(Element::trimmed);
        let required = |name: &str| {
            text(namespace::ADDRESSING, name)
                .filter(|it| !it.is_empty())
                .ok_or_else(|| {
                    Fault::new(FaultCode::MessageInformationHeaderRequired).because(name)
                })
        };
        let to = required("To")?.to_owned();
        let action = required("Action")?.to_owned();
        let message_id = MessageId::new(required("MessageID")?);
        read_reply_to(header)?;
        let resource = text(namespace::WSMAN, "ResourceURI").ok_or_else(|| {
            Fault::new(FaultCode::DestinationUnreachable).because("ResourceURI is missing.")
        })?;
        let resource = ResourceUri::parse(resource).ok_or_else(|| {
            Fault::new(FaultCode::DestinationUnreachable)
                .with_wsman_code(wsman_code::INVALID_RESOURCE_URI)
                .with_detail("InvalidResourceURI")
        })?;
        let selectors = match header.child(namespace::WSMAN, "SelectorSet") {
            None => BTreeMap::new(),
            Some(set) => read_selectors(set, ReferenceForm::DirectOrWrapped)
                .map_err(|error| Fault::new(FaultCode::InvalidSelectors).because(error))?,
        };
        Ok(Self {
            to,
            resource: Some(resource),
            action,
            message_id,
            max_envelope_bytes: read_max_envelope(header)?,
            timeout: read_timeout(header)?,
            locale: header
                .child(namespace::WSMAN, "Locale")
                .and_then(|it| it.attribute(namespace::XML, "lang"))
                .map(str::to_owned),
            selectors,
        })
    }
}

fn read_reply_to(header: Element<'_, '_>) -> Result<(), Fault> {
    let reply_to = header
        .child(namespace::ADDRESSING, "ReplyTo")
        .and_then(|it| it.child(namespace::ADDRESSING, "Address"))
        .ok_or_else(|| {
            Fault::new(FaultCode::MessageInformationHeaderRequired).because("ReplyTo")
        })?;
    if reply_to.trimmed().eq_ignore_ascii_case(ANONYMOUS) {
        Ok(())
    } else {
        Err(Fault::new(FaultCode::UnsupportedFeature)
            .with_detail("AddressingMode")
            .because("ReplyTo must be anonymous."))
    }
}

fn read_max_envelope(header: Element<'_, '_>) -> Result<Option<u32>, Fault> {
    let Some(element) = header.child(namespace::WSMAN, "MaxEnvelopeSize") else {
        return Ok(None);
    };
    let bytes: u64 = element.trimmed().parse().map_err(|_| {
        Fault::new(FaultCode::SchemaValidationError).because("MaxEnvelopeSize is no number.")
    })?;
    if bytes < MAX_ENVELOPE_LEAST_BYTES.into() {
        return Err(Fault::new(FaultCode::EncodingLimit)
            .with_wsman_code(wsman_code::MIN_ENVELOPE_SIZE)
            .with_detail("MinimumEnvelopeLimit")
            .because("MaxEnvelopeSize is below 8192."));
    }
    Ok(Some(u32::try_from(bytes).unwrap_or(u32::MAX)))
}

fn read_timeout(header: Element<'_, '_>) -> Result<Option<Duration>, Fault> {
    let Some(element) = header.child(namespace::WSMAN, "OperationTimeout") else {
        return Ok(None);
    };
    let interval = CimInterval::parse_iso(element.trimmed()).ok_or_else(|| {
        Fault::new(FaultCode::SchemaValidationError).because("OperationTimeout is no duration.")
    })?;
    Ok(Some(interval.to_duration()))
}
