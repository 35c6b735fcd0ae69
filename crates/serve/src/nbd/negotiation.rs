//! The first half of a conversation: options, until the client has chosen an export.
//!
//! ```text
//!   server: "NBDMAGIC" "IHAVEOPT" flags:2            client: flags:4
//!   client: "IHAVEOPT" option:4 length:4 data        server: reply-magic:8 option:4 answer:4 length:4 data, …, ACK or error
//!     … until GO (ACK), EXPORT_NAME (size:8 flags:2 [zeros:124]), ABORT, or the client hangs up
//! ```
//!
//! **Invariants.** An option's data is read whole before it is believed, and is bounded; so is the number of options. Every
//! option but `EXPORT_NAME` is answered with `ACK` or an error that says what is wrong.

use std::io::{Read, Write};
use std::sync::Arc;

use super::export::{Export, Exports, NAME_BYTES_MAX};
use super::wire::{self, Fields, Put, answer, info, length_u32, option, read_array};
use crate::{Error, Result};

/// Longest data of an option that is looked at.
const DATA_BYTES_MAX: u32 = 64 << 10;
/// Longest data of an option that is taken in order to refuse it; with more the client is left.
const REFUSED_BYTES_MAX: u32 = 1 << 20;
/// Most options of one client.
const OPTIONS_MAX: usize = 4096;
/// What a client should read at least, and what it may read at most.
const PREFERRED_BYTES: u32 = 64 << 10;
/// Longest request.
pub(super) const REQUEST_BYTES_MAX: u32 = 32 << 20;
const ALLOCATION: &str = "base:allocation";
/// Number of that context in replies.
pub(super) const ALLOCATION_ID: u32 = 1;

/// How results are told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Replies {
    /// A header, then bytes.
    Simple,
    /// Chunks, which can say where holes are and where a read failed.
    Structured,
}

/// Whether the client may ask where data lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Allocation {
    /// It did not ask to.
    Untold,
    /// `base:allocation` was chosen.
    Told,
}

/// What was agreed upon.
pub struct Agreed {
    /// The export.
    pub export: Arc<Export>,
    /// How results are told.
    pub replies: Replies,
    /// Whether `BLOCK_STATUS` is answered.
    pub allocation: Allocation,
}

/// How a negotiation ended.
pub enum Negotiated {
    /// With an export.
    Chosen(Agreed),
    /// The client went its way: it had looked around, or changed its mind.
    Left,
}

/// Talks with a client until it has chosen.
///
/// # Errors
/// [`crate::ErrorKind::Protocol`] when the client does not keep to it, [`crate::ErrorKind::Io`] when it cannot be reached.
pub fn negotiate(
    input: &mut impl Read,
    output: &mut impl Write,
    exports: &Exports,
) -> Result<Negotiated> {
    let mut greeting = Vec::with_capacity(18);
    greeting.put_u64(wire::GREETING);
    greeting.put_u64(wire::OPTION);
    greeting.put_u16(wire::FIXED_NEWSTYLE | wire::NO_ZEROES);
    send(output, &greeting)?;
    let Some(flags) = read_array(input)?.map(u32::from_be_bytes) else {
        return Ok(Negotiated::Left);
    };
    let known = u32::from(wire::FIXED_NEWSTYLE | wire::NO_ZEROES);
    if flags & !known != 0 {
        return Err(Error::protocol(format!("client flags {flags:#x}")));
    }
    let mut state = State {
        exports,
        pads_with_zeros: flags & u32::from(wire::NO_ZEROES) == 0,
        replies: Replies::Simple,
        told: None,
    };
    for _ in 0..OPTIONS_MAX {
        let Some((number, data)) = read_option(input)? else {
            return Ok(Negotiated::Left);
        };
        let mut replies = Vec::new();
        let next = match &data {
            Some(data) => state.answer(number, data, &mut replies)?,
            None => {
                put_reply(&mut replies, number, answer::TOO_BIG, b"that is too long");
                Next::GoOn
            }
        };
        send(output, &replies)?;
        match next {
            Next::GoOn => {}
            Next::Done(end) => return Ok(end),
        }
    }
    Err(Error::protocol(format!(
        "more than {OPTIONS_MAX} options and no choice"
    )))
}

fn send(output: &mut impl Write, bytes: &[u8]) -> Result<()> {
    output
        .write_all(bytes)
        .and_then(|()| output.flush())
        .map_err(|error| Error::io("nothing can be sent", error))
}

/// The next option, without data when that is too long; `None` when the client hung up between options.
fn read_option(input: &mut impl Read) -> Result<Option<(u32, Option<Vec<u8>>)>> {
    let Some(header) = read_array::<16>(input)? else {
        return Ok(None);
    };
    let mut fields = Fields(&header);
    let (Some(magic), Some(number), Some(length)) = (fields.u64(), fields.u32(), fields.u32())
    else {
        return Err(Error::protocol("half an option"));
    };
    if magic != wire::OPTION {
        return Err(Error::protocol(format!(
            "{magic:#x} where an option begins"
        )));
    }
    if length > REFUSED_BYTES_MAX || (number == option::EXPORT_NAME && length > DATA_BYTES_MAX) {
        return Err(Error::protocol(format!(
            "option {number} of {length} bytes"
        )));
    }
    if length > DATA_BYTES_MAX {
        wire::discard(input, u64::from(length))?;
        return Ok(Some((number, None)));
    }
    let mut data = Vec::new();
    let taken = input
        .take(u64::from(length))
        .read_to_end(&mut data)
        .map_err(|error| Error::io("nothing can be received", error))?;
    if length_u32(taken) != length {
        return Err(Error::protocol("it hung up in the middle of an option"));
    }
    Ok(Some((number, Some(data))))
}

fn put_reply(replies: &mut Vec<u8>, option: u32, answer: u32, data: &[u8]) {
    replies.put_u64(wire::OPTION_REPLY);
    replies.put_u32(option);
    replies.put_u32(answer);
    replies.put_u32(length_u32(data.len()));
    replies.extend_from_slice(data);
}

enum Next {
    GoOn,
    Done(Negotiated),
}

/// Why an option is refused: the answer's number and a text.
type Refusal = (u32, &'static str);

const MALFORMED: Refusal = (answer::INVALID, "its data is malformed");
const NO_SUCH_EXPORT: Refusal = (answer::UNKNOWN, "there is no such export");

struct State<'e> {
    exports: &'e Exports,
    pads_with_zeros: bool,
    replies: Replies,
    /// The export that `base:allocation` was chosen for.
    told: Option<Arc<Export>>,
}

/// What `INFO` and `GO` ask.
struct Question {
    export: Arc<Export>,
    wants_name: bool,
    wants_description: bool,
}

impl State<'_> {
    fn answer(&mut self, number: u32, data: &[u8], replies: &mut Vec<u8>) -> Result<Next> {
        let outcome = match number {
            option::EXPORT_NAME => return self.by_name(data, replies),
            option::ABORT => {
                put_reply(replies, number, answer::ACK, &[]);
                return Ok(Next::Done(Negotiated::Left));
            }
            option::LIST => self.list(data, replies),
            option::INFO => self.describe(number, data, replies).map(drop),
            option::GO => match self.describe(number, data, replies) {
                Ok(export) => {
                    put_reply(replies, number, answer::ACK, &[]);
                    return Ok(Next::Done(Negotiated::Chosen(self.agreed(export))));
                }
                Err(refusal) => Err(refusal),
            },
            option::STRUCTURED_REPLY if data.is_empty() => {
                self.replies = Replies::Structured;
                Ok(())
            }
            option::STRUCTURED_REPLY => Err(MALFORMED),
            option::LIST_META_CONTEXT | option::SET_META_CONTEXT => {
                self.contexts(number, data, replies)
            }
            _ => Err((answer::UNSUPPORTED, "this server does not do that")),
        };
        match outcome {
            Ok(()) => put_reply(replies, number, answer::ACK, &[]),
            Err((refusal, why)) => put_reply(replies, number, refusal, why.as_bytes()),
        }
        Ok(Next::GoOn)
    }

    fn agreed(&self, export: Arc<Export>) -> Agreed {
        let is_told = self
            .told
            .as_ref()
            .is_some_and(|told| Arc::ptr_eq(told, &export));
        Agreed {
            export,
            replies: self.replies,
            allocation: if is_told {
                Allocation::Told
            } else {
                Allocation::Untold
            },
        }
    }

    fn export_flags(&self) -> u16 {
        let always = wire::export::HAS_FLAGS
            | wire::export::READ_ONLY
            | wire::export::CAN_MULTI_CONN
            | wire::export::SEND_CACHE;
        match self.replies {
            Replies::Structured => always | wire::export::SEND_DF,
            Replies::Simple => always,
        }
    }

    /// The old way of choosing, which knows no refusal but hanging up.
    fn by_name(&self, data: &[u8], replies: &mut Vec<u8>) -> Result<Next> {
        let name = std::str::from_utf8(data).ok();
        let Some(export) = name.and_then(|name| self.exports.find(name)) else {
            let shown: String = String::from_utf8_lossy(data).chars().take(80).collect();
            return Err(Error::protocol(format!("there is no export {shown:?}")));
        };
        replies.put_u64(export.disk.size_bytes());
        replies.put_u16(self.export_flags());
        if self.pads_with_zeros {
            replies.extend_from_slice(&[0; 124]);
        }
        Ok(Next::Done(Negotiated::Chosen(
            self.agreed(Arc::clone(export)),
        )))
    }

    fn list(&self, data: &[u8], replies: &mut Vec<u8>) -> std::result::Result<(), Refusal> {
        if !data.is_empty() {
            return Err(MALFORMED);
        }
        for export in self.exports.list() {
            let mut entry = Vec::new();
            entry.put_text(&export.name);
            entry.extend_from_slice(export.description.as_bytes());
            put_reply(replies, option::LIST, answer::SERVER, &entry);
        }
        Ok(())
    }

    fn question(&self, data: &[u8]) -> std::result::Result<Question, Refusal> {
        let mut fields = Fields(data);
        let name = fields.text().ok_or(MALFORMED)?;
        let count = fields.u16().ok_or(MALFORMED)?;
        let (mut wants_name, mut wants_description) = (false, false);
        for _ in 0..count {
            match fields.u16().ok_or(MALFORMED)? {
                info::NAME => wants_name = true,
                info::DESCRIPTION => wants_description = true,
                _ => {}
            }
        }
        if !fields.is_empty() || name.len() > NAME_BYTES_MAX {
            return Err(MALFORMED);
        }
        let export = self.exports.find(name).ok_or(NO_SUCH_EXPORT)?;
        Ok(Question {
            export: Arc::clone(export),
            wants_name,
            wants_description,
        })
    }

    /// `INFO`, and `GO` but for its end.
    fn describe(
        &self,
        number: u32,
        data: &[u8],
        replies: &mut Vec<u8>,
    ) -> std::result::Result<Arc<Export>, Refusal> {
        let question = self.question(data)?;
        let export = question.export;
        let mut put_info = |kind: u16, fill: &dyn Fn(&mut Vec<u8>)| {
            let mut entry = Vec::new();
            entry.put_u16(kind);
            fill(&mut entry);
            put_reply(replies, number, answer::INFO, &entry);
        };
        put_info(info::EXPORT, &|entry| {
            entry.put_u64(export.disk.size_bytes());
            entry.put_u16(self.export_flags());
        });
        put_info(info::BLOCK_SIZE, &|entry| {
            entry.put_u32(1);
            entry.put_u32(PREFERRED_BYTES);
            entry.put_u32(REQUEST_BYTES_MAX);
        });
        if question.wants_name {
            put_info(info::NAME, &|entry| {
                entry.extend_from_slice(export.name.as_bytes());
            });
        }
        if question.wants_description && !export.description.is_empty() {
            put_info(info::DESCRIPTION, &|entry| {
                entry.extend_from_slice(export.description.as_bytes());
            });
        }
        Ok(export)
    }

    fn contexts(
        &mut self,
        number: u32,
        data: &[u8],
        replies: &mut Vec<u8>,
    ) -> std::result::Result<(), Refusal> {
        let is_set = number == option::SET_META_CONTEXT;
        if is_set {
            self.told = None;
            if self.replies == Replies::Simple {
                return Err((answer::INVALID, "structured replies come first"));
            }
        }
        let mut fields = Fields(data);
        let name = fields.text().ok_or(MALFORMED)?;
        let count = fields.u32().ok_or(MALFORMED)?;
        let mut is_asked = count == 0 && !is_set;
        for _ in 0..count {
            // Each takes bytes of the data, so that the data bounds the loop.
            let query = fields.text().ok_or(MALFORMED)?;
            is_asked |= query == ALLOCATION || (query == "base:" && !is_set);
        }
        if !fields.is_empty() || name.len() > NAME_BYTES_MAX {
            return Err(MALFORMED);
        }
        let export = self.exports.find(name).ok_or(NO_SUCH_EXPORT)?;
        if is_asked {
            let mut entry = Vec::new();
            entry.put_u32(if is_set { ALLOCATION_ID } else { 0 });
            entry.extend_from_slice(ALLOCATION.as_bytes());
            put_reply(replies, number, answer::META_CONTEXT, &entry);
            if is_set {
                self.told = Some(Arc::clone(export));
            }
        }
        Ok(())
    }
}
