//! A path that is not in the version that was named: which version has it, and the command that brings it back.

use engine::inside::{is_absence, newest_with};
use engine::job::{JobContext, NoJournal};
use repo::ProtectedName;

use super::words::{command, extract_command};
use crate::args::{RepoArgs, VolumeKeysArgs};
use crate::disk::{ScopeKind, scope_of};
use crate::keys;
use crate::output::Output;
use crate::progress::{Bars, cancellation};

/// What somebody wanted to do with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// Look at a folder.
    List,
    /// Print a file.
    Print,
    /// Bring it back.
    Extract,
}

/// Says in which version paths are, when they are not in the one that was named.
pub fn explain(
    error: anyhow::Error,
    repo: &RepoArgs,
    volume_keys: &VolumeKeysArgs,
    selector: &str,
    (purpose, paths): (Purpose, &[String]),
    output: &Output,
) -> anyhow::Error {
    let is_lost = error
        .downcast_ref::<engine::Error>()
        .is_some_and(is_absence);
    if !is_lost {
        return error;
    }
    // Whatever stands in the way of more help must not hide what went wrong first.
    let name = selector.split('@').next().unwrap_or(selector);
    match search(repo, volume_keys, name, paths, output) {
        Ok(Some((name, sequence))) => {
            let version = format!("{name}@{sequence}");
            let next = match purpose {
                Purpose::Extract => extract_command(repo, &version, paths),
                Purpose::List => command("ls", repo, &version, paths),
                Purpose::Print => command("cat", repo, &version, paths),
            };
            let what = format!("not in {selector}: the newest version that has it is {version}");
            let lost = engine::Error::new(engine::ErrorKind::NotFound, what);
            anyhow::Error::new(lost.caused_by(Told(format!("{error:#}"))).advised(next))
        }
        Ok(None) | Err(_) => error,
    }
}

/// What was said first.
#[derive(Debug)]
struct Told(String);

impl std::fmt::Display for Told {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Told {}

/// The newest version that has all of these paths, among those up to the one that the selector names, as NAME@VERSION.
pub fn newest(
    repo: &RepoArgs,
    volume_keys: &VolumeKeysArgs,
    selector: &str,
    paths: &[String],
    output: &Output,
) -> anyhow::Result<String> {
    if let Some((name, sequence)) = search(repo, volume_keys, selector, paths, output)? {
        let version = format!("{name}@{sequence}");
        output.note(&format!("{version} is the newest version that has it"));
        return Ok(version);
    }
    let all = paths.join(", ");
    let what = if paths.len() == 1 {
        format!("no version of {selector} has {all}")
    } else {
        format!("no version of {selector} has all of {all} at once: name them one by one")
    };
    let word = paths
        .first()
        .and_then(|path| path.rsplit(['/', '\\']).next());
    let name = selector.split('@').next().unwrap_or(selector);
    let word = word.unwrap_or("PATTERN").to_owned();
    let next = command("find", repo, name, &[word]);
    let error = engine::Error::new(engine::ErrorKind::NotFound, what);
    Err(anyhow::Error::new(error.advised(next)))
}

fn search(
    repo: &RepoArgs,
    volume_keys: &VolumeKeysArgs,
    selector: &str,
    paths: &[String],
    output: &Output,
) -> anyhow::Result<Option<(ProtectedName, u64)>> {
    let volume_keys = keys::volume_keys(volume_keys)?;
    let repository = keys::open(repo)?;
    let bars = Bars::new(output);
    let cancel = cancellation();
    let context = JobContext {
        progress: &bars,
        cancel: &cancel,
        journal: &NoJournal,
    };
    let (name, scope) = scope_of(&repository, selector, ScopeKind::UpTo)?;
    let found = newest_with(&repository, (&name, scope), paths, &volume_keys, context)?;
    Ok(found.map(|version| (name, version.sequence)))
}
