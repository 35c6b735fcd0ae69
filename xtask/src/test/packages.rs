//! What the tests need from outside: Debian packages, Python packages in `target/python`, and parts of a guest in `target/guest`.
//!
//! Only what is missing is installed. Where that is not possible, it is said, the tests that need it skip, and CI fails.

use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result};

use super::guest;

/// A Debian package, and a command that works once it is there (from whatever source).
struct Package {
    name: &'static str,
    probe: &'static [&'static str],
}

const fn package(name: &'static str, probe: &'static [&'static str]) -> Package {
    Package { name, probe }
}

const PACKAGES: &[Package] = &[
    package("acl", &["setfacl", "--version"]),
    package("attr", &["setfattr", "--version"]),
    package("btrfs-progs", &["/usr/bin/btrfs", "version"]),
    package("bzip2", &["bzip2", "--help"]),
    package("dislocker", &["sh", "-c", "command -v dislocker-file"]),
    package("dosfstools", &["mkfs.fat", "--help"]),
    package("e2fsprogs", &["mke2fs", "-V"]),
    package("exfat-fuse", &["mount.exfat-fuse", "-V"]),
    package("exfatprogs", &["sh", "-c", "command -v mkfs.exfat"]),
    package(
        "cryptsetup-bin",
        &["sh", "-c", "PATH=$PATH:/sbin cryptsetup --version"],
    ),
    package("fdisk", &["/sbin/sfdisk", "--version"]),
    package("fuse3", &["fusermount3", "-V"]),
    package("g++", &["g++", "--version"]),
    package(
        "libwim15",
        &[
            "python3",
            "-c",
            "import ctypes; ctypes.CDLL('libwim.so.15')",
        ],
    ),
    package(
        "krb5-admin-server",
        &["sh", "-c", "command -v /usr/sbin/kadmin.local"],
    ),
    package("krb5-kdc", &["sh", "-c", "command -v /usr/sbin/krb5kdc"]),
    package("krb5-user", &["sh", "-c", "command -v kinit"]),
    package("libclang-dev", LIBCLANG),
    package("libkrb5-dev", LIBKRB5),
    package("libnbd-bin", &["nbdcopy", "--version"]),
    package("lvm2", &["/bin/sh", "-c", "command -v /sbin/vgcreate"]),
    package("mount", &["/sbin/losetup", "--version"]),
    package("mtools", &["mtools", "--version"]),
    package(
        "nbd-client",
        &["sh", "-c", "PATH=$PATH:/usr/sbin:/sbin nbd-client -V"],
    ),
    package("ntfs-3g", &["ntfs-3g", "--version"]),
    package("procps", &["pgrep", "--version"]),
    package("python3", &["python3", "--version"]),
    package(
        "python3-dev",
        &["sh", "-c", "ls /usr/include/python3*/Python.h | grep -q ."],
    ),
    package("python3-libnbd", &["/usr/bin/python3", "-c", "import nbd"]),
    package("python3-libvhdi", &["python3", "-c", "import pyvhdi"]),
    package("python3-venv", &["python3", "-c", "import ensurepip, venv"]),
    package("qemu-system-x86", &["qemu-system-x86_64", "--version"]),
    package("qemu-utils", &["qemu-img", "--version"]),
    package("samba", &["sh", "-c", "command -v /usr/sbin/smbd"]),
    package(
        "samba-vfs-modules",
        &[
            "sh",
            "-c",
            "ls /usr/lib/*/samba/vfs/widelinks.so | grep -q .",
        ],
    ),
    package("unzip", &["unzip", "-v"]),
    package("xfsprogs", &["/usr/sbin/mkfs.xfs", "-V"]),
    package("xz-utils", &["xz", "--version"]),
    package("zstd", &["zstd", "--version"]),
];

/// What building with Kerberos needs.
const LIBCLANG: &[&str] = &[
    "sh",
    "-c",
    "ls /usr/lib/llvm-*/lib/libclang*.so* /usr/lib64/libclang*.so* 2>/dev/null | grep -q .",
];
const LIBKRB5: &[&str] = &["krb5-config", "--libs", "gssapi"];

/// Where the Python packages go.
const PYTHON_FOLDER: &str = "target/python";

/// Which lists say them, and what the tests import from each.
const PYTHON_LISTS: &[(&str, &str)] = &[
    (
        "tools/requirements.txt",
        "import blake3, zstandard, lz4.block, cryptography, argon2, pypsrp, winrm, spnego",
    ),
    // Apart, because it is compiled against libkrb5-dev, which may be missing.
    ("tools/requirements-kerberos.txt", "import kerberos"),
];

/// Whether the feature `kerberos` can be built here.
pub(super) fn builds_kerberos() -> bool {
    works(LIBCLANG) && works(LIBKRB5)
}

/// Installs what is missing; what still is afterwards, with the reason.
pub(super) fn prepare(workspace: &Path) -> Result<Vec<String>> {
    let mut missing = Vec::new();
    let wanted: Vec<&Package> = PACKAGES
        .iter()
        .filter(|package| !works(package.probe))
        .collect();
    if !wanted.is_empty() {
        let names: Vec<&str> = wanted.iter().map(|package| package.name).collect();
        println!("== installing {}", names.join(" "));
        let trouble = install(&names)?;
        for package in wanted.into_iter().filter(|package| !works(package.probe)) {
            let why = trouble
                .as_deref()
                .unwrap_or("installed, but its probe still fails");
            missing.push(format!("Debian package {} ({why})", package.name));
        }
    }
    for (list, imports) in PYTHON_LISTS {
        if let Some(why) = python(workspace, list, imports)? {
            missing.push(format!(
                "the Python packages of {list} in {PYTHON_FOLDER} ({why})"
            ));
        }
    }
    if let Some(why) = guest::prepare(workspace)? {
        missing.push(format!("the parts of a Linux guest ({why})"));
    }
    Ok(missing)
}

pub(super) fn works(command: &[&str]) -> bool {
    let Some((program, arguments)) = command.split_first() else {
        return false;
    };
    Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}

/// Installs Debian packages, as root or through sudo; why it could not be done.
fn install(names: &[&str]) -> Result<Option<String>> {
    if !works(&["apt-get", "--version"]) {
        return Ok(Some(
            "there is no apt-get here: install it by hand".to_owned(),
        ));
    }
    let Some(prefix) = privileged() else {
        return Ok(Some(
            "neither root nor sudo without a password: install it by hand".to_owned(),
        ));
    };
    let update: &[&str] = &["apt-get", "update", "--quiet"];
    let mut install = vec![
        "apt-get",
        "install",
        "--yes",
        "--quiet",
        "--no-install-recommends",
    ];
    install.extend(names);
    for command in [update, &install] {
        let words: Vec<&str> = prefix.iter().chain(command).copied().collect();
        let Some((program, arguments)) = words.split_first() else {
            continue;
        };
        let status = Command::new(program)
            .args(arguments)
            .stdin(Stdio::null())
            .status()
            .with_context(|| format!("start {program}"))?;
        if !status.success() {
            return Ok(Some(format!("`{}` failed", words.join(" "))));
        }
    }
    Ok(None)
}

/// What to put before a command that only root may run; `None` where that is not possible.
pub(super) fn privileged() -> Option<&'static [&'static str]> {
    if rustix::process::geteuid().is_root() {
        Some(&["env", "DEBIAN_FRONTEND=noninteractive"])
    } else if works(&["sudo", "--non-interactive", "true"]) {
        Some(&[
            "sudo",
            "--non-interactive",
            "env",
            "DEBIAN_FRONTEND=noninteractive",
        ])
    } else {
        None
    }
}

/// Installs a list into the virtual environment that tests run in; why it could not be done.
fn python(workspace: &Path, list: &str, imports: &str) -> Result<Option<String>> {
    let folder = workspace.join(PYTHON_FOLDER);
    let python = folder.join("bin/python3");
    let python_text = python.to_string_lossy().into_owned();
    if works(&[&python_text, "-c", imports]) {
        return Ok(None);
    }
    println!("== installing the Python packages of {list}");
    let list = workspace.join(list);
    if !list.exists() {
        return Ok(Some("the list is not there".to_owned()));
    }
    let steps = [
        Command::new("python3")
            .args(["-m", "venv"])
            .arg(&folder)
            .status(),
        Command::new(&python)
            .args([
                "-m",
                "pip",
                "install",
                "--quiet",
                "--disable-pip-version-check",
                "-r",
            ])
            .arg(&list)
            .status(),
    ];
    for status in steps {
        match status {
            Ok(status) if status.success() => {}
            Ok(status) => return Ok(Some(format!("installing failed: {status}"))),
            Err(error) => return Ok(Some(format!("installing failed: {error}"))),
        }
    }
    let imported = works(&[&python_text, "-c", imports]);
    Ok((!imported).then(|| "installed, but they cannot be imported".to_owned()))
}
