//! `cargo xtask test`: everything that decides whether a change may land.
//!
//! ```text
//!   Debian packages ─► Python packages ─► fmt ─► tidy ─► clippy ─► tests ─► fuzz ─► N passed, N failed, N skipped
//!   (what tests need; only what is missing)      └──── each counts as one ────┘
//! ```
//!
//! A later step runs even if an earlier one failed, so that one run tells all. A test that cannot run says so in a line
//! that begins with `SKIP:`; such lines are counted, shown at the end, and fail the run when `CI` is set.

mod guest;
mod packages;
mod record;

use std::ffi::OsString;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context, Result};

use crate::fuzz::{self, FuzzOptions};
use crate::tidy;
use record::{Outcome, Tally};

/// Seconds for each fuzz target; longer runs are for `cargo xtask fuzz`.
const FUZZ_SECONDS: u64 = 3;

/// Runs it all.
pub(crate) fn run(workspace: &Path) -> Result<ExitCode> {
    let mut tally = Tally::default();
    let mut failed_steps = Vec::new();
    let missing = packages::prepare(workspace)?;
    let kerberos = kerberos(&mut tally);
    let clippy = [
        &["clippy", "--workspace", "--all-targets"],
        kerberos,
        &["--", "-D", "warnings"],
    ]
    .concat();
    let steps: [(&str, &[&str]); 3] = [
        ("fmt", &["fmt", "--all", "--check"]),
        ("clippy", &clippy),
        (
            "clippy without features",
            &[
                "clippy",
                "-p",
                "store",
                "--no-default-features",
                "--",
                "-D",
                "warnings",
            ],
        ),
    ];
    for (name, arguments) in steps {
        heading(name);
        let status = cargo(workspace).args(arguments).status();
        let outcome = Outcome::from(
            status
                .with_context(|| format!("start cargo {name}"))?
                .success(),
        );
        tally.step(outcome);
        if outcome == Outcome::Failed {
            failed_steps.push(name);
        }
    }
    heading("tidy");
    let findings = tidy::findings(workspace)?;
    for finding in &findings {
        println!("{finding}");
    }
    let outcome = Outcome::from(findings.is_empty());
    tally.step(outcome);
    if outcome == Outcome::Failed {
        failed_steps.push("tidy");
    }
    heading("tests");
    let tests = tests(workspace, kerberos)?;
    if tests.failed > 0 {
        failed_steps.push("tests");
    }
    tally.add(tests);
    heading("fuzz");
    for outcome in fuzzed(workspace)? {
        tally.step(outcome);
        if outcome == Outcome::Failed {
            failed_steps.push("fuzz");
        }
    }
    Ok(conclude(&tally, &failed_steps, &missing))
}

fn conclude(tally: &Tally, failed_steps: &[&str], missing: &[String]) -> ExitCode {
    println!();
    for missing in missing {
        println!("missing: {missing}");
    }
    for skip in &tally.skips {
        println!("skipped: {skip}");
    }
    if !failed_steps.is_empty() {
        println!("failed: {}", failed_steps.join(", "));
    }
    let in_ci = std::env::var_os("CI").is_some();
    let skipped_in_ci = in_ci && !tally.skips.is_empty();
    if skipped_in_ci {
        println!("failed: tests were skipped, which CI does not take");
    }
    println!("{tally}");
    if tally.failed > 0 || skipped_in_ci {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    }
}

/// Every fuzz target for a moment: what is found is shown, and counts as a failure each.
fn fuzzed(workspace: &Path) -> Result<Vec<Outcome>> {
    let options = FuzzOptions {
        targets: Vec::new(),
        seconds: FUZZ_SECONDS,
    };
    // Packages that seeds come from may be missing; a target that does not build is a failure of them all.
    match fuzz::fuzz(&options, workspace) {
        Ok(reports) => Ok(reports
            .iter()
            .map(|report| Outcome::from(report.is_sound()))
            .collect()),
        Err(error) => {
            println!("{error:#}");
            Ok(vec![Outcome::Failed])
        }
    }
}

fn heading(name: &str) {
    println!("\n== {name}");
}

fn cargo(workspace: &Path) -> Command {
    let mut command =
        Command::new(std::env::var_os("CARGO").unwrap_or_else(|| OsString::from("cargo")));
    command.current_dir(workspace);
    command
}

/// The feature that needs the system's Kerberos, where that is there; without it a skip.
fn kerberos(tally: &mut Tally) -> &'static [&'static str] {
    if packages::builds_kerberos() {
        &["--features", "wsman/kerberos"]
    } else {
        // A skip counts as a test that ran, as runners count it.
        tally.step(Outcome::Passed);
        tally.read_line("SKIP: logins by Kerberos, for want of libkrb5-dev and libclang-dev");
        &[]
    }
}

/// Runs the tests with whichever runner is there.
fn tests(workspace: &Path, features: &[&str]) -> Result<Tally> {
    let nextest = cargo(workspace).args(["nextest", "--version"]).output();
    if nextest.is_ok_and(|output| output.status.success()) {
        with_nextest(workspace, features)
    } else {
        println!("cargo-nextest is not installed: running cargo test");
        with_cargo_test(workspace, features)
    }
}

fn with_nextest(workspace: &Path, features: &[&str]) -> Result<Tally> {
    let path = workspace.join("target/nextest/xtask/junit.xml");
    if path.exists() {
        std::fs::remove_file(&path).context("remove the last run's record")?;
    }
    let status = cargo(workspace)
        .args(["nextest", "run", "--workspace", "--profile", "xtask"])
        .args(features)
        .status()
        .context("start cargo nextest")?;
    // Without a record nothing ran: the tests did not build.
    let mut tally = match std::fs::read_to_string(&path) {
        Ok(record) => Tally::of_junit(&record).context("read the record of nextest")?,
        Err(_) => Tally::default(),
    };
    tally.require(Outcome::from(status.success()));
    Ok(tally)
}

fn with_cargo_test(workspace: &Path, features: &[&str]) -> Result<Tally> {
    let mut child = cargo(workspace)
        .args(["test", "--workspace", "--no-fail-fast"])
        .args(features)
        .args(["--", "--nocapture"])
        .stdout(Stdio::piped())
        .spawn()
        .context("start cargo test")?;
    let mut tally = Tally::default();
    if let Some(output) = child.stdout.take() {
        for line in BufReader::new(output).split(b'\n') {
            let line = line.context("read what cargo test says")?;
            let line = String::from_utf8_lossy(&line);
            println!("{line}");
            tally.read_line(&line);
        }
    }
    let status = child.wait().context("wait for cargo test")?;
    tally.require(Outcome::from(status.success()));
    Ok(tally)
}
