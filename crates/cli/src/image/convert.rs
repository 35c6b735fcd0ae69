//! `hikae image convert`: an image's contents in another format; a chain comes out as one disk.

use std::sync::Arc;
use std::time::Instant;

use serde::Serialize;
use vdisk::chain::HostFiles;
use vdisk::file::AccessPattern;
use vdisk::image::{ChainMode, IfExists, ImageProfile};
use vdisk::vhdx::IdSource;
use vdisk::{Format, Image, Subformat};

use super::{
    format_by_extension, format_name, format_of, open_options, subformat_name, subformat_of,
};
use crate::args::ConvertArgs;
use crate::exit::Exit;
use crate::output::{Output, bytes, seconds};
use crate::progress::DiskBar;

#[derive(Serialize)]
struct Report {
    target: String,
    format: &'static str,
    subformat: &'static str,
    bytes_logical: u64,
    bytes_read: u64,
    bytes_written: u64,
    seconds: f64,
}

/// Where new identities come from: a seed of the operating system's, drawn once.
pub fn system_ids() -> anyhow::Result<IdSource> {
    let mut seed = [0; 32];
    repo::Random::fill(&repo::SystemRandom::new(), &mut seed)?;
    let counter = std::sync::atomic::AtomicU64::new(0);
    Ok(IdSource::new(move || {
        let number = counter.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let digest = blake3::keyed_hash(&seed, &number.to_le_bytes());
        let mut id = [0; 16];
        id.copy_from_slice(&digest.as_bytes()[..16]);
        id
    }))
}

/// Seconds since 1970, for images that record when they were made.
pub fn now_seconds() -> u64 {
    repo::Clock::unix_ms(&repo::SystemClock::new()) / 1000
}

/// The shape that was asked for, over what the source has in common with it.
pub fn profile(
    source: Option<&vdisk::ImageInfo>,
    format: Format,
    subformat: Option<Subformat>,
    block_size_bytes: Option<u64>,
) -> ImageProfile {
    let mut profile = ImageProfile::of(format);
    if let Some(source) = source {
        if source.format == format {
            profile = ImageProfile::from(source);
        } else if format == Format::Vhdx {
            // Sector sizes belong to the disk, not to the file.
            profile.logical_sector_bytes = source.logical_sector_bytes;
            if source.format != Format::Raw {
                profile.physical_sector_bytes = source.physical_sector_bytes;
            }
        }
    }
    if let Some(subformat) = subformat {
        if subformat != profile.subformat {
            profile.allocation_unit_bytes = None;
        }
        profile.subformat = subformat;
    }
    profile.allocation_unit_bytes = block_size_bytes.or(profile.allocation_unit_bytes);
    profile
}

/// Runs the verb.
pub fn run(arguments: &ConvertArgs, output: &Output) -> anyhow::Result<Exit> {
    let started = Instant::now();
    let mut options = open_options(&arguments.open, ChainMode::Whole)?;
    // A source larger than the memory would otherwise push everything else out of it.
    options.opener = Arc::new(HostFiles {
        pattern: AccessPattern::Once,
    });
    let source = Image::open(&arguments.source, &options)?;
    let format = arguments
        .format
        .map_or_else(|| format_by_extension(&arguments.target), format_of);
    let profile = profile(
        Some(&source.info()),
        format,
        arguments.subformat.map(subformat_of),
        arguments.block_size,
    );
    let create = vdisk::image::CreateOptions {
        size_bytes: block::ReadAt::size_bytes(&source),
        profile,
        if_exists: if arguments.overwrite {
            IfExists::Replace
        } else {
            IfExists::Refuse
        },
        ids: system_ids()?,
        unix_seconds: now_seconds(),
    };
    let bar = DiskBar::new(output, "converting");
    let stats = vdisk::convert::convert(&source, &arguments.target, &create, &bar)?;
    bar.finish();
    let report = Report {
        target: arguments.target.display().to_string(),
        format: format_name(format),
        subformat: subformat_name(create.profile.subformat),
        bytes_logical: stats.disk_bytes,
        bytes_read: stats.read_bytes,
        bytes_written: stats.written_bytes,
        seconds: started.elapsed().as_secs_f64(),
    };
    output.report(&report, |report| {
        format!(
            "{}: {} ({}), {} of disk, {} read, {} written, {}\n",
            report.target,
            report.format,
            report.subformat,
            bytes(report.bytes_logical),
            bytes(report.bytes_read),
            bytes(report.bytes_written),
            seconds(report.seconds)
        )
    })?;
    Ok(Exit::Done)
}
