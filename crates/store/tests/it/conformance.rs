//! Every driver and every wrapper keeps the promises; every broken store is refused for the right reason.

use std::sync::Mutex;

use store::conformance::{CheckId, CheckOptions, CheckReport, Verdict, check};
use store::directory::{DirectoryStore, Publishing};
use store::faulty::{Fault, FaultyStore, PlannedCall};
use store::memory::MemoryStore;
use store::recording::RecordingStore;
use store::throttled::{SystemClock, ThrottleOptions, ThrottledStore};
use store::{Error, ErrorKind, ListPage, ObjectName, Prefix, Result, Store, Verb, list_all};

fn options() -> CheckOptions {
    CheckOptions::new(Prefix::new("check-store/one").expect("valid"))
}

pub fn report_of(store: &dyn Store, options: &CheckOptions) -> CheckReport {
    let mut report = CheckReport::default();
    check(store, options, &mut report);
    report
}

pub fn assert_conforms(store: &dyn Store) {
    let report = report_of(store, &options());
    let defects: Vec<_> = report.defects().collect();
    assert!(report.is_usable(), "{}: {defects:#?}", report.store);
    assert_eq!(report.results.len(), 15, "every check was made");
    assert_eq!(
        list_all(store, &Prefix::root()).count(),
        0,
        "nothing is left"
    );
}

#[test]
fn the_memory_store_conforms() {
    assert_conforms(&MemoryStore::new());
}

#[test]
fn the_directory_store_conforms() {
    let place = tempfile::tempdir().expect("temporary directory");
    assert_conforms(&DirectoryStore::create(place.path()).expect("create"));
}

#[test]
fn the_directory_store_conforms_without_hard_links() {
    let place = tempfile::tempdir().expect("temporary directory");
    let store = DirectoryStore::create(place.path()).expect("create");
    assert_conforms(&store.with_publishing(Publishing::Rename));
}

#[test]
fn wrappers_without_faults_and_limits_conform() {
    assert_conforms(&FaultyStore::sound(MemoryStore::new()));
    assert_conforms(&RecordingStore::new(MemoryStore::new()));
    let clock = std::sync::Arc::new(SystemClock::start());
    assert_conforms(&ThrottledStore::new(
        MemoryStore::new(),
        ThrottleOptions::default(),
        clock,
    ));
    let boxed: Box<dyn Store> = Box::new(MemoryStore::new());
    assert_conforms(&boxed);
}

#[test]
fn a_scratch_prefix_with_objects_is_left_alone() {
    let store = MemoryStore::new();
    let precious = ObjectName::new("check-store/one/precious").expect("valid");
    store.put_new(&precious, b"mine").expect("put");
    let report = report_of(&store, &options());
    assert!(!report.is_usable());
    assert_eq!(report.results.len(), 1);
    assert!(matches!(
        report.verdict(CheckId::SCRATCH_IS_EMPTY),
        Some(Verdict::Failed(_))
    ));
    assert_eq!(store.get(&precious).expect("untouched"), b"mine");
}

#[test]
fn a_store_that_does_not_answer_is_undecided_and_not_usable() {
    let dead = FaultyStore::new(MemoryStore::new(), |call: &PlannedCall<'_>| {
        (call.number > 1).then_some(Fault::FailBefore(ErrorKind::Unavailable))
    });
    let report = report_of(&dead, &options());
    assert!(!report.is_usable());
    let undecided =
        |result: &&store::conformance::CheckResult| matches!(result.verdict, Verdict::Undecided(_));
    assert!(
        report.defects().all(|result| undecided(&result)),
        "{report:#?}"
    );
    assert_eq!(report.defects().count(), 14);
}

/// How a store is broken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Breakage {
    /// `If-None-Match` means nothing to it: a put overwrites.
    ConditionIgnored,
    /// It asks whether the name is free, and then puts.
    CheckThenPut,
    /// A listing shows what was there one put ago.
    ListingLags,
    /// The first read after a put says that nothing is there.
    ReadLags,
    /// A deleted object stays in listings.
    DeletedStaysListed,
    /// A range behind the end is cut instead of refused.
    RangesCut,
    /// Names are listed in another order than their bytes'.
    ListsByLength,
    /// Only the first page is ever given.
    LosesPages,
    /// Bodies above a mebibyte are cut.
    CutsBodies,
    /// Reads give another byte.
    FlipsBits,
}

/// A memory store broken in one way.
struct BrokenStore {
    inner: MemoryStore,
    breakage: Breakage,
    unseen: Mutex<Vec<ObjectName>>,
}

impl BrokenStore {
    fn new(breakage: Breakage) -> Self {
        Self {
            inner: MemoryStore::new(),
            breakage,
            unseen: Mutex::default(),
        }
    }

    fn is(&self, breakage: Breakage) -> bool {
        self.breakage == breakage
    }

    fn unseen(&self) -> std::sync::MutexGuard<'_, Vec<ObjectName>> {
        self.unseen.lock().expect("lock")
    }
}

impl Store for BrokenStore {
    fn put_new(&self, name: &ObjectName, body: &[u8]) -> Result<()> {
        match self.breakage {
            Breakage::ConditionIgnored => self.inner.delete(name)?,
            Breakage::CheckThenPut => {
                if self.inner.size(name).is_ok() {
                    return Err(Error::already_exists(name));
                }
                for _ in 0..64 {
                    std::thread::yield_now();
                }
                self.inner.delete(name)?;
            }
            Breakage::CutsBodies => {
                return self.inner.put_new(name, &body[..body.len().min(1 << 20)]);
            }
            Breakage::ListingLags => *self.unseen() = vec![name.clone()],
            Breakage::ReadLags => self.unseen().push(name.clone()),
            _ => {}
        }
        self.inner.put_new(name, body)
    }

    fn get_bounded(&self, name: &ObjectName, limit_bytes: u64) -> Result<Vec<u8>> {
        if self.is(Breakage::ReadLags) && self.unseen().contains(name) {
            self.unseen().retain(|unseen| unseen != name);
            return Err(Error::not_found(Verb::Get, name));
        }
        let mut body = self.inner.get_bounded(name, limit_bytes)?;
        if self.is(Breakage::FlipsBits)
            && let Some(last) = body.last_mut()
        {
            *last ^= 1;
        }
        Ok(body)
    }

    fn get_range(&self, name: &ObjectName, offset: u64, length_bytes: u64) -> Result<Vec<u8>> {
        let size = self.inner.size(name)?;
        if self.is(Breakage::RangesCut) && offset < size {
            return self
                .inner
                .get_range(name, offset, length_bytes.min(size - offset));
        }
        self.inner.get_range(name, offset, length_bytes)
    }

    fn size(&self, name: &ObjectName) -> Result<u64> {
        self.inner.size(name)
    }

    fn list(&self, prefix: &Prefix, after: Option<&ObjectName>, limit: usize) -> Result<ListPage> {
        let mut page = self.inner.list(prefix, after, limit)?;
        match self.breakage {
            Breakage::ListingLags => {
                let unseen = self.unseen();
                page.entries.retain(|entry| !unseen.contains(&entry.name));
            }
            Breakage::DeletedStaysListed => {
                for name in self.unseen().iter().filter(|name| prefix.contains(name)) {
                    page.entries.push(store::ListEntry {
                        name: name.clone(),
                        size_bytes: 1,
                    });
                }
            }
            Breakage::ListsByLength => {
                page.entries.sort_by_key(|entry| entry.name.as_str().len());
            }
            Breakage::LosesPages => page.next_after = None,
            _ => {}
        }
        Ok(page)
    }

    fn delete(&self, name: &ObjectName) -> Result<()> {
        if self.is(Breakage::DeletedStaysListed) {
            self.unseen().push(name.clone());
        }
        self.inner.delete(name)
    }

    fn describe(&self) -> String {
        format!("broken: {:?}", self.breakage)
    }
}

#[test]
fn every_broken_store_is_refused_for_what_is_broken() {
    for (breakage, id) in [
        (Breakage::ConditionIgnored, CheckId::CREATE_IF_ABSENT),
        (Breakage::CheckThenPut, CheckId::ONE_WINNER),
        (Breakage::ListingLags, CheckId::LIST_AFTER_WRITE),
        (Breakage::ReadLags, CheckId::READ_AFTER_WRITE),
        (Breakage::DeletedStaysListed, CheckId::GONE_AFTER_DELETE),
        (Breakage::RangesCut, CheckId::RANGES),
        (Breakage::ListsByLength, CheckId::ORDER_AND_PAGES),
        (Breakage::LosesPages, CheckId::ORDER_AND_PAGES),
        (Breakage::CutsBodies, CheckId::BIG_OBJECT),
        (Breakage::FlipsBits, CheckId::READ_AFTER_WRITE),
    ] {
        let mut options = options();
        // The race is found by many rounds: that is what they are for.
        options.race_rounds = 200;
        options.big_object_bytes = 2 << 20;
        let report = report_of(&BrokenStore::new(breakage), &options);
        assert!(!report.is_usable(), "{breakage:?} passed");
        let verdict = report.verdict(id).expect("was made");
        assert!(
            matches!(verdict, Verdict::Failed(_)),
            "{breakage:?}: {report:#?}"
        );
        let defect = report
            .defects()
            .find(|result| result.id == id)
            .expect("listed");
        assert!(!defect.remedy.is_empty());
    }
}
