//! `hikae image extract`: files and folders in an image into a folder or an archive.

use std::path::PathBuf;

use engine::job::{JobContext, NoJournal};

use super::open_inside;
use crate::args::{ExtractArgs, ImageOpenArgs, VolumeKeysArgs};
use crate::exit::Exit;
use crate::inside;
use crate::output::Output;
use crate::progress::{Bars, cancellation};

/// Runs the verb.
pub fn run(
    images: &[PathBuf],
    what: &ExtractArgs,
    keys: &VolumeKeysArgs,
    open: &ImageOpenArgs,
    output: &Output,
) -> anyhow::Result<Exit> {
    let inside = open_inside(images, keys, open)?;
    let bars = Bars::new(output);
    let cancel = cancellation();
    let context = JobContext {
        progress: &bars,
        cancel: &cancel,
        journal: &NoJournal,
    };
    // An image may have changed since an earlier run: then bytes are compared.
    inside::extract::run(&inside, None, what, context, output)
}
