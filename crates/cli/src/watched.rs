//! A store whose traffic is shown while a long operation runs on it: what was read and put moves the bar.

use std::sync::Arc;

use engine::Progress;
use store::{ListPage, ObjectName, Prefix, Result, Store};

use crate::progress::Bars;

/// Passes every call on and counts the bytes of objects.
pub struct WatchedStore {
    inner: Arc<dyn Store>,
    bars: Arc<Bars>,
}

impl WatchedStore {
    /// Watches `inner`.
    pub fn new(inner: Arc<dyn Store>, bars: Arc<Bars>) -> Self {
        Self { inner, bars }
    }

    fn counted(&self, body: Result<Vec<u8>>) -> Result<Vec<u8>> {
        if let Ok(body) = &body {
            self.bars
                .advance(u64::try_from(body.len()).unwrap_or(u64::MAX));
        }
        body
    }
}

impl Store for WatchedStore {
    fn put_new(&self, name: &ObjectName, body: &[u8]) -> Result<()> {
        self.inner.put_new(name, body)
    }
    fn get_bounded(&self, name: &ObjectName, limit_bytes: u64) -> Result<Vec<u8>> {
        self.counted(self.inner.get_bounded(name, limit_bytes))
    }
    fn get_range(&self, name: &ObjectName, offset: u64, length_bytes: u64) -> Result<Vec<u8>> {
        self.counted(self.inner.get_range(name, offset, length_bytes))
    }
    fn size(&self, name: &ObjectName) -> Result<u64> {
        self.inner.size(name)
    }
    fn list(&self, prefix: &Prefix, after: Option<&ObjectName>, limit: usize) -> Result<ListPage> {
        self.inner.list(prefix, after, limit)
    }
    fn delete(&self, name: &ObjectName) -> Result<()> {
        self.inner.delete(name)
    }
    fn describe(&self) -> String {
        self.inner.describe()
    }
}

/// Bytes of all packs: what a full verification reads.
pub fn pack_bytes(store: &dyn Store) -> Result<u64> {
    let mut total = 0u64;
    for prefix in ["data", "node"] {
        for entry in store::list_all(store, &Prefix::new(prefix)?) {
            total = total.saturating_add(entry?.size_bytes);
        }
    }
    Ok(total)
}
