//! Files through versions: found by name, followed, compared, held against a naive model of an ext4 volume that is changed
//! by `debugfs`. Where its tools are missing the tests are skipped aloud, and fail in CI.

mod model;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use engine::inside::{
    ChainScope, ChangedFile, Doubt, FileChange, FindReport, FindRequest, HistoryReport,
    NamePattern, PathEvent, PathState, diff_files, find, history, newest_with,
};
use repo::{OpenOptions, ProtectedName, Repository};
use store::Store;

use super::support::{World, context, environment, selector};
use model::{Guest, Tree, have_tools};

fn name() -> ProtectedName {
    ProtectedName::new("vm").unwrap()
}

/// A repository whose local cache is kept, as another process opens it.
fn reopened(world: &World, cache: &tempfile::TempDir) -> Repository {
    let store: Arc<dyn Store> = world.store.clone();
    let options = OpenOptions {
        cache_dir: Some(cache.path().to_owned()),
        ..OpenOptions::default()
    };
    Repository::open(store, &world.unlock, &options, &environment()).unwrap()
}

fn search(
    repository: &Repository,
    text: &str,
    change: impl FnOnce(&mut FindRequest),
) -> FindReport {
    let mut request = FindRequest {
        name: Some(name()),
        scope: ChainScope::All,
        pattern: NamePattern {
            text: text.to_owned(),
            is_whole: false,
            ignores_case: false,
        },
        only_gone: false,
        limit: 100_000,
    };
    change(&mut request);
    find(repository, &request, &[], context()).unwrap()
}

fn followed(repository: &Repository, path: &str) -> HistoryReport {
    history(repository, (&name(), ChainScope::All), path, &[], context()).unwrap()
}

/// Versions with a path, by the naive way.
fn versions_with(trees: &[Tree], path: &str) -> Vec<u64> {
    (1..)
        .zip(trees)
        .filter(|(_, tree)| tree.contains_key(path))
        .map(|(number, _)| number)
        .collect()
}

/// Every path of a report with the versions that have it.
fn told(report: &FindReport) -> BTreeMap<String, Vec<u64>> {
    let versions = |file: &engine::inside::FoundFile| {
        file.versions
            .iter()
            .flat_map(|range| range.first..=range.last)
            .collect()
    };
    report
        .files
        .iter()
        .map(|file| (file.display_path(), versions(file)))
        .collect()
}

/// Compares every answer with the model.
#[track_caller]
fn expect_model(repository: &Repository, trees: &[Tree], seed: u64) {
    let all: BTreeSet<&String> = trees.iter().flat_map(Tree::keys).collect();
    let report = search(repository, "*", |_| {});
    assert_eq!(report.damage, Vec::<String>::new());
    let mut found = told(&report);
    found.remove("/lost+found");
    let expected: BTreeMap<String, Vec<u64>> = all
        .iter()
        .map(|path| ((*path).clone(), versions_with(trees, path)))
        .collect();
    assert_eq!(found, expected, "seed {seed}");
    for file in &report.files {
        let newest = usize::try_from(file.newest.sequence).unwrap() - 1;
        if let Some(Some(bytes)) = trees[newest].get(&file.display_path()) {
            assert_eq!(file.size_bytes, Some(bytes.len() as u64), "seed {seed}");
        }
    }
    for path in all {
        let report = followed(repository, path);
        for (number, tree) in (1_u64..).zip(trees) {
            let run = report
                .runs
                .iter()
                .find(|run| (run.first.sequence..=run.last.sequence).contains(&number));
            let hash = match &run.unwrap().state {
                PathState::Present(file) => Some(file.content.map(|hash| hash.to_string())),
                PathState::Absent => None,
                PathState::Unreadable(why) => panic!("seed {seed}: {path}: {why}"),
            };
            let expected = tree.get(path).map(|bytes| {
                let bytes = bytes.as_ref()?;
                Some(blake3::hash(bytes).to_hex().to_string())
            });
            assert_eq!(hash, expected, "seed {seed}: {path} in {number}");
        }
    }
    for (number, pair) in (1_u64..).zip(trees.windows(2)) {
        expect_differences(repository, (number, number + 1), (&pair[0], &pair[1]), seed);
    }
    let last = trees.len() as u64;
    expect_differences(
        repository,
        (1, last),
        (&trees[0], &trees[trees.len() - 1]),
        seed,
    );
}

#[track_caller]
fn expect_differences(
    repository: &Repository,
    (a, b): (u64, u64),
    (old, new): (&Tree, &Tree),
    seed: u64,
) {
    let (mut added, mut removed, mut changed) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
    let mut visit = |file: ChangedFile| {
        match file.change {
            FileChange::Added => added.insert(file.display_path()),
            FileChange::Removed => removed.insert(file.display_path()),
            FileChange::Changed => changed.insert(file.display_path()),
            FileChange::MetadataChanged => true,
            FileChange::Moved | FileChange::MovedAndChanged => {
                removed.insert(file.display_from().unwrap());
                added.insert(file.display_path())
            }
        };
        Ok(())
    };
    let sides = (selector(&format!("vm@{a}")), selector(&format!("vm@{b}")));
    let report = diff_files(
        repository,
        (&sides.0, &sides.1),
        None,
        (Doubt::Read, &[]),
        context(),
        &mut visit,
    )
    .unwrap();
    assert_eq!(report.damage, Vec::<String>::new());
    let only = |one: &Tree, other: &Tree| -> BTreeSet<String> {
        one.keys()
            .filter(|path| !other.contains_key(*path))
            .cloned()
            .collect()
    };
    assert_eq!(added, only(new, old), "seed {seed}: {a} to {b}");
    assert_eq!(removed, only(old, new), "seed {seed}: {a} to {b}");
    let differing: BTreeSet<String> = new
        .iter()
        .filter(|(path, bytes)| old.get(*path).is_some_and(|before| before != *bytes))
        .map(|(path, _)| path.clone())
        .collect();
    assert_eq!(changed, differing, "seed {seed}: {a} to {b}");
}

#[test]
fn random_chains_of_versions_are_told_as_a_naive_model_tells_them() {
    if !have_tools() {
        return;
    }
    for seed in 1..=3 {
        let world = World::new();
        let cache = tempfile::tempdir().unwrap();
        let mut guest = Guest::new(seed);
        let mut trees = Vec::new();
        for _ in 0..6 {
            guest.change(12);
            world.back_up("vm", &guest.disk());
            trees.push(guest.tree().clone());
            // Each version is indexed by a process of its own.
            search(&reopened(&world, &cache), "nothing", |_| {});
        }
        expect_model(&reopened(&world, &cache), &trees, seed);
        // And all at once, without anything from before.
        expect_model(
            &reopened(&world, &tempfile::tempdir().unwrap()),
            &trees,
            seed,
        );
    }
}

/// What the sixth version has more than the fifth is one file, and little is read to know that.
#[track_caller]
fn expect_one_addition(repository: &Repository) {
    let differences = |path: Option<&str>| {
        let mut changes = Vec::new();
        let report = diff_files(
            repository,
            (&selector("vm@5"), &selector("vm@6")),
            path,
            (Doubt::Read, &[]),
            context(),
            &mut |file| {
                changes.push((file.change, file.display_path()));
                Ok(())
            },
        )
        .unwrap();
        (changes, report)
    };
    let (changes, report) = differences(None);
    assert_eq!(changes, [(FileChange::Added, "/f9/new.txt".to_owned())]);
    // Files that share a block with the folder that changed.
    assert!(report.compared_by_reading <= 3, "{report:?}");
    assert!(report.cost.blocks_fetched < 80, "{report:?}");
    assert_eq!(differences(Some("/f3")).0, []);
}

#[test]
fn what_did_not_change_is_neither_read_nor_listed_again() {
    if !have_tools() {
        return;
    }
    let world = World::new();
    let cache = tempfile::tempdir().unwrap();
    let mut guest = Guest::new(7);
    guest.make_folders(40, 100_000);
    guest.write("/f3/kept.bin", vec![7; 3 << 20]);
    // What is written later shares no block with it.
    guest.write("/f4/padding.bin", vec![8; 200_000]);
    world.back_up("vm", &guest.disk());
    let repository = reopened(&world, &cache);
    let alone = followed(&repository, "/f3/kept.bin").cost;
    let first = search(&repository, "kept", |_| {});
    assert!(first.folders_listed >= 40, "{first:?}");

    // Bytes change that belong to no file: nothing of a file system is read for that.
    for filling in 1..=4 {
        guest.fill_free_space(filling);
        world.back_up("vm", &guest.disk());
    }
    let repository = reopened(&world, &cache);
    let report = followed(&repository, "/f3/kept.bin");
    assert_eq!(report.runs.len(), 1);
    assert_eq!(report.runs[0].versions, 5);
    assert_eq!(report.cost.versions_unchanged, 4);
    assert_eq!(report.cost.contents_read, 1);
    assert_eq!(report.cost.blocks_fetched, alone.blocks_fetched);
    let again = search(&repository, "kept", |_| {});
    assert_eq!(told(&again)["/f3/kept.bin"], [1, 2, 3, 4, 5]);
    assert_eq!(again.folders_listed, 0);
    assert_eq!(again.versions_walked, 0);

    // One file more in one folder: that folder is listed, the others are known by their blocks.
    guest.write("/f9/new.txt", b"new".to_vec());
    world.back_up("vm", &guest.disk());
    let repository = reopened(&world, &cache);
    let more = search(&repository, "kept", |_| {});
    assert!(
        more.folders_listed <= 3 && more.folders_known >= 38,
        "{more:?}"
    );
    let report = followed(&repository, "/f3/kept.bin");
    assert_eq!(
        report.cost.contents_read, 1,
        "the same blocks, the same bytes"
    );

    // What was searched once is not read again, whatever is looked for; only sizes of new hits are looked up.
    let repository = reopened(&world, &cache);
    let second = search(&repository, "kept", |_| {});
    assert_eq!((second.cost.blocks_fetched, second.folders_listed), (0, 0));
    let other = search(&repository, "nobody has this name", |_| {});
    assert_eq!((other.cost.blocks_fetched, other.versions), (0, 6));
    expect_one_addition(&repository);
}

/// Searches over the versions that [`a_deleted_file_is_found_in_the_newest_version_that_has_it`] makes.
#[track_caller]
fn expect_found(repository: &Repository) {
    let gone = search(repository, "lost r", |request| {
        request.pattern.ignores_case = true;
        request.only_gone = true;
    });
    assert_eq!(
        told(&gone),
        BTreeMap::from([("/f1/Lost Report.txt".to_owned(), vec![1, 2, 5])])
    );
    assert!(search(repository, "lost r", |_| {}).files.is_empty());
    let exact = search(repository, "later", |request| {
        request.pattern.is_whole = true
    });
    assert!(exact.files.is_empty());
    let by_path = search(repository, "/f*/e*.txt", |_| {});
    assert_eq!(
        told(&by_path),
        BTreeMap::from([("/f1/early.txt".to_owned(), (1..=6).collect())])
    );
    let cut = search(repository, "f", |request| request.limit = 2);
    assert!(cut.is_cut && cut.files.len() == 2);
}

#[test]
fn a_deleted_file_is_found_in_the_newest_version_that_has_it() {
    if !have_tools() {
        return;
    }
    let world = World::new();
    let mut guest = Guest::new(3);
    guest.make_folders(3, 10);
    guest.write("/f1/early.txt", b"early".to_vec());
    guest.write("/f1/Lost Report.txt", b"one".to_vec());
    world.back_up("vm", &guest.disk());
    guest.write("/f1/Lost Report.txt", b"two!".to_vec());
    world.back_up("vm", &guest.disk());
    guest.remove("/f1/Lost Report.txt");
    world.back_up("vm", &guest.disk());
    guest.write("/f2/later.txt", b"later".to_vec());
    world.back_up("vm", &guest.disk());
    guest.write("/f1/Lost Report.txt", b"two!".to_vec());
    world.back_up("vm", &guest.disk());
    guest.remove("/f1/Lost Report.txt");
    world.back_up("vm", &guest.disk());

    let report = followed(&world.repository, "/f1/Lost Report.txt");
    let events: Vec<_> = report
        .runs
        .iter()
        .map(|run| (run.event, run.first.sequence, run.last.sequence))
        .collect();
    assert_eq!(
        events,
        [
            (PathEvent::ThereFromTheStart, 1, 1),
            (PathEvent::Changed, 2, 2),
            (PathEvent::Deleted, 3, 4),
            (PathEvent::Reappeared, 5, 5),
            (PathEvent::Deleted, 6, 6),
        ]
    );
    assert_eq!(report.newest_with.unwrap().0.sequence, 5);
    let newest = |paths: &[&str], scope| {
        let paths: Vec<String> = paths.iter().map(|path| (*path).to_owned()).collect();
        let found = newest_with(&world.repository, (&name(), scope), &paths, &[], context());
        found.unwrap().map(|version| version.sequence)
    };
    assert_eq!(newest(&["/f1/Lost Report.txt"], ChainScope::All), Some(5));
    assert_eq!(newest(&["/f1/lost*", "/f1/Lost*"], ChainScope::All), None);
    assert_eq!(newest(&["/f1/Lost*"], ChainScope::UpTo(4)), Some(2));
    assert_eq!(
        newest(&["/f1/Lost*", "/f2/later.txt"], ChainScope::All),
        Some(5)
    );
    assert_eq!(newest(&["/f1/never"], ChainScope::All), None);
    expect_found(&world.repository);
}

#[test]
fn bytes_overwritten_in_place_are_told_though_the_version_before_needed_no_reading() {
    if !have_tools() {
        return;
    }
    let world = World::new();
    let mut guest = Guest::new(11);
    guest.make_folders(4, 100_000);
    let mut bytes = vec![7; 3 << 20];
    bytes[1 << 20..][..16].copy_from_slice(b"the first bytes!");
    guest.write("/f3/large.bin", bytes);
    guest.write("/f1/padding.bin", vec![8; 200_000]);
    world.back_up("vm", &guest.disk());
    // The folder and a block of inodes change, the file does not.
    guest.write("/f3/beside.txt", b"beside".to_vec());
    world.back_up("vm", &guest.disk());
    guest.overwrite_in_place("/f3/large.bin", b"the first bytes!", b"another sixteen!");
    world.back_up("vm", &guest.disk());

    let report = followed(&world.repository, "/f3/large.bin");
    let events: Vec<_> = report
        .runs
        .iter()
        .map(|run| (run.event, run.first.sequence, run.last.sequence))
        .collect();
    assert_eq!(
        events,
        [
            (PathEvent::ThereFromTheStart, 1, 2),
            (PathEvent::Changed, 3, 3)
        ]
    );
    assert_eq!(report.cost.contents_read, 2, "{report:?}");
    let PathState::Present(file) = &report.runs[1].state else {
        panic!("{report:?}");
    };
    let bytes = guest.tree()["/f3/large.bin"].as_ref().unwrap();
    assert_eq!(
        file.content.unwrap().to_string(),
        blake3::hash(bytes).to_hex().to_string()
    );
}

#[test]
fn a_name_is_found_that_came_to_a_folder_known_by_its_blocks() {
    if !have_tools() {
        return;
    }
    let world = World::new();
    let cache = tempfile::tempdir().unwrap();
    let mut guest = Guest::new(13);
    guest.make_folders(40, 100_000);
    world.back_up("vm", &guest.disk());
    search(&reopened(&world, &cache), "more", |_| {});
    guest.write("/f9/new.txt", b"new".to_vec());
    let second = guest.disk();
    world.back_up("vm", &second);
    let known = search(&reopened(&world, &cache), "more", |_| {});
    assert!(known.folders_known >= 38, "{known:?}");
    // Nothing changes but one block of one of the folders that were known.
    guest.name_again("/f3", "file.txt", "more.txt");
    let (third, blocks) = second.with_blocks_of(&guest.disk());
    assert_eq!(blocks, 1);
    world.back_up("vm", &third);
    let report = search(&reopened(&world, &cache), "more", |_| {});
    assert_eq!(
        told(&report),
        BTreeMap::from([("/f3/more.txt".to_owned(), vec![3])])
    );
}

#[test]
fn a_clone_beside_a_volume_does_not_make_its_files_gone() {
    if !have_tools() {
        return;
    }
    let world = World::new();
    let mut guest = Guest::new(17);
    guest.make_folders(2, 10);
    guest.write("/f1/kept.txt", b"kept".to_vec());
    for copies in [1, 2, 2, 1] {
        world.back_up("vm", &guest.disk().partitioned(copies));
    }
    let report = search(&world.repository, "kept", |_| {});
    let found: Vec<_> = report
        .files
        .iter()
        .map(|file| {
            let range = file.versions.first().unwrap();
            (range.first, range.last, file.versions.len())
        })
        .collect();
    assert_eq!(found, [(1, 4, 1), (2, 3, 1)], "{report:?}");
    let gone = search(&world.repository, "kept", |request| {
        request.only_gone = true;
    });
    assert_eq!(gone.files.len(), 1, "only the one of the clone: {gone:?}");
}

/// The files of a local index.
fn sealed_files(folder: &std::path::Path) -> Vec<std::path::PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.append(&mut sealed_files(&path));
        } else if path.extension().is_some_and(|it| it == "sealed") {
            found.push(path);
        }
    }
    found.sort();
    found
}

#[test]
fn an_index_that_is_damaged_or_gone_in_part_is_made_again_by_the_search_that_meets_it() {
    if !have_tools() {
        return;
    }
    let world = World::new();
    let cache = tempfile::tempdir().unwrap();
    let mut guest = Guest::new(19);
    guest.make_folders(10, 100_000);
    for name in ["/f1/one.txt", "/f2/two.txt", "/f3/three.txt"] {
        guest.write(name, name.as_bytes().to_vec());
        world.back_up("vm", &guest.disk());
        // Each version has a segment of its own, and the later ones need the earlier.
        search(&reopened(&world, &cache), "nothing", |_| {});
    }
    let expected = told(&search(&reopened(&world, &cache), "*", |_| {}));
    let segments = sealed_files(cache.path());
    assert!(segments.len() >= 3, "{segments:?}");
    let whole: Vec<Vec<u8>> = segments
        .iter()
        .map(|path| std::fs::read(path).unwrap())
        .collect();
    let count = segments.len();
    let all = (0..count).collect::<Vec<_>>();
    let chosen: Vec<Vec<usize>> = (0..count).map(|at| vec![at]).chain([all]).collect();
    for is_gone in [false, true] {
        for hurt in &chosen {
            for path in sealed_files(cache.path()) {
                std::fs::remove_file(path).unwrap();
            }
            for (at, path) in segments.iter().enumerate() {
                let mut bytes = whole[at].clone();
                // Behind the magic and the salt: in the first frame of objects.
                bytes[45] ^= u8::from(hurt.contains(&at));
                if !(is_gone && hurt.contains(&at)) {
                    std::fs::write(path, bytes).unwrap();
                }
            }
            let report = search(&reopened(&world, &cache), "*", |_| {});
            assert_eq!(told(&report), expected, "{is_gone} {hurt:?}");
            assert_eq!(report.damage, Vec::<String>::new());
            assert_eq!(report.versions, 3);
            let again = search(&reopened(&world, &cache), "*", |_| {});
            assert_eq!(told(&again), expected, "{is_gone} {hurt:?}");
            assert_eq!(again.versions_walked, 0, "{is_gone} {hurt:?}");
        }
    }
}
