//! The life of a checkpoint after it was made: its bytes, its changes, its end.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use block::{ChangedRanges, ReadAt};
use host::boundary::{BatchRead, Checkpoints, DiskReads};
use host::checkpoint::{
    Changes, Checkpoint, CheckpointRequest, ConfigurationFile, FrozenDisk, MergeState, Presence,
    Released, Settled,
};
use host::custody::{Closing, Custody, HeldKind, MachineMark, Mark};
use host::ids::{
    CheckpointRef, TrackingPointId, TrackingPointRef, TrackingScheme, TrackingToken, VmId,
};
use host::{CancelToken, Clock, Error, ErrorKind, Result};
use serde_json::json;

use super::agent;
use super::guest::QemuGuest;
use super::making::Point;
use super::nbd::{self, NbdDisk};
use super::parts::{Look, frozen_name, part_name, point_name};
use super::place::on_node;
use super::qmp::Monitor;

const MAX_CONFIGURATION_BYTES: u64 = 64 << 20;

impl QemuGuest {
    /// A checkpoint that is whole, with what is in QEMU.
    fn whole(&self, reference: &CheckpointRef) -> Result<(Checkpoint, Look)> {
        self.own(reference.vm)?;
        let id = reference.checkpoint.as_str();
        let gone = || Error::new(ErrorKind::NotFound, format!("checkpoint {id} is gone"));
        let mut monitor = self.try_monitor()?.ok_or_else(gone)?;
        let look = Look::take(&mut monitor)?;
        let note = self.place.note(id)?.ok_or_else(gone)?;
        let checkpoint = note.checkpoint.ok_or_else(gone)?;
        // Jobs end with the process: a checkpoint does not survive its QEMU.
        let is_there = |number| look.jobs.contains(&part_name(id, number));
        if (0..checkpoint.disks.len()).all(is_there) {
            Ok((checkpoint, look))
        } else {
            Err(gone())
        }
    }

    fn number_of(checkpoint: &Checkpoint, disk: &FrozenDisk) -> Result<usize> {
        let mut disks = checkpoint.disks.iter();
        disks
            .position(|it| it.device == disk.device)
            .ok_or_else(|| Error::new(ErrorKind::NotFound, "no such disk in the checkpoint"))
    }

    fn changes(
        &self,
        reference: &CheckpointRef,
        disk: &FrozenDisk,
        since: &TrackingToken,
    ) -> Result<Changes> {
        let lost = |reason: &str| {
            Ok(Changes::Lost {
                reason: reason.to_owned(),
            })
        };
        let (checkpoint, look) = self.whole(reference)?;
        let number = Self::number_of(&checkpoint, disk)?;
        if since.scheme != TrackingScheme::DirtyBitmap {
            return lost("the token is of another tracker");
        }
        if Some(since.size_bytes) != disk.size_bytes {
            return lost("the disk had another size");
        }
        let id = reference.checkpoint.as_str();
        let copy = frozen_name(id, &since.value);
        let node = look.node(disk.device.as_str());
        let has = |name: &str| node.is_some_and(|it| it.bitmaps.iter().any(|it| it.name == name));
        if !has(&copy) {
            return lost(if has(&since.value) {
                "QEMU ended without writing the bitmap down"
            } else {
                "the disk has no such bitmap"
            });
        }
        match nbd::dirty(&self.place.nbd(), &part_name(id, number), &copy) {
            Ok(ranges) => match ChangedRanges::new(ranges) {
                Ok(ranges) => Ok(Changes::Known(ranges)),
                Err(error) => lost(&error.to_string()),
            },
            Err(error) => lost(&error.to_string()),
        }
    }

    /// Removes whatever is there of a checkpoint. Does nothing when nothing is.
    pub(super) fn remove_checkpoint(&self, id: &str, point: Point) -> Result<()> {
        if let Some(mut monitor) = self.try_monitor()? {
            self.remove_parts(&mut monitor, id, point)?;
        }
        self.steps.pass("files");
        self.place.remove_files(id)?;
        Ok(())
    }

    fn remove_parts(&self, monitor: &mut Monitor<'_>, id: &str, point: Point) -> Result<()> {
        let is_part = |name: &&String| name.split_once('.').is_some_and(|(it, _)| it == id);
        let look = Look::take(monitor)?;
        for export in look.exports.iter().filter(is_part) {
            self.remove_export(monitor, export)?;
        }
        for job in look.jobs.iter().filter(is_part) {
            gone(monitor.change("block-job-cancel", &json!({"device": job, "force": true})))?;
        }
        monitor.wait("a job does not end", |monitor| {
            Ok(!Look::take(monitor)?.jobs.iter().any(|job| is_part(&job)))
        })?;
        // Until none is seen: a command of a process that died may be carried out late, and what is refused now goes a moment later.
        monitor.wait("an overlay stays", |monitor| {
            let look = Look::take(monitor)?;
            let overlays = look.nodes.iter().filter(|node| is_part(&&node.name));
            let names: Vec<&String> = overlays.map(|node| &node.name).collect();
            for name in &names {
                let _ = monitor.change("blockdev-del", &json!({"node-name": name}));
            }
            Ok(names.is_empty())
        })?;
        let look = Look::take(monitor)?;
        for (node, bitmap) in look.bitmaps() {
            let is_copy = bitmap.name.split_once('<').is_some_and(|(it, _)| it == id);
            let is_point = bitmap.point().is_some_and(|(it, _)| it == id);
            if is_copy || (is_point && point == Point::Goes) {
                let bitmap = json!({"node": node.name, "name": bitmap.name});
                monitor.change("block-dirty-bitmap-remove", &bitmap)?;
            }
        }
        let look = Look::take(monitor)?;
        if look.exports.is_empty() && self.place.nbd().exists() {
            // It may be another's that has nothing exported yet; then it is not at our socket, and we would not see it.
            monitor.change("nbd-server-stop", &json!({}))?;
            super::place::remove(&self.place.nbd())?;
        }
        if look.status == "io-error" {
            // Storage of an overlay that ran full stops the guest. It has gone now.
            monitor.change("cont", &json!({}))?;
        }
        Ok(())
    }

    pub(super) fn remove_export(&self, monitor: &mut Monitor<'_>, export: &str) -> Result<()> {
        gone(monitor.change("block-export-del", &json!({"id": export, "mode": "hard"})))?;
        monitor.wait("an export does not end", |monitor| {
            Ok(!Look::take(monitor)?.exports.iter().any(|it| it == export))
        })
    }

    /// The mark of a checkpoint that is there in any part; `None` when nothing of it is.
    fn mark_of(&self, id: &str) -> Result<Option<Option<Mark>>> {
        let mut monitor = self.try_monitor()?;
        let look = monitor.as_mut().map(Look::take).transpose()?;
        let (ours, theirs) = look.as_ref().map(Look::checkpoints).unwrap_or_default();
        let note = self.place.note(id)?;
        let has = |ids: &[String]| ids.iter().any(|it| it == id);
        if !has(&ours) && !has(&theirs) && !has(&self.place.noted()?) {
            return Ok(None);
        }
        let mark = note.map(|note| note.mark);
        Ok(Some(mark.or_else(|| look.and_then(|it| it.mark_of(id)))))
    }
}

/// Success when what was to go is gone already.
fn gone(outcome: Result<serde_json::Value>) -> Result<()> {
    match outcome {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn check_owner(mark: Option<&Mark>, custody: &Custody) -> Result<()> {
    if mark.is_some_and(|mark| mark.owner == custody.mark().owner) {
        Ok(())
    } else {
        Err(Error::new(ErrorKind::Refused, "it carries no mark of ours"))
    }
}

fn released(was: Presence) -> Released {
    Released {
        was,
        merge: MergeState::Done,
        warnings: Vec::new(),
    }
}

impl Checkpoints for QemuGuest {
    fn create(
        &self,
        request: &CheckpointRequest,
        custody: &Custody,
        cancel: &CancelToken,
    ) -> Result<Checkpoint> {
        self.make(request, custody, cancel)
    }

    fn open(&self, reference: &CheckpointRef, _cancel: &CancelToken) -> Result<Checkpoint> {
        self.whole(reference).map(|(checkpoint, _)| checkpoint)
    }

    fn changed_ranges(
        &self,
        reference: &CheckpointRef,
        disk: &FrozenDisk,
        since: &TrackingToken,
        _cancel: &CancelToken,
    ) -> Result<Changes> {
        self.changes(reference, disk, since)
    }

    fn settle(
        &self,
        checkpoint: &Checkpoint,
        custody: &Custody,
        _cancel: &CancelToken,
    ) -> Result<Settled> {
        let reference = &checkpoint.reference;
        let (found, look) = self.whole(reference)?;
        let id = reference.checkpoint.as_str();
        let mark = self.mark_of(id)?.flatten();
        check_owner(mark.as_ref(), custody)?;
        let Some(mark) = mark else {
            return Err(Error::new(ErrorKind::Refused, "it carries no mark"));
        };
        let point = TrackingPointRef {
            vm: reference.vm,
            point: TrackingPointId::new(point_name(id, &mark))?,
        };
        let name = point.point.as_str();
        let points = look.bitmaps().filter(|(_, it)| it.point().is_some());
        let mut before: Vec<String> = points.map(|(_, it)| it.name.clone()).collect();
        before.retain(|it| it != name);
        before.dedup();
        let kind = HeldKind::TrackingPoint;
        let entry = custody.intend(kind, reference.vm, &self.node, self.clock.now(), before)?;
        custody.made(entry, name)?;
        self.remove_checkpoint(id, Point::Stays)?;
        custody.close_made(HeldKind::Checkpoint, reference.vm, id, Closing::Removed)?;
        let tracked = found.disks.iter().filter_map(|disk| {
            let node = look.node(disk.device.as_str())?;
            node.bitmaps.iter().find(|it| it.name == name)?;
            let token = TrackingToken {
                scheme: TrackingScheme::DirtyBitmap,
                value: name.to_owned(),
                disk: None,
                size_bytes: disk.size_bytes?,
            };
            Some((disk.device.clone(), token))
        });
        Ok(Settled {
            tokens: tracked.collect(),
            point: Some(point),
            node: self.node.clone(),
            warnings: Vec::new(),
        })
    }

    fn release(
        &self,
        reference: &CheckpointRef,
        custody: &Custody,
        _cancel: &CancelToken,
    ) -> Result<Released> {
        self.own(reference.vm)?;
        let id = reference.checkpoint.as_str();
        let Some(mark) = self.mark_of(id)? else {
            custody.close_made(HeldKind::Checkpoint, reference.vm, id, Closing::Gone)?;
            return Ok(released(Presence::Absent));
        };
        check_owner(mark.as_ref(), custody)?;
        self.remove_checkpoint(id, Point::Goes)?;
        custody.close_made(HeldKind::Checkpoint, reference.vm, id, Closing::Removed)?;
        Ok(released(Presence::Removed))
    }

    fn drop_tracking(
        &self,
        point: &TrackingPointRef,
        custody: &Custody,
        _cancel: &CancelToken,
    ) -> Result<Released> {
        self.own(point.vm)?;
        let kind = HeldKind::TrackingPoint;
        let name = point.point.as_str();
        let mut monitor = self.monitor()?;
        let look = Look::take(&mut monitor)?;
        let mut was = Presence::Absent;
        for (node, bitmap) in look.bitmaps().filter(|(_, it)| it.name == name) {
            let mark = bitmap.point().map(|(_, mark)| mark);
            check_owner(mark.as_ref(), custody)?;
            let bitmap = json!({"node": node.name, "name": bitmap.name});
            monitor.change("block-dirty-bitmap-remove", &bitmap)?;
            was = Presence::Removed;
        }
        let closing = match was {
            Presence::Removed => Closing::Removed,
            Presence::Absent => Closing::Gone,
        };
        custody.close_made(kind, point.vm, name, closing)?;
        Ok(released(was))
    }

    fn keep_tracking(&self, point: &TrackingPointRef, custody: &Custody) -> Result<()> {
        // The mark stays, because it is the bitmap's name: the custodian asks whether the point is committed.
        let kind = HeldKind::TrackingPoint;
        custody.close_made(kind, point.vm, point.point.as_str(), Closing::Kept)
    }

    fn unmark(&self, vm: VmId, mark: &MachineMark, _cancel: &CancelToken) -> Result<()> {
        self.own(vm)?;
        self.place.remove_mark(mark)
    }

    fn thaw(&self, vm: VmId, _cancel: &CancelToken) -> Result<Presence> {
        self.own(vm)?;
        if self.try_monitor()?.is_none() {
            return Ok(Presence::Absent);
        }
        let agent = self.place.agent();
        if agent::ask(&agent, "guest-fsfreeze-status")? == "thawed" {
            return Ok(Presence::Absent);
        }
        agent::change(&agent, "guest-fsfreeze-thaw", &self.steps)?;
        Ok(Presence::Removed)
    }

    fn watch_merge(&self, vm: VmId, _cancel: &CancelToken) -> Result<MergeState> {
        // Overlays are thrown away: nothing is ever merged.
        self.own(vm).map(|_| MergeState::Done)
    }

    fn checkpoint_size(&self, reference: &CheckpointRef, _cancel: &CancelToken) -> Option<u64> {
        let mut monitor = self.try_monitor().ok()??;
        let look = Look::take(&mut monitor).ok()?;
        let id = reference.checkpoint.as_str();
        let parts = look
            .nodes
            .iter()
            .filter(|node| node.name.split_once('.').is_some_and(|(of, _)| of == id));
        let held: Vec<u64> = parts.filter_map(|node| node.held_bytes).collect();
        (!held.is_empty()).then(|| held.iter().sum())
    }
}

/// A file of the node.
struct NodeFile {
    file: File,
    size_bytes: u64,
}

impl ReadAt for NodeFile {
    fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> block::Result<()> {
        self.file.read_exact_at(buffer, offset).map_err(|error| {
            block::Error::with_source(block::ErrorKind::Io, "read of a file on the node", error)
        })
    }
}

impl QemuGuest {
    fn file_of(&self, reference: &CheckpointRef, file: &ConfigurationFile) -> Result<NodeFile> {
        let (checkpoint, _) = self.whole(reference)?;
        if !checkpoint.configuration.contains(file) {
            return Err(Error::new(
                ErrorKind::Refused,
                "no file of the checkpoint's configuration",
            ));
        }
        let file = File::open(file.path.as_str()).map_err(on_node)?;
        let size_bytes = file.metadata().map_err(on_node)?.len();
        Ok(NodeFile { file, size_bytes })
    }
}

impl DiskReads for QemuGuest {
    fn open_disk(
        &self,
        reference: &CheckpointRef,
        disk: &FrozenDisk,
        _cancel: &CancelToken,
    ) -> Result<Arc<dyn BatchRead>> {
        let (checkpoint, _) = self.whole(reference)?;
        let number = Self::number_of(&checkpoint, disk)?;
        let export = part_name(reference.checkpoint.as_str(), number);
        Ok(Arc::new(NbdDisk::open(&self.place.nbd(), &export)?))
    }

    fn read_configuration(
        &self,
        reference: &CheckpointRef,
        file: &ConfigurationFile,
        _cancel: &CancelToken,
    ) -> Result<Vec<u8>> {
        let found = self.file_of(reference, file)?;
        if found.size_bytes > MAX_CONFIGURATION_BYTES {
            return Err(Error::new(ErrorKind::Refused, "a file beyond 64 MiB"));
        }
        let mut content = vec![0; usize::try_from(found.size_bytes).unwrap_or_default()];
        found.read_at(0, &mut content).map_err(|error| {
            Error::with_source(ErrorKind::Io, "a file of the configuration", error)
        })?;
        Ok(content)
    }

    fn open_configuration(
        &self,
        reference: &CheckpointRef,
        file: &ConfigurationFile,
        _cancel: &CancelToken,
    ) -> Result<Arc<dyn ReadAt>> {
        Ok(Arc::new(self.file_of(reference, file)?))
    }
}
