//! Points in time and spans of time, in the two spellings: ISO 8601 in messages, DMTF's own in embedded text (DSP0004 §5.2.4).
//!
//! ```text
//!   2026-03-02T09:11:27.412Z      20260302091127.412000+000         a point
//!   P0DT0H30M0S                   00000000003000.000000:000         a span: 8 digits of days, then hhmmss
//! ```
//!
//! **Invariants.** Years 1 to 9999; spans below 100,000,000 days; a microsecond is the finest.

use std::fmt;
use std::fmt::Write as _;
use std::str::FromStr;
use std::time::Duration;

const MICROS_PER_SECOND: i64 = 1_000_000;
const SECONDS_PER_DAY: i64 = 86_400;
const MICROS_PER_DAY: u64 = 86_400_000_000;
const SPAN_DAYS_END: u64 = 100_000_000;

/// Year, month, day.
type Day = (i64, i64, i64);
/// Hour, minute, second, microsecond.
type Clock = (i64, i64, i64, i64);

/// A point in time, to the microsecond, kept in UTC.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CimDatetime {
    unix_micros: i64,
}

impl CimDatetime {
    /// What Windows writes where there is no date: the first of January 1601.
    pub const NONE: Self = Self {
        unix_micros: -11_644_473_600 * MICROS_PER_SECOND,
    };

    /// A point by microseconds since 1970; `None` outside of the years 1 to 9999.
    pub fn from_unix_micros(unix_micros: i64) -> Option<Self> {
        let year = civil_of_days(unix_micros.div_euclid(MICROS_PER_SECOND * SECONDS_PER_DAY)).0;
        (1..=9999).contains(&year).then_some(Self { unix_micros })
    }

    /// Microseconds since 1970.
    pub fn unix_micros(self) -> i64 {
        self.unix_micros
    }

    /// Whether it is the value that stands for none (any time in 1601 or before).
    pub fn is_none(self) -> bool {
        self.unix_micros < Self::NONE.unix_micros + 366 * SECONDS_PER_DAY * MICROS_PER_SECOND
    }

    /// Reads either spelling; `None` if it is neither. A point without zone is UTC.
    pub fn parse(text: &str) -> Option<Self> {
        if text.len() > 64 {
            return None;
        }
        Self::parse_iso(text).or_else(|| Self::parse_dmtf(text))
    }

    fn parse_iso(text: &str) -> Option<Self> {
        let (date, time) = text.split_once(['T', 't'])?;
        let mut parts = date.splitn(3, '-');
        let day = (
            digits(parts.next()?, 4)?,
            digits(parts.next()?, 2)?,
            digits(parts.next()?, 2)?,
        );
        let (clock, offset_minutes) = split_zone(time)?;
        let mut parts = clock.splitn(3, ':');
        let hour = digits(parts.next()?, 2)?;
        let minute = digits(parts.next()?, 2)?;
        let (second, micros) = seconds(parts.next()?)?;
        Self::from_parts(day, (hour, minute, second, micros), offset_minutes)
    }

    fn parse_dmtf(text: &str) -> Option<Self> {
        if text.len() != 25 || !text.is_ascii() {
            return None;
        }
        let at = |from: usize, to: usize| text.get(from..to);
        if at(14, 15)? != "." {
            return None;
        }
        let micros = match at(15, 21)? {
            "******" => 0,
            micros => digits(micros, 6)?,
        };
        let offset = digits(at(22, 25)?, 3)?;
        let offset_minutes = match at(21, 22)? {
            "+" => offset,
            "-" => -offset,
            _ => return None,
        };
        Self::from_parts(
            (
                digits(at(0, 4)?, 4)?,
                digits(at(4, 6)?, 2)?,
                digits(at(6, 8)?, 2)?,
            ),
            (
                digits(at(8, 10)?, 2)?,
                digits(at(10, 12)?, 2)?,
                digits(at(12, 14)?, 2)?,
                micros,
            ),
            offset_minutes,
        )
    }

    fn from_parts(
        (year, month, day): Day,
        (hour, minute, second, micros): Clock,
        offset_minutes: i64,
    ) -> Option<Self> {
        let is_clock =
            (0..24).contains(&hour) && (0..60).contains(&minute) && (0..=60).contains(&second);
        if !(1..=9999).contains(&year) || !is_clock || !(1..=12).contains(&month) {
            return None;
        }
        let days = days_of_civil(year, month, day);
        if civil_of_days(days) != (year, month, day) {
            return None;
        }
        let seconds =
            days * SECONDS_PER_DAY + hour * 3600 + (minute - offset_minutes) * 60 + second;
        Self::from_unix_micros(seconds * MICROS_PER_SECOND + micros)
    }

    fn parts(self) -> (Day, Clock) {
        let seconds = self.unix_micros.div_euclid(MICROS_PER_SECOND);
        let micros = self.unix_micros.rem_euclid(MICROS_PER_SECOND);
        let of_day = seconds.rem_euclid(SECONDS_PER_DAY);
        (
            civil_of_days(seconds.div_euclid(SECONDS_PER_DAY)),
            (of_day / 3600, of_day / 60 % 60, of_day % 60, micros),
        )
    }

    /// As messages have it: `2026-03-02T09:11:27.412Z`.
    pub fn to_iso(self) -> String {
        let ((year, month, day), (hour, minute, second, micros)) = self.parts();
        let fraction = fraction(micros);
        format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}{fraction}Z")
    }

    /// As embedded text has it: `20260302091127.412000+000`.
    pub fn to_dmtf(self) -> String {
        let ((year, month, day), (hour, minute, second, micros)) = self.parts();
        format!("{year:04}{month:02}{day:02}{hour:02}{minute:02}{second:02}.{micros:06}+000")
    }
}

impl fmt::Display for CimDatetime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.to_iso())
    }
}

/// A span of time, to the microsecond.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct CimInterval {
    micros: u64,
}

impl CimInterval {
    /// A span; `None` from 100,000,000 days on.
    pub fn from_micros(micros: u64) -> Option<Self> {
        (micros / MICROS_PER_DAY < SPAN_DAYS_END).then_some(Self { micros })
    }

    /// A span of that many seconds.
    pub fn from_seconds(seconds: u32) -> Self {
        Self {
            micros: u64::from(seconds) * 1_000_000,
        }
    }

    /// In microseconds.
    pub fn micros(self) -> u64 {
        self.micros
    }

    /// As the standard library has it.
    pub fn to_duration(self) -> Duration {
        Duration::from_micros(self.micros)
    }

    /// Reads either spelling; `None` if it is neither. Years and months have no length and are refused.
    pub fn parse(text: &str) -> Option<Self> {
        if text.len() > 64 {
            return None;
        }
        Self::parse_iso(text).or_else(|| Self::parse_dmtf(text))
    }

    /// Reads `P0DT0H30M0S` and what may be left out of it.
    pub fn parse_iso(text: &str) -> Option<Self> {
        let rest = text.strip_prefix('P')?;
        let (days, clock) = match rest.split_once('T') {
            Some((days, clock)) => (days, Some(clock).filter(|it| !it.is_empty())?),
            None => (rest, ""),
        };
        let mut seconds: u64 = 0;
        let mut micros = 0;
        let mut is_anything = false;
        if !days.is_empty() {
            seconds = number(days.strip_suffix('D')?)?.checked_mul(86_400)?;
            is_anything = true;
        }
        let mut clock = clock;
        for (unit, length) in [('H', 3600), ('M', 60)] {
            if let Some((count, rest)) = clock.split_once(unit) {
                seconds = seconds.checked_add(number(count)?.checked_mul(length)?)?;
                clock = rest;
                is_anything = true;
            }
        }
        if !clock.is_empty() {
            let (whole, fraction) = split_fraction(clock.strip_suffix('S')?)?;
            seconds = seconds.checked_add(number(whole)?)?;
            micros = fraction;
            is_anything = true;
        }
        is_anything.then_some(())?;
        let whole = seconds.checked_mul(1_000_000)?;
        Self::from_micros(whole.checked_add(u64::try_from(micros).ok()?)?)
    }

    /// Reads `00000000003000.000000:000`, the only spelling that embedded text may have.
    pub fn parse_dmtf(text: &str) -> Option<Self> {
        if text.len() != 25
            || !text.is_ascii()
            || text.get(14..15)? != "."
            || text.get(21..)? != ":000"
        {
            return None;
        }
        let part = |from: usize, to: usize| number(text.get(from..to)?);
        let (hours, minutes, seconds) = (part(8, 10)?, part(10, 12)?, part(12, 14)?);
        if hours > 23 || minutes > 59 || seconds > 59 {
            return None;
        }
        let micros = match text.get(15..21)? {
            "******" => 0,
            micros => number(micros)?,
        };
        let total = part(0, 8)? * 86_400 + hours * 3600 + minutes * 60 + seconds;
        Self::from_micros(total * 1_000_000 + micros)
    }

    fn parts(self) -> (u64, u64, u64, u64, u64) {
        let seconds = self.micros / 1_000_000;
        (
            seconds / 86_400,
            seconds / 3600 % 24,
            seconds / 60 % 60,
            seconds % 60,
            self.micros % 1_000_000,
        )
    }

    /// As messages have it: `P0DT0H30M0S`.
    pub fn to_iso(self) -> String {
        let (days, hours, minutes, seconds, micros) = self.parts();
        let fraction = fraction(i64::try_from(micros).unwrap_or(0));
        format!("P{days}DT{hours}H{minutes}M{seconds}{fraction}S")
    }

    /// As embedded text has it: `00000000003000.000000:000`.
    pub fn to_dmtf(self) -> String {
        let (days, hours, minutes, seconds, micros) = self.parts();
        format!("{days:08}{hours:02}{minutes:02}{seconds:02}.{micros:06}:000")
    }
}

impl fmt::Display for CimInterval {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.to_iso())
    }
}

/// Exactly `count` digits.
fn digits(text: &str, count: usize) -> Option<i64> {
    (text.len() == count && text.bytes().all(|it| it.is_ascii_digit()))
        .then(|| i64::from_str(text).ok())
        .flatten()
}

/// One to twelve digits.
fn number(text: &str) -> Option<u64> {
    ((1..=12).contains(&text.len()) && text.bytes().all(|it| it.is_ascii_digit()))
        .then(|| u64::from_str(text).ok())
        .flatten()
}

/// `27.412` into `("27", 412000)`; what is finer than a microsecond is cut off.
fn split_fraction(text: &str) -> Option<(&str, i64)> {
    let Some((whole, fraction)) = text.split_once('.') else {
        return Some((text, 0));
    };
    if fraction.is_empty() || fraction.len() > 12 {
        return None;
    }
    let mut padded = fraction.to_owned();
    while padded.len() < 6 {
        padded.push('0');
    }
    padded.bytes().all(|it| it.is_ascii_digit()).then_some(())?;
    Some((whole, digits(padded.get(..6)?, 6)?))
}

fn seconds(text: &str) -> Option<(i64, i64)> {
    let (whole, micros) = split_fraction(text)?;
    Some((digits(whole, 2)?, micros))
}

/// The clock, and the minutes that its zone is ahead of UTC.
fn split_zone(text: &str) -> Option<(&str, i64)> {
    if let Some(clock) = text.strip_suffix(['Z', 'z']) {
        return Some((clock, 0));
    }
    let Some(at) = text.rfind(['+', '-']) else {
        return Some((text, 0));
    };
    let (clock, zone) = text.split_at_checked(at)?;
    let (sign, zone) = zone.split_at_checked(1)?;
    let (hours, minutes) = zone.split_once(':')?;
    let (hours, minutes) = (digits(hours, 2)?, digits(minutes, 2)?);
    if hours > 14 || minutes > 59 {
        return None;
    }
    let ahead = hours * 60 + minutes;
    Some((clock, if sign == "-" { -ahead } else { ahead }))
}

/// `.412` for 412000 microseconds; nothing for none.
fn fraction(micros: i64) -> String {
    let mut text = String::new();
    if micros > 0 && write!(text, ".{micros:06}").is_ok() {
        text.truncate(text.trim_end_matches('0').len());
    }
    text
}

/// Days since 1970 of a date of the Gregorian calendar, extended backwards.
fn days_of_civil(year: i64, month: i64, day: i64) -> i64 {
    // The year begins in March, so that the leap day is its last.
    let shifted = if month <= 2 { year - 1 } else { year };
    let era = shifted.div_euclid(400);
    let of_era = shifted.rem_euclid(400);
    let of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719_468
}

/// The inverse of [`days_of_civil`].
fn civil_of_days(days: i64) -> (i64, i64, i64) {
    let shifted = days.saturating_add(719_468);
    let era = shifted.div_euclid(146_097);
    let of_era = shifted.rem_euclid(146_097);
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 {
        shifted_month + 3
    } else {
        shifted_month - 9
    };
    let year = era * 400 + year_of_era + i64::from(month <= 2);
    (year, month, day)
}
