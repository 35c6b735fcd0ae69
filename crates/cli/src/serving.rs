//! What the verbs that serve disks have in common: begin, say where, wait, and take everything back.
//!
//! ```text
//!   offers ─► cached disks ─┬─► an NBD server for each address ─┐
//!                           └─► a folder ───────────────────────┴─► ready: printed ─► until Ctrl-C ─► all taken back
//! ```
//!
//! The ready report is the one JSON object; whatever comes later is said on standard error.

mod folder;

use std::error::Error as StdError;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use block::ReadAt;
use engine::Cancellation;
use serde::Serialize;
use serve::nbd::{Address, Export, Exports, NbdListener, NbdOptions, NbdServer, Reach};
use serve::{CachedDisk, Event, ReadCache, Watch};
use vdisk::vhdx::VhdxView;

use self::folder::{Files, Mount, files_of};
use crate::args::ServeArgs;
use crate::output::{Output, bytes};

/// How often it is looked whether serving should end.
const LOOK: Duration = Duration::from_millis(100);
/// Complaints of one kind that are printed one by one; afterwards only when their number doubles.
const SAID_MAX: u64 = 20;

/// Makes the VHDX that a disk would be.
type MakeVhdx<'a> = Box<dyn FnOnce(Arc<dyn ReadAt>) -> anyhow::Result<VhdxView> + 'a>;

/// A disk to serve.
pub struct Offer<'a> {
    /// Its name, the export's and, with an ending, the files'.
    pub name: String,
    /// Another name that leads to it, unless that is taken.
    pub other_name: Option<String>,
    /// What it is, for people who list exports.
    pub description: String,
    /// Its root, for a version.
    pub root: Option<String>,
    /// Its bytes.
    pub disk: Arc<dyn ReadAt>,
    /// The time that its files show.
    pub modified: SystemTime,
    /// The VHDX that it would be.
    pub vhdx: MakeVhdx<'a>,
}

/// What keeps the disks readable.
pub struct Guarded<'a> {
    /// Whether a lease does, for versions.
    pub protected_from_gc: Option<bool>,
    /// Fails once it no longer does.
    pub check: &'a dyn Fn() -> engine::Result<()>,
}

#[derive(Serialize)]
struct Served {
    name: String,
    root: Option<String>,
    bytes_logical: u64,
    uris: Vec<String>,
    files: Vec<PathBuf>,
}

#[derive(Serialize)]
struct Ready {
    serving: Vec<Served>,
    nbd: Vec<String>,
    fuse: Option<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    protected_from_gc: Option<bool>,
}

/// An error with all that is below it, in one line.
pub fn chain(error: &dyn StdError) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        next = cause.source();
    }
    text
}

/// Says on standard error what goes wrong, but does not flood it.
#[derive(Default)]
struct Complaints {
    reads: AtomicU64,
    clients: AtomicU64,
}

fn complain(count: &AtomicU64, text: &str) {
    let number = count.fetch_add(1, Ordering::Relaxed).saturating_add(1);
    if number <= SAID_MAX {
        eprintln!("warning: {text}");
    } else if number.is_power_of_two() {
        eprintln!("warning: {text} (the {number}th of its kind; not all are shown)");
    }
}

impl Watch for Complaints {
    fn tell(&self, event: &Event<'_>) {
        match event {
            Event::ReadFailed {
                disk,
                offset,
                length_bytes,
                error,
            } => {
                let why = chain(*error);
                let text =
                    format!("{disk}: {length_bytes} bytes at {offset} are not readable: {why}");
                complain(&self.reads, &text);
            }
            Event::Refused { peer, why } => {
                complain(
                    &self.clients,
                    &format!("{peer}: a client was sent away: {why}"),
                );
            }
            Event::Left {
                peer,
                why: Some(why),
            } => {
                let text = format!("{peer}: a client was left: {}", chain(*why));
                complain(&self.clients, &text);
            }
            Event::Deaf { error } => complain(&self.clients, &chain(*error)),
            _ => {}
        }
    }
}

/// The disks behind their cache; closed when they go out of scope, whoever still holds them.
struct Disks {
    cache: Arc<ReadCache>,
    disks: Vec<Arc<CachedDisk>>,
}

impl Drop for Disks {
    fn drop(&mut self) {
        self.cache.stop();
        for disk in &self.disks {
            disk.close();
        }
    }
}

/// The problem of serving, in the words of jobs.
fn failed(error: serve::Error) -> anyhow::Error {
    use serve::ErrorKind as Below;
    let kind = match error.kind() {
        Below::Invalid | Below::Protocol => engine::ErrorKind::Invalid,
        Below::Busy => engine::ErrorKind::Busy,
        Below::AlreadyExists => engine::ErrorKind::AlreadyExists,
        Below::Refused => engine::ErrorKind::Refused,
        Below::Unsupported => engine::ErrorKind::Unsupported,
        _ => engine::ErrorKind::Io,
    };
    let next = match error.kind() {
        Below::Refused => {
            "Serve at tcp:127.0.0.1:0 or unix:/path/of/socket; or say --allow-remote if that is meant"
        }
        Below::AlreadyExists => {
            "Give another place: an empty folder for --fuse, a path where nothing lies for --nbd"
        }
        _ => return anyhow::Error::new(engine::Error::new(kind, "serving disks").caused_by(error)),
    };
    let problem = engine::Error::new(kind, "serving disks").advised(next);
    anyhow::Error::new(problem.caused_by(error))
}

/// Serves until told to stop.
pub fn run(
    offers: Vec<Offer<'_>>,
    what: &ServeArgs,
    guarded: &Guarded<'_>,
    cancel: &Cancellation,
    output: &Output,
) -> anyhow::Result<()> {
    let watch: Arc<dyn Watch> = Arc::new(Complaints::default());
    let Prepared {
        disks,
        mut served,
        files,
        names,
    } = prepare(offers, what);
    let mut servers = Vec::new();
    for address in &what.nbd {
        let server = listen(address, what, exports(&names, &disks.disks)?, &watch)?;
        for one in &mut served {
            one.uris.push(server.address().uri(&one.name));
        }
        servers.push(server);
    }
    let mount = match &what.fuse {
        Some(dir) => Some(Mount::new(dir, files, what, &watch, &mut served)?),
        None => None,
    };
    let ready = Ready {
        serving: served,
        nbd: servers
            .iter()
            .map(|server| server.address().to_string())
            .collect(),
        fuse: mount.as_ref().map(|mount| mount.dir().to_owned()),
        protected_from_gc: guarded.protected_from_gc,
    };
    output.report(&ready, text)?;
    wait(guarded, cancel, mount.as_ref(), servers.is_empty());
    for server in servers {
        let address = server.address().clone();
        let done = server.stop();
        output.note(&format!(
            "{address}: {} connections, {} requests, {} read",
            done.clients,
            done.requests,
            bytes(done.read_bytes)
        ));
    }
    if let Some(mount) = mount {
        mount.end()?;
    }
    Ok(())
}

/// Everything that is needed before anybody is let in.
struct Prepared {
    disks: Disks,
    served: Vec<Served>,
    files: Vec<Files>,
    names: Vec<Names>,
}

/// What an export is called.
struct Names {
    name: String,
    other: Option<String>,
    description: String,
}

fn prepare(offers: Vec<Offer<'_>>, what: &ServeArgs) -> Prepared {
    let cache = ReadCache::new(what.cache_size);
    let mut prepared = Prepared {
        disks: Disks {
            cache: Arc::clone(&cache),
            disks: Vec::new(),
        },
        served: Vec::new(),
        files: Vec::new(),
        names: Vec::new(),
    };
    for offer in offers {
        let disk = CachedDisk::new(Arc::clone(&offer.disk), &cache);
        prepared.disks.disks.push(Arc::clone(&disk));
        prepared.served.push(Served {
            name: offer.name.clone(),
            root: offer.root.clone(),
            bytes_logical: disk.size_bytes(),
            uris: Vec::new(),
            files: Vec::new(),
        });
        prepared.names.push(Names {
            name: offer.name.clone(),
            other: offer.other_name.clone(),
            description: offer.description.clone(),
        });
        if what.fuse.is_some() {
            prepared.files.push(files_of(offer, &disk));
        }
    }
    prepared
}

fn listen(
    address: &Address,
    what: &ServeArgs,
    exports: Exports,
    watch: &Arc<dyn Watch>,
) -> anyhow::Result<NbdServer> {
    let reach = if what.allow_remote {
        Reach::Anybody
    } else {
        Reach::Loopback
    };
    let listener = NbdListener::bind(address, reach).map_err(failed)?;
    let options = NbdOptions::default();
    NbdServer::start(listener, exports, options, Arc::clone(watch)).map_err(failed)
}

fn exports(names: &[Names], disks: &[Arc<CachedDisk>]) -> anyhow::Result<Exports> {
    let list = names.iter().zip(disks).map(|(names, disk)| {
        let source = Arc::clone(disk) as Arc<dyn ReadAt>;
        let mut export = Export::new(names.name.clone(), source);
        export.description.clone_from(&names.description);
        export
    });
    let mut exports = Exports::new(list.collect()).map_err(failed)?;
    for names in names {
        if let Some(other) = &names.other {
            exports.also_named(other, &names.name);
        }
    }
    Ok(exports)
}

/// Waits until it is told to stop, or nobody can be served any more.
fn wait(guarded: &Guarded<'_>, cancel: &Cancellation, mount: Option<&Mount>, is_only: bool) {
    let mut lost = false;
    let mut has_ended = false;
    while !cancel.is_cancelled() {
        std::thread::sleep(LOOK);
        if !lost && let Err(error) = (guarded.check)() {
            lost = true;
            eprintln!(
                "warning: what is served may vanish, so that every read fails from now on: {}; start again to go on",
                chain(&error)
            );
        }
        if !has_ended && mount.is_some_and(Mount::has_ended) {
            has_ended = true;
            if is_only {
                return;
            }
            eprintln!("warning: somebody unmounted the folder; NBD goes on");
        }
    }
}

fn text(ready: &Ready) -> String {
    let mut text = "Serving, read-only, until Ctrl-C:\n".to_owned();
    for one in &ready.serving {
        text.push_str(&format!("{} ({})\n", one.name, bytes(one.bytes_logical)));
        for uri in &one.uris {
            text.push_str(&format!("  {uri}\n"));
        }
        for file in &one.files {
            text.push_str(&format!("  {}\n", file.display()));
        }
    }
    if let Some(uri) = ready.serving.iter().find_map(|one| one.uris.first()) {
        text.push_str(&format!(
            "Such as: qemu-img convert -O raw '{uri}' disk.raw\n"
        ));
    }
    text
}
