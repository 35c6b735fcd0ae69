//! `hikae lab up`: a Hyper-V estate in software, its hosts listening on this machine.
//!
//! ```text
//!   scenario ─► Estate (disks: real files in a folder) ─► LabWire: a port for each host ─► ready: printed ─► until Ctrl-C
//!                                     ▲ its clock follows ours, faster if wished
//! ```
//!
//! **Invariants.** Loopback only. The password is made anew each time and lies in a file that only its owner may read. A
//! temporary folder is removed at the end, a given one is not.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use lab::provider::{Pace, SharedEstate};
use lab::scenario::Scenario;
use lab::wire::{LabWire, WireOptions};
use serde::Serialize;
use wsman::auth::Secret;
use wsman::server::ServiceSources;

use crate::args::{LabUpArgs, LabVerb};
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

/// Runs one verb.
pub fn run(verb: &LabVerb, output: &Output) -> anyhow::Result<Exit> {
    match verb {
        LabVerb::Up(arguments) => up(arguments, output),
    }
}

#[derive(Serialize)]
struct NodeReport {
    name: String,
    address: String,
    windows: &'static str,
    cluster: Option<String>,
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
        fs::create_dir_all(&path).with_context(|| format!("making {}", path.display()))?;
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

fn up(arguments: &LabUpArgs, output: &Output) -> anyhow::Result<Exit> {
    let scenario = scenario(arguments)?;
    let cancel = cancellation();
    let folder = Folder::make(arguments.folder.as_deref())?;
    let mut estate = scenario
        .build(&folder.path.join("estate"))
        .context("building the estate")?;
    estate.advance(START).context("starting machines")?;
    let begun = Instant::now();
    let clock: Arc<dyn Fn() -> Duration + Send + Sync> = Arc::new(move || begun.elapsed());
    let estate = SharedEstate::new(
        estate,
        Pace::Bound {
            clock: Arc::clone(&clock),
            factor: arguments.speed.get(),
        },
    );
    let ids = connect::ids()?;
    let password: String = ids().iter().map(|byte| format!("{byte:02x}")).collect();
    let password_file = folder.path.join("password");
    write_secret(&password_file, &format!("{password}\n"))?;
    let sources = ServiceSources { clock, ids };
    let options = WireOptions::new(ACCOUNT, &Secret::new(password), sources);
    let wire = LabWire::start(&estate, &options)?;
    let ready = ready(&estate, &wire, &folder.path, password_file);
    output.report(&ready, text)?;
    let mut complaints: BTreeMap<String, u64> = BTreeMap::new();
    let mut ticked = Instant::now();
    while !cancel.is_cancelled() {
        std::thread::sleep(LOOK);
        if ticked.elapsed() < TICK {
            continue;
        }
        ticked = Instant::now();
        if let Err(error) = estate.on_request() {
            let error = format!("{:#}", anyhow::Error::new(error));
            let count = complaints.entry(error.clone()).or_default();
            *count = count.saturating_add(1);
            if count.is_power_of_two() {
                eprintln!("warning: the estate's clock: {error}");
            }
        }
    }
    wire.stop(LAST);
    if !folder.is_temporary {
        output.note(&format!(
            "The estate's files stay in {}",
            folder.path.display()
        ));
    }
    Ok(Exit::Done)
}

fn ready(estate: &SharedEstate, wire: &LabWire, folder: &Path, password_file: PathBuf) -> Ready {
    estate.read(|estate| {
        let mut nodes = Vec::new();
        let mut vms = Vec::new();
        for host in estate.hosts() {
            let Some(address) = wire.address(&host.name) else {
                continue;
            };
            let address = format!("http://{address}");
            nodes.push(NodeReport {
                name: host.name.to_string(),
                add: format!(
                    "hikae host add {} --address {address} --user {ACCOUNT} --password-file {}",
                    host.name,
                    shell_word(password_file.as_path())
                ),
                address,
                windows: host.windows.name(),
                cluster: host.cluster.as_ref().map(ToString::to_string),
            });
            vms.extend(estate.vms_on(&host.name).map(|vm| VmReport {
                name: vm.settings.name.clone(),
                node: host.name.to_string(),
                id: vm.id.to_string(),
            }));
        }
        Ready {
            simulated: true,
            folder: folder.to_owned(),
            user: ACCOUNT,
            password_file,
            nodes,
            vms,
        }
    })
}

/// A path as a shell takes it for one word.
fn shell_word(path: &Path) -> String {
    let text = path.display().to_string();
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "/._-+".contains(c);
    if text.chars().all(is_plain) {
        text
    } else {
        format!("'{}'", text.replace('\'', "'\\''"))
    }
}

fn text(ready: &Ready) -> String {
    const SHOWN: usize = 20;
    let mut text =
        "A LAB: simulated Hyper-V hosts on this machine, until Ctrl-C. No real host is touched.\n\n"
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
    text.push_str("  hikae vm list\n  hikae vm coverage\n  hikae vm eligibility\n");
    text
}
