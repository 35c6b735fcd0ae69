//! Section `versions`: gc and verify over 10, 100 and 1000 versions that share the same live blocks.
//!
//! A disk goes through ten states in turn, so that version 1000 refers to nothing that version 10 does not: whatever more
//! the larger repository costs is the price of a version.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use anyhow::{Context, Result};

use super::disk::{self, Fill};
use super::measure::{Metric, Samples};
use super::random::Random;
use super::report::{Bar, Report, Table, mib, words};
use super::tool::{Tool, ToolKind};
use super::{Effort, Options, Programs};

const STATES: u64 = 10;
const DATA_BYTES: u64 = 256 << 20;
const CHANGED_BLOCKS: u64 = 64;
const BLOCK_SIZE_BYTES: u64 = 64 << 10;

/// A repository with so many versions, and what it cost to look after.
struct Population {
    versions: u64,
    tool: Tool,
    filling_s: f64,
    first_gc: Samples,
    gc: Samples,
    verify: Samples,
}

/// Fills the repositories, then measures gc and verify in rounds over all of them.
pub(crate) fn run(
    options: &Options,
    programs: &Programs,
    work: &Path,
    report: &mut Report,
) -> Result<()> {
    let counts: &[u64] = match options.effort {
        Effort::Full => &[10, 100, 1000],
        Effort::Quick => &[10, 30],
    };
    let image = work.join("versions.raw");
    disk::create_filled(&image, DATA_BYTES, Fill::HalfCompressible(31))?;
    let mut populations = Vec::new();
    for versions in counts {
        println!("filling a repository with {versions} versions …");
        populations.push(fill(
            programs,
            &work.join(format!("versions-{versions}")),
            &image,
            *versions,
        )?);
    }
    for population in &mut populations {
        println!("first gc over {} versions", population.versions);
        population
            .first_gc
            .0
            .push(population.tool.repository_command("gc")?);
    }
    for round in 0..options.rounds {
        let count = populations.len();
        for turn in 0..count {
            let population = populations
                .get_mut((round + turn) % count)
                .context("a population")?;
            println!(
                "gc and verify, round {}: {} versions",
                round + 1,
                population.versions
            );
            population
                .gc
                .0
                .push(population.tool.repository_command("gc")?);
            population
                .verify
                .0
                .push(population.tool.repository_command("verify")?);
        }
    }
    judge(&populations, report);
    for population in &populations {
        population.tool.remove()?;
    }
    std::fs::remove_file(&image)?;
    Ok(())
}

fn fill(programs: &Programs, place: &Path, image: &Path, versions: u64) -> Result<Population> {
    let mut tool = Tool::find(ToolKind::Hikae, programs, place).context("hikae")?;
    tool.reset()?;
    let mut filling_s = 0.0;
    for version in 0..versions {
        enter_state(image, version % STATES)?;
        filling_s += tool.back_up(image)?.wall_s;
    }
    Ok(Population {
        versions,
        tool,
        filling_s,
        first_gc: Samples::default(),
        gc: Samples::default(),
        verify: Samples::default(),
    })
}

/// Writes the blocks in which the states differ.
fn enter_state(image: &Path, state: u64) -> Result<()> {
    let file = File::options().write(true).open(image)?;
    let mut random = Random::new(5000 + state);
    let mut block = vec![0u8; usize::try_from(BLOCK_SIZE_BYTES)?];
    let stride = DATA_BYTES / CHANGED_BLOCKS;
    for index in 0..CHANGED_BLOCKS {
        random.fill_half_compressible(&mut block);
        file.write_all_at(&block, index * stride)?;
    }
    file.sync_data()?;
    Ok(())
}

fn judge(populations: &[Population], report: &mut Report) {
    let (Some(few), Some(many)) = (populations.first(), populations.last()) else {
        return;
    };
    if many.versions == 1000 {
        report.judge(Bar::GcVersions, many.gc.ratio(&few.gc, Metric::Wall));
        report.judge(
            Bar::VerifyVersions,
            many.verify.ratio(&few.verify, Metric::Wall),
        );
    }
    let rows = populations.iter().map(|one| {
        let peak = one
            .gc
            .peak_bytes()
            .max(one.first_gc.peak_bytes())
            .max(one.verify.peak_bytes());
        vec![
            one.versions.to_string(),
            format!("{:.3}", one.filling_s / one.versions as f64),
            format!("{:.3}", one.first_gc.median(Metric::Wall)),
            format!("{:.3}", one.gc.median(Metric::Wall)),
            format!("{:.2}", one.gc.ratio(&few.gc, Metric::Wall)),
            format!("{:.3}", one.verify.median(Metric::Wall)),
            format!("{:.2}", one.verify.ratio(&few.verify, Metric::Wall)),
            format!("{:.0}", mib(peak)),
        ]
    });
    let rows = rows.collect();
    for one in populations {
        report.peak("gc", one.gc.peak_bytes().max(one.first_gc.peak_bytes()));
        report.peak("verify", one.verify.peak_bytes());
    }
    report.table(Table {
        title: "Number of versions".to_owned(),
        text: "256 MiB of data in ten states that return: the live blocks are the same. The first gc packs the points; \
               the next ones show what a version goes on costing. Verify reads and hashes everything."
            .to_owned(),
        header: words(&[
            "versions",
            "backup s each",
            "first gc s",
            "gc s",
            "ratio",
            "verify s",
            "ratio",
            "peak MiB",
        ]),
        rows,
    });
}
