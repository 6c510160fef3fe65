//! One connection that writes, reads and flushes with several requests in flight, until the server dies or the round
//! ends.

use super::Writers;
use super::stamped::{Stamped, Summary, Work};
use crate::nbd::{Client, Command, Refused, Reply, wire};
use crate::oracle::journal::{Effect, Flush, Moment, Read, Write};
use crate::oracle::stamp::{self, BLOCK, Seen};
use crate::random::Random;
use anyhow::{Result, bail};
use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

const READ_BLOCKS_MAX: u64 = 4;
/// Blocks that take a third of the writes, so that overlaps are common.
const HOT_BLOCKS: u64 = 128;
/// A refused writer does not ask again at once: thousands of refusals would test nothing more.
const PAUSE_WHEN_FULL: Duration = Duration::from_millis(2);

/// How hard one connection works: so many requests at full speed, then it awaits all answers and rests until its
/// writes are no more than this rate.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    pub burst: u32,
    pub bytes_per_second: u64,
}

/// What one connection remembers.
#[derive(Debug, Default)]
pub(super) struct Diary {
    pub(super) writes: Vec<Write>,
    pub(super) flushes: Vec<Flush>,
    pub(super) reads: Vec<Read>,
    /// Writes that were refused for lack of space: they may be there or not, as those without an answer.
    refused: u64,
}

impl Diary {
    pub(super) fn summary(&self) -> Summary {
        let without_success = self.writes.iter().filter(|write| write.answered.is_none()).count() as u64;
        Summary {
            rounds: 0,
            writes: self.writes.len() as u64,
            flushes: self.flushes.len() as u64,
            reads: self.reads.len() as u64,
            unanswered: without_success - self.refused,
            refused: self.refused,
        }
    }
}

/// A request in flight.
enum Pending {
    Write { index: usize },
    Flush { sent: Moment },
    Read { sent: Moment, first_block: u64 },
}

impl std::fmt::Display for Pending {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(match self {
            Pending::Write { .. } => "write",
            Pending::Flush { .. } => "flush",
            Pending::Read { .. } => "read",
        })
    }
}

struct Writer<'a> {
    volume: &'a Stamped,
    work: Work,
    told: &'a Writers,
    client: Client,
    connection: usize,
    random: Random,
    pending: HashMap<u64, Pending>,
    diary: Diary,
    buffer: Vec<u8>,
    /// Payload since the last rest.
    sent_bytes: u64,
}

/// Runs until the server dies or the round ends; an error before that is the server's fault.
pub(super) fn write(
    volume: &Stamped,
    work: Work,
    told: &Writers,
    client: Client,
    connection: usize,
    random: Random,
) -> Result<Diary> {
    let buffer = vec![0; usize::try_from(volume.write_blocks_max)? * BLOCK];
    let (pending, diary) = (HashMap::new(), Diary::default());
    let mut writer =
        Writer { volume, work, told, client, connection, random, pending, diary, buffer, sent_bytes: 0 };
    match writer.run() {
        Ok(()) => {}
        Err(error) if error.is::<Refused>() => return Err(error),
        Err(_) if told.excuses_a_broken_connection() => {}
        Err(error) => return Err(error.context("the connection failed before the crash")),
    }
    Ok(writer.diary)
}

impl Writer<'_> {
    fn run(&mut self) -> Result<()> {
        let mut burst = 0;
        while !self.told.has_to_finish() {
            if self.pending.len() < self.work.depth {
                self.send_one()?;
                burst += 1;
            } else {
                self.receive_one()?;
            }
            if let Some(pace) = self.work.pace
                && burst >= pace.burst
            {
                burst = 0;
                self.receive_all()?;
                self.rest(pace);
            }
        }
        self.receive_all()
    }

    fn receive_all(&mut self) -> Result<()> {
        while !self.pending.is_empty() {
            self.receive_one()?;
        }
        Ok(())
    }

    /// Rests for the time that the bytes sent since the last rest may take.
    fn rest(&mut self, pace: Pace) {
        let time = Duration::from_millis(std::mem::take(&mut self.sent_bytes) * 1000 / pace.bytes_per_second);
        let started = Instant::now();
        while started.elapsed() < time && !self.told.has_to_finish() {
            std::thread::sleep(Duration::from_millis(20).min(time));
        }
    }

    fn now(&self) -> Moment {
        self.volume.moment.fetch_add(1, Ordering::SeqCst)
    }

    fn send_one(&mut self) -> Result<()> {
        match self.random.below(100) {
            0..5 => self.send_flush(),
            5..15 => self.send_read(),
            15..18 => self.send_write(Effect::Zeroes),
            _ => self.send_write(Effect::Stamps),
        }
    }

    fn send_flush(&mut self) -> Result<()> {
        let sent = self.now();
        let cookie = self.client.send(Command::Flush, 0, 0, 0, &[])?;
        self.pending.insert(cookie, Pending::Flush { sent });
        Ok(())
    }

    fn send_read(&mut self) -> Result<()> {
        let (first_block, blocks) = self.choose(READ_BLOCKS_MAX);
        let sent = self.now();
        let length = usize::try_from(blocks)? * BLOCK;
        let cookie = self.client.send(Command::Read, 0, first_block * BLOCK as u64, length, &[])?;
        self.pending.insert(cookie, Pending::Read { sent, first_block });
        Ok(())
    }

    fn send_write(&mut self, effect: Effect) -> Result<()> {
        let (first_block, blocks) = self.choose(self.volume.write_blocks_max);
        let number = self.volume.next_write.fetch_add(1, Ordering::SeqCst);
        let fua = self.random.chance(20);
        let length = usize::try_from(blocks)? * BLOCK;
        let (command, payload) = match effect {
            Effect::Zeroes => (Command::WriteZeroes, &[][..]),
            Effect::Stamps => {
                stamp::stamp(&mut self.buffer[..length], self.volume.id, first_block, number);
                (Command::Write, &self.buffer[..length])
            }
        };
        let sent = self.now();
        let (connection, answered) = (self.connection, None);
        self.diary.writes.push(Write {
            number,
            connection,
            first_block,
            blocks,
            effect,
            fua,
            sent,
            answered,
        });
        self.sent_bytes += payload.len() as u64;
        let flags = if fua { wire::COMMAND_FLAG_FUA } else { 0 };
        let cookie = self.client.send(command, flags, first_block * BLOCK as u64, length, payload)?;
        self.pending.insert(cookie, Pending::Write { index: self.diary.writes.len() - 1 });
        Ok(())
    }

    fn choose(&mut self, blocks_max: u64) -> (u64, u64) {
        let blocks = if self.random.chance(2) { 1 } else { 1 + self.random.below(blocks_max) };
        let within = if self.random.chance(3) { HOT_BLOCKS } else { self.volume.blocks };
        (self.random.below(within - blocks + 1), blocks)
    }

    fn receive_one(&mut self) -> Result<()> {
        let Reply { cookie, error, data } = self.client.receive()?;
        let now = self.now();
        let Some(pending) = self.pending.remove(&cookie) else {
            bail!(Refused(format!("an answer for cookie {cookie}, which is not in flight")));
        };
        match (error, &pending) {
            (0, Pending::Write { .. }) => self.told.was_written(),
            (0, _) => {}
            (wire::ENOSPC, Pending::Write { .. }) if self.told.excuses_lack_of_space() => {
                self.diary.refused += 1;
                std::thread::sleep(PAUSE_WHEN_FULL);
                return Ok(());
            }
            _ => bail!(Refused(format!("a {pending} was answered with errno {error}"))),
        }
        match pending {
            Pending::Write { index } => self.diary.writes[index].answered = Some(now),
            Pending::Flush { sent } => self.diary.flushes.push(Flush { connection: self.connection, sent }),
            Pending::Read { sent, first_block } => {
                let seen = self.decode(first_block, &data)?;
                self.diary.reads.push(Read { first_block, sent, answered: now, seen });
            }
        }
        Ok(())
    }

    fn decode(&self, first_block: u64, data: &[u8]) -> Result<Vec<Seen>> {
        let blocks = (first_block..).zip(data.chunks_exact(BLOCK));
        let decoded = blocks.map(|(block, bytes)| {
            stamp::read(bytes, self.volume.id, block).map_err(|damage| {
                Refused(format!("a read of block {block} before the crash: {damage}")).into()
            })
        });
        decoded.collect()
    }
}
