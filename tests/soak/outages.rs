//! What happens around the loads: the object store stops answering or dies for some seconds, and, on request, the
//! gateway is killed.

use crate::options::Options;
use crate::site::Site;
use anyhow::Result;
use std::time::Duration;
use system_tests::object_store::Ceph;
use system_tests::random::Random;

/// The store is away for less than the gateway's patience with a read.
const PAUSE_SECONDS_MAX: u64 = 8;

/// Stops or kills the store now and then until the run stops.
pub(crate) fn interrupt_store(site: &Site, ceph: &mut Ceph, options: &Options, seed: u64) {
    let every = Duration::from_mins(5).min(options.duration / 4);
    let mut random = Random::seeded(seed);
    loop {
        site.rest(every);
        if site.is_stopped() {
            return;
        }
        let outcome = if random.chance(2) { pause(ceph, site, &mut random) } else { kill(ceph, site) };
        if let Err(error) = outcome {
            site.fail("the object store", &error);
        }
    }
}

fn pause(ceph: &Ceph, site: &Site, random: &mut Random) -> Result<()> {
    let seconds = 3 + random.below(PAUSE_SECONDS_MAX - 2);
    ceph.freeze_gateway()?;
    site.rest(Duration::from_secs(seconds));
    ceph.thaw_gateway()?;
    site.count("times the store did not answer for some seconds", 1);
    Ok(())
}

fn kill(ceph: &mut Ceph, site: &Site) -> Result<()> {
    ceph.kill_gateway()?;
    ceph.up()?;
    site.count("times the store was killed and started", 1);
    Ok(())
}

/// Kills and starts the gateway every few minutes until the run stops.
pub(crate) fn kill_gateway(site: &Site, options: &Options, seed: u64) {
    let every = Duration::from_mins(4).min(options.duration / 6).as_millis();
    let mut random = Random::seeded(seed);
    loop {
        let half = u64::try_from(every).unwrap_or(u64::MAX) / 2;
        site.rest(Duration::from_millis(half + random.below(half * 2)));
        if site.is_stopped() {
            return;
        }
        match site.kill_and_start() {
            Ok(()) => site.count("times the gateway was killed and started", 1),
            Err(error) => {
                site.fail("a start after SIGKILL", &error);
                site.stop();
            }
        }
    }
}
