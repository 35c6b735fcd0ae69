//! What the verbs that look inside disks have in common, whether the disk is an image or a version: how it is shown.

pub mod cat;
pub mod extract;
pub mod inspect;
pub mod lost;
pub mod ls;
pub mod when;
pub mod words;

use engine::inside::VersionInside;
use engine::job::{JobContext, NoJournal};
use repo::PointSelector;

use crate::args::{RepoArgs, VolumeKeysArgs};
use crate::exit::Exit;
use crate::keys;
use crate::output::Output;
use crate::progress::{Bars, cancellation};

/// The version of a disk, and those of the machine's other disks.
#[derive(Clone, Copy)]
pub struct Versions<'a> {
    /// NAME, NAME@VERSION.
    pub selector: &'a str,
    /// The others, the same way.
    pub others: &'a [String],
}

/// Opens a version, does something with it, and gives its lease back.
pub fn with_version(
    repo: &RepoArgs,
    keys: &VolumeKeysArgs,
    versions: Versions<'_>,
    output: &Output,
    act: impl FnOnce(&VersionInside, JobContext<'_>) -> anyhow::Result<Exit>,
) -> anyhow::Result<Exit> {
    let volume_keys = keys::volume_keys(keys)?;
    let repository = keys::open(repo)?;
    let bars = Bars::new(output);
    let cancel = cancellation();
    let context = JobContext {
        progress: &bars,
        cancel: &cancel,
        journal: &NoJournal,
    };
    let others: Result<Vec<PointSelector>, _> =
        versions.others.iter().map(|other| other.parse()).collect();
    let selector = versions.selector.parse()?;
    let version =
        VersionInside::open_together(&repository, &selector, &others?, &volume_keys, context)?;
    let outcome = act(&version, context);
    engine::Progress::end(&bars);
    version.finish(context);
    outcome
}
