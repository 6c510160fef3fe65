//! When a group is due.
//!
//! `--every` counts real time: its instants are the multiples of the period since 1970, whatever clocks show. Cron counts by the calendar of a
//! zone: a time that clocks skip is due right after, one that they show twice is due the first time; so each day has what the
//! expression says, once. Instants outside the window are none; of cron the time that the expression says counts, also where clocks skip it.

use crate::{PolicyError, Span, Window, Zone};
use cairn_model::WallTime;
use croner::Cron;
use croner::parser::{CronParser, Seconds, Year};
use std::fmt;

/// Missed instants beyond which they are not counted any more.
pub const MISSED_MAX: u64 = 10_000;
/// Instants outside the window, one after the other, after which there is none in it: years of them.
const OUTSIDE_MAX: u32 = 5000;
/// Shortest period.
const EVERY_SECONDS_MIN: u64 = 10;
/// Where the last of very many instants is looked for.
const RECENT_MILLIS: u64 = 2 * 86_400_000;

/// What sets a group going.
#[derive(Clone, Debug)]
pub enum When {
    Every(Span),
    Cron(Box<Cron>),
}

impl When {
    pub fn every(text: &str) -> Result<Self, PolicyError> {
        let span: Span = text.parse()?;
        if span.seconds() < EVERY_SECONDS_MIN {
            return Err(PolicyError::TooOften { asked: span.to_string(), least: EVERY_SECONDS_MIN });
        }
        Ok(Self::Every(span))
    }

    /// Minute, hour, day of the month, month, day of the week; or `@daily` and its like.
    pub fn cron(text: &str) -> Result<Self, PolicyError> {
        let parser = CronParser::builder().seconds(Seconds::Disallowed).year(Year::Disallowed).build();
        let wrong = |reason: String| PolicyError::Cron { expression: text.to_owned(), reason };
        let cron = parser.parse(text).map_err(|error| wrong(error.to_string()))?;
        Ok(Self::Cron(Box::new(cron)))
    }
}

impl fmt::Display for When {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Every(span) => write!(f, "every {span}"),
            Self::Cron(cron) => write!(f, "cron {}", cron.as_str()),
        }
    }
}

/// The instants of a group.
#[derive(Clone, Debug)]
pub struct Timetable {
    pub when: When,
    pub window: Option<Window>,
    pub zone: Zone,
}

/// Instants of a stretch of time.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Due {
    /// The last of them.
    pub latest: WallTime,
    /// How many there are, up to [`MISSED_MAX`].
    pub count: u64,
}

impl Timetable {
    /// The first instant after `at`. `None` when there is none any more.
    pub fn next_after(&self, at: WallTime) -> Option<WallTime> {
        match &self.when {
            When::Every(span) => self.every_after(*span, at),
            When::Cron(cron) => self.cron_after(cron, at),
        }
    }

    /// Those after `after` up to and including `through`.
    pub fn due(&self, after: WallTime, through: WallTime) -> Option<Due> {
        let mut due: Option<Due> = None;
        let mut at = after;
        while let Some(next) = self.next_after(at).filter(|next| *next <= through) {
            let count = due.map_or(0, |due| due.count);
            if count == MISSED_MAX {
                let recent = WallTime::from_unix_millis(through.unix_millis().saturating_sub(RECENT_MILLIS));
                // So many that the last one is near, or else as near as where the count ended.
                let latest = self.last_between(recent.max(next), through).unwrap_or(next);
                return Some(Due { latest, count });
            }
            due = Some(Due { latest: next, count: count + 1 });
            at = next;
        }
        due
    }

    /// Whether a scheduled run may begin.
    pub fn is_open(&self, at: WallTime) -> bool {
        self.window.is_none_or(|window| window.contains(at, &self.zone))
    }

    /// When a run that is due may begin.
    pub fn opens(&self, at: WallTime) -> Option<WallTime> {
        self.window.map_or(Some(at), |window| window.opens(at, &self.zone))
    }

    fn last_between(&self, after: WallTime, through: WallTime) -> Option<WallTime> {
        let mut last = None;
        let mut at = after;
        while let Some(next) = self.next_after(at).filter(|next| *next <= through) {
            (last, at) = (Some(next), next);
        }
        last
    }

    fn every_after(&self, span: Span, at: WallTime) -> Option<WallTime> {
        let period = span.millis();
        let mut at = at;
        for _ in 0..OUTSIDE_MAX {
            let next = (at.unix_millis() / period).checked_add(1)?.checked_mul(period)?;
            let next = WallTime::from_unix_millis(next);
            let Some(window) = self.window.filter(|window| !window.contains(next, &self.zone)) else {
                return Some(next);
            };
            // The opening itself may be an instant.
            at = WallTime::from_unix_millis(window.opens(next, &self.zone)?.unix_millis() - 1);
        }
        None
    }

    /// By the order of civil times, which is that of their instants: see [`Zone`].
    fn cron_after(&self, cron: &Cron, at: WallTime) -> Option<WallTime> {
        let mut civil = self.zone.civil(at);
        let mut is_inclusive = false;
        for _ in 0..OUTSIDE_MAX {
            let next = cron.find_next_occurrence(&civil, is_inclusive).ok()?;
            if let Some(window) = self.window.filter(|window| !window.has(next.time())) {
                (civil, is_inclusive) = (window.next_from(next)?, true);
                continue;
            }
            let instant = self.zone.instant(next)?;
            if instant > at {
                return Some(instant);
            }
            // Clocks show these times for the second time, and were asked the first.
            (civil, is_inclusive) = (next, false);
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use jiff::civil::{Date, DateTime, date};
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    fn table(when: When, window: Option<&str>, zone: &str) -> Timetable {
        let window = window.map(|window| window.parse().unwrap());
        Timetable { when, window, zone: Zone::named(zone).unwrap() }
    }

    fn cron(expression: &str, zone: &str) -> Timetable {
        table(When::cron(expression).unwrap(), None, zone)
    }

    fn instant(zone: &str, civil: DateTime) -> WallTime {
        Zone::named(zone).unwrap().instant(civil).unwrap()
    }

    fn shown(table: &Timetable, from: WallTime, count: usize) -> Vec<String> {
        let next = |at: &WallTime| table.next_after(*at);
        std::iter::successors(next(&from), next).take(count).map(|at| table.zone.show(at)).collect()
    }

    #[test]
    fn every_counts_real_time_from_the_epoch() {
        let hourly = table(When::every("1h").unwrap(), None, "Europe/Berlin");
        let at = WallTime::from_unix_millis(1_795_879_800_999);
        assert_eq!(hourly.next_after(at).unwrap().unix_millis(), 1_795_881_600_000);
        // Clocks go back at 01:00 UTC; an hour stays an hour.
        let before = instant("Europe/Berlin", date(2026, 10, 25).at(1, 30, 0, 0));
        let expected =
            ["02:00:00 CEST", "02:00:00 CET", "03:00:00 CET"].map(|time| format!("2026-10-25 {time}"));
        assert_eq!(shown(&hourly, before, 3), expected);
    }

    #[test]
    fn a_cron_time_that_is_skipped_is_due_right_after_and_one_shown_twice_is_due_once() {
        let table = cron("30 2 * * *", "Europe/Berlin");
        let spring = instant("Europe/Berlin", date(2026, 3, 28).at(12, 0, 0, 0));
        assert_eq!(shown(&table, spring, 2), ["2026-03-29 03:00:00 CEST", "2026-03-30 02:30:00 CEST"]);
        let autumn = instant("Europe/Berlin", date(2026, 10, 24).at(12, 0, 0, 0));
        assert_eq!(shown(&table, autumn, 2), ["2026-10-25 02:30:00 CEST", "2026-10-26 02:30:00 CET"]);
        // Asked in the repeated hour.
        let repeated = WallTime::from_unix_millis(
            instant("Europe/Berlin", date(2026, 10, 25).at(2, 10, 0, 0)).unix_millis() + 3_600_000,
        );
        assert_eq!(shown(&table, repeated, 1), ["2026-10-26 02:30:00 CET"]);
        // Several in the gap are one.
        let often = cron("*/15 * * * *", "Europe/Berlin");
        let gap = instant("Europe/Berlin", date(2026, 3, 29).at(1, 40, 0, 0));
        let expected =
            ["01:45:00 CET", "03:00:00 CEST", "03:15:00 CEST"].map(|time| format!("2026-03-29 {time}"));
        assert_eq!(shown(&often, gap, 3), expected);
        let fold = instant("Europe/Berlin", date(2026, 10, 25).at(2, 40, 0, 0));
        let expected = ["02:45:00 CEST", "03:00:00 CET"].map(|time| format!("2026-10-25 {time}"));
        assert_eq!(shown(&often, fold, 2), expected);
    }

    #[test]
    fn only_instants_in_the_window_are_due() {
        let table = table(When::every("1h").unwrap(), Some("22:30-01:30"), "Europe/Berlin");
        let noon = instant("Europe/Berlin", date(2026, 5, 4).at(12, 0, 0, 0));
        let expected = ["05-04 23:00", "05-05 00:00", "05-05 01:00", "05-05 23:00"]
            .map(|time| format!("2026-{time}:00 CEST"));
        assert_eq!(shown(&table, noon, 4), expected);
        assert!(!table.is_open(noon));
        assert_eq!(table.zone.show(table.opens(noon).unwrap()), "2026-05-04 22:30:00 CEST");
        let never = Timetable { when: When::cron("0 12 * * *").unwrap(), ..table };
        assert_eq!(never.next_after(noon), None);
        // The opening itself counts.
        let opening = Timetable { when: When::every("30m").unwrap(), ..never };
        assert_eq!(shown(&opening, noon, 1), ["2026-05-04 22:30:00 CEST"]);
    }

    #[test]
    fn a_cron_time_that_is_skipped_is_due_in_its_window() {
        let spring = instant("Europe/Berlin", date(2026, 3, 28).at(12, 0, 0, 0));
        for window in ["02:00-03:00", "02:15-02:45", "02:30-03:30", "22:00-02:31"] {
            let table = table(When::cron("30 2 * * *").unwrap(), Some(window), "Europe/Berlin");
            let expected = ["2026-03-29 03:00:00 CEST", "2026-03-30 02:30:00 CEST"];
            assert_eq!(shown(&table, spring, 2), expected, "{window}");
            assert!(table.is_open(table.next_after(spring).unwrap()), "{window}");
        }
        // Never is never, also on that day.
        for window in ["02:31-03:30", "03:00-04:00", "01:00-02:30"] {
            let table = table(When::cron("30 2 * * *").unwrap(), Some(window), "Europe/Berlin");
            assert_eq!(table.next_after(spring), None, "{window}");
        }
        let hourly = table(When::every("30m").unwrap(), Some("02:00-02:45"), "Europe/Berlin");
        let expected =
            ["29 03:00:00", "29 03:30:00", "30 02:00:00"].map(|time| format!("2026-03-{time} CEST"));
        assert_eq!(shown(&hourly, spring, 3), expected);
    }

    #[test]
    fn a_window_in_the_hour_that_repeats_has_its_instants_both_times() {
        let often = table(When::every("15m").unwrap(), Some("02:30-03:00"), "Europe/Berlin");
        let autumn = instant("Europe/Berlin", date(2026, 10, 24).at(12, 0, 0, 0));
        let expected =
            ["25 02:30:00 CEST", "25 02:45:00 CEST", "25 02:30:00 CET", "25 02:45:00 CET", "26 02:30:00 CET"]
                .map(|time| format!("2026-10-{time}"));
        assert_eq!(shown(&often, autumn, 5), expected);
        // A run of the first time that did not begin then may begin the second time.
        let closed = instant("Europe/Berlin", date(2026, 10, 25).at(3, 0, 0, 0));
        let between = WallTime::from_unix_millis(closed.unix_millis() - 3_600_000);
        assert!(!often.is_open(between));
        assert_eq!(often.zone.show(often.opens(between).unwrap()), "2026-10-25 02:30:00 CET");
    }

    #[test]
    fn missed_instants_are_counted_and_the_last_one_told() {
        let hourly = table(When::every("1h").unwrap(), None, "UTC");
        let at = |hours: u64| WallTime::from_unix_millis(hours * 3_600_000);
        assert_eq!(hourly.due(at(5), at(5)), None);
        let just_before = WallTime::from_unix_millis(at(6).unix_millis() - 1);
        assert_eq!(hourly.due(at(5), just_before), None);
        assert_eq!(hourly.due(at(5), at(6)), Some(Due { latest: at(6), count: 1 }));
        assert_eq!(hourly.due(at(5), at(8)), Some(Due { latest: at(8), count: 3 }));
        let years = hourly.due(at(0), at(500_000));
        assert_eq!(years, Some(Due { latest: at(500_000), count: MISSED_MAX }));
        assert_eq!(hourly.due(at(9), at(5)), None);
    }

    #[test]
    fn an_expression_that_is_none_is_refused() {
        for text in ["", "* * * *", "* * * * * *", "60 * * * *", "* 24 * * *", "x * * * *", "@often"] {
            assert!(When::cron(text).is_err(), "{text}");
        }
        for text in ["9s", "0h", "soon"] {
            assert!(When::every(text).is_err(), "{text}");
        }
        assert_eq!(When::cron("0 3 * * MON-FRI").unwrap().to_string(), "cron 0 3 * * 1-5");
        assert!(When::cron("@daily").is_ok());
        let never = cron("0 0 30 2 *", "UTC");
        assert_eq!(never.next_after(WallTime::from_unix_millis(0)), None);
    }

    /// Zones of odd rules: half an hour of daylight saving, changes at midnight, several a year, quarter hours, a day left out, none.
    const ZONES: [&str; 12] = [
        "Europe/Berlin",
        "America/New_York",
        "Australia/Lord_Howe",
        "America/Sao_Paulo",
        "America/Havana",
        "Africa/Casablanca",
        "Asia/Kathmandu",
        "Pacific/Apia",
        "Asia/Beirut",
        "Antarctica/Troll",
        "America/St_Johns",
        "UTC",
    ];

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(60))]

        /// Every date has its run, once, and at its time unless clocks do not show that.
        #[test]
        fn each_day_has_exactly_one_run_of_a_daily_cron(
            zone in 0..ZONES.len(), year in 2005i16..2037, month in 1i8..=12, hour in 0i8..24, minute in 0i8..60,
            is_windowed: bool, before in 0i16..1440, length in 1i16..1440,
        ) {
            let mut table = cron(&format!("{minute} {hour} * * *"), ZONES[zone]);
            let begins = (i16::from(hour) * 60 + i16::from(minute) - before.min(length - 1)).rem_euclid(1440);
            let ends = (begins + length) % 1440;
            let text = format!("{:02}:{:02}-{:02}:{:02}", begins / 60, begins % 60, ends / 60, ends % 60);
            table.window = is_windowed.then(|| text.parse().unwrap());
            let first = date(year, month, 1);
            let mut at = WallTime::from_unix_millis(
                table.zone.instant(first.at(hour, minute, 0, 0)).unwrap().unix_millis() - 1,
            );
            let mut day = first;
            for _ in 0..70 {
                let expected = table.zone.instant(day.at(hour, minute, 0, 0)).unwrap();
                let next = table.next_after(at).unwrap();
                prop_assert_eq!(next, expected, "{} {} {}", day, ZONES[zone], text);
                prop_assert!(table.is_open(next), "{} {} {}", day, ZONES[zone], text);
                at = next;
                day = day.tomorrow().unwrap();
            }
        }

        /// The same, seen from local days that exist whole: counted by what clocks show at each run.
        #[test]
        fn no_local_day_is_without_its_run(
            zone in 0..ZONES.len(), year in 2005i16..2037, hour in 0i8..24, minute in 0i8..60,
        ) {
            let table = cron(&format!("{minute} {hour} * * *"), ZONES[zone]);
            let mut runs: BTreeMap<Date, u32> = BTreeMap::new();
            let mut at = table.zone.instant(date(year, 1, 1).at(0, 0, 0, 0)).unwrap();
            at = WallTime::from_unix_millis(at.unix_millis() - 1);
            loop {
                at = table.next_after(at).unwrap();
                let day = table.zone.civil(at).date();
                if day.year() != year { break }
                *runs.entry(day).or_default() += 1;
            }
            let is_skipping = ZONES[zone] == "Pacific/Apia" && year == 2011;
            let mut day = date(year, 1, 1);
            while day.year() == year {
                let count = runs.get(&day).copied().unwrap_or(0);
                // The day that Samoa left out has its run where the next day begins.
                let expected = match day.to_string().as_str() {
                    "2011-12-30" if is_skipping => 0,
                    "2011-12-31" if is_skipping => if (hour, minute) == (0, 0) { 1 } else { 2 },
                    _ => 1,
                };
                prop_assert_eq!(count, expected, "{} {}", day, ZONES[zone]);
                day = day.tomorrow().unwrap();
            }
        }

        /// Instants only grow, and asking from anywhere in between gives the same.
        #[test]
        fn the_next_instant_does_not_depend_on_how_it_is_asked_for(
            zone in 0..ZONES.len(), start in 1_100_000_000u64..2_100_000_000, expression in prop_oneof![
                Just("*/20 * * * *"), Just("15 1,2,3 * * *"), Just("0 0 * * 1"), Just("59 23 L * *"), Just("0 */6 1-7 * *"),
            ],
            share in 0u64..1000,
        ) {
            let table = cron(expression, ZONES[zone]);
            let mut at = WallTime::from_unix_millis(start * 1000);
            for _ in 0..40 {
                let next = table.next_after(at).unwrap();
                prop_assert!(next > at);
                let between = at.unix_millis() + (next.unix_millis() - 1 - at.unix_millis()) * share / 1000;
                prop_assert_eq!(table.next_after(WallTime::from_unix_millis(between)), Some(next));
                prop_assert_eq!(table.due(at, next), Some(Due { latest: next, count: 1 }));
                at = next;
            }
        }
    }
}
