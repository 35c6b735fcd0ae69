//! Which points stay and which go, and why: a pure plan.
//!
//! ```text
//!   points of ONE name (not forgotten) ─┐
//!   policy ─────────────────────────────┼─► plan_retention ─► for every point: the rules that hold it,
//!   now (server's wall clock) ──────────┘                      or why each rule lets it go
//! ```
//!
//! | rule | holds |
//! |---|---|
//! | keep-last *n* | the newest points, down to the *n*-th that is not damaged |
//! | keep-hourly … keep-yearly *n* | in each of the newest *n* periods that have points: the newest one that is not damaged, else the newest |
//! | keep-within *span* | points not older than *span* before the newest point |
//! | hold | points under a hold mark |
//! | minimum age | points younger than the floor |
//! | newest verified | the newest verified point; while none is verified, the newest that is not damaged, else the newest |
//!
//! **Invariants.** Rules only add: a point goes when no rule holds it. The last good point never goes. Wall time is used
//! here and nowhere else in the repository; when it went backwards (a point is stamped later than now) nothing is decided.
//! A period without points uses up no count. Newest means the highest sequence number, not the latest stamp.
//!
//! It does not read or write marks: the caller lists points before and puts `forgotten` marks after.

mod execute;
mod policy;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

pub use execute::NameRetention;
pub use policy::{
    CalendarSpan, MINIMUM_AGE_DEFAULT_MS, Period, PeriodRule, RetentionPolicy, RetentionTextError,
    RetentionZone, ZoneOffset,
};

/// What is known about a point's bytes from its marks; the newest mark counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum PointHealth {
    /// Nobody looked since it was committed.
    #[default]
    Unverified,
    /// A verification read all of it and found it good.
    Verified,
    /// A verification found bytes missing or wrong, or the source could not be read whole.
    Damaged,
}

/// Whether a hold mark protects a point.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum HoldState {
    /// No hold, or it was released.
    #[default]
    Free,
    /// Held: nothing but a release lets it go.
    Held,
}

/// What the plan needs to know about a point.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RetentionPoint {
    /// Its number within its name.
    pub sequence: u64,
    /// The server's stamp, ms since 1970 UTC.
    pub created_unix_ms: u64,
    /// From its `verified` and `damaged` marks.
    pub health: PointHealth,
    /// From its `hold` and `release` marks.
    pub hold: HoldState,
}

/// A reason to stay.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KeepReason {
    /// Among the newest.
    Last {
        /// 1 = the newest.
        position: u32,
    },
    /// Stands for its period.
    Period {
        /// Which one.
        period: Period,
        /// 1 = the newest period that has points.
        position: u32,
    },
    /// Younger than keep-within.
    Within {
        /// The oldest stamp that is still within.
        since_unix_ms: u64,
    },
    /// Under a hold mark.
    Held,
    /// Too young to go.
    MinimumAge {
        /// When the floor stops holding it.
        until_unix_ms: u64,
    },
    /// The newest verified point.
    NewestVerified,
    /// No point is verified, and this is the best there is.
    NewestUnverified,
}

/// Why one rule of the policy does not hold a point.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PassReason {
    /// Older than the newest so many.
    BeyondLast {
        /// The policy's count.
        count: u32,
    },
    /// Another point stands for its period.
    Represented {
        /// The period that both lie in.
        period: Period,
        /// The point that is kept for it.
        by: u64,
    },
    /// Its period is older than the newest so many.
    BeyondPeriods {
        /// Its period.
        period: Period,
        /// The policy's count.
        count: u32,
    },
    /// Older than keep-within.
    NotWithin {
        /// The oldest stamp that is within.
        since_unix_ms: u64,
    },
}

/// What becomes of a point.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RetentionVerdict {
    /// It stays: everything that holds it, never empty.
    Keep(Vec<KeepReason>),
    /// It goes: one reason per rule of the policy.
    Forget(Vec<PassReason>),
}

/// One point and what becomes of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RetentionDecision {
    /// The point as it was given.
    pub point: RetentionPoint,
    /// What becomes of it, and why.
    pub verdict: RetentionVerdict,
}

impl RetentionDecision {
    /// Whether it stays.
    pub fn is_kept(&self) -> bool {
        matches!(self.verdict, RetentionVerdict::Keep(_))
    }
}

/// A decision for every point of a name, the oldest first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RetentionPlan {
    /// One per point, by sequence number.
    pub decisions: Vec<RetentionDecision>,
}

impl RetentionPlan {
    /// The points that go, the oldest first.
    pub fn forgets(&self) -> impl Iterator<Item = u64> + '_ {
        self.decisions
            .iter()
            .filter(|one| !one.is_kept())
            .map(|one| one.point.sequence)
    }
}

/// Why nothing was decided.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RetentionRefusal {
    /// No rule is set.
    #[error("the policy has no rule, so every point would go")]
    EmptyPolicy,
    /// The clock says less than a point's stamp.
    #[error(
        "time went backwards: point {sequence} is stamped {stamp_unix_ms} ms, now is {now_unix_ms} ms"
    )]
    TimeWentBackwards {
        /// The point with the latest stamp.
        sequence: u64,
        /// Its stamp.
        stamp_unix_ms: u64,
        /// What the clock says.
        now_unix_ms: u64,
    },
    /// Two points of one name have the same number: they are not of one name.
    #[error("two points have sequence number {sequence}")]
    DuplicateSequence {
        /// The number.
        sequence: u64,
    },
    /// A stamp that no calendar holds.
    #[error("point {sequence} is stamped {stamp_unix_ms} ms, which no calendar holds")]
    StampOutOfRange {
        /// The point.
        sequence: u64,
        /// Its stamp.
        stamp_unix_ms: u64,
    },
}

/// Decides over all points of one name that are not forgotten. Pure: the same input gives the same plan.
///
/// # Errors
/// A [`RetentionRefusal`], and then nothing may go.
pub fn plan_retention(
    points: &[RetentionPoint],
    policy: &RetentionPolicy,
    now_unix_ms: u64,
) -> Result<RetentionPlan, RetentionRefusal> {
    if policy.is_empty() {
        return Err(RetentionRefusal::EmptyPolicy);
    }
    let mut points = points.to_vec();
    points.sort_by_key(|point| point.sequence);
    check_points(&points, now_unix_ms)?;

    let mut ballot = Ballot::default();
    vote_last(&points, policy.keep_last, &mut ballot);
    for rule in PeriodRule::ALL {
        vote_periods(&points, rule, policy, &mut ballot)?;
    }
    if let Some(span) = policy.keep_within {
        vote_within(&points, span, policy.zone, &mut ballot);
    }
    vote_protections(&points, policy.minimum_age_ms, now_unix_ms, &mut ballot);
    Ok(ballot.into_plan(points))
}

/// Reasons by point, gathered rule by rule.
#[derive(Default)]
struct Ballot {
    keeps: BTreeMap<u64, Vec<KeepReason>>,
    passes: BTreeMap<u64, Vec<PassReason>>,
}

impl Ballot {
    fn keep(&mut self, sequence: u64, reason: KeepReason) {
        self.keeps.entry(sequence).or_default().push(reason);
    }

    fn pass(&mut self, sequence: u64, reason: PassReason) {
        self.passes.entry(sequence).or_default().push(reason);
    }

    fn into_plan(mut self, points: Vec<RetentionPoint>) -> RetentionPlan {
        let decisions = points
            .into_iter()
            .map(|point| {
                let verdict = match self.keeps.remove(&point.sequence) {
                    Some(reasons) => RetentionVerdict::Keep(reasons),
                    None => RetentionVerdict::Forget(
                        self.passes.remove(&point.sequence).unwrap_or_default(),
                    ),
                };
                RetentionDecision { point, verdict }
            })
            .collect();
        RetentionPlan { decisions }
    }
}

fn check_points(points: &[RetentionPoint], now_unix_ms: u64) -> Result<(), RetentionRefusal> {
    let mut seen = BTreeSet::new();
    if let Some(twice) = points.iter().find(|point| !seen.insert(point.sequence)) {
        return Err(RetentionRefusal::DuplicateSequence {
            sequence: twice.sequence,
        });
    }
    match points.iter().max_by_key(|point| point.created_unix_ms) {
        Some(latest) if latest.created_unix_ms > now_unix_ms => {
            Err(RetentionRefusal::TimeWentBackwards {
                sequence: latest.sequence,
                stamp_unix_ms: latest.created_unix_ms,
                now_unix_ms,
            })
        }
        _ => Ok(()),
    }
}

/// Damaged points do not use up the count: `n` points that can be recovered stay.
fn vote_last(points: &[RetentionPoint], count: u32, ballot: &mut Ballot) {
    if count == 0 {
        return;
    }
    let mut good = 0u32;
    let mut position = 0u32;
    for point in points.iter().rev() {
        if good < count {
            position = position.saturating_add(1);
            ballot.keep(point.sequence, KeepReason::Last { position });
            if point.health != PointHealth::Damaged {
                good = good.saturating_add(1);
            }
        } else {
            ballot.pass(point.sequence, PassReason::BeyondLast { count });
        }
    }
}

fn vote_periods(
    points: &[RetentionPoint],
    rule: PeriodRule,
    policy: &RetentionPolicy,
    ballot: &mut Ballot,
) -> Result<(), RetentionRefusal> {
    let count = policy.count(rule);
    if count == 0 {
        return Ok(());
    }
    let mut periods: BTreeMap<Period, Vec<&RetentionPoint>> = BTreeMap::new();
    for point in points {
        let period = Period::holding(rule, point.created_unix_ms, policy.zone).ok_or(
            RetentionRefusal::StampOutOfRange {
                sequence: point.sequence,
                stamp_unix_ms: point.created_unix_ms,
            },
        )?;
        periods.entry(period).or_default().push(point);
    }
    for (position, (period, members)) in (1u32..).zip(periods.into_iter().rev()) {
        let by = members
            .iter()
            .max_by_key(|point| (point.health != PointHealth::Damaged, point.sequence))
            .map(|point| point.sequence);
        for point in members {
            match by {
                _ if position > count => {
                    ballot.pass(point.sequence, PassReason::BeyondPeriods { period, count });
                }
                Some(by) if by != point.sequence => {
                    ballot.pass(point.sequence, PassReason::Represented { period, by });
                }
                _ => ballot.keep(point.sequence, KeepReason::Period { period, position }),
            }
        }
    }
    Ok(())
}

fn vote_within(
    points: &[RetentionPoint],
    span: CalendarSpan,
    zone: RetentionZone,
    ballot: &mut Ballot,
) {
    let Some(latest) = points.iter().map(|point| point.created_unix_ms).max() else {
        return;
    };
    let since_unix_ms = span.before(latest, zone);
    if span.is_zero() {
        return;
    }
    for point in points {
        if point.created_unix_ms >= since_unix_ms {
            ballot.keep(point.sequence, KeepReason::Within { since_unix_ms });
        } else {
            ballot.pass(point.sequence, PassReason::NotWithin { since_unix_ms });
        }
    }
}

/// What no policy can take away: holds, the minimum age, and the best point.
fn vote_protections(
    points: &[RetentionPoint],
    minimum_age_ms: u64,
    now_unix_ms: u64,
    ballot: &mut Ballot,
) {
    for point in points {
        if point.hold == HoldState::Held {
            ballot.keep(point.sequence, KeepReason::Held);
        }
        let until_unix_ms = point.created_unix_ms.saturating_add(minimum_age_ms);
        if until_unix_ms > now_unix_ms {
            ballot.keep(point.sequence, KeepReason::MinimumAge { until_unix_ms });
        }
    }
    let rank = |point: &&RetentionPoint| {
        let health = match point.health {
            PointHealth::Verified => 2,
            PointHealth::Unverified => 1,
            PointHealth::Damaged => 0,
        };
        (health, point.sequence)
    };
    if let Some(best) = points.iter().max_by_key(rank) {
        let reason = match best.health {
            PointHealth::Verified => KeepReason::NewestVerified,
            PointHealth::Unverified | PointHealth::Damaged => KeepReason::NewestUnverified,
        };
        ballot.keep(best.sequence, reason);
    }
}

impl fmt::Display for KeepReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Last { position } => write!(f, "last {position}"),
            Self::Period { period, position } => {
                write!(f, "{} {position} ({period})", period.rule())
            }
            Self::Within { .. } => f.write_str("within the span"),
            Self::Held => f.write_str("held"),
            Self::MinimumAge { .. } => f.write_str("younger than the minimum age"),
            Self::NewestVerified => f.write_str("the newest verified point"),
            Self::NewestUnverified => f.write_str("the newest point, none is verified"),
        }
    }
}

impl fmt::Display for PassReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::BeyondLast { count } => write!(f, "not among the last {count}"),
            Self::Represented { period, by } => {
                write!(f, "{}: point {by} stands for {period}", period.rule())
            }
            Self::BeyondPeriods { period, count } => {
                write!(
                    f,
                    "{}: {period} is beyond the newest {count}",
                    period.rule()
                )
            }
            Self::NotWithin { .. } => f.write_str("older than the span"),
        }
    }
}
