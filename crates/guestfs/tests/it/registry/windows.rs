//! What hives tell about a Windows installation.

use guestfs::registry::Hive;
use guestfs::registry::windows::{MountTarget, ServiceStart, WindowsFacts};

use crate::corpus::{self, Bytes};

#[test]
fn a_system_hive_tells_names_mounts_drivers_and_integration_services() {
    let Some(bytes) = corpus::bytes("registry/regipy-SYSTEM.xz") else {
        return;
    };
    let hive = Hive::open(Bytes::shared(bytes), &[]).expect("a hive");
    let facts = WindowsFacts::read(None, Some(&hive));
    assert_eq!(facts.damage, Vec::<String>::new());
    assert_eq!(facts.control_set, Some(1));
    assert_eq!(facts.computer_name.as_deref(), Some("WKS-WIN732BITA"));
    let drive = facts
        .mounted_devices
        .iter()
        .find(|mount| mount.name == r"\DosDevices\C:")
        .expect("C:");
    assert!(matches!(
        drive.target,
        MountTarget::Mbr { offset_bytes, .. } if offset_bytes % 512 == 0 && offset_bytes > 0
    ));
    assert!(
        facts
            .boot_drivers
            .iter()
            .any(|driver| driver.name.eq_ignore_ascii_case("disk"))
    );
    assert!(
        facts
            .boot_drivers
            .iter()
            .all(|driver| driver.start == ServiceStart::Boot)
    );
    assert!(facts.shadow_copies.service_start.is_some());
    assert!(facts.time_zone.is_some());
    assert!(!facts.page_files.is_empty());
    assert!(
        facts
            .integration_services
            .iter()
            .any(|service| service.name == "vmbus"),
        "{:?}",
        facts.integration_services
    );
}

#[test]
fn a_software_hive_tells_the_product() {
    let Some(bytes) = corpus::bytes("registry/libguestfs-windows-software") else {
        return;
    };
    let hive = Hive::open(Bytes::shared(bytes), &[]).expect("a hive");
    let facts = WindowsFacts::read(Some(&hive), None);
    assert_eq!(facts.damage, Vec::<String>::new());
    assert_eq!(
        facts.product_name.as_deref(),
        Some("Microsoft Windows 7 Phony Edition")
    );
}
