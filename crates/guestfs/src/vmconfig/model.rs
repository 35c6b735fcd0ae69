//! What a configuration says of a VM, typed.
//!
//! ```text
//!   configuration ─┬─ properties ─► name, id, version, generation
//!                  ├─ settings ─► processors, memory
//!                  ├─ manifest ─► vdevNNN: device, instance ─► _instance_ ─► controllerN/driveM, MacAddress …
//!                  └─ global_settings/snapshots ─► checkpoints
//! ```
//!
//! **Invariants.** What is absent in the tree is absent here: nothing is guessed.

#![cfg_attr(
    not(test),
    deny(
        clippy::indexing_slicing,
        clippy::arithmetic_side_effects,
        clippy::as_conversions,
        clippy::unwrap_used,
        clippy::expect_used
    )
)]

use std::fmt;

use super::{ConfigValue, Node};
use crate::{Error, Result};

/// The devices that are known, as the manifest names them.
const IDE_CONTROLLER: &str = "83f8638b-8dca-4152-9eda-2ca8b33039b4";
const SCSI_CONTROLLER: &str = "d422512d-2bf2-4752-809d-7b82b5fcb1b4";
const FLOPPY_CONTROLLER: &str = "8f0d2762-0b00-4e04-af4f-19010527cb93";
const NETWORK_ADAPTER: &str = "2fc216b0-d2e2-4967-9b6d-b8a5c9ca2778";
const TPM: &str = "736e6aa9-a3f8-49c0-9550-a963214d259a";
/// The id of the legacy adapter is not published; its name is.
const LEGACY_NETWORK_ADAPTER: &str = "Microsoft Emulated Ethernet Port";

/// Which kind of virtual hardware.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Generation {
    /// BIOS and IDE.
    One,
    /// UEFI and SCSI.
    Two,
}

/// A VM as its configuration describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VmConfiguration {
    /// Its name.
    pub name: Option<String>,
    /// Its id, as it stands there.
    pub id: Option<String>,
    /// Whether this is the VM itself or one of its checkpoints.
    pub is_checkpoint: bool,
    /// Its generation, if told.
    pub generation: Option<Generation>,
    /// Version of the configuration: major and minor.
    pub version: Option<(u64, u64)>,
    /// What the operator noted.
    pub notes: Option<String>,
    /// Virtual processors.
    pub processors: Option<u64>,
    /// Memory.
    pub memory: MemorySettings,
    /// What is attached to its controllers.
    pub disks: Vec<DiskAttachment>,
    /// Network adapters.
    pub network: Vec<NetworkAdapter>,
    /// Secure boot and TPM.
    pub security: SecuritySettings,
    /// Ids of its checkpoints.
    pub checkpoints: Vec<String>,
    /// Whether a checkpoint's disks wait to be merged.
    pub is_disk_merge_pending: Option<bool>,
    /// Whether it is a role of a cluster.
    pub is_highly_available: Option<bool>,
}

/// Memory of a VM in MiB.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct MemorySettings {
    /// At start.
    pub size_mib: Option<u64>,
    /// At least, when it is dynamic.
    pub reservation_mib: Option<u64>,
    /// At most, when it is dynamic.
    pub limit_mib: Option<u64>,
    /// Whether it is dynamic.
    pub is_dynamic: Option<bool>,
}

/// Kinds of controllers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ControllerKind {
    /// Emulated.
    Ide,
    /// Synthetic.
    Scsi,
    /// Of diskettes.
    Floppy,
}

impl ControllerKind {
    /// Its usual name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ide => "IDE",
            Self::Scsi => "SCSI",
            Self::Floppy => "floppy",
        }
    }
}

/// What a drive is.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum DriveKind {
    /// A virtual hard disk.
    VirtualDisk,
    /// An optical drive, with or without an image.
    Optical,
    /// A diskette drive.
    Floppy,
    /// A disk of the host handed through, or another word that stands there.
    Other(String),
}

/// A drive of a VM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskAttachment {
    /// What its controller is.
    pub controller: ControllerKind,
    /// Which controller, counted from 0 among those of its kind.
    pub controller_number: u32,
    /// Where on it.
    pub location: u32,
    /// What it is.
    pub kind: DriveKind,
    /// The image's path on the host.
    pub path: Option<String>,
}

/// A network adapter of a VM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetworkAdapter {
    /// Its name.
    pub name: Option<String>,
    /// Its hardware address, as it stands there.
    pub mac_address: Option<String>,
    /// Whether the operator set that.
    pub is_mac_static: Option<bool>,
    /// The switch, by name or id.
    pub switch: Option<String>,
    /// Whether it is connected.
    pub is_connected: Option<bool>,
}

/// What guards a VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SecuritySettings {
    /// Secure boot.
    pub is_secure_boot: Option<bool>,
    /// A virtual TPM.
    pub is_tpm: Option<bool>,
}

/// A device of the manifest and its settings.
struct Device<'t> {
    settings: &'t Node,
}

/// Settings of every instance of a device, in the order of the manifest.
fn devices<'t>(root: &'t Node, wanted: &str) -> Vec<Device<'t>> {
    let Some(manifest) = root.node("manifest") else {
        return Vec::new();
    };
    let mut found = Vec::new();
    for (_, entry) in manifest.entries() {
        let ConfigValue::Node(entry) = entry else {
            continue;
        };
        let is_wanted = ["device", "name"].into_iter().any(|field| {
            entry
                .text(field)
                .is_some_and(|text| text.trim_matches(['{', '}']).eq_ignore_ascii_case(wanted))
        });
        let settings = entry
            .text("instance")
            .map(|instance| instance.trim_matches(['{', '}']))
            .and_then(|instance| root.node(&format!("_{instance}_")));
        if let (true, Some(settings)) = (is_wanted, settings) {
            found.push(Device { settings });
        }
    }
    found
}

/// The number behind a word: 3 of `controller3`.
fn numbered(name: &str, word: &str) -> Option<u32> {
    let head = name.get(..word.len())?;
    head.eq_ignore_ascii_case(word)
        .then(|| name.get(word.len()..)?.parse().ok())
        .flatten()
}

fn drives(root: &Node, device: &str, kind: ControllerKind, disks: &mut Vec<DiskAttachment>) {
    for (instance, device) in devices(root, device).into_iter().enumerate() {
        for (name, controller) in device.settings.entries() {
            let (Some(number), ConfigValue::Node(controller)) =
                (numbered(name, "controller"), controller)
            else {
                continue;
            };
            // Each SCSI controller is an instance of its own that calls itself controller 0.
            let first = u32::try_from(instance).unwrap_or(u32::MAX);
            let controller_number = number.saturating_add(first);
            for (name, drive) in controller.entries() {
                let (Some(location), ConfigValue::Node(drive)) = (numbered(name, "drive"), drive)
                else {
                    continue;
                };
                let drive_kind = match drive.text("type") {
                    None | Some("NONE") => continue,
                    Some("VHD") => DriveKind::VirtualDisk,
                    Some("ISO") => DriveKind::Optical,
                    Some("VFD") => DriveKind::Floppy,
                    Some(other) => DriveKind::Other(other.to_owned()),
                };
                disks.push(DiskAttachment {
                    controller: kind,
                    controller_number,
                    location,
                    kind: drive_kind,
                    path: drive.text("pathname").map(str::to_owned),
                });
            }
        }
    }
}

fn adapters(root: &Node) -> Vec<NetworkAdapter> {
    [NETWORK_ADAPTER, LEGACY_NETWORK_ADAPTER]
        .iter()
        .flat_map(|device| devices(root, device))
        .map(|device| {
            let text = |path: &str| device.settings.text(path).map(str::to_owned);
            NetworkAdapter {
                name: text("FriendlyName"),
                mac_address: text("MacAddress"),
                is_mac_static: device.settings.flag("MacAddressIsStatic"),
                switch: text("SwitchName").or_else(|| text("Connection/AltSwitchName")),
                is_connected: device.settings.flag("IsConnected"),
            }
        })
        .collect()
}

/// The first of these names anywhere among the settings of devices.
fn device_flag(root: &Node, name: &str) -> Option<bool> {
    root.entries().iter().find_map(|(key, value)| match value {
        ConfigValue::Node(node) if key.starts_with('_') => node.flag(name),
        _ => None,
    })
}

/// Whatever is a GUID in a list or one level below: how the list's entries are named differs between versions.
fn ids_below(list: &Node) -> Vec<String> {
    let mut ids = Vec::new();
    for (_, value) in list.entries() {
        let texts: Vec<&ConfigValue> = match value {
            ConfigValue::Node(node) => node.entries().iter().map(|(_, value)| value).collect(),
            other => vec![other],
        };
        for text in texts {
            if let ConfigValue::Text(text) = text
                && is_id(text)
                && !ids.contains(text)
            {
                ids.push(text.clone());
            }
        }
    }
    ids
}

/// Whether a text is a GUID, with or without braces.
fn is_id(text: &str) -> bool {
    let parts: Vec<usize> = text
        .trim_matches(['{', '}'])
        .split('-')
        .map(|part| {
            let is_hex = part.bytes().all(|byte| byte.is_ascii_hexdigit());
            if is_hex { part.len() } else { 0 }
        })
        .collect();
    parts == [8, 4, 4, 4, 12]
}

/// Reads the model out of a tree.
pub(super) fn of(tree: &Node) -> Result<VmConfiguration> {
    let root = tree
        .node("configuration")
        .ok_or_else(|| Error::corrupt("no configuration in this file: perhaps a state file"))?;
    let text = |path: &str| root.text(path).map(str::to_owned);
    let mut disks = Vec::new();
    drives(root, IDE_CONTROLLER, ControllerKind::Ide, &mut disks);
    drives(root, SCSI_CONTROLLER, ControllerKind::Scsi, &mut disks);
    drives(root, FLOPPY_CONTROLLER, ControllerKind::Floppy, &mut disks);
    let checkpoints = root
        .node("global_settings/snapshots/list")
        .map(ids_below)
        .unwrap_or_default();
    Ok(VmConfiguration {
        name: text("properties/name"),
        id: text("properties/global_id"),
        is_checkpoint: root
            .text("properties/type_id")
            .is_some_and(|kind| kind.to_ascii_lowercase().contains("snapshot")),
        generation: match root.number("properties/subtype") {
            Some(0) => Some(Generation::One),
            Some(1) => Some(Generation::Two),
            _ => None,
        },
        version: root
            .number("properties/version")
            .map(|version| (version >> 8, version & 0xFF)),
        notes: text("properties/notes"),
        processors: root.number("settings/processors/count"),
        memory: MemorySettings {
            size_mib: root.number("settings/memory/bank/size"),
            reservation_mib: root.number("settings/memory/bank/reservation"),
            limit_mib: root.number("settings/memory/bank/limit"),
            is_dynamic: root.flag("settings/memory/bank/dynamic_memory_enabled"),
        },
        disks,
        network: adapters(root),
        security: SecuritySettings {
            is_secure_boot: device_flag(root, "secure_boot_enabled"),
            is_tpm: root
                .node("manifest")
                .map(|_| !devices(root, TPM).is_empty()),
        },
        checkpoints,
        is_disk_merge_pending: root.flag("global_settings/disk_merge_pending"),
        is_highly_available: root.flag("properties/highly_available"),
    })
}

/// For people: one fact per line, absent ones left out.
impl fmt::Display for VmConfiguration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = |flag: Option<bool>| flag.map(|flag| if flag { "yes" } else { "no" }.to_owned());
        let generation = self.generation.map(|generation| match generation {
            Generation::One => "1".to_owned(),
            Generation::Two => "2".to_owned(),
        });
        let memory = self.memory;
        let lines = [
            ("name", self.name.clone()),
            ("id", self.id.clone()),
            ("generation", generation),
            (
                "version",
                self.version
                    .map(|(major, minor)| format!("{major}.{minor}")),
            ),
            ("notes", self.notes.clone()),
            ("processors", self.processors.map(|count| count.to_string())),
            ("memory", memory.size_mib.map(|size| format!("{size} MiB"))),
            ("dynamic memory", word(memory.is_dynamic)),
            ("secure boot", word(self.security.is_secure_boot)),
            ("TPM", word(self.security.is_tpm)),
            ("clustered", word(self.is_highly_available)),
            ("disk merge pending", word(self.is_disk_merge_pending)),
        ];
        for (label, value) in lines {
            if let Some(value) = value {
                writeln!(f, "{label}: {value}")?;
            }
        }
        for disk in &self.disks {
            let (controller, number) = (disk.controller.name(), disk.controller_number);
            let path = disk.path.as_deref().unwrap_or("(empty)");
            writeln!(f, "{controller} {number}:{}: {path}", disk.location)?;
        }
        for adapter in &self.network {
            let or = |text: &Option<String>| text.clone().unwrap_or_else(|| "-".to_owned());
            let (name, mac) = (or(&adapter.name), or(&adapter.mac_address));
            writeln!(f, "network: {name}, {mac}, switch {}", or(&adapter.switch))?;
        }
        for checkpoint in &self.checkpoints {
            writeln!(f, "checkpoint: {checkpoint}")?;
        }
        Ok(())
    }
}
