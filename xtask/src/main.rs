//! Automation: `cargo xtask test|tidy|bench|crash|fuzz|gen`.
//!
//! - `test`: everything that decides whether a change may land ([`test`]).
//! - `tidy`: the rules of the source text alone ([`tidy`]); also a test, so that `cargo test` holds them, too.
//! - `bench`: measures, and writes `docs/BENCHMARKS.md` ([`bench`]).
//! - `crash`: kills real processes hundreds of times and looks what is left ([`xtask::crash`]).
//! - `fuzz`: coverage-guided lies for every parser ([`fuzz`]).
//! - `gen`: makes files from published sources ([`generate`]).

mod bench;
mod fuzz;
mod generate;
mod test;
mod tidy;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, bail, ensure};

const USAGE: &str = "usage: cargo xtask test|tidy|bench|crash|fuzz|gen";

fn main() -> anyhow::Result<ExitCode> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let Some((verb, rest)) = arguments.split_first() else {
        bail!(USAGE)
    };
    match verb.as_str() {
        "test" => {
            ensure!(rest.is_empty(), "cargo xtask test takes no arguments");
            test::run(&workspace()?)
        }
        "tidy" => {
            ensure!(rest.is_empty(), "cargo xtask tidy takes no arguments");
            tidy::run(&workspace()?)
        }
        "crash" => xtask::crash::run(rest, &workspace()?),
        "fuzz" => fuzz::run(rest, &workspace()?),
        "gen" => generate::run(rest, &workspace()?),
        "bench" => bench::run(rest).map(|()| ExitCode::SUCCESS),
        _ => bail!(USAGE),
    }
}

/// The workspace's folder.
fn workspace() -> anyhow::Result<PathBuf> {
    let parent = Path::new(env!("CARGO_MANIFEST_DIR")).parent();
    parent
        .map(Path::to_owned)
        .context("xtask lies in the workspace")
}
