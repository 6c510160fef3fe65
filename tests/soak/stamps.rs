//! Connections that write stamped blocks, read and flush, round after round; the oracle judges all reads of a round and
//! the whole volume after it. Each round has a journal of its own, so that it stays small.

use crate::load::Load;
use crate::site::Site;
use anyhow::Result;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use system_tests::crash::{Pace, Stamped, Summary, Work, Writers, verdict};
use system_tests::export::Export;
use system_tests::oracle::journal::Journal;
use system_tests::oracle::stamp::Seen;
use system_tests::oracle::verdict::Promise;
use system_tests::random::Random;

/// What one volume of stamps looks like.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shape {
    pub(crate) name: &'static str,
    pub(crate) blocks: u64,
    pub(crate) write_blocks_max: u64,
    pub(crate) connections_max: u64,
    pub(crate) depth_max: u64,
    pub(crate) burst: u32,
    pub(crate) round: Duration,
    pub(crate) percent: u64,
}

impl Shape {
    /// A busy small volume, read back often.
    pub(crate) fn small(round: Duration) -> Self {
        Self {
            name: "stamps-small",
            blocks: 65_536,
            write_blocks_max: 16,
            connections_max: 3,
            depth_max: 8,
            burst: 40,
            round,
            percent: 30,
        }
    }

    /// A volume that is far larger than the caches, with larger writes.
    pub(crate) fn large(round: Duration) -> Self {
        Self {
            name: "stamps-large",
            blocks: 262_144,
            write_blocks_max: 64,
            connections_max: 4,
            depth_max: 16,
            burst: 40,
            round,
            percent: 30,
        }
    }
}

pub(crate) struct Stamps {
    shape: Shape,
    export: Export,
    volume: Stamped,
    kills: Arc<AtomicU64>,
    base: Vec<Seen>,
    random: Random,
}

impl Stamps {
    pub(crate) fn new(site: &Site, shape: Shape, seed: u64) -> Result<Self> {
        let gateway = site.calm();
        gateway.create_volume(shape.name, shape.blocks * 4096)?;
        let mut stamps = Self::on(gateway.export(shape.name), shape, seed)?;
        stamps.kills = Arc::clone(site.kills());
        Ok(stamps)
    }

    /// On an export that is long enough; fills it.
    pub(crate) fn on(export: Export, shape: Shape, seed: u64) -> Result<Self> {
        let mut random = Random::seeded(seed);
        let volume = Stamped::new(random.word(), shape.blocks, shape.write_blocks_max);
        let base = volume.fill(&export)?;
        Ok(Self { shape, export, volume, kills: Arc::default(), base, random })
    }

    /// One round on whatever serves the export.
    pub(crate) fn write_and_judge(
        &mut self,
        bytes_per_second: u64,
        is_over: impl Fn() -> bool,
        retry: &Retry<'_>,
    ) -> Result<Summary> {
        let connections = 1 + self.random.below(self.shape.connections_max);
        let work = Work {
            depth: usize::try_from(1 + self.random.below(self.shape.depth_max))?,
            pace: Some(Pace {
                burst: self.shape.burst,
                bytes_per_second: (bytes_per_second / connections).max(1),
            }),
        };
        let mut since = 0;
        let mut clients = Vec::new();
        retry(&mut |kills| {
            since = kills;
            clients = (0..connections).map(|_| self.export.connect()).collect::<Result<_>>()?;
            Ok(())
        })?;
        let base = std::mem::take(&mut self.base);
        let until = |_: &mut Random| {
            while !is_over() {
                std::thread::sleep(Duration::from_millis(20));
            }
            Ok(())
        };
        let told = Writers::of_a_server_that_dies(Arc::clone(&self.kills), since);
        let (journal, summary, ()) =
            self.volume.write(clients, work, &told, base, &mut self.random, until)?;
        let mut read_back = Vec::new();
        retry(&mut |_| {
            read_back = self.volume.read_back(&self.export)?;
            Ok(())
        })?;
        self.base = verdict(&journal, read_back, Promise::Acknowledged)?;
        Ok(summary)
    }
}

/// Does what changes nothing, and again when the server was killed meanwhile; tells it the number of kills before.
pub(crate) type Retry<'a> = dyn Fn(&mut dyn FnMut(u64) -> Result<()>) -> Result<()> + 'a;

impl Load for Stamps {
    fn name(&self) -> &'static str {
        self.shape.name
    }

    fn percent(&self) -> u64 {
        self.shape.percent
    }

    fn rest(&self) -> Duration {
        Duration::from_millis(500)
    }

    fn round(&mut self, site: &Site) -> Result<u64> {
        if self.base.is_empty() {
            // The round before failed, so nothing is known of the volume: it begins anew.
            self.base = self.volume.fill(&self.export)?;
        }
        let (started, kills) = (Instant::now(), Arc::clone(site.kills()));
        let before = kills.load(Ordering::SeqCst);
        let round = self.shape.round;
        let is_over =
            || site.is_stopped() || started.elapsed() >= round || kills.load(Ordering::SeqCst) != before;
        let rate = site.rate(self.shape.percent);
        let summary = self.write_and_judge(rate, is_over, &|what| site.despite_kills(what))?;
        site.count("stamped writes, judged", summary.writes);
        site.count("stamped reads, judged", summary.reads);
        site.count("flushes", summary.flushes);
        site.count("writes in flight at a kill", summary.unanswered);
        site.count("blocks read back and judged", self.shape.blocks);
        Ok(0)
    }

    fn check_again(&mut self, _site: &Site) -> Result<()> {
        if self.base.is_empty() {
            // The last round failed and was taken down; nothing is known of the volume.
            return Ok(());
        }
        let journal = Journal::new(self.base.clone(), true);
        verdict(&journal, self.volume.read_back(&self.export)?, Promise::Acknowledged).map(drop)
    }
}
