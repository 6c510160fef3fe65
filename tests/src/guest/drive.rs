//! The drive of a guest: a file behind a server whose memory is the drive's volatile cache. See `volatile_drive.py`.

use crate::export::Export;
use crate::process::Process;
use crate::settings;
use crate::tool::Tool;
use anyhow::{Context, Result};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// What becomes of flushes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flushes {
    ReachTheMedium,
    /// They are answered and nothing is done, to prove that this is noticed. (QEMU's `cache=unsafe` would not do: it
    /// still passes a guest's flushes on to an NBD server.)
    AreLost,
}

#[derive(Debug)]
pub struct Drive {
    folder: PathBuf,
    process: Option<Process>,
}

impl Drive {
    /// A drive of zeroes, switched off.
    pub fn new(folder: &Path, size: u64) -> Result<Self> {
        let drive = Self { folder: folder.to_owned(), process: None };
        File::create(drive.medium())?.set_len(size)?;
        Ok(drive)
    }

    /// A drive with an ext4 that holds a copy of a folder, switched off.
    pub fn with_content(folder: &Path, size: u64, content: &Path) -> Result<Self> {
        let drive = Self::new(folder, size)?;
        Tool::new("mkfs.ext4").args(["-q", "-F", "-d"]).arg(content).arg(drive.medium()).run()?;
        Ok(drive)
    }

    /// `keeps`: the share of written sectors, in per cent, that reach the medium at once without a flush.
    pub fn power_on(&mut self, keeps: u32, flushes: Flushes, seed: u64) -> Result<()> {
        let _ = std::fs::remove_file(self.socket());
        let mut command = Command::new("nbdkit");
        command.args(["-f", "-U"]).arg(self.socket()).arg("python");
        command.arg(settings::workspace().join("tests/src/guest/volatile_drive.py"));
        command.arg(format!("file={}", self.medium().display()));
        command.arg(format!("keeps={keeps}")).arg(format!("seed={seed}"));
        if flushes == Flushes::AreLost {
            command.arg("flushes=lost");
        }
        let mut process = Process::start(command, &self.folder.join("drive.log"))?;
        process.wait_for_socket(&self.socket(), Duration::from_secs(20))?;
        self.process = Some(process);
        Ok(())
    }

    /// What is in the cache is gone.
    pub fn cut_power(&mut self) -> Result<()> {
        self.process.take().context("the drive is switched off")?.kill()
    }

    pub fn export(&self) -> Export {
        Export::new(&self.socket(), "")
    }

    pub(super) fn socket(&self) -> PathBuf {
        self.folder.join("drive.sock")
    }

    fn medium(&self) -> PathBuf {
        self.folder.join("medium")
    }
}
