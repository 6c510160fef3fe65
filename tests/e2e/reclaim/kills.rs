//! SIGKILL in the middle of passes, under a writer whose every write is known.

use super::{MIB, cairn, gateway_with, number, objects, reclaim};
use anyhow::{Context, Result, ensure};
use rustix::process::Signal;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use system_tests::gateway::Gateway;
use system_tests::nbd::Client;
use system_tests::process::Process;
use system_tests::random::Random;
use system_tests::settings;
use system_tests::tool::Tool;

const BYTES: usize = 32 << 20;
const PIECE: usize = 256 << 10;
const BLOCK: usize = 4096;

/// Objects that one refused batch may have put.
const OBJECTS_PER_BATCH: u64 = 4;

/// Batches that are small and many, so that there is always something that is about to die, and survivors that are to be moved.
const SMALL_BATCHES: &str = "dead_percent = 5\n[destage]\nbatch_bytes = \"2MiB\"\nbatch_age = \"100ms\"\n";

/// One connection that overwrites, repeats and zeroes, and what the volume must hold then.
struct Load {
    random: Random,
    /// Contents that come again and again: each may be shared at the moment at which it is taken back.
    repeated: Vec<Vec<u8>>,
    held: Vec<u8>,
    /// Sent and not answered.
    pending: Option<(usize, Vec<u8>)>,
}

impl Load {
    fn new(seed: u64) -> Self {
        let mut random = Random::seeded(seed);
        let repeated = (0..4).map(|_| noise(&mut random)).collect();
        Self { random, repeated, held: vec![0; BYTES], pending: None }
    }

    fn step(&mut self, client: &mut Client) -> Result<()> {
        let at = self.random.index(BYTES / PIECE) * PIECE;
        let (is_zero, bytes) = match self.random.below(8) {
            0 => (true, vec![0; (16 * PIECE).min(BYTES - at)]),
            1..=3 => (false, self.repeated[self.random.index(self.repeated.len())].clone()),
            _ => (false, noise(&mut self.random)),
        };
        let (offset, length) = (at as u64, bytes.len());
        self.pending = Some((at, bytes.clone()));
        if is_zero {
            client.write_zeroes(offset, length)?;
        } else {
            client.write(offset, &bytes)?;
        }
        self.held[at..at + length].copy_from_slice(&bytes);
        self.pending = None;
        Ok(())
    }

    /// Until it is over. Before that, nothing may fail.
    fn run(&mut self, gateway: &Gateway, over: &AtomicBool) -> Result<()> {
        let mut client = gateway.export("vol").connect()?;
        while !over.load(Ordering::SeqCst) {
            match self.step(&mut client) {
                Err(_) if over.load(Ordering::SeqCst) => return Ok(()),
                done => done?,
            }
            std::thread::sleep(Duration::from_millis(3));
        }
        Ok(())
    }

    /// Reads everything. Of a write without an answer each block may be old or new, and stays as it is from then on.
    fn verify(&mut self, gateway: &Gateway) -> Result<()> {
        let mut client = gateway.export("vol").connect()?;
        let mut seen = Vec::with_capacity(BYTES);
        while seen.len() < BYTES {
            seen.extend(client.read(seen.len() as u64, 1 << 20)?);
        }
        client.disconnect()?;
        if let Some((at, bytes)) = self.pending.take() {
            for (from, new) in (at..).step_by(BLOCK).zip(bytes.chunks(BLOCK)) {
                if seen[from..from + BLOCK] == *new {
                    self.held[from..from + BLOCK].copy_from_slice(new);
                }
            }
        }
        let differs = |block: &usize| seen[block * BLOCK..][..BLOCK] != self.held[block * BLOCK..][..BLOCK];
        let wrong: Vec<usize> = (0..BYTES / BLOCK).filter(differs).collect();
        ensure!(wrong.is_empty(), "{} blocks are wrong, the first is {}", wrong.len(), wrong[0]);
        Ok(())
    }
}

fn noise(random: &mut Random) -> Vec<u8> {
    let mut bytes = vec![0; PIECE];
    random.fill(&mut bytes);
    bytes
}

/// What the catalog says of the pool.
struct Catalog {
    /// Lengths of segments, by key.
    segments: BTreeMap<String, u64>,
    /// Keys of what is to be deleted.
    doomed: BTreeSet<String>,
}

impl Catalog {
    /// Reads it behind the back of the gateway, which runs.
    fn of(gateway: &Gateway) -> Result<Self> {
        let script = "import json, sqlite3, sys; c = sqlite3.connect(f'file:{sys.argv[1]}?mode=ro', uri=True); \
            print(json.dumps({'segments': dict(c.execute('SELECT object_key, length_bytes FROM segments')), \
            'doomed': [key for (key,) in c.execute('SELECT object_key FROM doomed')]}))";
        let catalog = gateway.dir().join("catalog.db");
        let said = Tool::new("python3").args(["-c", script]).arg(catalog).run()?.stdout;
        let mut found: serde_json::Value = serde_json::from_str(&said)?;
        Ok(Self {
            segments: serde_json::from_value(found["segments"].take())?,
            doomed: serde_json::from_value(found["doomed"].take())?,
        })
    }

    fn keys(&self) -> impl Iterator<Item = &String> {
        self.segments.keys().chain(&self.doomed)
    }
}

/// Objects of which the catalog knows nothing: put by a batch that was not committed, because of a kill, or refused, and packed again.
fn strays(gateway: &Gateway, catalog: &Catalog) -> Result<BTreeSet<String>> {
    let known: BTreeSet<&String> = catalog.keys().collect();
    Ok(objects(gateway)?.into_keys().filter(|key| !known.contains(key)).collect())
}

/// Every segment is there and whole.
fn assert_whole(gateway: &Gateway, catalog: &Catalog) -> Result<()> {
    let there = objects(gateway)?;
    for (key, length) in &catalog.segments {
        ensure!(
            there.get(key) == Some(length),
            "{key} of {length} bytes is {:?} in the pool",
            there.get(key)
        );
    }
    Ok(())
}

/// One pass after the other, until it is over. Before that, none may fail. All keys that the catalog has in between become known. How many containers were taken back, and
/// how many were moved.
fn reclaim_on(gateway: &Gateway, over: &AtomicBool, known: &mut BTreeSet<String>) -> Result<(u64, u64)> {
    let mut touched = (0, 0);
    while !over.load(Ordering::SeqCst) {
        match Catalog::of(gateway) {
            Err(_) if over.load(Ordering::SeqCst) => break,
            catalog => known.extend(catalog?.keys().cloned()),
        }
        let finished = cairn(gateway, &["reclaim", "--json"]).finish()?;
        if finished.status.success() {
            let done = serde_json::from_str(&finished.stdout)?;
            touched.0 += number(&done, "containers")?;
            touched.1 += number(&done, "moved_containers")?;
        } else {
            ensure!(over.load(Ordering::SeqCst), "{}", finished.describe());
            ensure!(!finished.said().contains("panicked"), "{}", finished.describe());
        }
    }
    Ok(touched)
}

/// Writes and passes side by side for a while, then the end that `end` is. How many containers were taken back and moved.
fn life(
    gateway: &Gateway,
    load: &mut Load,
    known: &mut BTreeSet<String>,
    length: Duration,
    end: impl FnOnce() -> Result<()>,
) -> Result<(u64, u64)> {
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| load.run(gateway, &over));
        let passes = scope.spawn(|| reclaim_on(gateway, &over, known));
        std::thread::sleep(length);
        over.store(true, Ordering::SeqCst);
        let ended = end();
        writer.join().expect("the writer does not panic")?;
        let touched = passes.join().expect("passes do not panic")?;
        ended.map(|()| touched)
    })
}

#[test]
fn sigkill_during_a_pass_loses_nothing_and_leaves_nothing() -> Result<()> {
    let seed = Random::seed_from_environment()?;
    rounds(seed).with_context(|| format!("CAIRN_E2E_SEED={seed}"))
}

fn rounds(seed: u64) -> Result<()> {
    let mut gateway = gateway_with(SMALL_BATCHES)?;
    gateway.start()?;
    gateway.create_volume("vol", BYTES as u64)?;
    let (mut load, mut random) = (Load::new(seed), Random::seeded(!seed));
    // All keys that the catalog ever had, as far as somebody looked.
    let mut known = BTreeSet::new();
    let (mut taken_back, mut moved) = (0, 0);
    for _ in 0..settings::crash_rounds()? {
        let length = Duration::from_millis(500 + random.below(2000));
        let touched =
            life(&gateway, &mut load, &mut known, length, || gateway.process()?.signal(Signal::KILL))?;
        (taken_back, moved) = (taken_back + touched.0, moved + touched.1);
        gateway.kill()?;
        gateway.start()?;
        load.verify(&gateway)?;
        let catalog = Catalog::of(&gateway)?;
        assert_whole(&gateway, &catalog)?;
        known.extend(catalog.keys().cloned());
    }
    // A command that works on its own is killed like any other.
    gateway.stop()?;
    for _ in 0..3 {
        let mut command = Command::new(settings::cairn_binary()?);
        command.args(["reclaim", "--dir"]).arg(gateway.dir());
        let mut pass = Process::start(command, &gateway.log())?;
        std::thread::sleep(Duration::from_millis(random.below(300)));
        pass.kill()?;
    }
    gateway.start()?;
    load.verify(&gateway)?;
    let before = strays(&gateway, &Catalog::of(&gateway)?)?;
    // A life that ends well leaves nothing behind, but for what a refused batch had put.
    let touched = life(&gateway, &mut load, &mut known, Duration::from_secs(3), || Ok(()))?;
    (taken_back, moved) = (taken_back + touched.0, moved + touched.1);
    gateway.destage()?;
    reclaim(&gateway, &[])?;
    let nothing = reclaim(&gateway, &[])?;
    ensure!(number(&nothing, "containers")? == 0 && number(&nothing, "objects")? == 0, "{nothing}");
    ensure!(taken_back > 0 && moved > 0, "{taken_back} containers died, {moved} moved");
    let catalog = Catalog::of(&gateway)?;
    ensure!(catalog.doomed.is_empty(), "{:?} are still to be deleted", catalog.doomed);
    assert_whole(&gateway, &catalog)?;
    let after = strays(&gateway, &catalog)?;
    let forgotten: Vec<_> = after.intersection(&known).collect();
    ensure!(forgotten.is_empty(), "the catalog forgot, and the pool still has {forgotten:?}");
    let new: Vec<_> = after.difference(&before).collect();
    let refused = number(&gateway.status()?["dedupe"], "refused_batches")?;
    ensure!(
        new.len() as u64 <= refused * OBJECTS_PER_BATCH,
        "{refused} batches were refused, and the catalog does not know {new:?}"
    );
    // What the catalog does not know, nobody needs.
    gateway.stop()?;
    for stray in &after {
        fs::remove_file(gateway.dir().join("pool").join(stray))?;
    }
    gateway.start()?;
    load.verify(&gateway)?;
    // And with the volume all of it goes.
    let full: u64 = objects(&gateway)?.values().sum();
    cairn(&gateway, &["volume", "delete", "vol", "--force", "--yes"]).run()?;
    reclaim(&gateway, &[])?;
    let left = super::pool_bytes(&gateway)?;
    // How much the volume held is chance: zeroes take back most of it now and then.
    ensure!(full > MIB && left * 100 < full, "{left} of {full} bytes are still there");
    gateway.stop()
}
