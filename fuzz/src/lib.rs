//! What the fuzz targets share.
//!
//! ```text
//!   input ─► case (sparse files) ─► images (ReadAt) ─► a reader of the product ─► walk, disk_image: ask everything
//!     ▲                                                                             asserting what must always hold
//!     └── mutator: fields of the images become lies, the rest stays an image
//! ```
//! A build for fuzzing (`cfg(fuzzing)`) takes every checksum for right, so that lies get behind them.

pub mod case;
pub mod disk_image;
pub mod images;
pub mod mutator;
pub mod table;
pub mod walk;

/// A target: what is done with an input, with our mutations.
#[macro_export]
macro_rules! target {
    ($input:ident => $body:expr) => {
        libfuzzer_sys::fuzz_target!(|$input: &[u8]| {
            $body;
        });
        libfuzzer_sys::fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
            $crate::mutator::mutate(data, size, max_size, seed, libfuzzer_sys::fuzzer_mutate)
        });
    };
}
