//! A machine as files in a folder of this system: its disks as images, its configuration as it was, and what it was in
//! readable text.
//!
//! ```text
//!   FOLDER/sql01.vhdx …                 the disks, each whole
//!   FOLDER/configuration/ID.vmcx …      the files that Hyper-V imports
//!   FOLDER/machine.json                 slots, sizes, adapters, role: what is needed to make it by hand
//! ```

use std::fs::File;
use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;

use block::ReadAt;
use repo::lease::LeaseKind;
use repo::{DiskVersion, PointSelector, ReadSession, Repository};
use serde::Serialize;
use vdisk::Format;
use vdisk::vhdx::IdSource;

use super::{new_folder, record_of};
use crate::job::restore_disk::{Proof, RestoreReport, RestoreRequest, restore_disk};
use crate::job::{JobContext, protect};
use crate::profile::{format_word, profile_from};
use crate::{Error, ErrorKind, Result};

/// What is to be restored into a folder.
#[derive(Clone)]
pub struct FolderRequest {
    /// The version.
    pub selector: PointSelector,
    /// A folder that is empty or absent.
    pub folder: PathBuf,
    /// The format of the images; as they were when absent.
    pub format: Option<Format>,
    /// Whether images are read again.
    pub proof: Proof,
    /// Where new ids come from.
    pub ids: IdSource,
}

/// What was restored into a folder.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct FolderReport {
    /// The version, as NAME@SEQUENCE.
    pub version: String,
    /// The machine's name.
    pub machine: String,
    /// Where.
    pub folder: PathBuf,
    /// The disks.
    pub disks: Vec<RestoreReport>,
    /// Files of the configuration.
    pub configuration: Vec<PathBuf>,
    /// Disks that are not in the version, and why.
    pub not_protected: Vec<String>,
}

/// Restores a machine into a folder.
///
/// # Errors
/// [`ErrorKind::AlreadyExists`] when the folder is not empty; as [`restore_disk`].
pub fn restore_vm_to_folder(
    repository: &Repository,
    request: &FolderRequest,
    context: JobContext<'_>,
) -> Result<FolderReport> {
    let point = repository.find_point(&request.selector)?.point;
    let record = record_of(&point)?;
    new_folder(&request.folder)?;
    let session = protect(repository, LeaseKind::Restore, &[&point], context)?;
    let mut report = FolderReport {
        version: format!("{}@{}", point.name, point.sequence),
        machine: record.name.clone(),
        folder: request.folder.clone(),
        disks: Vec::new(),
        configuration: Vec::new(),
        not_protected: record.not_protected.clone(),
    };
    let place = |name: &str| request.folder.join(name);
    let text = serde_json::to_vec_pretty(&record)
        .map_err(|error| Error::new(ErrorKind::Invalid, "the machine's record").caused_by(error))?;
    let path = place("machine.json");
    let written = File::create_new(&path).and_then(|mut file| {
        file.write_all(&text)?;
        file.sync_all()
    });
    written.map_err(|error| failed(&path, error))?;
    for disk in &point.disks {
        let name = image_name(&record, disk, request.format);
        let mut one =
            RestoreRequest::new(request.selector.clone(), place(&name), request.ids.clone());
        one.label = Some(disk.label.clone());
        one.format = request.format;
        one.proof = request.proof;
        report.disks.push(restore_disk(repository, &one, context)?);
    }
    for file in &point.configuration {
        let folder = place("configuration");
        std::fs::create_dir_all(&folder).map_err(|error| failed(&folder, error))?;
        let name = safe_name(&file.path)?;
        let path = folder.join(name);
        copy(repository, &session, &file.content, &path, context)?;
        report.configuration.push(path);
    }
    if let Some(session) = Arc::into_inner(session) {
        session.finish()?;
    }
    Ok(report)
}

/// The image's own name, so that an operator knows it again; with the label before it when two are called alike.
fn image_name(
    record: &crate::job::backup_vm::MachineRecord,
    disk: &DiskVersion,
    format: Option<Format>,
) -> String {
    let name = record
        .disk(&disk.label)
        .map_or(disk.label.as_str(), |it| it.home.file_name());
    let stem = name.rsplit_once('.').map_or(name, |(stem, _)| stem);
    let stem: String = stem
        .chars()
        .map(|c| {
            if c == '/' || c == '\\' || c.is_control() {
                '_'
            } else {
                c
            }
        })
        .collect();
    let format = format
        .or_else(|| profile_from(&disk.image).ok().map(|profile| profile.format))
        .unwrap_or(Format::Vhdx);
    let stem_of = |name: &str| {
        let stem = name.rsplit_once('.').map_or(name, |(stem, _)| stem);
        stem.to_lowercase()
    };
    let alike = record
        .disks
        .iter()
        .filter(|it| stem_of(it.home.file_name()) == stem_of(name));
    let is_alone = alike.count() <= 1;
    let word = format_word(format);
    if is_alone && !stem.is_empty() {
        format!("{stem}.{word}")
    } else {
        format!("{}-{stem}.{word}", disk.label)
    }
}

/// The name of a configuration file comes from a host: it names a file in that folder, or it is refused.
fn safe_name(name: &str) -> Result<&str> {
    let is_plain =
        !name.is_empty() && name != "." && name != ".." && !name.contains(['/', '\\', '\0']);
    if is_plain {
        Ok(name)
    } else {
        let shown: String = name.chars().take(80).collect();
        Err(Error::new(
            ErrorKind::Corrupt,
            format!("{shown:?} is no name of a file"),
        ))
    }
}

fn copy(
    repository: &Repository,
    session: &Arc<ReadSession>,
    content: &DiskVersion,
    path: &PathBuf,
    context: JobContext<'_>,
) -> Result<()> {
    const PIECE: u64 = 1 << 20;
    let reader = repository.open_version(content, session)?;
    let mut file = File::create_new(path).map_err(|error| failed(path, error))?;
    let mut buffer = Vec::new();
    let mut at = 0u64;
    while at < content.length_bytes {
        context.cancel.check()?;
        let length = PIECE.min(content.length_bytes.saturating_sub(at));
        buffer.resize(usize::try_from(length).unwrap_or(0), 0);
        reader.read_at(at, &mut buffer)?;
        file.write_all(&buffer)
            .map_err(|error| failed(path, error))?;
        at = at.saturating_add(length);
    }
    file.sync_all().map_err(|error| failed(path, error))
}

fn failed(path: &std::path::Path, error: std::io::Error) -> Error {
    Error::new(ErrorKind::Io, format!("writing {}", path.display())).caused_by(error)
}
