//! Btrfs guests as their distributions lay them out: the system in a subvolume, another default, several disks.
//!
//! Images are made by `mkfs.btrfs` and Linux. Where that is not possible the tests are skipped aloud, and fail in CI.

use std::ffi::OsString;
use std::process::Command;

use super::site::{Site, text};

const MAKE: &str = r#"
cd "$1"
for disk in 1 2; do truncate -s 300M disk$disk.raw; done
one=$(losetup --find --show disk1.raw); two=$(losetup --find --show disk2.raw)
trap 'umount mnt || true; losetup -d $one $two' EXIT
mkfs.btrfs -q -f -L system -d raid1 -m raid1 $one $two; mkdir mnt; mount -o device=$two $one mnt
btrfs -q subvolume create mnt/@; btrfs -q subvolume create mnt/@home
mkdir -p mnt/@/etc mnt/@/usr/lib; echo kept > mnt/@home/letter
printf 'PRETTY_NAME="Test Linux 9"\nVERSION_ID="9"\n' > mnt/@/usr/lib/os-release
ln -s ../usr/lib/os-release mnt/@/etc/os-release; echo guest > mnt/@/etc/hostname
btrfs -q subvolume snapshot mnt/@ mnt/before
umount mnt
truncate -s 300M alone.raw; mkfs.btrfs -q -L alone alone.raw; mount -o loop alone.raw mnt
btrfs -q subvolume create mnt/@; btrfs -q subvolume create mnt/@home; echo kept > mnt/@home/letter
mkdir mnt/@/etc; echo other > mnt/@/etc/hostname; printf 'PRETTY_NAME="Test Linux 10"\n' > mnt/@/etc/os-release
btrfs subvolume set-default mnt/@
"#;

/// Makes the images; whether this machine can.
fn make(site: &Site) -> bool {
    let path = std::env::var("PATH").unwrap_or_default();
    let output = Command::new("unshare")
        .args(["--mount", "bash", "-euo", "pipefail", "-c", MAKE, "make"])
        .arg(site.path("."))
        .env("PATH", format!("{path}:/usr/sbin:/sbin"))
        .output();
    let why = match output {
        Ok(output) if output.status.success() => return true,
        Ok(output) => String::from_utf8_lossy(&output.stderr).into_owned(),
        Err(error) => error.to_string(),
    };
    assert!(std::env::var_os("CI").is_none(), "{why}");
    println!("SKIP: Btrfs cannot be made or mounted here: {why}");
    false
}

fn words(words: &[&str]) -> Vec<OsString> {
    words.iter().map(OsString::from).collect()
}

#[test]
fn a_system_in_a_subvolume_over_two_disks_is_told_and_a_lost_disk_is_named() {
    let site = Site::new();
    if !make(&site) {
        return;
    }
    let (one, two) = (site.path("disk1.raw"), site.path("disk2.raw"));
    let seen = site
        .run(words(&["image", "inspect", text(&one), text(&two)]))
        .expect(0)
        .json();
    let volumes = seen["volumes"].as_array().expect("volumes");
    assert_eq!(volumes.len(), 3, "two members and what they carry: {seen}");
    assert_eq!(volumes[2]["name"], "system");
    assert_eq!(volumes[2]["file_system"]["kind"], "btrfs");
    assert_eq!(seen["systems"][0]["name"], "Test Linux 9");
    assert_eq!(seen["systems"][0]["host_name"], "guest");
    // A mirror of which one disk is lost says so, and is read all the same.
    let seen = site
        .run(words(&["image", "inspect", text(&two)]))
        .expect(3)
        .json();
    assert_eq!(
        seen["volumes"][1]["missing"].as_array().map(Vec::len),
        Some(1)
    );
    assert_eq!(seen["systems"][0]["name"], "Test Linux 9");
    let cat = ["image", "cat", text(&two), "/@home/letter"];
    let output = site.command(words(&cat)).output().expect("it runs");
    assert!(output.status.success(), "{output:?}");
    assert_eq!(output.stdout, b"kept\n");
}

#[test]
fn versions_of_two_disks_are_looked_into_together() {
    let site = Site::new();
    if !make(&site) {
        return;
    }
    let repository = site.init("repo");
    for (name, disk) in [("one", "disk1.raw"), ("two", "disk2.raw")] {
        let disk = site.path(disk);
        repository
            .disk("backup", &[text(&disk), "--name", name])
            .expect(0);
    }
    let seen = repository.disk("inspect", &["one"]).expect(3).json();
    assert_eq!(
        seen["volumes"][1]["missing"].as_array().map(Vec::len),
        Some(1)
    );
    let seen = repository.disk("inspect", &["one", "--with", "two@1"]);
    let seen = seen.expect(0).json();
    assert_eq!(seen["volumes"].as_array().map(Vec::len), Some(3));
    let arguments = ["one", "/@home/letter", "--with", "two", "--to"];
    let out = site.path("out");
    let report = repository.disk("extract", &[&arguments[..], &[text(&out)]].concat());
    assert_eq!(report.expect(0).json()["files"], 1);
    let found = std::fs::read(out.join("@home/letter")).expect("the letter");
    assert_eq!(found, b"kept\n");
}

#[test]
fn beside_another_default_subvolume_the_top_level_is_within_reach() {
    let site = Site::new();
    if !make(&site) {
        return;
    }
    let disk = site.path("alone.raw");
    let seen = site
        .run(words(&["image", "inspect", text(&disk)]))
        .expect(0)
        .json();
    let remark = seen["volumes"][0]["file_system"]["remarks"][0]
        .as_str()
        .expect("a remark");
    assert!(remark.contains("/.btrfs-top-level"), "{remark}");
    assert_eq!(seen["systems"][0]["name"], "Test Linux 10");
    for (path, wanted) in [
        ("/etc/hostname", "other\n"),
        ("/.btrfs-top-level/@home/letter", "kept\n"),
    ] {
        let cat = ["image", "cat", text(&disk), path];
        let output = site.command(words(&cat)).output().expect("it runs");
        assert!(output.status.success(), "{output:?}");
        assert_eq!(output.stdout, wanted.as_bytes(), "{path}");
    }
}
