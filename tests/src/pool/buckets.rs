//! Data nodes that are buckets, each behind an endpoint of its own of one Ceph cluster.

use crate::object_store::Ceph;
use crate::settings;
use crate::tool::Tool;
use anyhow::{Context, Result};
use std::collections::BTreeSet;
use std::time::Duration;

#[derive(Debug)]
pub struct Buckets {
    pub ceph: Ceph,
}

impl Buckets {
    /// A fresh cluster with so many endpoints.
    pub fn start(endpoints: usize) -> Result<Self> {
        Ok(Self { ceph: Ceph::start_with(endpoints)? })
    }

    /// The bucket of a node: its name alone may be too short for one.
    pub fn bucket(node: &str) -> String {
        format!("node-{node}")
    }

    /// The node of that name, whose bucket is behind the endpoint of that number.
    pub fn url(&self, endpoint: usize, node: &str) -> Result<String> {
        self.ceph.node_url_at(endpoint, &Self::bucket(node))
    }

    fn script(&self, arguments: &[&str]) -> Result<String> {
        let script = settings::workspace().join("tests/src/pool/s3.py");
        let mut tool = Tool::new("python3").arg(script).arg(self.ceph.living_endpoint()?);
        for (name, value) in self.ceph.credentials() {
            tool = tool.env(&name, value);
        }
        let tool = tool.args(arguments.iter().copied()).timeout(Duration::from_mins(5));
        Ok(tool.run()?.stdout)
    }

    fn count(&self, arguments: &[&str]) -> Result<usize> {
        let said = self.script(arguments)?;
        said.trim().parse().with_context(|| format!("s3.py said {said:?}"))
    }

    /// Keys of the shards on a node.
    pub fn shards(&self, node: &str) -> Result<BTreeSet<String>> {
        Ok(self
            .script(&["keys", &Self::bucket(node), "pool/segments/"])?
            .lines()
            .map(str::to_owned)
            .collect())
    }

    /// Deletes everything on the node, or all but the marker. How many objects.
    pub fn wipe(&self, node: &str, keeps_marker: bool) -> Result<usize> {
        self.count(&["empty", &Self::bucket(node), if keeps_marker { "cairn-node.json" } else { "" }])
    }

    /// Flips one bit in every shard. How many shards.
    pub fn flip_bits(&self, node: &str, seed: u64) -> Result<usize> {
        self.count(&["flip", &Self::bucket(node), "pool/segments/", &seed.to_string()])
    }

    /// Every shard ends in the middle. How many.
    pub fn truncate(&self, node: &str) -> Result<usize> {
        self.count(&["truncate", &Self::bucket(node), "pool/segments/"])
    }
}
