//! What must hold when the load is over: nobody is connected, everything reaches the pool, and after a restart all of it is
//! there.

use crate::load::Load;
use crate::site::Site;
use anyhow::{Context, Result, bail};
use std::time::{Duration, Instant};

pub(crate) fn check(site: &Site, loads: &mut [Box<dyn Load>]) -> Result<()> {
    eprintln!("soak: the load is over; destage, restart, and everything is read once more");
    nobody_is_connected(site)?;
    site.calm().destage()?;
    let status = site.calm().status()?;
    for (path, expected) in [("/destage/backlog_bytes", 0), ("/destage/batches_in_flight", 0)] {
        let value = status.pointer(path).with_context(|| format!("no {path} in {status}"))?;
        if *value != expected {
            bail!("{path} is {value} after everything was destaged");
        }
    }
    if status["health"] != "ok" {
        bail!("the gateway is not well after the load: {}", status["attention"]);
    }
    site.find_panics()?;
    site.restart_in_order()?;
    for load in loads {
        load.check_again(site).with_context(|| format!("{} after a restart", load.name()))?;
    }
    site.end()
}

/// Every client has gone, and so must what the gateway kept for it.
fn nobody_is_connected(site: &Site) -> Result<()> {
    let started = Instant::now();
    loop {
        let status = site.calm().status()?;
        let connections = &status["gateway"]["nbd_connections"];
        if *connections == 0 {
            return Ok(());
        }
        if started.elapsed() > Duration::from_secs(20) {
            bail!("{connections} connections are left of clients that went away");
        }
        std::thread::sleep(Duration::from_millis(200));
    }
}
