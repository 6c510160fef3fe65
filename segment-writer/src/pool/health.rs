//! What a data node did so far, for status and metrics.

use super::breaker::{Breaker, BreakerState};
use super::latency::Latency;
use cairn_model::{Monotonic, WallTime};
use parking_lot::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// A request that was dropped sooner was not late.
const OUTRUN_MIN: Duration = Duration::from_millis(5);

/// A put that was given up after so long without an answer, or four times as long as is usual, says enough.
const HUNG_MIN: Duration = Duration::from_secs(5);

/// How long a node that had no room, or took no writes, is passed over by puts that others can serve.
const REFUSAL: Duration = Duration::from_secs(30);

/// What one node did since the program started, and how it does.
#[derive(Debug, Default)]
pub struct NodeHealth {
    failing: AtomicBool,
    put_requests: AtomicU64,
    puts: AtomicU64,
    put_bytes: AtomicU64,
    put_micros: AtomicU64,
    get_requests: AtomicU64,
    gets: AtomicU64,
    get_bytes: AtomicU64,
    get_micros: AtomicU64,
    delete_requests: AtomicU64,
    deletes: AtomicU64,
    retries: AtomicU64,
    errors: AtomicU64,
    damaged_chunks: AtomicU64,
    last_error: Mutex<Option<LastError>>,
    /// On all requests: a node that answers any is not down.
    breaker: Breaker,
    /// On puts alone: a node may answer reads and hang at puts. (One that hangs at gets is known by how long they take.)
    puts_breaker: Breaker,
    put_latency: Latency,
    get_latency: Latency,
    passed_over: AtomicU64,
    /// It holds as much as it was said to have room for: others are given new shards first.
    filled: AtomicBool,
    /// Until when it is taken to refuse puts, and why.
    refuses: Mutex<Option<(Monotonic, Refusal)>>,
}

/// Why a node that answers takes no puts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Refusal {
    Full,
    ReadOnly,
}

/// The latest failed attempt.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LastError {
    pub at: WallTime,
    pub text: String,
}

/// One reading of the counters.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct HealthSnapshot {
    /// The latest attempt failed for a reason that lies with the node.
    pub failing: bool,
    /// Attempts of puts, each one request that the store may bill.
    pub put_requests: u64,
    pub puts: u64,
    pub put_bytes: u64,
    /// Time of successful attempts.
    pub put_time: Duration,
    pub get_requests: u64,
    pub gets: u64,
    pub get_bytes: u64,
    pub get_time: Duration,
    pub delete_requests: u64,
    pub deletes: u64,
    /// Attempts after the first.
    pub retries: u64,
    /// Failed attempts.
    pub errors: u64,
    /// Chunks that failed verification as they came from the node.
    pub damaged_chunks: u64,
    pub last_error: Option<LastError>,
    pub breaker: BreakerState,
    /// Of the latest requests that succeeded, and those that were given up on for being later: `None` before the first.
    pub put_p50: Option<Duration>,
    pub put_p95: Option<Duration>,
    pub get_p50: Option<Duration>,
    pub get_p95: Option<Duration>,
    /// Why it takes no puts, as of the latest one.
    pub refuses_puts: Option<Refusal>,
}

/// Which counters a request moves.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Direction {
    Put,
    Get,
    Delete,
}

impl NodeHealth {
    pub(crate) fn attempt(&self, direction: Direction, attempt: u32) {
        match direction {
            Direction::Put => &self.put_requests,
            Direction::Get => &self.get_requests,
            Direction::Delete => &self.delete_requests,
        }
        .fetch_add(1, Relaxed);
        if attempt > 0 {
            self.retries.fetch_add(1, Relaxed);
        }
    }

    pub(crate) fn success(&self, direction: Direction, bytes: u64, took: Duration) {
        self.failing.store(false, Relaxed);
        self.breaker.success();
        if let Some(latency) = self.latency(direction) {
            latency.record(took);
        }
        if direction == Direction::Put {
            self.puts_breaker.success();
            *self.refuses.lock() = None;
        }
        let (count, total, micros) = match direction {
            Direction::Delete => {
                self.deletes.fetch_add(1, Relaxed);
                return;
            }
            Direction::Put => (&self.puts, &self.put_bytes, &self.put_micros),
            Direction::Get => (&self.gets, &self.get_bytes, &self.get_micros),
        };
        count.fetch_add(1, Relaxed);
        total.fetch_add(bytes, Relaxed);
        micros.fetch_add(u64::try_from(took.as_micros()).unwrap_or(u64::MAX), Relaxed);
    }

    pub(crate) fn failure(&self, at: WallTime, text: String, node_is_failing: bool) {
        self.errors.fetch_add(1, Relaxed);
        self.failing.store(node_is_failing, Relaxed);
        *self.last_error.lock() = Some(LastError { at, text });
    }

    /// The node is to blame for a failed attempt. Whether it is to be avoided from now on.
    pub(crate) fn blame(&self, direction: Direction, now: Monotonic) -> bool {
        let opens = direction == Direction::Put && self.puts_breaker.failure(now);
        self.breaker.failure(now) || opens
    }

    /// A request was dropped after this time without an answer. Whether the node is to be avoided from now on.
    pub(crate) fn given_up(&self, direction: Direction, now: Monotonic, after: Duration) -> bool {
        let Some(latency) = self.latency(direction) else { return false };
        let usual = latency.p95().unwrap_or_default();
        // Whoever asked may have lost interest: that alone says nothing about the node.
        if after < usual.max(OUTRUN_MIN) {
            return false;
        }
        latency.record(after);
        let opens = match direction {
            Direction::Put if after >= usual.saturating_mul(4).max(HUNG_MIN) => self.hung_at_put(now),
            Direction::Put => self.puts_breaker.outrun(now),
            Direction::Get | Direction::Delete => false,
        };
        self.breaker.outrun(now) || opens
    }

    /// A put had no answer in all the time that it was given. Whether the node is to be avoided by puts from now on.
    pub(crate) fn hung_at_put(&self, now: Monotonic) -> bool {
        self.puts_breaker.hung(now)
    }

    /// Whether it holds as much as it was said to have room for, which its server may know nothing of.
    pub fn set_filled(&self, is_filled: bool) {
        self.filled.store(is_filled, Relaxed);
    }

    pub fn is_filled(&self) -> bool {
        self.filled.load(Relaxed)
    }

    pub(crate) fn refuses_put(&self, now: Monotonic, refusal: Refusal) {
        *self.refuses.lock() = Some((now.plus(REFUSAL), refusal));
    }

    /// Whether it answered puts with a refusal of late: it is full, or read-only.
    pub(crate) fn is_refusing(&self, now: Monotonic) -> bool {
        self.refuses.lock().is_some_and(|(until, _)| now < until)
    }

    /// Whether it answered a put of late that it has no room.
    pub fn is_full(&self, now: Monotonic) -> bool {
        self.refuses.lock().is_some_and(|(until, why)| now < until && matches!(why, Refusal::Full))
    }

    /// Whether puts are worth a try.
    pub fn takes_puts(&self, now: Monotonic) -> bool {
        self.refuses.lock().is_none_or(|(until, _)| now >= until) && self.puts_breaker.admits(now)
    }

    /// Whether an answer to a put is likely, be it a refusal.
    pub(crate) fn answers_puts(&self, now: Monotonic) -> bool {
        self.breaker.admits(now) && self.puts_breaker.admits(now)
    }

    /// Whether requests are worth a try where other nodes can serve them; of puts, see [`Self::takes_puts`] too. See [`Breaker::admits`].
    pub(crate) fn admits(&self, now: Monotonic) -> bool {
        self.breaker.admits(now)
    }

    /// A request goes to the node. See [`Breaker::asked`].
    pub(crate) fn asked(&self, direction: Direction, now: Monotonic) {
        self.breaker.asked(now);
        if direction == Direction::Put {
            self.puts_breaker.asked(now);
        }
    }

    /// It failed too often, and nobody has seen it well since.
    pub(crate) fn is_suspect(&self) -> bool {
        self.breaker.state() != BreakerState::Closed
    }

    /// What half of the latest gets took less than.
    pub(crate) fn get_p50(&self) -> Option<Duration> {
        self.get_latency.p50()
    }

    /// What one in twenty of the latest gets took longer than.
    pub(crate) fn get_p95(&self) -> Option<Duration> {
        self.get_latency.p95()
    }

    pub(crate) fn put_p95(&self) -> Option<Duration> {
        self.put_latency.p95()
    }

    /// True for one of many calls: time to ask a node that is passed over for being slow.
    pub(crate) fn is_due_for_a_look(&self) -> bool {
        self.passed_over.fetch_add(1, Relaxed) % 64 == 63
    }

    pub(crate) const fn latency(&self, direction: Direction) -> Option<&Latency> {
        match direction {
            Direction::Put => Some(&self.put_latency),
            Direction::Get => Some(&self.get_latency),
            Direction::Delete => None,
        }
    }

    pub(crate) fn damaged_chunk(&self) {
        self.damaged_chunks.fetch_add(1, Relaxed);
    }

    pub fn snapshot(&self) -> HealthSnapshot {
        HealthSnapshot {
            failing: self.failing.load(Relaxed),
            put_requests: self.put_requests.load(Relaxed),
            puts: self.puts.load(Relaxed),
            put_bytes: self.put_bytes.load(Relaxed),
            put_time: Duration::from_micros(self.put_micros.load(Relaxed)),
            get_requests: self.get_requests.load(Relaxed),
            gets: self.gets.load(Relaxed),
            get_bytes: self.get_bytes.load(Relaxed),
            get_time: Duration::from_micros(self.get_micros.load(Relaxed)),
            delete_requests: self.delete_requests.load(Relaxed),
            deletes: self.deletes.load(Relaxed),
            retries: self.retries.load(Relaxed),
            errors: self.errors.load(Relaxed),
            damaged_chunks: self.damaged_chunks.load(Relaxed),
            last_error: self.last_error.lock().clone(),
            breaker: self.breaker.state(),
            put_p50: self.put_latency.p50(),
            put_p95: self.put_latency.p95(),
            get_p50: self.get_latency.p50(),
            get_p95: self.get_latency.p95(),
            refuses_puts: self.refuses.lock().map(|(_, refusal)| refusal),
        }
    }
}
