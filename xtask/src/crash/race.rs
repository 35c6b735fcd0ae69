//! Everything at once, for minutes: what may run beside what, with real processes, some of which are killed.
//!
//! ```text
//!   three writers, each of a name: change the disk ─► backup ─► now and then forget an older version ──┐
//!   collector: gc, here and at the target     restorer: any point     verifier     copier: to the target ├─► ledger
//!                                                                                                      ┘
//!   at the end: gc, verify, every point of the ledger and nothing else, restored and compared, in both repositories
//! ```
//!
//! **Invariants held throughout.** A backup, a verify, a gc that is not killed ends well. A restore gives the exact bytes; it may be
//! refused only when its point was forgotten meanwhile. A copy may leave out only points that were forgotten meanwhile.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use super::CrashOptions;
use super::disk::{self, ContentHash, Random};
use super::program::{Outcome, Program, Running, Sight};
use super::scene::path_text;

const WRITERS: u64 = 3;
/// One process of so many is killed.
const KILLED: u64 = 6;
/// Latest moment of a blow.
const BLOW: Duration = Duration::from_millis(400);

type PointPlace = (String, u64);

/// What was committed and may still be wanted.
#[derive(Debug, Default)]
struct Ledger {
    /// Content and whether it is still to be kept.
    points: BTreeMap<PointPlace, (ContentHash, Wanted)>,
    /// Content by root, of all that was ever committed: a copy may have another number.
    contents: BTreeMap<String, ContentHash>,
    counts: BTreeMap<&'static str, Counts>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wanted {
    Kept,
    Forgotten,
}

/// What became of the processes of one kind.
#[derive(Debug, Clone, Copy, Default)]
struct Counts {
    ended: u64,
    killed: u64,
    /// Refused, rightly.
    refused: u64,
    longest: Duration,
}

/// What a race came to; everything held.
#[derive(Debug)]
pub(super) struct RaceReport {
    counts: BTreeMap<&'static str, Counts>,
    time: Duration,
    committed: usize,
    kept: usize,
    copied: usize,
}

struct Race<'a> {
    program: &'a Program,
    ledger: Mutex<Ledger>,
    failed: AtomicBool,
    deadline: Instant,
}

/// Runs the race.
///
/// # Errors
/// The first thing that does not hold; the folder stays.
pub(super) fn execute(options: &CrashOptions, time: Duration) -> Result<RaceReport> {
    let folder = options.folder.join("race");
    std::fs::create_dir_all(&folder)?;
    let program = Program {
        binary: options.binary.clone(),
        folder: folder.clone(),
        pack_bytes: options.size.pack_bytes,
    };
    for name in ["repo", "target"] {
        let key = format!("{name}.key");
        program
            .run(["repo", "init", name, "--key-file", &key])?
            .expect(0, "init")?;
    }
    let begun = Instant::now();
    let race = Race {
        program: &program,
        ledger: Mutex::default(),
        failed: AtomicBool::new(false),
        deadline: begun + time,
    };
    let race = &race;
    let seed = options.seed;
    let outcomes: Vec<Result<()>> = std::thread::scope(|scope| {
        let mut threads = Vec::new();
        for writer in 0..WRITERS {
            threads.push(scope.spawn(move || race.each(|| race.writer(options, writer))));
        }
        let random = |place: u64| Random::new(seed.wrapping_mul(31).wrapping_add(place));
        threads.push(scope.spawn(move || race.each(|| race.collector(random(101)))));
        threads.push(scope.spawn(move || race.each(|| race.restorer(random(102)))));
        threads.push(scope.spawn(move || race.each(|| race.verifier(random(103)))));
        threads.push(scope.spawn(move || race.each(|| race.copier(random(104)))));
        threads
            .into_iter()
            .map(|thread| match thread.join() {
                Ok(outcome) => outcome,
                Err(_) => bail!("a thread of the race panicked"),
            })
            .collect()
    });
    for outcome in outcomes {
        outcome.with_context(|| {
            format!("VIOLATION: race seed {seed}, kept in {}", folder.display())
        })?;
    }
    let report = race
        .finish(begun)
        .with_context(|| format!("VIOLATION: race seed {seed}, kept in {}", folder.display()))?;
    std::fs::remove_dir_all(&folder)?;
    Ok(report)
}

impl Race<'_> {
    fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs a worker; when it fails, everybody stops.
    fn each(&self, work: impl FnOnce() -> Result<()>) -> Result<()> {
        let outcome = work();
        if outcome.is_err() {
            self.failed.store(true, Ordering::Relaxed);
        }
        outcome
    }

    fn goes_on(&self) -> bool {
        !self.failed.load(Ordering::Relaxed) && Instant::now() < self.deadline
    }

    /// Runs a process, or kills it; whatever came of it is counted.
    fn run(&self, what: &'static str, words: &[&str], random: &mut Random) -> Result<Outcome> {
        let command = self.program.command(words);
        let mut running = Running::start(command, &self.program.folder)?;
        let outcome = if random.below(KILLED) == 0 {
            match running.watch_until(BLOW.mul_f64(random.share()))? {
                Sight::Ended(_) => running.wait()?,
                Sight::Stopped | Sight::Running => running.kill()?,
            }
        } else {
            running.wait()?
        };
        let mut ledger = self.ledger();
        let counts = ledger.counts.entry(what).or_default();
        match outcome.code {
            None => counts.killed += 1,
            Some(0) => counts.ended += 1,
            Some(_) => counts.refused += 1,
        }
        counts.longest = counts.longest.max(outcome.took);
        Ok(outcome)
    }

    /// Runs a process that either is killed or ends well.
    fn run_well(&self, what: &'static str, words: &[&str], random: &mut Random) -> Result<Outcome> {
        let outcome = self.run(what, words, random)?;
        if outcome.code.is_none() {
            return Ok(outcome);
        }
        outcome.expect(0, what)
    }

    fn writer(&self, options: &CrashOptions, writer: u64) -> Result<()> {
        let mut random = Random::new(options.seed.wrapping_add(writer));
        let name = format!("vm{writer}");
        let image = self.program.folder.join(format!("{name}.raw"));
        let size = options.size;
        disk::create(&image, size.disk_bytes, size.data_bytes, &mut random)?;
        while self.goes_on() {
            disk::change(&image, size.changed_blocks, &mut random)?;
            let content = disk::hash(&image)?;
            let image = path_text(&image)?;
            let target = ["--repo", "repo", "--key-file", "repo.key"];
            let words = [&["disk", "backup"][..], &target, &[image, "--name", &name]].concat();
            let outcome = self.run_well("backup", &words, &mut random)?;
            self.enter(&name, content, &outcome)?;
            if random.below(2) == 0 {
                self.forget(&name, &mut random)?;
            }
        }
        Ok(())
    }

    /// Looks which version a run made, if any, and writes it down.
    fn enter(&self, name: &str, content: ContentHash, outcome: &Outcome) -> Result<()> {
        let newest = self.program.versions("repo", name)?.into_iter().next_back();
        let mut ledger = self.ledger();
        let known = ledger
            .points
            .keys()
            .filter(|(other, _)| other == name)
            .map(|(_, version)| *version)
            .max();
        let is_new = newest.as_ref().map(|(version, _)| *version) > known;
        ensure!(
            is_new || outcome.code.is_none(),
            "{name}: a backup that ended well made no version"
        );
        if let Some((version, root)) = newest.filter(|_| is_new) {
            ledger.contents.insert(root, content);
            let point = (content, Wanted::Kept);
            ledger.points.insert((name.to_owned(), version), point);
        }
        Ok(())
    }

    /// Forgets one of the older versions of a name.
    fn forget(&self, name: &str, random: &mut Random) -> Result<()> {
        let chosen = {
            let mut ledger = self.ledger();
            let mut kept: Vec<&mut (ContentHash, Wanted)> = Vec::new();
            let mut versions = Vec::new();
            for ((other, version), point) in &mut ledger.points {
                if other == name && point.1 == Wanted::Kept {
                    versions.push(*version);
                    kept.push(point);
                }
            }
            if kept.len() < 4 {
                return Ok(());
            }
            let at = random.index(kept.len() - 1);
            // From now on a restore may be refused.
            kept.into_iter()
                .nth(at)
                .context("a place among kept points")?
                .1 = Wanted::Forgotten;
            *versions.get(at).context("its version")?
        };
        let selector = format!("{name}@{chosen}");
        let target = ["--repo", "repo", "--key-file", "repo.key"];
        let words = [&["disk", "forget"][..], &target, &[&selector]].concat();
        let outcome = self.run_well("forget", &words, random)?;
        if outcome.code.is_none() {
            // Nobody knows whether the mark is there: now it is.
            self.program.run(&words)?.expect(0, "forgetting again")?;
        }
        Ok(())
    }

    fn collector(&self, mut random: Random) -> Result<()> {
        while self.goes_on() {
            let (name, key) = if random.below(4) == 0 {
                ("target", "target.key")
            } else {
                ("repo", "repo.key")
            };
            let words = ["repo", "gc", name, "--key-file", key, "--stall", "10"];
            self.run_well("gc", &words, &mut random)?;
        }
        Ok(())
    }

    fn verifier(&self, mut random: Random) -> Result<()> {
        while self.goes_on() {
            let words = ["repo", "verify", "repo", "--key-file", "repo.key"];
            self.run_well("verify", &words, &mut random)?;
        }
        Ok(())
    }

    fn restorer(&self, mut random: Random) -> Result<()> {
        let out = self.program.folder.join("restored-in-race.raw");
        while self.goes_on() {
            let Some((place, content)) = self.any_point(&mut random) else {
                std::thread::sleep(Duration::from_millis(20));
                continue;
            };
            let selector = format!("{}@{}", place.0, place.1);
            let target = ["--repo", "repo", "--key-file", "repo.key"];
            let to = [
                &selector,
                path_text(&out)?,
                "--format",
                "raw",
                "--overwrite",
            ];
            let words = [&["disk", "restore"][..], &target, &to].concat();
            let outcome = self.run("restore", &words, &mut random)?;
            match outcome.code {
                None => {}
                Some(0) => {
                    let found = disk::hash(&out)?;
                    ensure!(found == content, "{selector} came back different");
                }
                Some(_) => ensure!(
                    self.is_forgotten(&place),
                    "{selector} was refused: {outcome:?}"
                ),
            }
        }
        Ok(())
    }

    fn any_point(&self, random: &mut Random) -> Option<(PointPlace, ContentHash)> {
        let ledger = self.ledger();
        let kept: Vec<_> = ledger
            .points
            .iter()
            .filter(|(_, point)| point.1 == Wanted::Kept)
            .collect();
        kept.get(random.index(kept.len()))
            .map(|(place, point)| ((*place).clone(), point.0))
    }

    fn is_forgotten(&self, place: &PointPlace) -> bool {
        self.ledger()
            .points
            .get(place)
            .is_some_and(|point| point.1 == Wanted::Forgotten)
    }

    fn copier(&self, mut random: Random) -> Result<()> {
        while self.goes_on() {
            let to = ["--to", "target", "--to-key-file", "target.key"];
            let words = [&["repo", "copy", "repo", "--key-file", "repo.key"][..], &to].concat();
            let outcome = self.run("copy", &words, &mut random)?;
            match outcome.code {
                None | Some(0) => {}
                Some(3) => {
                    let report = outcome.json()?;
                    for point in report["failed"].as_array().context("failed points")? {
                        let name = point["name"].as_str().context("a name")?.to_owned();
                        let version = point["version"].as_u64().context("a version")?;
                        ensure!(self.is_forgotten(&(name, version)), "not copied: {point}");
                    }
                }
                Some(_) => bail!("copy: {outcome:?}"),
            }
        }
        Ok(())
    }

    /// Everybody is gone: what the ledger says is there, and nothing else.
    fn finish(&self, begun: Instant) -> Result<RaceReport> {
        let time = begun.elapsed();
        let program = self.program;
        for name in ["repo", "target"] {
            let key = format!("{name}.key");
            for verb in [&["gc", name, "--stall", "6"][..], &["verify", name]] {
                let words = [&["repo"][..], verb, &["--key-file", &key]].concat();
                program.run(words)?.expect(0, "the end of the race")?;
            }
        }
        let ledger = self.ledger();
        let mut kept = 0;
        for writer in 0..WRITERS {
            let name = format!("vm{writer}");
            let listed = program.versions("repo", &name)?;
            let wanted: Vec<u64> = ledger
                .points
                .iter()
                .filter(|((other, _), point)| *other == name && point.1 == Wanted::Kept)
                .map(|((_, version), _)| *version)
                .collect();
            let found: Vec<u64> = listed.keys().copied().collect();
            ensure!(
                wanted == found,
                "{name}: wanted {wanted:?}, found {found:?}"
            );
            for version in listed.into_keys() {
                let place = (name.clone(), version);
                let content = ledger.points.get(&place).context("a known point")?.0;
                self.compare("repo", &place, content)?;
                kept += 1;
            }
        }
        let mut copied = 0;
        for writer in 0..WRITERS {
            let name = format!("vm{writer}");
            for (version, root) in program.versions("target", &name)? {
                // What was forgotten at the source meanwhile stays at the target, and numbers differ: the root tells which it is.
                let content = ledger.contents.get(&root).copied();
                let place = (name.clone(), version);
                self.compare("target", &place, content.context("a copy of nothing")?)?;
                copied += 1;
            }
        }
        Ok(RaceReport {
            counts: ledger.counts.clone(),
            time,
            committed: ledger.points.len(),
            kept,
            copied,
        })
    }

    fn compare(&self, repository: &str, place: &PointPlace, content: ContentHash) -> Result<()> {
        let out: PathBuf = self.program.folder.join("compared.raw");
        let key = format!("{repository}.key");
        let selector = format!("{}@{}", place.0, place.1);
        let target = ["--repo", repository, "--key-file", &key];
        let to = [
            &selector,
            path_text(&out)?,
            "--format",
            "raw",
            "--overwrite",
        ];
        let words = [&["disk", "restore"][..], &target, &to].concat();
        self.program.run(words)?.expect(0, &selector)?;
        let found = disk::hash(&out)?;
        ensure!(
            found == content,
            "{repository} {selector} came back different"
        );
        Ok(())
    }
}

impl Program {
    /// Visible versions of a name, with their roots.
    fn versions(&self, repository: &str, name: &str) -> Result<BTreeMap<u64, String>> {
        let key = format!("{repository}.key");
        let words = ["disk", "list", "--repo", repository, "--key-file", &key];
        let report = self
            .run(words.into_iter().chain(["--name", name]))?
            .expect(0, "listing")?
            .json()?;
        let mut versions = BTreeMap::new();
        for row in report["points"].as_array().context("points of a listing")? {
            let version = row["version"].as_u64().context("a version")?;
            let root = row["root"].as_str().context("a root")?;
            versions.insert(version, root.to_owned());
        }
        Ok(versions)
    }
}

impl RaceReport {
    pub(super) fn text(&self, seed: u64) -> String {
        let mut text = format!(
            "### race\n\nSeed {seed}; {:.0} s; {} versions committed, {} kept at the end, {} copied; all of them restored and \
             compared.\n\n| process | ended well | killed | rightly refused | longest |\n|---|--:|--:|--:|--:|\n",
            self.time.as_secs_f64(),
            self.committed,
            self.kept,
            self.copied
        );
        for (what, counts) in &self.counts {
            text.push_str(&format!(
                "| {what} | {} | {} | {} | {:.1} s |\n",
                counts.ended,
                counts.killed,
                counts.refused,
                counts.longest.as_secs_f64()
            ));
        }
        text
    }

    pub(super) fn json(&self, seed: u64) -> Value {
        let counts = self.counts.iter().map(|(what, counts)| {
            json!({
                "process": what,
                "ended": counts.ended,
                "killed": counts.killed,
                "refused": counts.refused,
                "longest_ms": u64::try_from(counts.longest.as_millis()).unwrap_or(u64::MAX),
            })
        });
        json!({
            "operation": "race",
            "seed": seed,
            "seconds": self.time.as_secs_f64(),
            "committed": self.committed,
            "kept": self.kept,
            "copied": self.copied,
            "processes": counts.collect::<Value>(),
        })
    }
}
