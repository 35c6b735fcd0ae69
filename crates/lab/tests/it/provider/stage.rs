//! A cluster of two nodes, a host of its own, and clients that talk to each without sockets.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use lab::estate::{
    ClusterName, DataMode, DiskSource, DiskSpec, Estate, EstateOptions, HostName, Random, Switches,
    VmGeneration, VmId, VmSpec, VolumeKind, WindowsGeneration, WindowsPath,
};
use lab::guest::GuestOs;
use lab::provider::{HostProvider, Language, Pace, ProviderOptions, Role, Roles, SharedEstate};
use tempfile::TempDir;
use wsman::cim::{CimInstance, CimPath, CimValue, Namespace};
use wsman::client::{CimClient, ClientOptions, ClientSources, WsmanClient};
use wsman::server::{AccountName, Caller, ServiceOptions, ServiceSources, WsmanService};
use wsman::transport::DirectTransport;

pub const MIB: u64 = 1 << 20;

pub fn path(text: &str) -> WindowsPath {
    WindowsPath::parse(text).expect("a path")
}

pub fn host(name: &str) -> HostName {
    HostName::new(name)
}

pub fn v2() -> Namespace {
    Namespace::new("root/virtualization/v2")
}

pub fn mscluster() -> Namespace {
    Namespace::new("root/MSCluster")
}

/// What an estate is made from.
pub struct Plan {
    pub windows: WindowsGeneration,
    pub switches: Switches,
    pub data: DataMode,
    pub language: Language,
}

impl Plan {
    pub fn new(windows: WindowsGeneration) -> Self {
        Self {
            windows,
            switches: Switches::default(),
            data: DataMode::Files,
            language: Language::English,
        }
    }
}

/// HV01 and HV02 in cluster CL1 with a shared volume, HV09 alone; VMs `sql01` (a role), `lin01`, `raw01` on HV01.
pub struct Stage {
    pub estate: Arc<SharedEstate>,
    pub sql01: VmId,
    pub lin01: VmId,
    pub raw01: VmId,
    language: Language,
    _folder: TempDir,
}

impl Stage {
    pub fn new() -> Self {
        Self::of(Plan::new(WindowsGeneration::Server2022))
    }

    pub fn of(plan: Plan) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let mut estate = Estate::new(EstateOptions {
            switches: plan.switches,
            data: plan.data,
            ..EstateOptions::seeded(7)
        });
        let nodes = [host("HV01"), host("HV02")];
        for name in nodes.iter().chain([&host("HV09")]) {
            estate
                .add_host(name, plan.windows, "example.net")
                .expect("a host");
            for letter in ['C', 'D'] {
                let backing = folder.path().join(format!("{name}-{letter}"));
                let kind = VolumeKind::Local {
                    host: name.clone(),
                    letter,
                };
                estate.add_volume(kind, backing, 1 << 40).expect("a volume");
            }
        }
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
            .add_volume(csv, folder.path().join("csv"), 1 << 40)
            .expect("a shared volume");
        let sql01 = estate.add_vm(&nodes[0], sql01()).expect("sql01");
        estate
            .make_highly_available(&nodes[0], "sql01")
            .expect("a role");
        let lin01 = estate.add_vm(&nodes[0], lin01()).expect("lin01");
        let raw01 = estate.add_vm(&nodes[0], raw01()).expect("raw01");
        Self {
            estate: SharedEstate::new(estate, Pace::PerRequest(Duration::from_millis(500))),
            sql01,
            lin01,
            raw01,
            language: plan.language,
            _folder: folder,
        }
    }

    /// An administrator of a host.
    pub fn client(&self, name: &str) -> WsmanClient {
        self.client_as(name, Role::Administrator)
    }

    /// Who calls.
    pub fn caller(&self, name: &str) -> Caller {
        Caller::Account(AccountName::new(format!("{name}\\somebody")))
    }

    /// A host, to whoever has a role on it.
    pub fn provider(&self, name: &str, role: Role) -> HostProvider {
        let account = AccountName::new(format!("{name}\\Somebody"));
        let options = ProviderOptions {
            language: self.language,
            roles: Roles::new().with(&account, role),
        };
        HostProvider::new(self.estate.clone(), &host(name), options).expect("a provider")
    }

    /// Somebody with a role.
    pub fn client_as(&self, name: &str, role: Role) -> WsmanClient {
        let provider = self.provider(name, role);
        let random = Arc::new(Mutex::new(Random::seeded(3)));
        let ids: Arc<dyn Fn() -> [u8; 16] + Send + Sync> =
            Arc::new(move || random.lock().expect("the stream").bytes16());
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
            self.caller(name),
            format!("http://{name}.example.net:5985/wsman"),
        );
        let sources = ClientSources {
            ids,
            clock,
            pause: Arc::new(|_, _| false),
        };
        WsmanClient::new(Arc::new(transport), ClientOptions::default(), sources)
    }

    pub fn system(&self, id: VmId) -> CimPath {
        system(id)
    }
}

pub fn system(id: VmId) -> CimPath {
    CimPath::new(v2(), "Msvm_ComputerSystem")
        .with("CreationClassName", "Msvm_ComputerSystem")
        .with("Name", id.to_string())
}

pub fn service(class: &str) -> CimPath {
    CimPath::new(v2(), class).with("CreationClassName", class)
}

pub fn settings(guid: &str) -> CimPath {
    CimPath::new(v2(), "Msvm_VirtualSystemSettingData")
        .with("InstanceID", format!("Microsoft:{guid}"))
}

fn sql01() -> VmSpec {
    let two = VmGeneration::Two;
    let mut spec = VmSpec::new("sql01", two, path("C:\\ClusterStorage\\Volume1\\sql01"))
        .with_disk(DiskSpec::new(two, 0, "sql01.vhdx", 16 * MIB))
        .with_disk(DiskSpec::new(two, 1, "sql01-data.vhdx", 16 * MIB))
        .with_guest(GuestOs::Windows, MIB);
    for (name, value) in [
        ("OSName", "Windows Server 2022 Datacenter"),
        ("FullyQualifiedDomainName", "sql01.example.net"),
    ] {
        spec.guest_facts.insert(name.to_owned(), value.to_owned());
    }
    spec
}

fn lin01() -> VmSpec {
    let one = VmGeneration::One;
    VmSpec::new("lin01", one, path("D:\\vm\\lin01")).with_disk(DiskSpec::new(
        one,
        0,
        "lin01.vhd",
        16 * MIB,
    ))
}

fn raw01() -> VmSpec {
    let two = VmGeneration::Two;
    let mut pass = DiskSpec::new(two, 1, "none.vhdx", MIB);
    pass.source = DiskSource::PassThrough {
        number: 3,
        size_bytes: 64 * MIB,
    };
    VmSpec::new("raw01", two, path("D:\\vm\\raw01"))
        .with_disk(DiskSpec::new(two, 0, "raw01.vhdx", 16 * MIB))
        .with_disk(pass)
}

/// Polls a job to its end; the job as it was last.
pub fn wait(client: &dyn CimClient, output: &CimInstance) -> CimInstance {
    let code = output.u32("ReturnValue").expect("a return value");
    assert_eq!(code, 4096, "{output:?}");
    let job = output.reference("Job").expect("a job");
    for _ in 0..2000 {
        let now = client.get(&job).expect("the job");
        if !matches!(now.u16("JobState"), Ok(2..=4)) {
            return now;
        }
    }
    panic!("the job never ends");
}

/// Polls a job to its end, which must be good.
pub fn succeed(client: &dyn CimClient, output: &CimInstance) -> CimInstance {
    let job = wait(client, output);
    assert_eq!(job.u16("JobState").expect("a state"), 7, "{job:?}");
    job
}

/// Starts or stops a VM.
pub fn request_state(client: &dyn CimClient, id: VmId, state: u16) {
    let output = client
        .invoke(
            &system(id),
            "RequestStateChange",
            &[("RequestedState", CimValue::from(state))],
        )
        .expect("a state change");
    succeed(client, &output);
}
