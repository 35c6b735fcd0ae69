//! Disks of machines: media, drives and controllers put together by their paths.
//!
//! ```text
//!   controller (5 IDE, 6 SCSI) ◄─ Parent ─ drive (17) ◄─ Parent ─ medium (31): HostResource[0] = file
//!                                          │ AddressOnParent = slot
//!                                          └ physical drive (17): HostResource[0] = path of the host's disk
//! ```

use std::collections::HashMap;

use wsman::cim::{CimInstance, Namespace};

use super::super::decode::{id_key, id_of_path_text, owner_of_id, text};
use super::super::names::subtype;
use super::fetch::Rows;
use crate::facts::{ControllerKind, DiskBacking, DiskFacts, DiskSlot, ImageKind};
use crate::ids::{DeviceId, VmId};
use crate::path::HostPath;

/// What of an `InstanceID` stands behind the machine: the same for a machine's disk and that disk in its checkpoints.
pub(in super::super) fn tail_of(id: &str) -> Option<(VmId, String)> {
    let (owner, tail) = owner_of_id(id)?;
    Some((owner, id_key(tail)))
}

/// Disks of all machines of a node, by the machine's (or checkpoint's) id.
pub(super) struct Disks {
    by_owner: HashMap<VmId, Vec<DiskFacts>>,
}

struct Drive<'a> {
    row: &'a CimInstance,
    owner: VmId,
    subtype: &'a str,
}

impl Disks {
    pub(super) fn of(rows: &Rows, namespace: &Namespace) -> Self {
        let mut controllers: HashMap<String, (ControllerKind, u32)> = HashMap::new();
        let mut scsi_counts: HashMap<VmId, u32> = HashMap::new();
        let mut drives: HashMap<String, Drive<'_>> = HashMap::new();
        for row in &rows.resources {
            let Some(id) = row.text_ref("InstanceID") else {
                continue;
            };
            let Some((owner, _)) = owner_of_id(id) else {
                continue;
            };
            let kind = row.text_ref("ResourceSubType").unwrap_or_default();
            if kind == subtype::IDE {
                let number = row.opt_u32("Address").ok().flatten().unwrap_or(0);
                controllers.insert(id_key(id), (ControllerKind::Ide, number));
            } else if kind == subtype::SCSI {
                let count = scsi_counts.entry(owner).or_default();
                controllers.insert(id_key(id), (ControllerKind::Scsi, *count));
                *count = count.saturating_add(1);
            } else if kind == subtype::DISK_DRIVE || kind == subtype::PHYSICAL_DRIVE {
                let subtype = kind;
                drives.insert(
                    id_key(id),
                    Drive {
                        row,
                        owner,
                        subtype,
                    },
                );
            }
        }
        let mut disks = Self {
            by_owner: HashMap::new(),
        };
        let slot_of = |drive: &CimInstance| slot(drive, &controllers, namespace);
        for row in &rows.storage {
            disks.add_medium(row, &mut drives, &slot_of, namespace);
        }
        // Drives that no medium named: passed through, or empty.
        for drive in drives.into_values() {
            disks.add_drive(&drive, &slot_of, namespace);
        }
        for row in &rows.fibre_channel {
            let owner = row.text_ref("InstanceID").and_then(owner_of_id);
            if let Some((owner, _)) = owner {
                disks.add(owner, None, row, DiskBacking::FibreChannel);
            }
        }
        for found in disks.by_owner.values_mut() {
            found.sort_by(|left, right| {
                (left.slot.is_none(), left.slot, &left.device).cmp(&(
                    right.slot.is_none(),
                    right.slot,
                    &right.device,
                ))
            });
        }
        disks
    }

    pub(super) fn take(&mut self, owner: VmId) -> Vec<DiskFacts> {
        self.by_owner.remove(&owner).unwrap_or_default()
    }

    fn add(
        &mut self,
        owner: VmId,
        slot: Option<DiskSlot>,
        row: &CimInstance,
        backing: DiskBacking,
    ) {
        let device = text(row, "InstanceID").and_then(|id| DeviceId::new(id).ok());
        self.by_owner.entry(owner).or_default().push(DiskFacts {
            slot,
            device,
            backing,
        });
    }

    fn add_medium(
        &mut self,
        row: &CimInstance,
        drives: &mut HashMap<String, Drive<'_>>,
        slot_of: &dyn Fn(&CimInstance) -> Option<DiskSlot>,
        namespace: &Namespace,
    ) {
        let Some((owner, tail)) = row.text_ref("InstanceID").and_then(owner_of_id) else {
            return;
        };
        let kind = row.text_ref("ResourceSubType").unwrap_or_default();
        let drive_id = row
            .text_ref("Parent")
            .and_then(|parent| id_of_path_text(parent, namespace));
        let drive = drive_id.and_then(|id| drives.remove(&id));
        if kind == subtype::OPTICAL_DISK || kind == subtype::FLOPPY_DISK {
            return;
        }
        let slot = drive
            .and_then(|drive| slot_of(drive.row))
            .or_else(|| slot_of_tail(tail));
        let backing = if kind == subtype::HARD_DISK || kind == subtype::PMEM_DISK {
            image(row)
        } else {
            DiskBacking::Unknown {
                subtype: kind.to_owned(),
            }
        };
        let slot = if kind == subtype::PMEM_DISK {
            slot.map(|slot| DiskSlot {
                controller: ControllerKind::Pmem,
                ..slot
            })
        } else {
            slot
        };
        self.add(owner, slot, row, backing);
    }

    fn add_drive(
        &mut self,
        drive: &Drive<'_>,
        slot_of: &dyn Fn(&CimInstance) -> Option<DiskSlot>,
        namespace: &Namespace,
    ) {
        let backing = if drive.subtype == subtype::PHYSICAL_DRIVE {
            DiskBacking::PassThrough {
                device: physical(drive.row, namespace),
            }
        } else {
            DiskBacking::Empty
        };
        self.add(drive.owner, slot_of(drive.row), drive.row, backing);
    }
}

/// What a medium's path names. A path that cannot be one is not understood rather than absent.
fn image(row: &CimInstance) -> DiskBacking {
    let paths = row.texts("HostResource").unwrap_or_default();
    let Some(first) = paths.into_iter().next().filter(|path| !path.is_empty()) else {
        return DiskBacking::Empty;
    };
    match HostPath::new(first) {
        Ok(path) => DiskBacking::Image {
            image: ImageKind::of_path(&path),
            is_shared: row
                .opt_bool("PersistentReservationsSupported")
                .ok()
                .flatten(),
            path,
        },
        Err(_) => DiskBacking::Unknown {
            subtype: "a path that is none".to_owned(),
        },
    }
}

/// The host's disk behind a drive, as it names it.
fn physical(row: &CimInstance, namespace: &Namespace) -> String {
    let first = row
        .texts("HostResource")
        .unwrap_or_default()
        .into_iter()
        .next();
    let Some(first) = first else {
        return "a disk of the host".to_owned();
    };
    let named = wsman::cim::CimPath::parse(&first, namespace)
        .ok()
        .and_then(|path| path.key("DeviceID"));
    named.unwrap_or(first)
}

fn slot(
    drive: &CimInstance,
    controllers: &HashMap<String, (ControllerKind, u32)>,
    namespace: &Namespace,
) -> Option<DiskSlot> {
    let parent = drive
        .text_ref("Parent")
        .and_then(|parent| id_of_path_text(parent, namespace));
    let (controller, number) = *controllers.get(&parent?)?;
    let location = drive.opt_u32("AddressOnParent").ok().flatten()?;
    Some(DiskSlot {
        controller,
        number,
        location,
    })
}

/// The slot that an id spells, `CONTROLLER\NUMBER\LOCATION\L`, where no drive tells it better.
pub(in super::super) fn slot_of_tail(tail: &str) -> Option<DiskSlot> {
    const IDE: &str = "83f8638b-8dca-4152-9eda-2ca8b33039b4";
    let mut parts = tail.split('\\').filter(|part| !part.is_empty());
    let controller = parts.next()?;
    Some(DiskSlot {
        controller: if controller.eq_ignore_ascii_case(IDE) {
            ControllerKind::Ide
        } else {
            ControllerKind::Scsi
        },
        number: parts.next()?.parse().ok()?,
        location: parts.next()?.parse().ok()?,
    })
}
