//! Configurations of Hyper-V VMs: the given one, ones built by hand in both forms, logs to replay, and lies.

mod build;

use std::time::{Duration, Instant};

use guestfs::ErrorKind;
use guestfs::vmconfig::{
    ConfigValue, ControllerKind, DriveKind, Generation, Node, StoredConfiguration, StoredForm,
};

use crate::corpus::{self, Bytes, Dice};
use build::{Built, V};

const GIVEN: &str = "vmconfig/dissect-test.vmcx";

fn read(bytes: Vec<u8>) -> guestfs::Result<StoredConfiguration> {
    StoredConfiguration::read(&Bytes::shared(bytes))
}

/// A tree as the expected one is written: bytes in hex.
fn json(node: &Node) -> serde_json::Value {
    let mut map = serde_json::Map::new();
    for (name, value) in node.entries() {
        let value = match value {
            ConfigValue::Integer(number) => (*number).into(),
            ConfigValue::Unsigned(number) => (*number).into(),
            ConfigValue::Double(number) => (*number).into(),
            ConfigValue::Text(text) => text.clone().into(),
            ConfigValue::Bool(flag) => (*flag).into(),
            ConfigValue::Bytes(bytes) => {
                let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
                hex.into()
            }
            ConfigValue::Node(node) => json(node),
        };
        assert!(map.insert(name.clone(), value).is_none(), "{name} twice");
    }
    map.into()
}

#[test]
fn the_given_configuration_has_the_tree_that_another_tool_sees() {
    let Some(bytes) = corpus::bytes(GIVEN) else {
        return;
    };
    let expected = corpus::bytes("expected/dissect-test.vmcx.json").expect("given");
    let expected: serde_json::Value = serde_json::from_slice(&expected).expect("JSON");
    let stored = read(bytes).expect("a configuration");
    assert_eq!(stored.damage, Vec::<String>::new());
    assert_eq!(stored.replayed_entries, 0);
    let StoredForm::Container(version) = stored.form else {
        panic!("{:?}", stored.form);
    };
    assert_eq!(version.to_string(), "4.0");
    assert_eq!(json(&stored.tree), expected["tree"]);

    let vm = stored.model().expect("a VM");
    assert_eq!(vm.name.as_deref(), Some("Other Location"));
    assert_eq!(
        vm.id.as_deref(),
        Some("282874FC-59D6-4F30-BC04-5FDD909C82E0")
    );
    assert_eq!(vm.generation, Some(Generation::One));
    assert_eq!(vm.version, Some((9, 0)));
    assert_eq!(vm.processors, Some(1));
    assert_eq!(vm.memory.size_mib, Some(1024));
    assert_eq!(vm.memory.is_dynamic, Some(false));
    assert_eq!(vm.security.is_secure_boot, Some(false));
    assert_eq!(vm.security.is_tpm, Some(false));
    assert!(vm.checkpoints.is_empty() && !vm.is_checkpoint);
    let disk = &vm.disks[0];
    assert_eq!(
        (
            disk.controller,
            disk.controller_number,
            disk.location,
            &disk.kind
        ),
        (ControllerKind::Ide, 0, 0, &DriveKind::VirtualDisk)
    );
    assert_eq!(
        disk.path.as_deref(),
        Some(r"C:\Users\Public\Documents\Hyper-V\Virtual Hard Disks\Other Location.vhdx")
    );
    assert_eq!(
        vm.disks.iter().filter(|disk| disk.path.is_some()).count(),
        1
    );
    assert_eq!(vm.network.len(), 1);
    assert_eq!(
        vm.network[0].mac_address.as_deref(),
        Some("00-00-00-00-00-00")
    );
    let text = vm.to_string();
    assert!(text.contains("IDE 0:0: C:\\Users"), "{text}");
    assert!(
        stored
            .tree
            .to_string()
            .contains("configuration/settings/processors/count = 1\n")
    );
}

/// A second-generation VM with two SCSI controllers, a TPM and a checkpoint.
#[expect(clippy::too_many_lines, reason = "one tree, seen whole")]
fn second_generation() -> V {
    const SCSI: &str = "d422512d-2bf2-4752-809d-7b82b5fcb1b4";
    let device = |device: &str, instance: &str, name: &str| {
        V::node(&[
            ("device", V::text(device)),
            ("instance", V::text(instance)),
            ("name", V::text(name)),
        ])
    };
    let drive = |path: &str| V::node(&[("type", V::text("VHD")), ("pathname", V::text(path))]);
    let controller = |drives: &[(&str, V)]| V::node(&[("controller0", V::node(drives))]);
    let (a, b) = (
        "11111111-0000-4000-8000-000000000001",
        "11111111-0000-4000-8000-000000000002",
    );
    let (nic, tpm) = (
        "11111111-0000-4000-8000-000000000003",
        "11111111-0000-4000-8000-000000000004",
    );
    let (a_key, b_key) = (format!("_{a}_"), format!("_{}_", b.to_uppercase()));
    let (nic_key, tpm_key) = (format!("_{nic}_"), format!("_{tpm}_"));
    V::node(&[(
        "configuration",
        V::node(&[
            (
                "properties",
                V::node(&[
                    ("name", V::text("vm <2> & \"more\" 仮想")),
                    ("subtype", V::Integer(1)),
                    ("version", V::Integer(0x0c00)),
                    ("type_id", V::text("Virtual Machines")),
                    ("creation_time", V::Bytes((0..=255).collect())),
                ]),
            ),
            (
                "manifest",
                V::node(&[
                    ("size", V::Integer(4)),
                    ("vdev001", device(SCSI, a, "Synthetic SCSI Controller")),
                    ("vdev002", device(SCSI, b, "Synthetic SCSI Controller")),
                    (
                        "vdev003",
                        device("2FC216B0-D2E2-4967-9B6D-B8A5C9CA2778", nic, "Port"),
                    ),
                    (
                        "vdev004",
                        device("736e6aa9-a3f8-49c0-9550-a963214d259a", tpm, "TPM"),
                    ),
                ]),
            ),
            (
                "global_settings",
                V::node(&[(
                    "snapshots",
                    V::node(&[(
                        "list",
                        V::node(&[
                            ("size", V::Integer(1)),
                            (
                                "node0",
                                V::node(&[(
                                    "guid",
                                    V::text("22222222-0000-4000-8000-00000000000A"),
                                )]),
                            ),
                        ]),
                    )]),
                )]),
            ),
            (
                a_key.as_str(),
                controller(&[
                    ("drive0", drive("C:\\a.vhdx")),
                    ("drive63", drive("C:\\b.vhdx")),
                ]),
            ),
            (
                b_key.as_str(),
                controller(&[("drive1", drive("\\\\server\\share\\c.vhdx"))]),
            ),
            (
                nic_key.as_str(),
                V::node(&[
                    ("MacAddress", V::text("00155D010203")),
                    ("SwitchName", V::text("lan")),
                ]),
            ),
            (
                tpm_key.as_str(),
                V::node(&[("secure_boot_enabled", V::Bool(true))]),
            ),
            ("long", V::text(&"x".repeat(5000))),
            ("fraction", V::Double(0.25)),
        ]),
    )])
}

#[test]
fn the_same_settings_read_the_same_from_a_container_and_from_xml() {
    let settings = second_generation();
    let container = read(build::container(&settings, 0x0400).bytes).expect("a container");
    assert_eq!(container.damage, Vec::<String>::new());
    for xml in [
        build::xml(&settings).into_bytes(),
        build::utf16(&build::xml(&settings)),
    ] {
        let xml = read(xml).expect("XML");
        assert_eq!(xml.form, StoredForm::Xml);
        assert_eq!(xml.tree, container.tree);
    }
    let vm = container.model().expect("a VM");
    assert_eq!(vm.name.as_deref(), Some("vm <2> & \"more\" 仮想"));
    assert_eq!(vm.generation, Some(Generation::Two));
    assert_eq!(vm.version, Some((12, 0)));
    assert_eq!(vm.security.is_tpm, Some(true));
    assert_eq!(vm.security.is_secure_boot, Some(true));
    assert_eq!(vm.checkpoints, ["22222222-0000-4000-8000-00000000000A"]);
    let places: Vec<(u32, u32)> = vm
        .disks
        .iter()
        .map(|disk| (disk.controller_number, disk.location))
        .collect();
    assert_eq!(places, [(0, 0), (0, 63), (1, 1)]);
    assert_eq!(vm.network[0].switch.as_deref(), Some("lan"));
}

#[test]
fn versions_that_are_not_known_are_refused_by_name() {
    for (version, text) in [(0x0100, "1.0"), (0x0500, "5.0"), (0x0401, "4.1")] {
        let error = read(build::container(&second_generation(), version).bytes)
            .expect_err("a version that is not known");
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        assert!(error.to_string().contains(text), "{error}");
    }
}

#[test]
fn a_commit_that_was_logged_and_not_written_is_read_and_a_torn_one_is_not() {
    let built = build::container(&second_generation(), 0x0400);
    let whole = read(built.bytes.clone()).expect("a container");
    // The newest commit changed a key table in place and was cut in the middle.
    let Built {
        bytes,
        key_table,
        log,
    } = built;
    let table = bytes[key_table..key_table + 4096].to_vec();
    let mut torn = bytes.clone();
    torn[key_table + 10..key_table + 4096].fill(0xEE);
    assert!(read(torn.clone()).map_or(true, |stored| !stored.damage.is_empty()));
    build::log(&mut torn, log, &[(key_table, &table)]);
    let replayed = read(torn.clone()).expect("a container");
    assert_eq!(replayed.replayed_entries, 1);
    assert_eq!(replayed.tree, whole.tree);
    // The log itself is torn: its commit had not begun.
    let mut half = bytes;
    build::log(&mut half, log, &[(key_table, &[0xEE; 4096])]);
    half[log + 4096 + 100] ^= 1;
    let before = read(half).expect("a container");
    assert_eq!(before.replayed_entries, 0);
    assert_eq!(before.tree, whole.tree);
    assert!(
        before.damage[0].contains("replay log"),
        "{:?}",
        before.damage
    );
}

#[test]
fn the_other_header_stands_in_for_a_damaged_one() {
    let Some(mut bytes) = corpus::bytes(GIVEN) else {
        return;
    };
    let whole = read(bytes.clone()).expect("a configuration");
    bytes[9] ^= 1;
    assert_eq!(
        read(bytes.clone()).expect("the older header").tree,
        whole.tree
    );
    bytes[4096 + 9] ^= 1;
    let error = read(bytes).expect_err("no header is whole");
    assert_eq!(error.kind(), ErrorKind::Corrupt);
}

#[test]
fn xml_that_lies_is_refused_with_a_typed_error() {
    let deep = "<a>".repeat(100_000);
    let cases: &[(&str, ErrorKind)] = &[
        ("<configuration>", ErrorKind::Corrupt),
        ("<a><b type=\"integer\">x</b></a>", ErrorKind::Corrupt),
        ("<a><b type=\"bytes\">???</b></a>", ErrorKind::Corrupt),
        ("<a><b type=\"thing\">1</b></a>", ErrorKind::Corrupt),
        (
            "<!DOCTYPE a [<!ENTITY b \"c\">]><a>&b;</a>",
            ErrorKind::Unsupported,
        ),
        ("<a><b type=\"string\">&b;</b></a>", ErrorKind::Corrupt),
        (&deep, ErrorKind::Limit),
    ];
    for (text, kind) in cases {
        let error = read(text.as_bytes().to_vec()).expect_err(text);
        assert_eq!(
            error.kind(),
            *kind,
            "{}: {error}",
            &text[..text.len().min(60)]
        );
    }
}

#[test]
fn lies_in_a_container_cost_little_and_never_panic() {
    let built = build::container(&second_generation(), 0x0400).bytes;
    let given = corpus::bytes(GIVEN);
    for seed in 0..2000 {
        let mut dice = Dice::new(seed);
        let mut bytes = match &given {
            Some(given) if seed % 2 == 0 => given.clone(),
            _ => built.clone(),
        };
        for _ in 0..=dice.below(12) {
            let from = if dice.below(4) == 0 { 0 } else { 8192 };
            dice.damage(&mut bytes, from);
        }
        if seed % 3 != 0 {
            build::fix_checksums(&mut bytes);
        }
        let begin = Instant::now();
        if let Ok(stored) = read(bytes) {
            let _ = stored.model().map(|vm| vm.to_string());
            let _ = stored.tree.to_string();
        }
        assert!(begin.elapsed() < Duration::from_secs(2), "seed {seed}");
    }
}
