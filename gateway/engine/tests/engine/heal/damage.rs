//! What is missing, damaged or cannot be read.

use super::cluster::*;
use crate::support::MIB;
use cairn_metadata::{NodeState, SegmentPlace};
use cairn_segment_writer::testing::{Fault, Verb};
use futures::TryStreamExt;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

#[tokio::test(flavor = "multi_thread")]
async fn scrub_finds_what_is_missing_and_damaged_and_it_is_mended() {
    for profile in ["replica:2", "ec:2+1"] {
        let cluster = Cluster::new(4, profile).await;
        let (engine, disk) = filled(&cluster, 3 * MIB).await;
        cluster.until_whole(&engine).await;
        let clean = engine.scrub().await.unwrap();
        let places = cluster.places().await;
        assert_eq!((clean.segments, clean.missing, clean.damaged), (places.len() as u64, 0, 0), "{clean:?}");
        assert_eq!(clean.shards, cluster.shards().await.len() as u64);
        let object = |segment: &SegmentPlace, shard: usize| {
            let (node, key, _) = segment.place.objects().nth(shard).unwrap();
            (Arc::clone(&cluster.nodes[cluster.number_of(node)].inner), Path::from(key))
        };
        let (store, key) = object(&places[0], 0);
        store.delete(&key).await.unwrap();
        for (number, segment) in places[1..4].iter().enumerate() {
            let (store, key) = object(segment, 1);
            let mut bytes = store.get(&key).await.unwrap().bytes().await.unwrap().to_vec();
            let at = bytes.len() * number / 3;
            bytes[at] ^= 0x40;
            store.put(&key, bytes.into()).await.unwrap();
        }
        let found = engine.scrub().await.unwrap();
        assert_eq!((found.missing, found.damaged, found.beyond_repair), (1, 3, 0), "{found:?}");
        cluster.until_whole(&engine).await;
        let after = engine.scrub().await.unwrap();
        assert_eq!((after.missing, after.damaged, after.unread), (0, 0, 0), "{after:?}");
        disk.check_all().await;
        engine.shutdown().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_damaged_and_has_no_other_copy_stays_and_is_told() {
    let cluster = Cluster::new(2, "single").await;
    let (engine, _disk) = filled(&cluster, MIB).await;
    let places = cluster.places().await;
    let (node, key, _) = places[0].place.objects().next().unwrap();
    let (store, key) = (&cluster.nodes[cluster.number_of(node)].inner, Path::from(key));
    let whole = store.get(&key).await.unwrap().bytes().await.unwrap();
    let mut bytes = whole.to_vec();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    store.put(&key, bytes.into()).await.unwrap();
    let found = engine.scrub().await.unwrap();
    assert_eq!((found.damaged, found.beyond_repair), (1, 1), "{found:?}");
    let events = cluster.site.catalog().await.events(10).await.unwrap();
    assert!(events.iter().any(|event| event.kind == "segment-damaged"), "{events:?}");
    assert!(store.head(&key).await.is_ok(), "most of it can be read");
    store.put(&key, whole.into()).await.unwrap();
    let found = engine.scrub().await.unwrap();
    assert_eq!((found.damaged, found.beyond_repair), (0, 0), "{found:?}");
    engine.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_older_copy_of_a_node_is_noticed_when_it_is_back() {
    let mut cluster = Cluster::new(3, "replica:2").await;
    // An idle node is asked every quarter of that whether it is there.
    cluster.site.config.node_failed_after = Some(Duration::from_secs(4));
    let (engine, mut disk) = filled(&cluster, 4 * MIB).await;
    cluster.until_whole(&engine).await;
    let old = cluster.nodes[1].keys().await;
    disk.write(8 * MIB, noise(3, 4 * MIB)).await;
    engine.destage().await.unwrap();
    cluster.nodes[1].set_down(true);
    for key in cluster.nodes[1].keys().await.difference(&old) {
        cluster.nodes[1].inner.delete(&Path::from(key.as_str())).await.unwrap();
    }
    // Until it was noticed that it is away: four times as long as it takes to be asked.
    tokio::time::sleep(Duration::from_secs(4)).await;
    cluster.nodes[1].set_down(false);
    cluster.until_whole(&engine).await;
    disk.check_all().await;
    engine.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn shards_that_their_node_cannot_read_are_made_anew_and_kept_until_then() {
    let cluster = Cluster::new(3, "replica:2").await;
    let (engine, disk) = filled(&cluster, 4 * MIB).await;
    cluster.until_whole(&engine).await;
    // A bad sector under each object of one node.
    let node = &cluster.nodes[1];
    let (bad, lost) = (node.keys().await, engine.status().heal.total.lost);
    assert!(!bad.is_empty());
    let unreadable = bad.clone();
    node.set_plan(move |request| {
        (request.verb == Verb::Get && unreadable.contains(request.key)).then_some(Fault::Os(5))
    });
    let found = engine.scrub().await.unwrap();
    assert_eq!((found.unread, found.missing, found.damaged), (bad.len() as u64, 0, 0), "{found:?}");
    for round in 0.. {
        let now = node.keys().await;
        let named: BTreeSet<String> = cluster
            .places()
            .await
            .iter()
            .flat_map(|segment| segment.place.objects().collect::<Vec<_>>())
            .filter(|(on, ..)| cluster.number_of(*on) == 1)
            .map(|(_, key, _)| key)
            .collect();
        if named.is_disjoint(&bad) {
            break;
        }
        let degraded =
            cluster.places().await.iter().filter(|segment| segment.place.placement.missing() > 0).count();
        assert_eq!(degraded, 0, "each stays until its successor is there: {now:?}");
        assert!(round < 600, "{:?}", engine.status().heal);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    cluster.until_whole(&engine).await;
    assert_eq!(engine.status().heal.total.lost, lost, "none was given up");
    disk.check_all().await;
    engine.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_false_answer_that_a_copy_is_not_there_costs_no_copy() {
    let cluster = Cluster::new(2, "replica:2").await;
    let (engine, disk) = filled(&cluster, MIB).await;
    cluster.until_whole(&engine).await;
    // The copies on one node are rotten, and the other node says of its own, for a while, that it has none.
    let rotten = &cluster.nodes[0];
    for key in rotten.keys().await {
        let path = Path::from(key.as_str());
        let mut bytes = rotten.inner.get(&path).await.unwrap().bytes().await.unwrap().to_vec();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        rotten.inner.put(&path, bytes.into()).await.unwrap();
    }
    let good = cluster.nodes[1].keys().await;
    cluster.nodes[1].set_plan(|request| {
        (request.verb == Verb::Get && request.key.starts_with("segments/")).then_some(Fault::Status(404))
    });
    engine.scrub().await.unwrap();
    assert_eq!(cluster.nodes[1].keys().await, good, "nobody deletes them for that");
    cluster.nodes[1].set_plan(|_| None);
    engine.scrub().await.unwrap();
    cluster.until_whole(&engine).await;
    disk.check_all().await;
    engine.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_place_without_its_marker_is_away_and_nothing_is_lost_by_it() {
    let cluster = Cluster::new(3, "replica:2").await;
    let (engine, disk) = filled(&cluster, 4 * MIB).await;
    cluster.until_whole(&engine).await;
    // A directory that is not mounted looks empty.
    let node = &cluster.nodes[1];
    let objects: Vec<_> = node.inner.list(None).try_collect().await.unwrap();
    let mut content = Vec::new();
    for path in objects.into_iter().map(|object| object.location) {
        content.push((path.clone(), node.inner.get(&path).await.unwrap().bytes().await.unwrap()));
        node.inner.delete(&path).await.unwrap();
    }
    disk.check_all().await;
    let found = engine.scrub().await.unwrap();
    assert_eq!(found.missing, 0, "{found:?}");
    assert!(found.unread > 0, "{found:?}");
    disk.check_all().await;
    assert_eq!(engine.status().heal.total.lost, 0);
    for (path, bytes) in content {
        node.inner.put(&path, bytes.into()).await.unwrap();
    }
    cluster.until_whole(&engine).await;
    let found = engine.scrub().await.unwrap();
    assert_eq!((found.missing, found.unread), (0, 0), "{found:?}");
    engine.shutdown().await.unwrap();
}

/// Flips a bit in the middle of each object.
async fn rot(node: &Node) {
    for key in node.keys().await {
        let path = Path::from(key.as_str());
        let mut bytes = node.inner.get(&path).await.unwrap().bytes().await.unwrap().to_vec();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        node.inner.put(&path, bytes.into()).await.unwrap();
    }
}

/// Nothing of a segment can be read on the node, though it answers otherwise.
fn make_unreadable(node: &Node) {
    node.set_plan(|request| {
        (request.verb == Verb::Get && request.key.starts_with("segments/")).then_some(Fault::Os(5))
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_that_cannot_be_read_stays_while_the_other_one_is_no_better() {
    let cluster = Cluster::new(2, "replica:2").await;
    let (engine, disk) = filled(&cluster, MIB).await;
    cluster.until_whole(&engine).await;
    rot(&cluster.nodes[0]).await;
    let good = cluster.nodes[1].keys().await;
    make_unreadable(&cluster.nodes[1]);
    // More than it takes to give a shard up that cannot be read.
    for _ in 0..12 {
        engine.scrub().await.unwrap();
        assert!(cluster.nodes[1].keys().await.is_superset(&good), "it is the only good one");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    cluster.nodes[1].set_plan(|_| None);
    engine.scrub().await.unwrap();
    cluster.until_whole(&engine).await;
    disk.check_all().await;
    engine.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_that_cannot_be_read_stays_while_no_node_takes_its_successor() {
    let cluster = Cluster::new(3, "replica:2").await;
    let (engine, disk) = filled(&cluster, MIB).await;
    cluster.until_whole(&engine).await;
    let there = cluster.nodes[1].keys().await;
    assert!(!there.is_empty());
    for node in [0, 2] {
        cluster.nodes[node].set_plan(|request| {
            (request.verb == Verb::Put && request.key.starts_with("segments/")).then_some(Fault::Os(30))
        });
    }
    cluster.nodes[1].set_plan(|request| {
        let fault = if request.verb == Verb::Put { Fault::Os(30) } else { Fault::Os(5) };
        (request.verb != Verb::Delete && request.key.starts_with("segments/")).then_some(fault)
    });
    for _ in 0..12 {
        engine.scrub().await.unwrap();
        assert!(cluster.nodes[1].keys().await.is_superset(&there), "nothing is in its place yet");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    for node in &cluster.nodes {
        node.set_plan(|_| None);
    }
    engine.scrub().await.unwrap();
    cluster.until_whole(&engine).await;
    disk.check_all().await;
    engine.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_gone_for_good_is_not_looked_for_again_and_again() {
    let cluster = Cluster::new(1, "single").await;
    let (engine, _disk) = filled(&cluster, 4 * MIB).await;
    let node = &cluster.nodes[0];
    let gone = node.keys().await.pop_first().unwrap();
    node.inner.delete(&Path::from(gone)).await.unwrap();
    let found = engine.scrub().await.unwrap();
    assert_eq!((found.missing, found.beyond_repair), (1, 1), "{found:?}");
    // The look for what else the node lacks comes to its end.
    tokio::time::sleep(Duration::from_secs(2)).await;
    let gets = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&gets);
    node.set_plan(move |request| {
        let is_counted = request.verb == Verb::Get && request.key.starts_with("segments/");
        counted.fetch_add(usize::from(is_counted), Ordering::Relaxed);
        None
    });
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(gets.load(Ordering::Relaxed), 0, "nobody writes or reads");
    engine.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_could_not_be_compared_with_others_is_looked_at_again() {
    let cluster = Cluster::new(2, "replica:2").await;
    let (engine, disk) = filled(&cluster, MIB).await;
    cluster.until_whole(&engine).await;
    // One node has lost everything, and what the other one has cannot be read at the moment.
    cluster.nodes[1].wipe().await;
    cluster.nodes[0].set_plan(|request| {
        let is_read = request.verb == Verb::Get && request.key.starts_with("segments/");
        is_read.then_some(Fault::Status(503))
    });
    let found = engine.scrub().await.unwrap();
    assert_eq!(found.beyond_repair, 0, "nobody knows that yet: {found:?}");
    cluster.nodes[0].set_plan(|_| None);
    cluster.until_whole(&engine).await;
    disk.check_all().await;
    engine.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_moved_while_scrub_reads_is_not_taken_for_lost() {
    let mut cluster = Cluster::new(2, "single").await;
    cluster.site.policy.get_attempt_timeout = Duration::from_mins(1);
    let (engine, disk) = filled(&cluster, 4 * MIB).await;
    cluster.until_whole(&engine).await;
    assert!(!cluster.nodes[0].keys().await.is_empty());
    // Scrub knows where everything is, and is held up at the first segment.
    let is_held = Arc::new(AtomicBool::new(false));
    for node in &cluster.nodes {
        let is_held = Arc::clone(&is_held);
        node.set_plan(move |request| {
            let is_read = request.verb == Verb::Get && request.key.starts_with("segments/");
            (is_read && !is_held.swap(true, Ordering::Relaxed)).then_some(Fault::Slow(Duration::from_secs(4)))
        });
    }
    let scrubbed = Arc::clone(&engine);
    let scrub = tokio::spawn(async move { scrubbed.scrub().await });
    while !is_held.load(Ordering::Relaxed) {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    cluster.set_state(0, NodeState::Draining).await;
    engine.pool_changed();
    while !cluster.nodes[0].keys().await.is_empty() {
        assert!(!scrub.is_finished(), "the node is not drained in time");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let found = scrub.await.unwrap().unwrap();
    assert_eq!((found.missing, found.beyond_repair), (0, 0), "{found:?}");
    disk.check_all().await;
    engine.shutdown().await.unwrap();
}
