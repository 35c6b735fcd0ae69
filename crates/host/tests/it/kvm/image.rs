//! The guest: an initrd and two disks, made of the parts that `cargo xtask test` fetches.
//!
//! ```text
//!   initrd   busybox, drivers ─► mounts disk0, goes on there
//!   disk0    ext4: busybox, the agent with its libraries, init, /data/seq
//!   disk1    ext4: /seq
//! ```
//!
//! The guest writes the next number into both files, each synced, first on disk0, then on disk1, five times a second; so a moment at
//! which disk1 is ahead of disk0, or more than one behind, never was.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Drivers, in the order in which they need one another.
const DRIVERS: &[&str] = &[
    "virtio_ring",
    "virtio",
    "virtio_pci_legacy_dev",
    "virtio_pci_modern_dev",
    "virtio_pci",
    "virtio_blk",
    "virtio_console",
];

const INITRD_INIT: &str = r#"#!/bin/busybox sh
/bin/busybox --install -s /bin
mount -t proc p /proc; mount -t sysfs s /sys; mount -t devtmpfs d /dev
for m in $(cat /drivers/order); do insmod /drivers/$m.ko; done
i=0; while [ ! -b /dev/vdb ] && [ $i -lt 500 ]; do usleep 20000; i=$((i+1)); done
mount -t ext4 /dev/vda /mnt || exec poweroff -f
mount --move /dev /mnt/dev; mount --move /proc /mnt/proc; mount --move /sys /mnt/sys
exec switch_root /mnt /sbin/init
"#;

const INIT: &str = r#"#!/bin/busybox sh
export PATH=/bin:/sbin:/usr/sbin
/bin/busybox --install -s /bin
mount -o remount,rw /; mount -t tmpfs t /run; mount -t ext4 /dev/vdb /mnt
( n=$(tail -n 1 /data/seq); n=${n:-0}; while :; do n=$((n+1))
  echo $n >> /data/seq; sync /data/seq; echo $n >> /mnt/seq; sync /mnt/seq
  echo $n > /run/new; mv /run/new /run/seq; usleep 200000
done ) &
qemu-ga -m virtio-serial -p $(ls /dev/vport*p1 | head -n 1) -l /run/agent.log
poweroff -f
"#;

const SHUTDOWN: &str = "#!/bin/busybox sh\nsync\nexec /bin/busybox poweroff -f\n";

/// What a machine is started from.
pub(super) struct GuestImage {
    pub(super) kernel: PathBuf,
    pub(super) initrd: PathBuf,
    pub(super) disks: Vec<PathBuf>,
}

/// Where the parts lie; `None`, said aloud, when they cannot be used here.
pub(super) fn parts() -> Option<PathBuf> {
    let folder = std::env::var_os("HIKAE_GUEST").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/guest"),
        PathBuf::from,
    );
    let qemu = Command::new("qemu-system-x86_64").arg("--version").output();
    let missing = if !folder.exists() {
        "the parts of a guest (`cargo xtask test` fetches them)"
    } else if !qemu.is_ok_and(|it| it.status.success()) {
        "qemu-system-x86_64"
    } else {
        return Some(folder);
    };
    assert!(std::env::var_os("CI").is_none(), "missing: {missing}");
    println!("SKIP: no {missing}");
    None
}

/// Makes kernel, initrd and disks in `folder`.
pub(super) fn build(parts: &Path, folder: &Path) -> GuestImage {
    let files = files_below(parts);
    let kernel = found(&files, |name| name.starts_with("vmlinuz-"));
    let busybox = fs::read(found(&files, |name| name == "busybox")).expect("busybox");
    let agent = found(&files, |name| name == "qemu-ga");
    let initrd = folder.join("initrd");
    fs::write(&initrd, initrd_of(&files, &busybox)).expect("the initrd");
    let root = folder.join("root");
    lay_out_root(&root, &busybox, &agent);
    let empty = folder.join("empty");
    fs::create_dir_all(&empty).expect("a folder");
    let disks = [("disk0", "64M", &root), ("disk1", "32M", &empty)]
        .map(|(name, size, content)| disk(folder, name, size, content))
        .to_vec();
    GuestImage {
        kernel,
        initrd,
        disks,
    }
}

fn disk(folder: &Path, name: &str, size: &str, content: &Path) -> PathBuf {
    let raw = folder.join(format!("{name}.raw"));
    let image = folder.join(format!("{name}.qcow2"));
    tool(
        "mke2fs",
        [
            "-q".as_ref(),
            "-F".as_ref(),
            "-t".as_ref(),
            "ext4".as_ref(),
            "-E".as_ref(),
            "root_owner=0:0,lazy_itable_init=0,lazy_journal_init=0".as_ref(),
            "-d".as_ref(),
            content.as_os_str(),
            raw.as_os_str(),
            size.as_ref(),
        ],
    );
    tool(
        "qemu-img",
        [
            "convert".as_ref(),
            "-O".as_ref(),
            "qcow2".as_ref(),
            raw.as_os_str(),
            image.as_os_str(),
        ],
    );
    fs::remove_file(&raw).expect("the raw disk");
    image
}

/// Runs a program that must succeed; what it says.
pub(super) fn tool<'a>(program: &str, arguments: impl IntoIterator<Item = &'a OsStr>) -> String {
    let path = std::env::var("PATH").unwrap_or_default();
    let output = Command::new(program)
        .args(arguments)
        .env("PATH", format!("{path}:/usr/sbin:/sbin"))
        .env("LC_ALL", "C")
        .output()
        .unwrap_or_else(|error| panic!("{program}: {error}"));
    assert!(
        output.status.success(),
        "{program}: {}\n{}\n{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn lay_out_root(root: &Path, busybox: &[u8], agent: &Path) {
    for folder in [
        "bin", "data", "dev", "etc", "mnt", "proc", "run", "sbin", "sys", "tmp", "usr/sbin", "var",
    ] {
        fs::create_dir_all(root.join(folder)).expect("a folder");
    }
    program(&root.join("bin/busybox"), busybox);
    program(
        &root.join("usr/sbin/qemu-ga"),
        &fs::read(agent).expect("agent"),
    );
    program(&root.join("sbin/init"), INIT.as_bytes());
    program(&root.join("sbin/shutdown"), SHUTDOWN.as_bytes());
    for library in libraries(agent) {
        let place = root.join(library.strip_prefix("/").expect("absolute"));
        fs::create_dir_all(place.parent().expect("a folder")).expect("a folder");
        program(&place, &fs::read(&library).expect("a library"));
    }
    symlink("/run", root.join("var/run")).expect("a link");
    symlink("../proc/mounts", root.join("etc/mtab")).expect("a link");
    fs::write(root.join("etc/passwd"), "root:x:0:0:root:/:/bin/sh\n").expect("a file");
    fs::write(root.join("etc/group"), "root:x:0:\n").expect("a file");
    let release = "ID=tiny\nNAME=Tiny\nPRETTY_NAME=\"Tiny Linux 1\"\nVERSION_ID=1\n";
    fs::write(root.join("etc/os-release"), release).expect("a file");
}

/// The libraries that a program asks for, as this system has them.
fn libraries(program: &Path) -> Vec<PathBuf> {
    let text = tool("ldd", [program.as_os_str()]);
    assert!(!text.contains("not found"), "{}: {text}", program.display());
    text.lines()
        .flat_map(|line| line.split_whitespace())
        .filter(|word| word.starts_with('/'))
        .map(PathBuf::from)
        .collect()
}

fn program(path: &Path, content: &[u8]) {
    fs::write(path, content).expect("a program");
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).expect("its mode");
}

fn files_below(folder: &Path) -> BTreeMap<String, PathBuf> {
    let mut files = BTreeMap::new();
    let mut waiting = vec![folder.to_owned()];
    while let Some(folder) = waiting.pop() {
        for entry in fs::read_dir(&folder).expect("a folder of the parts") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                waiting.push(path);
            } else {
                let name = path.file_name().expect("a name").to_string_lossy();
                files.insert(name.into_owned(), path);
            }
        }
    }
    files
}

fn found(files: &BTreeMap<String, PathBuf>, is_it: impl Fn(&str) -> bool) -> PathBuf {
    let (_, path) = files
        .iter()
        .find(|(name, _)| is_it(name))
        .expect("a part of the guest");
    path.clone()
}

/// An archive as the kernel unpacks it ("newc"), not compressed.
fn initrd_of(files: &BTreeMap<String, PathBuf>, busybox: &[u8]) -> Vec<u8> {
    let mut archive = Archive::default();
    for folder in ["bin", "dev", "drivers", "mnt", "proc", "sys"] {
        archive.add(folder, 0o040_755, &[]);
    }
    archive.add("bin/busybox", 0o100_755, busybox);
    archive.add("init", 0o100_755, INITRD_INIT.as_bytes());
    let mut order = String::new();
    for driver in DRIVERS {
        // One that is not there is in the kernel itself.
        if let Some(content) = driver_of(files, driver) {
            archive.add(&format!("drivers/{driver}.ko"), 0o100_644, &content);
            order.push_str(driver);
            order.push('\n');
        }
    }
    archive.add("drivers/order", 0o100_644, order.as_bytes());
    archive.finish()
}

fn driver_of(files: &BTreeMap<String, PathBuf>, driver: &str) -> Option<Vec<u8>> {
    if let Some(path) = files.get(&format!("{driver}.ko")) {
        return Some(fs::read(path).expect("a driver"));
    }
    let packed = files.get(&format!("{driver}.ko.xz"))?;
    let output = Command::new("xz").arg("-dc").arg(packed).output();
    let output = output.expect("xz");
    assert!(output.status.success(), "{} is damaged", packed.display());
    Some(output.stdout)
}

#[derive(Default)]
struct Archive {
    bytes: Vec<u8>,
    entries: u32,
}

impl Archive {
    fn add(&mut self, name: &str, mode: u32, content: &[u8]) {
        self.entries += 1;
        let length = |bytes: usize| u32::try_from(bytes).expect("a small file");
        let fields = [
            self.entries,
            mode,
            0,
            0,
            1,
            0,
            length(content.len()),
            0,
            0,
            0,
            0,
            length(name.len() + 1),
            0,
        ];
        self.bytes.extend(b"070701");
        for field in fields {
            self.bytes.extend(format!("{field:08x}").bytes());
        }
        self.bytes.extend(name.bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend(content);
        self.pad();
    }

    fn pad(&mut self) {
        let padded = self.bytes.len().next_multiple_of(4);
        self.bytes.resize(padded, 0);
    }

    fn finish(mut self) -> Vec<u8> {
        self.add("TRAILER!!!", 0, &[]);
        self.bytes
    }
}
