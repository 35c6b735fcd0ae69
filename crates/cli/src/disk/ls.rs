//! `hikae disk ls`: files of a version.

use crate::args::{LsArgs, RepoArgs, VolumeKeysArgs};
use crate::exit::Exit;
use crate::inside::lost::{Purpose, explain};
use crate::inside::{self, Versions};
use crate::output::Output;

/// Runs the verb.
pub fn run(
    repo: &RepoArgs,
    keys: &VolumeKeysArgs,
    versions: Versions<'_>,
    what: &LsArgs,
    output: &Output,
) -> anyhow::Result<Exit> {
    let outcome = inside::with_version(repo, keys, versions, output, |version, context| {
        inside::ls::run(version.inside(), what, context.cancel, output)
    });
    let paths = [what.path.clone()];
    let wanted = (Purpose::List, &paths[..]);
    outcome.map_err(|error| explain(error, repo, keys, versions.selector, wanted, output))
}
