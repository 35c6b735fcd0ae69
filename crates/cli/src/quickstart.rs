//! `hikae quickstart`: the main job from end to end, on something that is made for it and goes afterwards.

mod disk;
mod estate;

use std::path::PathBuf;

use crate::args::QuickstartArgs;
use crate::exit::Exit;
use crate::output::Output;

/// Runs the verb.
pub fn run(arguments: &QuickstartArgs, output: &Output) -> anyhow::Result<Exit> {
    if arguments.disk {
        disk::run(arguments, output)
    } else {
        estate::run(arguments, output)
    }
}

fn folder(arguments: &QuickstartArgs) -> PathBuf {
    arguments.dir.clone().unwrap_or_else(|| {
        std::env::temp_dir().join(format!("hikae-quickstart-{}", std::process::id()))
    })
}
