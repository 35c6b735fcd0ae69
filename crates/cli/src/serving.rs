//! What the verbs that serve disks have in common: begin, say where, wait, and take everything back.
//!
//! ```text
//!   offers ─► cached disks ─┬─► an NBD server for each address ─┐
//!                           └─► a folder ───────────────────────┴─► ready: printed ─► until Ctrl-C ─► all taken back
//! ```
//!
//! The ready report is the one JSON object; whatever comes later is said on standard error.

use std::error::Error as StdError;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use block::ReadAt;
use engine::Cancellation;
use serde::Serialize;
use serve::nbd::{Export, Exports, NbdListener, NbdOptions, NbdServer, Reach};
use serve::{CachedDisk, Event, ReadCache, Watch};
use vdisk::vhdx::VhdxView;

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

/// The same where a folder could not be mounted, for what the system says about it.
#[cfg(target_os = "linux")]
fn not_mounted(error: serve::Error) -> anyhow::Error {
    if error.kind() != serve::ErrorKind::Io {
        return failed(error);
    }
    let problem = engine::Error::new(engine::ErrorKind::Io, "serving disks")
        .advised("See that /dev/fuse is there and, without root, fusermount3 (Debian: fuse3); or serve with --nbd");
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
    let cache = ReadCache::new(what.cache_size);
    let watch: Arc<dyn Watch> = Arc::new(Complaints::default());
    let mut disks = Disks {
        cache: Arc::clone(&cache),
        disks: Vec::new(),
    };
    let mut served = Vec::new();
    let mut files = Vec::new();
    let mut names = Vec::new();
    for offer in offers {
        let disk = CachedDisk::new(Arc::clone(&offer.disk), &cache);
        disks.disks.push(Arc::clone(&disk));
        served.push(Served {
            name: offer.name.clone(),
            root: offer.root.clone(),
            bytes_logical: disk.size_bytes(),
            uris: Vec::new(),
            files: Vec::new(),
        });
        names.push((
            offer.name.clone(),
            offer.other_name.clone(),
            offer.description.clone(),
        ));
        if what.fuse.is_some() {
            files.push(files_of(offer, &disk));
        }
    }
    let mut servers = Vec::new();
    for address in &what.nbd {
        let reach = if what.allow_remote {
            Reach::Anybody
        } else {
            Reach::Loopback
        };
        let listener = NbdListener::bind(address, reach).map_err(failed)?;
        for one in &mut served {
            one.uris.push(listener.address().uri(&one.name));
        }
        let exports = exports(&names, &disks.disks)?;
        let options = NbdOptions::default();
        let server = NbdServer::start(listener, exports, options, Arc::clone(&watch));
        servers.push(server.map_err(failed)?);
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

fn exports(
    names: &[(String, Option<String>, String)],
    disks: &[Arc<CachedDisk>],
) -> anyhow::Result<Exports> {
    let list = names
        .iter()
        .zip(disks)
        .map(|((name, _, description), disk)| {
            let mut export = Export::new(name.clone(), Arc::clone(disk) as Arc<dyn ReadAt>);
            export.description.clone_from(description);
            export
        });
    let mut exports = Exports::new(list.collect()).map_err(failed)?;
    for (name, other, _) in names {
        if let Some(other) = other {
            exports.also_named(other, name);
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

/// The files of one disk, before they have a folder.
struct Files {
    name: String,
    raw: Arc<dyn ReadAt>,
    vhdx: Option<Arc<dyn ReadAt>>,
    data_bytes: u64,
    modified: SystemTime,
}

fn files_of(offer: Offer<'_>, disk: &Arc<CachedDisk>) -> Files {
    let raw: Arc<dyn ReadAt> = Arc::clone(disk) as Arc<dyn ReadAt>;
    let (vhdx, data_bytes) = match (offer.vhdx)(Arc::clone(&raw)) {
        Ok(view) => {
            let data_bytes = view.data_bytes();
            let view: Arc<dyn ReadAt> = Arc::new(view);
            (Some(view), data_bytes)
        }
        Err(error) => {
            let below: &(dyn StdError + 'static) = error.as_ref();
            let why = chain(below);
            eprintln!("warning: {}: there is no .vhdx of it: {why}", offer.name);
            (None, raw.size_bytes())
        }
    };
    Files {
        // What a file's name cannot hold; a `%` is written so that no two names become one.
        name: offer.name.replace('%', "%25").replace('/', "%2F"),
        raw,
        vhdx,
        data_bytes,
        modified: offer.modified,
    }
}

#[cfg(target_os = "linux")]
struct Mount(serve::fuse::FuseMount);

#[cfg(target_os = "linux")]
impl Mount {
    fn new(
        dir: &Path,
        all: Vec<Files>,
        what: &ServeArgs,
        watch: &Arc<dyn Watch>,
        served: &mut [Served],
    ) -> anyhow::Result<Self> {
        use serve::fuse::{Access, FuseMount, FuseOptions, ServedFile};
        let mut names = Vec::new();
        let mut files = Vec::new();
        for one in all {
            let mut of_one = Vec::new();
            let of_vhdx = one.vhdx.as_ref().map_or(0, |disk| disk.size_bytes());
            let kinds = [
                ("raw", Some(one.raw), one.data_bytes),
                ("vhdx", one.vhdx, of_vhdx),
            ];
            for (ending, disk, allocated_bytes) in kinds {
                let Some(disk) = disk else { continue };
                let name = format!("{}.{ending}", one.name);
                of_one.push(name.clone());
                files.push(ServedFile {
                    name,
                    disk,
                    allocated_bytes,
                    modified: one.modified,
                });
            }
            names.push(of_one);
        }
        let options = FuseOptions {
            access: if what.allow_other {
                Access::Everybody
            } else {
                Access::Owner
            },
        };
        let mount =
            FuseMount::mount(dir, files, options, Arc::clone(watch)).map_err(not_mounted)?;
        for (one, names) in served.iter_mut().zip(names) {
            one.files = names.iter().map(|name| mount.dir().join(name)).collect();
        }
        Ok(Self(mount))
    }

    fn dir(&self) -> &Path {
        self.0.dir()
    }

    fn has_ended(&self) -> bool {
        self.0.has_ended()
    }

    fn end(self) -> anyhow::Result<()> {
        let dir = self.0.dir().display().to_string();
        if self.0.unmount().map_err(failed)? == serve::fuse::Unmounted::WhileInUse {
            eprintln!("warning: {dir} was still in use; whoever uses it gets errors from now on");
        }
        Ok(())
    }
}

#[cfg(not(target_os = "linux"))]
enum Mount {}

#[cfg(not(target_os = "linux"))]
impl Mount {
    fn new(
        dir: &Path,
        all: Vec<Files>,
        what: &ServeArgs,
        watch: &Arc<dyn Watch>,
        served: &mut [Served],
    ) -> anyhow::Result<Self> {
        let _ = (all, what, watch, served);
        let what = format!(
            "{}: folders are mounted on Linux only; use --nbd",
            dir.display()
        );
        Err(failed(serve::Error::new(
            serve::ErrorKind::Unsupported,
            what,
        )))
    }

    fn dir(&self) -> &Path {
        match *self {}
    }

    fn has_ended(&self) -> bool {
        match *self {}
    }

    fn end(self) -> anyhow::Result<()> {
        match self {}
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
