//! Servers that are odd and legal: what they say means the same.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use wsman::ErrorKind;
use wsman::client::CimClient;
use wsman::message::{Association, AssociationQuery};
use wsman::server::ServiceOptions;
use wsman::xml::{Charset, encode};

use crate::client::{all_vms, client, estate, job_path, small_batches};
use crate::shelf::{Loopback, Stand};

type Change = fn(String) -> String;

fn other_prefixes(text: String) -> String {
    let prefixes = ["s", "a", "n", "w", "p", "xsi", "cim"];
    prefixes.iter().fold(text, |text, prefix| {
        text.replace(&format!("<{prefix}:"), &format!("<zz_{prefix}:"))
            .replace(&format!("</{prefix}:"), &format!("</zz_{prefix}:"))
            .replace(&format!(" {prefix}:"), &format!(" zz_{prefix}:"))
            .replace(&format!("xmlns:{prefix}="), &format!("xmlns:zz_{prefix}="))
            .replace(&format!("\"{prefix}:"), &format!("\"zz_{prefix}:"))
            .replace(&format!(">{prefix}:"), &format!(">zz_{prefix}:"))
    })
}

fn a_default_namespace(text: String) -> String {
    text.replace("<s:", "<").replace("</s:", "</").replace(
        "xmlns:s=",
        "xmlns:s=\"http://www.w3.org/2003/05/soap-envelope\" xmlns=",
    )
}

fn comments_and_instructions(text: String) -> String {
    let text = text
        .replace(
            "<s:Body>",
            "<!-- a --><?pi b?>\r\n\t<s:Body><!-- <s:Fault/> -->\n",
        )
        .replace("<p:Name>", "<!-- c --> <p:Name><!-- d -->")
        .replace("<p:EnabledState>", "<p:EnabledState>\n<?e f?>");
    format!("<?xml version=\"1.0\" encoding=\"utf-8\"?>\n<!-- g -->\n{text}\n<!-- h -->")
}

fn pieces_of_texts(text: String) -> String {
    text.replace(
        "<p:ElementName>vm",
        "<p:ElementName><![CDATA[v]]>&#x6D;<![CDATA[]]>",
    )
}

fn wrapped_references(text: String) -> String {
    text.replace(
        "<a:Address>http://schemas.xmlsoap.org/ws/2004/08/addressing/role/anonymous</a:Address><a:ReferenceParameters>",
        "<a:EndpointReference><a:ReferenceParameters>",
    )
    .replace("</a:ReferenceParameters>", "</a:ReferenceParameters><a:Address/></a:EndpointReference>")
}

fn items_in_the_other_namespace(text: String) -> String {
    let (from, to) = if text.contains("<n:Items") {
        ("n", "w")
    } else {
        ("w", "n")
    };
    ["Items", "EndOfSequence"].iter().fold(text, |text, name| {
        text.replace(&format!("<{from}:{name}"), &format!("<{to}:{name}"))
            .replace(&format!("</{from}:{name}"), &format!("</{to}:{name}"))
    })
}

fn another_null(text: String) -> String {
    text.replace(" xsi:nil=\"true\"/>", "\n\tother='x' xsi:nil = '1' ></p:X>")
        .split("<p:")
        .map(|piece| {
            // What was empty is closed by its own name.
            let name: String = piece
                .chars()
                .take_while(|it| it.is_alphanumeric() || *it == '_')
                .collect();
            piece.replace("</p:X>", &format!("</p:{name}>"))
        })
        .collect::<Vec<_>>()
        .join("<p:")
}

fn attributes_the_other_way_round(text: String) -> String {
    text.split_inclusive('>')
        .map(
            |tag| match tag.find("<p:Msvm_").map(|at| tag.split_at(at)) {
                Some((before, tag)) => {
                    let inner = tag.trim_end_matches('>');
                    let mut words: Vec<&str> = inner.split(' ').collect();
                    if let Some(attributes) = words.get_mut(1..) {
                        attributes.reverse();
                    }
                    format!("{before}{}>", words.join("\n "))
                }
                None => tag.to_owned(),
            },
        )
        .collect()
}

fn no_relation_to_the_question(text: String) -> String {
    let end = "</a:RelatesTo>";
    match (text.find("<a:RelatesTo>"), text.find(end)) {
        (Some(from), Some(to)) => format!("{}{}", &text[..from], &text[to + end.len()..]),
        _ => text,
    }
}

fn check(name: &str, change: impl Fn(Vec<u8>) -> Vec<u8> + Send + Sync + 'static) {
    let stand = Stand::new(estate(), ServiceOptions::default());
    let loopback = Loopback {
        change: Box::new(change),
        ..Loopback::to(&stand)
    };
    let client = client(loopback, small_batches());
    let found = client
        .collect(&all_vms())
        .unwrap_or_else(|error| panic!("{name}: {error}"));
    assert_eq!(found.len(), 26, "{name}");
    assert_eq!(
        found[4].text("ElementName").expect("a name"),
        "vm3 <&\"'> Ä",
        "{name}"
    );
    assert_eq!(found[4].u16("EnabledState").expect("a state"), 3, "{name}");
    assert_eq!(found[4].opt_text("Caption").expect("null"), None, "{name}");
    let related = client
        .associators(&AssociationQuery::of(Association::References, job_path()))
        .unwrap_or_else(|error| panic!("{name}: {error}"));
    let end = related[0]
        .reference("AffectingElement")
        .unwrap_or_else(|error| panic!("{name}: {error}"));
    assert!(end.is_same(&job_path()), "{name}");
    let missing = client
        .get(&job_path().with("InstanceID", "x"))
        .expect_err("nothing");
    assert_eq!(missing.kind(), ErrorKind::NotFound, "{name}");
}

#[test]
fn odd_but_legal_answers_are_read() {
    let odd: &[(&str, Change)] = &[
        ("other prefixes", other_prefixes),
        ("a default namespace", a_default_namespace),
        (
            "a declaration, comments and instructions",
            comments_and_instructions,
        ),
        ("pieces of texts", pieces_of_texts),
        ("an endpoint around references", wrapped_references),
        ("items in the other namespace", items_in_the_other_namespace),
        ("another spelling of null", another_null),
        (
            "attributes the other way round",
            attributes_the_other_way_round,
        ),
        ("no relation to the question", no_relation_to_the_question),
    ];
    for (name, change) in odd {
        let change = *change;
        let is_odd = Arc::new(AtomicBool::new(false));
        let seen = is_odd.clone();
        check(name, move |body| {
            let text = String::from_utf8(body).expect("utf-8");
            let changed = change(text.clone());
            seen.fetch_or(changed != text, Ordering::Relaxed);
            changed.into_bytes()
        });
        assert!(is_odd.load(Ordering::Relaxed), "{name}: nothing was odd");
    }
}

#[test]
fn other_encodings_are_read() {
    check("a byte order mark", |body| {
        [&[0xef, 0xbb, 0xbf], body.as_slice()].concat()
    });
    for charset in [Charset::Utf16, Charset::Utf16BigEndian] {
        check("UTF-16", move |body| {
            encode(String::from_utf8(body).expect("utf-8"), charset)
        });
    }
}
