//! Seconds since 1970 as people write them.
//!
//! The Gregorian calendar repeats every 400 years; counted from a first of March, a leap day comes
//! last in its year, and the months' lengths follow a simple line.

use core::fmt;

const DAY: u32 = 24 * 60 * 60;
/// Days in 400 years.
const ERA: u32 = 146_097;
/// Days from the first of March of the year 0 to the first of January 1970.
const BEFORE_1970: u32 = 719_468;

const WEEKDAYS: [&str; 7] = ["Thu", "Fri", "Sat", "Sun", "Mon", "Tue", "Wed"];
const MONTHS: [&str; 12] =
    ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];

/// A moment, to be printed as the command `date` does, in UTC.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Moment {
    /// Seconds since the start of 1970.
    pub seconds: u32,
}

impl Moment {
    /// Year, month (1..=12) and day of the month (1..=31).
    #[must_use]
    pub const fn day(&self) -> (u32, u32, u32) {
        let days = self.seconds / DAY + BEFORE_1970;
        let (era, day_of_era) = (days / ERA, days % ERA);
        // A year has 365 days; one more every 4 years, but not every 100, yet every 400.
        let year_of_era =
            (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / (ERA - 1)) / 365;
        let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let month_from_march = (5 * day_of_year + 2) / 153;
        let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
        let month = (month_from_march + 2) % 12 + 1;
        let year = era * 400 + year_of_era + (month <= 2) as u32;
        (year, month, day)
    }
}

impl fmt::Display for Moment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (year, month, day) = self.day();
        let weekday = WEEKDAYS[(self.seconds / DAY % 7) as usize];
        let month = MONTHS[(month as usize + 11) % 12];
        let (hours, minutes, seconds) =
            (self.seconds % DAY / 3600, self.seconds % 3600 / 60, self.seconds % 60);
        write!(f, "{weekday} {month} {day:2} {hours:02}:{minutes:02}:{seconds:02} UTC {year}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::string::ToString;

    #[test]
    fn as_date_says_it() {
        let says = |seconds| Moment { seconds }.to_string();
        assert_eq!(says(0), "Thu Jan  1 00:00:00 UTC 1970");
        assert_eq!(says(951_782_400), "Tue Feb 29 00:00:00 UTC 2000");
        assert_eq!(says(951_868_800), "Wed Mar  1 00:00:00 UTC 2000");
        assert_eq!(says(1_795_495_510), "Tue Nov 24 04:45:10 UTC 2026");
        assert_eq!(says(u32::MAX), "Sun Feb  7 06:28:15 UTC 2106");
    }

    #[test]
    fn each_day_is_the_next_one() {
        let mut last = (1969, 12, 31);
        for days in 0..u32::MAX / DAY {
            let day = Moment { seconds: days * DAY }.day();
            let next_day = (last.0, last.1, last.2 + 1);
            let next_month = (last.0, last.1 + 1, 1);
            let next_year = (last.0 + 1, 1, 1);
            assert!(
                day == next_day || day == next_month || day == next_year && last.1 == 12,
                "{day:?}"
            );
            last = day;
        }
    }
}
