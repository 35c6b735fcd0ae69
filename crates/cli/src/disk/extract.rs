//! `hikae disk extract`: files and folders of a version into a folder or an archive.

use engine::job::extract_files::SourceId;

use crate::args::{ExtractArgs, RepoArgs, VolumeKeysArgs};
use crate::exit::Exit;
use crate::inside::lost::{Purpose, explain, newest};
use crate::inside::{self, Versions};
use crate::output::Output;

/// Which version the files are taken from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VersionChoice {
    /// The one that was named.
    AsNamed,
    /// The newest one, up to that, which has all of the paths.
    NewestWithThem,
}

impl VersionChoice {
    /// From the flag.
    pub fn of(last_present: bool) -> Self {
        if last_present {
            Self::NewestWithThem
        } else {
            Self::AsNamed
        }
    }
}

/// Runs the verb.
pub fn run(
    repo: &RepoArgs,
    keys: &VolumeKeysArgs,
    (versions, choice): (Versions<'_>, VersionChoice),
    what: &ExtractArgs,
    output: &Output,
) -> anyhow::Result<Exit> {
    let chosen;
    let selector = match choice {
        VersionChoice::AsNamed => versions.selector,
        VersionChoice::NewestWithThem => {
            chosen = newest(repo, keys, versions.selector, &what.paths, output)?;
            &chosen
        }
    };
    let outcome = inside::with_version(
        repo,
        keys,
        Versions {
            selector,
            ..versions
        },
        output,
        |version, context| {
            // Its roots say which bytes they are, wherever the repository lies.
            let source = Some(SourceId(version.identity()));
            inside::extract::run(version.inside(), source, what, context, output)
        },
    );
    let wanted = (Purpose::Extract, what.paths.as_slice());
    outcome.map_err(|error| explain(error, repo, keys, selector, wanted, output))
}
