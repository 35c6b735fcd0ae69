//! The driver: what the machine is, and what it is doing.

use std::time::Duration;

use host::boundary::{Inventory, Power, StopMode};
use host::custody::{HeldKind, MachineMark};
use host::facts::{
    Activity, CheckpointFacts, CheckpointKind, ControllerKind, DiskBacking, DiskFacts, DiskSlot,
    GuestFacts, GuestFamily, Health, HostFacts, ImageKind, IntegrationFacts, InventoryReport,
    Location, PowerState, ReplicationRole, SecurityFacts, ServiceState, SizingFacts,
    TrackingPointFacts, VmFacts, VmFiles,
};
use host::ids::{CheckpointId, DeviceId, NodeName, TrackingPointId, VmId};
use host::path::HostPath;
use host::{CancelToken, Clock, Error, ErrorKind, Result, SystemClock};
use serde_json::{Value, json};

use super::agent;
use super::parts::{Look, disk_name};
use super::place::{MachineFile, Place, on_node, remove};
use super::qmp::Monitor;
use super::steps::Steps;

/// Longest wait for a guest to shut down.
const SHUTDOWN: Duration = Duration::from_secs(60);

/// One machine of one node, in QEMU.
pub(super) struct QemuGuest {
    pub(super) place: Place,
    pub(super) node: NodeName,
    pub(super) clock: SystemClock,
    pub(super) steps: Steps,
}

impl QemuGuest {
    /// The machine of a place.
    pub(super) fn new(place: Place, steps: Steps) -> Self {
        Self {
            place,
            node: NodeName::new("kvm01").expect("a name"),
            clock: SystemClock::new(),
            steps,
        }
    }

    /// A monitor, when a QEMU runs.
    pub(super) fn try_monitor(&self) -> Result<Option<Monitor<'_>>> {
        Monitor::connect(&self.place.monitor(), &self.steps)
    }

    /// A monitor.
    pub(super) fn monitor(&self) -> Result<Monitor<'_>> {
        self.try_monitor()?.ok_or_else(|| {
            Error::new(
                ErrorKind::State,
                "the machine is off: nobody tracks or freezes",
            )
        })
    }

    /// The machine, if it is the one that lives here.
    pub(super) fn own(&self, vm: VmId) -> Result<MachineFile> {
        let machine = self.place.machine()?;
        if machine.id == vm {
            Ok(machine)
        } else {
            Err(Error::new(
                ErrorKind::NotFound,
                format!("{vm} is not on {}", self.node),
            ))
        }
    }

    fn power_of(&self, look: Option<&Look>) -> PowerState {
        let Some(look) = look else {
            return if self.place.saved_state().exists() {
                PowerState::Saved
            } else {
                PowerState::Off
            };
        };
        match look.status.as_str() {
            "running" => PowerState::Running,
            // After a save that was not finished the process still holds the memory.
            "paused" | "prelaunch" | "postmigrate" => PowerState::Paused,
            "finish-migrate" | "inmigrate" | "restore-vm" | "save-vm" => PowerState::Changing,
            "shutdown" => PowerState::Off,
            // Storage that is full or gone, a guest that panicked: QEMU has words and no numbers.
            _ => PowerState::Critical(0),
        }
    }

    fn facts(&self) -> Result<VmFacts> {
        let machine = self.place.machine()?;
        let mut monitor = self.try_monitor()?;
        let look = monitor.as_mut().map(Look::take).transpose()?;
        drop(monitor);
        let power = self.power_of(look.as_ref());
        let (checkpoints, ours) = self.checkpoint_facts(look.as_ref())?;
        let (tracking_points, point_marks) = tracking_facts(look.as_ref(), &ours)?;
        let mut marks = self.place.marks()?;
        marks.extend(point_marks);
        let guest = if power == PowerState::Running {
            self.guest_facts()
        } else {
            None
        };
        Ok(VmFacts {
            id: machine.id,
            name: machine.name.clone(),
            node: self.node.clone(),
            host_generation: None,
            generation: None,
            version: None,
            power,
            health: Health::Ok,
            activities: match power {
                PowerState::Changing => vec![Activity::Migrating],
                _ => Vec::new(),
            },
            disks: disk_facts(&machine)?,
            nics: Vec::new(),
            checkpoints,
            tracking_points,
            integration: IntegrationFacts {
                backup: Some(match (power, &guest) {
                    (PowerState::Running, Some(_)) => ServiceState::Ok,
                    (PowerState::Running, None) => ServiceState::NoContact,
                    _ => ServiceState::Enabled,
                }),
                ..IntegrationFacts::default()
            },
            guest: guest.unwrap_or_default(),
            role: None,
            is_role_known: true,
            replication: ReplicationRole::None,
            security: SecurityFacts::default(),
            sizing: SizingFacts {
                memory_mib: Some(machine.memory_mib),
                ..SizingFacts::default()
            },
            has_assigned_devices: Some(false),
            files: VmFiles {
                root: Some(HostPath::new(self.place.folder().display().to_string())?),
                ..VmFiles::default()
            },
            marks,
        })
    }

    /// Checkpoints for backups, and the ids of those of ours.
    fn checkpoint_facts(&self, look: Option<&Look>) -> Result<(Vec<CheckpointFacts>, Vec<String>)> {
        let (mut ours, theirs) = look.map(Look::checkpoints).unwrap_or_default();
        ours.extend(self.place.noted()?);
        ours.sort();
        ours.dedup();
        let mut facts = Vec::new();
        for id in &ours {
            let note = self.place.note(id)?;
            let mark = note.as_ref().map(|note| note.mark.clone());
            let mark = mark.or_else(|| look.and_then(|look| look.mark_of(id)));
            facts.push(CheckpointFacts {
                id: CheckpointId::new(id.clone())?,
                kind: CheckpointKind::Recovery,
                name: mark
                    .as_ref()
                    .map_or_else(|| id.clone(), ToString::to_string),
                mark,
                created: note.as_ref().map(|note| note.made_at),
                parent: None,
                holds_memory: Some(self.place.memory(id).exists()),
            });
        }
        for job in theirs {
            facts.push(CheckpointFacts {
                id: CheckpointId::new(job.clone())?,
                kind: CheckpointKind::Recovery,
                name: job,
                mark: None,
                created: None,
                parent: None,
                holds_memory: None,
            });
        }
        Ok((facts, ours))
    }

    /// What the guest tells; nothing while it is frozen or has no agent.
    fn guest_facts(&self) -> Option<GuestFacts> {
        let agent = self.place.agent();
        let system = match agent::ask(&agent, "guest-get-osinfo") {
            Ok(system) => system,
            // Not told by a frozen guest, which is an agent that answers.
            Err(error) if error.kind() == ErrorKind::Failed => Value::Null,
            Err(_) => return None,
        };
        let text = |name: &str| system.get(name).and_then(Value::as_str).map(str::to_owned);
        let family = match text("id").as_deref() {
            Some("mswindows") => Some(GuestFamily::Windows),
            Some(_) => Some(GuestFamily::Linux),
            None => None,
        };
        Some(GuestFacts {
            family,
            os_name: text("pretty-name"),
            os_version: text("version-id"),
            ..GuestFacts::default()
        })
    }

    /// Writes the memory of a machine that stands still into a file. Its images are let go of.
    pub(super) fn write_memory(
        &self,
        monitor: &mut Monitor<'_>,
        path: &std::path::Path,
    ) -> Result<()> {
        let uri = format!("exec:cat > '{}'", path.display());
        monitor.change("migrate", &json!({"uri": uri}))?;
        let mut outcome = String::new();
        monitor.wait("the memory is not written", |monitor| {
            outcome = migration(monitor)?;
            Ok(!is_under_way(&outcome))
        })?;
        if outcome == "completed" {
            Ok(())
        } else {
            Err(Error::new(
                ErrorKind::Failed,
                format!("writing the memory {outcome}"),
            ))
        }
    }

    /// Lets a machine that stands still run again.
    ///
    /// Whoever stopped it may have died while its memory was being written. QEMU goes on with that by itself, and would stop the
    /// machine once more at the end.
    pub(super) fn run_again(&self, monitor: &mut Monitor<'_>) -> Result<()> {
        if is_under_way(&migration(monitor)?) {
            monitor.change("migrate_cancel", &json!({}))?;
            monitor.wait("the writing of memory does not end", |monitor| {
                Ok(!is_under_way(&migration(monitor)?))
            })?;
        }
        monitor.change("cont", &json!({})).map(drop)
    }

    fn save(&self, monitor: &mut Monitor<'_>) -> Result<()> {
        if !Look::take(monitor)?.jobs.is_empty() {
            return Err(Error::new(
                ErrorKind::Busy,
                "a machine with a checkpoint for a backup cannot be saved",
            ));
        }
        monitor.change("stop", &json!({}))?;
        let unfinished = self.place.folder().join("saved.part");
        if let Err(error) = self.write_memory(monitor, &unfinished) {
            self.run_again(monitor)?;
            return Err(error);
        }
        std::fs::rename(&unfinished, self.place.saved_state()).map_err(on_node)
    }

    fn quit(&self, monitor: &mut Monitor<'_>) -> Result<()> {
        monitor.change("quit", &json!({}))?;
        self.place.wait_for_end(SHUTDOWN)
    }
}

/// What became of the last writing of memory, by QEMU's word; empty when there was none.
fn migration(monitor: &mut Monitor<'_>) -> Result<String> {
    let answer = monitor.ask("query-migrate")?;
    let status = answer.get("status").and_then(Value::as_str);
    Ok(status.unwrap_or_default().to_owned())
}

fn is_under_way(migration: &str) -> bool {
    !matches!(
        migration,
        "" | "none" | "completed" | "failed" | "cancelled"
    )
}

fn disk_facts(machine: &MachineFile) -> Result<Vec<DiskFacts>> {
    let disks = machine.disks.iter().enumerate();
    disks
        .map(|(number, path)| {
            let path = HostPath::new(path.display().to_string())?;
            Ok(DiskFacts {
                slot: Some(slot(number)),
                device: Some(DeviceId::new(disk_name(number))?),
                backing: DiskBacking::Image {
                    image: ImageKind::of_path(&path),
                    path,
                    is_shared: Some(false),
                },
            })
        })
        .collect()
}

/// Where a disk is plugged in.
pub(super) fn slot(disk: usize) -> DiskSlot {
    DiskSlot {
        controller: ControllerKind::Virtio,
        number: u32::try_from(disk).unwrap_or(u32::MAX),
        location: 0,
    }
}

/// Points that no checkpoint of ours holds any more, and the marks that they carry in their names.
fn tracking_facts(
    look: Option<&Look>,
    checkpoints: &[String],
) -> Result<(Vec<TrackingPointFacts>, Vec<MachineMark>)> {
    let mut points: Vec<TrackingPointFacts> = Vec::new();
    let mut marks = Vec::new();
    for (_, bitmap) in look.iter().flat_map(|look| look.bitmaps()) {
        let owner = bitmap.point();
        let is_of_checkpoint = owner
            .as_ref()
            .is_some_and(|(id, _)| checkpoints.iter().any(|it| it == id));
        let is_copy = bitmap.name.contains('<');
        if is_of_checkpoint || is_copy || bitmap.name.is_empty() {
            continue;
        }
        let known = points.iter_mut().find(|it| it.id.as_str() == bitmap.name);
        if let Some(point) = known {
            point.disk_count += 1;
            continue;
        }
        points.push(TrackingPointFacts {
            id: TrackingPointId::new(bitmap.name.clone())?,
            created: None,
            disk_count: 1,
        });
        if let Some((_, mark)) = owner {
            marks.push(MachineMark {
                kind: HeldKind::TrackingPoint,
                mark,
                id: Some(bitmap.name.clone()),
            });
        }
    }
    Ok((points, marks))
}

impl Inventory for QemuGuest {
    fn inventory(&self, cancel: &CancelToken) -> Result<InventoryReport> {
        cancel.check("the inventory")?;
        Ok(InventoryReport {
            hosts: vec![HostFacts {
                node: self.node.clone(),
                generation: None,
                build: None,
                cluster: None,
            }],
            problems: Vec::new(),
            machines: vec![self.facts()?],
        })
    }

    fn machine(&self, vm: VmId, _cancel: &CancelToken) -> Result<VmFacts> {
        self.own(vm)?;
        self.facts()
    }

    fn locate(&self, vm: VmId, _cancel: &CancelToken) -> Result<Location> {
        self.own(vm)?;
        Ok(Location {
            vm,
            node: self.node.clone(),
            moved_from: None,
        })
    }
}

impl Power for QemuGuest {
    fn power_state(&self, vm: VmId, _cancel: &CancelToken) -> Result<PowerState> {
        self.own(vm)?;
        let mut monitor = self.try_monitor()?;
        let look = monitor.as_mut().map(Look::take).transpose()?;
        Ok(self.power_of(look.as_ref()))
    }

    fn start(&self, vm: VmId, cancel: &CancelToken) -> Result<()> {
        self.own(vm)?;
        let memory = self.place.saved_state();
        let is_saved = memory.exists();
        let mut monitor = match self.try_monitor()? {
            Some(monitor) => monitor,
            None => {
                self.place.launch(is_saved.then_some(memory.as_path()))?;
                self.monitor()?
            }
        };
        monitor.wait("its memory is not read", |monitor| {
            cancel.check("starting")?;
            Ok(Look::take(monitor)?.status != "inmigrate")
        })?;
        if Look::take(&mut monitor)?.status != "running" {
            self.run_again(&mut monitor)?;
        }
        monitor.wait("it does not run", |monitor| {
            cancel.check("starting")?;
            Ok(Look::take(monitor)?.status == "running")
        })?;
        // From here on the file is older than the machine.
        remove(&memory)
    }

    fn stop(&self, vm: VmId, mode: StopMode, cancel: &CancelToken) -> Result<()> {
        self.own(vm)?;
        let Some(mut monitor) = self.try_monitor()? else {
            return Ok(());
        };
        match mode {
            StopMode::Pause => monitor.change("stop", &json!({})).map(drop),
            StopMode::TurnOff => self.quit(&mut monitor),
            StopMode::Save => {
                self.save(&mut monitor)?;
                self.quit(&mut monitor)
            }
            StopMode::Shutdown => {
                drop(monitor);
                agent::tell(&self.place.agent(), "guest-shutdown")?;
                let until = self.clock.elapsed() + SHUTDOWN;
                while self.place.is_alive() && self.clock.elapsed() < until {
                    cancel.check("waiting for the guest to shut down")?;
                    self.clock.pause(Duration::from_millis(50), cancel);
                }
                self.place.wait_for_end(Duration::ZERO)
            }
        }
    }
}
