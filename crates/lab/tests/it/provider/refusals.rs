//! What is refused, and with which code.

use lab::estate::{Answer, Switch, WindowsGeneration};
use lab::provider::Role;
use wsman::ErrorKind;
use wsman::cim::{CimPath, CimValue};
use wsman::client::CimClient;
use wsman::message::{Association, AssociationQuery, FaultCode, hresult};
use wsman::server::{CimProvider, Operation};

use super::checkpoints::snapshot_settings;
use super::stage::{Plan, Stage, mscluster, request_state, service, v2};

fn fault(error: &wsman::Error) -> (FaultCode, Option<u32>) {
    let fault = error.fault().unwrap_or_else(|| panic!("no fault: {error}"));
    (
        fault.code,
        fault.provider.as_ref().and_then(|it| it.hresult),
    )
}

#[test]
fn half_a_key_names_nothing() {
    let stage = Stage::new();
    let client = stage.client("HV01");
    let half = CimPath::new(v2(), "Msvm_ComputerSystem").with("Name", stage.sql01.to_string());
    let error = client.get(&half).expect_err("half a key");
    assert_eq!(error.kind(), ErrorKind::NotFound);
}

#[test]
fn a_vm_of_another_host_and_a_job_of_another_host_are_not_found() {
    let stage = Stage::new();
    let client = stage.client("HV02");
    let error = client
        .get(&stage.system(stage.lin01))
        .expect_err("elsewhere");
    assert_eq!(fault(&error).1, Some(hresult::NOT_FOUND));
    let output = client.invoke(
        &stage.system(stage.lin01),
        "RequestStateChange",
        &[("RequestedState", CimValue::from(2_u16))],
    );
    assert_eq!(output.expect_err("elsewhere").kind(), ErrorKind::NotFound);
}

#[test]
fn what_is_not_modelled_is_refused_aloud() {
    let stage = Stage::new();
    let client = stage.client("HV01");
    let error = client
        .enumerate(&v2(), &"Msvm_VideoHead".into())
        .expect_err("refused");
    assert_eq!(fault(&error).0, FaultCode::UnsupportedFeature);
    let error = client
        .invoke(
            &service("Msvm_ReplicationService"),
            "CommitFailover",
            &[("ComputerSystem", CimValue::from(&stage.system(stage.sql01)))],
        )
        .expect_err("refused");
    assert_eq!(
        fault(&error),
        (FaultCode::ActionNotSupported, Some(hresult::NOT_SUPPORTED))
    );
    // The client asks again without the filter, and is told more.
    let error = client
        .query(&v2(), "SELECT * FROM Msvm_Nonsense")
        .expect_err("no class");
    assert_eq!(
        fault(&error),
        (
            FaultCode::DestinationUnreachable,
            Some(hresult::INVALID_CLASS)
        )
    );
}

#[test]
fn a_service_is_called_with_one_key_and_not_without_any() {
    let stage = Stage::new();
    let client = stage.client("HV01");
    let class = "Msvm_VirtualSystemManagementService";
    assert!(
        client
            .invoke(&service(class), "GetSummaryInformation", &[])
            .is_ok()
    );
    let error = client
        .invoke(&CimPath::new(v2(), class), "GetSummaryInformation", &[])
        .expect_err("no key");
    assert_eq!(fault(&error).1, Some(hresult::INVALID_METHOD_PARAMETERS));
    let foreign = service(class).with("SystemName", "HV02");
    let error = client
        .invoke(&foreign, "GetSummaryInformation", &[])
        .expect_err("foreign");
    assert_eq!(error.kind(), ErrorKind::NotFound);
}

#[test]
fn embedded_instances_are_read_with_the_rules_of_windows() {
    let stage = Stage::new();
    let client = stage.client("HV01");
    let vsms = service("Msvm_VirtualSystemManagementService");
    let define = |text: &str, resource: &str| {
        let parameters = [
            ("SystemSettings", CimValue::from(text)),
            ("ResourceSettings", CimValue::from(vec![resource])),
        ];
        let given = if resource.is_empty() {
            &parameters[..1]
        } else {
            &parameters[..]
        };
        let output = client
            .invoke(&vsms, "DefineSystem", given)
            .expect("DefineSystem");
        output.u32("ReturnValue").expect("a code")
    };
    let class = "Msvm_VirtualSystemSettingData";
    let system = |property: &str| format!("<INSTANCE CLASSNAME=\"{class}\">{property}</INSTANCE>");
    let named =
        system("<PROPERTY NAME=\"ElementName\" TYPE=\"string\"><VALUE>new</VALUE></PROPERTY>");
    let plain = "<INSTANCE CLASSNAME=\"Msvm_StorageAllocationSettingData\"><PROPERTY NAME=\"HostResource\" TYPE=\"string\">\
                 <VALUE>D:\\x.vhdx</VALUE></PROPERTY></INSTANCE>";
    assert_eq!(
        define(&named, plain),
        32776,
        "a scalar where an array belongs"
    );
    let wrong =
        system("<PROPERTY NAME=\"ElementName\" TYPE=\"uint32\"><VALUE>1</VALUE></PROPERTY>");
    assert_eq!(define(&wrong, ""), 32776, "a wrong type");
    assert_eq!(define("no xml", ""), 32773);
    let iso = system(
        "<PROPERTY NAME=\"AutomaticStartupActionDelay\" TYPE=\"datetime\"><VALUE>PT30M</VALUE></PROPERTY>",
    );
    assert_eq!(define(&iso, ""), 32768, "an interval in ISO's spelling");
    let add = client
        .invoke(
            &vsms,
            "AddResourceSettings",
            &[
                (
                    "AffectedConfiguration",
                    CimValue::from(super::stage::settings(&stage.lin01.to_string())),
                ),
                ("ResourceSettings", CimValue::from(vec![plain])),
            ],
        )
        .expect("AddResourceSettings");
    assert_eq!(add.u32("ReturnValue").expect("a code"), 32773);
}

#[test]
fn roles_say_who_may_work_where() {
    let stage = Stage::new();
    let hyperv = stage.client_as("HV01", Role::HyperVAdministrator);
    assert!(
        hyperv
            .enumerate(&v2(), &"Msvm_ComputerSystem".into())
            .is_ok()
    );
    let error = hyperv
        .enumerate(&mscluster(), &"MSCluster_Node".into())
        .expect_err("no rights in the cluster");
    assert_eq!(error.kind(), ErrorKind::AccessDenied);
    let user = stage.client_as("HV01", Role::RemoteUser);
    let error = user
        .enumerate(&v2(), &"Msvm_ComputerSystem".into())
        .expect_err("no rights at all");
    assert_eq!(error.kind(), ErrorKind::AccessDenied);
}

#[test]
fn a_host_that_takes_no_queries_still_enumerates() {
    let stage = Stage::new();
    let client = stage.client("HV01");
    stage
        .estate
        .write(|it| it.set_switch(Switch::WqlOnVirtualization, Answer::Pessimistic));
    // The client goes round by itself: it enumerates the class and filters.
    let rows = client
        .query(
            &v2(),
            "SELECT * FROM Msvm_ComputerSystem WHERE ElementName = 'sql01'",
        )
        .expect("rows");
    assert_eq!(rows.len(), 1);
}

#[test]
fn the_association_filter_is_taken_only_where_the_switch_is_kind() {
    let stage = Stage::new();
    let provider = stage.provider("HV01", Role::Administrator);
    let query = AssociationQuery::of(Association::Associators, stage.system(stage.sql01))
        .through("Msvm_SettingsDefineState");
    for (answer, wql, is_taken) in [
        (Answer::Pessimistic, None, false),
        (Answer::Pessimistic, Some("ASSOCIATORS OF …"), true),
        (Answer::Optimistic, None, true),
    ] {
        stage
            .estate
            .write(|it| it.set_switch(Switch::AssociationFilter, answer));
        let operation = Operation::Enumerate {
            namespace: &v2(),
            query: wql,
            association: wql.is_none().then_some(&query),
        };
        let caller = stage.caller("HV01");
        match provider.admit(&operation, &caller) {
            Ok(()) => assert!(is_taken),
            Err(fault) => assert!(!is_taken && fault.code == FaultCode::CannotProcessFilter),
        }
        assert_eq!(provider.related(&query, &caller).expect("rows").len(), 1);
    }
}

#[test]
fn references_name_their_namespace_unless_the_switch_is_kind() {
    let stage = Stage::new();
    let provider = stage.provider("HV01", Role::Administrator);
    for (answer, names) in [(Answer::Pessimistic, true), (Answer::Optimistic, false)] {
        stage
            .estate
            .write(|it| it.set_switch(Switch::NoNamespaceSelector, answer));
        let class = "Msvm_SettingsDefineState".into();
        let rows = provider.instances(&v2(), &class, None, &stage.caller("HV01"));
        let rows = rows.expect("rows");
        let reference = rows[0].reference("SettingData").expect("a reference");
        assert_eq!(reference.keys.contains_key("__cimnamespace"), names);
    }
}

#[test]
fn server_2016_takes_a_backup_type_only_where_the_switch_is_kind() {
    for (answer, expected) in [(Answer::Pessimistic, 32773), (Answer::Optimistic, 4096)] {
        let stage = Stage::of(Plan::new(WindowsGeneration::Server2016));
        stage
            .estate
            .write(|it| it.set_switch(Switch::GuestBackupTypeOn2016, answer));
        let client = stage.client("HV01");
        request_state(&client, stage.sql01, 2);
        let output = client
            .invoke(
                &service("Msvm_VirtualSystemSnapshotService"),
                "CreateSnapshot",
                &[
                    ("AffectedSystem", CimValue::from(stage.system(stage.sql01))),
                    ("SnapshotSettings", CimValue::from(snapshot_settings(2))),
                    ("SnapshotType", CimValue::from(32768_u16)),
                ],
            )
            .expect("CreateSnapshot");
        assert_eq!(output.u32("ReturnValue").expect("a code"), expected);
    }
}

#[test]
fn a_host_outside_of_clusters_has_no_cluster_namespace() {
    let stage = Stage::new();
    let client = stage.client("HV09");
    let error = client
        .query(&mscluster(), "SELECT * FROM MSCluster_Cluster")
        .expect_err("no namespace");
    assert!(
        matches!(error.kind(), ErrorKind::NotFound | ErrorKind::Fault),
        "{error}"
    );
}
