//! The directory store: what lies on the disk, and what strangers put there.

use std::os::unix::fs::symlink;

use store::directory::DirectoryStore;
use store::{ErrorKind, ObjectName, Prefix, Store, list_all};

use crate::name;

#[test]
fn an_object_is_a_file_and_its_name_is_its_path() {
    let place = tempfile::tempdir().expect("temporary directory");
    let store = DirectoryStore::create(place.path().join("deep/root")).expect("create");
    store
        .put_new(&name("packs/3f/x.pack"), b"body")
        .expect("put");
    let path = place.path().join("deep/root/packs/3f/x.pack");
    assert_eq!(std::fs::read(path).expect("file"), b"body");
    let left = std::fs::read_dir(place.path().join("deep/root/.tmp"))
        .expect("tmp")
        .count();
    assert_eq!(left, 0, "nothing is left in the temporary directory");
    let error = store
        .put_new(&name("packs/3f/x.pack"), b"other")
        .expect_err("taken");
    assert_eq!(error.kind(), ErrorKind::AlreadyExists);
    assert_eq!(store.get(&name("packs/3f/x.pack")).expect("get"), b"body");
}

#[test]
fn a_directory_that_is_missing_is_not_made_by_opening() {
    let place = tempfile::tempdir().expect("temporary directory");
    let error = DirectoryStore::open(place.path().join("absent")).expect_err("missing");
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert!(!place.path().join("absent").exists());
}

#[test]
fn links_are_never_followed() {
    let place = tempfile::tempdir().expect("temporary directory");
    let outside = place.path().join("outside");
    std::fs::create_dir(&outside).expect("make");
    std::fs::write(outside.join("secret"), b"secret").expect("write");
    let root = place.path().join("root");
    let store = DirectoryStore::create(&root).expect("create");
    symlink(&outside, root.join("packs")).expect("link");
    symlink(outside.join("secret"), root.join("point")).expect("link");

    for object in [name("packs/secret"), name("point")] {
        assert_eq!(
            store.get(&object).expect_err("link").kind(),
            ErrorKind::Invalid,
            "{object}"
        );
        assert!(store.size(&object).is_err());
        assert!(store.get_range(&object, 0, 1).is_err());
    }
    assert!(store.put_new(&name("packs/new"), b"x").is_err());
    assert!(!outside.join("new").exists());
    assert!(store.delete(&name("packs/secret")).is_err());
    assert_eq!(
        std::fs::read(outside.join("secret")).expect("still there"),
        b"secret"
    );
    assert_eq!(list_all(&store, &Prefix::root()).count(), 0);
}

#[test]
fn strangers_in_the_directory_are_neither_listed_nor_in_the_way() {
    let place = tempfile::tempdir().expect("temporary directory");
    let store = DirectoryStore::create(place.path()).expect("create");
    store.put_new(&name("a/x"), b"1").expect("put");
    std::fs::create_dir(place.path().join("lost+found")).expect("make");
    std::fs::create_dir(place.path().join("empty")).expect("make");
    std::fs::write(place.path().join("README.TXT"), b"hello").expect("write");
    std::fs::write(place.path().join("a/.nfs0001"), b"").expect("write");
    std::fs::write(place.path().join(".tmp/stranger"), b"").expect("write");
    let names: Vec<String> = list_all(&store, &Prefix::root())
        .map(|entry| entry.expect("entry").name.to_string())
        .collect();
    assert_eq!(names, ["a/x"]);
    assert_eq!(
        store.get(&name("a")).expect_err("a prefix").kind(),
        ErrorKind::NotFound
    );
    assert_eq!(
        store.put_new(&name("a"), b"").expect_err("a prefix").kind(),
        ErrorKind::Invalid
    );
}

#[test]
fn a_directory_larger_than_a_page_is_listed_in_order_and_once() {
    let place = tempfile::tempdir().expect("temporary directory");
    let store = DirectoryStore::create(place.path()).expect("create");
    // Written as plain files: thousands of synced puts would measure the disk, not the listing.
    let mut expected = Vec::new();
    for n in 0..2_500 {
        let text = format!("d/{:04}", (n * 7_919) % 2_500);
        std::fs::create_dir_all(place.path().join("d")).expect("make");
        std::fs::write(place.path().join(&text), b"").expect("write");
        expected.push(text);
    }
    for text in ["a-b", "a.c", "a/x", "a/y/z", "a0", "d-", "d0", "a_/q"] {
        let path = place.path().join(text);
        std::fs::create_dir_all(path.parent().expect("parent")).expect("make");
        std::fs::write(path, b"").expect("write");
        expected.push(text.to_owned());
    }
    expected.sort();
    let all: Vec<String> = list_all(&store, &Prefix::root())
        .map(|entry| entry.expect("entry").name.to_string())
        .collect();
    assert_eq!(all, expected);
    for limit in [1, 3, 1_000] {
        let after = name("a/x");
        let page = store
            .list(&Prefix::root(), Some(&after), limit)
            .expect("page");
        let start = expected
            .iter()
            .position(|text| text == "a/x")
            .expect("there")
            + 1;
        let names: Vec<String> = page
            .entries
            .iter()
            .map(|entry| entry.name.to_string())
            .collect();
        assert_eq!(names, expected[start..start + limit]);
        assert_eq!(
            page.next_after.expect("more").as_str(),
            expected[start + limit - 1]
        );
    }
}

#[test]
fn a_directory_goes_with_its_last_object_and_comes_back_with_the_next() {
    let place = tempfile::tempdir().unwrap();
    let store = DirectoryStore::open(place.path()).unwrap();
    let names: Vec<ObjectName> = ["a/b/one", "a/b/two", "a/top"]
        .iter()
        .map(|name| ObjectName::new(*name).unwrap())
        .collect();
    for name in &names {
        store.put_new(name, b"x").unwrap();
    }
    store.delete(&names[0]).unwrap();
    assert!(place.path().join("a/b").is_dir());
    store.delete(&names[1]).unwrap();
    let keeps_births = std::fs::metadata(place.path()).unwrap().created().is_ok();
    assert_eq!(place.path().join("a/b").is_dir(), !keeps_births);
    store.delete(&names[2]).unwrap();
    assert!(place.path().join("a").is_dir());
    store.put_new(&names[0], b"y").unwrap();
    assert_eq!(store.get(&names[0]).unwrap(), b"y");
}

#[test]
fn puts_deletions_and_listings_in_one_directory_do_not_disturb_one_another() {
    let place = tempfile::tempdir().unwrap();
    let stores: Vec<DirectoryStore> = (0..3)
        .map(|_| DirectoryStore::open(place.path()).unwrap())
        .collect();
    let rounds = 150;
    std::thread::scope(|scope| {
        for (number, store) in stores.iter().enumerate() {
            scope.spawn(move || {
                for round in 0..rounds {
                    let name = ObjectName::new(format!("leases/one/{number}-{round}")).unwrap();
                    // The other threads empty the directory again and again under the hands of this one.
                    store.put_new(&name, b"beat").unwrap();
                    assert_eq!(store.get(&name).unwrap(), b"beat");
                    store.delete(&name).unwrap();
                }
            });
        }
        scope.spawn(|| {
            for _ in 0..rounds {
                let prefix = Prefix::new("leases").unwrap();
                stores[0].list(&prefix, None, 10).unwrap();
            }
        });
    });
    let left = std::fs::read_dir(place.path().join("leases"))
        .unwrap()
        .count();
    let keeps_births = std::fs::metadata(place.path()).unwrap().created().is_ok();
    assert!(left == 0 || !keeps_births, "{left} directories are left");
}
