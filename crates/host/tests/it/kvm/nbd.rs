//! A small client of the network block protocol: reads, and which parts a dirty bitmap marks.
//!
//! Source: the protocol's text, <https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md>.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use block::{ByteRange, ReadAt};
use host::boundary::{BatchRead, RangeRead};
use host::{Error, ErrorKind, Result};

const TIMEOUT: Duration = Duration::from_secs(20);
const OPTION_MAGIC: &[u8; 8] = b"IHAVEOPT";
const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
const REQUEST_MAGIC: u32 = 0x2560_9513;
const SIMPLE_MAGIC: u32 = 0x6744_6698;
const STRUCTURED_MAGIC: u32 = 0x668e_33ef;
const OPT_GO: u32 = 7;
const OPT_STRUCTURED: u32 = 8;
const OPT_SET_CONTEXT: u32 = 10;
const REP_ACK: u32 = 1;
const CMD_READ: u16 = 0;
const CMD_STATUS: u16 = 7;
const CHUNK_STATUS: u16 = 5;
const MAX_REQUEST_BYTES: usize = 8 << 20;
const MAX_REPLY_BYTES: u32 = 1 << 20;

/// An export that is open.
pub(super) struct NbdDisk {
    stream: Mutex<UnixStream>,
    size_bytes: u64,
}

impl NbdDisk {
    /// Opens an export for reading.
    pub(super) fn open(socket: &Path, export: &str) -> Result<Self> {
        let mut wire = Wire::connect(socket)?;
        let size_bytes = wire.go(export)?;
        Ok(Self {
            stream: Mutex::new(wire.0),
            size_bytes,
        })
    }

    fn batch(&self, reads: &mut [RangeRead<'_>]) -> Result<()> {
        let mut guard = self.stream.lock().unwrap_or_else(PoisonError::into_inner);
        let mut wire = Wire(guard.try_clone().map_err(broken)?);
        // All requests go out before the first answer is read; answers come in any order.
        let mut pieces: Vec<&mut [u8]> = Vec::new();
        for read in reads {
            let mut offset = read.offset;
            for piece in read.buffer.chunks_mut(MAX_REQUEST_BYTES) {
                let length = u32::try_from(piece.len()).unwrap_or(u32::MAX);
                wire.request(CMD_READ, pieces.len() as u64, offset, length)?;
                offset = offset.saturating_add(u64::from(length));
                pieces.push(piece);
            }
        }
        for _ in 0..pieces.len() {
            expect(u64::from(wire.u32()?), u64::from(SIMPLE_MAGIC))?;
            let code = wire.u32()?;
            let handle = usize::try_from(wire.u64()?).unwrap_or(usize::MAX);
            if code != 0 {
                return Err(Error::new(ErrorKind::Io, format!("NBD error {code}")));
            }
            let piece = pieces
                .get_mut(handle)
                .ok_or_else(|| Error::new(ErrorKind::Protocol, "an answer to no question"))?;
            wire.fill(piece)?;
        }
        *guard = wire.0;
        Ok(())
    }
}

impl ReadAt for NbdDisk {
    fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> block::Result<()> {
        self.read_batch(&mut [RangeRead { offset, buffer }])
    }
}

impl BatchRead for NbdDisk {
    fn read_batch(&self, reads: &mut [RangeRead<'_>]) -> block::Result<()> {
        for read in reads.iter() {
            let end = read.offset.checked_add(read.buffer.len() as u64);
            if end.is_none_or(|end| end > self.size_bytes) {
                return Err(block::Error::new(
                    block::ErrorKind::OutOfRange,
                    format!("{} bytes at {}", read.buffer.len(), read.offset),
                ));
            }
        }
        self.batch(reads).map_err(|error| {
            block::Error::with_source(block::ErrorKind::Io, "read of an export", error)
        })
    }
}

/// Where `bitmap` is dirty, over the whole export.
pub(super) fn dirty(socket: &Path, export: &str, bitmap: &str) -> Result<Vec<ByteRange>> {
    let mut wire = Wire::connect(socket)?;
    wire.option(OPT_STRUCTURED, &[])?;
    wire.finish_option(OPT_STRUCTURED, |_, _| Ok(()))?;
    let context = format!("qemu:dirty-bitmap:{bitmap}");
    let mut data = Vec::new();
    put_text(&mut data, export)?;
    data.extend(1_u32.to_be_bytes());
    put_text(&mut data, &context)?;
    wire.option(OPT_SET_CONTEXT, &data)?;
    let mut is_there = false;
    wire.finish_option(OPT_SET_CONTEXT, |_, payload| {
        is_there |= payload.get(4..) == Some(context.as_bytes());
        Ok(())
    })?;
    if !is_there {
        return Err(Error::new(
            ErrorKind::NotFound,
            format!("the export has no bitmap {bitmap:?}"),
        ));
    }
    let size_bytes = wire.go(export)?;
    let mut dirty = Vec::new();
    let mut at = 0;
    while at < size_bytes {
        let wanted = u32::try_from(size_bytes - at).unwrap_or(1 << 30);
        wire.request(CMD_STATUS, at, at, wanted)?;
        let before = at;
        for (length_bytes, is_dirty) in wire.extents()? {
            if is_dirty {
                dirty.push(ByteRange {
                    offset: at,
                    length_bytes: length_bytes.min(size_bytes.saturating_sub(at)),
                });
            }
            at = at.saturating_add(length_bytes);
        }
        if at == before {
            return Err(Error::new(ErrorKind::Protocol, "extents without length"));
        }
    }
    Ok(dirty)
}

struct Wire(UnixStream);

impl Wire {
    fn connect(socket: &Path) -> Result<Self> {
        let stream = UnixStream::connect(socket).map_err(broken)?;
        stream.set_read_timeout(Some(TIMEOUT)).map_err(broken)?;
        stream.set_write_timeout(Some(TIMEOUT)).map_err(broken)?;
        let mut wire = Self(stream);
        let mut greeting = [0_u8; 18];
        wire.fill(&mut greeting)?;
        if !greeting.starts_with(b"NBDMAGICIHAVEOPT") {
            return Err(Error::new(ErrorKind::Protocol, "no server of NBD"));
        }
        // Fixed newstyle, no zeroes.
        wire.send(&3_u32.to_be_bytes())?;
        Ok(wire)
    }

    fn option(&mut self, option: u32, data: &[u8]) -> Result<()> {
        let mut message = OPTION_MAGIC.to_vec();
        message.extend(option.to_be_bytes());
        message.extend(length_of(data)?.to_be_bytes());
        message.extend(data);
        self.send(&message)
    }

    /// Reads replies up to the one that acknowledges.
    fn finish_option(
        &mut self,
        option: u32,
        mut each: impl FnMut(u32, &[u8]) -> Result<()>,
    ) -> Result<()> {
        loop {
            expect(self.u64()?, OPTION_REPLY_MAGIC)?;
            expect(u64::from(self.u32()?), u64::from(option))?;
            let kind = self.u32()?;
            let length = self.u32()?;
            let payload = self.payload(length)?;
            if kind == REP_ACK {
                return Ok(());
            }
            if kind >= 1 << 31 {
                return Err(Error::new(
                    ErrorKind::NotFound,
                    format!("the server refuses option {option} ({kind:#x})"),
                ));
            }
            each(kind, &payload)?;
        }
    }

    /// Begins transmission; the size of the export.
    fn go(&mut self, export: &str) -> Result<u64> {
        let mut data = Vec::new();
        put_text(&mut data, export)?;
        data.extend(0_u16.to_be_bytes());
        self.option(OPT_GO, &data)?;
        let mut size_bytes = None;
        self.finish_option(OPT_GO, |_, payload| {
            if let (Some([0, 0]), Some(size)) = (payload.get(..2), payload.get(2..10)) {
                size_bytes = size.try_into().ok().map(u64::from_be_bytes);
            }
            Ok(())
        })?;
        size_bytes.ok_or_else(|| Error::new(ErrorKind::Protocol, "an export without a size"))
    }

    fn request(&mut self, command: u16, handle: u64, offset: u64, length: u32) -> Result<()> {
        let mut message = REQUEST_MAGIC.to_be_bytes().to_vec();
        message.extend(0_u16.to_be_bytes());
        message.extend(command.to_be_bytes());
        message.extend(handle.to_be_bytes());
        message.extend(offset.to_be_bytes());
        message.extend(length.to_be_bytes());
        self.send(&message)
    }

    /// The extents of one answer: length, and whether it is dirty.
    fn extents(&mut self) -> Result<Vec<(u64, bool)>> {
        let mut extents = Vec::new();
        loop {
            expect(u64::from(self.u32()?), u64::from(STRUCTURED_MAGIC))?;
            let mut head = [0_u8; 4];
            self.fill(&mut head)?;
            let [_, flags, high, low] = head;
            let kind = u16::from_be_bytes([high, low]);
            self.u64()?;
            let length = self.u32()?;
            let payload = self.payload(length)?;
            if kind >= 1 << 15 {
                return Err(Error::new(
                    ErrorKind::Failed,
                    "the server cannot tell extents",
                ));
            }
            if kind == CHUNK_STATUS {
                for extent in payload.get(4..).unwrap_or_default().chunks_exact(8) {
                    if let ([a, b, c, d], [_, _, _, state]) = (&extent[..4], &extent[4..]) {
                        let length = u32::from_be_bytes([*a, *b, *c, *d]);
                        extents.push((u64::from(length), state & 1 == 1));
                    }
                }
            }
            if flags & 1 == 1 {
                return Ok(extents);
            }
        }
    }

    fn payload(&mut self, length: u32) -> Result<Vec<u8>> {
        if length > MAX_REPLY_BYTES {
            return Err(Error::new(ErrorKind::Protocol, "an overlong answer"));
        }
        let mut payload = vec![0; length as usize];
        self.fill(&mut payload)?;
        Ok(payload)
    }

    fn send(&mut self, bytes: &[u8]) -> Result<()> {
        self.0.write_all(bytes).map_err(broken)
    }

    fn fill(&mut self, buffer: &mut [u8]) -> Result<()> {
        self.0.read_exact(buffer).map_err(broken)
    }

    fn u32(&mut self) -> Result<u32> {
        let mut bytes = [0; 4];
        self.fill(&mut bytes)?;
        Ok(u32::from_be_bytes(bytes))
    }

    fn u64(&mut self) -> Result<u64> {
        let mut bytes = [0; 8];
        self.fill(&mut bytes)?;
        Ok(u64::from_be_bytes(bytes))
    }
}

fn put_text(data: &mut Vec<u8>, text: &str) -> Result<()> {
    data.extend(length_of(text.as_bytes())?.to_be_bytes());
    data.extend(text.as_bytes());
    Ok(())
}

fn length_of(bytes: &[u8]) -> Result<u32> {
    u32::try_from(bytes.len()).map_err(|_| Error::new(ErrorKind::Invalid, "too long for NBD"))
}

fn expect(found: u64, wanted: u64) -> Result<()> {
    if found == wanted {
        Ok(())
    } else {
        Err(Error::new(
            ErrorKind::Protocol,
            format!("{found:#x} where {wanted:#x} belongs"),
        ))
    }
}

fn broken(error: std::io::Error) -> Error {
    Error::with_source(ErrorKind::Io, "the connection to the NBD server", error)
}
