//! `hikae disk forget`: a version is no longer wanted; `gc` frees it. Until then it can be taken back.

use serde::Serialize;

use crate::args::RepoArgs;
use crate::exit::Exit;
use crate::keys;
use crate::output::Output;

/// Which way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wish {
    /// It goes.
    Forget,
    /// It comes back.
    TakeBack,
}

impl Wish {
    /// From the flag.
    pub fn of(undo: bool) -> Self {
        if undo { Self::TakeBack } else { Self::Forget }
    }
}

#[derive(Serialize)]
struct Report {
    name: String,
    version: u64,
    forgotten: bool,
}

/// Runs the verb.
pub fn run(repo: &RepoArgs, selector: &str, wish: Wish, output: &Output) -> anyhow::Result<Exit> {
    let repository = keys::open(repo)?;
    let point = repository.find_point(&selector.parse()?)?.point;
    match wish {
        Wish::Forget => repository.forget(&point, "by an operator")?,
        Wish::TakeBack => repository.undelete(&point, "by an operator")?,
    };
    let report = Report {
        name: point.name.to_string(),
        version: point.sequence,
        forgotten: wish == Wish::Forget,
    };
    output.report(&report, |report| {
        if report.forgotten {
            format!(
                "{0}@{1} is forgotten. Its space comes free with: hikae repo gc\n\
                 Until then it can be taken back: hikae disk forget --undo {0}@{1}\n",
                report.name, report.version
            )
        } else {
            format!("{}@{} is back.\n", report.name, report.version)
        }
    })?;
    Ok(Exit::Done)
}
