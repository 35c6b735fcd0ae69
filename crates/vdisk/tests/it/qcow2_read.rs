//! Reading qcow2: the corpus, what QEMU writes with every option, and what must be refused.

use std::sync::Arc;

use block::{ExtentKind, ReadAt, WriteAt};
use vdisk::ErrorKind;
use vdisk::memory::MemoryFile;
use vdisk::qcow2::{Qcow2Header, Qcow2Reader, Qcow2Sources};

use crate::corpora::{self, Trust};
use crate::qcow2_tool::{assert_reads_as, contents, has_qemu, open, qemu_img, qemu_io, raw_of};

#[test]
fn every_corpus_image_reads_as_qemu_reads_it() {
    let Some(root) = corpora::root() else { return };
    let text = std::fs::read_to_string(root.join("manifest.json")).expect("manifest");
    let manifest: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    let mut seen = 0;
    for entry in manifest
        .as_array()
        .expect("list")
        .iter()
        .filter(|entry| entry["group"] == "qcow2")
    {
        let path = entry["path"].as_str().expect("path");
        let disk = Qcow2Reader::open(Arc::new(corpora::load(&root, path)), None).expect(path);
        assert_eq!(
            Some(disk.size_bytes()),
            entry["expected"]["qemu_raw_size"].as_u64(),
            "{path}"
        );
        let expected = entry["expected"]["qemu_raw_sha256"].as_str().expect("hash");
        assert_eq!(
            corpora::sha256(&disk, Trust::Extents),
            expected,
            "{path}, extents"
        );
        if disk.size_bytes() < 1 << 28 {
            assert_eq!(
                corpora::sha256(&disk, Trust::Reads),
                expected,
                "{path}, reads"
            );
        }
        seen += 1;
    }
    assert!(seen >= 3, "{seen} images of group qcow2");
}

#[test]
fn images_converted_by_qemu_with_every_option_read_back() {
    if !has_qemu() {
        return;
    }
    let directory = tempfile::tempdir().expect("tempdir");
    let disk = contents(11, (5 << 20) + 512 * 7);
    std::fs::write(directory.path().join("disk.raw"), &disk).expect("write");
    let mut options: Vec<String> = (9..=21)
        .map(|bits| format!("-o cluster_size={}", 1u64 << bits))
        .collect();
    options.extend(
        [
            "-o compat=0.10",
            "-c -o compat=0.10,cluster_size=4096",
            "-o compat=1.1,lazy_refcounts=on",
            "-o extended_l2=on",
            "-o extended_l2=on,cluster_size=16384",
            "-o extended_l2=on,cluster_size=2097152",
            "-c",
            "-c -o cluster_size=512",
            "-c -o cluster_size=2097152",
            "-c -o compression_type=zstd",
            "-c -o compression_type=zstd,cluster_size=4096",
            "-c -o compression_type=zstd,cluster_size=2097152",
            "-c -o extended_l2=on,compression_type=zstd",
            "-o preallocation=metadata",
            "-o preallocation=falloc",
            "-o preallocation=full,cluster_size=4096",
            "-o preallocation=metadata,extended_l2=on",
            "-o refcount_bits=1",
            "-o refcount_bits=64",
        ]
        .map(str::to_owned),
    );
    for option in options {
        qemu_img(
            directory.path(),
            &format!("convert -f raw -O qcow2 {option} disk.raw image.qcow2"),
        );
        let image = Qcow2Reader::open(open(&directory.path().join("image.qcow2")), None)
            .unwrap_or_else(|error| panic!("{option}: {error}"));
        assert_reads_as(&image, &disk, &option);
    }
}

/// A child opened alone names its parent and reads nothing in its stead.
fn assert_points_at_its_parent(path: &std::path::Path) {
    let alone = Qcow2Reader::open(open(path), None).expect("alone");
    assert_eq!(alone.info().parent_paths, ["middle.qcow2"]);
    let extent = alone.extent_at(5 << 20, u64::MAX).expect("extent");
    assert_eq!(extent.kind, ExtentKind::InParent);
    let error = alone
        .read_at(5 << 20, &mut [0; 512])
        .expect_err("no parent");
    assert_eq!(error.kind(), block::ErrorKind::NotFound);
}

#[test]
fn a_chain_of_three_with_different_clusters_and_sizes_reads_through() {
    if !has_qemu() {
        return;
    }
    let directory = tempfile::tempdir().expect("tempdir");
    let at = directory.path();
    std::fs::write(at.join("base.raw"), contents(21, 3 << 20)).expect("write");
    for (tag, middle, leaf) in [
        ("plain", "cluster_size=4096", "cluster_size=65536"),
        (
            "split",
            "cluster_size=65536,extended_l2=on",
            "cluster_size=16384,extended_l2=on",
        ),
        (
            "old",
            "compat=0.10,cluster_size=1024",
            "cluster_size=131072",
        ),
    ] {
        qemu_img(
            at,
            &format!("create -q -f qcow2 -b base.raw -F raw -o {middle} middle.qcow2 5M"),
        );
        qemu_io(
            at,
            "middle.qcow2",
            "qcow2",
            &[
                "write -P 0x11 100k 37k",
                "write -P 0x12 2999k 300k",
                "write -z 1M 256k",
                "write -P 7 4M 512",
            ],
        );
        qemu_img(
            at,
            &format!("create -q -f qcow2 -b middle.qcow2 -F qcow2 -o {leaf} leaf.qcow2 6M"),
        );
        qemu_io(
            at,
            "leaf.qcow2",
            "qcow2",
            &[
                "write -P 0x21 110k 2k",
                "write -z 2M 64k",
                "write -P 0x22 1500k 700k",
                "write -z 130k 2k",
            ],
        );
        let expected = raw_of(at, "leaf.qcow2", "qcow2");
        let middle = Qcow2Reader::open(
            open(&at.join("middle.qcow2")),
            Some(open(&at.join("base.raw"))),
        )
        .expect("middle");
        assert_eq!(middle.backing().expect("backing").path, "base.raw");
        assert_eq!(
            middle.backing().expect("backing").format.as_deref(),
            Some("raw")
        );
        let leaf =
            Qcow2Reader::open(open(&at.join("leaf.qcow2")), Some(Arc::new(middle))).expect("leaf");
        assert_reads_as(&leaf, &expected, tag);
        assert_points_at_its_parent(&at.join("leaf.qcow2"));
    }
}

#[test]
fn an_external_data_file_is_read_when_it_is_handed_in() {
    if !has_qemu() {
        return;
    }
    let directory = tempfile::tempdir().expect("tempdir");
    let at = directory.path();
    let disk = contents(31, 3 << 20);
    std::fs::write(at.join("disk.raw"), &disk).expect("write");
    for raw in ["off", "on"] {
        qemu_img(
            at,
            &format!(
                "convert -f raw -O qcow2 -o data_file=data.bin,data_file_raw={raw} disk.raw image.qcow2"
            ),
        );
        let header = Qcow2Header::read(&open(&at.join("image.qcow2"))).expect("header");
        assert_eq!(header.data_file_name(), Some("data.bin"));
        let error = Qcow2Reader::open(open(&at.join("image.qcow2")), None)
            .err()
            .expect("refused");
        assert_eq!(error.kind(), ErrorKind::ParentNotFound);
        let sources = Qcow2Sources {
            parent: None,
            data_file: Some(open(&at.join("data.bin"))),
        };
        let image = Qcow2Reader::open_with(open(&at.join("image.qcow2")), sources).expect("open");
        assert_reads_as(&image, &disk, raw);
    }
}

#[test]
fn snapshots_are_listed_and_the_active_state_is_read() {
    if !has_qemu() {
        return;
    }
    let directory = tempfile::tempdir().expect("tempdir");
    let at = directory.path();
    qemu_img(at, "create -q -f qcow2 image.qcow2 2M");
    qemu_io(at, "image.qcow2", "qcow2", &["write -P 1 0 1M"]);
    qemu_img(at, "snapshot -c before image.qcow2");
    qemu_io(at, "image.qcow2", "qcow2", &["write -P 2 512k 1M"]);
    qemu_img(at, "snapshot -c after image.qcow2");
    qemu_io(at, "image.qcow2", "qcow2", &["write -P 3 4k 4k"]);
    let image = Qcow2Reader::open(open(&at.join("image.qcow2")), None).expect("open");
    let snapshots = image.snapshots().expect("snapshots");
    let names: Vec<&str> = snapshots
        .iter()
        .map(|snapshot| snapshot.name.as_str())
        .collect();
    assert_eq!(names, ["before", "after"]);
    assert_eq!(snapshots[0].size_bytes, Some(2 << 20));
    assert_reads_as(&image, &raw_of(at, "image.qcow2", "qcow2"), "active state");
}

/// An empty image of 1 MiB with clusters of 64 KiB as bytes, made by hand.
fn small_image() -> Vec<u8> {
    let mut image = vec![0u8; 3 * 65536];
    image[..8].copy_from_slice(b"QFI\xfb\0\0\0\x03");
    image[20..24].copy_from_slice(&16u32.to_be_bytes());
    image[24..32].copy_from_slice(&(1u64 << 20).to_be_bytes());
    image[36..40].copy_from_slice(&1u32.to_be_bytes());
    image[40..48].copy_from_slice(&65536u64.to_be_bytes());
    image[96..100].copy_from_slice(&4u32.to_be_bytes());
    image[100..104].copy_from_slice(&104u32.to_be_bytes());
    image
}

fn refusal(image: &[u8]) -> (ErrorKind, String) {
    let error = Qcow2Reader::open(Arc::new(MemoryFile::from_bytes(image)), None)
        .err()
        .expect("must be refused");
    (error.kind(), error.to_string())
}

#[test]
fn what_is_not_understood_is_refused_by_name() {
    let image = small_image();
    assert!(Qcow2Reader::open(Arc::new(MemoryFile::from_bytes(&image)), None).is_ok());

    let mut unknown = image.clone();
    unknown[79] = 0x60; // incompatible bits 5 and 6
    unknown[104..112].copy_from_slice(&[0x68, 0x03, 0xf8, 0x57, 0, 0, 0, 48]);
    unknown[112] = 0;
    unknown[113] = 6;
    unknown[114..120].copy_from_slice(b"sharks");
    let (kind, text) = refusal(&unknown);
    assert_eq!(kind, ErrorKind::Unsupported);
    assert!(
        text.contains("sharks (bit 6)") && text.contains("incompatible bit 5"),
        "{text}"
    );

    for (at, value, kind, word) in [
        (0, 0x51, ErrorKind::Corrupt, "magic"),
        (7, 4, ErrorKind::Unsupported, "version 4"),
        (23, 8, ErrorKind::Corrupt, "cluster bits"),
        (23, 22, ErrorKind::Corrupt, "cluster bits"),
        (24, 0x80, ErrorKind::Corrupt, "size"),
        (27, 1, ErrorKind::Corrupt, "the disk needs"),
        (35, 2, ErrorKind::Unsupported, "encrypted"),
        (36, 0x7f, ErrorKind::Corrupt, "too big"),
        (42, 1, ErrorKind::Corrupt, "out of the file"),
        (47, 1, ErrorKind::Corrupt, "not on a cluster"),
        (79, 8, ErrorKind::Corrupt, "compression type"),
        (99, 7, ErrorKind::Corrupt, "refcount order"),
        (103, 8, ErrorKind::Corrupt, "length"),
    ] {
        let mut bad = image.clone();
        bad[at] = value;
        if at == 0 {
            bad[1] = 0;
        }
        let (found, text) = refusal(&bad);
        assert_eq!(found, kind, "byte {at}: {text}");
        assert!(text.contains(word), "byte {at}: {text}");
    }
    assert_eq!(refusal(&image[..71]).0, ErrorKind::Corrupt);
    assert_eq!(refusal(&image[..65536]).0, ErrorKind::Corrupt);
}

#[test]
fn a_cluster_outside_the_file_is_an_error_and_never_zeros() {
    let mut image = small_image();
    image[65536..65544].copy_from_slice(&((1u64 << 63) | 131_072).to_be_bytes());
    image[131_072..131_080].copy_from_slice(&((1u64 << 63) | (64 << 20)).to_be_bytes());
    let disk = Qcow2Reader::open(Arc::new(MemoryFile::from_bytes(&image)), None).expect("open");
    let error = disk.read_at(0, &mut [0; 512]).expect_err("outside");
    assert_eq!(error.kind(), block::ErrorKind::Corrupt);
    disk.read_at(65536, &mut [0; 512])
        .expect("the next cluster is not allocated");
}

#[test]
fn a_parent_for_an_image_without_one_is_refused() {
    let parent: Arc<dyn ReadAt> = Arc::new(MemoryFile::with_size(1 << 20));
    let file = Arc::new(MemoryFile::from_bytes(&small_image()));
    file.flush().expect("flush");
    let error = Qcow2Reader::open(file, Some(parent))
        .err()
        .expect("refused");
    assert_eq!(error.kind(), ErrorKind::Invalid);
}
