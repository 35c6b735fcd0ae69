//! `hikae lab up`: a Hyper-V estate in software, its hosts listening on this machine.
//!
//! ```text
//!   scenario ─► Estate (disks: real files in a folder) ─┬► LabWire: a port for each host          ready: printed, then until
//!                   ▲ its clock follows ours,           ├► SmbServers: a port for each host       Ctrl-C or `lab down`
//!                     faster if wished                  └► ControlServer: control.sock in the folder
//! ```
//!
//! **Invariants.** Loopback only. The password is made anew each time and lies in a file that only its owner may read. A
//! temporary folder is removed at the end, a given one is not; what listens is ended before.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use engine::Cancellation;
use lab::control::{ControlDesk, ControlServer, DeskParts, SOCKET};
use lab::estate::HostName;
use lab::provider::{Pace, SharedEstate};
use lab::scenario::Scenario;
use lab::smb::SmbServers;
use lab::wire::{LabWire, WireOptions};
use serde::Serialize;
use wsman::auth::Secret;
use wsman::server::ServiceSources;

use super::place::Noted;
use crate::args::LabUpArgs;
use crate::exit::{Exit, not_possible};
use crate::host::connect;
use crate::keys::write_secret;
use crate::output::{Output, Table};
use crate::progress::cancellation;

/// The account that every host of the lab knows.
const ACCOUNT: &str = "labadmin";
/// How long machines are given to start before anybody is let in, on the estate's clock.
const START: Duration = Duration::from_secs(30);
/// How often it is looked whether to end.
const LOOK: Duration = Duration::from_millis(100);
/// How often the estate's clock is moved when nobody asks anything.
const TICK: Duration = Duration::from_secs(1);
/// How long requests under way may take at the end.
const LAST: Duration = Duration::from_secs(5);
/// Longer scenarios are none.
const SCENARIO_MAX_BYTES: u64 = 64 << 20;

/// A folder of a host and the one of this machine that stands for it.
#[derive(Serialize)]
struct FolderReport {
    windows: String,
    local: PathBuf,
}

#[derive(Serialize)]
struct NodeReport {
    name: String,
    address: String,
    windows: &'static str,
    cluster: Option<String>,
    /// Where its files lie here, as an agent on it would find them.
    files: Vec<FolderReport>,
    /// Where they are offered over SMB.
    smb_port: Option<u16>,
    /// The command that writes it down.
    add: String,
}

#[derive(Serialize)]
struct VmReport {
    name: String,
    node: String,
    id: String,
}

#[derive(Serialize)]
struct Ready {
    /// Nothing here is a real host.
    simulated: bool,
    folder: PathBuf,
    user: &'static str,
    password_file: PathBuf,
    /// Where `hikae lab status` and its like ask.
    control: PathBuf,
    nodes: Vec<NodeReport>,
    vms: Vec<VmReport>,
}

/// Where the estate lies; taken away at the end if it was made for this run alone.
struct Folder {
    path: PathBuf,
    is_temporary: bool,
}

impl Folder {
    fn make(given: Option<&Path>) -> anyhow::Result<Self> {
        let (path, is_temporary) = match given {
            Some(path) => (path.to_owned(), false),
            None => {
                let name = format!("hikae-lab-{}", std::process::id());
                (std::env::temp_dir().join(name), true)
            }
        };
        let mut making = fs::DirBuilder::new();
        // One of our own must be nobody else's.
        making.recursive(!is_temporary).mode(0o700);
        making
            .create(&path)
            .with_context(|| format!("making {}", path.display()))?;
        let mut entries =
            fs::read_dir(&path).with_context(|| format!("looking into {}", path.display()))?;
        if entries.next().is_some() {
            let error = engine::Error::new(
                engine::ErrorKind::AlreadyExists,
                format!("{} is not empty", path.display()),
            );
            return Err(anyhow::Error::new(
                error.advised("Give an empty or a new folder with --folder"),
            ));
        }
        Ok(Self {
            path: path
                .canonicalize()
                .with_context(|| format!("looking for {}", path.display()))?,
            is_temporary,
        })
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if self.is_temporary
            && let Err(error) = fs::remove_dir_all(&self.path)
        {
            eprintln!("warning: {} is left: {error}", self.path.display());
        }
    }
}

fn scenario(arguments: &LabUpArgs) -> anyhow::Result<Scenario> {
    let Some(path) = &arguments.scenario else {
        return Ok(Scenario::quickstart()?);
    };
    let place = || format!("reading {}", path.display());
    let size_bytes = fs::metadata(path).with_context(place)?.len();
    if size_bytes > SCENARIO_MAX_BYTES {
        return Err(not_possible(format!(
            "{}: {size_bytes} bytes are no scenario",
            path.display()
        )));
    }
    let text = fs::read_to_string(path).with_context(place)?;
    Scenario::parse(&text).map_err(|error| not_possible(format!("{}: {error}", path.display())))
}

/// Runs the verb.
pub fn run(arguments: &LabUpArgs, output: &Output) -> anyhow::Result<Exit> {
    let scenario = scenario(arguments)?;
    let cancel = cancellation();
    let folder = Folder::make(arguments.folder.as_deref())?;
    let mut estate = scenario
        .build(&folder.path.join("estate"))
        .context("building the estate")?;
    estate.advance(START).context("starting machines")?;
    let begun = Instant::now();
    let clock: Arc<dyn Fn() -> Duration + Send + Sync> = Arc::new(move || begun.elapsed());
    let speed = arguments.speed.get();
    let pace = Pace::Bound {
        clock: Arc::clone(&clock),
        factor: speed,
    };
    let estate = SharedEstate::new(estate, pace);
    let ids = connect::ids()?;
    let password: String = ids().iter().map(|byte| format!("{byte:02x}")).collect();
    let password_file = folder.path.join("password");
    write_secret(&password_file, &format!("{password}\n"))?;
    let password = Secret::new(password);
    let sources = ServiceSources { clock, ids };
    let wire = LabWire::start(&estate, &WireOptions::new(ACCOUNT, &password, sources))?;
    let mut smb = arguments
        .smb
        .then(|| SmbServers::start(&estate, &folder.path.join("smb"), ACCOUNT, &password))
        .transpose()
        .map_err(no_smb)?;
    let smb_ports = smb.as_ref().map(SmbServers::ports).unwrap_or_default();
    let desk = ControlDesk::new(DeskParts {
        estate: Arc::clone(&estate),
        addresses: wire
            .addresses()
            .map(|(name, it)| (name.clone(), it))
            .collect(),
        plans: wire
            .plans()
            .map(|(name, it)| (name.clone(), Arc::clone(it)))
            .collect(),
        smb_ports: smb_ports.clone(),
        folder: folder.path.clone(),
        folder_stays: !folder.is_temporary,
        speed,
    });
    let control = ControlServer::start(&folder.path.join(SOCKET), Arc::clone(&desk))?;
    let noted = Noted::write(&folder.path)?;
    let ready = ready(&estate, &wire, &smb_ports, &folder.path, password_file)?;
    output.report(&ready, text)?;
    until_it_ends(&cancel, &desk, &estate, smb.as_mut());
    drop(noted);
    drop(control);
    drop(smb);
    wire.stop(LAST);
    if !folder.is_temporary {
        output.note(&format!(
            "The estate's files stay in {}",
            folder.path.display()
        ));
    }
    Ok(Exit::Done)
}

/// Moves the estate's clock and follows its hosts until Ctrl-C, or until somebody asks for the end.
fn until_it_ends(
    cancel: &Cancellation,
    desk: &ControlDesk,
    estate: &SharedEstate,
    mut smb: Option<&mut SmbServers>,
) {
    let mut complaints = Complaints::default();
    let mut ticked = Instant::now();
    while !cancel.is_cancelled() && !desk.is_ending() {
        std::thread::sleep(LOOK);
        if let Some(smb) = smb.as_deref_mut() {
            complaints.note("files over SMB", smb.follow(estate));
        }
        if ticked.elapsed() >= TICK {
            ticked = Instant::now();
            complaints.note("the estate's clock", estate.on_request());
            desk.remember_guests();
        }
    }
}

fn no_smb(error: lab::Error) -> anyhow::Error {
    if error.kind() != lab::ErrorKind::Invalid {
        return anyhow::Error::new(error);
    }
    let error = engine::Error::new(engine::ErrorKind::Invalid, error.to_string());
    anyhow::Error::new(error.advised("Install what is missing, or leave --smb out"))
}

/// What went wrong beside, said ever more rarely.
#[derive(Default)]
struct Complaints {
    said: BTreeMap<String, u64>,
}

impl Complaints {
    fn note(&mut self, what: &str, outcome: lab::Result<()>) {
        if let Err(error) = outcome {
            let error = format!("{what}: {:#}", anyhow::Error::new(error));
            let count = self.said.entry(error.clone()).or_default();
            *count = count.saturating_add(1);
            if count.is_power_of_two() {
                eprintln!("warning: {error}");
            }
        }
    }
}

fn ready(
    estate: &SharedEstate,
    wire: &LabWire,
    smb_ports: &BTreeMap<HostName, u16>,
    folder: &Path,
    password_file: PathBuf,
) -> anyhow::Result<Ready> {
    estate.read(|estate| {
        let mut nodes = Vec::new();
        let mut vms = Vec::new();
        for host in estate.hosts() {
            let Some(address) = wire.address(&host.name) else {
                continue;
            };
            let address = format!("http://{address}");
            let files = estate.folders_of(&host.name)?.into_iter();
            let mut node = NodeReport {
                name: host.name.to_string(),
                add: String::new(),
                address,
                windows: host.windows.name(),
                cluster: host.cluster.as_ref().map(ToString::to_string),
                files: files
                    .map(|it| FolderReport {
                        windows: it.windows,
                        local: it.local,
                    })
                    .collect(),
                smb_port: smb_ports.get(&host.name).copied(),
            };
            node.add = add_command(&node, &password_file);
            nodes.push(node);
            vms.extend(estate.vms_on(&host.name).map(|vm| VmReport {
                name: vm.settings.name.clone(),
                node: host.name.to_string(),
                id: vm.id.to_string(),
            }));
        }
        Ok(Ready {
            simulated: true,
            folder: folder.to_owned(),
            user: ACCOUNT,
            password_file,
            control: folder.join(SOCKET),
            nodes,
            vms,
        })
    })
}

/// The command that writes a node down: with its files over SMB where they are offered so, else as an agent on it finds them.
fn add_command(node: &NodeReport, password_file: &Path) -> String {
    let mut command = format!(
        "hikae host add {} --address {} --user {ACCOUNT} --password-file {}",
        node.name,
        node.address,
        shell_word(&password_file.display().to_string())
    );
    match node.smb_port {
        Some(port) => {
            command.push_str(&format!(" --files-smb --files-smb-port {port}"));
            let mut servers: Vec<&str> = node
                .files
                .iter()
                .filter_map(|it| it.windows.strip_prefix("\\\\")?.split('\\').next())
                .collect();
            servers.dedup();
            for server in servers {
                command.push_str(&format!(
                    " --files-smb-server {}",
                    shell_word(&format!("{server}=127.0.0.1:{port}"))
                ));
            }
        }
        None => {
            for folder in &node.files {
                let mapping = format!("{}={}", folder.windows, folder.local.display());
                command.push_str(&format!(" --files-at {}", shell_word(&mapping)));
            }
        }
    }
    command
}

/// A text as a shell takes it for one word.
fn shell_word(text: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "/._-+".contains(c);
    if text.chars().all(is_plain) {
        text.to_owned()
    } else {
        format!("'{}'", text.replace('\'', "'\\''"))
    }
}

fn text(ready: &Ready) -> String {
    const SHOWN: usize = 20;
    let mut text =
        "A LAB: simulated Hyper-V hosts on this machine, until Ctrl-C or `hikae lab down`. No real host is touched.\n\n"
            .to_owned();
    let mut nodes = Table::new(&["node", "address", "windows", "cluster"], &[]);
    for node in &ready.nodes {
        nodes.row(vec![
            node.name.clone(),
            node.address.clone(),
            node.windows.to_owned(),
            node.cluster.clone().unwrap_or_default(),
        ]);
    }
    text.push_str(&nodes.to_string());
    let mut vms = Table::new(&["machine", "node"], &[]);
    for vm in ready.vms.iter().take(SHOWN) {
        vms.row(vec![vm.name.clone(), vm.node.clone()]);
    }
    text.push_str(&format!("\n{vms}"));
    let more = ready.vms.len().saturating_sub(SHOWN);
    if more > 0 {
        text.push_str(&format!("… and {more} more\n"));
    }
    text.push_str(&format!(
        "\naccount {}, password in {}\n\nTry it, in another terminal:\n",
        ready.user,
        ready.password_file.display()
    ));
    for node in ready.nodes.iter().take(SHOWN) {
        text.push_str(&format!("  {}\n", node.add));
    }
    text.push_str("  hikae vm list\n  hikae vm coverage\n  hikae vm eligibility\n  hikae lab status\n  hikae lab fault list\n");
    text
}
