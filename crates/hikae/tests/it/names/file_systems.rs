//! Files found, followed and compared on every kind of file system, on an encrypted volume, and among 100,000 names.
//!
//! Volumes are made by their own tools and changed through mounts (FAT32 by mtools) between versions. Where tools or mounts
//! are missing the tests are skipped aloud, and fail in CI.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use super::{obey, paths};
use crate::site::{Repository, Site, text};
use crate::unneeded::kinds::{BTRFS, EXFAT, EXT4, FAT32, Kind, XFS};
use crate::unneeded::scene::{has_commands, missing, script};

/// `put PATH TEXT` and `gone PATH` through a mount.
const MOUNTED: &str = r#"
put() { mkdir -p "mount/$(dirname "$1")"; printf '%s' "$2" > "mount/$1"; }
gone() { rm "mount/$1"; }
"#;

/// The same by mtools.
const MTOOLS: &str = r#"
export MTOOLS_SKIP_CHECK=1
put() { folder=; for name in $(dirname "$1" | tr / ' '); do folder=$folder/$name
    mdir -i volume "::$folder" > /dev/null 2>&1 || mmd -i volume "::$folder"; done
    printf '%s' "$2" | mcopy -o -i volume - "::/$1"; }
gone() { mdel -i volume "::/$1"; }
"#;

/// What happens before each of the four versions. `/srv/report.txt` is in the first two.
const CHANGES: [&str; 4] = [
    r#"put etc/hosts localhost; put srv/report.txt one; put srv/a/b/c.txt deep
       put large.txt "$(head -c 300000 /dev/urandom | base64)""#,
    "put srv/report.txt 'two two'",
    "gone srv/report.txt; put srv/second.txt second",
    "put etc/motd welcome",
];

/// How the volume becomes a disk.
enum Disk {
    Plain,
    /// Encrypted by cryptsetup with the passphrase in the file `key`, under the same id each time.
    Luks,
}

const ENCRYPT: &str = r#"
printf secret > key
rm -f disk.raw; cp volume disk.raw; truncate -s +32M disk.raw
cryptsetup reencrypt --encrypt --disable-locks -q --type luks2 --reduce-device-size 32M --key-file key \
    --pbkdf pbkdf2 --pbkdf-force-iterations 1000 --uuid 6ba7b810-9dad-11d1-80b4-00c04fd430c8 disk.raw > log 2>&1 \
    || { cat log >&2; exit 1; }
"#;

/// Whether this machine can make volumes of this kind and mount something.
fn can(kind: &Kind, site: &Site, more: &[&str]) -> bool {
    if !has_commands(&[kind.tools, &["unshare", "losetup"], more].concat()) {
        return false;
    }
    let folder = site.path("");
    if let Err(why) = script(&folder, "mkdir mount; mount -t tmpfs none mount") {
        missing(&format!("nothing can be mounted here: {why}"));
        return false;
    }
    true
}

/// Changes the volume and backs it up.
fn version(site: &Site, repository: &Repository<'_>, kind: &Kind, change: &str, disk: &Disk) {
    let (functions, mount, unmount) = if kind.mount == "false" {
        (MTOOLS, "", "")
    } else {
        (MOUNTED, kind.mount, kind.unmount)
    };
    let seal = match disk {
        Disk::Plain => "cp --sparse=always volume disk.raw",
        Disk::Luks => ENCRYPT,
    };
    run(
        &site.path(""),
        &format!("{functions}\n{mount}\n{change}\n{unmount}\n{seal}"),
    );
    repository.back_up(&site.path("disk.raw"), "vm");
}

#[track_caller]
fn run(folder: &Path, text: &str) {
    if let Err(why) = script(folder, text) {
        panic!("{why}");
    }
}

/// Four versions, and once more the last.
fn versions(site: &Site, repository: &Repository<'_>, kind: &Kind, disk: &Disk) {
    let size = kind.size_bytes();
    run(
        &site.path(""),
        &format!("truncate -s {size} volume; {}", kind.make),
    );
    for change in CHANGES {
        version(site, repository, kind, change, disk);
    }
    repository.back_up(&site.path("disk.raw"), "vm");
}

/// A verb with the keys of the volume, if it has any.
struct Asking<'a> {
    repository: &'a Repository<'a>,
    keys: Vec<String>,
}

impl Asking<'_> {
    #[track_caller]
    fn ask(&self, verb: &str, more: &[&str]) -> Value {
        let keys = self.keys.iter().map(String::as_str);
        let words: Vec<&str> = more.iter().copied().chain(keys).collect();
        self.repository.disk(verb, &words).expect(0).json()
    }
}

fn expect_found(site: &Site, asking: &Asking<'_>) -> u64 {
    let found = asking.ask("find", &["vm", "report"]);
    assert_eq!(paths(&found, "files", "path"), ["/srv/report.txt"]);
    let lost = &found["files"][0];
    assert_eq!(lost["versions"], json!([[1, 2]]));
    assert_eq!(lost["size_bytes"], 7);
    assert_eq!(lost["in_newest_version"], false);
    assert_eq!(found["damage"], json!([]));
    let again = asking.ask("find", &["vm", "report"]);
    assert_eq!(again["files"], found["files"]);
    if asking.keys.is_empty() {
        assert_eq!(again["cost"]["blocks_fetched"], 0);
        assert_eq!(again["versions_indexed"], 0);
        obey(
            site,
            lost["extract"].as_str().expect("text"),
            &site.path("out"),
        );
        let back = fs::read(site.path("out/srv/report.txt")).expect("it");
        assert_eq!(back, b"two two");
    } else {
        // Names behind a key are not left in the cache.
        assert_eq!(again["index_kept"], false);
    }
    let all = asking.ask("find", &["vm", "*.TXT", "-i"]);
    let mut all = paths(&all, "files", "path");
    all.sort_unstable();
    let wanted = [
        "/large.txt",
        "/srv/a/b/c.txt",
        "/srv/report.txt",
        "/srv/second.txt",
    ];
    assert_eq!(all, wanted);
    let gone = asking.ask("find", &["vm", "/srv/*", "--deleted"]);
    assert_eq!(paths(&gone, "files", "path"), ["/srv/report.txt"]);
    lost["volume"].as_u64().expect("a number")
}

fn expect_followed(asking: &Asking<'_>, volume: u64) {
    let path = |path: &str| format!("{volume}:{path}");
    let told = asking.ask("history", &["vm", &path("/srv/report.txt")]);
    assert_eq!(
        paths(&told, "runs", "event"),
        ["there-from-the-start", "changed", "deleted"]
    );
    let hash = blake3::hash(b"two two").to_hex();
    assert_eq!(told["runs"][1]["blake3"], hash.as_str());
    assert_eq!(told["runs"][2]["last_version"], 5);
    assert_eq!(told["newest_version_with_it"], 2);
    let second = asking.ask("history", &["vm", &path("/srv/second.txt")]);
    assert_eq!(
        paths(&second, "runs", "event"),
        ["not-there-yet", "appeared"]
    );
    let large = asking.ask("history", &["vm", &path("/large.txt")]);
    assert_eq!(paths(&large, "runs", "event"), ["there-from-the-start"]);
}

fn changes(compared: &Value) -> Vec<(&str, &str)> {
    let mut changes: Vec<_> = paths(compared, "changes", "change")
        .into_iter()
        .zip(paths(compared, "changes", "path"))
        .collect();
    changes.sort_unstable();
    changes
}

fn expect_compared(asking: &Asking<'_>, volume: u64) {
    let compared = asking.ask("diff-files", &["vm@1", "vm@4"]);
    let wanted = [
        ("added", "/etc/motd"),
        ("added", "/srv/second.txt"),
        ("removed", "/srv/report.txt"),
    ];
    assert_eq!(changes(&compared), wanted, "{compared:#}");
    let below = format!("{volume}:/srv");
    let compared = asking.ask("diff-files", &["vm@1", "vm@2", &below]);
    assert_eq!(changes(&compared), [("changed", "/srv/report.txt")]);
    let same = asking.ask("diff-files", &["vm@4", "vm@5"]);
    assert_eq!(changes(&same), []);
    assert_eq!(same["cost"]["contents_read"], 0);
}

fn check(kind: &Kind, disk: &Disk, tools: &[&str]) {
    let site = Site::new();
    if !can(kind, &site, tools) {
        return;
    }
    let repository = site.init("repo");
    versions(&site, &repository, kind, disk);
    let key = site.path("key");
    let asking = Asking {
        repository: &repository,
        keys: match disk {
            Disk::Plain => Vec::new(),
            Disk::Luks => vec!["--unlock-passphrase-file".to_owned(), text(&key).to_owned()],
        },
    };
    if matches!(disk, Disk::Luks) {
        // Without the key nothing is found, and that it is locked is said.
        let found = repository.disk("find", &["vm", "report"]).expect(3).json();
        assert_eq!(found["files"], json!([]));
        let damage = found["damage"][0].as_str().expect("why");
        assert!(damage.contains("vm@1: volume 1: "), "{found:#}");
        let told = repository.disk("history", &["vm", "/srv/report.txt"]);
        let told = told.expect(3).json();
        assert_eq!(told["runs"][0]["present"], Value::Null, "{told:#}");
        for run in told["runs"].as_array().expect("runs") {
            assert_eq!(run["event"], "unreadable", "{told:#}");
        }
        let compared = repository.disk("diff-files", &["vm@1", "vm@4"]);
        let compared = compared.expect(3).json();
        assert_eq!(changes(&compared), []);
        assert_eq!(compared["damage"].as_array().map(Vec::len), Some(2));
        // Equal bytes are equal files, whatever they are.
        let same = repository.disk("diff-files", &["vm@4", "vm@5"]).expect(0);
        assert_eq!(same.json()["volumes_unchanged"], 1);
    }
    let volume = expect_found(&site, &asking);
    expect_followed(&asking, volume);
    expect_compared(&asking, volume);
}

#[test]
fn files_of_btrfs_are_found_followed_and_compared() {
    check(&BTRFS, &Disk::Plain, &[]);
}

#[test]
fn files_of_xfs_are_found_followed_and_compared() {
    check(&XFS, &Disk::Plain, &[]);
}

#[test]
fn files_of_fat32_are_found_followed_and_compared() {
    check(&FAT32, &Disk::Plain, &["mmd", "mdir", "mdel"]);
}

#[test]
fn files_of_exfat_are_found_followed_and_compared() {
    check(&EXFAT, &Disk::Plain, &["pgrep"]);
}

#[test]
fn files_behind_luks_are_found_followed_and_compared_with_the_key() {
    check(&EXT4, &Disk::Luks, &["cryptsetup"]);
}

/// A folder of 100,000 names, made while `volume` is mounted.
const MANY: &str = r#"
mkdir mount/many; python3 - <<'P'
import os
for number in range(100000):
    os.close(os.open(f'mount/many/entry {number:06}.txt', os.O_CREAT | os.O_WRONLY))
P
put many/'entry 077777.txt' seven
"#;

fn check_many(kind: &Kind) {
    let site = Site::new();
    if !can(kind, &site, &["python3"]) {
        return;
    }
    let repository = site.init("repo");
    let size = kind.size_bytes();
    run(
        &site.path(""),
        &format!("truncate -s {size} volume; {}", kind.make),
    );
    let second = "gone many/'entry 012345.txt'; put many/'another one.txt' new; put many/'entry 077777.txt' eight";
    for change in [MANY, second] {
        version(&site, &repository, kind, change, &Disk::Plain);
    }
    let asking = Asking {
        repository: &repository,
        keys: Vec::new(),
    };
    let found = asking.ask("find", &["vm", "entry 012345"]);
    assert_eq!(paths(&found, "files", "path"), ["/many/entry 012345.txt"]);
    assert_eq!(found["files"][0]["versions"], json!([[1, 1]]));
    assert_eq!(
        (&found["damage"], &found["cut"]),
        (&json!([]), &json!(false))
    );
    let again = asking.ask("find", &["vm", "entry 0777*"]);
    assert_eq!(again["files"].as_array().map(Vec::len), Some(100));
    assert_eq!(again["versions_indexed"], 0);
    let many = asking.ask("find", &["vm", "*.txt", "--limit", "200000"]);
    assert_eq!(many["files"].as_array().map(Vec::len), Some(100_001));
    assert_eq!(many["cut"], false);
    let told = asking.ask("history", &["vm", "/many/entry 077777.txt"]);
    assert_eq!(
        paths(&told, "runs", "event"),
        ["there-from-the-start", "changed"]
    );
    let compared = asking.ask("diff-files", &["vm@1", "vm@2"]);
    let wanted = [
        ("added", "/many/another one.txt"),
        ("changed", "/many/entry 077777.txt"),
        ("removed", "/many/entry 012345.txt"),
    ];
    assert_eq!(changes(&compared), wanted);
    let read = compared["cost"]["contents_read"].as_u64();
    assert!(read <= Some(2), "{}", compared["cost"]);
}

#[test]
fn among_a_hundred_thousand_names_of_ext4_the_right_ones_are_found_and_compared() {
    check_many(&Kind {
        make: "mke2fs -q -F -t ext4 -N 110000 -I 128 volume",
        ..EXT4
    });
}

#[test]
fn among_a_hundred_thousand_names_of_xfs_the_right_ones_are_found_and_compared() {
    check_many(&XFS);
}

#[test]
fn among_a_hundred_thousand_names_of_btrfs_the_right_ones_are_found_and_compared() {
    check_many(&Kind {
        size_mib: 512,
        ..BTRFS
    });
}
