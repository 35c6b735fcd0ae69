//! Reading the trace of a process: which calls on which store it began, and what came of them.
//!
//! The format is that of `HIKAE_TRACE_STORE`, which `docs/TESTING.md` describes.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result, bail};

/// The edges of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Edge {
    /// It was begun.
    Begin,
    /// It came back.
    End,
}

/// One line of a trace.
#[derive(Debug, Clone)]
pub(super) struct Event {
    /// Which of the process's calls.
    pub(super) call: u64,
    /// Which of the stores that the process opened.
    pub(super) store: u32,
    /// Begin or end.
    pub(super) edge: Edge,
    /// One word.
    pub(super) verb: String,
    /// The object's name, or the prefix.
    pub(super) name: String,
    /// `ok` or the kind of an error; empty for a begin.
    pub(super) outcome: String,
    /// What kind of object it is about: the row of the coverage table.
    pub(super) kind: &'static str,
}

impl Event {
    fn parse(line: &str) -> Result<Option<Self>> {
        let mut words = line.split(' ');
        let mut word = || words.next().context("the line is short");
        word()?;
        let call = word()?.parse().context("the call's number")?;
        let store = word()?.parse().context("the store's number")?;
        let edge = match word()? {
            "open" => return Ok(None),
            "begin" => Edge::Begin,
            "end" => Edge::End,
            other => bail!("unknown edge {other:?}"),
        };
        let verb = word()?.to_owned();
        let name = word()?.to_owned();
        let outcome = match edge {
            Edge::Begin => String::new(),
            Edge::End => word()?.to_owned(),
        };
        Ok(Some(Self {
            call,
            store,
            edge,
            kind: object_kind(&name),
            verb,
            name,
            outcome,
        }))
    }

    pub(super) fn is(&self, edge: Edge, verb: &str, kind: &str) -> bool {
        self.edge == edge && self.verb == verb && self.kind == kind
    }
}

/// Kind of the object of this name.
fn object_kind(name: &str) -> &'static str {
    if name.ends_with(".condemned") {
        return "condemned record";
    }
    if name.ends_with(".verdict") {
        return "verdict";
    }
    match name.split('/').next().unwrap_or("") {
        "data" => "data pack",
        "node" => "node pack",
        "index" => "index segment",
        "points" => "point",
        "bundles" => "bundle",
        "marks" => "mark",
        "leases" => "lease",
        "gc" => "gc record",
        "keys" => "key",
        "config" | "config.copy" => "configuration",
        _ => "other object",
    }
}

/// The part of a name that a stop can ask for: enough to tell the kinds of objects apart.
pub(super) fn stop_prefix(name: &str) -> &str {
    match name.split_once('/') {
        Some((first, _)) => name.get(..=first.len()).unwrap_or(name),
        None => name,
    }
}

/// Events of one process, oldest first. A line that is torn is an error: one write is one line.
pub(super) fn read(path: &Path) -> Result<Vec<Event>> {
    if !path.exists() {
        return Ok(Vec::new());
    }
    let text = std::fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
    let mut events = Vec::new();
    for line in text.split_inclusive('\n') {
        let whole = line
            .strip_suffix('\n')
            .with_context(|| format!("a torn line in the trace: {line:?}"))?;
        events.extend(Event::parse(whole).with_context(|| format!("trace line {whole:?}"))?);
    }
    name_tombstones(&mut events);
    Ok(events)
}

/// What is put at the place of a point is the point of the session only where the session looked (asked for its size) whether
/// its place is free. Elsewhere it is a tombstone: a dead writer is fenced.
fn name_tombstones(events: &mut [Event]) {
    let mut own: BTreeMap<u32, String> = BTreeMap::new();
    for event in events {
        if event.kind != "point" {
            continue;
        }
        if event.verb == "size" {
            own.insert(event.store, event.name.clone());
        } else if event.verb == "put" && own.get(&event.store) != Some(&event.name) {
            event.kind = "tombstone";
        }
    }
}

/// Calls that were begun and never came back.
pub(super) fn in_flight(events: &[Event]) -> Vec<usize> {
    let mut open: Vec<usize> = Vec::new();
    for (at, event) in events.iter().enumerate() {
        match event.edge {
            Edge::Begin => open.push(at),
            Edge::End => open.retain(|begun| {
                events
                    .get(*begun)
                    .is_some_and(|begun| begun.call != event.call)
            }),
        }
    }
    open
}

#[cfg(test)]
mod tests {
    use super::*;

    fn events(text: &str) -> Vec<Event> {
        text.lines()
            .filter_map(|line| Event::parse(line).expect("a line"))
            .collect()
    }

    #[test]
    fn what_was_begun_and_did_not_end_is_in_flight() {
        let events = events(
            "7 0 0 open directory at /x y\n7 1 0 begin list keys/\n7 2 0 begin put data/00/ab\n\
             7 1 0 end list keys/ ok\n7 3 0 begin put gc/0000000000000001.verdict",
        );
        let open = in_flight(&events);
        let kinds: Vec<&str> = open.iter().map(|at| events[*at].kind).collect();
        assert_eq!(kinds, ["data pack", "verdict"]);
    }

    #[test]
    fn a_torn_line_is_an_error() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("trace");
        std::fs::write(&path, "7 1 0 begin list keys/\n7 1 0 en").expect("write");
        assert!(read(&path).is_err());
        std::fs::write(&path, "7 1 0 begin list \n").expect("write");
        assert_eq!(read(&path).expect("whole")[0].name, "");
    }

    #[test]
    fn what_is_put_where_the_session_did_not_look_is_a_tombstone() {
        let mut events = events(
            "7 1 0 begin put points/n/01\n7 1 0 end put points/n/01 ok\n7 2 0 begin size points/n/02\n\
             7 3 0 begin put points/n/02\n7 4 1 begin put points/n/02",
        );
        name_tombstones(&mut events);
        let kinds: Vec<&str> = events.iter().map(|event| event.kind).collect();
        assert_eq!(
            kinds,
            ["tombstone", "tombstone", "point", "point", "tombstone"]
        );
    }

    #[test]
    fn a_prefix_of_a_stop_tells_kinds_apart() {
        assert_eq!(stop_prefix("data/00/ab"), "data/");
        assert_eq!(stop_prefix("config.copy"), "config.copy");
        assert_eq!(stop_prefix("leases/"), "leases/");
    }
}
