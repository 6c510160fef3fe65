//! Gateways that end in the middle.

use super::cluster::*;
use crate::support::{Dice, MIB};
use cairn_metadata::NodeState;
use cairn_model::Profile;
use cairn_segment_writer::testing::{Fault, Verb};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_killed_before_what_it_made_is_placed_loses_nothing() {
    for profile in ["replica:2", "ec:2+1"] {
        let cluster = Cluster::new(4, profile).await;
        let (engine, disk) = filled(&cluster, 3 * MIB).await;
        cluster.until_whole(&engine).await;
        // Shards that are made later arrive, and nobody hears of it.
        let arrived = Arc::new(AtomicUsize::new(0));
        for node in &cluster.nodes {
            let arrived = Arc::clone(&arrived);
            node.set_plan(move |request| {
                let is_made = request.verb == Verb::Put && is_made_later(request.key);
                is_made.then(|| {
                    arrived.fetch_add(1, Ordering::Relaxed);
                    Fault::ReplyHangs
                })
            });
        }
        cluster.set_state(0, NodeState::Draining).await;
        engine.pool_changed();
        wait_for("a shard arrives", &engine, |_| arrived.load(Ordering::Relaxed) > 0).await;
        engine.abandon().await;
        let expected = disk.into_expected();
        drop(engine);
        for node in &cluster.nodes {
            *node.plan.lock() = None;
        }
        let left = cluster.garbage().await;
        assert!(left > 0, "what arrived is not named");
        let (engine, disk) = cluster.started(expected).await;
        cluster.until_whole(&engine).await;
        disk.check_all().await;
        assert!(cluster.garbage().await <= left && left <= 12, "{left}");
        engine.shutdown().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_killed_before_it_deletes_what_is_left_over_leaves_that_to_the_next() {
    for (before, after) in [("replica:2", "ec:2+1"), ("ec:2+1", "replica:2")] {
        let cluster = Cluster::new(4, before).await;
        let (engine, disk) = filled(&cluster, 3 * MIB).await;
        cluster.until_whole(&engine).await;
        for node in &cluster.nodes {
            node.set_plan(|request| (request.verb == Verb::Delete).then_some(Fault::Connection));
        }
        cluster.set_profile(after).await;
        engine.pool_changed();
        let wanted: Profile = after.parse().unwrap();
        for _ in 0..200 {
            let places = cluster.places().await;
            if places.iter().all(|segment| segment.place.placement.profile() == wanted) {
                break;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        disk.check_all().await;
        engine.abandon().await;
        let expected = disk.into_expected();
        drop(engine);
        assert!(cluster.garbage().await > 0);
        for node in &cluster.nodes {
            *node.plan.lock() = None;
        }
        let (engine, disk) = cluster.started(expected).await;
        cluster.until_whole(&engine).await;
        disk.check_all().await;
        assert_eq!(cluster.garbage().await, 0);
        engine.shutdown().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_that_is_killed_all_the_time_comes_to_the_end_all_the_same() {
    let mut cluster = Cluster::new(6, "single").await;
    cluster.site.config.heal_bytes_per_second = Some(24 << 20);
    let (mut engine, mut disk) = filled(&cluster, 6 * MIB).await;
    let dice = Dice::new(5);
    let steps: [(&str, usize, NodeState); 4] = [
        ("ec:3+2", 0, NodeState::Active),
        ("ec:3+2", 0, NodeState::Draining),
        ("replica:3", 0, NodeState::Active),
        ("replica:3", 5, NodeState::Draining),
    ];
    for (profile, node, state) in steps {
        cluster.set_profile(profile).await;
        cluster.set_state(node, state).await;
        for _ in 0..6 {
            tokio::time::sleep(Duration::from_millis(dice.below(120))).await;
            engine.abandon().await;
            let expected = disk.into_expected();
            drop(engine);
            (engine, disk) = cluster.started(expected).await;
        }
        disk.check_all().await;
        cluster.until_whole(&engine).await;
        disk.check_all().await;
    }
    let (shards, garbage) = (cluster.shards().await.len(), cluster.garbage().await);
    // Few segments are under way at a time.
    assert!(garbage <= 24 * 10, "{garbage} objects that nothing names beside {shards}");
    engine.shutdown().await.unwrap();
}
