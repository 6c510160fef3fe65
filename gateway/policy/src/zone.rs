//! Civil time in a zone. The rules come with the program, so every gateway decides alike.
//!
//! From civil time to an instant: one that a clock skips is the first instant after the gap; one that a clock shows twice is the first of the
//! two. So the order of civil times is the order of their instants, and each has exactly one.

use crate::PolicyError;
use cairn_model::WallTime;
use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::tz::{AmbiguousOffset, TimeZone};
use std::fmt;

/// A time zone by its name in the IANA database.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Zone {
    zone: TimeZone,
    name: String,
}

/// Civil times that clocks skip, from one to another, and when.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Gap {
    pub(crate) at: WallTime,
    pub(crate) from: DateTime,
    pub(crate) to: DateTime,
}

/// The last moment that calendars reach, with room for every offset.
const MILLIS_MAX: u64 = 250_000_000_000_000;

impl Zone {
    pub fn utc() -> Self {
        Self { zone: TimeZone::UTC, name: "UTC".to_owned() }
    }

    pub fn named(name: &str) -> Result<Self, PolicyError> {
        let unknown = || PolicyError::Zone(name.to_owned());
        // The database has a name for not knowing, which no schedule can mean.
        if name.is_empty() || name.eq_ignore_ascii_case("etc/unknown") {
            return Err(unknown());
        }
        let zone = TimeZone::get(name).map_err(|_| unknown())?;
        let name = zone.iana_name().unwrap_or(name).to_owned();
        Ok(Self { zone, name })
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// What clocks of the zone show at an instant.
    pub(crate) fn civil(&self, at: WallTime) -> DateTime {
        self.zone.to_datetime(timestamp(at))
    }

    /// The last time up to `at` that clocks were set ahead, if the last time that they were set was one.
    pub(crate) fn last_gap(&self, at: WallTime) -> Option<Gap> {
        let nanosecond = jiff::SignedDuration::from_nanos(1);
        let change = self.zone.preceding(timestamp(at).checked_add(nanosecond).ok()?).next()?.timestamp();
        let before = self.zone.to_offset(change.checked_sub(nanosecond).ok()?);
        let (from, to) = (before.to_datetime(change), self.zone.to_datetime(change));
        (to > from).then(|| Some(Gap { at: wall(change)?, from, to }))?
    }

    /// When clocks are set after `at`, in order.
    pub(crate) fn changes_after(&self, at: WallTime) -> impl Iterator<Item = WallTime> + '_ {
        self.zone.following(timestamp(at)).filter_map(|change| wall(change.timestamp()))
    }

    /// The second instant of a civil time that clocks show twice.
    pub(crate) fn second_instant(&self, civil: DateTime) -> Option<WallTime> {
        match self.zone.to_ambiguous_timestamp(civil).offset() {
            AmbiguousOffset::Fold { after, .. } => wall(after.to_timestamp(civil).ok()?),
            _ => None,
        }
    }

    /// The instant of a civil time; `None` beyond the calendar, or before 1970.
    pub(crate) fn instant(&self, civil: DateTime) -> Option<WallTime> {
        let found = match self.zone.to_ambiguous_timestamp(civil).offset() {
            AmbiguousOffset::Unambiguous { offset } => offset.to_timestamp(civil),
            AmbiguousOffset::Fold { before, .. } => before.to_timestamp(civil),
            // By the offset before the gap it is an instant after the change, so the change is the last one before it.
            AmbiguousOffset::Gap { before, .. } => {
                let after = before.to_timestamp(civil).ok()?;
                let change = after.checked_add(jiff::SignedDuration::from_nanos(1)).ok()?;
                let change = self.zone.preceding(change).next();
                Ok(change.map_or(after, |change| change.timestamp()))
            }
        };
        wall(found.ok()?)
    }

    /// An instant for people: `2026-11-28 16:30:00 CET`.
    pub fn show(&self, at: WallTime) -> String {
        timestamp(at).to_zoned(self.zone.clone()).strftime("%Y-%m-%d %H:%M:%S %Z").to_string()
    }
}

impl fmt::Display for Zone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

/// `None` before 1970.
fn wall(at: Timestamp) -> Option<WallTime> {
    Some(WallTime::from_unix_millis(u64::try_from(at.as_millisecond()).ok()?))
}

fn timestamp(at: WallTime) -> Timestamp {
    let millis = i64::try_from(at.unix_millis().min(MILLIS_MAX)).expect("it is bounded");
    Timestamp::from_millisecond(millis).expect("the calendar reaches that far")
}

#[cfg(test)]
mod tests {
    use super::*;
    use jiff::civil::date;

    fn at(zone: &Zone, civil: DateTime) -> String {
        zone.show(zone.instant(civil).unwrap())
    }

    #[test]
    fn a_civil_time_has_one_instant_also_when_clocks_change() {
        let berlin = Zone::named("europe/berlin").unwrap();
        assert_eq!(berlin.name(), "Europe/Berlin");
        let usual = date(2026, 7, 1).at(12, 0, 0, 0);
        assert_eq!(at(&berlin, usual), "2026-07-01 12:00:00 CEST");
        // Skipped, and shown twice.
        for minute in [0, 30, 59] {
            assert_eq!(at(&berlin, date(2026, 3, 29).at(2, minute, 0, 0)), "2026-03-29 03:00:00 CEST");
        }
        assert_eq!(at(&berlin, date(2026, 10, 25).at(2, 30, 0, 0)), "2026-10-25 02:30:00 CEST");
        // Half an hour at Lord Howe, a whole day in Samoa.
        let howe = Zone::named("Australia/Lord_Howe").unwrap();
        assert_eq!(at(&howe, date(2026, 10, 4).at(2, 10, 0, 0)), "2026-10-04 02:30:00 +11");
        let apia = Zone::named("Pacific/Apia").unwrap();
        assert_eq!(at(&apia, date(2011, 12, 30).at(12, 0, 0, 0)), "2011-12-31 00:00:00 +14");
    }

    #[test]
    fn a_zone_that_is_not_known_is_refused() {
        for name in ["", "Etc/Unknown", "Mars/Olympus", "UTC+1x", "../etc/passwd"] {
            assert!(matches!(Zone::named(name), Err(PolicyError::Zone(told)) if told == name), "{name}");
        }
        assert_eq!(Zone::named("UTC").unwrap().name(), "UTC");
    }
}
