//! One life of a gateway's process: start, serve guests, end.

use crate::attachment::Attachment;
use crate::clock::{HostClocks, VirtualClock};
use crate::faults::Faults;
use crate::guest::Shared;
use crate::limits::Part;
use crate::settings::{engine_config, millis, pick, request_policy};
use crate::site::{OTHER_DOMAIN, SimSite};
use cairn_engine::{CpuBudget, Engine, EngineConfig, EngineError, EngineParts, members};
use cairn_fingerprints::FingerprintIndex;
use cairn_flash::SealedCache;
use cairn_metadata::Catalog;
use cairn_model::crypto::{Encryption, SecretKey};
use cairn_model::{DomainId, Entropy, ErrorKind, GatewayId, Kinded, Monotonic, Ports, SeededEntropy};
use cairn_segment_writer::testing::FaultStore;
use cairn_segment_writer::{DataNode, Domain, Pool, PoolSettings};
use cairn_wal::WalError;
use cairn_wal::testing::{Dice, MemoryDisk, TaskSpawn};
use parking_lot::Mutex;
use std::fmt::Display;
use std::future::pending;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinSet;

use crate::store::SlowStore;

/// Nothing takes this long unless something waits for ever.
const LIFE_MAX: Duration = Duration::from_hours(1);
const GUESTS_MS_MAX: u64 = 3000;
const WALL_JUMP_MS_MAX: u64 = 7_200_000;
const BUDGET_PAUSE_MS_MAX: u64 = 400;
const POOL_PAUSE_MS_MAX: u64 = 1500;

/// How a life is to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// Somewhere, by the dice.
    Crash,
    /// By shutdown, without any fault.
    Order,
    /// By shutdown, after a check.
    CheckOnly,
}

/// What a process finds on its host.
pub(crate) struct Machine {
    pub(crate) gateway: GatewayId,
    pub(crate) disk: MemoryDisk,
    /// What the process before has left: it may know what is not in the catalog, and lack what is.
    pub(crate) index: Arc<FingerprintIndex>,
    pub(crate) flash: Option<Arc<dyn SealedCache>>,
    pub(crate) clocks: Arc<HostClocks>,
    /// Of a hundred lives: in which the catalog is away for a while.
    pub(crate) catalog_outages: u64,
    /// Something was done to the disk that no log survives whole.
    pub(crate) log_may_be_damaged: bool,
}

/// See the module.
pub(crate) struct Life {
    site: Arc<SimSite>,
    gateway: GatewayId,
    purpose: Purpose,
    dice: Dice,
    disk: MemoryDisk,
    index: Arc<FingerprintIndex>,
    flash: Option<Arc<dyn SealedCache>>,
    clocks: Arc<HostClocks>,
    log_may_be_damaged: bool,
    ports: Ports,
    shared: Arc<Shared>,
    /// Outlives the runtime, to be taken apart afterwards.
    engine: Mutex<Option<Arc<Engine>>>,
}

impl Life {
    /// To be called inside the runtime of the process.
    pub(crate) fn new(site: Arc<SimSite>, on: Machine, now: Duration, seed: u64, purpose: Purpose) -> Self {
        let Machine { gateway, disk, index, flash, clocks, catalog_outages, log_may_be_damaged } = on;
        let dice = Dice::new(seed);
        let clock = Arc::new(VirtualClock::starting_at(now, Arc::clone(&clocks)));
        let entropy: Arc<dyn Entropy> = Arc::new(SeededEntropy::new(dice.below(u64::MAX)));
        let for_faults = Dice::new(dice.below(u64::MAX));
        let faults = match purpose {
            Purpose::Crash => Faults::draw(for_faults, Arc::clone(&clock), &site.limits, catalog_outages),
            Purpose::Order | Purpose::CheckOnly => Faults::none(Arc::clone(&clock)),
        };
        // Files that complete at once let callers serve themselves; those that yield leave it to the log's thread.
        let disk = if dice.percent(50) { disk.at_once() } else { disk };
        let place = format!("gateway {}", &gateway.to_string()[..4]);
        let ports = Ports { clock: Arc::clone(&clock) as _, entropy, spawn: Arc::new(TaskSpawn::default()) };
        let shared =
            Arc::new(Shared { site: Arc::clone(&site), place, clock, faults, finding: Mutex::default() });
        let engine = Mutex::default();
        let flash = flash.filter(|_| site.limits.allow(Part::Flash));
        Self {
            site,
            gateway,
            purpose,
            dice,
            disk,
            index,
            flash,
            clocks,
            log_may_be_damaged,
            ports,
            shared,
            engine,
        }
    }

    pub(crate) fn clock(&self) -> &VirtualClock {
        &self.shared.clock
    }

    pub(crate) fn purpose(&self) -> Purpose {
        self.purpose
    }

    pub(crate) fn sync_failed(&self) -> bool {
        self.shared.faults.sync_failed()
    }

    pub(crate) fn finding(&self) -> Option<String> {
        self.shared.finding.lock().take()
    }

    pub(crate) fn has_started(&self) -> bool {
        self.engine.lock().is_some()
    }

    pub(crate) fn take_engine(&self) -> Option<Arc<Engine>> {
        self.engine.lock().take()
    }

    fn note(&self, event: &dyn Display) {
        self.shared.note(event);
    }

    fn is_troubled(&self) -> bool {
        self.purpose == Purpose::Crash
    }

    /// Until the process ends. An error is a finding.
    pub(crate) async fn run(self: Arc<Self>) -> Result<(), String> {
        tokio::select! {
            biased;
            () = self.disk.stopped() => Ok(()),
            () = self.shared.faults.end.notified() => Ok(()),
            ended = self.live() => ended,
            () = self.ports.clock.sleep(LIFE_MAX) => Err("something waits for ever".to_owned()),
        }
    }

    async fn live(&self) -> Result<(), String> {
        self.note(&format_args!("a life of {:?}", self.purpose));
        if self.is_troubled() && self.dice.percent(20) {
            self.disk.stop_after(self.dice.below(80));
        }
        let engine = match self.start().await {
            Ok(engine) => engine,
            Err(error) => return self.excuse(error, "the start").await,
        };
        *self.engine.lock() = Some(Arc::clone(&engine));
        if self.is_troubled() {
            return self.live_in_trouble(&engine).await;
        }
        self.serve(&engine, self.purpose == Purpose::Order, millis(&self.dice, GUESTS_MS_MAX)).await;
        if self.purpose == Purpose::Order {
            engine.destage().await.map_err(|error| format!("destage: {error}"))?;
            self.serve(&engine, false, Duration::ZERO).await;
        }
        engine.shutdown().await.map_err(|error| format!("shutdown: {error}"))?;
        self.gave_back();
        Ok(())
    }

    async fn live_in_trouble(&self, engine: &Arc<Engine>) -> Result<(), String> {
        self.arm();
        // Long enough, with two hosts, for the lease of the other to end.
        let terms = if self.site.is_contended { pick(&self.dice, &[3, 6]) } else { 0 };
        let lifetime = || millis(&self.dice, GUESTS_MS_MAX) + self.site.terms(&self.dice, 1 + terms);
        let (crash_time, guests_time) = (lifetime(), lifetime());
        tokio::select! {
            biased;
            () = self.crash_after(crash_time) => {}
            () = self.serve(engine, true, guests_time) => {}
        }
        if self.dice.percent(80) {
            self.note(&"crash");
            return Ok(());
        }
        self.note(&"shutdown");
        match engine.shutdown().await {
            Ok(()) => {
                self.gave_back();
                Ok(())
            }
            Err(error) => self.excuse(error, "shutdown").await,
        }
    }

    fn gave_back(&self) {
        for volume in self.site.volumes() {
            volume.was_given_back(self.gateway);
        }
    }

    async fn start(&self) -> Result<Arc<Engine>, EngineError> {
        let config = engine_config(&self.dice, self.site.lease_ttl);
        match self.try_start(config.clone()).await {
            Err(EngineError::LostWal(_)) if self.log_may_be_damaged => {
                self.note(&"the log is lost");
                self.start_without_log(config).await
            }
            Err(EngineError::Wal(error)) if self.log_may_be_damaged && is_damage(&error) => {
                self.note(&format_args!("the log is given up: {error}"));
                self.disk.wipe();
                self.start_without_log(config).await
            }
            started => started,
        }
    }

    async fn start_without_log(&self, config: EngineConfig) -> Result<Arc<Engine>, EngineError> {
        self.site.log_is_lost(self.gateway);
        self.try_start(EngineConfig { accept_lost_wal: true, ..config }).await
    }

    async fn try_start(&self, config: EngineConfig) -> Result<Arc<Engine>, EngineError> {
        let faults = Arc::clone(&self.shared.faults);
        let site = self.site.id;
        let nodes = (0..).zip(&self.site.nodes).map(|(number, node)| {
            let dice = Dice::new(self.dice.below(u64::MAX));
            let slow = SlowStore::new(Arc::clone(&node.store) as _, Arc::clone(&self.ports.clock), dice);
            let plan = Arc::clone(&faults);
            let store =
                Arc::new(FaultStore::new(Arc::new(slow), move |request| plan.of_store(number, request)));
            let (policy, ports) = (request_policy(), self.ports.clone());
            Arc::new(DataNode::open_store_lazily(store, &node.name, site, node.id, policy, ports))
        });
        let nodes: Vec<_> = nodes.collect();
        // As a program reads it before it starts an engine.
        let (rows, settings) = (self.site.catalog.nodes().await?, self.site.catalog.pool_settings().await?);
        let settings = PoolSettings { profile: settings.profile, ..PoolSettings::default() };
        let parts = EngineParts {
            site,
            gateway: self.gateway,
            catalog: Arc::new(self.site.catalog.with_plan(faults.of_catalog())),
            pool: Arc::new(Pool::new(members(&rows, &nodes), settings, self.ports.clone())),
            domains: vec![
                Domain::new(DomainId::DEFAULT, SecretKey::from_bytes([1; 32]), Encryption::Aes256Gcm),
                Domain::new(OTHER_DOMAIN, SecretKey::from_bytes([3; 32]), Encryption::Off),
            ],
            wal_key: SecretKey::from_bytes([2; 32]),
            wal_disk: Arc::new(self.disk.clone()),
            fingerprints: Arc::clone(&self.index),
            flash: self.flash.clone(),
            ports: self.ports.clone(),
        };
        Engine::start(config, parts).await
    }

    /// What may fail ends the life; anything else is a finding.
    async fn excuse(&self, error: EngineError, doing: &str) -> Result<(), String> {
        self.note(&format_args!("{doing} failed: {error}"));
        if error.to_string().contains("interrupted") {
            // The disk has stopped; so will the process.
            return pending().await;
        }
        let is_excused =
            self.is_troubled() && (error.kind() == ErrorKind::Unavailable || self.shared.log_is_gone(&error));
        if is_excused { Ok(()) } else { Err(format!("{doing} failed: {error}")) }
    }

    /// Decides where the process ends, if not by time.
    fn arm(&self) {
        // Two hosts need time for each other.
        match self.dice.below(if self.site.is_contended { 8 } else { 4 }) {
            0 | 1 => self.disk.stop_after(self.dice.below(pick(&self.dice, &[20, 200, 1000]))),
            2 => self.shared.faults.end_in_a_call(),
            _ => {}
        }
        if self.dice.percent(15) && self.site.limits.allow(Part::FailedSyncs) {
            self.shared.faults.fail_a_sync(&self.disk);
        }
        if self.dice.percent(5) && self.site.limits.allow(Part::LyingSyncs) {
            self.note(&"the disk lies about its syncs");
            self.disk.lie();
        }
    }

    /// A moment, and then some steps of whatever runs.
    async fn crash_after(&self, time: Duration) {
        self.ports.clock.sleep(time).await;
        for _ in 0..self.dice.below(40) {
            tokio::task::yield_now().await;
        }
    }

    /// Attaches every volume and checks it; then guests work on it for a while.
    async fn serve(&self, engine: &Arc<Engine>, guests: bool, lifetime: Duration) {
        let until = self.ports.clock.now().plus(lifetime);
        let mut attachments = JoinSet::new();
        if let Err(finding) = self.site.find_clones().await {
            self.shared.found(finding);
        }
        for volume in self.site.volumes().into_iter().filter(|volume| volume.is_there()) {
            let attachment = Attachment {
                shared: Arc::clone(&self.shared),
                gateway: self.gateway,
                engine: Arc::clone(engine),
                volume,
                dice: Dice::new(self.dice.below(u64::MAX)),
                until: guests.then_some(until),
                must_come: !self.is_troubled(),
            };
            attachments.spawn(attachment.live());
        }
        if self.is_troubled() && self.dice.percent(30) && self.site.limits.allow(Part::WallClocks) {
            attachments.spawn(self.wall_jump(until));
        }
        if self.dice.percent(30) {
            attachments.spawn(self.budget_changes(engine, until));
        }
        if self.is_troubled() && self.site.nodes.len() > 1 {
            attachments.spawn(self.pool_changes(engine, until));
        }
        while attachments.join_next().await.is_some() {}
    }

    /// An operator who changes the CPU budget now and then, until `until`.
    fn budget_changes(&self, engine: &Arc<Engine>, until: Monotonic) -> impl Future<Output = ()> + 'static {
        let (clock, shared, engine) =
            (Arc::clone(&self.ports.clock), Arc::clone(&self.shared), Arc::clone(engine));
        let dice = Dice::new(self.dice.below(u64::MAX));
        async move {
            loop {
                clock.sleep(millis(&dice, BUDGET_PAUSE_MS_MAX)).await;
                if clock.now() >= until {
                    return;
                }
                let budget = pick(&dice, &CpuBudget::ALL);
                shared.note(&format_args!("the CPU budget is {}", budget.name()));
                if let Err(error) = engine.set_cpu_budget(budget) {
                    shared.found(format!("the CPU budget cannot be changed: {error}"));
                }
            }
        }
    }

    /// An operator who changes the profile and drains nodes now and then, until `until`.
    fn pool_changes(&self, engine: &Arc<Engine>, until: Monotonic) -> impl Future<Output = ()> + 'static {
        let (clock, shared, engine) =
            (Arc::clone(&self.ports.clock), Arc::clone(&self.shared), Arc::clone(engine));
        let (site, dice) = (Arc::clone(&self.site), Dice::new(self.dice.below(u64::MAX)));
        async move {
            loop {
                clock.sleep(millis(&dice, POOL_PAUSE_MS_MAX)).await;
                if clock.now() >= until {
                    return;
                }
                match site.change_pool(&dice).await {
                    Ok(change) => shared.note(&change),
                    Err(error) => shared.found(format!("the pool cannot be changed: {error}")),
                }
                engine.pool_changed();
            }
        }
    }

    /// The host's wall clock jumps, some time before `until`.
    fn wall_jump(&self, until: Monotonic) -> impl Future<Output = ()> + 'static {
        let (clock, clocks, shared) =
            (Arc::clone(&self.ports.clock), Arc::clone(&self.clocks), Arc::clone(&self.shared));
        let by = i64::try_from(self.dice.below(WALL_JUMP_MS_MAX)).expect("a few hours");
        let by = if self.dice.percent(50) { by } else { -by };
        let share = u32::try_from(self.dice.below(100)).expect("a percentage");
        async move {
            let wait = until.since(clock.now()) * share / 100;
            clock.sleep(wait).await;
            shared.note(&format_args!("the wall clock jumps by {by} ms"));
            clocks.jump(by);
        }
    }
}

fn is_damage(error: &WalError) -> bool {
    matches!(error, WalError::Corrupt { .. } | WalError::MissingFile { .. })
}
