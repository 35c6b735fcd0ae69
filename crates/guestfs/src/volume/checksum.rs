//! CRC-32 of IEEE 802.3 without the inversions at its ends, which its users do differently.

/// Goes on from `start` over the bytes; the reflected polynomial 0xEDB88320.
pub(crate) fn crc32_from(start: u32, bytes: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new_with_initial(!start);
    hasher.update(bytes);
    !hasher.finalize()
}
