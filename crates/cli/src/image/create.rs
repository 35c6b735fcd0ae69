//! `hikae image create`: an empty image, or a child that holds nothing yet.

use anyhow::Context;
use serde::Serialize;
use vdisk::Format;
use vdisk::image::{self, ChildOptions, CreateOptions, IfExists, OpenOptions};

use super::convert::{now_seconds, profile, system_ids};
use super::{format_by_extension, format_name, format_of, subformat_name, subformat_of};
use crate::args::CreateArgs;
use crate::exit::Exit;
use crate::output::{Output, bytes};

#[derive(Serialize)]
struct Report {
    image: String,
    format: &'static str,
    subformat: &'static str,
    size_bytes: u64,
}

/// Runs the verb.
pub fn run(arguments: &CreateArgs, output: &Output) -> anyhow::Result<Exit> {
    let info = match &arguments.parent {
        Some(parent) => create_child(arguments, parent)?,
        None => create_root(arguments)?,
    };
    let report = Report {
        image: arguments.image.display().to_string(),
        format: format_name(info.format),
        subformat: subformat_name(info.subformat),
        size_bytes: info.size_bytes,
    };
    output.report(&report, |report| {
        format!(
            "{}: {} ({}), {}\n",
            report.image,
            report.format,
            report.subformat,
            bytes(report.size_bytes)
        )
    })?;
    Ok(Exit::Done)
}

fn create_root(arguments: &CreateArgs) -> anyhow::Result<vdisk::ImageInfo> {
    let format = arguments
        .format
        .map_or_else(|| format_by_extension(&arguments.image), format_of);
    let size_bytes = arguments
        .size
        .context("an image without a parent needs --size")?;
    let mut profile = profile(
        None,
        format,
        arguments.subformat.map(subformat_of),
        arguments.block_size,
    );
    if format == Format::Vhdx {
        profile.logical_sector_bytes = arguments.logical_sector;
        profile.physical_sector_bytes = arguments.physical_sector;
    } else if arguments.logical_sector != 512 {
        return Err(crate::exit::not_possible(format!(
            "only VHDX images have logical sectors of {} bytes",
            arguments.logical_sector
        )));
    }
    let writer = image::create(
        &arguments.image,
        &CreateOptions {
            size_bytes,
            profile,
            if_exists: IfExists::Refuse,
            ids: system_ids()?,
            unix_seconds: now_seconds(),
        },
    )?;
    let info = writer.info();
    writer.finish()?;
    Ok(info)
}

fn create_child(
    arguments: &CreateArgs,
    parent: &std::path::Path,
) -> anyhow::Result<vdisk::ImageInfo> {
    if arguments.size.is_some() || arguments.subformat.is_some() || arguments.format.is_some() {
        return Err(crate::exit::not_possible(
            "a child takes its size and format from its parent",
        ));
    }
    let options = ChildOptions {
        allocation_unit_bytes: arguments.block_size,
        ids: system_ids()?,
        unix_seconds: now_seconds(),
    };
    Ok(image::create_child(
        &arguments.image,
        parent,
        &OpenOptions::default(),
        &options,
    )?)
}
