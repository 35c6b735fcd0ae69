//! Rules about the host and the machine's place on it: whether a checkpoint can be made there now.

use super::{Evidence, Gates, Rule, RuleReport, RuleSet};
use crate::facts::{
    CheckpointFacts, CheckpointKind, Health, PowerState, ReplicationRole, RoleState,
};

/// Hyper-V refuses more checkpoints of one machine.
const MOST_CHECKPOINTS: usize = 50;
/// "Log on as a service" is missing.
const LOGON_TYPE_NOT_GRANTED: u32 = 0x8007_052F;

pub(super) fn judge(evidence: &Evidence<'_>, set: RuleSet, rules: &mut Vec<RuleReport>) {
    rules.push(host(evidence, set));
    rules.push(health(evidence));
    rules.push(idle(evidence));
    rules.push(cluster(evidence));
    rules.push(count(evidence));
    rules.push(foreign(evidence));
    rules.push(replica(evidence));
    rules.push(assigned(evidence));
    rules.push(logon(evidence));
    rules.push(tree(evidence));
    rules.push(tpm(evidence));
    if set != RuleSet::Saved {
        rules.push(references(evidence));
    }
}

fn host(evidence: &Evidence<'_>, set: RuleSet) -> RuleReport {
    let rule = Rule {
        code: "HK-E-HOST",
        rule: "the host makes recovery checkpoints over WMI: Windows Server 2016 or later",
        gates: Gates::CHECKPOINT,
    };
    match (set, evidence.machine.host_generation) {
        (RuleSet::Unknown, _) | (_, None) => rule.unknown("the host told no number of a build"),
        (RuleSet::Saved, Some(generation)) => rule.no(
            format!("Windows Server {generation}"),
            "take a saved state; online backup needs Windows Server 2016",
        ),
        (_, Some(generation)) => rule.yes(format!("Windows Server {generation}")),
    }
}

fn health(evidence: &Evidence<'_>) -> RuleReport {
    let rule = Rule {
        code: "HK-E-HEALTH",
        rule: "the host says that the machine is well",
        gates: Gates::ALL,
    };
    match (evidence.machine.health, evidence.machine.power) {
        (_, PowerState::Critical(number)) => rule.no(
            format!("state {number}"),
            "look at the storage that the machine's files lie on",
        ),
        (Health::Ok, _) => rule.yes("well"),
        (Health::Degraded, _) => rule.no(
            "degraded: the storage of its configuration cannot be reached",
            "bring the storage back; until then only turning off works",
        ),
        (Health::LowSpace, _) => rule.no(
            "its storage is running full",
            "make room: a checkpoint needs space for everything that is written while it exists",
        ),
        (Health::Other(number), _) => rule.unknown(format!("status {number}")),
    }
}

fn idle(evidence: &Evidence<'_>) -> RuleReport {
    let rule = Rule {
        code: "HK-E-IDLE",
        rule: "nothing else is being done to the machine: no merge, migration, export or checkpoint",
        gates: Gates::ALL,
    };
    let busy: Vec<String> = evidence
        .machine
        .activities
        .iter()
        .map(ToString::to_string)
        .collect();
    if busy.is_empty() {
        rule.yes("nothing")
    } else {
        rule.no(
            busy.join(", "),
            "wait until it is over; a job waits by itself",
        )
    }
}

fn cluster(evidence: &Evidence<'_>) -> RuleReport {
    let rule = Rule {
        code: "HK-E-CLUSTER",
        rule: "the cluster group of a clustered machine is online",
        gates: Gates::ONLINE,
    };
    if !evidence.machine.is_role_known {
        return rule.unknown("the cluster was not heard");
    }
    let Some(role) = &evidence.machine.role else {
        return rule.yes("not clustered");
    };
    let measured = format!("group {:?} on {}: {:?}", role.group, role.owner, role.state);
    let is_still = matches!(evidence.machine.power, PowerState::Off | PowerState::Saved);
    match role.state {
        RoleState::Online => rule.yes(measured),
        RoleState::Offline if is_still => Rule {
            gates: Gates::NONE,
            ..rule
        }
        .no(measured, "bring the group online for an online backup"),
        RoleState::Unknown => rule.unknown(measured),
        RoleState::Offline | RoleState::Failed | RoleState::Partial | RoleState::Pending => rule
            .no(
                measured,
                "bring the group online in Failover Cluster Manager, or: hikae vm role online",
            ),
    }
}

fn count(evidence: &Evidence<'_>) -> RuleReport {
    let rule = Rule {
        code: "HK-E-COUNT",
        rule: "fewer than 50 checkpoints",
        gates: Gates::ALL,
    };
    let count = evidence.machine.checkpoints.len();
    if count < MOST_CHECKPOINTS {
        rule.yes(count.to_string())
    } else {
        rule.no(count.to_string(), "delete checkpoints that nobody needs")
    }
}

fn is_foreign(evidence: &Evidence<'_>, checkpoint: &CheckpointFacts) -> bool {
    let is_ours = checkpoint
        .mark
        .as_ref()
        .is_some_and(|mark| evidence.owner.is_none() || mark.owner.as_ref() == evidence.owner);
    checkpoint.kind == CheckpointKind::Recovery && !is_ours
}

fn foreign(evidence: &Evidence<'_>) -> RuleReport {
    let rule = Rule {
        code: "HK-E-FOREIGN",
        rule: "no other product holds a recovery checkpoint",
        gates: Gates::NONE,
    };
    let foreign: Vec<String> = evidence
        .machine
        .checkpoints
        .iter()
        .filter(|it| is_foreign(evidence, it))
        .map(|it| match it.created {
            Some(created) => format!("{:?} of {created}", it.name),
            None => format!("{:?}", it.name),
        })
        .collect();
    if foreign.is_empty() {
        rule.yes("none")
    } else {
        rule.no(
            foreign.join(", "),
            "let one product protect a machine; a left-over of another one is its owner's to remove",
        )
    }
}

fn replica(evidence: &Evidence<'_>) -> RuleReport {
    let rule = Rule {
        code: "HK-E-REPLICA",
        rule: "not a replica: the primary is the one to protect",
        gates: Gates::NONE,
    };
    match evidence.machine.replication {
        ReplicationRole::None => rule.yes("not replicated"),
        ReplicationRole::Primary => rule.yes("the primary"),
        ReplicationRole::Replica | ReplicationRole::ExtendedReplica => Rule {
            gates: Gates::ALL,
            ..rule
        }
        .no(
            "a replica: replication applies logs to its disks",
            "protect the primary, or set the replica to be protected between two replications",
        ),
        ReplicationRole::TestReplica => Rule {
            gates: Gates::ALL,
            ..rule
        }
        .no("made for a test failover", "end the test"),
    }
}

fn assigned(evidence: &Evidence<'_>) -> RuleReport {
    let rule = Rule {
        code: "HK-E-ASSIGNED",
        rule: "no device of the host is assigned to the machine",
        gates: Gates::ALL,
    };
    match evidence.machine.has_assigned_devices {
        None => Rule {
            gates: Gates::NONE,
            ..rule
        }
        .unknown("the host tells nothing of it"),
        Some(false) => rule.yes("none"),
        Some(true) => rule.no(
            "there are",
            "machines with assigned devices can be neither saved nor checkpointed: protect them from inside",
        ),
    }
}

fn logon(evidence: &Evidence<'_>) -> RuleReport {
    let rule = Rule {
        code: "HK-E-LOGON",
        rule: "NT VIRTUAL MACHINE\\Virtual Machines may log on as a service",
        gates: Gates::NONE,
    };
    match evidence.last {
        Some(last) if last.code == Some(LOGON_TYPE_NOT_GRANTED) => Rule {
            gates: Gates::ALL,
            ..rule
        }
        .no(
            "the last attempt failed for that (0x8007052F)",
            "give the right back in the group policy of the host (Microsoft KB 2779204)",
        ),
        Some(_) => rule.yes("the last attempt did not fail for that"),
        None => rule.unknown("shown by the first attempt"),
    }
}

fn tree(evidence: &Evidence<'_>) -> RuleReport {
    let rule = Rule {
        code: "HK-E-TREE",
        rule: "no checkpoints of operators (advice)",
        gates: Gates::NONE,
    };
    let count = evidence.machine.user_checkpoints().count();
    if count == 0 {
        rule.yes("none")
    } else {
        rule.no(
            format!("{count}"),
            "points hold the machine as it is now, without the tree; applying a checkpoint makes the next run read whole disks",
        )
    }
}

fn tpm(evidence: &Evidence<'_>) -> RuleReport {
    let rule = Rule {
        code: "HK-E-TPM",
        rule: "no virtual TPM and no shielding (advice)",
        gates: Gates::NONE,
    };
    let security = evidence.machine.security;
    match (security.has_tpm, security.is_shielded) {
        (Some(false), Some(false) | None) => rule.yes("none"),
        (None, None) => rule.unknown("the host tells nothing of it"),
        (_, Some(true)) => rule.no(
            "shielded",
            "keep the guardian's keys: a point alone does not start elsewhere",
        ),
        (Some(true), _) => rule.no(
            "it has a virtual TPM",
            "export the host's \"Shielded VM Local Certificates\": without the key protector the point does not start elsewhere",
        ),
        (None, Some(false)) => rule.unknown("not shielded; the host tells nothing of a TPM"),
    }
}

fn references(evidence: &Evidence<'_>) -> RuleReport {
    let rule = Rule {
        code: "HK-E-REFERENCES",
        rule: "at most one point of change tracking at rest (advice)",
        gates: Gates::NONE,
    };
    let count = evidence.machine.tracking_points.len();
    if count <= 1 {
        rule.yes(count.to_string())
    } else {
        rule.no(
            count.to_string(),
            "each point of another product keeps tracking alive and costs the guest writes",
        )
    }
}
