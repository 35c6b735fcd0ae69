//! A small provider, a clock that is set by hand, and a transport that has the service at its other end.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use wsman::Result;
use wsman::cim::{CimDatetime, CimInstance, CimPath, CimType, CimValue, ClassName, Namespace};
use wsman::message::{Association, AssociationQuery, Fault};
use wsman::schema::{ClassSchema, Direction, MethodSchema, SchemaSet};
use wsman::server::{
    AccountName, Caller, CimProvider, Invocation, Operation, ServiceOptions, ServiceSources,
    SoapService, WsmanService, not_found,
};
use wsman::transport::{Answer, Post, Transport};
use wsman::wql::Select;

pub const NAMESPACE: &str = "root/virtualization/v2";

pub fn v2() -> Namespace {
    Namespace::new(NAMESPACE)
}

pub fn schemas() -> SchemaSet {
    let snapshot = MethodSchema::new("CreateSnapshot")
        .input("AffectedSystem", CimType::Reference)
        .embedded_input("SnapshotSettings", "Msvm_VirtualSystemSnapshotSettingData")
        .input("SnapshotType", CimType::Uint16)
        .parameter(
            "ResultingSnapshot",
            Direction::InOut,
            wsman::schema::ValueSchema {
                cim_type: CimType::Reference,
                arity: wsman::schema::Arity::One,
                embedded: None,
            },
        )
        .output("Job", CimType::Reference);
    let resources = MethodSchema::new("AddResourceSettings")
        .input("AffectedConfiguration", CimType::Reference)
        .embedded_inputs("ResourceSettings", "CIM_ResourceAllocationSettingData")
        .outputs("ResultingResourceSettings", CimType::Reference)
        .output("Job", CimType::Reference);
    SchemaSet::new(
        NAMESPACE,
        vec![
            ClassSchema::new("CIM_ManagedElement")
                .property("Caption", CimType::String)
                .property("ElementName", CimType::String),
            ClassSchema::new("CIM_ComputerSystem")
                .extends("CIM_ManagedElement")
                .key("CreationClassName", CimType::String)
                .key("Name", CimType::String)
                .property("EnabledState", CimType::Uint16)
                .array("OperationalStatus", CimType::Uint16),
            ClassSchema::new("Msvm_ComputerSystem")
                .extends("CIM_ComputerSystem")
                .property("InstallDate", CimType::Datetime)
                .property("OnTimeInMilliseconds", CimType::Uint64),
            ClassSchema::new("Msvm_PlannedComputerSystem").extends("CIM_ComputerSystem"),
            ClassSchema::new("Msvm_ConcreteJob")
                .extends("CIM_ManagedElement")
                .key("InstanceID", CimType::String)
                .property("JobState", CimType::Uint16)
                .property("TimeBeforeRemoval", CimType::Datetime),
            ClassSchema::new("Msvm_AffectedJobElement")
                .key("AffectedElement", CimType::Reference)
                .key("AffectingElement", CimType::Reference)
                .array("ElementEffects", CimType::Uint16),
            ClassSchema::new("Msvm_VirtualSystemSnapshotService")
                .extends("CIM_ManagedElement")
                .key("CreationClassName", CimType::String)
                .key("Name", CimType::String)
                .method(snapshot)
                .method(resources),
            ClassSchema::new("CIM_ResourceAllocationSettingData")
                .key("InstanceID", CimType::String)
                .property("ResourceType", CimType::Uint16)
                .property("Interval", CimType::Datetime)
                .array("HostResource", CimType::String),
        ],
    )
    .expect("schemas")
}

/// What the last call of a method was given.
pub type Seen = Arc<Mutex<Vec<(String, CimInstance)>>>;
type Refusal = Box<dyn Fn(&Operation<'_>) -> std::result::Result<(), Fault> + Send + Sync>;

pub struct Shelf {
    schemas: Arc<SchemaSet>,
    pub instances: Vec<CimInstance>,
    pub seen: Seen,
    pub refuse: Refusal,
}

impl Shelf {
    pub fn new(instances: Vec<CimInstance>) -> Self {
        Self {
            schemas: Arc::new(schemas()),
            instances,
            seen: Seen::default(),
            refuse: Box::new(|_| Ok(())),
        }
    }

    fn key_path(&self, instance: &CimInstance) -> CimPath {
        let schema = self.schemas.class(&instance.class).expect("a class");
        let keys: Vec<&str> = schema.keys.iter().map(String::as_str).collect();
        instance.path(&keys).expect("keys")
    }
}

impl CimProvider for Shelf {
    fn schema(&self, namespace: &Namespace) -> Option<Arc<SchemaSet>> {
        (*namespace == v2()).then(|| self.schemas.clone())
    }

    fn server_name(&self) -> &str {
        "HV01"
    }

    fn admit(&self, operation: &Operation<'_>, _caller: &Caller) -> std::result::Result<(), Fault> {
        (self.refuse)(operation)
    }

    fn instances(
        &self,
        _namespace: &Namespace,
        class: &ClassName,
        _query: Option<&Select>,
        _caller: &Caller,
    ) -> std::result::Result<Vec<CimInstance>, Fault> {
        let is_wanted = |it: &&CimInstance| self.schemas.is_a(&it.class, class);
        Ok(self.instances.iter().filter(is_wanted).cloned().collect())
    }

    fn get(&self, path: &CimPath, _caller: &Caller) -> std::result::Result<CimInstance, Fault> {
        let found = self.instances.iter().find(|it| path.names(it));
        found.cloned().ok_or_else(|| not_found(path))
    }

    fn related(
        &self,
        query: &AssociationQuery,
        _caller: &Caller,
    ) -> std::result::Result<Vec<CimInstance>, Fault> {
        let wanted = query.object.id();
        let mut found = Vec::new();
        for association in self
            .instances
            .iter()
            .filter(|it| it.class == "Msvm_AffectedJobElement")
        {
            let ends: Vec<&CimPath> = association
                .properties
                .values()
                .filter_map(|it| match it {
                    CimValue::Reference(path) => Some(&**path),
                    _ => None,
                })
                .collect();
            if !ends.iter().any(|it| it.id() == wanted) {
                continue;
            }
            if query.kind == Association::References {
                found.push(association.clone());
                continue;
            }
            for end in ends.iter().filter(|it| it.id() != wanted) {
                found.extend(
                    self.instances
                        .iter()
                        .find(|it| self.key_path_is(it, end))
                        .cloned(),
                );
            }
        }
        Ok(found)
    }

    fn invoke(&self, invocation: &Invocation<'_>) -> std::result::Result<CimInstance, Fault> {
        let mut seen = self.seen.lock().expect("seen");
        seen.push((invocation.method.name.clone(), invocation.inputs.clone()));
        let job = CimPath::new(v2(), "Msvm_ConcreteJob").with("InstanceID", "9D4B");
        Ok(CimInstance::new("Output")
            .with("ReturnValue", 4096_u32)
            .with("Job", job))
    }
}

impl Shelf {
    fn key_path_is(&self, instance: &CimInstance, path: &CimPath) -> bool {
        instance.class == path.class && self.key_path(instance).is_same(path)
    }
}

pub fn vm(number: usize) -> CimInstance {
    CimInstance::new("Msvm_ComputerSystem")
        .in_namespace(v2())
        .with("CreationClassName", "Msvm_ComputerSystem")
        .with("Name", format!("{number:08X}-93A5-4B1E-8D4C-0123456789AB"))
        .with("ElementName", format!("vm{number} <&\"'> Ä"))
        .with(
            "EnabledState",
            if number.is_multiple_of(2) {
                2_u16
            } else {
                3_u16
            },
        )
        .with("OperationalStatus", vec![2_u16, 32768])
        .with("InstallDate", CimDatetime::NONE)
        .with("Caption", CimValue::Null)
}

pub fn host() -> CimInstance {
    CimInstance::new("Msvm_ComputerSystem")
        .in_namespace(v2())
        .with("CreationClassName", "Msvm_ComputerSystem")
        .with("Name", "HV01")
        .with("EnabledState", 2_u16)
}

pub fn job() -> CimInstance {
    CimInstance::new("Msvm_ConcreteJob")
        .in_namespace(v2())
        .with("InstanceID", "9D4B")
        .with("JobState", 7_u16)
}

pub fn affects(number: usize) -> CimInstance {
    let machine = vm(number)
        .path(&["CreationClassName", "Name"])
        .expect("keys");
    CimInstance::new("Msvm_AffectedJobElement")
        .in_namespace(v2())
        .with("AffectedElement", machine)
        .with(
            "AffectingElement",
            job().path(&["InstanceID"]).expect("a key"),
        )
        .with("ElementEffects", vec![5_u16])
}

/// A service over a shelf; its clock stands until it is set.
pub struct Stand {
    pub service: Arc<WsmanService>,
    pub clock_ms: Arc<AtomicU64>,
}

pub fn ids() -> impl Fn() -> [u8; 16] + Send + Sync {
    let next = AtomicU64::new(1);
    move || {
        let mut id = [0; 16];
        id[8..].copy_from_slice(&next.fetch_add(1, Ordering::Relaxed).to_be_bytes());
        id
    }
}

impl Stand {
    pub fn new(shelf: Shelf, options: ServiceOptions) -> Self {
        let clock_ms = Arc::new(AtomicU64::new(0));
        let clock = clock_ms.clone();
        let sources = ServiceSources {
            clock: Arc::new(move || Duration::from_millis(clock.load(Ordering::Relaxed))),
            ids: Arc::new(ids()),
        };
        Self {
            service: Arc::new(WsmanService::new(Arc::new(shelf), options, sources)),
            clock_ms,
        }
    }
}

pub fn caller() -> Caller {
    Caller::Account(AccountName::new("EXAMPLE\\svc-backup"))
}

/// A transport without a network.
pub struct Loopback {
    pub service: Arc<WsmanService>,
    /// Changes each answer on its way.
    pub change: Box<dyn Fn(Vec<u8>) -> Vec<u8> + Send + Sync>,
}

impl Loopback {
    pub fn to(stand: &Stand) -> Self {
        Self {
            service: stand.service.clone(),
            change: Box::new(|body| body),
        }
    }
}

impl Transport for Loopback {
    fn post(&self, post: &Post<'_>) -> Result<Answer> {
        let reply = self.service.serve(&caller(), Some("utf-8"), post.body);
        Ok(Answer {
            status: reply.status,
            charset: None,
            body: (self.change)(reply.body),
        })
    }

    fn address(&self) -> &str {
        "http://hv01.example.net:5985/wsman"
    }
}
