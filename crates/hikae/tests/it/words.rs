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
