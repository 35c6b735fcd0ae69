//! `hikae repo …`: the repository itself.

mod check_store;
mod init;
mod key;

use crate::args::RepoVerb;
use crate::exit::Exit;
use crate::output::Output;

/// Runs one verb.
pub fn run(verb: &RepoVerb, output: &Output) -> anyhow::Result<Exit> {
    match verb {
        RepoVerb::Init(arguments) => init::run(arguments, output),
        RepoVerb::CheckStore { store } => check_store::run(store, output),
        RepoVerb::Verify(_)
        | RepoVerb::Gc(_)
        | RepoVerb::Retain(_)
        | RepoVerb::Copy(_)
        | RepoVerb::Repair(_)
        | RepoVerb::Hold(_)
        | RepoVerb::Stats { .. }
        | RepoVerb::Lease { .. } => anyhow::bail!("this verb is not in this build yet"),
        RepoVerb::Key { verb } => key::run(verb, output),
    }
}
