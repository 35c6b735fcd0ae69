//! `kill -9` at random moments: what was committed stays, what was not is nowhere, and the next run just works.
//!
//! Kills pile up in one repository here; each call by itself is in [`super::crash`].
//!
//! Each test first measures one undisturbed run, then kills at moments spread over that time. The seed is printed, and
//! `HIKAE_KILL_SEED` brings it back; moments within a process are not reproducible to the instruction.

use std::hash::{BuildHasher, Hasher};
use std::path::PathBuf;
use std::time::Duration;

use super::disk::{self, Random};
use super::site::{Listed, Repository, Site, os};

const MIB: u64 = 1 << 20;

pub(super) fn rounds(usual: u64) -> u64 {
    let given = std::env::var("HIKAE_KILL_ROUNDS").ok();
    given.map_or(usual, |text| {
        text.parse().expect("HIKAE_KILL_ROUNDS is a number")
    })
}

pub(super) fn chosen_seed() -> u64 {
    let given = std::env::var("HIKAE_KILL_SEED").ok();
    let seed = given.map_or_else(
        || {
            std::collections::hash_map::RandomState::new()
                .build_hasher()
                .finish()
        },
        |text| text.parse().expect("HIKAE_KILL_SEED is a number"),
    );
    eprintln!("HIKAE_KILL_SEED={seed}");
    seed
}

pub(super) fn seeded() -> Random {
    Random::new(chosen_seed())
}

/// A moment within a run that takes about this long, or a little after it.
pub(super) fn moment(typical: Duration, random: &mut Random) -> Duration {
    typical.mul_f64(random.below(1100) as f64 / 1000.0)
}

/// What must come back.
pub(super) struct Ledger {
    pub(super) known: Vec<(Listed, blake3::Hash)>,
}

impl Ledger {
    /// Takes note of a version that may have been committed, and asserts that no other came or went.
    #[track_caller]
    pub(super) fn reconcile(
        &mut self,
        repository: &Repository<'_>,
        image: blake3::Hash,
        succeeded: Option<bool>,
    ) {
        let listed = repository.versions("vm");
        let known: Vec<Listed> = self
            .known
            .iter()
            .map(|(listed, _)| listed.clone())
            .collect();
        assert_eq!(
            listed.get(..known.len()),
            Some(known.as_slice()),
            "a committed version changed or is gone"
        );
        let new = &listed[known.len()..];
        assert!(new.len() <= 1, "one run makes at most one version: {new:?}");
        if let Some(succeeded) = succeeded {
            assert!(
                !succeeded || new.len() == 1,
                "a run that succeeded committed"
            );
        } else {
            assert!(new.is_empty(), "nothing was backed up: {new:?}");
        }
        self.known
            .extend(new.iter().map(|one| (one.clone(), image)));
    }

    #[track_caller]
    pub(super) fn check_one(&self, repository: &Repository<'_>, random: &mut Random) {
        if let Some(at) = random.next().checked_rem(self.known.len() as u64) {
            let (listed, hash) = &self.known[usize::try_from(at).expect("small")];
            let restored = repository.restored_hash(&format!("vm@{}", listed.version));
            assert_eq!(
                restored, *hash,
                "version {} came back different",
                listed.version
            );
        }
    }

    #[track_caller]
    pub(super) fn check_all(&self, repository: &Repository<'_>) {
        for (listed, hash) in &self.known {
            let restored = repository.restored_hash(&format!("vm@{}", listed.version));
            assert_eq!(
                restored, *hash,
                "version {} came back different",
                listed.version
            );
        }
    }
}

/// A repository with one version, and how long making it took.
pub(super) fn begin<'a>(
    site: &'a Site,
    random: &mut Random,
) -> (Repository<'a>, PathBuf, Ledger, Duration) {
    let repository = site.init("repository");
    let image = site.path("disk.raw");
    disk::create(&image, 96 * MIB, 40 * MIB, random);
    let outcome = site
        .run(repository.backup_arguments(&image, "vm"))
        .expect(0);
    let mut ledger = Ledger { known: Vec::new() };
    ledger.reconcile(&repository, disk::hash_file(&image), Some(true));
    (repository, image, ledger, outcome.took)
}

#[test]
fn a_killed_backup_commits_whole_or_not_at_all() {
    let mut random = seeded();
    let site = Site::new();
    let (repository, image, mut ledger, typical) = begin(&site, &mut random);
    for round in 0..rounds(7) {
        if random.below(3) == 0 {
            // New content everywhere: many packs are in flight when the blow falls.
            disk::create(&image, 96 * MIB, 40 * MIB, &mut random);
        } else {
            disk::change(&image, 1 + random.below(40), &mut random);
        }
        let hash = disk::hash_file(&image);
        let running = site.start(repository.backup_arguments(&image, "vm"));
        let outcome = running.kill_after(moment(typical, &mut random));
        eprintln!(
            "round {round}: {:?} after {:?}",
            outcome.status, outcome.took
        );
        ledger.reconcile(&repository, hash, Some(outcome.status.success()));
        ledger.check_one(&repository, &mut random);
    }
    site.run(repository.backup_arguments(&image, "vm"))
        .expect(0);
    ledger.reconcile(&repository, disk::hash_file(&image), Some(true));
    repository.repo("verify", &[]).expect(0);
    ledger.check_all(&repository);
}

#[test]
fn a_killed_gc_keeps_every_visible_version() {
    let mut random = seeded();
    let site = Site::new();
    let (repository, image, mut ledger, _) = begin(&site, &mut random);
    let typical = repository.repo("gc", &[]).expect(0).took;
    for round in 0..rounds(7) {
        disk::change(&image, 60, &mut random);
        let hash = disk::hash_file(&image);
        site.run(repository.backup_arguments(&image, "vm"))
            .expect(0);
        ledger.reconcile(&repository, hash, Some(true));
        if ledger.known.len() > 2 {
            let at = usize::try_from(random.below(ledger.known.len() as u64 - 1)).expect("small");
            let (listed, _) = ledger.known.remove(at);
            repository
                .disk("forget", &[&format!("vm@{}", listed.version)])
                .expect(0);
        }
        let running = site.start(repository.repo_arguments("gc", &["--stall", "6"]));
        let outcome = running.kill_after(moment(typical.mul_f64(2.0), &mut random));
        eprintln!(
            "round {round}: {:?} after {:?}",
            outcome.status, outcome.took
        );
        ledger.reconcile(&repository, hash, None);
        ledger.check_one(&repository, &mut random);
    }
    while ledger.known.len() > 1 {
        let (listed, _) = ledger.known.remove(0);
        repository
            .disk("forget", &[&format!("vm@{}", listed.version)])
            .expect(0);
    }
    repository.repo("gc", &["--stall", "6"]).expect(0);
    repository.repo("gc", &["--stall", "6"]).expect(0);
    repository.repo("verify", &[]).expect(0);
    ledger.check_all(&repository);
    let live = 60 * MIB + rounds(7) * 60 * 3 * (64 << 10);
    let left = repository.size_bytes("data");
    assert!(
        left < live.min(100 * MIB) * 2,
        "{left} bytes are left of at most {live} live ones"
    );
}

#[test]
fn a_killed_copy_goes_on_where_it_was() {
    let mut random = seeded();
    let site = Site::new();
    let (repository, image, mut ledger, _) = begin(&site, &mut random);
    let mut copies = 0;
    let target = site.init("target");
    let arguments = |target: &Repository<'_>| {
        let mut arguments = repository.repo_arguments("copy", &[]);
        arguments.extend([os("--to"), target.place.clone(), os("--to-key-file")]);
        arguments.push(target.key_file.clone().into());
        arguments
    };
    let scratch = site.init("scratch");
    let typical = site.run(arguments(&scratch)).expect(0).took;
    for round in 0..rounds(6) {
        if round % 3 == 2 {
            disk::change(&image, 100, &mut random);
            site.run(repository.backup_arguments(&image, "vm"))
                .expect(0);
            ledger.reconcile(&repository, disk::hash_file(&image), Some(true));
        }
        let outcome = site
            .start(arguments(&target))
            .kill_after(moment(typical, &mut random));
        eprintln!(
            "round {round}: {:?} after {:?}",
            outcome.status, outcome.took
        );
        let copied = target.versions("vm");
        assert!(copied.len() >= copies, "a copied version is gone");
        copies = copied.len();
        let roots: Vec<&str> = ledger
            .known
            .iter()
            .map(|(listed, _)| listed.root.as_str())
            .collect();
        assert!(
            copied.iter().all(|one| roots.contains(&one.root.as_str())),
            "{copied:?} of {roots:?}"
        );
    }
    site.run(arguments(&target)).expect(0);
    target.repo("verify", &[]).expect(0);
    let copied = target.versions("vm");
    assert_eq!(copied.len(), ledger.known.len(), "{copied:?}");
    let newest = &ledger.known[ledger.known.len() - 1];
    assert_eq!(copied[copied.len() - 1].root, newest.0.root);
    assert_eq!(target.restored_hash("vm"), newest.1);
}
