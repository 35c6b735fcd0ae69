//! `hikae repo …`: the repository itself.

mod check_store;
mod copy;
mod gc;
mod hold;
mod init;
mod key;
mod lease;
mod repair;
mod retain;
mod stats;
mod verify;

use crate::args::RepoVerb;
use crate::exit::Exit;
use crate::output::Output;

/// Runs one verb.
pub fn run(verb: &RepoVerb, output: &Output) -> anyhow::Result<Exit> {
    match verb {
        RepoVerb::Init(arguments) => init::run(arguments, output),
        RepoVerb::CheckStore { store } => check_store::run(store, output),
        RepoVerb::Gc(arguments) => gc::run(arguments, output),
        RepoVerb::Retain(arguments) => retain::run(arguments, output),
        RepoVerb::Lease { verb } => lease::run(verb, output),
        RepoVerb::Hold(arguments) => hold::run(arguments, output),
        RepoVerb::Verify(arguments) => verify::run(arguments, output),
        RepoVerb::Stats { target } => stats::run(target, output),
        RepoVerb::Copy(arguments) => copy::run(arguments, output),
        RepoVerb::Repair(arguments) => repair::run(arguments, output),
        RepoVerb::Key { verb } => key::run(verb, output),
    }
}
