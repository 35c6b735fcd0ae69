//! Where requests are answered: one function for each, over the estate that all hosts share.
//!
//! **Invariants.** The estate is locked for short steps only, so that the wire goes on answering. What waits, waits for the estate's
//! own clock, never longer than it was told to, and not beyond the lab's end.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde::Serialize;
use serde_json::{Value, json};

use super::guests::GuestBook;
use super::messages::{DownReport, GuestProgress, Reply, Request, RunReport};
use super::server::refused;
use crate::estate::{Estate, HostName, Realm, VirtualMachine, VmId};
use crate::provider::SharedEstate;
use crate::wire::WirePlan;
use crate::{Error, Result};

/// Longer than this at once is a typing error.
const RUN_MAX: Duration = Duration::from_secs(400 * 24 * 3600);
/// How much time passes while the estate is locked.
const STEP: Duration = Duration::from_secs(2);
/// How often it is looked whether something waited for has come.
const LOOK: Duration = Duration::from_millis(10);

/// What a desk is made from.
pub struct DeskParts {
    /// The estate.
    pub estate: Arc<SharedEstate>,
    /// Where hosts listen.
    pub addresses: BTreeMap<HostName, SocketAddr>,
    /// What goes wrong on the way to each.
    pub plans: BTreeMap<HostName, Arc<WirePlan>>,
    /// Ports of their files over SMB.
    pub smb_ports: BTreeMap<HostName, u16>,
    /// Where the lab lies.
    pub folder: PathBuf,
    /// Whether the folder stays at the end.
    pub folder_stays: bool,
    /// How many seconds of the estate are one of ours.
    pub speed: u32,
}

/// Answers what is asked of a lab.
pub struct ControlDesk {
    pub(super) parts: DeskParts,
    pub(super) book: Mutex<GuestBook>,
    is_ending: AtomicBool,
    is_closed: AtomicBool,
}

impl ControlDesk {
    /// A desk.
    pub fn new(parts: DeskParts) -> Arc<Self> {
        let desk = Self {
            parts,
            book: Mutex::new(GuestBook::default()),
            is_ending: AtomicBool::new(false),
            is_closed: AtomicBool::new(false),
        };
        desk.remember_guests();
        Arc::new(desk)
    }

    /// Whether somebody asked the lab to end.
    pub fn is_ending(&self) -> bool {
        self.is_ending.load(Ordering::Acquire)
    }

    pub(super) fn ask_to_end(&self) {
        self.is_ending.store(true, Ordering::Release);
    }

    /// Nothing is waited for any more.
    pub(super) fn close(&self) {
        self.is_closed.store(true, Ordering::Release);
    }

    /// Keeps what tells guests apart, for when their VMs are gone. Asked now and then.
    pub fn remember_guests(&self) {
        let mut book = self.book.lock().unwrap_or_else(PoisonError::into_inner);
        self.parts.estate.read(|estate| book.note(estate));
    }

    /// Answers a request.
    pub fn answer(&self, request: Request) -> Value {
        self.remember_guests();
        match request {
            Request::Status {} => done(Ok(self.status())),
            Request::Down {} => done(Ok(DownReport {
                folder: self.parts.folder.display().to_string(),
                folder_stays: self.parts.folder_stays,
            })),
            Request::Run { duration_ms } => done(self.run(Duration::from_millis(duration_ms))),
            Request::Faults {} => done(Ok(self.faults())),
            Request::Inject(fault) => done(self.inject(&fault)),
            Request::Clear {} => done(self.clear_faults()),
            Request::Migrate(migration) => done(self.migrate(&migration)),
            Request::Guest { vm } => done(self.guest(&vm)),
            Request::GuestWrite { vm, bytes } => done(self.guest_writes(&vm, bytes)),
            Request::GuestWriters { vm, state } => done(self.guest_writers(&vm, state)),
            Request::GuestPower { vm, change } => done(self.guest_power(&vm, change)),
        }
    }

    fn run(&self, duration: Duration) -> Result<RunReport> {
        if duration > RUN_MAX {
            return Err(Error::invalid(format!(
                "{} days at once: at most {}",
                duration.as_secs() / 86_400,
                RUN_MAX.as_secs() / 86_400
            )));
        }
        let look = || {
            self.parts.estate.read(|estate| {
                let guests: Vec<(VmId, String, u64)> = estate
                    .systems()
                    .filter(|vm| vm.realm == Realm::Realized)
                    .filter_map(|vm| {
                        let committed = vm.guest()?.committed();
                        Some((vm.id, vm.settings.name.clone(), committed))
                    })
                    .collect();
                (estate.now().to_string(), guests)
            })
        };
        let (from, before) = look();
        let mut left = duration;
        while !left.is_zero() {
            self.check_open()?;
            let step = left.min(STEP);
            self.parts.estate.pass(step)?;
            left = left.saturating_sub(step);
        }
        let (to, after) = look();
        let before: BTreeMap<VmId, u64> = before.into_iter().map(|(id, _, at)| (id, at)).collect();
        let guests = after.into_iter().map(|(id, vm, to)| GuestProgress {
            from: before.get(&id).copied().unwrap_or(0),
            vm,
            to,
        });
        Ok(RunReport {
            from,
            to,
            guests: guests.collect(),
        })
    }

    fn check_open(&self) -> Result<()> {
        if self.is_closed.load(Ordering::Acquire) || self.is_ending() {
            return Err(Error::invalid("the lab ends"));
        }
        Ok(())
    }

    /// Looks until something is there; the estate's clock goes on meanwhile as it does anyway.
    ///
    /// # Errors
    /// `Invalid` when it is not there within a time of the estate's clock, or the lab ends.
    pub(super) fn wait<T>(
        &self,
        what: &str,
        patience: Duration,
        mut look: impl FnMut(&Estate) -> Result<Option<T>>,
    ) -> Result<T> {
        let begun = self.parts.estate.read(Estate::now);
        loop {
            self.check_open()?;
            self.parts.estate.on_request()?;
            let (found, now) = self.parts.estate.read(|it| (look(it), it.now()));
            if let Some(found) = found? {
                return Ok(found);
            }
            if now.since(begun) > patience {
                return Err(Error::invalid(format!(
                    "{what}: not within {} s of the lab's clock",
                    patience.as_secs()
                )));
            }
            std::thread::sleep(LOOK);
        }
    }

    /// The one VM of a name or id.
    pub(super) fn find<'e>(&self, estate: &'e Estate, named: &str) -> Result<&'e VirtualMachine> {
        let named = named.trim_matches(['{', '}']);
        let found: Vec<&VirtualMachine> = estate
            .systems()
            .filter(|vm| vm.realm == Realm::Realized)
            .filter(|vm| {
                vm.settings.name.eq_ignore_ascii_case(named)
                    || vm.id.to_string().eq_ignore_ascii_case(named)
            })
            .collect();
        match found.as_slice() {
            [] => Err(Error::not_found(format!("the lab has no VM {named}"))),
            [one] => Ok(one),
            several => {
                let ids: Vec<String> = several
                    .iter()
                    .map(|vm| format!("{} on {}", vm.id, vm.host))
                    .collect();
                Err(Error::invalid(format!(
                    "several VMs are called {named}: give an id: {}",
                    ids.join(", ")
                )))
            }
        }
    }

    /// The host of a name, up or down.
    pub(super) fn find_host(&self, named: &str) -> Result<HostName> {
        let name = HostName::new(named);
        self.parts
            .estate
            .read(|estate| estate.host(&name).map(|host| host.name.clone()))
    }
}

fn done<T: Serialize>(outcome: Result<T>) -> Value {
    match outcome {
        Ok(answer) => json!(Reply::Done(answer)),
        Err(error) => refused(&error),
    }
}
