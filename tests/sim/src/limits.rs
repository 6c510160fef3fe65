//! What a schedule may contain. A seed draws from all of it; a failing one is reduced by taking away what it does not need.
//!
//! Dice are thrown as before whatever the limits say, and their results are not used where something is forbidden: so a reduced schedule is
//! as close to the seed's as it can be.

use crate::report::Report;
use crate::world::run_within;
use std::fmt;

/// A kind of trouble, or of work, that a schedule can do without.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    StoreFaults,
    StoreOutages,
    FullPool,
    CatalogFaults,
    CatalogOutages,
    PowerCuts,
    FailedSyncs,
    LyingSyncs,
    BitFlips,
    LostDisks,
    WallClocks,
    SlowClocks,
    Pauses,
    SecondHost,
    Flash,
    ManyNodes,
    NodeOutages,
    Copies,
    Resizes,
    Discards,
    Reads,
    Snapshots,
    Clones,
    Reverts,
}

const PARTS: [Part; 24] = [
    Part::SecondHost,
    Part::Pauses,
    Part::WallClocks,
    Part::SlowClocks,
    Part::LostDisks,
    Part::BitFlips,
    Part::LyingSyncs,
    Part::FailedSyncs,
    Part::PowerCuts,
    Part::FullPool,
    Part::StoreOutages,
    Part::StoreFaults,
    Part::CatalogOutages,
    Part::CatalogFaults,
    Part::Flash,
    Part::NodeOutages,
    Part::ManyNodes,
    Part::Copies,
    Part::Resizes,
    Part::Discards,
    Part::Reads,
    Part::Clones,
    Part::Reverts,
    Part::Snapshots,
];

/// See the module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Limits {
    without: Vec<Part>,
    /// Lives before the last two, which only check.
    pub(crate) lives: u64,
    pub(crate) volumes: u64,
    /// Guests of a volume.
    pub(crate) guests: u64,
    /// Requests of a guest in a life.
    pub(crate) requests: u64,
}

impl Limits {
    pub(crate) const NONE: Self = Self {
        without: Vec::new(),
        lives: u64::MAX,
        volumes: u64::MAX,
        guests: u64::MAX,
        requests: u64::MAX,
    };

    pub(crate) fn allow(&self, part: Part) -> bool {
        !self.without.contains(&part)
    }

    /// Everything that is one step smaller, the boldest first.
    fn smaller(&self) -> Vec<Self> {
        let mut smaller = Vec::new();
        for part in PARTS.into_iter().filter(|part| self.allow(*part)) {
            let mut without = self.without.clone();
            without.push(part);
            smaller.push(Self { without, ..self.clone() });
        }
        let fewer = |now: u64, most: u64| now.min(most) / 2;
        if self.lives > 0 {
            smaller.push(Self { lives: fewer(self.lives, 8), ..self.clone() });
            smaller.push(Self { lives: self.lives.min(8) - 1, ..self.clone() });
        }
        if self.volumes > 1 {
            smaller.push(Self { volumes: 1, ..self.clone() });
        }
        if self.guests > 1 {
            smaller.push(Self { guests: 1, ..self.clone() });
        }
        if self.requests > 1 {
            smaller.push(Self { requests: fewer(self.requests, 4096), ..self.clone() });
        }
        smaller
    }
}

impl fmt::Display for Limits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bound = |f: &mut fmt::Formatter<'_>, number: u64, what: &str| match number {
            u64::MAX => Ok(()),
            number => write!(f, "at most {number} {what}, "),
        };
        bound(f, self.lives, "lives")?;
        bound(f, self.volumes, "volumes")?;
        bound(f, self.guests, "guests of a volume")?;
        bound(f, self.requests, "requests of a guest in a life")?;
        write!(f, "without {:?}", self.without)
    }
}

/// A failing seed, and the smallest schedule of its kind that fails too.
pub(crate) struct Reduced {
    pub(crate) limits: Limits,
    pub(crate) finding: String,
}

/// Reduces a seed that fails. Takes what is forbidden away for as long as the schedule still fails, whatever it fails with.
pub(crate) fn reduce(seed: u64, finding: String) -> Reduced {
    let mut reduced = Reduced { limits: Limits::NONE, finding };
    'again: loop {
        for limits in reduced.limits.smaller() {
            if let Err(finding) = run_within(seed, &limits) {
                reduced = Reduced { limits, finding };
                continue 'again;
            }
        }
        return reduced;
    }
}

/// Runs the schedule of `seed`. The error says what promise was broken, by which smallest schedule, and the last events before.
pub fn run(seed: u64) -> Result<Report, String> {
    run_within(seed, &Limits::NONE)
}

/// [`run`], and a failing schedule is reduced.
pub fn run_and_reduce(seed: u64) -> Result<Report, String> {
    run(seed).map_err(|first| {
        let Reduced { limits, finding } = reduce(seed, first.clone());
        format!("{first}\nreduced to {limits}:\n{finding}")
    })
}
