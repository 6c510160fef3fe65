//! Everything that happened, hashed: two runs of a seed must give the same. `CAIRN_SIM_TRACE` names a file that gets it in words.

use parking_lot::Mutex;
use std::collections::VecDeque;
use std::fmt::Display;
use std::fs::File;
use std::io::Write;
use std::time::Duration;

/// Events kept in words for a failure's report.
const KEPT: usize = 80;

#[derive(Debug, Default)]
pub(crate) struct Trace(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    file: Option<File>,
    hasher: blake3::Hasher,
    events: u64,
    last: VecDeque<String>,
}

impl Trace {
    /// A new trace; of a whole schedule in a new file too, if one is wanted.
    pub(crate) fn new(is_whole: bool) -> Self {
        let file = std::env::var_os("CAIRN_SIM_TRACE")
            .filter(|_| is_whole)
            .map(|path| File::create(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display())));
        Self(Mutex::new(State { file, ..State::default() }))
    }

    /// An event, where it happened and the world's time.
    pub(crate) fn note(&self, time: Duration, place: &str, event: &dyn Display) {
        let line = format!("{:>12.3} ms {place}: {event}\n", time.as_secs_f64() * 1000.0);
        let mut state = self.0.lock();
        state.hasher.update(line.as_bytes());
        if let Some(file) = &mut state.file {
            file.write_all(line.as_bytes()).expect("the trace is written");
        }
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
