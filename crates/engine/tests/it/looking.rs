//! Looking for what a backup may leave out costs no more than the metadata of file systems, however large they are.
//!
//! Volumes of 1 TiB are made sparse by their own tools. Where those are missing the test is skipped aloud, and fails in CI.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use block::ReadAt;
use engine::unneeded::plan_unneeded;

use crate::support::context;

const TIB: u64 = 1 << 40;
/// What may be read besides bitmaps, and besides them once over.
const LIMIT_BYTES: u64 = 64 << 20;

/// A file that counts what is read of it.
struct Counted {
    file: File,
    size_bytes: u64,
    read_bytes: AtomicU64,
}

impl ReadAt for Counted {
    fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> block::Result<()> {
        self.read_bytes
            .fetch_add(buffer.len() as u64, Ordering::Relaxed);
        self.file
            .read_exact_at(buffer, offset)
            .map_err(|error| block::Error::new(block::ErrorKind::Io, error.to_string()))
    }
}

/// Makes a volume; whether this machine can.
fn make(path: &Path, words: &[&str]) -> bool {
    File::create(path).unwrap().set_len(TIB).unwrap();
    let search = std::env::var("PATH").unwrap_or_default();
    let made = Command::new("env")
        .arg(format!("PATH={search}:/usr/sbin:/sbin"))
        .args(words)
        .arg(path)
        .output()
        .unwrap();
    if made.status.success() {
        return true;
    }
    let why = String::from_utf8_lossy(&made.stderr).into_owned();
    assert!(std::env::var_os("CI").is_none(), "{words:?}: {why}");
    println!("SKIP: {words:?}: {why}");
    false
}

#[test]
fn a_tebibyte_is_looked_at_for_the_price_of_its_bitmaps() {
    for (words, kind) in [
        (&["mke2fs", "-q", "-F", "-t", "ext4"][..], "ext4"),
        (&["mkntfs", "-q", "-F", "-Q"], "ntfs"),
        (&["mkfs.xfs", "-q", "-f"], "xfs"),
        (&["mkfs.btrfs", "-q", "-f"], "btrfs"),
        (&["mkfs.exfat"], "exfat"),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("volume");
        if !make(&path, words) {
            continue;
        }
        // What of the host is there is neither data nor a hole to the look: it sees a disk that knows nothing of itself.
        let disk = Arc::new(Counted {
            file: File::open(&path).unwrap(),
            size_bytes: TIB,
            read_bytes: AtomicU64::new(0),
        });
        let plan = plan_unneeded(Arc::clone(&disk) as Arc<dyn ReadAt>, context()).unwrap();
        let volume = &plan.volumes[0];
        assert_eq!(volume.kept_because, None, "{kind}");
        assert_eq!(volume.content, kind);
        assert!(plan.left_out_bytes > TIB / 10 * 9, "{kind}: {volume:?}");
        let read = disk.read_bytes.load(Ordering::Relaxed);
        println!("{kind}: {read} bytes read");
        assert!(read < LIMIT_BYTES, "{kind}: {read} bytes were read");
    }
}
