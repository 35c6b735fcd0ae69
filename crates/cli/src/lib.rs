//! The operator's command line: `hikae NOUN VERB`.
//!
//! ```text
//!   arguments ─► args.rs (what was typed) ─► one file per verb ─► engine / repo / vdisk
//!                                                 │
//!                       stdout: a table or, with --json, one object     stderr: progress (terminal only), problems
//! ```
//!
//! Exit codes are part of the interface and stand in [`exit`]. Nothing here decides policy; a verb resolves what was
//! typed, calls one job, and prints its report.

mod args;
mod audit;
mod debug;
mod diagnosis;
mod disk;
pub mod exit;
mod host;
mod image;
mod inside;
mod keys;
mod lab;
mod output;
mod parse;
mod progress;
mod quickstart;
mod repo;
mod serving;
mod vm;
mod watched;

use clap::CommandFactory;
use std::ffi::OsString;
use std::process::ExitCode;

/// Parses the arguments of this process and runs the verb.
pub fn main() -> ExitCode {
    let words: Vec<OsString> = std::env::args_os().collect();
    let arguments = match parse::parse(&words) {
        Ok(arguments) => arguments,
        Err(error) => {
            if error.use_stderr() && parse::asks_for_json(&words) {
                output::Output::new(args::OutputMode::Json).misunderstood(&error.to_string());
            }
            error.exit()
        }
    };
    let output = output::Output::new(arguments.json_mode());
    match dispatch(&arguments, &output) {
        Ok(code) => code.into(),
        Err(error) => output.fail(&error).into(),
    }
}

fn dispatch(arguments: &args::Arguments, output: &output::Output) -> anyhow::Result<exit::Exit> {
    match &arguments.noun {
        args::Noun::Quickstart(verb) => quickstart::run(verb, output),
        args::Noun::Repo { verb } => repo::run(verb, output),
        args::Noun::Disk { verb } => disk::run(verb, output),
        args::Noun::Image { verb } => image::run(verb, output),
        args::Noun::Host { verb } => host::run(verb, output),
        args::Noun::Vm { verb } => vm::run(verb, output),
        args::Noun::Lab { verb } => lab::run(verb, output),
        args::Noun::Debug { verb } => debug::run(verb, output),
        args::Noun::Completions { shell } => {
            let mut command = args::Arguments::command();
            let mut script = Vec::new();
            clap_complete::generate(*shell, &mut command, "hikae", &mut script);
            output::print_all(&String::from_utf8(script)?)?;
            Ok(exit::Exit::Done)
        }
    }
}
