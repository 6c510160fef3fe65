//! A real Ceph RGW for the integration tests, started and ended by the scripts of `minio-dev`.

use crate::settings;
use crate::tool::Tool;
use anyhow::{Context, Result, bail};
use std::net::TcpListener;
use std::path::PathBuf;
use std::time::Duration;
use tempfile::TempDir;

/// How long a start may take on a busy machine.
const START_PATIENCE: Duration = Duration::from_mins(4);

/// A running Ceph cluster with one RGW; dropping it deletes it.
#[derive(Debug)]
pub struct Ceph {
    folder: TempDir,
    port: u16,
    environment: Vec<(String, String)>,
}

impl Ceph {
    pub fn start() -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("cairn-ceph").tempdir()?;
        // A port that the system just gave out: two clusters that start at once do not meet.
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let mut ceph = Self { folder, port, environment: Vec::new() };
        ceph.up()?;
        Ok(ceph)
    }

    /// Starts whatever is not running.
    pub fn up(&mut self) -> Result<()> {
        let said = self.script("up").timeout(START_PATIENCE).run()?.stdout;
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
        self.signal_gateway("-KILL")
    }

    /// SIGSTOP to the RGW: connections stay, and nothing is answered, until `thaw_gateway`.
    pub fn freeze_gateway(&self) -> Result<()> {
        self.signal_gateway("-STOP")
    }

    pub fn thaw_gateway(&self) -> Result<()> {
        self.signal_gateway("-CONT")
    }

    fn signal_gateway(&self, signal: &str) -> Result<()> {
        let path = self.folder.path().join("run/rgw.0.pid");
        let record = std::fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
        let pid = record.split_whitespace().next().context("the pid file is empty")?;
        Tool::new("kill").args([signal, pid]).run().map(drop)
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

impl Drop for Ceph {
    fn drop(&mut self) {
        if let Err(error) = self.script("down").arg("--wipe").run() {
            eprintln!("stopping Ceph: {error:#}");
        }
    }
}
