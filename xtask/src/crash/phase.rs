//! Which phase of its operation a process is in, told by landmarks among its calls.
//!
//! ```text
//!   backup, copy   open ─put lease─► begin ─put pack─► write ─put index─► index ─put point─► commit ─ended─► release ┐
//!                                      ▲────────────────────── put lease (copy: the next point) ────────────────────┘
//!   gc, repair     open ─put lease─► survey ⇄ settle ─put pack─► repack
//!                       ─put condemned─► condemn n ─► wait n ─put verdict─► verdict n ─► delete n ─► put away n
//!                       ─► repack or condemn n+1 ─► fold ─► release
//!   forget         open ─put mark─► mark
//! ```
//!
//! The process is not asked: what it does to the store is what counts after a crash.

use super::trace::{Edge, Event};

/// The kinds of operations that have landmarks of their own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Landmarks {
    /// Points are written: backup and copy.
    Session,
    /// Packs are condemned: gc and repair.
    Collection,
    /// One mark is put.
    Mark,
}

/// A row of the coverage table.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Row {
    /// When in the operation; a number in front keeps the phases in order.
    pub(super) phase: String,
    /// Verb and kind of object; with the store when it is not the one that is written to.
    pub(super) call: String,
}

/// Follows a trace.
#[derive(Debug, Clone)]
pub(super) struct PhaseReader {
    landmarks: Landmarks,
    written_store: u32,
    phase: &'static str,
    generation: u32,
}

impl PhaseReader {
    pub(super) fn new(landmarks: Landmarks, written_store: u32) -> Self {
        Self {
            landmarks,
            written_store,
            phase: "open",
            generation: 0,
        }
    }

    /// The row of every event, in order.
    pub(super) fn rows(mut self, events: &[Event]) -> Vec<Row> {
        events.iter().map(|event| self.row(event)).collect()
    }

    /// Takes the next event; its row.
    pub(super) fn row(&mut self, event: &Event) -> Row {
        let store = if event.store == self.written_store {
            ""
        } else {
            " (other store)"
        };
        if event.store == self.written_store && event.edge == Edge::Begin {
            self.advance(event);
        }
        let row = Row {
            phase: self.name(),
            call: format!("{} {}{store}", event.verb, event.kind),
        };
        if event.store == self.written_store && event.edge == Edge::End {
            self.advance(event);
        }
        row
    }

    fn name(&self) -> String {
        let numbered = ["condemn", "wait", "verdict", "delete", "put away"];
        if numbered.contains(&self.phase) {
            return format!("{} {}", self.phase, self.generation);
        }
        self.phase.to_owned()
    }

    fn advance(&mut self, event: &Event) {
        let next = match self.landmarks {
            Landmarks::Session => self.session(event),
            Landmarks::Collection => self.collection(event),
            Landmarks::Mark => event.is(Edge::Begin, "put", "mark").then_some("mark"),
        };
        if let Some(next) = next {
            if next == "condemn" && self.phase != "condemn" {
                self.generation += 1;
            }
            self.phase = next;
        }
    }

    fn session(&self, event: &Event) -> Option<&'static str> {
        let first_beat = event.name.ends_with("/0000000000000001");
        if event.is(Edge::Begin, "put", "lease") && first_beat {
            Some("begin")
        } else if is_pack_put(event) {
            Some("write")
        } else if event.is(Edge::Begin, "put", "index segment") {
            Some("index")
        } else if event.is(Edge::Begin, "put", "point") {
            Some("commit")
        } else if event.is(Edge::End, "put", "point") {
            Some("release")
        } else {
            None
        }
    }

    fn collection(&self, event: &Event) -> Option<&'static str> {
        let is = |edge, verb, kind| event.is(edge, verb, kind);
        if is(Edge::Begin, "put", "lease") && self.phase == "open" {
            return Some("survey");
        }
        if is(Edge::Begin, "put", "condemned record") {
            return Some("condemn");
        }
        if is(Edge::End, "put", "condemned record") {
            return Some("wait");
        }
        let surveying = matches!(self.phase, "survey" | "settle");
        let settles = event.edge == Edge::Begin && matches!(event.verb.as_str(), "put" | "delete");
        if surveying && settles && matches!(event.kind, "verdict" | "condemned record") {
            return Some("settle");
        }
        if self.phase == "settle" {
            return is(Edge::Begin, "list", "mark").then_some("survey");
        }
        if is(Edge::Begin, "put", "verdict") {
            return Some("verdict");
        }
        if is(Edge::End, "put", "verdict") {
            return Some("delete");
        }
        if is(Edge::Begin, "delete", "condemned record") {
            return Some("put away");
        }
        self.behind_generations(event)
    }

    fn behind_generations(&self, event: &Event) -> Option<&'static str> {
        let is = |verb, kind| event.is(Edge::Begin, verb, kind);
        let read = is("get-range", "data pack") || is("get-range", "node pack");
        if is_pack_put(event) || (self.phase == "put away" && self.generation == 1 && read) {
            return Some("repack");
        }
        if matches!(self.phase, "put away" | "survey")
            && (is("list", "index segment") || is("put", "bundle"))
        {
            return (self.phase == "put away").then_some("fold");
        }
        let own_beats = is("list", "lease") && event.name.len() > "leases/".len();
        own_beats.then_some("release")
    }
}

fn is_pack_put(event: &Event) -> bool {
    event.is(Edge::Begin, "put", "data pack") || event.is(Edge::Begin, "put", "node pack")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crash::trace;

    fn phases(landmarks: Landmarks, calls: &[(&str, &str)]) -> Vec<String> {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("trace");
        let mut text = String::new();
        for (at, (verb, name)) in calls.iter().enumerate() {
            text.push_str(&format!(
                "7 {at} 0 begin {verb} {name}\n7 {at} 0 end {verb} {name} ok\n"
            ));
        }
        std::fs::write(&path, text).expect("write");
        let events = trace::read(&path).expect("a trace");
        let rows = PhaseReader::new(landmarks, 0).rows(&events);
        rows.into_iter().step_by(2).map(|row| row.phase).collect()
    }

    #[test]
    fn a_backup_goes_through_its_phases() {
        let found = phases(
            Landmarks::Session,
            &[
                ("get", "config"),
                ("put", "leases/a/0000000000000001"),
                ("put", "data/00/a"),
                ("put", "leases/a/0000000000000002"),
                ("put", "index/a"),
                ("size", "points/n/0000000000000001"),
                ("put", "points/n/0000000000000001"),
                ("list", "leases/a/"),
                ("put", "leases/b/0000000000000001"),
            ],
        );
        let wanted = [
            "open", "begin", "write", "write", "index", "index", "commit", "release", "begin",
        ];
        assert_eq!(found, wanted);
    }

    #[test]
    fn a_collection_settles_condemns_and_packs_anew() {
        let found = phases(
            Landmarks::Collection,
            &[
                ("list", "gc/"),
                ("put", "leases/a/0000000000000001"),
                ("put", "gc/0000000000000001.verdict"),
                ("delete", "data/00/a"),
                ("list", "marks/"),
                ("put", "gc/0000000000000002.condemned"),
                ("list", "leases/"),
                ("put", "gc/0000000000000002.verdict"),
                ("delete", "node/00/a"),
                ("delete", "gc/0000000000000002.condemned"),
                ("get-range", "data/00/b"),
                ("put", "data/00/c"),
                ("put", "gc/0000000000000003.condemned"),
                ("list", "leases/a/"),
            ],
        );
        let wanted = [
            "open",
            "survey",
            "settle",
            "settle",
            "survey",
            "condemn 1",
            "wait 1",
            "verdict 1",
            "delete 1",
            "put away 1",
            "repack",
            "repack",
            "condemn 2",
            "release",
        ];
        assert_eq!(found, wanted);
    }
}
