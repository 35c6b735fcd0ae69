//! Estates to try the driver on, and the driver for them.
//!
//! ```text
//!   HV01 ┐ cluster CL1, shared volume Volume1       HV09, HV10: alone
//!   HV02 ┘ (owned by HV01)                          \\files\vms: a share of the domain, \\nas\vms: one outside of it
//! ```

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use host::boundary::{Inventory, Mobility, Power};
use host::cluster::{MigrationKind, MigrationRequest};
use host::hyperv::{HyperV, HyperVOptions, NodeConnection};
use host::ids::NodeName;
use host::path::HostPath;
use host::{CancelToken, Clock, Timestamp};
use lab::estate::{
    CheckpointRequest, ClusterName, DataMode, DiskSpec, Estate, EstateOptions, HostName, Random,
    Switch, Switches, VmGeneration, VmId, VmSpec, VolumeKind, WindowsGeneration, WindowsPath,
};
use lab::guest::GuestOs;
use lab::provider::{HostProvider, Language, Pace, ProviderOptions, Role, Roles, SharedEstate};
use lab::wire::{LabWire, WireOptions};
use tempfile::TempDir;
use wsman::auth::Secret;
use wsman::cim::{CimPath, CimValue, Namespace};
use wsman::client::{CimClient, ClientOptions, ClientSources, WsmanClient};
use wsman::server::{AccountName, Caller, ServiceOptions, ServiceSources, WsmanService};
use wsman::transport::{
    Credentials, DirectTransport, Endpoint, HttpTransport, HttpTransportOptions, Line, Transport,
    TransportRuntime,
};

use super::files::LabFiles;
use super::rechunking::Rechunking;

pub const MIB: u64 = 1 << 20;
pub const HOSTS: [&str; 4] = ["HV01", "HV02", "HV09", "HV10"];
const PASSWORD: &str = "Passw0rd!";

/// Where the machine lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Home {
    /// On the shared volume of a cluster, as a role.
    Cluster,
    /// On a drive of a host of its own.
    Drive,
    /// On a share, on a host of its own.
    Share,
    /// On a share outside of the domain.
    ForeignShare,
}

/// Kind of its images.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Images {
    Vhdx,
    Vhd,
}

/// Whether operators made checkpoints of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tree {
    Bare,
    /// Two, the second upon the first.
    Branch,
}

/// Whether the guest writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Load {
    Writing,
    Idle,
}

/// What a place is made from.
#[derive(Debug, Clone)]
pub struct Plan {
    pub windows: WindowsGeneration,
    pub os: GuestOs,
    pub images: Images,
    pub home: Home,
    pub tree: Tree,
    pub load: Load,
    pub switches: Switches,
    pub language: Language,
    pub seed: u64,
}

impl Plan {
    pub fn new() -> Self {
        Self {
            windows: WindowsGeneration::Server2022,
            os: GuestOs::Windows,
            images: Images::Vhdx,
            home: Home::Cluster,
            tree: Tree::Bare,
            load: Load::Writing,
            switches: Switches::default(),
            language: Language::English,
            seed: 7,
        }
    }
}

impl Plan {
    /// The same, with checkpoints of operators that tracking reaches across. That it may not is a matter of its own.
    pub fn with_tree(self) -> Self {
        let switch = Switch::LimitIdAcrossUserCheckpoints;
        Self {
            tree: Tree::Branch,
            switches: self.switches.with(switch, lab::estate::Answer::Optimistic),
            ..self
        }
    }
}

/// An estate with one machine, `app01`, that runs and writes.
pub struct Place {
    pub estate: Arc<SharedEstate>,
    pub vm: VmId,
    pub plan: Plan,
    _folder: TempDir,
}

pub fn calm() -> CancelToken {
    CancelToken::new()
}

pub fn host_name(name: &str) -> HostName {
    HostName::new(name)
}

pub fn node(name: &str) -> NodeName {
    NodeName::new(name).expect("a name")
}

fn windows_path(text: &str) -> WindowsPath {
    WindowsPath::parse(text).expect("a path")
}

pub fn host_path(text: &str) -> HostPath {
    HostPath::new(text).expect("a path")
}

impl Place {
    /// With the machine running, and its guest having written for a while.
    pub fn new(plan: Plan) -> Self {
        let place = Self::at_rest(plan);
        let driver = place.driver();
        driver.start(place.id(), &calm()).expect("it starts");
        place.pass(5);
        if place.plan.tree == Tree::Branch {
            place.grow_tree();
        }
        place
    }

    /// With the machine off.
    pub fn at_rest(plan: Plan) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let mut estate = Estate::new(EstateOptions {
            switches: plan.switches.clone(),
            data: DataMode::Files,
            ..EstateOptions::seeded(plan.seed)
        });
        furnish(&mut estate, &folder, plan.windows);
        let at = host_name(match plan.home {
            Home::Cluster => "HV01",
            Home::Drive | Home::Share | Home::ForeignShare => "HV09",
        });
        let vm = estate.add_vm(&at, machine(&plan)).expect("a machine");
        if plan.home == Home::Cluster {
            estate.make_highly_available(&at, "app01").expect("a role");
        }
        Self {
            estate: SharedEstate::new(estate, Pace::PerRequest(Duration::from_millis(500))),
            vm,
            plan,
            _folder: folder,
        }
    }

    /// Two checkpoints of an operator, the second upon the first, with writes in between.
    fn grow_tree(&self) {
        for _ in 0..2 {
            self.estate.write(|it| {
                let at = it
                    .vms_named("app01")
                    .next()
                    .expect("it is there")
                    .host
                    .clone();
                let started = it.create_checkpoint(&at, self.vm, CheckpointRequest::user());
                started.expect("a checkpoint of an operator");
            });
            self.pass(10);
        }
    }

    /// The machine, as the driver calls it.
    pub fn id(&self) -> host::ids::VmId {
        self.vm.to_string().parse().expect("an id")
    }

    /// Lets time pass.
    pub fn pass(&self, seconds: u64) {
        self.estate
            .write(|it| it.advance(Duration::from_secs(seconds)))
            .expect("time passes");
    }

    /// The host that the machine is on.
    pub fn at(&self) -> HostName {
        self.estate.read(|it| {
            let mut hosts = it.hosts().map(|host| &host.name);
            hosts
                .find(|host| it.vm(host, self.vm).is_ok())
                .expect("it is somewhere")
                .clone()
        })
    }

    /// The driver, talking to the hosts in this process.
    pub fn driver(&self) -> HyperV {
        self.driver_through(&|_, transport| transport, &ClientOptions::default())
    }

    /// The driver, with something between it and each host.
    pub fn driver_through(&self, between: &Between<'_>, options: &ClientOptions) -> HyperV {
        let nodes = HOSTS.map(|name| {
            let transport = between(name, self.direct(name));
            self.connection(name, transport, options)
        });
        self.driver_of(nodes)
    }

    fn driver_of(&self, nodes: impl IntoIterator<Item = NodeConnection>) -> HyperV {
        let clock = Arc::new(LabClock(self.estate.clone()));
        HyperV::new(nodes, None, clock, HyperVOptions::default()).expect("a driver")
    }

    /// The driver with a clock of the test's.
    pub fn driver_with_clock(&self, clock: Arc<dyn Clock>) -> HyperV {
        let options = ClientOptions::default();
        let nodes = HOSTS.map(|name| self.connection(name, self.direct(name), &options));
        HyperV::new(nodes, None, clock, HyperVOptions::default()).expect("a driver")
    }

    fn connection(
        &self,
        name: &str,
        transport: Arc<dyn Transport>,
        options: &ClientOptions,
    ) -> NodeConnection {
        connection(&self.estate, name, transport, options)
    }

    /// A client of a host.
    pub fn client(&self, name: &str) -> WsmanClient {
        let options = ClientOptions::default();
        WsmanClient::new(self.direct(name), options, client_sources())
    }

    fn direct(&self, name: &str) -> Arc<dyn Transport> {
        direct(&self.estate, self.plan.language, name)
    }

    /// The hosts on sockets.
    pub fn wire(&self, service: ServiceOptions) -> Wire {
        let password = Secret::new(PASSWORD);
        let mut options = WireOptions::new("Administrator", &password, service_sources());
        options.language = self.plan.language;
        options.service = service;
        let wire = LabWire::start(&self.estate, &options).expect("a wire");
        Wire {
            wire,
            runtime: TransportRuntime::new().expect("threads"),
        }
    }

    /// The driver, talking over sockets, every answer in chunks, with something between it and each host.
    pub fn driver_over(
        &self,
        wire: &Wire,
        between: &Between<'_>,
        options: &ClientOptions,
    ) -> (HyperV, Vec<Rechunking>) {
        let mut proxies = Vec::new();
        let nodes = HOSTS.map(|name| {
            let address = wire.wire.address(&host_name(name)).expect("an address");
            let proxy = Rechunking::start(address);
            let endpoint = Endpoint {
                host: proxy.address().ip().to_string(),
                port: proxy.address().port(),
                line: Line::Plain,
            };
            proxies.push(proxy);
            let user = format!("{name}\\Administrator");
            let credentials = Credentials::ntlm(&user, &Secret::new(PASSWORD));
            let http = HttpTransportOptions::new(endpoint, credentials);
            let transport = HttpTransport::new(http, wire.runtime.clone()).expect("a transport");
            let transport = between(name, Arc::new(transport));
            self.connection(name, transport, options)
        });
        (self.driver_of(nodes), proxies)
    }

    /// Files below a folder of a host, by their paths there.
    pub fn files_below(&self, name: &str, folder: &str) -> Vec<String> {
        let mut found = Vec::new();
        let mut waiting = vec![folder.to_owned()];
        while let Some(folder) = waiting.pop() {
            let here = self
                .estate
                .read(|it| it.backing(&host_name(name), &windows_path(&folder)))
                .expect("a folder");
            for entry in std::fs::read_dir(here).expect("its entries") {
                let entry = entry.expect("an entry");
                let path = format!("{folder}\\{}", entry.file_name().to_string_lossy());
                if entry.file_type().expect("its kind").is_dir() {
                    waiting.push(path);
                } else {
                    found.push(path);
                }
            }
        }
        found
    }

    /// Has the machine moved to another host by somebody else.
    pub fn relocate(&self) {
        let driver = self.driver();
        let at = driver.locate(self.id(), &calm()).expect("a place").node;
        let to = match at.as_str().to_uppercase().as_str() {
            "HV01" => "HV02",
            "HV02" => "HV01",
            "HV09" => "HV10",
            _ => "HV09",
        };
        let request = MigrationRequest {
            vm: self.id(),
            what: MigrationKind::Machine { to: node(to) },
        };
        driver.migrate(&request, &calm()).expect("it moves");
    }

    /// Has a checkpoint for a backup made by another product.
    pub fn make_foreign(&self) {
        let client = self.client(self.at().as_str());
        let system = CimPath::new(v2(), "Msvm_ComputerSystem")
            .with("CreationClassName", "Msvm_ComputerSystem")
            .with("Name", self.vm.to_string());
        let class = "Msvm_VirtualSystemSnapshotService";
        let service = CimPath::new(v2(), class).with("CreationClassName", class);
        let inputs = [
            ("AffectedSystem", CimValue::from(system)),
            ("SnapshotSettings", CimValue::Text(String::new())),
            ("SnapshotType", CimValue::from(32768_u16)),
        ];
        for _ in 0..100 {
            self.settle();
            let output = client
                .invoke(&service, "CreateSnapshot", &inputs)
                .expect("a call");
            match output.u32("ReturnValue").expect("a code") {
                4096 => return self.settle(),
                // Its disks are being merged.
                32775 => self.pass(10),
                other => panic!("the host answered {other}"),
            }
        }
        panic!("the machine never becomes idle");
    }

    /// Lets time pass until nothing is done to the machine any more.
    fn settle(&self) {
        let is_busy = || {
            self.estate.read(|it| {
                let vm = it.vms_named("app01").next().expect("it is there");
                vm.activity.is_some() || vm.merging.is_some()
            })
        };
        while is_busy() {
            self.pass(5);
        }
    }
}

/// A way to a host without sockets, as its administrator.
pub fn direct(estate: &Arc<SharedEstate>, language: Language, name: &str) -> Arc<dyn Transport> {
    let account = AccountName::new(format!("{name}\\Administrator"));
    let options = ProviderOptions {
        language,
        roles: Roles::new().with(&account, Role::Administrator),
    };
    let provider =
        HostProvider::new(estate.clone(), &host_name(name), options).expect("a provider");
    let service = WsmanService::new(
        Arc::new(provider),
        ServiceOptions::default(),
        service_sources(),
    );
    Arc::new(DirectTransport::new(
        Arc::new(service),
        Caller::Account(account),
        format!("http://{name}.example.net:5985/wsman"),
    ))
}

/// A host as the driver knows it.
pub fn connection(
    estate: &Arc<SharedEstate>,
    name: &str,
    transport: Arc<dyn Transport>,
    options: &ClientOptions,
) -> NodeConnection {
    let client = WsmanClient::new(transport, options.clone(), client_sources());
    NodeConnection {
        name: node(name),
        client: Arc::new(client),
        files: Arc::new(LabFiles(estate.clone())),
    }
}

/// What is put between the driver and a host.
pub type Between<'b> = dyn Fn(&str, Arc<dyn Transport>) -> Arc<dyn Transport> + 'b;

/// The hosts, listening.
pub struct Wire {
    pub wire: LabWire,
    runtime: TransportRuntime,
}

fn v2() -> Namespace {
    Namespace::new("root/virtualization/v2")
}

fn furnish(estate: &mut Estate, folder: &TempDir, windows: WindowsGeneration) {
    let backing = |name: &str| folder.path().join(name);
    for name in HOSTS.map(host_name) {
        estate
            .add_host(&name, windows, "example.net")
            .expect("a host");
        for letter in ['C', 'D'] {
            let kind = VolumeKind::Local {
                host: name.clone(),
                letter,
            };
            let backing = backing(&format!("{name}-{letter}"));
            estate.add_volume(kind, backing, 1 << 40).expect("a volume");
        }
    }
    let nodes = ["HV01", "HV02"].map(host_name);
    let cluster = ClusterName::new("CL1");
    estate
        .add_cluster(&cluster, "example.net", &nodes)
        .expect("a cluster");
    let csv = VolumeKind::Csv {
        cluster,
        name: "Volume1".to_owned(),
        owner: nodes[0].clone(),
    };
    estate
        .add_volume(csv, backing("csv"), 1 << 40)
        .expect("a shared volume");
    for server in ["files", "nas"] {
        let kind = VolumeKind::Share {
            server: server.to_owned(),
            share: "vms".to_owned(),
        };
        let id = estate
            .add_volume(kind, backing(server), 1 << 40)
            .expect("a share");
        if server == "nas" {
            estate.make_foreign(id).expect("a foreign share");
        }
    }
}

fn machine(plan: &Plan) -> VmSpec {
    let folder = match plan.home {
        Home::Cluster => "C:\\ClusterStorage\\Volume1\\app01",
        Home::Drive => "D:\\vm\\app01",
        Home::Share => "\\\\files\\vms\\app01",
        Home::ForeignShare => "\\\\nas\\vms\\app01",
    };
    let (generation, ending) = match plan.images {
        Images::Vhdx => (VmGeneration::Two, "vhdx"),
        Images::Vhd => (VmGeneration::One, "vhd"),
    };
    let mut spec = VmSpec::new("app01", generation, windows_path(folder));
    if plan.load == Load::Writing {
        spec = spec.with_guest(plan.os, MIB);
    }
    for (slot, name) in [(0, "app01"), (1, "app01-data")] {
        let disk = DiskSpec::new(generation, slot, &format!("{name}.{ending}"), 16 * MIB);
        spec = spec.with_disk(disk);
    }
    let (system, version) = match plan.os {
        GuestOs::Windows => ("Windows Server 2022 Datacenter", "10.0.20348"),
        GuestOs::Linux => ("Debian GNU/Linux 12 (bookworm)", "6.1.0"),
    };
    for (name, value) in [
        ("FullyQualifiedDomainName", "app01.example.net"),
        ("OSName", system),
        ("OSVersion", version),
    ] {
        spec.guest_facts.insert(name.to_owned(), value.to_owned());
    }
    spec
}

fn ids(seed: u64) -> Arc<dyn Fn() -> [u8; 16] + Send + Sync> {
    let random = Mutex::new(Random::seeded(seed));
    Arc::new(move || random.lock().expect("the stream").bytes16())
}

fn ticks() -> Arc<dyn Fn() -> Duration + Send + Sync> {
    let ticks = AtomicU64::new(0);
    Arc::new(move || Duration::from_millis(ticks.fetch_add(1, Ordering::Relaxed)))
}

fn service_sources() -> ServiceSources {
    ServiceSources {
        clock: ticks(),
        ids: ids(3),
    }
}

fn client_sources() -> ClientSources {
    ClientSources {
        ids: ids(4),
        clock: ticks(),
        pause: Arc::new(|_, _| false),
    }
}

/// The estate's clock: whoever waits lets time pass.
pub struct LabClock(pub Arc<SharedEstate>);

impl Clock for LabClock {
    fn elapsed(&self) -> Duration {
        self.0.read(|it| Duration::from_millis(it.now().0))
    }

    fn now(&self) -> Timestamp {
        let millis = self.0.read(|it| it.now().0);
        Timestamp(i64::try_from(millis).expect("a time of this age"))
    }

    fn pause(&self, duration: Duration, _cancel: &CancelToken) {
        self.0
            .write(|it| it.advance(duration))
            .expect("time passes");
    }
}
