//! Retention against an oracle that knows nothing of calendars but counting days, and against its promises.
#![expect(
    clippy::unwrap_used,
    reason = "a step of a test that fails ends the test"
)]

use std::collections::BTreeSet;

use proptest::prelude::*;
use repo::retention::{
    CalendarSpan, HoldState, KeepReason, PassReason, PeriodRule, PointHealth, RetentionPlan,
    RetentionPoint, RetentionPolicy, RetentionRefusal, RetentionVerdict, RetentionZone, ZoneOffset,
    plan_retention,
};

const HOUR_MS: u64 = 3_600_000;
const DAY_MS: u64 = 24 * HOUR_MS;
/// 2024-01-01 00:00 UTC, a Monday.
const MONDAY_MS: u64 = 1_704_067_200_000;

fn point(sequence: u64, created_unix_ms: u64) -> RetentionPoint {
    RetentionPoint {
        sequence,
        created_unix_ms,
        health: PointHealth::Unverified,
        hold: HoldState::Free,
    }
}

fn rules() -> RetentionPolicy {
    RetentionPolicy {
        minimum_age_ms: 0,
        ..RetentionPolicy::without_rules()
    }
}

fn kept(plan: &RetentionPlan) -> Vec<u64> {
    plan.decisions
        .iter()
        .filter(|one| one.is_kept())
        .map(|one| one.point.sequence)
        .collect()
}

fn check(points: &[RetentionPoint], policy: &RetentionPolicy, now: u64, expect: &[u64]) {
    let plan = plan_retention(points, policy, now).expect("a plan");
    assert_eq!(kept(&plan), expect, "policy {policy:?}\nplan {plan:#?}");
}

/// Year, month, day and hours since the epoch's days, by walking the calendar year by year.
fn civil(unix_ms: u64, offset_minutes: i64) -> (i64, i64, i64, i64) {
    let minutes = i64::try_from(unix_ms / 60_000).unwrap() + offset_minutes;
    let (mut days, hour) = (
        minutes.div_euclid(24 * 60),
        minutes.rem_euclid(24 * 60) / 60,
    );
    let leap = |year: i64| (year % 4 == 0 && year % 100 != 0) || year % 400 == 0;
    let mut year = 1970;
    while days < 0 {
        year -= 1;
        days += if leap(year) { 366 } else { 365 };
    }
    while days >= if leap(year) { 366 } else { 365 } {
        days -= if leap(year) { 366 } else { 365 };
        year += 1;
    }
    let february = if leap(year) { 29 } else { 28 };
    let mut month = 1;
    for length in [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31] {
        if days < length {
            break;
        }
        days -= length;
        month += 1;
    }
    (year, month, days + 1, hour)
}

/// The days since the Monday before the epoch, in sevens: two instants are in one ISO week if these are equal.
fn week_number(unix_ms: u64, offset_minutes: i64) -> i64 {
    let minutes = i64::try_from(unix_ms / 60_000).unwrap() + offset_minutes;
    (minutes.div_euclid(24 * 60) + 3).div_euclid(7)
}

fn naive_period(rule: PeriodRule, unix_ms: u64, offset_minutes: i64) -> (i64, i64, i64, i64) {
    let (year, month, day, hour) = civil(unix_ms, offset_minutes);
    match rule {
        PeriodRule::Hourly => (year, month, day, hour),
        PeriodRule::Daily => (year, month, day, 0),
        PeriodRule::Weekly => (week_number(unix_ms, offset_minutes), 0, 0, 0),
        PeriodRule::Monthly => (year, month, 0, 0),
        PeriodRule::Yearly => (year, 0, 0, 0),
    }
}

/// The definition, word by word, quadratic and without a plan.
fn naive_keeps(
    points: &[RetentionPoint],
    policy: &RetentionPolicy,
    offset_minutes: i64,
    now: u64,
) -> BTreeSet<u64> {
    let good = |p: &RetentionPoint| p.health != PointHealth::Damaged;
    let mut keeps = BTreeSet::new();
    for p in points {
        let newer_good = points
            .iter()
            .filter(|other| other.sequence > p.sequence && good(other))
            .count();
        if newer_good < policy.keep_last as usize {
            keeps.insert(p.sequence);
        }
        if p.hold == HoldState::Held || p.created_unix_ms + policy.minimum_age_ms > now {
            keeps.insert(p.sequence);
        }
        for rule in PeriodRule::ALL {
            let period = |p: &RetentionPoint| naive_period(rule, p.created_unix_ms, offset_minutes);
            let mine: Vec<_> = points
                .iter()
                .filter(|other| period(other) == period(p))
                .collect();
            let best = mine
                .iter()
                .filter(|other| good(other) || !mine.iter().any(|any| good(any)))
                .map(|other| other.sequence)
                .max();
            let newer: BTreeSet<_> = points
                .iter()
                .map(period)
                .filter(|other| *other > period(p))
                .collect();
            if best == Some(p.sequence) && newer.len() < policy.count(rule) as usize {
                keeps.insert(p.sequence);
            }
        }
    }
    if let Some(span) = policy.keep_within.filter(|span| !span.is_zero()) {
        // The oracle knows spans without months and years only: those have their own test.
        let hours = (u64::from(span.weeks) * 7 + u64::from(span.days)) * 24 + u64::from(span.hours);
        let latest = points.iter().map(|p| p.created_unix_ms).max().unwrap_or(0);
        keeps.extend(
            points
                .iter()
                .filter(|p| p.created_unix_ms >= latest.saturating_sub(hours * HOUR_MS))
                .map(|p| p.sequence),
        );
    }
    let of = |health| {
        points
            .iter()
            .filter(|p| p.health == health)
            .map(|p| p.sequence)
            .max()
    };
    keeps.extend(
        of(PointHealth::Verified)
            .or(of(PointHealth::Unverified))
            .or(of(PointHealth::Damaged)),
    );
    keeps
}

fn any_point() -> impl Strategy<Value = (u64, PointHealth, HoldState)> {
    let health = prop_oneof![
        4 => Just(PointHealth::Unverified),
        2 => Just(PointHealth::Verified),
        1 => Just(PointHealth::Damaged),
    ];
    let hold = prop_oneof![9 => Just(HoldState::Free), 1 => Just(HoldState::Held)];
    // Gaps from minutes to months, so that every rule meets full and empty periods.
    let gap = prop_oneof![
        0..90 * 60_000u64,
        0..40 * HOUR_MS,
        0..70 * DAY_MS,
        0..400 * DAY_MS
    ];
    (gap, health, hold)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn the_plan_keeps_what_the_definition_keeps(
        steps in proptest::collection::vec(any_point(), 1..40),
        counts in proptest::array::uniform6(0u32..6),
        span in (0u16..3, 0u16..30, 0u16..40),
        minimum_age_ms in prop_oneof![Just(0u64), 0..5 * DAY_MS],
        offset_minutes in -14i16 * 60..14 * 60,
        shuffle in any::<u64>(),
    ) {
        let mut at = MONDAY_MS;
        let mut points: Vec<RetentionPoint> = Vec::new();
        for ((gap, health, hold), sequence) in steps.into_iter().zip(1u64..) {
            at += gap;
            points.push(RetentionPoint { sequence, created_unix_ms: at, health, hold });
        }
        let [keep_last, keep_hourly, keep_daily, keep_weekly, keep_monthly, keep_yearly] = counts;
        let (weeks, days, hours) = span;
        let policy = RetentionPolicy {
            keep_last,
            keep_hourly,
            keep_daily,
            keep_weekly,
            keep_monthly,
            keep_yearly,
            keep_within: Some(CalendarSpan { weeks, days, hours, ..CalendarSpan::default() }),
            minimum_age_ms,
            zone: RetentionZone::Offset(ZoneOffset::from_minutes(offset_minutes).unwrap()),
        };
        prop_assume!(!policy.is_empty());
        let now = at + shuffle % (3 * DAY_MS);
        let expect = naive_keeps(&points, &policy, i64::from(offset_minutes), now);
        // The order in which points are given must not matter.
        let length = points.len();
        points.rotate_left(usize::try_from(shuffle % 1_000).unwrap() % length);
        let plan = plan_retention(&points, &policy, now).unwrap();
        let got: BTreeSet<u64> = kept(&plan).into_iter().collect();
        prop_assert_eq!(&got, &expect);
        prop_assert_eq!(plan.decisions.len(), length);
        prop_assert_eq!(plan.forgets().count() + got.len(), length);
        for decision in &plan.decisions {
            match &decision.verdict {
                RetentionVerdict::Keep(reasons) => prop_assert!(!reasons.is_empty()),
                RetentionVerdict::Forget(reasons) => prop_assert!(!reasons.is_empty()),
            }
        }
    }

    #[test]
    fn running_it_again_on_what_is_left_forgets_nothing_more(
        steps in proptest::collection::vec(any_point(), 1..40),
        counts in proptest::array::uniform6(0u32..5),
    ) {
        let mut at = MONDAY_MS;
        let mut points = Vec::new();
        for ((gap, health, hold), sequence) in steps.into_iter().zip(1u64..) {
            at += gap;
            points.push(RetentionPoint { sequence, created_unix_ms: at, health, hold });
        }
        let [keep_last, keep_hourly, keep_daily, keep_weekly, keep_monthly, keep_yearly] = counts;
        let policy = RetentionPolicy {
            keep_last, keep_hourly, keep_daily, keep_weekly, keep_monthly, keep_yearly, ..rules()
        };
        prop_assume!(!policy.is_empty());
        let first = plan_retention(&points, &policy, at).unwrap();
        let left: Vec<RetentionPoint> =
            first.decisions.iter().filter(|one| one.is_kept()).map(|one| one.point).collect();
        let second = plan_retention(&left, &policy, at).unwrap();
        prop_assert_eq!(second.forgets().count(), 0);
    }

    #[test]
    fn a_span_reads_as_it_is_written(
        years in 0u16..=9999, months in 0u16..=9999, weeks in 0u16..=9999,
        days in 0u16..=9999, hours in 0u16..=9999,
    ) {
        let span = CalendarSpan { years, months, weeks, days, hours };
        prop_assert_eq!(span.to_string().parse::<CalendarSpan>().unwrap(), span);
        // Never a panic, whatever it spans.
        prop_assert!(span.before(MONDAY_MS, RetentionZone::Utc) <= MONDAY_MS);
    }

    #[test]
    fn any_text_is_a_policy_text_or_a_typed_error(text in "\\PC{0,12}") {
        if let Ok(span) = text.parse::<CalendarSpan>() {
            prop_assert!(span.hours <= 9999);
        }
        if let Ok(zone) = text.parse::<RetentionZone>() {
            prop_assert_eq!(zone.to_string().parse::<RetentionZone>().unwrap(), zone);
        }
    }
}

#[test]
fn daily_keeps_the_newest_point_of_each_day_that_has_any() {
    let at = |day: u64, hour: u64| MONDAY_MS + day * DAY_MS + hour * HOUR_MS;
    let points = [
        point(1, at(0, 1)),
        point(2, at(0, 23)),
        point(3, at(5, 0)),
        point(4, at(9, 12)),
    ];
    let policy = RetentionPolicy {
        keep_daily: 3,
        ..rules()
    };
    check(&points, &policy, at(400, 0), &[2, 3, 4]);
    let policy = RetentionPolicy {
        keep_daily: 2,
        ..rules()
    };
    check(&points, &policy, at(400, 0), &[3, 4]);
}

#[test]
fn a_week_across_new_year_is_one_week() {
    // 2024-12-30 (Monday) and 2025-01-05 (Sunday) are both in 2025-W01.
    let monday = MONDAY_MS + 364 * DAY_MS;
    let points = [
        point(1, monday),
        point(2, monday + 6 * DAY_MS),
        point(3, monday + 7 * DAY_MS),
    ];
    let policy = RetentionPolicy {
        keep_weekly: 5,
        ..rules()
    };
    let plan = plan_retention(&points, &policy, monday + 9 * DAY_MS).unwrap();
    assert_eq!(kept(&plan), [2, 3]);
    let RetentionVerdict::Forget(reasons) = &plan.decisions[0].verdict else {
        panic!("point 1 stays: {plan:#?}")
    };
    assert_eq!(reasons.len(), 1);
    assert_eq!(
        reasons[0].to_string(),
        "weekly: point 2 stands for 2025-W01"
    );
}

#[test]
fn the_zone_decides_where_a_day_ends() {
    let points = [
        point(1, MONDAY_MS + 14 * HOUR_MS),
        point(2, MONDAY_MS + 16 * HOUR_MS),
    ];
    let policy = RetentionPolicy {
        keep_daily: 9,
        ..rules()
    };
    check(&points, &policy, MONDAY_MS + DAY_MS, &[2]);
    // In Tokyo it is 23:00 and 01:00 of the next day.
    let zone = "+09:00".parse().unwrap();
    check(
        &points,
        &RetentionPolicy { zone, ..policy },
        MONDAY_MS + DAY_MS,
        &[1, 2],
    );
}

#[test]
fn within_counts_months_of_the_calendar_back_from_the_newest_point() {
    // 2024-03-31 12:00; one month before is 2024-02-29 12:00.
    let newest = MONDAY_MS + 90 * DAY_MS + 12 * HOUR_MS;
    let leap_day = MONDAY_MS + 59 * DAY_MS + 12 * HOUR_MS;
    let points = [point(1, leap_day - 1), point(2, leap_day), point(3, newest)];
    let policy = RetentionPolicy {
        keep_within: Some("1m".parse().unwrap()),
        ..rules()
    };
    // Years later nothing has aged out, because nothing newer came.
    check(&points, &policy, newest + 3_000 * DAY_MS, &[2, 3]);
}

#[test]
fn a_damaged_point_never_stands_for_its_period_while_a_good_one_can() {
    let mut points = [point(1, MONDAY_MS), point(2, MONDAY_MS + HOUR_MS)];
    points[1].health = PointHealth::Damaged;
    let policy = RetentionPolicy {
        keep_daily: 1,
        ..rules()
    };
    check(&points, &policy, MONDAY_MS + 9 * DAY_MS, &[1]);
    let policy = RetentionPolicy {
        keep_last: 1,
        ..rules()
    };
    check(&points, &policy, MONDAY_MS + 9 * DAY_MS, &[1, 2]);
}

#[test]
fn the_newest_verified_point_stays_whatever_the_policy_says() {
    let mut points: Vec<RetentionPoint> =
        (1..=9).map(|n| point(n, MONDAY_MS + n * DAY_MS)).collect();
    points[2].health = PointHealth::Verified;
    points[3].health = PointHealth::Verified;
    let policy = RetentionPolicy {
        keep_last: 1,
        ..rules()
    };
    let plan = plan_retention(&points, &policy, MONDAY_MS + 99 * DAY_MS).unwrap();
    assert_eq!(kept(&plan), [4, 9]);
    assert_eq!(
        plan.decisions[3].verdict,
        RetentionVerdict::Keep(vec![KeepReason::NewestVerified])
    );
}

#[test]
fn young_and_held_points_stay() {
    let mut points: Vec<RetentionPoint> =
        (1..=5).map(|n| point(n, MONDAY_MS + n * DAY_MS)).collect();
    points[0].hold = HoldState::Held;
    let policy = RetentionPolicy {
        keep_last: 1,
        minimum_age_ms: 2 * DAY_MS,
        ..rules()
    };
    let now = MONDAY_MS + 5 * DAY_MS + HOUR_MS;
    let plan = plan_retention(&points, &policy, now).unwrap();
    assert_eq!(kept(&plan), [1, 4, 5]);
    assert_eq!(
        plan.decisions[0].verdict,
        RetentionVerdict::Keep(vec![KeepReason::Held])
    );
    assert_eq!(
        plan.decisions[1].verdict,
        RetentionVerdict::Forget(vec![PassReason::BeyondLast { count: 1 }])
    );
    assert_eq!(plan.forgets().collect::<Vec<_>>(), [2, 3]);
}

#[test]
fn a_clock_that_went_backwards_decides_nothing() {
    let points = [point(1, MONDAY_MS), point(2, MONDAY_MS + DAY_MS)];
    let policy = RetentionPolicy {
        keep_last: 1,
        ..rules()
    };
    let refusal = plan_retention(&points, &policy, MONDAY_MS + DAY_MS - 1).unwrap_err();
    assert_eq!(
        refusal,
        RetentionRefusal::TimeWentBackwards {
            sequence: 2,
            stamp_unix_ms: MONDAY_MS + DAY_MS,
            now_unix_ms: MONDAY_MS + DAY_MS - 1
        }
    );
}

#[test]
fn an_empty_policy_and_doubled_numbers_are_refused() {
    let points = [point(1, MONDAY_MS), point(1, MONDAY_MS)];
    let empty = RetentionPolicy {
        keep_within: Some(CalendarSpan::default()),
        ..rules()
    };
    assert_eq!(
        plan_retention(&points, &empty, MONDAY_MS).unwrap_err(),
        RetentionRefusal::EmptyPolicy
    );
    let policy = RetentionPolicy {
        keep_last: 1,
        ..rules()
    };
    assert_eq!(
        plan_retention(&points, &policy, MONDAY_MS).unwrap_err(),
        RetentionRefusal::DuplicateSequence { sequence: 1 }
    );
    let beyond = [point(1, u64::MAX)];
    let policy = RetentionPolicy {
        keep_daily: 1,
        ..rules()
    };
    assert!(matches!(
        plan_retention(&beyond, &policy, u64::MAX).unwrap_err(),
        RetentionRefusal::StampOutOfRange { sequence: 1, .. }
    ));
}

#[test]
fn texts_of_spans_and_zones_are_read_strictly() {
    let span: CalendarSpan = "2y5m7d3h".parse().unwrap();
    assert_eq!(
        span,
        CalendarSpan {
            years: 2,
            months: 5,
            weeks: 0,
            days: 7,
            hours: 3
        }
    );
    for wrong in [
        "", "5", "d", "3h2d", "1d1d", "1x", "-1d", "10000d", "1d ", "１d",
    ] {
        assert!(wrong.parse::<CalendarSpan>().is_err(), "{wrong:?} was read");
    }
    for (text, shown) in [
        ("UTC", "UTC"),
        ("+2", "+02:00"),
        ("-0930", "-09:30"),
        ("+05:45", "+05:45"),
    ] {
        assert_eq!(text.parse::<RetentionZone>().unwrap().to_string(), shown);
    }
    for wrong in ["", "2", "+", "+24", "+1:60", "+-1", "Europe/Rome", "+1:2:3"] {
        assert!(
            wrong.parse::<RetentionZone>().is_err(),
            "{wrong:?} was read"
        );
    }
}
