//! Which rules of online backups a machine keeps: each rule on made-up facts, then a disk with the hives of a Windows.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use block::ReadAt;
use engine::inside::eligibility::{
    DriveLetter, EligibilityFacts, GuestContent, GuestFamily, GuestSystem, GuestVolume, RuleReport,
    ShadowStorage, Verdict, WindowsBackupFacts, judge,
};
use engine::inside::{InsideDisks, inspect};
use guestfs::registry::windows::{IntegrationService, ServiceStart};

const GIB: u64 = 1 << 30;
const MIB: u64 = 1 << 20;

fn service(name: &str, start: ServiceStart) -> IntegrationService {
    IntegrationService {
        name: name.to_owned(),
        purpose: "",
        start,
    }
}

fn windows() -> WindowsBackupFacts {
    WindowsBackupFacts {
        version: Some((10, 0)),
        services: vec![service("vmicvss", ServiceStart::Manual)],
        integration_version: None,
        shadow_copy_service: Some(ServiceStart::Manual),
        is_complete: true,
    }
}

fn ntfs(number: usize, size_bytes: u64, free_bytes: u64) -> GuestVolume {
    GuestVolume {
        number,
        size_bytes: Some(size_bytes),
        letter: DriveLetter::Is("C:".to_owned()),
        content: GuestContent::Ntfs {
            free_bytes: Some(free_bytes),
            storage: ShadowStorage::NotSet,
        },
    }
}

fn holding(content: GuestContent) -> GuestVolume {
    GuestVolume {
        content,
        ..ntfs(7, GIB, GIB)
    }
}

fn stored(storage: ShadowStorage) -> GuestVolume {
    holding(GuestContent::Ntfs {
        free_bytes: Some(GIB),
        storage,
    })
}

fn machine(windows: WindowsBackupFacts, volumes: Vec<GuestVolume>) -> EligibilityFacts {
    EligibilityFacts {
        systems: vec![GuestSystem {
            volume: 1,
            family: GuestFamily::Windows(windows),
        }],
        dynamic_disks: Vec::new(),
        volumes,
    }
}

fn rule(rules: &[RuleReport], code: &str) -> RuleReport {
    let mut found = rules.iter().filter(|rule| rule.code.to_string() == code);
    let one = found.next().expect(code).clone();
    assert_eq!(found.next(), None, "{code} twice");
    assert_eq!(one.remedy.is_some(), one.verdict == Verdict::Broken);
    assert!(!one.measured.is_empty() && one.remedy.as_deref() != Some(""));
    one
}

fn verdict(facts: &EligibilityFacts, code: &str) -> Verdict {
    rule(&judge(facts), code).verdict
}

fn of_windows(windows: WindowsBackupFacts, code: &str) -> Verdict {
    verdict(&machine(windows, vec![ntfs(1, GIB, GIB)]), code)
}

fn of_volume(volume: GuestVolume, code: &str) -> Verdict {
    verdict(
        &machine(windows(), vec![ntfs(1, 2 * GIB, GIB), volume]),
        code,
    )
}

#[test]
fn a_windows_that_keeps_every_rule_leaves_to_the_host_what_only_that_can_tell() {
    let rules = judge(&machine(windows(), vec![ntfs(1, 60 * GIB, 20 * GIB)]));
    let told: Vec<(String, Verdict)> = rules
        .iter()
        .map(|rule| (rule.code.to_string(), rule.verdict))
        .collect();
    let expected = [
        ("HK-E-OS", Verdict::Met),
        ("HK-E-SERVICE", Verdict::Met),
        ("HK-E-DYNAMIC", Verdict::Met),
        ("HK-E-NTFS", Verdict::Met),
        ("HK-E-ROOM", Verdict::Met),
        ("HK-E-STORAGE", Verdict::Met),
        ("HK-E-RUNNING", Verdict::Unknown),
        ("HK-E-CLUSTER", Verdict::Unknown),
        ("HK-E-WRITERS", Verdict::Unknown),
    ];
    assert_eq!(told, expected.map(|(code, it)| (code.to_owned(), it)));
    let room = rule(&rules, "HK-E-ROOM").measured;
    assert_eq!(room, "volume 1 (C:): 61440 MiB, 20480 MiB free");
}

#[test]
fn windows_before_server_2003_and_a_disabled_vss_are_told() {
    let of = |version, shadow_copy_service| {
        let facts = WindowsBackupFacts {
            version,
            shadow_copy_service,
            ..windows()
        };
        of_windows(facts, "HK-E-OS")
    };
    let manual = Some(ServiceStart::Manual);
    for (version, expected) in [
        (Some((4, 0)), Verdict::Broken),
        (Some((5, 0)), Verdict::Broken),
        (Some((5, 1)), Verdict::Broken),
        (Some((5, 2)), Verdict::Met),
        (Some((6, 0)), Verdict::Met),
        (Some((10, 0)), Verdict::Met),
        (None, Verdict::Unknown),
    ] {
        assert_eq!(of(version, manual), expected, "{version:?}");
    }
    let disabled = Some(ServiceStart::Disabled);
    assert_eq!(of(Some((10, 0)), disabled), Verdict::Broken);
    assert_eq!(of(None, disabled), Verdict::Broken);
    assert_eq!(of(Some((10, 0)), None), Verdict::Unknown);
}

#[test]
fn the_backup_service_must_be_there_and_may_not_be_disabled() {
    let of = |services: Vec<IntegrationService>, is_complete| {
        let facts = WindowsBackupFacts {
            services,
            is_complete,
            ..windows()
        };
        of_windows(facts, "HK-E-SERVICE")
    };
    for (start, expected) in [
        (ServiceStart::Automatic, Verdict::Met),
        (ServiceStart::Manual, Verdict::Met),
        (ServiceStart::Disabled, Verdict::Broken),
        (ServiceStart::Other(9), Verdict::Unknown),
    ] {
        let services = vec![
            service("VMICVSS", start),
            service("vmicheartbeat", ServiceStart::Disabled),
        ];
        assert_eq!(of(services.clone(), true), expected, "{start:?}");
        assert_eq!(of(services, false), expected, "{start:?}");
    }
    let others = vec![service("vmicheartbeat", ServiceStart::Manual)];
    assert_eq!(of(others.clone(), true), Verdict::Broken);
    assert_eq!(of(others, false), Verdict::Unknown);
    assert_eq!(of(Vec::new(), false), Verdict::Unknown);
}

#[test]
fn dynamic_disks_are_told_by_number_and_group() {
    let mut facts = machine(windows(), vec![ntfs(1, GIB, GIB)]);
    facts.dynamic_disks = vec![(2, "WIN-Dg0".to_owned())];
    let rule = rule(&judge(&facts), "HK-E-DYNAMIC");
    assert_eq!(rule.verdict, Verdict::Broken);
    assert_eq!(rule.measured, "disk 2 is a dynamic disk of WIN-Dg0");
}

#[test]
fn every_volume_of_windows_must_be_ntfs() {
    let of = |content| of_volume(holding(content), "HK-E-NTFS");
    assert_eq!(of(GuestContent::Other("fat32")), Verdict::Broken);
    assert_eq!(
        of(GuestContent::NotCounted("EFI system partition")),
        Verdict::Met
    );
    let closed = || GuestContent::Closed("BitLocker, and no key opened it".to_owned());
    assert_eq!(of(closed()), Verdict::Unknown);
    for code in ["HK-E-ROOM", "HK-E-STORAGE"] {
        assert_eq!(of_volume(holding(closed()), code), Verdict::Unknown);
        let other = GuestContent::Other("fat32");
        assert_eq!(of_volume(holding(other), code), Verdict::Met);
    }
    // What is broken is told first, and what cannot be told does not hide it.
    let volumes = vec![
        holding(closed()),
        ntfs(1, GIB, GIB),
        holding(GuestContent::Other("ReFS")),
    ];
    let rule = rule(&judge(&machine(windows(), volumes)), "HK-E-NTFS");
    assert_eq!(rule.verdict, Verdict::Broken);
    assert!(
        rule.measured.starts_with("volume 7 (C:): ReFS; "),
        "{rule:?}"
    );
}

#[test]
fn a_volume_needs_one_gib_and_300_mib_free_to_the_byte() {
    let of = |size_bytes, free_bytes| of_volume(ntfs(2, size_bytes, free_bytes), "HK-E-ROOM");
    assert_eq!(of(GIB, 300 * MIB), Verdict::Met);
    assert_eq!(of(GIB - 1, 300 * MIB), Verdict::Broken);
    assert_eq!(of(GIB, 300 * MIB - 1), Verdict::Broken);
    assert_eq!(of(u64::MAX, u64::MAX), Verdict::Met);
    let with = |letter| GuestVolume {
        letter,
        ..ntfs(2, 100 * MIB, 70 * MIB)
    };
    assert_eq!(
        of_volume(with(DriveLetter::Unknown), "HK-E-ROOM"),
        Verdict::Broken
    );
    assert_eq!(
        of_volume(with(DriveLetter::None), "HK-E-ROOM"),
        Verdict::Unknown
    );
    let unread = holding(GuestContent::Ntfs {
        free_bytes: None,
        storage: ShadowStorage::NotSet,
    });
    assert_eq!(of_volume(unread, "HK-E-ROOM"), Verdict::Unknown);
}

#[test]
fn shadow_copies_may_not_be_stored_on_another_volume() {
    let of = |storage| of_volume(stored(storage), "HK-E-STORAGE");
    assert_eq!(of(ShadowStorage::NotSet), Verdict::Met);
    assert_eq!(of(ShadowStorage::SameVolume), Verdict::Met);
    assert_eq!(
        of(ShadowStorage::OtherVolume("d".to_owned())),
        Verdict::Broken
    );
    assert_eq!(
        of(ShadowStorage::Unread("why".to_owned())),
        Verdict::Unknown
    );
}

#[test]
fn linux_gets_one_line_and_no_system_none() {
    let mut facts = machine(windows(), vec![ntfs(1, GIB, GIB)]);
    facts.systems[0].family = GuestFamily::Linux;
    let rules = judge(&facts);
    assert_eq!(rules.len(), 1);
    assert_eq!(rule(&rules, "HK-E-LINUX").verdict, Verdict::Unknown);
    facts.systems.clear();
    assert_eq!(judge(&facts), Vec::new());
}

struct FileDisk(File);

impl ReadAt for FileDisk {
    fn size_bytes(&self) -> u64 {
        self.0.metadata().unwrap().len()
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> block::Result<()> {
        let read = self.0.read_exact_at(buffer, offset);
        read.map_err(|error| block::Error::new(block::ErrorKind::Io, error.to_string()))
    }
}

/// Says why the test does not run; fails where everything must be there.
fn missing<T>(what: &str) -> Option<T> {
    assert!(std::env::var_os("CI").is_none(), "{what}");
    println!("SKIP: {what}");
    None
}

fn hives() -> Option<PathBuf> {
    let corpora = std::env::var_os("HIKAE_CORPORA").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/corpora"),
        PathBuf::from,
    );
    if !corpora.join("manifest.json").exists() {
        return missing("the corpora are not there");
    }
    Some(corpora.join("registry"))
}

/// 1 EFI system, 2 reserved, 3 the Windows, 4 recovery (NTFS, too small for the rules), 5 data on FAT.
const MAKE: &str = "\
    truncate -s 1700M disk\n\
    sfdisk -q disk <<'END'\n\
    label: gpt\n\
    start=1MiB, size=64MiB, type=C12A7328-F81F-11D2-BA4B-00A0C93EC93B\n\
    start=65MiB, size=16MiB, type=E3C9E316-0B5C-4DB8-817D-F92DF00215AE\n\
    start=100MiB, size=1200MiB, type=EBD0A0A2-B9E5-4433-87C0-68B6B72699C7\n\
    start=1300MiB, size=50MiB, type=DE94BBA4-06D1-4D40-A16A-BFD50179D6AC\n\
    start=1400MiB, size=64MiB, type=EBD0A0A2-B9E5-4433-87C0-68B6B72699C7\n\
    END\n\
    truncate -s 64M fat; mkfs.fat -F 32 -s 1 fat >/dev/null\n\
    truncate -s 1200M windows; mkntfs -F -Q -q windows\n\
    truncate -s 50M recovery; mkntfs -F -Q -q recovery\n\
    mkdir mount\n\
    trap 'umount mount 2>/dev/null || true' EXIT\n\
    ntfs-3g -o no_detach windows mount & pid=$!\n\
    until mountpoint -q mount; do kill -0 $pid; done\n\
    mkdir -p mount/Windows/System32/config\n\
    xz -dc \"$HIVES/regipy-SYSTEM.xz\" > mount/Windows/System32/config/SYSTEM\n\
    cat \"$HIVES/libguestfs-windows-software\" > mount/Windows/System32/config/SOFTWARE\n\
    umount mount; wait $pid\n\
    put() { dd if=$1 of=disk bs=1M seek=$2 conv=notrunc,sparse status=none; }\n\
    put fat 1; put windows 100; put recovery 1300; put fat 1400\n";

/// The same Windows where its registry says that C: is, and a small volume without a letter.
const MAKE_MBR: &str = "\
    truncate -s 1300M mbr\n\
    sfdisk -q mbr <<'END'\n\
    label: dos\n\
    label-id: 0x5cbea03e\n\
    start=1MiB, size=1200MiB, type=7\n\
    start=1202MiB, size=50MiB, type=7, bootable\n\
    END\n\
    dd if=windows of=mbr bs=1M seek=1 conv=notrunc,sparse status=none\n\
    dd if=recovery of=mbr bs=1M seek=1202 conv=notrunc,sparse status=none\n";

/// A disk with a Windows; `None` where this machine cannot make one.
fn windows_disk(folder: &Path, name: &str) -> Option<PathBuf> {
    let hives = hives()?;
    if !Path::new("/dev/fuse").exists() {
        return missing("there is no /dev/fuse for ntfs-3g");
    }
    let path = std::env::var("PATH").unwrap_or_default();
    let path = format!("{path}:/usr/local/sbin:/usr/sbin:/sbin");
    let script = format!("{MAKE}{MAKE_MBR}");
    for command in ["mkntfs", "ntfs-3g", "mkfs.fat", "sfdisk", "unshare", "xz"] {
        let found = Command::new("sh")
            .args(["-c", &format!("command -v {command} >/dev/null")])
            .env("PATH", &path)
            .status();
        if !found.is_ok_and(|status| status.success()) {
            return missing(&format!("the command {command} is not there"));
        }
    }
    let made = Command::new("unshare")
        .args(["--mount", "bash", "-euo", "pipefail", "-c", &script])
        .current_dir(folder)
        .env("PATH", path)
        .env("HIVES", hives)
        .output()
        .unwrap();
    let told = String::from_utf8_lossy(&made.stderr);
    assert!(made.status.success(), "{told}");
    Some(folder.join(name))
}

fn looked_at(disk: &Path) -> Vec<RuleReport> {
    let disk: Arc<dyn ReadAt> = Arc::new(FileDisk(File::open(disk).unwrap()));
    inspect(&InsideDisks::open(&[disk]).unwrap())
        .unwrap()
        .eligibility
}

#[test]
fn the_disk_of_a_windows_is_measured_and_its_own_partitions_are_not_counted() {
    let folder = tempfile::tempdir().unwrap();
    let Some(disk) = windows_disk(folder.path(), "disk") else {
        return;
    };
    let rules = looked_at(&disk);
    let system = rule(&rules, "HK-E-OS");
    assert_eq!(system.verdict, Verdict::Met, "{system:?}");
    assert_eq!(system.system_volume, Some(3));
    let service = rule(&rules, "HK-E-SERVICE");
    // Windows 7 brings the channel to the host, but not the service for backups.
    assert_eq!(service.verdict, Verdict::Broken);
    let told = "there is no service vmicvss; storvsc: manual; vmbus: boot";
    assert_eq!(service.measured, told);
    assert_eq!(rule(&rules, "HK-E-DYNAMIC").verdict, Verdict::Met);
    let ntfs = rule(&rules, "HK-E-NTFS");
    assert_eq!(ntfs.verdict, Verdict::Broken);
    assert_eq!(
        ntfs.measured,
        "volume 5: fat32; volume 1: EFI system partition; volume 2: reserved by Windows; \
         volume 3: NTFS; volume 4: recovery partition"
    );
    let room = rule(&rules, "HK-E-ROOM");
    assert_eq!(room.verdict, Verdict::Met, "{room:?}");
    assert!(
        room.measured.starts_with("volume 3: 1200 MiB, 11"),
        "{room:?}"
    );
    let storage = rule(&rules, "HK-E-STORAGE");
    assert_eq!(storage.verdict, Verdict::Met);
    assert_eq!(storage.measured, "volume 3: none set up");

    let writable = File::options().write(true).open(&disk).unwrap();
    let mut header = [0; 96];
    header[..16]
        .copy_from_slice(b"\x6B\x87\x08\x38\x76\xC1\x48\x4E\xB7\xAE\x04\x04\x6E\x6C\xC7\x52");
    header[64..80].fill(0x11);
    header[80..96]
        .copy_from_slice(b"\x04\x03\x02\x01\x06\x05\x08\x07\x09\x0A\x0B\x0C\x0D\x0E\x0F\x10");
    writable.write_all_at(&header, 100 * MIB + 0x1E00).unwrap();
    let storage = rule(&looked_at(&disk), "HK-E-STORAGE");
    assert_eq!(storage.verdict, Verdict::Broken);
    assert_eq!(
        storage.measured,
        "volume 3: on volume 01020304-0506-0708-090a-0b0c0d0e0f10"
    );
}

#[test]
fn a_small_volume_without_a_drive_letter_breaks_no_rule() {
    let folder = tempfile::tempdir().unwrap();
    let Some(disk) = windows_disk(folder.path(), "mbr") else {
        return;
    };
    let room = rule(&looked_at(&disk), "HK-E-ROOM");
    assert_eq!(room.verdict, Verdict::Unknown, "{room:?}");
    assert!(room.measured.starts_with("volume 2: 50 MiB, "), "{room:?}");
    let letter =
        "without a drive letter: VSS decides by limits of its own; volume 1 (C:): 1200 MiB, ";
    assert!(room.measured.contains(letter), "{room:?}");
}
