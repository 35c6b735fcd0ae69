//! Files of hosts, written: what every way to them must do, and what the local one must not.

use std::sync::Arc;

use block::{ReadAt, WriteAt};
use host::ErrorKind;
use host::access::{AccessByNode, LocalPaths, NoFiles, NodeFiles};
use host::boundary::{EntryKind, HostFiles};
use host::checkpoint::Presence;
use host::hyperv::HyperVOptions;
use host::ids::NodeName;
use host::path::HostPath;

use super::fake::FakeEstate;

fn path(text: &str) -> HostPath {
    HostPath::new(text).expect("a path")
}

fn kind<T>(result: host::Result<T>) -> ErrorKind {
    match result {
        Ok(_) => panic!("this should have been refused"),
        Err(error) => error.kind(),
    }
}

/// What every way to files must do, below an empty folder that is there.
pub fn check_writing(files: &dyn NodeFiles, node: &NodeName, root: &HostPath) {
    let at = |relative: &str| root.join(relative).expect("a path");
    let folder = at("New\\Virtual Hard Disks");
    files.create_folder(node, &folder).expect("made");
    as_a_model(files, node, &at("New\\model.bin"));
    files
        .create_folder(node, &at("NEW"))
        .expect("there, in another case");
    let disk = at("New\\Virtual Hard Disks\\a.vhdx");
    assert_eq!(files.size_bytes(node, &disk).expect("asked"), None);
    assert_eq!(files.size_bytes(node, &folder).expect("no file"), None);
    assert!(files.open(node, &disk).expect("asked").is_none());
    assert_eq!(
        kind(files.open_file_for_update(node, &disk)),
        ErrorKind::NotFound
    );

    let file = files.create_file(node, &disk).expect("made");
    assert_eq!(file.size_bytes(), 0);
    written_from_many_threads(file.as_ref());
    file.write_at(40 << 20, b"behind the end").expect("grows");
    assert_eq!(file.size_bytes(), (40 << 20) + 14);
    let mut gap = [1; 4096];
    file.read_at(20 << 20, &mut gap).expect("read");
    assert!(gap.iter().all(|byte| *byte == 0));
    file.zero_range(1 << 20, 1 << 20).expect("zeroed");
    let mut zeroed = vec![1; 1 << 20];
    file.read_at(1 << 20, &mut zeroed).expect("read");
    assert!(zeroed.iter().all(|byte| *byte == 0));
    file.set_size(9_000_001).expect("cut");
    assert_eq!(file.size_bytes(), 9_000_001);
    file.flush().expect("durable");
    drop(file);
    assert_eq!(
        files.size_bytes(node, &disk).expect("asked"),
        Some(9_000_001)
    );
    // Nothing is made twice, in any case.
    for name in ["a.vhdx", "A.VHDX"] {
        let again = at(&format!("New\\Virtual Hard Disks\\{name}"));
        assert_eq!(
            kind(files.create_file(node, &again)),
            ErrorKind::AlreadyExists
        );
        assert_eq!(
            kind(files.create_folder(node, &again)),
            ErrorKind::AlreadyExists
        );
    }

    let file = files.open_file_for_update(node, &disk).expect("opened");
    assert_eq!(file.size_bytes(), 9_000_001);
    file.write_at(0, b"again").expect("written");
    let mut head = [0; 6];
    file.read_at(0, &mut head).expect("read");
    assert_eq!(&head, b"again\x01");
    file.flush().expect("durable");
    drop(file);

    renamed_and_removed(files, node, &at, &disk);
    asked_and_refused(files, node, root);
}

/// Free space, folders that are not there, names that cannot be.
fn asked_and_refused(files: &dyn NodeFiles, node: &NodeName, root: &HostPath) {
    let at = |relative: &str| root.join(relative).expect("a path");
    assert!(
        files
            .free_bytes(node, root)
            .expect("asked")
            .is_some_and(|free| free > 1 << 20)
    );
    assert_eq!(kind(files.list(node, &at("nowhere"))), ErrorKind::NotFound);
    for wrong in ["New\\con.txt", "New\\a?", "New\\a.", "New\\a ", "New\\COM1"] {
        assert_eq!(
            kind(files.create_file(node, &at(wrong))),
            ErrorKind::Invalid,
            "{wrong}"
        );
    }
    let climbing = path(&format!("{root}\\New\\..\\..\\a.bin"));
    assert_eq!(kind(files.create_file(node, &climbing)), ErrorKind::Invalid);
    let long = at(&format!("New\\{}", "x".repeat(256)));
    assert_eq!(kind(files.create_file(node, &long)), ErrorKind::Invalid);
}

/// Writes that overlap, reads between them, sizes and zeros: as a vector of bytes would have it.
fn as_a_model(files: &dyn NodeFiles, node: &NodeName, place: &HostPath) {
    const MOST: u64 = 3 << 20;
    let file = files.create_file(node, place).expect("made");
    let mut model: Vec<u8> = Vec::new();
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut draw = |below: u64| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        (state >> 33) % below
    };
    let size = |bytes: u64| usize::try_from(bytes).expect("small");
    for round in 0..400_u64 {
        let offset = draw(MOST);
        let length = draw(if round % 7 == 0 { 1 << 20 } else { 70_000 });
        let end = offset + length;
        match draw(10) {
            0 => {
                file.set_size(offset).expect("resized");
                model.resize(size(offset), 0);
            }
            1 => {
                file.zero_range(offset, length).expect("zeroed");
                if length > 0 {
                    model.resize(model.len().max(size(end)), 0);
                    model[size(offset)..size(end)].fill(0);
                }
            }
            2 => file.flush().expect("durable"),
            3 | 4 => {
                let length = length.min((model.len() as u64).saturating_sub(offset));
                let mut read = vec![1; size(length)];
                file.read_at(offset.min(model.len() as u64), &mut read)
                    .expect("read");
                let start = size(offset).min(model.len());
                assert!(read == model[start..start + read.len()], "round {round}");
            }
            _ => {
                let bytes = vec![u8::try_from(round % 251).expect("small") + 1; size(length)];
                file.write_at(offset, &bytes).expect("written");
                if length > 0 {
                    model.resize(model.len().max(size(end)), 0);
                    model[size(offset)..size(end)].copy_from_slice(&bytes);
                }
            }
        }
        assert_eq!(file.size_bytes(), model.len() as u64, "round {round}");
    }
    file.flush().expect("durable");
    drop(file);
    let file = files.open(node, place).expect("opened").expect("there");
    let mut read = vec![0; model.len()];
    file.read_at(0, &mut read).expect("read");
    assert!(read == model, "at the end");
    drop(file);
    assert_eq!(
        files.remove(node, place).expect("removed"),
        Presence::Removed
    );
}

/// Eight pieces of a mebibyte and a bit, each its number, from as many threads; and read back.
fn written_from_many_threads(file: &dyn host::boundary::HostFileWriter) {
    let length = (1 << 20) + 13;
    let piece = |number: u8| vec![number; length];
    let offset = |number: u8| (u64::from(number) - 1) * u64::try_from(length).expect("small");
    std::thread::scope(|scope| {
        for number in 1..=8 {
            scope.spawn(move || {
                file.write_at(offset(number), &piece(number))
                    .expect("written")
            });
        }
    });
    for number in 1..=8 {
        let mut read = vec![0; length];
        file.read_at(offset(number), &mut read).expect("read");
        assert!(read == piece(number), "piece {number}");
    }
}

fn renamed_and_removed(
    files: &dyn NodeFiles,
    node: &NodeName,
    at: &dyn Fn(&str) -> HostPath,
    disk: &HostPath,
) {
    let other = at("New\\b.bin");
    files
        .create_file(node, &other)
        .expect("made")
        .flush()
        .expect("durable");
    assert_eq!(
        kind(files.rename(node, disk, &at("New\\B.bin"))),
        ErrorKind::AlreadyExists
    );
    assert_eq!(
        kind(files.rename(node, &at("New\\none"), &at("New\\c"))),
        ErrorKind::NotFound
    );
    let named = at("New\\whole.vhdx");
    files.rename(node, disk, &named).expect("renamed");
    assert_eq!(files.size_bytes(node, disk).expect("asked"), None);
    assert_eq!(
        files.size_bytes(node, &named).expect("asked"),
        Some(9_000_001)
    );

    let names: Vec<(String, EntryKind)> = files
        .list(node, &at("New"))
        .expect("listed")
        .into_iter()
        .map(|entry| (entry.name, entry.kind))
        .collect();
    let expected = [
        ("Virtual Hard Disks", EntryKind::Folder),
        ("b.bin", EntryKind::File),
        ("whole.vhdx", EntryKind::File),
    ];
    assert_eq!(names, expected.map(|(name, kind)| (name.to_owned(), kind)));
    assert_eq!(kind(files.remove(node, &at("New"))), ErrorKind::State);
    for gone in [&named, &other, &at("New\\Virtual Hard Disks")] {
        assert_eq!(
            files.remove(node, gone).expect("removed"),
            Presence::Removed
        );
        assert_eq!(files.remove(node, gone).expect("gone"), Presence::Absent);
    }
    assert_eq!(files.list(node, &at("New")).expect("listed"), []);
}

fn node() -> NodeName {
    NodeName::new("hv01").expect("a name")
}

#[test]
fn files_here_are_written_as_the_host_would_name_them() {
    for root in ["D:\\vm", "\\\\sofs\\vms", "\\\\?\\E:\\"] {
        let folder = tempfile::tempdir().expect("a folder");
        let local = LocalPaths::new().with_root(path(root), folder.path());
        check_writing(&local, &node(), &path(root.trim_start_matches("\\\\?\\")));
        let by_node = AccessByNode::new().with_node(node(), Arc::new(local));
        let marked = path("\\\\?\\D:\\vm\\New\\marked.bin");
        if root == "D:\\vm" {
            by_node
                .create_file(&node(), &marked)
                .expect("the same place");
            assert!(folder.path().join("New/marked.bin").exists());
        }
        let other = NodeName::new("hv02").expect("a name");
        assert_eq!(
            kind(by_node.list(&other, &path(root))),
            ErrorKind::Unsupported
        );
    }
    assert_eq!(
        kind(NoFiles.list(&node(), &path("D:\\"))),
        ErrorKind::Unsupported
    );
}

#[test]
fn nothing_here_is_written_outside_of_the_mapped_folders() {
    let outside = tempfile::tempdir().expect("a folder");
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::write(outside.path().join("secret"), b"secret").expect("written");
    std::fs::create_dir(folder.path().join("inner")).expect("a folder");
    let link = |name: &str, to: &std::path::Path| {
        std::os::unix::fs::symlink(to, folder.path().join(name)).expect("a link");
    };
    link("out", outside.path());
    link("file", &outside.path().join("secret"));
    link("nowhere", &outside.path().join("new"));
    link("in", &folder.path().join("inner"));
    let files = LocalPaths::new().with_root(path("D:\\vm"), folder.path());
    let at = |name: &str| path(&format!("D:\\vm\\{name}"));
    for name in ["out\\new", "OUT\\secret", "file", "nowhere", "out"] {
        let place = at(name);
        assert_eq!(
            kind(files.create_file(&node(), &place)),
            ErrorKind::Refused,
            "{name}"
        );
        assert_eq!(
            kind(files.create_folder(&node(), &place)),
            ErrorKind::Refused,
            "{name}"
        );
        assert_eq!(
            kind(files.open_file_for_update(&node(), &place)),
            ErrorKind::Refused
        );
        assert_eq!(
            kind(files.remove(&node(), &place)),
            ErrorKind::Refused,
            "{name}"
        );
        assert_eq!(
            kind(files.size_bytes(&node(), &place)),
            ErrorKind::Refused,
            "{name}"
        );
        assert_eq!(
            kind(files.rename(&node(), &at("inner"), &place)),
            ErrorKind::Refused
        );
        assert_eq!(
            kind(host::access::DiskAccess::open(&files, &node(), &place)),
            ErrorKind::Refused
        );
    }
    let entries: Vec<_> = std::fs::read_dir(outside.path()).expect("listed").collect();
    assert_eq!(entries.len(), 1);
    // A link that stays inside is followed.
    files.create_file(&node(), &at("in\\new")).expect("made");
    assert!(folder.path().join("inner/new").exists());
    let gone = LocalPaths::new().with_root(path("D:\\vm"), folder.path().join("unmounted"));
    assert_eq!(kind(gone.size_bytes(&node(), &at("a"))), ErrorKind::Io);
    assert_eq!(kind(gone.create_folder(&node(), &at("a"))), ErrorKind::Io);
}

#[test]
fn holes_stay_holes_here() {
    use std::os::unix::fs::MetadataExt;
    let folder = tempfile::tempdir().expect("a folder");
    let files = LocalPaths::new().with_root(path("D:\\"), folder.path());
    let file = files
        .create_file(&node(), &path("D:\\a.bin"))
        .expect("made");
    file.set_size(1 << 30).expect("long");
    file.write_at(512 << 20, &[1; 65536]).expect("written");
    file.zero_range(0, 1 << 30).expect("zeroed");
    file.write_at(700 << 20, &[1; 4096]).expect("written");
    file.flush().expect("durable");
    let metadata = std::fs::metadata(folder.path().join("a.bin")).expect("there");
    assert_eq!(metadata.len(), 1 << 30);
    assert!(
        metadata.blocks() * 512 < 1 << 20,
        "{} blocks",
        metadata.blocks()
    );
}

#[test]
fn of_two_who_make_or_rename_to_one_name_one_succeeds() {
    let folder = tempfile::tempdir().expect("a folder");
    let files = LocalPaths::new().with_root(path("D:\\"), folder.path());
    for round in 0..50 {
        let target = path(&format!("D:\\target{round}"));
        let sources = [1, 2].map(|it| path(&format!("D:\\source{round}-{it}")));
        for source in &sources {
            files.create_file(&node(), source).expect("made");
        }
        let done = std::thread::scope(|scope| {
            let tasks = sources.each_ref().map(|source| {
                let (files, target) = (&files, &target);
                scope.spawn(move || files.rename(&node(), source, target).is_ok())
            });
            tasks.map(|task| task.join().expect("ended"))
        });
        assert_eq!(done.iter().filter(|it| **it).count(), 1, "round {round}");
    }
}

#[test]
fn names_that_windows_does_not_take_are_told() {
    for good in [
        "D:\\vm\\a.vhdx",
        "\\\\server\\share\\a b\\c.vhdx",
        "\\\\?\\D:\\vm\\a",
        "\\\\?\\UNC\\server\\share\\a",
        "D:\\vm\\console.txt",
        "D:\\vm\\com10",
        "D:\\vm\\仮想\\ディスク.vhdx",
        "/var/lib/vm/a:b?",
    ] {
        path(good).check_new().expect(good);
    }
    let long = format!("D:\\{}\\{}", "x".repeat(200), "y".repeat(60));
    path(&format!("\\\\?\\{long}"))
        .check_new()
        .expect("marked as long");
    let name = format!("\\\\?\\D:\\{}", "x".repeat(256));
    for bad in [
        long.as_str(),
        name.as_str(),
        "D:\\vm\\a:stream",
        "D:\\vm\\..\\a",
        "D:\\vm\\a.",
        "D:\\vm \\a",
        "D:\\NUL",
        "D:\\vm\\nul.txt",
        "D:\\vm\\LPT¹",
        "D:\\vm\\a*",
        "vm\\a",
        "D:a",
        "/var/../etc",
    ] {
        assert_eq!(kind(path(bad).check_new()), ErrorKind::Invalid, "{bad}");
    }
}

#[test]
fn the_driver_hands_files_to_the_way_of_their_node() {
    let folder = tempfile::tempdir().expect("a folder");
    let local = LocalPaths::new().with_root(path("D:\\"), folder.path());
    let estate = FakeEstate::new(&["hv01"]);
    let driver = estate.driver_with(HyperVOptions::default(), Arc::new(local));
    let place = path("D:\\restored\\a.vhdx");
    driver
        .create_folder(&node(), &path("D:\\restored"))
        .expect("made");
    let file = driver.create_file(&node(), &place).expect("made");
    file.write_at(0, b"bytes").expect("written");
    file.flush().expect("durable");
    let written = std::fs::read(folder.path().join("restored/a.vhdx"));
    assert_eq!(written.expect("there"), b"bytes");
    let other = NodeName::new("hv02").expect("a name");
    assert_eq!(
        kind(driver.create_file(&other, &place)),
        ErrorKind::Unreachable
    );
    assert_eq!(
        kind(estate.driver().create_file(&node(), &place)),
        ErrorKind::Unsupported
    );
}
