//! One client of one life of the server: it reads and writes hot blocks with several requests in flight, now and then
//! walks away from its connection without waiting for the answers, and comes back on a new one.

use super::history::{Action, Operation, Origin};
use super::{Life, READ_BLOCKS_MAX};
use crate::nbd::{Client, Command, Refused, Reply, wire};
use crate::oracle::journal::Moment;
use crate::oracle::stamp::{self, BLOCK, Seen};
use crate::random::Random;
use anyhow::{Result, bail};
use std::collections::HashMap;
use std::io::ErrorKind;
use std::ops::Range;
use std::time::Duration;

/// What one client remembers: operations, each with its hot block.
#[derive(Debug, Default)]
pub(super) struct Diary {
    pub(super) operations: Vec<(usize, Operation)>,
    pub(super) flushes: u64,
    pub(super) abandoned: u64,
}

/// A request in flight.
enum Pending {
    /// The write of these entries of the diary.
    Write {
        entries: Range<usize>,
    },
    Read {
        start: Moment,
        first: usize,
    },
    Flush,
}

struct Session<'a> {
    life: &'a Life<'a>,
    origin: Origin,
    client: Client,
    pending: HashMap<u64, Pending>,
    random: &'a mut Random,
    diary: &'a mut Diary,
}

/// Runs until the server's life is over; an error before that is the server's fault.
pub(super) fn live(life: &Life<'_>, connection: u32, mut random: Random) -> Result<Diary> {
    let origin = Origin { life: life.number, connection };
    let mut diary = Diary::default();
    let ended = loop {
        let client = match connect(life) {
            Ok(Some(client)) => client,
            Ok(None) => break Ok(()),
            Err(error) => break Err(error),
        };
        let (pending, random, diary) = (HashMap::new(), &mut random, &mut diary);
        let mut session = Session { life, origin, client, pending, random, diary };
        if let Err(error) = session.run() {
            break Err(error);
        }
        session.diary.abandoned += 1;
        // The answers are lost; whether the requests are is up to the server. A life that is over says so above.
        let _ = session.client.abandon();
    };
    match ended {
        Err(error) if error.is::<Refused>() => Err(error),
        Err(error) if !life.is_over() => {
            Err(error.context("the connection failed before the server was stopped"))
        }
        _ => Ok(diary),
    }
}

/// Knocks until the server lets us in, or until its life is over.
fn connect(life: &Life<'_>) -> Result<Option<Client>> {
    while !life.is_over() {
        match life.export.connect() {
            Ok(client) => return Ok(Some(client)),
            Err(error) if is_not_listening(&error) => std::thread::sleep(Duration::from_millis(1)),
            Err(error) => return Err(error),
        }
    }
    Ok(None)
}

fn is_not_listening(error: &anyhow::Error) -> bool {
    let kind = error.downcast_ref::<std::io::Error>().map(std::io::Error::kind);
    matches!(kind, Some(ErrorKind::ConnectionRefused | ErrorKind::NotFound))
}

impl Session<'_> {
    /// Until the client has had enough of this connection.
    fn run(&mut self) -> Result<()> {
        loop {
            if self.pending.len() >= self.life.depth {
                self.receive_one()?;
            } else if self.random.chance(self.life.shared.plan.abandon_one_in) {
                return Ok(());
            } else {
                self.send_one()?;
            }
        }
    }

    fn send_one(&mut self) -> Result<()> {
        match self.random.below(100) {
            0..2 => self.send_flush(),
            2..50 => self.send_read(),
            50..55 => self.send_write(true),
            _ => self.send_write(false),
        }
    }

    fn send_flush(&mut self) -> Result<()> {
        let cookie = self.client.send(Command::Flush, 0, 0, 0, &[])?;
        self.pending.insert(cookie, Pending::Flush);
        Ok(())
    }

    fn send_read(&mut self) -> Result<()> {
        let (first, blocks) = self.choose(READ_BLOCKS_MAX);
        let start = self.life.shared.now();
        let cookie =
            self.client.send(Command::Read, 0, self.life.shared.offset(first), blocks * BLOCK, &[])?;
        self.pending.insert(cookie, Pending::Read { start, first });
        Ok(())
    }

    fn send_write(&mut self, is_zeroing: bool) -> Result<()> {
        let (first, blocks) = self.choose(self.life.shared.plan.write_blocks_max);
        let number = self.life.shared.write_number();
        let mut payload = Vec::new();
        if !is_zeroing {
            payload.resize(blocks * BLOCK, 0);
            stamp::stamp(&mut payload, self.life.shared.volume, self.life.shared.block(first), number);
        }
        let value = if is_zeroing { Seen::Zero } else { Seen::Write(number) };
        let entries = self.diary.operations.len()..self.diary.operations.len() + blocks;
        let (origin, start) = (self.origin, self.life.shared.now());
        // Nobody knows yet when it is over: the life that loses it says so.
        let operation =
            Operation { action: Action::Write(value), start, end: Moment::MAX, answered: false, origin };
        self.diary.operations.extend((first..first + blocks).map(|block| (block, operation)));
        let command = if is_zeroing { Command::WriteZeroes } else { Command::Write };
        let mut flags = if self.random.chance(30) { wire::COMMAND_FLAG_FUA } else { 0 };
        if is_zeroing && self.random.chance(2) {
            flags |= wire::COMMAND_FLAG_NO_HOLE;
        }
        let cookie =
            self.client.send(command, flags, self.life.shared.offset(first), blocks * BLOCK, &payload)?;
        self.pending.insert(cookie, Pending::Write { entries });
        Ok(())
    }

    /// Where, and how many blocks: mostly one.
    fn choose(&mut self, blocks_max: usize) -> (usize, usize) {
        let blocks = if self.random.chance(5) { 1 + self.random.index(blocks_max) } else { 1 };
        (self.random.index(self.life.shared.plan.hot_blocks - blocks + 1), blocks)
    }

    fn receive_one(&mut self) -> Result<()> {
        let Reply { cookie, error, data } = self.client.receive()?;
        let now = self.life.shared.now();
        let Some(pending) = self.pending.remove(&cookie) else {
            bail!(Refused(format!("an answer for cookie {cookie}, which is not in flight")));
        };
        if error != 0 {
            bail!(Refused(format!("a request was answered with errno {error}")));
        }
        match pending {
            Pending::Flush => self.diary.flushes += 1,
            Pending::Write { entries } => {
                for (_, operation) in &mut self.diary.operations[entries] {
                    (operation.answered, operation.end) = (true, now);
                }
            }
            Pending::Read { start, first } => self.remember_read(first, start, now, &data)?,
        }
        Ok(())
    }

    fn remember_read(&mut self, first: usize, start: Moment, end: Moment, data: &[u8]) -> Result<()> {
        for (block, bytes) in (first..).zip(data.chunks_exact(BLOCK)) {
            let action = Action::Read(self.life.shared.value(block, bytes)?);
            self.diary
                .operations
                .push((block, Operation { action, start, end, answered: true, origin: self.origin }));
        }
        Ok(())
    }
}
