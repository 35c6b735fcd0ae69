//! BitLocker volumes, made by the writer beside, and held against dislocker.

use std::path::Path;
use std::sync::Arc;

use guestfs::encrypted::UnlockKey;
use guestfs::{ErrorKind, FileName, FileSystem};

use super::bitlocker_writer::{
    CONVERSION, Layout, MOVED_TO, PLACES, Protection, Recipe, digits, startup_file, write,
};
use super::{assert_same, memory, unlock, whole};
use crate::corpus::Dice;
use crate::images::{has_commands, script};

const SIZE_BYTES: usize = 16 << 20;
const PASSWORD: Protection = Protection::Password("Geheim 1");
const GROUPS: [u16; 8] = [471, 27849, 4221, 65535, 5619, 0, 46800, 6934];

fn password() -> Vec<UnlockKey> {
    vec![UnlockKey::passphrase("Geheim 1")]
}

/// An NTFS volume with a file that is larger than what is read at once.
fn ntfs() -> Option<Vec<u8>> {
    if !has_commands(&["mkntfs", "ntfscp"]) {
        return None;
    }
    let folder = tempfile::tempdir().expect("a folder");
    script(
        folder.path(),
        "truncate -s 16M v.img; mkntfs -q -F -Q -s 512 -p 0 -H 0 -S 0 -L data v.img >&2\n\
         head -c 3000000 /dev/urandom > noise; ntfscp -q v.img noise noise",
    )
    .expect("the tools make it");
    Some(std::fs::read(folder.path().join("v.img")).expect("an image"))
}

fn check(plain: &[u8], recipe: &Recipe, keys: &[UnlockKey], what: &str) -> (String, Vec<String>) {
    let image = write(plain, recipe);
    let opened = unlock(memory(image), keys).unwrap_or_else(|error| panic!("{what}: {error}"));
    assert_same(&whole(&*opened.reader), plain, what);
    (opened.opened_by, opened.findings)
}

/// What dislocker makes of an image.
fn dislocker(folder: &Path, image: &[u8], how: &str) -> Vec<u8> {
    std::fs::write(folder.join("image"), image).expect("room");
    let text = format!("rm -f plain; dislocker-file -q -V image {how} -- plain >&2");
    script(folder, &text).unwrap_or_else(|error| panic!("dislocker {how}: {error}"));
    std::fs::read(folder.join("plain")).expect("its output")
}

#[test]
fn every_method_of_encryption_is_read_as_dislocker_reads_it() {
    let Some(plain) = ntfs() else {
        return;
    };
    let has_dislocker = has_commands(&["dislocker-file"]);
    for (method, name) in [
        (0x8000, "aes-cbc-128-elephant"),
        (0x8001, "aes-cbc-256-elephant"),
        (0x8002, "aes-cbc-128"),
        (0x8003, "aes-cbc-256"),
        (0x8004, "aes-xts-128"),
        (0x8005, "aes-xts-256"),
    ] {
        let image = write(&plain, &Recipe::of(method, &[PASSWORD]));
        let opened = unlock(memory(image.clone()), &password()).expect(name);
        assert_eq!(opened.cipher, name);
        assert_eq!(opened.opened_by, "its password");
        assert!(opened.findings.is_empty(), "{:?}", opened.findings);
        let found = whole(&*opened.reader);
        assert_same(&found, &plain, name);
        if has_dislocker {
            let folder = tempfile::tempdir().expect("a folder");
            let theirs = dislocker(folder.path(), &image, "-u'Geheim 1'");
            assert_same(&found, &theirs, name);
        }
        let fs = guestfs::ntfs::open(Arc::clone(&opened.reader)).expect("NTFS");
        let noise = fs
            .find(fs.root(), &FileName::from("noise"))
            .expect("it is looked up");
        let noise = noise.expect("it is there");
        assert_eq!(fs.metadata(noise).expect("its facts").size_bytes, 3_000_000);
    }
}

#[test]
fn every_kind_of_key_that_a_person_holds_opens_it() {
    let Some(plain) = ntfs() else {
        return;
    };
    let key = [0x33; 32];
    let all = [
        Protection::Tpm,
        PASSWORD,
        Protection::Recovery(GROUPS),
        Protection::StartupKey(key),
        // dislocker knows passwords of ASCII only.
        Protection::Password("秘密 𝄞"),
    ];
    let image = write(&plain, &Recipe::of(0x8004, &all));
    let recovery = UnlockKey::recovery_password(&digits(GROUPS)).expect("well formed");
    let startup = UnlockKey::key_file(startup_file(&key, 4));
    if has_commands(&["dislocker-file"]) {
        let folder = tempfile::tempdir().expect("a folder");
        let theirs = dislocker(folder.path(), &image, &format!("-p{}", digits(GROUPS)));
        assert_same(&theirs, &plain, "dislocker with the recovery password");
        std::fs::write(folder.path().join("key.BEK"), startup_file(&key, 4)).expect("room");
        let theirs = dislocker(folder.path(), &image, "-f key.BEK");
        assert_same(&theirs, &plain, "dislocker with the startup key");
    }
    let volume = memory(image);
    for (right, says) in [
        (password().remove(0), "its password"),
        (recovery.clone(), "the recovery password {"),
        (startup, "the startup key {"),
        (UnlockKey::passphrase("秘密 𝄞"), "its password"),
    ] {
        let keys = [UnlockKey::passphrase("wrong"), right];
        let opened = unlock(Arc::clone(&volume), &keys).expect(says);
        assert!(opened.opened_by.starts_with(says), "{}", opened.opened_by);
    }
    let error = unlock(Arc::clone(&volume), &[]).expect_err("no key");
    assert_eq!(error.kind(), ErrorKind::Locked);
    for says in [
        "a TPM",
        "its password",
        "recovery password {",
        "startup key {",
        "no key was given",
    ] {
        assert!(error.to_string().contains(says), "{error}");
    }
    for wrong in [
        UnlockKey::recovery_password(&digits([1; 8])).expect("well formed"),
        UnlockKey::key_file(startup_file(&key, 3)),
        UnlockKey::key_file(startup_file(&[0; 32], 4)),
        UnlockKey::passphrase("wrong"),
    ] {
        let error = unlock(Arc::clone(&volume), &[wrong]).expect_err("a wrong key");
        assert_eq!(error.kind(), ErrorKind::Locked);
        assert!(error.to_string().contains("does not open it"), "{error}");
    }
    let error = unlock(volume, &[UnlockKey::key_file("no startup key")]).expect_err("no key");
    assert!(error.to_string().contains("of such a kind"), "{error}");
}

#[test]
fn a_suspended_or_decrypted_volume_needs_no_key() {
    let Some(plain) = ntfs() else {
        return;
    };
    let suspended = Recipe::of(0x8005, &[Protection::Tpm, Protection::Suspended]);
    let (by, _) = check(&plain, &suspended, &[], "suspended");
    assert_eq!(by, "no key: its protection is suspended");
    if has_commands(&["dislocker-file"]) {
        let folder = tempfile::tempdir().expect("a folder");
        let theirs = dislocker(folder.path(), &write(&plain, &suspended), "-c");
        assert_same(&theirs, &plain, "dislocker without a key");
    }
    let mut decrypted = Recipe::of(0x8004, &[]);
    decrypted.state = 1;
    let (by, _) = check(&plain, &decrypted, &[], "decrypted");
    assert_eq!(by, "no key: it was decrypted");
}

#[test]
fn every_layout_is_read() {
    let Some(plain) = ntfs() else {
        return;
    };
    let has_dislocker = has_commands(&["dislocker-file"]);
    let mut vista = Recipe::of(0x8000, &[Protection::Recovery(GROUPS)]);
    vista.layout = Layout::Vista;
    let recovery = [UnlockKey::recovery_password(&digits(GROUPS)).expect("well formed")];
    let (_, findings) = check(&plain, &vista, &recovery, "Vista");
    assert!(findings.is_empty(), "{findings:?}");
    if has_dislocker {
        let folder = tempfile::tempdir().expect("a folder");
        let how = format!("-p{}", digits(GROUPS));
        // Debian's dislocker wants the size there that Vista leaves out.
        vista.watermark = Some(plain.len() as u64);
        check(&plain, &vista, &recovery, "Vista with its size");
        let theirs = dislocker(folder.path(), &write(&plain, &vista), &how);
        // Where the copy of the file table lies, dislocker writes something of its own.
        assert_same(&theirs[..56], &plain[..56], "dislocker on Vista");
        assert_same(&theirs[64..], &plain[64..], "dislocker on Vista");
    }

    // Half way: what lies behind the watermark is plain.
    let mut half = Recipe::of(0x8003, &[PASSWORD]);
    half.state = 3;
    half.watermark = Some(29 << 18);
    let (_, findings) = check(&plain, &half, &password(), "half way");
    assert!(findings[0].contains("not finished"), "{findings:?}");

    // As Windows 10 does it: every other chunk is done.
    let mut chunks = Recipe::of(0x8004, &[PASSWORD]);
    chunks.layout = Layout::OnWrite {
        chunk_bytes: 1 << 20,
    };
    let (_, findings) = check(&plain, &chunks, &password(), "by chunks");
    assert!(findings[0].contains("being encrypted"), "{findings:?}");

    let mut step = Recipe::of(0x8003, &[PASSWORD]);
    step.state = 2;
    let mut image = write(&plain, &step);
    for place in PLACES {
        hurt_and_sign(&mut image, place, 24, 1);
    }
    let error = unlock(memory(image), &password()).expect_err("in the middle of a step");
    assert_eq!(error.kind(), ErrorKind::Unsupported);
}

#[test]
fn a_stick_that_looks_like_fat_from_outside_is_read() {
    if !has_commands(&["mkfs.fat", "mcopy"]) {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    script(
        folder.path(),
        "truncate -s 16M v.img; mkfs.fat -F 16 v.img >&2; head -c 2000000 /dev/urandom > noise; mcopy -i v.img noise ::/",
    )
    .expect("the tools make it");
    let plain = std::fs::read(folder.path().join("v.img")).expect("an image");
    assert_eq!(plain.len(), SIZE_BYTES);
    let mut recipe = Recipe::of(0x8000, &[PASSWORD]);
    recipe.layout = Layout::ToGo;
    recipe.moved_sectors = 4001;
    let (_, findings) = check(&plain, &recipe, &password(), "to go");
    assert!(findings.is_empty(), "{findings:?}");
    if has_commands(&["dislocker-file"]) {
        let theirs = dislocker(folder.path(), &write(&plain, &recipe), "-u'Geheim 1'");
        assert_same(&theirs, &plain, "dislocker to go");
    }
}

/// Changes a byte of a copy of the metadata, and writes its checksum anew.
fn hurt_and_sign(image: &mut [u8], place: u64, at: usize, value: u8) {
    let start = usize::try_from(place).expect("small");
    image[start + at] = value;
    let length = usize::from(u16::from_le_bytes([image[start + 8], image[start + 9]])) * 16;
    let sum = crc32fast::hash(&image[start..start + length]);
    image[start + length + 4..start + length + 8].copy_from_slice(&sum.to_le_bytes());
}

#[test]
fn one_sound_copy_of_the_metadata_is_enough() {
    let Some(plain) = ntfs() else {
        return;
    };
    let image = write(&plain, &Recipe::of(0x8004, &[Protection::Suspended]));
    let at = |number: usize| usize::try_from(PLACES[number]).expect("small");
    let mut two_hurt = image.clone();
    two_hurt[at(0)..at(0) + 4096].fill(0);
    two_hurt[at(1) + 70] ^= 1;
    let opened = unlock(memory(two_hurt), &[]).expect("the third copy");
    assert_eq!(opened.findings.len(), 2, "{:?}", opened.findings);
    assert_same(&whole(&*opened.reader), &plain, "with one copy");
    let mut all_hurt = image.clone();
    for (number, place) in PLACES.into_iter().enumerate() {
        let place = usize::try_from(place).expect("small");
        all_hurt[place + 100 + number] ^= 1;
    }
    let error = unlock(memory(all_hurt), &[]).expect_err("three that differ");
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    // Who changes the metadata without the key is found out.
    let mut forged = image.clone();
    for place in PLACES {
        hurt_and_sign(&mut forged, place, 64 + 33, 77);
    }
    let opened = unlock(memory(forged), &[]).expect("it opens");
    assert!(
        opened.findings[0].contains("signed"),
        "{:?}",
        opened.findings
    );
    let mut far = image;
    for place in PLACES {
        hurt_and_sign(&mut far, place, 63, 0x7F);
    }
    let error = unlock(memory(far), &[]).expect_err("moved behind the end");
    assert_eq!(error.kind(), ErrorKind::Corrupt);
}

#[test]
fn damaged_volumes_give_typed_errors_and_end_soon() {
    let Some(plain) = ntfs() else {
        return;
    };
    let mut recipe = Recipe::of(0x8004, &[Protection::Suspended]);
    let finished = write(&plain, &recipe);
    recipe.layout = Layout::OnWrite {
        chunk_bytes: 1 << 20,
    };
    let begun = write(&plain, &recipe);
    let seed = 31;
    let mut dice = Dice::new(seed);
    let (mut opened, mut refused) = (0, 0);
    // What is hurt is put back, since a copy of all for each round takes longer than the test.
    for (name, image) in [("finished", finished), ("begun", begun)] {
        let shared = std::sync::Arc::new(image);
        for round in 0..150 {
            let mut hurt = Patched::over(&shared);
            for _ in 0..=dice.below(4) {
                let place = [
                    0,
                    PLACES[0],
                    PLACES[0],
                    CONVERSION,
                    CONVERSION + 8192,
                    MOVED_TO,
                ];
                hurt.damage(place[dice.below(6)], &mut dice);
            }
            // The copies are alike, so that the damage counts.
            hurt.copy(PLACES[0], &PLACES[1..]);
            hurt.copy(CONVERSION, &[CONVERSION + 4096]);
            let volume: Arc<dyn block::ReadAt> = Arc::new(hurt);
            let what = format!("{name}, seed {seed} round {round}");
            let kind = guestfs::probe::Encryption::BitLocker;
            match guestfs::encrypted::open(volume, kind, &[]) {
                Ok(found) => {
                    opened += 1;
                    let mut bytes = vec![0; 1 << 16];
                    for at in [0, PLACES[0] - 4096, MOVED_TO - 4096, CONVERSION - 512] {
                        if let Err(error) = found.reader.read_at(at, &mut bytes) {
                            assert_ne!(error.kind(), block::ErrorKind::Io, "{what}: {error}");
                        }
                    }
                }
                Err(error) => {
                    refused += 1;
                    assert_ne!(error.kind(), ErrorKind::Io, "{what}: {error}");
                }
            }
        }
    }
    assert!(
        opened > 5 && refused > 20,
        "{opened} opened, {refused} refused"
    );
}

/// An image with some pieces replaced.
struct Patched {
    image: Arc<Vec<u8>>,
    pieces: Vec<(u64, Vec<u8>)>,
}

impl Patched {
    fn over(image: &Arc<Vec<u8>>) -> Self {
        Self {
            image: Arc::clone(image),
            pieces: Vec::new(),
        }
    }

    fn piece(&mut self, place: u64) -> usize {
        if let Some(at) = self.pieces.iter().position(|(start, _)| *start == place) {
            return at;
        }
        let start = usize::try_from(place).expect("small");
        self.pieces
            .push((place, self.image[start..start + 2048].to_vec()));
        self.pieces.len() - 1
    }

    /// Hurts what lies there, and lets the checksum fit in half of the cases.
    fn damage(&mut self, place: u64, dice: &mut Dice) {
        let at = self.piece(place);
        let bytes = &mut self.pieces[at].1;
        let reach = [64, 128, 700, 2048][dice.below(4)];
        dice.damage(&mut bytes[..2048.min(reach + 64)], 0);
        let length = usize::from(u16::from_le_bytes([bytes[8], bytes[9]])) * 16;
        let sum_at = length + 4;
        if PLACES.contains(&place) && dice.below(4) != 0 && sum_at + 4 <= bytes.len() {
            let sum = crc32fast::hash(&bytes[..length]);
            bytes[sum_at..sum_at + 4].copy_from_slice(&sum.to_le_bytes());
        }
    }

    fn copy(&mut self, from: u64, to: &[u64]) {
        let at = self.piece(from);
        let bytes = self.pieces[at].1.clone();
        for place in to {
            let at = self.piece(*place);
            self.pieces[at].1.clone_from(&bytes);
        }
    }
}

impl block::ReadAt for Patched {
    fn size_bytes(&self) -> u64 {
        self.image.len() as u64
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> block::Result<()> {
        let start = usize::try_from(offset).expect("small");
        let part = self.image.get(start..start + buffer.len());
        let part =
            part.ok_or_else(|| block::Error::new(block::ErrorKind::OutOfRange, "behind the end"))?;
        buffer.copy_from_slice(part);
        let end = offset + buffer.len() as u64;
        for (place, bytes) in &self.pieces {
            let (from, to) = (offset.max(*place), end.min(place + bytes.len() as u64));
            if from < to {
                let source = &bytes[(from - place) as usize..(to - place) as usize];
                buffer[(from - offset) as usize..(to - offset) as usize].copy_from_slice(source);
            }
        }
        Ok(())
    }
}
