use std::sync::atomic::{AtomicU64, Ordering};

/// What a server did since it started. Sessions add to it once per wake, not once per request.
#[derive(Debug, Default)]
pub struct Counters {
    connections_open: AtomicU64,
    connections_total: AtomicU64,
    connections_refused: AtomicU64,
    handshakes_failed: AtomicU64,
    requests: AtomicU64,
    requests_failed: AtomicU64,
    bytes_read: AtomicU64,
    bytes_written: AtomicU64,
}

/// [`Counters`] at one moment; each value is exact, together they may be a request apart.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct CountersSnapshot {
    pub connections_open: u64,
    pub connections_total: u64,
    /// Closed at once because the connection limit was reached.
    pub connections_refused: u64,
    /// Ended before the transmission phase by a timeout, a bad message or TLS.
    pub handshakes_failed: u64,
    pub requests: u64,
    /// Answered with an error.
    pub requests_failed: u64,
    /// Payload sent to clients.
    pub bytes_read: u64,
    /// Payload accepted from clients.
    pub bytes_written: u64,
}

/// What one session did since it last reported.
#[derive(Clone, Copy, Default, Debug)]
pub(crate) struct SessionTally {
    pub(crate) requests: u64,
    pub(crate) requests_failed: u64,
    pub(crate) bytes_read: u64,
    pub(crate) bytes_written: u64,
}

impl Counters {
    pub fn snapshot(&self) -> CountersSnapshot {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        CountersSnapshot {
            connections_open: load(&self.connections_open),
            connections_total: load(&self.connections_total),
            connections_refused: load(&self.connections_refused),
            handshakes_failed: load(&self.handshakes_failed),
            requests: load(&self.requests),
            requests_failed: load(&self.requests_failed),
            bytes_read: load(&self.bytes_read),
            bytes_written: load(&self.bytes_written),
        }
    }

    /// Counts a connection as open, unless `connections_max` already are.
    pub(crate) fn open_connection(
        self: &std::sync::Arc<Self>,
        connections_max: usize,
    ) -> Option<OpenConnection> {
        let limit = u64::try_from(connections_max).unwrap_or(u64::MAX);
        let claim = |open: u64| (open < limit).then_some(open + 1);
        if self.connections_open.fetch_update(Ordering::Relaxed, Ordering::Relaxed, claim).is_err() {
            self.connections_refused.fetch_add(1, Ordering::Relaxed);
            return None;
        }
        self.connections_total.fetch_add(1, Ordering::Relaxed);
        Some(OpenConnection { counters: self.clone() })
    }

    pub(crate) fn handshake_failed(&self) {
        self.handshakes_failed.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn add(&self, tally: &SessionTally) {
        if tally.requests > 0 {
            self.requests.fetch_add(tally.requests, Ordering::Relaxed);
        }
        if tally.requests_failed > 0 {
            self.requests_failed.fetch_add(tally.requests_failed, Ordering::Relaxed);
        }
        if tally.bytes_read > 0 {
            self.bytes_read.fetch_add(tally.bytes_read, Ordering::Relaxed);
        }
        if tally.bytes_written > 0 {
            self.bytes_written.fetch_add(tally.bytes_written, Ordering::Relaxed);
        }
    }
}

/// Counts as an open connection until dropped.
#[derive(Debug)]
pub(crate) struct OpenConnection {
    counters: std::sync::Arc<Counters>,
}

impl Drop for OpenConnection {
    fn drop(&mut self) {
        self.counters.connections_open.fetch_sub(1, Ordering::Relaxed);
    }
}
