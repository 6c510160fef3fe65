//! Rounds of loss: two nodes die, lose their disks and come back, bits of a third flip, and the pool heals by itself while guests write and read.
//!
//! What must hold: no request of a guest fails, no byte is wrong, and after each round every shard is there again, which is not only what the catalog says: the objects
//! of the nodes are counted. At the end every pair of nodes is taken away, and everything is read without it.

use super::known::Known;
use super::site::{PoolSite, wait_until};
use super::{Buckets, Folders};
use crate::checks::fio;
use crate::export::Export;
use crate::random::Random;
use anyhow::{Context, Result, bail, ensure};
use std::fmt;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

const MIB: u64 = 1 << 20;

/// What a fio pass writes and verifies: more than the gateway keeps in memory.
const FIO_BYTES: u64 = 40 * MIB;
/// All the time, but not as fast as it goes: what is written is to be made anew, read by scrub, and kept in the pool of a small machine.
const FIO_BYTES_PER_SECOND: u64 = 8 * MIB;

/// Nodes that can be struck.
pub trait Nodes {
    /// It answers nothing from now on.
    fn kill(&mut self, node: usize) -> Result<()>;
    /// It is there again, with what it has.
    fn start(&mut self, node: usize) -> Result<()>;
    /// While it is down, its disk is changed for one with the marker and nothing else.
    fn wipe(&mut self, node: usize) -> Result<()>;
    /// Flips one bit in each of its shards. How many.
    fn flip_bits(&mut self, node: usize, random: &mut Random) -> Result<usize>;
    /// Shards that are there, whatever the catalog says.
    fn count_shards(&self, node: usize) -> Result<u64>;
    fn name(&self, node: usize) -> String {
        format!("n{}", node + 1)
    }
}

impl Nodes for Folders {
    fn kill(&mut self, node: usize) -> Result<()> {
        self.take_away(&self.name(node))
    }

    fn start(&mut self, node: usize) -> Result<()> {
        self.bring_back(&self.name(node))
    }

    fn wipe(&mut self, node: usize) -> Result<()> {
        self.wipe_away(&self.name(node))
    }

    fn flip_bits(&mut self, node: usize, random: &mut Random) -> Result<usize> {
        Folders::flip_bits(self, &self.name(node), random)
    }

    fn count_shards(&self, node: usize) -> Result<u64> {
        Ok(self.shards(&self.name(node))?.len() as u64)
    }
}

impl Nodes for Buckets {
    fn kill(&mut self, node: usize) -> Result<()> {
        self.ceph.kill_endpoint(node)
    }

    fn start(&mut self, _node: usize) -> Result<()> {
        self.ceph.up()
    }

    fn wipe(&mut self, node: usize) -> Result<()> {
        Buckets::wipe(self, &self.name(node), true).map(drop)
    }

    fn flip_bits(&mut self, node: usize, random: &mut Random) -> Result<usize> {
        Buckets::flip_bits(self, &self.name(node), random.below(1 << 32))
    }

    fn count_shards(&self, node: usize) -> Result<u64> {
        Ok(self.shards(&self.name(node))?.len() as u64)
    }
}

/// Guests at work until they are told to stop; what goes wrong is kept.
#[derive(Debug, Default)]
pub struct Load {
    is_over: AtomicBool,
    failure: Mutex<Option<anyhow::Error>>,
    fio_passes: AtomicU64,
    blocks_read: AtomicU64,
    pieces_written: AtomicU64,
}

impl Load {
    fn runs(&self) -> bool {
        !self.is_over.load(Ordering::SeqCst)
    }

    /// Lets it work for so long.
    fn rest(&self, time: Duration) -> Result<()> {
        let until = Instant::now() + time;
        while Instant::now() < until && self.runs() {
            std::thread::sleep(Duration::from_millis(50));
        }
        if self.runs() { Ok(()) } else { bail!("a guest has seen an error") }
    }

    fn end(&self) {
        self.is_over.store(true, Ordering::SeqCst);
    }

    fn fail(&self, error: anyhow::Error) {
        self.end();
        self.failure.lock().expect("nobody panics with it").get_or_insert(error);
    }

    /// An error as soon as a guest has seen one.
    fn check(&self) -> Result<()> {
        match self.failure.lock().expect("nobody panics with it").take() {
            Some(error) => Err(error),
            None => Ok(()),
        }
    }

    /// fio, pass after pass: writes everything in random order, then reads and verifies it.
    fn fio(&self, export: &Export) {
        while self.runs() {
            match fio::verifies_random_4k_slowly(export, FIO_BYTES, FIO_BYTES_PER_SECOND)
                .context("fio with verification")
            {
                Ok(()) => drop(self.fio_passes.fetch_add(1, Ordering::SeqCst)),
                Err(error) => self.fail(error),
            }
        }
    }

    /// Reads what is known at random, and now and then writes some of it anew.
    fn known(&self, known: &mut Known, mut random: Random) {
        while self.runs() {
            let turn = known.verify_some(64, &mut random).and_then(|()| known.write_some(4, &mut random));
            match turn.context("reading what is known") {
                Ok(()) => {
                    self.blocks_read.fetch_add(64, Ordering::SeqCst);
                    self.pieces_written.fetch_add(4, Ordering::SeqCst);
                }
                Err(error) => self.fail(error),
            }
        }
    }
}

/// How rounds are run.
#[derive(Clone, Debug)]
pub struct Rounds {
    pub count: u32,
    pub nodes: usize,
    /// Bytes of the volume that is read at random and, at the end, without every pair of nodes.
    pub known_bytes: u64,
    /// How long nodes stay down, between a half of it and all of it.
    pub down: Duration,
    /// How long healing may take.
    pub patience: Duration,
    /// Every second round bits flip on a node as well.
    pub flips: bool,
    pub seed: u64,
}

/// What rounds were like.
#[derive(Debug, Default)]
pub struct Summary {
    /// From the return of the nodes to full protection.
    pub healed: Vec<Duration>,
    pub shards_wiped: u64,
    pub shards_flipped: usize,
    pub fio_passes: u64,
    pub blocks_read: u64,
    pub pieces_written: u64,
    pub pairs_read_without: usize,
    pub took: Duration,
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut healed: Vec<_> = self.healed.iter().map(Duration::as_secs_f64).collect();
        healed.sort_by(f64::total_cmp);
        let at =
            |share: usize| healed.get((healed.len().max(1) - 1) * share / 100).copied().unwrap_or_default();
        writeln!(f, "rounds                 {} in {:.0} s", self.healed.len(), self.took.as_secs_f64())?;
        writeln!(
            f,
            "healed after           {:.1} s, median {:.1} s, at most {:.1} s",
            at(0),
            at(50),
            at(100)
        )?;
        writeln!(f, "shards wiped           {}", self.shards_wiped)?;
        writeln!(f, "shards with a bit flipped  {}", self.shards_flipped)?;
        writeln!(f, "fio passes verified    {} of {} MiB", self.fio_passes, FIO_BYTES / MIB)?;
        writeln!(f, "blocks read at random  {}, all of them right", self.blocks_read)?;
        writeln!(f, "pieces written anew    {}", self.pieces_written)?;
        write!(f, "pairs of nodes that everything was read without  {}", self.pairs_read_without)
    }
}

impl Rounds {
    /// Runs them on a site whose nodes are called n1, n2 and so on. `say` hears of each round.
    pub fn run(
        &self,
        site: &mut PoolSite,
        nodes: &mut impl Nodes,
        mut say: impl FnMut(&str),
    ) -> Result<Summary> {
        let begun = Instant::now();
        let mut random = Random::seeded(self.seed);
        let mut known = Known::create(&site.gateway, "known", self.known_bytes, self.seed & 0xffff)?;
        known.fill()?;
        site.gateway.create_volume("fio", FIO_BYTES)?;
        site.gateway.destage()?;
        let mut summary = Summary::default();
        let load = Load::default();
        let outcome = std::thread::scope(|scope| {
            let (load, export) = (&load, site.gateway.export("fio"));
            scope.spawn(move || load.fio(&export));
            let (reader, seed) = (&mut known, Random::seeded(random.word()));
            scope.spawn(move || load.known(reader, seed));
            let outcome = (0..self.count).try_for_each(|round| {
                let told = self.round(round, site, nodes, load, &mut random, &mut summary);
                told.map(|told| say(&told)).with_context(|| format!("round {round}"))
            });
            load.end();
            outcome
        });
        // What a guest saw says more than what came of it.
        load.check()?;
        outcome?;
        summary.fio_passes = load.fio_passes.load(Ordering::SeqCst);
        summary.blocks_read = load.blocks_read.load(Ordering::SeqCst);
        summary.pieces_written = load.pieces_written.load(Ordering::SeqCst);
        self.read_without_each_pair(site, nodes, &known, &mut summary)?;
        summary.took = begun.elapsed();
        Ok(summary)
    }

    fn round(
        &self,
        round: u32,
        site: &PoolSite,
        nodes: &mut impl Nodes,
        load: &Load,
        random: &mut Random,
        summary: &mut Summary,
    ) -> Result<String> {
        let first = random.index(self.nodes);
        let second = (first + 1 + random.index(self.nodes - 1)) % self.nodes;
        let pair = [first, second];
        let held: u64 = pair.iter().map(|node| nodes.count_shards(*node)).sum::<Result<_>>()?;
        for node in pair {
            nodes.kill(node)?;
        }
        let half = self.down / 2;
        load.rest(half + half * u32::try_from(random.below(1000))? / 1000)?;
        for node in pair {
            nodes.wipe(node)?;
        }
        for node in pair {
            nodes.start(node)?;
        }
        let back = Instant::now();
        self.wait_until_healed(site, nodes, load, &pair)?;
        let healed = back.elapsed();
        summary.healed.push(healed);
        summary.shards_wiped += held;
        let told = format!(
            "round {round}: {} and {} killed and wiped with {held} shards, whole again after {:.1} s",
            nodes.name(first),
            nodes.name(second),
            healed.as_secs_f64()
        );
        if self.flips && round % 2 == 1 {
            let node = random.index(self.nodes);
            let flipped = nodes.flip_bits(node, random)?;
            summary.shards_flipped += flipped;
            load.rest(self.down)?;
            self.scrub(site)?;
            self.wait_until_healed(site, nodes, load, &[node])?;
            let left = self.scrub(site)?;
            let is_right =
                ["missing", "damaged", "beyond_repair", "unread"].iter().all(|what| left[*what] == 0);
            ensure!(is_right, "after all was mended, scrub finds {left}");
            return Ok(format!(
                "{told}; {flipped} shards of {} with a bit flipped, and mended",
                nodes.name(node)
            ));
        }
        Ok(told)
    }

    /// What a look at every byte finds.
    fn scrub(&self, site: &PoolSite) -> Result<serde_json::Value> {
        let told = site.cairn(&["scrub", "--json"]).timeout(self.patience * 2).run()?.stdout;
        serde_json::from_str(&told).with_context(|| format!("`cairn scrub` said {told:?}"))
    }

    /// The catalog says that all shards are there, and the nodes have as many as it says. While guests write, the two are looked at one after the other: a little
    /// may be in between, so it is asked until it is so.
    fn wait_until_healed(
        &self,
        site: &PoolSite,
        nodes: &impl Nodes,
        load: &Load,
        wiped: &[usize],
    ) -> Result<()> {
        wait_until("the pool is whole", self.patience, || {
            ensure!(load.runs(), "a guest has seen an error");
            if !site.is_whole()? {
                return Ok(false);
            }
            for node in wiped {
                let claimed = site.node(&nodes.name(*node))?.shards;
                if nodes.count_shards(*node)? < claimed {
                    return Ok(false);
                }
            }
            Ok(true)
        })
        .with_context(|| format!("{:?}", site.pool()))
    }

    /// Every pair of nodes may be lost now: everything can be read without it, from cold caches.
    fn read_without_each_pair(
        &self,
        site: &mut PoolSite,
        nodes: &mut impl Nodes,
        known: &Known,
        summary: &mut Summary,
    ) -> Result<()> {
        site.gateway.destage()?;
        for first in 0..self.nodes {
            for second in first + 1..self.nodes {
                nodes.kill(first)?;
                nodes.kill(second)?;
                site.restart()?;
                known.verify().with_context(|| {
                    format!("reading without {} and {}", nodes.name(first), nodes.name(second))
                })?;
                nodes.start(first)?;
                nodes.start(second)?;
                summary.pairs_read_without += 1;
            }
        }
        Ok(())
    }
}
