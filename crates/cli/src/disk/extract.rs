//! `hikae disk extract`: files and folders of a version into a folder or an archive.

use engine::job::extract_files::SourceId;

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
        // Its roots say which bytes they are, wherever the repository lies.
        let source = Some(SourceId(version.identity()));
        inside::extract::run(version.inside(), source, what, context, output)
    })
}
