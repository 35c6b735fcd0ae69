//! A frozen disk that is read on wherever its machine lives: after a migration, a change of storage or the crash of a node it
//! is opened again where it is by then.
//!
//! ```text
//!   read ─► opened disk ─fails─► pause ─► open_disk (follows the machine) ─► read again      at most TRIES times in a row
//! ```
//!
//! **Invariants.** The bytes are those of one checkpoint: what is opened again is the same checkpoint's disk, of the same
//! size. A disk that cannot be opened again fails with the error of the reading.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use block::{Extent, ReadAt};
use host::boundary::BatchRead;
use host::checkpoint::FrozenDisk;
use host::ids::CheckpointRef;

use super::VmBackupTools;
use crate::Result;

/// How often in a row reading is tried again elsewhere.
const TRIES: u32 = 6;
/// Before the first of them; doubled each time: about half a minute in all.
const FIRST_PAUSE: Duration = Duration::from_millis(500);

/// A frozen disk, wherever it is.
pub(super) struct FollowedDisk<'a> {
    tools: VmBackupTools<'a>,
    reference: CheckpointRef,
    frozen: FrozenDisk,
    size_bytes: u64,
    current: RwLock<Opened>,
    reopened: AtomicU64,
}

#[derive(Clone)]
struct Opened {
    disk: Arc<dyn BatchRead>,
    /// How many were opened before.
    number: u64,
}

impl<'a> FollowedDisk<'a> {
    pub(super) fn open(
        tools: VmBackupTools<'a>,
        reference: &CheckpointRef,
        frozen: &FrozenDisk,
    ) -> Result<Self> {
        let disk = tools.host.open_disk(reference, frozen, tools.cancel)?;
        Ok(Self {
            tools,
            reference: reference.clone(),
            frozen: frozen.clone(),
            size_bytes: disk.size_bytes(),
            current: RwLock::new(Opened { disk, number: 0 }),
            reopened: AtomicU64::new(0),
        })
    }

    /// How often it was opened again.
    pub(super) fn reopened(&self) -> u64 {
        self.reopened.load(Ordering::Relaxed)
    }

    pub(super) fn shape(&self) -> Option<vdisk::ImageInfo> {
        self.current().disk.shape()
    }

    pub(super) fn home(&self) -> Option<host::path::HostPath> {
        self.current().disk.home()
    }

    fn current(&self) -> Opened {
        let current = self.current.read();
        current.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Another one than `failed`: what another thread opened meanwhile, or a new one. The lock is held while it is opened, on
    /// purpose: the others have nothing to read until then, and it is opened once.
    fn again(&self, failed: u64) -> host::Result<()> {
        let mut current = self.current.write().unwrap_or_else(PoisonError::into_inner);
        if current.number != failed {
            return Ok(());
        }
        let tools = self.tools;
        let disk = tools
            .host
            .open_disk(&self.reference, &self.frozen, tools.cancel)?;
        if disk.size_bytes() != self.size_bytes {
            return Err(host::Error::new(
                host::ErrorKind::Protocol,
                format!(
                    "the frozen disk {} has {} bytes now and had {}",
                    self.frozen.path,
                    disk.size_bytes(),
                    self.size_bytes
                ),
            ));
        }
        *current = Opened {
            disk,
            number: current.number.saturating_add(1),
        };
        self.reopened.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    fn following<T>(
        &self,
        mut act: impl FnMut(&dyn BatchRead) -> block::Result<T>,
    ) -> block::Result<T> {
        let mut pause = FIRST_PAUSE;
        let mut tried = 0;
        loop {
            let opened = self.current();
            let error = match act(opened.disk.as_ref()) {
                Ok(done) => return Ok(done),
                Err(error) => error,
            };
            // What lies in the image stays so wherever it is read.
            let may_pass = error.kind() == block::ErrorKind::Io;
            if !may_pass || tried == TRIES || self.tools.cancel.is_cancelled() {
                return Err(error);
            }
            tried += 1;
            if tried > 1 {
                self.tools.clock.pause(pause, self.tools.cancel);
                pause = pause.saturating_mul(2);
            }
            if let Err(lost) = self.again(opened.number)
                && (tried == TRIES || is_final(&lost))
            {
                return Err(block::Error::with_source(
                    block::ErrorKind::Io,
                    format!("reading {} on", self.frozen.path),
                    lost,
                ));
            }
        }
    }
}

/// Whether trying again changes nothing: the checkpoint is gone, or we are not let in.
fn is_final(error: &host::Error) -> bool {
    matches!(
        error.kind(),
        host::ErrorKind::NotFound | host::ErrorKind::Denied | host::ErrorKind::Protocol
    )
}

impl ReadAt for FollowedDisk<'_> {
    fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> block::Result<()> {
        self.following(|disk| disk.read_at(offset, buffer))
    }

    fn extent_at(&self, offset: u64, limit_bytes: u64) -> block::Result<Extent> {
        self.following(|disk| disk.extent_at(offset, limit_bytes))
    }
}
