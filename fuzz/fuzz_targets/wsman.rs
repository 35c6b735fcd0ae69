//! A message of WS-Management: as an answer, as a request to a service; and the texts in it: CIM-XML, WQL, paths, times.
#![no_main]

use std::ops::ControlFlow;
use std::sync::{Arc, LazyLock, Mutex};
use std::time::Duration;

use wsman::cim::embedded::{read, read_strict};
use wsman::cim::{CimDatetime, CimInstance, CimInterval, CimPath, CimType, ClassName, Namespace};
use wsman::client::{CimClient, ClientOptions, ClientSources, Enumeration, WsmanClient};
use wsman::message::{AssociationQuery, Fault, Request, ResourceUri};
use wsman::schema::{ClassSchema, MethodSchema, SchemaSet};
use wsman::server::{
    AccountName, Caller, CimProvider, Invocation, ServiceOptions, ServiceSources, SoapService,
    WsmanService, not_found,
};
use wsman::transport::{Answer, Post, Transport};
use wsman::wql::{Query, Scope, Select};
use wsman::xml::{Document, XmlLimits, decode};

const NAMESPACE: &str = "root/virtualization/v2";

static SCHEMAS: LazyLock<Arc<SchemaSet>> = LazyLock::new(|| {
    let changes = MethodSchema::new("GetVirtualDiskChanges")
        .input("Path", CimType::String)
        .input("LimitId", CimType::String)
        .input("ByteOffset", CimType::Uint64)
        .input("ByteLength", CimType::Uint64)
        .outputs("ChangedByteOffsets", CimType::Uint64)
        .output("Job", CimType::Reference);
    let classes = vec![
        ClassSchema::new("Msvm_ConcreteJob")
            .key("InstanceID", CimType::String)
            .property("JobState", CimType::Uint16)
            .property("StartTime", CimType::Datetime)
            .array("Owner", CimType::String),
        ClassSchema::new("Msvm_ComputerSystem")
            .key("CreationClassName", CimType::String)
            .key("Name", CimType::String),
        ClassSchema::new("Msvm_AffectedJobElement").key("AffectedElement", CimType::Reference),
        ClassSchema::new("Msvm_VirtualSystemSettingData").key("InstanceID", CimType::String),
        ClassSchema::new("Msvm_ImageManagementService")
            .key("CreationClassName", CimType::String)
            .method(changes),
    ];
    Arc::new(SchemaSet::new(NAMESPACE, classes).expect("schemas"))
});

fn job() -> CimInstance {
    CimInstance::new("Msvm_ConcreteJob")
        .in_namespace(NAMESPACE)
        .with("InstanceID", "9D4B2C0E-7E1C-4C7D-9C0F-7D0B0C6A1F10")
        .with("JobState", 7_u16)
        .with("StartTime", CimDatetime::NONE)
        .with("Owner", vec!["a", "b"])
}

struct Jobs;

impl CimProvider for Jobs {
    fn schema(&self, namespace: &Namespace) -> Option<Arc<SchemaSet>> {
        (*namespace == NAMESPACE).then(|| SCHEMAS.clone())
    }

    fn server_name(&self) -> &str {
        "HV01"
    }

    fn instances(
        &self,
        _: &Namespace,
        _: &ClassName,
        _: Option<&Select>,
        _: &Caller,
    ) -> Result<Vec<CimInstance>, Fault> {
        Ok(vec![job(), job()])
    }

    fn get(&self, path: &CimPath, _: &Caller) -> Result<CimInstance, Fault> {
        if path.names(&job()) {
            Ok(job())
        } else {
            Err(not_found(path))
        }
    }

    fn related(&self, _: &AssociationQuery, _: &Caller) -> Result<Vec<CimInstance>, Fault> {
        Ok(vec![job()])
    }

    fn invoke(&self, invocation: &Invocation<'_>) -> Result<CimInstance, Fault> {
        assert!(invocation.method.inputs_in_order().count() >= invocation.inputs.properties.len());
        Ok(CimInstance::new("Output").with("ReturnValue", 0_u32))
    }
}

static SERVICE: LazyLock<WsmanService> = LazyLock::new(|| {
    let next = Mutex::new(0_u64);
    let ids = move || {
        let mut next = next.lock().expect("ids");
        *next += 1;
        let mut id = [0; 16];
        id[8..].copy_from_slice(&next.to_be_bytes());
        id
    };
    let sources = ServiceSources {
        clock: Arc::new(|| Duration::ZERO),
        ids: Arc::new(ids),
    };
    let options = ServiceOptions {
        contexts_per_caller: 16,
        ..ServiceOptions::default()
    };
    WsmanService::new(Arc::new(Jobs), options, sources)
});

/// A host that answers everything with the same bytes.
struct Parrot(Vec<u8>);

impl Transport for Parrot {
    fn post(&self, _: &Post<'_>) -> wsman::Result<Answer> {
        Ok(Answer {
            status: 200,
            charset: None,
            body: self.0.clone(),
        })
    }

    fn address(&self) -> &str {
        "http://h/wsman"
    }
}

fn as_answer(input: &[u8]) {
    let sources = ClientSources {
        ids: Arc::new(|| *b"?\x0bn\\n>M[\x9eU\x1ejo\x0f+\x01"),
        clock: Arc::new(|| Duration::ZERO),
        pause: Arc::new(|_, _| false),
    };
    let client = WsmanClient::new(
        Arc::new(Parrot(input.to_vec())),
        ClientOptions::default(),
        sources,
    );
    let namespace = Namespace::new(NAMESPACE);
    let path = CimPath::new(namespace.clone(), "Msvm_ConcreteJob").with("InstanceID", "x");
    let _ = client.get(&path);
    let _ = client.identify();
    let _ = client.invoke(&path, "CreateSnapshot", &[]);
    let mut seen = 0;
    let _ = client.for_each(
        &Enumeration::query(&namespace, "SELECT * FROM Msvm_ConcreteJob"),
        &mut |instance| {
            seen += 1;
            for name in instance.properties.keys() {
                let _ = (
                    instance.texts(name),
                    instance.u64s(name),
                    instance.references(name),
                );
                let _ = (instance.opt_datetime(name), instance.instances(name));
            }
            if seen > 20 {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            }
        },
    );
}

fn as_request(input: &[u8]) {
    let caller = Caller::Account(AccountName::new("a\\b"));
    let reply = SERVICE.serve(&caller, None, input);
    let (text, _) = decode(&reply.body, None).expect("an answer is text");
    let document = Document::parse(&text, &XmlLimits::default()).expect("an answer is well-formed");
    assert_eq!(document.root().local(), "Envelope");
    let Ok((text, _)) = decode(input, None) else {
        return;
    };
    let Ok(document) = Document::parse(&text, &XmlLimits::default()) else {
        return;
    };
    // What was read is written and read again as the same.
    if let Ok(request) = Request::read(&document)
        && let Ok(text) = request.write()
    {
        let document =
            Document::parse(&text, &XmlLimits::default()).expect("a request is well-formed");
        let _ = Request::read(&document);
    }
}

fn as_text(text: &str) {
    let _ = read(text);
    let _ = read_strict(text, &SCHEMAS, None);
    if let Ok(Query::Select(select)) = Query::parse(text) {
        let scope = Scope {
            server: "HV01",
            is_a: &|_, _| true,
        };
        let _ = select.matches(&job(), &scope);
        let _ = select.project(job());
    }
    if let Ok(path) = CimPath::parse(text, &Namespace::unspecified()) {
        let again = CimPath::parse(&path.to_text(Some("H")), &Namespace::unspecified());
        assert!(path.namespace.is_unspecified() || again.is_ok_and(|it| it.is_same(&path)));
    }
    if let Some(time) = CimDatetime::parse(text) {
        assert_eq!(CimDatetime::parse(&time.to_iso()), Some(time));
        assert_eq!(CimDatetime::parse(&time.to_dmtf()), Some(time));
    }
    if let Some(span) = CimInterval::parse(text) {
        assert_eq!(CimInterval::parse(&span.to_iso()), Some(span));
    }
    if let Some(uri) = ResourceUri::parse(text) {
        assert!(ResourceUri::parse(&uri.to_string()).is_some());
    }
}

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    as_answer(input);
    as_request(input);
    if let Ok(text) = std::str::from_utf8(input) {
        as_text(text);
    }
});
