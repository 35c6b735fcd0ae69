//! `hikae disk ls`: files of a version.

use crate::args::{LsArgs, RepoArgs, VolumeKeysArgs};
use crate::exit::Exit;
use crate::inside;
use crate::output::Output;

/// Runs the verb.
pub fn run(
    repo: &RepoArgs,
    keys: &VolumeKeysArgs,
    selector: &str,
    what: &LsArgs,
    output: &Output,
) -> anyhow::Result<Exit> {
    inside::with_version(repo, keys, selector, output, |version, context| {
        inside::ls::run(version.inside(), what, context.cancel, output)
    })
}
