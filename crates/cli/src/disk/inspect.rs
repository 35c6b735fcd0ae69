//! `hikae disk inspect`: what lies inside a version.

use crate::args::{RepoArgs, VolumeKeysArgs};
use crate::exit::Exit;
use crate::inside::{self, Versions};
use crate::output::Output;

/// Runs the verb.
pub fn run(
    repo: &RepoArgs,
    keys: &VolumeKeysArgs,
    versions: Versions<'_>,
    output: &Output,
) -> anyhow::Result<Exit> {
    inside::with_version(repo, keys, versions, output, |version, _| {
        inside::inspect::run(version.inside(), output)
    })
}
