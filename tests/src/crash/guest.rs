//! A gateway inside a guest whose power is cut.

use super::host::QUICK_CONFIG;
use super::{End, Kind, Scene, Writers};
use crate::export::Export;
use crate::gateway::Gateway;
use crate::guest::{Drive, Flushes, Machine, System};
use crate::random::Random;
use anyhow::{Context, Result, bail};
use std::time::Duration;
use tempfile::TempDir;

const GIB: u64 = 1 << 30;

/// What share of a write the drive moves to its medium unasked, in per cent: all between nothing, which leaves the state
/// of the last flush, and nearly everything, which leaves holes.
const KEEPS: [u32; 4] = [0, 20, 50, 95];

/// A machine, its drive, and the folder that both live in, dropped in this order.
#[derive(Debug)]
pub struct Guest {
    machine: Option<Machine>,
    drive: Drive,
    system: System,
    flushes: Flushes,
    _folder: TempDir,
}

impl Guest {
    /// A guest whose gateway serves an empty volume of `size` bytes.
    pub fn new(size: u64, flushes: Flushes) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("cairn-guest").tempdir()?;
        let system = System::build(folder.path())?;
        let staged = folder.path().join("staged");
        std::fs::create_dir(&staged)?;
        let gateway = Gateway::new_in(&staged.join("d"))?;
        gateway.init_with_config(QUICK_CONFIG)?;
        gateway.create_volume("vol", size)?;
        let drive = Drive::with_content(folder.path(), 4 * GIB, &staged)?;
        let mut guest = Self { machine: None, drive, system, flushes, _folder: folder };
        match flushes {
            Flushes::ReachTheMedium => guest.power_on(&mut Random::seeded(0))?,
            Flushes::AreLost => guest.boot_once_for_good()?,
        }
        Ok(guest)
    }

    /// The first start preallocates the log. A drive that loses flushes keeps it all the same, and so has something worth
    /// looking at after the power was cut.
    fn boot_once_for_good(&mut self) -> Result<()> {
        self.drive.power_on(100, Flushes::ReachTheMedium, 0)?;
        self.machine = Some(Machine::boot(&self.system, &self.drive)?);
        self.export().connect()?.flush()?;
        self.cut_power()?;
        self.power_on(&mut Random::seeded(0))
    }

    fn power_on(&mut self, random: &mut Random) -> Result<()> {
        let keeps = match self.flushes {
            Flushes::ReachTheMedium => KEEPS[usize::try_from(random.below(KEEPS.len() as u64))?],
            // A disk that has lost everything since it was switched on is whole, only old.
            Flushes::AreLost => 0,
        };
        self.drive.power_on(keeps, self.flushes, random.word())?;
        self.machine = Some(Machine::boot(&self.system, &self.drive)?);
        Ok(())
    }

    fn cut_power(&mut self) -> Result<()> {
        self.machine.take().context("the guest does not run")?.cut_power()?;
        self.drive.cut_power()
    }
}

impl Scene for Guest {
    fn export(&self) -> Export {
        let port = self.machine.as_ref().map_or(0, Machine::nbd_port);
        Export::on_port(port, "vol")
    }

    fn strike(&mut self, kind: Kind, writers: &Writers, random: &mut Random) -> Result<End> {
        if kind != Kind::PowerCut {
            bail!("no {kind} happens to a guest");
        }
        // An emulated machine is slow: a cut before anything was flushed would ask little.
        writers.make_progress()?;
        writers.work(random);
        writers.server_dies();
        self.cut_power()?;
        Ok(End::Dead)
    }

    fn recover(&mut self, random: &mut Random) -> Result<()> {
        if self.flushes == Flushes::ReachTheMedium && random.chance(4) {
            self.drive.power_on(50, self.flushes, random.word())?;
            let machine = Machine::switch_on(&self.system, &self.drive)?;
            // From the drivers to the first requests.
            std::thread::sleep(Duration::from_millis(2000 + random.below(6000)));
            machine.cut_power()?;
            self.drive.cut_power()?;
        }
        self.power_on(random)
    }

    fn said(&self) -> String {
        self.machine.as_ref().map(Machine::said).unwrap_or_default()
    }
}
