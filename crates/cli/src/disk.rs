//! `hikae disk …`: versions of disks.

mod backup;
mod cat;
mod check;
mod diff;
mod diff_files;
mod extract;
mod find;
mod forget;
mod history;
mod inspect;
mod list;
mod ls;
mod restore;
mod serve;

pub use find::scope_of;
pub use history::ScopeKind;

use crate::args::DiskVerb;
use crate::exit::Exit;
use crate::output::Output;

/// Runs one verb.
pub fn run(verb: &DiskVerb, output: &Output) -> anyhow::Result<Exit> {
    match verb {
        DiskVerb::Backup(arguments) => backup::run(arguments, output),
        DiskVerb::List { repo, name, all } => {
            list::run(repo, name.as_deref(), list::Scope::of(*all), output)
        }
        DiskVerb::Restore(arguments) => restore::run(arguments, output),
        DiskVerb::Check {
            repo,
            image,
            selector,
            disk,
            open,
        } => check::run(
            repo,
            image,
            (selector.as_str(), disk.as_deref()),
            open,
            output,
        ),
        DiskVerb::Diff {
            repo,
            older,
            newer,
            disk,
        } => diff::run(
            repo,
            (older.as_str(), newer.as_str()),
            disk.as_deref(),
            output,
        ),
        DiskVerb::Forget {
            repo,
            selector,
            undo,
        } => forget::run(repo, selector, forget::Wish::of(*undo), output),
        DiskVerb::Find(it) => find::run(it, output),
        DiskVerb::History(it) => history::run(it, output),
        DiskVerb::DiffFiles(it) => diff_files::run(it, output),
        DiskVerb::Inspect(it) => {
            inspect::run(&it.repo, &it.keys, it.others.with(&it.selector), output)
        }
        DiskVerb::Ls(it) => ls::run(
            &it.repo,
            &it.keys,
            it.others.with(&it.selector),
            &it.what,
            output,
        ),
        DiskVerb::Extract(it) => {
            let choice = extract::VersionChoice::of(it.last_present);
            extract::run(
                &it.repo,
                &it.keys,
                (it.others.with(&it.selector), choice),
                &it.what,
                output,
            )
        }
        DiskVerb::Serve(it) => serve::run(it, output),
        DiskVerb::Cat(it) => cat::run(
            &it.repo,
            &it.keys,
            it.others.with(&it.selector),
            &it.path,
            output,
        ),
    }
}
