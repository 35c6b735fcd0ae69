//! What a client of the NBD server says: its options, then its requests.
#![no_main]

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use serve::Unwatched;
use serve::nbd::{Export, Exports, Negotiated, Traffic, Transmission, negotiate};
use vdisk::memory::MemoryFile;

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    let disk = Arc::new(MemoryFile::with_size(1 << 20));
    let Ok(mut exports) = Exports::new(vec![Export::new("a@1", disk)]) else {
        return;
    };
    exports.also_named("", "a@1");
    let mut said = input;
    if let Ok(Negotiated::Chosen(agreed)) = negotiate(&mut said, &mut Vec::new(), &exports) {
        let transmission = Transmission {
            agreed: &agreed,
            stopping: &AtomicBool::new(false),
            hang_up: &|| {},
            watch: &Unwatched,
            traffic: &Traffic::default(),
        };
        let _ = transmission.run(&mut said, std::io::sink());
    }
});
