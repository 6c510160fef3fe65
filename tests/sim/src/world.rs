//! What outlives the gateway's process, and the row of its lives.

use crate::life::{Ended, Purpose, live};
use crate::settings::{pick, request_policy};
use crate::trace::Trace;
use crate::volume::{Requests, SimVolume};
use cairn_metadata::memory::MemoryCatalog;
use cairn_metadata::{
    Catalog, CatalogError, FORMAT_VERSION, NewVolume, NodeRow, NodeState, SiteRow, VolumeName,
};
use cairn_model::{
    Durability, Entropy, GatewayId, LineageId, NodeId, Ports, SeededEntropy, SiteId, SystemClock, VolumeId,
    WallTime,
};
use cairn_segment_writer::DataNode;
use cairn_wal::testing::{Dice, MemoryDisk, TaskSpawn};
use object_store::memory::InMemory;
use std::sync::Arc;
use std::time::Duration;
use system_tests::oracle::verdict::Promise;

/// Wall time at the beginning.
const EPOCH: WallTime = WallTime::from_unix_millis(1_800_000_000_000);

/// See the module.
pub(crate) struct World {
    pub(crate) site: SiteId,
    pub(crate) gateway: GatewayId,
    pub(crate) node: NodeId,
    pub(crate) catalog: MemoryCatalog,
    pub(crate) store: Arc<InMemory>,
    pub(crate) disk: MemoryDisk,
    pub(crate) volumes: Vec<Arc<SimVolume>>,
    pub(crate) trace: Arc<Trace>,
    pub(crate) wall: WallTime,
}

/// What a run did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// Of everything that happened and when: equal for equal schedules.
    pub digest: String,
    pub events: u64,
    pub lives: u32,
    pub power_cuts: u32,
    pub requests: Requests,
}

/// Runs the schedule of `seed`. The error says what promise was broken, and the last events before.
pub fn run(seed: u64) -> Result<Report, String> {
    crate::panics::watch();
    let dice = Dice::new(seed);
    let mut world = World::new(&dice);
    let mut report =
        Report { digest: String::new(), events: 0, lives: 0, power_cuts: 0, requests: Requests::default() };
    let mut purposes = vec![Purpose::Crash; usize::try_from(1 + dice.below(5)).expect("few lives")];
    purposes.extend([Purpose::Order, Purpose::CheckOnly]);
    // Since the last check, unsynced sectors were lost.
    let mut powerless = false;
    for purpose in purposes {
        let promise = if powerless { Promise::Flushed } else { Promise::Acknowledged };
        let ended = live(&world, dice.below(u64::MAX), purpose, promise);
        report.lives += 1;
        world.pass(&ended);
        let Ended { checked, sync_failed, result, .. } = ended;
        if let Err(finding) = result {
            let (life, last) = (report.lives, world.trace.last());
            return Err(format!("seed {seed}, life {life}: {finding}\nthe last events:\n{last}"));
        }
        powerless = (powerless && !checked) || sync_failed;
        if purpose == Purpose::Crash && dice.percent(60) {
            world.disk.lose_power(pick(&dice, &[0, 20, 50, 90, 100]));
            powerless = true;
            report.power_cuts += 1;
        }
        world.disk.restart();
    }
    for volume in &world.volumes {
        report.requests = report.requests.plus(volume.requests());
    }
    (report.digest, report.events) = (world.trace.digest(), world.trace.events());
    Ok(report)
}

impl Requests {
    fn plus(self, other: Self) -> Self {
        Self {
            writes: self.writes + other.writes,
            flushes: self.flushes + other.flushes,
            reads: self.reads + other.reads,
            unanswered: self.unanswered + other.unanswered,
        }
    }
}

impl World {
    /// A site with empty volumes.
    fn new(dice: &Dice) -> Self {
        let entropy: Arc<dyn Entropy> = Arc::new(SeededEntropy::new(dice.below(u64::MAX)));
        let identity = || {
            let mut bytes = [0; 16];
            entropy.fill(&mut bytes);
            bytes
        };
        let site = SiteId::from_bytes(identity());
        let gateway = GatewayId::from_bytes(identity());
        let volumes = (1..=1 + dice.below(3))
            .map(|number| Arc::new(SimVolume::new(number, pick(dice, &[512, 1000, 2048]))))
            .collect();
        let store = Arc::new(InMemory::new());
        let catalog = MemoryCatalog::new();
        // Nothing waits for a clock here; the lives have their own.
        let ports = Ports {
            clock: Arc::new(SystemClock::new()),
            entropy: Arc::clone(&entropy),
            spawn: Arc::new(TaskSpawn::default()),
        };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build();
        let runtime = runtime.expect("a runtime of one thread");
        let world = Self {
            site,
            gateway,
            node: NodeId::from_bytes([0; 16]),
            catalog,
            store,
            disk: MemoryDisk::new(dice.below(u64::MAX)),
            volumes,
            trace: Arc::default(),
            wall: EPOCH,
        };
        let node = runtime.block_on(async {
            let store = Arc::clone(&world.store) as _;
            let attached = DataNode::attach_store(store, "memory", site, request_policy(), ports.clone());
            let node = attached.await.expect("an empty store takes a marker").id();
            world.fill_catalog(node, &identity).await.expect("an empty catalog takes a site");
            node
        });
        Self { node, ..world }
    }

    async fn fill_catalog(&self, node: NodeId, identity: &impl Fn() -> [u8; 16]) -> Result<(), CatalogError> {
        let catalog = &self.catalog;
        let site = SiteRow {
            id: self.site,
            name: "sim".to_owned(),
            created_at: EPOCH,
            format_version: FORMAT_VERSION,
        };
        catalog.create_site(&site).await?;
        catalog.register_gateway(self.gateway, "sim", EPOCH).await?;
        let row = NodeRow {
            id: node,
            name: "memory".to_owned(),
            url: "file:///memory".to_owned(),
            domain: None,
            state: NodeState::Active,
            created_at: EPOCH,
            options: "{}".to_owned(),
        };
        catalog.add_node(&row).await?;
        for volume in &self.volumes {
            let new = NewVolume {
                id: VolumeId::from_bytes(identity()),
                name: VolumeName::new(&volume.name()).expect("a plain name"),
                size_bytes: volume.sectors * crate::stamp::SECTOR as u64,
                durability: Durability::Flush,
                lineage: LineageId::from_bytes(identity()),
                compress: true,
                dedupe: false,
                read_only: false,
                options: "{}".to_owned(),
                created_at: EPOCH,
            };
            catalog.create_volume(&new).await?;
        }
        Ok(())
    }

    /// Lets the wall clock go on.
    fn pass(&mut self, ended: &Ended) {
        let pause = Duration::from_millis(100);
        let passed = u64::try_from((ended.lived + pause).as_millis()).expect("a life is short");
        self.wall = WallTime::from_unix_millis(self.wall.unix_millis() + passed);
    }
}
