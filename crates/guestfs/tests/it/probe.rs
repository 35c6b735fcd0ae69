//! What lies in a volume, compared with what `blkid` says of the same images.

use guestfs::probe::{self, ContentKind};

use crate::corpus::{self, Bytes, Dice};

/// What the manifest holds of bytes that are no ASCII, as `cat -v` writes it, with blanks escaped.
fn unescaped(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((&first, tail)) = rest.split_first() {
        let (byte, used) = match rest {
            [b'M', b'-', b'^', low, ..] => (128 + (low ^ 64), 4),
            [b'M', b'-', b'\\', low, ..] => (128 + low, 4),
            [b'M', b'-', low, ..] => (128 + low, 3),
            [b'\\', plain, ..] => (*plain, 2),
            _ => (first, 1),
        };
        bytes.push(byte);
        rest = rest.get(used..).unwrap_or(&tail[..0]);
    }
    String::from_utf8_lossy(&bytes).trim_end().to_owned()
}

fn same_kind(ours: ContentKind, theirs: &str) -> bool {
    let name = ours.name();
    match theirs {
        "vfat" => name.starts_with("fat"),
        theirs => name == theirs,
    }
}

#[test]
fn every_volume_of_the_corpora_is_what_blkid_calls_it() {
    let Some(entries) = corpus::entries("probe") else {
        return;
    };
    let mut wrong = Vec::new();
    let (mut labels, mut ids) = (0, 0);
    for entry in entries.iter().filter(|entry| entry["kind"] == "probe") {
        let path = entry["path"].as_str().expect("a path");
        let volume = Bytes::shared(corpus::bytes(path).expect("a file"));
        let content = probe::probe(&*volume).expect("memory reads");
        let blkid = &entry["expected"]["blkid"];
        let theirs = blkid["TYPE"].as_str().expect("a type");
        if !same_kind(content.kind, theirs) {
            wrong.push(format!("{path}: {theirs}, not {content:?}"));
        }
        // The catalog of HFS+ is not read for its name.
        let told = blkid["LABEL"]
            .as_str()
            .map(unescaped)
            .filter(|_| theirs != "hfsplus");
        if content.label != told {
            wrong.push(format!("{path}: label {told:?}, not {:?}", content.label));
        }
        labels += usize::from(content.label.is_some());
        let id = blkid["UUID"]
            .as_str()
            .filter(|id| !NOT_TOLD.contains(&theirs) && !id.is_empty());
        if let Some(id) = id {
            if content.id.as_deref() != Some(id) {
                wrong.push(format!("{path}: id {id}, not {:?}", content.id));
            }
            ids += 1;
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(labels >= 48 && ids >= 38, "{labels} labels, {ids} ids");
}

/// Ids that only `blkid` makes up, or that lie too deep for a probe.
const NOT_TOLD: &[&str] = &[
    "udf",
    "iso9660",
    "ufs",
    "ubi",
    "nss",
    "ddf_raid_member",
    "swsuspend",
    "drbdmanage_control_volume",
];

#[test]
fn damaged_volumes_are_told_without_panic() {
    let Some(entries) = corpus::entries("probe") else {
        return;
    };
    let mut dice = Dice::new(7);
    for entry in entries.iter().filter(|entry| entry["kind"] == "probe") {
        let path = entry["path"].as_str().expect("a path");
        let mut bytes = corpus::bytes(path).expect("a file");
        bytes.truncate(2 << 20);
        for _ in 0..8 {
            let mut hurt = bytes.clone();
            let reach = hurt.len().min(70 << 10);
            for _ in 0..=dice.below(16) {
                dice.damage(&mut hurt[..reach], 0);
            }
            if dice.below(4) == 0 {
                let length = dice.below(hurt.len());
                hurt.truncate(length);
            }
            probe::probe(&*Bytes::shared(hurt)).expect("damage is no error");
        }
    }
}

#[test]
fn encryption_and_windows_volumes_are_called_by_name() {
    let mut bytes = vec![0; 1 << 20];
    bytes[3..11].copy_from_slice(b"-FVE-FS-");
    assert_eq!(kind(&bytes), "BitLocker");
    bytes[3..11].copy_from_slice(b"ReFS\0\0\0\0");
    bytes[40] = 3;
    bytes[41] = 4;
    let content = probe::probe(&*Bytes::shared(bytes)).expect("memory reads");
    assert_eq!(
        (content.kind.name(), content.version.as_deref()),
        ("ReFS", Some("3.4"))
    );
    let mut bytes = vec![0; 1 << 20];
    bytes[..8].copy_from_slice(b"LUKS\xBA\xBE\0\x02");
    bytes[168..204].copy_from_slice(b"e5f398d9-39da-4b6a-9ac3-e085a9394e7c");
    let json = br#"{"segments":{"0":{"encryption":"aes-xts-plain64"}}}"#;
    bytes[4096..4096 + json.len()].copy_from_slice(json);
    let content = probe::probe(&*Bytes::shared(bytes)).expect("memory reads");
    assert_eq!(content.cipher.as_deref(), Some("aes-xts-plain64"));
    assert_eq!(content.version.as_deref(), Some("2"));
    assert_eq!(kind(&vec![0; 1 << 20]), "empty");
}

fn kind(bytes: &[u8]) -> &'static str {
    probe::probe(&*Bytes::shared(bytes.to_vec()))
        .expect("memory reads")
        .kind
        .name()
}
