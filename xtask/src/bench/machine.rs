//! What the numbers were measured on: processor, memory, kernel, file system, and the versions of the tools.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};

use super::Programs;

/// One fact, as a line of the report.
pub(crate) type Fact = (String, String);

/// Describes this machine and the programs on it.
pub(crate) fn describe(work: &Path, programs: &Programs) -> Result<Vec<Fact>> {
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").context("/proc/cpuinfo")?;
    let field = |name: &str| {
        let line = cpuinfo.lines().find(|line| line.starts_with(name));
        line.and_then(|line| line.split_once(':'))
            .map_or("unknown", |(_, value)| value.trim())
            .to_owned()
    };
    let flags = field("flags");
    let wanted = ["avx2", "avx512f", "aes", "vaes", "sha_ni"];
    let shown: Vec<&str> = wanted
        .into_iter()
        .filter(|flag| flags.split(' ').any(|one| one == *flag))
        .collect();
    let memory = fs::read_to_string("/proc/meminfo").context("/proc/meminfo")?;
    let kib: u64 = memory
        .lines()
        .find_map(|line| {
            line.strip_prefix("MemTotal:")?
                .trim()
                .strip_suffix(" kB")?
                .parse()
                .ok()
        })
        .context("MemTotal")?;
    let mut facts = vec![
        (
            "processor".to_owned(),
            format!("{} ({})", field("model name"), shown.join(", ")),
        ),
        (
            "cores".to_owned(),
            std::thread::available_parallelism()?.to_string(),
        ),
        (
            "memory".to_owned(),
            format!("{:.1} GiB", kib as f64 / f64::from(1 << 20)),
        ),
        (
            "kernel".to_owned(),
            fs::read_to_string("/proc/sys/kernel/osrelease")?
                .trim()
                .to_owned(),
        ),
        ("file system".to_owned(), file_system(work)?),
        ("busy with other work".to_owned(), load()?),
    ];
    facts.extend(versions(programs)?);
    Ok(facts)
}

/// What the measured programs call themselves.
fn versions(programs: &Programs) -> Result<Vec<Fact>> {
    let mut facts = Vec::new();
    let tools = [
        (
            Some(programs.hikae.clone()).filter(|path| path.is_file()),
            "--version",
        ),
        (programs.restic.clone(), "version"),
        (programs.borg.clone(), "--version"),
        (programs.b3sum.clone(), "--version"),
        (programs.qemu_img.clone(), "--version"),
    ];
    for (program, argument) in tools {
        let Some(program) = program else { continue };
        let name = program
            .file_name()
            .map_or_else(String::new, |name| name.to_string_lossy().into_owned());
        let output = Command::new(&program)
            .arg(argument)
            .output()
            .with_context(|| format!("{name} {argument}"))?;
        let text = String::from_utf8_lossy(&output.stdout);
        facts.push((
            name,
            text.lines().next().unwrap_or("unknown").trim().to_owned(),
        ));
    }
    Ok(facts)
}

/// How many other processes wanted the processors when the benchmark began.
fn load() -> Result<String> {
    let text = fs::read_to_string("/proc/loadavg").context("/proc/loadavg")?;
    let minute = text.split(' ').next().unwrap_or("unknown");
    Ok(format!("load average {minute} when it began"))
}

/// Kind and options of the file system that holds `path`: the longest mount point above it.
fn file_system(path: &Path) -> Result<String> {
    let path = fs::canonicalize(path)?;
    let mounts = fs::read_to_string("/proc/mounts").context("/proc/mounts")?;
    let best = mounts
        .lines()
        .filter_map(|line| {
            let mut words = line.split(' ');
            let (_device, place, kind, options) =
                (words.next()?, words.next()?, words.next()?, words.next()?);
            path.starts_with(place)
                .then_some((place.len(), kind, options))
        })
        .max_by_key(|(length, ..)| *length);
    Ok(best.map_or_else(
        || "unknown".to_owned(),
        |(_, kind, options)| format!("{kind} ({options})"),
    ))
}
