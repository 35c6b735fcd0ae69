//! `hikae image …`: virtual disk images as a tool of their own.

mod cat;
mod check;
mod compare;
pub mod convert;
mod create;
mod extract;
mod info;
mod inspect;
mod ls;
mod map;
mod merge;
mod resize;
mod serve;

use std::path::Path;

use vdisk::chain::{ParentMap, ParentPolicy};
use vdisk::image::{ChainMode, FormatHint, Image, OpenOptions};
use vdisk::{Format, Subformat};

use crate::args::{FormatArg, ImageOpenArgs, ImageVerb, SubformatArg};
use crate::exit::Exit;
use crate::output::Output;

/// Runs one verb.
pub fn run(verb: &ImageVerb, output: &Output) -> anyhow::Result<Exit> {
    match verb {
        ImageVerb::Info { image, chain, open } => info::run(image, *chain, open, output),
        ImageVerb::Check {
            image,
            repair,
            accept_data_loss,
            source_format,
        } => check::run(
            image,
            check::Wish::of(*repair, *accept_data_loss),
            *source_format,
            output,
        ),
        ImageVerb::Map { image, leaf, open } => {
            map::run(image, map::Depth::of(*leaf), open, output)
        }
        ImageVerb::Convert(arguments) => convert::run(arguments, output),
        ImageVerb::Compare {
            first,
            second,
            open,
            second_format,
        } => compare::run(first, second, open, *second_format, output),
        ImageVerb::Create(arguments) => create::run(arguments, output),
        ImageVerb::Merge {
            child,
            open,
            delete_child,
            dry_run,
        } => merge::run(
            child,
            open,
            merge::Wish::of(*delete_child, *dry_run),
            output,
        ),
        ImageVerb::Resize {
            image,
            size,
            open,
            dry_run,
        } => resize::run(image, *size, open, resize::Wish::of(*dry_run), output),
        ImageVerb::Inspect(it) => inspect::run(&it.images, &it.keys, &it.open, output),
        ImageVerb::Ls(it) => ls::run(
            &it.others.with(&it.image),
            &it.what,
            &it.keys,
            &it.open,
            output,
        ),
        ImageVerb::Extract(it) => extract::run(
            &it.others.with(&it.image),
            &it.what,
            &it.keys,
            &it.open,
            output,
        ),
        ImageVerb::Serve(it) => serve::run(it, output),
        ImageVerb::Cat(it) => cat::run(&it.others.with(&it.image), &it.path, &it.keys, &it.open),
    }
}

/// The format that was typed.
pub fn format_of(argument: FormatArg) -> Format {
    match argument {
        FormatArg::Vhdx => Format::Vhdx,
        FormatArg::Vhd => Format::Vhd,
        FormatArg::Qcow2 => Format::Qcow2,
        FormatArg::Vmdk => Format::Vmdk,
        FormatArg::Raw => Format::Raw,
    }
}

/// The subformat that was typed.
pub fn subformat_of(argument: SubformatArg) -> Subformat {
    match argument {
        SubformatArg::Fixed => Subformat::Fixed,
        SubformatArg::Dynamic => Subformat::Dynamic,
        SubformatArg::StreamOptimized => Subformat::StreamOptimized,
    }
}

/// The format that a file's extension promises; raw when it promises nothing.
pub fn format_by_extension(path: &Path) -> Format {
    let extension = path
        .extension()
        .and_then(|it| it.to_str())
        .unwrap_or("")
        .to_ascii_lowercase();
    match extension.as_str() {
        "vhdx" | "avhdx" => Format::Vhdx,
        "vhd" | "avhd" | "vpc" => Format::Vhd,
        "qcow2" | "qcow" => Format::Qcow2,
        "vmdk" => Format::Vmdk,
        _ => Format::Raw,
    }
}

/// How the image is to be opened.
pub fn open_options(arguments: &ImageOpenArgs, chain: ChainMode) -> anyhow::Result<OpenOptions> {
    let mut map = ParentMap::default();
    for entry in &arguments.parent_map {
        let (name, file) = entry.split_once('=').ok_or_else(|| {
            let what = format!("--parent-map takes NAME=FILE, not `{entry}`");
            crate::exit::not_possible(what)
        })?;
        map = map.with_child(name, file).with_locator(name, file);
    }
    Ok(OpenOptions {
        format: arguments.source_format.map_or(FormatHint::Probe, |format| {
            FormatHint::Exactly(format_of(format))
        }),
        chain,
        parent_policy: if arguments.follow_absolute_parents {
            ParentPolicy::Anywhere
        } else {
            ParentPolicy::default()
        },
        parent_map: map,
        ..OpenOptions::default()
    })
}

/// Opens an image with its whole chain.
pub fn open_image(path: &Path, arguments: &ImageOpenArgs) -> anyhow::Result<Image> {
    Ok(Image::open(
        path,
        &open_options(arguments, ChainMode::Whole)?,
    )?)
}

/// The word for a format.
pub fn format_name(format: Format) -> &'static str {
    match format {
        Format::Vhdx => "vhdx",
        Format::Vhd => "vhd",
        Format::Qcow2 => "qcow2",
        Format::Vmdk => "vmdk",
        Format::Raw => "raw",
    }
}

/// The word for a subformat.
pub fn subformat_name(subformat: Subformat) -> &'static str {
    match subformat {
        Subformat::Fixed => "fixed",
        Subformat::Dynamic => "dynamic",
        Subformat::Differencing => "differencing",
        Subformat::StreamOptimized => "stream-optimized",
    }
}

/// Opens images, the disks of one machine, and looks what lies inside.
pub fn open_inside(
    paths: &[std::path::PathBuf],
    keys: &crate::args::VolumeKeysArgs,
    arguments: &ImageOpenArgs,
) -> anyhow::Result<engine::inside::InsideDisks> {
    let mut disks: Vec<std::sync::Arc<dyn block::ReadAt>> = Vec::new();
    for path in paths {
        let image = open_image(path, arguments)?;
        disks.push(std::sync::Arc::new(image));
    }
    let keys = crate::keys::volume_keys(keys)?;
    Ok(engine::inside::InsideDisks::open_with_keys(&disks, &keys)?)
}
