//! Compressing and decompressing blobs, with contexts and buffers that each thread keeps.
//!
//! **Invariants.** A blob that does not shrink by a sixteenth is stored as it is, so that reading it costs nothing.
//! Decompression writes into a buffer of the expected length and can never grow beyond it.

use std::cell::RefCell;

use crate::config::Compression;
use crate::format::Codec;
use crate::{Error, ErrorKind, Result};

/// What one thread keeps.
struct Contexts {
    compressor: Option<(i32, zstd::bulk::Compressor<'static>)>,
    decompressor: Option<zstd::bulk::Decompressor<'static>>,
    buffer: Vec<u8>,
}

thread_local! {
    static CONTEXTS: RefCell<Contexts> =
        const { RefCell::new(Contexts { compressor: None, decompressor: None, buffer: Vec::new() }) };
}

fn local(what: &'static str) -> impl FnOnce(std::io::Error) -> Error {
    move |source| Error::local(what, source)
}

/// Compresses one blob; gives how, and the bytes.
///
/// # Errors
/// [`ErrorKind::Local`] when a context cannot be made.
pub(crate) fn compress(compression: Compression, plain: &[u8]) -> Result<(Codec, Vec<u8>)> {
    let worthwhile = plain.len().saturating_sub(plain.len() / 16);
    let stored = || Ok((Codec::Stored, plain.to_vec()));
    match compression {
        Compression::None => stored(),
        Compression::Zstd(level) => CONTEXTS.with_borrow_mut(|contexts| {
            let length = contexts.zstd(level, plain)?;
            match contexts.buffer.get(..length) {
                Some(bytes) if length < worthwhile => Ok((Codec::Zstd, bytes.to_vec())),
                _ => stored(),
            }
        }),
        Compression::Lz4 => CONTEXTS.with_borrow_mut(|contexts| {
            let bound = lz4_flex::block::get_maximum_output_size(plain.len());
            contexts.buffer.resize(contexts.buffer.len().max(bound), 0);
            let length = lz4_flex::block::compress_into(plain, &mut contexts.buffer)
                .map_err(|error| Error::new(ErrorKind::Local, "lz4").caused_by(error))?;
            match contexts.buffer.get(..length) {
                Some(bytes) if length < worthwhile => Ok((Codec::Lz4, bytes.to_vec())),
                _ => stored(),
            }
        }),
    }
}

impl Contexts {
    /// Compresses into the buffer; how many bytes.
    fn zstd(&mut self, level: i32, plain: &[u8]) -> Result<usize> {
        if self
            .compressor
            .as_ref()
            .is_none_or(|(kept, _)| *kept != level)
        {
            let compressor = zstd::bulk::Compressor::new(level).map_err(local("a zstd context"))?;
            self.compressor = Some((level, compressor));
        }
        let bound = zstd::zstd_safe::compress_bound(plain.len());
        if self.buffer.len() < bound {
            self.buffer.resize(bound, 0);
        }
        match &mut self.compressor {
            Some((_, compressor)) => compressor
                .compress_to_buffer(plain, self.buffer.as_mut_slice())
                .map_err(local("zstd")),
            None => Err(Error::new(ErrorKind::Local, "a zstd context")),
        }
    }
}

/// Decompresses `stored` into the whole of `plain`; `false` when it does not decode to exactly that many bytes.
///
/// # Errors
/// [`ErrorKind::Local`] when a context cannot be made.
pub(crate) fn decompress_into(codec: Codec, stored: &[u8], plain: &mut [u8]) -> Result<bool> {
    match codec {
        Codec::Stored => {
            let fits = stored.len() == plain.len();
            if fits {
                plain.copy_from_slice(stored);
            }
            Ok(fits)
        }
        Codec::Zstd => CONTEXTS.with_borrow_mut(|contexts| {
            if contexts.decompressor.is_none() {
                let made = zstd::bulk::Decompressor::new().map_err(local("a zstd context"))?;
                contexts.decompressor = Some(made);
            }
            let length = plain.len();
            Ok(contexts.decompressor.as_mut().is_some_and(|decompressor| {
                decompressor
                    .decompress_to_buffer(stored, plain)
                    .is_ok_and(|got| got == length)
            }))
        }),
        Codec::Lz4 => {
            let length = plain.len();
            Ok(lz4_flex::block::decompress_into(stored, plain).is_ok_and(|got| got == length))
        }
    }
}
