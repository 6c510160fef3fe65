//! How long a node's requests take: the middle and the slow end of the latest ones.

use parking_lot::Mutex;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// Samples that are looked at.
const SAMPLES: usize = 64;

/// Samples between two looks.
const PER_LOOK: u32 = 8;

/// Percentiles of the latest requests.
#[derive(Debug)]
pub(crate) struct Latency {
    samples: Mutex<Samples>,
    /// In microseconds; zero before the first sample.
    p50: AtomicU64,
    p95: AtomicU64,
}

#[derive(Debug)]
struct Samples {
    micros: [u64; SAMPLES],
    count: usize,
    next: usize,
    until_look: u32,
}

impl Default for Latency {
    fn default() -> Self {
        let samples = Samples { micros: [0; SAMPLES], count: 0, next: 0, until_look: 0 };
        Self { samples: Mutex::new(samples), p50: AtomicU64::new(0), p95: AtomicU64::new(0) }
    }
}

impl Latency {
    pub(crate) fn record(&self, took: Duration) {
        let mut samples = self.samples.lock();
        let at = samples.next;
        // Zero means that there is none.
        samples.micros[at] = u64::try_from(took.as_micros()).unwrap_or(u64::MAX).max(1);
        samples.next = (at + 1) % SAMPLES;
        samples.count = (samples.count + 1).min(SAMPLES);
        if samples.until_look > 0 && samples.count > PER_LOOK as usize {
            samples.until_look -= 1;
            return;
        }
        samples.until_look = PER_LOOK;
        let count = samples.count;
        let mut sorted = samples.micros;
        let sorted = &mut sorted[..count];
        sorted.sort_unstable();
        self.p50.store(sorted[count / 2], Relaxed);
        self.p95.store(sorted[count * 95 / 100], Relaxed);
    }

    /// Half of the requests took less. `None` before the first.
    pub(crate) fn p50(&self) -> Option<Duration> {
        Some(self.p50.load(Relaxed)).filter(|micros| *micros > 0).map(Duration::from_micros)
    }

    /// One in twenty took longer. `None` before the first.
    pub(crate) fn p95(&self) -> Option<Duration> {
        Some(self.p95.load(Relaxed)).filter(|micros| *micros > 0).map(Duration::from_micros)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_those_of_the_latest_samples() {
        let latency = Latency::default();
        assert_eq!((latency.p50(), latency.p95()), (None, None));
        latency.record(Duration::from_millis(7));
        assert_eq!(latency.p50(), Some(Duration::from_millis(7)), "from the first one on");
        for _ in 0..SAMPLES {
            latency.record(Duration::from_millis(100));
        }
        for number in 0..2 * SAMPLES {
            latency.record(Duration::from_millis(if number % 10 == 9 { 50 } else { 1 }));
        }
        assert_eq!(latency.p50(), Some(Duration::from_millis(1)));
        assert_eq!(latency.p95(), Some(Duration::from_millis(50)));
    }
}
