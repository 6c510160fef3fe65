//! A real Ceph RGW for the integration tests, with one endpoint or several, started and ended by the scripts of `minio-dev`.

use crate::random::Random;
use crate::settings;
use crate::tool::Tool;
use anyhow::{Context, Result, bail};
use std::net::TcpListener;
use std::path::PathBuf;
use std::time::Duration;
use tempfile::TempDir;

/// How long a start may take on a busy machine.
const START_PATIENCE: Duration = Duration::from_mins(4);

/// A running Ceph cluster with one RGW or several; dropping it deletes it.
#[derive(Debug)]
pub struct Ceph {
    folder: TempDir,
    port: u16,
    endpoints: usize,
    environment: Vec<(String, String)>,
}

impl Ceph {
    pub fn start() -> Result<Self> {
        Self::start_with(1)
    }

    /// So many endpoints, which share their buckets.
    pub fn start_with(endpoints: usize) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("cairn-ceph").tempdir()?;
        let mut ceph = Self { folder, port: free_ports(endpoints)?, endpoints, environment: Vec::new() };
        ceph.up()?;
        Ok(ceph)
    }

    /// Starts whatever is not running.
    pub fn up(&mut self) -> Result<()> {
        let said = self.script("up").arg(self.endpoints.to_string()).timeout(START_PATIENCE).run()?.stdout;
        let pairs = said.lines().map(|line| {
            let (name, value) =
                line.split_once('=').with_context(|| format!("minio-dev/up said {line:?}"))?;
            Ok((name.to_owned(), value.to_owned()))
        });
        self.environment = pairs.collect::<Result<_>>()?;
        Ok(())
    }

    /// SIGKILL to the RGW: the store is gone from one moment to the next. `up` brings it back.
    pub fn kill_gateway(&self) -> Result<()> {
        self.kill_endpoint(0)
    }

    pub fn kill_endpoint(&self, endpoint: usize) -> Result<()> {
        self.signal("-KILL", endpoint)
    }

    /// SIGSTOP to the RGW: connections stay, and nothing is answered, until `thaw_gateway`.
    pub fn freeze_gateway(&self) -> Result<()> {
        self.freeze_endpoint(0)
    }

    pub fn freeze_endpoint(&self, endpoint: usize) -> Result<()> {
        self.signal("-STOP", endpoint)
    }

    pub fn thaw_gateway(&self) -> Result<()> {
        self.thaw_endpoint(0)
    }

    pub fn thaw_endpoint(&self, endpoint: usize) -> Result<()> {
        self.signal("-CONT", endpoint)
    }

    fn pid(&self, endpoint: usize) -> Result<String> {
        let path = self.folder.path().join(format!("run/rgw.{endpoint}.pid"));
        let record = std::fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
        Ok(record.split_whitespace().next().context("the pid file is empty")?.to_owned())
    }

    fn signal(&self, signal: &str, endpoint: usize) -> Result<()> {
        Tool::new("kill").args([signal, &self.pid(endpoint)?]).run().map(drop)
    }

    /// The credentials that S3 clients read from their environment.
    pub fn credentials(&self) -> Vec<(String, String)> {
        self.environment.iter().filter(|(name, _)| name.starts_with("AWS_")).cloned().collect()
    }

    /// The URL of a data node in a bucket of its own.
    pub fn node_url(&self, bucket: &str) -> Result<String> {
        let endpoint = self.variable("CAIRN_S3_ENDPOINT")?;
        Ok(format!("s3://{bucket}/pool?endpoint={endpoint}&region={}", self.variable("AWS_REGION")?))
    }

    /// The URL of a data node in a bucket of its own, behind the endpoint of that number.
    pub fn node_url_at(&self, endpoint: usize, bucket: &str) -> Result<String> {
        let address = self.endpoint(endpoint);
        Ok(format!("s3://{bucket}/pool?endpoint={address}&region={}", self.variable("AWS_REGION")?))
    }

    pub fn endpoint(&self, number: usize) -> String {
        format!("http://127.0.0.1:{}", usize::from(self.port) + number)
    }

    /// An endpoint that answers.
    pub fn living_endpoint(&self) -> Result<String> {
        for number in 0..self.endpoints {
            let asked = Tool::new("curl")
                .args(["--silent", "--max-time", "2", "--output", "/dev/null"])
                .arg(self.endpoint(number))
                .finish()?;
            if asked.status.success() {
                return Ok(self.endpoint(number));
            }
        }
        bail!("no endpoint of the store answers")
    }

    fn variable(&self, name: &str) -> Result<&str> {
        match self.environment.iter().find(|(known, _)| known == name) {
            Some((_, value)) => Ok(value),
            None => bail!("minio-dev/up did not print {name}"),
        }
    }

    fn script(&self, name: &str) -> Tool {
        let path: PathBuf = settings::workspace().join("minio-dev").join(name);
        Tool::new(path).env("CAIRN_DEV_DIR", self.folder.path()).env("CAIRN_DEV_PORT", self.port.to_string())
    }
}

/// The first of so many free ports, somewhere by chance, so that two clusters that start at once do not meet. They are below those that the system gives
/// to connections, which would take the place of an endpoint that is down for a moment.
fn free_ports(count: usize) -> Result<u16> {
    let (count, mut random) = (u16::try_from(count)?, Random::by_chance()?);
    for _ in 0..100 {
        let first = 10_000 + u16::try_from(random.below(9000))?;
        let ports = (first..first + count).map(|port| TcpListener::bind(("127.0.0.1", port)).ok());
        if ports.collect::<Option<Vec<_>>>().is_some() {
            return Ok(first);
        }
    }
    bail!("no {count} free ports beside each other on 127.0.0.1")
}

impl Drop for Ceph {
    fn drop(&mut self) {
        if let Err(error) = self.script("down").arg("--wipe").run() {
            eprintln!("stopping Ceph: {error:#}");
        }
    }
}
