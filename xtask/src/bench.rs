//! `cargo xtask bench`: measures Hikae beside its peers on this machine, and writes `docs/BENCHMARKS.md`.
//!
//! ```text
//! build release ─► make the disks ─► sections, each: round 1..n { every tool, order rotated } ─► report ─► clean up
//! ```
//!
//! - All tools of a section run within the same round, so that a slow minute of the machine hits all of them; a ratio
//!   is the median of the rounds' ratios, never the ratio of two medians from different hours.
//! - Every run ends flushed: the time of `syncfs` on the target is part of the run.
//! - Whatever is measured runs in a process of its own, whose time and peak memory the kernel reports (`wait4`).
//!   This process itself stays small, because a child inherits its parent's peak.
//! - `--only` runs chosen sections for tuning; such a run never replaces `docs/BENCHMARKS.md`.
//!
//! It does not judge correctness, except that what was restored or converted is compared with its source.

mod convert;
mod disk;
mod extract;
mod machine;
mod measure;
mod plain;
mod random;
mod report;
mod scaling;
mod tool;
mod transfer;
mod versions;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use report::Report;
use tool::{Tool, ToolKind};

const USAGE: &str =
    "cargo xtask bench [--size-gib N] [--quick] [--rounds N] [--install] [--only SECTION,…] \
[--dir DIR] [--keep] [--no-build]
sections: initial, unchanged, one-percent, database, restore, extract, convert, scaling, versions";

/// A part of the benchmark that can run by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Section {
    /// The first copy of a disk into an empty repository.
    Initial,
    /// A second run over the same disk.
    Unchanged,
    /// A run after 4 KiB writes to one page in a hundred.
    OnePercent,
    /// 20,000 writes of 8 KiB in a database file: what is stored.
    Database,
    /// Back to a raw file, caches dropped.
    Restore,
    /// All files of a version into a folder; all names of a volume.
    Extract,
    /// Raw to dynamic VHDX and back.
    Convert,
    /// The same data in ever larger virtual disks.
    Scaling,
    /// Garbage collection and verify over ever more versions.
    Versions,
}

impl Section {
    const ALL: [(&'static str, Self); 9] = [
        ("initial", Self::Initial),
        ("unchanged", Self::Unchanged),
        ("one-percent", Self::OnePercent),
        ("database", Self::Database),
        ("restore", Self::Restore),
        ("extract", Self::Extract),
        ("convert", Self::Convert),
        ("scaling", Self::Scaling),
        ("versions", Self::Versions),
    ];

    fn parse(text: &str) -> Result<Self> {
        Self::ALL
            .iter()
            .find(|(name, _)| *name == text)
            .map(|(_, section)| *section)
            .with_context(|| format!("no section is called {text:?}\n{USAGE}"))
    }
}

/// Whether everything is measured in full or just seen to work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Effort {
    /// The sizes that the bars are stated for.
    Full,
    /// Small sizes and few versions: a smoke test.
    Quick,
}

/// What the command line asked for.
#[derive(Debug, Clone)]
pub(crate) struct Options {
    pub(crate) size_bytes: u64,
    pub(crate) rounds: usize,
    pub(crate) effort: Effort,
    pub(crate) sections: BTreeSet<Section>,
    tools: Vec<ToolKind>,
    pub(crate) dir: PathBuf,
    install: bool,
    keep: bool,
    build: bool,
}

impl Options {
    fn parse(arguments: &[String], workspace: &Path) -> Result<Self> {
        let mut options = Self {
            size_bytes: 6 << 30,
            rounds: 5,
            effort: Effort::Full,
            sections: Section::ALL.iter().map(|(_, section)| *section).collect(),
            tools: ToolKind::ALL.to_vec(),
            dir: workspace.join("target/bench"),
            install: false,
            keep: false,
            build: true,
        };
        let mut size_gib = None;
        let mut rounds = None;
        let mut rest = arguments.iter();
        while let Some(argument) = rest.next() {
            let mut value = || {
                rest.next()
                    .with_context(|| format!("{argument} wants a value\n{USAGE}"))
            };
            match argument.as_str() {
                "--size-gib" => size_gib = Some(value()?.parse::<u64>().context("--size-gib")?),
                "--rounds" => rounds = Some(value()?.parse::<usize>().context("--rounds")?),
                "--only" => {
                    options.sections = value()?
                        .split(',')
                        .map(Section::parse)
                        .collect::<Result<_>>()?;
                }
                "--tools" => {
                    options.tools = value()?
                        .split(',')
                        .map(ToolKind::parse)
                        .collect::<Option<_>>()
                        .context(USAGE)?;
                }
                "--dir" => options.dir = std::path::absolute(value()?)?,
                "--quick" => options.effort = Effort::Quick,
                "--install" => options.install = true,
                "--keep" => options.keep = true,
                "--no-build" => options.build = false,
                other => bail!("{other:?} is not an option\n{USAGE}"),
            }
        }
        if options.effort == Effort::Quick {
            (options.size_bytes, options.rounds) = (1 << 30, 1);
        }
        options.size_bytes = size_gib.map_or(options.size_bytes, |gib| gib << 30);
        options.rounds = rounds.unwrap_or(options.rounds);
        ensure!(options.rounds > 0, "--rounds must be at least 1");
        ensure!(
            (1 << 30..=1 << 40).contains(&options.size_bytes),
            "--size-gib must be 1..=1024"
        );
        Ok(options)
    }

    fn wants(&self, section: Section) -> bool {
        self.sections.contains(&section)
    }

    fn is_whole(&self) -> bool {
        self.sections.len() == Section::ALL.len() && self.tools.len() == ToolKind::ALL.len()
    }
}

/// Where the measured programs are.
#[derive(Debug, Clone)]
pub(crate) struct Programs {
    pub(crate) hikae: PathBuf,
    pub(crate) plain: PathBuf,
    pub(crate) restic: Option<PathBuf>,
    pub(crate) borg: Option<PathBuf>,
    pub(crate) b3sum: Option<PathBuf>,
    pub(crate) qemu_img: Option<PathBuf>,
    pub(crate) qemu_io: Option<PathBuf>,
}

/// Runs the benchmark with the arguments behind `bench`.
pub(crate) fn run(arguments: &[String]) -> Result<()> {
    if let Some(("--plain-loop", files)) = arguments
        .split_first()
        .map(|(first, rest)| (first.as_str(), rest))
    {
        let file = files.first().context("--plain-loop FILE")?;
        return plain::run(Path::new(file));
    }
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .context("the workspace")?;
    let options = Options::parse(arguments, workspace)?;
    if options.build {
        build(workspace)?;
    }
    if options.install {
        install(workspace)?;
    }
    let programs = find_programs(&options, workspace)?;
    std::fs::create_dir_all(&options.dir)?;
    let work = options.dir.join("work");
    clear(&work)?;
    std::fs::create_dir_all(&work)?;
    disk::require_space(&work, options.size_bytes)?;

    let mut report = Report::new(machine::describe(&work, &programs)?, &options);
    let outcome = run_sections(&options, &programs, &work, &mut report);
    if !options.keep {
        clear(&work)?;
    }
    outcome?;
    let text = report.render();
    let path = if options.is_whole() && options.effort == Effort::Full {
        workspace.join("docs/BENCHMARKS.md")
    } else {
        options.dir.join("BENCHMARKS.md")
    };
    std::fs::write(&path, &text).with_context(|| format!("writing {}", path.display()))?;
    println!("{text}\nwritten to {}", path.display());
    Ok(())
}

fn run_sections(
    options: &Options,
    programs: &Programs,
    work: &Path,
    report: &mut Report,
) -> Result<()> {
    let transfer = [
        Section::Initial,
        Section::Unchanged,
        Section::OnePercent,
        Section::Restore,
    ];
    let needs_disk =
        options.wants(Section::Convert) || transfer.iter().any(|one| options.wants(*one));
    if needs_disk {
        let image = work.join("disk.raw");
        disk::create_realistic(&image, options.size_bytes, work)?;
        if options.wants(Section::Convert) {
            convert::run(options, programs, work, &image, report)?;
        }
        if transfer.iter().any(|one| options.wants(*one)) {
            transfer::run(options, programs, work, &image, report)?;
        }
        std::fs::remove_file(&image)?;
    }
    if options.wants(Section::Database) {
        transfer::run_database(options, programs, work, report)?;
    }
    if options.wants(Section::Extract) {
        extract::run(options, programs, work, report)?;
    }
    if options.wants(Section::Scaling) {
        scaling::run(options, programs, work, report)?;
    }
    if options.wants(Section::Versions) {
        versions::run(options, programs, work, report)?;
    }
    report.judge_memory();
    Ok(())
}

fn clear(dir: &Path) -> Result<()> {
    match std::fs::remove_dir_all(dir) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error).with_context(|| format!("removing {}", dir.display())),
    }
}

fn build(workspace: &Path) -> Result<()> {
    for package in ["hikae", "xtask"] {
        let status = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
            .args(["build", "--release", "--package", package])
            .current_dir(workspace)
            .status()
            .context("cargo build")?;
        ensure!(status.success(), "building {package} failed");
    }
    Ok(())
}

/// Installs the peers: Debian's restic and borg, and b3sum under `target/`.
fn install(workspace: &Path) -> Result<()> {
    let steps: [(&str, &[&str]); 3] = [
        ("apt-get", &["update", "-qq"]),
        (
            "apt-get",
            &[
                "install",
                "-y",
                "-qq",
                "restic",
                "borgbackup",
                "qemu-utils",
                "e2fsprogs",
                "ntfs-3g",
            ],
        ),
        (
            "cargo",
            &[
                "install",
                "--quiet",
                "b3sum",
                "--root",
                "target/bench-tools",
            ],
        ),
    ];
    for (program, arguments) in steps {
        let status = Command::new(program)
            .args(arguments)
            .env("DEBIAN_FRONTEND", "noninteractive")
            .current_dir(workspace)
            .status()
            .with_context(|| format!("running {program}"))?;
        ensure!(status.success(), "{program} {} failed", arguments.join(" "));
    }
    Ok(())
}

fn find_programs(options: &Options, workspace: &Path) -> Result<Programs> {
    let release = workspace.join("target/release");
    let programs = Programs {
        hikae: release.join("hikae"),
        plain: release.join("xtask"),
        restic: find_program("restic"),
        borg: find_program("borg"),
        b3sum: Some(workspace.join("target/bench-tools/bin/b3sum"))
            .filter(|path| path.is_file())
            .or_else(|| find_program("b3sum")),
        qemu_img: find_program("qemu-img"),
        qemu_io: find_program("qemu-io"),
    };
    for (kind, program) in [
        (ToolKind::Hikae, &programs.hikae),
        (ToolKind::PlainLoop, &programs.plain),
    ] {
        let usable = program.is_file() || !options.tools.contains(&kind);
        ensure!(
            usable,
            "{} is missing: leave out --no-build",
            program.display()
        );
    }
    let missing: Vec<&str> = [
        ("restic", &programs.restic),
        ("borg", &programs.borg),
        ("b3sum", &programs.b3sum),
        ("qemu-img", &programs.qemu_img),
    ]
    .iter()
    .filter(|(_, path)| path.is_none())
    .map(|(name, _)| *name)
    .collect();
    if !missing.is_empty() {
        println!(
            "not measured, because not installed (--install): {}",
            missing.join(", ")
        );
    }
    Ok(programs)
}

fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .map(|dir| dir.join(name))
        .find(|file| file.is_file())
}

/// The wanted tools that are installed, each with a place of its own under `work`.
fn tools(options: &Options, programs: &Programs, work: &Path) -> Vec<Tool> {
    options
        .tools
        .iter()
        .filter_map(|kind| Tool::find(*kind, programs, work))
        .collect()
}
