//! Nodes that are gone, wrong, old or damaged: what is written is read right as long as enough of it is left, and nothing else is ever returned.

use super::{BYTES, MIB, PATIENCE, Pool};
use anyhow::{Context, Result, ensure};
use std::time::{Duration, Instant};
use system_tests::pool::{Known, wait_until};
use system_tests::random::Random;

/// Starts without any two of its nodes and reads everything.
fn survives_any_two(nodes: usize, profile: &str) -> Result<()> {
    let mut pool = Pool::start(nodes, profile)?;
    let known = pool.fill("vol", BYTES)?;
    for pair in pool.pairs() {
        for name in &pair {
            pool.folders.take_away(name)?;
        }
        pool.verify_cold(&known).with_context(|| format!("without {pair:?}"))?;
        for name in &pair {
            pool.folders.bring_back(name)?;
        }
    }
    Ok(())
}

#[test]
fn any_two_of_six_may_be_gone_under_ec() -> Result<()> {
    survives_any_two(6, "ec:4+2")
}

#[test]
fn any_two_of_five_may_be_gone_under_replica() -> Result<()> {
    survives_any_two(5, "replica:3")
}

#[test]
fn with_one_node_gone_writes_reach_the_pool_and_are_safe_from_the_next_loss() -> Result<()> {
    for (nodes, profile) in [(6, "ec:4+2"), (3, "replica:3")] {
        let mut pool = Pool::start(nodes, profile)?;
        pool.folders.take_away("n2")?;
        let known = pool.fill("vol", BYTES)?;
        let figures = pool.site.pool()?;
        assert_eq!(
            (figures.degraded_segments, figures.at_risk_segments),
            (figures.segments, 0),
            "{profile}: {figures:?}"
        );
        assert_eq!(pool.site.node("n2")?.shards, 0, "{profile}");
        let told = pool.site.attention()?;
        ensure!(
            told.iter().any(|what| what.contains("n2")),
            "{profile}: nothing is said of the node: {told:?}"
        );
        pool.folders.take_away("n1")?;
        pool.verify_cold(&known).with_context(|| format!("{profile}: without n1 too"))?;
    }
    Ok(())
}

#[test]
fn with_two_nodes_gone_writes_wait_in_the_log_and_then_reach_the_pool() -> Result<()> {
    let mut pool = Pool::start(6, "ec:4+2")?;
    let mut known = pool.fill("vol", BYTES)?;
    let before = pool.site.pool()?.segments;
    for name in ["n3", "n5"] {
        pool.folders.take_away(name)?;
    }
    known.fill()?;
    wait_until("status says what the writes wait for", Duration::from_mins(1), || {
        Ok(pool.site.attention()?.iter().any(|what| what.contains("writes are not reaching the pool")))
    })?;
    // One loss more would have lost them.
    assert_eq!(pool.site.pool()?.segments, before);
    known.verify()?;
    pool.site.restart()?;
    known.verify()?;
    for name in ["n3", "n5"] {
        pool.folders.bring_back(name)?;
    }
    pool.site.gateway.destage()?;
    assert!(pool.site.pool()?.segments > before);
    pool.verify_cold(&known)
}

#[test]
fn with_three_nodes_gone_reads_wait_until_one_is_back_and_nothing_wrong_is_returned() -> Result<()> {
    for (nodes, profile) in [(6, "ec:4+2"), (3, "replica:3")] {
        let mut pool = Pool::start(nodes, profile)?;
        let known = pool.fill("vol", BYTES)?;
        pool.site.restart()?;
        for name in ["n1", "n2", "n3"] {
            pool.folders.take_away(name)?;
        }
        let asked = (0..known.pieces()).step_by(known.pieces() / 24);
        let (folders, begun) = (&pool.folders, Instant::now());
        let refused = std::thread::scope(|scope| {
            scope.spawn(move || {
                std::thread::sleep(Duration::from_secs(5));
                folders.bring_back("n2").expect("the node is away");
            });
            known.verify_unless_refused(asked)
        });
        ensure!(refused.context(profile.to_owned())? == 0, "{profile}: reads did not wait");
        // Of coded segments some data shards are there, but not all of these.
        ensure!(
            begun.elapsed() >= Duration::from_secs(5),
            "{profile}: everything was read with three nodes gone"
        );
        known.verify().with_context(|| format!("{profile}: with n2 back"))?;
    }
    Ok(())
}

#[test]
fn nodes_that_come_and_go_while_it_runs_cost_no_wrong_byte_and_no_error() -> Result<()> {
    let pool = Pool::start(6, "ec:4+2")?;
    let known = pool.fill("vol", BYTES + 16 * MIB)?;
    let mut random = Random::seeded(4);
    for pair in pool.pairs() {
        for name in &pair {
            pool.folders.take_away(name)?;
        }
        known.verify_some(100, &mut random).with_context(|| format!("without {pair:?}"))?;
        for name in &pair {
            pool.folders.bring_back(name)?;
        }
        known.verify_some(100, &mut random).with_context(|| format!("with {pair:?} back"))?;
    }
    known.verify()
}

#[test]
fn a_start_does_not_wait_for_nodes_that_are_away() -> Result<()> {
    let mut pool = Pool::start(6, "ec:4+2")?;
    let known = pool.fill("vol", MIB)?;
    pool.site.gateway.kill()?;
    for name in ["n1", "n4"] {
        pool.folders.take_away(name)?;
    }
    let begun = Instant::now();
    pool.site.gateway.start()?;
    let took = begun.elapsed();
    ensure!(took < Duration::from_secs(5), "the start took {:.1} s", took.as_secs_f64());
    known.verify()?;
    let begun = Instant::now();
    pool.site.cairn(&["node", "edit", "n2", "--domain", "cellar"]).run()?;
    let took = begun.elapsed();
    ensure!(took < Duration::from_secs(5), "a change of a node took {:.1} s", took.as_secs_f64());
    Ok(())
}

#[test]
fn a_disk_that_is_changed_while_it_runs_is_used_again_without_a_restart() -> Result<()> {
    let mut pool = Pool::start(1, "single")?;
    // The first node is opened by a start, the others while it runs.
    pool.site.restart()?;
    for _ in 0..5 {
        pool.add_one()?;
    }
    pool.site.set_profile("ec:4+2")?;
    let mut known = pool.fill("vol", 8 * MIB)?;
    let mut random = Random::seeded(11);
    for name in ["n1", "n2"] {
        pool.folders.wipe(name, true)?;
        wait_until(&format!("new shards go to {name}"), Duration::from_mins(1), || {
            known.write_some(16, &mut random)?;
            pool.site.gateway.destage()?;
            Ok(!pool.folders.shards(name)?.is_empty())
        })?;
        known.verify()?;
    }
    Ok(())
}

/// Damages nodes one after the other until `tolerated` are: everything is read right, and somebody is told.
fn survives_damage(
    pool: &mut Pool,
    known: &Known,
    tolerated: usize,
    damage: impl Fn(&Pool, &str) -> Result<usize>,
) -> Result<()> {
    for name in pool.names.clone().into_iter().take(tolerated) {
        assert!(damage(pool, &name)? > 0, "{name} holds nothing");
        pool.verify_cold(known).with_context(|| format!("with {name} damaged"))?;
    }
    Ok(())
}

#[test]
fn bytes_that_two_nodes_return_wrong_are_never_returned() -> Result<()> {
    for (nodes, profile) in [(6, "ec:4+2"), (3, "replica:3")] {
        let mut pool = Pool::start(nodes, profile)?;
        let known = pool.fill("vol", BYTES)?;
        survives_damage(&mut pool, &known, 2, |pool, name| pool.folders.spoil(name))
            .context(profile.to_owned())?;
        let damaged = |name: &str| -> Result<u64> {
            let health = pool.site.node(name)?.health.context("the gateway runs")?;
            health["damaged"].as_u64().with_context(|| format!("nothing tells of damage: {health}"))
        };
        // Of copies, it may be that only the good one was read.
        ensure!(nodes < 6 || damaged("n1")? + damaged("n2")? > 0, "{profile}: nobody noticed");
    }
    Ok(())
}

#[test]
fn single_flipped_bits_on_every_node_are_mended_by_reading_others() -> Result<()> {
    let mut pool = Pool::start(6, "ec:4+2")?;
    let known = pool.fill("vol", BYTES)?;
    let mut random = Random::seeded(8);
    for name in ["n2", "n5"] {
        assert!(pool.folders.flip_bits(name, &mut random)? > 0);
    }
    pool.verify_cold(&known)
}

#[test]
fn what_three_nodes_return_wrong_is_an_error_and_nothing_else() -> Result<()> {
    for (nodes, profile) in [(6, "ec:4+2"), (3, "replica:3")] {
        let mut pool = Pool::start(nodes, profile)?;
        let known = pool.fill("vol", 4 * MIB)?;
        for name in ["n1", "n2", "n3"] {
            pool.folders.spoil(name)?;
        }
        pool.site.restart()?;
        let refused = known.verify_unless_refused(0..known.pieces()).context(profile.to_owned())?;
        ensure!(refused > 0, "{profile}: three nodes are wrong, and every read was answered");
    }
    Ok(())
}

#[test]
fn objects_that_end_in_the_middle_are_read_from_others() -> Result<()> {
    for (nodes, profile) in [(6, "ec:4+2"), (3, "replica:3")] {
        let mut pool = Pool::start(nodes, profile)?;
        let known = pool.fill("vol", BYTES)?;
        survives_damage(&mut pool, &known, 2, |pool, name| pool.folders.truncate(name))
            .context(profile.to_owned())?;
    }
    Ok(())
}

#[test]
fn a_node_that_is_an_older_copy_of_itself_lacks_some_and_spoils_nothing() -> Result<()> {
    for (nodes, profile) in [(6, "ec:4+2"), (3, "replica:3")] {
        let mut pool = Pool::start(nodes, profile)?;
        let old = pool.fill("old", 8 * MIB)?;
        for name in ["n1", "n4"].into_iter().filter(|name| pool.names.iter().any(|known| known == name)) {
            pool.folders.keep_copy(name)?;
        }
        let mut new = pool.fill("new", 8 * MIB)?;
        new.fill()?;
        pool.site.gateway.destage()?;
        for name in ["n1", "n4"].into_iter().filter(|name| pool.names.iter().any(|known| known == name)) {
            pool.folders.restore_copy(name)?;
        }
        // While it runs, and after a start.
        new.verify().context(profile.to_owned())?;
        pool.verify_cold(&new).context(profile.to_owned())?;
        old.verify().context(profile.to_owned())?;
    }
    Ok(())
}

#[test]
fn directories_that_are_not_the_nodes_are_not_used() -> Result<()> {
    let other = Pool::start(1, "single")?;
    other.fill("vol", 4 * MIB)?;
    let theirs = other.folders.shards("n1")?;
    let mut pool = Pool::start(6, "ec:4+2")?;
    let mut known = pool.fill("vol", BYTES)?;
    // One is another site's, one is empty: as when the wrong disk is mounted, or none.
    for name in ["n1", "n2"] {
        pool.folders.take_away(name)?;
    }
    std::fs::rename(other.folders.path("n1"), pool.folders.path("n1"))?;
    std::fs::create_dir(pool.folders.path("n2"))?;
    known.verify()?;
    pool.verify_cold(&known)?;
    known.fill()?;
    known.verify()?;
    let told = pool.site.attention()?.join("\n");
    ensure!(told.contains("n1") || told.contains("n2"), "nothing is said of the nodes: {told}");
    assert_eq!(pool.folders.shards("n1")?, theirs, "another site's directory was written to");
    assert_eq!(
        std::fs::read_dir(pool.folders.path("n2"))?.count(),
        0,
        "a directory without a marker was written to"
    );
    std::fs::rename(pool.folders.path("n1"), other.folders.path("n1"))?;
    std::fs::remove_dir(pool.folders.path("n2"))?;
    for name in ["n1", "n2"] {
        pool.folders.bring_back(name)?;
    }
    pool.site.gateway.destage()?;
    // Each other's is not theirs either.
    pool.folders.swap("n3", "n4")?;
    pool.verify_cold(&known).context("with two nodes' directories exchanged")?;
    pool.folders.swap("n3", "n4")?;
    wait_until("the nodes serve again", PATIENCE, || {
        known.verify()?;
        Ok(!pool.site.attention()?.iter().any(|what| what.contains("is failing")))
    })
}

#[test]
fn a_pool_of_one_still_needs_its_node_to_start() -> Result<()> {
    let mut pool = Pool::start(1, "single")?;
    let known = pool.fill("vol", MIB)?;
    pool.site.gateway.stop()?;
    pool.folders.take_away("n1")?;
    let said = pool.site.gateway.start_refused()?;
    ensure!(said.contains(&*pool.folders.path("n1").to_string_lossy()), "{said}");
    pool.folders.bring_back("n1")?;
    pool.site.gateway.start()?;
    known.verify()
}
