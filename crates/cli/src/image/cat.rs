//! `hikae image cat`: one file in an image.

use std::path::PathBuf;

use super::open_inside;
use crate::args::{ImageOpenArgs, VolumeKeysArgs};
use crate::exit::Exit;
use crate::inside;
use crate::progress::cancellation;

/// Runs the verb.
pub fn run(
    images: &[PathBuf],
    path: &str,
    keys: &VolumeKeysArgs,
    open: &ImageOpenArgs,
) -> anyhow::Result<Exit> {
    let inside = open_inside(images, keys, open)?;
    inside::cat::run(&inside, path, &cancellation())
}
