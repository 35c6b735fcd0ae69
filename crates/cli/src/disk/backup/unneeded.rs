//! `--skip-unneeded`: what is left out of an image, volume by volume.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use engine::ErrorKind;
use engine::job::backup_disk::{BackupRequest, CommitCheck};
use engine::job::{JobContext, NoJournal};
use engine::unneeded::{UnneededPlan, UnneededVolume, plan_unneeded};

use crate::output::{Output, bytes};
use crate::progress::{Bars, cancellation};

/// Most volumes that a version tells of.
const MAX_RECORDED_VOLUMES: usize = 256;

/// What a file of an image was like when it was looked at.
#[derive(PartialEq, Eq)]
struct Stamp {
    path: PathBuf,
    size_bytes: u64,
    modified: SystemTime,
}

impl Stamp {
    /// `None` for what has no such time of its own: a device.
    fn of(path: &Path) -> engine::Result<Option<Self>> {
        let failed = |error| {
            let what = format!("looking at {}", path.display());
            engine::Error::new(ErrorKind::Io, what).caused_by(error)
        };
        let metadata = std::fs::metadata(path).map_err(failed)?;
        if !metadata.is_file() {
            return Ok(None);
        }
        Ok(Some(Self {
            path: path.to_owned(),
            size_bytes: metadata.len(),
            modified: metadata.modified().map_err(failed)?,
        }))
    }

    /// What is free was told of the file as it was then: if it was written to since, that may hold files by now.
    fn check(&self) -> engine::Result<()> {
        if Self::of(&self.path)?.as_ref() == Some(self) {
            return Ok(());
        }
        let what = format!(
            "{} changed while it was backed up, so that what is left out may be in use by now",
            self.path.display()
        );
        Err(engine::Error::new(ErrorKind::Refused, what).advised(
            "Back up a snapshot, or the disk of a machine that is off; or leave --skip-unneeded away",
        ))
    }
}

/// Looks at an image and makes a request leave out what it may; whatever another image had left out is forgotten.
pub(super) fn leave_out(
    request: &mut BackupRequest,
    image: &Arc<vdisk::Image>,
    output: &Output,
) -> anyhow::Result<UnneededPlan> {
    let bars = Bars::new(output);
    let cancel = cancellation();
    let context = JobContext {
        progress: &bars,
        cancel: &cancel,
        journal: &NoJournal,
    };
    let mut stamps = Vec::new();
    for layer in image.chain() {
        match Stamp::of(layer.path())? {
            Some(stamp) => stamps.push(stamp),
            None => output.note(&format!(
                "{} is a device: nothing tells whether it changes meanwhile. It must not.",
                layer.path().display()
            )),
        }
    }
    let disk: Arc<dyn block::ReadAt> = Arc::<vdisk::Image>::clone(image);
    let planned = plan_unneeded(disk, context);
    engine::Progress::end(&bars);
    let planned = planned?;
    request.left_out.clone_from(&planned.omissions);
    request.commit_check = planned.omissions.is_some().then(|| {
        let check: CommitCheck = Arc::new(move || stamps.iter().try_for_each(Stamp::check));
        check
    });
    let told: Vec<&UnneededVolume> = planned.volumes.iter().take(MAX_RECORDED_VOLUMES).collect();
    let told = serde_json::to_value(told)?;
    request.source.insert("left_out".to_owned(), told);
    Ok(planned)
}

/// The lines of a report.
pub(super) fn text(plan: &UnneededPlan) -> String {
    let mut text = match (&plan.kept_because, plan.left_out_bytes) {
        (Some(why), _) => format!("  nothing is left out: {why}\n"),
        (None, 0) => "  nothing is left out\n".to_owned(),
        (None, count) => format!("  {} left out, zeros when restored\n", bytes(count)),
    };
    if plan.kept_because.is_some() {
        return text;
    }
    for volume in &plan.volumes {
        text.push_str(&format!(
            "    volume {} ({}, {}): {}\n",
            volume.number,
            volume.name,
            volume.content,
            what(volume)
        ));
    }
    if plan.kept_in_small_ranges_bytes > 0 {
        text.push_str(&format!(
            "    {} more are kept, since they lie in very many small ranges\n",
            bytes(plan.kept_in_small_ranges_bytes)
        ));
    }
    text
}

fn what(volume: &UnneededVolume) -> String {
    if let Some(why) = &volume.kept_because {
        return format!("kept whole: {why}");
    }
    let word = if volume.content == "swap" {
        "swap space"
    } else {
        "free space"
    };
    let mut parts = vec![format!("{} of {word}", bytes(volume.free_bytes))];
    for file in &volume.files {
        parts.push(match &file.kept_because {
            Some(why) => format!("{} is kept: {why}", file.path),
            None => format!("{} of {}", bytes(file.left_out_bytes), file.path),
        });
    }
    parts.join(", ")
}
