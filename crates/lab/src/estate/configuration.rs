//! Configuration files: what a host keeps of a VM, and what a copy of a VM is made from.
//!
//! ```text
//!   Virtual Machines\ID.vmcx   settings, hardware          Snapshots\CHECKPOINT.vmcx   the same of a checkpoint
//!   Virtual Machines\ID.vmrs   saved state                 Snapshots\CHECKPOINT.vmrs
//!   Virtual Machines\ID.vmgs   guest state (TPM)           Snapshots\CHECKPOINT.vmgs
//! ```
//! `.vmcx` and `.vmrs` are HyperVStorage containers with the tree that Windows writes as far as `guestfs` knows it; up to
//! configuration version 5 the first is XML and the second is called `.vsv`. Below `lab` stands what in a real VM lies on its disks: which guest runs, and
//! what it remembers. `.vmgs` is an opaque file: magic, the VM's id, and a secret that follows from the seed.
//!
//! **Invariants.** What [`Estate::read_configuration`] reads of a written file is what was written. Where disks are lazy no
//! configuration is written until it is asked for.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use guestfs::vmconfig::{Node, StoredConfiguration};
use serde::{Deserialize, Serialize};
use vdisk::file::{FileAccess, HostFile};

use super::checkpoint::Checkpoint;
use super::container::{self, Tree, text_at};
use super::disk_file::remove_file;
use super::ids::{CheckpointId, HostName, SystemKey, VmId};
use super::storage::DataMode;
use super::stored_settings::{decode_settings, encode_hardware, properties};
use super::vm::{IntegrationService, IntegrationServices, ServiceStatus, VmGeneration, VmSettings};
use super::{Estate, WindowsPath};
use crate::guest::{Guest, GuestMemory, GuestOs, Layout};
use crate::{Error, Result, ReturnCode};

/// Largest file that is read as a configuration.
const MAX_FILE_BYTES: u64 = 16 << 20;

/// Which guest runs in a VM: in a real one its disks say so.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct StoredGuest {
    os: GuestOs,
    layout: Layout,
    tag: u64,
    transactions_per_tick: u32,
}

/// A VM as a configuration file describes it.
pub(super) struct StoredSystem {
    pub id: VmId,
    pub settings: VmSettings,
    pub integration: IntegrationServices,
    pub guest_facts: BTreeMap<String, String>,
    pub guest: Option<Guest>,
    pub is_saved: bool,
    pub is_checkpoint: bool,
}

fn text_of<T: Serialize>(what: &T) -> Result<String> {
    serde_json::to_string(what).map_err(|error| Error::io("writing a configuration", error))
}

impl Guest {
    pub(super) fn stored(&self) -> StoredGuest {
        StoredGuest {
            os: self.os(),
            layout: self.layout().clone(),
            tag: self.tag(),
            transactions_per_tick: self.transactions_per_tick(),
        }
    }
}

impl Estate {
    /// Writes the configuration of a VM beside its disks.
    pub(super) fn write_configuration(&mut self, key: SystemKey) -> Result<()> {
        let now = self.now();
        self.vm_mut(key)?.configuration_changed = now;
        self.touch();
        match self.storage.mode {
            DataMode::Lazy => Ok(()),
            DataMode::Files => self.write_configuration_now(key),
        }
    }

    pub(super) fn write_configuration_now(&mut self, key: SystemKey) -> Result<()> {
        let vm = self.vm_of(key)?;
        let (host, path) = (vm.host.clone(), vm.configuration_file());
        let bytes = self.encode_configuration(key, None)?;
        self.write_file(&host, &path, &bytes)?;
        self.write_guest_state(key, &path)
    }

    /// Writes every configuration file of a VM: its files lie elsewhere now.
    pub(super) fn write_all_configuration(&mut self, key: SystemKey) -> Result<()> {
        let vm = self.vm_of(key)?;
        let is_saved = vm.power == super::PowerState::Saved;
        let checkpoints: Vec<CheckpointId> = vm.checkpoints.keys().copied().collect();
        for id in checkpoints {
            self.write_checkpoint_configuration(key, id)?;
        }
        if is_saved {
            self.write_saved_state(key)?;
        }
        self.write_configuration(key)
    }

    /// Takes a VM's own configuration files away.
    pub(super) fn remove_configuration(&mut self, key: SystemKey) -> Result<()> {
        let vm = self.vm_of(key)?;
        let path = vm.configuration_file();
        for extension in ["vmcx", "xml", "vmrs", "vsv", "vmgs"] {
            let file = path.with_file_name(&format!("{}.{extension}", path.stem()));
            remove_file(&self.backing(&vm.host, &file)?)?;
        }
        Ok(())
    }

    /// `.vmgs`: opaque, with a secret that follows from the VM's id.
    fn write_guest_state(&self, key: SystemKey, beside: &WindowsPath) -> Result<()> {
        let vm = self.vm_of(key)?;
        if !self.host(&vm.host)?.windows.has_guest_state_file()
            || vm.settings.generation != VmGeneration::Two
        {
            return Ok(());
        }
        let mut bytes = b"HIKAE-LAB vmgs 1".to_vec();
        bytes.extend_from_slice(vm.id.0.as_bytes());
        bytes.push(u8::from(vm.settings.hardware.security.has_tpm));
        bytes.extend_from_slice(blake3::hash(vm.id.0.as_bytes()).as_bytes());
        bytes.resize(4096, 0);
        let path = beside.with_file_name(&format!("{}.vmgs", beside.stem()));
        self.write_file(&vm.host, &path, &bytes)
    }

    /// The files of a checkpoint's configuration.
    pub fn checkpoint_files(&self, host: &HostName, id: CheckpointId) -> Result<Vec<WindowsPath>> {
        let vm = self.vm_of_checkpoint(host, id)?;
        let extension = vm.settings.configuration_extension();
        let folder = vm.settings.checkpoint_root.join("Snapshots");
        let has_state_file = self.host(host)?.windows.has_guest_state_file()
            && vm.settings.generation == VmGeneration::Two;
        let mut files = vec![folder.join(&format!("{id}.{extension}"))];
        if extension == "vmcx" {
            files.push(folder.join(&format!("{id}.vmrs")));
        }
        if has_state_file {
            files.push(folder.join(&format!("{id}.vmgs")));
        }
        Ok(files)
    }

    pub(super) fn write_checkpoint_configuration(
        &mut self,
        key: SystemKey,
        id: CheckpointId,
    ) -> Result<()> {
        if self.storage.mode == DataMode::Lazy {
            return Ok(());
        }
        self.write_checkpoint_configuration_now(key, id)
    }

    pub(super) fn write_checkpoint_configuration_now(
        &mut self,
        key: SystemKey,
        id: CheckpointId,
    ) -> Result<()> {
        let host = self.vm_of(key)?.host.clone();
        let files = self.checkpoint_files(&host, id)?;
        let memory = self
            .vm_of(key)?
            .checkpoint(id)
            .and_then(|it| it.memory.clone());
        for path in files {
            match path.extension().as_str() {
                "vmrs" => {
                    let bytes = encode_state(id.0, memory.as_ref())?;
                    self.write_file(&host, &path, &bytes)?;
                }
                "vmgs" => self.write_guest_state(key, &path)?,
                _ => {
                    let bytes = self.encode_configuration(key, Some(id))?;
                    self.write_file(&host, &path, &bytes)?;
                }
            }
        }
        self.write_configuration(key)
    }

    pub(super) fn remove_checkpoint_configuration(
        &mut self,
        key: SystemKey,
        id: CheckpointId,
        gone: &Checkpoint,
    ) -> Result<()> {
        if self.storage.mode == DataMode::Files {
            let host = self.vm_of(key)?.host.clone();
            let folder = gone.settings.checkpoint_root.join("Snapshots");
            for extension in ["vmcx", "xml", "vmrs", "vsv", "vmgs"] {
                let path = folder.join(&format!("{id}.{extension}"));
                remove_file(&self.backing(&host, &path)?)?;
            }
        }
        self.write_configuration(key)
    }

    /// Writes what a saved VM remembers.
    pub(super) fn write_saved_state(&mut self, key: SystemKey) -> Result<()> {
        if self.storage.mode == DataMode::Lazy {
            return Ok(());
        }
        let vm = self.vm_of(key)?;
        let memory = vm.guest.as_ref().map(Guest::memory);
        let bytes = encode_state(vm.id.0, memory.as_ref())?;
        let (host, path) = (vm.host.clone(), saved_state_path(&vm.configuration_file()));
        self.write_file(&host, &path, &bytes)
    }

    /// The saved state is used up, or thrown away.
    pub(super) fn drop_saved_state(&mut self, key: SystemKey) -> Result<()> {
        if self.storage.mode == DataMode::Lazy {
            return Ok(());
        }
        let vm = self.vm_of(key)?;
        let path = saved_state_path(&vm.configuration_file());
        remove_file(&self.backing(&vm.host, &path)?)
    }

    pub(super) fn write_file(
        &self,
        host: &HostName,
        path: &WindowsPath,
        bytes: &[u8],
    ) -> Result<()> {
        let file = self.backing(host, path)?;
        if let Some(folder) = file.parent() {
            std::fs::create_dir_all(folder)
                .map_err(|error| Error::io(format!("making the folder of {path}"), error))?;
        }
        std::fs::write(&file, bytes).map_err(|error| Error::io(format!("writing {path}"), error))
    }

    /// The configuration of a VM or of one of its checkpoints as bytes.
    pub(super) fn encode_configuration(
        &self,
        key: SystemKey,
        checkpoint: Option<CheckpointId>,
    ) -> Result<Vec<u8>> {
        let vm = self.vm_of(key)?;
        let at = checkpoint.and_then(|id| vm.checkpoint(id));
        let settings = at.map_or(&vm.settings, |it| &it.settings);
        let mut lab = Tree::default().with("integration", text_of(&enabled(vm.integration))?);
        lab.put("guest_facts", text_of(&vm.guest_facts)?);
        if let Some(guest) = &vm.guest {
            lab.put("guest", text_of(&guest.stored())?);
        }
        lab.put("vm_id", vm.id.to_string());
        lab.put(
            "is_saved",
            at.map_or(vm.power == super::PowerState::Saved, |it| it.has_memory),
        );
        let list = (1..).zip(vm.checkpoints.keys());
        let list = list.fold(Tree::default(), |tree, (number, id)| {
            tree.with(
                format!("node{number}"),
                Tree::default().with("guid", id.to_string()),
            )
        });
        let kind = if at.is_some() {
            "Snapshot"
        } else {
            "Virtual Machine"
        };
        let id = at.map_or(vm.id.to_string(), |it| it.id.to_string());
        let mut root = Tree::default()
            .with(
                "global_settings",
                Tree::default()
                    .with("snapshots", Tree::default().with("list", list))
                    .with("disk_merge_pending", self.is_merge_pending(key)),
            )
            .with("properties", properties(settings, &id, kind));
        encode_hardware(settings, &mut root);
        root.put("lab", lab);
        let tree = Tree::default().with("configuration", root);
        match settings.configuration_extension() {
            "vmcx" => container::encode(&tree),
            _ => Ok(container::encode_xml(&tree)),
        }
    }

    /// Reads a configuration file of a host.
    ///
    /// # Errors
    /// `FileNotFound` when there is none; `InvalidParameter` when it describes no VM.
    pub(super) fn read_configuration(
        &self,
        host: &HostName,
        path: &WindowsPath,
    ) -> Result<StoredSystem> {
        let tree = self.read_tree(host, path)?;
        let refuse =
            |why: &str| Error::returned(ReturnCode::InvalidParameter, format!("{path}: {why}"));
        let root = tree
            .node("configuration")
            .ok_or_else(|| refuse("describes no virtual machine"))?;
        let lab = root.node("lab");
        let of_lab = |name: &str| lab.and_then(|lab| text_at(lab, name));
        let id = of_lab("vm_id")
            .or_else(|| root.text("properties/global_id"))
            .ok_or_else(|| refuse("has no id"))?
            .parse()
            .map_err(|_| refuse("has no id"))?;
        let settings = decode_settings(root, path)?;
        let guest = of_lab("guest")
            .map(serde_json::from_str::<StoredGuest>)
            .transpose()
            .map_err(|_| refuse("names a guest that is none"))?
            .map(|it| Guest::new(it.os, it.layout, it.tag, it.transactions_per_tick));
        let integration = of_lab("integration")
            .and_then(|text| serde_json::from_str::<Vec<bool>>(text).ok())
            .map_or(IntegrationServices::SILENT, |flags| {
                services(&flags, guest.is_some())
            });
        let guest_facts = of_lab("guest_facts")
            .and_then(|text| serde_json::from_str(text).ok())
            .unwrap_or_default();
        let is_checkpoint = root
            .text("properties/type_id")
            .is_some_and(|kind| kind.eq_ignore_ascii_case("Snapshot"));
        let is_saved = lab.and_then(|lab| lab.flag("is_saved")).unwrap_or(false);
        Ok(StoredSystem {
            id,
            settings,
            integration,
            guest_facts,
            guest,
            is_saved,
            is_checkpoint,
        })
    }

    /// What a saved state beside a configuration file remembers.
    pub(super) fn read_saved_state(
        &self,
        host: &HostName,
        path: &WindowsPath,
    ) -> Result<Option<GuestMemory>> {
        let state = saved_state_path(path);
        if !self.backing(host, &state)?.is_file() {
            return Ok(None);
        }
        let tree = self.read_tree(host, &state)?;
        let memory = tree
            .node("savedstate")
            .and_then(|node| text_at(node, "guest"));
        memory
            .map(|text| {
                serde_json::from_str(text)
                    .map_err(|error| Error::io(format!("reading {state}"), error))
            })
            .transpose()
    }

    fn read_tree(&self, host: &HostName, path: &WindowsPath) -> Result<Node> {
        let file = self.backing(host, path)?;
        let refuse =
            |why: &str| Error::returned(ReturnCode::InvalidParameter, format!("{path}: {why}"));
        if !file.is_file() {
            return Err(Error::returned(
                ReturnCode::FileNotFound,
                format!("there is no {path}"),
            ));
        }
        if std::fs::metadata(&file).is_ok_and(|it| it.len() > MAX_FILE_BYTES) {
            return Err(refuse("is no configuration"));
        }
        let source = open(&file)?;
        StoredConfiguration::read(&source)
            .map(|stored| stored.tree)
            .map_err(|_| refuse("is no configuration"))
    }
}

fn open(file: &Path) -> Result<Arc<dyn block::ReadAt>> {
    HostFile::open(file, FileAccess::ReadOnly)
        .map(|file| {
            let file: Arc<dyn block::ReadAt> = Arc::new(file);
            file
        })
        .map_err(|error| Error::io(format!("opening {}", file.display()), error))
}

pub(super) fn saved_state_path(configuration: &WindowsPath) -> WindowsPath {
    let extension = if configuration.extension() == "xml" {
        "vsv"
    } else {
        "vmrs"
    };
    configuration.with_file_name(&format!("{}.{extension}", configuration.stem()))
}

fn encode_state(id: uuid::Uuid, memory: Option<&GuestMemory>) -> Result<Vec<u8>> {
    let mut state = Tree::default().with("id", id.to_string());
    if let Some(memory) = memory {
        state.put("guest", text_of(memory)?);
    }
    container::encode(&Tree::default().with("savedstate", state))
}

fn enabled(services: IntegrationServices) -> Vec<bool> {
    [
        services.vss,
        services.kvp,
        services.shutdown,
        services.heartbeat,
        services.time,
        services.guest_services,
    ]
    .iter()
    .map(|it| it.is_enabled)
    .collect()
}

/// Which services answer is the guest's affair: a guest that writes has them.
fn services(flags: &[bool], has_guest: bool) -> IntegrationServices {
    let one = |at: usize| IntegrationService {
        is_enabled: flags.get(at).copied().unwrap_or(true),
        in_guest: if has_guest {
            ServiceStatus::Ok
        } else {
            ServiceStatus::NoContact
        },
    };
    IntegrationServices {
        vss: one(0),
        kvp: one(1),
        shutdown: one(2),
        heartbeat: one(3),
        time: one(4),
        guest_services: one(5),
    }
}
