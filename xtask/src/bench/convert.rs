//! Section `convert`: raw to dynamic VHDX and back, Hikae beside qemu-img, both flushed, both from the cache.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};

use super::measure::{self, Metric, Samples};
use super::report::{Bar, Report, TIMING_HEADER, Table, timing_row, words};
use super::{Options, Programs};

/// One direction of conversion.
struct Direction<'a> {
    title: &'static str,
    from: &'a Path,
    /// Format of the target; the source has the other one.
    format: &'static str,
    bar: Bar,
}

/// Measures both directions; what Hikae wrote is compared with the source.
pub(crate) fn run(
    options: &Options,
    programs: &Programs,
    work: &Path,
    image: &Path,
    report: &mut Report,
) -> Result<()> {
    let vhdx = work.join("source.vhdx");
    measure::run(&mut ours(programs, image, &vhdx, "vhdx")).context("the VHDX that both read")?;
    let directions = [
        Direction {
            title: "Convert raw to dynamic VHDX",
            from: image,
            format: "vhdx",
            bar: Bar::ConvertToVhdx,
        },
        Direction {
            title: "Convert dynamic VHDX to raw",
            from: &vhdx,
            format: "raw",
            bar: Bar::ConvertToRaw,
        },
    ];
    for direction in &directions {
        let [ours, theirs] = measure_direction(options, programs, work, image, direction)?;
        report.peak("image convert", ours.peak_bytes());
        let mut rows = vec![timing_row("Hikae", &ours, &ours)];
        if !theirs.0.is_empty() {
            rows.push(timing_row("qemu-img", &theirs, &ours));
            report.judge(direction.bar, ours.ratio(&theirs, Metric::Wall));
        }
        report.table(Table {
            title: direction.title.to_owned(),
            text: "The source is cached, the target flushed.".to_owned(),
            header: words(&TIMING_HEADER),
            rows,
        });
    }
    std::fs::remove_file(&vhdx)?;
    Ok(())
}

fn ours(programs: &Programs, from: &Path, to: &Path, format: &str) -> Command {
    let mut command = Command::new(&programs.hikae);
    command
        .args(["image", "convert"])
        .arg(from)
        .arg(to)
        .args(["--format", format, "--json"]);
    if format == "vhdx" {
        command.args(["--subformat", "dynamic"]);
    }
    command
}

fn theirs(program: &Path, from: &Path, to: &Path, format: &str) -> Command {
    let mut command = Command::new(program);
    let source = if format == "vhdx" { "raw" } else { "vhdx" };
    command
        .args(["convert", "-f", source, "-O", format])
        .arg(from)
        .arg(to);
    command
}

/// Samples of Hikae and of qemu-img, who take turns at going first.
fn measure_direction(
    options: &Options,
    programs: &Programs,
    work: &Path,
    image: &Path,
    direction: &Direction<'_>,
) -> Result<[Samples; 2]> {
    let (from, format) = (direction.from, direction.format);
    let mut samples = [Samples::default(), Samples::default()];
    for round in 0..options.rounds {
        for turn in 0..2 {
            let who = (round + turn) % 2;
            let out = work.join(format!("converted-{who}"));
            let mut command = match (who, &programs.qemu_img) {
                (0, _) => ours(programs, from, &out, format),
                (_, Some(program)) => theirs(program, from, &out, format),
                (_, None) => continue,
            };
            let name = if who == 0 { "Hikae" } else { "qemu-img" };
            println!("{}, round {}: {name}", direction.title, round + 1);
            measure::warm(from)?;
            measure::flush(work)?;
            let measured = measure::measure(&mut command, Some(work))?;
            if let Some(samples) = samples.get_mut(who) {
                samples.0.push(measured);
            }
            if who == 0 && round == 0 {
                compare(programs, image, &out, format)?;
            }
            std::fs::remove_file(&out)?;
        }
    }
    Ok(samples)
}

/// Lets qemu-img, when it is there, say whether both hold the same disk.
fn compare(programs: &Programs, raw: &Path, converted: &Path, format: &str) -> Result<()> {
    if format == "raw" {
        return measure::require_equal(raw, converted);
    }
    let Some(program) = &programs.qemu_img else {
        return Ok(());
    };
    let mut command = Command::new(program);
    command
        .args(["compare", "-f", "raw", "-F", format])
        .arg(raw)
        .arg(converted);
    measure::run(&mut command).context("what Hikae converted")?;
    Ok(())
}
