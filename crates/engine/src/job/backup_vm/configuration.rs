//! Files of a machine's configuration on their way into a point: kept as trees, like disks, so that what did not change is
//! not stored again.

use block::ReadAt;
use block::sync::Unreadable;
use host::checkpoint::{Checkpoint, ConfigurationFile};
use repo::{DiskVersion, VersionSession};

use super::Job;
use crate::transfer::{Base, Belief, Transfer, TransferEnd};
use crate::{Error, ErrorKind, Result};

/// A file that arrived.
pub(super) struct MovedFile {
    pub file: repo::ConfigurationFile,
    pub stats: block::sync::SyncStats,
}

/// What of a file stays comparable from run to run: its kind, since names hold the id of the checkpoint.
fn label(file: &ConfigurationFile) -> String {
    let kind = serde_json::to_value(file.kind).ok();
    let kind = kind.as_ref().and_then(|kind| kind.as_str());
    format!("configuration-{}", kind.unwrap_or("file"))
}

/// Reads a file of the checkpoint's configuration into the session.
pub(super) fn move_file(
    job: &Job<'_>,
    session: &VersionSession,
    checkpoint: &Checkpoint,
    file: &ConfigurationFile,
) -> Result<MovedFile> {
    let tools = job.tools;
    let source = tools
        .host
        .open_configuration(&checkpoint.reference, file, tools.cancel)?;
    let label = label(file);
    let parent = session.base().parent.as_ref().and_then(|parent| {
        parent
            .configuration
            .iter()
            .find(|it| it.content.label == label)
    });
    let parent = parent.map(|it| &it.content);
    let transferred = match transfer(job, session, source.as_ref(), parent, Belief::Index)? {
        TransferEnd::Arrived(transferred) => transferred,
        TransferEnd::BaseDamaged(_) => {
            match transfer(job, session, source.as_ref(), None, Belief::Reading)? {
                TransferEnd::Arrived(transferred) => transferred,
                TransferEnd::BaseDamaged(reason) => {
                    return Err(Error::new(ErrorKind::Corrupt, reason));
                }
            }
        }
    };
    let mut content = DiskVersion::new(label, transferred.tree);
    content.image = repo::ImageProfile::default();
    Ok(MovedFile {
        file: repo::ConfigurationFile {
            path: file.path.file_name().to_owned(),
            content,
        },
        stats: transferred.stats,
    })
}

fn transfer(
    job: &Job<'_>,
    session: &VersionSession,
    source: &dyn ReadAt,
    parent: Option<&DiskVersion>,
    belief: Belief,
) -> Result<TransferEnd> {
    let repository = session.repository();
    let clock = repository.environment().clock.clone();
    let transfer = Transfer {
        source,
        base: parent.map(|parent| Base {
            tree: parent.tree(),
            nodes: repository,
            look_also: block::ChangedRanges::none(),
        }),
        tracking: None,
        // A hole in a configuration makes it worthless.
        unreadable: Unreadable::Fail,
        repository,
        belief,
        blobs: session.blobs(),
        context: job.context,
        checkpoint_every: job.request.checkpoint_every,
        clock: clock.as_ref(),
        workers: job.request.workers,
    };
    // Small beside the disks: an interrupted run reads it again.
    transfer.run(&mut |_| Ok(()))
}
