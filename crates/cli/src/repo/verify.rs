//! `hikae repo verify`: the repository against its hashes. Ends with 3 when anything is damaged.

use std::time::Instant;

use anyhow::bail;
use repo::ReadProtection;
use repo::verify::{
    FindingSeverity, SampleBudget, VerifyMarks, VerifyOptions, VerifyReport, VerifyScope,
    verify_without_keys,
};
use serde::Serialize;

use crate::args::VerifyArgs;
use crate::exit::{self, Exit};
use crate::keys;
use crate::output::{Output, bytes, seconds};
use crate::watched::{PackBytes, Traffic, Watch};

#[derive(Serialize)]
struct FindingReport {
    object: String,
    what: String,
    severity: &'static str,
}

#[derive(Serialize)]
struct PointReport {
    name: Option<String>,
    version: u64,
    objects: Vec<String>,
}

#[derive(Serialize)]
struct Report {
    sound: bool,
    findings: Vec<FindingReport>,
    damaged_points: Vec<PointReport>,
    missing_points: Vec<String>,
    sound_points: usize,
    small_objects: u64,
    packs: u64,
    packs_read: u64,
    pack_bytes: u64,
    pack_bytes_read: u64,
    blobs_read: u64,
    nodes_walked: u64,
    protected_from_gc: bool,
    seconds: f64,
}

/// Runs the verb.
pub fn run(arguments: &VerifyArgs, output: &Output) -> anyhow::Result<Exit> {
    let started = Instant::now();
    let repo = arguments.target.to_repo_args();
    let watch = Watch::new(output);
    let found = if arguments.without_keys {
        if arguments.sample.is_some() || arguments.budget.is_some() || arguments.mark {
            bail!(exit::not_possible(
                "--without-keys reads everything and can write no marks"
            ));
        }
        let store = watch.over(keys::open_store(&repo.repo)?, Traffic::Reads);
        let total = || PackBytes::of(store.as_ref()).map(|packs| Some(packs.data + packs.node));
        watch.run("verifying", total, || verify_without_keys(store.as_ref()))?
    } else {
        let repository = watch.open(&repo, Traffic::Reads)?;
        let options = options(arguments);
        let total = || {
            let packs = PackBytes::of(repository.store().as_ref())?;
            Ok(expected_bytes(options.scope, packs))
        };
        let found = watch.run("verifying", total, || repository.verify(&options))?;
        watch.tell_protection(found.protection);
        found
    };
    let report = report(&found, started);
    output.report(&report, text)?;
    Ok(if report.sound {
        Exit::Done
    } else {
        Exit::Found
    })
}

/// About how much will be read: the packs, and the nodes once more when the trees are walked.
fn expected_bytes(scope: VerifyScope, packs: PackBytes) -> Option<u64> {
    /// What opening a pack's directory reads.
    const DIRECTORY_BYTES: u64 = 64 << 10;
    let all = packs.data.saturating_add(packs.node);
    let directories = packs.packs.saturating_mul(DIRECTORY_BYTES).min(all);
    let read = match scope {
        VerifyScope::Full => return Some(packs.full_read()),
        VerifyScope::Structure => 0,
        VerifyScope::Sample { budget, .. } => match budget {
            SampleBudget::Bytes(bytes) => bytes.min(all),
            SampleBudget::Percent(percent) => all / 100 * u64::from(percent),
            SampleBudget::Packs(_) => return None,
        },
    };
    Some(directories.saturating_add(packs.node).saturating_add(read))
}

fn options(arguments: &VerifyArgs) -> VerifyOptions {
    let sample = |budget| VerifyScope::Sample {
        seed: arguments.seed,
        budget,
    };
    let scope = match (arguments.structure, arguments.budget, arguments.sample) {
        (true, _, _) => VerifyScope::Structure,
        (false, Some(bytes), _) => sample(SampleBudget::Bytes(bytes)),
        (false, None, Some(percent)) => sample(SampleBudget::Percent(percent)),
        (false, None, None) => VerifyScope::Full,
    };
    VerifyOptions {
        scope,
        marks: if arguments.mark {
            VerifyMarks::Put
        } else {
            VerifyMarks::ReportOnly
        },
        protection: ReadProtection::LeaseIfWritable,
    }
}

fn report(found: &VerifyReport, started: Instant) -> Report {
    Report {
        sound: found.is_sound(),
        findings: found
            .findings
            .iter()
            .map(|finding| FindingReport {
                object: finding.object.clone(),
                what: finding.what.clone(),
                severity: match finding.severity {
                    FindingSeverity::Damaged => "damage",
                    FindingSeverity::Degraded => "degraded",
                },
            })
            .collect(),
        damaged_points: found
            .damaged_points
            .iter()
            .map(|point| PointReport {
                name: point.name.as_ref().map(ToString::to_string),
                version: point.key.sequence,
                objects: point.objects.clone(),
            })
            .collect(),
        missing_points: found
            .missing_points
            .iter()
            .map(|gap| {
                let first = format!("points/{}/{:016x}", gap.name_id, gap.first);
                if gap.first == gap.last {
                    first
                } else {
                    format!("{first} to {:016x}", gap.last)
                }
            })
            .collect(),
        sound_points: found.sound_points.len(),
        small_objects: found.coverage.small_objects,
        packs: found.coverage.packs,
        packs_read: found.coverage.packs_read,
        pack_bytes: found.coverage.pack_bytes,
        pack_bytes_read: found.coverage.pack_bytes_read,
        blobs_read: found.coverage.blobs_read,
        nodes_walked: found.coverage.nodes_walked,
        protected_from_gc: found.protection != ReadProtection::None,
        seconds: started.elapsed().as_secs_f64(),
    }
}

fn text(report: &Report) -> String {
    let mut text = String::new();
    for finding in &report.findings {
        text.push_str(&format!(
            "{}: {}: {}\n",
            finding.severity, finding.object, finding.what
        ));
    }
    for point in &report.damaged_points {
        let name = point
            .name
            .as_deref()
            .unwrap_or("a point whose name cannot be read");
        text.push_str(&format!("hit: {name}@{}\n", point.version));
        for object in point.objects.iter().take(8) {
            text.push_str(&format!("     by {object}\n"));
        }
        if point.objects.len() > 8 {
            text.push_str("     … (--json names more)\n");
        }
    }
    for point in &report.missing_points {
        text.push_str(&format!("missing: {point}\n"));
    }
    text.push_str(&format!(
        "{} small objects opened, {} of {} packs read ({} of {}), {} blobs hashed, {} nodes walked, {}\n",
        report.small_objects,
        report.packs_read,
        report.packs,
        bytes(report.pack_bytes_read),
        bytes(report.pack_bytes),
        report.blobs_read,
        report.nodes_walked,
        seconds(report.seconds)
    ));
    text.push_str(&if report.sound {
        format!("Sound: {} points.\n", report.sound_points)
    } else {
        format!(
            "DAMAGED: {} points are hit, {} are sound.\n  next: hikae repo repair --from OTHER-REPO, or --from-image IMAGE\n",
            report.damaged_points.len() + report.missing_points.len(),
            report.sound_points
        )
    });
    text
}
