//! A store that tells a file what it is about to do and what came of it, so that a process can be killed at a chosen call
//! and the call be known afterwards.
//!
//! ```text
//!   PROCESS CALL STORE open DESCRIPTION            one line is one write(2) at the end of the file: a kill -9 leaves every
//!   PROCESS CALL STORE begin VERB NAME             line that was written whole
//!   PROCESS CALL STORE end VERB NAME OUTCOME       OUTCOME: ok, or the kind of the error
//! ```
//!
//! `PROCESS` is the process's id, `CALL` counts its calls from 1, `STORE` counts the stores it opened from 0. VERB is one word; NAME
//! is the object's name or the prefix, which may be empty.
//!
//! **Stops.** A [`TraceStop`] makes the process stop itself (`SIGSTOP`) once, at the call that it describes: before the call's first
//! line, between that line and the call, or behind its last line. Whoever started the process sees it stopped, and kills it
//! or lets it go on.
//!
//! **Invariants.** A call whose first line cannot be written is not made; one whose last line cannot be written fails, as a put
//! whose answer was lost. Nothing else of a call is changed.

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::str::FromStr;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::process::{Signal, getpid, kill_process};

use crate::{Error, ErrorKind, ListPage, ObjectName, Prefix, Result, Store, Verb};

/// Longest wait for an own stop signal to arrive.
const STOP_ARRIVES: Duration = Duration::from_millis(20);
/// A pause between two looks at the clock that tells that the process was stopped meanwhile.
const STOP_NOTICED: Duration = Duration::from_millis(1);

/// Where in a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TraceMoment {
    /// Nothing of it has been written down yet.
    Before,
    /// It has begun by the trace, and its work comes next.
    Within,
    /// It has ended.
    After,
}

/// The call at which the process stops itself: `MOMENT:STORE:VERB:PREFIX:N`, such as `within:0:put:data/:3` for the third put
/// below `data/` on the first store. MOMENT is `before`, `within` or `after`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TraceStop {
    moment: TraceMoment,
    store: u32,
    verb: String,
    prefix: String,
    number: u64,
}

impl FromStr for TraceStop {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let wrong = || {
            let what = format!("trace stop {text:?}: wanted MOMENT:STORE:VERB:PREFIX:N");
            Error::new(ErrorKind::Invalid, what)
        };
        let parts: Vec<&str> = text.split(':').collect();
        let &[moment, store, verb, prefix, number] = parts.as_slice() else {
            return Err(wrong());
        };
        Ok(Self {
            moment: match moment {
                "before" => TraceMoment::Before,
                "within" => TraceMoment::Within,
                "after" => TraceMoment::After,
                _ => return Err(wrong()),
            },
            store: store.parse().map_err(|_| wrong())?,
            verb: verb.to_owned(),
            prefix: prefix.to_owned(),
            number: number.parse().map_err(|_| wrong())?,
        })
    }
}

/// The file that all traced stores of a process write to.
#[derive(Debug)]
pub struct Trace {
    /// Whole lines only: threads take turns, processes are kept apart by the system's append.
    file: Mutex<File>,
    calls: AtomicU64,
    stores: AtomicU32,
    stop: Option<TraceStop>,
    seen: AtomicU64,
}

impl Trace {
    /// Appends to a file, which is made if it is not there.
    ///
    /// # Errors
    /// [`ErrorKind::Io`] when it cannot be opened.
    pub fn append(path: &Path, stop: Option<TraceStop>) -> Result<Self> {
        let file = File::options()
            .append(true)
            .create(true)
            .open(path)
            .map_err(|error| {
                let what = format!("trace {}: cannot be opened", path.display());
                Error::new(ErrorKind::Io, what).caused_by(error)
            })?;
        Ok(Self {
            file: Mutex::new(file),
            calls: AtomicU64::new(0),
            stores: AtomicU32::new(0),
            stop,
            seen: AtomicU64::new(0),
        })
    }

    fn write(&self, line: &str) -> Result<()> {
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        file.write_all(line.as_bytes()).map_err(|error| {
            Error::new(ErrorKind::Io, "the trace cannot be written").caused_by(error)
        })
    }

    /// The moment at which this call is to be stopped, if it is the one.
    fn stop_of(&self, store: u32, verb: &str, name: &str) -> Option<TraceMoment> {
        let stop = self.stop.as_ref()?;
        if stop.store != store || stop.verb != verb || !name.starts_with(&stop.prefix) {
            return None;
        }
        let number = self.seen.fetch_add(1, Ordering::Relaxed).saturating_add(1);
        (number == stop.number).then_some(stop.moment)
    }
}

/// Stops this process; comes back when it is told to go on.
fn stop_here() -> Result<()> {
    kill_process(getpid(), Signal::STOP)
        .map_err(|error| Error::new(ErrorKind::Io, "cannot stop").caused_by(error))?;
    // The signal may be taken by another thread, and this one runs on for a moment: it is not to get anywhere.
    let begun = Instant::now();
    let mut last = begun;
    loop {
        let now = Instant::now();
        if now.duration_since(last) >= STOP_NOTICED || now.duration_since(begun) >= STOP_ARRIVES {
            return Ok(());
        }
        last = now;
        std::hint::spin_loop();
    }
}

/// A store whose calls are written down.
#[derive(Debug)]
pub struct TracedStore<S> {
    inner: S,
    trace: Arc<Trace>,
    number: u32,
}

impl<S: Store> TracedStore<S> {
    /// Traces what goes to `inner`.
    ///
    /// # Errors
    /// [`ErrorKind::Io`] when the trace cannot be written.
    pub fn new(inner: S, trace: Arc<Trace>) -> Result<Self> {
        let number = trace.stores.fetch_add(1, Ordering::Relaxed);
        let process = std::process::id();
        let description = inner.describe().replace('\n', " ");
        trace.write(&format!("{process} 0 {number} open {description}\n"))?;
        Ok(Self {
            inner,
            trace,
            number,
        })
    }

    fn traced<T>(&self, verb: Verb, name: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
        let verb = word(verb);
        let stop = self.trace.stop_of(self.number, verb, name);
        let process = std::process::id();
        let stop_if = |moment| {
            if stop == Some(moment) {
                return stop_here();
            }
            Ok(())
        };
        stop_if(TraceMoment::Before)?;
        let call = self
            .trace
            .calls
            .fetch_add(1, Ordering::Relaxed)
            .saturating_add(1);
        let store = self.number;
        self.trace
            .write(&format!("{process} {call} {store} begin {verb} {name}\n"))?;
        stop_if(TraceMoment::Within)?;
        let answer = work();
        let outcome = match &answer {
            Ok(_) => "ok".to_owned(),
            Err(error) => format!("{:?}", error.kind()),
        };
        self.trace.write(&format!(
            "{process} {call} {store} end {verb} {name} {outcome}\n"
        ))?;
        stop_if(TraceMoment::After)?;
        answer
    }
}

/// A verb as one word.
fn word(verb: Verb) -> &'static str {
    match verb {
        Verb::PutNew => "put",
        Verb::Get => "get",
        Verb::GetRange => "get-range",
        Verb::Size => "size",
        Verb::List => "list",
        Verb::Delete => "delete",
    }
}

impl<S: Store> Store for TracedStore<S> {
    fn put_new(&self, name: &ObjectName, body: &[u8]) -> Result<()> {
        self.traced(Verb::PutNew, name.as_str(), || {
            self.inner.put_new(name, body)
        })
    }

    fn get_bounded(&self, name: &ObjectName, limit_bytes: u64) -> Result<Vec<u8>> {
        self.traced(Verb::Get, name.as_str(), || {
            self.inner.get_bounded(name, limit_bytes)
        })
    }

    fn get_range(&self, name: &ObjectName, offset: u64, length_bytes: u64) -> Result<Vec<u8>> {
        self.traced(Verb::GetRange, name.as_str(), || {
            self.inner.get_range(name, offset, length_bytes)
        })
    }

    fn size(&self, name: &ObjectName) -> Result<u64> {
        self.traced(Verb::Size, name.as_str(), || self.inner.size(name))
    }

    fn list(&self, prefix: &Prefix, after: Option<&ObjectName>, limit: usize) -> Result<ListPage> {
        self.traced(Verb::List, prefix.as_str(), || {
            self.inner.list(prefix, after, limit)
        })
    }

    fn delete(&self, name: &ObjectName) -> Result<()> {
        self.traced(Verb::Delete, name.as_str(), || self.inner.delete(name))
    }

    fn describe(&self) -> String {
        self.inner.describe()
    }
}
