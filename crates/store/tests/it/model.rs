//! Long random runs of calls against a map: whatever is asked in whatever order, every driver answers as a map would.

use std::collections::BTreeMap;

use proptest::prelude::*;
use store::directory::DirectoryStore;
use store::faulty::FaultyStore;
use store::memory::MemoryStore;
use store::{ErrorKind, ObjectName, Prefix, Store};

use crate::name;

/// Names near each other in order, and in and out of each other's folders.
const NAMES: &[&str] = &[
    "a-b", "a.c", "a/x", "a/x-1", "a/y/z", "a0", "a_/q", "b", "p-old/x", "p/1", "p/2/3", "p0",
];
const PREFIXES: &[&str] = &["", "a", "a/y", "p", "p/2", "p-old", "absent", "a_"];

#[derive(Debug, Clone)]
enum Call {
    Put(usize, Vec<u8>),
    Get(usize, u64),
    Range(usize, u64, u64),
    Size(usize),
    List(usize, Option<usize>, usize),
    Delete(usize),
}

fn call() -> impl Strategy<Value = Call> {
    let name = 0..NAMES.len();
    let body = prop::collection::vec(any::<u8>(), 0..40);
    let number = prop_oneof![0u64..50, Just(u64::MAX)];
    prop_oneof![
        4 => (name.clone(), body).prop_map(|(name, body)| Call::Put(name, body)),
        2 => (name.clone(), number.clone()).prop_map(|(name, limit)| Call::Get(name, limit)),
        2 => (name.clone(), number.clone(), number).prop_map(|(name, at, length)| Call::Range(name, at, length)),
        1 => name.clone().prop_map(Call::Size),
        2 => (0..PREFIXES.len(), prop::option::of(name.clone()), 1usize..6)
            .prop_map(|(prefix, after, limit)| Call::List(prefix, after, limit)),
        2 => name.prop_map(Call::Delete),
    ]
}

type Model = BTreeMap<ObjectName, Vec<u8>>;

/// The answer of a map, in the same words.
fn expected(model: &mut Model, call: &Call) -> String {
    let object = |index: &usize| name(NAMES[*index]);
    let found = |model: &Model, index: &usize| {
        model
            .get(&object(index))
            .cloned()
            .ok_or(ErrorKind::NotFound)
    };
    match call {
        Call::Put(index, body) => {
            let taken = model.contains_key(&object(index));
            if !taken {
                model.insert(object(index), body.clone());
            }
            format!(
                "{:?}",
                if taken {
                    Err(ErrorKind::AlreadyExists)
                } else {
                    Ok(())
                }
            )
        }
        Call::Get(index, limit) => {
            let body = found(model, index).and_then(|body| {
                if body.len() as u64 > *limit {
                    Err(ErrorKind::OutOfRange)
                } else {
                    Ok(body)
                }
            });
            format!("{body:?}")
        }
        Call::Range(index, at, length) => {
            let bytes = found(model, index).and_then(|body| {
                let end = at
                    .checked_add(*length)
                    .filter(|end| *end <= body.len() as u64);
                let end = end.ok_or(ErrorKind::OutOfRange)?;
                Ok(body[*at as usize..end as usize].to_vec())
            });
            format!("{bytes:?}")
        }
        Call::Size(index) => format!("{:?}", found(model, index).map(|body| body.len() as u64)),
        Call::List(prefix, after, limit) => {
            let prefix = Prefix::new(PREFIXES[*prefix]).expect("valid");
            let after = after.as_ref().map(object);
            let all: Vec<(String, u64)> = model
                .iter()
                .filter(|(name, _)| prefix.contains(name))
                .filter(|(name, _)| after.as_ref().is_none_or(|after| *name > after))
                .map(|(name, body)| (name.to_string(), body.len() as u64))
                .collect();
            let more = all.len() > *limit;
            let page: Vec<_> = all.into_iter().take(*limit).collect();
            format!("{page:?} {more}")
        }
        Call::Delete(index) => {
            model.remove(&object(index));
            format!("{:?}", Ok::<(), ErrorKind>(()))
        }
    }
}

fn answered(store: &dyn Store, call: &Call) -> String {
    let object = |index: &usize| name(NAMES[*index]);
    let kind = |error: store::Error| error.kind();
    match call {
        Call::Put(index, body) => {
            format!("{:?}", store.put_new(&object(index), body).map_err(kind))
        }
        Call::Get(index, limit) => {
            format!(
                "{:?}",
                store.get_bounded(&object(index), *limit).map_err(kind)
            )
        }
        Call::Range(index, at, length) => {
            format!(
                "{:?}",
                store.get_range(&object(index), *at, *length).map_err(kind)
            )
        }
        Call::Size(index) => format!("{:?}", store.size(&object(index)).map_err(kind)),
        Call::List(prefix, after, limit) => {
            let prefix = Prefix::new(PREFIXES[*prefix]).expect("valid");
            let after = after.as_ref().map(object);
            let page = store.list(&prefix, after.as_ref(), *limit).expect("a page");
            let more = page.next_after.is_some();
            let last = page.entries.last().map(|entry| entry.name.clone());
            assert!(page.next_after.is_none() || page.next_after == last);
            let page: Vec<(String, u64)> = page
                .entries
                .into_iter()
                .map(|entry| (entry.name.to_string(), entry.size_bytes))
                .collect();
            format!("{page:?} {more}")
        }
        Call::Delete(index) => format!("{:?}", store.delete(&object(index)).map_err(kind)),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn every_driver_answers_as_a_map_would(calls in prop::collection::vec(call(), 1..60)) {
        let place = tempfile::tempdir().expect("temporary directory");
        let directory = DirectoryStore::create(place.path()).expect("create");
        let wrapped = FaultyStore::sound(MemoryStore::new());
        let stores: [&dyn Store; 3] = [&MemoryStore::new(), &directory, &wrapped];
        let mut model = Model::new();
        for call in &calls {
            let expected = expected(&mut model, call);
            for store in stores {
                prop_assert_eq!(&answered(store, call), &expected, "{} {:?}", store.describe(), call);
            }
        }
        // A handle that is opened anew knows the same.
        let again = DirectoryStore::open(place.path()).expect("open");
        for (name, body) in &model {
            prop_assert_eq!(&again.get(name).expect("kept"), body);
        }
    }
}
