//! The pool comes to what it should be by itself: lost shards are made anew, nodes are filled and emptied, profiles exchanged.

use super::{BYTES, MIB, PATIENCE, Pool};
use anyhow::{Context, Result, ensure};
use std::collections::BTreeSet;
use std::time::Duration;
use system_tests::pool::{Known, Rounds, wait_until};
use system_tests::random::Random;

/// Waits until every segment has all its shards where they should be, and the nodes hold them and nothing else.
fn wait_until_exact(pool: &Pool) -> Result<()> {
    pool.site.wait_until_whole(PATIENCE).with_context(|| format!("{:?}", pool.site.pool()))?;
    wait_until("the nodes hold what the catalog says, and nothing else", PATIENCE, || pool.is_exact())
        .with_context(|| pool.assert_exact().err().map_or_else(String::new, |error| error.to_string()))
}

/// Everything can be read without any two of the nodes.
fn assert_any_two_may_go(pool: &mut Pool, known: &Known) -> Result<()> {
    pool.pairs().iter().try_for_each(|pair| assert_may_go(pool, known, pair))
}

/// Everything can be read without two of the nodes, and without two others, and so on: then no shard is left that no read needed (of seven nodes the last one is
/// never gone). Which of them are gone together matters for where shards are, and the catalog and the nodes agree on that.
fn assert_every_shard_is_good(pool: &mut Pool, known: &Known) -> Result<()> {
    let names = pool.names.clone();
    names.chunks_exact(2).try_for_each(|pair| assert_may_go(pool, known, pair))
}

fn assert_may_go(pool: &mut Pool, known: &Known, gone: &[String]) -> Result<()> {
    for name in gone {
        pool.folders.take_away(name)?;
    }
    pool.verify_cold(known).with_context(|| format!("without {gone:?}"))?;
    gone.iter().try_for_each(|name| pool.folders.bring_back(name))
}

#[test]
fn two_nodes_that_lost_their_disks_are_filled_again() -> Result<()> {
    for (nodes, profile) in [(6, "ec:4+2"), (4, "replica:3")] {
        let mut pool = Pool::start(nodes, profile)?;
        let known = pool.fill("vol", BYTES)?;
        for name in ["n2", "n4"] {
            pool.folders.wipe(name, true)?;
        }
        known.verify().context(profile.to_owned())?;
        wait_until("the wiped nodes hold shards", PATIENCE, || {
            Ok(["n2", "n4"]
                .iter()
                .all(|name| pool.folders.shards(name).is_ok_and(|shards| !shards.is_empty())))
        })?;
        wait_until_exact(&pool).context(profile.to_owned())?;
        assert_any_two_may_go(&mut pool, &known).context(profile.to_owned())?;
    }
    Ok(())
}

#[test]
fn what_was_written_with_a_node_away_gets_its_shards_when_it_is_back() -> Result<()> {
    let mut pool = Pool::start(6, "ec:4+2")?;
    pool.folders.take_away("n2")?;
    let known = pool.fill("vol", BYTES)?;
    assert_eq!(pool.site.pool()?.degraded_segments, pool.site.pool()?.segments);
    pool.folders.bring_back("n2")?;
    wait_until_exact(&pool)?;
    assert_every_shard_is_good(&mut pool, &known)
}

#[test]
fn a_node_that_lost_everything_can_be_given_up_taken_out_and_added_anew() -> Result<()> {
    let mut pool = Pool::start(6, "ec:4+2")?;
    let known = pool.fill("vol", BYTES)?;
    pool.folders.wipe("n3", false)?;
    pool.verify_cold(&known)?;
    pool.site.cairn(&["node", "fail", "n3", "--yes"]).run()?;
    pool.site.cairn(&["node", "remove", "n3", "--force"]).run()?;
    assert_eq!(pool.site.pool()?.degraded_segments, pool.site.pool()?.segments);
    let url = pool.folders.url("n3");
    pool.site.add_node("n3", &url, &[])?;
    wait_until_exact(&pool)?;
    assert_every_shard_is_good(&mut pool, &known)
}

#[test]
fn a_node_that_is_given_up_is_made_anew_on_the_others() -> Result<()> {
    let mut pool = Pool::start(7, "ec:4+2")?;
    let known = pool.fill("vol", BYTES)?;
    pool.folders.take_away("n1")?;
    pool.site.cairn(&["node", "fail", "n1", "--yes"]).run()?;
    assert_eq!(pool.site.node("n1")?.state, "failed");
    pool.site.wait_until_whole(PATIENCE)?;
    assert_eq!(pool.site.node("n1")?.shards, 0);
    pool.names.retain(|name| name != "n1");
    assert_every_shard_is_good(&mut pool, &known)?;
    // What is to be deleted on it does not keep it.
    pool.site.cairn(&["node", "remove", "n1", "--force"]).run()?;
    assert_eq!(pool.site.names()?, ["n2", "n3", "n4", "n5", "n6", "n7"]);
    pool.verify_cold(&known)
}

/// The shortest time of silence that may be set.
const SOON: &str = "[heal]\nnode_failed_after = \"10s\"\n";

#[test]
fn a_node_that_stays_silent_is_given_up_by_itself_and_serves_again_when_it_is_back() -> Result<()> {
    let mut pool = Pool::start_with(7, "ec:4+2", SOON)?;
    let known = pool.fill("vol", BYTES)?;
    pool.folders.take_away("n1")?;
    wait_until("the node is declared failed", PATIENCE, || Ok(pool.site.node("n1")?.state == "failed"))?;
    wait_until("the others have what it held", PATIENCE, || Ok(pool.site.node("n1")?.shards == 0))?;
    pool.site.wait_until_whole(PATIENCE)?;
    pool.folders.bring_back("n1")?;
    wait_until("the node is in service again", PATIENCE, || Ok(pool.site.node("n1")?.state == "active"))?;
    wait_until_exact(&pool)?;
    assert_every_shard_is_good(&mut pool, &known)
}

#[test]
fn two_nodes_that_lost_everything_are_used_again_where_the_pool_needs_them() -> Result<()> {
    let mut pool = Pool::start_with(6, "ec:4+2", SOON)?;
    let known = pool.fill("vol", BYTES)?;
    for name in ["n2", "n5"] {
        pool.folders.wipe(name, false)?;
    }
    known.verify()?;
    wait_until("the wiped nodes hold shards", PATIENCE, || {
        Ok(["n2", "n5"].iter().all(|name| pool.folders.shards(name).is_ok_and(|shards| !shards.is_empty())))
    })?;
    wait_until_exact(&pool)?;
    assert_every_shard_is_good(&mut pool, &known)
}

#[test]
fn flipped_bits_are_found_by_scrub_and_mended() -> Result<()> {
    for (nodes, profile) in [(6, "ec:4+2"), (3, "replica:3")] {
        let mut pool = Pool::start(nodes, profile)?;
        let known = pool.fill("vol", BYTES)?;
        let mut random = Random::seeded(6);
        let flipped = pool.folders.flip_bits("n2", &mut random)? as u64;
        let scrub = |pool: &Pool| -> Result<serde_json::Value> {
            let said = pool.site.cairn(&["scrub", "--json"]).run()?.stdout;
            serde_json::from_str(&said).with_context(|| format!("`cairn scrub` said {said:?}"))
        };
        let found = scrub(&pool)?;
        // A read may have found one before.
        ensure!(
            found["damaged"].as_u64().is_some_and(|count| count > 0 && count <= flipped),
            "{flipped} flipped: {found}"
        );
        wait_until_exact(&pool)?;
        let again = scrub(&pool)?;
        ensure!(again["damaged"] == 0 && again["missing"] == 0, "after mending: {again}");
        ensure!(
            again["shards"].as_u64() >= Some(pool.site.pool()?.segments * pool.site.pool()?.shards),
            "{again}"
        );
        // So it is whole without any two others.
        pool.verify_cold(&known)?;
    }
    Ok(())
}

/// Keys of all shards of a node.
fn keys(pool: &Pool, name: &str) -> Result<BTreeSet<String>> {
    Ok(pool.folders.shards(name)?.into_keys().collect())
}

#[test]
fn a_node_that_is_added_gets_its_fair_share_and_nothing_else_moves() -> Result<()> {
    let mut pool = Pool::start(6, "ec:4+2")?;
    // Many segments, one for each batch: fewer where writing is faster than packing.
    let known = pool.fill("vol", 300 * MIB)?;
    let segments = pool.site.pool()?.segments;
    assert!(segments >= 100, "{segments}");
    let before: Vec<_> = pool.names.iter().map(|name| keys(&pool, name)).collect::<Result<_>>()?;
    pool.add_one()?;
    wait_until("the new node has shards", PATIENCE, || Ok(pool.site.node("n7")?.shards > 0))?;
    let fair = segments * 6 / 7;
    wait_until("the new node has about its share", PATIENCE, || {
        Ok(pool.site.node("n7")?.shards * 10 >= fair * 9)
    })?;
    // And then no more: what is under way comes to its end.
    let mut last = 0;
    wait_until("nothing moves any more", PATIENCE, || {
        std::thread::sleep(Duration::from_secs(3));
        let now = pool.site.node("n7")?.shards;
        Ok(std::mem::replace(&mut last, now) == now)
    })?;
    wait_until_exact(&pool)?;
    let moved = pool.site.node("n7")?.shards;
    ensure!(
        moved * 10 <= fair * 11 && moved * 10 >= fair * 9,
        "{moved} shards moved, {fair} are the fair share"
    );
    println!("{moved} of {} shards moved to the seventh node; {fair} is its fair share", segments * 6);
    for (name, before) in pool.names.iter().zip(&before) {
        let came = keys(&pool, name)?.difference(before).count();
        ensure!(came == 0, "{came} shards moved to {name}, which was there before");
    }
    pool.verify_cold(&known)
}

#[test]
fn a_drained_node_is_empty_and_can_be_removed() -> Result<()> {
    let mut pool = Pool::start(7, "ec:4+2")?;
    let known = pool.fill("vol", BYTES)?;
    assert!(pool.site.node("n4")?.shards > 0);
    pool.site.refuses(&["node", "remove", "n4"], &["n4"])?;
    pool.site.cairn(&["node", "drain", "n4"]).run()?;
    wait_until("the node is empty", PATIENCE, || Ok(pool.site.node("n4")?.shards == 0))?;
    wait_until_exact(&pool)?;
    assert_eq!(keys(&pool, "n4")?.len(), 0);
    pool.site.cairn(&["node", "remove", "n4"]).run()?;
    std::fs::remove_dir_all(pool.folders.path("n4"))?;
    pool.names.retain(|name| name != "n4");
    assert_every_shard_is_good(&mut pool, &known)
}

#[test]
fn a_node_that_is_replaced_gives_all_it_has_to_the_new_one() -> Result<()> {
    let mut pool = Pool::start(6, "ec:4+2")?;
    let known = pool.fill("vol", BYTES)?;
    pool.site.cairn(&["node", "replace", "n4", "n7", &pool.folders.url("n7")]).run()?;
    wait_until("the node is empty", PATIENCE, || Ok(pool.site.node("n4")?.shards == 0))?;
    wait_until_exact(&pool)?;
    pool.site.cairn(&["node", "remove", "n4"]).run()?;
    pool.names = pool.site.names()?;
    assert_every_shard_is_good(&mut pool, &known)
}

#[test]
fn profiles_are_exchanged_there_and_back_while_guests_work() -> Result<()> {
    let mut pool = Pool::start(6, "single")?;
    let mut known = pool.fill("vol", BYTES)?;
    let mut random = Random::seeded(9);
    for profile in ["ec:4+2", "replica:3", "ec:2+1", "single"] {
        pool.site.set_profile(profile)?;
        wait_until(&format!("everything is {profile}"), PATIENCE, || {
            known.verify_some(50, &mut random)?;
            known.write_some(2, &mut random)?;
            pool.site.is_whole()
        })
        .with_context(|| format!("{:?}", pool.site.pool()))?;
        pool.site.gateway.destage()?;
        wait_until_exact(&pool).context(profile.to_owned())?;
        pool.verify_cold(&known).context(profile.to_owned())?;
    }
    Ok(())
}

#[test]
fn two_rounds_of_death_and_empty_disks_cost_nothing() -> Result<()> {
    let mut pool = Pool::start(6, "ec:4+2")?;
    let rounds = Rounds {
        count: 2,
        nodes: 6,
        known_bytes: BYTES,
        down: Duration::from_secs(3),
        patience: PATIENCE,
        flips: true,
        seed: Random::seed_from_environment()?,
    };
    println!("CAIRN_E2E_SEED={}", rounds.seed);
    let summary = rounds.run(&mut pool.site, &mut pool.folders, |told| println!("{told}"))?;
    println!("{summary}");
    Ok(())
}
