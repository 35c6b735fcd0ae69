//! A Hyper-V host: its Windows, its switches, the systems on it.
//!
//! **Invariant.** A host that is down shows nothing and answers nothing; what it knew only in memory (jobs) is gone.

use std::collections::BTreeMap;
use std::str::FromStr;

use super::clock::VirtualTime;
use super::hardware::PhysicalDisk;
use super::ids::{ClusterName, DeviceId, HostName, SwitchName, SystemKey, VmId};
use super::path::WindowsPath;
use super::vm::ConfigurationVersion;
use crate::Error;

/// Which Windows Server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum WindowsGeneration {
    /// 2012 R2: inventory and saved-state backup only, the rest is refused.
    Server2012R2,
    /// 2016.
    Server2016,
    /// 2019.
    Server2019,
    /// 2022.
    Server2022,
    /// 2025.
    Server2025,
}

impl WindowsGeneration {
    /// All of them.
    pub const ALL: &[Self] = &[
        Self::Server2012R2,
        Self::Server2016,
        Self::Server2019,
        Self::Server2022,
        Self::Server2025,
    ];

    /// Its name in a scenario.
    pub fn name(self) -> &'static str {
        match self {
            Self::Server2012R2 => "2012r2",
            Self::Server2016 => "2016",
            Self::Server2019 => "2019",
            Self::Server2022 => "2022",
            Self::Server2025 => "2025",
        }
    }

    /// Build number.
    pub fn build(self) -> u32 {
        match self {
            Self::Server2012R2 => 9600,
            Self::Server2016 => 14393,
            Self::Server2019 => 17763,
            Self::Server2022 => 20348,
            Self::Server2025 => 26100,
        }
    }

    /// Version as `major.minor`.
    pub fn version(self) -> &'static str {
        match self {
            Self::Server2012R2 => "6.3",
            _ => "10.0",
        }
    }

    /// Version of configurations that it makes.
    pub fn configuration_version(self) -> ConfigurationVersion {
        let (major, minor) = match self {
            Self::Server2012R2 => (5, 0),
            Self::Server2016 => (8, 0),
            Self::Server2019 => (9, 0),
            Self::Server2022 => (10, 0),
            Self::Server2025 => (12, 0),
        };
        ConfigurationVersion { major, minor }
    }

    /// `ClusterFunctionalLevel`.
    pub fn cluster_functional_level(self) -> u32 {
        match self {
            Self::Server2012R2 => 8,
            Self::Server2016 => 9,
            Self::Server2019 => 10,
            Self::Server2022 => 11,
            Self::Server2025 => 12,
        }
    }

    /// Whether it knows change tracking, reference points and recovery checkpoints over WMI.
    pub fn has_tracking(self) -> bool {
        self >= Self::Server2016
    }

    /// Whether it keeps a `.vmgs` beside the configuration (1709 on).
    pub fn has_guest_state_file(self) -> bool {
        self >= Self::Server2019
    }
}

impl FromStr for WindowsGeneration {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        Self::ALL
            .iter()
            .copied()
            .find(|it| it.name().eq_ignore_ascii_case(text))
            .ok_or_else(|| Error::invalid(format!("there is no Windows generation {text:?}")))
    }
}

/// Whether a host runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum HostState {
    /// It answers.
    Up,
    /// It does not.
    Down,
}

/// A virtual switch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VirtualSwitch {
    /// `Msvm_VirtualEthernetSwitch.Name`.
    pub device: DeviceId,
    /// Display name.
    pub name: SwitchName,
}

/// A Hyper-V host.
#[derive(Debug, Clone)]
pub struct Host {
    /// NetBIOS name.
    pub name: HostName,
    /// DNS domain; the host's full name is `name.domain`.
    pub domain: String,
    /// Its Windows.
    pub windows: WindowsGeneration,
    /// Whether it runs.
    pub state: HostState,
    /// When it was started.
    pub booted: VirtualTime,
    /// The cluster it is a node of.
    pub cluster: Option<ClusterName>,
    /// Its virtual switches.
    pub switches: Vec<VirtualSwitch>,
    /// Its disks that can be handed through.
    pub disks: Vec<PhysicalDisk>,
    /// `DefaultExternalDataRoot`.
    pub default_configuration_root: WindowsPath,
    /// `DefaultVirtualHardDiskPath`.
    pub default_disk_root: WindowsPath,
    /// Whether VMs may be migrated to and from it (`EnableVirtualSystemMigration`).
    pub allows_migration: bool,
    pub(super) restart: Vec<SystemKey>,
    pub(super) realized: BTreeMap<VmId, SystemKey>,
    pub(super) planned: BTreeMap<VmId, SystemKey>,
}

impl Host {
    /// `name.domain`.
    pub fn full_name(&self) -> String {
        if self.domain.is_empty() {
            self.name.to_string()
        } else {
            format!("{}.{}", self.name.as_str().to_lowercase(), self.domain)
        }
    }

    /// How many VMs are on it.
    pub fn vm_count(&self) -> usize {
        self.realized.len()
    }
}
