//! Compressed clusters: raw deflate with a 4 KiB window ("zlib" in QEMU's words) and zstd. Pure.
//!
//! **Invariants.** Output is exactly one cluster or an error; input behind the end of the stream is ignored, since the
//! stored length is rounded up to 512 bytes. Memory is bounded: a zstd frame that asks for a window above 16 MiB is refused.

use flate2::{Compress, Decompress, FlushCompress, FlushDecompress, Status};
use zstd::stream::raw::{CParameter, DParameter, Decoder, Encoder, InBuffer, Operation, OutBuffer};

use crate::field::{bytes, index};
use crate::{Error, Result};

/// Greatest zstd window accepted, as a power of two.
const MAX_WINDOW_LOG: u32 = 24;
/// Deflate window that QEMU uses for both directions.
const DEFLATE_WINDOW_BITS: u8 = 12;

/// How compressed clusters of an image are compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Compression {
    /// Raw deflate (RFC 1951); every reader knows it.
    Zlib,
    /// Zstandard frames; QEMU 5.1 and newer.
    Zstd,
}

/// Decompresses one cluster into `output`, which is exactly a cluster long.
pub(super) fn decompress(
    compression: Compression,
    input: &[u8],
    output: &mut [u8],
    guest: u64,
) -> Result<()> {
    let fail = |detail: String| {
        Error::corrupt(format!(
            "qcow2 compressed cluster of guest offset {guest:#x}: {detail}"
        ))
    };
    match compression {
        Compression::Zlib => {
            let mut inflate = Decompress::new(false);
            inflate
                .decompress(input, output, FlushDecompress::Finish)
                .map_err(|error| fail(error.to_string()))?;
            if inflate.total_out() != bytes(output.len()) {
                return Err(fail(format!(
                    "{} bytes came out instead of {}",
                    inflate.total_out(),
                    output.len()
                )));
            }
            Ok(())
        }
        Compression::Zstd => unzstd(input, output).map_err(fail),
    }
}

fn unzstd(input: &[u8], output: &mut [u8]) -> std::result::Result<(), String> {
    let wanted = output.len();
    let mut decoder = Decoder::new().map_err(|error| error.to_string())?;
    decoder
        .set_parameter(DParameter::WindowLogMax(MAX_WINDOW_LOG))
        .map_err(|error| error.to_string())?;
    let mut source = InBuffer::around(input);
    let mut target = OutBuffer::around(output);
    while target.pos() < wanted {
        let before = (source.pos(), target.pos());
        decoder
            .run(&mut source, &mut target)
            .map_err(|error| error.to_string())?;
        if (source.pos(), target.pos()) == before {
            return Err(format!(
                "{} bytes came out instead of {wanted}",
                target.pos()
            ));
        }
    }
    Ok(())
}

/// Compresses one cluster; `None` when that does not make it smaller.
pub(super) fn compress(compression: Compression, input: &[u8]) -> Result<Option<Vec<u8>>> {
    let room = input.len().saturating_sub(1);
    let mut output = vec![0u8; room];
    let length = match compression {
        Compression::Zlib => {
            let mut deflate = Compress::new_with_window_bits(
                flate2::Compression::default(),
                false,
                DEFLATE_WINDOW_BITS,
            );
            let status = deflate
                .compress(input, &mut output, FlushCompress::Finish)
                .map_err(|error| Error::with_source(crate::ErrorKind::Io, "deflate", error))?;
            if status == Status::StreamEnd {
                Some(index(deflate.total_out()))
            } else {
                None
            }
        }
        Compression::Zstd => zstd_into(input, &mut output)
            .map_err(|error| Error::with_source(crate::ErrorKind::Io, "zstd", error))?,
    };
    Ok(length.map(|length| {
        output.truncate(length);
        output
    }))
}

fn zstd_into(input: &[u8], output: &mut [u8]) -> std::io::Result<Option<usize>> {
    let mut encoder = Encoder::new(3)?;
    // The window never needs to exceed the cluster; a small frame stays readable with little memory.
    encoder.set_parameter(CParameter::WindowLog(21))?;
    let mut source = InBuffer::around(input);
    let mut target = OutBuffer::around(output);
    let room = target.capacity();
    while source.pos() < input.len() && target.pos() < room {
        encoder.run(&mut source, &mut target)?;
    }
    if source.pos() < input.len() {
        return Ok(None);
    }
    while target.pos() < room {
        if encoder.finish(&mut target, true)? == 0 {
            return Ok(Some(target.pos()));
        }
    }
    Ok(None)
}
