//! Numbers and bytes from a seed (SplitMix64), so that every run of the benchmark sees the same disks.

/// A small generator; its sequence is part of the benchmark's definition.
#[derive(Debug, Clone)]
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// A number below `limit`, which is not zero.
    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit.max(1)
    }

    /// Fills with bytes that nothing compresses.
    pub(crate) fn fill(&mut self, buffer: &mut [u8]) {
        for chunk in buffer.chunks_mut(8) {
            let bytes = self.next().to_le_bytes();
            for (to, from) in chunk.iter_mut().zip(bytes) {
                *to = from;
            }
        }
    }

    /// Fills like pages of a database: of each KiB one half is incompressible, the other a repeated row.
    pub(crate) fn fill_half_compressible(&mut self, buffer: &mut [u8]) {
        for kib in buffer.chunks_mut(1024) {
            let (noise, rows) = kib.split_at_mut(kib.len() / 2);
            self.fill(noise);
            let row = self.next().to_le_bytes();
            for (index, byte) in rows.iter_mut().enumerate() {
                *byte = row.get(index % 8).copied().unwrap_or(0);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Random;

    #[test]
    fn a_seed_gives_the_same_bytes_again() {
        let (mut one, mut two) = ([0u8; 100], [0u8; 100]);
        Random::new(7).fill_half_compressible(&mut one);
        Random::new(7).fill_half_compressible(&mut two);
        assert_eq!(one, two);
        Random::new(8).fill_half_compressible(&mut two);
        assert_ne!(one, two);
    }

    #[test]
    fn half_of_a_page_compresses_away() {
        let mut page = vec![0u8; 65_536];
        Random::new(1).fill_half_compressible(&mut page);
        let packed = zstd::bulk::compress(&page, 1).expect("zstd").len();
        assert!((30_000..40_000).contains(&packed), "{packed} bytes");
    }
}
