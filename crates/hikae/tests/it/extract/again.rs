//! Runs that go on where one stopped, and runs at the same time into the same place.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::process::Command;

use rustix::process::Signal;

use super::super::disk::Random;
use super::super::site::{Site, text};
use super::{
    MIB, TREE_TOOLS, expect_same, fill, have, image, make_ext4, put_in, seen, tool, words,
};

/// Changes a byte and nothing that is seen without reading it.
fn spoil(path: &Path, at: u64) {
    let file = File::options().read(true).write(true).open(path);
    let file = file.expect("the file");
    let time = file.metadata().expect("its metadata").modified();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).expect("a byte");
    file.write_all_at(&[!byte[0]], at).expect("another byte");
    file.set_modified(time.expect("its time")).expect("set");
}

#[test]
fn runs_that_verify_or_hash_read_what_an_earlier_run_had_finished() {
    if !have(&TREE_TOOLS) {
        return;
    }
    let site = Site::new();
    let repository = site.init("repo");
    let (tree, volume) = (site.path("tree"), site.path("volume"));
    fill(&tree, &mut Random::new(46));
    make_ext4(&volume, &tree, 120 * MIB);
    repository.back_up(&volume, "vm");
    let (hashes, spoilt) = (site.path("hashes"), ["srv/large.bin", "srv/many/7.dat"]);
    for (number, more) in [&[][..], &["--verify"], &["--manifest", text(&hashes)]]
        .into_iter()
        .enumerate()
    {
        let out = site.path(&format!("out{number}"));
        let extract = |more: &[&str]| {
            let arguments = ["vm@1", "/srv", "/etc", "--to", text(&out)];
            repository.disk("extract", &[&arguments[..], more].concat())
        };
        // Something in the way ends the first run, with most of it done.
        fs::create_dir_all(out.join("etc")).expect("a folder");
        fs::write(out.join("etc/hostname"), b"in the way").expect("a file");
        extract(&[]).expect(1);
        let same = |path: &&str| fs::read(out.join(path)).ok() == fs::read(tree.join(path)).ok();
        assert_eq!(spoilt.iter().filter(|path| same(path)).count(), 2);
        for path in spoilt {
            spoil(&out.join(path), 100);
        }
        let report = extract(&[&["--overwrite"], more].concat()).expect(0).json();
        let (kept, files) = (report["kept"].as_u64(), report["files"].as_u64());
        assert!(kept > Some(250), "{report}");
        assert_eq!(report["failed"], 0);
        if more.is_empty() {
            // What was not asked to be read is not: size and time promise it.
            assert_eq!(spoilt.iter().filter(|path| same(path)).count(), 0);
            continue;
        }
        let whole = put_in(&tree);
        assert!(
            files >= Some(3),
            "what was spoilt is written anew: {report}"
        );
        expect_same(&whole, &seen(&out));
        if more.len() == 2 {
            let check = ["--check", "--quiet", text(&hashes)];
            tool(Command::new("sha256sum").args(check).current_dir(&out));
            // A line of a name with a backslash or a new line begins with one, and one that is no text is as it is.
            let lines = fs::read(&hashes).expect("the hashes");
            let listed: BTreeSet<Vec<u8>> = lines
                .split(|byte| *byte == b'\n')
                .filter_map(|line| line.splitn(2, |byte| *byte == b' ').nth(1))
                .map(|name| name[1..].to_vec())
                .collect();
            for (path, one) in &whole {
                let is_plain = !path.iter().any(|byte| matches!(byte, b'\n' | b'\\'));
                let path_text = String::from_utf8_lossy(path);
                if one.bytes.is_some() && is_plain {
                    assert!(
                        listed.contains(path),
                        "{path_text} was kept and is not listed"
                    );
                }
            }
            let regular = whole.values().filter(|one| one.bytes.is_some()).count();
            assert_eq!(listed.len(), regular);
        }
    }
}

#[test]
fn two_runs_at_a_time_do_not_write_one_archive() {
    if !have(&["mke2fs"]) {
        return;
    }
    let site = Site::new();
    let (tree, volume) = (site.path("tree"), site.path("volume"));
    fs::create_dir(&tree).expect("a folder");
    let mut random = Random::new(47);
    for number in 0..24 {
        let bytes: Vec<u8> = (0..MIB / 2)
            .flat_map(|_| random.next().to_le_bytes())
            .collect();
        fs::write(tree.join(number.to_string()), bytes).expect("a file");
    }
    make_ext4(&volume, &tree, 160 * MIB);
    for (flag, name) in [("--tar", "a.tar"), ("--zip", "a.zip")] {
        let archive = site.path(name);
        let unfinished = site.path(&format!("{name}.hikae-partial"));
        let arguments = ["image", "extract", text(&volume), "/", flag, text(&archive)];
        // What a killed run left is in nobody's way.
        fs::write(&unfinished, vec![7; 100]).expect("left behind");
        let first = site.start(words(&arguments));
        let is_begun = || fs::metadata(&unfinished).is_ok_and(|it| it.len() >= MIB);
        first.wait_until("the archive is begun", is_begun);
        first.signal(Signal::STOP);
        first.wait_until("it stands still", || first.stands_still());
        let ours = fs::metadata(&unfinished).expect("it is begun");
        for more in [&[][..], &["--overwrite"]] {
            let refused = site.run(words(&[&arguments[..], more].concat()));
            let refused = refused.expect(4).json();
            assert_eq!(refused["problem"]["code"], "HK-3011", "{refused}");
            let still = fs::metadata(&unfinished).expect("it is left alone");
            assert_eq!((still.ino(), still.len()), (ours.ino(), ours.len()));
        }
        first.signal(Signal::CONT);
        first.wait().expect(0);
        let whole = fs::read(&archive).expect("the archive");
        assert!(!unfinished.exists());
        image(&site, &[&arguments[1..], &["--overwrite"]].concat()).expect(0);
        assert!(fs::read(&archive).expect("the archive") == whole);
    }
}
