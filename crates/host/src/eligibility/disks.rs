//! Rules about disks: whether each can be in a checkpoint, be tracked, and be read.

use super::{Evidence, Gates, Rule, RuleReport, RuleSet};
use crate::facts::{ConfigurationVersion, DiskBacking, DiskFacts, ImageKind, StorageKind};

const TRACKED_SINCE: ConfigurationVersion = ConfigurationVersion { major: 8, minor: 0 };

pub(super) fn judge(evidence: &Evidence<'_>, set: RuleSet, rules: &mut Vec<RuleReport>) {
    let disks = &evidence.machine.disks;
    rules.push(none_of(
        disks,
        Rule {
            code: "HK-E-PASSTHROUGH",
            rule: "no disk of the host is passed through",
            gates: Gates::WHOLE,
        },
        |disk| matches!(disk.backing, DiskBacking::PassThrough { .. }),
        "protect what is on it from inside the guest, or move it into a VHDX",
    ));
    rules.push(none_of(
        disks,
        Rule {
            code: "HK-E-FC",
            rule: "no disks behind virtual Fibre Channel",
            gates: Gates::WHOLE,
        },
        |disk| matches!(disk.backing, DiskBacking::FibreChannel),
        "protect what is on them from inside the guest",
    ));
    rules.push(iscsi(evidence));
    rules.push(none_of(
        disks,
        Rule {
            code: "HK-E-SHARED",
            rule: "no disk is shared with another machine",
            gates: Gates::WHOLE,
        },
        |disk| {
            matches!(
                disk.backing,
                DiskBacking::Image {
                    is_shared: Some(true),
                    image: ImageKind::Vhdx | ImageKind::Vhd,
                    ..
                }
            )
        },
        "protect the guest cluster from inside, or move it to a VHD set and checkpoint the whole collection",
    ));
    rules.push(none_of(
        disks,
        Rule {
            code: "HK-E-VHDSET",
            rule: "no disk is a VHD set",
            gates: Gates::WHOLE,
        },
        |disk| {
            matches!(
                disk.backing,
                DiskBacking::Image {
                    image: ImageKind::VhdSet,
                    ..
                }
            )
        },
        "checkpoint the collection of machines that share it; one machine's checkpoint leaves it out",
    ));
    rules.push(path(disks));
    if set != RuleSet::Saved {
        rules.push(format(disks));
        rules.push(version(evidence));
    }
}

/// Names of the disks that `is_broken` picks; the rule is kept when there are none.
fn none_of(
    disks: &[DiskFacts],
    rule: Rule,
    is_broken: fn(&DiskFacts) -> bool,
    remedy: &str,
) -> RuleReport {
    let broken: Vec<String> = disks
        .iter()
        .filter(|disk| is_broken(disk))
        .map(name)
        .collect();
    if broken.is_empty() {
        rule.yes("none")
    } else {
        rule.no(broken.join(", "), remedy)
    }
}

fn name(disk: &DiskFacts) -> String {
    let place = disk.slot.map_or_else(
        || "beside the controllers".to_owned(),
        |slot| slot.to_string(),
    );
    match &disk.backing {
        DiskBacking::Image { path, .. } => format!("{place} {path}"),
        DiskBacking::PassThrough { device } => format!("{place} {device}"),
        DiskBacking::GuestIscsi { target } => format!("iSCSI {target}"),
        DiskBacking::FibreChannel => "a Fibre Channel port".to_owned(),
        DiskBacking::Empty => place,
        DiskBacking::Unknown { subtype } => format!("{place} {subtype}"),
    }
}

fn iscsi(evidence: &Evidence<'_>) -> RuleReport {
    let rule = Rule {
        code: "HK-E-ISCSI",
        rule: "the guest reaches no disks over iSCSI by itself",
        gates: Gates::WHOLE,
    };
    let targets: Vec<String> = evidence
        .machine
        .disks
        .iter()
        .filter(|disk| matches!(disk.backing, DiskBacking::GuestIscsi { .. }))
        .map(name)
        .collect();
    if targets.is_empty() {
        // A host cannot see it: only looking into the guest tells, and that it was not found does not gate anything.
        return Rule {
            gates: Gates::NONE,
            ..rule
        }
        .unknown("the host cannot see what the guest does over the network");
    }
    rule.no(
        targets.join(", "),
        "protect what is on them from inside the guest",
    )
}

fn path(disks: &[DiskFacts]) -> RuleReport {
    let rule = Rule {
        code: "HK-E-PATH",
        rule: "every image lies where it can be read: a drive, a shared volume, a share",
        gates: Gates::ALL,
    };
    let broken: Vec<String> = disks
        .iter()
        .filter(|disk| {
            disk.path().is_some_and(|path| {
                matches!(
                    StorageKind::of_path(path),
                    StorageKind::MountPoint | StorageKind::Unknown
                )
            })
        })
        .map(name)
        .collect();
    if broken.is_empty() {
        rule.yes("every path has a share or a folder behind it")
    } else {
        Rule {
            gates: Gates::WHOLE,
            ..rule
        }
        .no(
            broken.join(", "),
            "share the volume, give it a letter, or run the agent on the node",
        )
    }
}

/// Disks are tracked one by one: only a machine that has no VHDX at all has no tracking.
fn format(disks: &[DiskFacts]) -> RuleReport {
    let has_tracked = disks.iter().any(|disk| {
        matches!(
            disk.backing,
            DiskBacking::Image {
                image: ImageKind::Vhdx,
                ..
            }
        )
    });
    let rule = Rule {
        code: "HK-E-FORMAT",
        rule: "every image is a VHDX, so that changes are tracked",
        gates: if has_tracked {
            Gates::NONE
        } else {
            Gates::TRACKING
        },
    };
    let broken: Vec<String> = disks
        .iter()
        .filter(|disk| {
            matches!(disk.backing, DiskBacking::Image { image, .. } if image != ImageKind::Vhdx)
        })
        .map(name)
        .collect();
    if broken.is_empty() {
        rule.yes("VHDX alone")
    } else {
        rule.no(
            broken.join(", "),
            "convert to VHDX; until then these disks are read whole and only what changed is sent",
        )
    }
}

fn version(evidence: &Evidence<'_>) -> RuleReport {
    let rule = Rule {
        code: "HK-E-VERSION",
        rule: "the configuration has version 8.0 or later, so that changes are tracked",
        gates: Gates::TRACKING,
    };
    match evidence.machine.version {
        None => rule.unknown("the host told no version"),
        Some(version) if version >= TRACKED_SINCE => rule.yes(version.to_string()),
        Some(version) => rule.no(
            version.to_string(),
            "upgrade the configuration version (the machine must be off); until then disks are read whole",
        ),
    }
}
