//! What a fuzzer's input means: up to four sparse files.
//!
//! ```text
//!   header: 4 × u64 LE size in bytes (0: no such file), u16 LE number of runs
//!   runs:   file u8, 0, sectors u16 LE, first sector u32 LE       8 bytes each
//!   data:   512 bytes per sector of every run, in their order; what is missing reads as zeros
//! ```
//! Any bytes are a case: what does not fit is cut. An image of terabytes with little in it is a small input, and a
//! change of one byte of the input is a change of one byte of an image.

use std::io::Read;

/// Files of a case.
pub const FILES: usize = 4;
/// Bytes of a sector.
pub const SECTOR_BYTES: usize = 512;
/// Writes files as an input; `None` when more than `limit_bytes` would be needed or they are too large to be told.
///
/// # Errors
/// What reading them answers.
pub fn encode(files: &mut [&mut dyn Read], limit_bytes: usize) -> std::io::Result<Option<Vec<u8>>> {
    let mut sizes = [0_u64; FILES];
    let mut runs = Vec::new();
    let mut data = Vec::new();
    for ((index, file), size) in (0_u8..).zip(files).zip(&mut sizes) {
        let mut open: Option<(u32, u16)> = None;
        for number in 0_u32.. {
            let mut sector = Vec::new();
            let read = file.take(SECTOR_BYTES as u64).read_to_end(&mut sector)?;
            *size += read as u64;
            if read == 0 || sector.iter().all(|byte| *byte == 0) {
                runs.extend(open.take().map(|run| (index, run)));
                if read == 0 {
                    break;
                }
                continue;
            }
            if data.len() + SECTOR_BYTES > limit_bytes {
                return Ok(None);
            }
            sector.resize(SECTOR_BYTES, 0);
            data.append(&mut sector);
            open = match open.take() {
                Some((first, count)) if count < u16::MAX => Some((first, count + 1)),
                full => {
                    runs.extend(full.map(|run| (index, run)));
                    Some((number, 1))
                }
            };
        }
    }
    let mut input = Vec::new();
    for size in sizes {
        input.extend_from_slice(&size.to_le_bytes());
    }
    let Ok(count) = u16::try_from(runs.len()) else {
        return Ok(None);
    };
    input.extend_from_slice(&count.to_le_bytes());
    for (index, (first, count)) in runs {
        input.extend_from_slice(&[index, 0]);
        input.extend_from_slice(&count.to_le_bytes());
        input.extend_from_slice(&first.to_le_bytes());
    }
    input.extend_from_slice(&data);
    Ok((input.len() <= limit_bytes && !data.is_empty()).then_some(input))
}
