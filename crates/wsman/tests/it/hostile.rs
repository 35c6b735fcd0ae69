//! What a hostile side says: a typed error, soon, and without much memory.

use proptest::prelude::*;
use wsman::ErrorKind;
use wsman::message::{Request, read_answer, read_batch, read_instance_answer};
use wsman::server::{ServiceOptions, SoapService};
use wsman::xml::{Document, Element, XmlLimits, decode};

use crate::shelf::{Shelf, Stand, caller, host, job, v2, vm};

fn refused(text: &str) -> ErrorKind {
    match Document::parse(text, &XmlLimits::default()) {
        Ok(_) => panic!("taken: {text:.200}"),
        Err(error) => error.kind(),
    }
}

#[test]
fn documents_are_bounded() {
    assert_eq!(refused(&"<a>".repeat(1_000_000)), ErrorKind::Limit);
    assert_eq!(
        refused(&format!("<r>{}</r>", "<a/>".repeat(1_000_001))),
        ErrorKind::Limit
    );
    let attributes: String = (0..100).map(|it| format!(" a{it}='1'")).collect();
    assert_eq!(refused(&format!("<r{attributes}/>")), ErrorKind::Limit);
    let namespaces: String = (0..2000)
        .map(|it| format!("<a xmlns='urn:{it}'/>"))
        .collect();
    assert_eq!(refused(&format!("<r>{namespaces}</r>")), ErrorKind::Limit);
    let many = |from: usize| {
        (from..from + 60)
            .map(|it| format!(" xmlns:p{it}='u'"))
            .collect::<String>()
    };
    let bound: String = (0..10).map(|it| format!("<a{}>", many(it * 60))).collect();
    assert_eq!(refused(&bound), ErrorKind::Limit, "prefixes in force");
    let bomb = "<!DOCTYPE r [<!ENTITY a 'aaaa'><!ENTITY b '&a;&a;&a;&a;'>]><r>&b;</r>";
    assert_eq!(refused(bomb), ErrorKind::Refused);
    assert_eq!(
        refused("<!DOCTYPE r SYSTEM 'http://example.net/x'><r/>"),
        ErrorKind::Refused
    );
}

#[test]
fn what_is_not_well_formed_is_refused() {
    for bad in [
        "",
        " ",
        "x",
        "<",
        "<a",
        "<a>",
        "</a>",
        "<a></b>",
        "<a/><b/>",
        "<a/>x",
        "x<a/>",
        "<a b/>",
        "<a b=c/>",
        "<a b='1' b='2'/>",
        "<a xmlns:x='u' xmlns:y='u' x:b='1' y:b='2'/>",
        "<x:a/>",
        "<a x:b='1'/>",
        "<:a/>",
        "<a:/>",
        "<a xmlns:x=''/>",
        "<a>&b;</a>",
        "<a>&#0;</a>",
        "<a>&#xD800;</a>",
        "<a>&#x110000;</a>",
        "<a>& b</a>",
        "<a b='&c;'/>",
        "<a><![CDATA[x</a>",
        "<a><!-- x</a>",
        "<a:b:c xmlns:a='u'/>",
        "<1/>",
        "\u{0}<a/>",
    ] {
        assert_eq!(refused(bad), ErrorKind::Malformed, "{bad}");
    }
}

#[test]
fn a_tree_knows_names_texts_and_scopes() {
    let text = "<a xmlns='u' xmlns:x='v' c='1' x:c='2'>t<x:b xmlns='' xmlns:x='w'><c/></x:b>u<!-- n --><![CDATA[<]]>&amp;<x:d/></a>";
    let document = Document::parse(text, &XmlLimits::default()).expect("well-formed");
    let root = document.root();
    assert_eq!(
        (root.namespace(), root.local(), root.text()),
        ("u", "a", "tu<&")
    );
    assert_eq!(
        (root.attribute("", "c"), root.attribute("v", "c")),
        (Some("1"), Some("2"))
    );
    let children: Vec<(&str, &str)> = root
        .children()
        .map(|it| (it.namespace(), it.local()))
        .collect();
    assert_eq!(children, [("w", "b"), ("v", "d")]);
    let inner = root
        .children()
        .next()
        .and_then(|it| it.children().next())
        .expect("c");
    assert_eq!((inner.namespace(), inner.local()), ("", "c"));
    assert_eq!(inner.resolve_name("x:y"), ("w", "y"));
    assert_eq!(root.resolve_name(" x:y "), ("v", "y"));
    assert_eq!(root.resolve_name("y"), ("u", "y"));
}

#[test]
fn broken_encodings_are_refused() {
    for (bytes, charset, kind) in [
        (&[0xff, 0xfe, 0x00][..], None, ErrorKind::Malformed),
        (&[0xff, 0xfe, 0x00, 0xd8], None, ErrorKind::Malformed),
        (&[0xc3, 0x28], None, ErrorKind::Malformed),
        (b"<a/>", Some("shift_jis"), ErrorKind::Unsupported),
    ] {
        assert_eq!(decode(bytes, charset).expect_err("refused").kind(), kind);
    }
    assert_eq!(decode(b"<a/>", Some("\"UTF-8\"")).expect("text").0, "<a/>");
    assert_eq!(decode(&[b'<', 0, b'a', 0], None).expect("text").0, "<a");
    assert_eq!(
        decode(&[0, b'<', 0, b'a'], Some("utf-16be"))
            .expect("text")
            .0,
        "<a"
    );
}

/// Asks everything of an answer.
fn read_all(text: &str) {
    let limits = XmlLimits {
        elements: 10_000,
        ..XmlLimits::default()
    };
    let Ok(document) = Document::parse(text, &limits) else {
        return;
    };
    if let Ok(body) = read_answer(&document, None) {
        let _ = read_batch(body, &v2(), None);
        let _ = read_instance_answer(body, &v2());
    }
    let _ = Request::read(&document);
    fn walk(element: Element<'_, '_>) -> usize {
        1 + element.children().map(walk).sum::<usize>()
    }
    assert!(walk(document.root()) <= 10_000);
}

/// Sound messages of both kinds, to be spoilt.
fn messages() -> Vec<String> {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let mut paths: Vec<_> = std::fs::read_dir(folder)
        .expect("golden messages")
        .map(|it| it.expect("an entry").path())
        .filter(|it| it.extension().is_some_and(|it| it == "xml"))
        .collect();
    paths.sort();
    paths
        .iter()
        .map(|it| std::fs::read_to_string(it).expect("a message"))
        .collect()
}

#[test]
fn a_message_cut_anywhere_is_an_error_and_no_panic() {
    let stand = Stand::new(
        Shelf::new(vec![host(), job(), vm(1)]),
        ServiceOptions::default(),
    );
    for message in messages().iter().map(|it| it.trim()) {
        for end in (0..message.len())
            .filter(|it| message.is_char_boundary(*it))
            .step_by(7)
        {
            let cut = &message[..end];
            assert!(
                Document::parse(cut, &XmlLimits::default()).is_err(),
                "{cut}"
            );
            let reply = stand.service.serve(&caller(), None, cut.as_bytes());
            assert!(reply.status >= 400);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn spoilt_messages_are_read_or_refused(
        which in any::<prop::sample::Index>(),
        spoils in prop::collection::vec((any::<prop::sample::Index>(), any::<prop::sample::Index>(), 0..5_u8), 1..6),
    ) {
        let messages = messages();
        let mut text = which.get(&messages).clone();
        for (at, to, kind) in spoils {
            let mut places: Vec<usize> = text.match_indices(['<', '>', ' ', '"', ':']).map(|it| it.0).collect();
            places.push(text.len());
            let (from, to) = (*at.get(&places), *to.get(&places));
            let (from, to) = (from.min(to), from.max(to));
            let piece = text[from..to].to_owned();
            match kind {
                0 => text.replace_range(from..to, ""),
                1 if text.len() < 100_000 => text.insert_str(to, &piece),
                2 => text.replace_range(from..from, "&"),
                3 => text.replace_range(from..to, "<x xsi:nil='true'/>"),
                _ => text = text.replacen(&piece.chars().take(20).collect::<String>(), "18446744073709551616", 1),
            }
        }
        read_all(&text);
        let stand = Stand::new(Shelf::new(vec![host(), job(), vm(1)]), ServiceOptions::default());
        let reply = stand.service.serve(&caller(), None, text.as_bytes());
        let (answer, _) = decode(&reply.body, None).expect("text");
        prop_assert!(Document::parse(&answer, &XmlLimits::default()).is_ok(), "{}", answer);
    }

    #[test]
    fn any_bytes_get_an_answer(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let stand = Stand::new(Shelf::new(Vec::new()), ServiceOptions::default());
        let reply = stand.service.serve(&caller(), None, &bytes);
        let (answer, _) = decode(&reply.body, None).expect("text");
        prop_assert!(Document::parse(&answer, &XmlLimits::default()).is_ok());
    }
}
