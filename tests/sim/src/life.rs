//! One life of the gateway's process: start, check what is there, serve guests, end.
//!
//! A life has a runtime of its own. Dropping it ends every task at the await where it stands, as the end of a process
//! does; only the world is left.

use crate::clock::VirtualClock;
use crate::faults::Faults;
use crate::guest::{Guest, Shared};
use crate::settings::{Habits, engine_config, millis, pick, request_policy};
use crate::store::SlowStore;
use crate::volume::CheckError;
use crate::world::World;
use cairn_engine::{Engine, EngineError, EngineParts};
use cairn_model::crypto::SecretKey;
use cairn_model::{Clock, Entropy, ErrorKind, Kinded, Ports, SeededEntropy};
use cairn_segment_writer::testing::FaultStore;
use cairn_segment_writer::{DataNode, Pool};
use cairn_wal::testing::{Dice, MemoryDisk, TaskSpawn};
use parking_lot::Mutex;
use std::future::pending;
use std::sync::Arc;
use std::time::Duration;
use system_tests::oracle::verdict::Promise;
use tokio::task::JoinSet;

/// Nothing takes this long unless something waits for ever.
const LIFE_MAX: Duration = Duration::from_hours(1);
const GUESTS_MS_MAX: u64 = 3000;

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

/// What a life leaves.
pub(crate) struct Ended {
    pub(crate) lived: Duration,
    /// The volumes were checked, and hold what the oracle now takes for their base.
    pub(crate) checked: bool,
    pub(crate) sync_failed: bool,
    pub(crate) result: Result<(), String>,
}

struct Life<'w> {
    world: &'w World,
    purpose: Purpose,
    promise: Promise,
    dice: Dice,
    disk: MemoryDisk,
    ports: Ports,
    shared: Arc<Shared>,
    /// Outlives the runtime, to be taken apart afterwards.
    engine: Mutex<Option<Arc<Engine>>>,
    checked: Mutex<bool>,
}

/// Lives one life of `world` by the dice of `seed`.
pub(crate) fn live(world: &World, seed: u64, purpose: Purpose, promise: Promise) -> Ended {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    let runtime = runtime.expect("a runtime of one thread");
    let (life, result, lived) = runtime.block_on(async {
        let life = Life::new(world, seed, purpose, promise);
        let clock = Arc::clone(&life.ports.clock);
        let result = tokio::select! {
            biased;
            () = life.disk.stopped() => Ok(()),
            () = life.shared.faults.end.notified() => Ok(()),
            ended = life.run() => ended,
            () = clock.sleep(LIFE_MAX) => Err("something waits for ever".to_owned()),
        };
        (life, result, clock.now().since_origin())
    });
    drop(runtime);
    if let Some(engine) = life.engine.lock().take() {
        take_apart(&engine);
    }
    let finding = life.shared.finding.lock().take().or_else(crate::panics::first);
    let result = finding.map_or(result, Err);
    Ended { lived, checked: *life.checked.lock(), sync_failed: life.shared.faults.sync_failed(), result }
}

/// Breaks the engine's circles of references: nothing of it runs any more, so this only frees memory.
fn take_apart(engine: &Engine) {
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime of one thread");
    runtime.block_on(engine.abandon());
}

impl<'w> Life<'w> {
    fn new(world: &'w World, seed: u64, purpose: Purpose, promise: Promise) -> Self {
        let dice = Dice::new(seed);
        let clock: Arc<dyn Clock> = Arc::new(VirtualClock::starting_at(world.wall));
        let entropy: Arc<dyn Entropy> = Arc::new(SeededEntropy::new(dice.below(u64::MAX)));
        let spawn = Arc::new(TaskSpawn::default());
        let faults = Faults::draw(Dice::new(dice.below(u64::MAX)), Arc::clone(&clock));
        faults.set_calm(purpose != Purpose::Crash);
        // Files that complete at once let callers serve themselves; those that yield leave it to the log's thread.
        let disk = if dice.percent(50) { world.disk.clone().at_once() } else { world.disk.clone() };
        let trace = Arc::clone(&world.trace);
        let shared = Shared { clock: Arc::clone(&clock), faults, trace, finding: Mutex::default() };
        Self {
            world,
            purpose,
            promise,
            dice,
            disk,
            ports: Ports { clock, entropy, spawn },
            shared: Arc::new(shared),
            engine: Mutex::default(),
            checked: Mutex::new(false),
        }
    }

    fn note(&self, event: &str) {
        self.shared.trace.note(&*self.ports.clock, &event);
    }

    /// An error is a finding.
    async fn run(&self) -> Result<(), String> {
        let faults = &self.shared.faults;
        self.note(&format!("a life of {:?} after {:?}", self.purpose, self.promise));
        if self.purpose == Purpose::Crash && self.dice.percent(20) {
            self.disk.stop_after(self.dice.below(80));
        }
        let engine = match self.start().await {
            Ok(engine) => engine,
            Err(error) => return self.excuse(error, "the start").await,
        };
        *self.engine.lock() = Some(Arc::clone(&engine));
        if let [not_served, ..] = engine.not_served() {
            // The catalog was away for it. Whoever runs the gateway starts it again.
            self.note(&not_served.reason);
            let is_excused = self.purpose == Purpose::Crash && not_served.reason.contains("does not answer");
            return if is_excused { Ok(()) } else { Err(not_served.reason.clone()) };
        }
        faults.set_calm(true);
        self.check_all(&engine, self.promise).await?;
        *self.checked.lock() = true;
        faults.set_calm(self.purpose != Purpose::Crash);
        match self.purpose {
            Purpose::Crash => {
                self.arm();
                let lifetime = millis(&self.dice, GUESTS_MS_MAX);
                tokio::select! {
                    biased;
                    () = self.crash_time() => {}
                    () = self.serve(&engine, lifetime) => {}
                }
                self.note("crash");
                return Ok(());
            }
            Purpose::Order => {
                self.serve(&engine, millis(&self.dice, GUESTS_MS_MAX)).await;
                self.check_all(&engine, Promise::Acknowledged).await?;
                engine.destage().await.map_err(|error| format!("destage: {error}"))?;
                self.check_all(&engine, Promise::Acknowledged).await?;
            }
            Purpose::CheckOnly => {}
        }
        engine.shutdown().await.map_err(|error| format!("shutdown: {error}"))
    }

    async fn start(&self) -> Result<Arc<Engine>, EngineError> {
        let faults = Arc::clone(&self.shared.faults);
        let dice = Dice::new(self.dice.below(u64::MAX));
        let slow = SlowStore::new(Arc::clone(&self.world.store) as _, Arc::clone(&self.ports.clock), dice);
        let plan = Arc::clone(&faults);
        let store = Arc::new(FaultStore::new(Arc::new(slow), move |request| plan.of_store(request)));
        let (site, node) = (self.world.site, self.world.node);
        let node = DataNode::open_store(store, "memory", site, node, request_policy(), self.ports.clone());
        let parts = EngineParts {
            site,
            gateway: self.world.gateway,
            catalog: Arc::new(self.world.catalog.with_plan(faults.of_catalog())),
            pool: Arc::new(Pool::single(node.await?)),
            domain_key: SecretKey::from_bytes([1; 32]),
            wal_key: SecretKey::from_bytes([2; 32]),
            wal_disk: Arc::new(self.disk.clone()),
            ports: self.ports.clone(),
        };
        Engine::start(engine_config(&self.dice), parts).await
    }

    /// What may fail ends the life; anything else is a finding.
    async fn excuse(&self, error: EngineError, doing: &str) -> Result<(), String> {
        self.note(&format!("{doing} failed: {error}"));
        if error.to_string().contains("interrupted") {
            // The disk has stopped; so will the process.
            return pending().await;
        }
        if self.purpose == Purpose::Crash && error.kind() == ErrorKind::Unavailable {
            return Ok(());
        }
        Err(format!("{doing} failed: {error}"))
    }

    async fn check_all(&self, engine: &Engine, promise: Promise) -> Result<(), String> {
        for volume in &self.world.volumes {
            let device = engine.volume(&volume.name()).ok_or_else(|| format!("{} is gone", volume.name()))?;
            match volume.check(&device, promise).await {
                Ok(seen) => self.note(&format!("{} = {seen:x}", volume.name())),
                Err(CheckError::Finding(finding)) => return Err(finding),
                Err(CheckError::Engine(error)) => {
                    self.excuse(error, "a check").await?;
                    return Err("a check failed without any fault".to_owned());
                }
            }
        }
        Ok(())
    }

    /// Decides where the process ends, if not by time.
    fn arm(&self) {
        match self.dice.below(4) {
            0 | 1 => self.disk.stop_after(self.dice.below(pick(&self.dice, &[20, 200, 1000]))),
            2 => self.shared.faults.end_in_a_call(),
            _ => {}
        }
        if self.dice.percent(15) {
            self.shared.faults.fail_a_sync(&self.disk);
        }
    }

    /// A moment, and then some steps of whatever runs.
    async fn crash_time(&self) {
        self.ports.clock.sleep(millis(&self.dice, GUESTS_MS_MAX)).await;
        for _ in 0..self.dice.below(40) {
            tokio::task::yield_now().await;
        }
    }

    async fn serve(&self, engine: &Engine, lifetime: Duration) {
        let until = self.ports.clock.now().plus(lifetime);
        let mut guests = JoinSet::new();
        for volume in &self.world.volumes {
            let device = engine.volume(&volume.name()).expect("it was checked");
            for number in 0..=self.dice.below(3) {
                let dice = Dice::new(self.dice.below(u64::MAX));
                let habits = Habits::draw(&dice);
                let guest = Guest {
                    number: usize::try_from(number).expect("few guests"),
                    shared: Arc::clone(&self.shared),
                    volume: Arc::clone(volume),
                    device: Arc::clone(&device),
                    dice,
                    habits,
                };
                guests.spawn(guest.live(until));
            }
        }
        while guests.join_next().await.is_some() {}
    }
}
