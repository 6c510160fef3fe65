//! Many snapshots of volumes under load, of which some are deleted, cloned and reverted to, while reclaim runs all the time.

use crate::timeline::{Clock, Disk, Past, start_writers};
use anyhow::{Context, Result, ensure};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use system_tests::gateway::Gateway;
use system_tests::random::Random;
use system_tests::settings;

/// Nothing is read from flash, little from memory; what is dead goes at once, and survivors are moved.
const CONFIG: &str = "[memory]\nblock_cache = \"16MiB\"\n[flash]\nsize = \"0\"\n[reclaim]\ninterval = \"off\"\ndead_percent = 5\n\
    [destage]\nbatch_bytes = \"2MiB\"\nbatch_age = \"100ms\"\n";

/// What a pass took back: containers, and those that it moved.
fn pass(gateway: &Gateway) -> Result<(u64, u64)> {
    // It may wait for destage and for folds before it begins.
    let said = gateway.command(["reclaim", "--json"]).timeout(Duration::from_mins(5)).run()?.stdout;
    let done: serde_json::Value = serde_json::from_str(&said).context(said)?;
    let number = |name: &str| done[name].as_u64().with_context(|| format!("no {name} in {done}"));
    Ok((number("containers")?, number("moved_containers")?))
}

/// One pass after the other.
fn reclaim_on(gateway: &Gateway, over: &AtomicBool) -> Result<(u64, u64)> {
    let mut all = (0, 0);
    while !over.load(Ordering::SeqCst) {
        let (taken_back, moved) = pass(gateway)?;
        all = (all.0 + taken_back, all.1 + moved);
    }
    Ok(all)
}

/// A snapshot, and now and then something else.
fn step(gateway: &Gateway, past: &mut Past, number: u32, clock: &Clock) -> Result<()> {
    past.take()?;
    match number % 20 {
        1 | 4 | 7 | 10 | 13 | 16 | 17 | 18 => past.delete_snapshot()?,
        3 | 14 => past.clone_snapshot(gateway, clock)?,
        8 | 19 => past.revert(gateway)?,
        11 => past.delete_clone()?,
        0 | 5 | 9 | 12 => past.look(gateway)?,
        _ => {}
    }
    Ok(())
}

#[test]
fn every_snapshot_stays_bit_for_bit_under_load_deletions_clones_reverts_and_reclaim() -> Result<()> {
    let seed = Random::seed_from_environment()?;
    run(seed).with_context(|| format!("CAIRN_E2E_SEED={seed}"))
}

fn run(seed: u64) -> Result<()> {
    let mut random = Random::seeded(seed);
    let mut gateway = Gateway::new()?;
    gateway.init_with_config(CONFIG)?;
    gateway.start()?;
    let disks = vec![Disk::create(&gateway, "two", 16, 2)?, Disk::create(&gateway, "one", 8, 1)?];
    let mut past = Past::new(&gateway, disks, random.word());
    let (clock, over) = (Clock::default(), AtomicBool::new(false));
    let disks = past.disks.clone();
    let (acted, taken_back) = std::thread::scope(|scope| {
        let writers = start_writers(scope, &gateway, &disks, &mut random, &clock, &over);
        let passes = scope.spawn(|| reclaim_on(&gateway, &over));
        let acted = (0..settings::snapshots_under_load()?).try_for_each(|number| {
            std::thread::sleep(Duration::from_millis(20 + random.below(80)));
            step(&gateway, &mut past, number, &clock).with_context(|| format!("at snapshot {number}"))
        });
        over.store(true, Ordering::SeqCst);
        for writer in writers {
            writer.join().expect("the writer does not panic")?;
        }
        anyhow::Ok((acted, passes.join().expect("passes do not panic")?))
    })?;
    acted?;
    past.verify(&gateway)?;
    let (mut containers, mut moved) = taken_back;

    // Something that a snapshot alone keeps, so that its deletion has something to take back; and something sparse.
    let disk = Arc::clone(&past.disks[0]);
    disk.renew(&gateway, false, &clock)?;
    gateway.destage()?;
    let kept = past.take_of(&disk)?;
    disk.renew(&gateway, true, &clock)?;
    gateway.destage()?;
    past.thin_out()?;
    past.delete_if_there(&kept)?;
    for _ in 0..2 {
        let last = pass(&gateway)?;
        (containers, moved) = (containers + last.0, moved + last.1);
    }
    past.verify(&gateway)?;
    gateway.stop()?;
    gateway.start()?;
    past.verify(&gateway)?;
    println!(
        "{:?}; {} are left; {containers} containers taken back, {moved} moved",
        past.done,
        past.snapshots()
    );
    ensure!(past.done.everything(), "{:?}", past.done);
    ensure!(containers > 0 && moved > 0, "{containers} containers died, {moved} moved");
    ensure!(pass(&gateway)? == (0, 0), "a third pass still finds something");
    gateway.stop()
}
