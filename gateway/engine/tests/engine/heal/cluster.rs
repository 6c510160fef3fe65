//! A site of several nodes, and what can be done to them.

use crate::support::{Checked, MIB, Site};
use cairn_engine::{Engine, HealStatus};
use cairn_metadata::{NodeChange, NodeState, PoolSettings, SegmentPlace};
use cairn_model::{Entropy, NodeId, SeededEntropy};
use cairn_segment_writer::RequestPolicy;
use cairn_segment_writer::testing::{Fault, FaultStore, Request};
use futures::TryStreamExt;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};
use parking_lot::Mutex;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Bytes that do not compress and are like no others.
pub(crate) fn noise(seed: u64, length: u64) -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(length).unwrap()];
    SeededEntropy::new(seed).fill(&mut bytes);
    bytes
}

/// What happens to a request.
pub(crate) type Plan = Box<dyn FnMut(&Request<'_>) -> Option<Fault> + Send>;

/// What a test does to a data node.
#[derive(Clone, Default)]
pub(crate) struct Node {
    pub(crate) inner: Arc<InMemory>,
    is_down: Arc<AtomicBool>,
    pub(crate) plan: Arc<Mutex<Option<Plan>>>,
}

impl Node {
    pub(crate) fn store(&self) -> Arc<dyn ObjectStore> {
        let (is_down, plan) = (Arc::clone(&self.is_down), Arc::clone(&self.plan));
        Arc::new(FaultStore::new(Arc::clone(&self.inner) as _, move |request| {
            if is_down.load(Ordering::Relaxed) {
                return Some(Fault::Connection);
            }
            plan.lock().as_mut().and_then(|plan| plan(&request))
        }))
    }

    pub(crate) fn set_down(&self, is_down: bool) {
        self.is_down.store(is_down, Ordering::Relaxed);
    }

    pub(crate) fn set_plan(&self, plan: impl FnMut(&Request<'_>) -> Option<Fault> + Send + 'static) {
        *self.plan.lock() = Some(Box::new(plan));
    }

    /// Everything goes but what makes it this node.
    pub(crate) async fn wipe(&self) {
        for key in self.keys().await {
            self.inner.delete(&Path::from(key)).await.unwrap();
        }
    }

    /// Objects of segments.
    pub(crate) async fn keys(&self) -> BTreeSet<String> {
        let objects: Vec<_> = self.inner.list(Some(&"segments".into())).try_collect().await.unwrap();
        objects.into_iter().map(|object| object.location.to_string()).collect()
    }
}

pub(crate) fn is_made_later(key: &str) -> bool {
    key.rsplit_once('.').is_some_and(|(_, tag)| tag.len() == 8 && u32::from_str_radix(tag, 16).is_ok())
}

/// A site of several nodes.
pub(crate) struct Cluster {
    pub(crate) site: Site,
    pub(crate) nodes: Vec<Node>,
}

impl Cluster {
    /// With a volume of 16 MiB that is written in many small segments.
    pub(crate) async fn new(nodes: usize, profile: &str) -> Self {
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
        // What is left over goes at once, but where a test asks for the contrary.
        site.config.checkpoint_interval = None;
        // Chunks are not kept, the places of containers are.
        site.config.block_cache_bytes = 1;
        site.add_volume("disk", 16 * MIB).await;
        cluster.set_profile(profile).await;
        cluster
    }

    pub(crate) async fn add_node(&mut self) -> NodeId {
        let node = Node::default();
        let name = format!("node-{}", self.nodes.len());
        let added = self.site.add_node(&name, node.store()).await;
        self.nodes.push(node);
        added.id
    }

    pub(crate) async fn set_profile(&self, profile: &str) {
        let catalog = self.site.catalog().await;
        catalog.set_pool_settings(&PoolSettings { profile: profile.parse().unwrap() }).await.unwrap();
        catalog.close().await;
    }

    pub(crate) async fn set_state(&self, node: usize, state: NodeState) {
        let catalog = self.site.catalog().await;
        let change = NodeChange { state: Some(state), ..NodeChange::default() };
        catalog.update_node(self.site.nodes[node].id, &change).await.unwrap();
        catalog.close().await;
    }

    pub(crate) async fn state(&self, node: usize) -> NodeState {
        let catalog = self.site.catalog().await;
        let state = catalog.node(self.site.nodes[node].id).await.unwrap().state;
        catalog.close().await;
        state
    }

    pub(crate) async fn until_state(&self, node: usize, state: NodeState) {
        for _ in 0..600 {
            if self.state(node).await == state {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("node {node} is not {state:?} after half a minute");
    }

    pub(crate) async fn places(&self) -> Vec<SegmentPlace> {
        let catalog = self.site.catalog().await;
        let places = catalog.segment_places(None, u32::MAX >> 1).await.unwrap();
        catalog.close().await;
        places
    }

    pub(crate) fn number_of(&self, node: NodeId) -> usize {
        self.site.nodes.iter().position(|known| known.id == node).unwrap()
    }

    /// What keeps the pool from being as it should be, as the stores themselves say.
    pub(crate) async fn flaw(&self) -> Option<String> {
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
    pub(crate) async fn garbage(&self) -> usize {
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

    pub(crate) async fn until_whole(&self, engine: &Engine) {
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
    pub(crate) async fn shards(&self) -> BTreeMap<(String, usize), NodeId> {
        let shards = |segment: SegmentPlace| {
            let key = segment.place.key.clone();
            let placed: Vec<_> = segment.place.placement.present().collect();
            placed.into_iter().map(move |(index, shard)| ((key.clone(), index), shard.node))
        };
        self.places().await.into_iter().flat_map(shards).collect()
    }

    /// A new process, without anything in memory.
    pub(crate) async fn restarted(&self, engine: Arc<Engine>, disk: Checked) -> (Arc<Engine>, Checked) {
        let expected = disk.into_expected();
        engine.shutdown().await.unwrap();
        drop(engine);
        self.started(expected).await
    }

    pub(crate) async fn started(&self, expected: Vec<u8>) -> (Arc<Engine>, Checked) {
        let engine = self.site.start().await;
        let disk = Checked { volume: engine.volume("disk").unwrap(), expected };
        (engine, disk)
    }
}

pub(crate) async fn wait_for(what: &str, engine: &Engine, mut done: impl FnMut(&HealStatus) -> bool) {
    for _ in 0..600 {
        if done(&engine.status().heal) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("waited half a minute in vain: {what}: {:?}", engine.status().heal);
}

pub(crate) async fn filled(cluster: &Cluster, bytes: u64) -> (Arc<Engine>, Checked) {
    let engine = cluster.site.start().await;
    let mut disk = Checked::fresh(engine.volume("disk").unwrap());
    disk.write(0, noise(1, bytes)).await;
    engine.destage().await.unwrap();
    (engine, disk)
}
