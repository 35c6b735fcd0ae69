//! `hikae disk inspect`: what lies inside a version.

use crate::args::RepoArgs;
use crate::exit::Exit;
use crate::inside;
use crate::output::Output;

/// Runs the verb.
pub fn run(repo: &RepoArgs, selector: &str, output: &Output) -> anyhow::Result<Exit> {
    inside::with_version(repo, selector, output, |version, _| {
        inside::inspect::run(version.inside(), output)
    })
}
