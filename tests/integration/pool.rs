//! A pool of six nodes on real servers: what only servers and networks do to it.

use anyhow::{Context, Result, ensure};
use std::time::{Duration, Instant};
use system_tests::pool::{Buckets, Known, Mood, PoolSite, Relay, Rounds, wait_until};
use system_tests::random::Random;

const MIB: u64 = 1 << 20;
const NODES: usize = 6;

/// Six buckets behind six endpoints, each of them through a relay.
struct Servers {
    site: PoolSite,
    buckets: Buckets,
    relays: Vec<Relay>,
}

impl Servers {
    fn start(profile: &str) -> Result<Self> {
        let buckets = Buckets::start(NODES)?;
        let site = PoolSite::start(buckets.ceph.credentials(), "")?;
        let mut relays = Vec::new();
        for number in 0..NODES {
            let relay = Relay::before(&buckets.ceph.endpoint(number))?;
            let name = format!("n{}", number + 1);
            let bucket = Buckets::bucket(&name);
            let url = format!("s3://{bucket}/pool?endpoint={}&region=us-east-1", relay.endpoint());
            site.add_node(&name, &url, &["--create-bucket"])?;
            relays.push(relay);
        }
        site.set_profile(profile)?;
        Ok(Self { site, buckets, relays })
    }

    fn fill(&self, volume: &str, bytes: u64) -> Result<Known> {
        let mut known = Known::create(&self.site.gateway, volume, bytes, 2)?;
        known.fill()?;
        self.site.gateway.destage()?;
        Ok(known)
    }

    fn is_told_of(&self, name: &str) -> Result<bool> {
        Ok(self.site.attention()?.iter().any(|what| what.contains(&format!("node {name} "))))
    }
}

#[test]
fn one_node_in_a_bad_mood_costs_no_error_and_little_time() -> Result<()> {
    let mut servers = Servers::start("ec:4+2")?;
    let mut known = servers.fill("vol", 32 * MIB)?;
    let mut random = Random::seeded(5);
    let moods = [
        Mood::Slow(Duration::from_secs(5)),
        Mood::HalfBusy,
        Mood::Refusing,
        Mood::Forbidding,
        Mood::ReadOnly,
        Mood::Full,
    ];
    for (number, mood) in moods.into_iter().enumerate() {
        servers.relays[number].set(mood);
        servers.site.restart().with_context(|| format!("{mood:?}"))?;
        let begun = Instant::now();
        known.verify_some(200, &mut random).with_context(|| format!("{mood:?}"))?;
        let read = begun.elapsed();
        known.write_some(16, &mut random).with_context(|| format!("{mood:?}"))?;
        let begun = Instant::now();
        servers.site.gateway.destage().with_context(|| format!("{mood:?}"))?;
        let wrote = begun.elapsed();
        println!(
            "{mood:?}: 200 reads in {:.1} s, 1 MiB to the pool in {:.1} s",
            read.as_secs_f64(),
            wrote.as_secs_f64()
        );
        // Far from one wait of five seconds for each.
        ensure!(read < Duration::from_mins(1), "{mood:?}: 200 reads took {} s", read.as_secs());
        ensure!(wrote < Duration::from_mins(1), "{mood:?}: destage took {} s", wrote.as_secs());
        servers.relays[number].set(Mood::Fine);
    }
    known.verify()
}

#[test]
fn credentials_that_are_revoked_on_all_nodes_make_writes_wait_and_lose_nothing() -> Result<()> {
    let servers = Servers::start("ec:4+2")?;
    let mut known = servers.fill("vol", 16 * MIB)?;
    servers.relays.iter().for_each(|relay| relay.set(Mood::Forbidding));
    known.fill()?;
    wait_until("status says that writes do not reach the pool", Duration::from_mins(2), || {
        Ok(servers.site.attention()?.iter().any(|what| what.contains("not reaching the pool")))
    })?;
    wait_until("a node is named", Duration::from_mins(2), || {
        Ok((1..=NODES).any(|number| servers.is_told_of(&format!("n{number}")).unwrap_or(false)))
    })?;
    servers.relays.iter().for_each(|relay| relay.set(Mood::Fine));
    servers.site.gateway.destage()?;
    known.verify()
}

#[test]
fn two_servers_that_are_frozen_are_read_around() -> Result<()> {
    let mut servers = Servers::start("ec:4+2")?;
    let known = servers.fill("vol", 32 * MIB)?;
    let mut random = Random::seeded(6);
    for node in [1, 4] {
        servers.buckets.ceph.freeze_endpoint(node)?;
    }
    servers.site.restart()?;
    let begun = Instant::now();
    let read = known.verify_some(200, &mut random);
    println!("200 reads in {:.1} s with two servers frozen", begun.elapsed().as_secs_f64());
    for node in [1, 4] {
        servers.buckets.ceph.thaw_endpoint(node)?;
    }
    read?;
    ensure!(begun.elapsed() < Duration::from_mins(1), "200 reads took {} s", begun.elapsed().as_secs());
    known.verify()
}

#[test]
fn damaged_and_truncated_objects_of_two_servers_are_never_returned() -> Result<()> {
    let mut servers = Servers::start("ec:4+2")?;
    let known = servers.fill("vol", 32 * MIB)?;
    assert!(servers.buckets.flip_bits("n1", 3)? > 0);
    assert!(servers.buckets.truncate("n5")? > 0);
    servers.site.restart()?;
    known.verify()
}

#[test]
fn a_round_of_death_and_empty_buckets_costs_nothing() -> Result<()> {
    let mut servers = Servers::start("ec:4+2")?;
    let rounds = Rounds {
        count: 1,
        nodes: NODES,
        known_bytes: 32 * MIB,
        down: Duration::from_secs(5),
        patience: Duration::from_mins(5),
        flips: false,
        seed: Random::seed_from_environment()?,
    };
    println!("CAIRN_E2E_SEED={}", rounds.seed);
    let summary = rounds.run(&mut servers.site, &mut servers.buckets, |told| println!("{told}"))?;
    println!("{summary}");
    Ok(())
}
