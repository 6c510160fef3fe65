//! Nodes that die, come, go and come back.

use super::cluster::*;
use crate::support::MIB;
use cairn_metadata::NodeState;
use cairn_segment_writer::MARKER_KEY;
use cairn_segment_writer::testing::{Fault, Verb};
use futures::TryStreamExt;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

#[tokio::test(flavor = "multi_thread")]
async fn any_two_of_six_nodes_may_go_and_come_back_empty() {
    let cluster = Cluster::new(6, "ec:4+2").await;
    let (engine, mut disk) = filled(&cluster, 4 * MIB).await;
    cluster.until_whole(&engine).await;
    let mut round = 0;
    for first in 0..6 {
        for second in first + 1..6 {
            let lost = [&cluster.nodes[first], &cluster.nodes[second]];
            for node in lost {
                node.set_down(true);
            }
            round += 1;
            // Waits in the log, perhaps until they are back.
            disk.write(4 * MIB + round * 200_000, noise(round, 150_000)).await;
            disk.check_all().await;
            for node in lost {
                node.wipe().await;
                node.set_down(false);
            }
            disk.check_all().await;
            engine.destage().await.unwrap();
            cluster.until_whole(&engine).await;
            disk.check_all().await;
        }
    }
    let (engine, disk) = cluster.restarted(engine, disk).await;
    disk.check_all().await;
    assert_eq!(cluster.flaw().await, None);
    engine.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn two_nodes_that_were_wiped_with_their_markers_are_used_again_where_there_are_no_others() {
    let mut cluster = Cluster::new(6, "ec:4+2").await;
    cluster.site.config.node_failed_after = Some(Duration::from_millis(400));
    let (engine, disk) = filled(&cluster, 4 * MIB).await;
    cluster.until_whole(&engine).await;
    for node in &cluster.nodes[1..3] {
        node.set_down(true);
        node.wipe().await;
        node.inner.delete(&Path::from(MARKER_KEY)).await.unwrap();
    }
    disk.check_all().await;
    for node in &cluster.nodes[1..3] {
        node.set_down(false);
    }
    cluster.until_whole(&engine).await;
    disk.check_all().await;
    let events = cluster.site.catalog().await.events(20).await.unwrap();
    assert_eq!(events.iter().filter(|event| event.kind == "node-reused").count(), 2, "{events:?}");
    engine.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wiped_node_that_has_what_it_takes_is_left_alone() {
    let mut cluster = Cluster::new(2, "replica:2").await;
    cluster.site.config.node_failed_after = Some(Duration::from_millis(300));
    let (engine, disk) = filled(&cluster, 2 * MIB).await;
    cluster.until_whole(&engine).await;
    // Neither is mounted: whichever is given up first, the other one is needed.
    let mut content = Vec::new();
    for node in &cluster.nodes {
        let objects: Vec<_> = node.inner.list(None).try_collect().await.unwrap();
        for path in objects.into_iter().map(|object| object.location) {
            content.push((node, path.clone(), node.inner.get(&path).await.unwrap().bytes().await.unwrap()));
            node.inner.delete(&path).await.unwrap();
        }
    }
    tokio::time::sleep(Duration::from_secs(2)).await;
    for (node, path, bytes) in content {
        node.inner.put(&path, bytes.into()).await.unwrap();
    }
    cluster.until_whole(&engine).await;
    disk.check_all().await;
    engine.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_silent_node_is_declared_failed_and_what_it_had_is_made_anew() {
    let mut cluster = Cluster::new(5, "ec:2+1").await;
    cluster.site.config.node_failed_after = Some(Duration::from_millis(600));
    let (engine, mut disk) = filled(&cluster, 4 * MIB).await;
    let node = &cluster.nodes[2];
    let before = node.keys().await;
    assert!(!before.is_empty());
    node.set_down(true);
    cluster.until_state(2, NodeState::Failed).await;
    cluster.until_whole(&engine).await;
    let events = cluster.site.catalog().await.events(10).await.unwrap();
    assert!(
        events.iter().any(|event| event.kind == "node-failed" && event.subject == "node node-2"),
        "{events:?}"
    );
    disk.check_all().await;
    disk.write(8 * MIB, noise(2, 2 * MIB)).await;
    engine.destage().await.unwrap();
    assert_eq!(node.keys().await, before, "nobody could delete anything on it");
    // Back, as it was: what it had is not wanted any more, until segments move to it again.
    node.set_down(false);
    for round in 0.. {
        let seen = (cluster.state(2).await, cluster.garbage().await, node.keys().await.is_empty());
        if seen == (NodeState::Active, 0, false) {
            break;
        }
        assert!(round < 600, "it does not take part again: {seen:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    cluster.until_whole(&engine).await;
    disk.check_all().await;
    engine.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_that_die_one_after_another_during_repair_cost_nothing() {
    let mut cluster = Cluster::new(8, "ec:4+2").await;
    cluster.site.config.node_failed_after = Some(Duration::from_millis(400));
    cluster.site.config.heal_bytes_per_second = Some(8 << 20);
    let (engine, disk) = filled(&cluster, 6 * MIB).await;
    for node in [0, 1] {
        cluster.nodes[node].set_down(true);
        wait_for("repair begins", &engine, |status| status.total.shards > 0).await;
        disk.check_all().await;
    }
    for node in [0, 1] {
        cluster.until_state(node, NodeState::Failed).await;
    }
    cluster.until_whole(&engine).await;
    disk.check_all().await;
    engine.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_nothing_could_replace_is_not_declared_failed_and_the_status_says_so() {
    let mut cluster = Cluster::new(3, "ec:2+1").await;
    cluster.site.config.node_failed_after = Some(Duration::from_millis(300));
    let (engine, disk) = filled(&cluster, MIB).await;
    cluster.nodes[1].set_down(true);
    wait_for("it says so", &engine, |status| status.silent_nodes == ["node-1"]).await;
    assert_eq!(cluster.state(1).await, NodeState::Active);
    disk.check_all().await;
    cluster.nodes[1].set_down(false);
    wait_for("it is well", &engine, |status| status.silent_nodes.is_empty()).await;
    cluster.until_whole(&engine).await;
    engine.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_node_gets_its_share_and_nothing_else_moves() {
    let mut cluster = Cluster::new(4, "replica:2").await;
    let (engine, disk) = filled(&cluster, 15 * MIB).await;
    cluster.until_whole(&engine).await;
    let (before, made_before) = (cluster.shards().await, engine.status().heal.total.shards);
    let added = cluster.add_node().await;
    let nodes: Vec<_> =
        cluster.site.nodes.iter().map(|node| Arc::new(cluster.site.open_node(node))).collect();
    engine.set_nodes(&nodes).await.unwrap();
    let share = before.len() / 5;
    let began = engine.status().heal.settled_at_ms;
    wait_for("all is in its place", &engine, |status| {
        status.total.shards > made_before && status.work.is_none() && status.settled_at_ms > began
    })
    .await;
    cluster.until_whole(&engine).await;
    let after = cluster.shards().await;
    let moved: Vec<_> = after.iter().filter(|(shard, node)| before[*shard] != **node).collect();
    assert!(moved.iter().all(|(_, node)| **node == added), "only the new node takes");
    // What chance spreads: the exact share is the placement's own test.
    assert!((share / 3..=share * 2).contains(&moved.len()), "{} of {}", moved.len(), before.len());
    let made = engine.status().heal.total.shards - made_before;
    assert_eq!(made, moved.len() as u64, "and nothing was made beside");
    disk.check_all().await;
    let (engine, disk) = cluster.restarted(engine, disk).await;
    wait_for("a sweep", &engine, |status| status.settled_at_ms.is_some()).await;
    assert_eq!(engine.status().heal.total.shards, 0, "nothing is left to move");
    disk.check_all().await;
    engine.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn drain_leaves_a_node_empty() {
    let cluster = Cluster::new(5, "ec:2+1").await;
    let (engine, mut disk) = filled(&cluster, 8 * MIB).await;
    cluster.set_state(3, NodeState::Draining).await;
    engine.pool_changed();
    for round in 0..8 {
        disk.write(8 * MIB + round * MIB / 2, noise(10 + round, MIB / 2)).await;
        engine.destage().await.unwrap();
        disk.check_all().await;
    }
    cluster.until_whole(&engine).await;
    assert_eq!(cluster.nodes[3].keys().await, BTreeSet::new());
    let catalog = cluster.site.catalog().await;
    catalog.remove_node(cluster.site.nodes[3].id, false).await.unwrap();
    catalog.close().await;
    disk.check_all().await;
    engine.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_waits_when_no_other_node_can_take_what_there_is() {
    let mut cluster = Cluster::new(3, "ec:2+1").await;
    let (engine, disk) = filled(&cluster, 2 * MIB).await;
    cluster.set_state(0, NodeState::Draining).await;
    engine.pool_changed();
    wait_for("it says what it waits for", &engine, |status| {
        status.waiting_segments > 0 && status.waits_for.as_ref().is_some_and(|wait| wait.contains("add one"))
    })
    .await;
    assert!(!cluster.nodes[0].keys().await.is_empty());
    disk.check_all().await;
    cluster.add_node().await;
    let nodes: Vec<_> =
        cluster.site.nodes.iter().map(|node| Arc::new(cluster.site.open_node(node))).collect();
    engine.set_nodes(&nodes).await.unwrap();
    cluster.until_whole(&engine).await;
    assert!(cluster.nodes[0].keys().await.is_empty());
    wait_for("nothing waits", &engine, |status| status.waiting_segments == 0 && status.problem.is_none())
        .await;
    disk.check_all().await;
    engine.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_are_looked_at_also_while_healing_rests_after_a_long_round() {
    let mut cluster = Cluster::new(5, "replica:2").await;
    cluster.site.config.heal_bytes_per_second = Some(2 << 20);
    cluster.site.config.node_failed_after = Some(Duration::from_millis(500));
    let (engine, disk) = filled(&cluster, 12 * MIB).await;
    // One segment cannot be moved, wherever it is put.
    let stays = cluster.nodes[0].keys().await.pop_first().unwrap();
    for node in &cluster.nodes {
        let stays = stays.clone();
        node.set_plan(move |request| {
            (request.verb == Verb::Put && request.key.starts_with(&stays)).then_some(Fault::Os(30))
        });
    }
    cluster.set_state(0, NodeState::Draining).await;
    engine.pool_changed();
    wait_for("a round with a problem", &engine, |heal| heal.work.is_none() && heal.problem.is_some()).await;
    cluster.nodes[4].set_down(true);
    for round in 0.. {
        if cluster.state(4).await == NodeState::Failed {
            break;
        }
        assert!(round < 60, "three seconds: {:?}", engine.status().heal);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    cluster.nodes[4].set_down(false);
    for node in &cluster.nodes {
        node.set_plan(|_| None);
    }
    disk.check_all().await;
    engine.shutdown().await.unwrap();
}
