//! Long operations on a repository: shown while they run, and stopped when they are told to.
//!
//! ```text
//!   repository ──► watched store ──► store
//!                    │  told to stop? every call is refused from then on, as if the store were gone,
//!                    │                but for those that keep and give back this process's own lease,
//!                    │                and the one that commits what all else is ready for
//!                    └► bytes read move the bar
//! ```
//!
//! What is stopped so ends as it would on a store that vanished, which every operation is made to live through: nothing is
//! left that the next run does not finish or put away. Only the lease is given back at once, so that nobody waits for it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use engine::{Cancellation, Progress};
use repo::{ProtectedName, ReadProtection, Repository};
use store::{Error, ErrorKind, ListPage, ObjectName, Prefix, Result, Store, Verb};

use crate::args::RepoArgs;
use crate::keys;
use crate::output::Output;
use crate::progress::{Bars, cancellation};

/// Which traffic moves the bar.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Traffic {
    /// What is read.
    Reads,
    /// What is read; from the first pack that is put on, it is said that packs are packed anew.
    ReadsThenPacking,
    /// Nothing: the operation tells by itself how far it is, or this is not the store that it spends its time with.
    Hidden,
}

/// One command that shows how far it is and can be stopped.
pub struct Watch {
    bars: Arc<Bars>,
    cancel: Cancellation,
    is_shown: bool,
}

impl Watch {
    /// Listens to Ctrl-C and SIGTERM from now on.
    pub fn new(output: &Output) -> Self {
        Self {
            bars: Arc::new(Bars::new(output)),
            cancel: cancellation(),
            is_shown: output.shows_progress(),
        }
    }

    /// The store, stopped and shown.
    pub fn over(&self, inner: Arc<dyn Store>, traffic: Traffic) -> Arc<dyn Store> {
        Arc::new(WatchedStore {
            inner,
            bars: Arc::clone(&self.bars),
            cancel: self.cancel.clone(),
            traffic,
            packs_anew: AtomicBool::new(false),
        })
    }

    /// Opens a repository over a store that is watched.
    pub fn open(&self, arguments: &RepoArgs, traffic: Traffic) -> anyhow::Result<Repository> {
        keys::open_through(arguments, |store| self.over(store, traffic))
    }

    /// Runs a step under a bar; `total_bytes` is asked for only where somebody looks.
    pub fn run<T>(
        &self,
        step: &str,
        total_bytes: impl FnOnce() -> Result<Option<u64>>,
        act: impl FnOnce() -> repo::Result<T>,
    ) -> anyhow::Result<T> {
        let total_bytes = if self.is_shown { total_bytes()? } else { None };
        self.bars.begin(step, total_bytes);
        let outcome = act();
        self.bars.end();
        Ok(outcome?)
    }

    /// Tells whoever reads along that a reader had no lease; whether it had one.
    pub fn tell_protection(&self, protection: ReadProtection) -> bool {
        let is_protected = protection != ReadProtection::None;
        if !is_protected {
            self.bars.warn(engine::job::UNPROTECTED);
        }
        is_protected
    }
}

impl repo::copy::CopyWatch for Watch {
    fn begin(&self, name: &ProtectedName, sequence: u64, bytes: u64) {
        self.bars
            .begin(&format!("copying {name}@{sequence}"), Some(bytes));
    }
    fn advance(&self, bytes: u64) {
        self.bars.advance(bytes);
    }
}

/// Passes calls on until it is told to stop, and counts the bytes of objects.
struct WatchedStore {
    inner: Arc<dyn Store>,
    bars: Arc<Bars>,
    cancel: Cancellation,
    traffic: Traffic,
    packs_anew: AtomicBool,
}

/// Whether this is about one lease: its beats. Looking at everybody's leases is not.
fn is_lease(name: &str) -> bool {
    name.strip_prefix("leases/")
        .is_some_and(|rest| !rest.is_empty())
}

impl WatchedStore {
    fn check(&self, verb: Verb, name: &str) -> Result<()> {
        if self.cancel.is_cancelled() && !is_lease(name) {
            let what = "the command was told to stop";
            return Err(Error::of(ErrorKind::Cancelled, verb, name, what));
        }
        Ok(())
    }

    fn counted(&self, body: Result<Vec<u8>>) -> Result<Vec<u8>> {
        if let Ok(body) = &body
            && self.traffic != Traffic::Hidden
        {
            self.bars
                .advance(u64::try_from(body.len()).unwrap_or(u64::MAX));
        }
        body
    }
}

impl Store for WatchedStore {
    fn put_new(&self, name: &ObjectName, body: &[u8]) -> Result<()> {
        // A point comes last: what is half a commit without it is a whole one with it.
        if !name.as_str().starts_with("points/") {
            self.check(Verb::PutNew, name.as_str())?;
        }
        let is_pack = name.as_str().starts_with("data/") || name.as_str().starts_with("node/");
        if self.traffic == Traffic::ReadsThenPacking
            && is_pack
            && !self.packs_anew.swap(true, Ordering::Relaxed)
        {
            self.bars.begin("packing anew", None);
        }
        self.inner.put_new(name, body)
    }
    fn get_bounded(&self, name: &ObjectName, limit_bytes: u64) -> Result<Vec<u8>> {
        self.check(Verb::Get, name.as_str())?;
        self.counted(self.inner.get_bounded(name, limit_bytes))
    }
    fn get_range(&self, name: &ObjectName, offset: u64, length_bytes: u64) -> Result<Vec<u8>> {
        self.check(Verb::GetRange, name.as_str())?;
        self.counted(self.inner.get_range(name, offset, length_bytes))
    }
    fn size(&self, name: &ObjectName) -> Result<u64> {
        self.check(Verb::Size, name.as_str())?;
        self.inner.size(name)
    }
    fn list(&self, prefix: &Prefix, after: Option<&ObjectName>, limit: usize) -> Result<ListPage> {
        self.check(Verb::List, prefix.as_str())?;
        self.inner.list(prefix, after, limit)
    }
    fn delete(&self, name: &ObjectName) -> Result<()> {
        self.check(Verb::Delete, name.as_str())?;
        self.inner.delete(name)
    }
    fn describe(&self) -> String {
        self.inner.describe()
    }
}

/// What packs there are.
#[derive(Debug, Clone, Copy, Default)]
pub struct PackBytes {
    /// Bytes of data packs.
    pub data: u64,
    /// Bytes of node packs.
    pub node: u64,
    /// How many of both.
    pub packs: u64,
}

impl PackBytes {
    /// Lists the packs.
    pub fn of(store: &dyn Store) -> Result<Self> {
        let mut found = Self::default();
        for (prefix, sum) in [("data", &mut found.data), ("node", &mut found.node)] {
            for entry in store::list_all(store, &Prefix::new(prefix)?) {
                *sum = sum.saturating_add(entry?.size_bytes);
                found.packs = found.packs.saturating_add(1);
            }
        }
        Ok(found)
    }

    /// What reading every pack takes, and walking all trees after that.
    pub fn full_read(&self) -> u64 {
        self.data.saturating_add(self.node.saturating_mul(2))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use store::memory::MemoryStore;

    #[test]
    fn once_told_to_stop_only_the_own_lease_is_served() {
        let watch = Watch {
            bars: Arc::new(Bars::new(&Output::new(crate::args::OutputMode::Json))),
            cancel: Cancellation::default(),
            is_shown: false,
        };
        let memory: Arc<dyn Store> = Arc::new(MemoryStore::new());
        let store = watch.over(Arc::clone(&memory), Traffic::Reads);
        let beat: ObjectName = "leases/a/0000000000000001".parse().expect("a name");
        let pack: ObjectName = "data/aa/a".parse().expect("a name");
        store.put_new(&beat, b"here").expect("not stopped yet");
        store.put_new(&pack, b"pack").expect("not stopped yet");

        watch.cancel.cancel();
        let kind = |error: Error| error.kind();
        assert_eq!(store.get(&pack).map_err(kind), Err(ErrorKind::Cancelled));
        assert_eq!(store.delete(&pack).map_err(kind), Err(ErrorKind::Cancelled));
        let all = Prefix::new("leases").expect("a prefix");
        assert!(
            store.list(&all, None, 10).is_err(),
            "waiting for others ends"
        );
        let own = Prefix::new("leases/a").expect("a prefix");
        assert_eq!(store.list(&own, None, 10).expect("served").entries.len(), 1);
        store.delete(&beat).expect("given back");
        assert!(memory.get(&pack).is_ok() && memory.get(&beat).is_err());
    }
}
