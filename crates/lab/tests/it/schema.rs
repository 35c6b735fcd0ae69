//! The class tables: that they hold together, and that they have what the reference of Hyper-V names.

use std::fmt::Write as _;

use lab::estate::WindowsGeneration;
use lab::schema::ClassTables;
use wsman::cim::{CimType, ClassName, Namespace};
use wsman::schema::{Arity, ClassSchema};

const NAMED: &str = include_str!("schema/named.txt");

fn tables(generation: WindowsGeneration) -> ClassTables {
    ClassTables::load(generation).expect("tables that hold together")
}

fn class<'t>(tables: &'t ClassTables, name: &str) -> &'t ClassSchema {
    find(tables, name).unwrap_or_else(|| panic!("no class {name}"))
}

fn find<'t>(tables: &'t ClassTables, name: &str) -> Option<&'t ClassSchema> {
    let mut sets = tables.namespaces();
    sets.find_map(|set| set.class(&ClassName::new(name)))
}

#[test]
fn the_tables_of_every_generation_hold_together() {
    for generation in WindowsGeneration::ALL {
        let tables = tables(*generation);
        for namespace in ["root/virtualization/v2", "root/MSCluster", "root/cimv2"] {
            let set = tables
                .namespace(&Namespace::new(namespace))
                .expect(namespace);
            for schema in set.classes() {
                for key in &schema.keys {
                    assert!(
                        schema.properties.contains_key(key),
                        "{}: key {key} of {} is no property",
                        generation.name(),
                        schema.name
                    );
                }
                assert!(tables.origin(set.namespace(), &schema.name).is_some());
            }
        }
    }
}

#[test]
fn everything_that_the_reference_names_is_in_the_tables() {
    let mut missing = String::new();
    for generation in [WindowsGeneration::Server2019, WindowsGeneration::Server2025] {
        let tables = tables(generation);
        let lines = NAMED
            .lines()
            .filter(|line| !line.is_empty() && !line.starts_with('#'));
        let mut count = 0;
        for line in lines {
            count += 1;
            let words: Vec<&str> = line.split_whitespace().collect();
            let schema = class(&tables, words[0]);
            if words[1] == "p" {
                for property in &words[2..] {
                    if !schema.properties.contains_key(*property) {
                        writeln!(missing, "{}: {}.{property}", generation.name(), words[0])
                            .expect("text");
                    }
                }
                continue;
            }
            let found = schema.methods.get(words[2]).map(|method| {
                let names = method.parameters.iter().map(|it| it.name.as_str());
                names.collect::<Vec<_>>()
            });
            if found.as_deref() != Some(&words[3..]) {
                writeln!(
                    missing,
                    "{}: {}.{} has {found:?}",
                    generation.name(),
                    words[0],
                    words[2]
                )
                .expect("text");
            }
        }
        assert!(count > 100, "the list was read");
    }
    assert!(missing.is_empty(), "\n{missing}");
}

#[test]
fn types_that_the_go_packages_lose_come_from_the_documentation() {
    let tables = tables(WindowsGeneration::Server2019);
    let system = class(&tables, "Msvm_ComputerSystem");
    for (property, cim_type, arity) in [
        ("InstallDate", CimType::Datetime, Arity::One),
        ("OperationalStatus", CimType::Uint16, Arity::Many),
        ("OnTimeInMilliseconds", CimType::Uint64, Arity::One),
        ("EnabledState", CimType::Uint16, Arity::One),
    ] {
        let value = &system.properties[property];
        assert_eq!(
            (value.cim_type, value.arity),
            (cim_type, arity),
            "{property}"
        );
    }
    let job = class(&tables, "Msvm_ConcreteJob");
    assert_eq!(job.properties["ElapsedTime"].cim_type, CimType::Datetime);
    let settings = class(&tables, "Msvm_VirtualSystemSettingData");
    assert_eq!(
        settings.properties["VirtualSystemSubType"].cim_type,
        CimType::String
    );
    let service = class(&tables, "Msvm_VirtualSystemManagementService");
    let summary = &service.methods["GetSummaryInformation"].parameters[2];
    assert_eq!(summary.value.cim_type, CimType::Object);
}

#[test]
fn generations_differ_where_microsoft_says_so() {
    let has = |generation, name: &str, property: &str| {
        let tables = tables(generation);
        find(&tables, name).is_some_and(|schema| schema.properties.contains_key(property))
    };
    let snapshot = "Msvm_VirtualSystemSnapshotSettingData";
    assert!(!has(
        WindowsGeneration::Server2016,
        snapshot,
        "GuestBackupType"
    ));
    assert!(has(
        WindowsGeneration::Server2019,
        snapshot,
        "GuestBackupType"
    ));
    let settings = "Msvm_VirtualSystemSettingData";
    assert!(!has(
        WindowsGeneration::Server2016,
        settings,
        "GuestStateFile"
    ));
    assert!(!has(
        WindowsGeneration::Server2019,
        settings,
        "GuestStateIsolationType"
    ));
    assert!(has(
        WindowsGeneration::Server2022,
        settings,
        "GuestStateIsolationType"
    ));
    assert!(has(
        WindowsGeneration::Server2025,
        settings,
        "Vtl2AddressRangeSize"
    ));
    let old = tables(WindowsGeneration::Server2012R2);
    assert!(find(&old, "Msvm_VirtualSystemReferencePoint").is_none());
    assert!(
        !class(&old, "Msvm_ImageManagementService")
            .methods
            .contains_key("GetVirtualDiskChanges")
    );
}

#[test]
fn keys_are_those_of_the_wire() {
    let tables = tables(WindowsGeneration::Server2022);
    for (name, keys) in [
        ("Msvm_ComputerSystem", &["CreationClassName", "Name"][..]),
        ("Msvm_ConcreteJob", &["InstanceID"]),
        (
            "Msvm_VirtualSystemReferencePoint",
            &["InstanceID", "VirtualSystemIdentifier"],
        ),
        (
            "Msvm_VssComponent",
            &[
                "CreationClassName",
                "DeviceID",
                "SystemCreationClassName",
                "SystemName",
            ],
        ),
        ("MSCluster_Resource", &["Name"]),
        ("MSCluster_Node", &["Name"]),
        (
            "Msvm_AffectedJobElement",
            &["AffectedElement", "AffectingElement"],
        ),
    ] {
        assert_eq!(class(&tables, name).keys, keys, "{name}");
    }
}
