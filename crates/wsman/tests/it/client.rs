//! The asking half: to the end of what a host has, round what it refuses, and never twice what may have run.

use std::collections::VecDeque;
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use wsman::cim::{CimInstance, CimPath, CimValue};
use wsman::client::{
    CimClient, ClientLimits, ClientOptions, ClientSources, Enumeration, WsmanClient,
};
use wsman::message::{Association, AssociationQuery, Fault, FaultCode, wsman_code};
use wsman::server::{ContextIds, Operation, ServiceOptions};
use wsman::transport::{Answer, Post, Transport};
use wsman::{CancelToken, Error, ErrorKind, Result};

use crate::shelf::{Loopback, Shelf, Stand, affects, host, ids, job, v2, vm};

/// Pauses that take no time, and how many there were.
fn sources(pauses: &Arc<AtomicUsize>) -> ClientSources {
    let pauses = pauses.clone();
    ClientSources {
        ids: Arc::new(ids()),
        clock: Arc::new(|| Duration::ZERO),
        pause: Arc::new(move |_, cancel| {
            pauses.fetch_add(1, Ordering::Relaxed);
            cancel.is_cancelled()
        }),
    }
}

pub fn client(transport: impl Transport + 'static, options: ClientOptions) -> WsmanClient {
    WsmanClient::new(Arc::new(transport), options, sources(&Arc::default()))
}

pub fn estate() -> Shelf {
    let mut instances = vec![host(), job(), affects(3), affects(5)];
    instances.extend((0..25).map(vm));
    Shelf::new(instances)
}

fn names(instances: &[CimInstance]) -> Vec<String> {
    instances
        .iter()
        .map(|it| it.text("Name").expect("a name"))
        .collect()
}

pub fn all_vms() -> Enumeration {
    Enumeration::query(
        &v2(),
        "SELECT * FROM Msvm_ComputerSystem WHERE CreationClassName = 'Msvm_ComputerSystem'",
    )
}

#[test]
fn enumerations_come_whole_however_they_are_split() {
    let mut service_options = Vec::new();
    for context_ids in [ContextIds::Kept, ContextIds::Renewed] {
        for max_batch_items in [1, 3, 32_000] {
            service_options.push(ServiceOptions {
                context_ids,
                max_batch_items,
                ..ServiceOptions::default()
            });
        }
    }
    service_options.push(ServiceOptions {
        max_envelope_bytes: 8192,
        ..ServiceOptions::default()
    });
    for options in service_options {
        let stand = Stand::new(estate(), options.clone());
        for max_elements in [1, 7, 1000] {
            let client = client(
                Loopback::to(&stand),
                ClientOptions {
                    max_elements,
                    ..ClientOptions::default()
                },
            );
            let found = client.collect(&all_vms()).expect("all");
            assert_eq!(found.len(), 26, "{options:?} {max_elements}");
            assert_eq!(
                found[4].text("ElementName").expect("a name"),
                "vm3 <&\"'> Ä"
            );
            let class = client
                .enumerate(&v2(), &"CIM_ComputerSystem".into())
                .expect("a class");
            assert_eq!(names(&class), names(&found));
        }
    }
}

#[test]
fn instances_are_got_by_key_and_relations_are_followed() {
    let stand = Stand::new(estate(), ServiceOptions::default());
    let client = client(Loopback::to(&stand), ClientOptions::default());
    let path = vm(3).path(&["CreationClassName", "Name"]).expect("keys");
    let found = client.get(&path).expect("an instance");
    assert_eq!(found.namespace, v2());
    assert!(path.names(&found));
    let missing = client
        .get(&path.clone().with("Name", "nobody"))
        .expect_err("nobody");
    assert_eq!(missing.kind(), ErrorKind::NotFound);
    let job = job().path(&["InstanceID"]).expect("a key");
    let query =
        AssociationQuery::of(Association::Associators, job).through("Msvm_AffectedJobElement");
    let related = client.associators(&query).expect("what is related");
    assert_eq!(names(&related), names(&[vm(3), vm(5)]));
    assert_eq!(
        client.identify().expect("an identity").product_vendor,
        "Microsoft Corporation"
    );
}

#[test]
fn methods_are_called_with_references_and_texts() {
    let shelf = estate();
    let seen = shelf.seen.clone();
    let stand = Stand::new(shelf, ServiceOptions::default());
    let client = client(Loopback::to(&stand), ClientOptions::default());
    let service = CimPath::new(v2(), "Msvm_VirtualSystemSnapshotService")
        .with("CreationClassName", "Msvm_VirtualSystemSnapshotService");
    let system = vm(3).path(&["CreationClassName", "Name"]).expect("keys");
    let settings = "<INSTANCE CLASSNAME=\"X\"><PROPERTY NAME=\"A\" TYPE=\"string\"><VALUE>&amp;</VALUE></PROPERTY></INSTANCE>";
    let output = client
        .invoke(
            &service,
            "CreateSnapshot",
            &[
                ("AffectedSystem", system.clone().into()),
                ("SnapshotSettings", settings.into()),
                ("SnapshotType", 32768_u16.into()),
                ("ResultingSnapshot", CimValue::Null),
            ],
        )
        .expect("an output");
    assert_eq!(output.u32("ReturnValue").expect("a code"), 4096);
    assert_eq!(
        output
            .reference("Job")
            .expect("a job")
            .key("InstanceID")
            .as_deref(),
        Some("9D4B")
    );
    let seen = seen.lock().expect("seen");
    assert_eq!(
        seen[0].1.get("SnapshotSettings"),
        Some(&CimValue::from(settings))
    );
    assert!(
        seen[0]
            .1
            .reference("AffectedSystem")
            .expect("a path")
            .is_same(&system)
    );
}

#[test]
fn a_host_that_takes_no_queries_is_asked_for_classes() {
    let mut shelf = estate();
    shelf.refuse = Box::new(|operation| match operation {
        Operation::Enumerate { query: Some(_), .. } => {
            Err(Fault::new(FaultCode::CannotProcessFilter))
        }
        _ => Ok(()),
    });
    let stand = Stand::new(shelf, ServiceOptions::default());
    let client = client(Loopback::to(&stand), ClientOptions::default());
    let on = client
        .query(&v2(), "SELECT Name FROM Msvm_ComputerSystem WHERE EnabledState = 2 AND ElementName IS NOT NULL")
        .expect("filtered here");
    assert_eq!(on.len(), 13);
    assert_eq!(on[0].properties.keys().collect::<Vec<_>>(), ["Name"]);
    let job = job().path(&["InstanceID"]).expect("a key");
    let query = AssociationQuery::of(Association::Associators, job.clone())
        .through("Msvm_AffectedJobElement");
    assert_eq!(
        names(&client.associators(&query).expect("walked")),
        names(&[vm(3), vm(5)])
    );
    let query =
        AssociationQuery::of(Association::References, job).through("Msvm_AffectedJobElement");
    assert_eq!(client.associators(&query).expect("walked").len(), 2);
    let unknown = client
        .query(&v2(), "SELECT * FROM Msvm_Nothing")
        .expect_err("no class");
    assert_eq!(unknown.kind(), ErrorKind::NotFound);
    let server = client.query(
        &v2(),
        "SELECT * FROM Msvm_ComputerSystem WHERE Name != __SERVER",
    );
    let refused = server.expect_err("its name is not known here");
    assert_eq!(
        refused.fault().expect("a fault").code,
        FaultCode::CannotProcessFilter
    );
}

#[test]
fn breaking_off_ends_the_enumeration_at_the_host_too() {
    let stand = Stand::new(
        estate(),
        ServiceOptions {
            contexts_per_caller: 1,
            ..ServiceOptions::default()
        },
    );
    let client = client(
        Loopback::to(&stand),
        ClientOptions {
            max_elements: 2,
            ..ClientOptions::default()
        },
    );
    for _ in 0..3 {
        let mut seen = 0;
        client
            .for_each(&all_vms(), &mut |_| {
                seen += 1;
                if seen == 5 {
                    ControlFlow::Break(())
                } else {
                    ControlFlow::Continue(())
                }
            })
            .expect("broken off");
        assert_eq!(seen, 5);
    }
}

/// What a transport does with each request, in order; then as the host behind it.
enum Step {
    Fail(ErrorKind),
    Fault(Fault),
    Say(String),
    Pass,
}

struct Script {
    steps: Mutex<VecDeque<Step>>,
    inner: Loopback,
    asked: Arc<AtomicUsize>,
    last: Step,
}

fn fault_answer(fault: &Fault) -> Answer {
    let mut out = wsman::xml::XmlWriter::new();
    out.raw(
        "<s:Envelope xmlns:s='http://www.w3.org/2003/05/soap-envelope' xmlns:w='http://schemas.dmtf.org/wbem/wsman/1/wsman.xsd' \
         xmlns:n='http://schemas.xmlsoap.org/ws/2004/09/enumeration' xmlns:a='http://schemas.xmlsoap.org/ws/2004/08/addressing'><s:Body>",
    );
    fault.write(&mut out, "ja-JP");
    out.raw("</s:Body></s:Envelope>");
    Answer {
        status: 500,
        charset: Some("utf-8".to_owned()),
        body: out.finish().expect("text").into_bytes(),
    }
}

impl Transport for Script {
    fn post(&self, post: &Post<'_>) -> Result<Answer> {
        self.asked.fetch_add(1, Ordering::Relaxed);
        let next = self.steps.lock().expect("steps").pop_front();
        match next.as_ref().unwrap_or(&self.last) {
            Step::Fail(kind) => Err(Error::new(*kind, "the line")),
            Step::Fault(fault) => Ok(fault_answer(fault)),
            Step::Say(text) => Ok(Answer {
                status: 200,
                charset: None,
                body: text.clone().into_bytes(),
            }),
            Step::Pass => self.inner.post(post),
        }
    }

    fn address(&self) -> &str {
        self.inner.address()
    }
}

struct Scripted {
    client: WsmanClient,
    asked: Arc<AtomicUsize>,
    pauses: Arc<AtomicUsize>,
    stand: Stand,
}

fn scripted(steps: Vec<Step>, last: Step, options: ClientOptions) -> Scripted {
    let stand = Stand::new(estate(), ServiceOptions::default());
    let asked = Arc::new(AtomicUsize::new(0));
    let pauses = Arc::new(AtomicUsize::new(0));
    let script = Script {
        steps: Mutex::new(steps.into()),
        inner: Loopback::to(&stand),
        asked: asked.clone(),
        last,
    };
    Scripted {
        client: WsmanClient::new(Arc::new(script), options, sources(&pauses)),
        asked,
        pauses,
        stand,
    }
}

pub fn small_batches() -> ClientOptions {
    ClientOptions {
        max_elements: 5,
        ..ClientOptions::default()
    }
}

pub fn job_path() -> CimPath {
    job().path(&["InstanceID"]).expect("a key")
}

fn busy() -> Fault {
    Fault::new(FaultCode::InternalError).with_wsman_code(wsman_code::CONCURRENT_OPERATIONS_PER_USER)
}

#[test]
fn reads_are_tried_again() {
    let steps = vec![
        Step::Fail(ErrorKind::Io),
        Step::Fault(busy()),
        Step::Fail(ErrorKind::Io),
    ];
    let it = scripted(steps, Step::Pass, ClientOptions::default());
    assert!(it.client.get(&job_path()).is_ok());
    let counts = (
        it.asked.load(Ordering::Relaxed),
        it.pauses.load(Ordering::Relaxed),
    );
    assert_eq!(counts, (4, 3));
    let it = scripted(
        Vec::new(),
        Step::Fail(ErrorKind::Io),
        ClientOptions::default(),
    );
    assert_eq!(
        it.client.get(&job_path()).expect_err("never").kind(),
        ErrorKind::Io
    );
    assert_eq!(it.asked.load(Ordering::Relaxed), 5);
    for kind in [
        ErrorKind::Unauthorized,
        ErrorKind::Refused,
        ErrorKind::TimedOut,
    ] {
        let it = scripted(vec![Step::Fail(kind)], Step::Pass, ClientOptions::default());
        assert_eq!(
            it.client.get(&job_path()).expect_err("refused").kind(),
            kind
        );
    }
}

#[test]
fn methods_are_called_again_only_if_they_did_not_run() {
    let method = |client: &WsmanClient| {
        let service = CimPath::new(v2(), "Msvm_VirtualSystemSnapshotService").with("Name", "x");
        client.invoke(
            &service,
            "CreateSnapshot",
            &[("SnapshotType", 2_u16.into())],
        )
    };
    let it = scripted(
        vec![Step::Fail(ErrorKind::Io)],
        Step::Pass,
        ClientOptions::default(),
    );
    assert_eq!(
        method(&it.client).expect_err("the line broke").kind(),
        ErrorKind::Io
    );
    assert_eq!(it.asked.load(Ordering::Relaxed), 1, "it may have run");
    let steps = vec![Step::Fault(busy()), Step::Fault(busy())];
    let it = scripted(steps, Step::Pass, ClientOptions::default());
    assert!(method(&it.client).is_ok());
    for other in [
        FaultCode::TimedOut,
        FaultCode::Concurrency,
        FaultCode::EncodingLimit,
    ] {
        let it = scripted(
            vec![Step::Fault(Fault::new(other))],
            Step::Pass,
            ClientOptions::default(),
        );
        method(&it.client).expect_err("a fault");
        assert_eq!(it.asked.load(Ordering::Relaxed), 1, "{other:?}");
    }
}

#[test]
fn an_enumeration_that_lapsed_begins_again() {
    let lapsed = || Step::Fault(Fault::new(FaultCode::InvalidEnumerationContext));
    for broken in [lapsed(), Step::Fail(ErrorKind::Io)] {
        let it = scripted(
            vec![Step::Pass, Step::Pass, broken],
            Step::Pass,
            small_batches(),
        );
        assert_eq!(it.client.collect(&all_vms()).expect("whole").len(), 26);
    }
    let it = scripted(
        vec![Step::Pass, Step::Pass, lapsed()],
        Step::Pass,
        small_batches(),
    );
    let mut seen = 0;
    let error = it
        .client
        .for_each(&all_vms(), &mut |_| {
            seen += 1;
            ControlFlow::Continue(())
        })
        .expect_err("some were handed out already");
    assert_eq!(
        error.fault().expect("a fault").code,
        FaultCode::InvalidEnumerationContext
    );
    assert_eq!(seen, 10, "none twice");
    let it = scripted(vec![Step::Pass], lapsed(), small_batches());
    assert!(it.client.collect(&all_vms()).is_err(), "not for ever");
    assert!(it.asked.load(Ordering::Relaxed) < 100);
}

#[test]
fn a_pull_that_timed_out_is_asked_again() {
    let late = || Step::Fault(Fault::new(FaultCode::TimedOut));
    let it = scripted(
        vec![Step::Pass, late(), late(), Step::Pass, late()],
        Step::Pass,
        small_batches(),
    );
    let mut seen = 0;
    it.client
        .for_each(&all_vms(), &mut |_| {
            seen += 1;
            ControlFlow::Continue(())
        })
        .expect("the context was good all the time");
    assert_eq!(seen, 26);
}

#[test]
fn what_does_not_fit_is_asked_for_in_smaller_batches() {
    let large = || Step::Fault(Fault::new(FaultCode::EncodingLimit));
    let it = scripted(vec![large(), large()], Step::Pass, ClientOptions::default());
    assert_eq!(it.client.collect(&all_vms()).expect("whole").len(), 26);
    let it = scripted(Vec::new(), large(), ClientOptions::default());
    assert_eq!(
        it.client.collect(&all_vms()).expect_err("never").kind(),
        ErrorKind::Limit
    );
    assert!(it.asked.load(Ordering::Relaxed) < 20);
}

fn answer(body: &str) -> String {
    format!(
        "<s:Envelope xmlns:s='http://www.w3.org/2003/05/soap-envelope' xmlns:n='http://schemas.xmlsoap.org/ws/2004/09/enumeration' \
         xmlns:w='http://schemas.dmtf.org/wbem/wsman/1/wsman.xsd'><s:Body>{body}</s:Body></s:Envelope>"
    )
}

fn endless(items: &str) -> String {
    answer(&format!(
        "<n:EnumerateResponse><n:EnumerationContext>c</n:EnumerationContext><n:Items>{items}</n:Items></n:EnumerateResponse>"
    ))
}

#[test]
fn a_host_that_never_ends_costs_an_error() {
    let limited = |limits: ClientLimits| ClientOptions {
        limits,
        ..ClientOptions::default()
    };
    let limits = ClientLimits {
        items_max: 1000,
        ..ClientLimits::default()
    };
    let it = scripted(
        Vec::new(),
        Step::Say(endless(&"<X/>".repeat(10))),
        limited(limits),
    );
    assert_eq!(
        it.client.collect(&all_vms()).expect_err("items").kind(),
        ErrorKind::Limit
    );
    assert_eq!(it.asked.load(Ordering::Relaxed), 101);
    let it = scripted(Vec::new(), Step::Say(endless("")), ClientOptions::default());
    assert_eq!(
        it.client.collect(&all_vms()).expect_err("nothing").kind(),
        ErrorKind::Limit
    );
    assert!(it.asked.load(Ordering::Relaxed) < 50);
    let limits = ClientLimits {
        enumeration_max_bytes: 10_000,
        ..ClientLimits::default()
    };
    let it = scripted(Vec::new(), Step::Say(endless("<X/>")), limited(limits));
    assert_eq!(
        it.client.collect(&all_vms()).expect_err("bytes").kind(),
        ErrorKind::Limit
    );

    // Time passes with each look at the clock.
    let stand = Stand::new(estate(), ServiceOptions::default());
    let ticks = AtomicUsize::new(0);
    let mut sources = sources(&Arc::default());
    sources.clock =
        Arc::new(move || Duration::from_secs(ticks.fetch_add(100, Ordering::Relaxed) as u64));
    let script = Script {
        steps: Mutex::default(),
        inner: Loopback::to(&stand),
        asked: Arc::default(),
        last: Step::Say(endless("<X/>")),
    };
    let client = WsmanClient::new(Arc::new(script), ClientOptions::default(), sources);
    assert_eq!(
        client.collect(&all_vms()).expect_err("time").kind(),
        ErrorKind::Limit
    );
}

#[test]
fn an_enumeration_that_cannot_go_on_is_an_error() {
    let body = answer("<n:EnumerateResponse><n:Items><X/></n:Items></n:EnumerateResponse>");
    let it = scripted(vec![Step::Say(body)], Step::Pass, ClientOptions::default());
    assert_eq!(
        it.client
            .collect(&all_vms())
            .expect_err("no context")
            .kind(),
        ErrorKind::Malformed
    );
    // One that does not repeat its context keeps it.
    let kept = answer("<n:PullResponse><n:Items><X/></n:Items></n:PullResponse>");
    let end = answer("<n:PullResponse><n:EndOfSequence/></n:PullResponse>");
    let steps = vec![Step::Say(endless("<X/>")), Step::Say(kept), Step::Say(end)];
    let it = scripted(steps, Step::Pass, ClientOptions::default());
    assert_eq!(it.client.collect(&all_vms()).expect("whole").len(), 2);
}

#[test]
fn cancelling_ends_the_waiting() {
    let cancel = CancelToken::new();
    cancel.cancel();
    let it = scripted(
        Vec::new(),
        Step::Fail(ErrorKind::Io),
        ClientOptions::default(),
    );
    let error = it
        .client
        .with_cancel(cancel)
        .collect(&all_vms())
        .expect_err("told to stop");
    assert_eq!(error.kind(), ErrorKind::Cancelled);
    assert_eq!(it.asked.load(Ordering::Relaxed), 0);
    let cancel = CancelToken::new();
    let client = it.client.with_cancel(cancel.clone());
    let mut seen = 0;
    let passing = WsmanClient::new(
        Arc::new(Loopback::to(&it.stand)),
        small_batches(),
        sources(&Arc::default()),
    )
    .with_cancel(cancel.clone());
    let error = passing
        .for_each(&all_vms(), &mut |_| {
            seen += 1;
            cancel.cancel();
            ControlFlow::Continue(())
        })
        .expect_err("told to stop");
    assert_eq!((error.kind(), seen), (ErrorKind::Cancelled, 5));
    assert!(client.get(&job_path()).is_err());
    // A watch is called once, at once if it is late, and not after it is dropped.
    let called = Arc::new(AtomicUsize::new(0));
    let token = CancelToken::new();
    let count = |called: &Arc<AtomicUsize>| {
        let called = called.clone();
        move || {
            called.fetch_add(1, Ordering::Relaxed);
        }
    };
    let kept = token.watch(count(&called));
    drop(token.watch(count(&called)));
    assert!(!token.wait(Duration::from_millis(1)));
    token.cancel();
    token.cancel();
    assert!(token.wait(Duration::from_secs(60)), "at once");
    let late = token.watch(count(&called));
    assert_eq!(called.load(Ordering::Relaxed), 2);
    drop((kept, late));
}
