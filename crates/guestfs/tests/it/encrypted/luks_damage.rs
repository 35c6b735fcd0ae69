//! LUKS headers that are damaged, or that lie.

use std::time::{Duration, Instant};

use base64ct::{Base64, Encoding};
use guestfs::ErrorKind;
use guestfs::encrypted::UnlockKey;
use sha2::{Digest, Sha256};

use super::luks::made;
use super::{assert_same, memory, unlock, whole};
use crate::corpus::Dice;
use crate::images::has_commands;

const HEADER_BYTES: usize = 16 << 10;

fn secret() -> Vec<UnlockKey> {
    vec![UnlockKey::passphrase("secret")]
}

/// An encrypted volume, and what lies in it.
fn sample() -> Option<(Vec<u8>, Vec<u8>)> {
    if !has_commands(&["cryptsetup", "mke2fs"]) {
        return None;
    }
    let folder = tempfile::tempdir().expect("a folder");
    made(folder.path(), "encrypt xts $cheap");
    let read = |name| std::fs::read(folder.path().join(name)).expect("an image");
    Some((read("xts.img"), read("plain.img")))
}

/// Writes the checksum of a copy anew.
fn sign(copy: &mut [u8]) {
    copy[448..512].fill(0);
    let sum = Sha256::digest(&copy[..HEADER_BYTES]);
    copy[448..480].copy_from_slice(&sum);
}

fn json(image: &[u8]) -> serde_json::Value {
    let area = &image[4096..HEADER_BYTES];
    let end = area
        .iter()
        .position(|byte| *byte == 0)
        .unwrap_or(area.len());
    serde_json::from_slice(&area[..end]).expect("what cryptsetup wrote")
}

/// The same volume with another text in both copies.
fn with_text(image: &[u8], text: &[u8]) -> Vec<u8> {
    let mut image = image.to_vec();
    for start in [0, HEADER_BYTES] {
        let copy = &mut image[start..start + HEADER_BYTES];
        copy[4096..].fill(0);
        copy[4096..4096 + text.len()].copy_from_slice(text);
        sign(copy);
    }
    image
}

fn changed(image: &[u8], change: impl Fn(&mut serde_json::Value)) -> Vec<u8> {
    let mut metadata = json(image);
    change(&mut metadata);
    with_text(image, metadata.to_string().as_bytes())
}

#[test]
fn one_sound_copy_of_the_header_is_enough() {
    let Some((image, plain)) = sample() else {
        return;
    };
    let same = changed(&image, |_| {});
    let opened = unlock(memory(same), &secret()).expect("the test writes as cryptsetup does");
    assert!(opened.findings.is_empty());

    let mut first_lost = image.clone();
    first_lost[..4096].fill(0);
    let mut first_hurt = image.clone();
    first_hurt[5000] ^= 1;
    let mut second_hurt = image.clone();
    second_hurt[HEADER_BYTES + 5000] ^= 1;
    for (hurt, says) in [
        (first_lost, "first copy"),
        (first_hurt, "first copy"),
        (second_hurt, "second copy"),
    ] {
        let opened = unlock(memory(hurt), &secret()).expect("the other copy");
        assert_same(&whole(&*opened.reader)[..plain.len()], &plain, says);
        assert_eq!(opened.findings.len(), 1, "{:?}", opened.findings);
        assert!(opened.findings[0].contains(says), "{:?}", opened.findings);
    }
    let mut both_hurt = image.clone();
    both_hurt[5000] ^= 1;
    both_hurt[HEADER_BYTES + 5000] ^= 1;
    let error = unlock(memory(both_hurt), &secret()).expect_err("nothing is left");
    assert_eq!(error.kind(), ErrorKind::Corrupt);

    // The second copy is newer, and names another place for the data.
    let mut newer = changed(&image, |metadata| {
        metadata["segments"]["0"]["iv_tweak"] = "8".into();
    });
    newer[..HEADER_BYTES].copy_from_slice(&image[..HEADER_BYTES]);
    newer[HEADER_BYTES + 23] = newer[HEADER_BYTES + 23].wrapping_add(1);
    sign(&mut newer[HEADER_BYTES..2 * HEADER_BYTES]);
    let opened = unlock(memory(newer), &secret()).expect("the second copy");
    assert!(
        opened.findings[0].contains("out of date"),
        "{:?}",
        opened.findings
    );
    assert_ne!(whole(&*opened.reader)[..4096], plain[..4096]);
}

/// What lies, in words; the volume; what it must be refused as.
type Lie = (&'static str, Vec<u8>, ErrorKind);

fn lies_about_keys(image: &[u8]) -> Vec<Lie> {
    let slot = |name: &'static str, value: serde_json::Value| {
        changed(image, move |it| {
            it["keyslots"]["0"][name] = value.clone();
        })
    };
    let kdf = |kind: &str, memory: u64, time: u64| {
        let salt = Base64::encode_string(&[7; 32]);
        let it = serde_json::json!({"type": kind, "time": time, "memory": memory, "cpus": 4, "salt": salt});
        slot("kdf", it)
    };
    let stripes = changed(image, |it| {
        it["keyslots"]["0"]["af"]["stripes"] = u32::MAX.into();
    });
    let area = changed(image, |it| {
        it["keyslots"]["0"]["area"]["offset"] = u64::MAX.to_string().into();
    });
    let most = u64::from(u32::MAX);
    vec![
        ("memory", kdf("argon2id", 4 << 20, 1), ErrorKind::Limit),
        ("time", kdf("argon2i", 1 << 20, most), ErrorKind::Limit),
        ("no time", kdf("argon2id", 1 << 20, 0), ErrorKind::Corrupt),
        ("scrypt", kdf("scrypt", 64, 1), ErrorKind::Unsupported),
        ("stripes", stripes, ErrorKind::Corrupt),
        ("key", slot("key_size", most.into()), ErrorKind::Corrupt),
        ("area", area, ErrorKind::Corrupt),
    ]
}

fn lies_about_data(image: &[u8]) -> Vec<Lie> {
    let segment = |name: &'static str, value: serde_json::Value| {
        changed(image, move |it| {
            it["segments"]["0"][name] = value.clone();
        })
    };
    let requires = |what: &'static str| {
        changed(image, move |it| {
            it["config"]["requirements"] = serde_json::json!({"mandatory": [what]});
        })
    };
    let (unsupported, corrupt) = (ErrorKind::Unsupported, ErrorKind::Corrupt);
    let hmac = serde_json::json!({"type": "hmac(sha256)"});
    let end = (48_u64 << 20).to_string();
    vec![
        ("integrity", segment("integrity", hmac), unsupported),
        (
            "cipher",
            segment("encryption", "aes-hctr2-plain64".into()),
            unsupported,
        ),
        ("opal", segment("type", "hw-opal".into()), unsupported),
        ("sectors", segment("sector_size", 3.into()), corrupt),
        ("no data", segment("offset", end.into()), corrupt),
        (
            "far",
            segment("offset", u64::MAX.to_string().into()),
            corrupt,
        ),
        ("requirement", requires("inline-hw-tags"), unsupported),
        (
            "re-encryption",
            requires("online-reencrypt-v2"),
            unsupported,
        ),
    ]
}

#[test]
fn headers_that_ask_for_too_much_or_for_what_is_not_done_are_refused_at_once() {
    let Some((image, _)) = sample() else {
        return;
    };
    for (what, hostile, kind) in [lies_about_keys(&image), lies_about_data(&image)].concat() {
        let start = Instant::now();
        let error = unlock(memory(hostile), &secret()).expect_err(what);
        assert_eq!(error.kind(), kind, "{what}: {error}");
        assert!(start.elapsed() < Duration::from_secs(5), "{what}");
    }
}

#[test]
fn texts_that_are_bombs_are_refused_at_once() {
    let Some((image, _)) = sample() else {
        return;
    };
    let deep = "[".repeat(12_000);
    let many: String = (0..600)
        .map(|n| format!("\"{n}\":{{\"type\":\"x\"}},"))
        .collect();
    let many = format!("{{\"keyslots\":{{{}}}}}", many.trim_end_matches(','));
    for text in [deep.as_str(), &many, "", "{}", "null", "{\"keyslots\":1}"] {
        let error =
            unlock(memory(with_text(&image, text.as_bytes())), &secret()).expect_err("no metadata");
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
    }
}

#[test]
fn damaged_headers_give_typed_errors_and_end_soon() {
    let Some((image, _)) = sample() else {
        return;
    };
    // The header, the areas of its slots, and a little data.
    let image = image[..17 << 20].to_vec();
    let seed = 20;
    let mut dice = Dice::new(seed);
    let (mut opened, mut refused) = (0, 0);
    for round in 0..150 {
        let mut hurt = image.clone();
        for _ in 0..=dice.below(6) {
            let reach = if dice.below(2) == 0 {
                HEADER_BYTES
            } else {
                8192
            };
            dice.damage(&mut hurt[..reach], 0);
        }
        hurt[..6].copy_from_slice(b"LUKS\xBA\xBE");
        let same: Vec<u8> = hurt[..HEADER_BYTES].to_vec();
        if dice.below(4) != 0 {
            // As a liar would: with checksums that fit.
            sign(&mut hurt[..HEADER_BYTES]);
            hurt[HEADER_BYTES..2 * HEADER_BYTES].fill(0);
        }
        if dice.below(8) == 0 {
            hurt.truncate(dice.below(image.len()));
            hurt.resize(hurt.len().max(same.len()), 0);
        }
        let start = Instant::now();
        match unlock(memory(hurt), &secret()) {
            Ok(found) => {
                opened += 1;
                let mut sector = [0; 512];
                let end = found.reader.size_bytes();
                if end >= 512 {
                    found
                        .reader
                        .read_at(end - 512, &mut sector)
                        .expect("inside");
                }
            }
            Err(error) => {
                refused += 1;
                assert_ne!(
                    error.kind(),
                    ErrorKind::Io,
                    "seed {seed} round {round}: {error}"
                );
            }
        }
        let took = start.elapsed();
        assert!(
            took < Duration::from_secs(20),
            "seed {seed} round {round}: {took:?}"
        );
    }
    assert!(
        opened > 5 && refused > 20,
        "{opened} opened, {refused} refused"
    );
}
