//! A writer that is stopped across a whole garbage collection can never commit onto packs that are gone.

use rustix::process::Signal;

use super::disk::{self, Random};
use super::site::Site;

const MIB: u64 = 1 << 20;

#[test]
fn a_writer_stopped_across_a_whole_gc_is_fenced_and_its_disk_is_safe_on_the_next_run() {
    let site = Site::new();
    let repository = site.init("repository");
    let mut random = Random::new(6);
    let shared = site.path("shared.raw");
    disk::create(&shared, 256 * MIB, 64 * MIB, &mut random);
    repository.back_up(&shared, "old");

    // The writer deduplicates against blocks of `old`, which nobody else needs any more.
    repository.disk("forget", &["old"]).expect(0);
    let image = site.path("disk.raw");
    std::fs::copy(&shared, &image).expect("copy the disk");
    disk::change(&image, 1500, &mut random);
    let packs = repository.files("data").len();
    let writer = site.start(repository.backup_arguments(&image, "vm"));
    writer.wait_until("it put a pack", || repository.files("data").len() > packs);
    writer.signal(Signal::STOP);

    let before = repository.files("data");
    repository.repo("gc", &["--stall", "6"]).expect(0);
    let after = repository.files("data");
    assert!(
        before.iter().any(|pack| !after.contains(pack)),
        "gc deleted what only `old` needed"
    );

    writer.signal(Signal::CONT);
    let outcome = writer.wait().expect(5);
    assert!(outcome.json()["problem"].is_object(), "{outcome:#?}");
    for warning in outcome.stderr.lines() {
        let is_whole = !warning.contains("could not be") || warning.contains("was broken");
        assert!(is_whole, "a warning without its cause: {outcome:#?}");
    }
    assert!(
        repository.versions("vm").is_empty(),
        "nothing was committed"
    );

    repository.back_up(&image, "vm");
    assert_eq!(repository.restored_hash("vm"), disk::hash_file(&image));
    repository.repo("verify", &[]).expect(0);
}

#[test]
fn a_second_writer_of_a_name_is_told_to_wait_until_the_first_is_dead() {
    let site = Site::new();
    let repository = site.init("repository");
    let mut random = Random::new(7);
    let image = site.path("disk.raw");
    disk::create(&image, 256 * MIB, 96 * MIB, &mut random);
    let writer = site.start(repository.backup_arguments(&image, "vm"));
    writer.wait_until("it holds a lease", || {
        !repository.files("leases").is_empty()
    });
    writer.signal(Signal::STOP);
    site.run(repository.backup_arguments(&image, "vm"))
        .expect(4);

    writer.signal(Signal::KILL);
    writer.wait();
    repository.back_up(&image, "vm");
    assert_eq!(repository.restored_hash("vm"), disk::hash_file(&image));
}
