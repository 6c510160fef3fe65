//! A moment by the calendar, in UTC.

use crate::WallTime;
use std::fmt;

/// A moment by the calendar, in UTC.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Utc {
    pub year: u64,
    pub month: u64,
    pub day: u64,
    pub hour: u64,
    pub minute: u64,
    pub second: u64,
}

/// The calendar's name of a moment: the Gregorian one, whose years begin in March here so that a leap day is the last of its year.
pub fn utc(at: WallTime) -> Utc {
    const DAYS_TO_1970: u64 = 719_468;
    const DAYS_OF_400_YEARS: u64 = 146_097;
    let seconds = at.unix_millis() / 1000;
    let days = seconds / 86_400 + DAYS_TO_1970;
    let (era, day_of_era) = (days / DAYS_OF_400_YEARS, days % DAYS_OF_400_YEARS);
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / (DAYS_OF_400_YEARS - 1)) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let from_march = (5 * day_of_year + 2) / 153;
    let month = if from_march < 10 { from_march + 3 } else { from_march - 9 };
    Utc {
        year: era * 400 + year_of_era + u64::from(month <= 2),
        month,
        day: day_of_year - (153 * from_march + 2) / 5 + 1,
        hour: seconds / 3600 % 24,
        minute: seconds / 60 % 60,
        second: seconds % 60,
    }
}

impl Utc {
    /// As names of snapshots have it: `20261128T153000Z`.
    pub fn stamp(&self) -> String {
        let Self { year, month, day, hour, minute, second } = self;
        format!("{year:04}{month:02}{day:02}T{hour:02}{minute:02}{second:02}Z")
    }
}

/// For people: `2026-11-28 15:30:00Z`.
impl fmt::Display for Utc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { year, month, day, hour, minute, second } = self;
        write!(f, "{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02}Z")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_moment_has_a_name_for_people_and_one_for_names() {
        let at = utc(WallTime::from_unix_millis(1_795_879_800_999));
        assert_eq!(
            (at.to_string().as_str(), at.stamp().as_str()),
            ("2026-11-28 15:30:00Z", "20261128T153000Z")
        );
        let leap_day = utc(WallTime::from_unix_millis(1_709_164_800_000));
        assert_eq!(leap_day.to_string(), "2024-02-29 00:00:00Z");
    }
}
