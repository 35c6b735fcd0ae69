//! One measured process: wall time with the flush of its target, CPU time and peak memory as the kernel counts them.

use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use wait4::Wait4;

/// What one run cost.
#[derive(Debug, Clone, Default)]
pub(crate) struct Measured {
    /// Until the process ended and its target was flushed.
    pub(crate) wall_s: f64,
    /// User and system time of the process.
    pub(crate) cpu_s: f64,
    /// Its greatest resident memory.
    pub(crate) peak_bytes: u64,
    /// What it printed on standard output.
    pub(crate) output: String,
}

impl Measured {
    /// A number of the JSON object that the process printed.
    pub(crate) fn json_u64(&self, field: &str) -> Option<u64> {
        let value: serde_json::Value = serde_json::from_str(self.output.trim()).ok()?;
        value.get(field)?.as_u64()
    }
}

/// Which of the measured numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Metric {
    Wall,
    Cpu,
}

impl Metric {
    pub(crate) fn of(self, measured: &Measured) -> f64 {
        match self {
            Self::Wall => measured.wall_s,
            Self::Cpu => measured.cpu_s,
        }
    }
}

/// Runs the command to its end; then flushes the file system of `target`, if there is one.
///
/// # Errors
/// When the command cannot be run, or fails: its standard error is in the text.
pub(crate) fn measure(command: &mut Command, target: Option<&Path>) -> Result<Measured> {
    let shown = show(command);
    let errors = tempfile::tempfile()?;
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::from(errors.try_clone()?));
    let begun = Instant::now();
    let mut child = command
        .spawn()
        .with_context(|| format!("starting {shown}"))?;
    let mut output = String::new();
    if let Some(mut pipe) = child.stdout.take() {
        pipe.read_to_string(&mut output)
            .with_context(|| format!("reading from {shown}"))?;
    }
    let used = child
        .wait4()
        .with_context(|| format!("waiting for {shown}"))?;
    if let Some(target) = target {
        flush(target)?;
    }
    let wall_s = begun.elapsed().as_secs_f64();
    if !used.status.success() {
        let text = read_from_start(errors)?;
        anyhow::bail!("{shown}: {}\n{text}", used.status);
    }
    let cpu_s = used.rusage.utime.as_secs_f64() + used.rusage.stime.as_secs_f64();
    Ok(Measured {
        wall_s,
        cpu_s,
        peak_bytes: used.rusage.maxrss,
        output,
    })
}

/// Runs a command whose cost does not matter.
pub(crate) fn run(command: &mut Command) -> Result<String> {
    Ok(measure(command, None)?.output)
}

fn read_from_start(mut file: File) -> Result<String> {
    use std::io::Seek;
    file.rewind()?;
    let mut bytes = Vec::new();
    file.take(64 << 10).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

fn show(command: &Command) -> String {
    let mut words = vec![command.get_program().to_string_lossy().into_owned()];
    words.extend(
        command
            .get_args()
            .map(|word| word.to_string_lossy().into_owned()),
    );
    words.join(" ")
}

/// Makes everything on the file system of `path` durable.
pub(crate) fn flush(path: &Path) -> Result<()> {
    let place = path
        .ancestors()
        .find(|place| place.exists())
        .context("a place to flush")?;
    let file = File::open(place).with_context(|| format!("opening {}", place.display()))?;
    rustix::fs::syncfs(&file).with_context(|| format!("flushing {}", place.display()))
}

/// State of the page cache before a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum CacheState {
    /// Nothing cached.
    Cold,
    /// This process may not drop caches: whatever was there, is.
    AsFound,
}

/// Drops the page cache where that is allowed.
pub(crate) fn drop_caches(place: &Path) -> Result<CacheState> {
    flush(place)?;
    match std::fs::write("/proc/sys/vm/drop_caches", "3\n") {
        Ok(()) => Ok(CacheState::Cold),
        Err(_) => Ok(CacheState::AsFound),
    }
}

/// Reads a file once, so that it is cached as far as memory allows.
pub(crate) fn warm(path: &Path) -> Result<()> {
    let mut file = File::open(path).with_context(|| format!("opening {}", path.display()))?;
    let mut buffer = vec![0u8; 1 << 20];
    while file.read(&mut buffer)? > 0 {}
    Ok(())
}

/// The middle of the values; zero of none.
pub(crate) fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match (values.get(middle), values.len() % 2) {
        (None, _) => 0.0,
        (Some(upper), 1) => *upper,
        (Some(upper), _) => values
            .get(middle.saturating_sub(1))
            .map_or(*upper, |lower| (lower + upper) / 2.0),
    }
}

/// The runs of one tool in one section, in the order of the rounds.
#[derive(Debug, Clone, Default)]
pub(crate) struct Samples(pub(crate) Vec<Measured>);

impl Samples {
    pub(crate) fn median(&self, metric: Metric) -> f64 {
        median(self.0.iter().map(|one| metric.of(one)))
    }

    pub(crate) fn peak_bytes(&self) -> u64 {
        self.0.iter().map(|one| one.peak_bytes).max().unwrap_or(0)
    }

    /// Median over the rounds of this tool's value divided by the other's in the same round.
    pub(crate) fn ratio(&self, other: &Self, metric: Metric) -> f64 {
        median(
            self.0
                .iter()
                .zip(&other.0)
                .map(|(ours, theirs)| metric.of(ours) / metric.of(theirs).max(1e-9)),
        )
    }
}

/// Space that a file or a tree takes up, in bytes: what is allocated, not what it seems to be long.
pub(crate) fn allocated_bytes(path: &Path) -> Result<u64> {
    use std::os::unix::fs::MetadataExt;
    let metadata = std::fs::symlink_metadata(path)
        .with_context(|| format!("looking at {}", path.display()))?;
    let mut total = metadata.blocks().saturating_mul(512);
    if metadata.is_dir() {
        for entry in std::fs::read_dir(path)? {
            total = total.saturating_add(allocated_bytes(&entry?.path())?);
        }
    }
    Ok(total)
}

/// Checks that two files hold the same bytes.
pub(crate) fn require_equal(one: &Path, other: &Path) -> Result<()> {
    let status = Command::new("cmp")
        .arg("--quiet")
        .arg(one)
        .arg(other)
        .status()
        .context("running cmp")?;
    ensure!(
        status.success(),
        "{} differs from {}",
        one.display(),
        other.display()
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{Measured, Metric, Samples, measure, median};
    use std::process::Command;

    #[test]
    fn the_median_of_an_even_number_lies_between() {
        assert!((median([4.0, 1.0, 3.0, 2.0]) - 2.5).abs() < 1e-9);
        assert!((median([9.0, 1.0, 3.0]) - 3.0).abs() < 1e-9);
        assert!(median([]).abs() < 1e-9);
    }

    #[test]
    fn ratios_are_taken_within_a_round() {
        let samples = |values: &[f64]| {
            Samples(
                values
                    .iter()
                    .map(|wall| Measured {
                        wall_s: *wall,
                        ..Measured::default()
                    })
                    .collect(),
            )
        };
        // The machine was ten times slower in round two: the ratio does not care.
        let ratio = samples(&[2.0, 20.0, 2.0]).ratio(&samples(&[1.0, 10.0, 1.0]), Metric::Wall);
        assert!((ratio - 2.0).abs() < 1e-9);
    }

    #[test]
    fn a_process_that_fails_is_an_error_with_its_words() {
        let error = measure(
            Command::new("sh").args(["-c", "echo went wrong >&2; exit 3"]),
            None,
        )
        .expect_err("it exits with 3");
        assert!(format!("{error:#}").contains("went wrong"), "{error:#}");
    }

    #[test]
    fn a_process_has_time_and_memory() {
        let measured = measure(
            Command::new("sh").args(["-c", "echo '{\"version\": 4}'"]),
            None,
        )
        .expect("sh runs");
        assert!(
            measured.wall_s > 0.0 && measured.peak_bytes > 100_000,
            "{measured:?}"
        );
        assert_eq!(measured.json_u64("version"), Some(4));
    }
}
