//! Hostile bytes: nothing that is parsed here panics, and nothing that was changed passes for whole.
#![expect(
    clippy::arithmetic_side_effects,
    reason = "numbers of the tests' own making"
)]

use proptest::prelude::*;
use store::ObjectName;

use super::envelope::{self, SealKey};
use super::pack::{DirectoryEntry, FrameHeader, PackHeader, PackKind, Trailer, decode_directory};
use super::segment::{self, PackDirectory, Segment};
use super::{BlobName, Cipher, Codec, ObjectKind};
use crate::crypto::SecretKey;
use crate::pack::{BlobDecoder, scan_frames};
use crate::{KeyId, PackId, SegmentId, SystemRandom};

fn name() -> ObjectName {
    ObjectName::new("points/x/1").expect("a good name")
}

fn entry(number: u8, offset: u32) -> DirectoryEntry {
    let name = BlobName::from_parts(number % 6, [number; 32]).expect("a level");
    DirectoryEntry {
        name,
        offset,
        stored_len: 100 + u32::from(number),
        codec: Codec::Zstd,
    }
}

fn segment() -> Segment {
    let pack = |number: u8| PackDirectory {
        pack_id: PackId::from_bytes([number; 16]),
        kind: PackKind::Data,
        key_id: KeyId::from_bytes([7; 16]),
        cipher: Cipher::Aes256Gcm,
        stored_size_bytes: 12_345,
        entries: (0..number)
            .map(|at| entry(at, 64 + u32::from(at) * 1000))
            .collect(),
    };
    Segment {
        replaces: vec![
            SegmentId::from_bytes([3; 16]),
            SegmentId::from_bytes([4; 16]),
        ],
        packs: vec![pack(0), pack(5), pack(9)],
    }
}

#[test]
fn a_segment_is_read_as_it_was_written_and_never_when_cut() {
    let text = segment::encode(&segment());
    assert_eq!(segment::decode(&text), Ok(segment()));
    for cut in 0..text.len() {
        assert!(segment::decode(&text[..cut]).is_err(), "cut at {cut}");
    }
    let mut longer = text.clone();
    longer.push(0);
    assert!(segment::decode(&longer).is_err());
}

#[test]
fn counts_that_lie_cost_nothing() {
    let mut text = vec![0xFF; 16];
    assert!(segment::decode(&text).is_err());
    text = segment::encode(&segment());
    text[..4].copy_from_slice(&u32::MAX.to_le_bytes());
    assert!(segment::decode(&text).is_err());
}

#[test]
fn an_envelope_opens_only_under_its_name_with_its_key_and_whole() {
    let key = SecretKey::from_bytes([5; 32]);
    let id = KeyId::from_bytes([6; 16]);
    let seal = SealKey::Key { id, key: &key };
    let text = b"what is inside".to_vec();
    let bytes = envelope::seal(
        &name(),
        ObjectKind::Point,
        &seal,
        &SystemRandom::new(),
        &text,
    )
    .expect("sealed");
    let find = |wanted: KeyId| (wanted == id).then(|| key.clone());
    let (header, opened) = envelope::open(&name(), &bytes, &find).expect("opened");
    assert_eq!((header.kind, opened), (ObjectKind::Point, text));
    let other = ObjectName::new("points/x/2").expect("a good name");
    assert!(envelope::open(&other, &bytes, &find).is_err());
    assert!(
        envelope::check(&other, &bytes).is_err(),
        "also without a key"
    );
    let error = envelope::open(&name(), &bytes, &|_| None).expect_err("no key");
    assert_eq!(error.kind(), crate::ErrorKind::WrongKey);
    for bit in 0..bytes.len() * 8 {
        let mut changed = bytes.clone();
        changed[bit / 8] ^= 1 << (bit % 8);
        assert!(envelope::check(&name(), &changed).is_err(), "bit {bit}");
    }
    for cut in 0..bytes.len() {
        assert!(
            envelope::check(&name(), &bytes[..cut]).is_err(),
            "cut at {cut}"
        );
    }
}

#[test]
fn somebody_who_repairs_the_checksum_does_not_pass_without_the_key() {
    let key = SecretKey::from_bytes([5; 32]);
    let id = KeyId::from_bytes([6; 16]);
    let seal = SealKey::Key { id, key: &key };
    let bytes = envelope::seal(
        &name(),
        ObjectKind::Mark,
        &seal,
        &SystemRandom::new(),
        b"abc",
    )
    .expect("sealed");
    let find = |_: KeyId| Some(key.clone());
    // Kind and first byte of the text, with a checksum that fits.
    for at in [10, 80] {
        let mut changed = bytes.clone();
        changed[at] ^= 1;
        let body = changed.len() - 32;
        let mut hasher = blake3::Hasher::new_derive_key(super::context::OBJECT_CHECKSUM);
        let text = name().to_string();
        hasher.update(&u32::try_from(text.len()).expect("short").to_le_bytes());
        hasher.update(text.as_bytes());
        hasher.update(&changed[..body]);
        changed[body..].copy_from_slice(hasher.finalize().as_bytes());
        assert!(
            envelope::check(&name(), &changed).is_ok(),
            "the checksum fits"
        );
        assert!(
            envelope::open(&name(), &changed, &find).is_err(),
            "byte {at}"
        );
    }
}

#[test]
fn a_directory_must_tile_its_pack() {
    let entries = [entry(0, 64), entry(6, 64 + 16 + 100)];
    let end = u32::try_from(entries[1].end()).expect("small");
    let encode = |entries: &[DirectoryEntry]| {
        let mut bytes = Vec::new();
        entries.iter().for_each(|entry| entry.encode(&mut bytes));
        bytes
    };
    let good = encode(&entries);
    assert_eq!(
        decode_directory(PackKind::Data, end, &good),
        Ok(entries.to_vec())
    );
    assert!(
        decode_directory(PackKind::Node, end, &good).is_err(),
        "blocks in a node pack"
    );
    assert!(
        decode_directory(PackKind::Data, end + 1, &good).is_err(),
        "a gap at the end"
    );
    assert!(decode_directory(PackKind::Data, end, &good[..47]).is_err());
    let swapped = encode(&[entries[1], entries[0]]);
    assert!(
        decode_directory(PackKind::Data, end, &swapped).is_err(),
        "out of order"
    );
}

fn plain_header(kind: PackKind) -> PackHeader {
    PackHeader {
        kind,
        cipher: Cipher::Plain,
        pack_id: PackId::from_bytes([1; 16]),
        key_id: KeyId::PLAIN,
        salt: [0; 16],
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn nothing_panics_on_any_bytes(bytes in proptest::collection::vec(any::<u8>(), 0..600), size: u64) {
        let _ = envelope::check(&name(), &bytes);
        let _ = segment::decode(&bytes);
        let _ = PackHeader::decode(&bytes);
        let _ = FrameHeader::decode(&bytes);
        let _ = DirectoryEntry::decode(&bytes);
        let _ = Trailer::decode(&bytes, Cipher::Aes256Gcm, size);
        let _ = decode_directory(PackKind::Node, 64, &bytes);
        for kind in PackKind::ALL {
            let decoder = BlobDecoder::with_key(plain_header(kind), None);
            prop_assert!(scan_frames(&decoder, &bytes).is_empty());
        }
    }

    #[test]
    fn a_changed_segment_is_refused_or_differs(at in 0usize..2000, bit in 0u8..8) {
        let mut text = segment::encode(&segment());
        let at = at % text.len();
        text[at] ^= 1 << bit;
        // Reserved bytes may be anything; all else must show.
        if let Ok(read) = segment::decode(&text) {
            let reserved = (8..16).contains(&at) || segment::encode(&read) != text;
            prop_assert!(read != segment() || reserved);
        }
    }

    #[test]
    fn headers_are_read_as_they_were_written(id: [u8; 16], key: [u8; 16], salt: [u8; 16], ordinal: u32, a: u32, b: u32) {
        let header = PackHeader {
            kind: PackKind::Node,
            cipher: Cipher::Aes256Gcm,
            pack_id: PackId::from_bytes(id),
            key_id: KeyId::from_bytes(key),
            salt,
        };
        prop_assert_eq!(PackHeader::decode(&header.encode()), Ok(header));
        let frame = FrameHeader { level: 3, codec: Codec::Lz4, ordinal, plain_len: a, stored_len: b };
        prop_assert_eq!(FrameHeader::decode(&frame.encode()), Some(frame));
    }
}
