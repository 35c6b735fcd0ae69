//! Virtual time, and what is due when.
//!
//! ```text
//!   schedule(at, event) ─► queue ordered by (time, order of scheduling) ─► next_due(until): one event at a time
//! ```
//!
//! **Invariants.** Time moves only when it is told to. Two events of the same instant happen in the order in which they were
//! scheduled.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

/// Milliseconds since 1970 on the estate's own clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VirtualTime(pub u64);

impl VirtualTime {
    /// Where the clock of an estate begins unless told otherwise: 2026-05-02 01:00:00 UTC.
    pub const START: Self = Self(1_777_683_600_000);

    /// Later by so much.
    #[must_use]
    pub fn after(self, duration: Duration) -> Self {
        let millis = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        Self(self.0.saturating_add(millis))
    }

    /// From an earlier time to this one; zero when it is not earlier.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(self.0.saturating_sub(earlier.0))
    }

    /// Seconds since 1970.
    pub fn unix_seconds(self) -> u64 {
        self.0 / 1000
    }
}

impl fmt::Display for VirtualTime {
    /// ISO 8601 with milliseconds, UTC.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let days = self.0 / 86_400_000;
        let millis = self.0 % 86_400_000;
        // Civil date from days, by eras of 400 years that begin in March.
        let shifted = days + 719_468;
        let era = shifted / 146_097;
        let of_era = shifted % 146_097;
        let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
        let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let month_from_march = (5 * of_year + 2) / 153;
        let day = of_year - (153 * month_from_march + 2) / 5 + 1;
        let month = if month_from_march < 10 {
            month_from_march + 3
        } else {
            month_from_march - 9
        };
        let year = year_of_era + era * 400 + u64::from(month <= 2);
        let (hours, minutes) = (millis / 3_600_000, millis / 60_000 % 60);
        let (seconds, rest) = (millis / 1000 % 60, millis % 1000);
        write!(
            f,
            "{year:04}-{month:02}-{day:02}T{hours:02}:{minutes:02}:{seconds:02}.{rest:03}Z"
        )
    }
}

/// What is due when.
#[derive(Debug)]
pub(super) struct Timeline<E> {
    now: VirtualTime,
    order: u64,
    due: BTreeMap<(VirtualTime, u64), E>,
}

impl<E> Timeline<E> {
    pub(super) fn starting_at(now: VirtualTime) -> Self {
        Self {
            now,
            order: 0,
            due: BTreeMap::new(),
        }
    }

    pub(super) fn now(&self) -> VirtualTime {
        self.now
    }

    pub(super) fn schedule(&mut self, at: VirtualTime, event: E) {
        self.order += 1;
        self.due.insert((at.max(self.now), self.order), event);
    }

    pub(super) fn schedule_in(&mut self, delay: Duration, event: E) {
        self.schedule(self.now.after(delay), event);
    }

    /// When the next event is due.
    pub(super) fn next_at(&self) -> Option<VirtualTime> {
        self.due.keys().next().map(|(at, _)| *at)
    }

    /// The next event that is due until then, with the clock set to its time; when none is left, the clock shows `until`.
    pub(super) fn next_due(&mut self, until: VirtualTime) -> Option<E> {
        match self.due.first_entry() {
            Some(entry) if entry.key().0 <= until => {
                let at = entry.key().0;
                self.now = self.now.max(at);
                Some(entry.remove())
            }
            _ => {
                self.now = self.now.max(until);
                None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_shown_as_windows_shows_them() {
        assert_eq!(VirtualTime(0).to_string(), "1970-01-01T00:00:00.000Z");
        assert_eq!(VirtualTime::START.to_string(), "2026-05-02T01:00:00.000Z");
        let leap = VirtualTime(951_827_696_789);
        assert_eq!(leap.to_string(), "2000-02-29T12:34:56.789Z");
    }

    #[test]
    fn events_of_one_instant_keep_their_order() {
        let mut line = Timeline::starting_at(VirtualTime(0));
        line.schedule(VirtualTime(5), 'b');
        line.schedule(VirtualTime(5), 'c');
        line.schedule(VirtualTime(1), 'a');
        let mut seen = Vec::new();
        while let Some(event) = line.next_due(VirtualTime(5)) {
            seen.push(event);
        }
        assert_eq!(seen, ['a', 'b', 'c']);
        assert_eq!(line.now(), VirtualTime(5));
    }
}
