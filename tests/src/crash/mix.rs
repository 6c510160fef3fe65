//! Rounds of all kinds of crash, in a random order, with a table of what they did.

use super::guest::Guest;
use super::host::Host;
use super::store::Store;
use super::{Kind, Plan, Scene, Summary, Trial};
use crate::guest::Flushes;
use crate::random::Random;
use anyhow::{Context, Result};
use std::collections::HashMap;
use std::fmt::{self, Write as _};
use std::time::{Duration, Instant};

/// A pool only grows: after so many rounds a place is torn down and built again.
const ROUNDS_PER_LIFE: u32 = 12;

/// Where a kind of crash happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Place {
    Host,
    Store,
    Guest,
}

impl Place {
    fn of(kind: Kind) -> Self {
        match kind {
            Kind::Sigkill | Kind::Sigstop | Kind::DiskFull | Kind::PoolFull => Place::Host,
            Kind::StoreAway => Place::Store,
            Kind::PowerCut => Place::Guest,
        }
    }

    fn build(self, size: u64) -> Result<Box<dyn Scene>> {
        Ok(match self {
            Place::Host => Box::new(Host::new(size)?),
            Place::Store => Box::new(Store::new(size)?),
            Place::Guest => Box::new(Guest::new(size, Flushes::ReachTheMedium)?),
        })
    }
}

/// What the rounds of each kind did.
#[derive(Clone, Debug, Default)]
pub struct Table {
    rows: Vec<(Kind, Summary, Duration)>,
}

impl Table {
    fn add(&mut self, kind: Kind, done: &Summary, took: Duration) {
        if !self.rows.iter().any(|(known, ..)| *known == kind) {
            self.rows.push((kind, Summary::default(), Duration::ZERO));
        }
        for (_, summary, time) in self.rows.iter_mut().filter(|(known, ..)| *known == kind) {
            summary.add(done);
            *time += took;
        }
    }

    /// The kinds that happened, and what was done under each.
    pub fn kinds(&self) -> impl Iterator<Item = (Kind, Summary)> {
        self.rows.iter().map(|(kind, done, _)| (*kind, *done))
    }
}

impl fmt::Display for Table {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = format!("{:<10} {} {:>8}\n", "kind", Summary::heading(), "seconds");
        for (kind, summary, time) in &self.rows {
            writeln!(text, "{kind:<10} {summary} {:>8}", time.as_secs())?;
        }
        formatter.write_str(&text)
    }
}

/// Deals `rounds` rounds: of every kind one, in random order, again and again.
pub fn run(rounds: u32, seed: u64, plan: Plan) -> Result<Table> {
    let mut random = Random::seeded(seed);
    let mut trials: HashMap<Place, (Trial, u32)> = HashMap::new();
    let mut table = Table::default();
    let mut deck = Vec::new();
    for round in 0..rounds {
        if deck.is_empty() {
            deck = shuffled(&mut random);
        }
        let kind = deck.pop().expect("just filled");
        let place = Place::of(kind);
        let context = || format!("round {round}, CAIRN_E2E_SEED={seed}; so far:\n{table}");
        let started = Instant::now();
        if trials.get(&place).is_none_or(|(_, rounds)| *rounds == ROUNDS_PER_LIFE) {
            // The old one goes first: it may hold gigabytes.
            trials.remove(&place);
            let scene = place.build(plan.size()).with_context(context)?;
            let trial = Trial::new(scene, plan, Random::seeded(random.word()))?;
            trials.insert(place, (trial, 0));
        }
        let (trial, rounds) = trials.get_mut(&place).expect("just built");
        *rounds += 1;
        let done = trial.round(kind).with_context(context)?;
        table.add(kind, &done, started.elapsed());
        println!("round {round}: {kind:<10} {done} {:>6.1} s", started.elapsed().as_secs_f64());
    }
    Ok(table)
}

/// Fisher and Yates.
fn shuffled(random: &mut Random) -> Vec<Kind> {
    let mut kinds = Kind::ALL.to_vec();
    for last in (1..kinds.len()).rev() {
        let other = usize::try_from(random.below(last as u64 + 1)).expect("an index");
        kinds.swap(last, other);
    }
    kinds
}
