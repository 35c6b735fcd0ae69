//! A machine to judge: well in every way, for tests to break one thing at a time.

use std::collections::BTreeMap;

use host::facts::{
    CheckpointFacts, CheckpointKind, ConfigurationVersion, ControllerKind, DiskBacking, DiskFacts,
    DiskSlot, GuestFacts, GuestFamily, Health, HostGeneration, ImageKind, IntegrationFacts,
    PowerState, ReplicationRole, SecurityFacts, ServiceState, SizingFacts, VmFacts, VmFiles,
};
use host::ids::{CheckpointId, NodeName};
use host::path::HostPath;

pub fn disk(location: u32, path: &str) -> DiskFacts {
    let path = HostPath::new(path).expect("a path");
    DiskFacts {
        slot: Some(DiskSlot {
            controller: ControllerKind::Scsi,
            number: 0,
            location,
        }),
        device: None,
        backing: DiskBacking::Image {
            image: ImageKind::of_path(&path),
            is_shared: Some(false),
            path,
        },
    }
}

pub fn checkpoint(id: &str, kind: CheckpointKind, name: &str) -> CheckpointFacts {
    CheckpointFacts {
        id: CheckpointId::new(id).expect("an id"),
        kind,
        mark: host::custody::Mark::parse(name),
        name: name.to_owned(),
        created: None,
        parent: None,
        holds_memory: None,
    }
}

pub fn machine() -> VmFacts {
    VmFacts {
        id: super::fake::vm(1),
        name: "sql01".to_owned(),
        node: NodeName::new("hv01").expect("a name"),
        host_generation: Some(HostGeneration::Server2022),
        generation: Some(2),
        version: Some(ConfigurationVersion {
            major: 10,
            minor: 0,
        }),
        power: PowerState::Running,
        health: Health::Ok,
        activities: Vec::new(),
        disks: vec![disk(0, "D:\\vm\\sql01.vhdx")],
        nics: Vec::new(),
        checkpoints: Vec::new(),
        tracking_points: Vec::new(),
        integration: IntegrationFacts {
            backup: Some(ServiceState::Ok),
            exchange: Some(ServiceState::Ok),
            shutdown: Some(ServiceState::Ok),
            heartbeat: Some(ServiceState::Ok),
        },
        guest: GuestFacts {
            family: Some(GuestFamily::Windows),
            os_name: Some("Windows Server 2022".to_owned()),
            os_version: Some("10.0.20348".to_owned()),
            host_name: None,
            addresses: Vec::new(),
            integration_version: None,
            items: BTreeMap::new(),
        },
        role: None,
        is_role_known: true,
        replication: ReplicationRole::None,
        security: SecurityFacts {
            has_tpm: Some(false),
            is_shielded: Some(false),
            encrypts_state: Some(false),
        },
        sizing: SizingFacts::default(),
        has_assigned_devices: Some(false),
        files: VmFiles::default(),
        marks: Vec::new(),
    }
}
