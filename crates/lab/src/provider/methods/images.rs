//! The image service: facts of disks, what changed, new disks.

use uuid::Uuid;
use wsman::cim::{CimInstance, CimValue};

use super::arguments::invalid_parameter;
use super::{Answer, Call, Outcome, Refusal};
use crate::ReturnCode;
use crate::estate::{DiskFacts, DiskFormat, DiskType, RctId, WindowsPath};
use crate::provider::embedded;
use crate::provider::rows::datetime;

/// `GetVirtualHardDiskSettingData`.
pub(super) fn get_setting_data(call: &mut Call<'_>) -> Answer {
    let path = call.inputs.path("Path")?;
    let disk = call.estate.disk_file(&call.host, &path)?.clone();
    let parent = call.estate.parent_path(&disk);
    let facts = &disk.facts;
    let mut instance = CimInstance::new("Msvm_VirtualHardDiskSettingData")
        .with("BlockSize", facts.block_bytes)
        .with("Caption", "Virtual Hard Disk Setting Data")
        .with("DataAlignment", 0_u64)
        .with("Format", facts.format.value())
        .with("IsPmemCompatible", false)
        .with("LogicalSectorSize", facts.logical_sector_bytes)
        .with("MaxInternalSize", facts.size_bytes)
        .with(
            "ParentPath",
            parent.as_ref().map_or(String::new(), ToString::to_string),
        )
        .with("Path", path.to_string())
        .with("PhysicalSectorSize", facts.physical_sector_bytes)
        .with("Type", facts.disk_type.value())
        .with("VirtualDiskId", facts.disk_id.to_string().to_uppercase());
    if let Some(parent) = parent {
        // The child names its parent by the identity that the parent's chain has.
        let id = call.estate.disk_file(&call.host, &parent)?.facts.disk_id;
        instance.set("ParentIdentifier", id.to_string().to_uppercase());
    }
    Ok(Outcome::code(0).with("SettingData", embedded::text_of(&instance)?))
}

/// `GetVirtualHardDiskState`.
pub(super) fn get_state(call: &mut Call<'_>) -> Answer {
    let path = call.inputs.path("Path")?;
    let state = call.estate.disk_state(&call.host, &path)?;
    let instance = CimInstance::new("Msvm_VirtualHardDiskState")
        .with("Alignment", 0_u32)
        .with("FileSize", state.file_bytes)
        .with("FragmentationPercentage", 0_u32)
        .with("InUse", state.is_in_use)
        .with("MinInternalSize", CimValue::Null)
        .with("PhysicalSectorSize", state.facts.physical_sector_bytes)
        .with("Timestamp", datetime(call.estate.now()));
    Ok(Outcome::code(0).with("State", embedded::text_of(&instance)?))
}

/// `GetVirtualDiskChanges`. `TargetSnapshotId` is for VHD sets, which are not read here.
pub(super) fn get_changes(call: &mut Call<'_>) -> Answer {
    let path = call.inputs.path("Path")?;
    let limit = RctId::from_text(call.inputs.required_text("LimitId")?);
    if call.inputs.text("TargetSnapshotId").is_some() {
        return Err(Refusal::Code(ReturnCode::NotSupported.value()));
    }
    let offset = call.inputs.required_number("ByteOffset")?;
    let length = call.inputs.required_number("ByteLength")?;
    let host = call.host.clone();
    let changes = call
        .estate
        .disk_changes(&host, &path, &limit, offset, length)?;
    let offsets: Vec<u64> = changes.ranges.iter().map(|it| it.offset).collect();
    let lengths: Vec<u64> = changes.ranges.iter().map(|it| it.length_bytes).collect();
    let is_any = !offsets.is_empty();
    Ok(Outcome::code(0)
        .with("ProcessedByteLength", changes.processed_bytes)
        .with("ChangedByteOffsets", is_any.then_some(offsets))
        .with("ChangedByteLengths", is_any.then_some(lengths)))
}

/// `CreateVirtualHardDisk`: fixed, dynamic, differencing.
pub(super) fn create(call: &mut Call<'_>) -> Answer {
    let settings = call
        .embedded("VirtualDiskSettingData", "Msvm_VirtualHardDiskSettingData")?
        .ok_or_else(invalid_parameter)?;
    let number = |name: &str| settings.opt_u64(name).map_err(|_| invalid_parameter());
    let text = |name: &str| settings.text_ref(name).filter(|text| !text.is_empty());
    let path = WindowsPath::parse(text("Path").ok_or_else(invalid_parameter)?)?;
    let format = match number("Format")? {
        Some(2) => DiskFormat::Vhd,
        Some(3) => DiskFormat::Vhdx,
        Some(4) => return Err(Refusal::Code(ReturnCode::NotSupported.value())),
        _ => return Err(invalid_parameter()),
    };
    let disk_type = match number("Type")? {
        Some(2) => DiskType::Fixed,
        Some(3) => DiskType::Dynamic,
        Some(4) => DiskType::Differencing,
        _ => return Err(invalid_parameter()),
    };
    let parent = text("ParentPath").map(WindowsPath::parse).transpose()?;
    let host = call.host.clone();
    let size = match (&parent, number("MaxInternalSize")?) {
        (Some(parent), None | Some(0)) => call.estate.disk_file(&host, parent)?.facts.size_bytes,
        (_, Some(size)) if size > 0 => size,
        _ => return Err(invalid_parameter()),
    };
    let mut facts = DiskFacts::new(format, disk_type, size, new_disk_id(&path, call));
    for (name, field) in [
        ("BlockSize", &mut facts.block_bytes),
        ("LogicalSectorSize", &mut facts.logical_sector_bytes),
        ("PhysicalSectorSize", &mut facts.physical_sector_bytes),
    ] {
        if let Some(value) = number(name)?.filter(|value| *value > 0) {
            *field = u32::try_from(value).map_err(|_| invalid_parameter())?;
        }
    }
    if let Some(id) = text("VirtualDiskId") {
        facts.disk_id = Uuid::try_parse(id).map_err(|_| invalid_parameter())?;
    }
    let started = call
        .estate
        .create_disk(&host, &path, facts, parent.as_ref())?;
    Ok(call.answer(&started, None))
}

/// An identity that follows from the place and the time: the same calls give the same estate.
fn new_disk_id(path: &WindowsPath, call: &Call<'_>) -> Uuid {
    let mut bytes = [0; 16];
    blake3::Hasher::new()
        .update(path.to_string().to_lowercase().as_bytes())
        .update(call.host.as_str().to_lowercase().as_bytes())
        .update(&call.estate.now().0.to_le_bytes())
        .update(&call.estate.revision().to_le_bytes())
        .finalize_xof()
        .fill(&mut bytes);
    uuid::Builder::from_random_bytes(bytes).into_uuid()
}

/// `ValidateVirtualHardDisk`.
pub(super) fn validate(call: &mut Call<'_>) -> Answer {
    let path = call.inputs.path("Path")?;
    let host = call.host.clone();
    let started = call.estate.validate_disk(&host, &path)?;
    Ok(call.answer(&started, None))
}

/// `MergeVirtualHardDisk`.
pub(super) fn merge(call: &mut Call<'_>) -> Answer {
    let (child, ancestor) = (
        call.inputs.path("SourcePath")?,
        call.inputs.path("DestinationPath")?,
    );
    let host = call.host.clone();
    let started = call.estate.merge_disk(&host, &child, &ancestor)?;
    Ok(call.answer(&started, None))
}

/// `SetParentVirtualHardDisk`. `LeafPath` would only be needed for a disk in use; an identity that differs is refused unless it
/// is to be ignored, by the estate.
pub(super) fn set_parent(call: &mut Call<'_>) -> Answer {
    let (child, parent) = (
        call.inputs.path("ChildPath")?,
        call.inputs.path("ParentPath")?,
    );
    call.inputs.flag("IgnoreIDMismatch")?;
    if call.inputs.text("LeafPath").is_some() {
        return Err(Refusal::Code(ReturnCode::NotSupported.value()));
    }
    let host = call.host.clone();
    let started = call.estate.set_parent(&host, &child, &parent)?;
    Ok(call.answer(&started, None))
}

/// `ResizeVirtualHardDisk`.
pub(super) fn resize(call: &mut Call<'_>) -> Answer {
    let path = call.inputs.path("Path")?;
    let size = call.inputs.required_number("MaxInternalSize")?;
    let host = call.host.clone();
    let started = call.estate.resize_disk(&host, &path, size)?;
    Ok(call.answer(&started, None))
}
