//! A volume of stamped blocks: several connections write, read and flush on it for a while, and then the oracle judges what
//! it holds.

use super::Writers;
use super::writer::{self, Diary, Pace};
use crate::export::Export;
use crate::nbd::Client;
use crate::oracle::journal::Journal;
use crate::oracle::stamp::{self, BLOCK, Seen};
use crate::oracle::verdict::{Promise, Violation, judge};
use crate::random::Random;
use anyhow::{Result, bail};
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

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

/// What each connection of a round does.
#[derive(Clone, Copy, Debug)]
pub struct Work {
    /// Requests in flight.
    pub depth: usize,
    /// None works as fast as the server answers.
    pub pace: Option<Pace>,
}

/// What the writers of all rounds and connections share.
#[derive(Debug)]
pub struct Stamped {
    pub(super) id: u64,
    pub(super) blocks: u64,
    /// Writes are 1 to this many blocks.
    pub(super) write_blocks_max: u64,
    pub(super) moment: AtomicU64,
    pub(super) next_write: AtomicU64,
}

impl Stamped {
    pub fn new(id: u64, blocks: u64, write_blocks_max: u64) -> Self {
        Self { id, blocks, write_blocks_max, moment: AtomicU64::new(1), next_write: AtomicU64::new(1) }
    }

    /// Writes on all connections until `until` returns, or the server dies as the writers were told. `base` is what the
    /// volume held before.
    pub fn write<T>(
        &self,
        clients: Vec<Client>,
        work: Work,
        told: &Writers,
        base: Vec<Seen>,
        random: &mut Random,
        until: impl FnOnce(&mut Random) -> Result<T>,
    ) -> Result<(Journal, Summary, T)> {
        let mut journal = Journal::new(base, clients[0].can_multi_conn());
        let (diaries, outcome) = std::thread::scope(|scope| -> Result<(Vec<Diary>, T)> {
            let running: Vec<_> = clients
                .into_iter()
                .enumerate()
                .map(|(connection, client)| {
                    let random = Random::seeded(random.word());
                    scope.spawn(move || writer::write(self, work, told, client, connection, random))
                })
                .collect();
            let outcome = until(random);
            told.finish();
            let diaries: Result<Vec<_>> =
                running.into_iter().map(|writer| writer.join().expect("a writer panicked")).collect();
            match (diaries, outcome) {
                (Ok(diaries), Ok(outcome)) => Ok((diaries, outcome)),
                (Err(writer), Err(until)) => bail!("{until:#}; and a writer: {writer:#}"),
                (Err(error), _) | (_, Err(error)) => Err(error),
            }
        })?;
        let mut summary = Summary::default();
        for diary in diaries {
            summary.add(&diary.summary());
            journal.writes.extend(diary.writes);
            journal.flushes.extend(diary.flushes);
            journal.reads.extend(diary.reads);
        }
        Ok((journal, summary, outcome))
    }

    /// Writes every block once, on one connection; returns what the volume then holds.
    pub fn fill(&self, export: &Export) -> Result<Vec<Seen>> {
        const CHUNK: u64 = 256;
        let mut client = export.connect()?;
        let mut bytes = vec![0; usize::try_from(CHUNK)? * BLOCK];
        let mut seen = Vec::with_capacity(usize::try_from(self.blocks)?);
        for first in (0..self.blocks).step_by(usize::try_from(CHUNK)?) {
            let blocks = usize::try_from(CHUNK.min(self.blocks - first))?;
            let number = self.next_write.fetch_add(1, Ordering::SeqCst);
            stamp::stamp(&mut bytes[..blocks * BLOCK], self.id, first, number);
            client.write(first * BLOCK as u64, &bytes[..blocks * BLOCK])?;
            seen.extend(std::iter::repeat_n(Seen::Write(number), blocks));
        }
        client.flush()?;
        client.disconnect()?;
        Ok(seen)
    }

    /// Reads the whole volume; what is wrong with a block on its own stands in its place.
    pub fn read_back(&self, export: &Export) -> Result<Vec<Result<Seen, stamp::Damage>>> {
        const CHUNK: u64 = 256;
        let mut client = export.connect()?;
        let mut seen = Vec::with_capacity(usize::try_from(self.blocks)?);
        for first in (0..self.blocks).step_by(usize::try_from(CHUNK)?) {
            let blocks = CHUNK.min(self.blocks - first);
            let bytes = client.read(first * BLOCK as u64, usize::try_from(blocks)? * BLOCK)?;
            let blocks = (first..).zip(bytes.chunks_exact(BLOCK));
            seen.extend(blocks.map(|(block, bytes)| stamp::read(bytes, self.id, block)));
        }
        client.disconnect()?;
        Ok(seen)
    }
}

/// Lets the oracle judge what was read back. Fails with the violations.
pub fn verdict(
    journal: &Journal,
    read_back: Vec<Result<Seen, stamp::Damage>>,
    promise: Promise,
) -> Result<Vec<Seen>> {
    let mut seen = Vec::with_capacity(read_back.len());
    let mut violations = Vec::new();
    for (block, read) in (0..).zip(read_back) {
        seen.push(*read.as_ref().unwrap_or(&Seen::Zero));
        violations.extend(read.err().map(|damage| Violation::Damaged { block, damage }));
    }
    if violations.is_empty() {
        violations = judge(journal, &seen, promise);
    }
    if !violations.is_empty() {
        bail!("{}", list(&violations));
    }
    Ok(seen)
}

fn list(violations: &[Violation]) -> String {
    let shown: Vec<String> = violations.iter().take(10).map(|violation| format!("\n  {violation}")).collect();
    format!("{} violations:{}", violations.len(), shown.concat())
}
