//! Answers to requests.
//!
//! ```text
//!   simple:      magic:4 error:4 cookie:8 [bytes]
//!   structured:  magic:4 flags:2 type:2 cookie:8 length:4 payload      one or more; the last has the flag DONE
//!                  OFFSET_DATA offset:8 bytes │ OFFSET_HOLE offset:8 length:4 │ BLOCK_STATUS id:4 (length:4 state:4)…
//!                  ERROR fault:4 length:2 text │ ERROR_OFFSET fault:4 length:2 text offset:8
//! ```
//!
//! **Invariants.** At most [`PIECE_BYTES`] of a disk, and their headers, are in memory for one request. Chunks of different
//! requests may alternate on the wire, simple replies never do. A failure behind a simple reply's header cannot be told any
//! more: then the client is left.

use std::io::{self, Write};
use std::sync::{Mutex, PoisonError};

use block::{ErrorKind, ExtentKind, ReadAt};

use super::negotiation::{ALLOCATION_ID, Agreed, Replies};
use super::request::{Descriptors, Request, Task};
use super::wire::{self, Fault, Put, chunk, length_u32};

/// Bytes of a disk that one request holds in memory.
pub(super) const PIECE_BYTES: u32 = 1 << 20;
/// Most runs that one answer tells.
const DESCRIPTORS_MAX: usize = 8192;
const CHUNK_HEADER_BYTES: usize = 20;

/// Whether an answer could be given as it should.
pub(super) enum Given {
    Done,
    /// The disk could not be read at this offset; the client was told, or left.
    Failed(u64, block::Error),
}

/// The answering side of one client. Many workers may use it at once, each with a buffer of its own.
pub(super) struct Answers<'a, W> {
    pub(super) agreed: &'a Agreed,
    pub(super) output: &'a Mutex<W>,
}

fn to_usize(length: u32) -> usize {
    usize::try_from(length).unwrap_or(usize::MAX)
}

fn is_zeros(kind: ExtentKind) -> bool {
    matches!(kind, ExtentKind::Zero | ExtentKind::Unallocated)
}

/// Begins a chunk whose payload of `length` bytes is still to come.
fn begin_chunk(buffer: &mut Vec<u8>, cookie: u64, kind: u16, is_last: bool, length: u32) {
    buffer.put_u32(wire::STRUCTURED_REPLY);
    buffer.put_u16(if is_last { chunk::DONE } else { 0 });
    buffer.put_u16(kind);
    buffer.put_u64(cookie);
    buffer.put_u32(length);
}

/// The next run of zeros or of data, bounded by `limit_bytes`, as (length, is zeros).
fn run_at(disk: &dyn ReadAt, offset: u64, limit_bytes: u32) -> block::Result<(u32, bool)> {
    let extent = disk.extent_at(offset, u64::from(limit_bytes))?;
    let length = u32::try_from(extent.length_bytes)
        .unwrap_or(u32::MAX)
        .min(limit_bytes);
    if length == 0 {
        let what = format!("the disk tells nothing about what lies at {offset}");
        return Err(block::Error::new(ErrorKind::Corrupt, what));
    }
    Ok((length, is_zeros(extent.kind)))
}

impl<W: Write> Answers<'_, W> {
    fn send(&self, bytes: &[u8]) -> io::Result<()> {
        let mut output = self.output.lock().unwrap_or_else(PoisonError::into_inner);
        output.write_all(bytes)?;
        output.flush()
    }

    fn disk(&self) -> &dyn ReadAt {
        self.agreed.export.disk.as_ref()
    }

    /// Answers one request that is not a farewell.
    ///
    /// # Errors
    /// When nothing more can be sent to the client.
    pub(super) fn give(
        &self,
        request: &Request,
        task: Task,
        buffer: &mut Vec<u8>,
    ) -> io::Result<Given> {
        buffer.clear();
        match (task, self.agreed.replies) {
            (Task::Read, Replies::Structured) => self.read_in_chunks(request, buffer),
            (Task::Read, Replies::Simple) => self.read_simply(request, buffer),
            (Task::ReadWhole, _) => self.read_whole(request, buffer),
            (Task::Status(descriptors), _) => self.status(request, descriptors, buffer),
            (Task::Cache, _) => self.fill_cache(request, buffer),
            (Task::Refuse(fault, why), _) => {
                self.refuse(request, fault, why, None, buffer)?;
                Ok(Given::Done)
            }
            (Task::Leave, _) => Ok(Given::Done),
        }
    }

    /// Tells a failure, at an offset if it has one. What the buffer holds is sent before it.
    pub(super) fn refuse(
        &self,
        request: &Request,
        fault: Fault,
        why: &str,
        at: Option<u64>,
        buffer: &mut Vec<u8>,
    ) -> io::Result<()> {
        match self.agreed.replies {
            Replies::Simple => {
                buffer.put_u32(wire::SIMPLE_REPLY);
                buffer.put_u32(fault.number());
                buffer.put_u64(request.cookie);
            }
            Replies::Structured => {
                let text = why
                    .as_bytes()
                    .get(..why.len().min(1024))
                    .unwrap_or_default();
                let kind = match at {
                    Some(_) => chunk::ERROR_OFFSET,
                    None => chunk::ERROR,
                };
                let fixed_bytes = if at.is_some() { 14 } else { 6 };
                let length = length_u32(text.len()).saturating_add(fixed_bytes);
                begin_chunk(buffer, request.cookie, kind, true, length);
                buffer.put_u32(fault.number());
                buffer.put_u16(u16::try_from(text.len()).unwrap_or(0));
                buffer.extend_from_slice(text);
                if let Some(offset) = at {
                    buffer.put_u64(offset);
                }
            }
        }
        self.send(buffer)
    }

    /// Tells that the disk could not be read.
    fn failed(
        &self,
        request: &Request,
        offset: u64,
        error: block::Error,
        buffer: &mut Vec<u8>,
    ) -> io::Result<Given> {
        // Why is for whoever serves; what lies in a repository is not the client's business.
        let why = "the disk could not be read there";
        let at = (self.agreed.replies == Replies::Structured).then_some(offset);
        self.refuse(request, Fault::Io, why, at, buffer)?;
        Ok(Given::Failed(offset, error))
    }

    /// Appends bytes of the disk to the buffer.
    fn append(&self, offset: u64, length: u32, buffer: &mut Vec<u8>) -> block::Result<()> {
        let start = buffer.len();
        buffer.resize(start.saturating_add(to_usize(length)), 0);
        let read = match buffer.get_mut(start..) {
            Some(bytes) => self.disk().read_at(offset, bytes),
            None => Ok(()),
        };
        if read.is_err() {
            buffer.truncate(start);
        }
        read
    }

    fn read_in_chunks(&self, request: &Request, buffer: &mut Vec<u8>) -> io::Result<Given> {
        let (mut at, mut left) = (request.offset, request.length);
        while left > 0 {
            let room = to_usize(PIECE_BYTES).saturating_sub(buffer.len());
            if room < to_usize(PIECE_BYTES) / 4 {
                self.send(buffer)?;
                buffer.clear();
                continue;
            }
            let (length, is_hole) = match run_at(self.disk(), at, left) {
                Ok(run) => run,
                Err(error) => return self.failed(request, at, error, buffer),
            };
            if is_hole {
                let is_last = length == left;
                begin_chunk(buffer, request.cookie, chunk::OFFSET_HOLE, is_last, 12);
                buffer.put_u64(at);
                buffer.put_u32(length);
                left = left.saturating_sub(length);
                at = at.saturating_add(u64::from(length));
                continue;
            }
            let length = length.min(length_u32(room));
            let is_last = length == left;
            let header = buffer.len();
            let payload = length.saturating_add(8);
            begin_chunk(buffer, request.cookie, chunk::OFFSET_DATA, is_last, payload);
            buffer.put_u64(at);
            if let Err(error) = self.append(at, length, buffer) {
                buffer.truncate(header);
                return self.failed(request, at, error, buffer);
            }
            left = left.saturating_sub(length);
            at = at.saturating_add(u64::from(length));
        }
        self.send(buffer)?;
        Ok(Given::Done)
    }

    fn read_whole(&self, request: &Request, buffer: &mut Vec<u8>) -> io::Result<Given> {
        if request.length > PIECE_BYTES {
            let why = "more than 1 MiB in one piece";
            self.refuse(request, Fault::Overflow, why, None, buffer)?;
            return Ok(Given::Done);
        }
        let payload = request.length.saturating_add(8);
        begin_chunk(buffer, request.cookie, chunk::OFFSET_DATA, true, payload);
        buffer.put_u64(request.offset);
        if let Err(error) = self.append(request.offset, request.length, buffer) {
            buffer.clear();
            return self.failed(request, request.offset, error, buffer);
        }
        self.send(buffer)?;
        Ok(Given::Done)
    }

    fn read_simply(&self, request: &Request, buffer: &mut Vec<u8>) -> io::Result<Given> {
        let (mut at, mut left) = (request.offset, request.length);
        buffer.put_u32(wire::SIMPLE_REPLY);
        buffer.put_u32(0);
        buffer.put_u64(request.cookie);
        let first = left.min(PIECE_BYTES);
        if let Err(error) = self.append(at, first, buffer) {
            buffer.clear();
            return self.failed(request, at, error, buffer);
        }
        // Held over all pieces: nothing may come between them.
        let mut output = self.output.lock().unwrap_or_else(PoisonError::into_inner);
        output.write_all(buffer)?;
        left = left.saturating_sub(first);
        at = at.saturating_add(u64::from(first));
        while left > 0 {
            let length = left.min(PIECE_BYTES);
            buffer.clear();
            if let Err(error) = self.append(at, length, buffer) {
                // The header has promised them, so that leaving is the only way to say no.
                drop(output);
                return Err(io::Error::other(error));
            }
            output.write_all(buffer)?;
            left = left.saturating_sub(length);
            at = at.saturating_add(u64::from(length));
        }
        output.flush()?;
        Ok(Given::Done)
    }

    fn status(
        &self,
        request: &Request,
        descriptors: Descriptors,
        buffer: &mut Vec<u8>,
    ) -> io::Result<Given> {
        let most = match descriptors {
            Descriptors::One => 1,
            Descriptors::Many => DESCRIPTORS_MAX,
        };
        let mut runs: Vec<(u32, bool)> = Vec::new();
        let (mut at, mut left) = (request.offset, request.length);
        while left > 0 {
            let (length, is_hole) = match run_at(self.disk(), at, left) {
                Ok(run) => run,
                // What is known already is an answer; the rest is asked for again.
                Err(_) if !runs.is_empty() => break,
                Err(error) => return self.failed(request, at, error, buffer),
            };
            let count = runs.len();
            match runs.last_mut() {
                Some((sum, last)) if *last == is_hole => *sum = sum.saturating_add(length),
                _ if count >= most => break,
                _ => runs.push((length, is_hole)),
            }
            left = left.saturating_sub(length);
            at = at.saturating_add(u64::from(length));
        }
        let payload = length_u32(runs.len().saturating_mul(8)).saturating_add(4);
        buffer.reserve(CHUNK_HEADER_BYTES.saturating_add(to_usize(payload)));
        begin_chunk(buffer, request.cookie, chunk::BLOCK_STATUS, true, payload);
        buffer.put_u32(ALLOCATION_ID);
        for (length, is_hole) in runs {
            buffer.put_u32(length);
            buffer.put_u32(if is_hole {
                wire::STATE_HOLE_OF_ZEROS
            } else {
                wire::STATE_DATA
            });
        }
        self.send(buffer)?;
        Ok(Given::Done)
    }

    /// Reads what was asked for, so that the cache has it, and says so.
    fn fill_cache(&self, request: &Request, buffer: &mut Vec<u8>) -> io::Result<Given> {
        let (mut at, mut left) = (request.offset, request.length.min(PIECE_BYTES));
        while left > 0 {
            // Small enough not to pass the cache by.
            let length = left.min(64 << 10);
            if let Err(error) = self.append(at, length, buffer) {
                buffer.clear();
                return self.failed(request, at, error, buffer);
            }
            buffer.clear();
            left = left.saturating_sub(length);
            at = at.saturating_add(u64::from(length));
        }
        buffer.put_u32(wire::SIMPLE_REPLY);
        buffer.put_u32(0);
        buffer.put_u64(request.cookie);
        self.send(buffer)?;
        Ok(Given::Done)
    }
}
