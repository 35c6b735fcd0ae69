//! The checks, each a small story with one promise of the seam in it.

use std::collections::BTreeSet;
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering};

use super::{Check, CheckId, Defect, Outcome, Scratch};
use crate::{
    Error, ErrorKind, MAX_COMPONENT_BYTES, MAX_COMPONENTS, MAX_NAME_BYTES, ObjectName, Prefix,
    Result, list_all,
};

const USE_ANOTHER: &str = "use another store: no setting of Hikae can make up for this";

pub(super) const ALL: &[Check] = &[
    Check {
        id: CheckId::READ_AFTER_WRITE,
        title: "an object can be read, whole, as soon as it was put",
        remedy: "turn off caches between here and the store; an eventually consistent store cannot hold a repository",
        run: read_after_write,
    },
    Check {
        id: CheckId::CREATE_IF_ABSENT,
        title: "a put of a taken name is refused and changes nothing",
        remedy: "use a server that honours If-None-Match on PUT (newer releases of many do), or a directory",
        run: create_if_absent,
    },
    Check {
        id: CheckId::ONE_WINNER,
        title: "of many puts of one name at once exactly one succeeds",
        remedy: "use a server whose conditional PUT is atomic; one gateway in front of several disks may not be",
        run: one_winner,
    },
    Check {
        id: CheckId::WHOLE_OR_ABSENT,
        title: "a reader sees an object whole or not at all while it is put",
        remedy: USE_ANOTHER,
        run: whole_or_absent,
    },
    Check {
        id: CheckId::LIST_AFTER_WRITE,
        title: "a listing shows an object as soon as it was put",
        remedy: "turn off caches between here and the store (NFS: lookupcache=none, actimeo=0)",
        run: list_after_write,
    },
    Check {
        id: CheckId::GONE_AFTER_DELETE,
        title: "what was deleted is gone at once, from reads and from listings",
        remedy: "turn off caches between here and the store, and let this identity delete",
        run: gone_after_delete,
    },
    Check {
        id: CheckId::ABSENT_IS_NOT_FOUND,
        title: "what is absent is said to be absent",
        remedy: "let this identity list the bucket: without it many servers say 'denied' for 'absent'",
        run: absent_is_not_found,
    },
    Check {
        id: CheckId::RANGES,
        title: "ranges are exact, and refused behind the end",
        remedy: USE_ANOTHER,
        run: ranges,
    },
    Check {
        id: CheckId::READ_LIMIT,
        title: "an object above the reader's limit is refused",
        remedy: USE_ANOTHER,
        run: read_limit,
    },
    Check {
        id: CheckId::EMPTY_OBJECT,
        title: "an object may be empty",
        remedy: USE_ANOTHER,
        run: empty_object,
    },
    Check {
        id: CheckId::BIG_OBJECT,
        title: "an object of a pack's size comes back as it was",
        remedy: "raise the size that proxies and gateways in front of the store let through",
        run: big_object,
    },
    Check {
        id: CheckId::NAMES,
        title: "every valid name works",
        remedy: "use a shorter root, or a store that takes long names",
        run: names,
    },
    Check {
        id: CheckId::ORDER_AND_PAGES,
        title: "listings are in order, whole, and can be gone through page by page",
        remedy: "use a server that lists in the order of bytes (not an S3 directory bucket)",
        run: order_and_pages,
    },
];

fn wrong(seen: impl Into<String>) -> Defect {
    Defect::Wrong(seen.into())
}

fn want(holds: bool, seen: impl FnOnce() -> String) -> Outcome {
    if holds { Ok(()) } else { Err(wrong(seen())) }
}

/// Wants an error of one kind, whatever else a success would have brought.
fn want_error<T>(answer: Result<T>, kind: ErrorKind, what: &str) -> Outcome {
    match answer {
        Err(error) if error.kind() == kind => Ok(()),
        Err(error) => Err(Defect::Answer(error)),
        Ok(_) => Err(wrong(format!(
            "{what}: succeeded, where {kind:?} was to be the answer"
        ))),
    }
}

fn want_bytes(answer: Result<Vec<u8>>, expected: &[u8], what: &str) -> Outcome {
    let got = answer?;
    want(got.len() == expected.len(), || {
        format!("{what}: {} bytes instead of {}", got.len(), expected.len())
    })?;
    match got
        .iter()
        .zip(expected)
        .position(|(got, expected)| got != expected)
    {
        None => Ok(()),
        Some(at) => Err(wrong(format!("{what}: another byte at {at}"))),
    }
}

/// Bytes that differ from place to place and from salt to salt, so that no shifted or mixed answer can pass.
fn pattern(length: usize, salt: u64) -> Vec<u8> {
    let mut state = salt.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(length.saturating_add(8));
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

fn read_after_write(scratch: &Scratch<'_>) -> Outcome {
    for (n, length) in [1usize, 2, 4_095, 4_096, 4_097, 65_536, 1_000_003]
        .into_iter()
        .enumerate()
    {
        let name = scratch.prefix.name(format!("{n}"))?;
        let body = pattern(length, u64::try_from(length).unwrap_or(0));
        scratch.store.put_new(&name, &body)?;
        want_bytes(scratch.store.get(&name), &body, "reading what was just put")?;
        let size = scratch.store.size(&name)?;
        want(usize::try_from(size) == Ok(length), || {
            format!("size {size} instead of {length}")
        })?;
    }
    Ok(())
}

fn create_if_absent(scratch: &Scratch<'_>) -> Outcome {
    let name = scratch.prefix.name("taken")?;
    let first = pattern(1_000, 1);
    scratch.store.put_new(&name, &first)?;
    for (body, what) in [
        (pattern(1_000, 2), "a second put of other bytes"),
        (pattern(2_000, 3), "a second put of more bytes"),
        (Vec::new(), "a second put of nothing"),
        (first.clone(), "a second put of the same bytes"),
    ] {
        let answer = scratch.store.put_new(&name, &body);
        // A server without conditions says yes and overwrites: say that, not only "succeeded".
        if answer.is_ok() {
            let kept = scratch.store.get(&name)? == first;
            let what_happened = if kept {
                "the old bytes stayed"
            } else {
                "the old bytes are lost"
            };
            return Err(wrong(format!("{what} succeeded, and {what_happened}")));
        }
        want_error(answer, ErrorKind::AlreadyExists, what)?;
        want_bytes(
            scratch.store.get(&name),
            &first,
            "reading after a refused put",
        )?;
    }
    Ok(())
}

fn one_winner(scratch: &Scratch<'_>) -> Outcome {
    let racers = scratch.options.racers.max(2);
    for round in 0..scratch.options.race_rounds {
        let name = scratch.prefix.name(format!("{round}"))?;
        let barrier = Barrier::new(racers);
        let body_of = |racer: usize| pattern(10_000, u64::try_from(racer).unwrap_or(0) + 1);
        let answers: Vec<Result<()>> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..racers)
                .map(|racer| {
                    let (name, barrier) = (&name, &barrier);
                    scope.spawn(move || {
                        let body = body_of(racer);
                        barrier.wait();
                        scratch.store.put_new(name, &body)
                    })
                })
                .collect();
            threads
                .into_iter()
                .map(|thread| thread.join().unwrap_or_else(|_| Err(died())))
                .collect()
        });
        let mut winners = Vec::new();
        for (racer, answer) in answers.into_iter().enumerate() {
            match answer {
                Ok(()) => winners.push(racer),
                Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
                Err(error) => return Err(Defect::Answer(error)),
            }
        }
        let &[winner] = winners.as_slice() else {
            return Err(wrong(format!(
                "{} of {racers} racing puts succeeded",
                winners.len()
            )));
        };
        want_bytes(
            scratch.store.get(&name),
            &body_of(winner),
            "reading what the winner put",
        )?;
    }
    Ok(())
}

fn died() -> Error {
    Error::new(ErrorKind::Invalid, "the store panicked")
}

fn whole_or_absent(scratch: &Scratch<'_>) -> Outcome {
    let body = pattern(4 << 20, 7);
    for round in 0..3 {
        let name = scratch.prefix.name(format!("{round}"))?;
        let finished = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let reader = scope.spawn(|| {
                loop {
                    let last = finished.load(Ordering::SeqCst);
                    match scratch.store.get(&name) {
                        Err(error) if error.kind() == ErrorKind::NotFound && !last => {}
                        answer => return want_bytes(answer, &body, "reading during a put"),
                    }
                }
            });
            let put = scratch.store.put_new(&name, &body);
            finished.store(true, Ordering::SeqCst);
            let read = reader
                .join()
                .unwrap_or_else(|_| Err(Defect::Answer(died())));
            put.map_err(Defect::from).and(read)
        })?;
    }
    Ok(())
}

fn list_after_write(scratch: &Scratch<'_>) -> Outcome {
    let mut put = BTreeSet::new();
    for n in 0..20usize {
        let name = scratch.prefix.name(format!("d{}/object-{n}", n % 3))?;
        scratch.store.put_new(&name, &pattern(n, 1))?;
        put.insert((name, n));
        let listed = all_under(scratch, &scratch.prefix)?;
        want(listed == put, || {
            format!(
                "after {} puts a listing shows {} objects, or other sizes",
                put.len(),
                listed.len()
            )
        })?;
    }
    Ok(())
}

fn all_under(scratch: &Scratch<'_>, prefix: &Prefix) -> Result<BTreeSet<(ObjectName, usize)>> {
    list_all(scratch.store, prefix)
        .map(|entry| {
            entry.map(|entry| {
                (
                    entry.name,
                    usize::try_from(entry.size_bytes).unwrap_or(usize::MAX),
                )
            })
        })
        .collect()
}

fn gone_after_delete(scratch: &Scratch<'_>) -> Outcome {
    let (kept, gone) = (scratch.prefix.name("kept")?, scratch.prefix.name("gone")?);
    scratch.store.put_new(&kept, b"kept")?;
    for round in 0..5u64 {
        let body = pattern(100, round);
        scratch.store.put_new(&gone, &body)?;
        want_bytes(scratch.store.get(&gone), &body, "reading what was put anew")?;
        scratch.store.delete(&gone)?;
        want_error(
            scratch.store.get(&gone),
            ErrorKind::NotFound,
            "reading what was deleted",
        )?;
        want_error(
            scratch.store.size(&gone),
            ErrorKind::NotFound,
            "sizing what was deleted",
        )?;
        let listed = all_under(scratch, &scratch.prefix)?;
        want(listed == BTreeSet::from([(kept.clone(), 4)]), || {
            format!(
                "after the delete a listing shows {} objects instead of 1",
                listed.len()
            )
        })?;
    }
    // To delete what is absent is no error: a deletion that was interrupted is simply repeated.
    scratch.store.delete(&gone)?;
    scratch.store.delete(&scratch.prefix.name("never/was")?)?;
    Ok(())
}

fn absent_is_not_found(scratch: &Scratch<'_>) -> Outcome {
    scratch
        .store
        .put_new(&scratch.prefix.name("prefix/object")?, b"x")?;
    for rest in ["absent", "absent/below", "prefix/objec", "prefix/object2"] {
        let name = scratch.prefix.name(rest)?;
        want_error(
            scratch.store.get(&name),
            ErrorKind::NotFound,
            "reading what is absent",
        )?;
        want_error(
            scratch.store.size(&name),
            ErrorKind::NotFound,
            "sizing what is absent",
        )?;
        for (offset, length) in [(0, 1), (0, 0)] {
            let answer = scratch.store.get_range(&name, offset, length);
            want_error(
                answer,
                ErrorKind::NotFound,
                "reading a range of what is absent",
            )?;
        }
    }
    let page = scratch
        .store
        .list(&scratch.prefix.join("absent")?, None, 10)?;
    want(page.entries.is_empty() && page.next_after.is_none(), || {
        format!("an empty prefix lists {} objects", page.entries.len())
    })
}

fn ranges(scratch: &Scratch<'_>) -> Outcome {
    let name = scratch.prefix.name("object")?;
    let body = pattern(100_000, 5);
    scratch.store.put_new(&name, &body)?;
    for range in [
        0..1,
        0..100_000,
        99_999..100_000,
        1..2,
        4_095..4_097,
        65_535..90_001,
        50_000..50_000,
    ] {
        let (offset, length) = (range.start, range.len());
        let answer = scratch
            .store
            .get_range(&name, as_u64(offset), as_u64(length));
        let expected = body.get(range).unwrap_or_default();
        want_bytes(
            answer,
            expected,
            &format!("{length} bytes at {offset} of 100000"),
        )?;
    }
    want_bytes(
        scratch.store.get_range(&name, 100_000, 0),
        b"",
        "no bytes at the end",
    )?;
    for (offset, length) in [
        (0, 100_001),
        (99_999, 2),
        (100_000, 1),
        (100_001, 0),
        (200_000, 10),
        (0, u64::MAX),
        (u64::MAX, 1),
        (u64::MAX, u64::MAX),
    ] {
        let answer = scratch.store.get_range(&name, offset, length);
        let what = format!("{length} bytes at {offset} of 100000");
        want_error(answer, ErrorKind::OutOfRange, &what)?;
    }
    Ok(())
}

fn as_u64(number: usize) -> u64 {
    u64::try_from(number).unwrap_or(u64::MAX)
}

fn read_limit(scratch: &Scratch<'_>) -> Outcome {
    let name = scratch.prefix.name("object")?;
    let body = pattern(10_000, 6);
    scratch.store.put_new(&name, &body)?;
    want_bytes(
        scratch.store.get_bounded(&name, 10_000),
        &body,
        "reading up to its size",
    )?;
    for limit in [9_999, 0] {
        let answer = scratch.store.get_bounded(&name, limit);
        want_error(
            answer,
            ErrorKind::OutOfRange,
            &format!("reading at most {limit} of 10000"),
        )?;
    }
    Ok(())
}

fn empty_object(scratch: &Scratch<'_>) -> Outcome {
    let name = scratch.prefix.name("empty")?;
    scratch.store.put_new(&name, b"")?;
    want_bytes(scratch.store.get(&name), b"", "reading an empty object")?;
    want_bytes(
        scratch.store.get_range(&name, 0, 0),
        b"",
        "an empty range of an empty object",
    )?;
    let beyond = scratch.store.get_range(&name, 0, 1);
    want_error(beyond, ErrorKind::OutOfRange, "one byte of an empty object")?;
    let size = scratch.store.size(&name)?;
    want(size == 0, || format!("size {size} of an empty object"))?;
    want_error(
        scratch.store.put_new(&name, b"x"),
        ErrorKind::AlreadyExists,
        "a second put",
    )
}

fn big_object(scratch: &Scratch<'_>) -> Outcome {
    let name = scratch.prefix.name("big")?;
    let length = scratch.options.big_object_bytes;
    let body = pattern(length, 8);
    scratch.store.put_new(&name, &body)?;
    want_bytes(scratch.store.get(&name), &body, "reading the big object")?;
    let (offset, part) = (length / 2, length / 4);
    let answer = scratch.store.get_range(&name, as_u64(offset), as_u64(part));
    let expected = body
        .get(offset..offset.saturating_add(part))
        .unwrap_or_default();
    want_bytes(answer, expected, "reading a quarter of the big object")?;
    want_error(
        scratch.store.put_new(&name, &body),
        ErrorKind::AlreadyExists,
        "putting it again",
    )
}

fn names(scratch: &Scratch<'_>) -> Outcome {
    let depth = scratch.prefix.as_str().matches('/').count();
    let deep = vec!["d"; MAX_COMPONENTS.saturating_sub(depth)].join("/");
    let mut long = String::new();
    let room = MAX_NAME_BYTES.saturating_sub(scratch.prefix.as_str().len());
    while long.len() < room {
        let left = room.saturating_sub(long.len()).min(MAX_COMPONENT_BYTES);
        long.push_str(&"l".repeat(left));
        if room.saturating_sub(long.len()) > 1 {
            long.push('/');
        } else {
            break;
        }
    }
    let component = "c".repeat(MAX_COMPONENT_BYTES);
    let rests = [
        "0", "a.", "a..b", "-", "_", "a-b_c.d", "con", "x.tmp", "tmp", &component, &deep, &long,
    ];
    let mut put = BTreeSet::new();
    for rest in rests {
        let name = scratch.prefix.name(rest)?;
        scratch.store.put_new(&name, rest.as_bytes())?;
        put.insert((name, rest.len()));
    }
    for rest in rests {
        want_bytes(
            scratch.store.get(&scratch.prefix.name(rest)?),
            rest.as_bytes(),
            rest,
        )?;
    }
    let listed = all_under(scratch, &scratch.prefix)?;
    want(listed == put, || {
        format!(
            "{} of {} names are listed as they are",
            listed.len(),
            put.len()
        )
    })
}

fn order_and_pages(scratch: &Scratch<'_>) -> Outcome {
    // A slash orders behind - and . and before digits: directories and buckets disagree about these most easily.
    let rests = [
        "a-b", "a.c", "a/x", "a/y/z", "a0", "a_/q", "b", "p-old/x", "p/1", "p/2", "p0",
    ];
    let mut expected = Vec::new();
    for rest in rests.iter().rev() {
        let name = scratch.prefix.name(rest)?;
        scratch.store.put_new(&name, b"x")?;
        expected.push(name);
    }
    expected.sort();
    for limit in [1, 2, 3, expected.len(), 1_000] {
        let paged = pages(scratch, &scratch.prefix, None, limit)?;
        want(paged == expected, || {
            format!(
                "pages of {limit} give {} names, or another order",
                paged.len()
            )
        })?;
    }
    for (n, after) in expected.iter().enumerate() {
        let behind = pages(scratch, &scratch.prefix, Some(after.clone()), 4)?;
        let wanted = expected.get(n.saturating_add(1)..).unwrap_or_default();
        want(behind == wanted, || {
            format!("behind {after} come {} names", behind.len())
        })?;
    }
    // A name that is not there is as good a place to go on from.
    let between = scratch.prefix.name("a/xx")?;
    let behind = pages(scratch, &scratch.prefix, Some(between), 100)?;
    want(Some(behind.as_slice()) == expected.get(3..), || {
        "a listing behind an absent name".into()
    })?;
    let prefix = scratch.prefix.join("p")?;
    let below = pages(scratch, &prefix, None, 100)?;
    want(Some(below.as_slice()) == expected.get(8..10), || {
        format!("under p/ lie {} names instead of 2", below.len())
    })?;
    want_error(
        scratch.store.list(&prefix, None, 0),
        ErrorKind::Invalid,
        "a page of no entries",
    )
}

fn pages(
    scratch: &Scratch<'_>,
    prefix: &Prefix,
    mut after: Option<ObjectName>,
    limit: usize,
) -> std::result::Result<Vec<ObjectName>, Defect> {
    let mut names = Vec::new();
    // No listing here has more than a few dozen names: a store that never ends must not hang the check.
    for _ in 0..100 {
        let page = scratch.store.list(prefix, after.as_ref(), limit)?;
        want(page.entries.len() <= limit, || {
            format!("a page of {limit} has {} entries", page.entries.len())
        })?;
        names.extend(page.entries.into_iter().map(|entry| entry.name));
        match page.next_after {
            None => return Ok(names),
            next => after = next,
        }
    }
    Err(wrong("a listing does not end"))
}
