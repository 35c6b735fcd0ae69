//! The memory store: its capacity, its crash, and its damage.

use store::memory::MemoryStore;
use store::{ErrorKind, Store};

use crate::name;

#[test]
fn what_was_put_survives_and_the_old_handle_is_dead() {
    let before = MemoryStore::new();
    before.put_new(&name("a/b"), b"kept").expect("put");
    let after = before.survive();
    for result in [before.put_new(&name("c"), b""), before.delete(&name("a/b"))] {
        assert_eq!(result.expect_err("dead").kind(), ErrorKind::Unavailable);
    }
    assert!(before.get(&name("a/b")).is_err());
    assert_eq!(after.get(&name("a/b")).expect("survived"), b"kept");
    assert_eq!(
        after.get(&name("c")).expect_err("absent").kind(),
        ErrorKind::NotFound
    );
}

#[test]
fn a_snapshot_goes_its_own_way() {
    let first = MemoryStore::new();
    first.put_new(&name("a"), b"1").expect("put");
    let second = first.snapshot();
    first.delete(&name("a")).expect("delete");
    second.put_new(&name("b"), b"2").expect("put");
    assert_eq!(second.get(&name("a")).expect("kept"), b"1");
    assert!(first.get(&name("b")).is_err());
}

#[test]
fn capacity_counts_bodies_and_deletion_gives_it_back() {
    let store = MemoryStore::with_capacity(10);
    store.put_new(&name("a"), &[0; 6]).expect("fits");
    let error = store
        .put_new(&name("b"), &[0; 5])
        .expect_err("does not fit");
    assert_eq!(error.kind(), ErrorKind::Full);
    assert_eq!(
        store.get(&name("b")).expect_err("absent").kind(),
        ErrorKind::NotFound
    );
    store.delete(&name("a")).expect("delete");
    store.put_new(&name("b"), &[0; 10]).expect("fits now");
    assert_eq!(store.used_bytes(), 10);
}

#[test]
fn a_name_is_an_object_or_a_prefix_never_both() {
    let store = MemoryStore::new();
    store.put_new(&name("a/b"), b"").expect("put");
    for clash in ["a", "a/b/c"] {
        let error = store.put_new(&name(clash), b"").expect_err(clash);
        assert_eq!(error.kind(), ErrorKind::Invalid, "{clash}");
    }
    for fine in ["a-b", "a.b", "a/bc", "ab"] {
        store.put_new(&name(fine), b"").expect(fine);
    }
}
