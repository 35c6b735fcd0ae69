//! What a worker process holds while a VM runs: its disks, open for writing, with every write tracked.
//!
//! **Invariants.** Only the holder of a session writes into a live disk. A closed session leaves files that anybody can read.

use super::ids::DriveAddress;
use super::storage::{FilePlace, Storage};
use crate::guest::GuestDisks;
use crate::{Error, Result};
use block::{ReadAt, WriteAt};
use vdisk::image::ImageEditor;

pub(super) struct OpenDisk {
    pub address: DriveAddress,
    pub place: FilePlace,
    pub editor: ImageEditor,
}

/// The open disks of a running VM, in the order of its drives. Empty where no guest writes.
#[derive(Default)]
pub(super) struct Session {
    pub disks: Vec<OpenDisk>,
}

/// The disks of a session as the guest sees them.
pub(super) struct SessionDisks<'s> {
    pub session: &'s Session,
    pub storage: &'s mut Storage,
}

impl SessionDisks<'_> {
    fn disk(&self, disk: usize) -> Result<&OpenDisk> {
        self.session
            .disks
            .get(disk)
            .ok_or_else(|| Error::invalid(format!("the guest has no disk {disk}")))
    }
}

impl GuestDisks for SessionDisks<'_> {
    fn read(&self, disk: usize, offset: u64, buffer: &mut [u8]) -> Result<()> {
        let disk = self.disk(disk)?;
        disk.editor
            .read_at(offset, buffer)
            .map_err(|error| Error::io(format!("a guest reads {}", disk.address), error))
    }

    fn write(&mut self, disk: usize, offset: u64, bytes: &[u8]) -> Result<()> {
        let disk = self.disk(disk)?;
        disk.editor
            .write_at(offset, bytes)
            .map_err(|error| Error::io(format!("a guest writes to {}", disk.address), error))?;
        let tracked = self
            .storage
            .disks
            .get(&disk.place)
            .and_then(|it| it.tracked);
        if let Some(tracker) = tracked.and_then(|it| self.storage.trackers.get_mut(&it.tracker)) {
            let length = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
            tracker.note(offset, length);
        }
        Ok(())
    }
}
