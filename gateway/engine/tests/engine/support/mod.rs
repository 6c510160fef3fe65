//! A site in a temporary directory: real SQLite, real log files, a pool on any object store.

use bytes::Bytes;
use cairn_engine::{Engine, EngineConfig, EngineError, EngineParts, Volume, members};
use cairn_fingerprints::{FingerprintIndex, IndexConfig};
use cairn_flash::SealedCache;
use cairn_metadata::{
    Catalog, CatalogError, Lease, NewVolume, NodeRow, NodeState, SiteRow, SqliteCatalog, VolumeName,
};
use cairn_model::crypto::{Encryption, SecretKey};
use cairn_model::{
    BlockDevice, DomainId, Durability, Entropy, GatewayId, LineageId, NodeId, Ports, SeededEntropy, SiteId,
    VolumeId, WriteFlags,
};
use cairn_segment_writer::{DataNode, Domain, Pool, PoolSettings, RequestPolicy};
use cairn_wal::{FileDisk, WalConfig};
use object_store::ObjectStore;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tempfile::TempDir;

pub(crate) const MIB: u64 = 1 << 20;
/// The key of the default domain.
pub(crate) const DOMAIN_KEY: [u8; 32] = [1; 32];

/// A data node of a site.
#[derive(Clone)]
pub(crate) struct SiteNode {
    pub(crate) id: NodeId,
    pub(crate) name: String,
    pub(crate) store: Arc<dyn ObjectStore>,
}

pub(crate) struct Site {
    pub(crate) directory: TempDir,
    pub(crate) id: SiteId,
    pub(crate) gateway: GatewayId,
    /// The first node's.
    pub(crate) store: Arc<dyn ObjectStore>,
    /// All nodes, in the order in which they were added.
    pub(crate) nodes: Vec<SiteNode>,
    /// What the pool is made with; its profile is the catalog's.
    pub(crate) pool: PoolSettings,
    pub(crate) config: EngineConfig,
    pub(crate) policy: RequestPolicy,
    pub(crate) ports: Ports,
    pub(crate) flash: Option<Arc<dyn SealedCache>>,
}

impl Site {
    /// A fresh site with volume `disk` of `size_bytes` on a pool in memory.
    pub(crate) async fn with_volume(size_bytes: u64) -> Self {
        let site = Self::on(Arc::new(object_store::memory::InMemory::new())).await;
        site.add_volume("disk", size_bytes).await;
        site
    }

    pub(crate) async fn on(store: Arc<dyn ObjectStore>) -> Self {
        let ports = Ports::system();
        let directory = TempDir::new().unwrap();
        let id = SiteId::fresh(&*ports.clock, &*ports.entropy);
        let gateway = GatewayId::fresh(&*ports.clock, &*ports.entropy);
        let wal = WalConfig { capacity_bytes: 64 * MIB, file_bytes: 8 * MIB, ..WalConfig::default() };
        let mut config = EngineConfig::new(wal);
        config.batch_bytes = 4 * MIB;
        config.batch_age = Duration::from_millis(200);
        let mut site = Self {
            directory,
            id,
            gateway,
            store: Arc::clone(&store),
            nodes: Vec::new(),
            pool: PoolSettings::default(),
            config,
            policy: RequestPolicy::default(),
            ports,
            flash: None,
        };
        let catalog = SqliteCatalog::create(&site.directory.path().join("catalog.db")).await.unwrap();
        let now = site.ports.clock.wall();
        let row = SiteRow {
            id,
            name: "test".to_owned(),
            created_at: now,
            format_version: cairn_metadata::FORMAT_VERSION,
        };
        catalog.create_site(&row).await.unwrap();
        catalog.register_gateway(gateway, "test", now).await.unwrap();
        catalog.close().await;
        site.add_node("memory", store).await;
        site
    }

    /// Makes an empty store another node.
    pub(crate) async fn add_node(&mut self, name: &str, store: Arc<dyn ObjectStore>) -> SiteNode {
        let (policy, ports) = (RequestPolicy::default(), self.ports.clone());
        let attached = DataNode::attach_store(Arc::clone(&store), name, self.id, policy, ports);
        let row = NodeRow {
            id: attached.await.unwrap().id(),
            name: name.to_owned(),
            url: format!("file:///{name}"),
            domain: None,
            state: NodeState::Active,
            created_at: self.ports.clock.wall(),
            options: "{}".to_owned(),
            capacity_bytes: None,
        };
        let catalog = self.catalog().await;
        catalog.add_node(&row).await.unwrap();
        catalog.close().await;
        self.nodes.push(SiteNode { id: row.id, name: row.name, store });
        self.nodes.last().unwrap().clone()
    }

    /// The node as a process opens it, whether it answers or not.
    pub(crate) fn open_node(&self, node: &SiteNode) -> DataNode {
        let (store, ports) = (Arc::clone(&node.store), self.ports.clone());
        DataNode::open_store_lazily(store, &node.name, self.id, node.id, self.policy, ports)
    }

    pub(crate) async fn add_volume(&self, name: &str, size_bytes: u64) {
        let catalog = self.catalog().await;
        catalog.create_volume(&self.new_volume(name, size_bytes)).await.unwrap();
        catalog.close().await;
    }

    pub(crate) fn new_volume(&self, name: &str, size_bytes: u64) -> NewVolume {
        let (clock, entropy) = (&*self.ports.clock, &*self.ports.entropy);
        NewVolume {
            id: VolumeId::fresh(clock, entropy),
            name: name.parse::<VolumeName>().unwrap(),
            size_bytes,
            durability: Durability::Flush,
            lineage: LineageId::fresh(clock, entropy),
            domain: DomainId::DEFAULT,
            compress: true,
            dedupe: true,
            read_only: false,
            options: "{}".to_owned(),
            created_at: clock.wall(),
        }
    }

    pub(crate) fn wal_directory(&self) -> PathBuf {
        self.directory.path().join("wal")
    }

    pub(crate) async fn catalog(&self) -> Arc<dyn Catalog> {
        Arc::new(SqliteCatalog::open(&self.directory.path().join("catalog.db")).await.unwrap())
    }

    /// Registers another gateway of the site.
    pub(crate) async fn another_gateway(&self, name: &str) -> GatewayId {
        let (clock, catalog) = (&*self.ports.clock, self.catalog().await);
        let other = GatewayId::fresh(clock, &*self.ports.entropy);
        catalog.register_gateway(other, name, clock.wall()).await.unwrap();
        catalog.close().await;
        other
    }

    pub(crate) async fn try_start(&self) -> Result<Arc<Engine>, EngineError> {
        self.try_start_as(self.gateway, "wal").await
    }

    /// An engine of another gateway, with a log of its own.
    pub(crate) async fn try_start_as(
        &self,
        gateway: GatewayId,
        log: &str,
    ) -> Result<Arc<Engine>, EngineError> {
        self.try_start_with(gateway, log, Arc::new(self.index(log))).await
    }

    pub(crate) async fn try_start_with(
        &self,
        gateway: GatewayId,
        log: &str,
        fingerprints: Arc<FingerprintIndex>,
    ) -> Result<Arc<Engine>, EngineError> {
        let catalog = self.catalog().await;
        let rows = catalog.nodes().await.unwrap();
        let nodes: Vec<_> = self.nodes.iter().map(|node| Arc::new(self.open_node(node))).collect();
        let profile = catalog.pool_settings().await.unwrap().profile;
        let settings = PoolSettings { profile, ..self.pool };
        let parts = EngineParts {
            site: self.id,
            gateway,
            catalog,
            pool: Arc::new(Pool::new(members(&rows, &nodes), settings, self.ports.clone())),
            domains: vec![Domain::new(
                DomainId::DEFAULT,
                SecretKey::from_bytes(DOMAIN_KEY),
                Encryption::Aes256Gcm,
            )],
            wal_key: SecretKey::from_bytes([2; 32]),
            wal_disk: Arc::new(FileDisk::open(&self.directory.path().join(log)).unwrap()),
            fingerprints,
            flash: self.flash.clone(),
            ports: self.ports.clone(),
        };
        Engine::start(self.config.clone(), parts).await
    }

    /// The index of the gateway with this log, on disk.
    pub(crate) fn index(&self, log: &str) -> FingerprintIndex {
        let config = IndexConfig {
            path: self.directory.path().join(format!("{log}-index")),
            cache_bytes: 4 << 20,
            containers_max: 1000,
        };
        FingerprintIndex::open(&config, self.id, &SecretKey::from_bytes([3; 32])).unwrap().0
    }

    pub(crate) async fn start(&self) -> Arc<Engine> {
        self.try_start().await.unwrap()
    }
}

/// A volume and the bytes it must show.
pub(crate) struct Checked {
    pub(crate) volume: Arc<Volume>,
    pub(crate) expected: Vec<u8>,
}

impl Checked {
    pub(crate) fn fresh(volume: Arc<Volume>) -> Self {
        let expected = vec![0; usize::try_from(volume.size_bytes()).unwrap()];
        Self { volume, expected }
    }

    /// What it must show, without the volume: an engine's files are free when nobody holds it any more.
    pub(crate) fn into_expected(self) -> Vec<u8> {
        self.expected
    }

    pub(crate) async fn write(&mut self, offset: u64, bytes: Vec<u8>) {
        let start = usize::try_from(offset).unwrap();
        self.expected[start..start + bytes.len()].copy_from_slice(&bytes);
        self.volume.write(offset, Bytes::from(bytes), WriteFlags::default()).await.unwrap();
    }

    pub(crate) async fn zero(&mut self, offset: u64, length: u64) {
        let start = usize::try_from(offset).unwrap();
        self.expected[start..start + usize::try_from(length).unwrap()].fill(0);
        self.volume.write_zeroes(offset, length, WriteFlags::default()).await.unwrap();
    }

    pub(crate) async fn check(&self, offset: u64, length: u64) {
        let read = self.volume.read(offset, u32::try_from(length).unwrap()).await.unwrap().to_vec();
        let start = usize::try_from(offset).unwrap();
        let expected = &self.expected[start..start + read.len()];
        let first = read.iter().zip(expected).position(|(read, expected)| read != expected);
        assert_eq!(first, None, "reading {length} bytes at {offset}: first difference at this offset");
        assert_eq!(read.len() as u64, length);
    }

    pub(crate) async fn check_all(&self) {
        let size = self.volume.size_bytes();
        let mut at = 0;
        while at < size {
            let length = MIB.min(size - at);
            self.check(at, length).await;
            at += length;
        }
    }
}

/// Reproducible numbers.
pub(crate) struct Dice(SeededEntropy);

impl Dice {
    pub(crate) fn new(seed: u64) -> Self {
        Self(SeededEntropy::new(seed))
    }

    pub(crate) fn below(&self, limit: u64) -> u64 {
        let mut bytes = [0; 8];
        self.0.fill(&mut bytes);
        u64::from_le_bytes(bytes) % limit
    }

    /// Bytes that compress about as well as text.
    pub(crate) fn bytes(&self, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        self.0.fill(&mut bytes);
        for byte in &mut bytes {
            *byte = b'a' + *byte % 16;
        }
        bytes
    }
}

/// Takes the volume as a gateway whose clock runs wild: it swears to have watched the lease for its whole term.
pub(crate) async fn seize(site: &Site, volume: VolumeId, name: &str) -> (GatewayId, Lease) {
    let other = site.another_gateway(name).await;
    let catalog = site.catalog().await;
    let now = site.ports.clock.wall();
    let acquire = |unrenewed| catalog.acquire_lease(volume, other, now, Duration::from_mins(1), unrenewed);
    let Err(CatalogError::LeaseHeld { stamp, .. }) = acquire(None).await else { panic!("it is held") };
    let lease = acquire(Some(stamp)).await.unwrap();
    catalog.close().await;
    (other, lease)
}
