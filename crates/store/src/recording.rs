//! A store that writes down every call: how tests hold an operation to its cost.
//!
//! **Invariants.** A call is in the log when its answer is with the caller. The counts are those of the log, until
//! [`RecordingStore::take_calls`] empties both.

use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::{ErrorKind, ListPage, ObjectName, Prefix, Result, Store, Verb};

/// One call and what came of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Call {
    /// Which call.
    pub verb: Verb,
    /// The name or the prefix, as text.
    pub name: String,
    /// Bytes of the body that was put or read, or entries that were listed; zero for the rest and for errors.
    pub amount: u64,
    /// The kind of its error, if it failed.
    pub error: Option<ErrorKind>,
}

/// How many calls of each kind there were, and how many bytes went through them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CallCounts {
    /// Puts, failed ones included.
    pub puts: u64,
    /// Bytes of puts that succeeded.
    pub put_bytes: u64,
    /// Reads of whole objects.
    pub gets: u64,
    /// Reads of ranges.
    pub range_gets: u64,
    /// Bytes of both kinds of reads.
    pub read_bytes: u64,
    /// Questions for a size.
    pub sizes: u64,
    /// Pages of listings.
    pub lists: u64,
    /// Deletions.
    pub deletes: u64,
    /// Calls of any kind that failed.
    pub errors: u64,
}

/// A store that writes down every call.
#[derive(Debug)]
pub struct RecordingStore<S> {
    inner: S,
    calls: Mutex<Vec<Call>>,
}

impl<S> RecordingStore<S> {
    /// Records what goes to `inner`.
    pub fn new(inner: S) -> Self {
        Self {
            inner,
            calls: Mutex::default(),
        }
    }

    /// The calls so far, in the order in which they ended.
    pub fn calls(&self) -> Vec<Call> {
        self.log().clone()
    }

    /// The calls so far; the log is empty afterwards.
    pub fn take_calls(&self) -> Vec<Call> {
        std::mem::take(&mut self.log())
    }

    /// The calls so far, counted.
    pub fn counts(&self) -> CallCounts {
        CallCounts::of(self.log().iter())
    }

    /// The store below.
    pub fn inner(&self) -> &S {
        &self.inner
    }

    fn log(&self) -> MutexGuard<'_, Vec<Call>> {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note<T>(
        &self,
        verb: Verb,
        name: &str,
        answer: Result<T>,
        amount: impl FnOnce(&T) -> usize,
    ) -> Result<T> {
        let (amount, error) = match &answer {
            Ok(value) => (u64::try_from(amount(value)).unwrap_or(u64::MAX), None),
            Err(error) => (0, Some(error.kind())),
        };
        self.log().push(Call {
            verb,
            name: name.to_owned(),
            amount,
            error,
        });
        answer
    }
}

impl CallCounts {
    /// Counts a log, or a part of one.
    pub fn of<'a>(calls: impl IntoIterator<Item = &'a Call>) -> Self {
        let mut counts = Self::default();
        for call in calls {
            let (number, bytes) = match call.verb {
                Verb::PutNew => (&mut counts.puts, Some(&mut counts.put_bytes)),
                Verb::Get => (&mut counts.gets, Some(&mut counts.read_bytes)),
                Verb::GetRange => (&mut counts.range_gets, Some(&mut counts.read_bytes)),
                Verb::Size => (&mut counts.sizes, None),
                Verb::List => (&mut counts.lists, None),
                Verb::Delete => (&mut counts.deletes, None),
            };
            *number = number.saturating_add(1);
            if let Some(bytes) = bytes {
                *bytes = bytes.saturating_add(call.amount);
            }
            counts.errors = counts
                .errors
                .saturating_add(u64::from(call.error.is_some()));
        }
        counts
    }
}

impl<S: Store> Store for RecordingStore<S> {
    fn put_new(&self, name: &ObjectName, body: &[u8]) -> Result<()> {
        let answer = self.inner.put_new(name, body);
        self.note(Verb::PutNew, name.as_str(), answer, |()| body.len())
    }

    fn get_bounded(&self, name: &ObjectName, limit_bytes: u64) -> Result<Vec<u8>> {
        let answer = self.inner.get_bounded(name, limit_bytes);
        self.note(Verb::Get, name.as_str(), answer, Vec::len)
    }

    fn get_range(&self, name: &ObjectName, offset: u64, length_bytes: u64) -> Result<Vec<u8>> {
        let answer = self.inner.get_range(name, offset, length_bytes);
        self.note(Verb::GetRange, name.as_str(), answer, Vec::len)
    }

    fn size(&self, name: &ObjectName) -> Result<u64> {
        let answer = self.inner.size(name);
        self.note(Verb::Size, name.as_str(), answer, |_| 0)
    }

    fn list(&self, prefix: &Prefix, after: Option<&ObjectName>, limit: usize) -> Result<ListPage> {
        let answer = self.inner.list(prefix, after, limit);
        self.note(Verb::List, prefix.as_str(), answer, |page| {
            page.entries.len()
        })
    }

    fn delete(&self, name: &ObjectName) -> Result<()> {
        let answer = self.inner.delete(name);
        self.note(Verb::Delete, name.as_str(), answer, |()| 0)
    }

    fn describe(&self) -> String {
        self.inner.describe()
    }
}
