//! Reading VMDK: the corpus, what QEMU writes in every layout, delta links, names that lead outside, refusals.

use std::path::Path;
use std::sync::Arc;

use block::{ExtentKind, ReadAt};
use vdisk::memory::MemoryFile;
use vdisk::vmdk::{ExtentPaths, NoExtents, VmdkDescriptor, VmdkReader, VmdkSources};
use vdisk::{Error, ErrorKind, Subformat};

use crate::corpora::{self, Trust};
use crate::qcow2_tool::{assert_reads_as, contents, has_qemu, open, qemu_img, qemu_io, raw_of};

/// Opens the extents that lie beside the descriptor.
fn beside(directory: &Path) -> impl Fn(&str) -> vdisk::Result<Arc<dyn ReadAt>> {
    let directory = directory.to_owned();
    move |name: &str| {
        let path = directory.join(name);
        if path.is_file() {
            Ok(open(&path))
        } else {
            Err(Error::new(ErrorKind::ParentNotFound, format!("no {name}")))
        }
    }
}

#[test]
fn corpus_images_read_as_qemu_reads_them_or_are_refused() {
    let Some(root) = corpora::root() else { return };
    let text = std::fs::read_to_string(root.join("manifest.json")).expect("manifest");
    let manifest: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    let mut seen = 0;
    for entry in manifest
        .as_array()
        .expect("list")
        .iter()
        .filter(|entry| entry["group"] == "vmdk")
    {
        let path = entry["path"].as_str().expect("path");
        let found = VmdkReader::open(Arc::new(corpora::load(&root, path)), &NoExtents, None);
        seen += 1;
        let Some(expected) = entry["expected"]["qemu_raw_sha256"].as_str() else {
            let error = found.err().expect(path);
            assert_eq!(error.kind(), ErrorKind::Corrupt, "{path}: {error}");
            continue;
        };
        let disk = found.expect(path);
        assert_eq!(corpora::sha256(&disk, Trust::Reads), expected, "{path}");
        assert_eq!(
            corpora::sha256(&disk, Trust::Extents),
            expected,
            "{path}, extents"
        );
    }
    assert!(seen >= 3, "{seen} images of group vmdk");
}

#[test]
fn every_layout_that_qemu_writes_reads_back() {
    if !has_qemu() {
        return;
    }
    let directory = tempfile::tempdir().expect("tempdir");
    let at = directory.path();
    let disk = contents(41, (40 << 20) + 512 * 9);
    std::fs::write(at.join("disk.raw"), &disk).expect("write");
    for (layout, subformat) in [
        ("monolithicSparse", Subformat::Dynamic),
        ("monolithicSparse,zeroed_grain=on", Subformat::Dynamic),
        ("monolithicFlat", Subformat::Fixed),
        ("twoGbMaxExtentSparse", Subformat::Dynamic),
        ("twoGbMaxExtentFlat", Subformat::Fixed),
        ("streamOptimized", Subformat::StreamOptimized),
    ] {
        qemu_img(
            at,
            &format!("convert -f raw -O vmdk -o subformat={layout} disk.raw image.vmdk"),
        );
        let image = VmdkReader::open(open(&at.join("image.vmdk")), &beside(at), None)
            .unwrap_or_else(|error| panic!("{layout}: {error}"));
        assert_eq!(image.info().subformat, subformat, "{layout}");
        assert!(image.cid().is_some() && !image.has_parent(), "{layout}");
        assert_reads_as(&image, &disk, layout);
    }
}

#[test]
fn a_disk_split_over_several_extents_reads_over_their_seams() {
    if !has_qemu() {
        return;
    }
    let directory = tempfile::tempdir().expect("tempdir");
    let at = directory.path();
    for layout in ["twoGbMaxExtentSparse", "twoGbMaxExtentFlat"] {
        qemu_img(
            at,
            &format!("create -q -f vmdk -o subformat={layout} image.vmdk 5G"),
        );
        qemu_io(
            at,
            "image.vmdk",
            "vmdk",
            &[
                "write -P 5 2097120k 64k",
                "write -P 6 4194300k 8k",
                "write -P 7 5242876k 4k",
            ],
        );
        let image =
            VmdkReader::open(open(&at.join("image.vmdk")), &beside(at), None).expect("open");
        assert_eq!(image.size_bytes(), 5 << 30);
        let mut buffer = vec![0; 96 << 10];
        for (from, first, length, byte) in [
            ((2_097_152u64 << 10) - (48 << 10), 16 << 10, 64 << 10, 5u8),
            ((4_194_304u64 << 10) - (48 << 10), 44 << 10, 8 << 10, 6),
            ((5 << 30) - (96 << 10), 92 << 10, 4 << 10, 7),
        ] {
            image.read_at(from, &mut buffer).expect("read");
            for (index, got) in buffer.iter().enumerate() {
                let inside = (first..first + length).contains(&index);
                assert_eq!(
                    *got,
                    if inside { byte } else { 0 },
                    "{layout} {from:#x}+{index:#x}"
                );
            }
        }
    }
}

#[test]
fn a_delta_link_reads_through_its_parent() {
    if !has_qemu() {
        return;
    }
    let directory = tempfile::tempdir().expect("tempdir");
    let at = directory.path();
    std::fs::write(at.join("disk.raw"), contents(51, 4 << 20)).expect("write");
    qemu_img(at, "convert -f raw -O vmdk disk.raw base.vmdk");
    qemu_img(at, "create -q -f vmdk -b base.vmdk -F vmdk child.vmdk");
    qemu_io(
        at,
        "child.vmdk",
        "vmdk",
        &["write -P 9 1M 100k", "write -P 8 3000k 1k"],
    );
    let expected = raw_of(at, "child.vmdk", "vmdk");
    let base = VmdkReader::open(open(&at.join("base.vmdk")), &NoExtents, None).expect("base");
    let base_cid = base.cid();
    let base: Arc<dyn ReadAt> = Arc::new(base);
    let child = VmdkReader::open(
        open(&at.join("child.vmdk")),
        &NoExtents,
        Some(Arc::clone(&base)),
    )
    .expect("child");
    assert_eq!(child.parent_cid(), base_cid);
    assert_eq!(child.info().subformat, Subformat::Differencing);
    assert_eq!(child.info().parent_paths, ["base.vmdk"]);
    assert_reads_as(&child, &expected, "child");

    let alone = VmdkReader::open(open(&at.join("child.vmdk")), &NoExtents, None).expect("alone");
    assert_eq!(
        alone.extent_at(0, u64::MAX).expect("extent").kind,
        ExtentKind::InParent
    );
    let error = alone.read_at(0, &mut [0; 16]).expect_err("no parent");
    assert_eq!(error.kind(), block::ErrorKind::NotFound);
    let error = VmdkReader::open(open(&at.join("base.vmdk")), &NoExtents, Some(base)).err();
    assert_eq!(error.expect("refused").kind(), ErrorKind::Invalid);
}

fn descriptor(extents: &str) -> Arc<MemoryFile> {
    let text = format!(
        "# Disk DescriptorFile\nversion=1\nCID=12345678\nparentCID=ffffffff\ncreateType=\"custom\"\n{extents}\n"
    );
    Arc::new(MemoryFile::from_bytes(text.as_bytes()))
}

#[test]
fn names_that_leave_the_directory_are_followed_only_when_allowed() {
    let names = [
        "../x.vmdk",
        "/etc/passwd",
        "..\\x.vmdk",
        "C:\\x.vmdk",
        "sub/../../x",
        "\\\\host\\x",
        "",
        "a//b",
    ];
    let anything = |_: &str| -> vdisk::Result<Arc<dyn ReadAt>> {
        Ok(Arc::new(MemoryFile::with_size(1 << 20)))
    };
    for name in names {
        let file = descriptor(&format!("RW 2048 FLAT \"{name}\" 0"));
        let error = VmdkReader::open(file.clone(), &anything, None)
            .err()
            .expect(name);
        assert_eq!(error.kind(), ErrorKind::Unsupported, "{name}: {error}");
        let sources = VmdkSources {
            parent: None,
            paths: ExtentPaths::Anywhere,
        };
        let disk = VmdkReader::open_with(file, &anything, sources).expect(name);
        assert_eq!(disk.size_bytes(), 1 << 20);
    }
    let error = VmdkReader::open(descriptor("RW 2048 FLAT \"x\" 0"), &NoExtents, None).err();
    assert_eq!(error.expect("refused").kind(), ErrorKind::ParentNotFound);
}

#[test]
fn zero_extents_and_offsets_into_one_file_are_read() {
    let flat: Arc<dyn ReadAt> = Arc::new(MemoryFile::from_bytes(&contents(61, 1 << 20)));
    let shared = Arc::clone(&flat);
    let opener = move |_: &str| -> vdisk::Result<Arc<dyn ReadAt>> { Ok(Arc::clone(&shared)) };
    let file = descriptor("RW 8 FLAT \"x\" 16\nRW 100 ZERO\nRDONLY 8 VMFS \"x\" 24");
    let disk = VmdkReader::open(file, &opener, None).expect("open");
    let mut expected = contents(61, 1 << 20)[16 * 512..24 * 512].to_vec();
    expected.resize(expected.len() + 100 * 512, 0);
    expected.extend_from_slice(&contents(61, 1 << 20)[24 * 512..32 * 512]);
    assert_reads_as(&disk, &expected, "three extents");
    let zero = disk.extent_at(8 * 512, u64::MAX).expect("extent");
    assert_eq!(
        (zero.kind, zero.length_bytes),
        (ExtentKind::Zero, 100 * 512)
    );
}

#[test]
fn descriptors_that_contradict_themselves_are_refused_with_their_line() {
    for (extents, kind, word) in [
        ("RW x FLAT \"a\"", ErrorKind::Corrupt, "line 6: extent size"),
        (
            "RW 18446744073709551615 FLAT \"a\"",
            ErrorKind::Corrupt,
            "extent size",
        ),
        ("RW 8 SPARSE", ErrorKind::Corrupt, "without a file"),
        ("RW 8 SPARSE \"a", ErrorKind::Corrupt, "without an end"),
        ("RW 8 VMFSRDM \"a\"", ErrorKind::Unsupported, "VMFSRDM"),
        ("NOACCESS 8 ZERO", ErrorKind::Unsupported, "without access"),
        ("CID=xyz", ErrorKind::Corrupt, "content id"),
        ("", ErrorKind::Corrupt, "names no extent"),
        (
            "RW 4096 FLAT \"a\"",
            ErrorKind::Incomplete,
            "only 1048576 bytes",
        ),
    ] {
        let opener = |_: &str| -> vdisk::Result<Arc<dyn ReadAt>> {
            Ok(Arc::new(MemoryFile::with_size(1 << 20)))
        };
        let error = VmdkReader::open(descriptor(extents), &opener, None)
            .err()
            .expect(extents);
        assert_eq!(error.kind(), kind, "{extents}: {error}");
        assert!(error.to_string().contains(word), "{extents}: {error}");
    }
    let parsed = VmdkDescriptor::parse(
        b"# Disk DescriptorFile\r\nCID = fffffffe\r\nparentCID=0000000a\r\nparentFileNameHint=\"a b.vmdk\"\r\nRW 63 SPARSE \"c d.vmdk\"\r\n",
    )
    .expect("parse");
    assert_eq!(parsed.parent_hint.as_deref(), Some("a b.vmdk"));
    assert_eq!(parsed.parent_cid.expect("parent").to_string(), "0000000a");
    assert_eq!(parsed.extents[0].name.as_deref(), Some("c d.vmdk"));
}

#[test]
fn a_stream_that_was_cut_short_is_incomplete() {
    let mut header = vec![0u8; 128 * 512];
    header[..4].copy_from_slice(b"KDMV");
    header[4] = 3;
    header[8..12].copy_from_slice(&0x3_0001u32.to_le_bytes());
    header[12..20].copy_from_slice(&8192u64.to_le_bytes());
    header[20] = 128;
    header[44..48].copy_from_slice(&512u32.to_le_bytes());
    header[56..64].copy_from_slice(&u64::MAX.to_le_bytes());
    header[77] = 1;
    let file = Arc::new(MemoryFile::from_bytes(&header));
    let error = VmdkReader::open(file, &NoExtents, None)
        .err()
        .expect("refused");
    assert_eq!(error.kind(), ErrorKind::Incomplete, "{error}");
}

/// What editors, old Macs and other programs make of a descriptor.
#[test]
fn descriptors_are_read_whatever_their_lines_and_letters_look_like() {
    let sample = "# Disk DescriptorFile\nversion=1\nCID=1\nparentCID=FFFFFFFF\n\
        createType=\"monolithicFlat\"\nRW 8 FLAT \"plain.bin\" 0\nddb.comment = \"\u{e4}\"\n";
    let bare = sample.split_once('\n').expect("lines").1;
    let narrow: Vec<u8> = sample.chars().map(|letter| letter as u8).collect();
    let texts: [(&str, Vec<u8>); 8] = [
        ("as it should be", sample.into()),
        ("CR LF", sample.replace('\n', "\r\n").into()),
        ("CR", sample.replace('\n', "\r").into()),
        ("byte order mark", format!("\u{feff}{sample}").into()),
        ("blank lines", format!("\n  \n{sample}").into()),
        ("no comment", bare.into()),
        (
            "other comment",
            format!("#Disk Descriptor File\n#\n{bare}").into(),
        ),
        ("windows-1252", narrow),
    ];
    let directory = tempfile::tempdir().expect("tempdir");
    let content: Vec<u8> = (0..4096u32).map(|at| (at / 7) as u8).collect();
    std::fs::write(directory.path().join("plain.bin"), &content).expect("write");
    for (what, text) in texts {
        let path = directory.path().join("disk.vmdk");
        std::fs::write(&path, &text).expect("write");
        let options = vdisk::OpenOptions::default();
        let image =
            vdisk::Image::open(&path, &options).unwrap_or_else(|error| panic!("{what}: {error}"));
        assert_eq!(image.info().format, vdisk::Format::Vmdk, "{what}");
        assert_reads_as(&image, &content, what);
    }
    // A guest's text is not a descriptor because it begins like one.
    for text in [
        "#!/bin/sh\nversion=1\n\x01",
        "version 1\n",
        "# comment only\n",
    ] {
        let path = directory.path().join("disk.raw");
        let mut disk = vec![0; 4096];
        disk[..text.len()].copy_from_slice(text.as_bytes());
        std::fs::write(&path, &disk).expect("write");
        let image = vdisk::Image::open(&path, &vdisk::OpenOptions::default()).expect("raw");
        assert_eq!(image.info().format, vdisk::Format::Raw, "{text:?}");
    }
}
