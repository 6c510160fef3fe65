//! A volume, its writers, and what it must hold.

use super::blocks::{self, BLOCK, Content, Fresh};
use anyhow::{Context, Result, bail, ensure};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, RwLock, RwLockWriteGuard};
use std::time::Duration;
use system_tests::gateway::Gateway;
use system_tests::nbd::Client;
use system_tests::random::Random;

/// Counts moments, for all writers alike, and numbers contents.
#[derive(Debug, Default)]
pub(crate) struct Clock {
    now: AtomicU64,
    pub(crate) fresh: Fresh,
}

impl Clock {
    fn tick(&self) -> u64 {
        self.now.fetch_add(1, Ordering::SeqCst)
    }
}

/// One write or zeroing, at a block of its part.
#[derive(Clone, Debug)]
struct Change {
    at: usize,
    contents: Vec<Content>,
    sent: u64,
    answered: Option<u64>,
}

impl Change {
    fn apply(&self, held: &mut [Content]) {
        held[self.at..self.at + self.contents.len()].copy_from_slice(&self.contents);
    }
}

#[derive(Debug)]
struct State {
    /// By what was answered.
    held: Vec<Content>,
    /// Sent and not answered.
    pending: Option<Change>,
    /// While a snapshot is being taken: all changes that may or may not be in it.
    since: Option<Vec<Change>>,
}

/// The blocks of one connection.
#[derive(Debug)]
struct Part {
    blocks: Range<usize>,
    state: Mutex<State>,
}

impl Part {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no writer panics")
    }

    fn change(&self, client: &mut Client, at: usize, contents: Vec<Content>, clock: &Clock) -> Result<()> {
        let bytes = blocks::bytes_of(&contents);
        let is_zero = contents.iter().all(|content| *content == 0);
        let change = Change { at, contents, sent: clock.tick(), answered: None };
        {
            let mut state = self.state();
            if let Some(since) = &mut state.since {
                since.push(change.clone());
            }
            state.pending = Some(change);
        }
        let offset = ((self.blocks.start + at) * BLOCK) as u64;
        if is_zero {
            client.write_zeroes(offset, bytes.len())?;
        } else {
            client.write(offset, &bytes)?;
        }
        let mut state = self.state();
        let change = state.pending.take().context("a change on its way")?;
        change.apply(&mut state.held);
        if let Some(last) = state.since.as_mut().and_then(|since| since.last_mut()) {
            last.answered = Some(clock.tick());
        }
        Ok(())
    }

    fn change_somewhere(&self, client: &mut Client, random: &mut Random, clock: &Clock) -> Result<()> {
        let mut contents = clock.fresh.some(random);
        let at = random.index(self.blocks.len());
        contents.truncate(self.blocks.len() - at);
        self.change(client, at, contents, clock)
    }
}

/// What a snapshot may show of a part.
#[derive(Debug)]
struct PartCut {
    blocks: Range<usize>,
    before: Vec<Content>,
    changes: Vec<Change>,
}

/// What a snapshot may show.
#[derive(Debug)]
pub(crate) struct Cut(Vec<PartCut>);

impl PartCut {
    /// The least and the most changes after which the part was as seen.
    fn prefixes(&self, seen: &[Content]) -> Option<(usize, usize)> {
        let mut held = self.before.clone();
        let mut matching = Vec::new();
        for number in 0..=self.changes.len() {
            if held == seen[self.blocks.clone()] {
                matching.push(number);
            }
            if let Some(change) = self.changes.get(number) {
                change.apply(&mut held);
            }
        }
        Some((*matching.first()?, *matching.last()?))
    }
}

impl Cut {
    /// Whether it is one moment of the order of writes.
    pub(crate) fn check(&self, seen: &[Content]) -> Result<()> {
        let mut newest_shown = None;
        let mut oldest_missing = None;
        for part in &self.0 {
            let Some((least, most)) = part.prefixes(seen) else {
                let wrong = part
                    .before
                    .iter()
                    .zip(&seen[part.blocks.clone()])
                    .filter(|(before, seen)| before != seen);
                bail!(
                    "blocks {:?} are after no 0 to {} changes; {} blocks are not as they were before all of these",
                    part.blocks,
                    part.changes.len(),
                    wrong.count()
                );
            };
            newest_shown = newest_shown.max(part.changes[..least].iter().map(|change| change.sent).max());
            let missing = part.changes[most..].iter().filter_map(|change| change.answered).min();
            oldest_missing = [oldest_missing, missing].into_iter().flatten().min();
        }
        if let (Some(shown), Some(missing)) = (newest_shown, oldest_missing) {
            ensure!(
                shown < missing,
                "a write of moment {shown} is there, and one that was answered at {missing} is not"
            );
        }
        Ok(())
    }
}

/// A volume.
#[derive(Debug)]
pub(crate) struct Disk {
    pub(crate) name: String,
    parts: Vec<Part>,
    /// Held, shared, for each change.
    gate: RwLock<()>,
}

impl Disk {
    /// A disk that holds this, with as many connections.
    pub(crate) fn holding(name: &str, contents: &[Content], connections: usize) -> Self {
        let blocks = contents.len() / connections;
        let part = |number: usize| {
            let blocks = number * blocks..(number + 1) * blocks;
            let held = contents[blocks.clone()].to_vec();
            Part { blocks, state: Mutex::new(State { held, pending: None, since: None }) }
        };
        Self { name: name.to_owned(), parts: (0..connections).map(part).collect(), gate: RwLock::new(()) }
    }

    pub(crate) fn create(
        gateway: &Gateway,
        name: &str,
        mebibytes: usize,
        connections: usize,
    ) -> Result<Self> {
        let blocks = (mebibytes << 20) / BLOCK;
        gateway.create_volume(name, (blocks * BLOCK) as u64)?;
        Ok(Self::holding(name, &vec![0; blocks], connections))
    }

    pub(crate) fn connections(&self) -> usize {
        self.parts.len()
    }

    /// What it holds, when nothing is on its way.
    pub(crate) fn contents(&self) -> Vec<Content> {
        self.parts.iter().flat_map(|part| part.state().held.clone()).collect()
    }

    /// Nothing is on its way, and nothing is sent, while this is held.
    pub(crate) fn hold(&self) -> RwLockWriteGuard<'_, ()> {
        self.gate.write().expect("no writer panics")
    }

    /// It holds this from now on.
    pub(crate) fn turn_into(&self, contents: &[Content]) {
        for part in &self.parts {
            let mut state = part.state();
            state.held.copy_from_slice(&contents[part.blocks.clone()]);
            state.pending = None;
        }
    }

    /// A snapshot is about to be asked for. Ended by [`Disk::end_cut`].
    pub(crate) fn begin_cut(&self) -> Cut {
        let begin = |part: &Part| {
            let mut state = part.state();
            state.since = Some(state.pending.clone().into_iter().collect());
            PartCut { blocks: part.blocks.clone(), before: state.held.clone(), changes: Vec::new() }
        };
        Cut(self.parts.iter().map(begin).collect())
    }

    /// It was answered, or never will be.
    pub(crate) fn end_cut(&self, cut: &mut Cut) {
        for (part, cut) in self.parts.iter().zip(&mut cut.0) {
            cut.changes = part.state().since.take().unwrap_or_default();
        }
    }

    /// One connection writes until it is over. Before that, nothing may fail.
    pub(crate) fn write_on(
        &self,
        gateway: &Gateway,
        connection: usize,
        seed: u64,
        clock: &Clock,
        over: &AtomicBool,
    ) -> Result<()> {
        let mut client = match gateway.export(&self.name).connect() {
            Err(_) if over.load(Ordering::SeqCst) => return Ok(()),
            connected => connected?,
        };
        let mut random = Random::seeded(seed ^ connection as u64);
        while !over.load(Ordering::SeqCst) {
            let turn = self.gate.read().expect("no writer panics");
            match self.parts[connection].change_somewhere(&mut client, &mut random, clock) {
                Err(_) if over.load(Ordering::SeqCst) => return Ok(()),
                changed => changed.with_context(|| self.name.clone())?,
            }
            drop(turn);
            std::thread::sleep(Duration::from_millis(3));
        }
        // Nobody may be there any more to take leave of.
        drop(client.disconnect());
        Ok(())
    }

    /// A few changes by a connection of its own.
    pub(crate) fn change(&self, gateway: &Gateway, random: &mut Random, clock: &Clock) -> Result<()> {
        let mut client = gateway.export(&self.name).connect()?;
        for part in &self.parts {
            for _ in 0..=random.below(12) {
                part.change_somewhere(&mut client, random, clock)?;
            }
        }
        client.disconnect()
    }

    /// Every block of it is new, or is every eighth one alone.
    pub(crate) fn renew(&self, gateway: &Gateway, keep_every_eighth: bool, clock: &Clock) -> Result<()> {
        const RUN: usize = 64;
        let mut client = gateway.export(&self.name).connect()?;
        for part in &self.parts {
            for at in (0..part.blocks.len()).step_by(RUN) {
                if !(keep_every_eighth && (at / RUN).is_multiple_of(8)) {
                    part.change(&mut client, at, clock.fresh.take(RUN as u64), clock)?;
                }
            }
        }
        client.flush()?;
        client.disconnect()
    }

    /// Reads everything, while nothing writes. Of a change without an answer each block may be old or new, and stays as it is from then on.
    pub(crate) fn verify(&self, gateway: &Gateway) -> Result<()> {
        let seen = blocks::read(&gateway.export(&self.name))?;
        for part in &self.parts {
            let mut state = part.state();
            let seen = &seen[part.blocks.clone()];
            if let Some(change) = state.pending.take() {
                for (block, new) in (change.at..).zip(&change.contents) {
                    if seen[block] == *new {
                        state.held[block] = *new;
                    }
                }
            }
            let wrong: Vec<usize> =
                (0..seen.len()).filter(|block| seen[*block] != state.held[*block]).collect();
            ensure!(
                wrong.is_empty(),
                "{}: {} blocks are wrong, the first is {}: {} instead of {}",
                self.name,
                wrong.len(),
                part.blocks.start + wrong[0],
                seen[wrong[0]],
                state.held[wrong[0]]
            );
        }
        Ok(())
    }
}
