//! A disk with one volume upon garbage, and what must hold of it after a restore.
//!
//! ```text
//!   disk.raw   [table][garbage][ volume ............ ][garbage][table]
//!   volume     made, mounted and checked as a file of its own, then put into its place
//! ```

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::Value;

use super::kinds::Kind;
use crate::site::{Repository, Site, text};

pub const MIB: u64 = 1 << 20;
pub const BLOCK: u64 = 64 << 10;

/// Where a volume lies in a disk: bytes of the volume, and their places.
type Places = Vec<(u64, u64, u64)>;

pub struct Scene {
    pub site: Site,
    places: Places,
}

/// Says that a test cannot run here; fails where everything must be there.
pub fn missing(what: &str) {
    assert!(std::env::var_os("CI").is_none(), "{what}");
    println!("SKIP: {what}");
}

pub fn has_commands(names: &[&str]) -> bool {
    for name in names {
        let found = Command::new("sh")
            .args(["-c", &format!("command -v {name}")])
            .env("PATH", search_path())
            .stdout(Stdio::null())
            .status()
            .is_ok_and(|status| status.success());
        if !found {
            missing(&format!("the command {name} is not there"));
            return false;
        }
    }
    true
}

fn search_path() -> String {
    let path = std::env::var("PATH").unwrap_or_default();
    format!("{path}:/usr/local/sbin:/usr/sbin:/sbin")
}

/// Runs a script in a folder, with mounts that nobody else sees.
pub fn script(folder: &Path, script: &str) -> Result<String, String> {
    let output = Command::new("unshare")
        .args(["--mount", "bash", "-euo", "pipefail", "-c", script])
        .current_dir(folder)
        .env("PATH", search_path())
        .env("LC_ALL", "C.UTF-8")
        .stdin(Stdio::null())
        .output()
        .map_err(|error| error.to_string())?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    if output.status.success() {
        return Ok(said);
    }
    let errors = String::from_utf8_lossy(&output.stderr);
    Err(format!("{script}\n{}\n{said}\n{errors}", output.status))
}

impl Scene {
    /// A disk with a GUID partition table and a fresh volume in its only partition; `None` when this machine cannot.
    pub fn begin(kind: &Kind) -> Option<Self> {
        // The volume begins within a block of the disk.
        let start = 4 * MIB + 4096;
        let table = format!(
            "head -c {} /dev/urandom > disk.raw\n\
             printf 'label: gpt\\nstart={}, size={}\\n' | sfdisk --quiet --wipe always disk.raw",
            kind.size_bytes() + 8 * MIB,
            start / 512,
            kind.size_bytes() / 512,
        );
        Self::made(kind, &table, vec![(0, start, kind.size_bytes())], &[])
    }

    /// A disk with a volume group in its only partition; the volume is one of it, in two pieces, the later one first.
    pub fn begin_in_lvm(kind: &Kind) -> Option<Self> {
        let half = kind.size_bytes() / 2;
        let extents = half / (4 * MIB);
        // No device mapper is asked: only the metadata is written.
        let table = format!(
            "head -c {size} /dev/urandom > disk.raw\n\
             printf 'label: dos\\nstart=2048, type=8e\\n' | sfdisk --quiet --wipe always disk.raw\n\
             device=$(losetup -f --show -o 1M disk.raw); trap 'losetup -d $device' EXIT\n\
             export LVM_SUPPRESS_FD_WARNINGS=1 LVM_SYSTEM_DIR=$PWD/lvm; mkdir lvm\n\
             config=\"devices{{filter=[\\\"a|^$device\\$|\\\",\\\"r|.*|\\\"] use_devicesfile=0}}\"\n\
             pvcreate -q -y --config \"$config\" $device\n\
             vgcreate -q -y --config \"$config\" -s 4M vg $device\n\
             make() {{ lvcreate -q -y --driverloaded n --config \"$config\" -an -Zn -Wn \"$@\"; }}\n\
             make -l {extents} -n root vg $device:{later}-{last}; make -l 2 -n other vg $device:0-1\n\
             lvextend -q -y --driverloaded n --config \"$config\" -l +{extents} vg/root $device:2-{end}",
            size = 2 * half + 40 * MIB,
            later = extents + 4,
            last = 2 * extents + 3,
            end = extents + 1,
        );
        // A partition at 1 MiB, its first extent another MiB behind.
        let extent = |number: u64| 2 * MIB + number * 4 * MIB;
        let places = vec![(0, extent(extents + 4), half), (half, extent(2), half)];
        Self::made(
            kind,
            &table,
            places,
            &["pvcreate", "vgcreate", "lvcreate", "losetup"],
        )
    }

    fn made(kind: &Kind, table: &str, places: Places, more: &[&str]) -> Option<Self> {
        let common = ["sfdisk", "python3", "unshare", "losetup"];
        if !has_commands(&[&common, kind.tools, more].concat()) {
            return None;
        }
        let site = Site::new();
        fs::write(site.path("fill.py"), include_str!("fill.py")).expect("the script");
        let folder = site.path("");
        if let Err(why) = script(&folder, "mkdir mount; mount -t tmpfs none mount") {
            missing(&format!("nothing can be mounted here: {why}"));
            return None;
        }
        let make = format!(
            "{table}\nhead -c {} /dev/urandom > volume\n{}",
            kind.size_bytes(),
            kind.make
        );
        if let Err(why) = script(&folder, &make) {
            panic!("{}: {why}", kind.name);
        }
        Some(Self { site, places })
    }

    #[track_caller]
    fn script(&self, text: &str) -> String {
        script(&self.site.path(""), text).unwrap_or_else(|why| panic!("{why}"))
    }

    /// Changes the volume's files from a seed.
    #[track_caller]
    pub fn change(&self, kind: &Kind, seed: u64) {
        match kind.change {
            Some(change) => drop(self.script(&format!("seed={seed}\n{change}"))),
            None => self.mounted(kind, &format!("python3 fill.py change mount {seed}")),
        }
    }

    /// Runs a script with the volume mounted.
    #[track_caller]
    pub fn mounted(&self, kind: &Kind, run: &str) {
        self.script(&format!("{}\n{run}\n{}", kind.mount, kind.unmount));
    }

    /// Runs a script with the volume mounted, and takes the volume as it is before it is unmounted.
    #[track_caller]
    pub fn live(&self, kind: &Kind, run: &str) {
        let copy = "cp volume live";
        self.script(&format!(
            "{}\n{run}\n{copy}\n{}\nmv live volume",
            kind.mount, kind.unmount
        ));
    }

    /// Writes bytes of the volume.
    pub fn patch_volume(&self, offset: u64, bytes: &[u8]) {
        let file = File::options().write(true).open(self.site.path("volume"));
        file.and_then(|file| file.write_all_at(bytes, offset))
            .expect("the volume is changed");
    }

    /// The disk with the volume in its place.
    pub fn disk(&self) -> Vec<u8> {
        let volume = fs::read(self.site.path("volume")).expect("the volume");
        let path = self.site.path("disk.raw");
        let disk = File::options().write(true).open(&path).expect("the disk");
        for (from, to, length) in &self.places {
            disk.write_all_at(part(&volume, *from, *length), *to)
                .expect("its place");
        }
        fs::read(path).expect("the disk")
    }

    /// Backs up the disk as it is now; the report.
    #[track_caller]
    pub fn back_up(&self, repository: &Repository<'_>, more: &[&str]) -> Value {
        self.disk();
        let path = self.site.path("disk.raw");
        let arguments = [&[text(&path)], more].concat();
        repository.disk("backup", &arguments).expect(0).json()
    }

    /// What a version comes back as.
    #[track_caller]
    pub fn restored(&self, repository: &Repository<'_>, version: &str) -> Vec<u8> {
        let out = self.site.path("restored.raw");
        repository
            .disk("restore", &[version, text(&out), "--format", "raw"])
            .expect(0);
        let bytes = fs::read(&out).expect("what was restored");
        fs::remove_file(out).expect("removed");
        bytes
    }

    /// Every block of the disk came back as it was, or as zeros inside the volume.
    #[track_caller]
    pub fn expect_only_zeroed(&self, disk: &[u8], restored: &[u8]) {
        assert_eq!(disk.len(), restored.len());
        for (number, (was, is)) in (0_u64..).zip(blocks(disk).zip(blocks(restored))) {
            let (from, to) = (number * BLOCK, (number + 1) * BLOCK);
            let is_inside = self
                .places
                .iter()
                .any(|(_, place, length)| *place <= from && to <= place + length);
            let is_zero = is.iter().all(|byte| *byte == 0);
            assert!(was == is || (is_inside && is_zero), "block {number}");
        }
    }

    /// What came back is sound to its own tools, and every file is as it was.
    #[track_caller]
    pub fn expect_sound(&self, kind: &Kind, disk: &[u8], restored: &[u8]) {
        self.expect_only_zeroed(disk, restored);
        let wanted = self.told(kind, disk);
        let found = self.told(kind, restored);
        assert!(wanted.lines().count() > 20, "{wanted}");
        assert!(wanted == found, "{}: files differ", kind.name);
        // After the mount, which has followed a live journal.
        self.script(&format!("cd aside; {}", kind.check));
    }

    /// All files of the volume in a disk, mounted in a folder of its own.
    #[track_caller]
    fn told(&self, kind: &Kind, disk: &[u8]) -> String {
        let aside = self.site.path("aside");
        fs::create_dir_all(aside.join("mount")).expect("a folder");
        fs::copy(self.site.path("fill.py"), aside.join("fill.py")).expect("the script");
        let mut volume = Vec::new();
        for (_, place, length) in &self.places {
            volume.extend_from_slice(part(disk, *place, *length));
        }
        fs::write(aside.join("volume"), volume).expect("the volume");
        let tell = match kind.tell {
            Some(tell) => tell.to_owned(),
            None => format!(
                "{}\npython3 fill.py tell mount > told\n{}",
                kind.mount, kind.unmount
            ),
        };
        self.script(&format!("cd aside\n{tell}"));
        fs::read_to_string(aside.join("told")).expect("what was told")
    }

    /// What was kept is about what files and metadata take: no more than that of blocks that are partly free.
    #[track_caller]
    pub fn expect_cheap(&self, kind: &Kind, report: &Value, restored: &[u8]) {
        let kept = blocks(restored).filter(|block| block.iter().any(|byte| *byte != 0));
        let kept = kept.count() as u64 * BLOCK;
        let outside = restored.len() as u64 - kind.size_bytes();
        let facts = self.site.run(
            ["image", "inspect", text(&self.site.path("disk.raw"))].map(std::ffi::OsString::from),
        );
        let facts = facts.expect(0).json();
        let volumes = facts["volumes"].as_array().expect("volumes");
        let system = volumes
            .iter()
            .find_map(|one| one["file_system"].as_object());
        let system = system.expect("a file system");
        let number = |name: &str| system[name].as_u64().expect("a number");
        let used = number("size_bytes") - number("free_bytes");
        let limit = outside + used * 12 / 10 + 10 * MIB;
        assert!(kept <= limit, "{kept} kept, {used} used: {report:#}");
        let stored = report["bytes_stored"].as_u64().expect("a count");
        assert!(stored <= limit, "{stored} stored, {used} used: {report:#}");
    }

    /// The swap file of the volume that was looked at last still is one.
    #[track_caller]
    pub fn expect_swap_label(&self, label: &str) {
        let said = self.script(
            "cd aside; mount -o loop,ro volume mount; blkid -p -s LABEL -o value mount/swap.img; umount mount",
        );
        assert_eq!(said.trim(), label);
    }
}

fn part(bytes: &[u8], offset: u64, length: u64) -> &[u8] {
    let from = usize::try_from(offset).expect("small");
    let to = usize::try_from(offset + length).expect("small");
    &bytes[from..to]
}

/// Blocks of a disk.
pub fn blocks(bytes: &[u8]) -> std::slice::Chunks<'_, u8> {
    bytes.chunks(usize::try_from(BLOCK).expect("small"))
}

/// Blocks that differ.
pub fn changed_blocks(before: &[u8], after: &[u8]) -> Vec<u64> {
    let pairs = blocks(before).zip(blocks(after));
    (0_u64..)
        .zip(pairs)
        .filter(|(_, (before, after))| before != after)
        .map(|(number, _)| number)
        .collect()
}

/// As `--changed-ranges` takes them.
pub fn ranges_text(changed: &[u64]) -> String {
    changed
        .iter()
        .map(|block| format!("{} {BLOCK}\n", block * BLOCK))
        .collect()
}
