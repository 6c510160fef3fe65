//! Checkpoints of a pool that is full, and what goes without one.

use super::{keys, newest, noise, only_asked, record};
use crate::heal::cluster::{Cluster, filled};
use crate::support::{Checked, MIB, Site};
use cairn_engine::Engine;
use cairn_metadata::NodeState;
use cairn_model::{Clock, ErrorKind, Kinded, Monotonic, WallTime};
use cairn_segment_writer::RequestPolicy;
use cairn_segment_writer::testing::{Fault, FaultStore, Verb};
use futures::{FutureExt, StreamExt};
use object_store::memory::InMemory;
use object_store::{ObjectStore, ObjectStoreExt};
use std::collections::BTreeSet;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

/// A pool that has no room for what is put below `puts`; where `frees_itself`, until something is deleted.
async fn full_site(is_full: &Arc<AtomicBool>, puts: &'static str, frees_itself: bool) -> Site {
    let full = Arc::clone(is_full);
    let store = FaultStore::new(Arc::new(InMemory::new()), move |request| {
        if request.verb == Verb::Delete && frees_itself {
            full.store(false, Ordering::Relaxed);
        }
        let is_put = request.verb == Verb::Put && request.key.starts_with(puts);
        (is_put && full.load(Ordering::Relaxed)).then_some(Fault::Status(507))
    });
    let mut site = Site::on(Arc::new(store)).await;
    site.add_volume("disk", 32 * MIB).await;
    only_asked(&mut site);
    site.policy = RequestPolicy { put_give_up: Duration::from_millis(200), ..site.policy };
    site
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_pool_frees_itself_with_the_room_of_the_reserve() {
    let is_full = Arc::new(AtomicBool::new(false));
    let site = full_site(&is_full, "", true).await;
    let engine = site.start().await;
    let mut disk = Checked::fresh(engine.volume("disk").unwrap());
    disk.write(0, noise(1, 8 * MIB)).await;
    engine.destage().await.unwrap();
    engine.checkpoint().await.unwrap();
    disk.write(0, noise(2, 8 * MIB)).await;
    engine.destage().await.unwrap();
    let before = keys(&site, "segments").await;
    site.store.put(&"record/reserve/1".into(), vec![1; 100].into()).await.unwrap();
    is_full.store(true, Ordering::Relaxed);
    // Nothing of the data may go before a checkpoint: the reserve is the first that does.
    let report = engine.reclaim(false).await.unwrap();
    assert!(keys(&site, "record/reserve").await.is_empty());
    assert!(report.objects > 0, "{report:?}");
    assert!(keys(&site, "segments").await.len() < before.len());
    engine.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pool_that_was_full_before_its_first_checkpoint_frees_itself() {
    let is_full = Arc::new(AtomicBool::new(true));
    let site = full_site(&is_full, "record/", false).await;
    let engine = site.start().await;
    let mut disk = Checked::fresh(engine.volume("disk").unwrap());
    for seed in [1, 2] {
        disk.write(0, noise(seed, 8 * MIB)).await;
        engine.destage().await.unwrap();
    }
    let before = keys(&site, "segments").await;
    assert_eq!(engine.checkpoint().await.unwrap_err().kind(), ErrorKind::OutOfSpace);
    let room = async {
        while keys(&site, "segments").await.len() >= before.len() {
            site.ports.clock.sleep(Duration::from_millis(5)).await;
        }
        is_full.store(false, Ordering::Relaxed);
    };
    let room = cairn_model::timeout(&*site.ports.clock, Duration::from_mins(1), room);
    let (report, room) = tokio::join!(engine.reclaim(false), room);
    room.expect("nothing goes");
    assert!(report.unwrap().objects > 0);
    engine.checkpoint().await.unwrap();
    disk.check_all().await;
    engine.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_last_checkpoint_has_among_the_doomed_needs_no_other_one() {
    let refuse_deletes = Arc::new(AtomicBool::new(true));
    let refuse_puts = Arc::new(AtomicBool::new(false));
    let (no_deletes, no_puts) = (Arc::clone(&refuse_deletes), Arc::clone(&refuse_puts));
    let store = FaultStore::new(Arc::new(InMemory::new()), move |request| {
        let refused = match request.verb {
            Verb::Delete => no_deletes.load(Ordering::Relaxed),
            Verb::Put => no_puts.load(Ordering::Relaxed),
            _ => false,
        };
        refused.then_some(Fault::Status(507))
    });
    let mut site = Site::on(Arc::new(store)).await;
    site.add_volume("disk", 32 * MIB).await;
    only_asked(&mut site);
    site.policy = RequestPolicy { put_give_up: Duration::from_millis(200), ..site.policy };
    let engine = site.start().await;
    let mut disk = Checked::fresh(engine.volume("disk").unwrap());
    disk.write(0, noise(1, 8 * MIB)).await;
    engine.destage().await.unwrap();
    disk.write(0, noise(2, 8 * MIB)).await;
    engine.destage().await.unwrap();
    let before = keys(&site, "segments").await;
    assert!(engine.reclaim(false).await.is_err(), "a checkpoint is taken, and nothing can be deleted");
    assert_eq!(keys(&site, "segments").await, before);
    let record = record(&site).await;
    let newest_before = newest(&record).await.id;
    // Now the pool is full, and after a restart as well.
    refuse_puts.store(true, Ordering::Relaxed);
    refuse_deletes.store(false, Ordering::Relaxed);
    engine.abandon().await;
    drop((engine, disk));
    let engine = site.start().await;
    let _ = engine.reclaim(false).await;
    assert!(keys(&site, "segments").await.len() < before.len(), "what was doomed then is gone");
    assert_eq!(newest(&record).await.id, newest_before, "without a checkpoint");
    refuse_puts.store(false, Ordering::Relaxed);
    engine.shutdown().await.unwrap();
}

/// The system's clock, moved on together with the time of day.
#[derive(Debug)]
struct Ahead {
    clock: Arc<dyn Clock>,
    by_ms: AtomicU64,
}

impl Ahead {
    fn advance(&self, minutes: u64) {
        self.by_ms.fetch_add(minutes * 60_000, Ordering::Relaxed);
    }
}

impl Clock for Ahead {
    fn now(&self) -> Monotonic {
        self.clock.now().plus(Duration::from_millis(self.by_ms.load(Ordering::Relaxed)))
    }

    fn wall(&self) -> WallTime {
        WallTime::from_unix_millis(self.clock.wall().unix_millis() + self.by_ms.load(Ordering::Relaxed))
    }

    fn sleep(&self, duration: Duration) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        self.clock.sleep(duration)
    }
}

/// A site of nodes three of which have to take a checkpoint.
struct Replicas {
    cluster: Cluster,
    clock: Arc<Ahead>,
    is_full: Arc<AtomicBool>,
}

impl Replicas {
    async fn new(nodes: usize) -> Self {
        let mut cluster = Cluster::new(nodes, "replica:3").await;
        let site = &mut cluster.site;
        only_asked(site);
        site.config.checkpoint_interval = Some(Duration::from_hours(1000));
        site.config.lease_ttl = Duration::from_hours(1000);
        site.config.heal_interval = Duration::from_hours(1);
        site.config.reclaim_dead_percent_max = 100;
        let clock = Arc::new(Ahead { clock: Arc::clone(&site.ports.clock), by_ms: AtomicU64::new(0) });
        site.ports.clock = Arc::clone(&clock) as Arc<dyn Clock>;
        Self { cluster, clock, is_full: Arc::default() }
    }

    /// The node has no room for what is put below `puts`; where `frees_itself`, until it has fewer objects of segments.
    fn fill(&self, node: usize, puts: &'static str, frees_itself: bool) {
        let (full, inner) = (Arc::clone(&self.is_full), Arc::clone(&self.cluster.nodes[node].inner));
        let count = move || inner.list(Some(&"segments".into())).count().now_or_never().unwrap();
        let before = count();
        full.store(true, Ordering::Relaxed);
        self.cluster.nodes[node].set_plan(move |request| {
            let is_full = full.load(Ordering::Relaxed) && !(frees_itself && count() < before);
            let is_put = request.verb == Verb::Put && request.key.starts_with(puts);
            (is_put && is_full).then_some(Fault::Status(507))
        });
    }

    /// Objects of segments, of each node.
    async fn keys(&self) -> Vec<BTreeSet<String>> {
        let mut keys = Vec::new();
        for node in &self.cluster.nodes {
            keys.push(node.keys().await);
        }
        keys
    }

    /// Writes over the same place. Returns the objects of what was written, which are the same on each node.
    async fn overwrite(&self, engine: &Engine, disk: &mut Checked, seed: u64) -> BTreeSet<String> {
        let before = self.cluster.nodes[0].keys().await;
        disk.write(0, noise(seed, MIB)).await;
        engine.destage().await.unwrap();
        let after = self.cluster.nodes[0].keys().await;
        after.difference(&before).cloned().collect()
    }

    async fn doomed(&self) -> usize {
        let catalog = self.cluster.site.catalog().await;
        let doomed = catalog.doomed_objects(None, 10_000).await.unwrap().len();
        catalog.close().await;
        doomed
    }
}

fn without(keys: &BTreeSet<String>, gone: &BTreeSet<String>) -> BTreeSet<String> {
    keys.difference(gone).cloned().collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_checkpoint_goes_what_is_on_full_nodes_and_older_than_the_newest_one() {
    let replicas = Replicas::new(3).await;
    let (engine, mut disk) = filled(&replicas.cluster, MIB).await;
    let old = replicas.cluster.nodes[0].keys().await;
    replicas.clock.advance(15);
    // It may have been packed when the checkpoint was taken, and committed after.
    let recent = replicas.overwrite(&engine, &mut disk, 2).await;
    replicas.clock.advance(5);
    engine.checkpoint().await.unwrap();
    let since = replicas.overwrite(&engine, &mut disk, 3).await;
    replicas.overwrite(&engine, &mut disk, 4).await;
    let all = replicas.keys().await;
    replicas.fill(0, "", false);
    let error = engine.reclaim(false).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::OutOfSpace);
    assert!(!old.is_empty() && !recent.is_empty() && !since.is_empty());
    let after = replicas.keys().await;
    assert_eq!(after[0], without(&all[0], &old), "the footers of later batches are needed");
    assert_eq!(after[1..], all[1..], "it would help nobody there");
    // What was passed over is looked at again when there is room.
    replicas.is_full.store(false, Ordering::Relaxed);
    engine.reclaim(false).await.unwrap();
    let left = replicas.keys().await;
    for (all, left) in all.iter().zip(&left) {
        assert_eq!(*left, without(&without(&without(all, &old), &recent), &since));
    }
    disk.check_all().await;
    engine.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn room_that_was_made_is_used_at_once() {
    let mut replicas = Replicas::new(3).await;
    replicas.cluster.site.config.reclaim_dead_percent_max = 1;
    let (engine, mut disk) = filled(&replicas.cluster, MIB).await;
    // Half of each of these dies.
    disk.write(4 * MIB, noise(9, 4 * MIB)).await;
    engine.destage().await.unwrap();
    replicas.clock.advance(20);
    engine.checkpoint().await.unwrap();
    for piece in 0..32 {
        disk.write(4 * MIB + piece * (128 << 10), noise(100 + piece, 64 << 10)).await;
    }
    engine.destage().await.unwrap();
    let since = replicas.overwrite(&engine, &mut disk, 2).await;
    replicas.overwrite(&engine, &mut disk, 3).await;
    // Nor does a checkpoint have to rest when the pass asks for one first.
    replicas.clock.advance(60);
    replicas.fill(0, "", true);
    let report = engine.reclaim(false).await.unwrap();
    assert!(report.moved_containers > 0, "{report:?}");
    assert_eq!(replicas.doomed().await, 0, "{report:?}");
    for keys in replicas.keys().await {
        assert!(keys.is_disjoint(&since), "{report:?}");
    }
    disk.check_all().await;
    engine.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_checkpoint_is_tried_again_when_something_went_without_one() {
    for full in [1, 3] {
        let replicas = Replicas::new(3).await;
        let (engine, mut disk) = filled(&replicas.cluster, MIB).await;
        replicas.clock.advance(20);
        engine.checkpoint().await.unwrap();
        replicas.overwrite(&engine, &mut disk, 2).await;
        for node in 0..full {
            replicas.fill(node, "record/manifests", true);
        }
        let taken = engine.status().record.taken;
        // Where all nodes are full, nothing is left that waits for one; but what is gone is named by the one before.
        engine.reclaim(false).await.unwrap();
        assert!(engine.status().record.taken > taken, "{full}: {:?}", engine.status().record);
        assert_eq!(replicas.doomed().await, 0, "{full}");
        disk.check_all().await;
        engine.shutdown().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_checkpoint_is_due_as_long_as_the_newest_one_names_what_is_gone() {
    let replicas = Replicas::new(3).await;
    let (engine, mut disk) = filled(&replicas.cluster, MIB).await;
    replicas.clock.advance(20);
    engine.checkpoint().await.unwrap();
    replicas.overwrite(&engine, &mut disk, 2).await;
    assert!(!engine.status().record.waits);
    for node in 0..3 {
        replicas.fill(node, "record/manifests", false);
    }
    engine.reclaim(false).await.unwrap();
    assert_eq!(replicas.doomed().await, 0, "nothing is left that waits for one");
    assert!(engine.status().record.waits, "{:?}", engine.status().record);
    replicas.is_full.store(false, Ordering::Relaxed);
    engine.checkpoint().await.unwrap();
    assert!(!engine.status().record.waits);
    disk.check_all().await;
    engine.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_on_its_way_in_an_earlier_run_may_be_a_day_old() {
    for (hours, goes) in [(23, false), (25, true)] {
        let replicas = Replicas::new(3).await;
        let (engine, mut disk) = filled(&replicas.cluster, MIB).await;
        let old = replicas.cluster.nodes[0].keys().await;
        replicas.clock.advance(hours * 60);
        engine.checkpoint().await.unwrap();
        replicas.overwrite(&engine, &mut disk, 2).await;
        replicas.overwrite(&engine, &mut disk, 3).await;
        let all = replicas.keys().await;
        replicas.fill(0, "", false);
        let expected = disk.into_expected();
        engine.abandon().await;
        drop(engine);
        let (engine, disk) = replicas.cluster.started(expected).await;
        assert_eq!(engine.reclaim(false).await.unwrap_err().kind(), ErrorKind::OutOfSpace);
        let after = replicas.keys().await;
        assert_eq!(after[1..], all[1..], "{hours} hours");
        assert_eq!(after[0], if goes { without(&all[0], &old) } else { all[0].clone() }, "{hours} hours");
        disk.check_all().await;
        engine.abandon().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn old_places_of_shards_go_without_a_checkpoint_whose_segments_are_whole_elsewhere() {
    let mut replicas = Replicas::new(4).await;
    replicas.cluster.site.config.heal_interval = Duration::from_millis(50);
    let engine = replicas.cluster.site.start().await;
    engine.checkpoint().await.unwrap();
    let mut disk = Checked::fresh(engine.volume("disk").unwrap());
    disk.write(0, noise(1, 4 * MIB)).await;
    engine.destage().await.unwrap();
    let all = replicas.keys().await;
    // No node but two has room for a checkpoint from here on.
    replicas.fill(0, "", false);
    replicas.fill(1, "record/", false);
    let drained = replicas.cluster.site.nodes[0].id;
    replicas.cluster.set_state(0, NodeState::Draining).await;
    engine.pool_changed();
    for round in 0.. {
        if replicas.cluster.shards().await.values().all(|node| *node != drained) {
            break;
        }
        assert!(round < 600, "the node is not drained: {:?}", engine.status().heal);
        replicas.clock.sleep(Duration::from_millis(50)).await;
    }
    assert!(!all[0].is_empty());
    assert_eq!(replicas.keys().await[0], all[0], "healing waits for a checkpoint");
    let report = engine.reclaim(false).await.unwrap();
    assert_eq!(replicas.keys().await[0], BTreeSet::new(), "{report:?}");
    replicas.is_full.store(false, Ordering::Relaxed);
    replicas.cluster.until_whole(&engine).await;
    disk.check_all().await;
    engine.shutdown().await.unwrap();
}
