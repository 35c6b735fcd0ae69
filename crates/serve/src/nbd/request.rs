//! Requests of the second half: read from the wire, and what is to be done about each.
//!
//! ```text
//!   magic:4 flags:2 command:2 cookie:8 offset:8 length:4 [length bytes, for WRITE]
//! ```
//!
//! **Invariants.** What comes out of [`plan`] lies inside the disk and within the bounds; the rest is refused with a reason.

use std::io::Read;

use super::negotiation::{Allocation, REQUEST_BYTES_MAX, Replies};
use super::wire::{self, Fault, Fields, command, flag, read_array};
use crate::{Error, Result};

/// A request as it came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Request {
    pub(super) flags: u16,
    pub(super) command: u16,
    /// The client's name for it.
    pub(super) cookie: u64,
    pub(super) offset: u64,
    pub(super) length: u32,
}

/// The next request; `None` when the client hung up between requests. What a client wants to write is thrown away.
pub(super) fn read_request(input: &mut impl Read) -> Result<Option<Request>> {
    let Some(header) = read_array::<28>(input)? else {
        return Ok(None);
    };
    let mut fields = Fields(&header);
    let (Some(magic), Some(flags), Some(command)) = (fields.u32(), fields.u16(), fields.u16())
    else {
        return Err(Error::protocol("half a request"));
    };
    let (Some(cookie), Some(offset), Some(length)) = (fields.u64(), fields.u64(), fields.u32())
    else {
        return Err(Error::protocol("half a request"));
    };
    if magic != wire::REQUEST {
        return Err(Error::protocol(format!(
            "{magic:#x} where a request begins"
        )));
    }
    if command == command::WRITE {
        if length > REQUEST_BYTES_MAX {
            return Err(Error::protocol(format!("a write of {length} bytes")));
        }
        wire::discard(input, u64::from(length))?;
    }
    Ok(Some(Request {
        flags,
        command,
        cookie,
        offset,
        length,
    }))
}

/// What is to be done about a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Task {
    /// Give bytes, in as many pieces as it takes.
    Read,
    /// Give bytes, in one piece.
    ReadWhole,
    /// Say where data lies.
    Status(Descriptors),
    /// Read into the cache.
    Cache,
    /// Say no.
    Refuse(Fault, &'static str),
    /// The client takes its leave.
    Leave,
}

/// How many runs a client wants to hear of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Descriptors {
    One,
    Many,
}

/// Says what is to be done.
pub(super) fn plan(
    request: &Request,
    size_bytes: u64,
    replies: Replies,
    allocation: Allocation,
) -> Task {
    let invalid = |why| Task::Refuse(Fault::Invalid, why);
    let (task, flags_allowed) = match request.command {
        command::DISCONNECT => return Task::Leave,
        command::WRITE | command::TRIM | command::WRITE_ZEROES | command::RESIZE => {
            return Task::Refuse(Fault::NotPermitted, "the export is read-only");
        }
        command::READ if request.flags & flag::DONT_FRAGMENT != 0 => {
            (Task::ReadWhole, flag::DONT_FRAGMENT)
        }
        command::READ => (Task::Read, 0),
        command::CACHE => (Task::Cache, 0),
        command::BLOCK_STATUS if allocation == Allocation::Untold => {
            return invalid("base:allocation was not chosen");
        }
        command::BLOCK_STATUS if request.flags & flag::ONE_DESCRIPTOR != 0 => {
            (Task::Status(Descriptors::One), flag::ONE_DESCRIPTOR)
        }
        command::BLOCK_STATUS => (Task::Status(Descriptors::Many), 0),
        _ => return invalid("an unknown command"),
    };
    if request.flags & !flags_allowed != 0 {
        return invalid("an unknown flag");
    }
    if task == Task::ReadWhole && replies == Replies::Simple {
        return invalid("that flag needs structured replies");
    }
    if request.length == 0 {
        return invalid("nothing was asked for");
    }
    let end = request.offset.checked_add(u64::from(request.length));
    if end.is_none_or(|end| end > size_bytes) {
        return invalid("that reaches behind the end of the disk");
    }
    if matches!(task, Task::Read | Task::ReadWhole) && request.length > REQUEST_BYTES_MAX {
        return Task::Refuse(Fault::Overflow, "more than 32 MiB at once");
    }
    task
}
