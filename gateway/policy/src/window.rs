//! The part of a day in which scheduled runs may begin: `22:00-06:00`, the end not included.

use crate::{PolicyError, Zone};
use cairn_model::WallTime;
use jiff::ToSpan;
use jiff::civil::{DateTime, Time};
use std::fmt;
use std::str::FromStr;

/// From a minute of the day to another, over midnight if that is earlier.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Window {
    from: Time,
    to: Time,
}

/// Days that are looked at for the next opening: a day may have none where clocks skip it.
const DAYS: i64 = 8;

impl Window {
    pub fn contains(&self, at: WallTime, zone: &Zone) -> bool {
        self.has(zone.civil(at).time())
    }

    fn has(&self, time: Time) -> bool {
        if self.from < self.to {
            (self.from..self.to).contains(&time)
        } else {
            time >= self.from || time < self.to
        }
    }

    /// The first instant from `at` on that is in the window. `None` where the calendar ends.
    pub fn opens(&self, at: WallTime, zone: &Zone) -> Option<WallTime> {
        if self.contains(at, zone) {
            return Some(at);
        }
        let today = zone.civil(at).date();
        let opening = |day: i64| {
            let date = today.checked_add(day.days()).ok()?;
            zone.instant(DateTime::from_parts(date, self.from))
        };
        // Where clocks skip the beginning it opens right after, if that is still in it.
        (0..DAYS).filter_map(opening).find(|opens| *opens > at && self.contains(*opens, zone))
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
    fn a_beginning_that_clocks_skip_opens_late_or_another_day() {
        let zone = Zone::named("Europe/Berlin").unwrap();
        let before = zone.instant(date(2026, 3, 29).at(1, 0, 0, 0)).unwrap();
        let over: Window = "02:30-04:00".parse().unwrap();
        assert_eq!(over.opens(before, &zone), zone.instant(date(2026, 3, 29).at(3, 0, 0, 0)));
        let within: Window = "02:10-02:50".parse().unwrap();
        assert_eq!(within.opens(before, &zone), zone.instant(date(2026, 3, 30).at(2, 10, 0, 0)));
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
}
