//! `hikae image ls`: files in an image.

use std::path::PathBuf;

use super::open_inside;
use crate::args::{ImageOpenArgs, LsArgs, VolumeKeysArgs};
use crate::exit::Exit;
use crate::inside;
use crate::output::Output;
use crate::progress::cancellation;

/// Runs the verb.
pub fn run(
    images: &[PathBuf],
    what: &LsArgs,
    keys: &VolumeKeysArgs,
    open: &ImageOpenArgs,
    output: &Output,
) -> anyhow::Result<Exit> {
    let inside = open_inside(images, keys, open)?;
    inside::ls::run(&inside, what, &cancellation(), output)
}
