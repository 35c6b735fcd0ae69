//! Settings of a VM as the tree of its configuration file, and back.
//!
//! ```text
//!   configuration ─┬─ properties: name, id, version …       ├─ manifest ─► vdevNNN: device, instance
//!                  ├─ settings: memory, processors          └─ _instance_ ─► controllerN/driveM …, MacAddress …
//! ```
//!
//! **Invariant.** What was written comes back the same.

use std::collections::BTreeMap;

use guestfs::vmconfig::{ConfigValue, Node};

use super::container::Tree;

use super::WindowsPath;
use super::hardware::{
    AdapterKind, Controller, ControllerKind, DiskSharing, Drive, FibreChannelPort, Hardware,
    IDE_CONTROLLER, Medium, Memory, NetworkAdapter, PhysicalDisk, Security,
};
use super::ids::{DeviceId, SwitchName};
use super::vm::{ConfigurationVersion, StartAction, UserCheckpointType, VmGeneration, VmSettings};
use crate::Result;

const SCSI_DEVICE: &str = "d422512d-2bf2-4752-809d-7b82b5fcb1b4";
const IDE_DEVICE: &str = "83f8638b-8dca-4152-9eda-2ca8b33039b4";
const ADAPTER_DEVICE: &str = "2fc216b0-d2e2-4967-9b6d-b8a5c9ca2778";
const FIBRE_CHANNEL_DEVICE: &str = "2e9e4c7c-9b8a-4d4e-9f1e-5f2d0a5c7b11";
const TPM_DEVICE: &str = "736e6aa9-a3f8-49c0-9550-a963214d259a";

pub(super) fn properties(settings: &VmSettings, id: &str, kind: &str) -> Tree {
    let version = u64::from(settings.version.major) << 8 | u64::from(settings.version.minor);
    Tree::default()
        .with("global_id", id)
        .with("name", settings.name.as_str())
        .with("notes", settings.notes.as_str())
        .with(
            "subtype",
            match settings.generation {
                VmGeneration::One => 0_i64,
                VmGeneration::Two => 1,
            },
        )
        .with("type_id", kind)
        .with("version", version)
        .with("bios_serial_number", settings.bios_serial.as_str())
        .with(
            "user_snapshot_type",
            u64::from(settings.user_checkpoints.value()),
        )
        .with("start_action", u64::from(settings.start_action.value()))
        .with(
            "configuration_root",
            settings.configuration_root.to_string(),
        )
        .with("snapshot_root", settings.checkpoint_root.to_string())
}

pub(super) fn encode_hardware(settings: &VmSettings, root: &mut Tree) {
    let hardware = &settings.hardware;
    let memory = hardware.memory;
    let bank = Tree::default()
        .with("dynamic_memory_enabled", memory.is_dynamic)
        .with("limit", memory.maximum_mib)
        .with("reservation", memory.minimum_mib)
        .with("size", memory.startup_mib);
    root.put(
        "settings",
        Tree::default()
            .with("memory", Tree::default().with("bank", bank))
            .with(
                "processors",
                Tree::default().with("count", u64::from(hardware.processors)),
            ),
    );
    let devices = devices_of(hardware);
    let security = Tree::default()
        .with("secure_boot_enabled", hardware.security.is_secure_boot)
        .with("shielded", hardware.security.is_shielded);
    root.put("manifest", devices.manifest);
    for (name, tree) in devices.instances {
        root.put(name, tree);
    }
    root.put("_security_", security);
}

/// The manifest and the settings of each instance that it names.
#[derive(Default)]
struct Devices {
    manifest: Tree,
    instances: Vec<(String, Tree)>,
}

impl Devices {
    fn put(&mut self, kind: &str, name: &str, instance: String, settings: Tree) {
        let number = self.instances.len() + 1;
        self.manifest.put(
            format!("vdev{number:03}"),
            Tree::default()
                .with("device", kind)
                .with("instance", instance.as_str())
                .with("name", name),
        );
        self.instances.push((format!("_{instance}_"), settings));
    }
}

fn devices_of(hardware: &Hardware) -> Devices {
    let mut devices = Devices::default();
    let ide: Vec<&Controller> = of_kind(hardware, ControllerKind::Ide);
    if !ide.is_empty() {
        let tree = ide.iter().fold(Tree::default(), |tree, controller| {
            tree.with(
                format!("controller{}", controller.number),
                drives(controller),
            )
        });
        devices.put(
            IDE_DEVICE,
            "Microsoft Emulated IDE Controller",
            IDE_DEVICE.to_owned(),
            tree,
        );
    }
    for controller in of_kind(hardware, ControllerKind::Scsi) {
        let tree = Tree::default().with("controller0", drives(controller));
        devices.put(
            SCSI_DEVICE,
            "Microsoft SCSI Controller",
            controller.device.to_string(),
            tree,
        );
    }
    for adapter in &hardware.adapters {
        let mut tree = Tree::default()
            .with("FriendlyName", adapter.name.as_str())
            .with("IsConnected", adapter.switch.is_some())
            .with("MacAddress", adapter.mac_address.as_str())
            .with("MacAddressIsStatic", adapter.is_mac_static);
        if let Some(switch) = &adapter.switch {
            tree.put("SwitchName", switch.as_str());
        }
        if let Some(vlan) = adapter.vlan {
            tree.put("Vlan", u64::from(vlan));
        }
        devices.put(
            ADAPTER_DEVICE,
            "Microsoft Synthetic Ethernet Port",
            adapter.device.to_string(),
            tree,
        );
    }
    for port in &hardware.fibre_channel {
        let tree = Tree::default().with("WorldWidePortName", port.world_wide_port_name.as_str());
        devices.put(
            FIBRE_CHANNEL_DEVICE,
            "Microsoft Synthetic Fibre Channel Port",
            port.device.to_string(),
            tree,
        );
    }
    if hardware.security.has_tpm {
        devices.put(
            TPM_DEVICE,
            "Microsoft Virtual TPM Device",
            TPM_DEVICE.to_owned(),
            Tree::default(),
        );
    }
    devices
}

fn of_kind(hardware: &Hardware, kind: ControllerKind) -> Vec<&Controller> {
    hardware
        .controllers
        .iter()
        .filter(|it| it.kind == kind)
        .collect()
}

fn drives(controller: &Controller) -> Tree {
    controller
        .drives
        .iter()
        .fold(Tree::default(), |tree, (slot, drive)| {
            let below = match drive {
                Drive::VirtualDisk(Some(medium)) => Tree::default()
                    .with("pathname", medium.path.to_string())
                    .with(
                        "sharing",
                        match medium.sharing {
                            DiskSharing::Private => 0_i64,
                            DiskSharing::SharedVhdx => 1,
                            DiskSharing::VhdSet => 2,
                        },
                    )
                    .with("type", "VHD"),
                Drive::VirtualDisk(None) => Tree::default().with("type", "NONE"),
                Drive::PassThrough(disk) => Tree::default()
                    .with("number", u64::from(disk.number))
                    .with("size", disk.size_bytes)
                    .with("device", disk.device.to_string())
                    .with("type", "PHYSICAL"),
                Drive::Dvd(path) => {
                    let shown = path.as_ref().map_or(String::new(), ToString::to_string);
                    Tree::default().with("pathname", shown).with("type", "ISO")
                }
            };
            tree.with(format!("drive{slot}"), below)
        })
}

pub(super) fn decode_settings(root: &Node, path: &WindowsPath) -> Result<VmSettings> {
    let folder = path.parent();
    let version = root.number("properties/version").unwrap_or(0x0500);
    let two = |number: u64| u16::try_from(number & 0xFF).unwrap_or(0);
    let path_at = |name: &str| {
        let text = root.text(name)?;
        WindowsPath::parse(text).ok()
    };
    let text = |name: &str| root.text(name).unwrap_or("").to_owned();
    let bank = |name: &str, usual: u64| {
        root.number(&format!("settings/memory/bank/{name}"))
            .unwrap_or(usual)
    };
    Ok(VmSettings {
        name: text("properties/name"),
        generation: match root.number("properties/subtype") {
            Some(1) => VmGeneration::Two,
            _ => VmGeneration::One,
        },
        version: ConfigurationVersion {
            major: two(version >> 8),
            minor: two(version),
        },
        notes: text("properties/notes"),
        configuration_root: path_at("properties/configuration_root").unwrap_or(folder.clone()),
        checkpoint_root: path_at("properties/snapshot_root").unwrap_or(folder),
        user_checkpoints: match root.number("properties/user_snapshot_type") {
            Some(2) => UserCheckpointType::Disabled,
            Some(4) => UserCheckpointType::ProductionOnly,
            Some(5) => UserCheckpointType::Standard,
            _ => UserCheckpointType::ProductionFallback,
        },
        start_action: match root.number("properties/start_action") {
            Some(2) => StartAction::Nothing,
            Some(4) => StartAction::Always,
            _ => StartAction::RestartIfRunning,
        },
        bios_serial: text("properties/bios_serial_number"),
        hardware: Hardware {
            processors: root
                .number("settings/processors/count")
                .and_then(|count| u32::try_from(count).ok())
                .unwrap_or(1),
            memory: Memory {
                startup_mib: bank("size", 1024),
                minimum_mib: bank("reservation", 512),
                maximum_mib: bank("limit", 1_048_576),
                is_dynamic: root
                    .flag("settings/memory/bank/dynamic_memory_enabled")
                    .unwrap_or(false),
            },
            controllers: decode_controllers(root)?,
            adapters: decode_adapters(root),
            fibre_channel: decode_fibre_channel(root),
            security: Security {
                is_secure_boot: root.flag("_security_/secure_boot_enabled").unwrap_or(false),
                has_tpm: devices(root, TPM_DEVICE).next().is_some(),
                is_shielded: root.flag("_security_/shielded").unwrap_or(false),
            },
        },
    })
}

/// Instances of a device with their settings.
fn devices<'n>(root: &'n Node, kind: &'n str) -> impl Iterator<Item = (&'n str, &'n Node)> {
    let manifest = root.node("manifest").map_or(&[][..], |it| it.entries());
    manifest.iter().filter_map(move |(_, entry)| {
        let ConfigValue::Node(entry) = entry else {
            return None;
        };
        let of_kind = entry
            .text("device")
            .is_some_and(|it| it.eq_ignore_ascii_case(kind));
        let instance = entry.text("instance").filter(|_| of_kind)?;
        Some((instance, root.node(&format!("_{instance}_"))?))
    })
}

fn decode_controllers(root: &Node) -> Result<Vec<Controller>> {
    let mut controllers = Vec::new();
    for (_, device) in devices(root, IDE_DEVICE) {
        for number in 0..2 {
            controllers.push(Controller {
                kind: ControllerKind::Ide,
                device: IDE_CONTROLLER,
                number,
                drives: decode_drives(device.node(&format!("controller{number}")))?,
            });
        }
    }
    for (number, (instance, device)) in (0..).zip(devices(root, SCSI_DEVICE)) {
        controllers.push(Controller {
            kind: ControllerKind::Scsi,
            device: instance.parse()?,
            number,
            drives: decode_drives(device.node("controller0"))?,
        });
    }
    Ok(controllers)
}

fn decode_drives(controller: Option<&Node>) -> Result<BTreeMap<u32, Drive>> {
    let mut drives = BTreeMap::new();
    for (name, drive) in controller.map_or(&[][..], |it| it.entries()) {
        let slot = name.strip_prefix("drive").and_then(|it| it.parse().ok());
        let (Some(slot), ConfigValue::Node(drive)) = (slot, drive) else {
            continue;
        };
        let path = drive.text("pathname").map(WindowsPath::parse).transpose()?;
        let number = |name: &str| drive.number(name).unwrap_or(0);
        let decoded = match (drive.text("type"), path) {
            (Some("VHD"), Some(path)) => Drive::VirtualDisk(Some(Medium {
                path,
                sharing: match number("sharing") {
                    1 => DiskSharing::SharedVhdx,
                    2 => DiskSharing::VhdSet,
                    _ => DiskSharing::Private,
                },
                iops_limit: 0,
            })),
            (Some("PHYSICAL"), _) => Drive::PassThrough(PhysicalDisk {
                number: u32::try_from(number("number")).unwrap_or(u32::MAX),
                size_bytes: number("size"),
                device: drive.text("device").unwrap_or_default().parse()?,
            }),
            (Some("ISO"), path) => Drive::Dvd(path),
            _ => Drive::VirtualDisk(None),
        };
        drives.insert(slot, decoded);
    }
    Ok(drives)
}

fn decode_adapters(root: &Node) -> Vec<NetworkAdapter> {
    let found = devices(root, ADAPTER_DEVICE);
    found
        .filter_map(|(instance, device)| {
            Some(NetworkAdapter {
                device: instance.parse::<DeviceId>().ok()?,
                name: device
                    .text("FriendlyName")
                    .unwrap_or("Network Adapter")
                    .to_owned(),
                kind: AdapterKind::Synthetic,
                mac_address: device.text("MacAddress").unwrap_or("").to_owned(),
                is_mac_static: device.flag("MacAddressIsStatic").unwrap_or(false),
                switch: device.text("SwitchName").map(SwitchName::new),
                vlan: device.number("Vlan").and_then(|it| u16::try_from(it).ok()),
                addresses: Vec::new(),
            })
        })
        .collect()
}

fn decode_fibre_channel(root: &Node) -> Vec<FibreChannelPort> {
    let found = devices(root, FIBRE_CHANNEL_DEVICE);
    found
        .filter_map(|(instance, device)| {
            Some(FibreChannelPort {
                device: instance.parse().ok()?,
                world_wide_port_name: device.text("WorldWidePortName").unwrap_or("").to_owned(),
            })
        })
        .collect()
}
