//! Section `scaling`: the same 1 GiB of data in virtual disks of 2 GiB, 1 TiB and 16 TiB. Cost should follow the data.
//!
//! The disks are dynamic VHDX files with blocks of 32 MiB, made and written by qemu: 16 MiB at the start of each of
//! 64 virtual blocks, spread evenly over the disk, so that all three have the same data in the same number of blocks.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use super::disk::{self, Fill};
use super::measure::{self, Metric, Samples};
use super::report::{Bar, Report, Table, mib, words};
use super::tool::{Tool, ToolKind};
use super::{Effort, Options, Programs};

const RUNS: u64 = 64;

/// One size of virtual disk and what it cost.
struct Scale {
    name: &'static str,
    image: PathBuf,
    initial: Samples,
    unchanged: Samples,
    restore: Samples,
}

/// Measures initial copy, unchanged run and restore to VHDX at each size.
pub(crate) fn run(
    options: &Options,
    programs: &Programs,
    work: &Path,
    report: &mut Report,
) -> Result<()> {
    let (Some(qemu_img), Some(qemu_io)) = (&programs.qemu_img, &programs.qemu_io) else {
        println!("scaling is not measured: qemu-img or qemu-io is not installed");
        return Ok(());
    };
    let run_bytes = match options.effort {
        Effort::Full => 16 << 20,
        Effort::Quick => 2 << 20,
    };
    let mut scales = Vec::new();
    for (name, size_bytes) in [
        ("2 GiB", 2u64 << 30),
        ("1 TiB", 1 << 40),
        ("16 TiB", 16 << 40),
    ] {
        let image = work.join(format!("scale-{}.vhdx", size_bytes >> 30));
        create(qemu_img, qemu_io, &image, size_bytes, run_bytes, work)?;
        scales.push(Scale {
            name,
            image,
            initial: Samples::default(),
            unchanged: Samples::default(),
            restore: Samples::default(),
        });
    }
    for round in 0..options.rounds {
        let count = scales.len();
        for turn in 0..count {
            let scale = scales.get_mut((round + turn) % count).context("a scale")?;
            println!("scaling, round {}: {}", round + 1, scale.name);
            measure_round(programs, work, scale)?;
        }
    }
    let data = format!("{:.0} MiB", mib(RUNS * run_bytes));
    judge(&scales, &data, report);
    for scale in &scales {
        std::fs::remove_file(&scale.image)?;
    }
    Ok(())
}

fn create(
    qemu_img: &Path,
    qemu_io: &Path,
    image: &Path,
    size_bytes: u64,
    run_bytes: u64,
    work: &Path,
) -> Result<()> {
    println!("making a VHDX of {} GiB …", size_bytes >> 30);
    measure::run(
        Command::new(qemu_img)
            .args([
                "create",
                "-q",
                "-f",
                "vhdx",
                "-o",
                "subformat=dynamic,block_size=32M",
            ])
            .arg(image)
            .arg(size_bytes.to_string()),
    )?;
    let pattern = work.join("pattern");
    for index in 0..RUNS {
        disk::create_filled(&pattern, run_bytes, Fill::HalfCompressible(1000 + index))?;
        let offset = size_bytes / RUNS * index;
        measure::run(
            Command::new(qemu_io)
                .args(["-f", "vhdx", "-t", "unsafe", "-c"])
                .arg(format!(
                    "write -q -s {} {offset} {run_bytes}",
                    pattern.display()
                ))
                .arg(image),
        )?;
    }
    std::fs::remove_file(&pattern)?;
    measure::flush(image)
}

fn measure_round(programs: &Programs, work: &Path, scale: &mut Scale) -> Result<()> {
    let mut tool = Tool::find(ToolKind::Hikae, programs, work).context("hikae")?;
    tool.reset()?;
    measure::warm(&scale.image)?;
    measure::flush(work)?;
    scale.initial.0.push(tool.back_up(&scale.image)?);
    scale.unchanged.0.push(tool.back_up(&scale.image)?);
    let out = work.join("scale-restored.vhdx");
    scale.restore.0.push(tool.restore_as(&out, "vhdx")?);
    std::fs::remove_file(&out)?;
    tool.remove()
}

fn judge(scales: &[Scale], data: &str, report: &mut Report) {
    let (Some(small), Some(large)) = (scales.first(), scales.last()) else {
        return;
    };
    report.judge(
        Bar::ScalingInitial,
        large.initial.ratio(&small.initial, Metric::Wall),
    );
    report.judge(
        Bar::ScalingUnchanged,
        large.unchanged.ratio(&small.unchanged, Metric::Wall),
    );
    report.judge(
        Bar::ScalingRestore,
        large.restore.ratio(&small.restore, Metric::Wall),
    );
    let rows = scales.iter().map(|scale| {
        let mut row = vec![scale.name.to_owned()];
        for (samples, first) in [
            (&scale.initial, &small.initial),
            (&scale.unchanged, &small.unchanged),
            (&scale.restore, &small.restore),
        ] {
            row.push(format!("{:.2}", samples.median(Metric::Wall)));
            row.push(format!("{:.2}", samples.ratio(first, Metric::Wall)));
        }
        let peak = [&scale.initial, &scale.unchanged, &scale.restore].map(Samples::peak_bytes);
        row.push(format!("{:.0}", mib(peak.into_iter().max().unwrap_or(0))));
        row
    });
    let rows = rows.collect();
    for scale in scales {
        report.peak(
            "backup, large virtual disk",
            scale.initial.peak_bytes().max(scale.unchanged.peak_bytes()),
        );
        report.peak("restore, large virtual disk", scale.restore.peak_bytes());
    }
    report.table(Table {
        title: "Virtual size".to_owned(),
        text: format!(
            "{data} of data in ever larger dynamic VHDX disks. Ratios are to the smallest."
        ),
        header: words(&[
            "virtual size",
            "initial s",
            "ratio",
            "unchanged s",
            "ratio",
            "restore to VHDX s",
            "ratio",
            "peak MiB",
        ]),
        rows,
    });
}
