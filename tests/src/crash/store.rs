//! A gateway whose pool is a real object store that goes away and comes back.

use super::host::QUICK_CONFIG;
use super::{End, Kind, Scene, Writers};
use crate::export::Export;
use crate::gateway::Gateway;
use crate::object_store::Ceph;
use crate::random::Random;
use anyhow::{Result, bail};
use std::time::Duration;

#[derive(Clone, Copy, Debug)]
enum Outage {
    /// Connections are refused.
    Killed,
    /// Connections are accepted, and nothing is answered.
    Frozen,
}

#[derive(Debug)]
pub struct Store {
    gateway: Gateway,
    ceph: Ceph,
    outage: Option<Outage>,
}

impl Store {
    /// A gateway that serves an empty volume of `size` bytes.
    pub fn new(size: u64) -> Result<Self> {
        let ceph = Ceph::start()?;
        let mut gateway = Gateway::new_with(ceph.credentials())?;
        gateway.command(["init", "--create-bucket", "--pool", &ceph.node_url("crashes")?]).run()?;
        std::fs::write(gateway.dir().join("cairn.toml"), QUICK_CONFIG)?;
        gateway.start()?;
        gateway.create_volume("vol", size)?;
        Ok(Self { gateway, ceph, outage: None })
    }

    fn begin_outage(&mut self, random: &mut Random) -> Result<()> {
        let outage = if random.chance(2) { Outage::Killed } else { Outage::Frozen };
        self.outage = Some(outage);
        match outage {
            Outage::Killed => self.ceph.kill_gateway(),
            Outage::Frozen => self.ceph.freeze_gateway(),
        }
    }

    fn end_outage(&mut self) -> Result<()> {
        match self.outage.take() {
            Some(Outage::Killed) => self.ceph.up(),
            Some(Outage::Frozen) => self.ceph.thaw_gateway(),
            None => Ok(()),
        }
    }
}

impl Scene for Store {
    fn export(&self) -> Export {
        self.gateway.export("vol")
    }

    fn strike(&mut self, kind: Kind, writers: &Writers, random: &mut Random) -> Result<End> {
        if kind != Kind::StoreAway {
            bail!("no {kind} happens to an object store");
        }
        writers.work(random);
        self.begin_outage(random)?;
        std::thread::sleep(Duration::from_millis(random.below(5000)));
        if random.chance(2) {
            writers.server_dies();
            self.gateway.kill()?;
            return Ok(End::Dead);
        }
        self.end_outage()?;
        writers.make_progress()?;
        if random.chance(2) {
            return Ok(End::Alive);
        }
        writers.server_dies();
        self.gateway.kill()?;
        Ok(End::Dead)
    }

    fn recover(&mut self, random: &mut Random) -> Result<()> {
        if random.chance(2) {
            self.gateway.start_without_waiting()?;
            std::thread::sleep(Duration::from_millis(random.below(2000)));
            self.gateway.kill()?;
        }
        self.end_outage()?;
        self.gateway.start()
    }

    fn said(&self) -> String {
        self.gateway.said()
    }
}
