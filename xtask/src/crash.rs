//! `cargo xtask crash`: `kill -9` of real processes, at random moments and at chosen calls, with a table of what was hit.
//!
//! ```text
//!   for each operation:  scene (≥ 20 packs, committed points) ─► whole runs (which calls, how long) ─► rounds ─► table
//!   race:                backups, gc, forgetting, restores, verify and copy at once for minutes, some of them killed
//! ```
//!
//! - Half of the blows fall at a random age of the process, half at a call that was hit least: the process stops itself there
//!   (`HIKAE_TRACE_STOP`), and is killed before the call, while it works, or behind it.
//! - What was hit is told by the trace that the dead process left, not by what was aimed at.
//! - The first thing that does not hold ends everything, and its folder stays.
//!
//! What it cannot show: bytes that were written, not synced, and lost with the power. A kill loses nothing that the system has taken;
//! the store in memory that forgets what was not made durable is for that.

mod coverage;
mod disk;
mod phase;
mod program;
mod race;
mod round;
mod scene;
mod trace;

use std::fmt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

pub use coverage::{Coverage, Moment};
pub use disk::Random;
pub use round::{Blows, Tally};
pub use scene::{Operation, SceneSize};

const USAGE: &str =
    "cargo xtask crash [--operation OPERATION,…] [--rounds N] [--seed S] [--minutes M] \
[--store DIR] [--binary FILE] [--small] [--require-coverage] [--json]
operations: backup, resume, gc, settle, copy, repair, forget; race (for M minutes)";

/// Where rounds happen, and how many.
#[derive(Debug, Clone)]
pub struct CrashOptions {
    /// The program.
    pub binary: PathBuf,
    /// An empty or absent folder; what is in it is evidence when something does not hold.
    pub folder: PathBuf,
    /// How often each operation is killed.
    pub rounds: u64,
    /// Chooses disks, damage, moments and calls.
    pub seed: u64,
    /// How large the world is.
    pub size: SceneSize,
    /// Where processes are killed.
    pub blows: Blows,
}

/// What became of the rounds of one operation, all of which held.
#[derive(Debug)]
pub struct CrashReport {
    /// Which.
    pub operation: Operation,
    /// What brings it back.
    pub seed: u64,
    /// Packs in the repository before each round.
    pub packs: usize,
    /// Visible points before each round.
    pub points: usize,
    /// Typical time of an undisturbed run.
    pub typical: Duration,
    /// Time of everything.
    pub took: Duration,
    /// Counts.
    pub tally: Tally,
    /// What was hit.
    pub coverage: Coverage,
}

/// Kills an operation as often as told.
///
/// # Errors
/// The first thing that does not hold, with seed, round and the end of the trace; the folder stays.
pub fn execute(operation: Operation, options: &CrashOptions) -> Result<CrashReport> {
    let begun = Instant::now();
    let seed = options.seed;
    let folder = options.folder.join(operation.word());
    std::fs::create_dir_all(&folder).with_context(|| format!("make {}", folder.display()))?;
    let scene = scene::Scene::create(operation, &options.binary, &folder, options.size, seed)
        .with_context(|| format!("the scene of {} (seed {seed})", operation.word()))?;
    let mut rounds = round::Rounds::begin(&scene, &folder, seed, &options.blows)
        .with_context(|| format!("whole runs of {} (seed {seed})", operation.word()))?;
    for round in 0..options.rounds {
        if round > 0 && round.is_multiple_of(50) {
            eprintln!("{}: {round} rounds held", operation.word());
        }
        rounds.round(round).with_context(|| {
            let trace = folder.join("round").join("trace");
            let text = std::fs::read_to_string(&trace).unwrap_or_else(|error| error.to_string());
            let lines: Vec<&str> = text.lines().collect();
            let tail = lines.get(lines.len().saturating_sub(30)..).unwrap_or(&[]);
            format!(
                "VIOLATION: {} seed {seed} round {round}, kept in {}\n{}\n",
                operation.word(),
                folder.display(),
                tail.join("\n")
            )
        })?;
    }
    let report = CrashReport {
        operation,
        seed,
        packs: scene.packs,
        points: scene.committed.len(),
        typical: rounds.reference.median(),
        took: begun.elapsed(),
        tally: rounds.tally,
        coverage: rounds.coverage,
    };
    std::fs::remove_dir_all(&folder).with_context(|| format!("remove {}", folder.display()))?;
    Ok(report)
}

impl fmt::Display for CrashReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text())
    }
}

impl CrashReport {
    fn text(&self) -> String {
        let seed = self.seed;
        let Tally {
            rounds,
            kills,
            ended_first,
            committed,
            restored,
            refused,
        } = self.tally;
        format!(
            "### {}\n\nSeed {seed}; {} packs, {} points; a whole run takes {} ms. {rounds} rounds in {:.0} s: {kills} kills, {ended_first} \
             processes ended before the blow, {committed} rounds in which the trace shows a commit, {restored} restored points \
             compared, {refused} refused for damage that was not repaired yet.\n\n{}",
            self.operation.word(),
            self.packs,
            self.points,
            self.typical.as_millis(),
            self.took.as_secs_f64(),
            self.coverage.table()
        )
    }

    fn json(&self) -> Value {
        json!({
            "operation": self.operation.word(),
            "seed": self.seed,
            "packs": self.packs,
            "points": self.points,
            "rounds": self.tally.rounds,
            "kills": self.tally.kills,
            "ended_first": self.tally.ended_first,
            "committed": self.tally.committed,
            "restored": self.tally.restored,
            "refused": self.tally.refused,
            "seconds": self.took.as_secs_f64(),
            "rows": self.coverage.json(),
            "missed": self.coverage.missed(),
        })
    }
}

/// How results are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Printing {
    Text,
    Json,
}

/// Whether a row without a hit is a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Demand {
    Invariants,
    Coverage,
}

/// What was typed.
struct Wish {
    operations: Vec<Operation>,
    race: Option<Duration>,
    rounds: u64,
    seed: u64,
    store: Option<PathBuf>,
    binary: Option<PathBuf>,
    size: Option<SceneSize>,
    demand: Demand,
    printing: Printing,
}

impl Wish {
    fn parse(arguments: &[String]) -> Result<Self> {
        let mut wish = Self {
            operations: Vec::new(),
            race: None,
            rounds: 300,
            seed: 1,
            store: None,
            binary: None,
            size: None,
            demand: Demand::Invariants,
            printing: Printing::Text,
        };
        let mut minutes = 3.0;
        let mut given = "backup,resume,gc,settle,copy,repair,forget".to_owned();
        let mut words = arguments.iter();
        while let Some(word) = words.next() {
            let mut value = || {
                words
                    .next()
                    .with_context(|| format!("{word} wants a value\n{USAGE}"))
            };
            match word.as_str() {
                "--operation" => given.clone_from(value()?),
                "--rounds" => wish.rounds = value()?.parse().context("--rounds")?,
                "--seed" => wish.seed = value()?.parse().context("--seed")?,
                "--minutes" => minutes = value()?.parse().context("--minutes")?,
                "--store" => wish.store = Some(value()?.into()),
                "--binary" => wish.binary = Some(value()?.into()),
                "--small" => wish.size = Some(SceneSize::SMALL),
                "--require-coverage" => wish.demand = Demand::Coverage,
                "--json" => wish.printing = Printing::Json,
                other => bail!("{other:?} is not understood\n{USAGE}"),
            }
        }
        ensure!((0.0..=600.0).contains(&minutes), "--minutes: up to 600");
        for word in given.split(',') {
            if word == "race" {
                wish.race = Some(Duration::from_secs_f64(minutes * 60.0));
                continue;
            }
            let found = Operation::ALL.iter().find(|(known, _)| *known == word);
            let (_, operation) =
                found.with_context(|| format!("no operation {word:?}\n{USAGE}"))?;
            wish.operations.push(*operation);
        }
        Ok(wish)
    }
}

/// Does what was typed.
///
/// # Errors
/// As [`execute`]; what was typed makes no sense; the program cannot be built.
pub fn run(arguments: &[String], workspace: &Path) -> Result<ExitCode> {
    let wish = Wish::parse(arguments)?;
    let binary = match &wish.binary {
        Some(binary) => std::path::absolute(binary)?,
        None => build(workspace)?,
    };
    // Kept when something does not hold: evidence.
    let folder = tempfile::Builder::new()
        .prefix("hikae-crash-")
        .tempdir_in(wish.store.clone().unwrap_or_else(std::env::temp_dir))?
        .keep();
    let mut options = CrashOptions {
        binary,
        folder: folder.clone(),
        rounds: wish.rounds,
        seed: wish.seed,
        size: wish.size.unwrap_or(SceneSize::MANY_PACKS),
        blows: Blows::Mixed,
    };
    let mut missed = Vec::new();
    let mut reports = Vec::new();
    for operation in &wish.operations {
        options.size = wish.size.unwrap_or(SceneSize::usual(*operation));
        let report = execute(*operation, &options)?;
        missed.extend(
            report
                .coverage
                .missed()
                .into_iter()
                .map(|row| format!("{}: {row}", operation.word())),
        );
        match wish.printing {
            Printing::Text => println!("{report}"),
            Printing::Json => reports.push(report.json()),
        }
    }
    if let Some(time) = wish.race {
        let report = race::execute(&options, time)?;
        match wish.printing {
            Printing::Text => println!("{}", report.text(options.seed)),
            Printing::Json => reports.push(report.json(options.seed)),
        }
    }
    if wish.printing == Printing::Json {
        println!("{}", serde_json::to_string_pretty(&reports)?);
    }
    std::fs::remove_dir_all(&folder).with_context(|| format!("remove {}", folder.display()))?;
    for row in &missed {
        eprintln!("never hit: {row}");
    }
    Ok(if missed.is_empty() || wish.demand == Demand::Invariants {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Builds the program as it is shipped.
fn build(workspace: &Path) -> Result<PathBuf> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let status = Command::new(cargo)
        .args(["build", "--quiet", "--release", "--package", "hikae"])
        .current_dir(workspace)
        .status()
        .context("start cargo")?;
    ensure!(status.success(), "hikae does not build");
    let target = std::env::var_os("CARGO_TARGET_DIR")
        .map_or_else(|| workspace.join("target"), PathBuf::from);
    Ok(target.join("release").join("hikae"))
}
