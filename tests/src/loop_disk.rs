//! A small ext4 of its own on a loop device, which can be filled to the last block and freed again. Needs root.

use crate::tool::Tool;
use anyhow::{Context, Result, bail};
use rustix::fs::{FallocateFlags, fallocate, statvfs};
use rustix::io::Errno;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tempfile::TempDir;

#[derive(Debug)]
pub struct LoopDisk {
    folder: TempDir,
}

impl LoopDisk {
    /// A fresh file system of `size` bytes, mounted. It takes up what is written, not what it could hold.
    pub fn new(size: u64) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("cairn-loop").tempdir()?;
        let image = folder.path().join("image");
        File::create(&image)?.set_len(size)?;
        // Without blocks that only root may take: the gateway may be root.
        Tool::new("mkfs.ext4").args(["-q", "-F", "-m", "0"]).arg(&image).run()?;
        let point = folder.path().join("mounted");
        std::fs::create_dir(&point)?;
        Tool::as_root("mount").args(["-t", "ext4", "-o", "loop"]).arg(&image).arg(&point).run()?;
        let disk = Self { folder };
        Tool::as_root("chmod").arg("777").arg(disk.path()).run()?;
        Ok(disk)
    }

    /// Where it is mounted.
    pub fn path(&self) -> PathBuf {
        self.folder.path().join("mounted")
    }

    /// Takes every block that is free, and every one that becomes free, until told to stop.
    pub fn keep_full(&self, stop: &AtomicBool) -> Result<()> {
        let filler = File::options().create(true).truncate(false).write(true).open(self.filler())?;
        let mut length = filler.metadata()?.len();
        loop {
            length = fill(&filler, length, &self.path())?;
            if stop.load(Ordering::SeqCst) {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Takes every block that is free now.
    pub fn fill(&self) -> Result<()> {
        self.keep_full(&AtomicBool::new(true))
    }

    /// Gives back what was taken.
    pub fn free(&self) -> Result<()> {
        match std::fs::remove_file(self.filler()) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(error).context("removing the file that fills the disk")
            }
            _ => Ok(()),
        }
    }

    fn filler(&self) -> PathBuf {
        self.path().join("filler")
    }
}

/// Extends the file until not one block more can be had; returns its new length.
fn fill(filler: &File, mut length: u64, path: &Path) -> Result<u64> {
    let room = statvfs(path)?;
    let mut step = (room.f_bavail * room.f_frsize).max(room.f_frsize);
    loop {
        match fallocate(filler, FallocateFlags::empty(), length, step) {
            Ok(()) => length += step,
            Err(Errno::NOSPC) if step > room.f_frsize => step = (step / 2).next_multiple_of(room.f_frsize),
            Err(Errno::NOSPC) => return Ok(length),
            Err(error) => bail!("filling {}: {error}", path.display()),
        }
    }
}

impl Drop for LoopDisk {
    fn drop(&mut self) {
        let unmounted = Tool::as_root("umount").arg("--lazy").arg(self.path()).run();
        if let Err(error) = unmounted {
            eprintln!("unmounting: {error:#}");
        }
    }
}
