//! Which of a volume's snapshots stay: the last so many, and the last of each of the last so many hours, days, weeks, months and years that
//! have one (grandfather, father, son). What one rule keeps stays, whatever the others say; the newest always stays.

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
    /// the clock jumped, times are not.
    pub fn kept(&self, cuts: &[WallTime], zone: &Zone) -> Vec<bool> {
        let Self::Of(counts) = self else { return vec![true; cuts.len()] };
        let last = usize::try_from(counts[0].max(1)).unwrap_or(usize::MAX);
        let mut kept: Vec<bool> = (0..cuts.len()).map(|at| cuts.len() - at <= last).collect();
        let mut latest_first: Vec<usize> = (0..cuts.len()).collect();
        latest_first.sort_by_key(|&at| std::cmp::Reverse((cuts[at], at)));
        for (rule, &count) in counts.iter().enumerate().skip(1) {
            let mut periods = BTreeSet::new();
            for &at in &latest_first {
                if periods.len() >= usize::try_from(count).unwrap_or(usize::MAX) {
                    break;
                }
                if periods.insert(period(rule, cuts[at], zone)) {
                    kept[at] = true;
                }
            }
        }
        kept
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

    #[test]
    fn times_out_of_order_keep_the_newest_taken() {
        let zone = Zone::utc();
        let day = |day: u64| WallTime::from_unix_millis(day * 86_400_000);
        // One was taken while the clock was a year ahead.
        let cuts = [day(10), day(375), day(11), day(12)];
        assert_eq!(keep("1").kept(&cuts, &zone), [false, false, false, true]);
        assert_eq!(keep("daily:1").kept(&cuts, &zone), [false, true, false, true]);
        assert_eq!(keep("daily:3").kept(&cuts, &zone), [false, true, true, true]);
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
    }
}
