//! What goes wrong during a life, by the seed's dice.

use crate::clock::VirtualClock;
use crate::limits::{Limits, Part};
use crate::settings::{millis, pick};
use cairn_metadata::memory::{CallFault, CallPlan};
use cairn_model::Clock;
use cairn_segment_writer::testing::{Fault, Request, Verb};
use cairn_wal::testing::{Dice, MemoryDisk, Operation};
use parking_lot::Mutex;
use std::collections::BTreeSet;
use std::future::pending;
use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::Notify;

/// How long the engine may go on refusing after the pool has room again: it tries now and then.
const FULL_FOR_LONGER: Duration = Duration::from_secs(30);
/// A call may take longer than a lease.
const SLOW_CALL_MS_MAX: u64 = 5000;
/// `ENOSPC`.
const NO_SPACE: i32 = 28;

/// The faults of one life, shared by everything that has any.
#[derive(Debug)]
pub(crate) struct Faults {
    dice: Dice,
    clock: Arc<VirtualClock>,
    is_troubled: bool,
    /// Of a hundred requests or calls.
    store_percent: u64,
    catalog_percent: u64,
    /// While the store, or the catalog, answers nobody; since the life began.
    store_away: Outage,
    catalog_away: Outage,
    /// While one of the nodes, by its number, answers nobody.
    node_away: (u64, Outage),
    /// While no put finds room.
    pool_full: Outage,
    /// Catalog calls until the process ends in the middle of one; at most `u64::MAX`.
    calls_left: AtomicU64,
    sync_failed: Arc<AtomicBool>,
    allows_flips: bool,
    /// Objects that were flipped on their way; one flip each is enough.
    flipped: Mutex<BTreeSet<String>>,
    /// Told when the process must end.
    pub(crate) end: Notify,
}

#[derive(Clone, Debug)]
struct Outage(Range<Duration>);

impl Outage {
    fn draw(dice: &Dice, percent: u64, longest_ms: u64, allowed: bool) -> Self {
        let (is_there, from, length) = (dice.percent(percent), millis(dice, 2500), millis(dice, longest_ms));
        Self(if is_there && allowed { from..from + length } else { Duration::ZERO..Duration::ZERO })
    }

    /// How long it goes on, while it is there.
    fn left(&self, clock: &dyn Clock) -> Option<Duration> {
        let now = clock.now().since_origin();
        self.0.contains(&now).then(|| self.0.end.saturating_sub(now))
    }
}

impl Faults {
    pub(crate) fn draw(
        dice: Dice,
        clock: Arc<VirtualClock>,
        limits: &Limits,
        catalog_outages: u64,
    ) -> Arc<Self> {
        let store = pick(&dice, &[0, 3, 25, 60]);
        let catalog = pick(&dice, &[0, 3, 20]);
        let allowed = |part, percent| if limits.allow(part) { percent } else { 0 };
        Arc::new(Self {
            is_troubled: true,
            store_percent: allowed(Part::StoreFaults, store),
            catalog_percent: allowed(Part::CatalogFaults, catalog),
            store_away: Outage::draw(&dice, 30, 10_000, limits.allow(Part::StoreOutages)),
            catalog_away: Outage::draw(&dice, catalog_outages, 10_000, limits.allow(Part::CatalogOutages)),
            pool_full: Outage::draw(&dice, 10, 5000, limits.allow(Part::FullPool)),
            node_away: (dice.below(6), Outage::draw(&dice, 60, 5000, limits.allow(Part::NodeOutages))),
            dice,
            clock,
            calls_left: AtomicU64::new(u64::MAX),
            sync_failed: Arc::default(),
            allows_flips: limits.allow(Part::BitFlips),
            flipped: Mutex::default(),
            end: Notify::new(),
        })
    }

    /// Nothing goes wrong.
    pub(crate) fn none(clock: Arc<VirtualClock>) -> Arc<Self> {
        let never = Outage(Duration::ZERO..Duration::ZERO);
        Arc::new(Self {
            is_troubled: false,
            dice: Dice::new(0),
            clock,
            store_percent: 0,
            catalog_percent: 0,
            store_away: never.clone(),
            catalog_away: never.clone(),
            node_away: (0, never.clone()),
            pool_full: never,
            calls_left: AtomicU64::new(u64::MAX),
            sync_failed: Arc::default(),
            allows_flips: false,
            flipped: Mutex::default(),
            end: Notify::new(),
        })
    }

    /// Ends the process during one of the next catalog calls.
    pub(crate) fn end_in_a_call(&self) {
        self.calls_left.store(self.dice.below(40), Ordering::Relaxed);
    }

    /// Fails one of the next syncs of the disk.
    pub(crate) fn fail_a_sync(&self, disk: &MemoryDisk) {
        let mut left = self.dice.below(30);
        let failed = Arc::clone(&self.sync_failed);
        disk.set_fault(move |operation| {
            if !matches!(operation, Operation::Sync(_)) || failed.load(Ordering::Relaxed) {
                return None;
            }
            if left > 0 {
                left -= 1;
                return None;
            }
            failed.store(true, Ordering::Relaxed);
            Some(io::ErrorKind::Other)
        });
    }

    /// The device has lost sectors as if power had failed.
    pub(crate) fn sync_failed(&self) -> bool {
        self.sync_failed.load(Ordering::Relaxed)
    }

    /// Whether a guest may be told that the pool is full: it is, or was a moment ago.
    pub(crate) fn pool_is_full(&self) -> bool {
        let Range { start, end } = self.pool_full.0;
        start < end && (start..end + FULL_FOR_LONGER).contains(&self.clock.now().since_origin())
    }

    /// Whether anything may be unavailable for a time.
    pub(crate) fn are_any(&self) -> bool {
        self.is_troubled
    }

    /// Of a request to the node of that number.
    pub(crate) fn of_store(&self, node: u64, request: Request<'_>) -> Option<Fault> {
        let (away, outage) = &self.node_away;
        if node == *away && outage.left(&*self.clock).is_some() {
            return Some(pick(&self.dice, &[Fault::Connection, Fault::Hang]));
        }
        if !request.key.contains("segments") {
            return None;
        }
        if self.store_away.left(&*self.clock).is_some() {
            return Some(pick(&self.dice, &[Fault::Connection, Fault::Hang, Fault::Status(503)]));
        }
        if request.verb == Verb::Put && self.pool_full.left(&*self.clock).is_some() {
            return Some(Fault::Os(NO_SPACE));
        }
        if !self.dice.percent(self.store_percent) {
            return None;
        }
        let flipped = usize::try_from(self.dice.below(1 << 20)).expect("a place in an object");
        let faults: &[Fault] = match request.verb {
            Verb::Put => {
                &[Fault::Status(503), Fault::Connection, Fault::Hang, Fault::ReplyLost, Fault::ReplyHangs]
            }
            _ => &[
                Fault::Status(500),
                Fault::Connection,
                Fault::Hang,
                Fault::BodyBreaks(100),
                Fault::BodyEnds(100),
                Fault::BodyFlips(flipped),
            ],
        };
        let fault = pick(&self.dice, faults);
        if !matches!(fault, Fault::BodyFlips(_)) {
            return Some(fault);
        }
        // The engine asks for damaged data once more: what is damaged twice in a row is taken to be so in the store.
        let is_first = self.allows_flips && self.flipped.lock().insert(request.key.to_owned());
        is_first.then_some(fault)
    }

    pub(crate) fn of_catalog(self: &Arc<Self>) -> Arc<CallPlan> {
        let faults = Arc::clone(self);
        Arc::new(move |_| {
            let faults = Arc::clone(&faults);
            Box::pin(async move { faults.of_call().await })
        })
    }

    async fn of_call(&self) -> Option<CallFault> {
        if self.dice.percent(50) {
            self.clock.sleep(millis(&self.dice, 10)).await;
        }
        if self.calls_left.fetch_sub(1, Ordering::Relaxed) == 0 {
            self.end.notify_one();
            // Before the effect or after it.
            return if self.dice.percent(50) { pending().await } else { Some(CallFault::Silent) };
        }
        if let Some(left) = self.catalog_away.left(&*self.clock) {
            // Refused at once or after a silence, or heard when the outage is over, however late that is.
            let (short, long) = (Duration::from_millis(1), left.min(Duration::from_secs(1)));
            let silences = [short, short, long, long, left];
            let is_heard = self.dice.percent(10);
            self.clock.sleep(if is_heard { left } else { pick(&self.dice, &silences) }).await;
            return (!is_heard).then_some(CallFault::Refused);
        }
        let fault = pick(&self.dice, &[Some(CallFault::Refused), Some(CallFault::ReplyLost), None]);
        let slowness = millis(&self.dice, SLOW_CALL_MS_MAX);
        if !self.dice.percent(self.catalog_percent) {
            return None;
        }
        if fault.is_none() {
            self.clock.sleep(slowness).await;
        }
        fault
    }
}
