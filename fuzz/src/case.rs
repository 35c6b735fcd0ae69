//! What a fuzzer's input means: up to four sparse files.
//!
//! ```text
//!   header: 4 × u64 LE size in bytes (0: no such file), u16 LE number of runs
//!   runs:   file u8, 0, sectors u16 LE, first sector u32 LE       8 bytes each
//!   data:   512 bytes per sector of every run, in their order; what is missing reads as zeros
//! ```
//! Any bytes are a case: what does not fit is cut. An image of terabytes with little in it is a small input, and a
//! change of one byte of the input is a change of one byte of an image.

/// Files of a case.
pub const FILES: usize = 4;
/// Bytes of a sector.
pub const SECTOR_BYTES: usize = 512;
/// Writes files as an input; `None` when more than `limit_bytes` would be needed or they are too large to be told.
pub fn encode(files: &[&[u8]], limit_bytes: usize) -> Option<Vec<u8>> {
    let mut sizes = [0_u64; FILES];
    let mut runs = Vec::new();
    let mut data = Vec::new();
    for (index, file) in files.iter().enumerate() {
        *sizes.get_mut(index)? = u64::try_from(file.len()).ok()?;
        let mut open: Option<(u32, u16)> = None;
        for (number, sector) in file.chunks(SECTOR_BYTES).enumerate() {
            if sector.iter().all(|byte| *byte == 0) {
                runs.extend(open.take().map(|run| (index, run)));
                continue;
            }
            if data.len() + SECTOR_BYTES > limit_bytes {
                return None;
            }
            data.extend_from_slice(sector);
            data.resize(data.len().next_multiple_of(SECTOR_BYTES), 0);
            open = match open.take() {
                Some((first, count)) if count < u16::MAX => Some((first, count + 1)),
                full => {
                    runs.extend(full.map(|run| (index, run)));
                    Some((u32::try_from(number).ok()?, 1))
                }
            };
        }
        runs.extend(open.map(|run| (index, run)));
    }
    let mut input = Vec::new();
    for size in sizes {
        input.extend_from_slice(&size.to_le_bytes());
    }
    input.extend_from_slice(&u16::try_from(runs.len()).ok()?.to_le_bytes());
    for (index, (first, count)) in runs {
        input.extend_from_slice(&[u8::try_from(index).ok()?, 0]);
        input.extend_from_slice(&count.to_le_bytes());
        input.extend_from_slice(&first.to_le_bytes());
    }
    input.extend_from_slice(&data);
    (input.len() <= limit_bytes).then_some(input)
}
