//! The socket of a lab: what it understands, what it refuses, what it lets strike.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use lab::ErrorKind;
use lab::control::{
    ControlClient, ControlDesk, ControlServer, DeskParts, FaultRequest, FaultsReport, InjectReport,
    Request, RunReport, StatusReport, ask, fault_kinds,
};
use lab::provider::{Pace, SharedEstate};
use lab::scenario::Scenario;
use lab::wire::WirePlan;
use tempfile::TempDir;

const PATIENCE: Duration = Duration::from_secs(60);

struct Scene {
    socket: PathBuf,
    estate: Arc<SharedEstate>,
    server: ControlServer,
    _folder: TempDir,
}

fn scene() -> Scene {
    let folder = tempfile::tempdir().expect("a folder");
    let scenario = Scenario::quickstart().expect("a scenario");
    let mut estate = scenario
        .build(&folder.path().join("estate"))
        .expect("an estate");
    estate.advance(Duration::from_secs(30)).expect("time");
    let estate = SharedEstate::new(estate, Pace::Manual);
    let hosts: Vec<_> = estate.read(|it| it.hosts().map(|host| host.name.clone()).collect());
    let plans = hosts.iter().map(|host| {
        let plan = WirePlan::new(Arc::clone(&estate), host.clone());
        (host.clone(), Arc::new(plan))
    });
    let desk = ControlDesk::new(DeskParts {
        estate: Arc::clone(&estate),
        addresses: BTreeMap::new(),
        plans: plans.collect(),
        smb_ports: BTreeMap::new(),
        folder: folder.path().to_owned(),
        folder_stays: true,
        speed: 1,
    });
    let socket = folder.path().join("control.sock");
    let server = ControlServer::start(&socket, desk).expect("a socket");
    Scene {
        socket,
        estate,
        server,
        _folder: folder,
    }
}

impl Scene {
    fn inject(&self, fault: FaultRequest) -> lab::Result<InjectReport> {
        ask(&self.socket, &Request::Inject(fault), PATIENCE)
    }
}

#[test]
fn only_the_owner_may_ask_and_words_that_are_not_known_are_refused() {
    let scene = scene();
    let mode = std::fs::metadata(&scene.socket)
        .expect("a socket")
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o600);
    let mut stream = UnixStream::connect(&scene.socket).expect("a connection");
    let mut answers = BufReader::new(stream.try_clone().expect("a stream"));
    for line in [
        "hello",
        "{}",
        r#"{"ask":"everything"}"#,
        r#"{"ask":"status","more":1}"#,
        r#"{"ask":"run","duration_ms":-1}"#,
        r#"{"ask":"guest-write","vm":"sql","bytes":0}"#,
        r#"{"ask":"migrate","vm":"sql","node":"NODE2","speed":1}"#,
    ] {
        writeln!(stream, "{line}").expect("written");
        let mut answer = String::new();
        answers.read_line(&mut answer).expect("an answer");
        assert!(
            answer.contains(r#""refused""#) && answer.contains("invalid"),
            "{line}: {answer}"
        );
    }
    // The same connection goes on; what never ends is cut off.
    writeln!(stream, r#"{{"ask":"faults"}}"#).expect("written");
    let mut answer = String::new();
    answers.read_line(&mut answer).expect("an answer");
    assert!(answer.starts_with(r#"{"done""#), "{answer}");
    let long = vec![b' '; 1 << 20];
    let _cut = stream.write_all(&long);
    let mut rest = String::new();
    let read = answers.read_line(&mut rest);
    assert!(!matches!(read, Ok(read) if read > 0), "{rest}");
}

#[test]
fn more_connections_than_are_answered_do_not_stop_those_that_come_later() {
    let scene = scene();
    let idle: Vec<ControlClient> = (0..40)
        .filter_map(|_| ControlClient::connect(&scene.socket).ok())
        .collect();
    drop(idle);
    let mut last = None;
    for _ in 0..100 {
        let status = ask::<StatusReport>(&scene.socket, &Request::Status {}, PATIENCE);
        match status {
            Ok(status) => {
                last = Some(status);
                break;
            }
            // The idle ones are still being let go.
            Err(_) => std::thread::yield_now(),
        }
    }
    assert_eq!(last.expect("a status").vms.len(), 4);
}

#[test]
fn a_socket_is_gone_with_its_server() {
    let scene = scene();
    drop(scene.server);
    assert!(!scene.socket.exists());
    let error = ControlClient::connect(&scene.socket).err().expect("nobody");
    assert_eq!(error.kind(), ErrorKind::NotFound);
}

#[test]
fn every_kind_of_fault_takes_what_it_says_and_nothing_else() {
    let scene = scene();
    for kind in fault_kinds() {
        for option in [
            "vm", "node", "volume", "after", "in", "times", "lasts", "leave", "fault",
        ] {
            let mut fault = FaultRequest {
                kind: kind.kind.clone(),
                ..FaultRequest::default()
            };
            match option {
                "vm" => fault.vm = Some("nobody".into()),
                "node" => fault.node = Some("nobody".into()),
                "volume" => fault.volume = Some("Q:".into()),
                "after" => fault.after = Some(1),
                "in" => fault.in_ms = Some(1),
                "times" => fault.times = Some(u32::MAX),
                "lasts" => fault.lasts_ms = Some(1),
                "leave" => fault.leave_bytes = Some(1),
                _ => fault.fault = Some("AccessDenied".into()),
            }
            let takes = kind.takes.iter().any(|it| it == option);
            let means_nothing = scene
                .inject(fault)
                .err()
                .is_some_and(|error| error.to_string().contains("means nothing"));
            assert_eq!(means_nothing, !takes, "{} --{option}", kind.kind);
        }
    }
}

#[test]
fn armed_faults_are_shown_and_taken_back_and_those_that_struck_are_told() {
    let scene = scene();
    let armed = |kind: &str| FaultRequest {
        kind: kind.into(),
        ..FaultRequest::default()
    };
    scene
        .inject(FaultRequest {
            vm: Some("SQL".into()),
            after: Some(2),
            ..armed("merge-fails")
        })
        .expect("armed");
    let report = scene
        .inject(FaultRequest {
            node: Some("node2".into()),
            times: Some(3),
            ..armed("wire-slow")
        })
        .expect("armed");
    let shown: Vec<_> = report
        .armed
        .iter()
        .map(|it| {
            (
                it.kind.as_str(),
                it.vm.as_deref(),
                it.node.as_deref(),
                it.times,
            )
        })
        .collect();
    let expected = [
        ("merge-fails", Some("sql"), None, 1),
        ("wire-slow", None, Some("NODE2"), 3),
    ];
    assert_eq!(shown, expected);
    assert_eq!(report.armed[0].when, "after 2");
    let _cleared: serde_json::Value =
        ask(&scene.socket, &Request::Clear {}, PATIENCE).expect("cleared");
    let report: FaultsReport = ask(&scene.socket, &Request::Faults {}, PATIENCE).expect("faults");
    assert!(report.armed.is_empty() && report.struck.is_empty());

    // A crash at a moment happens then, whoever looks.
    scene
        .inject(FaultRequest {
            node: Some("ALONE".into()),
            in_ms: Some(60_000),
            ..armed("node-crashes")
        })
        .expect("scheduled");
    let run = |duration_ms| {
        ask::<RunReport>(&scene.socket, &Request::Run { duration_ms }, PATIENCE).expect("time")
    };
    let is_up = || {
        scene
            .estate
            .read(|it| it.live_host(&"ALONE".into()).is_ok())
    };
    run(59_000);
    assert!(is_up());
    let report = run(2_000);
    assert!(!is_up());
    assert_ne!(report.from, report.to);
}
