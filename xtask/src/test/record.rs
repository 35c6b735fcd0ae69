//! How many tests passed, failed and were skipped, read from what the runners say.

use std::fmt;

use anyhow::{Context, Result};

/// How a test says that it could not run.
const SKIP_MARK: &str = "SKIP:";

/// Tests counted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Tally {
    pub(super) passed: u64,
    pub(super) failed: u64,
    /// What was said about each skip.
    pub(super) skips: Vec<String>,
}

/// What came of a step, or of a runner.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    Passed,
    Failed,
}

impl From<bool> for Outcome {
    fn from(succeeded: bool) -> Self {
        if succeeded {
            Self::Passed
        } else {
            Self::Failed
        }
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // A skipped test was counted as passed by its runner.
        let skipped = u64::try_from(self.skips.len()).unwrap_or(u64::MAX);
        let passed = self.passed.saturating_sub(skipped);
        write!(
            f,
            "{passed} passed, {} failed, {skipped} skipped",
            self.failed
        )
    }
}

impl Tally {
    /// Counts a step that is no test.
    pub(super) fn step(&mut self, outcome: Outcome) {
        let count = match outcome {
            Outcome::Passed => &mut self.passed,
            Outcome::Failed => &mut self.failed,
        };
        *count = count.saturating_add(1);
    }

    pub(super) fn add(&mut self, other: Self) {
        self.passed = self.passed.saturating_add(other.passed);
        self.failed = self.failed.saturating_add(other.failed);
        self.skips.extend(other.skips);
    }

    /// A runner that failed has a failure to show, and one that ran nothing did not succeed.
    pub(super) fn require(&mut self, runner: Outcome) {
        let nothing_ran = self.passed == 0;
        if self.failed == 0 && (nothing_ran || runner == Outcome::Failed) {
            self.failed = 1;
        }
    }

    /// Reads nextest's JUnit record.
    ///
    /// The root element has the numbers; what tests printed stands in `system-out` elements, line by line.
    pub(super) fn of_junit(record: &str) -> Result<Self> {
        let (_, behind) = record
            .split_once("<testsuites ")
            .context("no testsuites element")?;
        let (root, _) = behind.split_once('>').context("an element without end")?;
        let number = |name: &str| -> Result<u64> {
            let mark = format!(" {name}=\"");
            let padded = format!(" {root}");
            let (_, value) = padded
                .split_once(&mark)
                .with_context(|| format!("no {name}"))?;
            let (value, _) = value
                .split_once('"')
                .with_context(|| format!("no end of {name}"))?;
            value
                .parse()
                .with_context(|| format!("{name} is no number"))
        };
        let failed = number("failures")?.saturating_add(number("errors")?);
        let passed = number("tests")?.saturating_sub(failed);
        let skips = record.lines().filter_map(skip_in).collect();
        Ok(Self {
            passed,
            failed,
            skips,
        })
    }

    /// Reads one line of `cargo test -- --nocapture`.
    pub(super) fn read_line(&mut self, line: &str) {
        self.skips.extend(skip_in(line));
        let Some(result) = line.trim().strip_prefix("test result: ") else {
            return;
        };
        let count = |what: &str| -> u64 {
            let part = result
                .split([';', '.'])
                .find_map(|part| part.trim().strip_suffix(what));
            part.and_then(|number| number.trim().parse().ok())
                .unwrap_or(0)
        };
        self.passed = self.passed.saturating_add(count("passed"));
        self.failed = self.failed.saturating_add(count("failed"));
    }
}

/// What a line says about a skip. A runner may have begun the line (`test name ... `, `<system-out>`).
fn skip_in(line: &str) -> Option<String> {
    let line = line.trim_start();
    let said = line
        .strip_prefix(SKIP_MARK)
        .or_else(|| line.split_once("... SKIP:").map(|(_, said)| said))
        .or_else(|| line.split_once(">SKIP:").map(|(_, said)| said))?;
    Some(said.split('<').next().unwrap_or(said).trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_of_nextest_is_counted() {
        let record = r#"<?xml version="1.0" encoding="UTF-8"?>
<testsuites name="nextest-run" tests="5" failures="1" errors="0" uuid="x" time="0.2">
  <testsuite name="a" tests="5" disabled="0" errors="0" failures="1">
    <testcase name="one"><system-out>
running 1 test
SKIP: qemu-img is not installed
test one ... ok</system-out></testcase>
    <testcase name="two"><system-out>SKIP: no corpus</system-out></testcase>
    <testcase name="three"><system-out>test three ... SKIP: no corpus
says `SKIP:` in the middle</system-out></testcase>
</testsuite></testsuites>"#;
        let tally = Tally::of_junit(record).expect("a record");
        assert_eq!(
            tally.skips,
            ["qemu-img is not installed", "no corpus", "no corpus"]
        );
        assert_eq!(tally.to_string(), "1 passed, 1 failed, 3 skipped");
        assert!(Tally::of_junit("<html>").is_err());
        assert!(Tally::of_junit("<testsuites tests=\"5\">").is_err());
    }

    #[test]
    fn what_cargo_test_says_is_counted() {
        let mut tally = Tally::default();
        for line in [
            "running 3 tests",
            "SKIP: no corpus",
            "test a ... ok",
            "test result: ok. 3 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s",
            "test result: FAILED. 11 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out; finished in 1.00s",
        ] {
            tally.read_line(line);
        }
        assert_eq!(tally.to_string(), "13 passed, 2 failed, 1 skipped");
    }

    #[test]
    fn a_runner_that_failed_or_ran_nothing_counts_as_a_failure() {
        for (passed, succeeded, failed) in
            [(3, true, 0), (3, false, 1), (0, true, 1), (0, false, 1)]
        {
            let mut tally = Tally {
                passed,
                ..Tally::default()
            };
            tally.require(Outcome::from(succeeded));
            assert_eq!(tally.failed, failed, "{passed} {succeeded}");
        }
    }

    #[test]
    fn steps_are_counted() {
        let mut tally = Tally::default();
        tally.step(Outcome::Passed);
        tally.step(Outcome::Failed);
        let mut whole = Tally::default();
        whole.add(tally);
        assert_eq!(whole.to_string(), "1 passed, 1 failed, 0 skipped");
    }
}
