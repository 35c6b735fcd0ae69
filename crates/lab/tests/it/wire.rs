//! The estate on sockets: our own client, and clients that are not ours.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use lab::estate::{
    DataMode, DiskSpec, Estate, EstateOptions, HostName, Random, VmGeneration, VmSpec, VolumeKind,
    WindowsGeneration, WindowsPath,
};
use lab::provider::{Pace, Role, SharedEstate};
use lab::wire::{LabAccount, LabWire, WireOptions};
use tempfile::TempDir;
use wsman::auth::Secret;
use wsman::cim::Namespace;
use wsman::client::{CimClient, ClientOptions, ClientSources, WsmanClient};
use wsman::message::FaultCode;
use wsman::server::ServiceSources;
use wsman::transport::{
    Credentials, Endpoint, HttpTransport, HttpTransportOptions, Line, TransportRuntime, WireFault,
};
use wsman::{CancelToken, ErrorKind};

const PASSWORD: &str = "Passw0rd!";

/// Two hosts, three VMs without data on the first.
struct Scene {
    wire: LabWire,
    estate: Arc<SharedEstate>,
    first: HostName,
    _folder: TempDir,
}

fn sources() -> ServiceSources {
    let random = Mutex::new(Random::seeded(5));
    let ticks = AtomicU64::new(0);
    ServiceSources {
        clock: Arc::new(move || Duration::from_millis(ticks.fetch_add(1, Ordering::Relaxed))),
        ids: Arc::new(move || random.lock().expect("the stream").bytes16()),
    }
}

fn scene() -> Scene {
    let folder = tempfile::tempdir().expect("a folder");
    let mut estate = Estate::new(EstateOptions {
        data: DataMode::Lazy,
        ..EstateOptions::seeded(11)
    });
    let first = HostName::new("HV01");
    for name in [first.clone(), HostName::new("HV02")] {
        estate
            .add_host(&name, WindowsGeneration::Server2022, "example.net")
            .expect("a host");
        let kind = VolumeKind::Local {
            host: name.clone(),
            letter: 'D',
        };
        estate
            .add_volume(kind, folder.path().join(name.as_str()), 1 << 40)
            .expect("a volume");
    }
    let two = VmGeneration::Two;
    for name in ["vm01", "vm02", "vm03"] {
        let at = WindowsPath::parse(&format!("D:\\vm\\{name}")).expect("a path");
        let spec = VmSpec::new(name, two, at).with_disk(DiskSpec::new(
            two,
            0,
            &format!("{name}.vhdx"),
            1 << 25,
        ));
        estate.add_vm(&first, spec).expect("a VM");
    }
    let estate = SharedEstate::new(estate, Pace::PerRequest(Duration::from_millis(500)));
    let password = Secret::new(PASSWORD);
    let options =
        WireOptions::new("Administrator", &password, sources()).with_account(LabAccount {
            domain: Some("EXAMPLE".to_owned()),
            user: "reader".to_owned(),
            password,
            role: Role::RemoteUser,
        });
    let wire = LabWire::start(&estate, &options).expect("a wire");
    Scene {
        wire,
        estate,
        first,
        _folder: folder,
    }
}

impl Scene {
    fn address(&self) -> SocketAddr {
        self.wire.address(&self.first).expect("an address")
    }

    fn client(&self, user: &str, password: &str) -> WsmanClient {
        let endpoint = Endpoint {
            host: self.address().ip().to_string(),
            port: self.address().port(),
            line: Line::Plain,
        };
        let credentials = Credentials::ntlm(user, &Secret::new(password));
        let options = HttpTransportOptions::new(endpoint, credentials);
        let runtime = TransportRuntime::new().expect("threads");
        let transport = HttpTransport::new(options, runtime).expect("a transport");
        let random = Mutex::new(Random::seeded(6));
        let sources = ClientSources {
            pause: Arc::new(|_: Duration, _: &CancelToken| false),
            ..ClientSources::system(move || random.lock().expect("the stream").bytes16())
        };
        WsmanClient::new(Arc::new(transport), ClientOptions::default(), sources)
    }
}

fn v2() -> Namespace {
    Namespace::new("root/virtualization/v2")
}

#[test]
fn an_administrator_sees_the_vms_and_others_are_refused() {
    let scene = scene();
    let class = "Msvm_ComputerSystem".into();
    let administrator = scene.client("HV01\\Administrator", PASSWORD);
    assert_eq!(
        administrator
            .enumerate(&v2(), &class)
            .expect("systems")
            .len(),
        4
    );
    let identity = administrator.identify().expect("an identity");
    assert!(
        identity.product_version.contains("10.0.20348"),
        "{identity:?}"
    );
    let reader = scene.client("EXAMPLE\\reader", PASSWORD);
    let error = reader.enumerate(&v2(), &class).expect_err("no rights");
    assert_eq!(error.kind(), ErrorKind::AccessDenied);
    let stranger = scene.client("HV01\\Administrator", "wrong");
    let error = stranger
        .enumerate(&v2(), &class)
        .expect_err("a wrong password");
    assert_eq!(error.kind(), ErrorKind::Unauthorized);
}

#[test]
fn a_login_that_expires_is_made_anew_and_a_broken_line_is_tried_again() {
    let scene = scene();
    let client = scene.client("HV01\\Administrator", PASSWORD);
    let plan = scene.wire.plan(&scene.first).expect("a plan").clone();
    plan.after(1, WireFault::Unauthorized);
    plan.after(1, WireFault::CloseAfter);
    for _ in 0..4 {
        let rows = client
            .enumerate(&v2(), &"Msvm_ComputerSystem".into())
            .expect("systems");
        assert_eq!(rows.len(), 4);
    }
    assert_eq!(plan.left(), 0);
}

#[test]
fn a_wire_out_of_sorts_is_told_by_its_kind_and_what_was_cut_is_asked_again() {
    let scene = scene();
    let client = scene.client("HV01\\Administrator", PASSWORD);
    let plan = scene.wire.plan(&scene.first).expect("a plan").clone();
    let ask = || client.enumerate(&v2(), &"Msvm_ComputerSystem".into());
    plan.after(1, WireFault::CloseInside);
    plan.after(1, WireFault::Slow(Duration::from_millis(20)));
    for _ in 0..3 {
        assert_eq!(ask().expect("systems").len(), 4);
    }
    assert_eq!(plan.left(), 0);
    plan.after(0, WireFault::Refused(FaultCode::AccessDenied));
    let error = ask().expect_err("a fault that was asked for");
    assert_eq!(error.kind(), ErrorKind::AccessDenied);
    let fault = error.fault().expect("a fault");
    assert!(fault.reason.contains("asked for"), "{fault:?}");
    plan.after(0, WireFault::Refused(FaultCode::InternalError));
    assert_eq!(ask().expect_err("a fault").kind(), ErrorKind::Fault);
    plan.repeat(1, 2, WireFault::Unauthorized);
    assert_eq!(plan.left(), 2);
    assert_eq!(plan.clear(), 2);
    assert_eq!(ask().expect("systems").len(), 4);
}

#[test]
fn a_host_that_is_down_answers_nothing() {
    let scene = scene();
    let client = scene.client("HV01\\Administrator", PASSWORD);
    assert!(
        client
            .enumerate(&v2(), &"Msvm_ComputerSystem".into())
            .is_ok()
    );
    scene
        .estate
        .write(|it| it.crash_host(&scene.first))
        .expect("a crash");
    let error = client
        .enumerate(&v2(), &"Msvm_ComputerSystem".into())
        .expect_err("the host is down");
    assert_eq!(error.kind(), ErrorKind::Io);
}

/// A Python that has these modules: `HIKAE_PYTHON`, or the one that `cargo xtask test` sets up.
fn python(modules: &str) -> Option<PathBuf> {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let python = std::env::var_os("HIKAE_PYTHON").map_or_else(
        || workspace.join("target/python/bin/python3"),
        PathBuf::from,
    );
    let works = Command::new(&python)
        .args(["-c", &format!("import {modules}")])
        .output()
        .is_ok_and(|output| output.status.success());
    if works {
        return Some(python);
    }
    let lack = format!("{} lacks one of {modules}", python.display());
    assert!(std::env::var_os("CI").is_none(), "{lack}");
    println!("SKIP: {lack}");
    None
}

/// What a script says of the first host's VM `vm01`.
fn say(python: &Path, script: &str, scene: &Scene) -> String {
    let script = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/clients")
        .join(script);
    let output = Command::new(python)
        .arg(&script)
        .arg(scene.address().port().to_string())
        .args(["HV01\\Administrator", PASSWORD, "vm01"])
        .output()
        .expect("Python starts");
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{error}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn pypsrp_takes_a_vm_through_a_backup_over_sealed_ntlm() {
    let Some(python) = python("pypsrp") else {
        return;
    };
    let said = say(&python, "pypsrp_backup.py", &scene());
    let expected = "systems True True\norder True nil True\ndate True\nstart 7\ncheckpoint 7\n\
        kind Microsoft:Hyper-V:Snapshot:Recovery\nfiles True True\nconverted 7\npoints 1 True\n\
        fault: half a key 2150858842 HV01\nfault: gone 2150858752 HV01\nfault: bad query 2150858778 HV01\n\
        fault: no such method 2150858771 HV01\nfault: wrapped reference 2150858817 HV01\n";
    assert_eq!(said, expected);
}

#[test]
fn the_forms_of_clients_in_use_are_understood() {
    let Some(python) = python("winrm") else {
        return;
    };
    let said = say(&python, "pywinrm_forms.py", &scene());
    let expected = "openwsman 3 items in 3 pulls\nlower case 1\nfragment True ['BIOSGUID', 'ElementName']\n\
        no namespace fault n:CannotProcessFilter\nsummaries 3\nreference ['CreationClassName', 'Name']\nstate 4096\n\
        small fault w:EncodingLimit\nunknown header fault s:MustUnderstand\nquery on a class fault a:DestinationUnreachable\n";
    assert_eq!(said, expected);
}
