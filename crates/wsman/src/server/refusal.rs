//! An answer that is a fault, whatever was asked: for rehearsing servers that are out of sorts.
//!
//! **Invariant.** Nothing is done for the request; of it only its id is read, so that the fault relates to it.

use crate::message::{AnswerWriter, Fault, MessageId};
use crate::xml::{Charset, Document, XmlLimits, decode, encode, namespace};

use super::Reply;

const FAULT_ACTION: &str = "http://schemas.dmtf.org/wbem/wsman/1/wsman/fault";
const LANGUAGE: &str = "en-US";

/// A fault in answer to a request that is not looked at. `id` is the answer's own.
pub fn refusal(fault: &Fault, charset: Option<&str>, request: &[u8], id: &MessageId) -> Reply {
    let (asked, encoding) = match decode(request, charset) {
        Ok((text, encoding)) => (asked(&text), encoding),
        Err(_) => (None, Charset::Utf8),
    };
    let mut out = AnswerWriter::new(FAULT_ACTION, id, asked.as_ref(), LANGUAGE);
    out.fault(fault, LANGUAGE);
    Reply {
        status: fault.http_status(),
        content_type: format!("application/soap+xml;charset={}", encoding.as_str()),
        body: encode(out.finish().unwrap_or_default(), encoding),
    }
}

fn asked(text: &str) -> Option<MessageId> {
    const ID_MAX_CHARS: usize = 256;
    let document = Document::parse(text, &XmlLimits::default()).ok()?;
    document
        .root()
        .child(namespace::SOAP, "Header")?
        .child(namespace::ADDRESSING, "MessageID")
        .map(|it| MessageId::new(it.trimmed().chars().take(ID_MAX_CHARS).collect::<String>()))
}
