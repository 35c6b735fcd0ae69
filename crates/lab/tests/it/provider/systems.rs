//! Systems are defined, given resources, changed, and taken apart.

use wsman::cim::{CimInstance, CimPath, CimValue};
use wsman::client::CimClient;
use wsman::message::hresult;

use super::stage::{Stage, request_state, service, settings, succeed, v2};

const VSMS: &str = "Msvm_VirtualSystemManagementService";

fn property(name: &str, cim_type: &str, value: &str) -> String {
    format!("<PROPERTY NAME=\"{name}\" TYPE=\"{cim_type}\"><VALUE>{value}</VALUE></PROPERTY>")
}

fn array(name: &str, value: &str) -> String {
    format!(
        "<PROPERTY.ARRAY NAME=\"{name}\" TYPE=\"string\"><VALUE.ARRAY><VALUE>{value}</VALUE></VALUE.ARRAY></PROPERTY.ARRAY>"
    )
}

fn instance(class: &str, properties: &[String]) -> String {
    format!(
        "<INSTANCE CLASSNAME=\"{class}\">{}</INSTANCE>",
        properties.concat()
    )
}

/// What a finished job made, by class.
fn made(client: &dyn CimClient, job: &CimInstance, class: &str) -> CimPath {
    let id = job.text("InstanceID").expect("an id");
    let wql = format!(
        "ASSOCIATORS OF {{Msvm_ConcreteJob.InstanceID='{id}'}} WHERE AssocClass = Msvm_AffectedJobElement ResultClass = {class}"
    );
    let rows = client.query(&v2(), &wql).expect("what the job made");
    let keys: &[&str] = match class {
        "Msvm_ComputerSystem" | "Msvm_PlannedComputerSystem" => &["CreationClassName", "Name"],
        _ => &["InstanceID"],
    };
    let row = rows.last().unwrap_or_else(|| panic!("no {class}"));
    row.path(keys).expect("a path").or_in(&v2())
}

trait InNamespace {
    fn or_in(self, namespace: &wsman::cim::Namespace) -> Self;
}

impl InNamespace for CimPath {
    fn or_in(mut self, namespace: &wsman::cim::Namespace) -> Self {
        if self.namespace.is_unspecified() {
            self.namespace = namespace.clone();
        }
        self
    }
}

fn add(client: &dyn CimClient, of: &CimPath, text: &str) -> CimInstance {
    let output = client
        .invoke(
            &service(VSMS),
            "AddResourceSettings",
            &[
                ("AffectedConfiguration", CimValue::from(of)),
                ("ResourceSettings", CimValue::from(vec![text])),
            ],
        )
        .expect("AddResourceSettings");
    succeed(client, &output)
}

/// Defines a system of generation 2; its path.
fn define(client: &dyn CimClient, name: &str) -> CimPath {
    let text = instance(
        "Msvm_VirtualSystemSettingData",
        &[
            property("ElementName", "string", name),
            property(
                "VirtualSystemSubType",
                "string",
                "Microsoft:Hyper-V:SubType:2",
            ),
            property(
                "ConfigurationDataRoot",
                "string",
                &format!("D:\\vm\\{name}"),
            ),
        ],
    );
    let output = client
        .invoke(
            &service(VSMS),
            "DefineSystem",
            &[("SystemSettings", CimValue::from(text))],
        )
        .expect("DefineSystem");
    let job = succeed(client, &output);
    made(client, &job, "Msvm_ComputerSystem")
}

/// Makes an empty disk, as a job of the image service.
fn create_disk(client: &dyn CimClient, file: &str) {
    let disk = instance(
        "Msvm_VirtualHardDiskSettingData",
        &[
            property("Path", "string", file),
            property("Format", "uint16", "3"),
            property("Type", "uint16", "3"),
            property("MaxInternalSize", "uint64", "16777216"),
        ],
    );
    let output = client
        .invoke(
            &service("Msvm_ImageManagementService"),
            "CreateVirtualHardDisk",
            &[("VirtualDiskSettingData", CimValue::from(disk))],
        )
        .expect("CreateVirtualHardDisk");
    assert_eq!(
        output.reference("Job").expect("a job").class,
        "Msvm_StorageJob"
    );
    succeed(client, &output);
}

fn sub_type(name: &str) -> String {
    property(
        "ResourceSubType",
        "string",
        &format!("Microsoft:Hyper-V:{name}"),
    )
}

fn parent(path: &CimPath) -> String {
    let text = path.to_text(Some("HV01")).replace('"', "&quot;");
    property("Parent", "string", &text)
}

/// Gives a system a controller, a drive in slot 3 and a disk in it; paths of drive and disk.
fn add_disk(client: &dyn CimClient, of: &CimPath, file: &str) -> (CimPath, CimPath) {
    let rasd = "Msvm_ResourceAllocationSettingData";
    let controller = instance(rasd, &[sub_type("Synthetic SCSI Controller")]);
    let controller = made(client, &add(client, of, &controller), rasd);
    let drive = instance(
        rasd,
        &[
            sub_type("Synthetic Disk Drive"),
            parent(&controller),
            property("AddressOnParent", "string", "3"),
        ],
    );
    let drive = made(client, &add(client, of, &drive), rasd);
    let id = drive.key("InstanceID").expect("an id");
    assert!(id.ends_with("\\0\\3\\D"), "{id}");
    create_disk(client, file);
    let sasd = "Msvm_StorageAllocationSettingData";
    let medium = instance(
        sasd,
        &[
            sub_type("Virtual Hard Disk"),
            parent(&drive),
            array("HostResource", file),
        ],
    );
    let medium = made(client, &add(client, of, &medium), sasd);
    (drive, medium)
}

#[test]
fn a_system_is_defined_given_a_disk_started_and_taken_apart_again() {
    let stage = Stage::new();
    let client = stage.client("HV01");
    let vsms = service(VSMS);
    let system = define(&client, "new01");
    let guid = system.key("Name").expect("a GUID");
    let file = "D:\\vm\\new01\\new01.vhdx";
    let (drive, medium) = add_disk(&client, &settings(&guid), file);
    let id = guid.parse().expect("an id");
    request_state(&client, id, 2);
    request_state(&client, id, 3);
    let remove = |path: &CimPath| {
        client.invoke(
            &vsms,
            "RemoveResourceSettings",
            &[(
                "ResourceSettings",
                CimValue::from(vec![CimValue::from(path)]),
            )],
        )
    };
    let error = remove(&drive).expect_err("it holds a medium");
    let code = error.fault().and_then(|it| it.provider.as_ref()?.hresult);
    assert_eq!(code, Some(hresult::FAILED));
    succeed(&client, &remove(&medium).expect("the medium"));
    succeed(&client, &remove(&drive).expect("the drive"));
    let parameters = [("AffectedSystem", CimValue::from(&system))];
    let output = client.invoke(&vsms, "DestroySystem", &parameters);
    succeed(&client, &output.expect("DestroySystem"));
    assert!(client.get(&system).is_err());
}

#[test]
fn only_what_differs_is_a_change_and_only_what_is_modelled_is_made() {
    let stage = Stage::new();
    let client = stage.client("HV01");
    let guid = stage.lin01.to_string();
    let rows = client
        .query(
            &v2(),
            &format!(
                "ASSOCIATORS OF {{Msvm_VirtualSystemSettingData.InstanceID='Microsoft:{guid}'}} WHERE \
                 ResultClass = Msvm_MemorySettingData"
            ),
        )
        .expect("memory");
    let id = rows[0].text("InstanceID").expect("an id");
    let modify = |properties: &[String]| {
        let mut all = vec![property("InstanceID", "string", &id)];
        all.extend_from_slice(properties);
        let text = instance("Msvm_MemorySettingData", &all);
        client
            .invoke(
                &service(VSMS),
                "ModifyResourceSettings",
                &[("ResourceSettings", CimValue::from(vec![text]))],
            )
            .expect("ModifyResourceSettings")
    };
    let output = modify(&[property("VirtualQuantity", "uint64", "4096")]);
    succeed(&client, &output);
    let now = client
        .get(&rows[0].path(&["InstanceID"]).expect("a path").or_in(&v2()))
        .expect("it");
    assert_eq!(now.u64("VirtualQuantity").expect("MiB"), 4096);
    let refused = modify(&[property("SgxEnabled", "boolean", "TRUE")]);
    assert_eq!(refused.u32("ReturnValue").expect("a code"), 32770);
}

#[test]
fn a_vm_is_marked_by_its_host_and_the_mark_is_read_back() {
    let stage = Stage::new();
    let client = stage.client("HV01");
    let item = instance(
        "Msvm_KvpExchangeDataItem",
        &[
            property("Name", "string", "backup"),
            property("Data", "string", "job 7"),
            property("Source", "uint16", "4"),
        ],
    );
    let call = |method: &str| {
        let output = client
            .invoke(
                &service(VSMS),
                method,
                &[
                    ("TargetSystem", CimValue::from(stage.system(stage.sql01))),
                    ("DataItems", CimValue::from(vec![item.as_str()])),
                ],
            )
            .expect(method);
        output.u32("ReturnValue").expect("a code")
    };
    assert!(matches!(call("AddKvpItems"), 0 | 4096));
    assert_eq!(call("AddKvpItems"), 32773, "it is there already");
    let rows = client
        .query(
            &v2(),
            &format!(
                "ASSOCIATORS OF {{Msvm_VirtualSystemSettingData.InstanceID='Microsoft:{}'}} WHERE \
                 ResultClass = Msvm_KvpExchangeComponentSettingData",
                stage.sql01
            ),
        )
        .expect("settings");
    let items = rows[0].texts("HostOnlyItems").expect("items");
    assert!(items[0].contains("job 7"), "{items:?}");
    assert!(matches!(call("RemoveKvpItems"), 0 | 4096));
}

#[test]
fn a_system_moves_to_another_host_by_export_import_and_realize() {
    let stage = Stage::new();
    let client = stage.client("HV01");
    let vsms = service(VSMS);
    let output = client
        .invoke(
            &vsms,
            "ExportSystemDefinition",
            &[
                ("ComputerSystem", CimValue::from(stage.system(stage.lin01))),
                ("ExportDirectory", CimValue::from("D:\\export")),
                ("ExportSettingData", CimValue::from("")),
            ],
        )
        .expect("ExportSystemDefinition");
    succeed(&client, &output);
    let file = format!("D:\\export\\lin01\\Virtual Machines\\{}.vmcx", stage.lin01);
    let import = |new_id: bool| {
        client
            .invoke(
                &vsms,
                "ImportSystemDefinition",
                &[
                    ("SystemDefinitionFile", CimValue::from(file.as_str())),
                    ("SnapshotFolder", CimValue::from("")),
                    ("GenerateNewSystemIdentifier", CimValue::from(new_id)),
                ],
            )
            .expect("ImportSystemDefinition")
    };
    let job = succeed(&client, &import(true));
    let planned = made(&client, &job, "Msvm_PlannedComputerSystem");
    let validated = client
        .invoke(
            &vsms,
            "ValidatePlannedSystem",
            &[("PlannedSystem", CimValue::from(&planned))],
        )
        .expect("ValidatePlannedSystem");
    succeed(&client, &validated);
    let realized = client
        .invoke(
            &vsms,
            "RealizePlannedSystem",
            &[("PlannedSystem", CimValue::from(&planned))],
        )
        .expect("RealizePlannedSystem");
    let job = succeed(&client, &realized);
    let system = made(&client, &job, "Msvm_ComputerSystem");
    assert_eq!(
        client.get(&system).expect("a VM").text_ref("ElementName"),
        Some("lin01")
    );
}
