//! Planned machines, adapters and clusters of the fake host.

use wsman::cim::{CimInstance, CimPath, CimValue, embedded};
use wsman::message::{Fault, FaultCode};

use super::fake::{FakeNode, Rows, row, texts};

fn text_of(inputs: &[(&str, CimValue)], name: &str) -> String {
    match inputs.iter().find(|it| it.0 == name) {
        Some((_, CimValue::Array(values))) => values
            .first()
            .and_then(CimValue::to_wire_text)
            .unwrap_or_default(),
        Some((_, CimValue::Reference(path))) => path
            .key("Name")
            .or_else(|| path.key("InstanceID"))
            .unwrap_or_default(),
        Some((_, value)) => value.to_wire_text().unwrap_or_default(),
        None => String::new(),
    }
}

pub fn planned(rows: &mut Rows, id: &str, name: &str) {
    let system = row(
        "Msvm_PlannedComputerSystem",
        &[
            ("CreationClassName", "Msvm_PlannedComputerSystem"),
            ("Name", id),
        ],
    );
    rows.of("Msvm_PlannedComputerSystem").push(system);
    let settings = row(
        "Msvm_VirtualSystemSettingData",
        &[
            ("InstanceID", &format!("Microsoft:{id}")),
            ("ElementName", name),
            ("VirtualSystemIdentifier", id),
            ("VirtualSystemType", "Microsoft:Hyper-V:System:Planned"),
        ],
    );
    rows.of("Msvm_VirtualSystemSettingData").push(settings);
    for (class, tail) in [
        ("Msvm_MemorySettingData", "M"),
        ("Msvm_ProcessorSettingData", "P"),
    ] {
        let sizing = row(
            class,
            &[
                ("InstanceID", &format!("Microsoft:{id}\\{tail}")),
                ("VirtualQuantity", "1"),
            ],
        );
        rows.of(class).push(sizing);
    }
}

fn planned_path(id: &str) -> CimPath {
    CimPath::new("root/virtualization/v2", "Msvm_PlannedComputerSystem")
        .with("CreationClassName", "Msvm_PlannedComputerSystem")
        .with("Name", id)
}

fn realize(rows: &mut Rows, id: &str) {
    rows.of("Msvm_PlannedComputerSystem")
        .retain(|it| it.text_ref("Name") != Some(id));
    let settings = rows
        .find("Msvm_VirtualSystemSettingData", &format!("Microsoft:{id}"))
        .expect("settings");
    settings.set("VirtualSystemType", "Microsoft:Hyper-V:System:Realized");
    let system = row(
        "Msvm_ComputerSystem",
        &[
            ("CreationClassName", "Msvm_ComputerSystem"),
            ("Name", id),
            ("EnabledState", "3"),
        ],
    );
    rows.of("Msvm_ComputerSystem").push(system);
}

fn add_resource(
    node: &FakeNode,
    rows: &mut Rows,
    inputs: &[(&str, CimValue)],
) -> wsman::Result<CimInstance> {
    let settings = embedded::read(&text_of(inputs, "ResourceSettings")).expect("settings");
    let owner = text_of(inputs, "AffectedConfiguration");
    node.start(rows, "AddResourceSettings", move |node, rows| {
        let class = settings.class.as_str().to_owned();
        let mut added = settings.clone();
        // As hosts do, ids of media end in L and those of drives in D; the rest is theirs to choose.
        let tail = if class.contains("Storage") { "L" } else { "D" };
        added.set(
            "InstanceID",
            format!("{owner}\\{}\\0\\0\\{tail}", node.fresh_guid()),
        );
        rows.of(&class).push(added);
        Vec::new()
    })
}

fn import(
    node: &FakeNode,
    rows: &mut Rows,
    inputs: &[(&str, CimValue)],
) -> wsman::Result<CimInstance> {
    let file = text_of(inputs, "SystemDefinitionFile");
    let is_new = text_of(inputs, "GenerateNewSystemIdentifier").eq_ignore_ascii_case("true");
    let stem = file
        .rsplit('\\')
        .next()
        .expect("a name")
        .trim_end_matches(".vmcx")
        .to_owned();
    node.start(rows, "ImportSystemDefinition", move |node, rows| {
        let id = if is_new { node.fresh_guid() } else { stem };
        planned(rows, &id, "stored");
        let controller = format!("Microsoft:{id}\\C0FFEE00-0000-4000-8000-000000000001\\0");
        let resource = row(
            "Msvm_ResourceAllocationSettingData",
            &[("InstanceID", &controller), ("ResourceType", "6"), ("ResourceSubType", "Microsoft:Hyper-V:Synthetic SCSI Controller")],
        );
        rows.of("Msvm_ResourceAllocationSettingData").push(resource);
        super::fake::add_disk(rows, &id, &controller, 0, "D:\\old\\system.vhdx");
        super::fake::add_disk(rows, &id, &controller, 1, "D:\\old\\data.vhdx");
        let connection = row(
            "Msvm_EthernetPortAllocationSettingData",
            &[("InstanceID", &format!("Microsoft:{id}\\NIC\\C")), ("EnabledState", "2"), ("LastKnownSwitchName", "lan")],
        )
        .with(
            "HostResource",
            texts(&["Msvm_VirtualEthernetSwitch.CreationClassName=\"Msvm_VirtualEthernetSwitch\",Name=\"0000-else-where\""]),
        );
        rows.of("Msvm_EthernetPortAllocationSettingData").push(connection);
        vec![planned_path(&id)]
    })
}

pub fn invoke(
    node: &FakeNode,
    rows: &mut Rows,
    path: &CimPath,
    method: &str,
    inputs: &[(&str, CimValue)],
) -> wsman::Result<CimInstance> {
    match method {
        "DefinePlannedSystem" => {
            let settings = embedded::read(&text_of(inputs, "SystemSettings")).expect("settings");
            node.start(rows, method, move |node, rows| {
                let id = node.fresh_guid();
                planned(rows, &id, &settings.text("ElementName").expect("a name"));
                vec![planned_path(&id)]
            })
        }
        "ImportSystemDefinition" => import(node, rows, inputs),
        "AddResourceSettings" => add_resource(node, rows, inputs),
        "RemoveResourceSettings" => {
            let id = text_of(inputs, "ResourceSettings");
            let id = match inputs.first() {
                Some((_, CimValue::Array(values))) => match values.first() {
                    Some(CimValue::Reference(path)) => path.key("InstanceID").expect("an id"),
                    _ => id,
                },
                _ => id,
            };
            node.start(rows, method, move |_, rows| {
                for found in rows.classes.values_mut() {
                    found.retain(|it| it.text_ref("InstanceID") != Some(id.as_str()));
                }
                Vec::new()
            })
        }
        "RealizePlannedSystem" => {
            let id = text_of(inputs, "PlannedSystem");
            node.start(rows, method, move |_, rows| {
                realize(rows, &id);
                Vec::new()
            })
        }
        "BringOnline"
        | "TakeOffline"
        | "AddPossibleOwner"
        | "RemovePossibleOwner"
        | "AddVirtualMachine"
        | "MoveToNewNode"
        | "DestroyGroup" => cluster(rows, path, method, inputs),
        _ => Err(Fault::new(FaultCode::ActionNotSupported).into_error()),
    }
}

fn cluster(
    rows: &mut Rows,
    path: &CimPath,
    method: &str,
    inputs: &[(&str, CimValue)],
) -> wsman::Result<CimInstance> {
    let name = path.key("Name").unwrap_or_default();
    if method == "AddVirtualMachine" {
        add_role(rows, &text_of(inputs, "VirtualMachine"), "HV01");
        return Ok(CimInstance::new("Output"));
    }
    if method == "DestroyGroup" {
        rows.of("MSCluster_ResourceGroup")
            .retain(|it| it.text_ref("Name") != Some(&name));
        rows.of("MSCluster_Resource")
            .retain(|it| it.text_ref("OwnerGroup") != Some(&name));
        return Ok(CimInstance::new("Output"));
    }
    let class = path.class.as_str().to_owned();
    let found = rows
        .of(&class)
        .iter_mut()
        .find(|it| it.text_ref("Name") == Some(&name));
    let Some(row) = found else {
        return Err(Fault::new(FaultCode::DestinationUnreachable).into_error());
    };
    match method {
        "BringOnline" => row.set("State", "0"),
        "TakeOffline" => row.set("State", "1"),
        "AddPossibleOwner" | "RemovePossibleOwner" => {
            let mut owners = row.texts("TestOwners").expect("texts");
            let node = text_of(inputs, "NodeName");
            owners.retain(|it| *it != node);
            if method == "AddPossibleOwner" {
                owners.push(node);
            }
            let owners: Vec<&str> = owners.iter().map(String::as_str).collect();
            row.set("TestOwners", texts(&owners));
        }
        _ => {}
    }
    Ok(CimInstance::new("Output"))
}

/// A cluster of these nodes on every node's rows.
pub fn add_cluster(rows: &mut Rows, names: &[&str]) {
    rows.of("MSCluster_Cluster")
        .push(row("MSCluster_Cluster", &[("Name", "CL1")]));
    for name in names {
        let node = row(
            "MSCluster_Node",
            &[("Name", name), ("State", "0"), ("BuildNumber", "20348")],
        );
        rows.of("MSCluster_Node").push(node);
    }
    let unknown = row(
        "MSCluster_Node",
        &[("Name", "HV99"), ("State", "4294967295")],
    );
    rows.of("MSCluster_Node").push(unknown);
    rows.of("MSCluster_ResourceGroup");
    rows.of("MSCluster_Resource");
    rows.of("MSCluster_ClusterSharedVolume").push(row(
        "MSCluster_ClusterSharedVolume",
        &[("Name", "C:\\ClusterStorage\\Volume1"), ("FaultState", "1")],
    ));
    rows.of("MSCluster_ClusterSharedVolumeToNode");
}

/// A role of a machine, its id in the private properties.
pub fn add_role(rows: &mut Rows, vm: &str, owner: &str) {
    let group = format!("role {vm}");
    rows.of("MSCluster_ResourceGroup").push(row(
        "MSCluster_ResourceGroup",
        &[
            ("Name", &group),
            ("GroupType", "111"),
            ("OwnerNode", owner),
            ("State", "0"),
            ("Priority", "2000"),
        ],
    ));
    let private = row(
        "MSCluster_Property",
        &[("VmID", &vm.to_lowercase()), ("OfflineAction", "1")],
    );
    rows.of("MSCluster_Resource").push(
        row(
            "MSCluster_Resource",
            &[
                ("Name", &format!("Virtual Machine {vm}")),
                ("Type", "Virtual Machine"),
                ("OwnerGroup", &group),
                ("OwnerNode", owner),
            ],
        )
        .with("PrivateProperties", CimValue::Instance(Box::new(private))),
    );
}
