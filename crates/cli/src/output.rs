//! Where results go: standard output as text or as one JSON object, problems to standard error.
//!
//! With `--json` exactly one object is printed on standard output, whether the verb succeeds or fails; a failure is
//! `{"problem": {…}}`. Progress is for terminals only (see `progress.rs`).

use std::io::{self, IsTerminal, Write};

use serde::Serialize;

use crate::args::OutputMode;
use crate::exit::Exit;

/// The two ways of telling.
#[derive(Debug)]
pub struct Output {
    mode: OutputMode,
}

impl Output {
    /// Prints in this mode.
    pub fn new(mode: OutputMode) -> Self {
        Self { mode }
    }

    /// Whether a progress bar may be drawn.
    pub fn shows_progress(&self) -> bool {
        self.mode == OutputMode::Text && io::stderr().is_terminal()
    }

    /// Prints a report: the object as JSON, or what `text` makes of it.
    pub fn report<T: Serialize>(
        &self,
        report: &T,
        text: impl FnOnce(&T) -> String,
    ) -> anyhow::Result<()> {
        let mut stdout = io::stdout().lock();
        match self.mode {
            OutputMode::Json => {
                serde_json::to_writer_pretty(&mut stdout, report)?;
                writeln!(stdout)?;
            }
            OutputMode::Text => {
                let text = text(report);
                write!(stdout, "{text}")?;
                if !text.ends_with('\n') && !text.is_empty() {
                    writeln!(stdout)?;
                }
            }
        }
        Ok(())
    }

    /// Says something that is no result: only where people read.
    pub fn note(&self, text: &str) {
        if self.mode == OutputMode::Text {
            eprintln!("{text}");
        }
    }

    /// Prints, where a program reads, that the command line was not understood; people are told by the parser.
    pub fn misunderstood(&self, text: &str) {
        if self.mode == OutputMode::Json {
            let object = serde_json::json!({ "problem": engine::Problem::misunderstood(text) });
            self.last_words(&format!("{object:#}\n"));
        }
    }

    /// Writes an object when there is nothing better to do about an error than to go on ending.
    fn last_words(&self, text: &str) {
        // Who closed standard output does not want to know; the exit code still tells.
        io::stdout().write_all(text.as_bytes()).unwrap_or(());
    }

    /// Prints what went wrong as a problem and says how the process ends.
    pub fn fail(&self, error: &anyhow::Error) -> Exit {
        let below: &(dyn std::error::Error + 'static) = error.as_ref();
        let problem = engine::Problem::of(below);
        match self.mode {
            OutputMode::Json => {
                let object = serde_json::json!({ "problem": problem });
                self.last_words(&format!("{object:#}\n"));
            }
            OutputMode::Text => eprint!("{problem}"),
        }
        Exit::of(below)
    }
}

/// Bytes as people read them, three digits: `1.23 GiB`.
pub fn bytes(count: u64) -> String {
    const UNITS: [&str; 6] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
    #[expect(clippy::cast_precision_loss, reason = "three digits are shown")]
    let mut value = count as f64;
    let mut unit = 0;
    while value >= 1000.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    let name = UNITS.get(unit).copied().unwrap_or("B");
    match unit {
        0 => format!("{count} B"),
        _ if value >= 100.0 => format!("{value:.0} {name}"),
        _ if value >= 10.0 => format!("{value:.1} {name}"),
        _ => format!("{value:.2} {name}"),
    }
}

/// Seconds as people read them.
pub fn seconds(value: f64) -> String {
    if value < 0.1 {
        format!("{:.0} ms", value * 1000.0)
    } else if value < 120.0 {
        format!("{value:.1} s")
    } else {
        format!("{:.0} min {:.0} s", (value / 60.0).floor(), value % 60.0)
    }
}

/// Columns that line up; the first row is the heading. Numbers are right-aligned by the caller's choice of column.
#[derive(Debug, Default)]
pub struct Table {
    rows: Vec<Vec<String>>,
    right: Vec<usize>,
}

impl Table {
    /// A table with these headings; the columns in `right` are aligned to the right.
    pub fn new(headings: &[&str], right: &[usize]) -> Self {
        Self {
            rows: vec![
                headings
                    .iter()
                    .map(|heading| (*heading).to_string())
                    .collect(),
            ],
            right: right.to_vec(),
        }
    }

    /// Adds a row.
    pub fn row(&mut self, cells: Vec<String>) {
        self.rows.push(cells);
    }
}

impl std::fmt::Display for Table {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let width = |column: usize| {
            self.rows
                .iter()
                .filter_map(|row| row.get(column))
                .map(|cell| cell.chars().count())
                .max()
                .unwrap_or(0)
        };
        let widths: Vec<usize> = (0..columns).map(width).collect();
        for row in &self.rows {
            let mut line = String::new();
            for (column, cell) in row.iter().enumerate() {
                let width = widths.get(column).copied().unwrap_or(0);
                if column > 0 {
                    line.push_str("  ");
                }
                if self.right.contains(&column) {
                    line.push_str(&format!("{cell:>width$}"));
                } else {
                    line.push_str(&format!("{cell:<width$}"));
                }
            }
            writeln!(f, "{}", line.trim_end())?;
        }
        Ok(())
    }
}
