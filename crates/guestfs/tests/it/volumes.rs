//! Volumes over several disks: dynamic disks of the corpora, LVM and MD made by a Linux guest.

mod ldm;
mod linux;

use block::ReadAt;
use sha2::Digest;

/// SHA-256 of everything, as hexadecimal digits.
pub fn sha256(reader: &dyn ReadAt) -> block::Result<String> {
    range_sha256(reader, 0, reader.size_bytes())
}

/// SHA-256 of a range, read in pieces that fit no chunk.
pub fn range_sha256(reader: &dyn ReadAt, offset: u64, length: u64) -> block::Result<String> {
    let mut hash = sha2::Sha256::new();
    let mut buffer = vec![0; 93_184];
    let (mut at, end) = (offset, offset + length);
    while at < end {
        let here = usize::try_from((end - at).min(buffer.len() as u64)).expect("small");
        reader.read_at(at, &mut buffer[..here])?;
        hash.update(&buffer[..here]);
        at += here as u64;
    }
    Ok(hash
        .finalize()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect())
}
