//! Making a checkpoint.
//!
//! ```text
//!   journal ► note ► overlay nodes ► [journal, mark, watchdog, freeze] ► one transaction ► [thaw] ► exports ► note, whole
//!                                    [journal, mark, stop, memory, take images back]       [cont]
//!
//!   transaction, for each disk:  add the point's bitmap   add a copy of each older point's, merge it   job into the overlay
//! ```
//!
//! The older points are copied at the very moment of the checkpoint, because nobody can tell later what they held then, and nothing has to
//! be switched on again when the checkpoint is released.

use std::ffi::OsStr;
use std::time::Duration;

use host::checkpoint::{
    Checkpoint, CheckpointRequest, ConfigurationFile, ConfigurationFileKind, FrozenDisk,
    StillFacts, Warning, WarningCode,
};
use host::consistency::{Consistency, MissedConsistency};
use host::custody::{Closing, Custody, HeldKind, MachineMark};
use host::facts::ImageKind;
use host::ids::{CheckpointId, CheckpointRef, DeviceId, VmId};
use host::path::HostPath;
use host::{CancelToken, Clock, Error, ErrorKind, Result};
use serde_json::{Value, json};

use super::agent;
use super::guest::{QemuGuest, slot};
use super::parts::{Look, disk_name, frozen_name, part_name, point_name};
use super::place::Note;
use super::qmp::Monitor;
use super::watchdog::Watchdog;

/// One attempt at one level.
struct Attempt<'a> {
    id: String,
    level: Consistency,
    request: &'a CheckpointRequest,
    custody: &'a Custody,
    cancel: &'a CancelToken,
}

impl QemuGuest {
    /// As [`host::boundary::Checkpoints::create`].
    pub(super) fn make(
        &self,
        request: &CheckpointRequest,
        custody: &Custody,
        cancel: &CancelToken,
    ) -> Result<Checkpoint> {
        self.own(request.vm)?;
        let mut missed = Vec::new();
        for level in request.policy.attempts() {
            cancel.check("making a checkpoint")?;
            match self.attempt(level, request, custody, cancel) {
                Ok(mut made) => {
                    made.missed = missed;
                    return Ok(made);
                }
                Err(error) if error.kind() == ErrorKind::Consistency => {
                    missed.push(MissedConsistency {
                        wanted: level,
                        reason: host_text(&error),
                        code: None,
                    });
                }
                Err(error) => return Err(error),
            }
        }
        Err(Error::new(
            ErrorKind::Consistency,
            format!("{} reached none of {} levels", request.vm, missed.len()),
        ))
    }

    fn attempt(
        &self,
        level: Consistency,
        request: &CheckpointRequest,
        custody: &Custody,
        cancel: &CancelToken,
    ) -> Result<Checkpoint> {
        if level == Consistency::Application {
            return Err(Error::new(
                ErrorKind::Consistency,
                "the guest does not tell that it is a Windows",
            ));
        }
        let mut monitor = self.monitor()?;
        let look = Look::take(&mut monitor)?;
        if look.status != "running" {
            return Err(Error::new(
                ErrorKind::State,
                format!("the machine is {}", look.status),
            ));
        }
        let (mut before, theirs) = look.checkpoints();
        before.extend(theirs);
        let attempt = Attempt {
            id: self.fresh_id(custody, &look)?,
            level,
            request,
            custody,
            cancel,
        };
        let entry = custody.intend(
            HeldKind::Checkpoint,
            request.vm,
            &self.node,
            self.clock.now(),
            before,
        )?;
        // Ids are ours to choose here, so the journal knows this one before QEMU does.
        custody.made(entry, &attempt.id)?;
        self.build(&mut monitor, &look, &attempt).inspect_err(|_| {
            drop(monitor);
            // What cannot be removed stays in the journal, for the custodian.
            if self.remove_checkpoint(&attempt.id, Point::Goes).is_ok() {
                let _ = custody.close(entry, Closing::Removed);
            }
        })
    }

    fn fresh_id(&self, custody: &Custody, look: &Look) -> Result<String> {
        let job: String = custody.mark().job.to_string();
        let digits: String = job
            .chars()
            .filter(char::is_ascii_hexdigit)
            .take(16)
            .collect();
        let (known, _) = look.checkpoints();
        let noted = self.place.noted()?;
        let is_free = |id: &String| {
            let is_point = look
                .bitmaps()
                .any(|(_, bitmap)| bitmap.point().is_some_and(|(of, _)| of == id));
            !is_point && !known.contains(id) && !noted.contains(id)
        };
        (1..100)
            .map(|number| format!("hikae-{digits}-{number}"))
            .find(is_free)
            .ok_or_else(|| Error::new(ErrorKind::Busy, "a job with a hundred checkpoints"))
    }

    fn build(
        &self,
        monitor: &mut Monitor<'_>,
        look: &Look,
        attempt: &Attempt<'_>,
    ) -> Result<Checkpoint> {
        let mut note = Note {
            mark: attempt.custody.mark().clone(),
            made_at: self.clock.now(),
            checkpoint: None,
        };
        self.steps.pass("note");
        self.place.write_note(&attempt.id, &note)?;
        let machine = self.own(attempt.request.vm)?;
        if attempt.level != Consistency::SavedState {
            self.add_overlays(monitor, look, attempt)?;
        }
        if std::os::unix::net::UnixStream::connect(self.place.nbd()).is_err() {
            super::place::remove(&self.place.nbd())?;
            let address = json!({"type": "unix", "data": {"path": self.place.nbd()}});
            monitor.change("nbd-server-start", &json!({"addr": address}))?;
        }
        attempt.cancel.check("making a checkpoint")?;
        let still = match attempt.level {
            Consistency::FileSystem => self.frozen(monitor, look, attempt)?,
            Consistency::SavedState => self.saved(monitor, look, attempt)?,
            _ => {
                self.snapshot(monitor, look, attempt)?;
                StillFacts::default()
            }
        };
        let mut disks = Vec::new();
        for number in 0..machine.disks.len() {
            disks.push(self.export(monitor, look, attempt, number)?);
        }
        note.made_at = self.clock.now();
        let checkpoint = self.told(attempt, disks, still, note.made_at)?;
        note.checkpoint = Some(checkpoint.clone());
        self.steps.pass("whole note");
        self.place.write_note(&attempt.id, &note)?;
        Ok(checkpoint)
    }

    fn add_overlays(
        &self,
        monitor: &mut Monitor<'_>,
        look: &Look,
        attempt: &Attempt<'_>,
    ) -> Result<()> {
        let machine = self.own(attempt.request.vm)?;
        (0..machine.disks.len())
            .try_for_each(|number| self.add_overlay(monitor, look, &attempt.id, number))
    }

    fn add_overlay(
        &self,
        monitor: &mut Monitor<'_>,
        look: &Look,
        id: &str,
        number: usize,
    ) -> Result<()> {
        let disk = disk_name(number);
        let size_bytes = look.node(&disk).and_then(|it| it.size_bytes);
        let size_bytes =
            size_bytes.ok_or_else(|| Error::new(ErrorKind::Protocol, "a disk without a size"))?;
        let path = self.place.overlay(id, number);
        self.steps.pass("overlay");
        let made = std::process::Command::new("qemu-img")
            .args(["create", "-q", "-f", "qcow2"].map(OsStr::new))
            .arg(&path)
            .arg(size_bytes.to_string())
            .output()
            .map_err(super::place::on_node)?;
        if !made.status.success() {
            return Err(Error::new(ErrorKind::Failed, "no overlay could be made"));
        }
        let node = json!({
            "driver": "qcow2", "node-name": part_name(id, number),
            "file": {"driver": "file", "filename": path}, "backing": disk,
        });
        monitor.change("blockdev-add", &node).map(drop)
    }

    /// The moment of the checkpoint, for all disks together.
    fn snapshot(
        &self,
        monitor: &mut Monitor<'_>,
        look: &Look,
        attempt: &Attempt<'_>,
    ) -> Result<()> {
        let machine = self.own(attempt.request.vm)?;
        let mark = attempt.custody.mark();
        let mut actions: Vec<Value> = Vec::new();
        for number in 0..machine.disks.len() {
            let disk = disk_name(number);
            let point = point_name(&attempt.id, mark);
            actions.push(json!({"type": "block-dirty-bitmap-add",
                "data": {"node": disk, "name": point, "persistent": true}}));
            for older in look.node(&disk).iter().flat_map(|it| &it.bitmaps) {
                let is_ours = older.point().is_some_and(|(_, it)| it.owner == mark.owner);
                if !is_ours || !older.is_sound {
                    continue;
                }
                let copy = frozen_name(&attempt.id, &older.name);
                actions.push(json!({"type": "block-dirty-bitmap-add",
                    "data": {"node": disk, "name": copy, "disabled": true}}));
                actions.push(json!({"type": "block-dirty-bitmap-merge",
                    "data": {"node": disk, "target": copy, "bitmaps": [older.name]}}));
            }
            let part = part_name(&attempt.id, number);
            actions.push(json!({"type": "blockdev-backup",
                "data": {"job-id": part, "device": disk, "target": part, "sync": "none"}}));
        }
        monitor
            .change("transaction", &json!({"actions": actions}))
            .map(drop)
    }

    /// Takes the snapshot while the guest's file systems are frozen.
    fn frozen(
        &self,
        monitor: &mut Monitor<'_>,
        look: &Look,
        attempt: &Attempt<'_>,
    ) -> Result<StillFacts> {
        let agent = self.place.agent();
        agent::ask(&agent, "guest-ping").map_err(missed)?;
        let held = self.hold(HeldKind::Freeze, attempt)?;
        let watchdog = Watchdog::start(&agent, attempt.request.freeze_limit)?;
        let begin = self.clock.elapsed();
        let taken = agent::change(&agent, "guest-fsfreeze-freeze", &self.steps)
            .map_err(missed)
            .and_then(|_| self.snapshot(monitor, look, attempt))
            .and_then(|()| {
                // Thawed by the watchdog before the snapshot: that is another level.
                let status = agent::ask(&agent, "guest-fsfreeze-status").map_err(missed)?;
                if status == "frozen" {
                    Ok(())
                } else {
                    Err(missed(Error::new(
                        ErrorKind::TimedOut,
                        "the freeze did not last",
                    )))
                }
            });
        // Also when the freeze failed: it may have come after its answer was given up.
        let thawed = agent::change(&agent, "guest-fsfreeze-thaw", &self.steps);
        let frozen_ms = milliseconds(self.clock.elapsed().saturating_sub(begin));
        if thawed.is_ok() {
            watchdog.dismiss()?;
            self.let_go(held, attempt)?;
        } else {
            // Whose pipe ends here, and who goes on trying.
            drop(watchdog);
        }
        taken?;
        thawed?;
        Ok(StillFacts {
            frozen_at_most_ms: Some(frozen_ms),
            downtime_ms: None,
        })
    }

    /// Takes the snapshot while the machine stands still, its memory written.
    fn saved(
        &self,
        monitor: &mut Monitor<'_>,
        look: &Look,
        attempt: &Attempt<'_>,
    ) -> Result<StillFacts> {
        let held = self.hold(HeldKind::SavedState, attempt)?;
        let begin = self.clock.elapsed();
        monitor.change("stop", &json!({}))?;
        let taken = self
            .write_memory(monitor, &self.place.memory(&attempt.id))
            .and_then(|()| self.take_images_back(monitor, attempt))
            // Not before: QEMU would have let go of them too.
            .and_then(|()| self.add_overlays(monitor, look, attempt))
            .and_then(|()| self.snapshot(monitor, look, attempt));
        let resumed = self.run_again(monitor);
        let downtime_ms = milliseconds(self.clock.elapsed().saturating_sub(begin));
        if resumed.is_ok() {
            self.let_go(held, attempt)?;
        }
        taken?;
        resumed?;
        Ok(StillFacts {
            frozen_at_most_ms: None,
            downtime_ms: Some(downtime_ms),
        })
    }

    /// QEMU lets go of images, and of the bitmaps in them, when memory is written; an export makes it take them back, and nothing
    /// runs meanwhile.
    fn take_images_back(&self, monitor: &mut Monitor<'_>, attempt: &Attempt<'_>) -> Result<()> {
        let machine = self.own(attempt.request.vm)?;
        for number in 0..machine.disks.len() {
            let id = part_name(&attempt.id, number);
            let export = json!({"type": "nbd", "id": id, "name": id, "writable": false,
                "node-name": disk_name(number)});
            monitor.change("block-export-add", &export)?;
            self.remove_export(monitor, &id)?;
        }
        Ok(())
    }

    fn export(
        &self,
        monitor: &mut Monitor<'_>,
        look: &Look,
        attempt: &Attempt<'_>,
        number: usize,
    ) -> Result<FrozenDisk> {
        let disk = disk_name(number);
        let part = part_name(&attempt.id, number);
        let older = look.node(&disk).map(|it| it.bitmaps.clone());
        let older = older.unwrap_or_default();
        let mark = attempt.custody.mark();
        let copies: Vec<Value> = older
            .iter()
            .filter(|it| it.is_sound)
            .filter(|it| it.point().is_some_and(|(_, of)| of.owner == mark.owner))
            .map(|it| json!({"node": disk, "name": frozen_name(&attempt.id, &it.name)}))
            .collect();
        let export = json!({"type": "nbd", "id": part, "name": part, "writable": false,
            "node-name": part, "bitmaps": copies});
        monitor.change("block-export-add", &export)?;
        Ok(FrozenDisk {
            slot: slot(number),
            device: DeviceId::new(disk)?,
            path: HostPath::new(format!(
                "nbd+unix:///{part}?socket={}",
                self.place.nbd().display()
            ))?,
            image: ImageKind::Raw,
            identity: None,
            size_bytes: look.node(&disk_name(number)).and_then(|it| it.size_bytes),
        })
    }

    fn told(
        &self,
        attempt: &Attempt<'_>,
        disks: Vec<FrozenDisk>,
        still: StillFacts,
        made_at: host::Timestamp,
    ) -> Result<Checkpoint> {
        let mut configuration = vec![ConfigurationFile {
            path: HostPath::new(self.place.definition().display().to_string())?,
            kind: ConfigurationFileKind::Configuration,
        }];
        if attempt.level == Consistency::SavedState {
            configuration.push(ConfigurationFile {
                path: HostPath::new(self.place.memory(&attempt.id).display().to_string())?,
                kind: ConfigurationFileKind::RuntimeState,
            });
        }
        let limits = [
            (
                still.frozen_at_most_ms,
                attempt.request.freeze_limit,
                WarningCode::LongFreeze,
            ),
            (
                still.downtime_ms,
                attempt.request.offline_limit,
                WarningCode::LongDowntime,
            ),
        ];
        let warnings = limits
            .into_iter()
            .filter_map(|(taken_ms, limit, code)| {
                let taken_ms = taken_ms.filter(|it| *it > milliseconds(limit))?;
                Some(Warning {
                    code,
                    text: format!("the guest stood still for {taken_ms} ms"),
                })
            })
            .collect();
        Ok(Checkpoint {
            reference: CheckpointRef {
                vm: attempt.request.vm,
                checkpoint: CheckpointId::new(attempt.id.clone())?,
            },
            node: self.node.clone(),
            reached: attempt.level,
            missed: Vec::new(),
            disks,
            skipped: Vec::new(),
            configuration,
            still,
            made_at,
            warnings,
        })
    }

    /// Writes down, in both places, that the guest is about to stand still.
    fn hold(&self, kind: HeldKind, attempt: &Attempt<'_>) -> Result<Held> {
        let vm: VmId = attempt.request.vm;
        let entry = attempt
            .custody
            .intend(kind, vm, &self.node, self.clock.now(), Vec::new())?;
        let mark = MachineMark {
            kind,
            mark: attempt.custody.mark().clone(),
            id: None,
        };
        self.steps.pass("mark");
        self.place.set_mark(&mark)?;
        Ok(Held { entry, mark })
    }

    fn let_go(&self, held: Held, attempt: &Attempt<'_>) -> Result<()> {
        self.steps.pass("unmark");
        self.place.remove_mark(&held.mark)?;
        attempt.custody.close(held.entry, Closing::Removed)
    }
}

/// A guest that stands still because of us, as it is written down.
struct Held {
    entry: host::custody::EntryId,
    mark: MachineMark,
}

/// What becomes of a checkpoint's point when the checkpoint goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Point {
    /// It goes too.
    Goes,
    /// Changes are tracked from there.
    Stays,
}

/// A level that was not reached, and why.
fn missed(error: Error) -> Error {
    Error::with_source(ErrorKind::Consistency, "the guest was not frozen", error)
}

fn host_text(error: &Error) -> String {
    let cause = std::error::Error::source(error);
    cause.map_or_else(|| error.to_string(), |cause| format!("{error}: {cause}"))
}

fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
