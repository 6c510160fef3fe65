//! Connections that come and go: polite ones, and ones that leave with requests in flight, in the middle of a request, or
//! by SIGKILL. What they were promised must be there, what they sent in part must not, and nothing of them may stay.

use crate::load::Load;
use crate::site::Site;
use anyhow::{Context, Result, bail};
use std::io::Write;
use std::process::{Command as Program, Stdio};
use std::time::{Duration, Instant};
use system_tests::export::Export;
use system_tests::nbd::{Client, Command, wire};
use system_tests::oracle::stamp::{self, BLOCK, Seen};
use system_tests::random::Random;
use tempfile::TempDir;

pub(crate) const SIZE: u64 = SLOTS * SLOT as u64;
const SLOTS: u64 = 64;
const SLOT: usize = 16 * BLOCK;
const SLOT_BLOCKS: u64 = 16;
const VOLUME: &str = "visitors";
const VISITS_A_ROUND: u64 = 16;
/// A write whose client died may still be done for so long.
const LATE_MAX: Duration = Duration::from_mins(1);

/// Whole slots of stamps, and what each may hold.
pub(crate) struct Visits {
    export: Export,
    volume: u64,
    random: Random,
    next_write: u64,
    /// The last write that was acknowledged or seen.
    current: Vec<Seen>,
    /// Writes whose answer nobody waited for: slot, number, when the client left.
    late: Vec<(u64, u64, Instant)>,
    folder: TempDir,
}

impl Visits {
    pub(crate) fn new(export: Export, seed: u64) -> Result<Self> {
        let mut random = Random::seeded(seed);
        let volume = random.word();
        let current = vec![Seen::Zero; usize::try_from(SLOTS)?];
        let folder = tempfile::Builder::new().prefix("cairn-visitors").tempdir()?;
        Ok(Self { export, volume, random, next_write: 1, current, late: Vec::new(), folder })
    }

    /// One client of a random kind; returns the bytes it wrote.
    pub(crate) fn visit(&mut self) -> Result<u64> {
        match self.random.below(40) {
            0..14 => self.stay_to_the_end(),
            14..20 => self.leave_with_reads_unread(),
            20..26 => self.leave_with_writes_in_flight(),
            26..33 => self.die_within_a_write(),
            33..36 => {
                Client::greet(&self.export)?;
                Ok(0)
            }
            36..39 => {
                // The server may hang up before it has read everything.
                let _ = Client::greet(&self.export)?.write_all(&[0x42; 4096]);
                Ok(0)
            }
            _ => self.kill_a_copy(),
        }
    }

    fn slot_of_stamps(&mut self) -> (u64, u64, Vec<u8>) {
        let (slot, number) = (self.random.below(SLOTS), self.next_write);
        self.next_write += 1;
        let mut bytes = vec![0; SLOT];
        stamp::stamp(&mut bytes, self.volume, slot * SLOT_BLOCKS, number);
        (slot, number, bytes)
    }

    fn stay_to_the_end(&mut self) -> Result<u64> {
        let mut client = self.export.connect()?;
        let (slot, number, bytes) = self.slot_of_stamps();
        client.write(slot * SLOT as u64, &bytes)?;
        self.current[usize::try_from(slot)?] = Seen::Write(number);
        if self.random.chance(2) {
            client.flush()?;
        }
        let read = client.read(slot * SLOT as u64, SLOT)?;
        self.judge(slot, &read)?;
        client.disconnect()?;
        Ok(SLOT as u64)
    }

    fn leave_with_reads_unread(&mut self) -> Result<u64> {
        let mut client = self.export.connect()?;
        for _ in 0..16 {
            let slot = self.random.below(SLOTS);
            client.send(Command::Read, 0, slot * SLOT as u64, SLOT, &[])?;
        }
        client.abandon()?;
        Ok(0)
    }

    fn leave_with_writes_in_flight(&mut self) -> Result<u64> {
        let mut client = self.export.connect()?;
        for _ in 0..4 {
            let (slot, number, bytes) = self.slot_of_stamps();
            client.send(Command::Write, 0, slot * SLOT as u64, SLOT, &bytes)?;
            self.late.push((slot, number, Instant::now()));
        }
        client.abandon()?;
        Ok(4 * SLOT as u64)
    }

    /// Sends a part of a write only: no byte of it may ever be seen.
    fn die_within_a_write(&mut self) -> Result<u64> {
        let mut client = self.export.connect()?;
        let (slot, number, bytes) = self.slot_of_stamps();
        let header = wire::request(0, 1, number, slot * SLOT as u64, u32::try_from(SLOT)?);
        let sent = usize::try_from(self.random.below(SLOT as u64))?;
        client.stream().write_all(&header)?;
        client.stream().write_all(&bytes[..sent])?;
        client.abandon()?;
        Ok(0)
    }

    /// SIGKILL to `nbdcopy` in the middle of its work.
    fn kill_a_copy(&mut self) -> Result<u64> {
        let source = self.folder.path().join("source");
        let number = self.next_write;
        self.next_write += 1;
        let mut bytes = vec![0; usize::try_from(SIZE)?];
        stamp::stamp(&mut bytes, self.volume, 0, number);
        std::fs::write(&source, &bytes)?;
        let mut copy = Program::new("nbdcopy")
            .args(["--requests=8", "--request-size=65536"])
            .arg(&source)
            .arg(self.export.uri())
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("nbdcopy is missing; run tests/install-tools.sh")?;
        std::thread::sleep(Duration::from_millis(self.random.below(60)));
        copy.kill()?;
        copy.wait()?;
        let now = Instant::now();
        self.late.extend((0..SLOTS).map(|slot| (slot, number, now)));
        Ok(SIZE / 2)
    }

    /// Reads every slot and judges it.
    pub(crate) fn judge_all(&mut self) -> Result<()> {
        let mut client = self.export.connect()?;
        for slot in 0..SLOTS {
            let bytes = client.read(slot * SLOT as u64, SLOT)?;
            self.judge(slot, &bytes)?;
        }
        client.disconnect()?;
        self.late.retain(|(_, _, left)| left.elapsed() < LATE_MAX);
        Ok(())
    }

    /// A slot holds one whole write: the last acknowledged, or one that came late.
    fn judge(&mut self, slot: u64, bytes: &[u8]) -> Result<()> {
        let mut whole = None;
        for (block, bytes) in (slot * SLOT_BLOCKS..).zip(bytes.chunks_exact(BLOCK)) {
            let seen = match stamp::read(bytes, self.volume, block) {
                Ok(seen) => seen,
                Err(damage) => bail!("block {block} {damage}"),
            };
            if *whole.get_or_insert(seen) != seen {
                bail!("slot {slot} holds parts of two writes: {whole:?} and, in block {block}, {seen:?}");
            }
        }
        let seen = whole.context("an empty read")?;
        let current = &mut self.current[usize::try_from(slot)?];
        if seen == *current {
            return Ok(());
        }
        let is_it = |late: &(u64, u64, Instant)| late.0 == slot && Seen::Write(late.1) == seen;
        let Some(late) = self.late.iter().position(is_it) else {
            bail!("slot {slot} holds {seen:?} instead of the acknowledged {current:?}");
        };
        // It has happened now, and happens once: what is acknowledged from here on may not give way to it.
        self.late.swap_remove(late);
        *current = seen;
        Ok(())
    }
}

pub(crate) struct Visitors {
    visits: Visits,
}

impl Visitors {
    pub(crate) fn new(site: &Site, seed: u64) -> Result<Self> {
        let gateway = site.calm();
        gateway.create_volume(VOLUME, SIZE)?;
        Ok(Self { visits: Visits::new(gateway.export(VOLUME), seed)? })
    }
}

impl Load for Visitors {
    fn name(&self) -> &'static str {
        VOLUME
    }

    fn percent(&self) -> u64 {
        6
    }

    fn rest(&self) -> Duration {
        Duration::from_millis(500)
    }

    fn round(&mut self, site: &Site) -> Result<u64> {
        let _calm = site.calm();
        let mut written = 0;
        for _ in 0..VISITS_A_ROUND {
            written += self.visits.visit()?;
        }
        site.count("connections that came and went", VISITS_A_ROUND);
        self.visits.judge_all()?;
        Ok(written)
    }

    fn check_again(&mut self, _site: &Site) -> Result<()> {
        self.visits.judge_all()
    }
}
