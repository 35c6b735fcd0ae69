//! XML as far as SOAP needs it: a bounded tree that knows namespaces, and a writer.
//!
//! ```text
//!   bytes ── decode (BOM, charset) ──► text ── Document::parse ──► Element ─► Element …
//!   XmlWriter ──► text ── encode ──► bytes
//! ```
//!
//! **Invariants.** A document type is refused, so there are no entities but the five of XML and characters by number. Size, depth,
//! elements, attributes and namespaces are bounded by [`XmlLimits`].
//!
//! **What it does not do.** No order of text among elements: SOAP has no mixed content. Comments and processing instructions
//! are skipped.

mod encoding;
mod tree;
mod writer;

pub use encoding::{Charset, decode, encode};
pub use tree::{Children, Document, Element, XmlLimits};
pub use writer::XmlWriter;

/// The namespaces, under the prefixes that Windows gives them.
pub mod namespace {
    /// `s`: SOAP 1.2.
    pub const SOAP: &str = "http://www.w3.org/2003/05/soap-envelope";
    /// `a`: WS-Addressing of August 2004.
    pub const ADDRESSING: &str = "http://schemas.xmlsoap.org/ws/2004/08/addressing";
    /// `n`: WS-Enumeration.
    pub const ENUMERATION: &str = "http://schemas.xmlsoap.org/ws/2004/09/enumeration";
    /// `x`: WS-Transfer.
    pub const TRANSFER: &str = "http://schemas.xmlsoap.org/ws/2004/09/transfer";
    /// `w`: WS-Management of DMTF.
    pub const WSMAN: &str = "http://schemas.dmtf.org/wbem/wsman/1/wsman.xsd";
    /// `p` in headers: what Microsoft adds to WS-Management.
    pub const WSMAN_MICROSOFT: &str = "http://schemas.microsoft.com/wbem/wsman/1/wsman.xsd";
    /// `cim`: types of CIM.
    pub const CIM: &str = "http://schemas.dmtf.org/wbem/wscim/1/common";
    /// `xsi`: `nil` and `type`.
    pub const XSI: &str = "http://www.w3.org/2001/XMLSchema-instance";
    /// `f`: details of faults.
    pub const FAULT: &str = "http://schemas.microsoft.com/wbem/wsman/1/wsmanfault";
    /// `b`: filters by association.
    pub const BINDING: &str = "http://schemas.dmtf.org/wbem/wsman/1/cimbinding.xsd";
    /// `m`: details of errors of WMI.
    pub const WMI_ERROR: &str = "http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/MSFT_WmiError";
    /// `wsmid`: Identify.
    pub const IDENTITY: &str = "http://schemas.dmtf.org/wbem/wsman/identity/1/wsmanidentity.xsd";
    /// `xml`, always bound.
    pub const XML: &str = "http://www.w3.org/XML/1998/namespace";
}
