//! How fast healing reads and writes.

use cairn_model::{Clock, Monotonic};
use parking_lot::Mutex;
use std::time::Duration;

/// A rate that holds on average from the first piece of work on; idle time is not saved up.
#[derive(Debug)]
pub(super) struct Throttle {
    /// `None`: as fast as it goes.
    bytes_per_second: Option<u64>,
    /// When the next piece may begin.
    free_at: Mutex<Monotonic>,
}

impl Throttle {
    pub(super) fn new(bytes_per_second: Option<u64>) -> Self {
        Self { bytes_per_second: bytes_per_second.filter(|rate| *rate > 0), free_at: Mutex::default() }
    }

    /// Takes the turn for a piece of work of so many bytes; returns how long to wait before it begins.
    fn book(&self, now: Monotonic, bytes: u64) -> Duration {
        let Some(rate) = self.bytes_per_second else { return Duration::ZERO };
        let nanos = u128::from(bytes) * 1_000_000_000 / u128::from(rate);
        let takes = Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX));
        let mut free_at = self.free_at.lock();
        let begin = (*free_at).max(now);
        *free_at = begin.plus(takes);
        begin.since(now)
    }

    /// Waits for the turn of a piece of work.
    pub(super) async fn pass(&self, clock: &dyn Clock, bytes: u64) {
        let wait = self.book(clock.now(), bytes);
        if !wait.is_zero() {
            clock.sleep(wait).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn at(seconds: u64) -> Monotonic {
        Monotonic::from_origin(Duration::from_secs(seconds))
    }

    #[test]
    fn work_is_spread_at_the_rate_and_idle_time_is_not_saved_up() {
        let throttle = Throttle::new(Some(100));
        let waits = [(10, 200), (10, 100), (11, 50), (100, 100), (100, 1)]
            .map(|(now, bytes)| throttle.book(at(now), bytes).as_secs());
        assert_eq!(waits, [0, 2, 2, 0, 1]);
    }

    #[test]
    fn without_a_rate_nothing_waits() {
        for throttle in [Throttle::new(None), Throttle::new(Some(0))] {
            assert_eq!(throttle.book(at(1), u64::MAX), Duration::ZERO);
            assert_eq!(throttle.book(at(1), u64::MAX), Duration::ZERO);
        }
    }
}
