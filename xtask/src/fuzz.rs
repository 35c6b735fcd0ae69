//! `cargo xtask fuzz`: coverage-guided lies for every parser of strangers' bytes.
//!
//! ```text
//!   corpora, mkfs tools ─► seeds ─┐
//!   fuzz/ ─► built with counters ─┴─► each target for so many seconds ─► a table: runs, coverage, processor time, memory
//!                                       │                 then all that was found once more, in 256 MiB at most
//!                                       └─ a panic, a hang of 20 s, 256 MiB at once: the input is kept, the run fails
//! ```
//! What is built is what `cargo fuzz build -s none` builds, without that program and with the stable compiler. What a run
//! has found interesting stays in `target/fuzz/corpus` and is where the next one begins.

pub(crate) mod made;
mod seeds;

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use wait4::Wait4;

const USAGE: &str = "usage: cargo xtask fuzz [--targets A,B,…] [--seconds N]

Every target of fuzz/ for N seconds (60 when not said), one after the other.";

/// What the instrumentation of `cargo fuzz -s none` is, as of version 0.13.
const FLAGS: &str = "-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares --cfg fuzzing -Cdebug-assertions";

/// One input may take so long, and allocate so much at once; the process may hold more, for libFuzzer's own corpus.
const CASE_SECONDS: u32 = 20;
const ALLOCATION_MIB: u32 = 256;
const PROCESS_MIB: u32 = 1024;
/// Inputs that one process is given when they are run again.
const REPLAYED_AT_ONCE: usize = 400;
/// The largest input.
pub(crate) const INPUT_MAX_BYTES: usize = 1 << 20;

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct FuzzOptions {
    /// Only these; all when empty.
    pub(crate) targets: Vec<String>,
    /// Seconds for each.
    pub(crate) seconds: u64,
}

/// What came of a target.
#[derive(Debug, Clone)]
pub(crate) struct TargetReport {
    target: String,
    runs: u64,
    covered: u64,
    cpu_s: f64,
    peak_mib: u64,
    /// What was found, as libFuzzer says it.
    failure: Option<String>,
}

impl TargetReport {
    /// Whether nothing was found.
    pub(crate) fn is_sound(&self) -> bool {
        self.failure.is_none()
    }
}

/// The verb.
pub(crate) fn run(arguments: &[String], workspace: &Path) -> Result<ExitCode> {
    let options = parse(arguments)?;
    let reports = fuzz(&options, workspace)?;
    print!("{}", table(&reports));
    Ok(if reports.iter().all(TargetReport::is_sound) {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn parse(arguments: &[String]) -> Result<FuzzOptions> {
    let mut options = FuzzOptions {
        targets: Vec::new(),
        seconds: 60,
    };
    let mut words = arguments.iter();
    while let Some(word) = words.next() {
        let value = words.next().with_context(|| USAGE)?;
        match word.as_str() {
            "--targets" => options.targets = value.split(',').map(str::to_owned).collect(),
            "--seconds" => options.seconds = value.parse().context(USAGE)?,
            _ => bail!(USAGE),
        }
    }
    Ok(options)
}

/// Builds, seeds and runs.
///
/// # Errors
/// When it cannot be built or a target is not known. What fuzzing finds is in the reports.
pub(crate) fn fuzz(options: &FuzzOptions, workspace: &Path) -> Result<Vec<TargetReport>> {
    let all = targets(workspace)?;
    for wanted in &options.targets {
        ensure!(
            all.contains(wanted),
            "no target {wanted}; there are {}",
            all.join(", ")
        );
    }
    let chosen: Vec<String> = all
        .into_iter()
        .filter(|one| options.targets.is_empty() || options.targets.contains(one))
        .collect();
    let folder = workspace.join("target/fuzz");
    let programs = build(workspace, &folder)?;
    seeds::write(workspace, &folder.join("seeds"), &chosen)?;
    chosen
        .iter()
        .map(|target| run_target(target, options.seconds, &programs.join(target), &folder))
        .collect()
}

/// The names of the targets, as the manifest of `fuzz/` lists them.
pub(crate) fn targets(workspace: &Path) -> Result<Vec<String>> {
    let path = workspace.join("fuzz/Cargo.toml");
    let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    let paths = text.lines().filter_map(|line| {
        let file = line.strip_prefix("path = \"fuzz_targets/")?;
        file.strip_suffix(".rs\"").map(str::to_owned)
    });
    let mut names: Vec<String> = paths.collect();
    names.sort();
    ensure!(!names.is_empty(), "{} lists no targets", path.display());
    Ok(names)
}

fn build(workspace: &Path, folder: &Path) -> Result<PathBuf> {
    // A target has to be named, or the flags would apply to build scripts, too, which have no fuzzer to link with.
    let host = host()?;
    let status = Command::new("cargo")
        .args(["build", "--release", "--bins", "--target", &host])
        .args(["--manifest-path", "fuzz/Cargo.toml", "--target-dir"])
        .arg(folder)
        .env("RUSTFLAGS", FLAGS)
        .current_dir(workspace)
        .status()
        .context("start cargo")?;
    ensure!(status.success(), "the fuzz targets do not build");
    Ok(folder.join(host).join("release"))
}

fn host() -> Result<String> {
    let output = Command::new("rustc")
        .arg("-vV")
        .output()
        .context("start rustc")?;
    let text = String::from_utf8(output.stdout).context("the version of rustc")?;
    let host = text.lines().find_map(|line| line.strip_prefix("host: "));
    host.map(str::to_owned).context("rustc names no host")
}

fn run_target(target: &str, seconds: u64, program: &Path, folder: &Path) -> Result<TargetReport> {
    let corpus = folder.join("corpus").join(target);
    let seeds = folder.join("seeds").join(target);
    let artifacts = folder.join("artifacts");
    for made in [&corpus, &artifacts] {
        std::fs::create_dir_all(made).with_context(|| made.display().to_string())?;
    }
    let log = folder.join(format!("{target}.log"));
    let errors = std::fs::File::create(&log).with_context(|| log.display().to_string())?;
    let begun = Instant::now();
    let mut child = Command::new(program)
        .arg(&corpus)
        .arg(&seeds)
        .arg(format!("-max_total_time={seconds}"))
        .arg(format!("-timeout={CASE_SECONDS}"))
        .arg(format!("-malloc_limit_mb={ALLOCATION_MIB}"))
        .arg(format!("-rss_limit_mb={PROCESS_MIB}"))
        .arg(format!("-max_len={INPUT_MAX_BYTES}"))
        .arg(format!(
            "-artifact_prefix={}/{target}-",
            artifacts.display()
        ))
        .args(["-print_final_stats=1", "-reload=0", "-len_control=0"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(errors)
        .spawn()
        .with_context(|| format!("start {}", program.display()))?;
    let used = child
        .wait4()
        .with_context(|| format!("wait for {target}"))?;
    let text = std::fs::read(&log).with_context(|| log.display().to_string())?;
    let text = String::from_utf8_lossy(&text);
    let mut failure = (!used.status.success()).then(|| failure(&text, &log));
    let peak_mib = match replay(program, &[&corpus, &seeds]) {
        Ok(peak_mib) => peak_mib,
        Err(error) => {
            failure.get_or_insert_with(|| format!("again, one after the other: {error:#}"));
            0
        }
    };
    let report = TargetReport {
        target: target.to_owned(),
        runs: last_number(&text, "stat::number_of_executed_units:"),
        covered: last_number(&text, " cov:"),
        cpu_s: (used.rusage.utime + used.rusage.stime).as_secs_f64(),
        peak_mib,
        failure,
    };
    println!(
        "{target}: {} runs, {} edges, {:?}",
        report.runs,
        report.covered,
        Duration::from_secs(begun.elapsed().as_secs())
    );
    if let Some(failure) = &report.failure {
        println!("  {failure}");
    }
    Ok(report)
}

/// Everything that was found worth keeping, once more in processes that hold nothing else: the most that one held, in
/// MiB, which may not be more than [`ALLOCATION_MIB`].
fn replay(program: &Path, folders: &[&Path]) -> Result<u64> {
    let mut files = Vec::new();
    for folder in folders {
        for entry in std::fs::read_dir(folder).with_context(|| folder.display().to_string())? {
            files.push(entry?.path());
        }
    }
    files.sort();
    let mut peak_bytes = 0;
    for some in files.chunks(REPLAYED_AT_ONCE) {
        let mut child = Command::new(program)
            .arg(format!("-timeout={CASE_SECONDS}"))
            .arg(format!("-rss_limit_mb={ALLOCATION_MIB}"))
            .args(some)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .with_context(|| format!("start {}", program.display()))?;
        let used = child.wait4()?;
        ensure!(used.status.success(), "{} in one of {some:?}", used.status);
        peak_bytes = peak_bytes.max(used.rusage.maxrss);
    }
    ensure!(
        peak_bytes <= u64::from(ALLOCATION_MIB) << 20,
        "{} MiB were held",
        peak_bytes >> 20
    );
    Ok(peak_bytes >> 20)
}

/// The number behind the last occurrence of a mark.
fn last_number(text: &str, mark: &str) -> u64 {
    let rest = text.rsplit_once(mark).map_or("", |(_, rest)| rest);
    let word = rest.split_whitespace().next().unwrap_or_default();
    word.parse().unwrap_or(0)
}

/// The lines that say what was found.
fn failure(text: &str, log: &Path) -> String {
    let telling = text.lines().filter(|line| {
        line.contains("panicked at")
            || line.contains("ERROR:")
            || line.contains("Test unit written")
    });
    let mut said: Vec<&str> = telling.take(6).collect();
    let place = format!("see {}", log.display());
    said.push(&place);
    said.join("\n  ")
}

fn table(reports: &[TargetReport]) -> String {
    let mut text = String::from(
        "| target | runs | edges covered | processor time | peak memory |\n|---|--:|--:|--:|--:|\n",
    );
    for one in reports {
        let _ = writeln!(
            text,
            "| {} | {} | {} | {:.0} s | {} MiB |",
            one.target, one.runs, one.covered, one.cpu_s, one.peak_mib
        );
    }
    let total: f64 = reports.iter().map(|one| one.cpu_s).sum();
    let _ = writeln!(
        text,
        "\n{:.2} hours of processor time in all.",
        total / 3600.0
    );
    text
}
