//! `hikae disk ls`: files of a version.

use crate::args::{LsArgs, RepoArgs, VolumeKeysArgs};
use crate::exit::Exit;
use crate::inside;
use crate::inside::lost::{Purpose, explain};
use crate::output::Output;

/// Runs the verb.
pub fn run(
    repo: &RepoArgs,
    keys: &VolumeKeysArgs,
    selector: &str,
    what: &LsArgs,
    output: &Output,
) -> anyhow::Result<Exit> {
    let outcome = inside::with_version(repo, keys, selector, output, |version, context| {
        inside::ls::run(version.inside(), what, context.cancel, output)
    });
    let paths = [what.path.clone()];
    let wanted = (Purpose::List, &paths[..]);
    outcome.map_err(|error| explain(error, repo, keys, selector, wanted, output))
}
