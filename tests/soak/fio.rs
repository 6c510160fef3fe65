//! fio with verification, one kind of job after the other.

use crate::load::Load;
use crate::site::Site;
use anyhow::{Context, Result};
use std::time::Duration;
use system_tests::checks::fio;
use system_tests::export::Export;
use system_tests::random::Random;

const MIB: u64 = 1 << 20;

/// What a job needs: its volume, and how much of it is worked on.
const JOBS: [(Job, &str, u64); 4] = [
    (Job::Random4k, "fio-4k", 24 * MIB),
    (Job::MixedSizes, "fio-mixed", 24 * MIB),
    (Job::Trims, "fio-trims", 16 * MIB),
    (Job::Later, "fio-later", 24 * MIB),
];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Job {
    Random4k,
    MixedSizes,
    Trims,
    /// Verifies what the round before last wrote, then writes again: by then it has left the caches.
    Later,
}

pub(crate) struct Fio {
    exports: Vec<Export>,
    turn: usize,
    random: Random,
    /// The seed of what `fio-later` holds.
    written: Option<u32>,
}

impl Fio {
    pub(crate) fn new(site: &Site, seed: u64) -> Result<Self> {
        let gateway = site.calm();
        let mut exports = Vec::new();
        for (_, name, size) in JOBS {
            gateway.create_volume(name, size)?;
            exports.push(gateway.export(name));
        }
        Ok(Self { exports, turn: 0, random: Random::seeded(seed), written: None })
    }

    fn later(&mut self, export: &Export, size: u64) -> Result<()> {
        if let Some(seed) = self.written.take() {
            fio::verifies_only(export, size, seed).context("what was written some rounds ago")?;
        }
        let seed = u32::try_from(1 + self.random.below(1 << 30))?;
        fio::writes_only(export, size, seed)?;
        self.written = Some(seed);
        Ok(())
    }
}

/// The jobs that are over when they return.
pub(crate) fn check(job: Job, export: &Export, size: u64) -> Result<()> {
    match job {
        Job::Random4k => fio::verifies_random_4k(export, size),
        Job::MixedSizes => fio::verifies_mixed_sizes(export, size),
        Job::Trims => fio::verifies_trims(export, size),
        Job::Later => {
            fio::writes_only(export, size, 7)?;
            fio::verifies_only(export, size, 7)
        }
    }
}

impl Load for Fio {
    fn name(&self) -> &'static str {
        "fio"
    }

    fn percent(&self) -> u64 {
        20
    }

    fn rest(&self) -> Duration {
        Duration::from_secs(2)
    }

    fn round(&mut self, site: &Site) -> Result<u64> {
        let turn = self.turn % JOBS.len();
        self.turn += 1;
        let (job, name, bytes) = JOBS[turn];
        let _calm = site.calm();
        let export = self.exports[turn].clone();
        match job {
            Job::Later => self.later(&export, bytes),
            job => check(job, &export, bytes),
        }
        .with_context(|| format!("fio on {name}"))?;
        site.count("fio runs with verification", 1);
        Ok(bytes)
    }

    fn check_again(&mut self, _site: &Site) -> Result<()> {
        let (_, _, size) = JOBS[3];
        self.written.map_or(Ok(()), |seed| fio::verifies_only(&self.exports[3], size, seed))
    }
}
