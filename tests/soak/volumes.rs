//! Volumes that are made, grown, shrunk, renamed and deleted through the command line, with data in them all the while. Names
//! are used again, and what had one before must not shine through.

use crate::load::Load;
use crate::site::Site;
use anyhow::{Context, Result, bail};
use serde_json::Value;
use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};
use system_tests::export::Export;
use system_tests::gateway::Gateway;
use system_tests::oracle::stamp::{self, BLOCK, Seen};
use system_tests::random::Random;

const MIB: u64 = 1 << 20;
/// So many volumes are kept for a while; then the oldest goes.
const KEPT: usize = 3;
const NAMES: u64 = 5;
const WRITES: u64 = 48;

/// A volume that is zero but for single stamped blocks.
pub(crate) struct Sparse {
    name: String,
    identity: u64,
    blocks: u64,
    written: BTreeMap<u64, u64>,
}

impl Sparse {
    pub(crate) fn new(name: String, identity: u64, blocks: u64) -> Self {
        Self { name, identity, blocks, written: BTreeMap::new() }
    }

    /// Stamps some blocks from `first` on; the last one is always among them.
    pub(crate) fn scatter(&mut self, export: &Export, first: u64, random: &mut Random) -> Result<()> {
        let mut client = export.connect()?;
        let mut bytes = vec![0; BLOCK];
        for write in 0..WRITES {
            let block = if write == 0 { self.blocks - 1 } else { first + random.below(self.blocks - first) };
            let number = random.word();
            stamp::stamp(&mut bytes, self.identity, block, number);
            client.write(block * BLOCK as u64, &bytes)?;
            self.written.insert(block, number);
        }
        client.flush()?;
        client.disconnect()
    }

    /// Every stamp is there, the block after each is what it should be, and so are some anywhere.
    pub(crate) fn check(&self, export: &Export, random: &mut Random) -> Result<()> {
        let mut client = export.connect()?;
        if client.size() != self.blocks * BLOCK as u64 {
            bail!("{} is {} bytes long, not {}", self.name, client.size(), self.blocks * BLOCK as u64);
        }
        let elsewhere: Vec<u64> = (0..WRITES).map(|_| random.below(self.blocks)).collect();
        let near = self.written.keys().flat_map(|block| [*block, (block + 1).min(self.blocks - 1)]);
        for block in near.chain(elsewhere) {
            let expected = self.written.get(&block).map_or(Seen::Zero, |number| Seen::Write(*number));
            match stamp::read(&client.read(block * BLOCK as u64, BLOCK)?, self.identity, block) {
                Ok(seen) if seen == expected => {}
                Ok(seen) => bail!("block {block} of {} holds {seen:?}, not {expected:?}", self.name),
                Err(damage) => bail!("block {block} of {} {damage}", self.name),
            }
        }
        client.disconnect()
    }

    fn resize(&mut self, gateway: &Gateway, blocks: u64) -> Result<()> {
        let size = (blocks * BLOCK as u64).to_string();
        if blocks < self.blocks {
            wait_until_left(gateway, &self.name)?;
            gateway.command(["volume", "resize", &self.name, &size, "--force"]).run()?;
        } else {
            gateway.command(["volume", "resize", &self.name, &size]).run()?;
        }
        self.blocks = blocks;
        self.written.retain(|block, _| *block < blocks);
        Ok(())
    }

    fn rename(&mut self, gateway: &Gateway, name: String) -> Result<()> {
        gateway.command(["volume", "rename", &self.name, &name]).run()?;
        if gateway.export(&self.name).connect().is_ok() {
            bail!("{} is still served after it became {name}", self.name);
        }
        self.name = name;
        Ok(())
    }
}

fn names(gateway: &Gateway) -> Result<Vec<String>> {
    let said = gateway.command(["volume", "list", "--json"]).run()?.stdout;
    let listing: Value = serde_json::from_str(&said).with_context(|| said.clone())?;
    let volumes = listing.as_array().with_context(|| format!("`volume list` said {said}"))?;
    Ok(volumes.iter().filter_map(|volume| Some(volume["name"].as_str()?.to_owned())).collect())
}

/// A connection that said goodbye may take a moment to go.
fn wait_until_left(gateway: &Gateway, name: &str) -> Result<()> {
    let started = Instant::now();
    loop {
        let said = gateway.command(["volume", "show", name, "--json"]).run()?.stdout;
        let volume: Value = serde_json::from_str(&said).with_context(|| said.clone())?;
        if volume["attachments"] == 0 {
            return Ok(());
        }
        if started.elapsed() > Duration::from_secs(10) {
            bail!("{name} has clients that left ten seconds ago: {said}");
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}

pub(crate) struct Volumes {
    random: Random,
    made: u64,
    kept: VecDeque<Sparse>,
}

impl Volumes {
    pub(crate) fn new(seed: u64) -> Self {
        Self { random: Random::seeded(seed), made: 0, kept: VecDeque::new() }
    }

    /// A volume from its making to a name of its own.
    fn make(&mut self, gateway: &Gateway) -> Result<Sparse> {
        let blocks = (16 + self.random.below(240)) * MIB / BLOCK as u64;
        let mut volume = Sparse::new("new-volume".to_owned(), self.random.word(), blocks);
        gateway.create_volume(&volume.name, blocks * BLOCK as u64)?;
        volume.check(&gateway.export(&volume.name), &mut self.random).context("a volume just made")?;
        volume.scatter(&gateway.export(&volume.name), 0, &mut self.random)?;

        volume.resize(gateway, blocks * 2)?;
        volume.check(&gateway.export(&volume.name), &mut self.random).context("after it grew")?;
        volume.scatter(&gateway.export(&volume.name), blocks, &mut self.random)?;
        volume.resize(gateway, blocks / 2)?;
        volume.resize(gateway, blocks)?;
        volume.check(&gateway.export(&volume.name), &mut self.random).context("after it shrank and grew")?;

        self.made += 1;
        volume.rename(gateway, format!("volume-{}", self.made % NAMES))?;
        volume.check(&gateway.export(&volume.name), &mut self.random).context("under its new name")?;
        Ok(volume)
    }

    /// Deletes the volume, at times while a client has it open.
    fn delete(&mut self, gateway: &Gateway, volume: &Sparse) -> Result<()> {
        volume.check(&gateway.export(&volume.name), &mut self.random).context("a volume made rounds ago")?;
        if self.random.chance(2) {
            let mut client = gateway.export(&volume.name).connect()?;
            client.read(0, BLOCK)?;
            gateway.command(["volume", "delete", &volume.name, "--yes", "--force"]).run()?;
            if client.write(0, &[1; BLOCK]).is_ok() {
                bail!("{} took a write after it was deleted", volume.name);
            }
        } else {
            wait_until_left(gateway, &volume.name)?;
            gateway.command(["volume", "delete", &volume.name, "--yes"]).run()?;
        }
        if names(gateway)?.contains(&volume.name) {
            bail!("{} is listed after it was deleted", volume.name);
        }
        Ok(())
    }
}

impl Load for Volumes {
    fn name(&self) -> &'static str {
        "volumes"
    }

    fn percent(&self) -> u64 {
        1
    }

    fn rest(&self) -> Duration {
        Duration::from_secs(10)
    }

    fn round(&mut self, site: &Site) -> Result<u64> {
        let gateway = site.calm();
        if self.kept.len() == KEPT {
            let oldest = self.kept.pop_front().expect("there are some");
            self.delete(&gateway, &oldest)?;
        }
        // A round that failed may have left its volume behind.
        if names(&gateway)?.iter().any(|name| name == "new-volume") {
            gateway.command(["volume", "delete", "new-volume", "--yes", "--force"]).run()?;
        }
        let volume = self.make(&gateway)?;
        self.kept.push_back(volume);
        site.count("volumes made, resized, renamed and deleted", 1);
        Ok(2 * WRITES * BLOCK as u64)
    }

    fn check_again(&mut self, site: &Site) -> Result<()> {
        let gateway = site.calm();
        for volume in &self.kept {
            volume.check(&gateway.export(&volume.name), &mut self.random)?;
        }
        Ok(())
    }
}
