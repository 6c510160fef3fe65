//! SIGKILL in the middle of everything: passes of reclaim, writes that repeat others, snapshots, deletions, clones and reverts.

use super::{MIB, cairn, gateway_with, number, objects, reclaim};
use crate::timeline::{Broken, Clock, Disk, Done, Past, start_writers};
use anyhow::{Context, Result, ensure};
use rustix::process::Signal;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use system_tests::gateway::Gateway;
use system_tests::process::Process;
use system_tests::random::Random;
use system_tests::settings;
use system_tests::tool::Tool;

/// Objects that one refused batch may have put.
const OBJECTS_PER_BATCH: u64 = 4;

/// Batches that are small and many, so that there is always something that is about to die, and survivors that are to be moved.
const SMALL_BATCHES: &str = "dead_percent = 5\n[destage]\nbatch_bytes = \"2MiB\"\nbatch_age = \"100ms\"\n";

/// Rounds beyond those asked for, until everything has happened that the test is about: in which round it does is chance.
const MORE_ROUNDS_MAX: u32 = 60;

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

/// What lives have done.
#[derive(Debug, Default)]
struct Account {
    /// All keys that the catalog ever had, as far as somebody looked.
    known: BTreeSet<String>,
    containers_taken_back: u64,
    containers_moved: u64,
    blocks_shared: u64,
}

impl Account {
    /// Whether there was all that kills are to hit.
    fn is_full(&self, done: &Done) -> bool {
        let reclaimed = self.containers_taken_back > 0 && self.containers_moved > 0;
        reclaimed && self.blocks_shared > 0 && done.everything() && done.unanswered > 0
    }

    /// One pass after the other, until it is over. Before that, none may fail. All keys that the catalog has in between become known.
    fn reclaim_on(&mut self, gateway: &Gateway, over: &AtomicBool) -> Result<()> {
        let before = self.blocks_shared;
        while !over.load(Ordering::SeqCst) {
            match Catalog::of(gateway) {
                Err(_) if over.load(Ordering::SeqCst) => break,
                catalog => self.known.extend(catalog?.keys().cloned()),
            }
            // Without a gateway that runs the command answers by itself, and knows nothing of dedupe.
            match gateway.status().and_then(|status| number(&status["dedupe"], "hits")) {
                Err(_) if over.load(Ordering::SeqCst) => break,
                hits => self.blocks_shared = before + hits?,
            }
            let finished = cairn(gateway, &["reclaim", "--json"]).finish()?;
            if finished.status.success() {
                let done = serde_json::from_str(&finished.stdout)?;
                self.containers_taken_back += number(&done, "containers")?;
                self.containers_moved += number(&done, "moved_containers")?;
            } else {
                ensure!(over.load(Ordering::SeqCst), "{}", finished.describe());
                ensure!(!finished.said().contains("panicked"), "{}", finished.describe());
            }
        }
        Ok(())
    }
}

/// One action after the other, until it is over. Before that, none may fail, and whatever an answer says is right at any time.
fn act_on(past: &mut Past, gateway: &Gateway, clock: &Clock, over: &AtomicBool) -> Result<()> {
    while !over.load(Ordering::SeqCst) {
        match past.act(gateway, clock) {
            Err(Broken::Unanswered(_)) if over.load(Ordering::SeqCst) => break,
            acted => acted?,
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

/// Writers, passes and everything else side by side for a while, then the end that `end` is.
fn life(
    gateway: &Gateway,
    past: &mut Past,
    account: &mut Account,
    random: &mut Random,
    clock: &Clock,
    end: impl FnOnce() -> Result<()>,
) -> Result<()> {
    let over = AtomicBool::new(false);
    let disks = past.disks.clone();
    let length = Duration::from_millis(500 + random.below(2000));
    std::thread::scope(|scope| {
        let writers = start_writers(scope, gateway, &disks, random, clock, &over);
        let passes = scope.spawn(|| account.reclaim_on(gateway, &over));
        let actions = scope.spawn(|| act_on(past, gateway, clock, &over));
        std::thread::sleep(length);
        over.store(true, Ordering::SeqCst);
        let ended = end();
        let passes = passes.join().expect("passes do not panic");
        let actions = actions.join().expect("actions do not panic");
        for writer in writers {
            writer.join().expect("the writer does not panic")?;
        }
        actions.and(passes).and(ended)
    })
}

/// A command that works on its own is killed like any other.
fn kill_passes_without_a_gateway(gateway: &Gateway, random: &mut Random) -> Result<()> {
    for _ in 0..3 {
        let mut command = Command::new(settings::cairn_binary()?);
        command.args(["reclaim", "--dir"]).arg(gateway.dir());
        let mut pass = Process::start(command, &gateway.log())?;
        std::thread::sleep(Duration::from_millis(random.below(300)));
        pass.kill()?;
    }
    Ok(())
}

/// Two passes after the last write and the last deletion, everything is in its place, and nothing else is there but strays.
fn assert_no_orphans(gateway: &Gateway, account: &Account, strays_before: &BTreeSet<String>) -> Result<()> {
    gateway.destage()?;
    for _ in 0..2 {
        reclaim(gateway, &[])?;
    }
    let nothing = reclaim(gateway, &[])?;
    ensure!(number(&nothing, "containers")? == 0 && number(&nothing, "objects")? == 0, "{nothing}");
    let catalog = Catalog::of(gateway)?;
    ensure!(catalog.doomed.is_empty(), "{:?} are still to be deleted", catalog.doomed);
    assert_whole(gateway, &catalog)?;
    let after = strays(gateway, &catalog)?;
    let forgotten: Vec<_> = after.intersection(&account.known).collect();
    ensure!(forgotten.is_empty(), "the catalog forgot, and the pool still has {forgotten:?}");
    let new: Vec<_> = after.difference(strays_before).collect();
    let refused = number(&gateway.status()?["dedupe"], "refused_batches")?;
    ensure!(
        new.len() as u64 <= refused * OBJECTS_PER_BATCH,
        "{refused} batches were refused, and the catalog does not know {new:?}"
    );
    Ok(())
}

#[test]
fn sigkill_during_passes_snapshots_clones_and_reverts_loses_nothing_and_leaves_nothing() -> Result<()> {
    let seed = Random::seed_from_environment()?;
    rounds(seed).with_context(|| format!("CAIRN_E2E_SEED={seed}"))
}

fn rounds(seed: u64) -> Result<()> {
    let mut random = Random::seeded(seed);
    let mut gateway = gateway_with(SMALL_BATCHES)?;
    gateway.start()?;
    let disks = vec![Disk::create(&gateway, "two", 16, 2)?, Disk::create(&gateway, "one", 8, 1)?];
    let mut past = Past::new(&gateway, disks, random.word());
    let (mut account, clock) = (Account::default(), Clock::default());
    let wanted = settings::crash_rounds()?;
    for round in 0..wanted + MORE_ROUNDS_MAX {
        if round >= wanted && account.is_full(&past.done) {
            break;
        }
        let kill = || gateway.process()?.signal(Signal::KILL);
        life(&gateway, &mut past, &mut account, &mut random, &clock, kill)
            .with_context(|| format!("in round {round}"))?;
        gateway.kill()?;
        gateway.start()?;
        past.settle(&gateway).with_context(|| format!("after round {round}"))?;
        past.verify(&gateway).with_context(|| format!("after round {round}"))?;
        let catalog = Catalog::of(&gateway)?;
        assert_whole(&gateway, &catalog)?;
        account.known.extend(catalog.keys().cloned());
    }
    let Account { containers_taken_back, containers_moved, blocks_shared, .. } = &account;
    println!(
        "{:?}; {containers_taken_back} containers taken back, {containers_moved} moved, {blocks_shared} look-ups of dedupe hit",
        past.done
    );
    ensure!(account.is_full(&past.done), "{:?}, {account:?}: the test does not reach its point", past.done);
    gateway.stop()?;
    kill_passes_without_a_gateway(&gateway, &mut random)?;
    gateway.start()?;
    past.verify(&gateway)?;
    // A life that ends well leaves nothing behind, but for what a refused batch had put.
    let before = strays(&gateway, &Catalog::of(&gateway)?)?;
    life(&gateway, &mut past, &mut account, &mut random, &clock, || Ok(()))?;
    past.verify(&gateway)?;
    assert_no_orphans(&gateway, &account, &before)?;
    past.verify(&gateway)?;
    // What the catalog does not know, nobody needs.
    let after = strays(&gateway, &Catalog::of(&gateway)?)?;
    gateway.stop()?;
    for stray in &after {
        fs::remove_file(gateway.dir().join("pool").join(stray))?;
    }
    gateway.start()?;
    past.verify(&gateway)?;
    // And with the volumes all of it goes. How much they hold is chance; now it is something.
    let disk = Arc::clone(&past.disks[0]);
    disk.renew(&gateway, false, &clock)?;
    gateway.destage()?;
    let full: u64 = objects(&gateway)?.values().sum();
    ensure!(full > 8 * MIB, "{full} bytes are all there is");
    past.clear()?;
    for _ in 0..2 {
        reclaim(&gateway, &[])?;
    }
    let left = super::pool_bytes(&gateway)?;
    ensure!(left * 100 < full, "{left} of {full} bytes are still there");
    gateway.stop()
}
