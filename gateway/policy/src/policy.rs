//! A policy: as text, which is stored, sent and shown; and checked, which is what anybody acts on.

use crate::{Keep, Matching, Span, Timetable, When, Window, Zone};
use cairn_model::{ErrorKind, Kinded, WallTime};
use serde::{Deserialize, Serialize};

/// The version of the stored form. A higher one is refused: what it asks for must not be left out.
const VERSION: u32 = 1;
/// Sites that keep copies.
const REMOTES_MAX: usize = 16;
const SITE_LENGTH_MAX: usize = 255;

/// A policy as people write it.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PolicySpec {
    /// Names and patterns of volumes.
    #[serde(rename = "match")]
    pub matching: Vec<String>,
    /// A period, such as `15m`. With neither this nor `cron`, the group only runs when told to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub every: Option<String>,
    /// Minute, hour, day of the month, month, day of the week, in the time zone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cron: Option<String>,
    /// When scheduled runs may begin, such as `22:00-06:00`, in the time zone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub window: Option<String>,
    /// A name of the IANA database.
    #[serde(default = "utc")]
    pub timezone: String,
    /// What stays, such as `48` or `hourly:24,daily:7,weekly:4`.
    pub keep: String,
    /// How long nobody can delete a snapshot, such as `7d`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lock: Option<String>,
    /// What stays at other sites.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub remote: Vec<RemoteSpec>,
}

/// What another site keeps.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RemoteSpec {
    pub site: String,
    pub keep: String,
}

fn utc() -> String {
    "UTC".to_owned()
}

/// Why a policy is none, and what to write instead.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum PolicyError {
    #[error("a group needs at least one name or pattern of volumes: give --match, such as --match 'db-*'")]
    NoPattern,
    #[error("a group has at most {most} patterns, not {count}: use wider ones, or a second group")]
    TooManyPatterns { count: usize, most: usize },
    #[error("the pattern {pattern:?} cannot be used: {reason}")]
    Pattern { pattern: String, reason: String },
    #[error("`{0}` is not a length of time: write a whole number and a unit, such as 90s, 15m, 1h, 7d or 2w")]
    Span(String),
    #[error("every {asked} is too often: the shortest period is {least}s")]
    TooOften { asked: String, least: u64 },
    #[error(
        "the cron expression `{expression}` cannot be used: {reason}; write minute, hour, day of the month, month and day of the week, \
         such as '30 3 * * *'"
    )]
    Cron { expression: String, reason: String },
    #[error("a group has one schedule: either a period or a cron expression")]
    TwoSchedules,
    #[error(
        "a window limits a schedule, and there is none: give --every or --cron as well, or leave out --window"
    )]
    WindowAlone,
    #[error("this schedule is never due: its times do not exist, or none of them is in the window")]
    NeverDue,
    #[error("`{0}` is not a window: write two different times of day, such as 22:00-06:00")]
    Window(String),
    #[error("there is no time zone {0}: use a name such as UTC, Europe/Berlin or America/New_York")]
    Zone(String),
    #[error(
        "`{0}` does not say what to keep: write a number, or some of last, hourly, daily, weekly, monthly and yearly with theirs, such as \
         hourly:24,daily:7,weekly:4, or all"
    )]
    Keep(String),
    #[error("`{0}` is not the name of a site")]
    Site(String),
    #[error("site {0} is named twice: it keeps one thing")]
    SiteTwice(String),
    #[error("a group's policy names at most {REMOTES_MAX} sites, not {0}")]
    TooManySites(usize),
    #[error("the stored policy cannot be read ({0}): a newer program may have written it")]
    Stored(String),
}

impl Kinded for PolicyError {
    fn kind(&self) -> ErrorKind {
        ErrorKind::Unsupported
    }
}

/// A policy that can be acted on.
#[derive(Clone, Debug)]
pub struct Policy {
    matching: Matching,
    timetable: Option<Timetable>,
    zone: Zone,
    keep: Keep,
    lock: Option<Span>,
    remote: Vec<RemoteKeep>,
    spec: PolicySpec,
}

/// What another site keeps.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RemoteKeep {
    pub site: String,
    pub keep: Keep,
}

#[derive(Serialize, Deserialize)]
struct Stored {
    version: u32,
    policy: PolicySpec,
}

impl Policy {
    /// Checks a policy, at `now` for whether it is ever due.
    pub fn new(spec: &PolicySpec, now: WallTime) -> Result<Self, PolicyError> {
        let policy = Self::checked(spec)?;
        match &policy.timetable {
            Some(timetable) if timetable.next_after(now).is_none() => Err(PolicyError::NeverDue),
            _ => Ok(policy),
        }
    }

    fn checked(spec: &PolicySpec) -> Result<Self, PolicyError> {
        let zone = Zone::named(&spec.timezone)?;
        let when = match (&spec.every, &spec.cron) {
            (Some(_), Some(_)) => return Err(PolicyError::TwoSchedules),
            (Some(every), None) => Some(When::every(every)?),
            (None, Some(cron)) => Some(When::cron(cron)?),
            (None, None) => None,
        };
        let window = spec.window.as_deref().map(str::parse::<Window>).transpose()?;
        if when.is_none() && window.is_some() {
            return Err(PolicyError::WindowAlone);
        }
        let policy = Self {
            matching: Matching::new(&spec.matching)?,
            timetable: when.map(|when| Timetable { when, window, zone: zone.clone() }),
            zone,
            keep: spec.keep.parse()?,
            lock: spec.lock.as_deref().map(str::parse).transpose()?,
            remote: remotes(&spec.remote)?,
            spec: spec.clone(),
        };
        Ok(policy.with_plain_spec())
    }

    /// The text in the form that everybody sees, however it was written.
    fn with_plain_spec(mut self) -> Self {
        let every = match &self.timetable {
            Some(Timetable { when: When::Every(span), .. }) => Some(span.to_string()),
            _ => None,
        };
        let window = self.timetable.as_ref().and_then(|timetable| timetable.window);
        let remote =
            |remote: &RemoteKeep| RemoteSpec { site: remote.site.clone(), keep: remote.keep.to_string() };
        self.spec = PolicySpec {
            every,
            window: window.map(|window| window.to_string()),
            timezone: self.zone.to_string(),
            keep: self.keep.to_string(),
            lock: self.lock.map(|lock| lock.to_string()),
            remote: self.remote.iter().map(remote).collect(),
            ..self.spec
        };
        self
    }

    /// A policy as [`Policy::encode`] wrote it.
    pub fn decode(stored: &str) -> Result<Self, PolicyError> {
        let unreadable = |reason: String| PolicyError::Stored(reason);
        let stored: Stored = serde_json::from_str(stored).map_err(|error| unreadable(error.to_string()))?;
        if stored.version > VERSION {
            return Err(unreadable(format!("version {}", stored.version)));
        }
        // Its times were due when it was made: that they have ended by now is no reason not to read it.
        Self::checked(&stored.policy)
    }

    /// The stored form.
    pub fn encode(&self) -> String {
        let stored = Stored { version: VERSION, policy: self.spec.clone() };
        serde_json::to_string(&stored).expect("texts and numbers are JSON")
    }

    pub fn spec(&self) -> &PolicySpec {
        &self.spec
    }

    pub fn matches(&self, volume: &str) -> bool {
        self.matching.matches(volume)
    }

    /// `None`: only when told to.
    pub fn timetable(&self) -> Option<&Timetable> {
        self.timetable.as_ref()
    }

    pub fn zone(&self) -> &Zone {
        &self.zone
    }

    pub fn keep(&self) -> &Keep {
        &self.keep
    }

    /// Until when a snapshot that is cut at `cut` is locked.
    pub fn locked_until(&self, cut: WallTime) -> Option<WallTime> {
        let lock = self.lock?;
        Some(WallTime::from_unix_millis(cut.unix_millis().saturating_add(lock.millis())))
    }

    /// What other sites keep.
    pub fn remote(&self) -> &[RemoteKeep] {
        &self.remote
    }
}

fn remotes(specs: &[RemoteSpec]) -> Result<Vec<RemoteKeep>, PolicyError> {
    if specs.len() > REMOTES_MAX {
        return Err(PolicyError::TooManySites(specs.len()));
    }
    let mut remotes: Vec<RemoteKeep> = Vec::with_capacity(specs.len());
    for RemoteSpec { site, keep } in specs {
        let fits = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
        if site.is_empty() || site.len() > SITE_LENGTH_MAX || !site.chars().all(fits) {
            return Err(PolicyError::Site(site.clone()));
        }
        if remotes.iter().any(|remote| remote.site == *site) {
            return Err(PolicyError::SiteTwice(site.clone()));
        }
        remotes.push(RemoteKeep { site: site.clone(), keep: keep.parse()? });
    }
    Ok(remotes)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: WallTime = WallTime::from_unix_millis(1_795_879_800_000);

    fn spec() -> PolicySpec {
        PolicySpec {
            matching: vec!["db-*".to_owned()],
            every: Some("60m".to_owned()),
            window: Some("22:00-06:00".to_owned()),
            timezone: "europe/berlin".to_owned(),
            keep: "48".to_owned(),
            lock: Some("24h".to_owned()),
            remote: vec![RemoteSpec { site: "vault".to_owned(), keep: "daily:7".to_owned() }],
            ..PolicySpec::default()
        }
    }

    #[test]
    fn a_policy_comes_back_from_its_stored_form() {
        let policy = Policy::new(&spec(), NOW).unwrap();
        let again = Policy::decode(&policy.encode()).unwrap();
        assert_eq!(again.spec(), policy.spec());
        let plain = again.spec();
        assert_eq!((plain.every.as_deref(), plain.lock.as_deref()), (Some("1h"), Some("1d")));
        assert_eq!((plain.timezone.as_str(), plain.keep.as_str()), ("Europe/Berlin", "last:48"));
        assert!(again.matches("db-1") && !again.matches("web"));
        assert_eq!(again.locked_until(NOW).unwrap().unix_millis(), NOW.unix_millis() + 86_400_000);
        assert_eq!(again.remote()[0].keep.to_string(), "daily:7");
        assert!(again.timetable().unwrap().window.is_some());
    }

    #[test]
    fn what_is_stored_by_a_newer_program_is_not_guessed_at() {
        let stored = Policy::new(&spec(), NOW).unwrap().encode();
        for odd in [
            stored.replace("\"version\":1", "\"version\":2"),
            stored.replace("\"keep\"", "\"keeps\""),
            stored.replace("{\"version\"", "{\"versions\""),
            String::new(),
        ] {
            assert!(matches!(Policy::decode(&odd), Err(PolicyError::Stored(_))), "{odd}");
        }
    }

    #[test]
    fn what_contradicts_itself_is_refused() {
        let cron = |cron: &str| PolicySpec { every: None, cron: Some(cron.to_owned()), ..spec() };
        let refused = |spec: &PolicySpec| Policy::new(spec, NOW).unwrap_err();
        assert_eq!(
            refused(&PolicySpec { every: Some("1h".to_owned()), ..cron("@daily") }),
            PolicyError::TwoSchedules
        );
        assert_eq!(refused(&PolicySpec { every: None, ..spec() }), PolicyError::WindowAlone);
        assert_eq!(refused(&cron("0 12 * * *")), PolicyError::NeverDue);
        assert_eq!(refused(&cron("0 0 31 2 *")), PolicyError::NeverDue);
        let twice = PolicySpec { remote: vec![spec().remote[0].clone(); 2], ..spec() };
        assert_eq!(refused(&twice), PolicyError::SiteTwice("vault".to_owned()));
        let nowhere = RemoteSpec { site: "a b".to_owned(), keep: "1".to_owned() };
        assert_eq!(
            refused(&PolicySpec { remote: vec![nowhere], ..spec() }),
            PolicyError::Site("a b".to_owned())
        );
        // By hand alone it may be.
        let by_hand = PolicySpec { every: None, window: None, ..spec() };
        assert!(Policy::new(&by_hand, NOW).unwrap().timetable().is_none());
    }
}
