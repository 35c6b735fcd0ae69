//! A Hyper-V host in a few hundred lines, behind the client's trait: rows as they come off the wire (texts without types), methods
//! that change rows when their job ends, and faults on request. It is here to test the driver, and knows no more than that.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

pub use host::access::NoFiles;
use host::access::NodeFiles;
use host::hyperv::{CimClient, HyperV, HyperVOptions, NodeConnection};
use host::ids::{NodeName, VmId};
use host::{CancelToken, Clock, Timestamp};
use wsman::cim::{CimInstance, CimPath, CimValue, Namespace};
use wsman::message::{Fault, FaultCode};
use wsman::wql::{Query, Scope};

/// A clock that only tests turn: pauses pass at once.
#[derive(Debug, Default)]
pub struct TestClock(AtomicU64);

/// The wall time at which every test begins.
pub const BEGIN: i64 = 1_780_000_000_000;

impl TestClock {
    pub fn advance(&self, duration: Duration) {
        let ms = u64::try_from(duration.as_millis()).expect("a test's duration");
        self.0.fetch_add(ms, Ordering::SeqCst);
    }
}

impl Clock for TestClock {
    fn elapsed(&self) -> Duration {
        Duration::from_millis(self.0.load(Ordering::SeqCst))
    }

    fn now(&self) -> Timestamp {
        Timestamp(BEGIN + i64::try_from(self.0.load(Ordering::SeqCst)).expect("a test's time"))
    }

    fn pause(&self, duration: Duration, _cancel: &CancelToken) {
        self.advance(duration);
    }
}

/// What happens to the next call of a method.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Act {
    /// Its return value, without an effect.
    Return(u32),
    /// Its job ends in an exception with this code, without an effect.
    Exception(u32),
    /// Its job is gone at the first look; the effect is there, or not.
    Vanish { with_effect: bool },
    /// No answer; the effect is there, or not.
    Cut { with_effect: bool },
    /// The job runs for ever.
    Hang,
}

pub type Effect = Box<dyn FnOnce(&FakeNode, &mut Rows) -> Vec<CimPath> + Send>;

/// Rows by class, jobs under way, and what jobs affected.
#[derive(Default)]
pub struct Rows {
    pub classes: BTreeMap<String, Vec<CimInstance>>,
    pub jobs: HashMap<String, Option<Effect>>,
    pub affected: HashMap<String, Vec<CimPath>>,
    pub acts: HashMap<String, VecDeque<Act>>,
    pub changes: Vec<(u64, u64)>,
    pub change_window_most: u64,
    pub known_limits: Vec<String>,
    pub calls: Vec<String>,
}

impl Rows {
    pub fn of(&mut self, class: &str) -> &mut Vec<CimInstance> {
        self.classes.entry(class.to_owned()).or_default()
    }

    pub fn find(&mut self, class: &str, id: &str) -> Option<&mut CimInstance> {
        let key = |it: &CimInstance| it.text_ref("InstanceID").map(str::to_lowercase);
        let wanted = id.to_lowercase();
        self.of(class)
            .iter_mut()
            .find(|it| key(it).as_deref() == Some(&wanted))
    }

    pub fn system(&mut self, vm: VmId) -> &mut CimInstance {
        let found = self
            .of("Msvm_ComputerSystem")
            .iter_mut()
            .find(|it| it.text_ref("Name") == Some(&vm.to_string()));
        found.expect("the machine is on this node")
    }
}

pub struct FakeNode {
    pub name: NodeName,
    pub rows: Mutex<Rows>,
    pub down: AtomicBool,
    pub refuse_marks: AtomicBool,
    ids: Arc<AtomicU64>,
    pub clock: Arc<TestClock>,
}

/// Several nodes, one clock, ids that are never given twice.
pub struct FakeEstate {
    pub clock: Arc<TestClock>,
    pub nodes: Vec<Arc<FakeNode>>,
}

pub fn vm(number: u8) -> VmId {
    VmId::from_bytes([
        0xA0, 1, 2, 3, 4, 5, 0x46, 7, 0x88, 9, 10, 11, 12, 13, 14, number,
    ])
}

pub fn row(class: &str, values: &[(&str, &str)]) -> CimInstance {
    values
        .iter()
        .fold(CimInstance::new(class), |row, (name, value)| {
            row.with(*name, *value)
        })
}

pub fn texts(values: &[&str]) -> CimValue {
    CimValue::Array(
        values
            .iter()
            .map(|it| CimValue::Text((*it).to_owned()))
            .collect(),
    )
}

fn in_tests_namespace(row: &CimInstance, namespace: &Namespace) -> bool {
    let is_cluster = row.class.as_str().starts_with("MSCluster");
    is_cluster == namespace.as_str().eq_ignore_ascii_case("root/mscluster")
}

impl FakeEstate {
    pub fn new(names: &[&str]) -> Self {
        let clock = Arc::new(TestClock::default());
        let ids = Arc::new(AtomicU64::new(0x1000));
        let nodes = names
            .iter()
            .map(|name| {
                Arc::new(FakeNode {
                    name: NodeName::new(*name).expect("a name"),
                    rows: Mutex::new(Rows {
                        change_window_most: u64::MAX,
                        ..Rows::default()
                    }),
                    down: AtomicBool::new(false),
                    refuse_marks: AtomicBool::new(false),
                    ids: Arc::clone(&ids),
                    clock: Arc::clone(&clock),
                })
            })
            .collect::<Vec<Arc<FakeNode>>>();
        for node in &nodes {
            node.set_build(17_763);
            let host = row(
                "Msvm_ComputerSystem",
                &[
                    ("Name", node.name.as_str()),
                    ("ElementName", node.name.as_str()),
                    ("EnabledState", "2"),
                ],
            );
            node.lock().of("Msvm_ComputerSystem").push(host);
        }
        Self { clock, nodes }
    }

    pub fn driver(&self) -> HyperV {
        self.driver_with(HyperVOptions::default(), Arc::new(NoFiles))
    }

    pub fn driver_with(&self, options: HyperVOptions, files: Arc<dyn NodeFiles>) -> HyperV {
        let connections = self.nodes.iter().map(|node| NodeConnection {
            name: node.name.clone(),
            client: Arc::clone(node) as Arc<dyn CimClient>,
            files: Arc::clone(&files),
        });
        let clock: Arc<dyn Clock> = Arc::clone(&self.clock) as Arc<dyn Clock>;
        HyperV::new(connections, None, clock, options).expect("nodes")
    }

    /// Live migration: rows of the machine go over, jobs of the source die.
    pub fn migrate(&self, vm: VmId, from: usize, to: usize) {
        let mut source = self.nodes[from].lock();
        let mut target = self.nodes[to].lock();
        let key = vm.to_string();
        let owners: Vec<String> = source
            .of("Msvm_VirtualSystemSettingData")
            .iter()
            .filter(|it| it.text_ref("VirtualSystemIdentifier") == Some(&key))
            .filter_map(|it| it.text_ref("InstanceID").map(ToOwned::to_owned))
            .collect();
        for (class, rows) in &mut source.classes {
            let (go, stay): (Vec<CimInstance>, Vec<CimInstance>) = rows.drain(..).partition(|it| {
                let is_of = |property: &str| it.text_ref(property) == Some(key.as_str());
                is_of("Name")
                    || is_of("SystemName")
                    || is_of("VirtualSystemIdentifier")
                    || it
                        .text_ref("InstanceID")
                        .is_some_and(|id| owners.iter().any(|owner| id.starts_with(owner.as_str())))
            });
            *rows = stay;
            target.of(class).extend(go);
        }
        source.jobs.clear();
        source.affected.clear();
    }
}

impl FakeNode {
    pub fn lock(&self) -> MutexGuard<'_, Rows> {
        self.rows.lock().expect("no test panicked with the lock")
    }

    pub fn act(&self, method: &str, act: Act) {
        self.lock()
            .acts
            .entry(method.to_owned())
            .or_default()
            .push_back(act);
    }

    pub fn calls(&self, method: &str) -> usize {
        self.lock()
            .calls
            .iter()
            .filter(|it| it.as_str() == method)
            .count()
    }

    pub fn set_build(&self, build: u32) {
        let mut rows = self.lock();
        rows.of("Win32_OperatingSystem").clear();
        let windows = row(
            "Win32_OperatingSystem",
            &[("BuildNumber", &build.to_string())],
        );
        rows.of("Win32_OperatingSystem").push(windows);
    }

    pub fn next_guid(&self) -> String {
        let number = self.ids.fetch_add(1, Ordering::SeqCst);
        format!("5B7E61F0-2A0C-4F5D-8F1E-{number:012X}")
    }

    /// A Windows guest, generation 2, with disks on a SCSI controller: paths in the order of their places.
    #[expect(clippy::too_many_lines, reason = "a table: one row for each class")]
    pub fn add_vm(&self, vm: VmId, name: &str, disks: &[&str]) {
        let mut rows = self.lock();
        let id = vm.to_string();
        let system = row(
            "Msvm_ComputerSystem",
            &[
                ("CreationClassName", "Msvm_ComputerSystem"),
                ("Name", &id),
                ("ElementName", name),
                ("EnabledState", "2"),
                ("HealthState", "5"),
            ],
        )
        .with("OperationalStatus", texts(&["2"]));
        rows.of("Msvm_ComputerSystem").push(system);
        let settings = row(
            "Msvm_VirtualSystemSettingData",
            &[
                ("InstanceID", &format!("Microsoft:{id}")),
                ("ElementName", name),
                ("VirtualSystemIdentifier", &id),
                ("VirtualSystemType", "Microsoft:Hyper-V:System:Realized"),
                ("VirtualSystemSubType", "Microsoft:Hyper-V:SubType:2"),
                ("Version", "9.0"),
                ("ConfigurationDataRoot", "D:\\vm"),
                ("ConfigurationFile", &format!("Virtual Machines\\{id}.vmcx")),
                ("UserSnapshotType", "3"),
            ],
        );
        rows.of("Msvm_VirtualSystemSettingData").push(settings);
        let controller = format!("Microsoft:{id}\\C0FFEE00-0000-4000-8000-000000000001\\0");
        let resource = row(
            "Msvm_ResourceAllocationSettingData",
            &[
                ("InstanceID", &controller),
                ("ResourceType", "6"),
                (
                    "ResourceSubType",
                    "Microsoft:Hyper-V:Synthetic SCSI Controller",
                ),
            ],
        );
        rows.of("Msvm_ResourceAllocationSettingData").push(resource);
        for (place, path) in disks.iter().enumerate() {
            add_disk(&mut rows, &id, &controller, place, path);
        }
        for class in [
            "Msvm_VssComponent",
            "Msvm_ShutdownComponent",
            "Msvm_HeartbeatComponent",
        ] {
            let component = row(
                class,
                &[
                    ("CreationClassName", class),
                    ("DeviceID", &format!("Microsoft:{id}\\{class}")),
                    ("SystemCreationClassName", "Msvm_ComputerSystem"),
                    ("SystemName", &id),
                    ("EnabledState", "2"),
                ],
            )
            .with("OperationalStatus", texts(&["2"]));
            rows.of(class).push(component);
        }
        let exchange = row(
            "Msvm_KvpExchangeComponent",
            &[("SystemName", &id), ("EnabledState", "2")],
        )
        .with("OperationalStatus", texts(&["2"]))
        .with(
            "GuestIntrinsicExchangeItems",
            texts(&[
                &item("OSName", "Windows Server 2022 Datacenter"),
                &item("OSVersion", "10.0.20348"),
                &item("OSPlatformId", "2"),
            ]),
        );
        rows.of("Msvm_KvpExchangeComponent").push(exchange);
        let exchange = row(
            "Msvm_KvpExchangeComponentSettingData",
            &[(
                "InstanceID",
                &format!("Microsoft:{id}\\2A34B1C2-FD73-4043-8A5B-DD2159BC743F"),
            )],
        );
        rows.of("Msvm_KvpExchangeComponentSettingData")
            .push(exchange);
        let merge = row(
            "Msvm_DiskMergeSettingData",
            &[
                ("InstanceID", &format!("Microsoft:{id}\\DeviceSpecificData")),
                ("EnabledState", "1"),
            ],
        );
        rows.of("Msvm_DiskMergeSettingData").push(merge);
    }

    /// Makes the guest a Linux.
    pub fn make_linux(&self, vm: VmId) {
        let mut rows = self.lock();
        for it in rows.of("Msvm_KvpExchangeComponent") {
            if it.text_ref("SystemName") == Some(&vm.to_string()) {
                it.set(
                    "GuestIntrinsicExchangeItems",
                    texts(&[&item("OSName", "Ubuntu")]),
                );
            }
        }
    }

    pub fn checkpoints(&self, vm: VmId) -> Vec<(String, String)> {
        let mut rows = self.lock();
        rows.of("Msvm_VirtualSystemSettingData")
            .iter()
            .filter(|it| it.text_ref("VirtualSystemIdentifier") == Some(&vm.to_string()))
            .filter(|it| {
                it.text_ref("VirtualSystemType")
                    .is_some_and(|it| it.contains("Snapshot"))
            })
            .map(|it| {
                (
                    it.text("InstanceID").expect("an id"),
                    it.text("ElementName").expect("a name"),
                )
            })
            .collect()
    }

    pub fn points(&self, vm: VmId) -> Vec<String> {
        let mut rows = self.lock();
        rows.of("Msvm_VirtualSystemReferencePoint")
            .iter()
            .filter(|it| it.text_ref("VirtualSystemIdentifier") == Some(&vm.to_string()))
            .map(|it| it.text("InstanceID").expect("an id"))
            .collect()
    }

    pub fn state(&self, vm: VmId) -> String {
        self.lock()
            .system(vm)
            .text("EnabledState")
            .expect("a state")
    }

    pub fn set_state(&self, vm: VmId, state: &str) {
        self.lock().system(vm).set("EnabledState", state);
    }

    pub fn host_items(&self) -> usize {
        let mut rows = self.lock();
        rows.of("Msvm_KvpExchangeComponentSettingData")
            .iter()
            .map(|it| it.texts("HostOnlyItems").expect("texts").len())
            .sum()
    }

    /// A checkpoint that somebody else made.
    pub fn add_foreign(&self, vm: VmId, name: &str, kind: &str, created: i64) -> String {
        let guid = self.next_guid();
        let mut rows = self.lock();
        snapshot_rows(&mut rows, vm, &guid, name, kind, created);
        format!("Microsoft:{guid}")
    }

    pub fn answered(&self) -> wsman::Result<()> {
        if self.down.load(Ordering::SeqCst) {
            return Err(wsman::Error::new(wsman::ErrorKind::Io, "the node is down"));
        }
        Ok(())
    }

    pub fn select(&self, namespace: &Namespace, wql: &str) -> wsman::Result<Vec<CimInstance>> {
        let mut rows = self.lock();
        match Query::parse(wql)? {
            Query::Select(select) => {
                let server = self.name.as_str().to_owned();
                let scope = Scope {
                    server: &server,
                    is_a: &|class, ancestor| class == ancestor,
                };
                let class = select.class.as_str().to_owned();
                if !rows.classes.contains_key(&class) && class.starts_with("MSCluster") {
                    return Err(Fault::new(FaultCode::CannotProcessFilter).into_error());
                }
                Ok(rows
                    .of(&class)
                    .iter()
                    .filter(|it| in_tests_namespace(it, namespace) && select.matches(it, &scope))
                    .cloned()
                    .collect())
            }
            Query::Related(related) => {
                let job = related.query.object.key("InstanceID").unwrap_or_default();
                let wanted = related.query.result_class.clone();
                let paths = rows.affected.get(&job).cloned().unwrap_or_default();
                let mut found = Vec::new();
                for path in paths {
                    let id = path.key("InstanceID").unwrap_or_default();
                    let class = path.class.as_str().to_owned();
                    if wanted.as_ref().is_none_or(|it| *it == path.class) {
                        found.extend(rows.find(&class, &id).cloned());
                    }
                }
                Ok(found)
            }
        }
    }

    pub fn begin(
        &self,
        rows: &mut Rows,
        method: &str,
        effect: Effect,
    ) -> wsman::Result<CimInstance> {
        let act = rows.acts.get_mut(method).and_then(VecDeque::pop_front);
        let job = self.next_guid();
        let mut state = "4";
        match act {
            Some(Act::Return(code)) => return Ok(answer(code)),
            Some(Act::Cut { with_effect }) => {
                if with_effect {
                    effect(self, rows);
                }
                return Err(wsman::Error::new(wsman::ErrorKind::Io, "the line was cut"));
            }
            Some(Act::Vanish { with_effect }) => {
                if with_effect {
                    effect(self, rows);
                }
                return Ok(answer(4096).with("Job", job_path(&job)));
            }
            Some(Act::Exception(code)) => {
                let it = job_row(&job, "10")
                    .with("ErrorCode", code.to_string())
                    .with("ErrorDescription", "チェックポイント操作に失敗しました");
                rows.of("Msvm_ConcreteJob").push(it);
                return Ok(answer(4096).with("Job", job_path(&job)));
            }
            Some(Act::Hang) => state = "5",
            None => {
                rows.jobs.insert(job.clone(), Some(effect));
            }
        }
        rows.of("Msvm_ConcreteJob").push(job_row(&job, state));
        Ok(answer(4096).with("Job", job_path(&job)))
    }

    /// A look at a job ends it: the next look sees it completed.
    pub fn look_at_job(&self, rows: &mut Rows, id: &str) {
        let Some(effect) = rows.jobs.remove(id).flatten() else {
            return;
        };
        let affected = effect(self, rows);
        rows.affected.insert(id.to_owned(), affected);
        if let Some(job) = rows.find("Msvm_ConcreteJob", id) {
            job.set("JobState", "7");
        }
    }
}

pub fn answer(code: u32) -> CimInstance {
    row("Output", &[("ReturnValue", &code.to_string())])
}

fn job_path(id: &str) -> CimPath {
    CimPath::new("root/virtualization/v2", "Msvm_ConcreteJob").with("InstanceID", id)
}

fn job_row(id: &str, state: &str) -> CimInstance {
    row(
        "Msvm_ConcreteJob",
        &[("InstanceID", id), ("JobState", state), ("ErrorCode", "0")],
    )
}

pub fn item(name: &str, value: &str) -> String {
    format!(
        "<INSTANCE CLASSNAME=\"Msvm_KvpExchangeDataItem\"><PROPERTY NAME=\"Caption\" PROPAGATED=\"true\" TYPE=\"string\"></PROPERTY>\
         <PROPERTY NAME=\"Data\" TYPE=\"string\"><VALUE>{value}</VALUE></PROPERTY>\
         <PROPERTY NAME=\"Name\" TYPE=\"string\"><VALUE>{name}</VALUE></PROPERTY>\
         <PROPERTY NAME=\"Source\" TYPE=\"uint16\"><VALUE>2</VALUE></PROPERTY></INSTANCE>"
    )
}

fn doubled(id: &str) -> String {
    id.replace('\\', "\\\\")
}

pub fn add_disk(rows: &mut Rows, id: &str, controller: &str, place: usize, path: &str) {
    let base = format!("Microsoft:{id}\\C0FFEE00-0000-4000-8000-000000000001\\0\\{place}");
    let place = place.to_string();
    let drive = row(
        "Msvm_ResourceAllocationSettingData",
        &[
            ("InstanceID", &format!("{base}\\D")),
            ("ResourceType", "17"),
            ("ResourceSubType", "Microsoft:Hyper-V:Synthetic Disk Drive"),
            (
                "Parent",
                &format!(
                    "\\\\HV01\\root\\virtualization\\v2:Msvm_ResourceAllocationSettingData.InstanceID=\"{}\"",
                    doubled(controller)
                ),
            ),
            ("AddressOnParent", &place),
        ],
    );
    rows.of("Msvm_ResourceAllocationSettingData").push(drive);
    let medium = row(
        "Msvm_StorageAllocationSettingData",
        &[
            ("InstanceID", &format!("{base}\\L")),
            ("ResourceType", "31"),
            ("ResourceSubType", "Microsoft:Hyper-V:Virtual Hard Disk"),
            ("Parent", &format!("\\\\HV01\\root\\virtualization\\v2:Msvm_ResourceAllocationSettingData.InstanceID=\"{}\"", doubled(&format!("{base}\\D")))),
        ],
    )
    .with("HostResource", texts(&[path]));
    rows.of("Msvm_StorageAllocationSettingData").push(medium);
}

pub fn snapshot_rows(rows: &mut Rows, vm: VmId, guid: &str, name: &str, kind: &str, created: i64) {
    let id = vm.to_string();
    let at = wsman::cim::CimDatetime::from_unix_micros(created * 1000).expect("a time");
    let settings = row(
        "Msvm_VirtualSystemSettingData",
        &[
            ("InstanceID", &format!("Microsoft:{guid}")),
            ("ElementName", name),
            ("VirtualSystemIdentifier", &id),
            ("VirtualSystemType", kind),
            ("ConfigurationDataRoot", "D:\\vm"),
            ("ConfigurationFile", &format!("Snapshots\\{guid}.vmcx")),
        ],
    )
    .with("CreationTime", CimValue::Datetime(at));
    rows.of("Msvm_VirtualSystemSettingData").push(settings);
    let media: Vec<CimInstance> = rows.of("Msvm_StorageAllocationSettingData").clone();
    for medium in media {
        let own = medium.text("InstanceID").expect("an id");
        let Some(tail) = own.strip_prefix(&format!("Microsoft:{id}")) else {
            continue;
        };
        let mut frozen = medium.clone();
        frozen.set("InstanceID", format!("Microsoft:{guid}{tail}"));
        rows.of("Msvm_StorageAllocationSettingData").push(frozen);
        let path = medium.texts("HostResource").expect("paths").remove(0);
        let stem = path.rsplit_once('.').expect("an extension").0.to_owned();
        let leaf = format!("{stem}_{guid}.avhdx");
        let live = rows
            .find("Msvm_StorageAllocationSettingData", &own)
            .expect("the medium");
        live.set("HostResource", texts(&[&leaf]));
    }
}

pub fn destroy_snapshot(rows: &mut Rows, vm: &str, snapshot: &str) {
    let media: Vec<CimInstance> = rows.of("Msvm_StorageAllocationSettingData").clone();
    for medium in media {
        let own = medium.text("InstanceID").expect("an id");
        let Some(tail) = own.strip_prefix(snapshot) else {
            continue;
        };
        let live = format!("Microsoft:{vm}{tail}");
        let path = medium.get("HostResource").expect("paths").clone();
        if let Some(live) = rows.find("Msvm_StorageAllocationSettingData", &live) {
            live.set("HostResource", path);
        }
    }
    let is_of = |it: &CimInstance| {
        it.text_ref("InstanceID")
            .is_some_and(|id| id.starts_with(snapshot))
    };
    rows.of("Msvm_StorageAllocationSettingData")
        .retain(|it| !is_of(it));
    rows.of("Msvm_VirtualSystemSettingData")
        .retain(|it| !is_of(it));
}

pub fn remove_machine(rows: &mut Rows, vm: &str) {
    for found in rows.classes.values_mut() {
        found.retain(|it| {
            let is = |property: &str| it.text_ref(property) == Some(vm);
            let is_of = it
                .text_ref("InstanceID")
                .is_some_and(|id| id.starts_with(&format!("Microsoft:{vm}")));
            !(is("Name") || is("SystemName") || is("VirtualSystemIdentifier") || is_of)
        });
    }
}
