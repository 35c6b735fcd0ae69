//! What a small Linux guest is made of, in `target/guest`: a kernel, its drivers for virtio, busybox and QEMU's guest agent.
//!
//! ```text
//!   apt-get download ─► target/guest.new/*.deb ─► only the files that are needed ─► target/guest
//! ```
//!
//! The packages are unpacked, never installed: a kernel or another busybox is nothing that tests may put on somebody's system.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use super::packages::{privileged, works};

/// Where the parts go.
const FOLDER: &str = "target/guest";

/// Names no version: it depends on the newest kernel.
const KERNEL: &str = "linux-image-cloud-amd64";

/// Packages beside the kernel.
const PACKAGES: &[&str] = &["busybox-static", "qemu-guest-agent"];

/// What is taken out of them all.
const FILES: &[&str] = &[
    "./boot/vmlinuz-*",
    "*/drivers/virtio/*",
    "*/drivers/block/virtio_blk.ko*",
    "*/drivers/char/virtio_console.ko*",
    "./bin/busybox",
    "./usr/bin/busybox",
    "./usr/sbin/qemu-ga",
];

/// Fetches the parts when they are missing; why that could not be done.
pub(super) fn prepare(workspace: &Path) -> Result<Option<String>> {
    let folder = workspace.join(FOLDER);
    if folder.exists() {
        return Ok(None);
    }
    if !works(&["apt-get", "--version"]) {
        return Ok(Some("there is no apt-get here".to_owned()));
    }
    println!("== fetching {KERNEL} {}", PACKAGES.join(" "));
    let fresh = workspace.join("target/guest.new");
    if fresh.exists() {
        std::fs::remove_dir_all(&fresh).context("remove what an earlier run left")?;
    }
    let parts = fresh.join("parts");
    std::fs::create_dir_all(&parts).context("make the folder of the guest")?;
    let Some(kernel) = newest_kernel()? else {
        return Ok(Some(format!("apt-get knows no {KERNEL}")));
    };
    let downloaded = Command::new("apt-get")
        .args(["download", "--quiet", &kernel])
        .args(PACKAGES)
        .current_dir(&fresh)
        .status()
        .context("start apt-get")?;
    if !downloaded.success() {
        return Ok(Some("`apt-get download` failed".to_owned()));
    }
    for package in packages_in(&fresh)? {
        if let Some(trouble) = unpack(&package, &parts)? {
            return Ok(Some(trouble));
        }
    }
    std::fs::rename(&parts, &folder).context("put the parts of the guest in place")?;
    std::fs::remove_dir_all(&fresh).context("remove the packages")?;
    Ok(None)
}

/// The kernel that the nameless package depends on; the lists are fetched when they do not have it.
fn newest_kernel() -> Result<Option<String>> {
    for is_updated in [false, true] {
        if is_updated {
            let Some(prefix) = privileged() else { break };
            let words = [prefix, &["apt-get", "update", "--quiet"]].concat();
            works(&words);
        }
        let output = Command::new("apt-cache")
            .args(["depends", KERNEL])
            .env("LC_ALL", "C")
            .output()
            .context("start apt-cache")?;
        let text = String::from_utf8_lossy(&output.stdout);
        let kernel = text
            .lines()
            .find_map(|line| line.trim().strip_prefix("Depends: linux-image-"));
        if let Some(kernel) = kernel {
            return Ok(Some(format!("linux-image-{kernel}")));
        }
    }
    Ok(None)
}

fn packages_in(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut packages = Vec::new();
    for entry in std::fs::read_dir(folder).context("list what was downloaded")? {
        let path = entry.context("list what was downloaded")?.path();
        if path.extension().is_some_and(|it| it == "deb") {
            packages.push(path);
        }
    }
    Ok(packages)
}

/// Unpacks what is needed of a package; why that could not be done.
fn unpack(package: &Path, folder: &Path) -> Result<Option<String>> {
    let archive = folder.with_extension("tar");
    let status = Command::new("dpkg-deb")
        .arg("--fsys-tarfile")
        .arg(package)
        .stdout(std::fs::File::create(&archive).context("make an archive")?)
        .status()
        .context("start dpkg-deb")?;
    if !status.success() {
        return Ok(Some(format!(
            "`dpkg-deb` cannot read {}",
            package.display()
        )));
    }
    // Complains of each file that is in another package, which is no failure here: what counts is looked at by the tests.
    Command::new("tar")
        .arg("--extract")
        .arg("--file")
        .arg(&archive)
        .arg("--directory")
        .arg(folder)
        .args(["--no-same-owner", "--wildcards"])
        .args(FILES)
        .stderr(std::process::Stdio::null())
        .status()
        .context("start tar")?;
    std::fs::remove_file(&archive).context("remove an archive")?;
    Ok(None)
}
