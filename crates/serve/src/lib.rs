//! Disks served read-only to programs that are not ours: over NBD, and as files of a FUSE folder.
//!
//! ```text
//!   a version, an image ──► CachedDisk ──┬─► nbd::NbdServer ──► qemu-img, nbdcopy, the kernel's nbd     (TCP, Unix socket)
//!      (any ReadAt)      cache, read-ahead └─► fuse::FuseMount ─► loop mounts, ntfs-3g, cp, anything     (Linux)
//! ```
//!
//! - [`ReadCache`], [`CachedDisk`]: blocks that were read, bounded, and reading ahead of who reads in order.
//! - [`nbd`]: the protocol as a machine over any byte stream, and the server that runs it over sockets.
//! - `fuse`: a folder of files, each a disk.
//! - [`Watch`]: how a caller learns what goes wrong; nothing here prints.
//!
//! **Invariants.** Nothing is ever written to a disk. What a client sends is hostile until checked: no length sizes an
//! allocation without a bound, and connections, requests in flight, options and bytes in memory are all bounded. A client
//! that dawdles or dies costs its own connection and nobody else's.
//!
//! **What it does not do.** No TLS: who may connect is for the socket's folder or the loopback address to say. No writing, not
//! even into a scratch layer. It knows no repository: whoever calls brings disks and keeps them readable.

mod ahead;
mod cache;
mod disk;
mod error;
#[cfg(target_os = "linux")]
pub mod fuse;
pub mod nbd;
mod pool;
mod watch;

pub use cache::{CacheStats, ReadCache};
pub use disk::CachedDisk;
pub use error::{Error, ErrorKind, Result};
pub use watch::{Event, Unwatched, Watch};
