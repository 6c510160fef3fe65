//! Healing and the record of the catalog in the pool: what is deleted has waited for a checkpoint without it.

use super::cluster::{Cluster, filled, wait_for};
use crate::support::{DOMAIN_KEY, MIB};
use cairn_metadata::NodeState;
use cairn_model::crypto::{Encryption, SecretKey};
use cairn_model::{DomainId, NodeId};
use cairn_segment_writer::testing::{Fault, Verb};
use cairn_segment_writer::{DataNode, Domain, Pool, RecordKey, RecordStore, RequestPolicy};
use futures::TryStreamExt;
use object_store::memory::InMemory;
use object_store::{ObjectStore, ObjectStoreExt};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

#[tokio::test(flavor = "multi_thread")]
async fn old_places_stay_until_a_checkpoint_in_the_pool_has_the_new_ones() {
    let mut cluster = Cluster::new(4, "replica:2").await;
    cluster.site.config.checkpoint_interval = Some(Duration::from_hours(1));
    let (engine, disk) = filled(&cluster, 4 * MIB).await;
    for node in &cluster.nodes {
        node.set_plan(|request| {
            let is_record = request.verb == Verb::Put && request.key.contains("record/");
            is_record.then_some(Fault::Slow(Duration::from_millis(400)))
        });
    }
    // It takes so long that nobody asks for another one soon.
    engine.checkpoint().await.unwrap();
    for node in &cluster.nodes {
        *node.plan.lock() = None;
    }
    let before = cluster.nodes[0].keys().await;
    assert!(!before.is_empty());
    let drained = cluster.site.nodes[0].id;
    cluster.set_state(0, NodeState::Draining).await;
    engine.pool_changed();
    for round in 0.. {
        if cluster.shards().await.values().all(|node| *node != drained) {
            break;
        }
        assert!(round < 600, "the node is not drained: {:?}", engine.status().heal);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    // Whoever recovers now has a checkpoint that names them.
    let settled = engine.status().heal.settled_at_ms;
    wait_for("another round", &engine, |heal| heal.settled_at_ms > settled).await;
    assert_eq!(cluster.nodes[0].keys().await, before);
    engine.checkpoint().await.unwrap();
    cluster.until_whole(&engine).await;
    assert_eq!(cluster.nodes[0].keys().await, BTreeSet::new());
    disk.check_all().await;
    engine.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn healing_goes_on_while_a_checkpoint_is_under_way() {
    let mut cluster = Cluster::new(4, "replica:2").await;
    cluster.site.config.checkpoint_interval = Some(Duration::from_hours(1));
    cluster.site.policy.put_attempt_timeout = Duration::from_mins(1);
    let (engine, disk) = filled(&cluster, 4 * MIB).await;
    // After it none is due by itself.
    engine.checkpoint().await.unwrap();
    for node in &cluster.nodes {
        node.set_plan(|request| {
            let is_record = request.verb == Verb::Put && request.key.contains("record/");
            is_record.then_some(Fault::Slow(Duration::from_secs(12)))
        });
    }
    let taken = engine.status().record.taken;
    let (drained, engine_too) = (cluster.site.nodes[0].id, Arc::clone(&engine));
    let taking = tokio::spawn(async move { engine_too.checkpoint().await });
    tokio::time::sleep(Duration::from_millis(200)).await;
    cluster.set_state(0, NodeState::Draining).await;
    engine.pool_changed();
    for round in 0.. {
        if cluster.shards().await.values().all(|node| *node != drained) {
            break;
        }
        assert!(round < 160, "the node is not drained: {:?}", engine.status().heal);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(engine.status().record.taken, taken, "the checkpoint is under way all the time");
    for node in &cluster.nodes {
        *node.plan.lock() = None;
    }
    taking.await.unwrap().unwrap();
    engine.checkpoint().await.unwrap();
    cluster.until_whole(&engine).await;
    disk.check_all().await;
    engine.shutdown().await.unwrap();
}

/// Whether a node alone has a manifest and all that it names.
async fn has_checkpoint(cluster: &Cluster, inner: Arc<InMemory>) -> bool {
    let (id, ports) = (NodeId::from_bytes([1; 16]), cluster.site.ports.clone());
    let node = DataNode::with_store(id, "alone", inner, RequestPolicy::default(), ports);
    let domain = Domain::new(DomainId::DEFAULT, SecretKey::from_bytes(DOMAIN_KEY), Encryption::Aes256Gcm);
    let key = RecordKey::new(&domain, cluster.site.id);
    let record = RecordStore::new(Arc::new(Pool::single(node)), key);
    let Some((id, _)) = record.manifests().await.unwrap().pop_last() else { return false };
    let Ok(manifest) = record.read_manifest(id).await else { return false };
    let mut reads = Vec::new();
    for piece in &manifest.pieces {
        reads.push(record.read_piece(piece.name).await.is_ok());
    }
    !reads.is_empty() && reads.iter().all(|is_read| *is_read)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wiped_node_that_is_used_again_gets_the_record_soon() {
    let mut cluster = Cluster::new(6, "ec:4+2").await;
    cluster.site.config.node_failed_after = Some(Duration::from_millis(400));
    cluster.site.config.checkpoint_interval = Some(Duration::from_hours(1));
    let (engine, _disk) = filled(&cluster, MIB).await;
    engine.checkpoint().await.unwrap();
    for node in &cluster.nodes[1..3] {
        node.set_down(true);
        let objects: Vec<_> = node.inner.list(None).try_collect().await.unwrap();
        for path in objects.into_iter().map(|object| object.location) {
            node.inner.delete(&path).await.unwrap();
        }
    }
    for node in &cluster.nodes[1..3] {
        node.set_down(false);
    }
    for node in &cluster.nodes[1..3] {
        for round in 0.. {
            if has_checkpoint(&cluster, Arc::clone(&node.inner)).await {
                break;
            }
            assert!(round < 600, "no checkpoint is whole on it: {:?}", engine.status().record);
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
    engine.shutdown().await.unwrap();
}
