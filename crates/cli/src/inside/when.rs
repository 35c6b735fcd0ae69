//! Moments as people read them: `2026-11-22 06:10:25` of UTC, or of the volume's own unknown zone.

use guestfs::filesystem::Timestamp;

const DAY_SECONDS: i64 = 86_400;

/// The moment in the Gregorian calendar, also before 1970.
pub fn calendar(time: Timestamp) -> String {
    let (days, rest) = (
        time.seconds.div_euclid(DAY_SECONDS),
        time.seconds.rem_euclid(DAY_SECONDS),
    );
    // Days are counted in eras of 400 years that begin on 1 March, so that the odd day comes last.
    let shifted = days.saturating_add(719_468);
    let (era, day) = (shifted.div_euclid(146_097), shifted.rem_euclid(146_097));
    let year_of_era = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day_of_year = day - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day_of_month = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let (month, carry) = if month_from_march < 10 {
        (month_from_march + 3, 0)
    } else {
        (month_from_march - 9, 1)
    };
    let year = era.saturating_mul(400) + year_of_era + carry;
    let (hour, minute, second) = (rest / 3600, rest / 60 % 60, rest % 60);
    format!("{year:04}-{month:02}-{day_of_month:02} {hour:02}:{minute:02}:{second:02}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_told_as_the_calendar_has_them() {
        let told = |seconds| {
            calendar(Timestamp {
                seconds,
                nanoseconds: 0,
            })
        };
        assert_eq!(told(0), "1970-01-01 00:00:00");
        assert_eq!(told(-1), "1969-12-31 23:59:59");
        assert_eq!(told(951_782_400), "2000-02-29 00:00:00");
        assert_eq!(told(1_795_327_825), "2026-11-22 06:10:25");
        assert_eq!(told(-11_644_473_600), "1601-01-01 00:00:00");
        assert_eq!(told(4_107_542_400), "2100-03-01 00:00:00");
        assert!(!told(i64::MIN).is_empty() && !told(i64::MAX).is_empty());
    }
}
