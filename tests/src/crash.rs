//! Rounds of SIGKILL under concurrent, flushing writers, judged by the [oracle](crate::oracle).

mod writer;

use crate::nbd::Client;
use crate::oracle::journal::Journal;
use crate::oracle::stamp::{self, BLOCK, Seen};
use crate::oracle::verdict::{Promise, Violation, judge};
use crate::random::Random;
use crate::server::Server;
use anyhow::{Context, Result, bail};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

/// What the rounds look like.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    pub rounds: u32,
    pub blocks: u64,
    /// Each round has 1 to this many connections, each with 1 to `depth_max` requests in flight: many requests at
    /// once stress the server, few at once leave it less freedom and so make the verdict sharper.
    pub connections_max: u64,
    pub depth_max: u64,
    /// Writes are 1 to this many blocks, and must be there whole or not at all.
    pub write_blocks_max: u64,
    pub promise: Promise,
    /// The longest time the writers run before the kill.
    pub run_ms_max: u64,
    pub seed: u64,
}

impl Plan {
    pub fn size(&self) -> u64 {
        self.blocks * BLOCK as u64
    }
}

/// What the rounds did, for the log.
#[derive(Clone, Copy, Debug, Default)]
pub struct Summary {
    pub writes: u64,
    pub flushes: u64,
    pub reads: u64,
    /// Writes in flight at a kill.
    pub unanswered: u64,
}

/// What the writers of all rounds and connections share.
#[derive(Debug)]
struct Shared {
    volume: u64,
    blocks: u64,
    depth: usize,
    write_blocks_max: u64,
    moment: AtomicU64,
    next_write: AtomicU64,
    killed: AtomicBool,
}

/// Runs the rounds on a server whose export is empty and `plan.size()` long. Fails with the violations of the first
/// round that has any.
pub fn run(server: &mut Server, plan: Plan) -> Result<Summary> {
    let mut random = Random::seeded(plan.seed);
    let mut shared = Shared {
        volume: random.word(),
        blocks: plan.blocks,
        depth: 1,
        write_blocks_max: plan.write_blocks_max,
        moment: AtomicU64::new(1),
        next_write: AtomicU64::new(1),
        killed: AtomicBool::new(false),
    };
    let mut base = vec![Seen::Zero; usize::try_from(plan.blocks)?];
    let mut summary = Summary::default();
    for round in 0..plan.rounds {
        let context = || format!("round {round}, CAIRN_E2E_SEED={}", plan.seed);
        let journal =
            write_until_killed(server, &mut shared, plan, &mut random, base).with_context(context)?;
        summary.add(&journal);
        if random.chance(4) {
            server.restart_and_kill_after(Duration::from_millis(random.below(400))).with_context(context)?;
        }
        server.restart().with_context(context)?;
        base = read_back(server, &shared, &journal, plan.promise).with_context(context)?;
    }
    Ok(summary)
}

fn write_until_killed(
    server: &mut Server,
    shared: &mut Shared,
    plan: Plan,
    random: &mut Random,
    base: Vec<Seen>,
) -> Result<Journal> {
    shared.depth = usize::try_from(1 + random.below(plan.depth_max))?;
    let connections = 1 + random.below(plan.connections_max);
    let clients: Vec<Client> = (0..connections).map(|_| server.export().connect()).collect::<Result<_>>()?;
    let mut journal = Journal::new(base, clients[0].can_multi_conn());
    shared.killed.store(false, Ordering::SeqCst);
    let run = Duration::from_millis(random.below(plan.run_ms_max));
    let shared: &Shared = shared;
    let diaries = std::thread::scope(|scope| -> Result<Vec<writer::Diary>> {
        let writers: Vec<_> = clients
            .into_iter()
            .enumerate()
            .map(|(connection, client)| {
                let random = Random::seeded(random.word());
                scope.spawn(move || writer::write(shared, client, connection, random))
            })
            .collect();
        std::thread::sleep(run);
        shared.killed.store(true, Ordering::SeqCst);
        server.kill()?;
        writers.into_iter().map(|writer| writer.join().expect("a writer panicked")).collect()
    })?;
    for diary in diaries {
        journal.writes.extend(diary.writes);
        journal.flushes.extend(diary.flushes);
        journal.reads.extend(diary.reads);
    }
    Ok(journal)
}

/// Reads the whole volume after the crash and lets the oracle judge it.
fn read_back(server: &Server, shared: &Shared, journal: &Journal, promise: Promise) -> Result<Vec<Seen>> {
    const CHUNK: u64 = 256;
    let mut client = server.export().connect()?;
    let mut seen = Vec::with_capacity(journal.base.len());
    let mut violations = Vec::new();
    for first in (0..shared.blocks).step_by(usize::try_from(CHUNK)?) {
        let blocks = CHUNK.min(shared.blocks - first);
        let bytes = client.read(first * BLOCK as u64, usize::try_from(blocks)? * BLOCK)?;
        for (block, bytes) in (first..).zip(bytes.chunks_exact(BLOCK)) {
            match stamp::read(bytes, shared.volume, block) {
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
        bail!("{}\nthe server said:\n{}", list(&violations), server.said());
    }
    Ok(seen)
}

fn list(violations: &[Violation]) -> String {
    let shown: Vec<String> = violations.iter().take(10).map(|violation| format!("\n  {violation}")).collect();
    format!("{} violations:{}", violations.len(), shown.concat())
}

impl Summary {
    fn add(&mut self, journal: &Journal) {
        self.writes += journal.writes.len() as u64;
        self.flushes += journal.flushes.len() as u64;
        self.reads += journal.reads.len() as u64;
        self.unanswered += journal.writes.iter().filter(|write| write.answered.is_none()).count() as u64;
    }
}
