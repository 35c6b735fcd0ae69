//! What a query says about which objects it can mean, so that not all are looked at.
//!
//! ```text
//!   InstanceID = 'Microsoft:GUID\…'   ─► that VM, or the VM of that checkpoint
//!   Name, SystemName, VirtualSystemIdentifier = GUID ─► that VM
//!   InstanceID = GUID                 ─► that job or reference point
//! ```
//!
//! **Invariant.** A hint only leaves out what cannot match: whatever it lets through is compared again.

use uuid::Uuid;
use wsman::cim::CimPath;

use super::identity::PartedId;
use super::rows::Scene;
use crate::estate::{CheckpointId, Job, JobId, VirtualMachine, VmId};

/// What is known of the objects that are wanted.
#[derive(Debug, Clone, Default)]
pub(super) struct Hint {
    /// A VM's id, or a checkpoint's.
    system: Option<Uuid>,
    /// The GUID that is all of an InstanceID.
    plain: Option<Uuid>,
    /// It is known that no VM can match: a name that is no GUID.
    is_no_system: bool,
}

impl Hint {
    /// Properties that tell something.
    pub(super) const PROPERTIES: [&'static str; 6] = [
        "InstanceID",
        "DeviceID",
        "Name",
        "SystemName",
        "VirtualSystemIdentifier",
        "ConfigurationID",
    ];

    /// What the keys of a path tell.
    pub(super) fn of_path(path: &CimPath) -> Self {
        let mut hint = Self::default();
        for name in Self::PROPERTIES {
            if let Some(value) = path.key(name) {
                hint.learn(name, &value);
            }
        }
        hint
    }

    /// That a property equals a text.
    pub(super) fn learn(&mut self, property: &str, value: &str) {
        let is = |name: &str| property.eq_ignore_ascii_case(name);
        if is("InstanceID") || is("DeviceID") || is("ConfigurationID") {
            if let Some(parted) = PartedId::parse(value) {
                self.system = Some(parted.guid);
            } else if let Ok(guid) = Uuid::try_parse(value) {
                if is("ConfigurationID") {
                    self.system = Some(guid);
                } else {
                    self.plain = Some(guid);
                }
            }
        } else if is("SystemName") || is("VirtualSystemIdentifier") || is("Name") {
            match Uuid::try_parse(value) {
                // A VM's own id beats a checkpoint's, which only an InstanceID can tell.
                Ok(guid) if self.system.is_none() => self.system = Some(guid),
                Ok(_) => {}
                Err(_) => self.is_no_system |= is("Name"),
            }
        }
    }

    /// The systems of a host that may be meant.
    pub(super) fn systems<'a>(&self, scene: &Scene<'a>) -> Vec<&'a VirtualMachine> {
        if self.is_no_system {
            return Vec::new();
        }
        let Some(guid) = self.system else {
            return scene.systems().collect();
        };
        let host = &scene.host.name;
        let realized = scene.estate.vm(host, VmId(guid)).ok();
        let planned = scene.estate.planned(host, VmId(guid)).ok();
        let owner = scene.estate.vm_of_checkpoint(host, CheckpointId(guid)).ok();
        realized.into_iter().chain(planned).chain(owner).collect()
    }

    /// The jobs of a host that may be meant.
    pub(super) fn jobs<'a>(&self, scene: &Scene<'a>) -> Vec<&'a Job> {
        let host = &scene.host.name;
        match self.plain {
            Some(guid) => scene.estate.job(host, JobId(guid)).into_iter().collect(),
            None => scene.estate.jobs_on(host).collect(),
        }
    }
}
