//! Jobs and what they touch: `Msvm_ConcreteJob`, `Msvm_StorageJob`, `Msvm_MigrationJob`, `Msvm_AffectedJobElement`.

use wsman::cim::{CimInstance, CimPath, CimValue};

use super::parts::Part;
use super::{Scene, datetime, interval, row};
use crate::Result;
use crate::estate::{
    Affected, Drive, Estate, HostName, Job, JobClass, JobState, Realm, TIME_BEFORE_REMOVAL, VmId,
};
use crate::provider::embedded;
use crate::provider::identity::{self, VIRTUALIZATION};
use crate::provider::texts::Phrase;

/// A job.
pub(in crate::provider) fn job_row(scene: &Scene<'_>, job: &Job) -> CimInstance {
    let status: &[u16] = match job.state {
        JobState::Completed | JobState::CompletedWithWarnings => &[17, 2],
        JobState::Exception => &[17, 6],
        JobState::Terminated | JobState::Killed => &[10],
        JobState::New | JobState::Starting | JobState::Running => &[2],
    };
    let phrase = match job.state {
        JobState::Completed | JobState::CompletedWithWarnings => Phrase::JobCompleted,
        JobState::Exception => Phrase::JobFailed,
        JobState::Terminated | JobState::Killed => Phrase::JobTerminated,
        JobState::New | JobState::Starting | JobState::Running => Phrase::JobRunning,
    };
    let changed = if job.state.is_over() {
        job.ends
    } else {
        job.started
    };
    let mut instance = row(&VIRTUALIZATION, identity::job_class(job.class))
        .with("Cancellable", job.is_cancellable && !job.state.is_over())
        .with("Caption", scene.say(Phrase::Job))
        .with("DeleteOnCompletion", false)
        .with("Description", scene.say(Phrase::Job))
        .with("ElapsedTime", interval(job.elapsed(scene.now())))
        .with("ElementName", scene.say(Phrase::Job))
        .with("ErrorCode", error_code(job))
        .with("ErrorDescription", error_text(scene, job))
        .with("ErrorSummaryDescription", error_text(scene, job))
        .with(
            "HealthState",
            if job.failure.is_some() { 25_u16 } else { 5 },
        )
        .with("InstallDate", datetime(job.started))
        .with("InstanceID", job.id.to_string())
        .with("JobState", job.state.value())
        .with("JobStatus", scene.say(phrase))
        .with("JobType", job.job_type)
        .with("LocalOrUtcTime", 2_u16)
        .with("Name", scene.say(Phrase::Job))
        .with("OperationalStatus", status.to_vec())
        .with("PercentComplete", job.percent_complete(scene.now()))
        .with("StartTime", datetime(job.started))
        .with("StatusDescriptions", vec![scene.say(phrase)])
        .with("TimeBeforeRemoval", interval(TIME_BEFORE_REMOVAL))
        .with("TimeOfLastStateChange", datetime(changed))
        .with("TimeSubmitted", datetime(job.started));
    match job.class {
        JobClass::Concrete => {}
        JobClass::Storage => {
            let cause = job.failure.as_ref().and_then(|failure| failure.cause);
            instance.set("JobCompletionStatusCode", cause.map_or(0, |it| it.0));
        }
        JobClass::Migration => {
            if let Some(destination) = &job.destination {
                instance.set("DestinationHost", destination.to_string());
            }
        }
    }
    instance
}

fn error_code(job: &Job) -> u16 {
    let code = job
        .failure
        .as_ref()
        .map_or(0, |failure| failure.code.value());
    u16::try_from(code).unwrap_or(u16::MAX)
}

/// The failure in the host's language: only the general words are translated, as on hosts whose components have no
/// translation.
fn error_text(scene: &Scene<'_>, job: &Job) -> CimValue {
    job.failure.as_ref().map_or(CimValue::from(""), |failure| {
        let general = scene.say(Phrase::JobFailed);
        CimValue::from(format!("{general} {}", failure.text))
    })
}

/// `Errors` of `GetErrorEx`: strings with an embedded `Msvm_Error` each.
///
/// # Errors
/// As [`embedded::text_of`].
pub(in crate::provider) fn errors(job: &Job) -> Result<Vec<String>> {
    let Some(failure) = &job.failure else {
        return Ok(Vec::new());
    };
    let instance = CimInstance::new("Msvm_Error")
        .with("ErrorSource", "Microsoft-Windows-Hyper-V-VMMS")
        .with("Message", failure.text.as_str())
        .with("MessageID", failure.code.value().to_string())
        .with(
            "ProbableCause",
            failure
                .cause
                .map_or(CimValue::Null, |_| CimValue::from(1_u16)),
        );
    Ok(vec![embedded::text_of(&instance)?])
}

/// What a job touches: element and effect (0 unknown, 5 created). Created elements appear once the job completed.
pub(in crate::provider) fn affected(scene: &Scene<'_>, job: &Job) -> Vec<(CimPath, u16)> {
    let mut elements: Vec<(CimPath, u16)> = Vec::new();
    let touched = job.affected.iter().map(|it| (it, 0));
    let created = job
        .created
        .iter()
        .filter(|_| job.state.is_success())
        .map(|it| (it, 5));
    for (element, effect) in touched.chain(created) {
        if let Some(path) = element_path(scene.estate, &scene.host.name, element) {
            elements.push((path, effect));
        }
    }
    elements
}

/// Path of what a job touches, as far as it is on the host; files have none on the wire.
pub(in crate::provider) fn element_path(
    estate: &Estate,
    host: &HostName,
    element: &Affected,
) -> Option<CimPath> {
    let system = |id: VmId| {
        estate
            .vm(host, id)
            .or_else(|_| estate.planned(host, id))
            .ok()
    };
    match element {
        Affected::System(id) => {
            // A VM that left the host is still called what it was.
            let realm = system(*id).map_or(Realm::Realized, |vm| vm.realm);
            Some(identity::system(realm, *id))
        }
        Affected::Checkpoint(id) => Some(identity::settings(id)),
        Affected::ReferencePoint(vm, id) => Some(identity::reference_point(*vm, *id)),
        Affected::Drive(id, address) => {
            let drive = system(*id).and_then(|vm| vm.settings.hardware.drive(*address));
            Some(match drive {
                Some(Drive::VirtualDisk(Some(_)) | Drive::Dvd(Some(_))) => {
                    let medium = identity::medium_id(id, *address);
                    identity::by_instance_id("Msvm_StorageAllocationSettingData", medium)
                }
                _ => {
                    let drive = identity::drive_id(id, *address);
                    identity::by_instance_id("Msvm_ResourceAllocationSettingData", drive)
                }
            })
        }
        Affected::Device(id, device) => {
            let hardware = &system(*id)?.settings.hardware;
            let adapter = hardware.adapters.iter().find(|it| it.device == *device);
            if let Some(adapter) = adapter {
                return Some(Part::Adapter(adapter).path(&id.to_string()));
            }
            let controller = hardware
                .controllers
                .iter()
                .find(|it| it.device == *device)?;
            Some(Part::Controller(controller).path(&id.to_string()))
        }
        Affected::File(_) => None,
    }
}
