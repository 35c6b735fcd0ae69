//! The yardstick: what reading, hashing and compressing cost by themselves.
//!
//! All cores; each takes 8 MiB of the file at a time, skips holes and zero blocks, hashes every 64 KiB block with BLAKE3 and
//! compresses it with zstd level 1 into a buffer that it throws away. Nothing is encrypted, checked or written.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use anyhow::{Context, Result, anyhow};

const BLOCK_SIZE_BYTES: usize = 64 << 10;
const STEP_BYTES: u64 = 8 << 20;

/// Runs the loop over a file and prints what it saw as one JSON object.
pub(crate) fn run(path: &Path) -> Result<()> {
    let file = File::open(path).with_context(|| format!("opening {}", path.display()))?;
    let size_bytes = file.metadata()?.len();
    let next = AtomicU64::new(0);
    let threads = thread::available_parallelism().map_or(2, usize::from);
    let totals = thread::scope(|scope| {
        let workers: Vec<_> = (0..threads)
            .map(|_| scope.spawn(|| work(&file, size_bytes, &next)))
            .collect();
        workers
            .into_iter()
            .map(|worker| worker.join().map_err(|_| anyhow!("a worker panicked"))?)
            .collect::<Result<Vec<(u64, u64)>>>()
    })?;
    let hashed: u64 = totals.iter().map(|total| total.0).sum();
    let packed: u64 = totals.iter().map(|total| total.1).sum();
    println!("{{\"bytes_hashed\": {hashed}, \"bytes_compressed\": {packed}}}");
    Ok(())
}

/// One core's share: bytes hashed, bytes after compression.
fn work(file: &File, size_bytes: u64, next: &AtomicU64) -> Result<(u64, u64)> {
    let mut buffer = vec![0u8; usize::try_from(STEP_BYTES)?];
    let mut packed = vec![0u8; zstd::zstd_safe::compress_bound(BLOCK_SIZE_BYTES)];
    let zeros = vec![0u8; BLOCK_SIZE_BYTES];
    let mut compressor = zstd::bulk::Compressor::new(1)?;
    let mut hasher = blake3::Hasher::new_derive_key("hikae bench block");
    let mut totals = (0u64, 0u64);
    loop {
        let offset = next.fetch_add(STEP_BYTES, Ordering::Relaxed);
        if offset >= size_bytes {
            return Ok(totals);
        }
        let end = size_bytes.min(offset + STEP_BYTES);
        match rustix::fs::seek(file, rustix::fs::SeekFrom::Data(offset)) {
            Ok(data) if data < end => {}
            Ok(_) | Err(rustix::io::Errno::NXIO) => continue,
            Err(error) => return Err(error).context("looking for data"),
        }
        let length = usize::try_from(end - offset)?;
        let Some(step) = buffer.get_mut(..length) else {
            continue;
        };
        file.read_exact_at(step, offset)?;
        for block in step.chunks(BLOCK_SIZE_BYTES) {
            if zeros.starts_with(block) {
                continue;
            }
            hasher.reset();
            hasher.update(block);
            std::hint::black_box(hasher.finalize());
            let stored = compressor.compress_to_buffer(block, packed.as_mut_slice())?;
            std::hint::black_box(packed.get(..stored));
            totals.0 += u64::try_from(block.len())?;
            totals.1 += u64::try_from(stored)?;
        }
    }
}
