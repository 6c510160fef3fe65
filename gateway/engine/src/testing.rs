//! An engine that does nothing by itself, for tests of what only its modules can reach.

use crate::{Engine, EngineConfig, EngineParts, members};
use bytes::Bytes;
use cairn_fingerprints::{FingerprintIndex, IndexConfig};
use cairn_metadata::{
    Catalog, FORMAT_VERSION, NewVolume, NodeRow, NodeState, PoolSettings as CatalogPool, SegmentPlace,
    SiteRow, SqliteCatalog,
};
use cairn_model::crypto::{Encryption, SecretKey};
use cairn_model::{
    BlockDevice, Clock, DomainId, Durability, Entropy, GatewayId, LineageId, Monotonic, NodeId, Ports,
    Profile, SeededEntropy, SiteId, VolumeId, WallTime, WriteFlags,
};
use cairn_segment_writer::testing::{Fault, FaultStore, Request};
use cairn_segment_writer::{DataNode, Domain, Pool, PoolSettings, RequestPolicy};
use cairn_wal::{FileDisk, WalConfig};
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};
use parking_lot::Mutex;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tempfile::TempDir;

/// The system's clock, moved on together with the time of day.
#[derive(Debug)]
pub(crate) struct Ahead {
    clock: Arc<dyn Clock>,
    by_ms: AtomicU64,
}

impl Ahead {
    pub(crate) fn advance(&self, by: Duration) {
        self.by_ms.fetch_add(u64::try_from(by.as_millis()).unwrap(), Ordering::Relaxed);
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

/// What happens to a request.
type Plan = Box<dyn FnMut(&Request<'_>) -> Option<Fault> + Send>;

/// A data node, and what a test does to it.
#[derive(Clone)]
pub(crate) struct TestNode {
    pub(crate) id: NodeId,
    pub(crate) inner: Arc<InMemory>,
    plan: Arc<Mutex<Plan>>,
}

impl TestNode {
    pub(crate) fn set_plan(&self, plan: impl FnMut(&Request<'_>) -> Option<Fault> + Send + 'static) {
        *self.plan.lock() = Box::new(plan);
    }

    pub(crate) async fn take(&self, key: &str) -> Vec<u8> {
        let path = Path::from(key);
        let bytes = self.inner.get(&path).await.unwrap().bytes().await.unwrap().to_vec();
        self.inner.delete(&path).await.unwrap();
        bytes
    }

    pub(crate) async fn put(&self, key: &str, bytes: Vec<u8>) {
        self.inner.put(&Path::from(key), bytes.into()).await.unwrap();
    }
}

/// A site in a temporary directory with a held engine, and volume `disk`.
pub(crate) struct TestSite {
    pub(crate) engine: Arc<Engine>,
    pub(crate) nodes: Vec<TestNode>,
    pub(crate) clock: Arc<Ahead>,
    _directory: TempDir,
}

impl TestSite {
    pub(crate) async fn new(nodes: usize, profile: &str) -> Self {
        let clock = Arc::new(Ahead { clock: Ports::system().clock, by_ms: AtomicU64::new(0) });
        let ports = Ports { clock: Arc::clone(&clock) as Arc<dyn Clock>, ..Ports::system() };
        let directory = TempDir::new().unwrap();
        let catalog = SqliteCatalog::create(&directory.path().join("catalog.db")).await.unwrap();
        let (site, now) = (SiteId::fresh(&*ports.clock, &*ports.entropy), ports.clock.wall());
        let gateway = GatewayId::fresh(&*ports.clock, &*ports.entropy);
        let row =
            SiteRow { id: site, name: "test".to_owned(), created_at: now, format_version: FORMAT_VERSION };
        catalog.create_site(&row).await.unwrap();
        catalog.register_gateway(gateway, "test", now).await.unwrap();
        let profile: Profile = profile.parse().unwrap();
        catalog.set_pool_settings(&CatalogPool { profile }).await.unwrap();
        let (mut some, mut open) = (Vec::new(), Vec::new());
        for number in 0..nodes {
            let (node, data_node) = attached(&format!("node-{number}"), site, &catalog, &ports).await;
            some.push(node);
            open.push(Arc::new(data_node));
        }
        catalog.create_volume(&volume(&ports)).await.unwrap();
        let rows = catalog.nodes().await.unwrap();
        let settings = PoolSettings { profile, ..PoolSettings::default() };
        let index =
            IndexConfig { path: directory.path().join("index"), cache_bytes: 4 << 20, containers_max: 1000 };
        let index_key = SecretKey::from_bytes([3; 32]);
        let (fingerprints, _) = FingerprintIndex::open(&index, site, &index_key).unwrap();
        let (key, encryption) = (SecretKey::from_bytes([1; 32]), Encryption::Aes256Gcm);
        let made_of = EngineParts {
            site,
            gateway,
            catalog: Arc::new(catalog),
            pool: Arc::new(Pool::new(members(&rows, &open), settings, ports.clone())),
            domains: vec![Domain::new(DomainId::DEFAULT, key, encryption)],
            wal_key: SecretKey::from_bytes([2; 32]),
            wal_disk: Arc::new(FileDisk::open(&directory.path().join("wal")).unwrap()),
            fingerprints: Arc::new(fingerprints),
            flash: None,
            ports,
        };
        let engine = Engine::start(config(), made_of).await.unwrap();
        Self { engine, nodes: some, clock, _directory: directory }
    }

    /// Brings so many segments to the pool, each of 256 KiB of noise.
    pub(crate) async fn fill(&self, segments: u64) -> Vec<SegmentPlace> {
        let disk = self.engine.volume("disk").unwrap();
        let mut bytes = vec![0; usize::try_from(segments << 18).unwrap()];
        SeededEntropy::new(1).fill(&mut bytes);
        disk.write(0, Bytes::from(bytes), WriteFlags::default()).await.unwrap();
        drop(disk);
        self.engine.destage().await.unwrap();
        self.engine.shared().catalog.segment_places(None, 1000).await.unwrap()
    }

    pub(crate) fn node(&self, id: NodeId) -> &TestNode {
        self.nodes.iter().find(|node| node.id == id).unwrap()
    }
}

fn config() -> EngineConfig {
    let wal = WalConfig { capacity_bytes: 64 << 20, file_bytes: 8 << 20, ..WalConfig::default() };
    let mut config = EngineConfig::new(wal);
    config.held = true;
    config.batch_bytes = 1 << 20;
    config.pack.container_bytes_max = 256 << 10;
    config.lease_ttl = Duration::from_hours(1000);
    config.heal_bytes_per_second = None;
    config
}

async fn attached(name: &str, site: SiteId, catalog: &SqliteCatalog, ports: &Ports) -> (TestNode, DataNode) {
    let inner = Arc::new(InMemory::new());
    let plan: Arc<Mutex<Plan>> = Arc::new(Mutex::new(Box::new(|_| None)));
    let planned = Arc::clone(&plan);
    let store: Arc<dyn ObjectStore> =
        Arc::new(FaultStore::new(Arc::clone(&inner) as _, move |request| planned.lock()(&request)));
    let policy = RequestPolicy {
        put_give_up: Duration::from_millis(200),
        get_give_up: Duration::from_millis(200),
        backoff_first: Duration::from_millis(5),
        backoff_max: Duration::from_millis(50),
        ..RequestPolicy::default()
    };
    let attached = DataNode::attach_store(Arc::clone(&store), name, site, policy, ports.clone());
    let id = attached.await.unwrap().id();
    let row = NodeRow {
        id,
        name: name.to_owned(),
        url: format!("file:///{name}"),
        domain: None,
        state: NodeState::Active,
        created_at: ports.clock.wall(),
        options: "{}".to_owned(),
        capacity_bytes: None,
    };
    catalog.add_node(&row).await.unwrap();
    let node = DataNode::open_store_lazily(store, name, site, id, policy, ports.clone());
    (TestNode { id, inner, plan }, node)
}

fn volume(ports: &Ports) -> NewVolume {
    NewVolume {
        id: VolumeId::fresh(&*ports.clock, &*ports.entropy),
        name: "disk".parse().unwrap(),
        size_bytes: 16 << 20,
        durability: Durability::Flush,
        lineage: LineageId::fresh(&*ports.clock, &*ports.entropy),
        domain: DomainId::DEFAULT,
        compress: true,
        dedupe: true,
        read_only: false,
        options: "{}".to_owned(),
        created_at: ports.clock.wall(),
    }
}
