//! `hikae disk extract`: files and folders of a version into a folder.

use crate::args::{ExtractArgs, RepoArgs, VolumeKeysArgs};
use crate::exit::Exit;
use crate::inside;
use crate::output::Output;

/// Runs the verb.
pub fn run(
    repo: &RepoArgs,
    keys: &VolumeKeysArgs,
    selector: &str,
    what: &ExtractArgs,
    output: &Output,
) -> anyhow::Result<Exit> {
    inside::with_version(repo, keys, selector, output, |version, context| {
        inside::extract::run(version.inside(), what, context, output)
    })
}
