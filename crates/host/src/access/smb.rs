//! Files of hosts over SMB 3: `D:\vm\a.vhdx` on node `hv01` is `\\hv01\D$\vm\a.vhdx`, a path on a share is itself.
//!
//! ```text
//!   SmbAccess ── one connection for each server and share, made when first needed
//!      ├─ SmbFile (ReadAt) ──── requests of 1 MiB, several under way ──► tasks on a small runtime of our own ──► transport
//!      └─ SmbWriter (WriteAt) ─ the same, and written behind: `write_at` returns when the request is under way
//! ```
//!
//! The protocol is the crate `smb`'s; the transport is ours ([`transport`]), because the crate's own waits for delayed
//! acknowledgements (RFD 22).
//!
//! **Invariants.** Files are opened sharing everything, without an oplock: nothing that a hypervisor would have to
//! break. Every wait has a time limit. What comes back is never believed to be longer than what was asked for: a server that says so
//! costs its task, not the process. A connection that failed is made anew once; a second failure is the caller's. A file
//! that is being written never changes its connection: what the server held of it might be gone.
//!
//! **What it does not do.** No DFS, no Kerberos (the crate's NTLMv2 alone), no volumes without a letter or a share. No holes: Windows
//! makes them in files that are marked sparse, and Hyper-V refuses images in such files.

mod connect;
mod folders;
mod names;
mod read;
mod transport;
mod write;

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use block::ReadAt;
use smb::{Connection, FileAccessMask, FileCreateArgs, GetLen, Resource, Session, Tree};
use tokio::runtime::Runtime;

use self::names::{Place, told};
use self::read::SmbFile;
use super::DiskAccess;
use crate::ids::NodeName;
use crate::path::HostPath;
use crate::{Error, ErrorKind, Result};

/// Who asks.
#[derive(Clone)]
pub struct SmbAccount {
    /// `DOMAIN\user`, `user@domain`, or a local `user`.
    pub user: String,
    /// Its password.
    pub password: String,
}

impl std::fmt::Debug for SmbAccount {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SmbAccount")
            .field("user", &self.user)
            .finish_non_exhaustive()
    }
}

/// Whether what is read may cross the network in the clear.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SmbEncryption {
    /// Only encrypted; a server that cannot is refused.
    #[default]
    Required,
    /// As the server wants it.
    AsServerWants,
}

/// Where SMB is, unless told otherwise.
pub const SMB_PORT: u16 = 445;

/// Where a server is reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SmbServer {
    /// Name or address.
    pub address: String,
    /// Port.
    pub port: u16,
}

/// How files are reached.
#[derive(Debug, Clone)]
pub struct SmbOptions {
    /// Who asks.
    pub account: SmbAccount,
    /// Whether it is encrypted.
    pub encryption: SmbEncryption,
    /// Under what name or address the node itself is reached; its own name when `None`.
    pub server: Option<String>,
    /// The node's port; 445 unless told otherwise.
    pub port: u16,
    /// Other servers that paths name (`\\server\share`), in lower case, where they are not reached by that name at port 445.
    pub share_servers: BTreeMap<String, SmbServer>,
    /// Longest that any one answer is waited for.
    pub timeout: Duration,
    /// Bytes of one request.
    pub request_bytes: u32,
    /// Requests of one read, or of one file that is written, that are under way at once.
    pub depth: usize,
}

impl SmbOptions {
    /// The usual ones for an account.
    pub fn new(account: SmbAccount) -> Self {
        Self {
            account,
            encryption: SmbEncryption::Required,
            server: None,
            port: SMB_PORT,
            share_servers: BTreeMap::new(),
            timeout: Duration::from_secs(30),
            request_bytes: 1 << 20,
            depth: 8,
        }
    }
}

/// A share that is connected. Its parts end in the order in which they stand here.
struct Share {
    tree: Tree,
    _session: Session,
    _connection: Connection,
}

/// Two threads that all connections of a process share.
#[derive(Clone)]
pub struct SmbRuntime(Arc<Runtime>);

impl SmbRuntime {
    /// Starts them.
    pub fn new() -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .thread_name("smb")
            .enable_all()
            .build()
            .map_err(|error| {
                Error::with_source(ErrorKind::Io, "starting the runtime of SMB", error)
            })?;
        Ok(Self(Arc::new(runtime)))
    }
}

/// What files and the access have in common.
struct Shared {
    options: SmbOptions,
    runtime: SmbRuntime,
    shares: Mutex<HashMap<String, Arc<Share>>>,
}

/// Files of hosts over SMB 3.
pub struct SmbAccess {
    shared: Arc<Shared>,
}

impl SmbAccess {
    /// Connects to nothing yet.
    pub fn new(options: SmbOptions) -> Result<Self> {
        Ok(Self::on(options, SmbRuntime::new()?))
    }

    /// The same on threads that are there. Connects to nothing yet.
    pub fn on(options: SmbOptions, runtime: SmbRuntime) -> Self {
        Self {
            shared: Arc::new(Shared {
                options,
                runtime,
                shares: Mutex::new(HashMap::new()),
            }),
        }
    }
}

impl DiskAccess for SmbAccess {
    fn open(&self, node: &NodeName, path: &HostPath) -> Result<Option<Arc<dyn ReadAt>>> {
        let place = self.shared.place(node, path)?.of_file(path)?;
        let file = SmbFile::open(&self.shared, &place, path)?;
        Ok(file.map(|file| {
            let file: Arc<dyn ReadAt> = Arc::new(file);
            file
        }))
    }
}

/// A file that is open on the server.
struct OpenFile {
    file: Arc<smb::File>,
    size_bytes: u64,
    /// Ends after the file.
    _share: Arc<Share>,
}

impl Shared {
    /// Waits for work on the runtime, for a bounded time. Work that panics is an error: the crate trusts servers more than we do.
    fn wait<T: Send + 'static>(
        &self,
        what: &str,
        work: impl Future<Output = Result<T>> + Send + 'static,
    ) -> Result<T> {
        let limit = self.options.timeout;
        // The clock of a time limit is the runtime's: it is made inside.
        let task = self
            .runtime
            .0
            .spawn(async move { tokio::time::timeout(limit, work).await });
        match self.runtime.0.block_on(task) {
            Ok(Ok(done)) => done,
            Ok(Err(_)) => Err(Error::new(
                ErrorKind::TimedOut,
                format!("{what}: no answer within {} s", limit.as_secs()),
            )),
            Err(error) => Err(Error::with_source(
                ErrorKind::Protocol,
                format!("{what}: the answer could not be understood"),
                error,
            )),
        }
    }

    /// Where a path of a node is reached.
    fn place(&self, node: &NodeName, path: &HostPath) -> Result<Place> {
        names::place_of(node, &self.options, path)
    }

    fn share(self: &Arc<Self>, place: &Place) -> Result<Arc<Share>> {
        let key = share_key(place);
        {
            let shares = self.shares.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(share) = shares.get(&key) {
                return Ok(Arc::clone(share));
            }
        }
        let mut what = format!("connecting to \\\\{}\\{}", place.server, place.share);
        if place.port != SMB_PORT {
            what.push_str(&format!(" at port {}", place.port));
        }
        let work = connect::connect(self.options.clone(), place.clone(), what.clone());
        let made = Arc::new(self.wait(&what, work)?);
        let mut shares = self.shares.lock().unwrap_or_else(PoisonError::into_inner);
        let held = shares.get(&key).map(Arc::clone);
        let Some(held) = held else {
            shares.insert(key, Arc::clone(&made));
            return Ok(made);
        };
        drop(shares);
        // Somebody else was quicker.
        self.retire(made);
        Ok(held)
    }

    fn drop_share(&self, place: &Place) {
        let mut shares = self.shares.lock().unwrap_or_else(PoisonError::into_inner);
        let gone = shares.remove(&share_key(place));
        drop(shares);
        self.retire(gone);
    }

    /// Parts of the crate end by tasks of their own, and need the runtime around them for that.
    fn retire<T>(&self, part: T) {
        let entered = self.runtime.0.enter();
        drop(part);
        drop(entered);
    }

    fn open_once(self: &Arc<Self>, place: &Place, path: &HostPath) -> Result<Option<OpenFile>> {
        let share = self.share(place)?;
        let what = format!("opening {path} on {}", place.server);
        let below = place.path.clone();
        let context = what.clone();
        let held = Arc::clone(&share);
        let opened = self.wait(&what, async move {
            let access = FileAccessMask::new().with_generic_read(true);
            let args = FileCreateArgs::make_open_existing(access);
            let resource = held.tree.create(&below, &args).await;
            match resource.map_err(|error| told(error, context.clone()))? {
                Resource::File(file) => {
                    let size = file.get_len().await;
                    let size_bytes = size.map_err(|error| told(error, context))?;
                    Ok((file, size_bytes))
                }
                _ => Err(Error::new(
                    ErrorKind::Invalid,
                    format!("{context}: no file"),
                )),
            }
        });
        match opened {
            Ok((file, size_bytes)) => Ok(Some(OpenFile {
                file: Arc::new(file),
                size_bytes,
                _share: share,
            })),
            Err(error) => {
                self.retire(share);
                if error.kind() == ErrorKind::NotFound {
                    return Ok(None);
                }
                Err(error)
            }
        }
    }

    /// Opens; when the connection turns out to be dead, over a new one.
    fn open_twice(self: &Arc<Self>, place: &Place, path: &HostPath) -> Result<Option<OpenFile>> {
        self.twice(place, || self.open_once(place, path))
    }

    /// Does something on a share; when the connection turns out to be dead, over a new one.
    fn twice<T>(self: &Arc<Self>, place: &Place, work: impl Fn() -> Result<T>) -> Result<T> {
        match work() {
            Err(error) if may_be_the_line(&error) => {
                self.drop_share(place);
                work()
            }
            other => other,
        }
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        let mut shares = self.shares.lock().unwrap_or_else(PoisonError::into_inner);
        let all: Vec<Arc<Share>> = shares.drain().map(|(_, share)| share).collect();
        drop(shares);
        self.retire(all);
    }
}

fn share_key(place: &Place) -> String {
    format!("{}:{}\\{}", place.server, place.port, place.share).to_lowercase()
}

fn may_be_the_line(error: &Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::Unreachable | ErrorKind::TimedOut | ErrorKind::Protocol
    )
}
