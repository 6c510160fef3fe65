//! What the hosts share: a catalog, a pool and the volumes in it.

use crate::clones::{Clones, Volumes};
use crate::limits::Limits;
use crate::settings::{millis, pick, request_policy};
use crate::stamp::SECTOR;
use crate::trace::Trace;
use crate::volume::{SimVolume, VolumeHabits};
use cairn_engine::VolumeOptions;
use cairn_metadata::memory::MemoryCatalog;
use cairn_metadata::{
    Catalog, CatalogError, DomainRow, FORMAT_VERSION, KeyRow, NewVolume, NodeRow, NodeState, SiteRow,
    VolumeName,
};
use cairn_model::crypto::{Encryption, SecretKey};
use cairn_model::{
    DomainId, Durability, Entropy, GatewayId, LineageId, NodeId, Ports, SeededEntropy, SiteId, SystemClock,
    VolumeId, WallTime,
};
use cairn_segment_writer::DataNode;
use cairn_wal::testing::{Dice, TaskSpawn};
use object_store::memory::InMemory;
use parking_lot::Mutex;
use std::sync::Arc;
use std::time::Duration;
use system_tests::oracle::verdict::Promise;

const BEGINNING: WallTime = WallTime::from_unix_millis(1_800_000_000_000);

/// Not encrypted: the rules of sharing are the same.
pub(crate) const OTHER_DOMAIN: DomainId = DomainId::from_bytes([7; 16]);

/// See the module.
pub(crate) struct SimSite {
    pub(crate) id: SiteId,
    pub(crate) node: NodeId,
    pub(crate) catalog: MemoryCatalog,
    pub(crate) store: Arc<InMemory>,
    /// Those of the beginning, and clones.
    pub(crate) volumes: Volumes,
    pub(crate) clones: Mutex<Clones>,
    /// Names of clones begin after it.
    pub(crate) first_clone: u64,
    pub(crate) trace: Arc<Trace>,
    pub(crate) limits: Limits,
    pub(crate) lease_ttl: Duration,
    /// More than one gateway wants the volumes.
    pub(crate) is_contended: bool,
}

impl SimSite {
    /// A site with empty volumes and so many gateways.
    pub(crate) fn new(dice: &Dice, limits: &Limits, gateways: usize) -> (Self, Vec<GatewayId>) {
        let entropy: Arc<dyn Entropy> = Arc::new(SeededEntropy::new(dice.below(u64::MAX)));
        let identity = || {
            let mut bytes = [0; 16];
            entropy.fill(&mut bytes);
            bytes
        };
        let id = SiteId::from_bytes(identity());
        let gateways: Vec<_> = (0..gateways).map(|_| GatewayId::from_bytes(identity())).collect();
        let catalog = MemoryCatalog::new();
        let numbers = 1..=1 + dice.below(3);
        let volumes = numbers.map(|number| {
            let sectors = pick(dice, &[512, 1000, 2048]);
            let habits = VolumeHabits {
                always: dice.percent(15),
                dedupe: dice.percent(90),
                verify: dice.percent(20),
                domain: if dice.percent(75) { DomainId::DEFAULT } else { OTHER_DOMAIN },
            };
            let id = VolumeId::from_bytes(identity());
            Arc::new(SimVolume::new(id, number, sectors, habits, catalog.clone()))
        });
        let volumes: Vec<_> = volumes.collect();
        let first_clone = volumes.len() as u64;
        let volumes =
            volumes.into_iter().take(usize::try_from(limits.volumes).unwrap_or(usize::MAX)).collect();
        let site = Self {
            id,
            node: NodeId::from_bytes([0; 16]),
            catalog,
            store: Arc::new(InMemory::new()),
            volumes: Mutex::new(volumes),
            clones: Mutex::default(),
            first_clone,
            trace: Arc::new(Trace::new(*limits == Limits::NONE)),
            limits: limits.clone(),
            lease_ttl: pick(dice, &[Duration::from_secs(1), Duration::from_secs(4)]),
            is_contended: gateways.len() > 1,
        };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build();
        let node = runtime.expect("a runtime of one thread").block_on(site.found(&entropy, &gateways));
        (Self { node, ..site }, gateways)
    }

    /// Makes the store a data node and fills the catalog.
    async fn found(&self, entropy: &Arc<dyn Entropy>, gateways: &[GatewayId]) -> NodeId {
        // Nothing waits for a clock here; the processes have their own.
        let ports = Ports {
            clock: Arc::new(SystemClock::new()),
            entropy: Arc::clone(entropy),
            spawn: Arc::new(TaskSpawn::default()),
        };
        let store = Arc::clone(&self.store) as _;
        let attached = DataNode::attach_store(store, "memory", self.id, request_policy(), ports);
        let node = attached.await.expect("an empty store takes a marker").id();
        self.fill_catalog(node, entropy, gateways).await.expect("an empty catalog takes a site");
        node
    }

    async fn fill_catalog(
        &self,
        node: NodeId,
        entropy: &Arc<dyn Entropy>,
        gateways: &[GatewayId],
    ) -> Result<(), CatalogError> {
        let (catalog, created_at) = (&self.catalog, BEGINNING);
        let format_version = FORMAT_VERSION;
        catalog
            .create_site(&SiteRow { id: self.id, name: "sim".to_owned(), created_at, format_version })
            .await?;
        for (number, gateway) in gateways.iter().enumerate() {
            catalog.register_gateway(*gateway, &format!("host-{number}"), created_at).await?;
        }
        let row = NodeRow {
            id: node,
            name: "memory".to_owned(),
            url: "file:///memory".to_owned(),
            domain: None,
            state: NodeState::Active,
            created_at,
            options: "{}".to_owned(),
        };
        catalog.add_node(&row).await?;
        let key = SecretKey::from_bytes([3; 32]);
        let key = KeyRow {
            purpose: DomainRow::key_purpose(OTHER_DOMAIN),
            key_id: key.id(),
            wrapped_by: key.id(),
            wrapped: Vec::new(),
            created_at,
        };
        let name = "other".parse().expect("a plain name");
        let domain = DomainRow { id: OTHER_DOMAIN, name, encryption: Encryption::Off, created_at };
        catalog.create_domain(&domain, &key).await?;
        for volume in self.volumes() {
            let mut lineage = [0; 16];
            entropy.fill(&mut lineage);
            let new = NewVolume {
                id: volume.id,
                name: VolumeName::new(volume.name()).expect("a plain name"),
                size_bytes: volume.sectors * SECTOR as u64,
                durability: if volume.habits.always { Durability::Always } else { Durability::Flush },
                lineage: LineageId::from_bytes(lineage),
                compress: true,
                dedupe: volume.habits.dedupe,
                read_only: false,
                options: VolumeOptions { verify_dedupe: volume.habits.verify, ..VolumeOptions::default() }
                    .encode(),
                domain: volume.habits.domain,
                created_at,
            };
            catalog.create_volume(&new).await?;
        }
        Ok(())
    }

    /// A time of up to so many terms of a lease.
    pub(crate) fn terms(&self, dice: &Dice, terms_max: u64) -> Duration {
        millis(dice, terms_max * u64::try_from(self.lease_ttl.as_millis()).expect("some seconds"))
    }

    pub(crate) fn log_is_lost(&self, gateway: GatewayId) {
        for volume in self.volumes() {
            volume.log_is_lost(gateway);
        }
    }

    /// Something happened to the host of a gateway that only `promise` survives.
    pub(crate) fn excuse(&self, gateway: GatewayId, promise: Promise) {
        for volume in self.volumes() {
            volume.excuse(gateway, promise);
        }
    }
}
