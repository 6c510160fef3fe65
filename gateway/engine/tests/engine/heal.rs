//! The pool becomes what it should be, by itself, whatever happens meanwhile; and nobody reads a wrong byte for it.

#![expect(clippy::disallowed_methods, reason = "tests wait for real time, and spawn what they join")]

use crate::support::{Checked, Dice, MIB, Site};
use cairn_engine::{Engine, HealStatus};
use cairn_metadata::{NodeChange, NodeState, PoolSettings, SegmentPlace};
use cairn_model::{BlockDevice, Entropy, NodeId, Profile, SeededEntropy};
use cairn_segment_writer::testing::{Fault, FaultStore, Request, Verb};
use cairn_segment_writer::{MARKER_KEY, RequestPolicy};
use futures::TryStreamExt;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};
use parking_lot::Mutex;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

/// Bytes that do not compress and are like no others.
fn noise(seed: u64, length: u64) -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(length).unwrap()];
    SeededEntropy::new(seed).fill(&mut bytes);
    bytes
}

/// What happens to a request.
type Plan = Box<dyn FnMut(&Request<'_>) -> Option<Fault> + Send>;

/// What a test does to a data node.
#[derive(Clone, Default)]
struct Node {
    inner: Arc<InMemory>,
    is_down: Arc<AtomicBool>,
    plan: Arc<Mutex<Option<Plan>>>,
}

impl Node {
    fn store(&self) -> Arc<dyn ObjectStore> {
        let (is_down, plan) = (Arc::clone(&self.is_down), Arc::clone(&self.plan));
        Arc::new(FaultStore::new(Arc::clone(&self.inner) as _, move |request| {
            if is_down.load(Ordering::Relaxed) {
                return Some(Fault::Connection);
            }
            plan.lock().as_mut().and_then(|plan| plan(&request))
        }))
    }

    fn set_down(&self, is_down: bool) {
        self.is_down.store(is_down, Ordering::Relaxed);
    }

    fn set_plan(&self, plan: impl FnMut(&Request<'_>) -> Option<Fault> + Send + 'static) {
        *self.plan.lock() = Some(Box::new(plan));
    }

    /// Everything goes but what makes it this node.
    async fn wipe(&self) {
        for key in self.keys().await {
            self.inner.delete(&Path::from(key)).await.unwrap();
        }
    }

    /// Objects of segments.
    async fn keys(&self) -> BTreeSet<String> {
        let objects: Vec<_> = self.inner.list(Some(&"segments".into())).try_collect().await.unwrap();
        objects.into_iter().map(|object| object.location.to_string()).collect()
    }
}

fn is_made_later(key: &str) -> bool {
    key.rsplit_once('.').is_some_and(|(_, tag)| tag.len() == 8 && u32::from_str_radix(tag, 16).is_ok())
}

/// A site of several nodes.
struct Cluster {
    site: Site,
    nodes: Vec<Node>,
}

impl Cluster {
    /// With a volume of 16 MiB that is written in many small segments.
    async fn new(nodes: usize, profile: &str) -> Self {
        let first = Node::default();
        let mut cluster = Self { site: Site::on(first.store()).await, nodes: vec![first] };
        for _ in 1..nodes {
            cluster.add_node().await;
        }
        let site = &mut cluster.site;
        site.policy = RequestPolicy {
            put_attempt_timeout: Duration::from_millis(500),
            get_attempt_timeout: Duration::from_millis(500),
            put_give_up: Duration::from_millis(200),
            get_give_up: Duration::from_millis(200),
            backoff_first: Duration::from_millis(5),
            backoff_max: Duration::from_millis(50),
        };
        site.config.batch_bytes = MIB;
        site.config.pack.container_bytes_max = 256 << 10;
        site.config.reclaim_interval = None;
        site.config.heal_interval = Duration::from_millis(50);
        site.config.heal_bytes_per_second = None;
        site.config.node_failed_after = None;
        site.config.scrub_period = None;
        // Chunks are not kept, the places of containers are.
        site.config.block_cache_bytes = 1;
        site.add_volume("disk", 16 * MIB).await;
        cluster.set_profile(profile).await;
        cluster
    }

    async fn add_node(&mut self) -> NodeId {
        let node = Node::default();
        let name = format!("node-{}", self.nodes.len());
        let added = self.site.add_node(&name, node.store()).await;
        self.nodes.push(node);
        added.id
    }

    async fn set_profile(&self, profile: &str) {
        let catalog = self.site.catalog().await;
        catalog.set_pool_settings(&PoolSettings { profile: profile.parse().unwrap() }).await.unwrap();
        catalog.close().await;
    }

    async fn set_state(&self, node: usize, state: NodeState) {
        let catalog = self.site.catalog().await;
        let change = NodeChange { state: Some(state), ..NodeChange::default() };
        catalog.update_node(self.site.nodes[node].id, &change).await.unwrap();
        catalog.close().await;
    }

    async fn state(&self, node: usize) -> NodeState {
        let catalog = self.site.catalog().await;
        let state = catalog.node(self.site.nodes[node].id).await.unwrap().state;
        catalog.close().await;
        state
    }

    async fn until_state(&self, node: usize, state: NodeState) {
        for _ in 0..600 {
            if self.state(node).await == state {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("node {node} is not {state:?} after half a minute");
    }

    async fn places(&self) -> Vec<SegmentPlace> {
        let catalog = self.site.catalog().await;
        let places = catalog.segment_places(None, u32::MAX >> 1).await.unwrap();
        catalog.close().await;
        places
    }

    fn number_of(&self, node: NodeId) -> usize {
        self.site.nodes.iter().position(|known| known.id == node).unwrap()
    }

    /// What keeps the pool from being as it should be, as the stores themselves say.
    async fn flaw(&self) -> Option<String> {
        let catalog = self.site.catalog().await;
        let profile = catalog.pool_settings().await.unwrap().profile;
        let states: BTreeMap<NodeId, NodeState> =
            catalog.nodes().await.unwrap().into_iter().map(|node| (node.id, node.state)).collect();
        // What is on a node that is away is deleted when it is back.
        let doomed = catalog.doomed_objects(None, 1000).await.unwrap();
        let doomed = doomed.iter().filter(|object| states[&object.node] != NodeState::Failed).count();
        let usage = catalog.node_usage().await.unwrap();
        catalog.close().await;
        let mut named: Vec<BTreeSet<String>> = vec![BTreeSet::new(); self.nodes.len()];
        let places = self.places().await;
        for SegmentPlace { id, place } in &places {
            let placement = &place.placement;
            if placement.profile() != profile || placement.missing() > 0 {
                return Some(format!("segment {id} is {placement:?}"));
            }
            for (node, key, _) in place.objects() {
                if states[&node] != NodeState::Active {
                    return Some(format!("segment {id} is on a node that is {:?}", states[&node]));
                }
                named[self.number_of(node)].insert(key);
            }
        }
        for (number, node) in self.nodes.iter().enumerate() {
            let keys = node.keys().await;
            if let Some(missing) = named[number].difference(&keys).next() {
                return Some(format!("node {number} does not have {missing}"));
            }
            let held = usage.iter().find(|usage| usage.node == self.site.nodes[number].id);
            let held = held.map_or(0, |usage| usage.shards);
            if held != named[number].len() as u64 {
                return Some(format!("the catalog counts {held} shards on node {number}"));
            }
        }
        (doomed > 0).then(|| format!("{doomed} objects wait to be deleted"))
    }

    /// Objects that nothing names.
    async fn garbage(&self) -> usize {
        let mut named = BTreeSet::new();
        for segment in self.places().await {
            named.extend(segment.place.objects().map(|(node, key, _)| (self.number_of(node), key)));
        }
        let mut all = BTreeSet::new();
        for (number, node) in self.nodes.iter().enumerate() {
            all.extend(node.keys().await.into_iter().map(|key| (number, key)));
        }
        all.difference(&named).count()
    }

    async fn until_whole(&self, engine: &Engine) {
        let mut flaw = None;
        for _ in 0..600 {
            flaw = self.flaw().await;
            if flaw.is_none() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("the pool is not whole after half a minute: {flaw:?}; {:?}", engine.status().heal);
    }

    /// Where every shard is.
    async fn shards(&self) -> BTreeMap<(String, usize), NodeId> {
        let shards = |segment: SegmentPlace| {
            let key = segment.place.key.clone();
            let placed: Vec<_> = segment.place.placement.present().collect();
            placed.into_iter().map(move |(index, shard)| ((key.clone(), index), shard.node))
        };
        self.places().await.into_iter().flat_map(shards).collect()
    }

    /// A new process, without anything in memory.
    async fn restarted(&self, engine: Arc<Engine>, disk: Checked) -> (Arc<Engine>, Checked) {
        let expected = disk.into_expected();
        engine.shutdown().await.unwrap();
        drop(engine);
        self.started(expected).await
    }

    async fn started(&self, expected: Vec<u8>) -> (Arc<Engine>, Checked) {
        let engine = self.site.start().await;
        let disk = Checked { volume: engine.volume("disk").unwrap(), expected };
        (engine, disk)
    }
}

async fn wait_for(what: &str, engine: &Engine, mut done: impl FnMut(&HealStatus) -> bool) {
    for _ in 0..600 {
        if done(&engine.status().heal) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("waited half a minute in vain: {what}: {:?}", engine.status().heal);
}

async fn filled(cluster: &Cluster, bytes: u64) -> (Arc<Engine>, Checked) {
    let engine = cluster.site.start().await;
    let mut disk = Checked::fresh(engine.volume("disk").unwrap());
    disk.write(0, noise(1, bytes)).await;
    engine.destage().await.unwrap();
    (engine, disk)
}

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

/// Overwrites a part of every 64 KiB.
async fn scattered(disk: &mut Checked, seed: u64) {
    let dice = Dice::new(seed);
    for piece in 0..128 {
        disk.write(piece * 65536 + dice.below(8) * 4096, noise(1000 + seed * 1000 + piece, 16 << 10)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn profiles_are_converted_under_reads_writes_and_reclaim() {
    let mut cluster = Cluster::new(6, "single").await;
    cluster.site.config.reclaim_dead_percent_max = 5;
    let (engine, mut disk) = filled(&cluster, 8 * MIB).await;
    let stop = Arc::new(AtomicBool::new(false));
    let readers: Vec<_> = (0..4)
        .map(|seed| {
            let (volume, stop) = (Arc::clone(&disk.volume), Arc::clone(&stop));
            tokio::spawn(async move {
                let dice = Dice::new(seed);
                while !stop.load(Ordering::Relaxed) {
                    volume.read(dice.below(2000) * 4096, 32 << 10).await.unwrap();
                }
            })
        })
        .collect();
    for (round, profile) in (0..).zip(["ec:4+2", "replica:3", "single", "replica:2", "ec:2+1", "single"]) {
        cluster.set_profile(profile).await;
        engine.pool_changed();
        scattered(&mut disk, round).await;
        engine.destage().await.unwrap();
        disk.check_all().await;
        engine.reclaim(false).await.unwrap();
        disk.check_all().await;
        cluster.until_whole(&engine).await;
        disk.check_all().await;
        let profile: Profile = profile.parse().unwrap();
        assert!(cluster.places().await.iter().all(|segment| segment.place.placement.profile() == profile));
    }
    stop.store(true, Ordering::Relaxed);
    for reader in readers {
        reader.await.unwrap();
    }
    assert_eq!(cluster.garbage().await, 0);
    let (engine, disk) = cluster.restarted(engine, disk).await;
    disk.check_all().await;
    engine.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn copies_that_stay_are_verified_before_others_go() {
    let cluster = Cluster::new(3, "replica:2").await;
    let (engine, disk) = filled(&cluster, 2 * MIB).await;
    // One copy of each is damaged, on whichever node.
    for (number, segment) in cluster.places().await.into_iter().enumerate() {
        let (node, key, _) = segment.place.objects().nth(number % 2).unwrap();
        let store = &cluster.nodes[cluster.number_of(node)].inner;
        let mut bytes = store.get(&Path::from(key.as_str())).await.unwrap().bytes().await.unwrap().to_vec();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        store.put(&Path::from(key), bytes.into()).await.unwrap();
    }
    cluster.set_profile("single").await;
    engine.pool_changed();
    cluster.until_whole(&engine).await;
    disk.check_all().await;
    engine.shutdown().await.unwrap();
}

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
