//! The format is what its text says, and nothing that is not so is believed.

use std::collections::BTreeMap;
use std::path::Path;

use repo::format::{self, Cipher, ObjectKind, PackKind, context};
use repo::{Codec, PointSelector};

fn text_of(bytes: [u8; 8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("magic is text")
}

fn contexts() -> Vec<(&'static str, String)> {
    vec![
        ("context::OBJECT_KEY", context::OBJECT_KEY.to_owned()),
        (
            "context::OBJECT_CHECKSUM",
            context::OBJECT_CHECKSUM.to_owned(),
        ),
        ("context::PACK_KEY", context::PACK_KEY.to_owned()),
        ("context::PACK_CHECKSUM", context::PACK_CHECKSUM.to_owned()),
        (
            "context::PACK_DIRECTORY",
            context::PACK_DIRECTORY.to_owned(),
        ),
        ("context::SLOT_KEY", context::SLOT_KEY.to_owned()),
        ("context::MASTER_ID", context::MASTER_ID.to_owned()),
        ("context::PLAIN_NAME", context::PLAIN_NAME.to_owned()),
        (
            "context::SECRET_CHECKSUM",
            context::SECRET_CHECKSUM.to_owned(),
        ),
    ]
}

#[test]
fn the_text_of_the_format_has_the_constants_of_the_code() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/FORMAT.md");
    let text = std::fs::read_to_string(path).expect("docs/FORMAT.md");
    let table = text
        .split_once("<!-- constants -->")
        .and_then(|(_, rest)| rest.split_once("<!-- /constants -->"))
        .expect("the markers")
        .0;
    let told: BTreeMap<String, String> = table
        .lines()
        .filter_map(|line| {
            let mut cells = line.trim_matches('|').split('|').map(str::trim);
            let name = cells.next()?.strip_prefix('`')?.strip_suffix('`')?;
            Some((name.to_owned(), cells.next()?.to_owned()))
        })
        .collect();
    let hex = |value: u32| format!("{value:#06X}").replace("0X", "0x");
    let code: Vec<(&str, String)> = vec![
        ("FORMAT_VERSION", format::FORMAT_VERSION.to_string()),
        ("ENVELOPE_MAGIC", text_of(format::ENVELOPE_MAGIC)),
        (
            "ENVELOPE_HEADER_BYTES",
            format::ENVELOPE_HEADER_BYTES.to_string(),
        ),
        (
            "MAX_ENVELOPE_TEXT_BYTES",
            format::MAX_ENVELOPE_TEXT_BYTES.to_string(),
        ),
        ("CHECKSUM_BYTES", format::CHECKSUM_BYTES.to_string()),
        ("TAG_BYTES", format::TAG_BYTES.to_string()),
        ("PACK_MAGIC", text_of(format::PACK_MAGIC)),
        ("TRAILER_MAGIC", text_of(format::TRAILER_MAGIC)),
        ("PACK_HEADER_BYTES", format::PACK_HEADER_BYTES.to_string()),
        ("PACK_TRAILER_BYTES", format::PACK_TRAILER_BYTES.to_string()),
        ("FRAME_MAGIC", hex(u32::from(format::FRAME_MAGIC))),
        ("FRAME_HEADER_BYTES", format::FRAME_HEADER_BYTES.to_string()),
        (
            "DIRECTORY_ENTRY_BYTES",
            format::DIRECTORY_ENTRY_BYTES.to_string(),
        ),
        ("DIRECTORY_ORDINAL", hex(format::DIRECTORY_ORDINAL)),
        (
            "DIRECTORY_LEVEL",
            hex(u32::from(format::DIRECTORY_LEVEL)).replace("0x00", "0x"),
        ),
        ("MAX_PACK_ENTRIES", format::MAX_PACK_ENTRIES.to_string()),
        ("MAX_PACK_BYTES", format::MAX_PACK_BYTES.to_string()),
        (
            "MAX_STORED_BLOB_BYTES",
            format::MAX_STORED_BLOB_BYTES.to_string(),
        ),
    ];
    let code: BTreeMap<String, String> = code
        .into_iter()
        .chain(contexts())
        .map(|(name, value)| (name.to_owned(), value))
        .collect();
    assert_eq!(told, code);
}

#[test]
fn bytes_of_kinds_are_as_told() {
    let kinds: Vec<u8> = ObjectKind::ALL.iter().map(|kind| kind.byte()).collect();
    assert_eq!(kinds, (1..=11).collect::<Vec<u8>>());
    assert!((0..=255).all(|byte| ObjectKind::from_byte(byte).is_none_or(|k| k.byte() == byte)));
    assert_eq!(PackKind::ALL.map(PackKind::byte), [1, 2]);
    assert_eq!([Cipher::Plain, Cipher::Aes256Gcm].map(Cipher::byte), [0, 1]);
    assert_eq!(
        [Codec::Stored, Codec::Zstd, Codec::Lz4].map(Codec::byte),
        [0, 1, 2]
    );
}

#[test]
fn selectors_are_written_as_they_are_read() {
    for text in ["web 1@latest", "web 1@12", "web 1@0123456789ab"] {
        assert_eq!(
            text.parse::<PointSelector>()
                .expect("a selector")
                .to_string(),
            text
        );
    }
}
