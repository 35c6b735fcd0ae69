//! Each option and each command is answered as the protocol says.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::disks::{Numbers, Random, seed};
use super::speaker::{
    Message, Speech, converse, messages, option_replies, read_of, runs_of, two_exports,
};

const MIB: u64 = 1 << 20;
const ACK: u32 = 1;
const ERR: u32 = 1 << 31;
/// Fixed newstyle and no zeroes.
const MODERN: u32 = 3;
const DONE: u16 = 1;

fn disks() -> (Arc<Numbers>, Arc<Numbers>) {
    (
        Arc::new(Numbers::new(1, 8 * MIB + 1000, 50)),
        Arc::new(Numbers::new(2, 3 * MIB, 100)),
    )
}

/// Structured replies, `base:allocation`, export `a`.
fn structured() -> Speech {
    Speech::new(MODERN)
        .option(8, &[])
        .contexts(10, "a", &["base:allocation"])
        .choose(7, "a", &[])
}

#[test]
fn options_are_answered_until_an_export_is_chosen() {
    let (a, b) = disks();
    let speech = Speech::new(MODERN)
        .option(3, &[])
        .option(3, b"x")
        .option(5, &[])
        .option(11, &[])
        .option(4711, b"what?")
        .choose(6, "nobody", &[])
        .choose(6, "a", &[1, 2, 3, 99])
        .option(8, b"x")
        .option(8, &[])
        .contexts(9, "a", &[])
        .contexts(9, "a", &["base:"])
        .contexts(9, "a", &["qemu:"])
        .contexts(10, "nobody", &["base:allocation"])
        .contexts(10, "a", &["base:allocation", "x:y"])
        .choose(7, "a", &[]);
    let heard = converse(&two_exports(&a, &b), &speech.0);
    assert!(heard.outcome.expect("well spoken"), "an export was chosen");
    let replies = option_replies(&heard.negotiated);
    let answers: Vec<(u32, u32)> = replies
        .iter()
        .map(|(option, answer, _)| (*option, *answer))
        .collect();
    let expected = [
        (3, 2),
        (3, 2),
        (3, ACK),
        (3, ERR | 3),
        (5, ERR | 1),
        (11, ERR | 1),
        (4711, ERR | 1),
        (6, ERR | 6),
        (6, 3),
        (6, 3),
        (6, 3),
        (6, 3),
        (6, ACK),
        (8, ERR | 3),
        (8, ACK),
        (9, 4),
        (9, ACK),
        (9, 4),
        (9, ACK),
        (9, ACK),
        (10, ERR | 6),
        (10, 4),
        (10, ACK),
        (7, 3),
        (7, 3),
        (7, ACK),
    ];
    assert_eq!(answers, expected);
    assert_eq!(replies[0].2, b"\0\0\0\x01athe first");
    assert_eq!(replies[1].2, b"\0\0\0\x01b");
    let export = &replies[8].2;
    assert_eq!(&export[..2], [0, 0]);
    assert_eq!(export[2..10], (8 * MIB + 1000).to_be_bytes());
    // Flags, read-only, several connections, cache; simple replies know no DF.
    assert_eq!(export[10..], 0x0503_u16.to_be_bytes());
    assert_eq!(
        replies[9].2[..6],
        [0, 3, 0, 0, 0, 1],
        "any byte can be read"
    );
    assert_eq!(replies[23].2[10..], 0x0583_u16.to_be_bytes(), "now with DF");
    assert_eq!(replies[21].2, b"\0\0\0\x01base:allocation");
}

#[test]
fn the_old_way_of_choosing_pads_with_zeros_for_who_did_not_say_otherwise() {
    let (a, b) = disks();
    for (flags, length) in [(1, 18 + 10 + 124), (MODERN, 18 + 10)] {
        let speech = Speech::new(flags).option(1, b"b");
        let heard = converse(&two_exports(&a, &b), &speech.0);
        assert!(heard.outcome.expect("well spoken"));
        assert_eq!(heard.negotiated.len(), length);
        assert_eq!(heard.negotiated[18..26], (3 * MIB).to_be_bytes());
    }
    let heard = converse(&two_exports(&a, &b), &Speech::new(MODERN).option(1, b"c").0);
    assert!(heard.outcome.is_err(), "there is no polite way to say no");
}

#[test]
fn an_empty_name_is_the_only_export_and_other_names_lead_where_they_should() {
    use serve::nbd::{Export, Exports};
    let (a, b) = disks();
    assert!(two_exports(&a, &b).find("").is_none(), "which one?");
    let mut one = Exports::new(vec![Export::new("a@1", a.clone())]).expect("one");
    one.also_named("a", "a@1");
    one.also_named("a@1", "nobody");
    for name in ["", "a", "a@1"] {
        assert_eq!(
            one.find(name).map(|export| export.name.as_str()),
            Some("a@1")
        );
    }
    assert_eq!(one.list().len(), 1);
    assert!(Exports::new(Vec::new()).is_err());
    let twice = vec![Export::new("a", a.clone()), Export::new("a", a)];
    assert!(Exports::new(twice).is_err());
}

#[test]
fn leaving_early_is_no_fault() {
    let (a, b) = disks();
    let exports = two_exports(&a, &b);
    let heard = converse(&exports, &Speech::new(MODERN).option(2, &[]).0);
    assert!(!heard.outcome.expect("aborted"));
    assert_eq!(option_replies(&heard.negotiated), [(2, ACK, Vec::new())]);
    for speech in [
        Vec::new(),
        Speech::new(MODERN).0,
        Speech::new(MODERN).option(3, &[]).0,
    ] {
        assert!(
            !converse(&exports, &speech)
                .outcome
                .expect("hung up between messages")
        );
    }
}

#[test]
fn contexts_hold_for_the_export_that_they_were_chosen_for() {
    let (a, b) = disks();
    let exports = two_exports(&a, &b);
    let status = |speech: Speech| {
        let heard = converse(&exports, &speech.request(0, 7, 1, 0, 4096).0);
        assert!(heard.outcome.expect("well spoken"));
        messages(&heard.transmitted)
    };
    let chosen = Speech::new(MODERN)
        .option(8, &[])
        .contexts(10, "a", &["base:allocation"]);
    let is_told = |heard: Vec<Message>| matches!(heard[..], [Message::Chunk(DONE, 5, 1, _)]);
    assert!(is_told(status(chosen.clone().choose(7, "a", &[]))));
    assert!(!is_told(status(chosen.clone().choose(7, "b", &[]))));
    assert!(!is_told(status(chosen.contexts(10, "a", &[]).choose(
        7,
        "a",
        &[]
    ))));
    let simple = Speech::new(MODERN).contexts(10, "a", &["base:allocation"]);
    let heard = converse(&exports, &simple.0);
    assert_eq!(
        option_replies(&heard.negotiated)[0].1,
        ERR | 3,
        "structured replies first"
    );
}

#[test]
fn reads_give_the_bytes_of_the_disk_with_its_holes_told() {
    let mut random = Random(seed());
    let (a, b) = disks();
    let exports = two_exports(&a, &b);
    let mut speech = structured();
    let mut asked = Vec::new();
    for cookie in 0..60 {
        let offset = random.below(a.size_bytes);
        let length = (1 + random.below(3 * MIB)).min(a.size_bytes - offset);
        speech = speech.request(0, 0, cookie, offset, length as u32);
        asked.push((cookie, offset, length as usize));
    }
    let heard = converse(&exports, &speech.request(0, 2, 0, 0, 0).0);
    assert!(heard.outcome.expect("well spoken"));
    let messages = messages(&heard.transmitted);
    for (cookie, offset, length) in asked {
        let bytes = read_of(&messages, cookie, offset, length).expect("readable");
        assert!(
            bytes == a.bytes(offset, length),
            "{length} bytes at {offset}"
        );
    }
    let holes = messages
        .iter()
        .filter(|one| matches!(one, Message::Chunk(_, 2, ..)));
    assert!(holes.count() > 20);
}

#[test]
fn simple_replies_give_the_same_bytes() {
    let (a, b) = disks();
    for (offset, length) in [(0, 1), (5, 100_000), (1, 3 * MIB - 1), (0, 3 * MIB)] {
        let speech =
            Speech::new(MODERN)
                .choose(7, "b", &[])
                .request(0, 0, 77, offset, length as u32);
        let heard = converse(&two_exports(&a, &b), &speech.0);
        assert!(heard.outcome.expect("well spoken"));
        let reply = &heard.transmitted;
        assert_eq!(
            reply[..16],
            [
                &0x6744_6698_u32.to_be_bytes()[..],
                &[0; 4],
                &77_u64.to_be_bytes()
            ]
            .concat()
        );
        assert!(reply[16..] == b.bytes(offset, length as usize));
    }
}

#[test]
fn one_piece_is_one_piece_up_to_a_mebibyte() {
    let (a, b) = disks();
    let speech = structured()
        .request(4, 0, 1, 3, MIB as u32)
        .request(4, 0, 2, 0, MIB as u32 + 1);
    let heard = converse(&two_exports(&a, &b), &speech.0);
    let mut all = messages(&heard.transmitted);
    all.sort_by_key(|message| match message {
        Message::Simple(_, cookie) | Message::Chunk(_, _, cookie, _) => *cookie,
    });
    let [
        Message::Chunk(DONE, 1, 1, bytes),
        Message::Chunk(DONE, kind, 2, refusal),
    ] = &all[..]
    else {
        panic!("{} messages", all.len());
    };
    assert!(bytes[8..] == a.bytes(3, MIB as usize));
    assert_eq!(
        (*kind, &refusal[..4]),
        (1 << 15 | 1, &75_u32.to_be_bytes()[..]),
        "EOVERFLOW"
    );
}

#[test]
fn block_status_tells_holes_and_data_as_they_are() {
    let (a, b) = disks();
    let exports = two_exports(&a, &b);
    let (offset, length) = (70_000, 8 * MIB as u32 - 70_000 + 1000);
    let speech = structured()
        .request(0, 7, 1, offset, length)
        .request(8, 7, 2, offset, length);
    let heard = converse(&exports, &speech.0);
    let all = messages(&heard.transmitted);
    assert_eq!(all.len(), 2);
    for message in &all {
        let Message::Chunk(DONE, 5, cookie, payload) = message else {
            panic!("{message:?}");
        };
        let runs = runs_of(payload);
        let mut at = offset;
        for (length, state) in &runs {
            let bytes = a.bytes(at, *length as usize);
            // Data of this disk has no eight zeros in a row.
            let has_data = bytes
                .chunks(8)
                .all(|eight| eight.len() < 8 || eight != [0; 8]);
            let is_hole = bytes.iter().all(|byte| *byte == 0);
            assert!(
                if *state == 3 {
                    is_hole
                } else {
                    *state == 0 && has_data
                },
                "at {at}"
            );
            at += length;
        }
        if *cookie == 2 {
            assert_eq!(runs.len(), 1, "only one was asked for");
        } else {
            assert_eq!(at, offset + u64::from(length), "all of it is told");
            assert!(
                runs.windows(2).all(|two| two[0].1 != two[1].1),
                "runs are whole"
            );
        }
    }
}

#[test]
fn what_cannot_be_is_refused_with_the_right_number_and_the_conversation_goes_on() {
    let (a, b) = disks();
    let size = a.size_bytes;
    let cases: [(u16, u16, u64, u32, u32); 16] = [
        (0, 1, 0, 512, 1),
        (0, 4, 0, 512, 1),
        (0, 6, 0, 512, 1),
        (0, 8, 0, 0, 1),
        (0, 0, size, 1, 22),
        (0, 0, size - 1, 2, 22),
        (0, 0, u64::MAX, 1, 22),
        (0, 0, u64::MAX - 10, 11, 22),
        (0, 0, 0, 0, 22),
        (0, 0, 0, u32::MAX, 22),
        (1 << 9, 0, 0, 1, 22),
        (1, 0, 0, 1, 22),
        (0, 3, 0, 0, 22),
        (0, 99, 0, 0, 22),
        (0, 7, size, 1, 22),
        (0, 5, size, 1, 22),
    ];
    for (flags, command, offset, length, fault) in cases {
        let mut speech = structured().request(flags, command, 5, offset, length);
        if command == 1 {
            speech = speech.bytes(&[7; 512]);
        }
        let heard = converse(&two_exports(&a, &b), &speech.request(0, 0, 6, 0, 16).0);
        assert!(heard.outcome.expect("well spoken"));
        let all = messages(&heard.transmitted);
        let refusal = all.iter().find_map(|message| match message {
            Message::Chunk(DONE, 0x8001, 5, payload) => Some(payload[..4].to_vec()),
            _ => None,
        });
        assert_eq!(
            refusal,
            Some(fault.to_be_bytes().to_vec()),
            "command {command} at {offset}"
        );
        assert_eq!(read_of(&all, 6, 0, 16), Some(a.bytes(0, 16)));
    }
    let simple = Speech::new(MODERN)
        .choose(7, "a", &[])
        .request(4, 0, 9, 0, 1);
    let heard = converse(&two_exports(&a, &b), &simple.0);
    assert_eq!(
        messages(&heard.transmitted),
        [Message::Simple(22, 9)],
        "DF needs structured replies"
    );
}

#[test]
fn a_block_that_cannot_be_read_is_an_error_there_and_nowhere_else() {
    let (a, b) = disks();
    let exports = two_exports(&a, &b);
    b.bad_block.store(17, Ordering::Relaxed);
    let bad = 17 * 65_536;
    let chosen = Speech::new(MODERN).option(8, &[]).choose(7, "b", &[]);
    let speech = chosen
        .request(0, 0, 1, 0, 3 << 20)
        .request(4, 0, 2, bad, 100)
        .request(0, 0, 3, bad + 65_536, 70_000);
    let heard = converse(&exports, &speech.0);
    assert!(heard.outcome.expect("well spoken"));
    let all = messages(&heard.transmitted);
    assert_eq!(read_of(&all, 1, 0, 3 << 20), None);
    assert_eq!(read_of(&all, 2, bad, 100), None);
    assert_eq!(
        read_of(&all, 3, bad + 65_536, 70_000),
        Some(b.bytes(bad + 65_536, 70_000))
    );
    let told = all.iter().filter(|message| match message {
        Message::Chunk(_, kind, _, payload) => *kind == 1 << 15 | 2 && payload[..4] == [0, 0, 0, 5],
        Message::Simple(..) => false,
    });
    assert_eq!(told.count(), 2, "EIO, with the place");

    let simple = Speech::new(MODERN).choose(7, "b", &[]);
    let early = converse(&exports, &simple.clone().request(0, 0, 4, bad, 65_536).0);
    assert_eq!(messages(&early.transmitted), [Message::Simple(5, 4)]);
    let late = converse(&exports, &simple.request(0, 0, 4, 0, 3 << 20).0);
    assert!(
        late.outcome.is_err(),
        "its header promised the bytes, so that only hanging up is left"
    );
    assert!(late.transmitted.len() < 3 << 20);
}

#[test]
fn caching_ahead_is_acknowledged() {
    let (a, b) = disks();
    let heard = converse(
        &two_exports(&a, &b),
        &structured().request(0, 5, 3, 100, 2 << 20).0,
    );
    assert_eq!(messages(&heard.transmitted), [Message::Simple(0, 3)]);
}
