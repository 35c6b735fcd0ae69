//! The whole story on the lab: a cluster of two nodes and a host of its own, four machines.
//!
//! ```text
//!   lab up ─► repository ─► look (coverage, eligibility) ─► protect all ─► guests write ─► express full
//!     ─► live migration ─► express full again ─► one machine onto the other node ─► its bytes examined ─► nothing left behind
//! ```
//!
//! The hosts are simulated, and the report says so; the wire between them and the driver is the real one (WS-Management over
//! HTTP on loopback, NTLM, sealed), and so are the images, the repository and what is measured.
//!
//! **Invariants.** Everything lies in one folder, which goes at the end unless it is to be kept. *Proved* means: every block of
//! the restored images was read again and hashed against the version's root, and the guest's own records in them say that
//! it is application-consistent and no later than its checkpoint.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use engine::Progress;
use engine::job::backup_disk::BackupScope;
use engine::job::backup_vm::{
    DiskReport, VmBackupReport, VmBackupRequest, VmBackupTools, backup_vm,
};
use engine::job::restore_disk::Proof;
use engine::job::restore_vm::{
    AfterRestore, RoleWish, VmRestoreReport, VmRestoreRequest, VmRestoreTarget, VmRestoreTools,
    restore_vm,
};
use engine::job::{JobContext, NoJournal};
use host::boundary::{Inventory, Mobility};
use host::cluster::{MigrationKind, MigrationRequest};
use host::consistency::{Consistency, ConsistencyPolicy};
use host::coverage::{CoverageLevel, plan_coverage};
use host::custody::Custody;
use host::definition::{Identity, NicConnection, SavedState};
use host::eligibility::{Evidence, judge};
use host::facts::VmFacts;
use host::ids::NodeName;
use host::path::HostPath;
use lab::estate::HostName;
use lab::guest;
use lab::provider::{Pace, SharedEstate};
use lab::scenario::Scenario;
use lab::wire::{LabWire, WireOptions};
use repo::{CreateOptions, OpenOptions, ProtectedName, Repository};
use serde::Serialize;
use store::Store;
use store::directory::DirectoryStore;
use wsman::auth::Secret;
use wsman::server::ServiceSources;

use super::folder;
use crate::args::{HostsFileArgs, QuickstartArgs, VmPlaceArgs};
use crate::exit::Exit;
use crate::host::connect::{self, Estate};
use crate::host::registry::{FilesEntry, HostEntry, LoginEntry, Registry, TrustEntry};
use crate::image::convert::system_ids;
use crate::keys::{self, write_secret};
use crate::output::{Output, Table, bytes, seconds};
use crate::progress::{Bars, cancellation};
use crate::vm::custody::Keeping;

const ACCOUNT: &str = "labadmin";
/// How long machines are given to start, on the estate's clock.
const START: Duration = Duration::from_secs(30);
/// How much faster than ours the estate's clock goes: its jobs take seconds.
const SPEED: u32 = 20;
/// How much each guest writes between two rounds, beside what it does all the time.
const WRITE_BYTES: u64 = 2 << 20;
/// How long requests under way may take at the end.
const LAST: Duration = Duration::from_secs(5);
/// The machine that moves and is restored, and where its copy goes.
const MOVED: &str = "sql";
const COPY: &str = "sql-restored";
/// Which machine may be saved for its backup: nothing in it answers.
const OFFLINE: &str = "legacy";

#[derive(Serialize)]
struct Step {
    step: String,
    elapsed_ms: u128,
}

#[derive(Serialize)]
struct MachineLine {
    machine: String,
    node: String,
    covered: CoverageLevel,
    not_covered: usize,
    application: &'static str,
    tracking: &'static str,
}

#[derive(Serialize)]
struct Report {
    /// Nothing here is a real host.
    simulated: bool,
    folder: PathBuf,
    machines: Vec<MachineLine>,
    steps: Vec<Step>,
    /// Round by round: machine by machine.
    rounds: Vec<Vec<VmBackupReport>>,
    migrated: String,
    restored: VmRestoreReport,
    /// What the restored bytes say about the guest in them.
    restored_bytes_are: String,
    repository_bytes: u64,
    left_behind: usize,
    is_proved: bool,
}

/// Runs it.
pub fn run(arguments: &QuickstartArgs, output: &Output) -> anyhow::Result<Exit> {
    let folder = folder(arguments);
    let was_there = folder.exists();
    if was_there && fs::read_dir(&folder)?.next().is_some() {
        let error = engine::Error::new(
            engine::ErrorKind::AlreadyExists,
            format!("{} is not empty", folder.display()),
        );
        return Err(anyhow::Error::new(
            error.advised("Give an empty or a new folder with --dir"),
        ));
    }
    fs::create_dir_all(&folder).with_context(|| format!("making {}", folder.display()))?;
    let folder = folder.canonicalize()?;
    let story = Story::begin(&folder, output)?;
    let report = story.tell()?;
    story.wire.stop(LAST);
    if !arguments.keep {
        for name in ["estate", "repository", "custody", "cache"] {
            remove(&folder.join(name))?;
        }
        for name in ["hosts.json", "hosts.lock", "password", "quickstart.key"] {
            remove(&folder.join(name))?;
        }
        if !was_there {
            fs::remove_dir(&folder).with_context(|| format!("removing {}", folder.display()))?;
        }
    }
    let keep = arguments.keep;
    output.report(&report, |report| text(report, keep))?;
    Ok(if report.is_proved {
        Exit::Done
    } else {
        Exit::Found
    })
}

fn remove(path: &Path) -> anyhow::Result<()> {
    let removed = match fs::symlink_metadata(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Ok(metadata) if metadata.is_dir() => fs::remove_dir_all(path),
        _ => fs::remove_file(path),
    };
    removed.with_context(|| format!("removing {}", path.display()))
}

/// The lab, the repository, and the driver between them.
struct Story<'a> {
    folder: &'a Path,
    output: &'a Output,
    lab: Arc<SharedEstate>,
    wire: LabWire,
    repository: Repository,
    keeping: Keeping,
    driver: Estate,
    steps: std::cell::RefCell<Vec<Step>>,
}

impl<'a> Story<'a> {
    fn begin(folder: &'a Path, output: &'a Output) -> anyhow::Result<Self> {
        let begun = Instant::now();
        let mut estate = Scenario::quickstart()?.build(&folder.join("estate"))?;
        estate.advance(START).context("starting machines")?;
        let clock: Arc<dyn Fn() -> Duration + Send + Sync> = Arc::new(move || begun.elapsed());
        let pace = Pace::Bound {
            clock: Arc::clone(&clock),
            factor: SPEED,
        };
        let lab = SharedEstate::new(estate, pace);
        let ids = connect::ids()?;
        let password: String = ids().iter().map(|byte| format!("{byte:02x}")).collect();
        let password_file = folder.join("password");
        write_secret(&password_file, &format!("{password}\n"))?;
        let sources = ServiceSources { clock, ids };
        let options = WireOptions::new(ACCOUNT, &Secret::new(password), sources);
        let wire = LabWire::start(&lab, &options)?;
        let place = write_hosts(folder, &lab, &wire, &password_file)?;
        let repository = make_repository(folder)?;
        let steps = vec![Step {
            step: "a lab of three hosts and four machines; an encrypted repository".to_owned(),
            elapsed_ms: begun.elapsed().as_millis(),
        }];
        Ok(Self {
            folder,
            output,
            wire,
            lab,
            repository,
            keeping: Keeping::at(&folder.join("custody"))?,
            driver: Estate::open(&place)?,
            steps: steps.into(),
        })
    }

    fn step<T>(&self, step: &str, act: impl FnOnce() -> anyhow::Result<T>) -> anyhow::Result<T> {
        let begun = Instant::now();
        let result = act().with_context(|| step.to_owned());
        self.steps.borrow_mut().push(Step {
            step: step.to_owned(),
            elapsed_ms: begun.elapsed().as_millis(),
        });
        result
    }

    fn tell(&self) -> anyhow::Result<Report> {
        let machines = self.step("look: what there is, what can be protected", || self.look())?;
        let mut rounds = Vec::new();
        rounds.push(self.step("protect all four (initial copy)", || self.protect_all())?);
        self.step("guests write", || self.write())?;
        rounds.push(self.step("express full: what changed", || self.protect_all())?);
        let migrated = self.step("live migration of sql to the other node", || self.migrate())?;
        self.step("guests write", || self.write())?;
        rounds.push(self.step("express full, where it is now", || self.protect_all())?);
        let restored = self.step(
            "restore sql as another machine, on the node it left",
            || self.restore(),
        )?;
        let said = self.step("read its bytes: what they say about the guest", || {
            self.examine(&restored)
        })?;
        let left = self.step("look for anything left on hosts", || {
            Ok(self.keeping.sweep(&self.driver, &self.repository)?)
        })?;
        let left_behind = left.done.len() + left.waiting.len() + left.alerts.len();
        let lines = machines.iter().map(line).collect();
        let is_consistent = said.consistency == guest::Consistency::Application;
        Ok(Report {
            simulated: true,
            folder: self.folder.to_owned(),
            machines: lines,
            is_proved: restored.is_proved && is_consistent && left_behind == 0,
            rounds,
            migrated,
            restored_bytes_are: format!(
                "{}, transaction {}",
                match &said.consistency {
                    guest::Consistency::Application => "application-consistent",
                    guest::Consistency::FileSystem => "file-system-consistent",
                    guest::Consistency::Crash => "crash-consistent",
                    guest::Consistency::Empty => "empty",
                    guest::Consistency::Inconsistent(_) => "INCONSISTENT",
                },
                said.committed
            ),
            restored,
            repository_bytes: size_of(&self.folder.join("repository"))?,
            left_behind,
            steps: self.steps.take(),
        })
    }

    fn look(&self) -> anyhow::Result<Vec<VmFacts>> {
        let mut found = self.driver.driver.inventory(&self.driver.cancel)?.machines;
        found.retain(|machine| machine.name != COPY);
        found.sort_by(|one, other| one.name.cmp(&other.name));
        Ok(found)
    }

    fn protect_all(&self) -> anyhow::Result<Vec<VmBackupReport>> {
        let mut reports = Vec::new();
        for machine in self.look()? {
            let name = ProtectedName::new(machine.name.clone())?;
            let mut request = VmBackupRequest::new(name, machine.id);
            request.audit_seed = crate::audit::random_seed()?;
            if machine.name == OFFLINE {
                request.checkpoint.policy = ConsistencyPolicy {
                    wanted: Consistency::Application,
                    otherwise: vec![Consistency::SavedState],
                };
            }
            let job = self.keeping.job();
            let journal = self.keeping.journals.begin(job)?;
            let custody = Custody::new(journal.log(), self.keeping.owner.clone(), job);
            let tools = VmBackupTools {
                host: &self.driver.driver,
                repository: &self.repository,
                custody: &custody,
                cancel: &self.driver.cancel,
                clock: &self.keeping.clock,
            };
            let report = self.watched(|context| backup_vm(tools, &request, context))?;
            drop(custody);
            journal.finish()?;
            reports.push(report);
        }
        Ok(reports)
    }

    fn watched<T>(
        &self,
        act: impl FnOnce(JobContext<'_>) -> engine::Result<T>,
    ) -> anyhow::Result<T> {
        let (bars, cancel) = (Bars::new(self.output), cancellation());
        let context = JobContext {
            progress: &bars,
            cancel: &cancel,
            journal: &NoJournal,
        };
        let result = act(context);
        bars.end();
        Ok(result?)
    }

    /// Every guest writes, and goes on with its own work for a minute of the estate.
    fn write(&self) -> anyhow::Result<()> {
        self.lab.pass(Duration::from_secs(60))?;
        let homes: Vec<(HostName, lab::estate::VmId)> = self.lab.read(|estate| {
            let of = |host: &lab::estate::Host| {
                let vms = estate.vms_on(&host.name).map(|vm| vm.id);
                vms.map(|id| (host.name.clone(), id)).collect::<Vec<_>>()
            };
            estate.hosts().flat_map(of).collect()
        });
        for (host, vm) in homes {
            self.lab
                .write(|estate| estate.guest_writes(&host, vm, WRITE_BYTES))?;
        }
        Ok(())
    }

    fn find(&self, name: &str) -> anyhow::Result<VmFacts> {
        let found = self.driver.driver.inventory(&self.driver.cancel)?.machines;
        let mut found = found.into_iter().filter(|machine| machine.name == name);
        found
            .next()
            .with_context(|| format!("machine {name} is nowhere"))
    }

    fn other_node(&self, than: &NodeName) -> anyhow::Result<NodeName> {
        let name = if than.as_str().eq_ignore_ascii_case("NODE1") {
            "NODE2"
        } else {
            "NODE1"
        };
        Ok(NodeName::new(name)?)
    }

    fn migrate(&self) -> anyhow::Result<String> {
        let machine = self.find(MOVED)?;
        let to = self.other_node(&machine.node)?;
        let request = MigrationRequest {
            vm: machine.id,
            what: MigrationKind::Machine { to: to.clone() },
        };
        let now = self.driver.driver.migrate(&request, &self.driver.cancel)?;
        Ok(format!("{MOVED}: {} → {}", machine.node, now.node))
    }

    fn restore(&self) -> anyhow::Result<VmRestoreReport> {
        let machine = self.find(MOVED)?;
        let request = VmRestoreRequest {
            selector: MOVED.parse()?,
            target: VmRestoreTarget::Host {
                node: self.other_node(&machine.node)?,
                folder: HostPath::new("C:\\ClusterStorage\\Volume1")?,
                identity: Identity::New,
                name: Some(COPY.to_owned()),
                nics: NicConnection::Disconnected,
                role: RoleWish::None,
            },
            saved_state: SavedState::Drop,
            // It stays off, so that its bytes are those that were restored.
            after: AfterRestore::StayOff,
            proof: Proof::ReadBack,
            workers: None,
            ids: system_ids()?,
        };
        let job = self.keeping.job();
        let journal = self.keeping.journals.begin(job)?;
        let custody = Custody::new(journal.log(), self.keeping.owner.clone(), job);
        let tools = VmRestoreTools {
            host: &self.driver.driver,
            repository: &self.repository,
            custody: &custody,
            cancel: &self.driver.cancel,
            clock: &self.keeping.clock,
        };
        let report = self.watched(|context| restore_vm(tools, &request, context))?;
        drop(custody);
        journal.finish()?;
        Ok(report)
    }

    /// What the restored images say, read from their files and nothing else.
    fn examine(&self, restored: &VmRestoreReport) -> anyhow::Result<guest::Examination> {
        let host = HostName::new(restored.plan.node.as_str());
        let original: lab::estate::VmId = self
            .lab
            .read(|estate| {
                let mut found = estate.vms_named(MOVED);
                found.next().map(|vm| vm.id)
            })
            .with_context(|| format!("machine {MOVED} is nowhere"))?;
        let (layout, tag) = self
            .lab
            .read(|estate| {
                let mut all = estate.systems().filter(|vm| vm.id == original);
                let guest = all.next()?.guest()?;
                Some((guest.layout().clone(), guest.tag()))
            })
            .context("no guest is in it")?;
        let mut images = Vec::new();
        for image in &restored.plan.images {
            let path = lab::estate::WindowsPath::parse(image.path.as_str())?;
            images.push(self.lab.write(|estate| estate.read_disk(&host, &path))?);
        }
        let disks: Vec<&dyn block::ReadAt> = images
            .iter()
            .map(|image| image as &dyn block::ReadAt)
            .collect();
        Ok(guest::examine(&disks, &layout, tag)?)
    }
}

/// Writes the hosts down as `hikae host add` would.
fn write_hosts(
    folder: &Path,
    lab: &SharedEstate,
    wire: &LabWire,
    password_file: &Path,
) -> anyhow::Result<VmPlaceArgs> {
    let file = HostsFileArgs {
        hosts_file: Some(folder.join("hosts.json")),
    };
    let mut roots: BTreeMap<String, Vec<(HostPath, PathBuf)>> = BTreeMap::new();
    let names: Vec<HostName> =
        lab.read(|estate| estate.hosts().map(|host| host.name.clone()).collect());
    for name in &names {
        let folders = lab.read(|estate| estate.folders_of(name))?;
        let place = roots.entry(name.to_string()).or_default();
        for found in folders {
            place.push((HostPath::new(found.windows)?, found.local));
        }
    }
    Registry::change(&file, |registry| {
        for name in &names {
            let address = wire.address(name).context("a host without a port")?;
            let entry = HostEntry {
                name: name.to_string(),
                address: format!("http://{address}"),
                user: Some(ACCOUNT.to_owned()),
                password_file: Some(password_file.to_owned()),
                login: LoginEntry::Negotiate,
                certificate: None,
                trust: TrustEntry::System,
                files: FilesEntry::Local {
                    roots: roots.remove(&name.to_string()).unwrap_or_default(),
                },
            };
            registry.add(entry, false)?;
        }
        Ok(())
    })?;
    Ok(VmPlaceArgs {
        hosts: Vec::new(),
        file,
    })
}

fn make_repository(folder: &Path) -> anyhow::Result<Repository> {
    let place = folder.join("repository");
    fs::create_dir(&place).with_context(|| format!("making {}", place.display()))?;
    let store: Arc<dyn Store> = Arc::new(DirectoryStore::open(&place)?);
    let options = OpenOptions {
        cache_dir: Some(folder.join("cache")),
        ..OpenOptions::default()
    };
    let created = Repository::create(
        store,
        &CreateOptions::default(),
        &options,
        &keys::environment(),
    )?;
    if let Some(key) = &created.key_file {
        write_secret(&folder.join("quickstart.key"), &key.to_string())?;
    }
    Ok(created.repository)
}

fn size_of(folder: &Path) -> anyhow::Result<u64> {
    let mut sum = 0u64;
    for entry in fs::read_dir(folder).with_context(|| format!("listing {}", folder.display()))? {
        let entry = entry?;
        let metadata = entry.metadata()?;
        sum = sum.saturating_add(if metadata.is_dir() {
            size_of(&entry.path())?
        } else {
            metadata.len()
        });
    }
    Ok(sum)
}

fn line(machine: &VmFacts) -> MachineLine {
    let coverage = plan_coverage(machine, &[]);
    let modes = judge(&Evidence::of(machine)).modes;
    MachineLine {
        machine: machine.name.clone(),
        node: machine.node.to_string(),
        covered: coverage.level,
        not_covered: coverage
            .lines
            .iter()
            .filter(|line| {
                !matches!(
                    line.coverage,
                    host::coverage::DiskCoverage::Protected { .. }
                )
            })
            .count(),
        application: modes.application.name(),
        tracking: modes.tracking.name(),
    }
}

fn machine_table(report: &Report) -> Table {
    let mut machines = Table::new(
        &[
            "machine",
            "node",
            "disks covered",
            "application-consistent",
            "change tracking",
        ],
        &[],
    );
    for machine in &report.machines {
        let covered = match machine.covered {
            CoverageLevel::Full => "all".to_owned(),
            CoverageLevel::Partial => format!("all but {}", machine.not_covered),
            CoverageLevel::None | CoverageLevel::ConfigurationOnly => "none".to_owned(),
        };
        machines.row(vec![
            machine.machine.clone(),
            machine.node.clone(),
            covered,
            match machine.application {
                // Nothing speaks against it: the guest decides when it is asked.
                "unknown" => "to be tried".to_owned(),
                verdict => verdict.to_owned(),
            },
            machine.tracking.to_owned(),
        ]);
    }
    machines
}

fn point_table(report: &Report) -> Table {
    let mut points = Table::new(
        &[
            "point",
            "on",
            "consistency",
            "looked at",
            "read",
            "changed blocks",
            "stored",
            "took",
        ],
        &[4, 5, 6, 7],
    );
    for machine in report.rounds.iter().flatten() {
        points.row(vec![
            format!("{}@{}", machine.name, machine.sequence),
            machine.node.to_string(),
            machine.consistency.to_string(),
            looked_at(machine).to_owned(),
            bytes(machine.read.read_bytes),
            machine.read.changed_blocks.to_string(),
            bytes(machine.stored_bytes),
            ms(machine.elapsed_ms),
        ]);
    }
    points
}

/// How the disks of a machine were looked at, the widest of them.
fn looked_at(machine: &VmBackupReport) -> &'static str {
    let is_first = |disk: &DiskReport| disk.scope == BackupScope::InitialCopy;
    let is_tracked = |disk: &DiskReport| matches!(disk.scope, BackupScope::ChangedRanges { .. });
    if machine.disks.iter().any(is_first) {
        "everything"
    } else if machine.disks.iter().all(is_tracked) {
        "what changed"
    } else {
        "everything (untracked)"
    }
}

fn step_table(report: &Report) -> Table {
    let mut steps = Table::new(&["step", "took"], &[1]);
    for step in &report.steps {
        let took = u64::try_from(step.elapsed_ms).unwrap_or(u64::MAX);
        steps.row(vec![step.step.clone(), ms(took)]);
    }
    steps
}

fn text(report: &Report, keep: bool) -> String {
    let machines = machine_table(report);
    let points = point_table(report);
    let steps = step_table(report);
    let restored = &report.restored;
    let after = report.rounds.last().and_then(|round| {
        let moved = round.iter().find(|machine| machine.name == MOVED);
        moved.map(looked_at)
    });
    let tracking = match after {
        Some("what changed") | None => "",
        Some(_) => {
            " (change tracking stayed behind: all of it is compared once, what changed is stored)"
        }
    };
    let proof = if report.is_proved {
        "PROVED: every block was read back and hashed against the version's root; the guest's own records in the\nrestored bytes say so too; nothing of ours is left on any host."
    } else {
        "NOT PROVED: look at the lines above."
    };
    let place = if keep {
        format!("Look around: {}\n", report.folder.display())
    } else {
        "Nothing was left behind; --keep leaves it for a look.\n".to_owned()
    };
    format!(
        "A SIMULATED Hyper-V estate (no real host was touched): a cluster of two nodes and a host of its own, asked over\n\
         WS-Management as real ones are.\n\n{machines}\n{points}\nmoved live: {}{tracking}\n\n{steps}\n\
         {} restored as {} on {}: {} written\n  the restored bytes are: {}\n  three points of four machines take {} in the encrypted repository\n\n\
         {proof}\n\n{place}\
         Next, with hosts of your own: hikae host add NAME --address http://HOST:5985 --user U --password-file F\n\
         To play with the lab: hikae lab up\n",
        report.migrated,
        restored.plan.version,
        restored.plan.machine,
        restored.plan.node,
        bytes(restored.written_bytes),
        report.restored_bytes_are,
        bytes(report.repository_bytes),
    )
}

fn ms(value: u64) -> String {
    seconds(Duration::from_millis(value).as_secs_f64())
}
