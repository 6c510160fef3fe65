//! One connection that writes, reads and flushes with several requests in flight, until the server dies.

use super::Shared;
use crate::nbd::{Client, Command, Refused, Reply, wire};
use crate::oracle::journal::{Effect, Flush, Moment, Read, Write};
use crate::oracle::stamp::{self, BLOCK, Seen};
use crate::random::Random;
use anyhow::{Result, bail};
use std::collections::HashMap;
use std::sync::atomic::Ordering;

const READ_BLOCKS_MAX: u64 = 4;
/// Blocks that take a third of the writes, so that overlaps are common.
const HOT_BLOCKS: u64 = 128;

/// What one connection remembers.
#[derive(Debug, Default)]
pub(super) struct Diary {
    pub(super) writes: Vec<Write>,
    pub(super) flushes: Vec<Flush>,
    pub(super) reads: Vec<Read>,
}

/// A request in flight.
enum Pending {
    Write { index: usize },
    Flush { sent: Moment },
    Read { sent: Moment, first_block: u64 },
}

struct Writer<'a> {
    shared: &'a Shared,
    client: Client,
    connection: usize,
    random: Random,
    pending: HashMap<u64, Pending>,
    diary: Diary,
    buffer: Vec<u8>,
}

/// Runs until the server is killed; an error before that is the server's fault.
pub(super) fn write(shared: &Shared, client: Client, connection: usize, random: Random) -> Result<Diary> {
    let buffer = vec![0; usize::try_from(shared.write_blocks_max)? * BLOCK];
    let (pending, diary) = (HashMap::new(), Diary::default());
    let mut writer = Writer { shared, client, connection, random, pending, diary, buffer };
    loop {
        let step = if writer.pending.len() < shared.depth { writer.send_one() } else { writer.receive_one() };
        match step {
            Ok(()) => {}
            Err(error) if error.is::<Refused>() => return Err(error),
            Err(_) if shared.killed.load(Ordering::SeqCst) => return Ok(writer.diary),
            Err(error) => return Err(error.context("the connection failed before the kill")),
        }
    }
}

impl Writer<'_> {
    fn now(&self) -> Moment {
        self.shared.moment.fetch_add(1, Ordering::SeqCst)
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
        let (first_block, blocks) = self.choose(self.shared.write_blocks_max);
        let number = self.shared.next_write.fetch_add(1, Ordering::SeqCst);
        let fua = self.random.chance(20);
        let length = usize::try_from(blocks)? * BLOCK;
        let (command, payload) = match effect {
            Effect::Zeroes => (Command::WriteZeroes, &[][..]),
            Effect::Stamps => {
                stamp::stamp(&mut self.buffer[..length], self.shared.volume, first_block, number);
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
        let flags = if fua { wire::COMMAND_FLAG_FUA } else { 0 };
        let cookie = self.client.send(command, flags, first_block * BLOCK as u64, length, payload)?;
        self.pending.insert(cookie, Pending::Write { index: self.diary.writes.len() - 1 });
        Ok(())
    }

    fn choose(&mut self, blocks_max: u64) -> (u64, u64) {
        let blocks = if self.random.chance(2) { 1 } else { 1 + self.random.below(blocks_max) };
        let within = if self.random.chance(3) { HOT_BLOCKS } else { self.shared.blocks };
        (self.random.below(within - blocks + 1), blocks)
    }

    fn receive_one(&mut self) -> Result<()> {
        let Reply { cookie, error, data } = self.client.receive()?;
        let now = self.now();
        let Some(pending) = self.pending.remove(&cookie) else {
            bail!(Refused(format!("an answer for cookie {cookie}, which is not in flight")));
        };
        if error != 0 {
            bail!(Refused(format!("a request was answered with errno {error}")));
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
            stamp::read(bytes, self.shared.volume, block).map_err(|damage| {
                Refused(format!("a read of block {block} before the kill: {damage}")).into()
            })
        });
        decoded.collect()
    }
}
