//! The part of a day in which scheduled runs may begin: `22:00-06:00`, the end not included.
//!
//! It is open whenever clocks show a time in it, both times where they show one twice. What clocks skip of it comes right after the gap, for as
//! long as was skipped, beside what clocks show then: so each day has its window, and a cron time in the gap finds it open.

use crate::zone::Gap;
use crate::{PolicyError, Zone};
use cairn_model::WallTime;
use jiff::civil::{DateTime, Time};
use jiff::{SignedDuration, ToSpan};
use std::fmt;
use std::str::FromStr;

/// From a minute of the day to another, over midnight if that is earlier.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Window {
    from: Time,
    to: Time,
}

/// Days that are looked at for the next opening, more than are ever without one.
const DAYS: i64 = 4;
/// Changes of clocks that are looked at: as many as there are in so many days.
const CHANGES: usize = 4;

impl Window {
    pub fn contains(&self, at: WallTime, zone: &Zone) -> bool {
        let is_skipped = |gap: Gap| at.unix_millis() < gap.at.unix_millis() + self.skipped_millis(gap);
        self.has(zone.civil(at).time()) || zone.last_gap(at).is_some_and(is_skipped)
    }

    pub(crate) fn has(&self, time: Time) -> bool {
        if self.from < self.to {
            (self.from..self.to).contains(&time)
        } else {
            time >= self.from || time < self.to
        }
    }

    /// The first civil time from `civil` on with which it begins.
    pub(crate) fn next_from(&self, civil: DateTime) -> Option<DateTime> {
        let today = DateTime::from_parts(civil.date(), self.from);
        if today >= civil { Some(today) } else { today.checked_add(1.day()).ok() }
    }

    /// How much of it lies in the gap.
    fn skipped_millis(&self, gap: Gap) -> u64 {
        let mut skipped = SignedDuration::ZERO;
        let mut date = gap.from.date().yesterday().ok();
        while let Some(day) = date.filter(|day| *day <= gap.to.date()) {
            let last = if self.from < self.to { Some(day) } else { day.tomorrow().ok() };
            if let Some(last) = last {
                let from = DateTime::from_parts(day, self.from).max(gap.from);
                let to = DateTime::from_parts(last, self.to).min(gap.to);
                skipped += from.duration_until(to).max(SignedDuration::ZERO);
            }
            date = day.tomorrow().ok();
        }
        u64::try_from(skipped.as_millis()).unwrap_or(0)
    }

    /// The first instant from `at` on that is in the window. `None` where the calendar ends.
    pub fn opens(&self, at: WallTime, zone: &Zone) -> Option<WallTime> {
        if self.contains(at, zone) {
            return Some(at);
        }
        let today = zone.civil(at).date();
        let by_clocks = (0..DAYS).filter_map(|day| {
            let begins = DateTime::from_parts(today.checked_add(day.days()).ok()?, self.from);
            Some([zone.instant(begins), zone.second_instant(begins)])
        });
        // Clocks that are set may show a time in the window, ahead or back, or skip one.
        let by_changes = zone.changes_after(at).take(CHANGES);
        let candidates = by_clocks.flatten().flatten().chain(by_changes);
        candidates.filter(|opens| *opens > at && self.contains(*opens, zone)).min()
    }
}

impl FromStr for Window {
    type Err = PolicyError;

    fn from_str(text: &str) -> Result<Self, PolicyError> {
        let wrong = || PolicyError::Window(text.to_owned());
        let minute = |text: &str| {
            let (hour, minute) = text.split_once(':')?;
            let two = |text: &str| (text.len() == 2).then(|| text.parse::<i8>().ok()).flatten();
            Time::new(two(hour)?, two(minute)?, 0, 0).ok()
        };
        let (from, to) = text.split_once('-').ok_or_else(wrong)?;
        let (from, to) = (minute(from).ok_or_else(wrong)?, minute(to).ok_or_else(wrong)?);
        if from == to { Err(wrong()) } else { Ok(Self { from, to }) }
    }
}

impl fmt::Display for Window {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let minute = |time: Time| format!("{:02}:{:02}", time.hour(), time.minute());
        write!(f, "{}-{}", minute(self.from), minute(self.to))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use jiff::civil::date;
    use proptest::prelude::*;

    #[test]
    fn a_window_may_go_over_midnight() {
        let zone = Zone::named("Europe/Berlin").unwrap();
        let night: Window = "22:00-06:00".parse().unwrap();
        assert_eq!(night.to_string(), "22:00-06:00");
        let at = |hour, minute| zone.instant(date(2026, 5, 4).at(hour, minute, 0, 0)).unwrap();
        for (hour, minute, open) in
            [(22, 0, true), (23, 59, true), (0, 0, true), (5, 59, true), (6, 0, false), (21, 59, false)]
        {
            assert_eq!(night.contains(at(hour, minute), &zone), open, "{hour}:{minute}");
        }
        assert_eq!(night.opens(at(5, 0), &zone), Some(at(5, 0)));
        assert_eq!(night.opens(at(6, 0), &zone), Some(at(22, 0)));
        let lunch: Window = "12:00-13:30".parse().unwrap();
        let tomorrow = zone.instant(date(2026, 5, 5).at(12, 0, 0, 0));
        assert_eq!(lunch.opens(at(13, 30), &zone), tomorrow);
    }

    #[test]
    fn what_clocks_skip_of_a_window_comes_right_after() {
        let zone = Zone::named("Europe/Berlin").unwrap();
        let at = |hour, minute| zone.instant(date(2026, 3, 29).at(hour, minute, 0, 0)).unwrap();
        for (window, closes) in [
            ("02:30-04:00", at(4, 0)),
            ("02:10-02:50", at(3, 40)),
            ("02:00-03:00", at(4, 0)),
            ("01:30-02:20", at(3, 20)),
        ] {
            let over: Window = window.parse().unwrap();
            assert_eq!(over.opens(at(3, 0), &zone), Some(at(3, 0)), "{window}");
            let before = WallTime::from_unix_millis(closes.unix_millis() - 1);
            assert!(over.contains(before, &zone) && !over.contains(closes, &zone), "{window}");
            let next = over.opens(closes, &zone).unwrap();
            assert_eq!(zone.civil(next), DateTime::from_parts(date(2026, 3, 30), over.from), "{window}");
        }
        let within: Window = "02:10-02:50".parse().unwrap();
        assert_eq!(within.opens(at(1, 0), &zone), Some(at(3, 0)));
        // On other days it ends where it says.
        let earlier = WallTime::from_unix_millis(at(3, 0).unix_millis() - 23 * 3_600_000);
        assert!(!within.contains(earlier, &zone), "{}", zone.show(earlier));
    }

    #[test]
    fn a_window_in_the_hour_that_repeats_opens_twice() {
        let zone = Zone::named("Europe/Berlin").unwrap();
        let first = zone.instant(date(2026, 10, 25).at(2, 0, 0, 0)).unwrap();
        let minutes = |minutes: u64| WallTime::from_unix_millis(first.unix_millis() + minutes * 60_000);
        let over: Window = "02:30-03:30".parse().unwrap();
        // 02:30 to 03:00 in summer time, and 02:30 to 03:30 after it.
        for (asked, opens) in [(0, 30), (30, 30), (59, 59), (60, 90), (75, 90), (149, 149)] {
            assert_eq!(over.opens(minutes(asked), &zone), Some(minutes(opens)), "{asked}");
        }
        assert_eq!(over.opens(minutes(150), &zone), zone.instant(date(2026, 10, 26).at(2, 30, 0, 0)));
        // Set back into it.
        let before: Window = "01:00-02:20".parse().unwrap();
        assert_eq!(before.opens(minutes(20), &zone), Some(minutes(60)));
        assert_eq!(before.opens(minutes(80), &zone), zone.instant(date(2026, 10, 26).at(1, 0, 0, 0)));
    }

    #[test]
    fn what_is_no_window_is_refused() {
        for text in [
            "",
            "22:00",
            "22-06",
            "22:00-22:00",
            "24:00-06:00",
            "22:60-06:00",
            "2:00-06:00",
            "22:00-06:00-07:00",
        ] {
            assert!(text.parse::<Window>().is_err(), "{text}");
        }
    }

    /// Zones of odd rules, as in `schedule`.
    const ZONES: [&str; 8] = [
        "Europe/Berlin",
        "Australia/Lord_Howe",
        "America/Havana",
        "America/Sao_Paulo",
        "Africa/Casablanca",
        "Pacific/Apia",
        "Antarctica/Troll",
        "UTC",
    ];

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]

        /// The next opening is the first minute that is open, whatever clocks do.
        #[test]
        fn it_opens_at_the_first_minute_that_it_contains(
            zone in 0..ZONES.len(), year in 2007i16..2037, change in 0usize..4, back in 0u64..2000, from in 0u8..96, length in 1u8..96,
        ) {
            let zone = Zone::named(ZONES[zone]).unwrap();
            let quarter = |quarter: u8| Time::new((quarter / 4).cast_signed(), (quarter % 4 * 15).cast_signed(), 0, 0).unwrap();
            let window = Window { from: quarter(from), to: quarter((from + length) % 96) };
            let year = zone.instant(date(year, 1, 1).at(0, 0, 0, 0)).unwrap();
            let change = zone.changes_after(year).nth(change).unwrap_or(year);
            let minute = |minute: u64| WallTime::from_unix_millis((change.unix_millis() / 60_000 - back + minute) * 60_000);
            let first = (0..6000).map(minute).find(|at| window.contains(*at, &zone)).unwrap();
            prop_assert_eq!(window.opens(minute(0), &zone), Some(first), "{} {} from {}", zone, window, zone.show(minute(0)));
            // Each day has its window, or what is left of it: none is closed for two.
            prop_assert!(first.unix_millis() - minute(0).unix_millis() < 48 * 3_600_000, "{} {}", zone, window);
        }
    }
}
