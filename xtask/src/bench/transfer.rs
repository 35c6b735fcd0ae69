//! Sections that move a disk into a repository and back: initial copy, unchanged, one per cent, database, restore.
//!
//! ```text
//! initial (fresh repositories) ─► unchanged ─► one-percent ─► restore ─► compared with the image
//! ```
//! A section that was not asked for is replaced by one unmeasured backup, so that the next finds a repository.

use std::path::Path;

use anyhow::{Context, Result};

use super::disk::{self, Fill};
use super::measure::{self, CacheState, Measured, Metric, Samples};
use super::report::{Bar, Report, TIMING_HEADER, Table, mib, timing_row, words};
use super::tool::{Tool, ToolKind};
use super::{Options, Programs, Section};

/// Runs the wanted ones of the sections over the realistic disk.
pub(crate) fn run(
    options: &Options,
    programs: &Programs,
    work: &Path,
    image: &Path,
    report: &mut Report,
) -> Result<()> {
    let mut tools = super::tools(options, programs, work);
    let mut bench = Transfer {
        options,
        image,
        report,
    };
    if options.wants(Section::Initial) {
        bench.initial(&mut tools)?;
    }
    for tool in tools.iter_mut().filter(|tool| tool.kind.has_repository()) {
        let exists = tool.stored_bytes()?.is_some();
        if !exists && is_needed(options, tool.kind) {
            tool.reset()?;
            tool.back_up(image)?;
        }
    }
    if options.wants(Section::Unchanged) {
        bench.unchanged(&mut tools)?;
    }
    if options.wants(Section::OnePercent) {
        bench.one_percent(&mut tools, work)?;
    }
    if options.wants(Section::Restore) {
        bench.restore(&mut tools, work)?;
    }
    tools.iter().try_for_each(Tool::remove)
}

fn is_needed(options: &Options, kind: ToolKind) -> bool {
    [Section::Unchanged, Section::OnePercent, Section::Restore]
        .into_iter()
        .any(|section| options.wants(section) && kind.takes_part(section))
}

/// Samples of the tools of one section, the first tool being the yardstick of the table.
struct Runs(Vec<(ToolKind, Samples)>);

impl Runs {
    fn new(tools: &[Tool], section: Section) -> Self {
        let kinds = tools
            .iter()
            .map(|tool| tool.kind)
            .filter(|kind| kind.takes_part(section));
        Self(kinds.map(|kind| (kind, Samples::default())).collect())
    }

    fn add(&mut self, kind: ToolKind, measured: Measured) {
        if let Some((_, samples)) = self.0.iter_mut().find(|(one, _)| *one == kind) {
            samples.0.push(measured);
        }
    }

    fn of(&self, kind: ToolKind) -> Option<&Samples> {
        self.0
            .iter()
            .find(|(one, _)| *one == kind)
            .map(|(_, samples)| samples)
    }

    fn ratio(&self, kind: ToolKind, metric: Metric) -> Option<f64> {
        Some(self.of(ToolKind::Hikae)?.ratio(self.of(kind)?, metric))
    }

    fn rows(&self) -> Vec<Vec<String>> {
        let Some((_, first)) = self.0.first() else {
            return Vec::new();
        };
        self.0
            .iter()
            .map(|(kind, samples)| timing_row(kind.name(), samples, first))
            .collect()
    }
}

/// The order of the tools in a round: rotated, so that none always follows the same neighbour.
fn order(tools: &[Tool], section: Section, round: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..tools.len())
        .filter(|at| {
            tools
                .get(*at)
                .is_some_and(|tool| tool.kind.takes_part(section))
        })
        .collect();
    let shift = round % order.len().max(1);
    order.rotate_left(shift);
    order
}

/// What Hikae itself says that the run did.
fn counters(measured: &Measured) -> String {
    let field = |name: &str| {
        measured
            .json_u64(name)
            .map_or_else(|| "?".to_owned(), |bytes| format!("{:.1} MiB", mib(bytes)))
    };
    format!(
        "Hikae says of the last run: read {}, hashed {}, sent {}, stored {}.",
        field("bytes_read"),
        field("bytes_hashed"),
        field("bytes_sent"),
        field("bytes_stored")
    )
}

struct Transfer<'a> {
    options: &'a Options,
    image: &'a Path,
    report: &'a mut Report,
}

impl Transfer<'_> {
    fn judge(&mut self, runs: &Runs, bar: Bar, kind: ToolKind, metric: Metric) {
        if let Some(ratio) = runs.ratio(kind, metric) {
            self.report.judge(bar, ratio);
        }
    }

    fn peak(&mut self, operation: &str, runs: &Runs) {
        let ours = runs
            .0
            .iter()
            .filter(|(kind, _)| matches!(kind, ToolKind::Hikae | ToolKind::HikaeTracked));
        for (_, samples) in ours {
            self.report.peak(operation, samples.peak_bytes());
        }
    }

    fn initial(&mut self, tools: &mut [Tool]) -> Result<()> {
        let mut runs = Runs::new(tools, Section::Initial);
        let mut sizes = vec![None; tools.len()];
        let mut said = String::new();
        for round in 0..self.options.rounds {
            for at in order(tools, Section::Initial, round) {
                let tool = tools.get_mut(at).context("a tool")?;
                println!("initial copy, round {}: {}", round + 1, tool.kind.name());
                tool.reset()?;
                measure::warm(self.image)?;
                measure::flush(self.image)?;
                let measured = tool.back_up(self.image)?;
                if tool.kind == ToolKind::Hikae {
                    said = counters(&measured);
                }
                if let Some(size) = sizes.get_mut(at) {
                    *size = tool.stored_bytes()?;
                }
                if !tool.kind.has_repository() {
                    tool.remove()?;
                }
                runs.add(tool.kind, measured);
            }
        }
        let size_of = |kind: ToolKind| {
            tools
                .iter()
                .zip(&sizes)
                .find(|(tool, _)| tool.kind == kind)
                .and_then(|(_, size)| *size)
        };
        let mut rows = runs.rows();
        for (row, (kind, _)) in rows.iter_mut().zip(&runs.0) {
            row.push(
                size_of(*kind).map_or_else(|| "–".to_owned(), |bytes| format!("{:.0}", mib(bytes))),
            );
        }
        let mut header = words(&TIMING_HEADER);
        header.push("stored MiB".to_owned());
        let allocated = mib(measure::allocated_bytes(self.image)?);
        self.report.table(Table {
            title: "Initial copy".to_owned(),
            text: format!("Into an empty repository; the image, {allocated:.0} MiB allocated, is cached. {said}"),
            header,
            rows,
        });
        self.judge(&runs, Bar::InitialRestic, ToolKind::Restic, Metric::Wall);
        self.judge(&runs, Bar::InitialBorg, ToolKind::Borg, Metric::Wall);
        if let (Some(ours), Some(theirs)) = (size_of(ToolKind::Hikae), size_of(ToolKind::Borg)) {
            self.report
                .judge(Bar::RepositoryBorg, ours as f64 / theirs.max(1) as f64);
        }
        self.peak("backup, initial", &runs);
        Ok(())
    }

    fn unchanged(&mut self, tools: &mut [Tool]) -> Result<()> {
        let mut runs = Runs::new(tools, Section::Unchanged);
        let mut said = String::new();
        for round in 0..self.options.rounds {
            for at in order(tools, Section::Unchanged, round) {
                let tool = tools.get_mut(at).context("a tool")?;
                println!("unchanged, round {}: {}", round + 1, tool.kind.name());
                measure::warm(self.image)?;
                let measured = tool.back_up(self.image)?;
                if tool.kind == ToolKind::Hikae {
                    said = counters(&measured);
                }
                runs.add(tool.kind, measured);
            }
        }
        self.report.table(Table {
            title: "Unchanged disk".to_owned(),
            text: format!(
                "Again, without change tracking: everything is read and compared. {said}"
            ),
            header: words(&TIMING_HEADER),
            rows: runs.rows(),
        });
        self.judge(&runs, Bar::UnchangedHashing, ToolKind::B3sum, Metric::Wall);
        self.judge(&runs, Bar::UnchangedBorg, ToolKind::Borg, Metric::Wall);
        self.peak("backup, unchanged", &runs);
        Ok(())
    }

    fn one_percent(&mut self, tools: &mut [Tool], work: &Path) -> Result<()> {
        let mut runs = Runs::new(tools, Section::OnePercent);
        let mut growth: Vec<Vec<f64>> = vec![Vec::new(); tools.len()];
        let ranges_file = work.join("changed-ranges");
        let mut writes = 0;
        let mut said = String::new();
        for round in 0..self.options.rounds {
            let ranges = disk::change_one_percent(self.image, 100 + round as u64)?;
            disk::write_ranges(&ranges_file, &ranges)?;
            writes = ranges.len();
            for at in order(tools, Section::OnePercent, round) {
                let tool = tools.get_mut(at).context("a tool")?;
                println!("one per cent, round {}: {}", round + 1, tool.kind.name());
                if tool.kind == ToolKind::HikaeTracked {
                    tool.changed_ranges = Some(ranges_file.clone());
                }
                measure::warm(self.image)?;
                let before = tool.stored_bytes()?.unwrap_or(0);
                let measured = tool.back_up(self.image)?;
                let after = tool.stored_bytes()?.unwrap_or(0);
                if let Some(growth) = growth.get_mut(at) {
                    growth.push(mib(after.saturating_sub(before)));
                }
                if tool.kind == ToolKind::HikaeTracked {
                    said = counters(&measured);
                }
                runs.add(tool.kind, measured);
            }
        }
        let mut rows = runs.rows();
        for (row, (kind, _)) in rows.iter_mut().zip(&runs.0) {
            let at = tools.iter().position(|tool| tool.kind == *kind);
            let grown = at
                .and_then(|at| growth.get(at))
                .cloned()
                .unwrap_or_default();
            row.push(format!("{:.1}", measure::median(grown)));
        }
        let mut header = words(&TIMING_HEADER);
        header.push("stored MiB".to_owned());
        self.report.table(Table {
            title: "One per cent changed".to_owned(),
            text: format!("After {writes} writes of 4 KiB at random allocated pages. With the ranges given: {said}"),
            header,
            rows,
        });
        self.peak("backup, one per cent", &runs);
        Ok(())
    }

    fn restore(&mut self, tools: &mut [Tool], work: &Path) -> Result<()> {
        let mut runs = Runs::new(tools, Section::Restore);
        let out = work.join("restored.raw");
        let mut cache = CacheState::Cold;
        for round in 0..self.options.rounds {
            for at in order(tools, Section::Restore, round) {
                let tool = tools.get_mut(at).context("a tool")?;
                println!("restore, round {}: {}", round + 1, tool.kind.name());
                cache = measure::drop_caches(work)?;
                runs.add(tool.kind, tool.restore(self.image, &out)?);
                if round == 0 {
                    measure::require_equal(&out, self.image)
                        .with_context(|| format!("what {} restored", tool.kind.name()))?;
                }
                std::fs::remove_file(&out)?;
            }
        }
        let text = match cache {
            CacheState::Cold => "The newest version to a raw file, caches dropped before each run.",
            CacheState::AsFound => {
                "The newest version to a raw file. Caches could not be dropped (not root): these runs are warm."
            }
        };
        self.report.table(Table {
            title: "Restore".to_owned(),
            text: text.to_owned(),
            header: words(&TIMING_HEADER),
            rows: runs.rows(),
        });
        if cache == CacheState::Cold {
            self.judge(&runs, Bar::RestoreCopy, ToolKind::Cp, Metric::Wall);
        }
        self.peak("restore", &runs);
        Ok(())
    }
}

/// Size of the file that the bar of the database is stated for.
const DATABASE_BYTES: u64 = 4 << 30;

/// Writes of 8 KiB at random places of a full half-compressible file: what each tool stores for them.
pub(crate) fn run_database(
    options: &Options,
    programs: &Programs,
    work: &Path,
    report: &mut Report,
) -> Result<()> {
    let file = work.join("database.raw");
    let size_bytes = options.size_bytes.min(DATABASE_BYTES);
    disk::create_filled(&file, size_bytes, Fill::HalfCompressible(21))?;
    let share = size_bytes as f64 / DATABASE_BYTES as f64;
    let mut tools = super::tools(options, programs, work);
    tools.retain(|tool| tool.kind.takes_part(Section::Database));
    for tool in &mut tools {
        println!("database, first version: {}", tool.kind.name());
        tool.reset()?;
        tool.back_up(&file)?;
    }
    let writes = (20_000.0 * share) as u64;
    let ranges = disk::change_at_random(&file, writes, 8192, 22)?;
    let ranges_file = work.join("changed-ranges");
    disk::write_ranges(&ranges_file, &ranges)?;
    let mut runs = Runs::new(&tools, Section::Database);
    let mut stored = Vec::new();
    for tool in &mut tools {
        println!("database, second version: {}", tool.kind.name());
        if tool.kind == ToolKind::HikaeTracked {
            tool.changed_ranges = Some(ranges_file.clone());
        }
        measure::warm(&file)?;
        let before = tool.stored_bytes()?.unwrap_or(0);
        runs.add(tool.kind, tool.back_up(&file)?);
        let grown = tool.stored_bytes()?.unwrap_or(0).saturating_sub(before);
        stored.push((tool.kind, grown as f64 / f64::from(1 << 30)));
    }
    let stored_of = |kind: ToolKind| {
        stored
            .iter()
            .find(|(one, _)| *one == kind)
            .map(|(_, gib)| *gib)
    };
    let mut rows = runs.rows();
    for (row, (kind, _)) in rows.iter_mut().zip(&runs.0) {
        row.push(stored_of(*kind).map_or_else(|| "–".to_owned(), |gib| format!("{gib:.3}")));
    }
    let mut header = words(&TIMING_HEADER);
    header.push("stored GiB".to_owned());
    report.table(Table {
        title: "Database".to_owned(),
        text: format!(
            "{writes} writes of 8 KiB at random places of a half-compressible file of {} GiB; one round.",
            size_bytes >> 30
        ),
        header,
        rows,
    });
    if let Some(ours) = stored_of(ToolKind::Hikae) {
        report.judge(Bar::DatabaseStored, ours / share);
        if let Some(theirs) = stored_of(ToolKind::Borg) {
            report.judge(Bar::DatabaseBorg, ours / theirs.max(1e-9));
        }
    }
    tools.iter().try_for_each(Tool::remove)?;
    std::fs::remove_file(&file)?;
    Ok(())
}
