//! Rules about the guest: whether it can flush and freeze itself when the host asks.

use super::{Evidence, Gates, GuestVolume, Rule, RuleReport, ShadowStorage, Verdict};
use crate::consistency::Consistency;
use crate::facts::{GuestFamily, PowerState, ServiceState};

const MIB: u64 = 1 << 20;
const LEAST_SIZE_BYTES: u64 = 1 << 30;
const LEAST_FREE_BYTES: u64 = 300 * MIB;
/// Windows Server 2003.
const LEAST_VERSION: (u32, u32) = (5, 2);

pub(super) fn judge(evidence: &Evidence<'_>, rules: &mut Vec<RuleReport>) {
    rules.push(running(evidence));
    rules.push(service(evidence));
    if evidence.family() == Some(GuestFamily::Linux) {
        rules.push(linux(evidence));
        return;
    }
    rules.push(system(evidence));
    rules.push(dynamic(evidence));
    volumes(evidence, rules);
    rules.push(writers(evidence));
}

fn running(evidence: &Evidence<'_>) -> RuleReport {
    let rule = Rule {
        code: "HK-E-RUNNING",
        rule: "the machine runs",
        gates: Gates::APPLICATION,
    };
    let state = evidence.machine.power;
    match state {
        PowerState::Running => rule.yes("running"),
        // Nothing moves on the disks of a machine that stands still: there is nothing that could be inconsistent.
        PowerState::Off | PowerState::Saved => {
            let measured = format!("{state}: its disks do not change, nothing needs to be frozen");
            Rule {
                gates: Gates::NONE,
                ..rule
            }
            .no(measured, "start it for an online backup")
        }
        PowerState::Paused => rule.no("paused", "resume it, or take a saved state"),
        PowerState::Changing => rule.unknown("between two states"),
        PowerState::Critical(number) => rule.no(
            format!("state {number}"),
            "look at the storage and the host first",
        ),
    }
}

fn service(evidence: &Evidence<'_>) -> RuleReport {
    let rule = Rule {
        code: "HK-E-SERVICE",
        rule: "the backup service of the integration services is on, and the guest answers",
        gates: Gates::ONLINE,
    };
    let remedy_in_guest = "start \"Hyper-V Volume Shadow Copy Requestor\" (Windows) or hv_vss_daemon (Linux) in the guest";
    let is_still = matches!(evidence.machine.power, PowerState::Off | PowerState::Saved);
    match evidence.machine.integration.backup {
        Some(_) if is_still => Rule {
            gates: Gates::NONE,
            ..rule
        }
        .yes("the machine stands still, it is not needed"),
        None => rule.unknown("the host tells nothing of it"),
        Some(ServiceState::Ok) => rule.yes("on, and the guest answers"),
        Some(ServiceState::Enabled) => rule.unknown("on; the guest was not heard"),
        Some(ServiceState::Disabled) => rule.no(
            "switched off",
            "switch \"Backup (volume shadow copy)\" on in the machine's integration services",
        ),
        Some(ServiceState::NoContact) => {
            rule.no("on, but the guest does not answer", remedy_in_guest)
        }
        Some(ServiceState::Incompatible) => rule.no(
            "guest and host do not understand one another",
            "update the integration services in the guest",
        ),
    }
}

fn linux(evidence: &Evidence<'_>) -> RuleReport {
    let name = evidence.machine.guest.os_name.as_deref();
    Rule {
        code: "HK-E-LINUX",
        rule: "Linux: file systems are frozen; there is no VSS that would reach applications",
        gates: Gates::APPLICATION,
    }
    .no(
        name.unwrap_or("Linux"),
        "take file-system consistency, and freeze applications by scripts in the guest",
    )
}

fn system(evidence: &Evidence<'_>) -> RuleReport {
    let rule = Rule {
        code: "HK-E-OS",
        rule: "the guest has VSS: Windows Server 2003 or later (NT 5.2)",
        gates: Gates::APPLICATION,
    };
    let guest = &evidence.machine.guest;
    if guest.family.is_none() {
        return rule.unknown("the guest did not tell its system");
    }
    let version = guest.os_version.as_deref().and_then(version_of);
    let name = guest.os_name.as_deref().unwrap_or("Windows");
    match version {
        None => rule.unknown(format!("{name}, of a version that was not told")),
        Some(version) if version >= LEAST_VERSION => {
            rule.yes(format!("{name}, NT {}.{}", version.0, version.1))
        }
        Some(version) => rule.no(
            format!("{name}, NT {}.{}", version.0, version.1),
            "take a saved state, or protect it from inside",
        ),
    }
}

fn version_of(text: &str) -> Option<(u32, u32)> {
    let mut parts = text.trim().split('.');
    Some((
        parts.next()?.parse().ok()?,
        parts.next().unwrap_or("0").parse().ok()?,
    ))
}

fn dynamic(evidence: &Evidence<'_>) -> RuleReport {
    let rule = Rule {
        code: "HK-E-DYNAMIC",
        rule: "no dynamic disks in the guest",
        gates: Gates::APPLICATION,
    };
    match evidence.disks.and_then(|disks| disks.has_dynamic) {
        None => rule.unknown("nobody looked into its disks yet"),
        Some(false) => rule.yes("basic disks alone"),
        Some(true) => rule.no(
            "there are dynamic disks",
            "move the data to basic disks, or take a saved state",
        ),
    }
}

fn volumes(evidence: &Evidence<'_>, rules: &mut Vec<RuleReport>) {
    let volumes = evidence.disks.and_then(|disks| disks.volumes.as_deref());
    rules.push(over_volumes(
        volumes,
        Rule {
            code: "HK-E-NTFS",
            rule: "every volume is NTFS (ReFS does too)",
            gates: Gates::APPLICATION,
        },
        file_system,
        "convert or move what lies on other file systems",
    ));
    rules.push(over_volumes(
        volumes,
        Rule {
            code: "HK-E-ROOM",
            rule: "every volume has 1 GiB or more, of which 300 MiB are free",
            gates: Gates::APPLICATION,
        },
        room,
        "make room, or make the volume larger",
    ));
    rules.push(over_volumes(
        volumes,
        Rule {
            code: "HK-E-STORAGE",
            rule: "shadow copies of a volume are stored on that volume",
            gates: Gates::APPLICATION,
        },
        shadow_storage,
        "in the guest: vssadmin delete shadowstorage /for=VOLUME /on=OTHER, then add it on the volume itself",
    ));
}

fn over_volumes(
    volumes: Option<&[GuestVolume]>,
    rule: Rule,
    measure: fn(&GuestVolume) -> (Verdict, String),
    remedy: &str,
) -> RuleReport {
    let Some(volumes) = volumes else {
        return rule.unknown("nobody looked into its disks yet");
    };
    let mut worst = Verdict::Yes;
    let mut told: Vec<String> = Vec::new();
    for volume in volumes {
        let (verdict, text) = measure(volume);
        if verdict > worst {
            worst = verdict;
            told.clear();
        }
        if verdict == worst {
            told.push(format!("{} {text}", volume.name));
        }
    }
    // What is worst is told; many volumes that are well need not all be named.
    let measured = if told.len() > 8 {
        format!("{}, and {} more", told[..8].join(", "), told.len() - 8)
    } else if told.is_empty() {
        "no volume of a system was found".to_owned()
    } else {
        told.join(", ")
    };
    match worst {
        Verdict::Yes if volumes.is_empty() => rule.unknown(measured),
        Verdict::Yes => rule.yes(measured),
        Verdict::Unknown => rule.unknown(measured),
        Verdict::No => rule.no(measured, remedy),
    }
}

fn file_system(volume: &GuestVolume) -> (Verdict, String) {
    match volume.file_system.as_str() {
        "" => (Verdict::Unknown, "not recognised".to_owned()),
        "NTFS" | "REFS" => (Verdict::Yes, volume.file_system.clone()),
        other => (Verdict::No, other.to_owned()),
    }
}

fn room(volume: &GuestVolume) -> (Verdict, String) {
    let (Some(size), Some(free)) = (volume.size_bytes, volume.free_bytes) else {
        return (Verdict::Unknown, "not measured".to_owned());
    };
    let measured = format!("{} MiB, {} MiB free", size / MIB, free / MIB);
    if size >= LEAST_SIZE_BYTES && free >= LEAST_FREE_BYTES {
        (Verdict::Yes, measured)
    } else {
        (Verdict::No, measured)
    }
}

fn shadow_storage(volume: &GuestVolume) -> (Verdict, String) {
    match volume.shadow_storage {
        ShadowStorage::Same => (Verdict::Yes, "on itself".to_owned()),
        ShadowStorage::Other => (Verdict::No, "on another volume".to_owned()),
        ShadowStorage::Unknown => (Verdict::Unknown, "not known".to_owned()),
    }
}

fn writers(evidence: &Evidence<'_>) -> RuleReport {
    let rule = Rule {
        code: "HK-E-WRITERS",
        rule: "the writers in the guest are well",
        gates: Gates::APPLICATION,
    };
    match evidence.last {
        None => rule.unknown("shown by the first attempt"),
        Some(last) if last.reached == Some(Consistency::Application) => {
            rule.yes("the last attempt was application-consistent")
        }
        Some(last) => {
            let code = last
                .code
                .map_or_else(String::new, |code| format!(" ({code:#x})"));
            rule.no(
                format!(
                    "the last attempt was not application-consistent{code}: {}",
                    last.text
                ),
                "in the guest: vssadmin list writers, and its application event log (VSS, VolSnap)",
            )
        }
    }
}
