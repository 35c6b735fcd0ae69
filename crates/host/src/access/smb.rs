//! Files of hosts over SMB 3: `D:\vm\a.vhdx` on node `hv01` is `\\hv01\D$\vm\a.vhdx`, a path on a share is itself.
//!
//! ```text
//!   SmbAccess ── one connection for each server and share, made when first needed
//!      └─ SmbFile (ReadAt) ── requests of 1 MiB, several under way ──► tasks on a small runtime of our own ──► transport
//! ```
//!
//! The protocol is the crate `smb`'s; the transport is ours ([`transport`]), because the crate's own waits for delayed
//! acknowledgements (RFD 22).
//!
//! **Invariants.** Files are opened for reading, sharing everything, without an oplock: nothing that a hypervisor would have to
//! break. Every wait has a time limit. What comes back is never believed to be longer than what was asked for: a server that says so
//! costs its task, not the process. A connection that failed is made anew once; a second failure is the caller's.
//!
//! **What it does not do.** No writing, no DFS, no Kerberos (the crate's NTLMv2 alone), no volumes without a letter or a share.

mod transport;

use std::collections::HashMap;
use std::net::ToSocketAddrs;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use block::ReadAt;
use smb::connection::{ConnectionConfig, EncryptionMode};
use smb::{
    Connection, FileAccessMask, FileCreateArgs, GetLen, Guid, Resource, Session, Tree, UncPath,
};
use tokio::runtime::Runtime;

use super::DiskAccess;
use crate::ids::NodeName;
use crate::path::{HostPath, PathPlace};
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

/// How files are reached.
#[derive(Debug, Clone)]
pub struct SmbOptions {
    /// Who asks.
    pub account: SmbAccount,
    /// Whether it is encrypted.
    pub encryption: SmbEncryption,
    /// The port; 445 unless told otherwise.
    pub port: u16,
    /// Longest that any one answer is waited for.
    pub timeout: Duration,
    /// Bytes of one request.
    pub request_bytes: u32,
    /// Requests of one read that are under way at once.
    pub depth: usize,
}

impl SmbOptions {
    /// The usual ones for an account.
    pub fn new(account: SmbAccount) -> Self {
        Self {
            account,
            encryption: SmbEncryption::Required,
            port: 445,
            timeout: Duration::from_secs(30),
            request_bytes: 1 << 20,
            depth: 8,
        }
    }
}

/// Status codes that mean that nothing is there: no such file, path, share, or name.
const NOT_THERE: [u32; 3] = [0xC000_0034, 0xC000_003A, 0xC000_000F];
/// Status codes of refused access: access, logon, account, privilege.
const DENIED: [u32; 4] = [0xC000_0022, 0xC000_006D, 0xC000_0072, 0xC000_0061];
const SHARING_VIOLATION: u32 = 0xC000_0043;

/// A share that is connected. Its parts end in the order in which they stand here.
struct Share {
    tree: Tree,
    _session: Session,
    _connection: Connection,
}

/// What files and the access have in common.
struct Shared {
    options: SmbOptions,
    runtime: Runtime,
    shares: Mutex<HashMap<String, Arc<Share>>>,
}

/// Files of hosts over SMB 3.
pub struct SmbAccess {
    shared: Arc<Shared>,
}

/// Server, share, and the path below it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Place {
    server: String,
    share: String,
    path: String,
}

impl SmbAccess {
    /// Connects to nothing yet.
    pub fn new(options: SmbOptions) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .thread_name("smb")
            .enable_all()
            .build()
            .map_err(|error| {
                Error::with_source(ErrorKind::Io, "starting the runtime of SMB", error)
            })?;
        Ok(Self {
            shared: Arc::new(Shared {
                options,
                runtime,
                shares: Mutex::new(HashMap::new()),
            }),
        })
    }
}

impl DiskAccess for SmbAccess {
    fn open(&self, node: &NodeName, path: &HostPath) -> Result<Option<Arc<dyn ReadAt>>> {
        let place = place_of(node, path)?;
        let Some(file) = self.shared.open_twice(&place, path)? else {
            return Ok(None);
        };
        let size_bytes = file.size_bytes;
        Ok(Some(Arc::new(SmbFile {
            shared: Arc::clone(&self.shared),
            place,
            path: path.clone(),
            size_bytes,
            opened: Mutex::new(Some(file)),
        })))
    }
}

/// Where a path of a node is reached.
fn place_of(node: &NodeName, path: &HostPath) -> Result<Place> {
    let text = path.as_str().replace('/', "\\");
    let text = text.strip_prefix("\\\\?\\").unwrap_or(&text);
    let below = |skip: usize| {
        let parts: Vec<&str> = text
            .split('\\')
            .filter(|part| !part.is_empty())
            .skip(skip)
            .collect();
        if parts.is_empty() || parts.contains(&"..") {
            return Err(Error::new(
                ErrorKind::Invalid,
                format!("{path} names no file on a share"),
            ));
        }
        Ok(parts.join("\\"))
    };
    match path.place() {
        PathPlace::Drive(letter) => Ok(Place {
            server: node.as_str().to_owned(),
            share: format!("{letter}$"),
            path: below(1)?,
        }),
        PathPlace::Share { server, share } => {
            let skip = if text.starts_with("UNC\\") { 3 } else { 2 };
            Ok(Place {
                server,
                share,
                path: below(skip)?,
            })
        }
        PathPlace::Volume | PathPlace::Posix | PathPlace::Other => Err(Error::new(
            ErrorKind::Unsupported,
            format!("no share leads to {path}"),
        )),
    }
}

/// What an error of the crate means here, told of a path.
fn told(error: smb::Error, context: String) -> Error {
    let status = match &error {
        smb::Error::UnexpectedMessageStatus(status) => Some(*status),
        smb::Error::ReceivedErrorMessage(status, _) => Some(*status),
        _ => None,
    };
    let kind = match status {
        Some(status) if NOT_THERE.contains(&status) => ErrorKind::NotFound,
        Some(status) if DENIED.contains(&status) => ErrorKind::Denied,
        Some(SHARING_VIOLATION) => ErrorKind::Busy,
        Some(_) => ErrorKind::Failed,
        None => match &error {
            smb::Error::NegotiationError(_) | smb::Error::SspiError(_) => ErrorKind::Denied,
            smb::Error::SignatureVerificationFailed | smb::Error::InvalidMessage(_) => {
                ErrorKind::Protocol
            }
            _ => ErrorKind::Unreachable,
        },
    };
    let told = Error::with_source(kind, context, error);
    match status {
        Some(status) => told.coded(crate::error::HostCode(status)),
        None => told,
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
            .spawn(async move { tokio::time::timeout(limit, work).await });
        match self.runtime.block_on(task) {
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

    fn share(self: &Arc<Self>, place: &Place) -> Result<Arc<Share>> {
        let key = share_key(place);
        {
            let shares = self.shares.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(share) = shares.get(&key) {
                return Ok(Arc::clone(share));
            }
        }
        let what = format!("connecting to \\\\{}\\{}", place.server, place.share);
        let work = connect(self.options.clone(), place.clone(), what.clone());
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
        let entered = self.runtime.enter();
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
        match self.open_once(place, path) {
            Err(error) if may_be_the_line(&error) => {
                self.drop_share(place);
                self.open_once(place, path)
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
    format!("{}\\{}", place.server, place.share).to_lowercase()
}

fn may_be_the_line(error: &Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::Unreachable | ErrorKind::TimedOut | ErrorKind::Protocol
    )
}

async fn connect(options: SmbOptions, place: Place, what: String) -> Result<Share> {
    let server = place.server.clone();
    let port = options.port;
    let found =
        tokio::task::spawn_blocking(move || (server.as_str(), port).to_socket_addrs()).await;
    let address = found
        .ok()
        .and_then(std::result::Result::ok)
        .and_then(|mut all| all.next())
        .ok_or_else(|| {
            Error::new(
                ErrorKind::Unreachable,
                format!("{what}: the name has no address"),
            )
        })?;
    let transport = transport::QuickTcp::connect(address)
        .await
        .map_err(|error| Error::with_source(ErrorKind::Unreachable, what.clone(), error))?;
    let config = ConnectionConfig {
        timeout: Some(options.timeout),
        min_dialect: Some(smb::Dialect::Smb030),
        encryption_mode: match options.encryption {
            SmbEncryption::Required => EncryptionMode::Required,
            SmbEncryption::AsServerWants => EncryptionMode::Allowed,
        },
        smb2_only_negotiate: true,
        ..ConnectionConfig::default()
    };
    let failed = |error: smb::Error| told(error, what.clone());
    let connection =
        Connection::from_transport(Box::new(transport), &place.server, Guid::generate(), config)
            .await
            .map_err(failed)?;
    let identity = sspi::AuthIdentity {
        username: sspi::Username::parse(&options.account.user).map_err(|error| {
            Error::with_source(
                ErrorKind::Invalid,
                format!("{what}: the account's name"),
                error,
            )
        })?,
        password: sspi::Secret::from(options.account.password.clone()),
    };
    let session = connection.authenticate(identity).await.map_err(failed)?;
    let unc = UncPath::new(&place.server)
        .and_then(|unc| unc.with_share(&place.share))
        .map_err(failed)?;
    let tree = session.tree_connect(&unc).await.map_err(failed)?;
    Ok(Share {
        tree,
        _session: session,
        _connection: connection,
    })
}

/// A file on a server, readable by position.
struct SmbFile {
    shared: Arc<Shared>,
    place: Place,
    path: HostPath,
    size_bytes: u64,
    opened: Mutex<Option<OpenFile>>,
}

impl SmbFile {
    fn handle(&self) -> Result<Arc<smb::File>> {
        let mut opened = self.opened.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(open) = opened.as_ref() {
            return Ok(Arc::clone(&open.file));
        }
        let again = self.shared.open_twice(&self.place, &self.path)?;
        let again = again.ok_or_else(|| {
            Error::new(
                ErrorKind::NotFound,
                format!("{} is gone from {}", self.path, self.place.server),
            )
        })?;
        if again.size_bytes < self.size_bytes {
            self.shared.retire(again);
            return Err(Error::new(
                ErrorKind::Failed,
                format!("{} became shorter while it was read", self.path),
            ));
        }
        let file = Arc::clone(&again.file);
        *opened = Some(again);
        Ok(file)
    }

    fn close(&self) {
        let mut opened = self.opened.lock().unwrap_or_else(PoisonError::into_inner);
        let gone = opened.take();
        drop(opened);
        self.shared.retire(gone);
    }

    /// Reads a range in requests, several under way at once.
    fn read_range(&self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        let request_bytes =
            usize::try_from(self.shared.options.request_bytes.max(4096)).unwrap_or(usize::MAX);
        let wave_bytes = request_bytes.saturating_mul(self.shared.options.depth.max(1));
        let mut at = offset;
        for wave in buffer.chunks_mut(wave_bytes) {
            let file = self.handle()?;
            let mut tasks = Vec::new();
            for part in wave.chunks(request_bytes) {
                let length = part.len();
                tasks.push((length, self.spawn_read(Arc::clone(&file), at, length)));
                at = at.saturating_add(u64::try_from(length).unwrap_or(u64::MAX));
            }
            let mut parts = wave.chunks_mut(request_bytes);
            let mut failure = None;
            // Every task is waited for, also after a failure: none outlives the call.
            for (length, task) in tasks {
                let done = self.shared.runtime.block_on(task);
                let bytes = match done {
                    Ok(Ok(bytes)) if bytes.len() == length => bytes,
                    Ok(Ok(_)) => {
                        failure = Some(self.broken("an answer of another length", None));
                        continue;
                    }
                    Ok(Err(error)) => {
                        failure = Some(error);
                        continue;
                    }
                    Err(error) => {
                        failure = Some(
                            self.broken("an answer that could not be understood", Some(error)),
                        );
                        continue;
                    }
                };
                if let Some(part) = parts.next() {
                    part.copy_from_slice(&bytes);
                }
            }
            self.shared.retire(file);
            if let Some(error) = failure {
                return Err(error);
            }
        }
        Ok(())
    }

    fn broken(&self, what: &str, cause: Option<tokio::task::JoinError>) -> Error {
        let context = format!("reading {} from {}: {what}", self.path, self.place.server);
        match cause {
            Some(cause) => Error::with_source(ErrorKind::Protocol, context, cause),
            None => Error::new(ErrorKind::Protocol, context),
        }
    }

    fn spawn_read(
        &self,
        file: Arc<smb::File>,
        offset: u64,
        length: usize,
    ) -> tokio::task::JoinHandle<Result<Vec<u8>>> {
        let limit = self.shared.options.timeout;
        let context = format!("reading {} from {}", self.path, self.place.server);
        self.shared.runtime.spawn(async move {
            let mut bytes = vec![0_u8; length];
            let mut filled = 0;
            while let Some(rest) = bytes.get_mut(filled..).filter(|rest| !rest.is_empty()) {
                let at = offset.saturating_add(u64::try_from(filled).unwrap_or(u64::MAX));
                let read =
                    tokio::time::timeout(limit, file.read_block(rest, at, None, false)).await;
                let read = read.map_err(|_| {
                    Error::new(ErrorKind::TimedOut, format!("{context}: no answer"))
                })?;
                let count = read.map_err(|error| {
                    Error::with_source(ErrorKind::Unreachable, context.clone(), error)
                })?;
                if count == 0 {
                    return Err(Error::new(
                        ErrorKind::Failed,
                        format!("{context}: the file ends at {at}"),
                    ));
                }
                filled = filled.saturating_add(count);
            }
            Ok(bytes)
        })
    }
}

impl ReadAt for SmbFile {
    fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> block::Result<()> {
        let length = u64::try_from(buffer.len()).unwrap_or(u64::MAX);
        let is_inside = offset
            .checked_add(length)
            .is_some_and(|end| end <= self.size_bytes);
        if !is_inside {
            return Err(block::Error::new(
                block::ErrorKind::OutOfRange,
                format!("{length} bytes at {offset} of {}", self.path),
            ));
        }
        let read = match self.read_range(offset, buffer) {
            Err(error) if may_be_the_line(&error) => {
                self.close();
                self.shared.drop_share(&self.place);
                self.read_range(offset, buffer)
            }
            other => other,
        };
        read.map_err(|error| {
            let context = format!("reading {} at {offset}", self.path);
            block::Error::with_source(block::ErrorKind::Io, context, error)
        })
    }
}

impl Drop for SmbFile {
    fn drop(&mut self) {
        self.close();
    }
}
