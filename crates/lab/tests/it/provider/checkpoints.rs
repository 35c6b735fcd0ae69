//! Checkpoints, reference points and changes, as a backup drives them.

use lab::estate::{Answer, Switch};
use wsman::cim::{CimInstance, CimPath, CimValue, embedded};
use wsman::client::CimClient;

use super::stage::{MIB, Stage, request_state, service, settings, succeed, v2, wait};

const SNAPSHOTS: &str = "Msvm_VirtualSystemSnapshotService";

pub fn snapshot_settings(level: u8) -> String {
    format!(
        "<INSTANCE CLASSNAME=\"Msvm_VirtualSystemSnapshotSettingData\"><PROPERTY NAME=\"ConsistencyLevel\" \
         TYPE=\"uint8\"><VALUE>{level}</VALUE></PROPERTY><PROPERTY NAME=\"GuestBackupType\" TYPE=\"uint8\"><VALUE>2</VALUE>\
         </PROPERTY><PROPERTY NAME=\"IgnoreNonSnapshottableDisks\" TYPE=\"boolean\"><VALUE>TRUE</VALUE></PROPERTY></INSTANCE>"
    )
}

fn create(client: &dyn CimClient, vm: &CimPath, level: u8) -> CimInstance {
    client
        .invoke(
            &service(SNAPSHOTS),
            "CreateSnapshot",
            &[
                ("AffectedSystem", CimValue::from(vm)),
                ("SnapshotSettings", CimValue::from(snapshot_settings(level))),
                ("SnapshotType", CimValue::from(32768_u16)),
            ],
        )
        .expect("CreateSnapshot")
}

/// What a job made: the rows with effect 5.
fn created(client: &dyn CimClient, job: &CimInstance) -> Vec<CimPath> {
    let id = job.text("InstanceID").expect("an id");
    let rows = client
        .enumerate(&v2(), &"Msvm_AffectedJobElement".into())
        .expect("rows");
    rows.iter()
        .filter(|row| {
            let of = row
                .reference("AffectingElement")
                .expect("a job")
                .key("InstanceID");
            of.as_deref() == Some(&id) && row.u16s("ElementEffects").expect("effects") == [5]
        })
        .map(|row| row.reference("AffectedElement").expect("an element"))
        .collect()
}

/// The frozen files of a checkpoint.
fn frozen(client: &dyn CimClient, guid: &str) -> Vec<String> {
    let wql = format!(
        "ASSOCIATORS OF {{Msvm_VirtualSystemSettingData.InstanceID='Microsoft:{guid}'}} WHERE \
         ResultClass = Msvm_StorageAllocationSettingData"
    );
    let disks = client.query(&v2(), &wql).expect("disks");
    let files = disks
        .iter()
        .map(|it| it.texts("HostResource").expect("a file"));
    files.flatten().collect()
}

/// Asks what changed since a moment; some must have.
fn assert_changed(client: &dyn CimClient, file: &str, limit: &str) {
    let output = client
        .invoke(
            &service("Msvm_ImageManagementService"),
            "GetVirtualDiskChanges",
            &[
                ("Path", CimValue::from(file)),
                ("LimitId", CimValue::from(limit)),
                ("ByteOffset", CimValue::from(0_u64)),
                ("ByteLength", CimValue::from(16 * MIB)),
            ],
        )
        .expect("changes");
    assert_eq!(output.u32("ReturnValue").expect("0"), 0);
    let offsets = output.u64s("ChangedByteOffsets").expect("offsets");
    let lengths = output.u64s("ChangedByteLengths").expect("lengths");
    assert_eq!(offsets.len(), lengths.len());
    assert!(!offsets.is_empty(), "the guest wrote");
    assert_eq!(output.u64("ProcessedByteLength").expect("all"), 16 * MIB);
}

/// Converts a checkpoint; the reference point.
fn convert(client: &dyn CimClient, snapshot: &CimPath) -> CimInstance {
    let output = client
        .invoke(
            &service(SNAPSHOTS),
            "ConvertToReferencePoint",
            &[
                ("AffectedSnapshot", CimValue::from(snapshot)),
                ("ReferencePointSettings", CimValue::from("")),
            ],
        )
        .expect("ConvertToReferencePoint");
    let done = succeed(client, &output);
    let point = created(client, &done).remove(0);
    assert_eq!(point.class, "Msvm_VirtualSystemReferencePoint");
    client.get(&point).expect("the reference point")
}

#[test]
fn a_recovery_checkpoint_becomes_a_reference_point_that_changes_are_asked_from() {
    let stage = Stage::new();
    stage
        .estate
        .write(|it| it.set_switch(Switch::FullByteLength, Answer::Optimistic));
    let client = stage.client("HV01");
    request_state(&client, stage.sql01, 2);
    let vm = stage.system(stage.sql01);
    let mut limit: Option<String> = None;
    for _ in 0..2 {
        let output = create(&client, &vm, 1);
        assert_eq!(output.get("ResultingSnapshot"), None);
        let running = client.get(&output.reference("Job").expect("a job"));
        let running = running.expect("the job");
        assert!(
            created(&client, &running).is_empty(),
            "nothing is made before the end"
        );
        let done = succeed(&client, &output);
        let made = created(&client, &done).remove(0);
        let snapshot = client.get(&made).expect("the checkpoint");
        let kind = snapshot.text_ref("VirtualSystemType");
        assert_eq!(kind, Some("Microsoft:Hyper-V:Snapshot:Recovery"));
        let guid = snapshot.text("ConfigurationID").expect("a GUID");
        let files = frozen(&client, &guid);
        assert_eq!(files.len(), 2);
        if let Some(limit) = &limit {
            assert_changed(&client, &files[0], limit);
        }
        let point = convert(&client, &made);
        assert_eq!(point.u16("ReferencePointType").expect("RCT"), 2);
        assert_eq!(
            point.texts("VirtualDiskIdentifiers").expect("disks").len(),
            2
        );
        let names = point
            .texts("ResilientChangeTrackingIdentifiers")
            .expect("names");
        assert_eq!(names.len(), 2);
        limit = names.into_iter().next();
        assert!(
            client.get(&settings(&guid)).is_err(),
            "the checkpoint is gone"
        );
        let status = || client.get(&vm).expect("the VM").u16s("OperationalStatus");
        while status().expect("status").len() > 1 {}
    }
}

#[test]
fn a_second_checkpoint_and_the_end_of_a_vm_wait_for_the_first() {
    let stage = Stage::new();
    let client = stage.client("HV01");
    request_state(&client, stage.sql01, 2);
    let vm = stage.system(stage.sql01);
    let first = create(&client, &vm, 2);
    let second = create(&client, &vm, 2);
    let code = second.u32("ReturnValue").expect("a code");
    assert!(matches!(code, 32774 | 32775), "{code}");
    succeed(&client, &first);
    let destroyed = client
        .invoke(
            &service("Msvm_VirtualSystemManagementService"),
            "DestroySystem",
            &[("AffectedSystem", CimValue::from(&vm))],
        )
        .expect("DestroySystem");
    assert_eq!(destroyed.u32("ReturnValue").expect("a code"), 32775);
}

#[test]
fn a_failed_checkpoint_ends_in_an_exception_with_errors_to_read() {
    use lab::estate::{Fault, FaultKind};
    let stage = Stage::new();
    let client = stage.client("HV01");
    request_state(&client, stage.sql01, 2);
    stage
        .estate
        .write(|it| it.inject(Fault::next(FaultKind::WriterFails)));
    let output = create(&client, &stage.system(stage.sql01), 1);
    let job = wait(&client, &output);
    assert_eq!(job.u16("JobState").expect("exception"), 10);
    assert!(job.u16("ErrorCode").expect("a code") > 32767);
    let path = output.reference("Job").expect("a job");
    let errors = client.invoke(&path, "GetErrorEx", &[]).expect("GetErrorEx");
    let errors = errors.texts("Errors").expect("errors");
    let error = embedded::read(&errors[0]).expect("an error");
    assert!(error.text_ref("Message").is_some_and(|it| !it.is_empty()));
}

#[test]
fn a_user_checkpoint_is_made_renamed_applied_and_deleted() {
    let stage = Stage::new();
    let client = stage.client("HV01");
    let vm = stage.system(stage.lin01);
    let output = client
        .invoke(
            &service(SNAPSHOTS),
            "CreateSnapshot",
            &[
                ("AffectedSystem", CimValue::from(&vm)),
                ("SnapshotSettings", CimValue::from("")),
                ("SnapshotType", CimValue::from(2_u16)),
            ],
        )
        .expect("CreateSnapshot");
    let done = succeed(&client, &output);
    let snapshot = created(&client, &done).remove(0);
    let id = snapshot.key("InstanceID").expect("an id");
    let text = format!(
        "<INSTANCE CLASSNAME=\"Msvm_VirtualSystemSettingData\"><PROPERTY NAME=\"InstanceID\" TYPE=\"string\"><VALUE>{id}\
         </VALUE></PROPERTY><PROPERTY NAME=\"ElementName\" TYPE=\"string\"><VALUE>before the change</VALUE></PROPERTY></INSTANCE>"
    );
    let renamed = client
        .invoke(
            &service("Msvm_VirtualSystemManagementService"),
            "ModifySystemSettings",
            &[("SystemSettings", CimValue::from(text))],
        )
        .expect("ModifySystemSettings");
    assert_eq!(renamed.u32("ReturnValue").expect("0"), 0);
    let now = client.get(&snapshot).expect("the checkpoint");
    assert_eq!(now.text_ref("ElementName"), Some("before the change"));
    let applied = client
        .invoke(
            &service(SNAPSHOTS),
            "ApplySnapshot",
            &[("Snapshot", CimValue::from(&snapshot))],
        )
        .expect("ApplySnapshot");
    succeed(&client, &applied);
    let of_vm = client
        .query(
            &v2(),
            &format!(
                "ASSOCIATORS OF {{Msvm_ComputerSystem.CreationClassName='Msvm_ComputerSystem',Name='{}'}} WHERE \
                 AssocClass = Msvm_SnapshotOfVirtualSystem",
                stage.lin01
            ),
        )
        .expect("checkpoints");
    assert_eq!(of_vm.len(), 1);
    let deleted = client
        .invoke(
            &service(SNAPSHOTS),
            "DestroySnapshot",
            &[("AffectedSnapshot", CimValue::from(&snapshot))],
        )
        .expect("DestroySnapshot");
    succeed(&client, &deleted);
    assert!(client.get(&snapshot).is_err());
}
