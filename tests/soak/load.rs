//! What all loads have in common: rounds until the run stops, each no faster than its share of the pool allows.

use crate::site::Site;
use anyhow::Result;
use std::time::{Duration, Instant};

/// One kind of load, on volumes of its own.
pub(crate) trait Load: Send {
    fn name(&self) -> &'static str;

    /// Its part of the bytes that the run may write, in percent; all loads together stay below a hundred.
    fn percent(&self) -> u64;

    /// The shortest pause between two rounds.
    fn rest(&self) -> Duration;

    /// One round, everything verified that it touches. Returns how many bytes it wrote and did not pay for with
    /// rests of its own.
    fn round(&mut self, site: &Site) -> Result<u64>;

    /// What it left behind is still there: asked after the last round and a restart.
    fn check_again(&mut self, site: &Site) -> Result<()>;
}

/// Runs rounds until the run stops. A round that fails is taken down, and the next begins.
pub(crate) fn drive(load: &mut dyn Load, site: &Site) {
    let rate = site.rate(load.percent());
    while !site.is_stopped() {
        let started = Instant::now();
        let written = load.round(site).unwrap_or_else(|error| {
            site.fail(load.name(), &error);
            0
        });
        let cost = Duration::from_millis(written * 1000 / rate);
        site.rest(load.rest().max(cost.saturating_sub(started.elapsed())));
    }
}
