//! SIGKILL of the gateway in the middle of repair, rebalance, drain and conversion: the next start goes on, and everything is right.

use super::{MIB, PATIENCE, Pool};
use anyhow::{Context, Result, ensure};
use std::time::Duration;
use system_tests::pool::{Known, wait_until};
use system_tests::random::Random;
use system_tests::settings;

const BYTES: u64 = 64 * MIB;

/// Objects: those of the segments that may be under way at once.
const LEFT_BY_A_KILL_MAX: u64 = 8 * 6;

/// Does what makes the pool heal, kills the gateway a few times while it does, and waits until it is over.
fn killed_in_the_middle(
    nodes: usize,
    profile: &str,
    begin: impl Fn(&mut Pool) -> Result<()>,
    is_over: impl Fn(&Pool) -> Result<bool>,
) -> Result<(Pool, Known)> {
    let seed = Random::seed_from_environment()?;
    println!("CAIRN_E2E_SEED={seed}");
    let mut random = Random::seeded(seed);
    let mut pool = Pool::start(nodes, profile)?;
    let mut known = pool.fill("vol", BYTES)?;
    begin(&mut pool)?;
    let mut in_the_middle = 0;
    for round in 0..settings::crash_rounds()? {
        std::thread::sleep(Duration::from_millis(random.below(700)));
        known.write_some(2, &mut random)?;
        in_the_middle += u32::from(!is_over(&pool)?);
        pool.site.restart().with_context(|| format!("start {round}"))?;
        known.verify_some(100, &mut random).with_context(|| format!("after start {round}"))?;
    }
    // A machine may be so fast that it was over before; then nothing was shown.
    ensure!(in_the_middle > 0, "it was over before the first kill: take more bytes");
    wait_until("what was begun comes to its end", PATIENCE, || is_over(&pool))
        .with_context(|| format!("{:?} {:?}", pool.site.pool(), pool.site.nodes()))?;
    pool.site.gateway.destage()?;
    pool.verify_cold(&known)?;
    wait_until("every shard is there", PATIENCE, || Ok(pool.site.is_whole()? && pool.leftovers().is_ok()))
        .with_context(|| pool.leftovers().err().map_or_else(String::new, |error| error.to_string()))?;
    // A process that dies may leave what it had just put and nobody names; a few segments a time, and nothing that grows with what was moved.
    let (left, most) = (pool.leftovers()?, u64::from(settings::crash_rounds()?) * LEFT_BY_A_KILL_MAX);
    println!("{left} objects that nothing names are left");
    ensure!(left <= most, "{left} objects that nothing names are left, more than {most}");
    Ok((pool, known))
}

#[test]
fn in_the_middle_of_repair() -> Result<()> {
    let wipe = |pool: &mut Pool| {
        pool.folders.wipe("n1", true)?;
        pool.folders.wipe("n6", true)
    };
    let (mut pool, known) =
        killed_in_the_middle(
            6,
            "ec:4+2",
            wipe,
            |pool| Ok(pool.site.is_whole()? && pool.leftovers().is_ok()),
        )?;
    // The two that were wiped serve for two others.
    for name in ["n2", "n3"] {
        pool.folders.take_away(name)?;
    }
    pool.verify_cold(&known)
}

#[test]
fn in_the_middle_of_rebalance() -> Result<()> {
    killed_in_the_middle(
        6,
        "ec:4+2",
        |pool| pool.add_one().map(drop),
        |pool| {
            let fair = pool.site.pool()?.segments * 6 / 7;
            Ok(pool.site.node("n7")?.shards * 100 >= fair * 85)
        },
    )
    .map(drop)
}

#[test]
fn in_the_middle_of_a_drain() -> Result<()> {
    let drain = |pool: &mut Pool| pool.site.cairn(&["node", "drain", "n2"]).run().map(drop);
    let (pool, _) = killed_in_the_middle(7, "ec:4+2", drain, |pool| Ok(pool.site.node("n2")?.shards == 0))?;
    pool.site.cairn(&["node", "remove", "n2"]).run().map(drop)
}

#[test]
fn in_the_middle_of_a_conversion() -> Result<()> {
    let (mut pool, known) = killed_in_the_middle(
        6,
        "single",
        |pool| pool.site.set_profile("ec:4+2"),
        |pool| pool.site.is_whole(),
    )?;
    for name in ["n4", "n5"] {
        pool.folders.take_away(name)?;
    }
    pool.verify_cold(&known)
}
