//! One round: a fresh copy of the world, the operation killed in it, and everything that must hold afterwards.
//!
//! ```text
//!   copy the world ─► start, kill ─► [ start again, kill ] ─► listed? restored? ─► run to the end ─► listed? verified? leases?
//!                                                                                   every 10th: restore all, gc, verify, restore all
//! ```

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::Signal;

use super::coverage::{Aim, Coverage, Moment};
use super::disk::Random;
use super::program::{Outcome, Program, Running, Sight};
use super::scene::{Listed, Operation, Scene};
use super::trace::{self, Edge, Event};

/// Longest time until a process reaches a stop.
const REACH: Duration = Duration::from_secs(60);
/// Points that are restored in a usual round.
const SAMPLE: usize = 5;
/// Points that are restored once more when the operation has run to its end.
const SAMPLE_AT_END: usize = 2;
/// In one round of so many everything is restored.
const WHOLE_ROUND: u64 = 10;

/// How the blows of all rounds are chosen.
#[derive(Debug, Clone)]
pub enum Blows {
    /// Half at a random age, half at what was hit least.
    Mixed,
    /// At these moments of these calls, in turn; at a random age where no whole run has such a call.
    At(Vec<(String, Moment)>),
}

/// How a process is killed.
#[derive(Debug, Clone)]
enum Blow {
    /// At this age.
    AtAge(Duration),
    /// At a call.
    At(Aim),
}

/// What whole runs told.
#[derive(Debug, Clone, Default)]
pub(super) struct Reference {
    /// Time of each, shortest first.
    pub(super) took: Vec<Duration>,
    /// Pack bytes that are left when garbage was collected after a whole run.
    pub(super) collected_bytes: u64,
}

impl Reference {
    pub(super) fn median(&self) -> Duration {
        self.took
            .get(self.took.len() / 2)
            .copied()
            .unwrap_or_default()
    }
}

/// Counts over all rounds of an operation.
#[derive(Debug, Clone, Copy, Default)]
pub struct Tally {
    /// Rounds.
    pub rounds: u64,
    /// Processes killed, second ones of a round included.
    pub kills: u64,
    /// Processes that ended before the blow fell.
    pub ended_first: u64,
    /// Rounds in which the operation had committed by the trace when it was killed.
    pub committed: u64,
    /// Points restored and compared.
    pub restored: u64,
    /// Refusals to restore what the damage had hit, before it was repaired.
    pub refused: u64,
}

/// Rounds of one operation.
pub(super) struct Rounds<'a> {
    pub(super) scene: &'a Scene,
    pub(super) folder: PathBuf,
    pub(super) coverage: Coverage,
    pub(super) reference: Reference,
    pub(super) tally: Tally,
    random: Random,
    blows: Blows,
    /// Where the sample of restored points goes on.
    next_sample: usize,
}

/// What the traces say about commits.
#[derive(Debug, Clone, Copy, Default)]
struct Evidence {
    /// Commits that were begun.
    begun: usize,
    /// Commits that came back well.
    ended: usize,
}

impl Evidence {
    fn of(scene: &Scene, events: &[Event]) -> Self {
        let kind = match scene.operation {
            Operation::Forget => "mark",
            Operation::Backup | Operation::Resume | Operation::Copy => "point",
            Operation::Gc | Operation::Settle | Operation::Repair => return Self::default(),
        };
        let store = scene.operation.written_store();
        let count = |edge, outcome: &str| {
            events
                .iter()
                .filter(|event| {
                    event.store == store
                        && event.is(edge, "put", kind)
                        && event.outcome.starts_with(outcome)
                })
                .count()
        };
        Self {
            begun: count(Edge::Begin, ""),
            ended: count(Edge::End, "ok"),
        }
    }

    fn and(self, other: Self) -> Self {
        Self {
            begun: self.begun + other.begun,
            ended: self.ended + other.ended,
        }
    }
}

impl<'a> Rounds<'a> {
    /// Runs the operation undisturbed a few times, to know its calls and its time.
    pub(super) fn begin(scene: &'a Scene, folder: &Path, seed: u64, blows: &Blows) -> Result<Self> {
        let operation = scene.operation;
        let mut rounds = Self {
            scene,
            folder: folder.to_owned(),
            coverage: Coverage::new(operation.landmarks(), operation.written_store()),
            reference: Reference::default(),
            tally: Tally::default(),
            random: Random::new(seed ^ 0x00C0_FFEE),
            blows: blows.clone(),
            next_sample: 0,
        };
        for run in 0..3 {
            let program = scene.copy_to(&rounds.world())?;
            let (outcome, events) = rounds.watch(&program, "trace", None)?;
            let outcome = outcome.expect(0, "a run that nobody disturbed")?;
            rounds.reference.took.push(outcome.took);
            rounds.coverage.add_whole(events);
            if run == 0 {
                rounds.collect(&program)?;
                rounds.reference.collected_bytes = pack_bytes(&program, operation.written())?;
            }
        }
        rounds.reference.took.sort_unstable();
        Ok(rounds)
    }

    fn world(&self) -> PathBuf {
        self.folder.join("round")
    }

    /// Runs the operation with a trace; kills it as told.
    fn watch(
        &self,
        program: &Program,
        trace_name: &str,
        blow: Option<&Blow>,
    ) -> Result<(Outcome, Vec<Event>)> {
        let words = self.scene.words()?;
        let mut command = program.command(&words);
        let trace = program.folder.join(trace_name);
        command.env("HIKAE_TRACE_STORE", &trace);
        if let Some(Blow::At(aim)) = blow {
            command.env("HIKAE_TRACE_STOP", aim.stop());
        }
        let mut running = Running::start(command, &program.folder)?;
        let outcome = match blow {
            None => running.wait()?,
            Some(Blow::AtAge(age)) => match running.watch_until(*age)? {
                Sight::Ended(_) => running.wait()?,
                Sight::Stopped | Sight::Running => running.kill()?,
            },
            Some(Blow::At(aim)) => match running.watch_until(REACH)? {
                Sight::Ended(_) => running.wait()?,
                Sight::Running => bail!("neither ended nor stopped at {}", aim.stop()),
                Sight::Stopped => {
                    if aim.moment == Moment::Within {
                        running.signal(Signal::CONT)?;
                        wait_exactly(aim.wait_us);
                    }
                    running.kill()?
                }
            },
        };
        Ok((outcome, trace::read(&trace)?))
    }

    fn blow(&mut self, round: u64) -> Blow {
        let random = &mut self.random;
        let aim = match &self.blows {
            Blows::Mixed if round.is_multiple_of(2) => self.coverage.aim(random),
            Blows::Mixed => None,
            Blows::At(targets) => {
                let round = usize::try_from(round).unwrap_or(usize::MAX);
                round
                    .checked_rem(targets.len())
                    .and_then(|at| targets.get(at))
                    .and_then(|(call, moment)| self.coverage.aim_at_call(call, *moment, random))
            }
        };
        match aim {
            Some(aim) => Blow::At(aim),
            None => Blow::AtAge(self.reference.median().mul_f64(1.05 * self.random.share())),
        }
    }

    /// One round.
    pub(super) fn round(&mut self, round: u64) -> Result<()> {
        let scene = self.scene;
        let program = scene.copy_to(&self.world())?;
        let blow = self.blow(round);
        let (outcome, events) = self
            .watch(&program, "trace", Some(&blow))
            .with_context(|| format!("{blow:?}"))?;
        self.tally.rounds += 1;
        let mut evidence = Evidence::of(scene, &events);
        self.tally.committed += u64::from(evidence.ended > 0);
        self.count(&outcome, &events, Some(&blow))
            .with_context(|| format!("{blow:?}"))?;

        if self.random.below(3) == 0 {
            let again = Blow::AtAge(self.reference.median().mul_f64(self.random.share()));
            let (outcome, events) = self.watch(&program, "trace-again", Some(&again))?;
            evidence = evidence.and(Evidence::of(scene, &events));
            self.count(&outcome, &events, None)?;
        }
        self.judge(&program, evidence, round)
            .with_context(|| format!("after {blow:?}"))?;
        self.finish(&program, round)
            .with_context(|| format!("in the run after {blow:?}"))
    }

    fn count(&mut self, outcome: &Outcome, events: &[Event], blow: Option<&Blow>) -> Result<()> {
        if outcome.code.is_some() {
            self.tally.ended_first += 1;
            // An operation that ended by itself ended well: nothing but the blow may stop it.
            ensure!(outcome.code == Some(0), "it failed by itself: {outcome:?}");
            return Ok(());
        }
        self.tally.kills += 1;
        // A killed second run has other phases than a first one: it is not counted in the table.
        if let Some(blow) = blow {
            let aim = match blow {
                Blow::At(aim) => Some(aim),
                Blow::AtAge(_) => None,
            };
            self.coverage.add_kill(events, aim);
        }
        Ok(())
    }

    /// Right after the kill: what is visible, and whether it comes back.
    fn judge(&mut self, program: &Program, evidence: Evidence, round: u64) -> Result<()> {
        let scene = self.scene;
        let listed = program.list("repo")?;
        let written = scene.operation.written();
        match scene.operation {
            Operation::Gc | Operation::Settle | Operation::Repair => {
                ensure_same(&scene.committed, &listed)?;
            }
            Operation::Backup | Operation::Resume => {
                let new = added(&scene.committed, &listed)?;
                ensure_count(&new, evidence)?;
                self.ensure_new(program, &new)?;
            }
            Operation::Forget => {
                let left: Vec<Listed> = scene
                    .committed
                    .iter()
                    .filter(|one| one.version != scene.victim())
                    .cloned()
                    .collect();
                match (evidence.begun, evidence.ended) {
                    (0, _) => ensure_same(&scene.committed, &listed)?,
                    (_, 0) if listed == scene.committed => {}
                    _ => ensure_same(&left, &listed)?,
                }
            }
            Operation::Copy => {
                ensure_same(&scene.committed, &listed)?;
                let copied = program.list("target")?;
                let new = added(&scene.target, &copied)?;
                ensure_count(&new, evidence)?;
                let roots: BTreeSet<&str> = scene
                    .committed
                    .iter()
                    .map(|one| one.root.as_str())
                    .collect();
                for one in &new {
                    ensure!(roots.contains(one.root.as_str()), "never seen: {one:?}");
                }
            }
        }
        let visible = program.list(written)?;
        let sample = if round.is_multiple_of(WHOLE_ROUND) {
            self.known(&visible)
        } else {
            self.sample(&visible, SAMPLE)
        };
        let before = match scene.operation {
            Operation::Repair => Restoring::Damaged,
            _ => Restoring::Whole,
        };
        self.restore(program, &sample, before)
    }

    /// New points have the content of the disk that was backed up.
    fn ensure_new(&mut self, program: &Program, new: &[Listed]) -> Result<()> {
        for one in new {
            let content = program.restored("repo", one.version)?;
            ensure!(
                content == Some(self.scene.new_content),
                "{one:?} is not the disk that was backed up"
            );
            self.tally.restored += 1;
        }
        Ok(())
    }

    /// Points of before the operation: what it added is compared by itself.
    fn known(&self, visible: &[Listed]) -> Vec<Listed> {
        let known = |one: &&Listed| self.scene.contents.contains_key(&one.root);
        visible.iter().filter(known).cloned().collect()
    }

    /// The next few of them, so that all have their turn.
    fn sample(&mut self, visible: &[Listed], count: usize) -> Vec<Listed> {
        let known = self.known(visible);
        let begin = self.next_sample;
        self.next_sample += count;
        (begin..begin + count)
            .filter_map(|at| known.get(at.checked_rem(known.len())?).cloned())
            .collect()
    }

    fn restore(
        &mut self,
        program: &Program,
        points: &[Listed],
        restoring: Restoring,
    ) -> Result<()> {
        let written = self.scene.operation.written();
        for one in points {
            let wanted = self.scene.content(&one.root)?;
            match program.restored(written, one.version)? {
                Some(found) => {
                    ensure!(found == wanted, "{one:?} came back different");
                    self.tally.restored += 1;
                }
                None if restoring == Restoring::Damaged
                    && self.scene.hit.contains(&one.version) =>
                {
                    self.tally.refused += 1;
                }
                None => bail!("{one:?} was refused"),
            }
        }
        Ok(())
    }

    /// The operation run to its end, and the whole verified.
    fn finish(&mut self, program: &Program, round: u64) -> Result<()> {
        let scene = self.scene;
        let words = scene.words()?;
        program.run(&words)?.expect(0, "the operation run again")?;
        let written = scene.operation.written();
        let listed = program.list(written)?;
        match scene.operation {
            Operation::Gc | Operation::Settle | Operation::Repair => {
                ensure_same(&scene.committed, &listed)?;
            }
            Operation::Backup | Operation::Resume => {
                let new = added(&scene.committed, &listed)?;
                ensure!(!new.is_empty(), "the run again committed nothing");
                self.ensure_new(program, &new)?;
            }
            Operation::Forget => ensure!(
                listed.len() + 1 == scene.committed.len(),
                "forgotten: {listed:?}"
            ),
            Operation::Copy => {
                added(&scene.target, &listed)?;
                let there: BTreeSet<&str> = listed.iter().map(|one| one.root.as_str()).collect();
                for one in &scene.committed {
                    ensure!(there.contains(one.root.as_str()), "not copied: {one:?}");
                }
                ensure_no_twins(&listed)?;
            }
        }
        verify(program, written)?;
        check_leases(program)?;
        let sample = self.sample(&listed, SAMPLE_AT_END);
        self.restore(program, &sample, Restoring::Whole)?;
        if round.is_multiple_of(WHOLE_ROUND) {
            self.collect(program)?;
            let listed = program.list(written)?;
            self.restore(program, &self.known(&listed), Restoring::Whole)?;
            let left = pack_bytes(program, written)?;
            let most = self.reference.collected_bytes / 10 * 11 + (1 << 20);
            ensure!(
                left <= most,
                "{left} bytes are left after gc, {} after an undisturbed run",
                self.reference.collected_bytes
            );
        }
        Ok(())
    }

    /// Collects garbage in both repositories; nothing is left that anybody must wait for.
    fn collect(&self, program: &Program) -> Result<()> {
        for name in ["repo", "target"] {
            let key = format!("{name}.key");
            program
                .run(["repo", "gc", name, "--key-file", &key, "--stall", "6"])?
                .expect(0, "gc at the end")?;
            let leases = leases(program, name)?;
            ensure!(leases.is_empty(), "leases after gc: {leases:?}");
            verify(program, name)?;
        }
        Ok(())
    }
}

/// Whether what is restored may be refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Restoring {
    /// Nothing may be.
    Whole,
    /// What the damage hit may be.
    Damaged,
}

fn verify(program: &Program, name: &str) -> Result<()> {
    let key = format!("{name}.key");
    program
        .run(["repo", "verify", name, "--key-file", &key])?
        .expect(0, "verify")?;
    Ok(())
}

/// The processes of all leases of a repository, in words.
fn leases(program: &Program, name: &str) -> Result<Vec<String>> {
    let key = format!("{name}.key");
    let report = program
        .run(["repo", "lease", "list", name, "--key-file", &key])?
        .expect(0, "lease list")?
        .json()?;
    let leases = report["leases"].as_array().context("leases")?;
    Ok(leases
        .iter()
        .map(|lease| lease["process"].as_str().unwrap_or("?").to_owned())
        .collect())
}

/// Whatever lease is left belongs to a process that is known to be gone: it blocks nobody.
fn check_leases(program: &Program) -> Result<()> {
    for name in ["repo", "target"] {
        let leases = leases(program, name)?;
        ensure!(
            leases.iter().all(|process| process == "gone"),
            "{name} has leases of processes that may run: {leases:?}"
        );
    }
    Ok(())
}

fn ensure_same(wanted: &[Listed], found: &[Listed]) -> Result<()> {
    ensure!(
        wanted == found,
        "visible points changed\nwanted {wanted:?}\nfound {found:?}"
    );
    Ok(())
}

/// What is there besides what was there before, all of which must be there still.
fn added(before: &[Listed], now: &[Listed]) -> Result<Vec<Listed>> {
    for one in before {
        ensure!(now.contains(one), "a committed point is gone: {one:?}");
    }
    Ok(now
        .iter()
        .filter(|one| !before.contains(one))
        .cloned()
        .collect())
}

fn ensure_count(new: &[Listed], evidence: Evidence) -> Result<()> {
    ensure!(
        (evidence.ended..=evidence.begun).contains(&new.len()),
        "new points {new:?}, and by the trace {evidence:?}"
    );
    Ok(())
}

/// No version was copied twice.
fn ensure_no_twins(listed: &[Listed]) -> Result<()> {
    let roots: BTreeSet<&str> = listed.iter().map(|one| one.root.as_str()).collect();
    ensure!(
        roots.len() == listed.len(),
        "a point is there twice: {listed:?}"
    );
    Ok(())
}

/// Bytes of all packs.
fn pack_bytes(program: &Program, name: &str) -> Result<u64> {
    let mut bytes = 0;
    for kind in ["data", "node"] {
        let folder = program.folder.join(name).join(kind);
        if folder.exists() {
            for file in super::scene::files(&folder)? {
                bytes += std::fs::metadata(&file)?.len();
            }
        }
    }
    Ok(bytes)
}

/// Waits for this time to the microsecond: the system's sleep is too coarse for the length of one call.
fn wait_exactly(wait_us: f64) {
    let begun = Instant::now();
    let wait = Duration::from_secs_f64(wait_us / 1_000_000.0);
    if wait > Duration::from_millis(1) {
        std::thread::sleep(wait - Duration::from_millis(1));
    }
    while begun.elapsed() < wait {
        std::hint::spin_loop();
    }
}
