//! The report: tables, bars and the machine, as Markdown.
//!
//! A *bar* is a promise with a limit: it is met, missed, or not measured in this run, and it is listed in any case.

use std::collections::BTreeMap;
use std::fmt::Write;

use super::machine::Fact;
use super::measure::{Metric, Samples};
use super::{Effort, Options};

/// A promise that the benchmark judges.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Bar {
    InitialRestic,
    InitialBorg,
    UnchangedHashing,
    UnchangedBorg,
    DatabaseStored,
    DatabaseBorg,
    RepositoryBorg,
    RestoreCopy,
    ExtractExt4,
    ExtractNtfs,
    ListExt4,
    ListNtfs,
    ConvertToVhdx,
    ConvertToRaw,
    ScalingInitial,
    ScalingUnchanged,
    ScalingRestore,
    GcVersions,
    VerifyVersions,
    PeakMemory,
}

impl Bar {
    /// Every bar: what is compared, the limit, and what it counts in.
    const ALL: [(Self, &'static str, f64, &'static str); 20] = [
        (
            Self::InitialRestic,
            "initial copy: time ÷ restic's",
            1.0,
            "",
        ),
        (Self::InitialBorg, "initial copy: time ÷ borg's", 0.4, ""),
        (
            Self::UnchangedHashing,
            "unchanged disk: time ÷ b3sum's",
            1.5,
            "",
        ),
        (
            Self::UnchangedBorg,
            "unchanged disk: time ÷ borg's",
            0.25,
            "",
        ),
        (
            Self::DatabaseStored,
            "20,000 writes of 8 KiB into 4 GiB: stored",
            0.70,
            " GiB",
        ),
        (
            Self::DatabaseBorg,
            "the same: stored ÷ borg's (64 KiB blocks)",
            1.05,
            "",
        ),
        (
            Self::RepositoryBorg,
            "repository after the initial copy: size ÷ borg's",
            1.03,
            "",
        ),
        (
            Self::RestoreCopy,
            "restore to raw, nothing cached: time ÷ cp's",
            1.2,
            "",
        ),
        (
            Self::ExtractExt4,
            "all files of a version, ext4: time ÷ restore's",
            1.43,
            "",
        ),
        (
            Self::ExtractNtfs,
            "all files of a version, NTFS: time ÷ restore's",
            1.43,
            "",
        ),
        (
            Self::ListExt4,
            "all names, and with sizes and times, ext4: time ÷ mount and find's",
            1.0,
            "",
        ),
        (
            Self::ListNtfs,
            "all names, and with sizes and times, NTFS: time ÷ ntfs-3g and find's",
            1.0,
            "",
        ),
        (
            Self::ConvertToVhdx,
            "raw to dynamic VHDX: time ÷ qemu-img's",
            1.0,
            "",
        ),
        (
            Self::ConvertToRaw,
            "dynamic VHDX to raw: time ÷ qemu-img's",
            1.0,
            "",
        ),
        (
            Self::ScalingInitial,
            "1 GiB in a 16 TiB disk: initial copy ÷ in a 2 GiB disk",
            1.3,
            "",
        ),
        (
            Self::ScalingUnchanged,
            "1 GiB in a 16 TiB disk: unchanged run ÷ in a 2 GiB disk",
            1.3,
            "",
        ),
        (
            Self::ScalingRestore,
            "1 GiB in a 16 TiB disk: restore to VHDX ÷ of a 2 GiB disk",
            1.3,
            "",
        ),
        (
            Self::GcVersions,
            "gc over 1000 versions ÷ over 10, same live blocks",
            1.5,
            "",
        ),
        (
            Self::VerifyVersions,
            "verify over 1000 versions ÷ over 10, same live blocks",
            1.5,
            "",
        ),
        (
            Self::PeakMemory,
            "peak memory of any operation",
            256.0,
            " MiB",
        ),
    ];
}

/// One table of the report.
#[derive(Debug, Clone)]
pub(crate) struct Table {
    pub(crate) title: String,
    pub(crate) text: String,
    pub(crate) header: Vec<String>,
    pub(crate) rows: Vec<Vec<String>>,
}

/// What a reader must know to judge the bars.
const NOTES: &str = "
- The plain loop reads, hashes (BLAKE3) and compresses (zstd level 1) on all cores, and throws the result away:
  it encrypts, checks and writes nothing. It and Hikae skip holes; b3sum reads them.
- restic and borg are told to read everything again (`--force`, `--files-cache disabled`), as for the disk of a running
  machine, whose time stamp says nothing. borg cuts blocks of 64 KiB (`--chunker-params fixed,65536`), restic as it likes.
- cp and qemu-img restore by copying the image itself, from a cold cache. restic does not make sparse files.
- Time is until the target was flushed; processor time is user and system time of the process alone.
";

/// Everything that a run found out.
#[derive(Debug)]
pub(crate) struct Report {
    machine: Vec<Fact>,
    setting: String,
    command: String,
    tables: Vec<Table>,
    bars: BTreeMap<Bar, f64>,
    peaks: BTreeMap<String, u64>,
}

impl Report {
    pub(crate) fn new(machine: Vec<Fact>, options: &Options) -> Self {
        let effort = match options.effort {
            Effort::Full => "full",
            Effort::Quick => "quick: small sizes, good for seeing that it works, not for judging",
        };
        let setting = format!(
            "Disk of {} GiB, {} rounds of every measurement, {effort}.",
            options.size_bytes >> 30,
            options.rounds
        );
        let command = format!(
            "cargo xtask bench --size-gib {} --rounds {}{}",
            options.size_bytes >> 30,
            options.rounds,
            if options.effort == Effort::Quick {
                " --quick"
            } else {
                ""
            }
        );
        Self {
            machine,
            setting,
            command,
            tables: Vec::new(),
            bars: BTreeMap::new(),
            peaks: BTreeMap::new(),
        }
    }

    /// Adds a table, and prints it so that a long run can be followed.
    pub(crate) fn table(&mut self, table: Table) {
        println!("{}", render_table(&table));
        self.tables.push(table);
    }

    /// Records what was measured for a bar.
    pub(crate) fn judge(&mut self, bar: Bar, measured: f64) {
        self.bars.insert(bar, measured);
    }

    /// Remembers the memory of one of Hikae's operations.
    pub(crate) fn peak(&mut self, operation: &str, bytes: u64) {
        let peak = self.peaks.entry(operation.to_owned()).or_default();
        *peak = (*peak).max(bytes);
    }

    /// Judges the greatest of the peaks, when all sections are done.
    pub(crate) fn judge_memory(&mut self) {
        let Some(greatest) = self.peaks.values().max().copied() else {
            return;
        };
        self.judge(Bar::PeakMemory, mib(greatest));
        let rows = self
            .peaks
            .iter()
            .map(|(name, bytes)| vec![name.clone(), format!("{:.0}", mib(*bytes))]);
        let rows = rows.collect();
        self.table(Table {
            title: "Peak memory of Hikae".to_owned(),
            text: "Greatest resident memory of the process over all runs.".to_owned(),
            header: words(&["operation", "MiB"]),
            rows,
        });
    }

    /// The whole report.
    pub(crate) fn render(&self) -> String {
        let mut text = format!(
            "# Benchmarks\n\nWritten by `{}` in one run. {}\nEvery ratio is the median of the rounds' ratios; all tools \
             ran in every round, in rotating order;\nevery run includes flushing its target to the disk.\n\n",
            self.command, self.setting
        );
        text.push_str("## Bars\n\n| what | limit | measured | |\n|---|---:|---:|---|\n");
        for (bar, what, limit, unit) in Bar::ALL {
            let (measured, verdict) = match self.bars.get(&bar) {
                Some(value) if *value <= limit => (format!("{value:.2}{unit}"), "met"),
                Some(value) => (format!("{value:.2}{unit}"), "**missed**"),
                None => ("–".to_owned(), "not measured"),
            };
            // Writing to a String does not fail.
            let _ = writeln!(
                text,
                "| {what} | ≤ {limit:.2}{unit} | {measured} | {verdict} |"
            );
        }
        text.push_str(NOTES);
        text.push_str("\n## Machine\n\n| | |\n|---|---|\n");
        for (name, value) in &self.machine {
            let _ = writeln!(text, "| {name} | {value} |");
        }
        for table in &self.tables {
            text.push('\n');
            text.push_str(&render_table(table));
        }
        text
    }
}

/// Bytes as MiB.
pub(crate) fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

/// Column heads.
pub(crate) fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

/// The row of a tool: name, wall, CPU, peak, and both ratios to the first tool's.
pub(crate) fn timing_row(name: &str, samples: &Samples, first: &Samples) -> Vec<String> {
    vec![
        name.to_owned(),
        format!("{:.2}", samples.median(Metric::Wall)),
        format!("{:.2}", samples.median(Metric::Cpu)),
        format!("{:.0}", mib(samples.peak_bytes())),
        format!("{:.2}", samples.ratio(first, Metric::Wall)),
        format!("{:.2}", samples.ratio(first, Metric::Cpu)),
    ]
}

/// Heads of the columns of [`timing_row`].
pub(crate) const TIMING_HEADER: [&str; 6] = [
    "tool",
    "time s",
    "processor s",
    "peak MiB",
    "time ÷ first row's",
    "processor ÷ first row's",
];

fn render_table(table: &Table) -> String {
    let mut text = format!("## {}\n\n", table.title);
    if !table.text.is_empty() {
        let _ = writeln!(text, "{}\n", table.text);
    }
    let _ = writeln!(text, "| {} |", table.header.join(" | "));
    let ruler: Vec<&str> = table
        .header
        .iter()
        .enumerate()
        .map(|(column, _)| if column == 0 { "---" } else { "---:" })
        .collect();
    let _ = writeln!(text, "|{}|", ruler.join("|"));
    for row in &table.rows {
        let _ = writeln!(text, "| {} |", row.join(" | "));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::{Bar, Report};

    fn empty() -> Report {
        Report {
            machine: vec![("cores".to_owned(), "2".to_owned())],
            setting: String::new(),
            command: "bench".to_owned(),
            tables: Vec::new(),
            bars: std::collections::BTreeMap::new(),
            peaks: std::collections::BTreeMap::new(),
        }
    }

    #[test]
    fn a_bar_that_was_not_measured_is_listed_as_such() {
        let text = empty().render();
        assert_eq!(text.matches("not measured").count(), Bar::ALL.len());
    }

    #[test]
    fn a_bar_is_met_at_its_limit_and_missed_above() {
        let mut report = empty();
        report.judge(Bar::InitialBorg, 0.4);
        report.judge(Bar::UnchangedHashing, 1.51);
        let text = report.render();
        assert!(text.contains("| ≤ 0.40 | 0.40 | met |"), "{text}");
        assert!(text.contains("| ≤ 1.50 | 1.51 | **missed** |"), "{text}");
    }

    #[test]
    fn the_greatest_peak_is_judged() {
        let mut report = empty();
        report.peak("backup", 100 << 20);
        report.peak("backup", 50 << 20);
        report.peak("gc", 300 << 20);
        report.judge_memory();
        let text = report.render();
        assert!(text.contains("300.00 MiB | **missed**"), "{text}");
        assert!(text.contains("| backup | 100 |"), "{text}");
    }
}
