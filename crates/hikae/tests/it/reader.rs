//! `tools/read_repository.py` gives the same bytes, whatever opens the repository and whatever is damaged in it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use super::disk::{self, Random};
use super::site::{Repository, Site, os, text};

const MIB: u64 = 1 << 20;

fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// A Python that has the reader's packages: `HIKAE_PYTHON`, or the one that `cargo xtask test` sets up.
fn python() -> Option<PathBuf> {
    let python = std::env::var_os("HIKAE_PYTHON").map_or_else(
        || workspace().join("target/python/bin/python3"),
        PathBuf::from,
    );
    let works = Command::new(&python)
        .args([
            "-c",
            "import blake3, zstandard, lz4.block, cryptography, argon2",
        ])
        .output()
        .is_ok_and(|output| output.status.success());
    if works {
        return Some(python);
    }
    assert!(
        std::env::var_os("CI").is_none(),
        "{} lacks the packages of tools/requirements.txt",
        python.display()
    );
    println!(
        "SKIP: {} lacks the packages of tools/requirements.txt",
        python.display()
    );
    None
}

fn read(
    python: &Path,
    repository: &Repository<'_>,
    verb: &str,
    key: &[&str],
    more: &[&str],
) -> Output {
    Command::new(python)
        .arg("-B")
        .arg(workspace().join("tools/read_repository.py"))
        .arg(verb)
        .args(key)
        .arg(&repository.place)
        .args(more)
        .output()
        .expect("run the reader")
}

#[track_caller]
fn expect_restored(
    python: &Path,
    repository: &Repository<'_>,
    key: &[&str],
    selector: &str,
    hash: blake3::Hash,
) {
    let out = repository.site.path("read.raw");
    let output = read(python, repository, "restore", key, &[selector, text(&out)]);
    assert!(matches!(output.status.code(), Some(0 | 3)), "{output:#?}");
    assert_eq!(disk::hash_file(&out), hash, "{output:#?}");
    fs::remove_file(&out).expect("remove what was read");
}

#[test]
fn the_reader_restores_what_was_stored_with_the_key_file_and_without_any_index() {
    let Some(python) = python() else { return };
    let site = Site::new();
    let repository = site.init("repository");
    let mut random = Random::new(10);
    let image = site.path("disk.raw");
    disk::create(&image, 48 * MIB + 777, 12 * MIB, &mut random);
    let first = repository.back_up(&image, "vm with spaces");
    let first_hash = disk::hash_file(&image);
    disk::change(&image, 20, &mut random);
    repository.back_up(&image, "vm with spaces");

    let key_file = repository.key_file.clone();
    let key = ["--key-file", text(&key_file)];
    for index in repository.files("index") {
        fs::remove_file(index).expect("remove an index segment");
    }
    let first_selector = format!("vm with spaces@{}", first["version"]);
    expect_restored(&python, &repository, &key, &first_selector, first_hash);
    expect_restored(
        &python,
        &repository,
        &key,
        "vm with spaces",
        disk::hash_file(&image),
    );

    let listed = read(&python, &repository, "list", &key, &[]);
    let listed = String::from_utf8(listed.stdout).expect("text");
    assert_eq!(listed.lines().count(), 2, "{listed}");
    assert!(
        listed.contains(first["root"].as_str().expect("a root")),
        "{listed}"
    );
    let verified = read(&python, &repository, "verify", &key, &[]);
    assert_eq!(verified.status.code(), Some(0), "{verified:#?}");
}

#[test]
fn the_reader_reads_after_gc_has_packed_the_points_into_a_bundle() {
    let Some(python) = python() else { return };
    let site = Site::new();
    let repository = site.init("repository");
    let mut random = Random::new(11);
    let image = site.path("disk.raw");
    disk::create(&image, 8 * MIB, 4 * MIB, &mut random);
    let mut hashes = Vec::new();
    for _ in 0..12 {
        let report = repository.back_up(&image, "vm");
        hashes.push((
            report["version"].as_u64().expect("a version"),
            disk::hash_file(&image),
        ));
        disk::change(&image, 3, &mut random);
    }
    let (forgotten, _) = hashes.remove(0);
    repository
        .disk("forget", &[&format!("vm@{forgotten}")])
        .expect(0);
    repository.repo("gc", &[]).expect(0);
    let key_file = repository.key_file.clone();
    let key = ["--key-file", text(&key_file)];
    for (version, hash) in &hashes {
        expect_restored(&python, &repository, &key, &format!("vm@{version}"), *hash);
    }
    let verified = read(&python, &repository, "verify", &key, &[]);
    assert_eq!(verified.status.code(), Some(0), "{verified:#?}");
}

#[test]
fn the_reader_opens_with_a_passphrase_and_with_the_recovery_key() {
    let Some(python) = python() else { return };
    let site = Site::new();
    let passphrase = site.path("passphrase");
    fs::write(&passphrase, "wiesel überquert 海\n").expect("write the passphrase");
    let repository = Repository {
        site: &site,
        place: site.path("repository").into(),
        key_file: site.path("key"),
    };
    let report = site
        .run([
            os("repo"),
            os("init"),
            repository.place.clone(),
            os("--key-file"),
            repository.key_file.clone().into(),
            os("--passphrase-file"),
            passphrase.clone().into(),
        ])
        .expect(0)
        .json();
    let recovery = site.path("recovery");
    let shown = report["recovery_key"]
        .as_str()
        .unwrap_or_else(|| panic!("no recovery key in {report}"));
    fs::write(&recovery, shown).expect("write the recovery key");
    let image = site.path("disk.raw");
    disk::create(&image, 8 * MIB, 2 * MIB, &mut Random::new(12));
    repository.back_up(&image, "vm");
    let hash = disk::hash_file(&image);
    expect_restored(
        &python,
        &repository,
        &["--passphrase-file", text(&passphrase)],
        "vm",
        hash,
    );
    expect_restored(
        &python,
        &repository,
        &["--recovery-key-file", text(&recovery)],
        "vm",
        hash,
    );
    let without = read(&python, &repository, "list", &[], &[]);
    assert_eq!(without.status.code(), Some(1), "{without:#?}");
}

#[test]
fn the_reader_reads_a_repository_without_encryption() {
    let Some(python) = python() else { return };
    let site = Site::new();
    let place = site.path("plain");
    site.run(["repo", "init", text(&place), "--no-encryption"])
        .expect(0);
    let image = site.path("disk.raw");
    disk::create(&image, 8 * MIB, 3 * MIB, &mut Random::new(13));
    site.run([
        "disk",
        "backup",
        text(&image),
        "--repo",
        text(&place),
        "--name",
        "vm",
    ])
    .expect(0);
    let repository = Repository {
        site: &site,
        place: place.into(),
        key_file: site.path("none"),
    };
    expect_restored(&python, &repository, &[], "vm", disk::hash_file(&image));
}

#[test]
fn the_reader_walks_a_pack_whose_directory_is_damaged_and_names_what_is_lost() {
    let Some(python) = python() else { return };
    let site = Site::new();
    let repository = site.init("repository");
    let image = site.path("disk.raw");
    disk::create(&image, 8 * MIB, 3 * MIB, &mut Random::new(14));
    repository.back_up(&image, "vm");
    let key_file = repository.key_file.clone();
    let key = ["--key-file", text(&key_file)];
    for kind in ["data", "node"] {
        for pack in repository.files(kind) {
            let mut bytes = fs::read(&pack).expect("read a pack");
            let at = bytes.len() - 90;
            bytes[at] ^= 1;
            fs::remove_file(&pack).expect("remove the pack");
            fs::write(&pack, bytes).expect("write the damaged pack");
        }
    }
    expect_restored(&python, &repository, &key, "vm", disk::hash_file(&image));

    let pack = repository.files("data").remove(0);
    let mut bytes = fs::read(&pack).expect("read a pack");
    bytes[500] ^= 1;
    fs::remove_file(&pack).expect("remove the pack");
    fs::write(&pack, bytes).expect("write the damaged pack");
    let out = site.path("lost.raw");
    let output = read(&python, &repository, "restore", &key, &["vm", text(&out)]);
    assert_eq!(output.status.code(), Some(1), "{output:#?}");
    assert!(
        !out.exists(),
        "nothing stands under the name of a disk that is not whole"
    );
    let name = pack
        .file_name()
        .expect("a name")
        .to_string_lossy()
        .into_owned();
    assert!(
        String::from_utf8_lossy(&output.stderr).contains(&name),
        "{output:#?}"
    );
}
