//! What goes in comes out.

use std::fs;

use super::disk::{self, Random};
use super::site::{Site, text};

const MIB: u64 = 1 << 20;

#[test]
fn every_version_comes_back_as_it_was_and_its_cost_is_its_change() {
    let site = Site::new();
    let repository = site.init("repository");
    let mut random = Random::new(1);
    let image = site.path("disk.raw");
    disk::create(&image, 64 * MIB + 12_345, 24 * MIB, &mut random);

    let first = repository.back_up(&image, "vm");
    let first_hash = disk::hash_file(&image);
    assert_eq!(
        first["bytes_logical"].as_u64(),
        Some(64 * MIB + 12_345),
        "{first}"
    );
    let packs = repository.files("data");

    let again = repository.back_up(&image, "vm");
    assert_eq!(
        again["root"], first["root"],
        "the same disk has the same root"
    );
    assert_eq!(again["bytes_stored"].as_u64(), Some(0), "{again}");
    let sent = again["bytes_sent"].as_u64().expect("bytes_sent");
    assert!(
        sent <= 9 * 32,
        "one hash for each of the nine leaves: {again}"
    );
    assert_eq!(
        repository.files("data"),
        packs,
        "an unchanged disk stores nothing"
    );

    disk::change(&image, 10, &mut random);
    let changed = repository.back_up(&image, "vm");
    let changed_hash = disk::hash_file(&image);
    assert_ne!(changed["root"], first["root"]);
    let sent = changed["bytes_sent"].as_u64().expect("bytes_sent");
    assert!(
        (1..=30 * 64 * 1024).contains(&sent),
        "ten writes touch at most 30 blocks: {changed}"
    );

    let versions = repository.versions("vm");
    assert_eq!(versions.len(), 3, "{versions:?}");
    assert_eq!(
        repository.restored_hash(&format!("vm@{}", versions[0].version)),
        first_hash
    );
    assert_eq!(
        repository.restored_hash(&format!("vm@{}", versions[1].version)),
        first_hash
    );
    assert_eq!(repository.restored_hash("vm"), changed_hash);
    repository.repo("verify", &[]).expect(0);
}

#[test]
fn a_wrong_changed_range_list_is_noticed_by_the_audit() {
    let site = Site::new();
    let repository = site.init("repository");
    let mut random = Random::new(2);
    let image = site.path("disk.raw");
    disk::create(&image, 16 * MIB, 16 * MIB, &mut random);
    repository.back_up(&image, "vm");

    let ranges = disk::change(&image, 6, &mut random);
    let file = site.path("ranges");
    // The tracker tells the first change and is silent about the others.
    let (offset, length) = ranges[0];
    fs::write(&file, format!("{offset} {length}\n")).expect("write the ranges");
    let report = repository.disk(
        "backup",
        &[
            text(&image),
            "--name",
            "vm",
            "--changed-ranges",
            text(&file),
            "--audit",
            "1",
        ],
    );
    assert!(matches!(report.status.code(), Some(0 | 3)), "{report:#?}");
    assert_eq!(
        repository.restored_hash("vm"),
        disk::hash_file(&image),
        "healed by comparing everything"
    );
}

#[test]
fn given_ranges_are_all_that_is_read() {
    let site = Site::new();
    let repository = site.init("repository");
    let mut random = Random::new(3);
    let image = site.path("disk.raw");
    disk::create(&image, 64 * MIB, 64 * MIB, &mut random);
    repository.back_up(&image, "vm");

    let ranges = disk::change(&image, 5, &mut random);
    let file = site.path("ranges");
    let lines: Vec<String> = ranges
        .iter()
        .map(|(offset, length)| format!("{offset} {length}"))
        .collect();
    fs::write(&file, lines.join("\n")).expect("write the ranges");
    let report = repository
        .disk(
            "backup",
            &[
                text(&image),
                "--name",
                "vm",
                "--changed-ranges",
                text(&file),
                "--audit",
                "0",
            ],
        )
        .expect(0)
        .json();
    let read = report["bytes_read"].as_u64().expect("bytes_read");
    assert!(
        read <= 15 * 64 * 1024,
        "five writes touch at most 15 blocks: {report}"
    );
    assert_eq!(repository.restored_hash("vm"), disk::hash_file(&image));
}

#[test]
fn forgotten_versions_give_their_space_back() {
    let site = Site::new();
    let repository = site.init("repository");
    let mut random = Random::new(4);
    let image = site.path("disk.raw");
    disk::create(&image, 32 * MIB, 16 * MIB, &mut random);
    let first = repository.back_up(&image, "vm");
    disk::create(&image, 32 * MIB, 4 * MIB, &mut random);
    repository.back_up(&image, "vm");
    assert!(repository.size_bytes("data") > 19 * MIB);

    let version = first["version"].as_u64().expect("a version");
    repository
        .disk("forget", &[&format!("vm@{version}")])
        .expect(0);
    repository.repo("gc", &[]).expect(0);
    assert!(
        repository.size_bytes("data") < 6 * MIB,
        "{} bytes are left",
        repository.size_bytes("data")
    );
    assert_eq!(repository.versions("vm").len(), 1);
    assert_eq!(repository.restored_hash("vm"), disk::hash_file(&image));
    repository
        .disk(
            "restore",
            &[&format!("vm@{version}"), text(&site.path("gone.raw"))],
        )
        .expect(1);
    assert!(
        !site.path("gone.raw").exists(),
        "a restore that fails leaves nothing under its name"
    );
}

#[test]
fn a_difference_is_found_and_said_by_the_exit_code() {
    let site = Site::new();
    let repository = site.init("repository");
    let mut random = Random::new(5);
    let image = site.path("disk.raw");
    disk::create(&image, 16 * MIB, 8 * MIB, &mut random);
    repository.back_up(&image, "vm");
    repository.disk("check", &[text(&image), "vm"]).expect(0);
    disk::change(&image, 1, &mut random);
    repository.disk("check", &[text(&image), "vm"]).expect(3);
}

#[test]
fn a_repository_does_not_open_with_another_key() {
    let site = Site::new();
    let mine = site.init("mine");
    let other = site.init("other");
    let mixed = super::site::Repository {
        site: &site,
        place: mine.place.clone(),
        key_file: other.key_file.clone(),
    };
    let outcome = mixed.disk("list", &[]).expect(1);
    let problem = outcome.json();
    assert!(
        problem["problem"]["code"]
            .as_str()
            .is_some_and(|code| code.starts_with("HK-")),
        "{problem}"
    );
}
