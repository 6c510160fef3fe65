//! Where a server lives and dies, and what the writers are told about it.

use super::Kind;
use crate::export::Export;
use crate::random::Random;
use anyhow::{Result, bail};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// How a round ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The server is gone, with requests in flight.
    Dead,
    /// The server lived through it: the writers hang up once everything is answered.
    Alive,
}

/// A place where a server lives, what can happen to it there, and how it comes back.
pub trait Scene {
    fn export(&self) -> Export;

    /// Lets the crash happen while writers run. Whoever ends the server says so to the writers first.
    fn strike(&mut self, kind: Kind, writers: &Writers, random: &mut Random) -> Result<End>;

    /// Makes the server serve again after it died.
    fn recover(&mut self, random: &mut Random) -> Result<()>;

    /// The end of what the server said.
    fn said(&self) -> String;
}

/// What goes on between the writers and whoever lets the crash happen.
#[derive(Debug)]
pub struct Writers {
    run_ms_max: u64,
    written: AtomicU64,
    may_lack_space: AtomicBool,
    /// How often the server was killed, counted up just before it happens; and how often when the writers began.
    deaths: Arc<AtomicU64>,
    deaths_before: u64,
    hang_up: AtomicBool,
}

/// How long it may take until writes are taken again once what was in the way is gone.
const PROGRESS_PATIENCE: Duration = Duration::from_secs(45);

impl Writers {
    pub(super) fn new(run_ms_max: u64) -> Self {
        Self { run_ms_max, ..Self::of_a_server_that_dies(Arc::default(), 0) }
    }

    /// Of a server that others kill; its connections are made since so many `deaths`.
    pub fn of_a_server_that_dies(deaths: Arc<AtomicU64>, deaths_before: u64) -> Self {
        Self {
            run_ms_max: 0,
            written: AtomicU64::new(0),
            may_lack_space: AtomicBool::new(false),
            deaths,
            deaths_before,
            hang_up: AtomicBool::new(false),
        }
    }

    /// Leaves the writers alone for a while.
    pub fn work(&self, random: &mut Random) {
        std::thread::sleep(Duration::from_millis(random.below(self.run_ms_max)));
    }

    /// Waits until the server takes writes that were sent from now on.
    pub fn make_progress(&self) -> Result<()> {
        /// More than can have been in flight.
        const ENOUGH: u64 = 256;
        let (before, started) = (self.written.load(Ordering::SeqCst), Instant::now());
        while self.written.load(Ordering::SeqCst) < before + ENOUGH {
            if started.elapsed() > PROGRESS_PATIENCE {
                bail!("hardly a write was taken within {} s", PROGRESS_PATIENCE.as_secs());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }

    /// From now on a write may be refused for lack of space.
    pub fn may_lack_space(&self) {
        self.may_lack_space.store(true, Ordering::SeqCst);
    }

    /// From now on a connection may break.
    pub fn server_dies(&self) {
        self.deaths.fetch_add(1, Ordering::SeqCst);
    }

    pub(super) fn finish(&self) {
        self.hang_up.store(true, Ordering::SeqCst);
    }

    pub(super) fn has_to_finish(&self) -> bool {
        self.hang_up.load(Ordering::SeqCst)
    }

    pub(super) fn was_written(&self) {
        self.written.fetch_add(1, Ordering::SeqCst);
    }

    pub(super) fn excuses_lack_of_space(&self) -> bool {
        self.may_lack_space.load(Ordering::SeqCst)
    }

    pub(super) fn excuses_a_broken_connection(&self) -> bool {
        self.deaths.load(Ordering::SeqCst) != self.deaths_before
    }
}
