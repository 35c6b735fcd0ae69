//! Which calls were met by a kill, and which one to aim at next.
//!
//! ```text
//!   whole runs ──► rows (phase × call), each with where its calls lie
//!   a kill     ──► before (nothing of the call was begun), within (begun, never ended), after (ended, nothing behind it begun by its thread)
//!   next aim   ──► a moment of a row that was hit least
//! ```
//!
//! **Invariants.** A hit is counted by what the trace of the dead process says, not by what was aimed at; only *before* takes the
//! aim for an answer, because a call that was never begun leaves no trace: there the process was seen stopped in front of it.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::disk::Random;
use super::phase::{Landmarks, PhaseReader, Row};
use super::trace::{self, Edge, Event};

/// Where in a call a process was killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Moment {
    /// In front of it.
    Before,
    /// While it worked.
    Within,
    /// Right behind it.
    After,
}

impl Moment {
    /// All three.
    pub const ALL: [Self; 3] = [Self::Before, Self::Within, Self::After];

    /// As a stop is asked for.
    pub(super) fn word(self) -> &'static str {
        match self {
            Self::Before => "before",
            Self::Within => "within",
            Self::After => "after",
        }
    }
}

/// What is known of a row.
#[derive(Debug, Clone, Default)]
struct RowHits {
    /// Place in the table: when it was first seen.
    order: usize,
    /// Whole runs in which it was seen.
    runs: usize,
    /// Calls of it in the whole run that had most.
    calls: u64,
    hits: BTreeMap<Moment, u64>,
    /// Longest wait behind the begin of a call that still meets it, as far as is known.
    reach_us: f64,
}

/// The table of one operation.
#[derive(Debug, Clone)]
pub struct Coverage {
    landmarks: Landmarks,
    written_store: u32,
    rows: BTreeMap<Row, RowHits>,
    whole: Vec<Vec<Event>>,
}

/// A call to be killed at.
#[derive(Debug, Clone)]
pub(super) struct Aim {
    pub(super) moment: Moment,
    pub(super) row: Row,
    event: Event,
    number: usize,
    /// How long to let the call work, for [`Moment::Within`].
    pub(super) wait_us: f64,
}

impl Aim {
    /// As the program is told.
    pub(super) fn stop(&self) -> String {
        format!(
            "{}:{}:{}:{}:{}",
            self.moment.word(),
            self.event.store,
            self.event.verb,
            trace::stop_prefix(&self.event.name),
            self.number
        )
    }
}

/// Calls that change something come first where as many were hit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Effect {
    Changes,
    Reads,
}

impl Effect {
    fn of(row: &Row) -> Self {
        if row.call.starts_with("put ") || row.call.starts_with("delete ") {
            Self::Changes
        } else {
            Self::Reads
        }
    }
}

const FIRST_REACH_US: f64 = 400.0;
const LAST_REACH_US: f64 = 4000.0;

impl Coverage {
    pub(super) fn new(landmarks: Landmarks, written_store: u32) -> Self {
        Self {
            landmarks,
            written_store,
            rows: BTreeMap::new(),
            whole: Vec::new(),
        }
    }

    fn reader(&self) -> PhaseReader {
        PhaseReader::new(self.landmarks, self.written_store)
    }

    /// Takes note of a run that nobody disturbed.
    pub(super) fn add_whole(&mut self, events: Vec<Event>) {
        let mut counts: BTreeMap<Row, u64> = BTreeMap::new();
        for (row, event) in self.reader().rows(&events).into_iter().zip(&events) {
            if event.edge == Edge::Begin {
                self.entry(&row);
                *counts.entry(row).or_default() += 1;
            }
        }
        for (row, count) in counts {
            let hits = self.entry(&row);
            hits.runs += 1;
            hits.calls = hits.calls.max(count);
        }
        self.whole.push(events);
    }

    fn entry(&mut self, row: &Row) -> &mut RowHits {
        let order = self.rows.len();
        self.rows.entry(row.clone()).or_insert_with(|| RowHits {
            order,
            reach_us: FIRST_REACH_US,
            ..RowHits::default()
        })
    }

    fn hit(&mut self, row: &Row, moment: Moment) {
        *self.entry(row).hits.entry(moment).or_default() += 1;
    }

    /// Chooses what to aim at: one of the least hit moments.
    pub(super) fn aim(&self, random: &mut Random) -> Option<Aim> {
        let mut least = (u64::MAX, Effect::Reads);
        let mut wanted: Vec<(&Row, Moment)> = Vec::new();
        for (row, hits) in self.rows.iter().filter(|(_, hits)| hits.runs > 0) {
            for moment in Moment::ALL {
                let count = hits.hits.get(&moment).copied().unwrap_or(0);
                let rank = (count, Effect::of(row));
                if rank < least {
                    wanted.clear();
                    least = rank;
                }
                if rank == least {
                    wanted.push((row, moment));
                }
            }
        }
        let (row, moment) = *wanted.get(random.index(wanted.len()))?;
        self.aim_at(row, moment, random)
    }

    /// Aims at a moment of a call, in any of its phases.
    pub(super) fn aim_at_call(
        &self,
        call: &str,
        moment: Moment,
        random: &mut Random,
    ) -> Option<Aim> {
        let rows = self.rows.iter().filter(|(_, hits)| hits.runs > 0);
        let rows: Vec<&Row> = rows
            .map(|(row, _)| row)
            .filter(|row| row.call == call)
            .collect();
        self.aim_at(rows.get(random.index(rows.len()))?, moment, random)
    }

    fn aim_at(&self, row: &Row, moment: Moment, random: &mut Random) -> Option<Aim> {
        let mut places = Vec::new();
        for (run, events) in self.whole.iter().enumerate() {
            let rows = self.reader().rows(events);
            places.extend(
                rows.iter()
                    .zip(events)
                    .enumerate()
                    .filter(|(_, (found, event))| *found == row && event.edge == Edge::Begin)
                    .map(|(at, _)| (run, at)),
            );
        }
        let (run, at) = *places.get(random.index(places.len()))?;
        let events = self.whole.get(run)?;
        let event = events.get(at)?.clone();
        let prefix = trace::stop_prefix(&event.name);
        let alike = |other: &&Event| {
            other.edge == Edge::Begin
                && other.store == event.store
                && other.verb == event.verb
                && other.name.starts_with(prefix)
        };
        let number = events.iter().take(at + 1).filter(alike).count();
        let reach = self.rows.get(row).map_or(0.0, |hits| hits.reach_us);
        Some(Aim {
            moment,
            row: row.clone(),
            number,
            wait_us: reach * random.share(),
            event,
        })
    }

    /// Counts what a kill met. `stopped` is the aim at which the process was seen stopped, if it was.
    pub(super) fn add_kill(&mut self, events: &[Event], stopped: Option<&Aim>) {
        let mut reader = self.reader();
        let rows: Vec<Row> = events.iter().map(|event| reader.row(event)).collect();
        let open = trace::in_flight(events);
        for row in open.iter().filter_map(|at| rows.get(*at)) {
            self.hit(row, Moment::Within);
        }
        match stopped {
            Some(aim) if aim.moment == Moment::Before => {
                let row = reader.row(&aim.event);
                self.hit(&row, Moment::Before);
            }
            Some(aim) if aim.moment == Moment::After => {
                // Another thread may have begun something meanwhile: the call that the process stopped behind had ended.
                let ended = rows
                    .iter()
                    .zip(events)
                    .rev()
                    .find(|(row, event)| event.edge == Edge::End && row.call == aim.row.call);
                if let Some((row, _)) = ended {
                    self.hit(row, Moment::After);
                }
            }
            _ if open.is_empty() => {
                if let Some(row) = rows.last() {
                    self.hit(row, Moment::After);
                }
            }
            _ => {}
        }
        if let Some(aim) = stopped.filter(|aim| aim.moment == Moment::Within) {
            let met = open.iter().any(|at| rows.get(*at) == Some(&aim.row));
            let entry = self.entry(&aim.row);
            let factor = if met { 1.5 } else { 0.5 };
            entry.reach_us = (entry.reach_us * factor).min(LAST_REACH_US);
        }
    }

    /// Rows of whole runs with a moment that was never hit.
    pub fn missed(&self) -> Vec<String> {
        let mut missed = Vec::new();
        for (row, hits) in self.in_order() {
            for moment in Moment::ALL {
                // A row that not every whole run has cannot be promised.
                if hits.runs == self.whole.len() && !hits.hits.contains_key(&moment) {
                    missed.push(format!("{} / {}: {}", row.phase, row.call, moment.word()));
                }
            }
        }
        missed
    }

    /// Kills that were counted, all rows and moments together.
    pub fn hits(&self) -> u64 {
        self.rows.values().flat_map(|row| row.hits.values()).sum()
    }

    /// Whether a call of this kind was met by a kill at this moment, in any phase.
    pub fn was_hit(&self, call: &str, moment: Moment) -> bool {
        self.rows
            .iter()
            .any(|(row, hits)| row.call == call && hits.hits.contains_key(&moment))
    }

    fn in_order(&self) -> Vec<(&Row, &RowHits)> {
        let mut rows: Vec<_> = self.rows.iter().collect();
        rows.sort_by_key(|(_, hits)| hits.order);
        rows
    }

    /// The table, in Markdown.
    pub(super) fn table(&self) -> String {
        let mut text =
            "| phase | call | calls in a whole run | before | within | after |\n|---|---|--:|--:|--:|--:|\n"
                .to_owned();
        for (row, hits) in self.in_order() {
            let count = |moment| {
                let count = hits.hits.get(&moment).copied().unwrap_or(0);
                if count == 0 {
                    "–".to_owned()
                } else {
                    count.to_string()
                }
            };
            text.push_str(&format!(
                "| {} | {} | {} | {} | {} | {} |\n",
                row.phase,
                row.call,
                hits.calls,
                count(Moment::Before),
                count(Moment::Within),
                count(Moment::After)
            ));
        }
        text
    }

    /// The table, for programs.
    pub(super) fn json(&self) -> Value {
        let rows = self.in_order();
        let rows = rows.iter().map(|(row, hits)| {
            let count = |moment| hits.hits.get(&moment).copied().unwrap_or(0);
            json!({
                "phase": row.phase,
                "call": row.call,
                "calls_in_a_whole_run": hits.calls,
                "before": count(Moment::Before),
                "within": count(Moment::Within),
                "after": count(Moment::After),
            })
        });
        rows.collect()
    }
}
