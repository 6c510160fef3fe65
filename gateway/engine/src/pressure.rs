//! What holds writers back: memory, the log's fill, a full pool. And what tells destage to go.
//!
//! As the log fills up, destage cuts at once, then gets priority, then writers are slowed, smoothly, until they wait.

use crate::error::EngineError;
use cairn_model::{Clock, Monotonic};
use cairn_wal::Wal;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::{Notify, watch};

/// What a record costs beside its data, so that discards, which have none, make batches of a bounded size too.
pub(crate) const RECORD_COST: u64 = 512;
/// Below this fill of the log nobody is slowed.
const SLOW_FROM: f64 = 0.75;
/// Delay of one write when the log is as good as full; it grows with the square of the way there.
const DELAY_MAX: Duration = Duration::from_millis(50);
/// Writes between two looks at the log's fill.
const ADMISSIONS_PER_LOOK: u64 = 32;
/// The log's fill that calls for a cut whatever its age and size.
const CUT_FROM: f64 = 0.5;
/// The log's fill from which destage comes before guests.
const DESTAGE_FIRST_FROM: f64 = 0.625;
/// Destage had priority, and the log has room again.
const DESTAGE_FIRST_UNTIL: f64 = 0.5;

const _: () = assert!(
    CUT_FROM < DESTAGE_FIRST_FROM
        && DESTAGE_FIRST_UNTIL < DESTAGE_FIRST_FROM
        && DESTAGE_FIRST_FROM < SLOW_FROM,
    "the gentler measure comes first, and none comes and goes with every write"
);

/// Counters that the write path touches; no locks.
#[derive(Debug)]
pub(crate) struct Pressure {
    buffer_bytes_max: u64,
    batch_bytes: u64,
    /// Plaintext held by write buffers.
    buffered_bytes: AtomicU64,
    /// What was written since the last cut, plaintext and a charge per record.
    active_bytes: AtomicU64,
    /// When the oldest write since the last cut came, nanoseconds of the monotonic clock, or 0.
    oldest_nanos: AtomicU64,
    pool_full: AtomicBool,
    /// Admissions since the start; the log's fill is looked at once in a while only.
    admitted: AtomicU64,
    /// The log's fill when it was looked at last, as the bits of an `f64`.
    fill_bits: AtomicU64,
    destage_first: watch::Sender<bool>,
    wake: Notify,
}

impl Pressure {
    pub(crate) fn new(buffer_bytes_max: u64, batch_bytes: u64) -> Self {
        Self {
            buffer_bytes_max,
            batch_bytes,
            buffered_bytes: AtomicU64::new(0),
            active_bytes: AtomicU64::new(0),
            oldest_nanos: AtomicU64::new(0),
            pool_full: AtomicBool::new(false),
            admitted: AtomicU64::new(0),
            fill_bits: AtomicU64::new(0),
            destage_first: watch::Sender::new(false),
            wake: Notify::new(),
        }
    }

    /// Lets a write in: at once, or slowed smoothly as the log fills up, or not at all when the pool is full.
    pub(crate) async fn admit(&self, wal: &Wal, clock: &dyn Clock) -> Result<(), EngineError> {
        if self.pool_full.load(Ordering::Relaxed) {
            return Err(EngineError::PoolFull);
        }
        if self.admitted.fetch_add(1, Ordering::Relaxed).is_multiple_of(ADMISSIONS_PER_LOOK) {
            self.look_at(wal);
        }
        let fill = self.fill();
        if fill > SLOW_FROM {
            let way = ((fill - SLOW_FROM) / (1.0 - SLOW_FROM)).min(1.0);
            clock.sleep(DELAY_MAX.mul_f64(way * way)).await;
        }
        Ok(())
    }

    /// Takes note of the log's fill; wakes destage when that calls for a cut.
    pub(crate) fn look_at(&self, wal: &Wal) {
        let usage = wal.usage();
        #[expect(clippy::cast_precision_loss, reason = "a ratio of sizes")]
        self.filled_to(usage.used_bytes as f64 / usage.capacity_bytes.max(1) as f64);
    }

    fn filled_to(&self, fill: f64) {
        self.fill_bits.store(fill.to_bits(), Ordering::Relaxed);
        if fill > CUT_FROM {
            self.wake.notify_one();
        }
        self.destage_first.send_if_modified(|is_first| {
            let was_first = *is_first;
            *is_first = fill > if was_first { DESTAGE_FIRST_UNTIL } else { DESTAGE_FIRST_FROM };
            *is_first != was_first
        });
    }

    /// Whether destage comes before guests, and every change of it.
    pub(crate) fn destage_first(&self) -> watch::Receiver<bool> {
        self.destage_first.subscribe()
    }

    fn fill(&self) -> f64 {
        f64::from_bits(self.fill_bits.load(Ordering::Relaxed))
    }

    /// A record entered the log and, with `bytes` of data, a write buffer.
    pub(crate) fn appended(&self, bytes: u64, clock: &dyn Clock) {
        self.buffered_bytes.fetch_add(bytes, Ordering::Relaxed);
        let cost = bytes + RECORD_COST;
        let before = self.active_bytes.fetch_add(cost, Ordering::Relaxed);
        let is_first = self.oldest_nanos.load(Ordering::Relaxed) == 0;
        if is_first {
            let nanos = u64::try_from(clock.now().since_origin().as_nanos()).unwrap_or(u64::MAX).max(1);
            self.oldest_nanos.store(nanos, Ordering::Relaxed);
        }
        if is_first || (before < self.batch_bytes && before + cost >= self.batch_bytes) {
            self.wake.notify_one();
        }
    }

    /// Write buffers came up with memory in use: recovery filled them.
    pub(crate) fn adopted(&self, bytes: u64) {
        self.buffered_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Write buffers let go of memory.
    pub(crate) fn released(&self, bytes: u64) {
        self.buffered_bytes.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// Write buffers hold more than they should; the next frozen layer keeps no bytes.
    pub(crate) fn is_over_memory(&self) -> bool {
        self.buffered_bytes.load(Ordering::Relaxed) > self.buffer_bytes_max
    }

    pub(crate) fn buffered_bytes(&self) -> u64 {
        self.buffered_bytes.load(Ordering::Relaxed)
    }

    /// A cut was made while no write could come in between.
    pub(crate) fn was_cut(&self) {
        self.active_bytes.store(0, Ordering::Relaxed);
        self.oldest_nanos.store(0, Ordering::Relaxed);
    }

    /// When the next cut is due: now (zero), after a while, or not before something is written.
    pub(crate) fn cut_due(&self, batch_age: Duration, now: Monotonic, room: bool) -> Option<Duration> {
        let oldest = self.oldest_nanos.load(Ordering::Relaxed);
        if oldest == 0 {
            return None;
        }
        if self.active_bytes.load(Ordering::Relaxed) >= self.batch_bytes {
            return Some(Duration::ZERO);
        }
        if !room {
            return None;
        }
        if self.fill() > CUT_FROM {
            return Some(Duration::ZERO);
        }
        let oldest = Monotonic::from_origin(Duration::from_nanos(oldest));
        Some(batch_age.saturating_sub(now.since(oldest)))
    }

    /// Waits until a cut may have become due.
    pub(crate) async fn changed(&self) {
        self.wake.notified().await;
    }

    pub(crate) fn set_pool_full(&self, full: bool) {
        if self.pool_full.swap(full, Ordering::Relaxed) != full {
            tracing::warn!(full, "the pool's space changed");
        }
    }

    pub(crate) fn is_pool_full(&self) -> bool {
        self.pool_full.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn destage_comes_first_from_a_nearly_full_log_until_half_of_it_is_free() {
        let pressure = Pressure::new(1, 1);
        let first = pressure.destage_first();
        for (fill, expected) in
            [(0.0, false), (0.6, false), (0.63, true), (0.55, true), (0.99, true), (0.5, false), (0.6, false)]
        {
            pressure.filled_to(fill);
            assert_eq!(*first.borrow(), expected, "at {fill}");
        }
    }
}
