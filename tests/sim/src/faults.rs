//! What goes wrong during a life, by the seed's dice.

use crate::settings::{millis, pick};
use cairn_metadata::memory::{CallFault, CallPlan};
use cairn_model::Clock;
use cairn_segment_writer::testing::{Fault, Request, Verb};
use cairn_wal::testing::{Dice, MemoryDisk, Operation};
use std::future::pending;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use tokio::sync::Notify;

/// The faults of one life, shared by everything that has any.
#[derive(Debug)]
pub(crate) struct Faults {
    dice: Dice,
    clock: Arc<dyn Clock>,
    /// Nothing goes wrong: the oracle is reading.
    calm: AtomicBool,
    /// Of a hundred requests or calls.
    store_percent: u64,
    catalog_percent: u64,
    /// Catalog calls until the process ends in the middle of one; at most `u64::MAX`.
    calls_left: AtomicU64,
    sync_failed: Arc<AtomicBool>,
    /// Told when the process must end.
    pub(crate) end: Notify,
}

impl Faults {
    pub(crate) fn draw(dice: Dice, clock: Arc<dyn Clock>) -> Arc<Self> {
        let (store_percent, catalog_percent) = (pick(&dice, &[0, 3, 25, 60]), pick(&dice, &[0, 3, 20]));
        Arc::new(Self {
            dice,
            clock,
            calm: AtomicBool::new(false),
            store_percent,
            catalog_percent,
            calls_left: AtomicU64::new(u64::MAX),
            sync_failed: Arc::default(),
            end: Notify::new(),
        })
    }

    pub(crate) fn set_calm(&self, calm: bool) {
        self.calm.store(calm, Ordering::Relaxed);
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

    pub(crate) fn of_store(&self, request: Request<'_>) -> Option<Fault> {
        let spared = self.calm.load(Ordering::Relaxed) || !request.key.contains("segments");
        if spared || !self.dice.percent(self.store_percent) {
            return None;
        }
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
            ],
        };
        Some(pick(&self.dice, faults))
    }

    pub(crate) fn of_catalog(self: &Arc<Self>) -> Arc<CallPlan> {
        let faults = Arc::clone(self);
        Arc::new(move |_| {
            let faults = Arc::clone(&faults);
            Box::pin(async move { faults.of_call().await })
        })
    }

    async fn of_call(&self) -> Option<CallFault> {
        if self.calm.load(Ordering::Relaxed) {
            return None;
        }
        if self.dice.percent(50) {
            self.clock.sleep(millis(&self.dice, 10)).await;
        }
        if self.calls_left.fetch_sub(1, Ordering::Relaxed) == 0 {
            self.end.notify_one();
            // Before the effect or after it.
            return if self.dice.percent(50) { pending().await } else { Some(CallFault::Silent) };
        }
        let fault = pick(&self.dice, &[CallFault::Refused, CallFault::ReplyLost]);
        self.dice.percent(self.catalog_percent).then_some(fault)
    }
}
