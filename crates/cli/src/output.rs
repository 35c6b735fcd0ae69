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

    /// Whether a program reads.
    pub fn is_json(&self) -> bool {
        self.mode == OutputMode::Json
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
        let mut text = match self.mode {
            OutputMode::Json => serde_json::to_string_pretty(report)?,
            OutputMode::Text => text(report),
        };
        if !text.ends_with('\n') && !text.is_empty() {
            text.push('\n');
        }
        print_all(&text)
    }

    /// Prints a report on standard error, where standard output is taken by what was asked for.
    pub fn report_beside<T: Serialize>(
        &self,
        report: &T,
        text: impl FnOnce(&T) -> String,
    ) -> anyhow::Result<()> {
        match self.mode {
            OutputMode::Json => eprintln!("{}", serde_json::to_string_pretty(report)?),
            OutputMode::Text => eprint!("{}", text(report)),
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

/// Writes to standard output. Who closed it does not want to know more: that is no failure of the verb.
pub fn print_all(text: &str) -> anyhow::Result<()> {
    let mut stdout = io::stdout().lock();
    match stdout
        .write_all(text.as_bytes())
        .and_then(|()| stdout.flush())
    {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        outcome => Ok(outcome?),
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
///
/// On a terminal that is too narrow the last column is wrapped; where even that does not help, the first cell of each row
/// stands on a line of its own. Nothing is ever cut off, and what goes to a file or a pipe is one line per row.
#[derive(Debug, Default)]
pub struct Table {
    rows: Vec<Vec<String>>,
    right: Vec<usize>,
}

/// The narrowest that a wrapped column may become.
const WRAPPED_CHARS_MIN: usize = 20;

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

    /// The table as text, at most `limit` characters wide if it can be.
    fn render(&self, limit: usize) -> String {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let width = |column: usize| {
            let cells = self.rows.iter().filter_map(|row| row.get(column));
            cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..columns).map(width).collect();
        let across = |first: usize| {
            let shown = widths.get(first..).unwrap_or_default();
            let gaps = shown.len().saturating_sub(1).saturating_mul(2);
            shown.iter().sum::<usize>().saturating_add(gaps)
        };
        let last = widths.last().copied().unwrap_or(0);
        let narrowest = if self.right.contains(&columns.saturating_sub(1)) {
            last
        } else {
            last.min(WRAPPED_CHARS_MIN)
        };
        let is_stacked = columns > 1 && across(0).saturating_sub(last) + narrowest > limit;
        let (first, indent) = if is_stacked { (1, 2) } else { (0, 0) };
        let before_last = across(first).saturating_sub(last) + indent;
        let last_width = limit.saturating_sub(before_last).max(narrowest);
        let mut text = String::new();
        for row in &self.rows {
            if let Some(cell) = row.first().filter(|_| is_stacked) {
                text.push_str(&format!("{cell}\n"));
            }
            let mut line = " ".repeat(indent);
            for (column, cell) in row.iter().enumerate().skip(first) {
                let width = widths.get(column).copied().unwrap_or(0);
                if column > first {
                    line.push_str("  ");
                }
                if self.right.contains(&column) {
                    line.push_str(&format!("{cell:>width$}"));
                } else if column + 1 == columns {
                    line.push_str(
                        &wrapped(cell, last_width).join(&format!("\n{}", " ".repeat(before_last))),
                    );
                } else {
                    line.push_str(&format!("{cell:<width$}"));
                }
            }
            text.push_str(line.trim_end());
            text.push('\n');
        }
        text
    }
}

/// Breaks a text between words into lines of at most `width` characters; longer words stay whole.
fn wrapped(text: &str, width: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split(' ') {
        let Some(line) = lines.last_mut() else {
            break;
        };
        if line.is_empty() {
            line.push_str(word);
        } else if line.chars().count() + 1 + word.chars().count() <= width {
            line.push(' ');
            line.push_str(word);
        } else {
            lines.push(word.to_owned());
        }
    }
    lines
}

impl std::fmt::Display for Table {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let terminal = terminal_size::terminal_size_of(io::stdout());
        let limit = terminal.map_or(usize::MAX, |(width, _)| usize::from(width.0));
        f.write_str(&self.render(limit))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> Table {
        let mut table = Table::new(&["name", "size", "why"], &[1]);
        let why = "not among the newest 1; version 3 stands for 2026-11-22".to_owned();
        table.row(vec!["customer-database@1".into(), "40 GiB".into(), why]);
        table.row(vec!["vm@1".into(), "4 GiB".into(), "held".into()]);
        table
    }

    #[test]
    fn a_table_fits_the_terminal_and_loses_nothing() {
        let words = |text: &str| -> Vec<String> {
            let mut words: Vec<String> = text.split_whitespace().map(str::to_owned).collect();
            words.sort();
            words
        };
        let whole = table().render(usize::MAX);
        assert_eq!(whole.lines().count(), 3, "{whole}");
        for limit in [80, 60, 52, 40, 30] {
            let text = table().render(limit);
            let widest = text.lines().map(|line| line.chars().count()).max();
            assert!(
                widest.is_some_and(|widest| widest <= limit),
                "{limit}:\n{text}"
            );
            assert_eq!(words(&text), words(&whole));
        }
        let narrow = table().render(40);
        assert!(narrow.contains("\nvm@1\n"), "{narrow}");
        assert!(!table().render(1).is_empty());
    }

    #[test]
    fn an_empty_table_is_its_heading() {
        assert_eq!(Table::new(&["a", "b"], &[]).render(80), "a  b\n");
        assert_eq!(Table::new(&[], &[]).render(80), "\n");
    }
}
