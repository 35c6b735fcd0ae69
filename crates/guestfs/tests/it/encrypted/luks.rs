//! LUKS volumes that cryptsetup and QEMU made.

use std::path::Path;
use std::sync::Arc;

use block::ReadAt;
use guestfs::disk::{Lock, VolumePlace, inspect, inspect_with_keys};
use guestfs::encrypted::UnlockKey;
use guestfs::filesystem::FileSystemKind;
use guestfs::probe::ContentKind;
use guestfs::{ErrorKind, FileName, FileSystem};

use super::{assert_same, unlock, whole};
use crate::corpus;
use crate::images::{FileVolume, has_commands, script};

/// Makes `plain.img` with ext4 and some files, and the file `key`.
const PLAIN: &str = r#"
printf secret > key
head -c 100000 /dev/urandom > other
mkdir tree; echo inside > tree/note; cp other tree/noise
mke2fs -q -t ext4 -b 4096 -d tree plain.img 16M
"#;

/// Encrypts a copy of `plain.img` as cryptsetup does it to a disk in use. Words after the name go to it.
const ENCRYPT: &str = r#"
encrypt() { name=$1; shift; cp plain.img "$name.img"; truncate -s 48M "$name.img"
cryptsetup reencrypt --encrypt --disable-locks -q --type luks2 --reduce-device-size 32M --key-file key "$@" "$name.img" >log 2>&1 || { cat log >&2; exit 1; }; }
cheap="--pbkdf pbkdf2 --pbkdf-force-iterations 1000"
light="--pbkdf-force-iterations 4 --pbkdf-memory 8192 --pbkdf-parallel 2"
"#;

pub(super) fn made(folder: &Path, text: &str) {
    script(folder, &format!("{PLAIN}{ENCRYPT}{text}")).expect("the tools make it");
}

fn secret() -> Vec<UnlockKey> {
    vec![UnlockKey::passphrase("secret")]
}

/// Opens an image, and compares it with the plain one as far as that reaches.
fn check(folder: &Path, name: &str, keys: &[UnlockKey]) -> guestfs::encrypted::OpenedVolume {
    let opened = unlock(FileVolume::open(&folder.join(name)), keys)
        .unwrap_or_else(|error| panic!("{name}: {error}"));
    let plain = std::fs::read(folder.join("plain.img")).expect("the plain image");
    let found = whole(&*opened.reader);
    assert_same(&found[..plain.len()], &plain, name);
    opened
}

#[test]
fn what_cryptsetup_encrypted_is_read_as_it_was() {
    if !has_commands(&["cryptsetup", "mke2fs"]) {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    made(
        folder.path(),
        r#"
encrypt xts $cheap
encrypt large --sector-size 4096 --hash sha512 $cheap
encrypt essiv -c aes-cbc-essiv:sha256 -s 256 --pbkdf argon2i $light
encrypt id --pbkdf argon2id $light -s 256
"#,
    );
    for (name, cipher) in [
        ("xts", "aes-xts-plain64"),
        ("large", "aes-xts-plain64"),
        ("essiv", "aes-cbc-essiv:sha256"),
        ("id", "aes-xts-plain64"),
    ] {
        let opened = check(folder.path(), &format!("{name}.img"), &secret());
        assert_eq!(opened.cipher, cipher);
        assert_eq!(opened.opened_by, "key slot 0");
        assert_eq!(opened.findings, Vec::<String>::new(), "{name}");
    }
}

/// QEMU measures how fast it is, and gives up at times when others are at work.
#[test]
fn what_qemu_encrypted_is_read_as_it_was() {
    if !has_commands(&["qemu-img", "mke2fs"]) {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    made(
        folder.path(),
        r#"
pack() { for try in 1 2 3 4 5 6 7 8; do
qemu-img convert -O luks --object secret,id=s,file=key -o "key-secret=s,iter-time=10,$2" plain.img "$1.img" && return; done; exit 1; }
pack twofish cipher-alg=twofish-256,cipher-mode=xts,ivgen-alg=plain64
pack essiv cipher-alg=aes-128,cipher-mode=cbc,ivgen-alg=essiv,ivgen-hash-alg=sha256,hash-alg=sha1
pack ripemd cipher-alg=aes-256,cipher-mode=cbc,ivgen-alg=plain,hash-alg=ripemd160
"#,
    );
    for name in ["twofish", "essiv", "ripemd"] {
        check(folder.path(), &format!("{name}.img"), &secret());
    }
}

#[test]
fn every_key_slot_opens_and_wrong_keys_say_what_is_missing() {
    if !has_commands(&["cryptsetup", "mke2fs"]) {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    made(
        folder.path(),
        r#"
encrypt xts $cheap
cryptsetup luksAddKey --disable-locks --key-file key $cheap xts.img other
printf third > third
cryptsetup luksAddKey --disable-locks --key-file key --key-slot 5 $cheap xts.img third
printf '{"type":"a-chip","keyslots":["0"]}' > token
cryptsetup token import --disable-locks --json-file token xts.img
"#,
    );
    let other = std::fs::read(folder.path().join("other")).expect("the key file");
    let mut keys = vec![
        UnlockKey::recovery_password("471207-278498-422125-177177-561902-537405-468006-693451")
            .expect("well formed"),
        UnlockKey::passphrase("wrong"),
    ];
    let image = FileVolume::open(&folder.path().join("xts.img"));
    let error = unlock(image.clone(), &[]).expect_err("no key");
    assert_eq!(error.kind(), ErrorKind::Locked);
    let text = error.to_string();
    assert!(
        text.contains("no key was given") && text.contains("key slot 0, 1, 5"),
        "{text}"
    );
    assert!(text.contains("a-chip"), "{text}");
    let error = unlock(image.clone(), &keys[..1]).expect_err("of another kind");
    assert!(
        error
            .to_string()
            .contains("none of the keys given is of such a kind")
    );
    let error = unlock(image, &keys).expect_err("a wrong one");
    assert_eq!(error.kind(), ErrorKind::Locked);
    assert!(
        error.to_string().contains("the key given does not open it"),
        "{error}"
    );
    keys.push(UnlockKey::key_file(other));
    assert_eq!(
        check(folder.path(), "xts.img", &keys).opened_by,
        "key slot 1"
    );
    let third = [UnlockKey::passphrase("third")];
    assert_eq!(
        check(folder.path(), "xts.img", &third).opened_by,
        "key slot 5"
    );
}

#[test]
fn what_is_not_done_is_called_by_its_name() {
    if !has_commands(&["cryptsetup", "mke2fs"]) {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    made(
        folder.path(),
        r#"
encrypt begun $cheap --init-only
cryptsetup luksFormat -q --disable-locks --type luks2 --header apart.img $cheap --key-file key plain.img
truncate -s 1M old.img
printf 'LUKS\xde\xad\0\1' | dd of=old.img conv=notrunc status=none
"#,
    );
    for (name, says) in [
        ("begun.img", "re-encryption is under way"),
        ("apart.img", "detached"),
        ("old.img", "re-encryption is under way"),
    ] {
        let image = FileVolume::open(&folder.path().join(name));
        let error = unlock(image, &secret()).expect_err(name);
        assert_eq!(error.kind(), ErrorKind::Unsupported, "{name}: {error}");
        assert!(error.to_string().contains(says), "{name}: {error}");
    }
}

#[test]
fn a_volume_group_in_an_encrypted_partition_is_found_with_its_volumes() {
    if !has_commands(&["qemu-img", "sfdisk", "mke2fs"]) {
        return;
    }
    let Some(group) = corpus::bytes("lvm/dissect-lvm.bin.gz") else {
        return;
    };
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::write(folder.path().join("group.img"), &group).expect("room");
    made(
        folder.path(),
        r#"
pack() { for try in 1 2 3 4 5 6 7 8; do
qemu-img convert -O luks --object secret,id=s,file=key -o key-secret=s,iter-time=10 "$1" "$2" && return; done; exit 1; }
pack group.img group.luks
pack plain.img plain.luks
size=$(( $(stat -c %s group.luks) / 512 ))
truncate -s 1M disk.img; cat group.luks >> disk.img
at=$(( ($(stat -c %s disk.img) + 1048575) / 1048576 * 2048 ))
truncate -s $(( at * 512 )) disk.img; cat plain.luks >> disk.img; truncate -s +1M disk.img
printf 'label: gpt\n2048 %s\n%s %s\n' "$size" "$at" $(( $(stat -c %s plain.luks) / 512 )) | tr ' ' , | sed 's/label:,/label: /' | sfdisk -q disk.img
"#,
    );
    let disk: Arc<dyn ReadAt> = FileVolume::open(&folder.path().join("disk.img"));
    let closed = inspect(&[Arc::clone(&disk)]).expect("it is read");
    assert_eq!(closed.volumes.len(), 2, "{:?}", closed.volumes);
    for volume in &closed.volumes {
        assert!(matches!(volume.lock, Some(Lock::Closed(_))), "{volume:?}");
        assert!(volume.findings.is_empty(), "{volume:?}");
    }
    let open = inspect_with_keys(&[Arc::clone(&disk)], &secret()).expect("it is read");
    let inner = open.volume("disk0.p1.open").expect("opened");
    assert_eq!(inner.content.kind.name(), "LVM2_member");
    assert!(
        matches!(&inner.place, VolumePlace::Opened { container, .. } if container == "disk0.p1")
    );
    let bare = inspect(&[corpus::Bytes::shared(group)]).expect("it is read");
    let names = |layout: &guestfs::disk::DiskLayout| -> Vec<String> {
        let logical =
            |volume: &&guestfs::disk::Volume| matches!(volume.place, VolumePlace::Logical { .. });
        let volumes = layout.volumes.iter().filter(logical);
        volumes.map(|volume| volume.name.clone()).collect()
    };
    assert!(!names(&bare).is_empty());
    assert_eq!(names(&open), names(&bare));
    let fs = open.volume("disk0.p2.open").expect("opened");
    assert_eq!(
        fs.content.kind,
        ContentKind::FileSystem(FileSystemKind::Ext4)
    );
    let fs = guestfs::ext::open(Arc::clone(fs.reader.as_ref().expect("it reads"))).expect("ext4");
    let note = fs
        .find(fs.root(), &FileName::from("note"))
        .expect("it is looked up")
        .expect("it is there");
    let mut text = [0; 7];
    let contents = fs.open(note, None).expect("it opens");
    contents.read_at(0, &mut text).expect("it reads");
    assert_eq!(&text, b"inside\n");
    let wrong = [UnlockKey::passphrase("wrong")];
    let wrong = inspect_with_keys(&[disk], &wrong).expect("it is read");
    assert_eq!(wrong.volumes.len(), 2);
    assert!(
        wrong
            .volumes
            .iter()
            .all(|volume| volume.findings.len() == 1)
    );
}
