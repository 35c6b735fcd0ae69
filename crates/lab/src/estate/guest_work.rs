//! What a guest is told to do by whoever runs the lab.
//!
//! **Invariants.** It writes through the session of its running VM, so that every write is tracked. Its workload's own bytes are
//! left alone: bulk goes behind them on the first disk.

use block::ReadAt;

use super::Estate;
use super::ids::{HostName, VmId};
use crate::guest::{BULK_BYTES, Place};
use crate::{Error, Result};

/// More at once would hold everybody else up.
const BULK_MAX_BYTES: u64 = 64 << 20;

impl Estate {
    /// Makes the guest of a running VM write so much at once, rounded up to [`BULK_BYTES`] and at most 64 MiB; how much it wrote.
    ///
    /// # Errors
    /// `NotFound`; `Invalid` when no guest writes, it does not run, holds still, found its disks inconsistent, or has no room
    /// behind its workload; `Io`.
    pub fn guest_writes(&mut self, host: &HostName, id: VmId, bytes: u64) -> Result<u64> {
        let vm = self.vm(host, id)?;
        let (key, name) = (vm.key, vm.settings.name.clone());
        let refuse = |why: &str| Err(Error::invalid(format!("the guest of {name} {why}")));
        let Some(guest) = vm.guest() else {
            return refuse("does not write: there is none");
        };
        if !vm.is_running() {
            return refuse("does not run");
        }
        if guest.is_frozen() {
            return refuse("holds still for a checkpoint");
        }
        let begin = guest.layout().end().next_multiple_of(BULK_BYTES);
        let chunks = bytes.min(BULK_MAX_BYTES).div_ceil(BULK_BYTES);
        let written = self.with_guest(key, |guest, disks| {
            let size_bytes = disks
                .session
                .disks
                .first()
                .map_or(0, |disk| disk.editor.size_bytes());
            let area = Place {
                disk: 0,
                offset: begin,
            };
            guest.write_bulk(disks, area, size_bytes.saturating_sub(begin), chunks)
        })?;
        match written {
            Some(written) if written == chunks => Ok(written * BULK_BYTES),
            _ => {
                refuse("cannot write: it is broken, or its first disk ends where its workload does")
            }
        }
    }
}
