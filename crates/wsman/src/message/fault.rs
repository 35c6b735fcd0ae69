//! Faults: what the other side says instead of an answer.
//!
//! ```text
//!   Code  s:Sender / s:Receiver          FaultSide
//!   Subcode  w:TimedOut …                FaultCode
//!   Reason   text, in the language of the host: never compared
//!   Detail   WSManFault Code="2150858…"  wsman_code
//!              ProviderFault → MSFT_WmiError   ProviderError
//! ```
//!
//! **Invariant.** What a caller can do follows from codes alone ([`Fault::kind`]).

use std::fmt;

use crate::xml::{Element, XmlWriter, namespace};
use crate::{Error, ErrorKind};

/// Codes of `WSManFault`, after the names in the Windows SDK (`ERROR_WSMAN_…`): `0x80338000` and a number.
pub mod wsman_code {
    #![expect(missing_docs, reason = "the names are those of the SDK")]
    pub const ACCESS_DENIED: u32 = 5;
    pub const RESOURCE_NOT_FOUND: u32 = 2_150_858_752;
    pub const INVALID_ACTIONURI: u32 = 2_150_858_753;
    pub const PROVIDER_FAILURE: u32 = 2_150_858_755;
    pub const DESTINATION_UNREACHABLE: u32 = 2_150_858_770;
    pub const ACTION_NOT_SUPPORTED: u32 = 2_150_858_771;
    pub const FILTERING_NOT_SUPPORTED: u32 = 2_150_858_776;
    pub const FILTER_DIALECT_UNAVAILABLE: u32 = 2_150_858_777;
    pub const CANNOT_PROCESS_FILTER: u32 = 2_150_858_778;
    pub const INVALID_ENUMERATION_CONTEXT: u32 = 2_150_858_779;
    pub const ENUMERATE_TIMED_OUT: u32 = 2_150_858_780;
    pub const ENVELOPE_TOO_LARGE: u32 = 2_150_858_790;
    pub const OPERATION_TIMEDOUT: u32 = 2_150_858_793;
    pub const CONCURRENCY: u32 = 2_150_858_802;
    pub const ALREADY_EXISTS: u32 = 2_150_858_803;
    pub const ENCODING_LIMIT: u32 = 2_150_858_805;
    pub const INVALID_PARAMETER: u32 = 2_150_858_810;
    pub const INVALID_RESOURCE_URI: u32 = 2_150_858_811;
    pub const INVALID_SELECTORS: u32 = 2_150_858_813;
    pub const QUOTA_LIMIT: u32 = 2_150_858_815;
    pub const SCHEMA_VALIDATION_ERROR: u32 = 2_150_858_817;
    pub const UNSUPPORTED_FEATURE: u32 = 2_150_858_818;
    pub const MAX_ENVELOPE_SIZE_EXCEEDED: u32 = 2_150_858_824;
    pub const PARAMETER_TYPE_MISMATCH: u32 = 2_150_858_836;
    pub const INVALID_PARAMETER_NAME: u32 = 2_150_858_837;
    pub const INVALID_XML_NAMESPACE: u32 = 2_150_858_840;
    pub const INSUFFICIENT_SELECTORS: u32 = 2_150_858_842;
    pub const UNEXPECTED_SELECTORS: u32 = 2_150_858_843;
    pub const INVALID_SELECTOR_VALUE: u32 = 2_150_858_845;
    pub const MIN_ENVELOPE_SIZE: u32 = 2_150_858_878;
    pub const INVALID_URI_WMI_SINGLETON: u32 = 2_150_859_002;
    pub const INVALID_URI_WMI_ENUM_WQL: u32 = 2_150_859_003;
    pub const WMI_SVC_ACCESS_DENIED: u32 = 2_150_859_012;
    pub const WMI_PROVIDER_ACCESS_DENIED: u32 = 2_150_859_013;
    pub const WMI_CANNOT_CONNECT_ACCESS_DENIED: u32 = 2_150_859_014;
    pub const CONCURRENT_OPERATIONS_PER_USER: u32 = 2_150_859_174;
}

/// Errors of WMI (`WBEM_E_…` of the Windows SDK).
pub mod hresult {
    #![expect(missing_docs, reason = "the names are those of the SDK")]
    pub const FAILED: u32 = 0x8004_1001;
    pub const NOT_FOUND: u32 = 0x8004_1002;
    pub const ACCESS_DENIED: u32 = 0x8004_1003;
    pub const INVALID_PARAMETER: u32 = 0x8004_1008;
    pub const NOT_SUPPORTED: u32 = 0x8004_100c;
    pub const INVALID_NAMESPACE: u32 = 0x8004_100e;
    pub const INVALID_CLASS: u32 = 0x8004_1010;
    pub const INVALID_QUERY: u32 = 0x8004_1017;
    pub const INVALID_METHOD_PARAMETERS: u32 = 0x8004_102f;
    pub const INVALID_OBJECT_PATH: u32 = 0x8004_103a;
    pub const QUOTA_VIOLATION: u32 = 0x8004_106c;
    pub const WIN32_ACCESS_DENIED: u32 = 0x8007_0005;
}

/// Who is at fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FaultSide {
    /// The request.
    Sender,
    /// The server.
    Receiver,
}

macro_rules! fault_codes {
    ($($name:ident $local:literal $namespace:ident $prefix:literal $side:ident $code:expr, $reason:literal;)*) => {
        /// The subcode of a fault (DSP0226 §14).
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        #[expect(missing_docs, reason = "the names are those of the specification")]
        pub enum FaultCode {
            $($name,)*
            /// One that is not known here.
            Other,
        }

        impl FaultCode {
            fn entry(self) -> Option<Entry> {
                match self {
                    $(Self::$name => Some(Entry {
                        local: $local,
                        namespace: namespace::$namespace,
                        prefix: $prefix,
                        side: FaultSide::$side,
                        code: $code,
                        reason: $reason,
                    }),)*
                    Self::Other => None,
                }
            }

            /// All that are known.
            pub const ALL: &'static [Self] = &[$(Self::$name),*];
        }
    };
}

struct Entry {
    local: &'static str,
    namespace: &'static str,
    prefix: &'static str,
    side: FaultSide,
    code: u32,
    reason: &'static str,
}

fault_codes! {
    AccessDenied "AccessDenied" WSMAN "w" Sender wsman_code::ACCESS_DENIED, "Access is denied.";
    InvalidSelectors "InvalidSelectors" WSMAN "w" Sender wsman_code::INVALID_SELECTORS,
        "The request contained invalid selectors for the resource.";
    DestinationUnreachable "DestinationUnreachable" ADDRESSING "a" Sender wsman_code::DESTINATION_UNREACHABLE,
        "The service cannot find the resource that the resource URI and selectors name.";
    ActionNotSupported "ActionNotSupported" ADDRESSING "a" Sender wsman_code::ACTION_NOT_SUPPORTED,
        "The action is not supported by the service.";
    InvalidMessageInformationHeader "InvalidMessageInformationHeader" ADDRESSING "a" Sender
        wsman_code::INVALID_PARAMETER, "An addressing header is not valid.";
    MessageInformationHeaderRequired "MessageInformationHeaderRequired" ADDRESSING "a" Sender
        wsman_code::INVALID_PARAMETER, "A required addressing header is not present.";
    EndpointUnavailable "EndpointUnavailable" ADDRESSING "a" Receiver wsman_code::PROVIDER_FAILURE,
        "The service cannot process the message at this time.";
    SchemaValidationError "SchemaValidationError" WSMAN "w" Sender wsman_code::SCHEMA_VALIDATION_ERROR,
        "The SOAP XML in the message does not match the corresponding XML schema definition.";
    InvalidParameter "InvalidParameter" WSMAN "w" Sender wsman_code::INVALID_PARAMETER,
        "A parameter for the operation is not valid.";
    CannotProcessFilter "CannotProcessFilter" ENUMERATION "n" Sender wsman_code::CANNOT_PROCESS_FILTER,
        "The service cannot process the filter: the class, the namespace or the syntax is not valid.";
    FilterDialectRequestedUnavailable "FilterDialectRequestedUnavailable" ENUMERATION "n" Sender
        wsman_code::FILTER_DIALECT_UNAVAILABLE, "The requested filtering dialect is not supported.";
    FilteringNotSupported "FilteringNotSupported" ENUMERATION "n" Sender wsman_code::FILTERING_NOT_SUPPORTED,
        "The service does not support filtered enumeration.";
    InvalidEnumerationContext "InvalidEnumerationContext" ENUMERATION "n" Receiver
        wsman_code::INVALID_ENUMERATION_CONTEXT, "The supplied enumeration context is not valid.";
    TimedOut "TimedOut" WSMAN "w" Receiver wsman_code::OPERATION_TIMEDOUT,
        "The service cannot complete the operation within the time specified in OperationTimeout.";
    EncodingLimit "EncodingLimit" WSMAN "w" Sender wsman_code::ENCODING_LIMIT,
        "An encoding limit of the service was exceeded.";
    QuotaLimit "QuotaLimit" WSMAN "w" Sender wsman_code::QUOTA_LIMIT,
        "The service is busy servicing other requests.";
    Concurrency "Concurrency" WSMAN "w" Sender wsman_code::CONCURRENCY,
        "The action could not be completed due to concurrency or locking problems.";
    AlreadyExists "AlreadyExists" WSMAN "w" Sender wsman_code::ALREADY_EXISTS,
        "The resource already exists.";
    UnsupportedFeature "UnsupportedFeature" WSMAN "w" Sender wsman_code::UNSUPPORTED_FEATURE,
        "The requested feature is not supported.";
    InternalError "InternalError" WSMAN "w" Receiver wsman_code::PROVIDER_FAILURE,
        "The service cannot process the request because the provider failed.";
    MustUnderstand "MustUnderstand" SOAP "s" Sender wsman_code::UNSUPPORTED_FEATURE,
        "A SOAP header with mustUnderstand was not understood.";
    VersionMismatch "VersionMismatch" SOAP "s" Sender wsman_code::INVALID_XML_NAMESPACE,
        "The version of SOAP is not supported.";
}

impl FaultCode {
    fn of(namespace: &str, local: &str) -> Self {
        let is_it = |it: &&Self| {
            it.entry()
                .is_some_and(|entry| entry.local == local && entry.namespace == namespace)
        };
        Self::ALL.iter().find(is_it).copied().unwrap_or(Self::Other)
    }
}

/// What a provider of WMI said.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ProviderError {
    /// `CIMStatusCode` of DSP0200: 6 is "not found".
    pub cim_status: Option<u32>,
    /// An error of WMI or of Windows, as in [`hresult`].
    pub hresult: Option<u32>,
    /// Its text, in the host's language.
    pub message: String,
}

/// What the other side answered instead of what was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// Its subcode.
    pub code: FaultCode,
    /// Who is at fault.
    pub side: FaultSide,
    /// `Code` of `WSManFault`.
    pub wsman_code: Option<u32>,
    /// What it says, for people.
    pub reason: String,
    /// The URI that says more exactly what is wrong.
    pub detail: Option<String>,
    /// What the provider said.
    pub provider: Option<Box<ProviderError>>,
    /// The host that says so, as it names itself.
    pub machine: Option<String>,
}

impl Fault {
    /// A fault with what belongs to its code.
    pub fn new(code: FaultCode) -> Self {
        let entry = code.entry();
        Self {
            code,
            side: entry.as_ref().map_or(FaultSide::Receiver, |it| it.side),
            wsman_code: entry.as_ref().map(|it| it.code),
            reason: entry.map_or("", |it| it.reason).to_owned(),
            detail: None,
            provider: None,
            machine: None,
        }
    }

    /// The same with another code of `WSManFault`.
    #[must_use]
    pub fn with_wsman_code(mut self, code: u32) -> Self {
        self.wsman_code = Some(code);
        self
    }

    /// The same with more said.
    #[must_use]
    pub fn because(mut self, reason: impl fmt::Display) -> Self {
        self.reason = format!("{} {reason}", self.reason);
        self
    }

    /// The same with an exact detail, such as `UnexpectedSelectors`.
    #[must_use]
    pub fn with_detail(mut self, name: &str) -> Self {
        self.detail = Some(format!("{DETAIL}{name}"));
        self
    }

    /// The same, blamed on one side.
    #[must_use]
    pub fn on_side(mut self, side: FaultSide) -> Self {
        self.side = side;
        self
    }

    /// The same with an error of WMI, whose status of CIM follows from it.
    #[must_use]
    pub fn with_hresult(mut self, code: u32, message: impl Into<String>) -> Self {
        self.provider = Some(Box::new(ProviderError {
            cim_status: cim_status(code),
            hresult: Some(code),
            message: message.into(),
        }));
        self
    }

    /// What a caller can do about it.
    pub fn kind(&self) -> ErrorKind {
        let hresult = self.provider.as_ref().and_then(|it| it.hresult);
        match (hresult, self.wsman_code) {
            (Some(hresult::NOT_FOUND | hresult::INVALID_CLASS | hresult::INVALID_NAMESPACE), _) => {
                return ErrorKind::NotFound;
            }
            (Some(hresult::ACCESS_DENIED | hresult::WIN32_ACCESS_DENIED), _) => {
                return ErrorKind::AccessDenied;
            }
            (Some(hresult::QUOTA_VIOLATION), _)
            | (_, Some(wsman_code::CONCURRENT_OPERATIONS_PER_USER)) => {
                return ErrorKind::Busy;
            }
            _ => {}
        }
        match self.code {
            FaultCode::AccessDenied => ErrorKind::AccessDenied,
            // Hosts answer either for an instance that is not there.
            FaultCode::InvalidSelectors | FaultCode::DestinationUnreachable => ErrorKind::NotFound,
            FaultCode::TimedOut => ErrorKind::TimedOut,
            FaultCode::QuotaLimit | FaultCode::Concurrency | FaultCode::EndpointUnavailable => {
                ErrorKind::Busy
            }
            FaultCode::EncodingLimit => ErrorKind::Limit,
            FaultCode::UnsupportedFeature | FaultCode::ActionNotSupported => ErrorKind::Unsupported,
            _ => ErrorKind::Fault,
        }
    }

    /// As an error of the operation that got it.
    pub fn into_error(self) -> Error {
        Error::new(self.kind(), self.to_string()).with_fault(self)
    }

    /// Status of HTTP that goes with it.
    pub fn http_status(&self) -> u16 {
        match self.code {
            FaultCode::SchemaValidationError if self.provider.is_none() => 400,
            _ => 500,
        }
    }

    /// Writes the body of the envelope.
    pub fn write(&self, out: &mut XmlWriter, language: &str) {
        let entry = self.code.entry();
        let side = match self.side {
            FaultSide::Sender => "s:Sender",
            FaultSide::Receiver => "s:Receiver",
        };
        out.raw("<s:Fault><s:Code>");
        match &entry {
            // Two faults of SOAP itself are the code, not the subcode.
            Some(entry) if entry.namespace == namespace::SOAP => {
                out.raw("<s:Value>s:").raw(entry.local).raw("</s:Value>");
            }
            entry => {
                let entry = entry.as_ref();
                let prefix = entry.map_or("w", |it| it.prefix);
                let local = entry.map_or("InternalError", |it| it.local);
                out.element("s", "Value", side)
                    .raw("<s:Subcode>")
                    .element("s", "Value", &format!("{prefix}:{local}"))
                    .raw("</s:Subcode>");
            }
        }
        out.raw("</s:Code><s:Reason><s:Text")
            .attribute("xml:lang", language)
            .raw(">")
            .text(&self.reason)
            .raw("</s:Text></s:Reason><s:Detail>");
        if let Some(detail) = &self.detail {
            out.element("w", "FaultDetail", detail);
        }
        if let Some(code) = self.wsman_code {
            out.raw("<f:WSManFault xmlns:f=\"")
                .raw(namespace::FAULT)
                .raw("\"")
                .attribute("Code", &code.to_string())
                .attribute("Machine", self.machine.as_deref().unwrap_or("localhost"))
                .raw("><f:Message>");
            match &self.provider {
                Some(provider) => write_provider(out, provider),
                None => {
                    out.text(&self.reason);
                }
            }
            out.raw("</f:Message></f:WSManFault>");
        }
        out.raw("</s:Detail></s:Fault>");
    }

    /// Reads `s:Fault`. Lenient: a fault that says little is still a fault.
    pub fn read(fault: Element<'_, '_>) -> Self {
        let code = fault.child(namespace::SOAP, "Code");
        let value = |element: Element<'_, '_>| {
            let value = element.child(namespace::SOAP, "Value")?;
            let (uri, local) = value.resolve_name(value.text());
            Some((uri.to_owned(), local.to_owned()))
        };
        let top = code.and_then(value).unwrap_or_default();
        let mut sub = None;
        let mut next = code.and_then(|it| it.child(namespace::SOAP, "Subcode"));
        // Subcodes nest; the innermost is the most exact, and depth is bounded by the document's.
        while let Some(element) = next {
            sub = value(element).or(sub);
            next = element.child(namespace::SOAP, "Subcode");
        }
        let (uri, local) = sub.unwrap_or_else(|| top.clone());
        let reason = fault
            .child(namespace::SOAP, "Reason")
            .and_then(|it| it.child(namespace::SOAP, "Text"))
            .map(|it| clip(it.trimmed()))
            .unwrap_or_default();
        let detail = fault.child(namespace::SOAP, "Detail");
        let wsman = detail.and_then(|it| it.children().find(|it| it.local() == "WSManFault"));
        let provider = detail.and_then(|it| find_provider(it, 0));
        Self {
            code: FaultCode::of(&uri, &local),
            side: match top.1.as_str() {
                "Receiver" => FaultSide::Receiver,
                _ => FaultSide::Sender,
            },
            wsman_code: wsman
                .and_then(|it| it.attribute("", "Code"))
                .and_then(|it| it.trim().parse().ok()),
            reason: if reason.is_empty() {
                clip(&local)
            } else {
                reason
            },
            detail: detail
                .and_then(|it| it.child(namespace::WSMAN, "FaultDetail"))
                .map(|it| clip(it.trimmed())),
            provider: provider.map(Box::new),
            machine: wsman.and_then(|it| it.attribute("", "Machine")).map(clip),
        }
    }
}

const DETAIL: &str = "http://schemas.dmtf.org/wbem/wsman/1/wsman/faultDetail/";
/// Longest text of a fault that is kept, in characters.
const TEXT_MAX_CHARS: usize = 2000;

fn clip(text: &str) -> String {
    text.chars().take(TEXT_MAX_CHARS).collect()
}

/// `CIMStatusCode` that goes with an error of WMI (DSP0200 §5.2.6).
fn cim_status(code: u32) -> Option<u32> {
    match code {
        hresult::FAILED => Some(1),
        hresult::ACCESS_DENIED | hresult::WIN32_ACCESS_DENIED => Some(2),
        hresult::INVALID_NAMESPACE => Some(3),
        hresult::INVALID_PARAMETER | hresult::INVALID_METHOD_PARAMETERS => Some(4),
        hresult::INVALID_CLASS => Some(5),
        hresult::NOT_FOUND => Some(6),
        hresult::NOT_SUPPORTED => Some(7),
        hresult::INVALID_QUERY => Some(15),
        _ => None,
    }
}

fn write_provider(out: &mut XmlWriter, provider: &ProviderError) {
    out.raw(
        "<f:ProviderFault provider=\"WMI Provider\" path=\"%systemroot%\\system32\\WsmWmiPl.dll\">",
    );
    if !provider.message.is_empty() {
        out.text(&provider.message);
    }
    out.raw("<f:ExtendedError><m:MSFT_WmiError xmlns:m=\"")
        .raw(namespace::WMI_ERROR)
        .raw("\">");
    if let Some(status) = provider.cim_status {
        out.element("m", "CIMStatusCode", &status.to_string());
    }
    if let Some(code) = provider.hresult {
        out.element("m", "error_Code", &code.to_string())
            .element("m", "error_Type", "HRESULT");
    }
    if !provider.message.is_empty() {
        out.element("m", "Message", &provider.message);
    }
    out.raw("</m:MSFT_WmiError></f:ExtendedError></f:ProviderFault>");
}

/// The error of WMI wherever it stands below; hosts nest it differently.
fn find_provider(element: Element<'_, '_>, depth: usize) -> Option<ProviderError> {
    if depth > 16 {
        return None;
    }
    if element.local() == "MSFT_WmiError" {
        let child = |name: &str| element.children().find(|it| it.local() == name);
        let number = |name: &str| child(name).and_then(|it| parse_code(it.trimmed()));
        return Some(ProviderError {
            cim_status: number("CIMStatusCode"),
            hresult: number("error_Code"),
            message: child("Message")
                .map(|it| clip(it.trimmed()))
                .unwrap_or_default(),
        });
    }
    element
        .children()
        .find_map(|it| find_provider(it, depth.saturating_add(1)))
}

/// Decimal, negative decimal (as a signed integer of 32 bits) or hexadecimal.
fn parse_code(text: &str) -> Option<u32> {
    if let Some(hex) = text.strip_prefix("0x") {
        return u32::from_str_radix(hex, 16).ok();
    }
    text.parse::<u32>()
        .ok()
        .or_else(|| text.parse::<i32>().ok().map(i32::cast_unsigned))
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.code.entry() {
            Some(entry) => write!(f, "fault {}:{}", entry.prefix, entry.local)?,
            None => f.write_str("fault")?,
        }
        if let Some(code) = self.wsman_code {
            write!(f, " ({code})")?;
        }
        if let Some(code) = self.provider.as_ref().and_then(|it| it.hresult) {
            write!(f, " (0x{code:08x})")?;
        }
        write!(f, ": {}", self.reason)
    }
}

impl std::error::Error for Fault {}
