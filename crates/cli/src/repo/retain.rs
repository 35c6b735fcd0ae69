//! `hikae repo retain`: which points stay, and why; the others are forgotten. With `--dry-run` it is a simulator.

use std::collections::BTreeSet;

use repo::ProtectedName;
use repo::retention::{
    CalendarSpan, KeepReason, NameRetention, PassReason, Period, RetentionPolicy, RetentionVerdict,
};
use serde::Serialize;

use crate::args::RetainArgs;
use crate::exit::Exit;
use crate::keys;
use crate::output::{Output, Table};

#[derive(Serialize)]
struct DecisionReport {
    name: String,
    version: u64,
    created: String,
    keep: bool,
    reasons: Vec<String>,
}

#[derive(Serialize)]
struct Report {
    dry_run: bool,
    kept: usize,
    forgotten: u64,
    points: Vec<DecisionReport>,
}

/// Runs the verb.
pub fn run(arguments: &RetainArgs, output: &Output) -> anyhow::Result<Exit> {
    let policy = policy(arguments)?;
    let repository = keys::open(&arguments.target.to_repo_args())?;
    let names: BTreeSet<ProtectedName> = match &arguments.name {
        Some(name) => [ProtectedName::new(name.clone())?].into(),
        None => repository
            .points()?
            .0
            .into_iter()
            .map(|record| record.point.name)
            .collect(),
    };
    let mut plans = Vec::new();
    for name in &names {
        plans.push(repository.plan_retention(name, &policy)?);
    }
    let points: Vec<DecisionReport> = plans.iter().flat_map(decisions).collect();
    let kept = points.iter().filter(|point| point.keep).count();
    let mut forgotten = 0;
    if arguments.dry_run {
        forgotten = u64::try_from(points.len().saturating_sub(kept))?;
    } else {
        for plan in &plans {
            forgotten += repository.execute_retention(plan)?;
        }
    }
    output.report(
        &Report {
            dry_run: arguments.dry_run,
            kept,
            forgotten,
            points,
        },
        text,
    )?;
    Ok(Exit::Done)
}

fn policy(arguments: &RetainArgs) -> anyhow::Result<RetentionPolicy> {
    let span = |text: &Option<String>| -> anyhow::Result<Option<CalendarSpan>> {
        text.as_ref()
            .map(|text| {
                text.parse()
                    .map_err(|error| crate::exit::not_possible(format!("`{text}`: {error}")))
            })
            .transpose()
    };
    let zone = arguments.time_zone.parse().map_err(|error| {
        crate::exit::not_possible(format!("--time-zone {}: {error}", arguments.time_zone))
    })?;
    let minimum_age_ms = span(&arguments.minimum_age)?.map_or(0, |age| {
        // A floor of calendar units, measured back from a fixed instant: months and years take their usual lengths.
        let reference: u64 = 1_700_000_000_000;
        reference.saturating_sub(age.before(reference, zone))
    });
    Ok(RetentionPolicy {
        keep_last: arguments.keep_last.unwrap_or(0),
        keep_hourly: arguments.keep_hourly.unwrap_or(0),
        keep_daily: arguments.keep_daily.unwrap_or(0),
        keep_weekly: arguments.keep_weekly.unwrap_or(0),
        keep_monthly: arguments.keep_monthly.unwrap_or(0),
        keep_yearly: arguments.keep_yearly.unwrap_or(0),
        keep_within: span(&arguments.keep_within)?,
        minimum_age_ms,
        zone,
    })
}

fn decisions(plan: &NameRetention) -> Vec<DecisionReport> {
    let name = plan.name.to_string();
    plan.plan
        .decisions
        .iter()
        .map(|decision| DecisionReport {
            name: name.clone(),
            version: decision.point.sequence,
            created: repo::rfc3339(decision.point.created_unix_ms),
            keep: decision.is_kept(),
            reasons: match &decision.verdict {
                RetentionVerdict::Keep(reasons) => reasons.iter().map(keep_text).collect(),
                RetentionVerdict::Forget(reasons) => reasons.iter().map(pass_text).collect(),
            },
        })
        .collect()
}

fn period_text(period: &Period) -> String {
    period.to_string()
}

fn keep_text(reason: &KeepReason) -> String {
    match reason {
        KeepReason::Last { position } => format!("number {position} of the newest"),
        KeepReason::Period { period, position } => {
            format!("stands for {} (number {position})", period_text(period))
        }
        KeepReason::Within { since_unix_ms } => {
            format!("younger than {}", repo::rfc3339(*since_unix_ms))
        }
        KeepReason::Held => "held".to_owned(),
        KeepReason::MinimumAge { until_unix_ms } => {
            format!("minimum age, until {}", repo::rfc3339(*until_unix_ms))
        }
        KeepReason::NewestVerified => "the newest verified point".to_owned(),
        KeepReason::NewestUnverified => "the newest point, none is verified".to_owned(),
    }
}

fn pass_text(reason: &PassReason) -> String {
    match reason {
        PassReason::BeyondLast { count } => format!("not among the newest {count}"),
        PassReason::Represented { period, by } => {
            format!("version {by} stands for {}", period_text(period))
        }
        PassReason::BeyondPeriods { period, count } => {
            format!(
                "{} is not among the newest {count} of its kind",
                period_text(period)
            )
        }
        PassReason::NotWithin { since_unix_ms } => {
            format!("older than {}", repo::rfc3339(*since_unix_ms))
        }
    }
}

fn text(report: &Report) -> String {
    let mut table = Table::new(&["name@version", "made", "", "why"], &[]);
    for point in &report.points {
        table.row(vec![
            format!("{}@{}", point.name, point.version),
            point.created.replace('T', " ").chars().take(19).collect(),
            if point.keep { "stays" } else { "goes" }.to_owned(),
            point.reasons.join("; "),
        ]);
    }
    let ending = if report.dry_run {
        format!(
            "{} would stay, {} would be forgotten",
            report.kept, report.forgotten
        )
    } else {
        format!(
            "{} stay, {} forgotten; their space comes free with: hikae repo gc",
            report.kept, report.forgotten
        )
    };
    format!("{table}{ending}\n")
}
