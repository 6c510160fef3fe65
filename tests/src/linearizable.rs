//! Linearizability under restarts: many clients read and write the same few blocks while the server is killed or stopped
//! and comes back, and all of it together must be explained by one order.
//!
//! **Each block is an atomic register.** An operation on it takes effect at one point between the moment it is sent and the
//! moment its answer is read. A request of several blocks is one operation on each; registers are independent and
//! linearizability is local, so each block is judged alone (Herlihy and Wing, 1990; Horn and Kroening, "Faster
//! Linearizability Checking via P-Compositionality", 2015). Every write puts its own number into the block
//! ([`stamp`]), a zeroing puts zeroes; a block that is torn or another's is a violation on its own.
//!
//! **The history goes on across restarts.** SIGKILL and SIGTERM both keep everything acknowledged, because the kernel
//! outlives the process, and nothing that was read may be gone either.
//!
//! **A write without an answer** may have taken effect or not: its connection was given up, or the process died. It may take
//! effect as long as that process lives, but not later: the next process has nothing of it but the log, which is what it
//! was at the death. So its end is the moment between the two lives. A value that appears, or disappears, after
//! the new process has given its first answer is a violation.

mod client;
pub mod history;
pub mod minimal;
mod plan;
pub mod register;

use crate::export::Export;
use crate::nbd::Refused;
use crate::oracle::journal::Moment;
use crate::oracle::stamp::{self, BLOCK, Seen};
use crate::random::Random;
use crate::server::Server;
use anyhow::{Context, Result, bail};
use client::Diary;
use history::{Action, History, Operation, Origin};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

pub use plan::{Plan, Summary};

const READ_BLOCKS_MAX: usize = 4;

/// What all lives share.
#[derive(Debug)]
struct Shared {
    plan: Plan,
    volume: u64,
    first_block: u64,
    moment: AtomicU64,
    next_write: AtomicU64,
}

/// What the clients of one life share.
#[derive(Debug)]
struct Life<'a> {
    shared: &'a Shared,
    number: u32,
    export: Export,
    depth: usize,
    /// Set just before the server is ended; from then on a lost connection is nobody's fault.
    over: AtomicBool,
}

impl Shared {
    fn now(&self) -> Moment {
        self.moment.fetch_add(1, Ordering::SeqCst)
    }

    /// A number that no other write has.
    fn write_number(&self) -> u64 {
        self.next_write.fetch_add(1, Ordering::SeqCst)
    }

    /// The address of a hot block.
    fn block(&self, hot: usize) -> u64 {
        self.first_block + hot as u64
    }

    fn offset(&self, hot: usize) -> u64 {
        self.block(hot) * BLOCK as u64
    }

    fn value(&self, hot: usize, bytes: &[u8]) -> Result<Seen> {
        let block = self.block(hot);
        stamp::read(bytes, self.volume, block)
            .map_err(|damage| Refused(format!("a read of block {block}: {damage}")).into())
    }
}

impl<'a> Life<'a> {
    fn new(shared: &'a Shared, number: u32, server: &Server, depth: usize) -> Self {
        Self { shared, number, export: server.export(), depth, over: AtomicBool::new(false) }
    }

    fn is_over(&self) -> bool {
        self.over.load(Ordering::SeqCst)
    }
}

/// How a life ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Kill,
    KillAtStart,
    Stop,
}

/// One run over all lives.
struct Run<'a> {
    server: &'a mut Server,
    shared: Shared,
    random: Random,
    history: History,
    summary: Summary,
}

/// Runs the rounds on a server whose export is empty and `plan.size()` long. Fails with the first violation found.
pub fn run(server: &mut Server, plan: Plan) -> Result<Summary> {
    let mut random = Random::seeded(plan.seed);
    let shared = Shared {
        plan,
        volume: random.word(),
        first_block: random.below(plan.volume_blocks - plan.hot_blocks as u64 + 1),
        moment: AtomicU64::new(1),
        next_write: AtomicU64::new(1),
    };
    let mut run = Run {
        server,
        shared,
        random,
        history: History::of_blocks(plan.hot_blocks),
        summary: Summary::default(),
    };
    run.all().with_context(|| format!("CAIRN_E2E_SEED={}", plan.seed))?;
    Ok(run.summary)
}

impl Run<'_> {
    fn all(&mut self) -> Result<()> {
        let restarts = self.shared.plan.restarts;
        for number in 0..restarts {
            let end = self.choose_end(number);
            self.live(number, end).with_context(|| format!("life {number}, which ends by {end:?}"))?;
            // The history grows, so a verdict after each life would cost too much.
            if (number + 1).is_power_of_two() {
                self.judge()?;
            }
        }
        self.server.restart()?;
        self.read_all(restarts)?;
        self.judge()
    }

    /// The first life has started already, so it is not killed while it starts.
    fn choose_end(&mut self, number: u32) -> End {
        let orderly_one_in = self.shared.plan.orderly_one_in;
        if orderly_one_in > 0 && self.random.chance(orderly_one_in) {
            End::Stop
        } else if number > 0 && self.random.chance(5) {
            End::KillAtStart
        } else {
            End::Kill
        }
    }

    /// Starts the server under clients who knock already, and ends it under clients who are busy.
    fn live(&mut self, number: u32, end: End) -> Result<()> {
        let plan = self.shared.plan;
        let (fewest, most) = plan.connections;
        let connections = fewest + self.random.below(most - fewest + 1);
        let seeds: Vec<u64> = (0..connections).map(|_| self.random.word()).collect();
        let run = Duration::from_millis(match end {
            End::KillAtStart => self.random.below(400),
            End::Kill | End::Stop => plan.run_ms_max / 4 + self.random.below(plan.run_ms_max * 3 / 4),
        });
        let depth = if self.random.chance(3) { 1 } else { 1 + self.random.index(plan.depth_max) };
        let life = Life::new(&self.shared, number, self.server, depth);
        let server = &mut *self.server;
        let diaries = std::thread::scope(|scope| -> Result<Vec<Diary>> {
            let clients: Vec<_> = (0..)
                .zip(seeds)
                .map(|(connection, seed)| {
                    let life = &life;
                    scope.spawn(move || client::live(life, connection, Random::seeded(seed)))
                })
                .collect();
            let ended = start_and_end(server, &life, end, run);
            if ended.is_err() {
                // The clients work until the server is gone; that it may be gone already is no matter.
                life.over.store(true, Ordering::SeqCst);
                let _ = server.kill();
            }
            let diaries: Vec<_> =
                clients.into_iter().map(|client| client.join().expect("a client panicked")).collect();
            ended?;
            diaries.into_iter().collect()
        })?;
        self.remember(diaries, end);
        Ok(())
    }

    /// The process is dead and everybody has read what answers there were: what is not answered now ends here.
    fn remember(&mut self, diaries: Vec<Diary>, end: End) {
        let death = self.shared.now();
        for diary in diaries {
            self.summary.flushes += diary.flushes;
            self.summary.abandoned += diary.abandoned;
            for (block, mut operation) in diary.operations {
                operation.end = operation.end.min(death);
                self.summary.unanswered += u64::from(!operation.answered);
                self.history.push(block, operation);
            }
        }
        match end {
            End::Kill => self.summary.kills += 1,
            End::KillAtStart => {
                self.summary.kills += 1;
                self.summary.kills_at_start += 1;
            }
            End::Stop => self.summary.stops += 1,
        }
    }

    fn read_all(&mut self, number: u32) -> Result<()> {
        let shared = &self.shared;
        let mut client = self.server.export().connect()?;
        let mut seen = Vec::with_capacity(shared.plan.hot_blocks);
        for block in 0..shared.plan.hot_blocks {
            let start = shared.now();
            let value = shared.value(block, &client.read(shared.offset(block), BLOCK)?)?;
            let origin = Origin { life: number, connection: 0 };
            seen.push(Operation {
                action: Action::Read(value),
                start,
                end: shared.now(),
                answered: true,
                origin,
            });
        }
        seen.into_iter().enumerate().for_each(|(block, operation)| self.history.push(block, operation));
        client.disconnect()
    }

    fn judge(&mut self) -> Result<()> {
        let began = Instant::now();
        for (hot, operations) in self.history.blocks() {
            let Some(stuck) = register::violation(operations)? else { continue };
            let few = minimal::minimal(operations);
            bail!(
                "block {} is not linearizable: of its {} operations no order explains these {}\n{}\
                 (going forward in time, no order is left at the end of the one sent at {})\nthe server said:\n{}",
                self.shared.block(hot),
                operations.len(),
                few.len(),
                minimal::draw(&few),
                operations[stuck].start,
                self.server.said()
            );
        }
        self.summary.judging += began.elapsed();
        self.summary.operations = self.history.operations();
        self.summary.concurrency_max = self.history.concurrency_max();
        Ok(())
    }
}

fn start_and_end(server: &mut Server, life: &Life<'_>, end: End, run: Duration) -> Result<()> {
    if life.number > 0 {
        server.start_without_waiting()?;
    }
    if end != End::KillAtStart {
        server.wait_until_serving()?;
    }
    std::thread::sleep(run);
    life.over.store(true, Ordering::SeqCst);
    if end == End::Stop { server.stop() } else { server.kill() }
}
