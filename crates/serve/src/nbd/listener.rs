//! Where a server listens: a TCP address or a socket in a folder.
//!
//! ```text
//!   tcp:127.0.0.1:0   tcp:[::1]:10809   tcp:localhost:10809        unix:/run/hikae.sock
//! ```
//!
//! **Invariants.** Without being told that anybody may come, only loopback addresses are listened on. A socket in a folder is
//! its owner's alone. One that nobody listens on any more is replaced; anything else that lies there is left alone.

use std::fmt;
use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
#[cfg(unix)]
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use crate::{Error, ErrorKind, Result};

/// How long one look for a client takes at most.
const LOOK_MS: u64 = 200;

/// Where to listen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    /// Host and port; port 0 lets the system choose one.
    Tcp(String),
    /// A socket in a folder.
    Unix(PathBuf),
}

/// Who may come over TCP. There is no TLS and no password.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reach {
    /// Who is on this machine.
    Loopback,
    /// Whoever reaches the address.
    Anybody,
}

impl FromStr for Address {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text.split_once(':') {
            Some(("tcp", host)) if host.contains(':') => Ok(Self::Tcp(host.to_owned())),
            Some(("unix", path)) if !path.is_empty() => Ok(Self::Unix(PathBuf::from(path))),
            _ => Err(Error::new(
                ErrorKind::Invalid,
                format!("{text:?} is no address: write tcp:127.0.0.1:0 or unix:/path/of/socket"),
            )),
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(host) => write!(f, "tcp:{host}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// Writes what of a URI may not stand for itself as `%XX`.
fn escaped(text: &str, also_plain: &str) -> String {
    let mut escaped = String::new();
    for byte in text.bytes() {
        let letter = char::from(byte);
        if letter.is_ascii_alphanumeric() || "-._~".contains(letter) || also_plain.contains(letter)
        {
            escaped.push(letter);
        } else {
            escaped.push_str(&format!("%{byte:02X}"));
        }
    }
    escaped
}

impl Address {
    /// The URI of an export here, as NBD clients take it.
    pub fn uri(&self, export: &str) -> String {
        let export = escaped(export, "@/:");
        match self {
            Self::Tcp(host) => format!("nbd://{host}/{export}"),
            Self::Unix(path) => {
                let path = escaped(&path.to_string_lossy(), "/");
                format!("nbd+unix:///{export}?socket={path}")
            }
        }
    }
}

/// A connection to a client.
pub(super) enum Stream {
    Tcp(TcpStream),
    #[cfg(unix)]
    Unix(UnixStream),
}

macro_rules! each {
    ($stream:expr, $inner:ident => $act:expr) => {
        match $stream {
            Stream::Tcp($inner) => $act,
            #[cfg(unix)]
            Stream::Unix($inner) => $act,
        }
    };
}

impl Stream {
    pub(super) fn try_clone(&self) -> io::Result<Self> {
        Ok(match self {
            Self::Tcp(stream) => Self::Tcp(stream.try_clone()?),
            #[cfg(unix)]
            Self::Unix(stream) => Self::Unix(stream.try_clone()?),
        })
    }

    pub(super) fn shut_down(&self, how: std::net::Shutdown) {
        // One that the other side has closed already needs no more.
        each!(self, stream => stream.shutdown(how).unwrap_or(()));
    }

    pub(super) fn set_timeouts(&self, timeout: Option<Duration>) -> io::Result<()> {
        each!(self, stream => {
            stream.set_read_timeout(timeout)?;
            stream.set_write_timeout(timeout)
        })
    }

    /// Replies go out at once, and a client that vanished is noticed some day.
    fn prepare(&self) -> io::Result<()> {
        each!(self, stream => stream.set_nonblocking(false)?);
        if let Self::Tcp(stream) = self {
            stream.set_nodelay(true)?;
            #[cfg(unix)]
            rustix::net::sockopt::set_socket_keepalive(stream, true)?;
        }
        Ok(())
    }
}

impl io::Read for &Stream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        each!(self, stream => (&*stream).read(buffer))
    }
}

impl io::Write for &Stream {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        each!(self, stream => (&*stream).write(buffer))
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

enum Socket {
    Tcp(TcpListener),
    #[cfg(unix)]
    Unix {
        listener: UnixListener,
        _file: SocketFile,
    },
}

/// A place where clients come.
pub struct NbdListener {
    socket: Socket,
    address: Address,
}

impl NbdListener {
    /// Begins to listen.
    ///
    /// # Errors
    /// [`ErrorKind::Refused`] for an address that others reach, [`ErrorKind::Busy`] when somebody listens there,
    /// [`ErrorKind::AlreadyExists`] when something else lies at the path, [`ErrorKind::Unsupported`] without such sockets.
    pub fn bind(address: &Address, reach: Reach) -> Result<Self> {
        match address {
            Address::Tcp(host) => Self::bind_tcp(host, reach),
            #[cfg(unix)]
            Address::Unix(path) => {
                // Clients may stand in another folder.
                let whole = std::path::absolute(path);
                let path = whole.map_err(|error| Error::io(address.to_string(), error))?;
                let (listener, file) = bind_unix(&path)?;
                Ok(Self {
                    socket: Socket::Unix {
                        listener,
                        _file: file,
                    },
                    address: Address::Unix(path),
                })
            }
            #[cfg(not(unix))]
            Address::Unix(_) => Err(Error::new(
                ErrorKind::Unsupported,
                format!("{address}: there are no such sockets here, use tcp:127.0.0.1:0"),
            )),
        }
    }

    fn bind_tcp(host: &str, reach: Reach) -> Result<Self> {
        let context = || format!("tcp:{host}");
        let found: Vec<SocketAddr> = host
            .to_socket_addrs()
            .map_err(|error| Error::io(context(), error))?
            .collect();
        let is_far = |address: &&SocketAddr| !address.ip().is_loopback();
        if let Some(address) = found.iter().find(is_far)
            && reach == Reach::Loopback
        {
            let what = format!(
                "tcp:{host}: others reach {}, and there is neither a password nor encryption",
                address.ip()
            );
            return Err(Error::new(ErrorKind::Refused, what));
        }
        let bound = TcpListener::bind(found.as_slice()).map_err(|error| {
            if error.kind() == io::ErrorKind::AddrInUse {
                Error::new(
                    ErrorKind::Busy,
                    format!("tcp:{host}: somebody listens there"),
                )
            } else {
                Error::io(context(), error)
            }
        })?;
        let local = bound
            .set_nonblocking(true)
            .and_then(|()| bound.local_addr())
            .map_err(|error| Error::io(context(), error))?;
        Ok(Self {
            socket: Socket::Tcp(bound),
            address: Address::Tcp(local.to_string()),
        })
    }

    /// Where it listens: with the port that it got, or the socket's whole path.
    pub fn address(&self) -> &Address {
        &self.address
    }

    /// The next client and its name; `None` when there is none for a moment.
    pub(super) fn accept(&self) -> io::Result<Option<(Stream, String)>> {
        let accepted = match &self.socket {
            Socket::Tcp(listener) => {
                wait_for_client(listener)?;
                let found = listener.accept();
                found.map(|(stream, peer)| (Stream::Tcp(stream), format!("tcp:{peer}")))
            }
            #[cfg(unix)]
            Socket::Unix { listener, .. } => {
                wait_for_client(listener)?;
                let found = listener.accept();
                found.map(|(stream, _)| (Stream::Unix(stream), self.address.to_string()))
            }
        };
        match accepted {
            // One that cannot be prepared has gone again.
            Ok((stream, peer)) => Ok(stream.prepare().is_ok().then_some((stream, peer))),
            Err(error) => match error.kind() {
                io::ErrorKind::WouldBlock
                | io::ErrorKind::Interrupted
                | io::ErrorKind::ConnectionAborted
                | io::ErrorKind::ConnectionReset => Ok(None),
                _ => Err(error),
            },
        }
    }
}

/// Waits until a client is there, or a moment.
#[cfg(unix)]
fn wait_for_client(listener: &impl std::os::fd::AsFd) -> io::Result<()> {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let mut fds = [PollFd::new(listener, PollFlags::IN)];
    let moment = Timespec {
        tv_sec: 0,
        tv_nsec: i64::try_from(LOOK_MS.saturating_mul(1_000_000)).unwrap_or(0),
    };
    match poll(&mut fds, Some(&moment)) {
        Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

#[cfg(not(unix))]
fn wait_for_client<T>(_: &T) -> io::Result<()> {
    std::thread::sleep(Duration::from_millis(LOOK_MS / 10));
    Ok(())
}

/// The socket's entry in its folder; taken away when it is dropped, if it is still ours.
#[cfg(unix)]
struct SocketFile {
    path: PathBuf,
    identity: (u64, u64),
}

#[cfg(unix)]
impl SocketFile {
    fn of(path: &std::path::Path) -> io::Result<Self> {
        Ok(Self {
            path: path.to_owned(),
            identity: identity(path)?,
        })
    }
}

#[cfg(unix)]
fn identity(path: &std::path::Path) -> io::Result<(u64, u64)> {
    use std::os::unix::fs::MetadataExt;
    let metadata = std::fs::symlink_metadata(path)?;
    Ok((metadata.dev(), metadata.ino()))
}

#[cfg(unix)]
impl Drop for SocketFile {
    fn drop(&mut self) {
        if identity(&self.path).is_ok_and(|now| now == self.identity) {
            // One that stays is found dead and replaced the next time.
            std::fs::remove_file(&self.path).ok();
        }
    }
}

#[cfg(unix)]
fn bind_unix(path: &std::path::Path) -> Result<(UnixListener, SocketFile)> {
    use std::os::unix::fs::FileTypeExt;
    let context = || format!("unix:{}", path.display());
    match std::fs::symlink_metadata(path) {
        Ok(metadata) if !metadata.file_type().is_socket() => {
            let what = format!("{}: something else lies there", context());
            return Err(Error::new(ErrorKind::AlreadyExists, what));
        }
        Ok(_) if UnixStream::connect(path).is_ok() => {
            let what = format!("{}: somebody listens there", context());
            return Err(Error::new(ErrorKind::Busy, what));
        }
        Ok(_) => std::fs::remove_file(path).map_err(|error| Error::io(context(), error))?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(Error::io(context(), error)),
    }
    // The mask is the whole process's, but it only ever takes rights away, and only for a moment.
    let mask = rustix::process::umask(rustix::fs::Mode::from_bits_truncate(0o177));
    let bound = UnixListener::bind(path);
    rustix::process::umask(mask);
    let listener = bound.map_err(|error| Error::io(context(), error))?;
    listener
        .set_nonblocking(true)
        .map_err(|error| Error::io(context(), error))?;
    let file = SocketFile::of(path).map_err(|error| Error::io(context(), error))?;
    Ok((listener, file))
}
