//! What is typed, what the environment says, and how a command that makes no sense ends.

use super::disk::{self, Random};
use super::site::{Site, os};

#[test]
fn what_is_typed_outweighs_the_environment() {
    let site = Site::new();
    let (one, other) = (site.init("one"), site.init("other"));
    let image = site.path("disk.raw");
    disk::create(&image, 2 << 20, 1 << 20, &mut Random::new(1));
    site.run(one.backup_arguments(&image, "vm")).expect(0);

    let mut typed = site.command(one.repo_arguments("verify", &[]));
    typed
        .env("HIKAE_REPO", &other.place)
        .env("HIKAE_KEY_FILE", &other.key_file)
        .env("HIKAE_PASSPHRASE_FILE", site.path("nothing"));
    let report = site.start_command(typed).wait().expect(0).json();
    assert_eq!(report["sound_points"], 1, "{report}");

    let mut told = site.command([os("disk"), os("list")]);
    told.env("HIKAE_REPO", &one.place)
        .env("HIKAE_KEY_FILE", &one.key_file);
    let listed = site.start_command(told).wait().expect(0).stdout;
    assert!(listed.contains("\"vm\""), "{listed}");

    let mut unclear = site.command([os("disk"), os("list")]);
    unclear
        .env("HIKAE_REPO", &one.place)
        .env("HIKAE_KEY_FILE", &one.key_file)
        .env("HIKAE_PASSPHRASE_FILE", site.path("nothing"));
    site.start_command(unclear).wait().expect(2);
}

#[test]
fn words_that_make_no_sense_are_a_problem_too() {
    let site = Site::new();
    let outcome = site.run(["repo", "verfy"]).expect(2);
    assert_eq!(outcome.json()["problem"]["code"], "HK-9002");
    let repository = site.init("repository");
    let image = site.path("disk.raw");
    disk::create(&image, 1 << 20, 1 << 20, &mut Random::new(2));
    let mut arguments = repository.backup_arguments(&image, "vm");
    arguments.extend([os("--audit"), os("2")]);
    site.run(arguments).expect(2);
}

#[test]
fn a_repository_wants_an_empty_folder_and_its_key_elsewhere() {
    let site = Site::new();
    std::fs::create_dir_all(site.path("full")).expect("a folder");
    std::fs::write(site.path("full/letter"), "dear").expect("a file");
    let outcome = site.run(["repo", "init", "full"]).expect(1);
    assert_eq!(outcome.json()["problem"]["code"], "HK-3006");
    let left = std::fs::read_dir(site.path("full")).expect("a folder");
    assert_eq!(left.count(), 1);

    let repository = site.init("repository");
    let inside = site.path("repository/key");
    let inside = inside.to_str().expect("text");
    let mut arguments = vec![
        os("repo"),
        os("key"),
        os("export"),
        repository.place.clone(),
    ];
    arguments.extend([os("--key-file"), repository.key_file.clone().into()]);
    arguments.extend([os("--file"), os(inside)]);
    let outcome = site.run(arguments).expect(1);
    assert_eq!(outcome.json()["problem"]["code"], "HK-3006");
    assert!(!site.path("repository/key").exists());
}

#[test]
fn a_parent_that_is_not_there_is_refused_and_one_that_is_not_used_is_said() {
    let site = Site::new();
    let repository = site.init("repository");
    let image = site.path("disk.raw");
    disk::create(&image, 4 << 20, 2 << 20, &mut Random::new(3));
    let ranges = site.path("ranges");
    std::fs::write(&ranges, "0 65536\n").expect("write the ranges");
    let run = |more: &[&str]| {
        let mut arguments = repository.backup_arguments(&image, "vm");
        arguments.extend(more.iter().map(|word| os(word)));
        site.run(arguments)
    };
    let ranges = ranges.to_str().expect("text");
    let first = run(&["--changed-ranges", ranges]).expect(0).json();
    let because = first["compared_everything_because"].as_str();
    assert!(
        because.is_some_and(|text| text.contains("no version")),
        "{first}"
    );
    run(&[]).expect(0);

    for parent in ["7", "vm@7", "other@1"] {
        let outcome = run(&["--changed-ranges", ranges, "--parent", parent]).expect(2);
        let problem = &outcome.json()["problem"];
        assert_eq!(problem["code"], "HK-3004", "{problem}");
        assert!(problem.to_string().contains("--parent"), "{problem}");
    }
    run(&["--changed-ranges", ranges, "--parent", "seven"]).expect(2);
    assert_eq!(repository.versions("vm").len(), 2);

    let older = run(&["--changed-ranges", ranges, "--parent", "vm@1"]).expect(0);
    let report = older.json();
    let because = report["compared_everything_because"].as_str();
    assert!(
        because.is_some_and(|text| text.contains("version 1")),
        "{report}"
    );
    assert!(older.stderr.contains("version 1"), "{older:#?}");
    assert_eq!(report["compared_everything_after_a_lie"], false);
    let used = run(&["--changed-ranges", ranges, "--parent", "3"])
        .expect(0)
        .json();
    assert!(used["compared_everything_because"].is_null(), "{used}");
}

#[test]
fn a_store_that_was_tried_is_left_as_it_was_found() {
    let site = Site::new();
    site.run(["repo", "check-store", "new"]).expect(0);
    assert!(!site.path("new").exists());
    std::fs::create_dir_all(site.path("full/inner")).expect("a folder");
    std::fs::write(site.path("full/letter"), "dear").expect("a file");
    site.run(["repo", "check-store", "full"]).expect(0);
    let left = std::fs::read_dir(site.path("full")).expect("a folder");
    assert_eq!(left.count(), 2);
    std::fs::create_dir_all(site.path("empty")).expect("a folder");
    site.run(["repo", "check-store", "empty"]).expect(0);
    site.run(["repo", "init", "empty", "--key-file", "key"])
        .expect(0);
}

#[test]
fn who_stops_reading_the_output_makes_nothing_fail() {
    use std::process::Stdio;
    let site = Site::new();
    let repository = site.init("repository");
    for arguments in [
        vec![os("completions"), os("bash")],
        repository.repo_arguments("stats", &[]),
    ] {
        let (reader, writer) = std::io::pipe().expect("a pipe");
        drop(reader);
        let ended = site
            .command(arguments)
            .stdout(Stdio::from(writer))
            .stderr(Stdio::piped())
            .output()
            .expect("it runs");
        let errors = String::from_utf8_lossy(&ended.stderr);
        assert!(ended.status.success() && errors.is_empty(), "{errors}");
    }
}
