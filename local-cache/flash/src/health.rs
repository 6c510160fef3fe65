//! Whether the device is still worth asking: damage and errors, counted, and the end of it.

use crate::config::FlashConfig;
use crate::directory::is_full;
use crate::status::{Counters, add};
use cairn_model::{Clock, Monotonic};
use parking_lot::Mutex;
use std::collections::VecDeque;
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio::sync::Notify;

const STALL_COUNTED_EVERY: Duration = Duration::from_secs(1);
const FULL_TOLD_EVERY: Duration = Duration::from_mins(1);

/// What went wrong with the device.
#[derive(Debug)]
pub(crate) struct Health {
    clock: Arc<dyn Clock>,
    location: String,
    trouble_max: usize,
    window: Duration,
    /// The latest damage and errors, at most `trouble_max`.
    latest: Mutex<VecDeque<Monotonic>>,
    /// When a read that took too long was counted last.
    stalled: Mutex<Option<Monotonic>>,
    /// When the log was told last that the disk is full.
    told_full: Mutex<Option<Monotonic>>,
    retired: OnceLock<String>,
    /// Wakes the writer when the device is retired: it must let go of what waits.
    pub(crate) wake: Arc<Notify>,
    counters: Arc<Counters>,
}

impl Health {
    pub(crate) fn new(config: &FlashConfig, clock: Arc<dyn Clock>, counters: Arc<Counters>) -> Self {
        Self {
            clock,
            location: config.path.display().to_string(),
            trouble_max: config.damage_max,
            window: config.damage_window,
            latest: Mutex::new(VecDeque::new()),
            stalled: Mutex::new(None),
            told_full: Mutex::new(None),
            retired: OnceLock::new(),
            wake: Arc::new(Notify::new()),
            counters,
        }
    }

    /// Bytes came back from the device other than they were written.
    pub(crate) fn damage(&self, what: &str) {
        add(&self.counters.damaged, 1);
        tracing::warn!(device = %self.location, "the flash cache is damaged: {what}");
        self.trouble();
    }

    /// The device refused or failed an operation. That it has no space left is counted, and says nothing against it.
    pub(crate) fn failed(&self, operation: &'static str, error: &std::io::Error) {
        add(&self.counters.io_errors, 1);
        if is_full(error) {
            if self.is_due(&self.told_full, FULL_TOLD_EVERY) {
                tracing::warn!(device = %self.location, %error, "the disk is full; the flash cache cannot {operation}");
            }
            return;
        }
        tracing::warn!(device = %self.location, %error, "the flash cache cannot {operation}");
        self.trouble();
    }

    /// The device takes too long to read. A moment of that makes many reads late, and counts once.
    pub(crate) fn stalled(&self) {
        if self.is_due(&self.stalled, STALL_COUNTED_EVERY) {
            self.failed("read a chunk", &std::io::ErrorKind::TimedOut.into());
        }
    }

    /// Whether so much time went by since the last time it was.
    fn is_due(&self, last: &Mutex<Option<Monotonic>>, every: Duration) -> bool {
        let now = self.clock.now();
        let mut last = last.lock();
        let due = last.is_none_or(|at| now.since(at) >= every);
        if due {
            *last = Some(now);
        }
        due
    }

    fn trouble(&self) {
        let now = self.clock.now();
        let mut latest = self.latest.lock();
        latest.push_back(now);
        while latest.front().is_some_and(|&at| now.since(at) > self.window) {
            latest.pop_front();
        }
        if latest.len() >= self.trouble_max {
            latest.clear();
            let (count, window) = (self.trouble_max, self.window);
            self.retire(format!(
                "{count} damaged chunks or failed operations within {window:?} on {}; replace the disk, then restart",
                self.location
            ));
        }
    }

    /// The disk has no space for a cache.
    pub(crate) fn retire_without_space(&self) {
        self.retire(format!(
            "the disk of {} is full and leaves no room for a flash cache; free some space on it, then restart",
            self.location
        ));
    }

    /// The cache is not asked again before the next start.
    pub(crate) fn retire(&self, reason: String) {
        if self.retired.set(reason).is_ok() {
            let reason = self.reason().unwrap_or_default();
            tracing::error!(device = %self.location, reason, "the flash cache is retired; reads go to the pool");
            self.wake.notify_one();
        }
    }

    pub(crate) fn is_retired(&self) -> bool {
        self.retired.get().is_some()
    }

    pub(crate) fn reason(&self) -> Option<&str> {
        self.retired.get().map(String::as_str)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::ManualClock;

    fn health(clock: &Arc<ManualClock>) -> Health {
        let config = FlashConfig { damage_max: 3, ..FlashConfig::new("/flash", 1 << 30) };
        Health::new(&config, clock.clone(), Arc::default())
    }

    #[test]
    fn too_much_damage_within_the_window_retires_the_device() {
        let clock = Arc::new(ManualClock::default());
        let health = health(&clock);
        health.damage("a chunk");
        health.damage("a chunk");
        assert!(!health.is_retired());
        health.failed("read", &std::io::Error::other("a bad sector"));
        assert!(health.reason().unwrap().contains("/flash"));
    }

    #[test]
    fn a_stall_counts_once_a_second_however_many_reads_it_holds_up() {
        let clock = Arc::new(ManualClock::default());
        let health = health(&clock);
        (0..100).for_each(|_| health.stalled());
        clock.advance(Duration::from_millis(999));
        health.stalled();
        assert_eq!(health.counters.status().io_errors, 1);
        clock.advance(Duration::from_millis(1));
        health.stalled();
        assert!(!health.is_retired());
        clock.advance(Duration::from_secs(1));
        health.stalled();
        assert!(health.is_retired());
    }

    #[test]
    fn damage_now_and_then_does_not() {
        let clock = Arc::new(ManualClock::default());
        let health = health(&clock);
        for _ in 0..20 {
            health.damage("a chunk");
            clock.advance(Duration::from_secs(2000));
        }
        assert!(!health.is_retired());
    }
}
