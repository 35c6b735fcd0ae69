//! The whole round on a sample disk: protect it, change it, protect it again, bring both versions back, prove them.
//!
//! ```text
//!   FOLDER/sample.vhdx ──backup──► FOLDER/repository ◄──backup── the same, about 1 % changed
//!                                     │           └─restore─► restored-2.vhdx  ═ sample.vhdx, byte by byte
//!                                     └─restore─► restored-1.vhdx              ═ what was generated at first
//! ```
//!
//! Both restored images are also read again and compared with the versions' trees. Every number in the report was measured.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use block::{BLOCK_SIZE_BYTES, Extent, ExtentKind, ReadAt, WriteAt};
use repo::{
    CreateOptions, Encryption, Environment, OpenOptions, PointSelector, ProtectedName, Repository,
    Which,
};
use serde::Serialize;
use vdisk::file::{FileAccess, HostFile};
use vdisk::image::{self, IfExists, ImageProfile};
use vdisk::vhdx::{IdSource, VhdxWriter};
use vdisk::{Format, Image};

use crate::job::JobContext;
use crate::job::backup_disk::{BackupReport, BackupRequest, backup_disk};
use crate::job::restore_disk::{Proof, RestoreReport, RestoreRequest, restore_disk};
use crate::profile::profile_of;
use crate::{Error, ErrorKind, Result};

/// The default sample: 256 MiB of disk, about three quarters of it in use.
pub const DEFAULT_SIZE_BYTES: u64 = 256 << 20;
const NAME: &str = "quickstart";
const BLOCK: usize = 65_536;
/// Of this many blocks in use, one is changed between the versions.
const CHANGED_ONE_OF: u64 = 100;

/// What remains when all went well.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Leftovers {
    /// Nothing.
    #[default]
    Remove,
    /// The sample, the repository with its key file, and the restored images.
    Keep,
}

/// Where and how large.
pub struct QuickstartRequest {
    /// A folder that is empty or absent.
    pub folder: PathBuf,
    /// Bytes of the sample disk, a whole number of MiB.
    pub size_bytes: u64,
    /// What remains.
    pub leftovers: Leftovers,
    /// The world.
    pub environment: Environment,
    /// Where ids of images come from.
    pub ids: IdSource,
}

/// One step and how long it took.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct QuickstartStep {
    /// What was done.
    pub step: String,
    /// How long it took.
    pub elapsed_ms: u64,
}

/// What was done and what it cost.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct QuickstartReport {
    /// Where.
    pub folder: PathBuf,
    /// Bytes of the sample disk.
    pub size_bytes: u64,
    /// Bytes of it that are in use.
    pub used_bytes: u64,
    /// Bytes changed between the versions.
    pub changed_bytes: u64,
    /// The steps in order.
    pub steps: Vec<QuickstartStep>,
    /// The first backup.
    pub first: BackupReport,
    /// The second.
    pub second: BackupReport,
    /// Both restores, the first version first.
    pub restores: Vec<RestoreReport>,
    /// Bytes that the repository takes.
    pub repository_bytes: u64,
    /// Whether both restored images equal what was protected, by root and byte by byte.
    pub is_proved: bool,
}

/// The sample's content, computed: what a block holds in a version.
struct Sample {
    size_bytes: u64,
    version: u64,
}

impl Sample {
    /// Three of four blocks are in use.
    fn is_used(block: u64) -> bool {
        block % 4 != 3
    }

    fn is_changed(&self, block: u64) -> bool {
        self.version > 1 && Self::is_used(block) && block.is_multiple_of(CHANGED_ONE_OF)
    }

    fn blocks(&self) -> u64 {
        self.size_bytes / BLOCK_SIZE_BYTES
    }

    /// Lines of text in one half of the blocks, noise in the other.
    fn fill(&self, block: u64, bytes: &mut [u8]) {
        if !Self::is_used(block) {
            bytes.fill(0);
            return;
        }
        let version = if self.is_changed(block) {
            self.version
        } else {
            1
        };
        let mut state = (block << 8 | version).wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
        for line in bytes.chunks_mut(64) {
            if block.is_multiple_of(2) {
                let mut text = [b'.'; 64];
                // A line is longer than what is written into it.
                write!(
                    &mut text[..],
                    "block {block} version {version} line {}",
                    state % 1000
                )
                .unwrap_or(());
                line.copy_from_slice(&text[..line.len()]);
                state = state.wrapping_add(17);
                continue;
            }
            for word in line.chunks_mut(8) {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                word.copy_from_slice(&state.to_le_bytes()[..word.len()]);
            }
        }
    }
}

impl ReadAt for Sample {
    fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> block::Result<()> {
        let mut whole = vec![0; BLOCK];
        let mut at = offset;
        let mut rest = buffer;
        while !rest.is_empty() {
            if at >= self.size_bytes {
                let what = format!("byte {at} of a sample of {}", self.size_bytes);
                return Err(block::Error::new(block::ErrorKind::OutOfRange, what));
            }
            let inside = usize::try_from(at % BLOCK_SIZE_BYTES).unwrap_or(0);
            let length = rest.len().min(BLOCK - inside);
            self.fill(at / BLOCK_SIZE_BYTES, &mut whole);
            let (part, behind) = rest.split_at_mut(length);
            part.copy_from_slice(&whole[inside..inside + length]);
            at += length as u64;
            rest = behind;
        }
        Ok(())
    }

    fn extent_at(&self, offset: u64, limit_bytes: u64) -> block::Result<Extent> {
        let block = offset / BLOCK_SIZE_BYTES;
        let kind = if Self::is_used(block) {
            ExtentKind::Data
        } else {
            ExtentKind::Unallocated
        };
        let end = (block + 1)
            .saturating_mul(BLOCK_SIZE_BYTES)
            .min(self.size_bytes);
        if offset >= end || limit_bytes == 0 {
            let what = format!("extent at {offset} of a sample of {}", self.size_bytes);
            return Err(block::Error::new(block::ErrorKind::OutOfRange, what));
        }
        Ok(Extent {
            offset,
            length_bytes: (end - offset).min(limit_bytes),
            kind,
        })
    }
}

/// Measures steps one after the other.
struct Clockwork<'a> {
    environment: &'a Environment,
    steps: Vec<QuickstartStep>,
}

impl Clockwork<'_> {
    fn step<T>(&mut self, step: &str, act: impl FnOnce() -> Result<T>) -> Result<T> {
        let started_ms = self.environment.clock.monotonic_ms();
        let result = act();
        let elapsed_ms = self
            .environment
            .clock
            .monotonic_ms()
            .saturating_sub(started_ms);
        self.steps.push(QuickstartStep {
            step: step.to_owned(),
            elapsed_ms,
        });
        result
    }
}

/// Where things lie.
struct Places {
    sample: PathBuf,
    repository: PathBuf,
    key_file: PathBuf,
    restored: [PathBuf; 2],
}

impl Places {
    fn new(folder: &Path) -> Self {
        Self {
            sample: folder.join("sample.vhdx"),
            repository: folder.join("repository"),
            key_file: folder.join("quickstart.key"),
            restored: [
                folder.join("restored-1.vhdx"),
                folder.join("restored-2.vhdx"),
            ],
        }
    }
}

/// Goes the whole round.
///
/// # Errors
/// [`ErrorKind::AlreadyExists`] when the folder is not empty, [`ErrorKind::Corrupt`] when a restored image is not what was
/// protected; what any step answers. What was made so far stays for a look.
pub fn quickstart(
    request: &QuickstartRequest,
    context: JobContext<'_>,
) -> Result<QuickstartReport> {
    if request.size_bytes == 0 || !request.size_bytes.is_multiple_of(1 << 20) {
        let what = format!(
            "a sample of {} bytes: not a whole number of MiB",
            request.size_bytes
        );
        return Err(Error::new(ErrorKind::Invalid, what));
    }
    let absent = prepare_folder(&request.folder)?;
    let places = Places::new(&request.folder);
    let mut clockwork = Clockwork {
        environment: &request.environment,
        steps: Vec::new(),
    };
    let old = Sample {
        size_bytes: request.size_bytes,
        version: 1,
    };
    let new = Sample { version: 2, ..old };
    clockwork.step("make a sample disk", || {
        make_sample(&places.sample, &old, request)
    })?;
    let repository = clockwork.step("make an encrypted repository", || {
        make_repository(&places, request)
    })?;
    let first = clockwork.step("protect it", || {
        protect(&repository, &places.sample, context)
    })?;
    let changed_bytes = clockwork.step("change about 1 % of it", || {
        change(&places.sample, &new, request)
    })?;
    let second = clockwork.step("protect it again", || {
        protect(&repository, &places.sample, context)
    })?;
    let mut restores = Vec::new();
    for (at, target) in (1u64..).zip(&places.restored) {
        let step = format!("restore version {at}");
        restores
            .push(clockwork.step(&step, || restore(&repository, at, target, request, context))?);
    }
    clockwork.step("compare every byte", || {
        compare(&old, &places.restored[0])?;
        compare(&new, &places.restored[1])?;
        compare(&open(&places.sample)?, &places.restored[1])
    })?;
    let repository_bytes = folder_bytes(&places.repository)?;
    drop(repository);
    if request.leftovers == Leftovers::Remove {
        remove(&places, &request.folder, absent)?;
    }
    Ok(QuickstartReport {
        folder: request.folder.clone(),
        size_bytes: request.size_bytes,
        used_bytes: (0..old.blocks())
            .filter(|block| Sample::is_used(*block))
            .count() as u64
            * BLOCK_SIZE_BYTES,
        changed_bytes,
        steps: clockwork.steps,
        is_proved: restores.iter().all(|restore| restore.is_proved),
        first,
        second,
        restores,
        repository_bytes,
    })
}

/// Whether the folder was there before.
#[derive(Clone, Copy, PartialEq, Eq)]
enum FolderBefore {
    Absent,
    Empty,
}

fn prepare_folder(folder: &Path) -> Result<FolderBefore> {
    match fs::read_dir(folder) {
        Ok(mut entries) => match entries.next() {
            None => Ok(FolderBefore::Empty),
            Some(_) => {
                let what = format!("{} is not empty", folder.display());
                Err(Error::new(ErrorKind::AlreadyExists, what))
            }
        },
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            fs::create_dir_all(folder).map_err(|error| at_path(folder, error))?;
            Ok(FolderBefore::Absent)
        }
        Err(error) => Err(at_path(folder, error)),
    }
}

fn at_path(path: &Path, error: std::io::Error) -> Error {
    Error::new(ErrorKind::Io, path.display().to_string()).caused_by(error)
}

fn make_sample(path: &Path, sample: &Sample, request: &QuickstartRequest) -> Result<()> {
    let options = image::CreateOptions {
        size_bytes: sample.size_bytes,
        profile: ImageProfile::of(Format::Vhdx),
        if_exists: IfExists::Refuse,
        ids: request.ids.clone(),
        unix_seconds: request.environment.clock.unix_ms() / 1000,
    };
    vdisk::convert::convert(sample, path, &options, &vdisk::convert::NoProgress)?;
    Ok(())
}

fn make_repository(places: &Places, request: &QuickstartRequest) -> Result<Repository> {
    let address = places.repository.to_str().ok_or_else(|| {
        let what = format!("{} is no text", places.repository.display());
        Error::new(ErrorKind::Invalid, what)
    })?;
    let store = store::create_url(address)?;
    let options = CreateOptions {
        encryption: Encryption::Aes256Gcm,
        ..CreateOptions::default()
    };
    let created = Repository::create(
        store,
        &options,
        &OpenOptions::default(),
        &request.environment,
    )?;
    if let Some(key_file) = &created.key_file {
        write_secret(&places.key_file, &key_file.to_string())?;
    }
    Ok(created.repository)
}

fn write_secret(path: &Path, text: &str) -> Result<()> {
    let mut options = fs::OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let mut file = options.open(path).map_err(|error| at_path(path, error))?;
    file.write_all(text.as_bytes())
        .map_err(|error| at_path(path, error))
}

fn open(path: &Path) -> Result<Image> {
    let options = vdisk::OpenOptions {
        format: image::FormatHint::Exactly(Format::Vhdx),
        ..vdisk::OpenOptions::default()
    };
    Ok(Image::open(path, &options)?)
}

fn protect(
    repository: &Repository,
    sample: &Path,
    context: JobContext<'_>,
) -> Result<BackupReport> {
    let image = open(sample)?;
    let mut request = BackupRequest::new(ProtectedName::new(NAME)?);
    request.image = profile_of(&image.info());
    backup_disk(repository, &request, &image, context)
}

/// Writes the blocks that differ between the versions through the image's journal, as a running machine would.
fn change(path: &Path, new: &Sample, request: &QuickstartRequest) -> Result<u64> {
    let file: Arc<dyn WriteAt> = Arc::new(HostFile::open(path, FileAccess::ReadWrite)?);
    let writer = VhdxWriter::open(file, None, request.ids.clone())?;
    let mut bytes = vec![0; BLOCK];
    let mut changed = 0u64;
    for block in (0..new.blocks()).filter(|block| new.is_changed(*block)) {
        new.fill(block, &mut bytes);
        writer.write_at(block.saturating_mul(BLOCK_SIZE_BYTES), &bytes)?;
        changed += BLOCK_SIZE_BYTES;
    }
    writer.finish()?;
    Ok(changed)
}

fn restore(
    repository: &Repository,
    sequence: u64,
    target: &Path,
    request: &QuickstartRequest,
    context: JobContext<'_>,
) -> Result<RestoreReport> {
    let selector = PointSelector {
        name: ProtectedName::new(NAME)?,
        which: Which::Sequence(sequence),
    };
    let mut wish = RestoreRequest::new(selector, target, request.ids.clone());
    wish.proof = Proof::ReadBack;
    restore_disk(repository, &wish, context)
}

fn compare(wanted: &dyn ReadAt, restored: &Path) -> Result<()> {
    let report = vdisk::compare::compare(wanted, &open(restored)?, &vdisk::convert::NoProgress)?;
    if report.is_equal() {
        return Ok(());
    }
    let place = report.first_difference.unwrap_or(report.left_size_bytes);
    let what = format!(
        "{} differs from what was protected at byte {place}",
        restored.display()
    );
    Err(Error::new(ErrorKind::Corrupt, what))
}

/// Bytes of all files below a folder. Repositories are three levels deep; more than 16 is somebody else's folder.
fn folder_bytes(folder: &Path) -> Result<u64> {
    let mut total = 0u64;
    let mut folders = vec![(folder.to_path_buf(), 0)];
    while let Some((path, depth)) = folders.pop() {
        for entry in fs::read_dir(&path).map_err(|error| at_path(&path, error))? {
            let entry = entry.map_err(|error| at_path(&path, error))?;
            let metadata = entry.metadata().map_err(|error| at_path(&path, error))?;
            if metadata.is_dir() && depth < 16 {
                folders.push((entry.path(), depth + 1));
            } else {
                total = total.saturating_add(metadata.len());
            }
        }
    }
    Ok(total)
}

/// Removes what was made, and nothing else.
fn remove(places: &Places, folder: &Path, before: FolderBefore) -> Result<()> {
    let files = places
        .restored
        .iter()
        .chain([&places.sample, &places.key_file]);
    for file in files {
        fs::remove_file(file).map_err(|error| at_path(file, error))?;
    }
    fs::remove_dir_all(&places.repository).map_err(|error| at_path(&places.repository, error))?;
    if before == FolderBefore::Absent {
        fs::remove_dir(folder).map_err(|error| at_path(folder, error))?;
    }
    Ok(())
}
