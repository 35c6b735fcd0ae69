//! Images and configuration of a restored machine on their way onto a host.
//!
//! ```text
//!   version ─► leaves on all cores, each block hashed ─► PATH.hikae-new-… ─► read again, compared ─► PATH
//!                                                                       what was at PATH ─► PATH.before-…
//! ```
//!
//! **Invariants.** A file is removed only when this job made it. A name is given only to what is whole.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use block::{ReadAt, WriteAt};
use host::checkpoint::Presence;
use host::ids::NodeName;
use host::path::HostPath;
use repo::{BulkRead, DiskVersion};
use vdisk::image::{
    self, CreateOptions, FormatHint, IfExists, ImageProfile, ImageWriter, WriteOrder,
};
use vdisk::{Format, Image};

use super::{Job, PlannedImage, VmRestorePlan, patiently};
use crate::compare::{LeafWindow, compare_with_tree};
use crate::job::Steps;
use crate::job::restore_disk::{FirstFailure, Proof};
use crate::profile::profile_from;
use crate::{Error, ErrorKind, Result};

/// Change tracking that Windows keeps beside an image: of the image that is replaced, and so of no use to the new one.
const TRACKING_FILES: [&str; 2] = ["rct", "mrt"];

/// Writes every image beside its place. Gives the bytes written.
pub(super) fn write_all<'a>(
    job: &Job<'a>,
    plan: &VmRestorePlan,
    steps: &mut Steps<'a>,
) -> Result<u64> {
    let host = job.tools.host;
    let mut written = 0u64;
    check_space(job, plan)?;
    for image in &plan.images {
        let shown = image.path.to_string();
        let folder = image.path.folder().unwrap_or_else(|| plan.folder.clone());
        let (node, new) = (plan.node.clone(), image.new.clone());
        steps.on_failure("create", &shown, move || {
            host.remove(&node, &new)?;
            Ok(())
        });
        let file = steps.step("create", &shown, || {
            host.create_folder(&plan.node, &folder)?;
            // What an interrupted run of the same restore has left is ours, by its name.
            host.remove(&plan.node, &image.new)?;
            Ok(host.create_file(&plan.node, &image.new)?)
        })?;
        written =
            written.saturating_add(steps.step("write", &shown, || write_one(job, image, file))?);
    }
    Ok(written)
}

fn check_space(job: &Job<'_>, plan: &VmRestorePlan) -> Result<()> {
    let Some(first) = plan.images.first() else {
        return Ok(());
    };
    let folder = first.path.folder().unwrap_or_else(|| plan.folder.clone());
    let Ok(Some(free)) = job.tools.host.free_bytes(&plan.node, &folder) else {
        // Not told, or the folder is not there yet: writing will tell.
        return Ok(());
    };
    let mut needed = 0u64;
    for disk in &job.point.disks {
        let reader = job.tools.repository.open_version(disk, job.session)?;
        let mut tree = reader.tree()?;
        for run in tree.runs(block::LeafIndex(0)) {
            let run = run?;
            if run.hash != block::NodeHash::zero(1) {
                needed = needed.saturating_add(block::LEAF_SIZE_BYTES.saturating_mul(run.count));
            }
        }
    }
    // Leaves are counted whole: only when even a tenth of them does not fit it is plain.
    if needed / 10 > free {
        let what = format!(
            "{folder} on {} has {free} bytes free, about {needed} are needed",
            plan.node
        );
        return Err(Error::new(ErrorKind::Full, what));
    }
    Ok(())
}

fn disk_of<'a>(job: &Job<'a>, image: &PlannedImage) -> Result<&'a DiskVersion> {
    job.point.disk(&image.label).ok_or_else(|| {
        Error::new(
            ErrorKind::NotFound,
            format!("the version has no disk {}", image.label),
        )
    })
}

fn profile(disk: &DiskVersion, path: &HostPath) -> ImageProfile {
    let by_name = match path.extension().as_deref() {
        Some("vhd" | "avhd") => Format::Vhd,
        _ => Format::Vhdx,
    };
    match profile_from(&disk.image) {
        Ok(kept) if kept.format == by_name => kept,
        Ok(kept) => ImageProfile {
            disk_id: kept.disk_id,
            ..ImageProfile::of(by_name)
        },
        Err(_) => ImageProfile::of(by_name),
    }
}

fn write_one(
    job: &Job<'_>,
    image: &PlannedImage,
    file: Arc<dyn host::boundary::HostFileWriter>,
) -> Result<u64> {
    let disk = disk_of(job, image)?;
    let repository = job.tools.repository;
    let options = CreateOptions {
        size_bytes: disk.length_bytes,
        profile: profile(disk, &image.path),
        if_exists: IfExists::Refuse,
        ids: job.request.ids.clone(),
        unix_seconds: repository.environment().clock.unix_ms() / 1000,
    };
    let format = options.profile.format;
    let target: Arc<dyn WriteAt> = Arc::clone(&file) as Arc<dyn WriteAt>;
    let writer = image::create_on(target, &options)?;
    let written = fill(job, disk, writer.as_ref())?;
    writer.finish()?;
    file.flush()?;
    if job.request.proof == Proof::ReadBack {
        prove(job, disk, file, format, &image.new)?;
    }
    Ok(written)
}

/// Writes what a version holds into a new image.
fn fill(job: &Job<'_>, disk: &DiskVersion, writer: &dyn ImageWriter) -> Result<u64> {
    let reader = job.tools.repository.open_version(disk, job.session)?;
    let mut options = BulkRead::default();
    options.workers = match (writer.order(), job.request.workers) {
        (WriteOrder::Ascending, _) => 1,
        (WriteOrder::Any, Some(workers)) => workers.clamp(1, options.workers),
        (WriteOrder::Any, None) => options.workers,
    };
    let progress = job.context.progress;
    progress.begin("restoring", Some(disk.length_bytes));
    let written = AtomicU64::new(0);
    let failed = FirstFailure::default();
    let read = reader.read_leaves(&options, &|_, _| true, &|leaf| {
        failed.keep(job.context.cancel.check())?;
        for (offset, run) in leaf.runs() {
            failed.keep(writer.write_at(offset, run).map_err(Error::from))?;
            let bytes = u64::try_from(run.len()).unwrap_or(u64::MAX);
            written.fetch_add(bytes, Ordering::Relaxed);
            progress.advance(bytes);
        }
        Ok(())
    });
    progress.end();
    failed.take_or(read)?;
    Ok(written.into_inner())
}

fn prove(
    job: &Job<'_>,
    disk: &DiskVersion,
    file: Arc<dyn host::boundary::HostFileWriter>,
    format: Format,
    path: &HostPath,
) -> Result<()> {
    let source: Arc<dyn ReadAt> = file;
    let image = Image::from_file(source, FormatHint::Exactly(format))?;
    let progress = job.context.progress;
    progress.begin("reading back", Some(disk.length_bytes));
    let mut first = None;
    let compared = compare_with_tree(
        &image,
        disk.tree(),
        job.tools.repository,
        LeafWindow::ALL,
        job.context,
        |found| {
            first.get_or_insert(found.leaf.offset());
            Ok(())
        },
    );
    progress.end();
    compared?;
    if image.size_bytes() != disk.length_bytes || first.is_some() {
        let place = first.unwrap_or(disk.length_bytes);
        let what = format!("{path} does not read as it was written, first near byte {place}");
        return Err(Error::new(ErrorKind::Corrupt, what));
    }
    Ok(())
}

/// Gives the images their names. What had them goes on lying beside; its new names are given back.
pub(super) fn take_places<'a>(
    job: &Job<'a>,
    plan: &VmRestorePlan,
    steps: &mut Steps<'a>,
) -> Result<Vec<HostPath>> {
    let host = job.tools.host;
    let mut kept = Vec::new();
    for image in &plan.images {
        let shown = image.path.to_string();
        let is_there = host.size_bytes(&plan.node, &image.path)?.is_some();
        if is_there {
            rename(
                job,
                plan,
                steps,
                "set aside",
                (&image.path, &image.replaced),
            )?;
            kept.push(image.replaced.clone());
        }
        for extension in TRACKING_FILES {
            let tracking = HostPath::new(format!("{}.{extension}", image.path))?;
            steps.step("reset tracking", &shown, || {
                host.remove(&plan.node, &tracking)?;
                Ok(())
            })?;
        }
        rename(job, plan, steps, "take place", (&image.new, &image.path))?;
    }
    Ok(kept)
}

/// Gives a file another name, and the old one back on failure: also when the answer was lost, and it has the new name all
/// the same.
fn rename<'a>(
    job: &Job<'a>,
    plan: &VmRestorePlan,
    steps: &mut Steps<'a>,
    step: &str,
    (from, to): (&HostPath, &HostPath),
) -> Result<()> {
    let (host, clock) = (job.tools.host, job.tools.clock);
    let (node, old, new) = (plan.node.clone(), from.clone(), to.clone());
    let shown = from.to_string();
    steps.on_failure(step, &shown, move || {
        patiently(clock, || {
            let is_moved = host.size_bytes(&node, &old)?.is_none();
            if is_moved && host.size_bytes(&node, &new)?.is_some() {
                host.rename(&node, &new, &old)?;
            }
            Ok(())
        })
    });
    steps.step(step, &shown, || Ok(host.rename(&plan.node, from, to)?))
}

/// Writes the files of the configuration where a host imports from.
pub(super) fn put_configuration<'a>(
    job: &Job<'a>,
    plan: &VmRestorePlan,
    steps: &mut Steps<'a>,
) -> Result<Vec<HostPath>> {
    let host = job.tools.host;
    let folder = plan.folder.join("Virtual Machines")?;
    let mut paths = Vec::new();
    for file in &job.point.configuration {
        let path = folder.join(&file.path)?;
        let shown = path.to_string();
        let target = steps.step("configuration", &shown, || {
            host.create_folder(&plan.node, &folder)?;
            Ok(host.create_file(&plan.node, &path)?)
        })?;
        let (node, made) = (plan.node.clone(), path.clone());
        steps.on_failure("configuration", &shown, move || {
            host.remove(&node, &made)?;
            Ok(())
        });
        steps.step("configuration", &shown, || {
            copy_file(job, &file.content, target.as_ref())
        })?;
        paths.push(path);
    }
    let has_any = paths
        .iter()
        .any(|path| matches!(path.extension().as_deref(), Some("vmcx" | "xml")));
    if !has_any {
        let what = format!(
            "{} holds no configuration to make the machine from",
            plan.version
        );
        return Err(Error::new(ErrorKind::Unsupported, what)
            .advised("Bring its disks back: hikae vm restore NAME@VERSION --to folder"));
    }
    Ok(paths)
}

fn copy_file(
    job: &Job<'_>,
    content: &DiskVersion,
    target: &dyn host::boundary::HostFileWriter,
) -> Result<()> {
    const PIECE: u64 = 1 << 20;
    let reader = job.tools.repository.open_version(content, job.session)?;
    let mut buffer = Vec::new();
    let mut at = 0u64;
    target.set_size(content.length_bytes)?;
    while at < content.length_bytes {
        job.context.cancel.check()?;
        let length = PIECE.min(content.length_bytes.saturating_sub(at));
        buffer.resize(usize::try_from(length).unwrap_or(0), 0);
        reader.read_at(at, &mut buffer)?;
        target.write_at(at, &buffer)?;
        at = at.saturating_add(length);
    }
    target.flush()?;
    Ok(())
}

/// The host has its own files by now: what it imported from goes.
pub(super) fn remove_configuration(
    job: &Job<'_>,
    node: &NodeName,
    paths: &[HostPath],
    notes: &mut Vec<String>,
) {
    for path in paths {
        match job.tools.host.remove(node, path) {
            Ok(Presence::Removed | Presence::Absent) => {}
            Err(error) => notes.push(format!("{path} is left: {error}")),
        }
    }
}
