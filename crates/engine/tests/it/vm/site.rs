//! An estate, the driver over it without sockets, journals in a folder, and a repository in memory.
//!
//! HV01 and HV02 are cluster CL1 with a shared volume; HV09 is alone. `sql01` (Windows, two disks, a role) and `lin01` (Linux)
//! are on HV01, `old01` (a VHD, no integration services) and `raw01` (a pass-through disk) on HV09.

use std::ops::ControlFlow;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use block::ReadAt;
use engine::job::backup_vm::{VmBackupReport, VmBackupRequest, VmBackupTools, backup_vm};
use engine::job::leftovers::{LeftoversTools, remove_leftovers};
use engine::job::restore_vm::{VmRestoreReport, VmRestoreRequest, VmRestoreTools, restore_vm};
use engine::job::{JobContext, Journal, JournalEntry};
use host::access::LocalPaths;
use host::custody::{Custody, JournalFolder, SweepReport};
use host::hyperv::{HyperV, HyperVOptions, NodeConnection};
use host::ids::{JobId, NodeName, OwnerId};
use host::path::HostPath;
use host::{CancelToken, Clock, Timestamp};
use lab::estate::{
    CheckpointKind, ClusterName, DiskSource, DiskSpec, Estate, EstateOptions, HostName,
    IntegrationServices, PowerState, Random, VmGeneration, VmId, VmSpec, VolumeKind,
    WindowsGeneration, WindowsPath,
};
use lab::guest::{Examination, GuestOs, examine};
use lab::provider::{HostProvider, Language, Pace, ProviderOptions, Role, Roles, SharedEstate};
use repo::lease::LeaseKind;
use repo::{ProtectedName, ReadProtection, RecoveryPoint};
use tempfile::TempDir;
use wsman::cim::{CimInstance, CimPath, CimValue};
use wsman::client::{CimClient, ClientOptions, ClientSources, Enumeration, WsmanClient};
use wsman::server::{AccountName, Caller, ServiceOptions, ServiceSources, WsmanService};
use wsman::transport::DirectTransport;

use crate::support::{World, context, selector};

pub const MIB: u64 = 1 << 20;

/// The estate's clock for the driver: a pause lets the estate's time pass.
pub struct EstateClock(pub Arc<SharedEstate>);

impl Clock for EstateClock {
    fn elapsed(&self) -> Duration {
        self.0.read(|estate| Duration::from_millis(estate.now().0))
    }

    fn now(&self) -> Timestamp {
        Timestamp(i64::try_from(self.0.read(|estate| estate.now().0)).unwrap())
    }

    fn pause(&self, duration: Duration, _cancel: &CancelToken) {
        self.0.write(|estate| estate.advance(duration)).unwrap();
    }
}

/// What happens to the estate in the middle of a job.
pub type Blow = Box<dyn FnOnce() + Send>;

/// When the process dies, or something happens around it: counts what is asked of hosts.
#[derive(Default)]
pub struct Death {
    asked: AtomicU64,
    /// The number of the question at which it dies; negative: after the host did what it was asked, zero never.
    at: AtomicI64,
    dead: AtomicU64,
    /// A line that is cut once, and no death: what is asked afterwards is answered.
    is_once: bool,
    /// What happens before the host hears a question.
    blow: Mutex<Option<(u64, Blow)>>,
}

impl std::fmt::Debug for Death {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Death")
            .field("asked", &self.asked)
            .field("at", &self.at)
            .field("dead", &self.dead)
            .finish_non_exhaustive()
    }
}

impl Death {
    pub fn never() -> Arc<Self> {
        Arc::default()
    }

    pub fn before(question: u64) -> Arc<Self> {
        let death = Self::default();
        death
            .at
            .store(i64::try_from(question).unwrap(), Ordering::Relaxed);
        Arc::new(death)
    }

    pub fn after(question: u64) -> Arc<Self> {
        let death = Self::default();
        death
            .at
            .store(-i64::try_from(question).unwrap(), Ordering::Relaxed);
        Arc::new(death)
    }

    /// The answer to one question is lost, after the host did what it was asked.
    pub fn once(question: u64) -> Arc<Self> {
        let death = Self {
            is_once: true,
            ..Self::default()
        };
        death
            .at
            .store(-i64::try_from(question).unwrap(), Ordering::Relaxed);
        Arc::new(death)
    }

    /// No death, but something that happens before a question is heard.
    pub fn struck(question: u64, blow: Blow) -> Arc<Self> {
        let death = Self::default();
        *death.blow.lock().unwrap() = Some((question, blow));
        Arc::new(death)
    }

    pub fn asked(&self) -> u64 {
        self.asked.load(Ordering::Relaxed)
    }

    pub fn has_come(&self) -> bool {
        self.dead.load(Ordering::Relaxed) > 0
    }

    fn gone() -> wsman::Error {
        wsman::Error::new(wsman::ErrorKind::Io, "this process is dead")
    }

    fn ask<T>(&self, act: impl FnOnce() -> wsman::Result<T>) -> wsman::Result<T> {
        if self.has_come() && !self.is_once {
            return Err(Self::gone());
        }
        let number = i64::try_from(self.asked.fetch_add(1, Ordering::Relaxed) + 1).unwrap();
        let blow = {
            let mut blow = self.blow.lock().unwrap();
            let is_due = blow
                .as_ref()
                .is_some_and(|(at, _)| i64::try_from(*at).unwrap() <= number);
            if is_due { blow.take() } else { None }
        };
        if let Some((_, blow)) = blow {
            blow();
        }
        let at = self.at.load(Ordering::Relaxed);
        if at == number {
            self.dead.store(1, Ordering::Relaxed);
            return Err(Self::gone());
        }
        let answer = act();
        if at == -number {
            self.dead.store(1, Ordering::Relaxed);
            return Err(Self::gone());
        }
        answer
    }
}

/// A client whose process may die.
struct Mortal {
    client: WsmanClient,
    death: Arc<Death>,
}

impl CimClient for Mortal {
    fn get(&self, path: &CimPath) -> wsman::Result<CimInstance> {
        self.death.ask(|| self.client.get(path))
    }

    fn for_each(
        &self,
        enumeration: &Enumeration,
        each: &mut dyn FnMut(CimInstance) -> ControlFlow<()>,
    ) -> wsman::Result<()> {
        self.death.ask(|| self.client.for_each(enumeration, each))
    }

    fn collect(&self, enumeration: &Enumeration) -> wsman::Result<Vec<CimInstance>> {
        self.death.ask(|| self.client.collect(enumeration))
    }

    fn invoke(
        &self,
        path: &CimPath,
        method: &str,
        parameters: &[(&str, CimValue)],
    ) -> wsman::Result<CimInstance> {
        self.death
            .ask(|| self.client.invoke(path, method, parameters))
    }

    fn put(&self, path: &CimPath, instance: &CimInstance) -> wsman::Result<CimInstance> {
        self.death.ask(|| self.client.put(path, instance))
    }
}

/// Warnings, for whoever reads a failed test.
struct Loud;

impl engine::Progress for Loud {
    fn begin(&self, _step: &str, _total_bytes: Option<u64>) {}
    fn advance(&self, _bytes: u64) {}
    fn warn(&self, text: &str) {
        eprintln!("warning: {text}");
    }
    fn end(&self) {}
}

struct MortalJournal(Arc<Death>);

impl Journal for MortalJournal {
    fn note(&self, entry: &JournalEntry) -> engine::Result<()> {
        if self.0.has_come() {
            let what = format!("this process is dead at {}", entry.step);
            return Err(engine::Error::new(engine::ErrorKind::Io, what));
        }
        Ok(())
    }
}

pub fn host(name: &str) -> HostName {
    HostName::new(name)
}

pub fn path(text: &str) -> WindowsPath {
    WindowsPath::parse(text).unwrap()
}

const HOSTS: [&str; 3] = ["HV01", "HV02", "HV09"];

/// All of it.
pub struct Site {
    pub estate: Arc<SharedEstate>,
    pub world: World,
    pub journals: JournalFolder,
    pub owner: OwnerId,
    pub sql01: VmId,
    pub lin01: VmId,
    pub old01: VmId,
    pub raw01: VmId,
    folder: TempDir,
    jobs: AtomicU64,
}

impl Site {
    pub fn new(seed: u64) -> Self {
        Self::with(seed, |_| {})
    }

    /// With something changed before machines are made.
    pub fn with(seed: u64, change: impl FnOnce(&mut EstateOptions)) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut options = EstateOptions::seeded(seed);
        change(&mut options);
        let mut estate = Estate::new(options);
        for name in HOSTS {
            let name = host(name);
            estate
                .add_host(&name, WindowsGeneration::Server2022, "example.net")
                .unwrap();
            for letter in ['C', 'D'] {
                let backing = folder.path().join(format!("{name}-{letter}"));
                let kind = VolumeKind::Local {
                    host: name.clone(),
                    letter,
                };
                estate.add_volume(kind, backing, 1 << 40).unwrap();
            }
        }
        let cluster = ClusterName::new("CL1");
        let nodes = [host("HV01"), host("HV02")];
        estate.add_cluster(&cluster, "example.net", &nodes).unwrap();
        let csv = VolumeKind::Csv {
            cluster,
            name: "Volume1".to_owned(),
            owner: nodes[0].clone(),
        };
        estate
            .add_volume(csv, folder.path().join("csv"), 1 << 40)
            .unwrap();
        let sql01 = estate.add_vm(&nodes[0], sql01()).unwrap();
        estate.make_highly_available(&nodes[0], "sql01").unwrap();
        let lin01 = estate.add_vm(&nodes[0], lin01()).unwrap();
        let old01 = estate.add_vm(&host("HV09"), old01()).unwrap();
        let raw01 = estate.add_vm(&host("HV09"), raw01()).unwrap();
        for (name, vm) in [
            ("HV01", sql01),
            ("HV01", lin01),
            ("HV09", old01),
            ("HV09", raw01),
        ] {
            estate.request_state_change(&host(name), vm, 2).unwrap();
        }
        estate.advance(Duration::from_secs(60)).unwrap();
        let journals = JournalFolder::open(&folder.path().join("journals")).unwrap();
        Self {
            estate: SharedEstate::new(estate, Pace::PerRequest(Duration::from_millis(200))),
            world: World::new(),
            journals,
            owner: OwnerId::new("tests").unwrap(),
            sql01,
            lin01,
            old01,
            raw01,
            folder,
            jobs: AtomicU64::new(1),
        }
    }

    fn client(&self, name: &str) -> WsmanClient {
        let account = AccountName::new(format!("{name}\\Somebody"));
        let options = ProviderOptions {
            language: Language::English,
            roles: Roles::new().with(&account, Role::Administrator),
        };
        let provider = HostProvider::new(self.estate.clone(), &host(name), options).unwrap();
        let random = Arc::new(Mutex::new(Random::seeded(3)));
        let ids: Arc<dyn Fn() -> [u8; 16] + Send + Sync> =
            Arc::new(move || random.lock().unwrap().bytes16());
        let ticks = Arc::new(AtomicU64::new(0));
        let clock: Arc<dyn Fn() -> Duration + Send + Sync> =
            Arc::new(move || Duration::from_millis(ticks.fetch_add(1, Ordering::Relaxed)));
        let sources = ServiceSources {
            clock: clock.clone(),
            ids: ids.clone(),
        };
        let service = WsmanService::new(Arc::new(provider), ServiceOptions::default(), sources);
        let transport = DirectTransport::new(
            Arc::new(service),
            Caller::Account(account),
            format!("http://{name}.example.net:5985/wsman"),
        );
        let sources = ClientSources {
            ids,
            clock,
            pause: Arc::new(|_, _| false),
        };
        WsmanClient::new(Arc::new(transport), ClientOptions::default(), sources)
    }

    /// A driver of a process that dies as told.
    pub fn driver(&self, death: &Arc<Death>) -> HyperV {
        let nodes = HOSTS.map(|name| {
            let mut files = LocalPaths::new();
            for letter in ['C', 'D'] {
                let folder = HostPath::new(format!("{letter}:\\")).unwrap();
                files =
                    files.with_root(folder, self.folder.path().join(format!("{name}-{letter}")));
            }
            let csv = HostPath::new("C:\\ClusterStorage\\Volume1").unwrap();
            if name != "HV09" {
                files = files.with_root(csv, self.folder.path().join("csv"));
            }
            NodeConnection {
                name: NodeName::new(name).unwrap(),
                client: Arc::new(Mortal {
                    client: self.client(name),
                    death: death.clone(),
                }),
                files: Arc::new(files),
            }
        });
        let clock = Arc::new(EstateClock(self.estate.clone()));
        HyperV::new(nodes, None, clock, HyperVOptions::default()).unwrap()
    }

    pub fn job(&self) -> JobId {
        let number = self.jobs.fetch_add(1, Ordering::Relaxed);
        let mut bytes = [7; 16];
        bytes[..8].copy_from_slice(&number.to_le_bytes());
        JobId::from_bytes(bytes)
    }

    pub fn request(&self, vm: VmId, name: &str) -> VmBackupRequest {
        let mut request = VmBackupRequest::new(ProtectedName::new(name).unwrap(), id(vm));
        request.workers = Some(1);
        request
    }

    /// A backup by a process of its own.
    pub fn back_up(&self, vm: VmId, name: &str) -> VmBackupReport {
        self.back_up_with(&self.request(vm, name), &Death::never())
            .unwrap()
    }

    pub fn back_up_with(
        &self,
        request: &VmBackupRequest,
        death: &Arc<Death>,
    ) -> engine::Result<VmBackupReport> {
        // Who is dead takes no further step, in the repository neither.
        let journal = MortalJournal(death.clone());
        let context = JobContext {
            journal: &journal,
            ..context()
        };
        self.back_up_watched(request, death, context)
    }

    pub fn back_up_watched(
        &self,
        request: &VmBackupRequest,
        death: &Arc<Death>,
        context: JobContext<'_>,
    ) -> engine::Result<VmBackupReport> {
        let driver = self.driver(death);
        let job = self.job();
        let journal = self.journals.begin(job)?;
        let custody = Custody::new(journal.log(), self.owner.clone(), job);
        let clock = EstateClock(self.estate.clone());
        let tools = VmBackupTools {
            host: &driver,
            repository: &self.world.repository,
            custody: &custody,
            cancel: &CancelToken::new(),
            clock: &clock,
        };
        let result = backup_vm(tools, request, context);
        drop(custody);
        if death.has_come() {
            // A dead process ends nothing.
            drop(journal);
        } else {
            let open = journal.finish()?;
            let is_smooth = result.as_ref().is_ok_and(|it| it.warnings.is_empty());
            assert!(!is_smooth || open == 0, "{open} entries are open");
        }
        result
    }

    /// A restore by a process of its own.
    pub fn restore(&self, request: &VmRestoreRequest) -> engine::Result<VmRestoreReport> {
        self.restore_with(request, &Death::never())
    }

    pub fn restore_with(
        &self,
        request: &VmRestoreRequest,
        death: &Arc<Death>,
    ) -> engine::Result<VmRestoreReport> {
        let driver = self.driver(death);
        let job = self.job();
        let journal = self.journals.begin(job)?;
        let custody = Custody::new(journal.log(), self.owner.clone(), job);
        let tools = VmRestoreTools {
            host: &driver,
            repository: &self.world.repository,
            custody: &custody,
            cancel: &CancelToken::new(),
            clock: &EstateClock(self.estate.clone()),
        };
        let context = JobContext {
            progress: &Loud,
            ..context()
        };
        let result = restore_vm(tools, request, context);
        drop(custody);
        let open = journal.finish()?;
        assert!(result.is_err() || open == 0, "{open} entries are open");
        result
    }

    /// The bytes of a machine's disks as they are now, in the order of their slots.
    pub fn live_disks(&self, vm: VmId) -> Vec<Vec<u8>> {
        let home = self.home(vm);
        self.estate.write(|estate| {
            let hardware = &estate.vm(&home, vm).unwrap().settings.hardware;
            let paths: Vec<WindowsPath> = hardware
                .disks()
                .map(|(_, medium)| medium.path.clone())
                .collect();
            let read = |path: WindowsPath| {
                let image = estate.read_disk(&home, &path).unwrap();
                let mut bytes = vec![0; usize::try_from(image.size_bytes()).unwrap()];
                image.read_at(0, &mut bytes).unwrap();
                bytes
            };
            paths.into_iter().map(read).collect()
        })
    }

    /// Starts or stops a machine, and lets it happen.
    pub fn power(&self, vm: VmId, state: u16) {
        let home = self.home(vm);
        self.estate
            .write(|estate| estate.request_state_change(&home, vm, state))
            .unwrap();
        self.pass(Duration::from_secs(60));
    }

    /// A round of the custodian, by a new process.
    pub fn sweep(&self) -> SweepReport {
        let driver = self.driver(&Death::never());
        let clock = EstateClock(self.estate.clone());
        remove_leftovers(LeftoversTools {
            host: &driver,
            journals: &self.journals,
            owner: &self.owner,
            repository: &self.world.repository,
            clock: &clock,
            cancel: &CancelToken::new(),
            job: self.job(),
        })
        .unwrap()
    }

    /// Rounds of a custodian until a machine is as it should be, for five minutes of the estate at most.
    pub fn sweep_until(&self, vm: VmId, is_clean: impl Fn(&Remains) -> bool) -> Remains {
        for _ in 0..10 {
            self.sweep();
            let remains = self.remains(vm);
            if is_clean(&remains) {
                return remains;
            }
            self.pass(Duration::from_secs(30));
        }
        self.remains(vm)
    }

    pub fn pass(&self, duration: Duration) {
        self.estate
            .write(|estate| estate.advance(duration))
            .unwrap();
    }

    /// Where a machine is.
    pub fn home(&self, vm: VmId) -> HostName {
        self.estate.read(|estate| {
            let mut hosts = HOSTS.into_iter().map(host);
            hosts.find(|name| estate.vm(name, vm).is_ok()).unwrap()
        })
    }

    /// What of backups is on a machine: checkpoints, reference points, whether it runs.
    pub fn remains(&self, vm: VmId) -> Remains {
        let home = self.home(vm);
        self.estate.read(|estate| {
            let machine = estate.vm(&home, vm).unwrap();
            let of_backup = |kind: CheckpointKind| !kind.is_user();
            Remains {
                checkpoints: machine
                    .checkpoints
                    .values()
                    .filter(|it| of_backup(it.kind))
                    .count(),
                reference_points: machine.reference_points.len(),
                power: machine.power,
                marks: machine
                    .host_items
                    .keys()
                    .filter(|it| it.starts_with("hikae"))
                    .count(),
            }
        })
    }

    pub fn point(&self, selected: &str) -> RecoveryPoint {
        let found = self.world.repository.find_point(&selector(selected));
        found.unwrap().point
    }

    /// The bytes of a point's disks, in the order of their slots.
    pub fn disks(&self, point: &RecoveryPoint) -> Vec<Vec<u8>> {
        let repository = &self.world.repository;
        let session = repository
            .read_session(LeaseKind::Restore, &[point], ReadProtection::Lease)
            .unwrap();
        let read = |disk| {
            let reader = repository.open_version(disk, &session).unwrap();
            let mut bytes = vec![0; usize::try_from(reader.size_bytes()).unwrap()];
            reader.read_at(0, &mut bytes).unwrap();
            bytes
        };
        point.disks.iter().map(read).collect()
    }

    /// What the bytes of a point's disks say about their guest.
    pub fn examine(&self, vm: VmId, point: &RecoveryPoint) -> Examination {
        let disks = self.disks(point);
        let disks: Vec<Bytes> = disks.into_iter().map(Bytes).collect();
        let disks: Vec<&dyn ReadAt> = disks.iter().map(|disk| disk as &dyn ReadAt).collect();
        let home = self.home(vm);
        let (layout, tag) = self.estate.read(|estate| {
            let guest = estate.vm(&home, vm).unwrap().guest().unwrap();
            (guest.layout().clone(), guest.tag())
        });
        examine(&disks, &layout, tag).unwrap()
    }

    /// A guest writes so much beside its ledger.
    pub fn write(&self, vm: VmId, bytes: u64) {
        let home = self.home(vm);
        self.estate
            .write(|estate| estate.guest_writes(&home, vm, bytes))
            .unwrap();
    }

    /// Transactions that a guest has committed by now.
    pub fn committed(&self, vm: VmId) -> u64 {
        let home = self.home(vm);
        self.estate
            .read(|estate| estate.vm(&home, vm).unwrap().guest().unwrap().committed())
    }
}

/// What of backups is on a machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Remains {
    pub checkpoints: usize,
    pub reference_points: usize,
    pub power: PowerState,
    pub marks: usize,
}

pub struct Bytes(pub Vec<u8>);

impl ReadAt for Bytes {
    fn size_bytes(&self) -> u64 {
        self.0.len() as u64
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> block::Result<()> {
        let at = usize::try_from(offset).unwrap();
        buffer.copy_from_slice(&self.0[at..at + buffer.len()]);
        Ok(())
    }
}

pub fn id(vm: VmId) -> host::ids::VmId {
    vm.to_string().parse().unwrap()
}

/// What a guest tells about its system.
fn telling(mut spec: VmSpec, system: &str) -> VmSpec {
    spec.guest_facts
        .insert("OSName".to_owned(), system.to_owned());
    spec
}

const WINDOWS: &str = "Windows Server 2022 Datacenter";

fn sql01() -> VmSpec {
    let two = VmGeneration::Two;
    let spec = VmSpec::new("sql01", two, path("C:\\ClusterStorage\\Volume1\\sql01"))
        .with_disk(DiskSpec::new(two, 0, "sql01.vhdx", 24 * MIB))
        .with_disk(DiskSpec::new(two, 1, "sql01-data.vhdx", 40 * MIB))
        .with_guest(GuestOs::Windows, MIB);
    telling(spec, WINDOWS)
}

fn lin01() -> VmSpec {
    let two = VmGeneration::Two;
    let spec = VmSpec::new("lin01", two, path("D:\\vm\\lin01"))
        .with_disk(DiskSpec::new(two, 0, "lin01.vhdx", 24 * MIB))
        .with_guest(GuestOs::Linux, MIB);
    telling(spec, "Debian GNU/Linux 12")
}

fn old01() -> VmSpec {
    let one = VmGeneration::One;
    let mut spec = VmSpec::new("old01", one, path("D:\\vm\\old01"))
        .with_disk(DiskSpec::new(one, 0, "old01.vhd", 24 * MIB))
        .with_guest(GuestOs::Windows, MIB);
    spec.integration = IntegrationServices::SILENT;
    spec
}

fn raw01() -> VmSpec {
    let two = VmGeneration::Two;
    let mut pass = DiskSpec::new(two, 1, "none.vhdx", MIB);
    pass.source = DiskSource::PassThrough {
        number: 3,
        size_bytes: 64 * MIB,
    };
    let spec = VmSpec::new("raw01", two, path("D:\\vm\\raw01"))
        .with_disk(DiskSpec::new(two, 0, "raw01.vhdx", 24 * MIB))
        .with_disk(pass)
        .with_guest(GuestOs::Windows, MIB);
    telling(spec, WINDOWS)
}
