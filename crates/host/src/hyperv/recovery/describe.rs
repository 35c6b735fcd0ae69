//! What a checkpoint holds: frozen images, configuration files, and what is not in it.

use std::collections::{HashMap, HashSet};

use block::ReadAt;
use wsman::cim::{CimInstance, CimValue, embedded};

use super::super::HyperV;
use super::super::decode::{id_key, owner_of_id, text, time};
use super::super::inventory::{slot_of_tail, tail_of};
use super::super::names::{IMAGE_SERVICE, STORAGE, subtype};
use super::super::node::{Node, Realm};
use crate::access::ChainDisk;
use crate::checkpoint::{
    Checkpoint, ConfigurationFile, ConfigurationFileKind, FrozenDisk, SkippedDisk, StillFacts,
    Warning, WarningCode,
};
use crate::clock::CancelToken;
use crate::consistency::Consistency;
use crate::facts::{ControllerKind, DiskBacking, DiskSlot, ImageKind, VmFacts};
use crate::ids::{CheckpointRef, DeviceId, DiskIdentity, VmId};
use crate::path::HostPath;
use crate::{Error, ErrorKind, Result};

/// How often the settings of an image are asked for.
const ANSWERS: usize = 3;
/// More disks than a machine can have places for are a lie.
const MOST_DISKS: usize = 512;

impl HyperV {
    /// The checkpoint as it is now.
    pub(in super::super) fn reopen(
        &self,
        reference: &CheckpointRef,
        cancel: &CancelToken,
    ) -> Result<Checkpoint> {
        let (machine, _) = self.on_owner(reference.vm, cancel, |node| {
            self.machine_on(node, reference.vm)
        })?;
        self.describe(reference, &machine, cancel)
    }

    /// Puts a checkpoint's description together. What was reached is the caller's to say.
    pub(super) fn describe(
        &self,
        reference: &CheckpointRef,
        machine: &VmFacts,
        cancel: &CancelToken,
    ) -> Result<Checkpoint> {
        let (checkpoint, location) = self.on_owner(reference.vm, cancel, |node| {
            self.describe_on(node, reference, machine, cancel)
        })?;
        let mut checkpoint = checkpoint;
        if let Some(from) = location.moved_from {
            checkpoint.warnings.push(Warning {
                code: WarningCode::Moved,
                text: format!("the machine moved from {from} to {}", location.node),
            });
        }
        Ok(checkpoint)
    }

    fn describe_on(
        &self,
        node: &Node,
        reference: &CheckpointRef,
        machine: &VmFacts,
        cancel: &CancelToken,
    ) -> Result<Checkpoint> {
        let settings = settings_of(node, reference)?;
        let (owner, _) = owner_of_id(reference.checkpoint.as_str()).ok_or_else(|| {
            Error::new(
                ErrorKind::Invalid,
                format!("{} is no checkpoint of Hyper-V", reference.checkpoint),
            )
        })?;
        let media = node.rows(
            Realm::Virtualization,
            STORAGE,
            Some(&format!("InstanceID LIKE 'Microsoft:{owner}%'")),
        )?;
        let mut disks = frozen_disks(&media, owner, machine)?;
        let mut warnings = Vec::new();
        for disk in &mut disks {
            cancel.check("describing a checkpoint")?;
            self.identify(node, disk, cancel);
        }
        let skipped = skipped_disks(machine, &disks);
        let configuration = self.configuration_of(node, &settings, &mut warnings);
        Ok(Checkpoint {
            reference: reference.clone(),
            node: node.name().clone(),
            reached: Consistency::Crash,
            missed: Vec::new(),
            disks,
            skipped,
            configuration,
            still: StillFacts::default(),
            made_at: time(&settings, "CreationTime").unwrap_or_else(|| self.clock.now()),
            warnings,
        })
    }

    /// Identity and size of a frozen image, as the host tells them, else as the image does. That neither does is no failure: then
    /// its changes cannot be tracked.
    fn identify(&self, node: &Node, disk: &mut FrozenDisk, cancel: &CancelToken) {
        let inputs = [("Path", CimValue::Text(disk.path.to_string()))];
        let service = node.service(IMAGE_SERVICE);
        for _ in 0..ANSWERS {
            let ended = self.run(
                node,
                &service,
                "GetVirtualHardDiskSettingData",
                &inputs,
                cancel,
            );
            let Ok(ended) = ended else { break };
            // An answer that came as a job is empty: it is asked for again.
            let Some(settings) = embedded_output(&ended.output, "SettingData") else {
                continue;
            };
            disk.identity =
                text(&settings, "VirtualDiskId").and_then(|it| it.parse::<DiskIdentity>().ok());
            disk.size_bytes = settings.opt_u64("MaxInternalSize").ok().flatten();
            break;
        }
        if disk.size_bytes.is_none()
            && let Ok(image) = ChainDisk::open(node.files(), node.name(), &disk.path)
        {
            disk.size_bytes = Some(image.size_bytes());
        }
    }

    /// Files of a checkpoint's configuration that are there.
    fn configuration_of(
        &self,
        node: &Node,
        settings: &CimInstance,
        warnings: &mut Vec<Warning>,
    ) -> Vec<ConfigurationFile> {
        let mut files = Vec::new();
        let path = |property: &str| text(settings, property).and_then(|it| HostPath::new(it).ok());
        let roots: Vec<HostPath> = ["ConfigurationDataRoot", "SnapshotDataRoot"]
            .iter()
            .filter_map(|property| path(property))
            .collect();
        let relative = text(settings, "ConfigurationFile");
        let candidates: Vec<HostPath> = relative
            .iter()
            .flat_map(|relative| roots.iter().filter_map(|root| root.join(relative).ok()))
            .collect();
        // Where the files cannot be looked at, the first place is named, for whoever can.
        let main = candidates
            .iter()
            .find(|path| is_there(node, path) == Some(true))
            .or_else(|| {
                candidates
                    .first()
                    .filter(|path| is_there(node, path).is_none())
            })
            .cloned();
        let Some(main) = main else {
            warnings.push(Warning {
                code: WarningCode::NoConfiguration,
                text: "the files of the checkpoint's configuration were not found".to_owned(),
            });
            return files;
        };
        for (extension, kind) in [
            ("vmrs", ConfigurationFileKind::RuntimeState),
            ("vmgs", ConfigurationFileKind::GuestState),
            // Before Windows Server 2016.
            ("vsv", ConfigurationFileKind::RuntimeState),
            ("bin", ConfigurationFileKind::RuntimeState),
        ] {
            if let Some(path) = with_extension(&main, extension)
                && is_there(node, &path) == Some(true)
            {
                files.push(ConfigurationFile { path, kind });
            }
        }
        let guest_state = path("GuestStateDataRoot")
            .zip(text(settings, "GuestStateFile"))
            .and_then(|(root, file)| root.join(&file).ok());
        if let Some(path) = guest_state
            && files.iter().all(|file| file.path != path)
            && is_there(node, &path) == Some(true)
        {
            files.push(ConfigurationFile {
                path,
                kind: ConfigurationFileKind::GuestState,
            });
        }
        files.insert(
            0,
            ConfigurationFile {
                path: main,
                kind: ConfigurationFileKind::Configuration,
            },
        );
        files
    }
}

/// Settings of a checkpoint on a node; not found when it is not there.
pub(super) fn settings_of(node: &Node, reference: &CheckpointRef) -> Result<CimInstance> {
    node.find(&node.checkpoint(&reference.checkpoint))?
        .ok_or_else(|| {
            Error::new(
                ErrorKind::NotFound,
                format!(
                    "checkpoint {} of machine {} is not on {}",
                    reference.checkpoint,
                    reference.vm,
                    node.name()
                ),
            )
        })
}

/// An output that is an instance, as text or as a tree.
pub(in super::super) fn embedded_output(
    output: &CimInstance,
    property: &str,
) -> Option<CimInstance> {
    if let Some(text) = output.text_ref(property) {
        return embedded::read(text).ok();
    }
    output.opt_instance(property).ok().flatten()
}

/// `None` when that cannot be told from here.
fn is_there(node: &Node, path: &HostPath) -> Option<bool> {
    let opened = node.files().open(node.name(), path);
    opened.ok().map(|file| file.is_some())
}

fn with_extension(path: &HostPath, extension: &str) -> Option<HostPath> {
    let (stem, _) = path.as_str().rsplit_once('.')?;
    HostPath::new(format!("{stem}.{extension}")).ok()
}

fn frozen_disks(media: &[CimInstance], owner: VmId, machine: &VmFacts) -> Result<Vec<FrozenDisk>> {
    let known: HashMap<String, DiskSlot> = machine
        .disks
        .iter()
        .filter_map(|disk| {
            let (_, tail) = tail_of(disk.device.as_ref()?.as_str())?;
            Some((tail, disk.slot?))
        })
        .collect();
    let mut disks = Vec::new();
    for row in media {
        let Some(id) = row.text_ref("InstanceID") else {
            continue;
        };
        let kind = row.text_ref("ResourceSubType").unwrap_or_default();
        let is_disk = kind == subtype::HARD_DISK || kind == subtype::PMEM_DISK;
        let Some((of, tail)) = owner_of_id(id) else {
            continue;
        };
        if !is_disk || of != owner {
            continue;
        }
        let path = row
            .texts("HostResource")
            .unwrap_or_default()
            .into_iter()
            .next();
        let Some(path) = path.filter(|path| !path.is_empty()) else {
            continue;
        };
        let path = HostPath::new(path)?;
        let slot = known
            .get(&id_key(tail))
            .copied()
            .or_else(|| slot_of_tail(tail))
            .unwrap_or(DiskSlot {
                controller: ControllerKind::Other,
                number: 0,
                location: u32::try_from(disks.len()).unwrap_or(u32::MAX),
            });
        disks.push(FrozenDisk {
            slot,
            device: machine_device(machine.id, tail)?,
            image: ImageKind::of_path(&path),
            path,
            identity: None,
            size_bytes: None,
        });
    }
    disks.sort_by_key(|disk| disk.slot);
    check_disks(&disks)?;
    Ok(disks)
}

/// Each disk costs questions, so that a host does not choose how many there are.
fn check_disks(disks: &[FrozenDisk]) -> Result<()> {
    if disks.len() > MOST_DISKS {
        return Err(Error::new(
            ErrorKind::Protocol,
            format!("{} disks in one checkpoint", disks.len()),
        ));
    }
    let mut known = HashSet::new();
    match disks.iter().find(|disk| !known.insert(&disk.device)) {
        None => Ok(()),
        Some(twice) => Err(Error::new(
            ErrorKind::Protocol,
            format!("the host tells disk {} of a checkpoint twice", twice.device),
        )),
    }
}

/// The machine's own name for a disk that a checkpoint names by its own.
pub(super) fn machine_device(vm: VmId, tail: &str) -> Result<DeviceId> {
    DeviceId::new(format!("Microsoft:{vm}\\{}", id_key(tail)))
}

/// What the machine has and the checkpoint has not.
fn skipped_disks(machine: &VmFacts, frozen: &[FrozenDisk]) -> Vec<SkippedDisk> {
    let mut skipped = Vec::new();
    for disk in &machine.disks {
        let reason = match &disk.backing {
            DiskBacking::Empty => continue,
            DiskBacking::PassThrough { device } => {
                format!("a disk of the host is passed through: {device}")
            }
            DiskBacking::FibreChannel => "disks behind virtual Fibre Channel".to_owned(),
            DiskBacking::GuestIscsi { target } => format!("iSCSI inside the guest: {target}"),
            DiskBacking::Unknown { subtype } => format!("not understood: {subtype}"),
            DiskBacking::Image { path, .. } => {
                let is_frozen =
                    disk.slot.is_some() && frozen.iter().any(|it| Some(it.slot) == disk.slot);
                if is_frozen {
                    continue;
                }
                format!("the host left {path} out of the checkpoint")
            }
        };
        skipped.push(SkippedDisk {
            slot: disk.slot,
            reason,
        });
    }
    skipped
}
