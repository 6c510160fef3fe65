//! A pool of several data nodes: set up by commands, struck by everything that happens to nodes, and read right all the while.
//!
//! The nodes are directories here, which fail in an instant; `integration/pool.rs` does what only servers do, and `just pool-rounds` goes on for longer.

mod checking;
mod healing;
mod kills;
mod losses;
mod setup;

use anyhow::{Result, ensure};
use std::time::Duration;
use system_tests::pool::{Folders, Known, PoolSite};

const MIB: u64 = 1 << 20;

/// The bytes that most tests write.
const BYTES: u64 = 24 * MIB;

/// How long healing may take here: there is little to heal, but other tests keep the machine busy.
const PATIENCE: Duration = Duration::from_mins(5);

/// A running site and its nodes.
struct Pool {
    site: PoolSite,
    folders: Folders,
    /// n1, n2 and so on.
    names: Vec<String>,
}

impl Pool {
    fn start(nodes: usize, profile: &str) -> Result<Self> {
        Self::start_with(nodes, profile, "")
    }

    /// The same with more configuration.
    fn start_with(nodes: usize, profile: &str, config: &str) -> Result<Self> {
        let mut pool =
            Self { site: PoolSite::start(Vec::new(), config)?, folders: Folders::new()?, names: Vec::new() };
        for _ in 0..nodes {
            pool.add_one()?;
        }
        pool.site.set_profile(profile)?;
        Ok(pool)
    }

    /// Adds the next node.
    fn add_one(&mut self) -> Result<String> {
        let name = format!("n{}", self.names.len() + 1);
        self.site.add_node(&name, &self.folders.url(&name), &[])?;
        self.names.push(name.clone());
        Ok(name)
    }

    /// A volume of known bytes, all of it in the pool.
    fn fill(&self, volume: &str, bytes: u64) -> Result<Known> {
        let mut known = Known::create(&self.site.gateway, volume, bytes, 1)?;
        known.fill()?;
        self.site.gateway.destage()?;
        Ok(known)
    }

    /// Reads everything from cold caches.
    fn verify_cold(&mut self, known: &Known) -> Result<()> {
        self.site.restart()?;
        known.verify()
    }

    /// Pairs of nodes.
    fn pairs(&self) -> Vec<[String; 2]> {
        let names = &self.names;
        let with = |(at, first): (usize, &String)| {
            names[at + 1..].iter().map(|second| [first.clone(), second.clone()]).collect::<Vec<_>>()
        };
        names.iter().enumerate().flat_map(with).collect()
    }

    /// Every node has the shards that the catalog says, and no other.
    fn is_exact(&self) -> Result<bool> {
        for node in self.site.nodes()? {
            if self.folders.shards(&node.name)?.len() as u64 != node.shards {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// How many objects the nodes have beyond the shards that the catalog says. An error when one lacks some.
    fn leftovers(&self) -> Result<u64> {
        let mut left = 0;
        for node in self.site.nodes()? {
            let there = self.folders.shards(&node.name)?.len() as u64;
            ensure!(
                there >= node.shards,
                "node {} has {there} shards, and {} by the catalog",
                node.name,
                node.shards
            );
            left += there - node.shards;
        }
        Ok(left)
    }

    fn assert_exact(&self) -> Result<()> {
        for node in self.site.nodes()? {
            let there = self.folders.shards(&node.name)?.len() as u64;
            ensure!(
                there == node.shards,
                "node {} has {there} shards, and {} by the catalog",
                node.name,
                node.shards
            );
        }
        Ok(())
    }
}
