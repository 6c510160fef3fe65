//! Everything that happened, hashed: two runs of a seed must give the same.

use cairn_model::Clock;
use parking_lot::Mutex;
use std::collections::VecDeque;
use std::fmt::Display;

/// Events kept in words for a failure's report.
const KEPT: usize = 60;

#[derive(Debug, Default)]
pub(crate) struct Trace(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    hasher: blake3::Hasher,
    events: u64,
    last: VecDeque<String>,
}

impl Trace {
    /// An event and its moment of virtual time.
    pub(crate) fn note(&self, clock: &dyn Clock, event: &dyn Display) {
        let line = format!("{:>12} {event}\n", clock.now().since_origin().as_nanos());
        let mut state = self.0.lock();
        state.hasher.update(line.as_bytes());
        state.events += 1;
        if state.last.len() == KEPT {
            state.last.pop_front();
        }
        state.last.push_back(line);
    }

    pub(crate) fn events(&self) -> u64 {
        self.0.lock().events
    }

    pub(crate) fn digest(&self) -> String {
        self.0.lock().hasher.finalize().to_string()
    }

    /// The last events, oldest first.
    pub(crate) fn last(&self) -> String {
        self.0.lock().last.iter().map(String::as_str).collect()
    }
}
