//! Messages by hand, read and written again.

use std::path::PathBuf;
use std::time::Duration;

use wsman::ErrorKind;
use wsman::cim::embedded::{Extent, write};
use wsman::cim::{CimInstance, CimPath, CimType, CimValue, Namespace};
use wsman::message::{
    Action, Association, AssociationQuery, Delivery, Enumerate, EnumerationContext, FaultCode,
    Filter, Item, Items, MessageId, Polymorphism, Request, RequestBody, RequestHeader, ResourceUri,
    read_answer, read_batch, read_identity, read_instance_answer, read_output,
};
use wsman::schema::ClassSchema;
use wsman::xml::{Document, XmlLimits};

use crate::canonical::canonical;

const VM: &str = "0F1C2C66-93A5-4B1E-8D4C-0123456789AB";
const JOB: &str = "9D4B2C0E-7E1C-4C7D-9C0F-7D0B0C6A1F10";
const MESSAGE: &str = "uuid:3F0B6E5C-6E3E-4D5B-9E55-1E6A6F0F2B01";
const CONTEXT: &str = "uuid:2D10CD89-250B-4191-8FFF-D3917231F0B2";

fn golden(name: &str) -> String {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("tests/golden")
        .join(name);
    std::fs::read_to_string(&path).unwrap_or_else(|cause| panic!("{}: {cause}", path.display()))
}

fn v2() -> Namespace {
    Namespace::new("root/virtualization/v2")
}

fn request(
    resource: ResourceUri,
    action: Action,
    selectors: &[(&str, &str)],
    body: RequestBody,
) -> Request {
    Request {
        header: Some(RequestHeader {
            to: "https://hv01.example.net:5986/wsman".to_owned(),
            action: action.to_uri(&resource),
            resource: Some(resource),
            message_id: MessageId::new(MESSAGE),
            max_envelope_bytes: Some(512_000),
            timeout: Some(Duration::from_secs(60)),
            locale: Some("en-US".to_owned()),
            selectors: selectors
                .iter()
                .map(|(name, value)| ((*name).to_owned(), CimValue::from(*value)))
                .collect(),
        }),
        body,
    }
}

fn enumerate(filter: Filter) -> RequestBody {
    RequestBody::Enumerate(Enumerate {
        filter: Some(filter),
        items: Items::Objects,
        delivery: Delivery::Optimized,
        max_elements: Some(100),
        polymorphism: Polymorphism::Include,
    })
}

fn invoke(
    class: &str,
    method: &str,
    selectors: &[(&str, &str)],
    parameters: Vec<(&str, CimValue)>,
) -> Request {
    request(
        ResourceUri::class(&v2(), &class.into()),
        Action::Invoke {
            method: method.to_owned(),
        },
        selectors,
        RequestBody::Invoke {
            method: method.to_owned(),
            parameters: parameters
                .into_iter()
                .map(|(name, value)| (name.to_owned(), value))
                .collect(),
        },
    )
}

fn snapshot_settings() -> String {
    let schema = ClassSchema::new("Msvm_VirtualSystemSnapshotSettingData")
        .property("ConsistencyLevel", CimType::Uint8)
        .property("GuestBackupType", CimType::Uint8)
        .property("IgnoreNonSnapshottableDisks", CimType::Boolean);
    let settings = CimInstance::new("Msvm_VirtualSystemSnapshotSettingData")
        .with("ConsistencyLevel", 1_u8)
        .with("GuestBackupType", 1_u8)
        .with("IgnoreNonSnapshottableDisks", true);
    write(&settings, &schema, Extent::Given).expect("settings")
}

fn vm_path() -> CimPath {
    CimPath::new(v2(), "Msvm_ComputerSystem")
        .with("CreationClassName", "Msvm_ComputerSystem")
        .with("Name", VM)
}

fn enumerations() -> Vec<(&'static str, Request)> {
    let job = CimPath::new(v2(), "Msvm_ConcreteJob").with("InstanceID", JOB);
    let wql = |text: &str| enumerate(Filter::Wql(text.to_owned()));
    vec![
        (
            "enumerate_wql.xml",
            request(
                ResourceUri::all(&v2()),
                Action::Enumerate,
                &[],
                wql("SELECT * FROM Msvm_ComputerSystem WHERE Caption = 'Virtual Machine'"),
            ),
        ),
        (
            "enumerate_cluster.xml",
            request(
                ResourceUri::all(&Namespace::new("root/MSCluster")),
                Action::Enumerate,
                &[],
                wql("SELECT * FROM MSCluster_Resource WHERE Type = 'Virtual Machine'"),
            ),
        ),
        (
            "enumerate_associated.xml",
            request(
                ResourceUri::all(&v2()),
                Action::Enumerate,
                &[],
                enumerate(Filter::Association(
                    AssociationQuery::of(Association::Associators, job)
                        .through("Msvm_AffectedJobElement")
                        .giving("Msvm_VirtualSystemSettingData"),
                )),
            ),
        ),
        (
            "pull.xml",
            request(
                ResourceUri::all(&v2()),
                Action::Pull,
                &[],
                RequestBody::Pull {
                    context: EnumerationContext::new(CONTEXT),
                    max_elements: Some(100),
                },
            ),
        ),
        (
            "release.xml",
            request(
                ResourceUri::all(&v2()),
                Action::Release,
                &[],
                RequestBody::Release {
                    context: EnumerationContext::new(CONTEXT),
                },
            ),
        ),
    ]
}

fn calls() -> Vec<(&'static str, Request)> {
    let snapshots = "Msvm_VirtualSystemSnapshotService";
    let images = "Msvm_ImageManagementService";
    vec![
        (
            "get_job.xml",
            request(
                ResourceUri::class(&v2(), &"Msvm_ConcreteJob".into()),
                Action::Get,
                &[("InstanceID", JOB)],
                RequestBody::Get,
            ),
        ),
        (
            "invoke_create_snapshot.xml",
            invoke(
                snapshots,
                "CreateSnapshot",
                &[("CreationClassName", snapshots)],
                vec![
                    ("AffectedSystem", vm_path().into()),
                    ("SnapshotSettings", snapshot_settings().into()),
                    ("SnapshotType", 32768_u16.into()),
                ],
            ),
        ),
        (
            "invoke_disk_changes.xml",
            invoke(
                images,
                "GetVirtualDiskChanges",
                &[("CreationClassName", images)],
                vec![
                    (
                        "Path",
                        "C:\\ClusterStorage\\Volume1\\sql01\\sql01.vhdx".into(),
                    ),
                    (
                        "LimitId",
                        "rctX:4f0ac5b8:3f2c:45e6:9d0a:0ac0d3f9a6de:00000003".into(),
                    ),
                    ("ByteOffset", 0_u64.into()),
                    ("ByteLength", 137_438_953_472_u64.into()),
                ],
            ),
        ),
    ]
}

fn calls_on_machines() -> Vec<(&'static str, Request)> {
    let shutdown = "Msvm_ShutdownComponent";
    let device = format!("Microsoft:{VM}\\9F8233AC-BE49-4C79-8EE3-E7E1985B2077");
    vec![
        (
            "invoke_state_change.xml",
            invoke(
                "Msvm_ComputerSystem",
                "RequestStateChange",
                &[("CreationClassName", "Msvm_ComputerSystem"), ("Name", VM)],
                vec![("RequestedState", 2_u16.into())],
            ),
        ),
        (
            "invoke_shutdown.xml",
            invoke(
                shutdown,
                "InitiateShutdown",
                &[
                    ("CreationClassName", shutdown),
                    ("DeviceID", &device),
                    ("SystemCreationClassName", "Msvm_ComputerSystem"),
                    ("SystemName", VM),
                ],
                vec![("Force", false.into()), ("Reason", "backup".into())],
            ),
        ),
    ]
}

fn all_requests() -> impl Iterator<Item = (&'static str, Request)> {
    let calls = calls().into_iter().chain(calls_on_machines());
    enumerations().into_iter().chain(calls)
}

#[test]
fn requests_are_written_as_windows_own_client_writes_them() {
    for (name, request) in all_requests() {
        let written = request.write().expect("a request");
        assert_eq!(canonical(&written), canonical(&golden(name)), "{name}");
    }
}

#[test]
fn requests_are_read_for_what_they_ask() {
    for (name, request) in all_requests() {
        let text = golden(name);
        let document = Document::parse(&text, &XmlLimits::default()).expect("xml");
        let read = Request::read(&document).unwrap_or_else(|fault| panic!("{name}: {fault}"));
        // On the wire all scalars are texts.
        let mut wanted = request;
        if let RequestBody::Invoke { parameters, .. } = &mut wanted.body {
            for (_, value) in parameters {
                if let Some(text) = value.to_wire_text() {
                    *value = CimValue::Text(text);
                }
            }
        }
        assert_eq!(read, wanted, "{name}");
    }
}

fn with_answer<T>(
    name: &str,
    read: impl FnOnce(Option<wsman::xml::Element<'_, '_>>) -> wsman::Result<T>,
) -> wsman::Result<T> {
    let text = golden(name);
    let document = Document::parse(&text, &XmlLimits::default()).expect("xml");
    read(read_answer(&document, Some(&MessageId::new(MESSAGE)))?)
}

#[test]
fn items_of_every_form_are_read() {
    let batch = |name: &str| {
        with_answer(name, |body| {
            read_batch(body, &v2(), Some(&"Msvm_ComputerSystem".into()))
        })
        .unwrap_or_else(|error| panic!("{name}: {error}"))
    };
    let all = batch("enumerate_all.xml");
    assert!(all.is_last && all.context.is_none());
    let [Item::Object(vm)] = all.items.as_slice() else {
        panic!("one object, not {:?}", all.items);
    };
    assert_eq!(vm.class, "Msvm_ComputerSystem");
    assert_eq!(vm.namespace, "root/virtualization/v2");
    assert_eq!(vm.text("ElementName").expect("name"), "sql01");
    assert_eq!(vm.u64s("OperationalStatus").expect("status"), [2, 32768]);
    assert_eq!(vm.opt_u64("CommunicationStatus").expect("null"), None);
    let installed = vm
        .opt_datetime("InstallDate")
        .expect("date")
        .expect("a date");
    assert_eq!(installed.to_dmtf(), "20260302091127.412000+000");

    let first = batch("enumerate_first.xml");
    assert_eq!(first.context, Some(EnumerationContext::new(CONTEXT)));
    assert!(!first.is_last);
    let more = batch("pull_more.xml");
    assert_ne!(more.context, first.context);
    assert!(batch("pull_last.xml").is_last);
    let nothing = batch("pull_nothing.xml");
    assert!(nothing.is_last && nothing.items.is_empty());

    let [Item::Reference(path)] = &*batch("pull_references.xml").items else {
        panic!("one reference");
    };
    assert!(path.is_same(&vm_path()));
    let [Item::Both(object, path)] = &*batch("pull_both.xml").items else {
        panic!("object and reference");
    };
    assert!(path.names(object));
    let [Item::Fragment(fragment)] = &*batch("pull_fragment.xml").items else {
        panic!("a fragment");
    };
    assert_eq!(fragment.class, "Msvm_ComputerSystem");
    assert_eq!(fragment.text("Name").expect("name"), VM);
}

#[test]
fn a_job_and_what_it_affects_are_read() {
    let job = with_answer("job.xml", |body| read_instance_answer(body, &v2())).expect("a job");
    assert!(job.bool("Cancellable").expect("a boolean"));
    assert_eq!(job.u16("JobState").expect("a state"), 4);
    assert_eq!(job.text("ErrorDescription").expect("an empty text"), "");
    let elapsed = job
        .opt_interval("ElapsedTime")
        .expect("a span")
        .expect("a span");
    assert_eq!(elapsed.micros(), 3_004_170);
    let left = job
        .opt_interval("TimeBeforeRemoval")
        .expect("a span")
        .expect("a span");
    assert_eq!(left.to_dmtf(), "00000000000500.000000:000");

    let batch =
        with_answer("affected_element.xml", |body| read_batch(body, &v2(), None)).expect("a batch");
    let [Item::Object(row)] = batch.items.as_slice() else {
        panic!("one object");
    };
    assert_eq!(
        row.reference("AffectingElement")
            .expect("a job")
            .key("instanceid")
            .as_deref(),
        Some(JOB)
    );
    assert_eq!(
        row.reference("AffectedElement").expect("settings").class,
        "Msvm_VirtualSystemSettingData"
    );
    assert_eq!(row.u64s("ElementEffects").expect("effects"), [5]);
}

#[test]
fn outputs_of_methods_are_read() {
    let output = with_answer("create_snapshot_output.xml", |body| {
        read_output(body, "CreateSnapshot", &v2())
    })
    .expect("an output");
    assert_eq!(output.u32("ReturnValue").expect("a code"), 4096);
    assert_eq!(
        output.opt_reference("ResultingSnapshot").expect("null"),
        None
    );
    let job = output.reference("Job").expect("a job");
    assert_eq!(job.namespace, v2());
    assert_eq!(
        job.keys.keys().collect::<Vec<_>>(),
        ["InstanceID"],
        "the namespace is no key"
    );

    let changes = with_answer("disk_changes_output.xml", |body| {
        read_output(body, "GetVirtualDiskChanges", &v2())
    })
    .expect("an output");
    assert_eq!(
        changes.u64s("ChangedByteOffsets").expect("offsets"),
        [1_048_576, 104_857_600]
    );
    assert_eq!(
        changes.u64s("ChangedByteLengths").expect("lengths"),
        [65_536, 1_048_576]
    );
    assert_eq!(
        changes.u64("ProcessedByteLength").expect("a length"),
        137_438_953_472
    );

    let summary = with_answer("summary_output.xml", |body| {
        read_output(body, "GetSummaryInformation", &v2())
    })
    .expect("an output");
    let rows = summary.instances("SummaryInformation").expect("objects");
    let classes: Vec<&str> = rows.iter().map(|it| it.class.as_str()).collect();
    assert_eq!(classes, ["Msvm_SummaryInformation"; 2]);
    assert_eq!(rows[1].text("ElementName").expect("a name"), "web02");

    let wrong = with_answer("summary_output.xml", |body| {
        read_output(body, "CreateSnapshot", &v2())
    });
    assert_eq!(
        wrong.expect_err("another method's").kind(),
        ErrorKind::Malformed
    );
}

#[test]
fn embedded_texts_are_read() {
    let kvp =
        with_answer("kvp.xml", |body| read_instance_answer(body, &v2())).expect("a component");
    let items = kvp.instances("GuestIntrinsicExchangeItems").expect("items");
    assert_eq!(items[0].class, "Msvm_KvpExchangeDataItem");
    assert_eq!(items[0].text("Name").expect("a name"), "OSName");
    assert_eq!(
        items[0].text("Data").expect("data"),
        "Windows Server 2022 Datacenter"
    );
    assert_eq!(items[0].u16("Source").expect("a source"), 2);
    assert_eq!(items[0].opt_text("Caption").expect("null"), None);
}

#[test]
fn faults_are_read_with_all_that_they_say() {
    let error = with_answer("fault_selectors.xml", |_| Ok(())).expect_err("a fault");
    assert_eq!(error.kind(), ErrorKind::NotFound);
    let fault = error.fault().expect("a fault");
    assert_eq!(fault.code, FaultCode::InvalidSelectors);
    assert_eq!(fault.wsman_code, Some(2_150_858_843));
    assert_eq!(fault.machine.as_deref(), Some("hv01.example.net"));
    let provider = fault.provider.as_ref().expect("an error of WMI");
    assert_eq!(
        (provider.cim_status, provider.hresult),
        (Some(6), Some(0x8004_1002))
    );

    let error = with_answer("fault_quota.xml", |_| Ok(())).expect_err("a fault");
    assert_eq!(
        error.kind(),
        ErrorKind::Busy,
        "by its number, not by its subcode"
    );
}

#[test]
fn who_a_host_is_is_read() {
    let identity = with_answer("identify_answer.xml", read_identity).expect("an identity");
    assert_eq!(identity.product_vendor, "Microsoft Corporation");
    assert_eq!(
        identity.product_version,
        "OS: 10.0.17763 SP: 0.0 Stack: 3.0"
    );
}

#[test]
fn an_answer_to_another_question_is_refused() {
    let text = golden("job.xml");
    let document = Document::parse(&text, &XmlLimits::default()).expect("xml");
    let error = read_answer(&document, Some(&MessageId::new("uuid:other"))).expect_err("another's");
    assert_eq!(error.kind(), ErrorKind::Malformed);
}
