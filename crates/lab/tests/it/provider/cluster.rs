//! Roles move, nodes drain, priorities change.

use lab::estate::{Answer, Switch};
use wsman::cim::{CimInstance, CimPath, CimValue};
use wsman::client::CimClient;

use super::stage::{Stage, mscluster, request_state, v2};

fn object(class: &str, name: &str) -> CimPath {
    CimPath::new(mscluster(), class).with("Name", name)
}

fn group(client: &dyn CimClient) -> CimInstance {
    let rows = client
        .query(
            &mscluster(),
            "SELECT * FROM MSCluster_ResourceGroup WHERE GroupType = 111",
        )
        .expect("groups");
    assert_eq!(rows.len(), 1);
    rows.into_iter().next().expect("one")
}

#[test]
fn a_role_moves_live_and_is_found_on_its_new_node() {
    let stage = Stage::new();
    let first = stage.client("HV01");
    let second = stage.client("HV02");
    request_state(&first, stage.sql01, 2);
    let role = group(&first);
    let path = object(
        "MSCluster_ResourceGroup",
        role.text_ref("Name").expect("a name"),
    );
    let output = first
        .invoke(
            &path,
            "MoveToNewNode",
            &[
                ("NodeName", CimValue::from("HV02")),
                ("TimeOut", CimValue::from(0_u32)),
            ],
        )
        .expect("MoveToNewNode");
    assert_eq!(
        output.get("ReturnValue"),
        None,
        "methods of the cluster return nothing"
    );
    let mut polls = 0;
    while group(&second).text_ref("OwnerNode") != Some("HV02") {
        polls += 1;
        assert!(polls < 1000, "the role never moves");
    }
    let vm = stage.system(stage.sql01);
    assert_eq!(
        second
            .get(&vm)
            .expect("moved")
            .u16("EnabledState")
            .expect("runs"),
        2
    );
    assert!(
        first.get(&vm).is_err(),
        "the old node does not know it any more"
    );
}

#[test]
fn errors_of_the_cluster_are_faults_with_errors_of_windows() {
    let stage = Stage::new();
    let client = stage.client("HV01");
    let error = client
        .invoke(
            &object("MSCluster_ResourceGroup", "nothing"),
            "BringOnline",
            &[],
        )
        .expect_err("no such group");
    let hresult = error.fault().and_then(|it| it.provider.as_ref()?.hresult);
    assert_eq!(hresult, Some(0x8007_0000 | 5013));
    let error = client
        .invoke(
            &object("MSCluster_Cluster", "CL1"),
            "AddVirtualMachine",
            &[("VirtualMachine", CimValue::from("lin01"))],
        )
        .expect_err("the switch is hard");
    let hresult = error.fault().and_then(|it| it.provider.as_ref()?.hresult);
    assert_eq!(hresult, Some(0x8007_0005));
    stage
        .estate
        .write(|it| it.set_switch(Switch::AddVirtualMachine, Answer::Optimistic));
    client
        .invoke(
            &object("MSCluster_Cluster", "CL1"),
            "AddVirtualMachine",
            &[("VirtualMachine", CimValue::from("lin01"))],
        )
        .expect("the switch is kind");
    let roles = client
        .query(
            &mscluster(),
            "SELECT Name FROM MSCluster_ResourceGroup WHERE GroupType = 111",
        )
        .expect("roles");
    assert_eq!(roles.len(), 2);
}

#[test]
fn private_properties_are_there_where_the_switch_is_kind() {
    let stage = Stage::new();
    stage
        .estate
        .write(|it| it.set_switch(Switch::PrivateProperties, Answer::Optimistic));
    let client = stage.client("HV01");
    let wql = format!(
        "SELECT * FROM MSCluster_Resource WHERE Type = 'Virtual Machine' AND PrivateProperties.VmID='{}'",
        stage.sql01
    );
    let rows = client.query(&mscluster(), &wql).expect("resources");
    assert_eq!(rows.len(), 1);
    let private = rows[0]
        .opt_instance("PrivateProperties")
        .expect("an instance")
        .expect("one");
    assert!(
        private
            .text("VmID")
            .expect("an id")
            .eq_ignore_ascii_case(&stage.sql01.to_string())
    );
}

#[test]
fn a_node_is_drained_and_comes_back() {
    let stage = Stage::new();
    let client = stage.client("HV02");
    request_state(&stage.client("HV01"), stage.sql01, 2);
    let node = object("MSCluster_Node", "HV01");
    client
        .invoke(&node, "Pause", &[("DrainType", CimValue::from(1_u32))])
        .expect("Pause");
    let mut polls = 0;
    while group(&client).text_ref("OwnerNode") != Some("HV02") {
        polls += 1;
        assert!(polls < 1000, "the role never moves");
    }
    assert_eq!(
        client
            .get(&node)
            .expect("the node")
            .u32("State")
            .expect("paused"),
        2
    );
    client
        .invoke(&node, "Resume", &[("FailbackType", CimValue::from(0_u32))])
        .expect("Resume");
    assert_eq!(
        client
            .get(&node)
            .expect("the node")
            .u32("State")
            .expect("up"),
        0
    );
}

#[test]
fn the_priority_of_a_role_is_put() {
    let stage = Stage::new();
    let client = stage.client("HV01");
    let role = group(&client);
    let path = object(
        "MSCluster_ResourceGroup",
        role.text_ref("Name").expect("a name"),
    );
    let wanted = CimInstance::new("MSCluster_ResourceGroup")
        .in_namespace(mscluster())
        .with("Priority", 3000_u32);
    let now = client.put(&path, &wanted).expect("put");
    assert_eq!(now.u32("Priority").expect("high"), 3000);
    let other = CimInstance::new("MSCluster_ResourceGroup")
        .in_namespace(mscluster())
        .with("OwnerNode", "HV02");
    assert!(client.put(&path, &other).is_err());
    assert!(
        client
            .put(
                &stage.system(stage.sql01),
                &CimInstance::new("Msvm_ComputerSystem").in_namespace(v2())
            )
            .is_err()
    );
}
