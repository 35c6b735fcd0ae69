//! Ready-made estates, from a text that people write.
//!
//! ```json
//! { "seed": 1, "data": "files", "switches": { "reference-points-migrate": "optimistic" },
//!   "hosts":    [ { "name": "HV1", "windows": "2022", "volumes": [ { "letter": "D", "gib": 100 } ] } ],
//!   "clusters": [ { "name": "CL1", "nodes": ["HV1"], "csv": [ { "name": "Volume1", "gib": 500 } ] } ],
//!   "vms":      [ { "name": "sql01", "host": "HV1", "folder": "C:\\ClusterStorage\\Volume1\\sql01", "clustered": true,
//!                   "os": "windows", "disks": [ { "file": "os.vhdx", "mib": 64 } ] } ] }
//! ```
//! A VM with `"count": 125` stands for so many, numbered. A VM whose `"writes"` is false has no guest that writes.
//!
//! **Invariants.** The same scenario, seed and folder give the same estate. Unknown words are refused, so that no typing error
//! makes another estate. Files go to the folder that is given, and nowhere else.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize;

use crate::estate::{
    Answer, ClusterName, ControllerKind, DataMode, DiskFormat, DiskSharing, DiskSource, DiskSpec,
    DiskType, Estate, EstateOptions, GuestSpec, HostName, IntegrationServices, ReplicationMode,
    SwitchName, UserCheckpointType, VmGeneration, VmId, VmSpec, VolumeKind, WindowsPath,
};
use crate::guest::{GuestOs, WriterState};
use crate::{Error, Result};

/// Bytes of the front of a disk that a guest's workload leaves alone.
const WORKLOAD_OFFSET: u64 = 1 << 20;
/// More VMs than this are a typing error.
const MAX_VMS: u32 = 20_000;

/// An estate as text describes it.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scenario {
    /// Everything follows from it.
    #[serde(default = "one")]
    pub seed: u64,
    /// Whether disks are files.
    #[serde(default)]
    pub data: DataChoice,
    /// Switches by name.
    #[serde(default)]
    pub switches: BTreeMap<String, AnswerChoice>,
    /// Hosts.
    pub hosts: Vec<HostEntry>,
    /// Clusters.
    #[serde(default)]
    pub clusters: Vec<ClusterEntry>,
    /// Shares of file servers.
    #[serde(default)]
    pub shares: Vec<ShareEntry>,
    /// VMs.
    #[serde(default)]
    pub vms: Vec<VmEntry>,
}

/// `"files"` or `"lazy"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DataChoice {
    /// Each disk is a real file.
    #[default]
    Files,
    /// A disk is a file once it is opened; no guest writes.
    Lazy,
}

/// `"pessimistic"` or `"optimistic"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AnswerChoice {
    /// The harder one.
    Pessimistic,
    /// The kinder one.
    Optimistic,
}

/// A host.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HostEntry {
    /// NetBIOS name.
    pub name: String,
    /// `2012r2` to `2025`.
    #[serde(default = "newest")]
    pub windows: String,
    /// DNS domain.
    #[serde(default)]
    pub domain: String,
    /// Volumes; `C` and `D` of 1 TiB when there is none.
    #[serde(default)]
    pub volumes: Vec<VolumeEntry>,
    /// Virtual switches besides `External`.
    #[serde(default)]
    pub switches: Vec<String>,
}

/// A volume of a host.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VolumeEntry {
    /// Drive letter.
    pub letter: char,
    /// Capacity.
    pub gib: u64,
}

/// A cluster.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClusterEntry {
    /// Its name.
    pub name: String,
    /// DNS domain.
    #[serde(default)]
    pub domain: String,
    /// Hosts.
    pub nodes: Vec<String>,
    /// Shared volumes.
    #[serde(default)]
    pub csv: Vec<CsvEntry>,
}

/// A shared volume.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CsvEntry {
    /// Last part of its path.
    pub name: String,
    /// Capacity.
    pub gib: u64,
}

/// A share.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ShareEntry {
    /// Server.
    pub server: String,
    /// Share.
    pub share: String,
    /// Capacity.
    pub gib: u64,
    /// Whether it is outside of the domain.
    #[serde(default)]
    pub foreign: bool,
}

/// A VM, or so many of a kind.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VmEntry {
    /// Display name; with a count, a number is put behind it.
    pub name: String,
    /// The host it is on.
    pub host: String,
    /// How many.
    #[serde(default = "one_vm")]
    pub count: u32,
    /// The folder of its files; `D:\vm\NAME` when there is none. With a count, a folder of the name below it.
    #[serde(default)]
    pub folder: Option<String>,
    /// 1 or 2.
    #[serde(default = "two")]
    pub generation: u8,
    /// What runs in it.
    #[serde(default = "windows")]
    pub os: GuestOs,
    /// Whether its guest writes.
    #[serde(default = "yes")]
    pub writes: bool,
    /// How its writers behave.
    #[serde(default)]
    pub writers: Option<WriterState>,
    /// Whether it runs.
    #[serde(default = "yes")]
    pub running: bool,
    /// Whether integration services answer.
    #[serde(default = "yes")]
    pub integration: bool,
    /// Whether it is a role of its host's cluster.
    #[serde(default)]
    pub clustered: bool,
    /// Memory.
    #[serde(default = "memory")]
    pub memory_mib: u64,
    /// Whether its guest has volumes by iSCSI.
    #[serde(default)]
    pub iscsi_in_guest: bool,
    /// Whether it has a virtual TPM.
    #[serde(default)]
    pub tpm: bool,
    /// How many virtual Fibre Channel ports it has.
    #[serde(default)]
    pub fibre_channel_ports: u32,
    /// Part in Hyper-V Replica.
    #[serde(default)]
    pub replication: ReplicationChoice,
    /// `disabled`, `production-fallback`, `production-only`, `standard`.
    #[serde(default)]
    pub user_checkpoints: UserCheckpointChoice,
    /// Its disks.
    #[serde(default)]
    pub disks: Vec<DiskEntry>,
}

/// Part in Hyper-V Replica.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ReplicationChoice {
    /// None.
    #[default]
    None,
    /// It is replicated.
    Primary,
    /// It is a replica.
    Replica,
}

/// Kind of user checkpoints.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum UserCheckpointChoice {
    /// Refused.
    Disabled,
    /// Production, standard when that fails.
    #[default]
    ProductionFallback,
    /// Production or nothing.
    ProductionOnly,
    /// With memory.
    Standard,
}

/// A disk.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DiskEntry {
    /// File name, `.vhd` or `.vhdx`; a path for a file that is there already.
    #[serde(default)]
    pub file: Option<String>,
    /// Size.
    #[serde(default)]
    pub mib: u64,
    /// Whether it takes all its space at once.
    #[serde(default)]
    pub fixed: bool,
    /// The number of a disk of the host, handed through.
    #[serde(default)]
    pub pass_through: Option<u32>,
    /// Whether other VMs share it.
    #[serde(default)]
    pub shared: bool,
}

fn one() -> u64 {
    1
}
fn one_vm() -> u32 {
    1
}
fn two() -> u8 {
    2
}
fn yes() -> bool {
    true
}
fn memory() -> u64 {
    2048
}
fn newest() -> String {
    "2022".into()
}
fn windows() -> GuestOs {
    GuestOs::Windows
}

impl Scenario {
    /// Reads a scenario.
    ///
    /// # Errors
    /// `Invalid`, with the place and the word.
    pub fn parse(text: &str) -> Result<Self> {
        serde_json::from_str(text)
            .map_err(|error| Error::invalid(format!("the scenario cannot be read: {error}")))
    }

    /// A two-node cluster and a standalone host with four VMs: one Windows and one Linux that are backed up online, one that
    /// must go offline, one with a pass-through disk.
    ///
    /// # Errors
    /// None, unless the text below is wrong.
    pub fn quickstart() -> Result<Self> {
        Self::parse(include_str!("scenario/quickstart.json"))
    }

    /// The estate, its files below a folder. VMs that are to run are starting.
    ///
    /// # Errors
    /// `Invalid` for what does not fit together; `Io`.
    pub fn build(&self, folder: &Path) -> Result<Estate> {
        let mut options = EstateOptions::seeded(self.seed);
        options.data = match self.data {
            DataChoice::Files => DataMode::Files,
            DataChoice::Lazy => DataMode::Lazy,
        };
        for (name, answer) in &self.switches {
            let answer = match answer {
                AnswerChoice::Pessimistic => Answer::Pessimistic,
                AnswerChoice::Optimistic => Answer::Optimistic,
            };
            options.switches.set(name.parse()?, answer);
        }
        let mut estate = Estate::new(options);
        for host in &self.hosts {
            host.build(&mut estate, folder)?;
        }
        for cluster in &self.clusters {
            cluster.build(&mut estate, folder)?;
        }
        for share in &self.shares {
            let kind = VolumeKind::Share {
                server: share.server.clone(),
                share: share.share.clone(),
            };
            let backing = folder.join(file_name(&format!(
                "share-{}-{}",
                share.server, share.share
            )));
            let id = estate.add_volume(kind, backing, gib(share.gib)?)?;
            if share.foreign {
                estate.make_foreign(id)?;
            }
        }
        for vm in &self.vms {
            vm.build(&mut estate, self.data)?;
        }
        Ok(estate)
    }
}

fn gib(count: u64) -> Result<u64> {
    count
        .checked_mul(1 << 30)
        .ok_or_else(|| Error::invalid(format!("{count} GiB")))
}

/// A name as a file's name: whatever is not a plain sign becomes one.
fn file_name(name: &str) -> String {
    let plain = |c: char| {
        if c.is_ascii_alphanumeric() || c == '-' {
            c
        } else {
            '_'
        }
    };
    name.chars().map(plain).collect()
}

impl HostEntry {
    fn build(&self, estate: &mut Estate, folder: &Path) -> Result<()> {
        let name = HostName::new(&self.name);
        estate.add_host(&name, self.windows.parse()?, &self.domain)?;
        for switch in &self.switches {
            estate.add_switch(&name, &SwitchName::new(switch))?;
        }
        let usual = ['C', 'D'].map(|letter| VolumeEntry { letter, gib: 1024 });
        let volumes = if self.volumes.is_empty() {
            &usual[..]
        } else {
            &self.volumes
        };
        for volume in volumes {
            let letter = volume.letter.to_ascii_uppercase();
            let kind = VolumeKind::Local {
                host: name.clone(),
                letter,
            };
            let backing = folder.join(file_name(&format!("{}-{letter}", self.name)));
            estate.add_volume(kind, backing, gib(volume.gib)?)?;
        }
        // Hyper-V's own folders are there from its installation on.
        let host = estate.host(&name)?;
        let (roots, name) = (
            [&host.default_configuration_root, &host.default_disk_root].map(Clone::clone),
            host.name.clone(),
        );
        for root in roots {
            // A host without a volume C: has no such folders.
            if let Ok(local) = estate.backing(&name, &root) {
                std::fs::create_dir_all(&local)
                    .map_err(|error| Error::io(format!("making {root}"), error))?;
            }
        }
        Ok(())
    }
}

impl ClusterEntry {
    fn build(&self, estate: &mut Estate, folder: &Path) -> Result<()> {
        let name = ClusterName::new(&self.name);
        let nodes: Vec<HostName> = self.nodes.iter().map(HostName::new).collect();
        estate.add_cluster(&name, &self.domain, &nodes)?;
        for (index, csv) in self.csv.iter().enumerate() {
            let owner = nodes.get(index % nodes.len().max(1));
            let owner = owner.ok_or_else(|| Error::invalid(format!("{name} has no node")))?;
            let kind = VolumeKind::Csv {
                cluster: name.clone(),
                name: csv.name.clone(),
                owner: owner.clone(),
            };
            let backing = folder.join(file_name(&format!("csv-{}-{}", self.name, csv.name)));
            estate.add_volume(kind, backing, gib(csv.gib)?)?;
        }
        Ok(())
    }
}

impl VmEntry {
    fn build(&self, estate: &mut Estate, data: DataChoice) -> Result<()> {
        if self.count > MAX_VMS {
            return Err(Error::invalid(format!("{} VMs of one kind", self.count)));
        }
        let host = HostName::new(&self.host);
        for number in 1..=self.count {
            let name = match self.count {
                1 => self.name.clone(),
                _ => format!("{}{number:04}", self.name),
            };
            let id = estate.add_vm(&host, self.spec(&name, data)?)?;
            self.finish(estate, &host, id, &name)?;
        }
        Ok(())
    }

    fn finish(&self, estate: &mut Estate, host: &HostName, id: VmId, name: &str) -> Result<()> {
        let has_guest = estate.vm(host, id)?.guest().is_some();
        if let Some(writers) = self.writers.filter(|_| has_guest) {
            estate.set_writers(host, id, writers)?;
        }
        let mode = match self.replication {
            ReplicationChoice::None => ReplicationMode::None,
            ReplicationChoice::Primary => ReplicationMode::Primary,
            ReplicationChoice::Replica => ReplicationMode::Replica,
        };
        estate.set_replication(host, id, mode)?;
        if self.clustered {
            estate.make_highly_available(host, &id.to_string())?;
        }
        if self.running {
            estate
                .request_state_change(host, id, 2)
                .map_err(|error| Error::invalid(format!("{name} does not start: {error}")))?;
        }
        Ok(())
    }

    fn spec(&self, name: &str, data: DataChoice) -> Result<VmSpec> {
        let generation = match self.generation {
            1 => VmGeneration::One,
            2 => VmGeneration::Two,
            other => return Err(Error::invalid(format!("{name}: generation {other}"))),
        };
        let folder = match (&self.folder, self.count) {
            (None, _) => WindowsPath::parse("D:\\vm")?.join(name),
            (Some(folder), 1) => WindowsPath::parse(folder)?,
            (Some(folder), _) => WindowsPath::parse(folder)?.join(name),
        };
        let mut spec = VmSpec::new(name, generation, folder);
        spec.memory_mib = self.memory_mib;
        spec.iscsi_in_guest = self.iscsi_in_guest;
        spec.has_tpm = self.tpm;
        spec.fibre_channel_ports = self.fibre_channel_ports;
        spec.integration = if self.integration {
            IntegrationServices::WORKING
        } else {
            IntegrationServices::SILENT
        };
        spec.user_checkpoints = match self.user_checkpoints {
            UserCheckpointChoice::Disabled => UserCheckpointType::Disabled,
            UserCheckpointChoice::ProductionFallback => UserCheckpointType::ProductionFallback,
            UserCheckpointChoice::ProductionOnly => UserCheckpointType::ProductionOnly,
            UserCheckpointChoice::Standard => UserCheckpointType::Standard,
        };
        spec.guest_facts = self.guest_facts(name);
        for (slot, disk) in (0..).zip(&self.disks) {
            spec.disks.push(disk.spec(generation, slot, name)?);
        }
        let has_disk = self
            .disks
            .iter()
            .any(|disk| disk.pass_through.is_none() && !disk.shared);
        if self.writes && data == DataChoice::Files && has_disk {
            spec.guest = Some(GuestSpec {
                os: self.os,
                offset: WORKLOAD_OFFSET,
                ballast_records: 256,
                transactions_per_tick: 1,
            });
        }
        Ok(spec)
    }

    fn guest_facts(&self, name: &str) -> BTreeMap<String, String> {
        if !self.integration {
            return BTreeMap::new();
        }
        let (system, version) = match self.os {
            GuestOs::Windows => ("Windows Server 2022 Datacenter", "10.0.20348"),
            GuestOs::Linux => ("Debian GNU/Linux 12 (bookworm)", "6.1.0"),
        };
        [
            ("FullyQualifiedDomainName", name),
            ("OSName", system),
            ("OSVersion", version),
            ("ProcessorArchitecture", "9"),
        ]
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .into()
    }
}

impl DiskEntry {
    fn spec(&self, generation: VmGeneration, slot: u32, vm: &str) -> Result<DiskSpec> {
        let file = self.file.clone().unwrap_or_default();
        let size_bytes = self
            .mib
            .checked_mul(1 << 20)
            .ok_or_else(|| Error::invalid(format!("{vm}: {} MiB", self.mib)))?;
        let mut spec = DiskSpec::new(generation, slot, &file, size_bytes);
        if generation == VmGeneration::One && slot >= 4 {
            // IDE is full: the others go to SCSI.
            spec.controller = ControllerKind::Scsi;
            spec.number = 0;
            spec.slot = slot - 4;
        }
        spec.source = match self.pass_through {
            Some(number) => DiskSource::PassThrough { number, size_bytes },
            None if file.contains('\\') => DiskSource::Existing(WindowsPath::parse(&file)?),
            None if file.is_empty() || size_bytes == 0 => {
                return Err(Error::invalid(format!("{vm}: a disk without file or size")));
            }
            None => DiskSource::New {
                format: match file.to_lowercase().rsplit_once('.') {
                    Some((_, "vhd")) => DiskFormat::Vhd,
                    Some((_, "vhdx")) => DiskFormat::Vhdx,
                    Some((_, "vhds")) => DiskFormat::VhdSet,
                    _ => return Err(Error::invalid(format!("{vm}: {file} is no .vhd or .vhdx"))),
                },
                file,
                disk_type: if self.fixed {
                    DiskType::Fixed
                } else {
                    DiskType::Dynamic
                },
                size_bytes,
            },
        };
        spec.sharing = match (&spec.source, self.shared) {
            (_, false) => DiskSharing::Private,
            (
                DiskSource::New {
                    format: DiskFormat::VhdSet,
                    ..
                },
                true,
            ) => DiskSharing::VhdSet,
            (_, true) => DiskSharing::SharedVhdx,
        };
        Ok(spec)
    }
}
