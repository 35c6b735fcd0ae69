//! `hikae disk cat`: one file of a version.

use crate::args::{RepoArgs, VolumeKeysArgs};
use crate::exit::Exit;
use crate::inside::lost::{Purpose, explain};
use crate::inside::{self, Versions};
use crate::output::Output;

/// Runs the verb.
pub fn run(
    repo: &RepoArgs,
    keys: &VolumeKeysArgs,
    versions: Versions<'_>,
    path: &str,
    output: &Output,
) -> anyhow::Result<Exit> {
    let outcome = inside::with_version(repo, keys, versions, output, |version, context| {
        inside::cat::run(version.inside(), path, context.cancel)
    });
    let paths = [path.to_owned()];
    let wanted = (Purpose::Print, &paths[..]);
    outcome.map_err(|error| explain(error, repo, keys, versions.selector, wanted, output))
}
