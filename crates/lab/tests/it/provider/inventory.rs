//! What is shown, and that it fits its tables.

use lab::estate::WindowsGeneration;
use lab::provider::{Coverage, HostProvider, Language};
use lab::schema::ClassTables;
use wsman::cim::{CimInstance, CimPath, CimValue, Namespace};
use wsman::client::CimClient;
use wsman::message::{Association, AssociationQuery};

use super::stage::{Plan, Stage, mscluster, request_state, service, settings, v2};

/// Every class that is modelled, by namespace.
fn modelled(tables: &ClassTables) -> Vec<(Namespace, String)> {
    let mut classes = Vec::new();
    for set in tables.namespaces() {
        for schema in set.classes() {
            if HostProvider::coverage(&schema.name) == Coverage::Modelled {
                classes.push((set.namespace().clone(), schema.name.to_string()));
            }
        }
    }
    classes.sort();
    classes
}

#[test]
fn every_instance_of_every_class_fits_the_table_of_its_generation() {
    for windows in WindowsGeneration::ALL {
        let stage = Stage::of(Plan::new(*windows));
        let client = stage.client("HV01");
        request_state(&client, stage.sql01, 2);
        let tables = ClassTables::load(*windows).expect("tables");
        let mut with_rows = 0;
        for (namespace, class) in modelled(&tables) {
            let rows = client
                .enumerate(&namespace, &class.as_str().into())
                .unwrap_or_else(|error| panic!("{} {class}: {error}", windows.name()));
            with_rows += usize::from(!rows.is_empty());
            let schema = tables.namespace(&namespace).expect("namespace");
            let keys = &schema.class(&class.as_str().into()).expect("class").keys;
            for row in rows {
                for key in keys {
                    assert!(row.get(key).is_some(), "{class} without {key}");
                }
            }
        }
        assert!(
            with_rows > 40,
            "{}: {with_rows} classes have instances",
            windows.name()
        );
    }
}

#[test]
fn both_ends_of_every_association_can_be_got() {
    let stage = Stage::new();
    let client = stage.client("HV01");
    request_state(&client, stage.sql01, 2);
    let tables = ClassTables::load(WindowsGeneration::Server2022).expect("tables");
    let mut links = 0;
    for (namespace, class) in modelled(&tables) {
        let rows = client
            .enumerate(&namespace, &class.as_str().into())
            .expect("rows");
        for row in rows {
            for value in row.properties.values() {
                if let CimValue::Reference(path) = value {
                    links += 1;
                    let found = client.get(path);
                    assert!(found.is_ok(), "{class}: {}", path.to_relative_text());
                }
            }
        }
    }
    assert!(links > 100, "{links}");
}

#[test]
fn the_host_is_told_from_its_vms_without_a_localized_text() {
    let stage = Stage::new();
    let client = stage.client("HV01");
    let all = client
        .enumerate(&v2(), &"Msvm_ComputerSystem".into())
        .expect("systems");
    assert_eq!(all.len(), 4);
    let vms = client
        .query(
            &v2(),
            "select * from Msvm_ComputerSystem where Name != __SERVER ",
        )
        .expect("VMs");
    let mut names: Vec<&str> = vms
        .iter()
        .filter_map(|it| it.text_ref("ElementName"))
        .collect();
    names.sort_unstable();
    assert_eq!(names, ["lin01", "raw01", "sql01"]);
    let host = all
        .iter()
        .find(|it| it.text_ref("Name") == Some("HV01"))
        .expect("the host");
    assert_eq!(host.opt_u64("ProcessID").expect("nil"), None);
    assert_eq!(host.u16("RequestedState").expect("12"), 12);
    let lower = stage.sql01.to_string().to_lowercase();
    let found = client
        .query(
            &v2(),
            &format!("SELECT * FROM Msvm_ComputerSystem WHERE Name = \"{lower}\""),
        )
        .expect("one");
    assert_eq!(found.len(), 1);
}

#[test]
fn settings_lead_to_controllers_drives_and_files() {
    let stage = Stage::new();
    let client = stage.client("HV01");
    let query = AssociationQuery::of(Association::Associators, settings(&stage.raw01.to_string()))
        .through("Msvm_VirtualSystemSettingDataComponent")
        .giving("CIM_ResourceAllocationSettingData");
    let wql = format!(
        "ASSOCIATORS OF {{Msvm_VirtualSystemSettingData.InstanceID='Microsoft:{}'}} WHERE \
         AssocClass = Msvm_VirtualSystemSettingDataComponent ResultClass = CIM_ResourceAllocationSettingData",
        stage.raw01
    );
    let parts = client.query(&v2(), &wql).expect("parts");
    // Whichever way the client asks: it goes round what the host refuses.
    let by_query = client.associators(&query).expect("parts");
    assert_eq!(by_query.len(), parts.len());
    let of = |sub_type: &str| -> Vec<&CimInstance> {
        let full = format!("Microsoft:Hyper-V:{sub_type}");
        parts
            .iter()
            .filter(|it| it.text_ref("ResourceSubType") == Some(&full))
            .collect()
    };
    let disks = of("Virtual Hard Disk");
    assert_eq!(disks.len(), 1);
    assert_eq!(
        disks[0].texts("HostResource").expect("a file"),
        ["D:\\vm\\raw01\\raw01.vhdx"]
    );
    // The path of a part in another is text; it leads to an instance.
    let parent = disks[0].text("Parent").expect("a parent");
    let drive = client
        .get(&CimPath::parse(&parent, &v2()).expect("a path"))
        .expect("the drive");
    let parent = drive.text("Parent").expect("a parent");
    let controller = client
        .get(&CimPath::parse(&parent, &v2()).expect("a path"))
        .expect("it");
    assert_eq!(controller.u16("ResourceType").expect("SCSI"), 6);
    let pass = of("Physical Disk Drive");
    let disk = pass[0].texts("HostResource").expect("a path");
    let disk = client
        .get(&CimPath::parse(&disk[0], &v2()).expect("a path"))
        .expect("the disk");
    assert_eq!(disk.u32("DriveNumber").expect("a number"), 3);
}

#[test]
fn summaries_hold_what_was_asked_for_and_nothing_else() {
    let stage = Stage::new();
    let client = stage.client("HV01");
    request_state(&client, stage.sql01, 2);
    let codes: Vec<u32> = vec![0, 1, 4, 100, 106];
    let output = client
        .invoke(
            &service("Msvm_VirtualSystemManagementService"),
            "GetSummaryInformation",
            &[("RequestedInformation", CimValue::from(codes))],
        )
        .expect("summaries");
    assert_eq!(output.u32("ReturnValue").expect("0"), 0);
    let all = output.instances("SummaryInformation").expect("instances");
    assert_eq!(all.len(), 3);
    let sql = all
        .iter()
        .find(|it| it.text_ref("ElementName") == Some("sql01"))
        .expect("sql01");
    assert_eq!(sql.u16("EnabledState").expect("running"), 2);
    assert_eq!(
        sql.text_ref("GuestOperatingSystem"),
        Some("Windows Server 2022 Datacenter")
    );
    assert_eq!(sql.get("HealthState"), None);
}

#[test]
fn what_a_guest_tells_is_there_while_it_runs() {
    let stage = Stage::new();
    let client = stage.client("HV01");
    let wql = format!(
        "SELECT * FROM Msvm_KvpExchangeComponent WHERE SystemName = '{}'",
        stage.sql01
    );
    let off = client.query(&v2(), &wql).expect("off");
    assert_eq!(off[0].u16s("OperationalStatus").expect("status"), [12]);
    assert_eq!(off[0].get("GuestIntrinsicExchangeItems"), None);
    request_state(&client, stage.sql01, 2);
    let on = client.query(&v2(), &wql).expect("on");
    assert_eq!(on[0].u16s("OperationalStatus").expect("status"), [2]);
    let items = on[0].texts("GuestIntrinsicExchangeItems").expect("items");
    assert!(
        items.iter().any(|it| it.contains("sql01.example.net")),
        "{items:?}"
    );
    let item = wsman::cim::embedded::read(&items[0]).expect("an item");
    assert_eq!(item.u16("Source").expect("2"), 2);
}

#[test]
fn a_japanese_host_says_captions_in_japanese_and_codes_as_ever() {
    let mut plan = Plan::new(WindowsGeneration::Server2019);
    plan.language = Language::Japanese;
    let stage = Stage::of(plan);
    let client = stage.client("HV01");
    let vm = client.get(&stage.system(stage.lin01)).expect("lin01");
    assert_eq!(vm.text_ref("Caption"), Some("仮想マシン"));
    assert_eq!(vm.u16("EnabledState").expect("off"), 3);
}

#[test]
fn a_vm_in_a_cluster_is_found_by_its_resource() {
    let stage = Stage::new();
    let client = stage.client("HV02");
    let rows = client
        .query(
            &mscluster(),
            "SELECT * FROM MSCluster_Resource WHERE Type = 'Virtual Machine'",
        )
        .expect("resources");
    assert_eq!(rows.len(), 1);
    assert_eq!(rows[0].text_ref("OwnerNode"), Some("HV01"));
    // Nobody has seen PrivateProperties on the wire: by default there are none.
    assert_eq!(rows[0].get("PrivateProperties"), None);
    let none = client.query(
        &mscluster(),
        &format!(
            "SELECT * FROM MSCluster_Resource WHERE PrivateProperties.VmID='{}'",
            stage.sql01
        ),
    );
    assert_eq!(none.expect("none").len(), 0);
}
