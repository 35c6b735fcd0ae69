//! What the SOFTWARE and SYSTEM hives of a Windows guest tell about it.
//!
//! ```text
//!   SOFTWARE  Microsoft\Windows NT\CurrentVersion ─► product, edition, build
//!             Microsoft\Virtual Machine\…         ─► integration services, name of the VM and of its host
//!   SYSTEM    Select\Current ─► ControlSet00n ─┬─ Control ─► names, time zone, page files
//!                                              └─ Services ─► what starts at boot, integration services, VSS
//!             MountedDevices ─► drive letters
//! ```
//!
//! **Invariants.** A fact that cannot be read is absent and named in [`WindowsFacts::damage`]; none is guessed.
//!
//! Where shadow copies of a volume are stored (its diff area) is kept by the volume itself, in `System Volume
//! Information`, not by the registry: only the limits that the registry sets are here.

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

use super::{Hive, Key};
use crate::{Error, Result, field};

/// Services that Hyper-V's integration components install, and what each is for.
const INTEGRATION_SERVICES: &[(&str, &str)] = &[
    ("vmbus", "channel to the host"),
    ("storvsc", "synthetic storage"),
    ("netvsc", "synthetic network"),
    ("vmicheartbeat", "heartbeat"),
    ("vmicshutdown", "shutdown by the host"),
    ("vmictimesync", "time synchronisation"),
    ("vmickvpexchange", "data exchange"),
    ("vmicvss", "backup (volume shadow copy)"),
    ("vmicguestinterface", "file copy from the host"),
    ("vmicrdv", "remote desktop"),
    ("vmicvmsession", "PowerShell Direct"),
];
const DAMAGE_LIMIT: usize = 100;

/// What is known of a Windows installation.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct WindowsFacts {
    /// `Windows Server 2022 Datacenter`.
    pub product_name: Option<String>,
    /// `ServerDatacenter`.
    pub edition: Option<String>,
    /// `Server`, `Server Core`, `Client`.
    pub installation_type: Option<String>,
    /// `22H2`; the `ReleaseId` where there is no such.
    pub display_version: Option<String>,
    /// `10.0`, `6.3`.
    pub kernel_version: Option<String>,
    /// Number of the build.
    pub build: Option<u32>,
    /// Number of the update on top (`UBR`).
    pub update_revision: Option<u32>,
    /// Where Windows lies: `C:\Windows`.
    pub system_root: Option<String>,
    /// Its NetBIOS name.
    pub computer_name: Option<String>,
    /// Its name in DNS, without the domain.
    pub host_name: Option<String>,
    /// Its domain in DNS.
    pub domain: Option<String>,
    /// Which control set is current.
    pub control_set: Option<u32>,
    /// The key name of its time zone.
    pub time_zone: Option<String>,
    /// Minutes that its local time is behind UTC, with daylight saving as last set.
    pub time_zone_bias_minutes: Option<i32>,
    /// Drive letters and mount points.
    pub mounted_devices: Vec<MountedDevice>,
    /// Drivers that the boot loader loads.
    pub boot_drivers: Vec<Service>,
    /// Integration services of Hyper-V that are installed.
    pub integration_services: Vec<IntegrationService>,
    /// Their version, on guests that still carry one of their own (up to Windows Server 2012 R2).
    pub integration_version: Option<String>,
    /// What the guest was told of the VM that it runs in.
    pub virtual_machine: Option<VirtualMachineFacts>,
    /// Shadow copies.
    pub shadow_copies: ShadowCopyFacts,
    /// Page files, as Windows writes them: path, smallest and largest size in MiB.
    pub page_files: Vec<String>,
    /// Whether it may hibernate.
    pub is_hibernation_enabled: Option<bool>,
    /// What could not be read; at most 100 lines.
    pub damage: Vec<String>,
}

/// Where a drive letter or mount point leads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountedDevice {
    /// `\DosDevices\C:` or `\??\Volume{…}`.
    pub name: String,
    /// To which partition.
    pub target: MountTarget,
}

/// A partition as Windows remembers it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MountTarget {
    /// A GPT partition by its id, or a dynamic volume by its own: Windows writes both alike.
    Partition(GptPartitionId),
    /// A partition on an MBR disk.
    Mbr {
        /// The signature of the disk.
        disk_signature: u32,
        /// First byte.
        offset_bytes: u64,
    },
    /// A device path.
    Path(String),
    /// Something else.
    Other(Vec<u8>),
}

/// A GUID in the byte order of its disk form (the first three fields little-endian).
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct GptPartitionId(pub [u8; 16]);

impl std::fmt::Display for GptPartitionId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        const ORDER: [usize; 16] = [3, 2, 1, 0, 5, 4, 7, 6, 8, 9, 10, 11, 12, 13, 14, 15];
        for (index, from) in ORDER.into_iter().enumerate() {
            if matches!(index, 4 | 6 | 8 | 10) {
                f.write_str("-")?;
            }
            write!(f, "{:02x}", self.0.get(from).copied().unwrap_or(0))?;
        }
        Ok(())
    }
}

impl std::fmt::Debug for GptPartitionId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{self}")
    }
}

/// When a service starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ServiceStart {
    /// Loaded by the boot loader.
    Boot,
    /// With the kernel.
    System,
    /// Automatically.
    Automatic,
    /// When asked for.
    Manual,
    /// Never.
    Disabled,
    /// A number that means none of these.
    Other(u32),
}

impl From<u64> for ServiceStart {
    fn from(number: u64) -> Self {
        match number {
            0 => Self::Boot,
            1 => Self::System,
            2 => Self::Automatic,
            3 => Self::Manual,
            4 => Self::Disabled,
            other => Self::Other(u32::try_from(other).unwrap_or(u32::MAX)),
        }
    }
}

/// A service or driver.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Service {
    /// The name of its key.
    pub name: String,
    /// Its program, if it says so; drivers without one are found by name.
    pub image_path: Option<String>,
    /// Its group in the load order.
    pub group: Option<String>,
    /// When it starts.
    pub start: ServiceStart,
}

/// An integration service of Hyper-V.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IntegrationService {
    /// The name of its key.
    pub name: String,
    /// What it is for.
    pub purpose: &'static str,
    /// When it starts.
    pub start: ServiceStart,
}

/// What the host told the guest.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct VirtualMachineFacts {
    /// The name of the VM.
    pub name: Option<String>,
    /// Its id.
    pub id: Option<String>,
    /// The host that it ran on.
    pub host_name: Option<String>,
}

/// What the registry says of shadow copies.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ShadowCopyFacts {
    /// When the service that makes them starts; `None` when it is not installed.
    pub service_start: Option<ServiceStart>,
    /// The least space of a diff area in MiB, if set.
    pub least_storage_mib: Option<u32>,
    /// The most shadow copies of a volume, if set.
    pub most_copies: Option<u32>,
    /// Registered providers besides that of Windows.
    pub providers: Vec<String>,
}

impl WindowsFacts {
    /// Reads what either hive tells; give what there is.
    pub fn read(software: Option<&Hive>, system: Option<&Hive>) -> Self {
        let mut facts = Self::default();
        if let Some(hive) = software {
            facts.read_software(hive);
        }
        if let Some(hive) = system {
            facts.read_system(hive);
        }
        facts
    }

    fn note(&mut self, error: Error) {
        if self.damage.len() < DAMAGE_LIMIT {
            self.damage.push(error.to_string());
        }
    }

    fn sound<T>(&mut self, result: Result<Option<T>>) -> Option<T> {
        result.unwrap_or_else(|error| {
            self.note(error);
            None
        })
    }

    fn text(&mut self, key: &Key<'_>, name: &str) -> Option<String> {
        let found = key
            .value(name)
            .and_then(|found| found.map_or(Ok(None), |it| it.text()));
        self.sound(found).filter(|text| !text.is_empty())
    }

    fn number(&mut self, key: &Key<'_>, name: &str) -> Option<u32> {
        let found = key
            .value(name)
            .and_then(|found| found.map_or(Ok(None), |it| it.number()));
        self.sound(found)
            .and_then(|number| u32::try_from(number).ok())
    }

    fn key<'h>(&mut self, above: &Key<'h>, path: &str) -> Option<Key<'h>> {
        let found = above.descend(path);
        self.sound(found)
    }

    fn read_software(&mut self, hive: &Hive) {
        let root = hive.root().map(Some);
        let Some(root) = self.sound(root) else { return };
        if let Some(key) = self.key(&root, r"Microsoft\Windows NT\CurrentVersion") {
            self.product_name = self.text(&key, "ProductName");
            self.edition = self.text(&key, "EditionID");
            self.installation_type = self.text(&key, "InstallationType");
            self.display_version = self
                .text(&key, "DisplayVersion")
                .or_else(|| self.text(&key, "ReleaseId"));
            self.system_root = self.text(&key, "SystemRoot");
            let build = self
                .text(&key, "CurrentBuildNumber")
                .or_else(|| self.text(&key, "CurrentBuild"));
            self.build = build.and_then(|text| text.trim().parse().ok());
            self.update_revision = self.number(&key, "UBR");
            let major = self.number(&key, "CurrentMajorVersionNumber");
            let minor = self.number(&key, "CurrentMinorVersionNumber");
            self.kernel_version = match (major, minor) {
                (Some(major), Some(minor)) => Some(format!("{major}.{minor}")),
                _ => self.text(&key, "CurrentVersion"),
            };
        }
        if let Some(key) = self.key(&root, r"Microsoft\Virtual Machine\Guest\Parameters") {
            self.virtual_machine = Some(VirtualMachineFacts {
                name: self.text(&key, "VirtualMachineName"),
                id: self.text(&key, "VirtualMachineId"),
                host_name: self
                    .text(&key, "PhysicalHostNameFullyQualified")
                    .or_else(|| self.text(&key, "HostName")),
            });
        }
        if let Some(key) = self.key(&root, r"Microsoft\Virtual Machine\Auto") {
            self.integration_version = self.text(&key, "IntegrationServicesVersion");
        }
    }

    fn read_system(&mut self, hive: &Hive) {
        let root = hive.root().map(Some);
        let Some(root) = self.sound(root) else { return };
        if let Some(key) = self.key(&root, "MountedDevices") {
            self.read_mounts(&key);
        }
        let Some(select) = self.key(&root, "Select") else {
            return;
        };
        self.control_set = self.number(&select, "Current");
        let Some(number) = self.control_set else {
            return;
        };
        let Some(set) = self.key(&root, &format!("ControlSet{number:03}")) else {
            return;
        };
        self.read_control(&set);
        if let Some(services) = self.key(&set, "Services") {
            self.read_services(&services);
        }
    }

    fn read_control(&mut self, set: &Key<'_>) {
        if let Some(key) = self.key(set, r"Control\ComputerName\ComputerName") {
            self.computer_name = self.text(&key, "ComputerName");
        }
        if let Some(key) = self.key(set, r"Services\Tcpip\Parameters") {
            self.host_name = self
                .text(&key, "NV Hostname")
                .or_else(|| self.text(&key, "Hostname"));
            self.domain = self
                .text(&key, "NV Domain")
                .or_else(|| self.text(&key, "Domain"));
        }
        if let Some(key) = self.key(set, r"Control\TimeZoneInformation") {
            self.time_zone = self
                .text(&key, "TimeZoneKeyName")
                .or_else(|| self.text(&key, "StandardName"));
            // A number of minutes below zero stands there as a DWORD.
            self.time_zone_bias_minutes = self
                .number(&key, "ActiveTimeBias")
                .map(|bits| i32::from_le_bytes(bits.to_le_bytes()));
        }
        if let Some(key) = self.key(set, r"Control\Session Manager\Memory Management") {
            let texts = key
                .value("PagingFiles")
                .and_then(|found| found.map_or(Ok(None), |it| it.texts()));
            self.page_files = self.sound(texts).unwrap_or_default();
        }
        if let Some(key) = self.key(set, r"Control\Power") {
            self.is_hibernation_enabled = self
                .number(&key, "HibernateEnabled")
                .map(|number| number != 0);
        }
    }

    fn read_services(&mut self, services: &Key<'_>) {
        let keys = services.subkeys().map(Some);
        for key in self.sound(keys).unwrap_or_default() {
            let name = key.name().to_string();
            let Some(start) = self.number(&key, "Start") else {
                continue;
            };
            let start = ServiceStart::from(u64::from(start));
            // Kernel and file system drivers.
            let is_driver = matches!(self.number(&key, "Type"), Some(1 | 2));
            if start == ServiceStart::Boot && is_driver {
                let driver = Service {
                    image_path: self.text(&key, "ImagePath"),
                    group: self.text(&key, "Group"),
                    name: name.clone(),
                    start,
                };
                self.boot_drivers.push(driver);
            }
            if let Some((_, purpose)) = INTEGRATION_SERVICES
                .iter()
                .find(|(known, _)| name.eq_ignore_ascii_case(known))
            {
                self.integration_services.push(IntegrationService {
                    name: name.clone(),
                    purpose,
                    start,
                });
            }
            if name.eq_ignore_ascii_case("VSS") {
                self.shadow_copies.service_start = Some(start);
                self.read_shadow_copies(&key);
            }
            if name.eq_ignore_ascii_case("volsnap") {
                self.shadow_copies.least_storage_mib = self.number(&key, "MinDiffAreaFileSize");
            }
        }
    }

    fn read_shadow_copies(&mut self, service: &Key<'_>) {
        if let Some(key) = self.key(service, "Settings") {
            self.shadow_copies.most_copies = self.number(&key, "MaxShadowCopies");
        }
        let Some(providers) = self.key(service, "Providers") else {
            return;
        };
        let keys = providers.subkeys().map(Some);
        for key in self.sound(keys).unwrap_or_default() {
            if let Some(name) = self.text(&key, "") {
                self.shadow_copies.providers.push(name);
            }
        }
    }

    fn read_mounts(&mut self, key: &Key<'_>) {
        let values = key.values().map(Some);
        for value in self.sound(values).unwrap_or_default() {
            match value.data() {
                Ok(data) => self.mounted_devices.push(MountedDevice {
                    name: value.name().to_string(),
                    target: mount_target(data),
                }),
                Err(error) => self.note(error),
            }
        }
    }
}

/// What the bytes of a value of `MountedDevices` mean.
fn mount_target(data: Vec<u8>) -> MountTarget {
    let guid = |rest: &[u8]| rest.try_into().ok().map(GptPartitionId);
    if let Some(id) = data.strip_prefix(b"DMIO:ID:").and_then(guid) {
        return MountTarget::Partition(id);
    }
    if data.len() == 12
        && let (Ok(disk_signature), Ok(offset_bytes)) =
            (field::u32_le(&data, 0), field::u64_le(&data, 4))
    {
        return MountTarget::Mbr {
            disk_signature,
            offset_bytes,
        };
    }
    let units: Vec<u16> = data
        .chunks_exact(2)
        .filter_map(|pair| pair.try_into().ok().map(u16::from_le_bytes))
        .collect();
    match String::from_utf16(&units) {
        Ok(text) if data.len().is_multiple_of(2) && text.starts_with(['\\', '_']) => {
            MountTarget::Path(text)
        }
        _ => MountTarget::Other(data),
    }
}
