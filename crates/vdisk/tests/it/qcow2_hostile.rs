//! Hostile qcow2: thousands of mutations of valid images must give bytes or a typed error, in bounded time and memory.

use std::sync::Arc;

use block::{ReadAt, WriteAt};
use vdisk::memory::MemoryFile;
use vdisk::qcow2::{
    self, Compression, Qcow2Builder, Qcow2Options, Qcow2Reader, Qcow2Sources, Qcow2Writer,
};
use vdisk::{ErrorKind, RepairMode};

use crate::qcow2_tool::{Numbers, contents, has_qemu, qemu_img};

/// Values that break arithmetic.
const WORDS: [u64; 10] = [
    0,
    1,
    0x1ff,
    0x200,
    0x1_0000,
    0x7fff_ffff,
    0xffff_ffff,
    1 << 62,
    1 << 63,
    u64::MAX,
];

fn mutate(image: &mut [u8], numbers: &mut Numbers, hot: &[std::ops::Range<usize>]) {
    for _ in 0..1 + numbers.below(4) {
        let range = hot[numbers.below(hot.len() as u64) as usize].clone();
        let at = range.start + numbers.below(range.len() as u64) as usize;
        match numbers.below(4) {
            0 => image[at] ^= 1 << numbers.below(8),
            1 => image[at] = numbers.next() as u8,
            2 => {
                let word = WORDS[numbers.below(10) as usize]
                    .wrapping_add(numbers.below(3))
                    .to_be_bytes();
                let length = [1, 2, 4, 8][numbers.below(4) as usize];
                let end = (at + length).min(image.len());
                image[at..end].copy_from_slice(&word[8 - length..][..end - at]);
            }
            _ => {
                let from = numbers.below(image.len() as u64 - 8) as usize;
                let to = at.min(image.len() - 8);
                image.copy_within(from..from + 8, to);
            }
        }
    }
}

/// Everything that a stranger's image can be put through.
fn exercise(image: Vec<u8>, data_file: Option<&[u8]>, numbers: &mut Numbers) {
    let file = Arc::new(MemoryFile::from_bytes(&image));
    let sources = Qcow2Sources {
        parent: None,
        data_file: data_file
            .map(|bytes| Arc::new(MemoryFile::from_bytes(bytes)) as Arc<dyn ReadAt>),
    };
    if let Ok(disk) = Qcow2Reader::open_with(file.clone(), sources) {
        let size = disk.size_bytes();
        let mut buffer = vec![0; 100_000];
        for _ in 0..6 {
            let at = numbers.below(size.max(1));
            let length = buffer
                .len()
                .min(usize::try_from(size - at.min(size)).unwrap_or(usize::MAX));
            let _ = disk.read_at(at, &mut buffer[..length]);
            if let Ok(extent) = disk.extent_at(at, u64::MAX) {
                assert!(extent.length_bytes > 0 && extent.end() <= size);
            }
        }
        let _ = disk.read_at(0, &mut buffer[..512.min(size as usize)]);
        let _ = disk.snapshots();
    }
    let _ = qcow2::check(&*file);
    if let Ok(writer) = Qcow2Writer::open(file.clone(), None) {
        let size = writer.size_bytes();
        for _ in 0..3 {
            let at = numbers.below(size.max(1));
            let length = size.saturating_sub(at).min(70_000);
            let _ = writer.write_at(at, &vec![3; length as usize]);
            let _ = writer.zero_range(at, length);
        }
        if writer.finish().is_ok() {
            let after = qcow2::check(&*file).expect("still an image");
            assert!(
                after.is_clean(),
                "a writer made it worse: {:?}",
                after.findings
            );
        }
    }
    let file = MemoryFile::from_bytes(&image);
    if qcow2::repair(&file, RepairMode::DataLoss).is_ok() {
        let after = qcow2::check(&file).expect("still an image");
        assert!(after.is_clean(), "a repair left: {:?}", after.findings);
    }
    assert!(
        file.allocated_bytes() < 64 << 20,
        "a repair wrote {} bytes",
        file.allocated_bytes()
    );
}

fn bytes_of(file: &MemoryFile) -> Vec<u8> {
    let mut bytes = vec![0; file.size_bytes() as usize];
    file.read_at(0, &mut bytes).expect("read");
    bytes
}

fn torment(
    image: &[u8],
    data_file: Option<&[u8]>,
    hot: &[std::ops::Range<usize>],
    seed: u64,
    rounds: u64,
) {
    for round in 0..rounds {
        let mut numbers = Numbers::new(seed.wrapping_mul(1 << 20).wrapping_add(round));
        let mut bad = image.to_vec();
        mutate(&mut bad, &mut numbers, hot);
        if numbers.below(10) == 0 {
            bad.truncate(numbers.below(bad.len() as u64) as usize);
        }
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            exercise(bad, data_file, &mut numbers);
        }));
        assert!(outcome.is_ok(), "seed {seed}, round {round}");
    }
}

#[test]
fn mutations_of_built_images_never_panic_hang_or_grow() {
    for (seed, cluster_bytes, compression) in [
        (1, 512, None),
        (2, 4096, Some(Compression::Zlib)),
        (3, 4096, Some(Compression::Zstd)),
    ] {
        let file = Arc::new(MemoryFile::new());
        let options = Qcow2Options {
            cluster_bytes,
            compression,
            ..Qcow2Options::new(256 << 10)
        };
        let builder = Qcow2Builder::create(file.clone(), &options, None).expect("create");
        builder
            .write_at(0, &contents(seed, 120_000))
            .expect("write");
        builder.finish().expect("finish");
        let image = bytes_of(&file);
        let cluster = cluster_bytes as usize;
        torment(
            &image,
            None,
            &[0..112, 0..112, cluster..4 * cluster, 0..image.len()],
            seed,
            2000,
        );
    }
}

#[test]
fn mutations_of_what_qemu_writes_never_panic_hang_or_grow() {
    if !has_qemu() {
        return;
    }
    let directory = tempfile::tempdir().expect("tempdir");
    let at = directory.path();
    std::fs::write(at.join("disk.raw"), contents(5, 200_000 / 512 * 512)).expect("write");
    for (seed, option) in [
        (11, "-o cluster_size=16384,extended_l2=on"),
        (12, "-o cluster_size=4096,compat=0.10"),
        (13, "-o cluster_size=4096,refcount_bits=1"),
        (14, "-c -o cluster_size=4096"),
        (15, "-o cluster_size=4096,data_file=data.bin"),
    ] {
        qemu_img(
            at,
            &format!("convert -f raw -O qcow2 {option} disk.raw image.qcow2"),
        );
        if seed == 12 || seed == 14 {
            qemu_img(at, "snapshot -c s image.qcow2");
        }
        if seed == 14 {
            qemu_img(at, "bitmap --add image.qcow2 b");
        }
        let image = std::fs::read(at.join("image.qcow2")).expect("read");
        let data = (seed == 15).then(|| std::fs::read(at.join("data.bin")).expect("read"));
        let cluster = 1usize << image[23];
        let hot = [
            0..112,
            0..300,
            cluster..(6 * cluster).min(image.len()),
            0..image.len(),
        ];
        torment(&image, data.as_deref(), &hot, seed, 1000);
    }
}

#[test]
fn tables_that_refer_to_themselves_end() {
    // A megabyte of L1 table whose every entry names one L2 table.
    let cluster = 65_536usize;
    let mut image = vec![0u8; 20 * cluster];
    image[..8].copy_from_slice(b"QFI\xfb\0\0\0\x03");
    image[20..24].copy_from_slice(&16u32.to_be_bytes());
    image[24..32].copy_from_slice(&(1u64 << 45).to_be_bytes());
    image[36..40].copy_from_slice(&131_072u32.to_be_bytes());
    image[40..48].copy_from_slice(&(cluster as u64).to_be_bytes());
    image[48..56].copy_from_slice(&(18 * cluster as u64).to_be_bytes());
    image[56..60].copy_from_slice(&1u32.to_be_bytes());
    image[96..100].copy_from_slice(&4u32.to_be_bytes());
    image[100..104].copy_from_slice(&104u32.to_be_bytes());
    let l2 = 17 * cluster as u64;
    for entry in image[cluster..17 * cluster].chunks_exact_mut(8) {
        entry.copy_from_slice(&(l2 | 1 << 63).to_be_bytes());
    }
    for entry in image[17 * cluster..18 * cluster].chunks_exact_mut(8) {
        entry.copy_from_slice(&(l2 | 1 << 63).to_be_bytes());
    }
    let file = MemoryFile::from_bytes(&image);
    let error = qcow2::check(&file).expect_err("bounded");
    assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
    let disk = Qcow2Reader::open(Arc::new(file), None).expect("open");
    let extent = disk.extent_at(0, u64::MAX).expect("extent");
    assert!(extent.length_bytes >= 65_536);
}
