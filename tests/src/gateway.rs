//! The released program on a folder of its own.

use crate::export::Export;
use crate::process::Process;
use crate::settings;
use crate::tool::Tool;
use anyhow::{Context, Result, bail};
use rustix::process::Signal;
use serde_json::Value;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;
use tempfile::TempDir;

/// How long a start may take, including the replay of the log.
const START_PATIENCE: Duration = Duration::from_mins(1);
const STOP_PATIENCE: Duration = Duration::from_mins(2);

/// A gateway's folder, and its process while it runs.
#[derive(Debug)]
pub struct Gateway {
    home: TempDir,
    dir: PathBuf,
    program: PathBuf,
    environment: Vec<(String, String)>,
    process: Option<Process>,
}

impl Gateway {
    /// An empty home: nothing is initialised, nothing runs.
    pub fn new() -> Result<Self> {
        Self::new_with(Vec::new())
    }

    /// An empty home whose programs see these variables besides ours.
    pub fn new_with(environment: Vec<(String, String)>) -> Result<Self> {
        let home = tempfile::Builder::new().prefix("cairn").tempdir()?;
        let dir = home.path().join("d");
        Ok(Self { home, dir, program: settings::cairn_binary()?, environment, process: None })
    }

    /// A gateway whose folder is, or will be, elsewhere; it stays when the gateway goes.
    pub fn new_in(dir: &Path) -> Result<Self> {
        Ok(Self { dir: dir.to_owned(), ..Self::new()? })
    }

    /// A gateway on a fresh folder with the embedded defaults, running.
    pub fn start_fresh() -> Result<Self> {
        let mut gateway = Self::new()?;
        gateway.start()?;
        Ok(gateway)
    }

    /// Initialises the folder, without a volume, and replaces its configuration.
    pub fn init_with_config(&self, config: &str) -> Result<()> {
        self.command(["init"]).run()?;
        Ok(std::fs::write(self.dir().join("cairn.toml"), config)?)
    }

    /// The gateway's folder: `--dir`.
    pub fn dir(&self) -> PathBuf {
        self.dir.clone()
    }

    pub fn socket(&self) -> PathBuf {
        self.home.path().join("nbd.sock")
    }

    /// Where everything that the program says goes, over all its starts.
    pub fn log(&self) -> PathBuf {
        self.home.path().join("log")
    }

    /// Where the admin API is.
    pub fn admin_socket(&self) -> PathBuf {
        self.dir.join("admin.sock")
    }

    pub fn export(&self, volume: &str) -> Export {
        Export::new(&self.socket(), volume)
    }

    pub fn process(&self) -> Result<&Process> {
        self.process.as_ref().context("the gateway is not running")
    }

    /// `cairn up` on the folder, and waits until it serves.
    pub fn start(&mut self) -> Result<()> {
        self.start_without_waiting()?;
        self.wait_until_serving()
    }

    pub fn wait_until_serving(&mut self) -> Result<()> {
        let socket = self.socket();
        let process = self.process.as_mut().context("the gateway is not running")?;
        process.wait_for_socket(&socket, START_PATIENCE)
    }

    pub fn start_without_waiting(&mut self) -> Result<()> {
        if self.process.is_some() {
            bail!("the gateway is running already");
        }
        let mut command = Command::new(&self.program);
        command
            .arg("up")
            .arg("--dir")
            .arg(self.dir())
            .arg("--nbd")
            .arg(format!("unix:{}", self.socket().display()));
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        self.process = Some(Process::start(command, &self.log())?);
        Ok(())
    }

    /// Starts and expects the program to give up by itself with an error; returns what it said.
    pub fn start_refused(&mut self) -> Result<String> {
        let _ = std::fs::remove_file(self.log());
        self.start_without_waiting()?;
        let mut process = self.process.take().expect("just started");
        let status = process.wait_for_end(START_PATIENCE)?;
        if status.success() {
            bail!("`cairn up` ended as if all were well:\n{}", process.said());
        }
        Ok(process.said())
    }

    pub fn kill(&mut self) -> Result<()> {
        self.process.take().context("the gateway is not running")?.kill()
    }

    /// Waits until the gateway serves, or ends by itself, as it may when something it needs is missing. Whether it serves.
    pub fn start_or_give_up(&mut self) -> Result<bool> {
        self.start_without_waiting()?;
        let socket = self.socket();
        let process = self.process.as_mut().expect("just started");
        let started = process.wait_for_socket(&socket, START_PATIENCE);
        match process.status()? {
            None => started.map(|()| true),
            Some(status) if status.signal().is_some() => bail!("`cairn up` died of {status}"),
            Some(_) => {
                self.process = None;
                Ok(false)
            }
        }
    }

    /// SIGSTOP, until `resume`.
    pub fn pause(&self) -> Result<()> {
        self.process()?.signal(Signal::STOP)
    }

    pub fn resume(&self) -> Result<()> {
        self.process()?.signal(Signal::CONT)
    }

    /// SIGTERM: the gateway destages, stops and says so with exit code 0.
    pub fn stop(&mut self) -> Result<()> {
        let mut process = self.process.take().context("the gateway is not running")?;
        let status = process.stop(STOP_PATIENCE)?;
        if !status.success() {
            bail!("SIGTERM ended the gateway with {status}\n{}", process.said());
        }
        Ok(())
    }

    pub fn said(&self) -> String {
        let bytes = std::fs::read(self.log()).unwrap_or_default();
        crate::tool::tail(&String::from_utf8_lossy(&bytes)).to_owned()
    }

    /// A `cairn` command on this folder.
    pub fn command<const N: usize>(&self, arguments: [&str; N]) -> Tool {
        let tool = Tool::new(&self.program).args(arguments).arg("--dir").arg(self.dir());
        self.environment.iter().fold(tool, |tool, (name, value)| tool.env(name, value))
    }

    pub fn create_volume(&self, name: &str, size: u64) -> Result<()> {
        self.command(["volume", "create", name, &size.to_string()]).run().map(drop)
    }

    pub fn import(&self, volume: &str, file: &Path) -> Result<()> {
        let file = file.to_string_lossy();
        self.command(["volume", "import", volume, &file, "--yes"])
            .timeout(Duration::from_mins(10))
            .run()
            .map(drop)
    }

    pub fn export_volume(&self, volume: &str, file: &Path) -> Result<()> {
        let file = file.to_string_lossy();
        self.command(["volume", "export", volume, &file]).timeout(Duration::from_mins(10)).run().map(drop)
    }

    /// Waits until everything acknowledged is in the pool.
    pub fn destage(&self) -> Result<()> {
        Tool::new("curl")
            .args(["--silent", "--show-error", "--fail-with-body", "--request", "POST"])
            .args(["--header", "Content-Type: application/json", "--unix-socket"])
            .arg(self.dir().join("admin.sock"))
            .arg("http://localhost/v1/destage")
            .timeout(Duration::from_mins(10))
            .run()
            .map(drop)
    }

    /// `cairn status --json`.
    pub fn status(&self) -> Result<Value> {
        let finished = self.command(["status", "--json"]).run()?;
        serde_json::from_str(&finished.stdout)
            .with_context(|| format!("`cairn status --json` said {:?}", finished.stdout))
    }
}
