//! One volume through crash after crash.

use super::writer::{self, Diary};
use super::{End, Kind, Scene, Writers};
use crate::nbd::Client;
use crate::oracle::journal::Journal;
use crate::oracle::stamp::{self, BLOCK, Seen};
use crate::oracle::verdict::{Promise, Violation, judge};
use crate::random::Random;
use anyhow::{Result, anyhow, bail};
use std::fmt;
use std::sync::atomic::AtomicU64;

/// What the writers of a round look like.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    pub blocks: u64,
    /// Each round has 1 to this many connections, each with 1 to `depth_max` requests in flight: many requests at
    /// once stress the server, few at once leave it less freedom and so make the verdict sharper.
    pub connections_max: u64,
    pub depth_max: u64,
    /// Writes are 1 to this many blocks, and must be there whole or not at all.
    pub write_blocks_max: u64,
    /// The longest time the writers run before the crash.
    pub run_ms_max: u64,
}

impl Plan {
    pub fn size(&self) -> u64 {
        self.blocks * BLOCK as u64
    }
}

/// What rounds did, for the log.
#[derive(Clone, Copy, Debug, Default)]
pub struct Summary {
    pub rounds: u64,
    pub writes: u64,
    pub flushes: u64,
    pub reads: u64,
    /// Writes in flight when the server died.
    pub unanswered: u64,
    /// Writes that were refused for lack of space.
    pub refused: u64,
}

impl Summary {
    pub fn add(&mut self, other: &Summary) {
        self.rounds += other.rounds;
        self.writes += other.writes;
        self.flushes += other.flushes;
        self.reads += other.reads;
        self.unanswered += other.unanswered;
        self.refused += other.refused;
    }

    pub fn heading() -> String {
        format!(
            "{:>6} {:>9} {:>8} {:>8} {:>10} {:>8}",
            "rounds", "writes", "flushes", "reads", "unanswered", "refused"
        )
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { rounds, writes, flushes, reads, unanswered, refused } = self;
        write!(formatter, "{rounds:>6} {writes:>9} {flushes:>8} {reads:>8} {unanswered:>10} {refused:>8}")
    }
}

/// What the writers of all rounds and connections share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) volume: u64,
    pub(super) plan: Plan,
    pub(super) moment: AtomicU64,
    pub(super) next_write: AtomicU64,
}

/// A scene, its volume, and what its blocks held after the last round.
pub struct Trial {
    scene: Box<dyn Scene>,
    shared: Shared,
    base: Vec<Seen>,
    random: Random,
}

impl fmt::Debug for Trial {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Trial").field("shared", &self.shared).finish_non_exhaustive()
    }
}

impl Trial {
    /// A trial in a scene that serves, with a volume that is empty and at least `plan.size()` long.
    pub fn new(scene: Box<dyn Scene>, plan: Plan, mut random: Random) -> Result<Self> {
        let shared =
            Shared { volume: random.word(), plan, moment: AtomicU64::new(1), next_write: AtomicU64::new(1) };
        let base = vec![Seen::Zero; usize::try_from(plan.blocks)?];
        Ok(Self { scene, shared, base, random })
    }

    /// Lets one crash happen under writers, and judges what is there afterwards.
    pub fn round(&mut self, kind: Kind) -> Result<Summary> {
        self.try_round(kind)
            .map_err(|error| anyhow!("{kind}: {error:#}\nthe server said:\n{}", self.scene.said()))
    }

    fn try_round(&mut self, kind: Kind) -> Result<Summary> {
        let mut summary = Summary { rounds: 1, ..Summary::default() };
        let (journal, end) = self.write_through(kind, &mut summary)?;
        if end == End::Dead {
            self.scene.recover(&mut self.random)?;
        }
        self.base = self.read_back(&journal, kind.promise())?;
        Ok(summary)
    }

    fn write_through(&mut self, kind: Kind, summary: &mut Summary) -> Result<(Journal, End)> {
        let Self { scene, shared, base, random } = self;
        let plan = shared.plan;
        let depth = usize::try_from(1 + random.below(plan.depth_max))?;
        let connections = 1 + random.below(plan.connections_max);
        let clients: Vec<Client> =
            (0..connections).map(|_| scene.export().connect()).collect::<Result<_>>()?;
        let mut journal = Journal::new(std::mem::take(base), clients[0].can_multi_conn());
        let writers = Writers::new(plan.run_ms_max);
        let (shared, told) = (&*shared, &writers);
        let (diaries, end) = std::thread::scope(|scope| -> Result<(Vec<Diary>, End)> {
            let running: Vec<_> = clients
                .into_iter()
                .enumerate()
                .map(|(connection, client)| {
                    let random = Random::seeded(random.word());
                    scope.spawn(move || writer::write(shared, told, depth, client, connection, random))
                })
                .collect();
            let end = scene.strike(kind, told, random);
            told.finish();
            let diaries: Result<Vec<_>> =
                running.into_iter().map(|writer| writer.join().expect("a writer panicked")).collect();
            match (diaries, end) {
                (Ok(diaries), Ok(end)) => Ok((diaries, end)),
                (Err(writer), Err(strike)) => bail!("{strike:#}; and a writer: {writer:#}"),
                (Err(error), _) | (_, Err(error)) => Err(error),
            }
        })?;
        for diary in diaries {
            summary.add(&diary.summary());
            journal.writes.extend(diary.writes);
            journal.flushes.extend(diary.flushes);
            journal.reads.extend(diary.reads);
        }
        Ok((journal, end))
    }

    /// Reads the whole volume after the crash and lets the oracle judge it.
    fn read_back(&self, journal: &Journal, promise: Promise) -> Result<Vec<Seen>> {
        const CHUNK: u64 = 256;
        let mut client = self.scene.export().connect()?;
        let mut seen = Vec::with_capacity(journal.base.len());
        let mut violations = Vec::new();
        let volume_blocks = self.shared.plan.blocks;
        for first in (0..volume_blocks).step_by(usize::try_from(CHUNK)?) {
            let blocks = CHUNK.min(volume_blocks - first);
            let bytes = client.read(first * BLOCK as u64, usize::try_from(blocks)? * BLOCK)?;
            for (block, bytes) in (first..).zip(bytes.chunks_exact(BLOCK)) {
                match stamp::read(bytes, self.shared.volume, block) {
                    Ok(value) => seen.push(value),
                    Err(damage) => {
                        violations.push(Violation::Damaged { block, damage });
                        seen.push(Seen::Zero);
                    }
                }
            }
        }
        client.disconnect()?;
        if violations.is_empty() {
            violations = judge(journal, &seen, promise);
        }
        if !violations.is_empty() {
            bail!("{}", list(&violations));
        }
        Ok(seen)
    }
}

fn list(violations: &[Violation]) -> String {
    let shown: Vec<String> = violations.iter().take(10).map(|violation| format!("\n  {violation}")).collect();
    format!("{} violations:{}", violations.len(), shown.concat())
}
