//! `hikae image inspect`: what lies inside the disks of one machine.

use std::path::PathBuf;

use super::open_inside;
use crate::args::{ImageOpenArgs, VolumeKeysArgs};
use crate::exit::Exit;
use crate::inside;
use crate::output::Output;

/// Runs the verb.
pub fn run(
    images: &[PathBuf],
    keys: &VolumeKeysArgs,
    open: &ImageOpenArgs,
    output: &Output,
) -> anyhow::Result<Exit> {
    inside::inspect::run(&open_inside(images, keys, open)?, output)
}
