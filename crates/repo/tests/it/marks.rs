//! Marks are read many at once, each once.
#![expect(
    clippy::unwrap_used,
    reason = "a step of a test that fails ends the test"
)]

use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use store::memory::MemoryStore;
use store::{ListPage, ObjectName, Prefix, Store};

use crate::world::{Disk, World, back_up};

/// Lets nobody read a mark or a point alone: the first reader waits for a second one.
struct Together {
    inner: Arc<MemoryStore>,
    readers: Mutex<Readers>,
    arrived: Condvar,
}

#[derive(Default)]
struct Readers {
    now: usize,
    most: usize,
    marks: usize,
    points: usize,
}

impl Together {
    fn watch(&self, name: &ObjectName) {
        let is_mark = name.as_str().starts_with("marks/");
        let mut readers = self.readers.lock().unwrap();
        if is_mark {
            readers.marks += 1;
        } else if name.as_str().starts_with("points/") {
            readers.points += 1;
        } else {
            return;
        }
        readers.now += 1;
        readers.most = readers.most.max(readers.now);
        self.arrived.notify_all();
        let limit = Duration::from_secs(10);
        let alone = |readers: &mut Readers| readers.most < 2;
        let (mut readers, _) = self
            .arrived
            .wait_timeout_while(readers, limit, alone)
            .unwrap();
        readers.now -= 1;
    }
}

impl Store for Together {
    fn put_new(&self, name: &ObjectName, body: &[u8]) -> store::Result<()> {
        self.inner.put_new(name, body)
    }
    fn get_bounded(&self, name: &ObjectName, limit_bytes: u64) -> store::Result<Vec<u8>> {
        self.watch(name);
        self.inner.get_bounded(name, limit_bytes)
    }
    fn get_range(&self, name: &ObjectName, offset: u64, length: u64) -> store::Result<Vec<u8>> {
        self.inner.get_range(name, offset, length)
    }
    fn size(&self, name: &ObjectName) -> store::Result<u64> {
        self.inner.size(name)
    }
    fn delete(&self, name: &ObjectName) -> store::Result<()> {
        self.inner.delete(name)
    }
    fn list(
        &self,
        prefix: &Prefix,
        after: Option<&ObjectName>,
        limit: usize,
    ) -> store::Result<ListPage> {
        self.inner.list(prefix, after, limit)
    }
    fn describe(&self) -> String {
        self.inner.describe()
    }
}

#[test]
fn marks_and_points_are_read_several_at_once_and_each_once() {
    let world = World::new(1);
    let repository = world.open();
    for number in 1..=20 {
        let made = back_up(&repository, "vm", &Disk::new(8, &[(0, number)])).unwrap();
        repository.hold(&made, "").unwrap();
        repository.release(&made, "").unwrap();
    }
    let store = Arc::new(Together {
        inner: Arc::clone(&world.memory),
        readers: Mutex::default(),
        arrived: Condvar::new(),
    });
    let repository = world.open_over(Arc::clone(&store) as Arc<dyn Store>);
    let (records, damaged) = repository.points().unwrap();
    assert!(damaged.is_empty());
    assert!(records.iter().all(|record| record.marks.marks.len() == 2));
    // By order of their numbers, whoever was read first.
    assert!(records.is_sorted_by_key(|record| record.point.sequence));
    let readers = store.readers.lock().unwrap();
    assert_eq!((readers.marks, readers.points), (40, 20));
    assert!((2..=16).contains(&readers.most), "{}", readers.most);
}
