//! Servers that are not ours: honest ones to prove that a check passes where it should, and to compare speeds with;
//! lying ones to prove that it fails where it should.

use crate::export::Export;
use crate::process::Process;
use crate::settings;
use anyhow::{Context, Result, bail};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;
use tempfile::TempDir;

/// What `lying_server.py` does wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lie {
    /// Nothing: the control, which every check must pass.
    Honest,
    /// A write is acknowledged, now and then, and forgotten.
    DropsWrites,
    /// A read returns, now and then, what the blocks held before their last write.
    ReadsStale,
    /// A write lands, now and then, one block too far.
    ShiftsWrites,
    /// Writes wait in memory and a flush is answered without moving them to the file.
    IgnoresFlush,
    /// Writes wait in memory until a flush: legal on a power cut, not when only the process dies.
    LosesUnflushed,
    /// Every write reaches the file in two halves, the second one later.
    TearsWrites,
    /// Some writes reach the file long after others that came later.
    Reorders,
    /// Only half of the length of a trim or zeroing is done.
    HalfTrims,
    /// A write is answered, now and then, while other connections still read what was there before.
    AnswersEarly,
    /// A write can be read, now and then, while it is not in the file yet, nor answered.
    ShowsEarly,
    /// A write that was not answered when the process died takes effect, now and then, a while after the next start.
    RevivesWrites,
}

impl Lie {
    fn name(self) -> &'static str {
        match self {
            Lie::Honest => "honest",
            Lie::DropsWrites => "drops-writes",
            Lie::ReadsStale => "reads-stale",
            Lie::ShiftsWrites => "shifts-writes",
            Lie::IgnoresFlush => "ignores-flush",
            Lie::LosesUnflushed => "loses-unflushed",
            Lie::TearsWrites => "tears-writes",
            Lie::Reorders => "reorders",
            Lie::HalfTrims => "half-trims",
            Lie::AnswersEarly => "answers-early",
            Lie::ShowsEarly => "shows-early",
            Lie::RevivesWrites => "revives-writes",
        }
    }
}

/// Which server a peer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    NbdkitMemory,
    NbdkitFile,
    /// `qemu-nbd` on a raw file, with its cache and aio modes.
    QemuNbd {
        cache: &'static str,
        aio: &'static str,
    },
    /// `lying_server.py`: the lie, and in one of how many requests it is told where that is a matter of chance.
    Lying(Lie, u32),
}

const PATIENCE: Duration = Duration::from_secs(20);

/// A running peer with one export called `disk0`.
#[derive(Debug)]
pub struct Peer {
    kind: Kind,
    size: u64,
    folder: Folder,
    process: Option<Process>,
}

#[derive(Debug)]
enum Folder {
    Own(TempDir),
    Given(PathBuf),
}

impl Folder {
    fn path(&self) -> &Path {
        match self {
            Folder::Own(folder) => folder.path(),
            Folder::Given(path) => path,
        }
    }
}

impl Peer {
    pub fn start(kind: Kind, size: u64) -> Result<Self> {
        Self::start_at(kind, size, Folder::Own(TempDir::new()?))
    }

    /// A peer whose file lives in the given folder, which stays.
    pub fn start_in(kind: Kind, size: u64, folder: &Path) -> Result<Self> {
        Self::start_at(kind, size, Folder::Given(folder.to_owned()))
    }

    fn start_at(kind: Kind, size: u64, folder: Folder) -> Result<Self> {
        File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(folder.path().join("disk"))?
            .set_len(size)?;
        let mut peer = Self { kind, size, folder, process: None };
        peer.restart()?;
        Ok(peer)
    }

    pub fn export(&self) -> Export {
        Export::new(&self.socket(), "disk0")
    }

    pub fn process(&self) -> Result<&Process> {
        self.process.as_ref().context("the peer is not running")
    }

    fn socket(&self) -> PathBuf {
        self.folder.path().join("nbd.sock")
    }

    /// Starts the server again on the same file.
    pub fn restart(&mut self) -> Result<()> {
        self.start_without_waiting()?;
        self.wait_until_serving()
    }

    pub fn start_without_waiting(&mut self) -> Result<()> {
        // A killed server leaves its socket behind, and the next one would refuse to bind.
        let _ = std::fs::remove_file(self.socket());
        self.process = Some(Process::start(self.command(), &self.folder.path().join("log"))?);
        Ok(())
    }

    pub fn wait_until_serving(&mut self) -> Result<()> {
        let socket = self.socket();
        let process = self.process.as_mut().context("the peer is not running")?;
        process.wait_for_socket(&socket, PATIENCE)
    }

    /// SIGTERM, and wait until it has ended in good order.
    pub fn stop(&mut self) -> Result<()> {
        let mut process = self.process.take().context("the peer is not running")?;
        let status = process.stop(PATIENCE)?;
        if !status.success() {
            bail!("SIGTERM ended the peer with {status}\n{}", process.said());
        }
        Ok(())
    }

    pub fn kill(&mut self) -> Result<()> {
        self.process.take().context("the peer is not running")?.kill()
    }

    fn command(&self) -> Command {
        let file = self.folder.path().join("disk");
        let socket = self.socket();
        let mut command =
            Command::new(if matches!(self.kind, Kind::QemuNbd { .. }) { "qemu-nbd" } else { "nbdkit" });
        match self.kind {
            Kind::QemuNbd { cache, aio } => {
                command.args([
                    "--persistent",
                    "--shared=0",
                    "--format=raw",
                    "--discard=unmap",
                    "--export-name=disk0",
                ]);
                command.arg(format!("--cache={cache}")).arg(format!("--aio={aio}"));
                command.arg(format!("--socket={}", socket.display())).arg(file);
            }
            Kind::NbdkitMemory => {
                command.args(["-f", "-U"]).arg(&socket).arg("memory").arg(format!("size={}", self.size));
            }
            Kind::NbdkitFile => {
                command.args(["-f", "-U"]).arg(&socket).arg("file").arg(file);
            }
            Kind::Lying(lie, one_in) => {
                command.args(["-f", "-U"]).arg(&socket).arg("python");
                command.arg(settings::workspace().join("tests/src/lying_server.py"));
                command.arg(format!("file={}", file.display())).arg(format!("lie={}", lie.name()));
                command.arg(format!("one_in={one_in}"));
            }
        }
        command
    }
}
