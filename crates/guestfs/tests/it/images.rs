//! Images that tests read: out of the corpora, or made on the spot; as files, counted, and with holes of garbage.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use block::ReadAt;
use guestfs::filesystem::VolumeRange;

/// Where the corpora are, or none; in CI they must be there.
pub fn corpora() -> Option<PathBuf> {
    let folder = std::env::var_os("HIKAE_CORPORA").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/corpora"),
        PathBuf::from,
    );
    if folder.join("manifest.json").exists() {
        return Some(folder);
    }
    missing("the corpora are not there");
    None
}

/// Says that a test cannot run here; fails where everything must be there.
pub fn missing(what: &str) {
    assert!(std::env::var_os("CI").is_none(), "{what}");
    println!("SKIP: {what}");
}

/// Whether commands are there; in CI they must be.
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

/// Tools of file systems lie where only root usually looks.
pub fn search_path() -> String {
    let path = std::env::var("PATH").unwrap_or_default();
    format!("{path}:/usr/local/sbin:/usr/sbin:/sbin")
}

/// Runs a script of the shell in a folder, with mounts that nobody else sees; its output, or what it said.
pub fn script(folder: &Path, text: &str) -> Result<Output, String> {
    let output = Command::new("unshare")
        .args(["--mount", "bash", "-euo", "pipefail", "-c", text])
        .current_dir(folder)
        .env("PATH", search_path())
        .env("LC_ALL", "C.UTF-8")
        .stdin(Stdio::null())
        .output()
        .map_err(|error| error.to_string())?;
    if output.status.success() {
        return Ok(output);
    }
    Err(String::from_utf8_lossy(&output.stderr).into_owned())
}

/// An image of the corpora, unpacked into a file.
pub fn unpack(corpora: &Path, name: &str, folder: &Path) -> PathBuf {
    let packed = corpora.join(name);
    let tool = match packed.extension().and_then(|end| end.to_str()) {
        Some("xz") => "xz",
        Some("gz") => "gzip",
        Some("bz2") => "bzip2",
        Some("zst") => "zstd",
        _ => return packed,
    };
    let target = folder.join("image");
    let status = Command::new(tool)
        .arg("-dc")
        .stdin(File::open(&packed).expect("the packed image"))
        .stdout(File::create(&target).expect("a file for the image"))
        .status()
        .expect("the tool that unpacks");
    assert!(status.success(), "{tool} unpacks {name}");
    target
}

/// A file as a volume, with what was read of it.
pub struct FileVolume {
    file: File,
    size_bytes: u64,
    read_bytes: AtomicU64,
}

impl FileVolume {
    /// Opens an image.
    pub fn open(path: &Path) -> Arc<Self> {
        let file = File::open(path).expect("the image");
        let size_bytes = file.metadata().expect("its size").len();
        Arc::new(Self {
            file,
            size_bytes,
            read_bytes: AtomicU64::new(0),
        })
    }

    /// Bytes read so far.
    pub fn read_bytes(&self) -> u64 {
        self.read_bytes.load(Ordering::Relaxed)
    }
}

impl ReadAt for FileVolume {
    fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> block::Result<()> {
        self.read_bytes
            .fetch_add(buffer.len() as u64, Ordering::Relaxed);
        self.file.read_exact_at(buffer, offset).map_err(|error| {
            block::Error::new(block::ErrorKind::OutOfRange, format!("{offset}: {error}"))
        })
    }
}

/// A volume in memory.
pub struct MemoryVolume(pub Vec<u8>);

impl ReadAt for MemoryVolume {
    fn size_bytes(&self) -> u64 {
        self.0.len() as u64
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> block::Result<()> {
        let part = usize::try_from(offset)
            .ok()
            .and_then(|start| self.0.get(start..start.checked_add(buffer.len())?))
            .ok_or_else(|| block::Error::new(block::ErrorKind::OutOfRange, "behind the end"))?;
        buffer.copy_from_slice(part);
        Ok(())
    }
}

/// A volume where everything outside some ranges is garbage.
pub struct OnlyUsed {
    volume: Arc<dyn ReadAt>,
    used: Vec<VolumeRange>,
}

impl OnlyUsed {
    /// Keeps these ranges, ascending, and forgets the rest.
    pub fn new(volume: Arc<dyn ReadAt>, used: Vec<VolumeRange>) -> Arc<Self> {
        Arc::new(Self { volume, used })
    }
}

impl ReadAt for OnlyUsed {
    fn size_bytes(&self) -> u64 {
        self.volume.size_bytes()
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> block::Result<()> {
        let mut whole = vec![0; buffer.len()];
        self.volume.read_at(offset, &mut whole)?;
        buffer.fill(0xA5);
        let end = offset + buffer.len() as u64;
        let first = self
            .used
            .partition_point(|range| range.offset + range.length_bytes <= offset);
        for range in self.used[first..]
            .iter()
            .take_while(|range| range.offset < end)
        {
            let from = (range.offset.max(offset) - offset) as usize;
            let to = ((range.offset + range.length_bytes).min(end) - offset) as usize;
            buffer[from..to].copy_from_slice(&whole[from..to]);
        }
        Ok(())
    }
}
