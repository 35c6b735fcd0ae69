//! Names and times as DOS and its heirs write them.
//!
//! **Invariants.** A long name is believed only when all its parts are there, in order, and its checksum is that of the
//! short one; else the short one stands alone, as Windows does it. Times that are no times are none.

#![cfg_attr(
    not(test),
    deny(
        clippy::indexing_slicing,
        clippy::arithmetic_side_effects,
        clippy::as_conversions,
        clippy::unwrap_used,
        clippy::expect_used
    )
)]

use crate::filesystem::Timestamp;
use crate::{FileName, field};

/// Code page 437 from 0x80 on, what short names are written in unless somebody chose another page.
const HIGH: &str = "ÇüéâäàåçêëèïîìÄÅÉæÆôöòûùÿÖÜ¢£¥₧ƒáíóúñÑªº¿⌐¬½¼¡«»░▒▓│┤╡╢╖╕╣║╗╝╜╛┐└┴┬├─┼╞╟╚╔╩╦╠═╬╧╨╤╥╙╘╒╓╫╪┘┌█▄▌▐▀αßΓπΣσµτΦΘΩδ∞φε∩≡±≥≤⌠⌡÷≈°∙·√ⁿ²■\u{A0}";

const LOWER_BASE: u8 = 0x08;
const LOWER_EXTENSION: u8 = 0x10;

/// Text in code page 437.
pub(super) fn text(bytes: &[u8]) -> String {
    bytes
        .iter()
        .map(|&byte| match byte.checked_sub(0x80) {
            None => char::from(byte),
            Some(high) => HIGH.chars().nth(usize::from(high)).unwrap_or('?'),
        })
        .collect()
}

/// The short name of an entry, with the case that its flags give it.
pub(super) fn short_name(entry: &[u8]) -> FileName {
    let flags = entry.get(12).copied().unwrap_or(0);
    let mut base = entry.get(..8).unwrap_or_default().to_vec();
    if let Some(first) = base.first_mut()
        && *first == 0x05
    {
        *first = 0xE5;
    }
    let extension = entry.get(8..11).unwrap_or_default();
    let part = |bytes: &[u8], is_lower: bool| {
        let text = text(bytes.trim_ascii_end());
        if is_lower { text.to_lowercase() } else { text }
    };
    let mut name = part(&base, flags & LOWER_BASE != 0);
    let extension = part(extension, flags & LOWER_EXTENSION != 0);
    if !extension.is_empty() {
        name.push('.');
        name.push_str(&extension);
    }
    FileName::from(name.as_str())
}

/// What binds a long name to its short one.
pub(super) fn short_checksum(entry: &[u8]) -> u8 {
    entry
        .iter()
        .take(11)
        .fold(0, |sum: u8, &byte| sum.rotate_right(1).wrapping_add(byte))
}

/// Parts of a long name as they come, the last one first.
#[derive(Default)]
pub(super) struct LongName {
    units: Vec<u16>,
    /// The number of the part that came last; 0 when there is none.
    last: u8,
    checksum: u8,
}

impl LongName {
    /// Takes a part.
    pub fn add(&mut self, entry: &[u8]) {
        let order = entry.first().copied().unwrap_or(0);
        let checksum = entry.get(13).copied().unwrap_or(0);
        let number = order & 0x3F;
        let is_first = order & 0x40 != 0;
        if is_first {
            *self = Self {
                checksum,
                ..Self::default()
            };
        }
        let follows =
            is_first || (self.last.checked_sub(1) == Some(number) && checksum == self.checksum);
        if !follows || !(1..=20).contains(&number) {
            self.clear();
            return;
        }
        self.last = number;
        let mut part = Vec::with_capacity(13);
        for (start, count) in [(1_usize, 5_usize), (14, 6), (28, 2)] {
            for index in 0..count {
                let offset = start.saturating_add(index.saturating_mul(2));
                part.push(field::u16_le(entry, offset).unwrap_or(0));
            }
        }
        part.append(&mut self.units);
        self.units = part;
    }

    /// Forgets.
    pub fn clear(&mut self) {
        *self = Self::default();
    }

    /// The whole name, if it belongs to this short entry.
    pub fn take(&mut self, short: &[u8]) -> Option<FileName> {
        let whole = std::mem::take(self);
        if whole.last != 1 || whole.checksum != short_checksum(short) {
            return None;
        }
        let units = whole
            .units
            .split(|&unit| unit == 0)
            .next()
            .unwrap_or_default();
        (!units.is_empty()).then(|| FileName::from_utf16(units.iter().copied()))
    }
}

/// A date and a time of DOS and hundredths of a second on top (0 to 199), seconds since 1970 as if it were UTC.
pub(super) fn timestamp(date: u16, time: u16, hundredths: u8) -> Option<Timestamp> {
    let (year, month, day) = (date >> 9, date >> 5 & 0xF, date & 0x1F);
    let (hour, minute, second) = (time >> 11, time >> 5 & 0x3F, time & 0x1F);
    if !(1..=12).contains(&month)
        || day == 0
        || hour > 23
        || minute > 59
        || second > 29
        || hundredths > 199
    {
        return None;
    }
    let days = days_since_1970(
        i64::from(year).saturating_add(1980),
        i64::from(month),
        i64::from(day),
    );
    let seconds = days
        .saturating_mul(86_400)
        .saturating_add(i64::from(hour).saturating_mul(3600))
        .saturating_add(i64::from(minute).saturating_mul(60))
        .saturating_add(i64::from(second).saturating_mul(2))
        .saturating_add(i64::from(hundredths / 100));
    let nanoseconds = u32::from(hundredths % 100).saturating_mul(10_000_000);
    Some(Timestamp {
        seconds,
        nanoseconds,
    })
}

/// Days of the Gregorian calendar, counted from a first of March.
fn days_since_1970(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 {
        year.saturating_sub(1)
    } else {
        year
    };
    let month = if month <= 2 {
        month.saturating_add(9)
    } else {
        month.saturating_sub(3)
    };
    let in_year = month.saturating_mul(153).saturating_add(2) / 5;
    year.saturating_mul(365)
        .saturating_add(year / 4)
        .saturating_sub(year / 100)
        .saturating_add(year / 400)
        .saturating_add(in_year)
        .saturating_add(day)
        .saturating_sub(719_469)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_count_from_1970() {
        let at = |date, time, hundredths| {
            timestamp(date, time, hundredths).map(|time| (time.seconds, time.nanoseconds))
        };
        let date = |year: u16, month: u16, day: u16| (year - 1980) << 9 | month << 5 | day;
        assert_eq!(at(date(1980, 1, 1), 0, 0), Some((315_532_800, 0)));
        assert_eq!(
            at(date(2000, 2, 29), 23 << 11 | 59 << 5 | 29, 199),
            Some((951_868_799, 990_000_000))
        );
        assert_eq!(at(date(2107, 12, 31), 0, 0), Some((4_354_732_800, 0)));
        assert_eq!(at(0, 0, 0), None);
    }

    #[test]
    fn code_page_437_has_all_its_characters() {
        assert_eq!(HIGH.chars().count(), 128);
        assert_eq!(text(&[0x80, b'a', 0xE1, 0xFF]), "Ça\u{DF}\u{A0}");
    }
}
