//! What a data node did so far, for status and metrics.

use cairn_model::WallTime;
use parking_lot::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// Counters of one node since the program started.
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
        }
    }
}
