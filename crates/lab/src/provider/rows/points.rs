//! Reference points: `Msvm_VirtualSystemReferencePoint`.

use wsman::cim::CimInstance;

use super::row;
use crate::estate::{ReferencePoint, ReferencePointKind, VirtualMachine};
use crate::provider::identity::{self, VIRTUALIZATION};

/// A reference point. Its two lists are in step and name only disks that are tracked.
pub(in crate::provider) fn reference_point_row(
    vm: &VirtualMachine,
    point: &ReferencePoint,
) -> CimInstance {
    let (mut disks, mut ids) = (Vec::new(), Vec::new());
    for (address, id) in &point.disks {
        disks.push(identity::medium_id(vm.id, *address));
        ids.push(id.to_string());
    }
    let mut instance = row(&VIRTUALIZATION, "Msvm_VirtualSystemReferencePoint")
        .with("ConsistencyLevel", u16::from(point.consistency.value()))
        .with("HasAssociatedData", point.kind == ReferencePointKind::Log)
        .with("InstanceID", point.id.to_string())
        .with("ReferencePointType", point.kind.value())
        .with("VirtualSystemIdentifier", vm.id.to_string());
    if !disks.is_empty() {
        instance.set("VirtualDiskIdentifiers", disks);
        instance.set("ResilientChangeTrackingIdentifiers", ids);
    }
    instance
}
