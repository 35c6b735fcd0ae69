//! Building an estate: hosts, clusters, volumes, VMs, before and while it runs.
//!
//! **Invariant.** What is built keeps the rules that the wire keeps: slots, ids, paths. What a scenario gets wrong is told as
//! `Invalid`.

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::cluster::{
    Cluster, Group, GroupState, GroupType, Node, NodeState, Resource, ResourceState, ResourceType,
};
use super::hardware::{
    Controller, ControllerKind, DiskSharing, Drive, FibreChannelPort, IDE_CONTROLLER, Medium,
    PhysicalDisk,
};
use super::host::{Host, HostState, VirtualSwitch, WindowsGeneration};
use super::ids::{ClusterObjectId, DeviceId, DriveAddress, SystemKey, VmId};
use super::specs::{DiskSource, DiskSpec, VmSpec};
use super::storage::{Volume, VolumeKind, VolumeState};
use super::vm::{
    IntegrationServices, MergeState, PowerState, Realm, ReplicationMode, StartAction,
    VirtualMachine, VmGeneration, VmSettings,
};
use super::{
    AdapterKind, ClusterName, DiskFacts, Estate, GroupName, Hardware, HostName, NetworkAdapter,
    ResourceName, SwitchName, VolumeId, WindowsPath,
};
use crate::guest::{Guest, Layout};
use crate::{Error, Result};

impl Estate {
    /// A standalone host with one switch, that runs. Its volumes are added apart.
    ///
    /// # Errors
    /// `Invalid` when there is one of that name.
    pub fn add_host(
        &mut self,
        name: &HostName,
        windows: WindowsGeneration,
        domain: &str,
    ) -> Result<()> {
        if self.hosts.contains_key(name) {
            return Err(Error::invalid(format!("there is a host {name} already")));
        }
        let root = WindowsPath::parse("C:\\ProgramData\\Microsoft\\Windows\\Hyper-V")?;
        let disks =
            WindowsPath::parse("C:\\Users\\Public\\Documents\\Hyper-V\\Virtual Hard Disks")?;
        let host = Host {
            name: name.clone(),
            domain: domain.to_owned(),
            windows,
            state: HostState::Up,
            booted: self.now(),
            cluster: None,
            switches: vec![VirtualSwitch {
                device: DeviceId(self.random.uuid()),
                name: SwitchName::new("External"),
            }],
            disks: Vec::new(),
            default_configuration_root: root,
            default_disk_root: disks,
            allows_migration: true,
            restart: Vec::new(),
            realized: BTreeMap::new(),
            planned: BTreeMap::new(),
        };
        self.hosts.insert(name.clone(), host);
        self.touch();
        Ok(())
    }

    /// Puts a switch on a host.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn add_switch(&mut self, host: &HostName, name: &SwitchName) -> Result<DeviceId> {
        self.host(host)?;
        let device = DeviceId(self.random.uuid());
        if let Some(host) = self.hosts.get_mut(host) {
            host.switches.push(VirtualSwitch {
                device,
                name: name.clone(),
            });
        }
        self.touch();
        Ok(device)
    }

    /// A cluster of hosts that are in none.
    ///
    /// # Errors
    /// `NotFound`, `Invalid`.
    pub fn add_cluster(
        &mut self,
        name: &ClusterName,
        domain: &str,
        members: &[HostName],
    ) -> Result<()> {
        if self.clusters.contains_key(name) || members.is_empty() {
            return Err(Error::invalid(format!(
                "cluster {name}: known already, or empty"
            )));
        }
        let mut level = u32::MAX;
        for member in members {
            let host = self.host(member)?;
            if host.cluster.is_some() {
                return Err(Error::invalid(format!("{member} is in a cluster already")));
            }
            level = level.min(host.windows.cluster_functional_level());
        }
        let mut nodes = BTreeMap::new();
        for (id, member) in (1..).zip(members) {
            let node = Node {
                host: member.clone(),
                id,
                state: NodeState::Up,
                is_drained: false,
            };
            nodes.insert(member.clone(), node);
            if let Some(host) = self.hosts.get_mut(member) {
                host.cluster = Some(name.clone());
            }
        }
        let mut cluster = Cluster {
            name: name.clone(),
            domain: domain.to_owned(),
            functional_level: level,
            nodes,
            groups: BTreeMap::new(),
            resources: BTreeMap::new(),
            volumes: Vec::new(),
            group_of_vm: BTreeMap::new(),
        };
        let core = self.plain_group("Cluster Group", GroupType::Core, members);
        let name_resource = Resource {
            name: ResourceName::new("Cluster Name"),
            id: ClusterObjectId(self.random.uuid()),
            resource_type: ResourceType::NetworkName,
            group: core.name.clone(),
            state: ResourceState::Online,
            vm: None,
            volume: None,
            possible_owners: members.to_vec(),
        };
        cluster
            .resources
            .insert(name_resource.name.clone(), name_resource);
        let storage = self.plain_group("Available Storage", GroupType::AvailableStorage, members);
        for group in [core, storage] {
            cluster.groups.insert(group.name.clone(), group);
        }
        self.clusters.insert(name.clone(), cluster);
        self.touch();
        Ok(())
    }

    fn plain_group(&mut self, name: &str, group_type: GroupType, members: &[HostName]) -> Group {
        Group {
            name: GroupName::new(name),
            id: ClusterObjectId(self.random.uuid()),
            group_type,
            owner: members
                .first()
                .cloned()
                .unwrap_or_else(|| HostName::new("")),
            state: GroupState::Online,
            priority: 2000,
            preferred_owners: Vec::new(),
            vm: None,
            is_wanted_online: true,
        }
    }

    /// A volume, its files below `backing`.
    ///
    /// # Errors
    /// `NotFound` for its host or cluster; `Invalid` when there is one at that path; `Io`.
    pub fn add_volume(
        &mut self,
        kind: VolumeKind,
        backing: PathBuf,
        capacity_bytes: u64,
    ) -> Result<VolumeId> {
        match &kind {
            VolumeKind::Local { host, .. } => {
                self.host(host)?;
            }
            VolumeKind::Csv { cluster, owner, .. } => {
                if !self.cluster(cluster)?.nodes.contains_key(owner) {
                    return Err(Error::invalid(format!("{owner} is no node of {cluster}")));
                }
            }
            VolumeKind::Share { .. } => {}
        }
        if self.storage.volumes.iter().any(|it| it.kind == kind) {
            return Err(Error::invalid("there is such a volume already"));
        }
        std::fs::create_dir_all(&backing)
            .map_err(|error| Error::io(format!("making {}", backing.display()), error))?;
        let backing = backing
            .canonicalize()
            .map_err(|error| Error::io(format!("resolving {}", backing.display()), error))?;
        let number = u32::try_from(self.storage.volumes.len()).unwrap_or(u32::MAX);
        let id = VolumeId(number);
        let volume = Volume {
            id,
            kind: kind.clone(),
            guid: self.random.uuid(),
            backing,
            capacity_bytes,
            state: VolumeState::Online,
            is_foreign: false,
            filled_bytes: 0,
        };
        self.storage.volumes.push(volume);
        if let VolumeKind::Csv {
            cluster,
            name,
            owner,
        } = kind
        {
            self.add_csv_resource(&cluster, &name, &owner, id);
        }
        self.touch();
        Ok(id)
    }

    fn add_csv_resource(
        &mut self,
        cluster: &ClusterName,
        name: &str,
        owner: &HostName,
        id: VolumeId,
    ) {
        let group_id = ClusterObjectId(self.random.uuid());
        let resource_id = ClusterObjectId(self.random.uuid());
        let Some(cluster) = self.clusters.get_mut(cluster) else {
            return;
        };
        let members: Vec<HostName> = cluster.nodes.keys().cloned().collect();
        let group = Group {
            name: GroupName::new(group_id.to_string().to_lowercase()),
            id: group_id,
            group_type: GroupType::AvailableStorage,
            owner: owner.clone(),
            state: GroupState::Online,
            priority: 2000,
            preferred_owners: Vec::new(),
            vm: None,
            is_wanted_online: true,
        };
        let resource = Resource {
            name: ResourceName::new(format!("Cluster Disk {name}")),
            id: resource_id,
            resource_type: ResourceType::PhysicalDisk,
            group: group.name.clone(),
            state: ResourceState::Online,
            vm: None,
            volume: Some(id),
            possible_owners: members,
        };
        cluster.volumes.push(id);
        cluster.groups.insert(group.name.clone(), group);
        cluster.resources.insert(resource.name.clone(), resource);
    }

    /// Says which part a VM has in Hyper-V Replica.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn set_replication(
        &mut self,
        host: &HostName,
        id: VmId,
        mode: ReplicationMode,
    ) -> Result<()> {
        let key = self.vm(host, id)?.key;
        self.vm_mut(key)?.replication = mode;
        self.touch();
        Ok(())
    }

    /// Sets how a volume can be reached.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn set_volume_state(&mut self, id: VolumeId, state: VolumeState) -> Result<()> {
        self.volume_mut(id)?.state = state;
        self.touch();
        Ok(())
    }

    /// Fills a volume with something that is not the estate's.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn fill_volume(&mut self, id: VolumeId, bytes: u64) -> Result<()> {
        self.volume_mut(id)?.filled_bytes = bytes;
        self.touch();
        Ok(())
    }

    /// Says that a share is outside of the domain.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn make_foreign(&mut self, id: VolumeId) -> Result<()> {
        self.volume_mut(id)?.is_foreign = true;
        self.touch();
        Ok(())
    }

    pub(super) fn volume_mut(&mut self, id: VolumeId) -> Result<&mut Volume> {
        self.storage
            .volumes
            .iter_mut()
            .find(|it| it.id == id)
            .ok_or_else(|| Error::not_found("there is no such volume"))
    }

    /// A VM, off, with its disks.
    ///
    /// # Errors
    /// `NotFound`, `Invalid`, `Io`; as the calls of the wire for paths and disks.
    pub fn add_vm(&mut self, host: &HostName, spec: VmSpec) -> Result<VmId> {
        let windows = self.host(host)?.windows;
        let switch = self.host(host)?.switches.first().map(|it| it.name.clone());
        let id = spec.id.unwrap_or_else(|| VmId(self.random.uuid()));
        if self.host(host)?.realized.contains_key(&id) {
            return Err(Error::invalid(format!("{host} has a VM {id} already")));
        }
        let hardware = self.build_hardware(host, &spec, switch.as_ref())?;
        let disks = hardware.own_disks().count();
        let settings = VmSettings {
            name: spec.name,
            generation: spec.generation,
            version: spec.version.unwrap_or(windows.configuration_version()),
            notes: String::new(),
            configuration_root: spec.folder.clone(),
            checkpoint_root: spec.folder,
            user_checkpoints: spec.user_checkpoints,
            start_action: StartAction::RestartIfRunning,
            bios_serial: self.bios_serial(),
            hardware,
        };
        let key = self.insert_system(host, id, Realm::Realized, settings)?;
        let tag = self.random.next_u64();
        let vm = self.vm_mut(key)?;
        vm.integration = spec.integration;
        vm.guest_facts = spec.guest_facts;
        vm.iscsi_in_guest = spec.iscsi_in_guest;
        vm.guest = spec.guest.map(|guest| {
            let layout = Layout::from_offset(guest.offset, disks, guest.ballast_records);
            Guest::new(guest.os, layout, tag, guest.transactions_per_tick)
        });
        self.write_configuration(key)?;
        Ok(id)
    }

    pub(super) fn bios_serial(&mut self) -> String {
        let number = self.random.next_u64();
        format!(
            "{:04}-{:04}-{:04}-{:04}",
            number % 10_000,
            number / 10_000 % 10_000,
            number / 100_000_000 % 10_000,
            number / 1_000_000_000_000 % 10_000
        )
    }

    /// A system that is off, without anything attached to it from outside of its settings.
    pub(super) fn insert_system(
        &mut self,
        host: &HostName,
        id: VmId,
        realm: Realm,
        settings: VmSettings,
    ) -> Result<SystemKey> {
        let now = self.now();
        let key = SystemKey(self.next_system);
        self.next_system += 1;
        let owner = self
            .hosts
            .get_mut(host)
            .ok_or_else(|| Error::not_found(format!("there is no host {host}")))?;
        match realm {
            Realm::Realized => owner.realized.insert(id, key),
            Realm::Planned => owner.planned.insert(id, key),
        };
        let vm = VirtualMachine {
            key,
            id,
            realm,
            host: host.clone(),
            settings,
            power: PowerState::Off,
            requested: 12,
            activity: None,
            merging: None,
            merge_state: MergeState::Enabled,
            created: now,
            state_changed: now,
            configuration_changed: now,
            running_since: None,
            checkpoints: BTreeMap::new(),
            current_parent: None,
            last_applied: None,
            reference_points: BTreeMap::new(),
            integration: IntegrationServices::SILENT,
            guest_facts: BTreeMap::new(),
            host_items: BTreeMap::new(),
            iscsi_in_guest: false,
            replication: ReplicationMode::None,
            is_storage_lost: false,
            migrates_from: None,
            tick_serial: 0,
            session: None,
            guest: None,
        };
        self.systems.insert(key, vm);
        self.touch();
        Ok(key)
    }

    fn build_hardware(
        &mut self,
        host: &HostName,
        spec: &VmSpec,
        switch: Option<&SwitchName>,
    ) -> Result<Hardware> {
        let mut hardware = Hardware::minimal();
        hardware.processors = 2;
        hardware.memory.startup_mib = spec.memory_mib;
        hardware.security.is_secure_boot = spec.generation == VmGeneration::Two;
        hardware.security.has_tpm = spec.has_tpm;
        for _ in 0..spec.fibre_channel_ports {
            let name = format!("C003FF{:010X}", self.random.next_u64() & 0xFF_FFFF_FFFF);
            hardware.fibre_channel.push(FibreChannelPort {
                device: DeviceId(self.random.uuid()),
                world_wide_port_name: name,
            });
        }
        hardware.controllers = match spec.generation {
            VmGeneration::One => [0, 1]
                .map(|number| Controller {
                    kind: ControllerKind::Ide,
                    device: IDE_CONTROLLER,
                    number,
                    drives: BTreeMap::new(),
                })
                .to_vec(),
            VmGeneration::Two => Vec::new(),
        };
        for _ in 0..spec.adapters {
            let adapter = self.build_adapter(switch);
            hardware.adapters.push(adapter);
        }
        for disk in &spec.disks {
            let drive = self.build_drive(host, spec, disk)?;
            let address = self.attach_place(&mut hardware, disk)?;
            let controller = hardware
                .controllers
                .iter_mut()
                .find(|it| it.device == address.controller && it.number == address.number);
            if let Some(controller) = controller
                && controller.drives.insert(address.slot, drive).is_some()
            {
                return Err(Error::invalid(format!(
                    "{}: two drives at {address}",
                    spec.name
                )));
            }
        }
        Ok(hardware)
    }

    fn build_drive(&mut self, host: &HostName, spec: &VmSpec, disk: &DiskSpec) -> Result<Drive> {
        Ok(match &disk.source {
            DiskSource::PassThrough { number, size_bytes } => {
                let device = DeviceId(self.random.uuid());
                let physical = PhysicalDisk {
                    number: *number,
                    size_bytes: *size_bytes,
                    device,
                };
                if let Some(host) = self.hosts.get_mut(host) {
                    host.disks.push(physical.clone());
                }
                Drive::PassThrough(physical)
            }
            DiskSource::Existing(path) => {
                self.adopt(host, path)?;
                self.medium(path.clone(), disk.sharing)
            }
            DiskSource::New {
                file,
                format,
                disk_type,
                size_bytes,
            } => {
                let path = spec.folder.join(file);
                let facts = DiskFacts::new(*format, *disk_type, *size_bytes, self.random.uuid());
                let spot = self.spot(host, &path)?;
                let (ids, now) = (self.disk_ids.clone(), self.now());
                self.storage.create_disk(spot, facts, &ids, now)?;
                self.medium(path, disk.sharing)
            }
        })
    }

    fn medium(&self, path: WindowsPath, sharing: DiskSharing) -> Drive {
        Drive::VirtualDisk(Some(Medium {
            path,
            sharing,
            iops_limit: 0,
        }))
    }

    pub(super) fn build_adapter(&mut self, switch: Option<&SwitchName>) -> NetworkAdapter {
        let number = self.random.next_u64();
        NetworkAdapter {
            device: DeviceId(self.random.uuid()),
            name: "Network Adapter".into(),
            kind: AdapterKind::Synthetic,
            mac_address: format!("00155D{:06X}", number & 0xFF_FFFF),
            is_mac_static: false,
            switch: switch.cloned(),
            vlan: None,
            addresses: vec![format!(
                "10.{}.{}.{}",
                number >> 8 & 255,
                number >> 16 & 255,
                1 + (number >> 24) % 250
            )],
        }
    }

    /// The place of a drive; makes the controllers up to it.
    fn attach_place(&mut self, hardware: &mut Hardware, disk: &DiskSpec) -> Result<DriveAddress> {
        if disk.number >= disk.controller.limit() || disk.slot >= disk.controller.slots() {
            return Err(Error::invalid(format!(
                "no slot {} on {:?} controller {}",
                disk.slot, disk.controller, disk.number
            )));
        }
        loop {
            let found = hardware
                .controllers
                .iter()
                .find(|it| it.kind == disk.controller && it.number == disk.number);
            if let Some(found) = found {
                return Ok(found.address(disk.slot));
            }
            let of_kind = hardware
                .controllers
                .iter()
                .filter(|it| it.kind == disk.controller);
            let number = u32::try_from(of_kind.count()).unwrap_or(u32::MAX);
            let device = match disk.controller {
                ControllerKind::Ide => IDE_CONTROLLER,
                ControllerKind::Scsi => DeviceId(self.random.uuid()),
            };
            hardware.controllers.push(Controller {
                kind: disk.controller,
                device,
                number,
                drives: BTreeMap::new(),
            });
        }
    }
}
