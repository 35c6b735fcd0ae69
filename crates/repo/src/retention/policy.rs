//! What an operator says about keeping: counts per period, a span, a floor, and the zone that days are cut in.
//!
//! A span is written as restic writes it, `2y5m7d3h`: years, months, weeks (`w`), days, hours, each at most once and in
//! this order. Months and years are those of the calendar, in the policy's zone: one month before 31 March is the last
//! day of February.

use std::fmt;
use std::str::FromStr;

use jiff::civil::DateTime;
use jiff::tz::Offset;
use jiff::{Span, Timestamp};

/// The greatest number in front of a unit of a [`CalendarSpan`].
const SPAN_NUMBER_MAX: u16 = 9_999;

/// How long the points of one name are kept. A rule of zero is absent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RetentionPolicy {
    /// The newest so many points.
    pub keep_last: u32,
    /// One point in each of the newest so many hours that have any.
    pub keep_hourly: u32,
    /// One point in each of the newest so many days that have any.
    pub keep_daily: u32,
    /// One point in each of the newest so many ISO 8601 weeks that have any.
    pub keep_weekly: u32,
    /// One point in each of the newest so many months that have any.
    pub keep_monthly: u32,
    /// One point in each of the newest so many years that have any.
    pub keep_yearly: u32,
    /// Every point not older than this, counted back from the newest point: what is no longer backed up does not age out.
    pub keep_within: Option<CalendarSpan>,
    /// No point younger than this goes, whatever the rules say.
    pub minimum_age_ms: u64,
    /// Where hours, days, weeks, months and years begin.
    pub zone: RetentionZone,
}

/// The floor under every policy that does not name another: one day.
pub const MINIMUM_AGE_DEFAULT_MS: u64 = 24 * 60 * 60 * 1000;

impl RetentionPolicy {
    /// A policy without a rule, which is refused until one is set: UTC, with the default floor.
    pub fn without_rules() -> Self {
        Self {
            keep_last: 0,
            keep_hourly: 0,
            keep_daily: 0,
            keep_weekly: 0,
            keep_monthly: 0,
            keep_yearly: 0,
            keep_within: None,
            minimum_age_ms: MINIMUM_AGE_DEFAULT_MS,
            zone: RetentionZone::Utc,
        }
    }

    /// Whether no rule is set, so that everything would go.
    pub fn is_empty(&self) -> bool {
        self.keep_last == 0
            && PeriodRule::ALL.iter().all(|rule| self.count(*rule) == 0)
            && self.keep_within.is_none_or(CalendarSpan::is_zero)
    }

    /// How many periods of this length keep a point.
    pub fn count(&self, rule: PeriodRule) -> u32 {
        match rule {
            PeriodRule::Hourly => self.keep_hourly,
            PeriodRule::Daily => self.keep_daily,
            PeriodRule::Weekly => self.keep_weekly,
            PeriodRule::Monthly => self.keep_monthly,
            PeriodRule::Yearly => self.keep_yearly,
        }
    }
}

/// The rules that keep one point per period.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PeriodRule {
    /// Clock hours.
    Hourly,
    /// Calendar days.
    Daily,
    /// ISO 8601 weeks: Monday first, the week of the first Thursday is week 1.
    Weekly,
    /// Calendar months.
    Monthly,
    /// Calendar years.
    Yearly,
}

impl PeriodRule {
    /// All of them, the shortest first.
    pub const ALL: [Self; 5] = [
        Self::Hourly,
        Self::Daily,
        Self::Weekly,
        Self::Monthly,
        Self::Yearly,
    ];
}

impl fmt::Display for PeriodRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Hourly => "hourly",
            Self::Daily => "daily",
            Self::Weekly => "weekly",
            Self::Monthly => "monthly",
            Self::Yearly => "yearly",
        })
    }
}

/// One hour, day, week, month or year; ordered by time among periods of the same rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Period {
    rule: PeriodRule,
    year: i16,
    /// Month or ISO week; zero for a year.
    part: i8,
    day: i8,
    hour: i8,
}

impl Period {
    /// The period of this length that holds the instant (ms since 1970 UTC), or nothing after the year 9999.
    pub fn holding(rule: PeriodRule, unix_ms: u64, zone: RetentionZone) -> Option<Self> {
        let time = zone.local(unix_ms)?;
        let (year, month, day, hour) = (time.year(), time.month(), time.day(), time.hour());
        let (year, part, day, hour) = match rule {
            PeriodRule::Hourly => (year, month, day, hour),
            PeriodRule::Daily => (year, month, day, 0),
            PeriodRule::Weekly => {
                let week = time.date().iso_week_date();
                (week.year(), week.week(), 0, 0)
            }
            PeriodRule::Monthly => (year, month, 0, 0),
            PeriodRule::Yearly => (year, 0, 0, 0),
        };
        Some(Self {
            rule,
            year,
            part,
            day,
            hour,
        })
    }

    /// The rule that it belongs to.
    pub fn rule(&self) -> PeriodRule {
        self.rule
    }
}

impl fmt::Display for Period {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            year,
            part,
            day,
            hour,
            ..
        } = self;
        match self.rule {
            PeriodRule::Hourly => write!(f, "{year:04}-{part:02}-{day:02} {hour:02}h"),
            PeriodRule::Daily => write!(f, "{year:04}-{part:02}-{day:02}"),
            PeriodRule::Weekly => write!(f, "{year:04}-W{part:02}"),
            PeriodRule::Monthly => write!(f, "{year:04}-{part:02}"),
            PeriodRule::Yearly => write!(f, "{year:04}"),
        }
    }
}

/// Where a day begins: always said, never taken from the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum RetentionZone {
    /// Days of UTC.
    #[default]
    Utc,
    /// A fixed distance from UTC, east positive.
    Offset(ZoneOffset),
}

/// A distance from UTC in whole minutes, at most a day either way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ZoneOffset {
    minutes: i16,
}

impl ZoneOffset {
    /// East of UTC is positive; nothing when it is a day or more.
    pub fn from_minutes(minutes: i16) -> Option<Self> {
        (minutes.unsigned_abs() < 24 * 60).then_some(Self { minutes })
    }
}

impl RetentionZone {
    fn offset(self) -> Offset {
        match self {
            Self::Utc => Offset::UTC,
            Self::Offset(ZoneOffset { minutes }) => {
                Offset::from_seconds(i32::from(minutes).saturating_mul(60)).unwrap_or(Offset::UTC)
            }
        }
    }

    fn local(self, unix_ms: u64) -> Option<DateTime> {
        let unix_ms = i64::try_from(unix_ms).ok()?;
        Timestamp::from_millisecond(unix_ms)
            .ok()
            .map(|instant| self.offset().to_datetime(instant))
    }
}

impl fmt::Display for RetentionZone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Utc => f.write_str("UTC"),
            Self::Offset(ZoneOffset { minutes }) => {
                let sign = if *minutes < 0 { '-' } else { '+' };
                let size = minutes.unsigned_abs();
                write!(f, "{sign}{:02}:{:02}", size / 60, size % 60)
            }
        }
    }
}

impl FromStr for RetentionZone {
    type Err = RetentionTextError;

    /// `UTC`, `+02:00`, `-0930`, `+9`.
    fn from_str(text: &str) -> Result<Self, RetentionTextError> {
        let refuse = || RetentionTextError::Zone { text: text.into() };
        if text.eq_ignore_ascii_case("utc") || text == "Z" {
            return Ok(Self::Utc);
        }
        let (sign, digits) = if let Some(rest) = text.strip_prefix('+') {
            (1, rest)
        } else if let Some(rest) = text.strip_prefix('-') {
            (-1, rest)
        } else {
            return Err(refuse());
        };
        let number = |part: &str, limit: i16| {
            let plain = !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
            part.parse::<i16>()
                .ok()
                .filter(|value| plain && *value < limit)
                .ok_or_else(refuse)
        };
        let (hours, minutes) = match (digits.split_once(':'), digits.len()) {
            (Some((hours, minutes)), _) => (hours, minutes),
            (None, 4) => digits.split_at_checked(2).ok_or_else(refuse)?,
            (None, 1 | 2) => (digits, "0"),
            _ => return Err(refuse()),
        };
        let total = number(hours, 24)?
            .saturating_mul(60)
            .saturating_add(number(minutes, 60)?);
        ZoneOffset::from_minutes(total.saturating_mul(sign))
            .map(Self::Offset)
            .ok_or_else(refuse)
    }
}

/// Years, months, weeks, days and hours of the calendar.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct CalendarSpan {
    /// Calendar years.
    pub years: u16,
    /// Calendar months.
    pub months: u16,
    /// Weeks of seven days.
    pub weeks: u16,
    /// Days.
    pub days: u16,
    /// Hours.
    pub hours: u16,
}

impl CalendarSpan {
    /// Whether it spans nothing.
    pub fn is_zero(self) -> bool {
        self == Self::default()
    }

    /// The instant that lies this span before `unix_ms` in the zone's calendar; 1970 when that is earlier.
    pub fn before(self, unix_ms: u64, zone: RetentionZone) -> u64 {
        let bounded = |number: u16| i32::from(number.min(SPAN_NUMBER_MAX));
        let span = Span::new()
            .years(bounded(self.years))
            .months(bounded(self.months))
            .weeks(bounded(self.weeks))
            .days(bounded(self.days))
            .hours(bounded(self.hours));
        zone.local(unix_ms)
            .and_then(|time| time.checked_sub(span).ok())
            .and_then(|time| zone.offset().to_timestamp(time).ok())
            .and_then(|instant| u64::try_from(instant.as_millisecond()).ok())
            .unwrap_or(0)
    }
}

impl fmt::Display for CalendarSpan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let parts = [
            (self.years, 'y'),
            (self.months, 'm'),
            (self.weeks, 'w'),
            (self.days, 'd'),
            (self.hours, 'h'),
        ];
        if self.is_zero() {
            return f.write_str("0h");
        }
        parts
            .iter()
            .filter(|(number, _)| *number > 0)
            .try_for_each(|(n, unit)| write!(f, "{n}{unit}"))
    }
}

impl FromStr for CalendarSpan {
    type Err = RetentionTextError;

    fn from_str(text: &str) -> Result<Self, RetentionTextError> {
        let refuse = || RetentionTextError::Span { text: text.into() };
        let mut span = Self::default();
        let mut rest = text;
        let mut units = "ymwdh";
        if text.is_empty() {
            return Err(refuse());
        }
        while !rest.is_empty() {
            let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
            let (number, behind) = rest.split_at_checked(digits).ok_or_else(refuse)?;
            let number = number
                .parse::<u16>()
                .ok()
                .filter(|number| *number <= SPAN_NUMBER_MAX)
                .ok_or_else(refuse)?;
            let unit = behind.chars().next().ok_or_else(refuse)?;
            // Each unit at most once, the greater first: what stands behind `m` can no longer be years.
            let (_, later) = units.split_once(unit).ok_or_else(refuse)?;
            units = later;
            match unit {
                'y' => span.years = number,
                'm' => span.months = number,
                'w' => span.weeks = number,
                'd' => span.days = number,
                _ => span.hours = number,
            }
            rest = behind.get(1..).ok_or_else(refuse)?;
        }
        Ok(span)
    }
}

/// A policy text that cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RetentionTextError {
    /// Not a span.
    #[error("`{text}` is not a span such as 2y5m7d3h")]
    Span {
        /// What was given.
        text: String,
    },
    /// Not a zone.
    #[error("`{text}` is neither UTC nor an offset such as +02:00")]
    Zone {
        /// What was given.
        text: String,
    },
}
