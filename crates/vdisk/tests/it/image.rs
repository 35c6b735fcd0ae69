//! Images with their chains: probing, finding parents, refusing the wrong ones.

#![expect(
    clippy::unwrap_used,
    reason = "helpers of tests fail by panicking, like tests"
)]

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use block::{ExtentKind, ReadAt, WriteAt};
use vdisk::chain::{ParentMap, ParentPolicy};
use vdisk::file::HostFile;
use vdisk::image::{self, ChainMode, FormatHint, Linkage, OpenOptions};
use vdisk::map;
use vdisk::memory::MemoryFile;
use vdisk::vhd::{Allocation, CreateOptions, ParentLink, VhdTime, VhdWriter, create};
use vdisk::{DiskId, ErrorKind, Format, Image, Subformat};

use crate::corpora::{self, Trust};

/// Unpacks a corpus file to a real one, holes kept.
fn unpack(root: &Path, path: &str, target: &Path) {
    let memory = corpora::load(root, path);
    let file = HostFile::create_new(target).unwrap();
    file.set_size(memory.size_bytes()).unwrap();
    for extent in map::extents(&memory)
        .map(Result::unwrap)
        .filter(|it| it.kind == ExtentKind::Data)
    {
        let mut bytes = vec![0; usize::try_from(extent.length_bytes).unwrap()];
        memory.read_at(extent.offset, &mut bytes).unwrap();
        file.write_at(extent.offset, &bytes).unwrap();
    }
}

fn open(path: &Path) -> vdisk::Result<Image> {
    Image::open(path, &OpenOptions::default())
}

fn refusal(result: vdisk::Result<Image>) -> vdisk::Error {
    result.err().expect("refused")
}

fn qemu_img(directory: &Path, arguments: &[&str]) {
    let output = Command::new("qemu-img")
        .current_dir(directory)
        .args(arguments)
        .output()
        .expect("qemu-img");
    assert!(
        output.status.success(),
        "{arguments:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}

/// (path, group, parent, hash) of the disks of at most 64 MiB: the hash on which independent readers agree, or, for the
/// formats that QEMU reads right, QEMU's.
fn small_disks(root: &Path) -> Vec<(String, String, Option<String>, String)> {
    let text = std::fs::read_to_string(root.join("manifest.json")).unwrap();
    let json: serde_json::Value = serde_json::from_str(&text).unwrap();
    let word = |value: &serde_json::Value| value.as_str().map(str::to_owned);
    let mut disks = Vec::new();
    for entry in json.as_array().unwrap() {
        let group = word(&entry["group"]).unwrap();
        let expected = &entry["expected"];
        let hash = match group.as_str() {
            "vhd" | "vhdx" => word(&expected["raw_sha256_ref"]),
            "qcow2" | "vmdk" => word(&expected["qemu_raw_sha256"]),
            _ => None,
        };
        let size = expected["virtual_size"]
            .as_u64()
            .or(expected["qemu_raw_size"].as_u64());
        let is_small = entry["kind"] == "disk" && size.is_some_and(|size| size <= 64 << 20);
        if let Some(hash) = hash.filter(|_| is_small) {
            disks.push((
                word(&entry["path"]).unwrap(),
                group,
                word(&entry["parent"]),
                hash,
            ));
        }
    }
    disks
}

#[test]
fn corpus_disks_of_every_format_read_right_through_one_door() {
    let Some(root) = corpora::root() else { return };
    let mut formats = Vec::new();
    for (path, group, parent, expected) in small_disks(&root) {
        let directory = tempfile::tempdir().unwrap();
        let place = |path: &str| {
            let name = Path::new(path)
                .file_name()
                .unwrap()
                .to_string_lossy()
                .into_owned();
            let packed = [".xz", ".gz", ".bz2"]
                .iter()
                .find(|suffix| name.ends_with(*suffix));
            directory
                .path()
                .join(packed.map_or(name.as_str(), |suffix| name.trim_end_matches(suffix)))
        };
        unpack(&root, &path, &place(&path));
        if let Some(parent) = &parent {
            // The corpus gave the files a prefix; the child names its parent without it.
            let plain = parent.trim_start_matches("dfvfs-");
            unpack(&root, &format!("{group}/{parent}"), &place(plain));
        }
        let disk = open(&place(&path)).unwrap_or_else(|error| panic!("{path}: {error}"));
        assert_eq!(
            disk.chain().len(),
            1 + usize::from(parent.is_some()),
            "{path}"
        );
        assert_eq!(corpora::sha256(&disk, Trust::Extents), expected, "{path}");
        formats.push(disk.info().format);
    }
    for format in [Format::Vhd, Format::Vhdx, Format::Qcow2, Format::Vmdk] {
        assert!(formats.contains(&format), "no {format:?} among {formats:?}");
    }
}

#[test]
fn a_parent_of_the_wrong_write_id_is_a_mismatch() {
    let Some(root) = corpora::root() else { return };
    let directory = tempfile::tempdir().unwrap();
    let case = corpora::synth_cases(&root, &["hdx"])
        .into_iter()
        .find(|it| it.policy == "reject-chain")
        .unwrap();
    for name in &case.chain {
        unpack(
            &root,
            &format!("synth/{name}"),
            &directory.path().join(name),
        );
    }
    let leaf = directory.path().join(&case.chain[0]);
    let map = ParentMap::default().with_child(&leaf, directory.path().join(&case.chain[1]));
    let options = OpenOptions {
        parent_map: map,
        ..OpenOptions::default()
    };
    assert_eq!(
        refusal(Image::open(&leaf, &options)).kind(),
        ErrorKind::ParentMismatch
    );
}

#[test]
fn a_missing_parent_is_named_with_everything_that_was_tried() {
    let Some(root) = corpora::root() else { return };
    let directory = tempfile::tempdir().unwrap();
    let leaf = directory.path().join("child.vhdx");
    unpack(&root, "vhdx/dfvfs-ntfs-differential.vhdx", &leaf);
    let error = refusal(open(&leaf));
    assert_eq!(error.kind(), ErrorKind::ParentNotFound);
    let tried = directory.path().join("ntfs-parent.vhdx");
    assert!(
        error.to_string().contains(&tried.display().to_string()),
        "{error}"
    );
    // One file alone can be looked at, and its map says what the parent holds.
    let options = OpenOptions {
        chain: ChainMode::LeafOnly,
        ..OpenOptions::default()
    };
    let alone = Image::open(&leaf, &options).unwrap();
    let kinds: Vec<_> = map::extents(&alone).map(|it| it.unwrap().kind).collect();
    assert!(
        kinds.contains(&ExtentKind::InParent) && kinds.contains(&ExtentKind::Data),
        "{kinds:?}"
    );
}

fn vhd_options(id: u8, allocation: Allocation) -> CreateOptions {
    CreateOptions {
        size_bytes: 1 << 20,
        allocation,
        block_bytes: 65536,
        unique_id: DiskId(uuid::Uuid::from_bytes([id; 16])),
        time: VhdTime(0),
    }
}

fn vhd_child(id: u8, parent: u8, path: &str) -> CreateOptions {
    let link = ParentLink {
        id: DiskId(uuid::Uuid::from_bytes([parent; 16])),
        time: VhdTime(0),
        relative_path: Some(path.into()),
        absolute_path: None,
    };
    vhd_options(id, Allocation::Differencing(link))
}

fn make(path: &Path, options: &CreateOptions) {
    create(&HostFile::create_new(path).unwrap(), options).unwrap();
}

/// Ids may be copied, so a hostile pair can name each other.
#[test]
fn a_chain_that_comes_back_is_an_error() {
    let directory = tempfile::tempdir().unwrap();
    make(
        &directory.path().join("a.vhd"),
        &vhd_child(1, 2, ".\\b.vhd"),
    );
    make(
        &directory.path().join("b.vhd"),
        &vhd_child(2, 1, ".\\a.vhd"),
    );
    make(
        &directory.path().join("self.vhd"),
        &vhd_child(3, 3, ".\\self.vhd"),
    );
    for leaf in ["a.vhd", "self.vhd"] {
        let error = refusal(open(&directory.path().join(leaf)));
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{leaf}: {error}");
    }
}

#[test]
fn a_chain_longer_than_the_limit_is_refused_and_one_below_it_reads() {
    let directory = tempfile::tempdir().unwrap();
    let path = |n: u32| directory.path().join(format!("{n}.vhd"));
    for n in 0..300_u32 {
        let id = |n: u32| DiskId(uuid::Uuid::from_u128(u128::from(n) + 1));
        let mut options = vhd_options(0, Allocation::Dynamic);
        if n > 0 {
            options = vhd_child(0, 0, &format!(".\\{}.vhd", n - 1));
            if let Allocation::Differencing(link) = &mut options.allocation {
                link.id = id(n - 1);
            }
        }
        options.unique_id = id(n);
        make(&path(n), &options);
    }
    let root = Arc::new(HostFile::open(&path(0), vdisk::file::FileAccess::ReadWrite).unwrap());
    let writer = VhdWriter::open(root, None).unwrap();
    writer.write_at(5000, &[7; 100]).unwrap();
    writer.finish().unwrap();
    let image = open(&path(255)).unwrap();
    assert_eq!(image.chain().len(), 256);
    assert_eq!(image.chain()[0].linkage(), Some(Linkage::Verified));
    let mut bytes = [0; 102];
    image.read_at(4999, &mut bytes).unwrap();
    assert!(bytes[0] == 0 && bytes[1..101] == [7; 100] && bytes[101] == 0);
    assert_eq!(refusal(open(&path(299))).kind(), ErrorKind::Unsupported);
}

#[test]
fn another_file_of_the_parents_name_is_passed_over() {
    let directory = tempfile::tempdir().unwrap();
    let base = directory.path().join("base");
    let child = directory.path().join("child");
    std::fs::create_dir(&base).unwrap();
    std::fs::create_dir(&child).unwrap();
    make(
        &base.join("parent.vhd"),
        &vhd_options(8, Allocation::Dynamic),
    );
    make(
        &child.join("parent.vhd"),
        &vhd_options(9, Allocation::Dynamic),
    );
    make(
        &child.join("leaf.vhd"),
        &vhd_child(1, 9, "..\\base\\parent.vhd"),
    );
    let image = open(&child.join("leaf.vhd")).unwrap();
    assert_eq!(image.chain()[1].path(), child.join("parent.vhd"));
    let only_map = OpenOptions {
        parent_policy: ParentPolicy::MapOnly,
        ..OpenOptions::default()
    };
    assert_eq!(
        refusal(Image::open(&child.join("leaf.vhd"), &only_map)).kind(),
        ErrorKind::ParentNotFound
    );
}

#[test]
fn qcow2_chains_made_by_qemu_read_through() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    let mut model = vec![0_u8; 1 << 20];
    let base = HostFile::create_new(&at("base.raw")).unwrap();
    base.set_size(1 << 20).unwrap();
    base.write_at(1000, &[1; 5000]).unwrap();
    model[1000..6000].fill(1);
    qemu_img(
        directory.path(),
        &[
            "create",
            "-q",
            "-f",
            "qcow2",
            "-b",
            "base.raw",
            "-F",
            "raw",
            "one.qcow2",
        ],
    );
    qemu_img(
        directory.path(),
        &[
            "create",
            "-q",
            "-f",
            "qcow2",
            "-b",
            "one.qcow2",
            "-F",
            "qcow2",
            "two.qcow2",
        ],
    );
    let image = open(&at("two.qcow2")).unwrap();
    let formats: Vec<_> = image
        .chain()
        .iter()
        .map(|layer| layer.info().format)
        .collect();
    assert_eq!(formats, [Format::Qcow2, Format::Qcow2, Format::Raw]);
    let mut bytes = vec![0; model.len()];
    image.read_at(0, &mut bytes).unwrap();
    assert!(bytes == model);
}

/// A guest that ran on a raw disk can write an image's header on it. When the child does not say that its parent is
/// raw, that header must not make us open further files.
#[test]
fn a_parent_of_unrecorded_format_cannot_name_further_files() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    std::fs::write(at("secret.raw"), vec![0x5E; 1 << 20]).unwrap();
    qemu_img(
        directory.path(),
        &[
            "create",
            "-q",
            "-f",
            "qcow2",
            "-b",
            "secret.raw",
            "-F",
            "raw",
            "guest.raw",
        ],
    );
    qemu_img(
        directory.path(),
        &[
            "create",
            "-q",
            "-u",
            "-f",
            "qcow2",
            "-b",
            "guest.raw",
            "-F",
            "raw",
            "leaf.qcow2",
            "1M",
        ],
    );
    assert_eq!(
        open(&at("leaf.qcow2")).unwrap().chain().len(),
        2,
        "told that it is raw"
    );
    qemu_img(
        directory.path(),
        &[
            "rebase",
            "-u",
            "-f",
            "qcow2",
            "-b",
            "guest.raw",
            "-F",
            "qcow2",
            "leaf.qcow2",
        ],
    );
    assert_eq!(
        open(&at("leaf.qcow2")).unwrap().chain().len(),
        3,
        "told that it is qcow2"
    );
    // Take the recorded format out: the header extension 0xE2792ACA becomes one that nobody knows.
    let mut bytes = std::fs::read(at("leaf.qcow2")).unwrap();
    let place = bytes
        .windows(4)
        .position(|it| it == [0xE2, 0x79, 0x2A, 0xCA])
        .unwrap();
    bytes[place] = 0x11;
    std::fs::write(at("leaf.qcow2"), bytes).unwrap();
    assert_eq!(
        refusal(open(&at("leaf.qcow2"))).kind(),
        ErrorKind::Unsupported
    );
}

#[test]
fn vmdk_extents_are_opened_beside_the_descriptor_and_nowhere_else() {
    let directory = tempfile::tempdir().unwrap();
    let disks = directory.path().join("disks");
    std::fs::create_dir(&disks).unwrap();
    let content: Vec<u8> = (0..1_u32 << 20)
        .map(|n| u8::try_from(n % 249).unwrap())
        .collect();
    std::fs::write(disks.join("disk.raw"), &content).unwrap();
    qemu_img(
        &disks,
        &[
            "convert",
            "-f",
            "raw",
            "-O",
            "vmdk",
            "-o",
            "subformat=monolithicFlat",
            "disk.raw",
            "disk.vmdk",
        ],
    );
    let image = open(&disks.join("disk.vmdk")).unwrap();
    let mut bytes = vec![0; content.len()];
    image.read_at(0, &mut bytes).unwrap();
    assert!(bytes == content);
    drop(image);
    // The extent becomes a link out of the directory.
    let outside = directory.path().join("outside.raw");
    std::fs::rename(disks.join("disk-flat.vmdk"), &outside).unwrap();
    #[cfg(unix)]
    {
        std::os::unix::fs::symlink(&outside, disks.join("disk-flat.vmdk")).unwrap();
        assert!(open(&disks.join("disk.vmdk")).is_err());
        let anywhere = OpenOptions {
            parent_policy: ParentPolicy::Anywhere,
            ..OpenOptions::default()
        };
        assert!(Image::open(&disks.join("disk.vmdk"), &anywhere).is_ok());
    }
}

#[test]
fn a_hint_wins_over_what_a_guest_wrote_on_its_disk() {
    let directory = tempfile::tempdir().unwrap();
    let path: PathBuf = directory.path().join("disk.raw");
    let memory = MemoryFile::with_size(1 << 20);
    create(&memory, &vhd_options(1, Allocation::Dynamic)).unwrap();
    let mut bytes = vec![0; usize::try_from(memory.size_bytes()).unwrap()];
    memory.read_at(0, &mut bytes).unwrap();
    std::fs::write(&path, &bytes).unwrap();
    assert_eq!(open(&path).unwrap().info().format, Format::Vhd);
    let told = OpenOptions {
        format: FormatHint::Exactly(Format::Raw),
        ..OpenOptions::default()
    };
    let raw = Image::open(&path, &told).unwrap();
    assert_eq!(
        (raw.info().format, raw.info().subformat),
        (Format::Raw, Subformat::Fixed)
    );
    assert_eq!(raw.size_bytes(), bytes.len() as u64);
}

#[test]
fn holes_of_a_raw_file_are_extents() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("disk.raw");
    let file = HostFile::create_new(&path).unwrap();
    file.set_size(64 << 20).unwrap();
    file.write_at(16 << 20, &[1; 1 << 20]).unwrap();
    file.write_at(32 << 20, &[1; 1 << 20]).unwrap();
    file.zero_range(32 << 20, 1 << 20).unwrap();
    file.flush().unwrap();
    let image = open(&path).unwrap();
    let data: Vec<_> = map::extents(&image)
        .map(Result::unwrap)
        .filter(|it| it.kind == ExtentKind::Data)
        .collect();
    assert_eq!(data.len(), 1, "{data:?}");
    assert_eq!((data[0].offset, data[0].length_bytes), (16 << 20, 1 << 20));
    let mut bytes = [1; 16];
    image.read_at((33 << 20) - 16, &mut bytes).unwrap();
    assert_eq!(bytes, [0; 16]);
    assert_eq!(
        image.read_at(64 << 20, &mut [0]).unwrap_err().kind(),
        block::ErrorKind::OutOfRange
    );
    assert_eq!(
        image::probe(&MemoryFile::new()).unwrap(),
        Format::Raw,
        "an empty file"
    );
}

/// A disk of 80 MiB with bytes here and there, zeros written and zeroed ranges, built in a file.
fn build(
    file: Arc<dyn WriteAt>,
    profile: image::ImageProfile,
) -> vdisk::Result<image::CreateOptions> {
    let options = image::CreateOptions {
        size_bytes: 80 << 20,
        profile,
        if_exists: image::IfExists::Refuse,
        ids: vdisk::vhdx::IdSource::seeded(7),
        unix_seconds: 1_700_000_000,
    };
    let writer = image::create_on(Arc::clone(&file), &options)?;
    writer.write_at(0, &[1; 512])?;
    writer.write_at((40 << 20) - 3, &[2; 70_000])?;
    writer.flush()?;
    drop(writer);
    // As after a crash.
    let writer = image::resume_on(file, &options)?;
    writer.write_at((80 << 20) - 512, &[3; 512])?;
    writer.write_at(60 << 20, &[0; 65_536])?;
    writer.zero_range(39 << 20, 1 << 20)?;
    writer.finish()?;
    Ok(options)
}

#[test]
fn an_image_made_in_any_file_is_the_one_that_is_made_under_a_name() {
    let directory = tempfile::tempdir().unwrap();
    for (format, subformat, name) in [
        (Format::Vhdx, Subformat::Dynamic, "dynamic.vhdx"),
        (Format::Vhdx, Subformat::Fixed, "fixed.vhdx"),
        (Format::Vhd, Subformat::Dynamic, "dynamic.vhd"),
        (Format::Vhd, Subformat::Fixed, "fixed.vhd"),
        (Format::Raw, Subformat::Fixed, "a.raw"),
    ] {
        let mut profile = image::ImageProfile::of(format);
        profile.subformat = subformat;
        let memory = Arc::new(MemoryFile::new());
        build(memory.clone(), profile.clone()).unwrap();
        let path = directory.path().join(name);
        let on_disk = Arc::new(HostFile::create_new(&path).unwrap());
        let mut options = build(on_disk.clone(), profile.clone()).unwrap();
        options.ids = vdisk::vhdx::IdSource::seeded(7);

        let named = directory.path().join(format!("named-{name}"));
        let writer = image::create(&named, &options).unwrap();
        writer.write_at(0, &[1; 512]).unwrap();
        writer.write_at((40 << 20) - 3, &[2; 70_000]).unwrap();
        writer.write_at((80 << 20) - 512, &[3; 512]).unwrap();
        writer.write_at(60 << 20, &[0; 65_536]).unwrap();
        writer.zero_range(39 << 20, 1 << 20).unwrap();
        writer.finish().unwrap();

        let named_file = HostFile::open(&named, vdisk::file::FileAccess::ReadOnly).unwrap();
        assert_eq!(memory.size_bytes(), named_file.size_bytes(), "{name}");
        let hashes = [
            corpora::sha256(memory.as_ref(), Trust::Reads),
            corpora::sha256(on_disk.as_ref(), Trust::Reads),
            corpora::sha256(&named_file, Trust::Reads),
        ];
        assert!(
            hashes.iter().all(|hash| *hash == hashes[0]),
            "{name}: {hashes:?}"
        );

        let copy = HostFile::create_new(&directory.path().join(format!("memory-{name}"))).unwrap();
        for extent in map::extents(memory.as_ref()).map(Result::unwrap) {
            let mut bytes = vec![0; usize::try_from(extent.length_bytes).unwrap()];
            memory.read_at(extent.offset, &mut bytes).unwrap();
            copy.write_at(extent.offset, &bytes).unwrap();
        }
        let driver = match format {
            Format::Vhdx => "vhdx",
            Format::Vhd => "vpc",
            _ => "raw",
        };
        for it in [name.to_owned(), format!("memory-{name}")] {
            if driver == "vhdx" {
                qemu_img(directory.path(), &["check", "-f", driver, &it]);
            } else {
                // QEMU has no check for these: it opens them and says what they are.
                qemu_img(directory.path(), &["info", "-f", driver, &it]);
            }
        }
        let disk = open(&path).unwrap();
        assert_eq!(disk.size_bytes(), 80 << 20, "{name}");
        let mut bytes = [0; 4];
        disk.read_at((40 << 20) - 3, &mut bytes).unwrap();
        assert_eq!(bytes, [0, 0, 0, 2], "{name}");
        let error = image::create_on(memory, &options).err().expect("refused");
        assert_eq!(error.kind(), ErrorKind::AlreadyExists);
    }
    let vmdk = image::ImageProfile::of(Format::Vmdk);
    let error = build(Arc::new(MemoryFile::new()), vmdk).expect_err("it repeats its name");
    assert_eq!(error.kind(), ErrorKind::Unsupported);
}
