//! What the hosts share: a catalog, a pool and the volumes in it.

use crate::clock::{HostClocks, PACE, VirtualClock};
use crate::clones::{Clones, Volumes};
use crate::limits::{Limits, Part};
use crate::settings::{millis, pick, request_policy};
use crate::stamp::SECTOR;
use crate::trace::Trace;
use crate::volume::{SimVolume, VolumeHabits};
use cairn_engine::VolumeOptions;
use cairn_metadata::memory::MemoryCatalog;
use cairn_metadata::{
    Catalog, CatalogError, DomainRow, FORMAT_VERSION, KeyRow, NewVolume, NodeChange, NodeRow, NodeState,
    PoolSettings, SiteRow, VolumeName,
};
use cairn_model::crypto::{Encryption, SecretKey};
use cairn_model::{
    DomainId, Durability, Entropy, GatewayId, LineageId, NodeId, Ports, Profile, SeededEntropy, SiteId,
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

/// A data node: what it holds outlives everything.
pub(crate) struct SimNode {
    pub(crate) id: NodeId,
    pub(crate) name: String,
    pub(crate) store: Arc<InMemory>,
}

/// Profiles that a pool changes between.
const PROFILES: [&str; 5] = ["single", "replica:2", "ec:2+1", "replica:3", "ec:2+2"];

/// See the module.
pub(crate) struct SimSite {
    pub(crate) id: SiteId,
    pub(crate) catalog: MemoryCatalog,
    pub(crate) nodes: Vec<SimNode>,
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
        let (has_many, many) = (dice.percent(60), 2 + dice.below(4));
        let nodes = if has_many && limits.allow(Part::ManyNodes) { many } else { 1 };
        let first_nodes = dice.below(u64::MAX);
        let mut site = Self {
            id,
            catalog,
            nodes: Vec::new(),
            volumes: Mutex::new(volumes),
            clones: Mutex::default(),
            first_clone,
            trace: Arc::new(Trace::new(*limits == Limits::NONE)),
            limits: limits.clone(),
            lease_ttl: pick(dice, &[Duration::from_secs(1), Duration::from_secs(4)]),
            is_contended: gateways.len() > 1,
        };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
        let first_nodes = Dice::new(first_nodes);
        let found = site.found(&entropy, &gateways, nodes, &first_nodes);
        runtime.expect("a runtime of one thread").block_on(found);
        (site, gateways)
    }

    /// Makes stores data nodes and fills the catalog.
    async fn found(&mut self, entropy: &Arc<dyn Entropy>, gateways: &[GatewayId], nodes: u64, dice: &Dice) {
        // The identities of nodes, which decide what is placed where, have the time in them: it is always the same.
        let clock = VirtualClock::starting_at(Duration::ZERO, Arc::new(HostClocks::new(0, PACE)));
        let ports = Ports {
            clock: Arc::new(clock),
            entropy: Arc::clone(entropy),
            spawn: Arc::new(TaskSpawn::default()),
        };
        for number in 0..nodes {
            let (name, store) = (format!("node-{number}"), Arc::new(InMemory::new()));
            let place = Arc::clone(&store) as _;
            let attached = DataNode::attach_store(place, &name, self.id, request_policy(), ports.clone());
            let id = attached.await.expect("an empty store takes a marker").id();
            self.nodes.push(SimNode { id, name, store });
        }
        self.fill_catalog(entropy, gateways).await.expect("an empty catalog takes a site");
        self.change_pool(dice).await.expect("the catalog takes a profile");
    }

    /// Another profile, and other nodes that are drained: never so many that there would be too few for the profile. What was done.
    pub(crate) async fn change_pool(&self, dice: &Dice) -> Result<String, CatalogError> {
        let active = 1 + usize::try_from(dice.below(self.nodes.len() as u64)).expect("few nodes");
        let profiles = PROFILES.map(|text| text.parse::<Profile>().expect("they are profiles"));
        let fitting: Vec<Profile> =
            profiles.into_iter().filter(|profile| profile.shards() <= active).collect();
        let profile = pick(dice, &fitting);
        let first = usize::try_from(dice.below(self.nodes.len() as u64)).expect("few nodes");
        let order: Vec<_> = self.nodes.iter().cycle().skip(first).take(self.nodes.len()).collect();
        let (used, drained) = order.split_at(active);
        for node in used {
            let change = NodeChange { state: Some(NodeState::Active), ..NodeChange::default() };
            self.catalog.update_node(node.id, &change).await?;
        }
        self.catalog.set_pool_settings(&PoolSettings { profile }).await?;
        for node in drained {
            let change = NodeChange { state: Some(NodeState::Draining), ..NodeChange::default() };
            self.catalog.update_node(node.id, &change).await?;
        }
        Ok(format!("the pool is {profile} on {active} of {} nodes", self.nodes.len()))
    }

    async fn fill_catalog(
        &self,
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
        for node in &self.nodes {
            let row = NodeRow {
                id: node.id,
                name: node.name.clone(),
                url: format!("file:///{}", node.name),
                domain: None,
                state: NodeState::Active,
                created_at,
                options: "{}".to_owned(),
                capacity_bytes: None,
            };
            catalog.add_node(&row).await?;
        }
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
