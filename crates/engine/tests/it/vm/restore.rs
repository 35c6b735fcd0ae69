//! A machine comes back: over itself, in its place when it is gone, beside itself, and as files.

use engine::ErrorKind;
use engine::job::backup_disk::BackupScope;
use engine::job::restore_disk::Proof;
use engine::job::restore_vm::{
    AfterRestore, FolderRequest, IfRunning, RoleWish, VmRestoreRequest, VmRestoreTarget,
    restore_vm_to_folder,
};
use host::definition::{Identity, NicConnection, SavedState};
use host::ids::NodeName;
use host::path::HostPath;
use lab::estate::{PowerState, VmId};

use super::site::{MIB, Site, id};
use crate::support::{context, same_bytes, selector};

const OFF: u16 = 3;

fn request(version: &str, target: VmRestoreTarget) -> VmRestoreRequest {
    VmRestoreRequest {
        selector: selector(version),
        target,
        saved_state: SavedState::Drop,
        after: AfterRestore::StayOff,
        proof: Proof::ReadBack,
        workers: Some(1),
        ids: vdisk::vhdx::IdSource::seeded(9),
    }
}

fn over_itself(version: &str) -> VmRestoreRequest {
    let running = IfRunning::TurnOff;
    request(version, VmRestoreTarget::Original { running })
}

fn beside(version: &str, node: &str, folder: &str, name: &str) -> VmRestoreRequest {
    request(
        version,
        VmRestoreTarget::Host {
            node: NodeName::new(node).unwrap(),
            folder: HostPath::new(folder).unwrap(),
            identity: Identity::New,
            name: Some(name.to_owned()),
            nics: NicConnection::Disconnected,
            role: RoleWish::None,
        },
    )
}

fn same_disks(site: &Site, vm: VmId, version: &str) {
    let wanted = site.disks(&site.point(version));
    let found = site.live_disks(vm);
    assert_eq!(wanted.len(), found.len());
    for (wanted, found) in wanted.iter().zip(&found) {
        same_bytes(wanted, found);
    }
}

#[test]
fn over_itself_it_is_as_it_was_and_what_was_replaced_lies_beside() {
    let site = Site::new(11);
    site.back_up(site.sql01, "sql01");
    site.write(site.sql01, 2 * MIB);
    site.back_up(site.sql01, "sql01");
    let report = site.restore(&over_itself("sql01@1")).unwrap();
    assert_eq!(report.made, id(site.sql01));
    assert!(report.is_proved);
    assert!(report.has_role, "{:?}", report.notes);
    assert_eq!(report.kept.len(), 2, "{report:#?}");
    same_disks(&site, site.sql01, "sql01@1");
    let remains = site.remains(site.sql01);
    assert_eq!((remains.checkpoints, remains.reference_points), (0, 0));
    // It runs, and what tracking said before is believed no more.
    site.power(site.sql01, 2);
    assert_eq!(site.remains(site.sql01).power, PowerState::Running);
    let next = site.back_up(site.sql01, "sql01");
    assert_eq!(next.sequence, 3);
    for disk in &next.disks {
        assert!(
            matches!(disk.scope, BackupScope::CompareEverything { .. }),
            "{disk:#?}"
        );
    }
    let seen = site.examine(site.sql01, &site.point("sql01@3"));
    assert_eq!(seen.consistency, lab::guest::Consistency::Application);
}

#[test]
fn a_running_machine_is_not_replaced_unasked() {
    let site = Site::new(12);
    site.back_up(site.lin01, "lin01");
    let running = IfRunning::Refuse;
    let error = site
        .restore(&request("lin01", VmRestoreTarget::Original { running }))
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Refused);
    assert_eq!(site.remains(site.lin01).power, PowerState::Running);
}

#[test]
fn a_machine_that_is_gone_is_made_again_with_its_id_and_role() {
    let kind = lab::estate::Answer::Optimistic;
    let site = gone(13, Some(kind));
    let report = site.restore(&over_itself("sql01")).unwrap();
    assert!(report.has_role, "{:?}", report.notes);
    same_disks(&site, site.sql01, "sql01");
}

/// `sql01` is backed up, and then taken out of its host with its role; its images lie there still.
fn gone(seed: u64, roles: Option<lab::estate::Answer>) -> Site {
    let site = Site::new(seed);
    if let Some(answer) = roles {
        let switch = lab::estate::Switch::AddVirtualMachine;
        site.estate
            .write(|estate| estate.set_switch(switch, answer));
    }
    site.back_up(site.sql01, "sql01");
    let home = site.home(site.sql01);
    site.power(site.sql01, OFF);
    site.estate.write(|estate| {
        let group = estate
            .cluster_of(&home)
            .unwrap()
            .group_of(site.sql01)
            .unwrap();
        let group = group.name.clone();
        estate.remove_role(&home, &group).unwrap();
        let target = lab::estate::SystemTarget::Realized(site.sql01);
        estate.destroy_system(&home, target).unwrap();
    });
    site.pass(std::time::Duration::from_secs(60));
    site
}

#[test]
fn a_machine_that_is_gone_comes_back_where_roles_cannot_be_made_from_afar() {
    let site = gone(17, None);
    let report = site.restore(&over_itself("sql01")).unwrap();
    assert_eq!(report.made, id(site.sql01));
    // Whether a role can be made from afar is not known of Windows: both answers, the harder one says what to do.
    assert!(!report.has_role);
    let note = report
        .notes
        .iter()
        .find(|it| it.contains("Add-ClusterVirtualMachineRole"));
    assert!(note.is_some(), "{:?}", report.notes);
    // Its old images were there still: they are not lost.
    assert_eq!(report.kept.len(), 2);
    same_disks(&site, site.sql01, "sql01");
    site.power(site.sql01, 2);
    assert_eq!(site.remains(site.sql01).power, PowerState::Running);
}

#[test]
fn beside_itself_it_has_another_id_and_the_same_bytes() {
    let site = Site::new(14);
    site.back_up(site.sql01, "sql01");
    let report = site
        .restore(&beside("sql01", "HV09", "D:\\restored", "sql01-copy"))
        .unwrap();
    assert_ne!(report.made, id(site.sql01));
    let made: VmId = site.estate.read(|estate| {
        let mut found = estate.vms_named("sql01-copy");
        found.next().unwrap().id
    });
    assert_eq!(id(made), report.made);
    assert_eq!(site.home(made).to_string(), "HV09");
    same_disks(&site, made, "sql01");
    assert_eq!(site.remains(site.sql01).power, PowerState::Running);
    assert_eq!(report.kept.len(), 0);
    site.power(made, 2);
    assert_eq!(site.remains(made).power, PowerState::Running);
    let error = site
        .restore(&VmRestoreRequest {
            target: VmRestoreTarget::Host {
                node: NodeName::new("HV09").unwrap(),
                folder: HostPath::new("D:\\twice").unwrap(),
                identity: Identity::Keep,
                name: None,
                nics: NicConnection::Disconnected,
                role: RoleWish::None,
            },
            ..beside("sql01", "HV09", "D:\\twice", "x")
        })
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Refused, "never two twins");
}

#[test]
fn a_failed_replacement_puts_the_machine_back() {
    let site = Site::new(15);
    site.back_up(site.lin01, "lin01");
    site.power(site.lin01, OFF);
    let before = site.live_disks(site.lin01);
    // Each question to a host fails once: whatever had been done by then is taken back.
    let mut fine = 0;
    let mut failed = 0;
    for question in (1..200).step_by(3) {
        let death = super::site::Death::once(question);
        match site.restore_with(&over_itself("lin01"), &death) {
            Ok(_) => {
                fine += 1;
                if !death.has_come() {
                    break;
                }
                // What failed was told as a note.
                continue;
            }
            Err(error) => {
                eprintln!("question {question}: {error:?}");
                failed += 1;
                site.pass(std::time::Duration::from_secs(60));
                assert_eq!(
                    site.home(site.lin01).to_string(),
                    "HV01",
                    "{question}: {error}"
                );
                if fine == 0 {
                    let now = site.live_disks(site.lin01);
                    assert!(now == before, "{question}: {error:?}");
                }
            }
        }
    }
    assert!(failed > 3, "{failed}");
    site.power(site.lin01, 2);
    assert_eq!(site.remains(site.lin01).power, PowerState::Running);
}

#[test]
fn as_files_it_has_its_images_its_configuration_and_a_record() {
    let site = Site::new(16);
    site.back_up(site.sql01, "sql01");
    let folder = tempfile::tempdir().unwrap();
    let request = FolderRequest {
        selector: selector("sql01"),
        folder: folder.path().join("out"),
        format: None,
        proof: Proof::ReadBack,
        ids: vdisk::vhdx::IdSource::seeded(5),
    };
    let report = restore_vm_to_folder(&site.world.repository, &request, context()).unwrap();
    assert_eq!(report.disks.len(), 2);
    assert!(report.disks.iter().all(|disk| disk.is_proved));
    let names: Vec<String> = std::fs::read_dir(&request.folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    for name in [
        "sql01.vhdx",
        "sql01-data.vhdx",
        "configuration",
        "machine.json",
    ] {
        assert!(names.iter().any(|it| it == name), "{names:?}");
    }
    assert_eq!(report.configuration.len(), 3);
    let again = restore_vm_to_folder(&site.world.repository, &request, context());
    assert_eq!(again.unwrap_err().kind(), ErrorKind::AlreadyExists);
}
