//! Which of a volume's snapshots stay: the last so many, and the last of each of the last so many hours, days, weeks, months and years that
//! have one (grandfather, father, son). What one rule keeps stays, whatever the others say; the newest always stays. A clock that was set ahead
//! or back may keep more, never less.

use crate::{PolicyError, Zone};
use cairn_model::WallTime;
use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

const COUNT_MAX: u32 = 100_000;

const RULES: [&str; 6] = ["last", "hourly", "daily", "weekly", "monthly", "yearly"];

/// What to keep: `48`, `last:48`, `hourly:24,daily:7,weekly:4`, or `all`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Keep {
    All,
    /// By the order of [`RULES`]; not all of them zero.
    Of([u32; RULES.len()]),
}

impl Keep {
    /// Which of the snapshots that were cut at these times stay. `cuts` are in the order in which they were taken, the oldest first; where
    /// the clock jumped, times are not. Which of two that contradict each other is wrong cannot be told, so what either reading keeps stays:
    /// by the times alone, as if they were right; and by times that never lie after that of one taken later, so that those of a clock
    /// that was ahead take no period from those that came after.
    pub fn kept(&self, cuts: &[WallTime], zone: &Zone) -> Vec<bool> {
        let Self::Of(counts) = self else { return vec![true; cuts.len()] };
        let last = usize::try_from(counts[0].max(1)).unwrap_or(usize::MAX);
        let mut kept: Vec<bool> = (0..cuts.len()).map(|at| cuts.len() - at <= last).collect();
        let mut by_time: Vec<(WallTime, usize)> = cuts.iter().copied().zip(0..).collect();
        by_time.sort_by_key(|&cut| std::cmp::Reverse(cut));
        keep_periods(counts, &by_time, zone, &mut kept);
        if !cuts.is_sorted() {
            let mut latest = *cuts.last().expect("none is sorted");
            let capped = cuts.iter().enumerate().rev().map(|(at, &time)| {
                latest = latest.min(time);
                (latest, at)
            });
            keep_periods(counts, &capped.collect::<Vec<_>>(), zone, &mut kept);
        }
        kept
    }
}

/// Keeps the first of each of the last periods of each rule. The latest cut comes first.
fn keep_periods(
    counts: &[u32; RULES.len()],
    latest_first: &[(WallTime, usize)],
    zone: &Zone,
    kept: &mut [bool],
) {
    for (rule, &count) in counts.iter().enumerate().skip(1) {
        let mut periods = BTreeSet::new();
        for &(time, at) in latest_first {
            if periods.len() >= usize::try_from(count).unwrap_or(usize::MAX) {
                break;
            }
            if periods.insert(period(rule, time, zone)) {
                kept[at] = true;
            }
        }
    }
}

/// The hour, day, week, month or year that an instant is in: numbers that differ where these do.
fn period(rule: usize, at: WallTime, zone: &Zone) -> (i16, i16, i8) {
    let civil = zone.civil(at);
    match rule {
        1 => (civil.year(), civil.day_of_year(), civil.hour()),
        2 => (civil.year(), civil.day_of_year(), 0),
        3 => {
            let week = civil.date().iso_week_date();
            (week.year(), i16::from(week.week()), 0)
        }
        4 => (civil.year(), i16::from(civil.month()), 0),
        _ => (civil.year(), 0, 0),
    }
}

impl FromStr for Keep {
    type Err = PolicyError;

    fn from_str(text: &str) -> Result<Self, PolicyError> {
        let wrong = || PolicyError::Keep(text.to_owned());
        if text == "all" {
            return Ok(Self::All);
        }
        let mut counts: [Option<u32>; RULES.len()] = [None; RULES.len()];
        for part in text.split(',') {
            let (name, count) = part.split_once(':').unwrap_or((RULES[0], part));
            let rule = RULES.iter().position(|rule| *rule == name).ok_or_else(wrong)?;
            if count.is_empty() || !count.bytes().all(|byte| byte.is_ascii_digit()) {
                return Err(wrong());
            }
            let count =
                count.parse().ok().filter(|count| (1..=COUNT_MAX).contains(count)).ok_or_else(wrong)?;
            if counts[rule].replace(count).is_some() {
                return Err(wrong());
            }
        }
        Ok(Self::Of(counts.map(Option::unwrap_or_default)))
    }
}

impl fmt::Display for Keep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self::Of(counts) = self else { return f.write_str("all") };
        let parts = RULES.iter().zip(counts).filter(|(_, count)| **count > 0);
        let parts: Vec<String> = parts.map(|(rule, count)| format!("{rule}:{count}")).collect();
        f.write_str(&parts.join(","))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use jiff::civil::date;
    use proptest::prelude::*;

    fn keep(text: &str) -> Keep {
        text.parse().unwrap()
    }

    /// Which of hourly cuts since the first of November 2026 stay, as hours since then.
    fn left(rules: &str, cuts: u64) -> Vec<usize> {
        let zone = Zone::named("Europe/Berlin").unwrap();
        let first = zone.instant(date(2026, 11, 1).at(0, 0, 0, 0)).unwrap().unix_millis();
        let cuts: Vec<_> =
            (0..cuts).map(|hour| WallTime::from_unix_millis(first + hour * 3_600_000)).collect();
        let kept = keep(rules).kept(&cuts, &zone);
        kept.iter().enumerate().filter(|(_, kept)| **kept).map(|(at, _)| at).collect()
    }

    #[test]
    fn counts_keep_the_last() {
        assert_eq!(left("3", 10), [7, 8, 9]);
        assert_eq!(left("last:48", 10).len(), 10);
        assert_eq!(left("all", 100).len(), 100);
        assert!(left("5", 0).is_empty());
    }

    #[test]
    fn each_period_keeps_its_last() {
        // 13 days and five hours: today's last, and that of each day before.
        let hours = 13 * 24 + 5;
        assert_eq!(left("daily:3", hours), [11 * 24 + 23, 12 * 24 + 23, 13 * 24 + 4]);
        assert_eq!(left("hourly:2,daily:2", hours), [12 * 24 + 23, 13 * 24 + 3, 13 * 24 + 4]);
        // The first of November 2026 is a Sunday, the end of its week.
        assert_eq!(left("weekly:4", hours), [23, 7 * 24 + 23, 13 * 24 + 4]);
        assert_eq!(left("monthly:2,yearly:2", 31 * 24), [30 * 24 - 1, 31 * 24 - 1]);
    }

    fn days(days: &[u64]) -> Vec<WallTime> {
        days.iter().map(|day| WallTime::from_unix_millis(day * 86_400_000)).collect()
    }

    #[test]
    fn those_of_a_clock_that_was_ahead_take_no_period_from_others() {
        let zone = Zone::utc();
        let cuts = days(&[10, 375, 11, 12]);
        assert_eq!(keep("1").kept(&cuts, &zone), [false, false, false, true]);
        assert_eq!(keep("daily:1").kept(&cuts, &zone), [false, true, false, true]);
        assert_eq!(keep("daily:3").kept(&cuts, &zone), [true, true, true, true]);
        let cuts = days(&[10, 375, 376, 377, 378, 11, 12, 13]);
        let kept = keep("daily:3").kept(&cuts, &zone);
        assert_eq!(kept, [false, false, true, true, true, true, true, true]);
    }

    #[test]
    fn a_clock_that_is_behind_costs_nothing_of_before() {
        let kept = keep("daily:3").kept(&days(&[10, 11, 12, 13, 1]), &Zone::utc());
        assert_eq!(kept, [false, true, true, true, true]);
    }

    #[test]
    fn rules_come_back_as_they_were() {
        for (text, shown) in [
            ("48", "last:48"),
            ("all", "all"),
            ("weekly:4,hourly:24,daily:7", "hourly:24,daily:7,weekly:4"),
            ("5,yearly:2", "last:5,yearly:2"),
        ] {
            assert_eq!(keep(text).to_string(), shown);
            assert_eq!(keep(shown), keep(text));
        }
        for text in [
            "",
            "0",
            "daily:0",
            "daily",
            "daily:x",
            "often:3",
            "3,3",
            "daily:1,daily:2",
            "all,3",
            "+3",
            "3,",
            "100001",
        ] {
            assert!(text.parse::<Keep>().is_err(), "{text}");
        }
    }

    proptest! {
        /// Deleting what is not kept, cut by cut, leaves what deleting all at once would; and never the newest.
        #[test]
        fn keeping_step_by_step_ends_where_keeping_at_once_does(
            gaps in proptest::collection::vec(1u64..100, 1..120), rules in prop_oneof![
                Just("4"), Just("hourly:5"), Just("hourly:6,daily:4,weekly:3"), Just("2,monthly:2"), Just("daily:7"),
            ],
        ) {
            let (zone, keep) = (Zone::named("America/New_York").unwrap(), keep(rules));
            let mut time = 1_790_000_000_000;
            let mut all = Vec::new();
            let mut left: Vec<WallTime> = Vec::new();
            for gap in gaps {
                time += gap * 1_200_000;
                all.push(WallTime::from_unix_millis(time));
                left.push(WallTime::from_unix_millis(time));
                let kept = keep.kept(&left, &zone);
                prop_assert_eq!(kept.last(), Some(&true));
                let mut kept = kept.into_iter();
                left.retain(|_| kept.next().unwrap());
            }
            let at_once: Vec<_> = all.iter().zip(keep.kept(&all, &zone)).filter(|(_, kept)| *kept).map(|(at, _)| *at).collect();
            prop_assert_eq!(left, at_once);
        }

        /// Cuts of a clock that was ahead for a while cost no other cut its place.
        #[test]
        fn the_future_displaces_nothing(
            gaps in proptest::collection::vec(1u64..100, 2..60), ahead in proptest::collection::vec((0usize..60, 0u64..1000), 0..20),
            rules in prop_oneof![Just("hourly:5"), Just("hourly:6,daily:4,weekly:3"), Just("monthly:2"), Just("daily:7")],
        ) {
            let (zone, keep) = (Zone::named("America/New_York").unwrap(), keep(rules));
            let hours = |hours: u64| WallTime::from_unix_millis(1_790_000_000_000 + hours * 1_200_000);
            let real: Vec<_> = gaps.iter().scan(0, |time, gap| { *time += gap; Some(hours(*time)) }).collect();
            // Not at the end: what is taken last is right, as far as anybody can know.
            let mut all = Vec::new();
            for (at, time) in real.iter().enumerate() {
                let before = ahead.iter().filter(|(place, _)| place % real.len() == at);
                all.extend(before.map(|(_, by)| (hours(100_000 + by), false)));
                all.push((*time, true));
            }
            let cuts: Vec<_> = all.iter().map(|(time, _)| *time).collect();
            let kept: Vec<_> = all.iter().zip(keep.kept(&cuts, &zone)).filter(|((_, is_real), _)| *is_real).map(|(_, kept)| kept).collect();
            for (alone, kept) in keep.kept(&real, &zone).into_iter().zip(kept) {
                prop_assert!(kept || !alone);
            }
        }
    }
}
