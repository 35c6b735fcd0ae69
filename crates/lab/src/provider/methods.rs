//! Methods: from the parameters of a call to a call of the estate, and back to what the wire answers.
//!
//! ```text
//!   class + method ─► one function per method ─► Estate ─► Started::Done │ Job │ refused
//!                                                          0             4096   a return code, or a fault of WMI
//! ```
//!
//! **Invariants.** A method that is not here is refused with `a:ActionNotSupported`, never answered with a silent success
//! ([`MODELLED`] is the list). A parameter that is given is either used or refused.

mod arguments;
mod cluster;
mod define;
mod images;
mod jobs;
mod management;
mod migration;
mod points;
mod resources;
mod summary;
mod systems;

use wsman::cim::{CimPath, CimValue};
use wsman::message::{Fault, FaultCode, hresult};
use wsman::schema::SchemaSet;

pub(super) use arguments::Inputs;
pub(super) use management::differences;

use super::identity;
use super::rows::jobs::element_path;
use super::texts::Language;
use crate::estate::{Affected, Estate, HostName, Started, Switch};
use crate::{Error, ErrorKind};

/// A call of a method.
pub(super) struct Call<'c> {
    pub estate: &'c mut Estate,
    pub host: HostName,
    /// Classes of the namespace.
    pub schemas: &'c SchemaSet,
    pub language: Language,
    /// The instance that is called; for a service its class and whatever keys were given.
    pub target: &'c CimPath,
    pub inputs: Inputs<'c>,
}

/// What a method answers.
#[derive(Debug, Clone, Default)]
pub(super) struct Outcome {
    /// `ReturnValue`; none for methods of the cluster.
    pub return_value: Option<u32>,
    pub outputs: Vec<(&'static str, CimValue)>,
}

/// Why a method did nothing.
#[derive(Debug)]
pub(super) enum Refusal {
    /// `ReturnValue`.
    Code(u32),
    /// The call ends in a fault.
    Fault(Box<Fault>),
}

/// What a method comes to.
pub(super) type Answer = Result<Outcome, Refusal>;

impl Outcome {
    /// A return value alone.
    pub(super) fn code(return_value: u32) -> Self {
        Self {
            return_value: Some(return_value),
            outputs: Vec::new(),
        }
    }

    /// A method without a return value.
    pub(super) fn void() -> Self {
        Self::default()
    }

    /// With an output.
    pub(super) fn with(mut self, name: &'static str, value: impl Into<CimValue>) -> Self {
        self.outputs.push((name, value.into()));
        self
    }
}

impl From<Fault> for Refusal {
    fn from(fault: Fault) -> Self {
        Self::Fault(Box::new(fault))
    }
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        match error.kind() {
            ErrorKind::Returned(code) => Self::Code(code.value()),
            _ => Self::Fault(Box::new(fault_of(&error))),
        }
    }
}

/// The fault that goes with an error of the estate.
pub(super) fn fault_of(error: &Error) -> Fault {
    match error.kind() {
        ErrorKind::Returned(code) => Fault::new(FaultCode::InternalError)
            .with_hresult(hresult::FAILED, format!("{} ({})", error, code.value())),
        ErrorKind::Wmi(code) => {
            Fault::new(FaultCode::InternalError).with_hresult(code.0, error.to_string())
        }
        ErrorKind::Win32(code) => Fault::new(FaultCode::InternalError)
            .with_hresult(0x8007_0000 | (code.0 & 0xffff), error.to_string()),
        ErrorKind::NotFound => not_found(error.to_string()),
        ErrorKind::Unreachable => Fault::new(FaultCode::EndpointUnavailable).because(error),
        _ => Fault::new(FaultCode::InternalError).with_hresult(hresult::FAILED, error.to_string()),
    }
}

/// No such instance.
pub(super) fn not_found(what: impl Into<String>) -> Fault {
    Fault::new(FaultCode::DestinationUnreachable).with_hresult(hresult::NOT_FOUND, what)
}

/// One method that is modelled: class that declares it, name, function.
pub(super) struct Method {
    pub class: &'static str,
    pub name: &'static str,
    run: fn(&mut Call<'_>) -> Answer,
}

const fn method(
    class: &'static str,
    name: &'static str,
    run: fn(&mut Call<'_>) -> Answer,
) -> Method {
    Method { class, name, run }
}

const VSMS: &str = "Msvm_VirtualSystemManagementService";
const SNAPSHOTS: &str = "Msvm_VirtualSystemSnapshotService";
const POINTS: &str = "Msvm_VirtualSystemReferencePointService";
const IMAGES: &str = "Msvm_ImageManagementService";
const MIGRATION: &str = "Msvm_VirtualSystemMigrationService";
const CLUSTER: &str = "MSCluster_Cluster";
const GROUP: &str = "MSCluster_ResourceGroup";
const RESOURCE: &str = "MSCluster_Resource";
const NODE: &str = "MSCluster_Node";

/// Every method that is modelled.
pub(super) const MODELLED: &[Method] = &[
    method(
        "Msvm_ComputerSystem",
        "RequestStateChange",
        systems::request_state_change,
    ),
    method(
        "Msvm_ShutdownComponent",
        "InitiateShutdown",
        systems::initiate_shutdown,
    ),
    method("Msvm_ConcreteJob", "GetError", jobs::get_error),
    method("Msvm_ConcreteJob", "GetErrorEx", jobs::get_error_ex),
    method(
        "Msvm_ConcreteJob",
        "RequestStateChange",
        jobs::request_state_change,
    ),
    method("Msvm_StorageJob", "GetError", jobs::get_error),
    method("Msvm_StorageJob", "GetErrorEx", jobs::get_error_ex),
    method(
        "Msvm_StorageJob",
        "RequestStateChange",
        jobs::request_state_change,
    ),
    method("Msvm_MigrationJob", "GetError", jobs::get_error),
    method("Msvm_MigrationJob", "GetErrorEx", jobs::get_error_ex),
    method(
        "Msvm_MigrationJob",
        "RequestStateChange",
        jobs::request_state_change,
    ),
    method(SNAPSHOTS, "CreateSnapshot", points::create_snapshot),
    method(SNAPSHOTS, "DestroySnapshot", points::destroy_snapshot),
    method(
        SNAPSHOTS,
        "DestroySnapshotTree",
        points::destroy_snapshot_tree,
    ),
    method(SNAPSHOTS, "ApplySnapshot", points::apply_snapshot),
    method(
        SNAPSHOTS,
        "ClearSnapshotState",
        points::clear_snapshot_state,
    ),
    method(
        SNAPSHOTS,
        "ConvertToReferencePoint",
        points::convert_to_reference_point,
    ),
    method(
        POINTS,
        "CreateReferencePoint",
        points::create_reference_point,
    ),
    method(
        POINTS,
        "DestroyReferencePoint",
        points::destroy_reference_point,
    ),
    method(
        IMAGES,
        "GetVirtualHardDiskSettingData",
        images::get_setting_data,
    ),
    method(IMAGES, "GetVirtualHardDiskState", images::get_state),
    method(IMAGES, "GetVirtualDiskChanges", images::get_changes),
    method(IMAGES, "CreateVirtualHardDisk", images::create),
    method(IMAGES, "ValidateVirtualHardDisk", images::validate),
    method(IMAGES, "MergeVirtualHardDisk", images::merge),
    method(IMAGES, "SetParentVirtualHardDisk", images::set_parent),
    method(IMAGES, "ResizeVirtualHardDisk", images::resize),
    method(
        VSMS,
        "GetSummaryInformation",
        summary::get_summary_information,
    ),
    method(
        VSMS,
        "ModifyDiskMergeSettings",
        management::modify_disk_merge_settings,
    ),
    method(VSMS, "AddKvpItems", management::add_kvp_items),
    method(VSMS, "ModifyKvpItems", management::modify_kvp_items),
    method(VSMS, "RemoveKvpItems", management::remove_kvp_items),
    method(
        VSMS,
        "ModifySystemSettings",
        management::modify_system_settings,
    ),
    method(VSMS, "ModifyResourceSettings", resources::modify),
    method(VSMS, "AddResourceSettings", resources::add),
    method(VSMS, "RemoveResourceSettings", resources::remove),
    method(VSMS, "FormatError", management::format_error),
    method(VSMS, "DefineSystem", define::define_system),
    method(VSMS, "DefinePlannedSystem", define::define_planned_system),
    method(VSMS, "DestroySystem", define::destroy_system),
    method(
        VSMS,
        "ImportSystemDefinition",
        define::import_system_definition,
    ),
    method(
        VSMS,
        "ValidatePlannedSystem",
        define::validate_planned_system,
    ),
    method(VSMS, "RealizePlannedSystem", define::realize_planned_system),
    method(
        VSMS,
        "ExportSystemDefinition",
        define::export_system_definition,
    ),
    method(VSMS, "UpgradeSystemVersion", define::upgrade_system_version),
    method(
        MIGRATION,
        "MigrateVirtualSystemToHost",
        migration::migrate_to_host,
    ),
    method(
        MIGRATION,
        "CheckVirtualSystemIsMigratableToHost",
        migration::check_migratable,
    ),
    method(CLUSTER, "AddVirtualMachine", cluster::add_virtual_machine),
    method(GROUP, "BringOnline", cluster::group_online),
    method(GROUP, "TakeOffline", cluster::group_offline),
    method(GROUP, "MoveToNewNode", cluster::move_group),
    method(
        GROUP,
        "MoveToNewNodeParams",
        cluster::move_group_with_parameters,
    ),
    method(GROUP, "DestroyGroup", cluster::destroy_group),
    method(GROUP, "SetPreferredOwners", cluster::set_preferred_owners),
    method(GROUP, "GetPreferredOwners", cluster::get_preferred_owners),
    method(RESOURCE, "BringOnline", cluster::resource_online),
    method(RESOURCE, "TakeOffline", cluster::resource_offline),
    method(RESOURCE, "GetPossibleOwners", cluster::get_possible_owners),
    method(RESOURCE, "AddPossibleOwner", cluster::add_possible_owner),
    method(
        RESOURCE,
        "RemovePossibleOwner",
        cluster::remove_possible_owner,
    ),
    method(
        RESOURCE,
        "UpdateVirtualMachine",
        cluster::update_virtual_machine,
    ),
    method(
        "MSCluster_ClusterSharedVolume",
        "MoveToNewHost",
        cluster::move_volume,
    ),
    method(NODE, "Pause", cluster::pause_node),
    method(NODE, "Resume", cluster::resume_node),
];

/// Runs a method of a class.
pub(super) fn run(call: &mut Call<'_>, name: &str) -> Answer {
    let class = call.target.class.as_str();
    let found = MODELLED
        .iter()
        .find(|it| it.class.eq_ignore_ascii_case(class) && it.name == name);
    match found {
        Some(method) => (method.run)(call),
        None => Err(Fault::new(FaultCode::ActionNotSupported)
            .with_hresult(
                hresult::NOT_SUPPORTED,
                format!("{class}.{name} is not modelled"),
            )
            .into()),
    }
}

impl Call<'_> {
    /// Whether the kind answer of a switch holds.
    fn is_kind(&self, switch: Switch) -> bool {
        self.estate.switches().is_kind(switch)
    }

    /// The answer to a call that was done or started a job; `made` is the output that names what it made.
    fn answer(&self, started: &Started, made: Option<&'static str>) -> Outcome {
        match started {
            Started::Done(elements) => {
                let outcome = Outcome::code(0);
                match made {
                    Some(name) => outcome.with(name, self.paths(elements).into_iter().next()),
                    None => outcome,
                }
            }
            Started::Job(id) => {
                let class = self.estate.job(&self.host, *id).map(|job| job.class);
                let path = class.ok().map(|class| identity::job(class, *id));
                Outcome::code(4096).with("Job", path)
            }
            Started::UnnamedJob => Outcome::code(4096),
        }
    }

    /// The same where what is made is a list.
    fn answer_list(&self, started: &Started, made: &'static str) -> Outcome {
        match started {
            Started::Done(elements) => Outcome::code(0).with(made, self.paths(elements)),
            Started::Job(_) | Started::UnnamedJob => self.answer(started, None),
        }
    }

    fn paths(&self, elements: &[Affected]) -> Vec<CimPath> {
        elements
            .iter()
            .filter_map(|it| element_path(self.estate, &self.host, it))
            .collect()
    }
}
