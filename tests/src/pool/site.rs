//! A gateway over a pool of several nodes, and what it says of them.

use crate::gateway::Gateway;
use crate::tool::{Finished, Tool};
use anyhow::{Context, Result, bail};
use serde::Deserialize;
use std::time::{Duration, Instant};

/// Little memory and no flash, so that reads reach the pool; small segments, so that there are many.
const CONFIG: &str = "\
[memory]
block_cache = \"16MiB\"
write_buffer = \"16MiB\"
map_cache = \"16MiB\"
[flash]
size = \"0\"
[destage]
batch_bytes = \"1MiB\"
[reclaim]
interval = \"off\"
";

/// The same for hours under load: what is overwritten comes back all the time.
const CONFIG_OF_LONG_RUNS: &str = "\
[memory]
block_cache = \"16MiB\"
write_buffer = \"32MiB\"
map_cache = \"16MiB\"
[flash]
size = \"0\"
[destage]
batch_bytes = \"4MiB\"
[reclaim]
interval = \"20s\"
";

/// What `cairn node list --json` says of a node.
#[derive(Clone, Debug, Deserialize)]
pub struct NodeFigures {
    pub name: String,
    pub id: String,
    pub url: String,
    pub domain: Option<String>,
    pub state: String,
    pub capacity_bytes: Option<u64>,
    pub shards: u64,
    pub used_bytes: u64,
    /// Absent when no gateway runs.
    pub health: Option<serde_json::Value>,
}

/// What `cairn pool profile --json` says.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
pub struct PoolFigures {
    pub profile: String,
    pub shards: u64,
    pub tolerates: u64,
    pub active_nodes: u64,
    pub domains: u64,
    pub segments: u64,
    pub degraded_segments: u64,
    pub at_risk_segments: u64,
}

/// A gateway and its pool.
#[derive(Debug)]
pub struct PoolSite {
    pub gateway: Gateway,
}

impl PoolSite {
    /// A gateway on a fresh folder, running on the node that every site begins with; `more` is added to its configuration.
    pub fn start(environment: Vec<(String, String)>, more: &str) -> Result<Self> {
        Self::start_as(environment, &format!("{CONFIG}{more}"))
    }

    /// The same for hours under load.
    pub fn start_for_long(environment: Vec<(String, String)>) -> Result<Self> {
        Self::start_as(environment, CONFIG_OF_LONG_RUNS)
    }

    fn start_as(environment: Vec<(String, String)>, config: &str) -> Result<Self> {
        let mut gateway = Gateway::new_with(environment)?;
        gateway.init_with_config(config)?;
        gateway.start()?;
        Ok(Self { gateway })
    }

    /// A `cairn` command on the site.
    pub fn cairn(&self, arguments: &[&str]) -> Tool {
        self.gateway.command([]).args(arguments.iter().copied()).timeout(Duration::from_mins(5))
    }

    /// A command that must be refused with status 1 and must name each of these in what it says.
    pub fn refuses(&self, arguments: &[&str], named: &[&str]) -> Result<Finished> {
        let refused = self.cairn(arguments).run_refused()?;
        if refused.status.code() != Some(1) {
            bail!("refused, but not as a failure: {}", refused.describe());
        }
        for name in named {
            if !refused.stderr.contains(name) {
                bail!("the refusal does not say {name:?}: {}", refused.describe());
            }
        }
        Ok(refused)
    }

    pub fn add_node(&self, name: &str, url: &str, options: &[&str]) -> Result<()> {
        self.cairn(&["node", "add", name, url]).args(options.iter().copied()).run().map(drop)
    }

    pub fn set_profile(&self, profile: &str) -> Result<()> {
        self.cairn(&["pool", "profile", profile]).run().map(drop)
    }

    pub fn nodes(&self) -> Result<Vec<NodeFigures>> {
        let said = self.cairn(&["node", "list", "--json"]).run()?.stdout;
        serde_json::from_str(&said).with_context(|| format!("`cairn node list --json` said {said:?}"))
    }

    pub fn node(&self, name: &str) -> Result<NodeFigures> {
        let said = self.cairn(&["node", "show", name, "--json"]).run()?.stdout;
        serde_json::from_str(&said).with_context(|| format!("`cairn node show {name} --json` said {said:?}"))
    }

    /// Names of the nodes, in the order of the list.
    pub fn names(&self) -> Result<Vec<String>> {
        Ok(self.nodes()?.into_iter().map(|node| node.name).collect())
    }

    pub fn pool(&self) -> Result<PoolFigures> {
        let said = self.cairn(&["pool", "profile", "--json"]).run()?.stdout;
        serde_json::from_str(&said).with_context(|| format!("`cairn pool profile --json` said {said:?}"))
    }

    /// A number in `cairn status --json`.
    pub fn number(&self, path: &str) -> Result<u64> {
        let status = self.gateway.status()?;
        let found = status.pointer(path).and_then(serde_json::Value::as_u64);
        found.with_context(|| format!("no {path} in {status}"))
    }

    /// Everything in `cairn status` that needs attention, one line each.
    pub fn attention(&self) -> Result<Vec<String>> {
        let status = self.gateway.status()?;
        let entries = status["attention"].as_array().context("status has no attention")?;
        Ok(entries.iter().map(|entry| entry["what"].as_str().unwrap_or_default().to_owned()).collect())
    }

    /// SIGKILL and a new start: caches are cold.
    pub fn restart(&mut self) -> Result<()> {
        self.gateway.kill()?;
        self.gateway.start()
    }

    /// Waits until no segment lacks a shard, none is on a node that is not active, and each is of the pool's profile.
    pub fn wait_until_whole(&self, patience: Duration) -> Result<Duration> {
        let begun = Instant::now();
        wait_until("every segment has all its shards", patience, || self.is_whole())?;
        Ok(begun.elapsed())
    }

    /// Every segment has all its shards, on active nodes.
    pub fn is_whole(&self) -> Result<bool> {
        let pool = self.pool()?;
        if pool.degraded_segments > 0 {
            return Ok(false);
        }
        let nodes = self.nodes()?;
        let on_active: u64 = nodes.iter().filter(|node| node.state == "active").map(|node| node.shards).sum();
        let on_all: u64 = nodes.iter().map(|node| node.shards).sum();
        Ok(on_active == on_all && on_all == pool.segments * pool.shards)
    }
}

/// Waits until it is so. What is not so in time is an error that says what it was about.
pub fn wait_until(what: &str, patience: Duration, mut is_so: impl FnMut() -> Result<bool>) -> Result<()> {
    let begun = Instant::now();
    while !is_so()? {
        if begun.elapsed() > patience {
            bail!("not so after {} s: {what}", patience.as_secs());
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}
