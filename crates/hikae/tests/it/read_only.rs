//! A repository that cannot be written: whoever only reads works and is told that no lease protects it; whoever writes fails.
//!
//! The superuser may write whatever its permissions say, so that the repository is mounted read-only, in a mount namespace of
//! the process's own. Where none can be made, and the tests are run by the superuser, they are skipped aloud.

use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use super::disk::{self, Random};
use super::site::{Outcome, Repository, Site, text};

const MIB: u64 = 1 << 20;

/// How a folder is made read-only.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Means {
    Mount,
    Permissions,
}

const MOUNTED: &str = r#"mount --bind -o ro "$0" "$0" && exec "$@""#;

fn means(site: &Site) -> Option<Means> {
    let folder = site.path("try");
    fs::create_dir_all(&folder).expect("a folder");
    let tried = Command::new("unshare")
        .args(["--mount", "sh", "-c", MOUNTED])
        .args([text(&folder), "touch", text(&folder.join("file"))])
        .output();
    let is_denied = |stderr: &[u8]| String::from_utf8_lossy(stderr).contains("Read-only");
    if tried.is_ok_and(|tried| is_denied(&tried.stderr)) {
        return Some(Means::Mount);
    }
    fs::set_permissions(&folder, fs::Permissions::from_mode(0o500)).expect("permissions");
    let is_free = fs::write(folder.join("file"), b"").is_err();
    is_free.then_some(Means::Permissions)
}

/// Runs the binary where nothing of the repository can be written.
fn run(means: Means, repository: &Repository<'_>, arguments: Vec<OsString>) -> Outcome {
    let site = repository.site;
    let plain = site.command(arguments);
    if means == Means::Permissions {
        return site.start_command(plain).wait();
    }
    let mut command = Command::new("unshare");
    command
        .args(["--mount", "sh", "-c", MOUNTED])
        .arg(&repository.place)
        .arg(plain.get_program())
        .args(plain.get_args());
    for (key, value) in plain.get_envs() {
        match value {
            Some(value) => command.env(key, value),
            None => command.env_remove(key),
        };
    }
    command.current_dir(site.path(""));
    site.start_command(command).wait()
}

fn forbid(folder: &Path, mode: u32) {
    for entry in fs::read_dir(folder).expect("a folder") {
        let entry = entry.expect("an entry");
        if entry.file_type().expect("its type").is_dir() {
            forbid(&entry.path(), mode);
        }
    }
    fs::set_permissions(folder, fs::Permissions::from_mode(mode)).expect("permissions");
}

#[test]
fn readers_work_where_nothing_can_be_written_and_writers_do_not() {
    let site = Site::new();
    let Some(means) = means(&site) else {
        assert!(
            std::env::var_os("CI").is_none(),
            "no folder can be made read-only"
        );
        eprintln!("SKIP: no mount namespace can be made, and the superuser may write everywhere");
        return;
    };
    let repository = site.init("repository");
    let image = site.path("disk.raw");
    disk::create(&image, 16 * MIB, 8 * MIB, &mut Random::new(41));
    repository.back_up(&image, "vm");
    repository.back_up(&image, "vm");
    let place = Path::new(&repository.place);
    if means == Means::Permissions {
        forbid(place, 0o500);
    }

    let out = site.path("restored.raw");
    for (verb, arguments) in [
        ("verify", repository.repo_arguments("verify", &[])),
        (
            "restore",
            repository.disk_arguments("restore", &["vm@1", text(&out)]),
        ),
        (
            "check",
            repository.disk_arguments("check", &[text(&image), "vm"]),
        ),
        ("diff", repository.disk_arguments("diff", &["vm@1", "vm@2"])),
    ] {
        let outcome = run(means, &repository, arguments).expect(0);
        assert_eq!(outcome.json()["protected_from_gc"], false, "{verb}");
        let warnings = outcome.stderr.matches("warning: ").count();
        assert_eq!(warnings, 1, "{verb}: {outcome:#?}");
        assert!(outcome.stderr.contains("no lease protects"), "{outcome:#?}");
    }
    assert_eq!(disk::hash_file(&out), disk::hash_file(&image));
    // These need no lease anywhere.
    for arguments in [
        repository.disk_arguments("list", &[]),
        repository.repo_arguments("stats", &[]),
        repository.repo_arguments("verify", &["--without-keys"]),
    ] {
        let outcome = run(means, &repository, arguments).expect(0);
        assert!(!outcome.stderr.contains("warning"), "{outcome:#?}");
    }
    for arguments in [
        repository.backup_arguments(&image, "vm"),
        repository.repo_arguments("gc", &[]),
        repository.repo_arguments("verify", &["--mark"]),
        repository.disk_arguments("forget", &["vm@1"]),
    ] {
        let outcome = run(means, &repository, arguments).expect(1);
        assert_eq!(outcome.json()["problem"]["code"], "HK-1014", "{outcome:#?}");
    }

    if means == Means::Permissions {
        forbid(place, 0o700);
    }
    let report = repository.repo("verify", &[]).expect(0).json();
    assert_eq!(report["protected_from_gc"], true);
}
