//! A real kernel file system on an export, without the kernel's nbd module: `nbdfuse` makes the export a file, a loop
//! device makes the file a disk. Each guard undoes its step when dropped.

use crate::export::Export;
use crate::process::Process;
use crate::tool::Tool;
use anyhow::{Context, Result, bail};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// A file system and the tools that belong to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Ext4,
    Xfs,
    Btrfs,
}

impl Kind {
    pub fn name(self) -> &'static str {
        match self {
            Kind::Ext4 => "ext4",
            Kind::Xfs => "xfs",
            Kind::Btrfs => "btrfs",
        }
    }

    /// Makes the file system, discarding the device first as the tools do by default.
    pub fn make(self, device: &Path) -> Result<()> {
        let tool = match self {
            Kind::Ext4 => Tool::as_root("mkfs.ext4").args(["-q", "-F", "-E", "discard"]),
            Kind::Xfs => Tool::as_root("mkfs.xfs").args(["-q", "-f"]),
            Kind::Btrfs => Tool::as_root("mkfs.btrfs").args(["-q", "-f"]),
        };
        tool.arg(device).run().map(drop)
    }

    /// Checks the unmounted file system without changing it; anything to repair is an error.
    pub fn check(self, device: &Path) -> Result<()> {
        let tool = match self {
            Kind::Ext4 => Tool::as_root("e2fsck").args(["-f", "-n"]),
            Kind::Xfs => Tool::as_root("xfs_repair").arg("-n"),
            Kind::Btrfs => Tool::as_root("btrfs").args(["check", "--readonly", "--check-data-csum"]),
        };
        tool.arg(device).timeout(Duration::from_mins(5)).run().map(drop)
    }
}

/// An export as a loop device.
#[derive(Debug)]
pub struct Disk {
    device: PathBuf,
    folder: TempDir,
    fuse: Process,
}

impl Disk {
    pub fn attach(export: &Export) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("cairn-disk").tempdir()?;
        let mountpoint = folder.path().join("fuse");
        std::fs::create_dir(&mountpoint)?;
        let file = mountpoint.join("disk");
        let mut command = if rustix::process::geteuid().is_root() {
            Command::new("nbdfuse")
        } else {
            let mut command = Command::new("sudo");
            command.args(["-n", "nbdfuse"]);
            command
        };
        command.arg("--connections=4").arg(&file).arg(export.uri());
        let mut fuse = Process::start(command, &folder.path().join("log"))?;
        let ready =
            || Tool::as_root("test").arg("-f").arg(&file).finish().is_ok_and(|test| test.status.success());
        fuse.wait_until("serving the file", Duration::from_secs(20), ready)?;
        let attached = Tool::as_root("losetup").args(["--find", "--show", "--direct-io=on"]).arg(&file).run();
        let device = match attached {
            Ok(finished) => PathBuf::from(finished.stdout.trim()),
            Err(error) => {
                let _ = unmount(&mountpoint);
                return Err(error);
            }
        };
        Ok(Self { device, folder, fuse })
    }

    pub fn device(&self) -> &Path {
        &self.device
    }

    /// Takes the device away in good order; what is dirty reaches the server.
    pub fn detach(mut self) -> Result<()> {
        self.release()
    }

    fn release(&mut self) -> Result<()> {
        if self.device.as_os_str().is_empty() {
            return Ok(());
        }
        let device = std::mem::take(&mut self.device);
        Tool::as_root("losetup").arg("--detach").arg(&device).run()?;
        wait_for_detach(&device)?;
        unmount(&self.folder.path().join("fuse"))?;
        let status = self.fuse.wait_for_end(Duration::from_secs(30))?;
        if !status.success() {
            bail!("nbdfuse ended with {status}\n{}", self.fuse.said());
        }
        Ok(())
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        if let Err(error) = self.release() {
            eprintln!("detaching the disk: {error:#}");
        }
    }
}

/// A loop device is detached when its last user lets go, which may be a moment later.
fn wait_for_detach(device: &Path) -> Result<()> {
    let name = device.file_name().context("a device has a name")?;
    let backing = Path::new("/sys/block").join(name).join("loop/backing_file");
    let started = Instant::now();
    while backing.exists() {
        if started.elapsed() > Duration::from_secs(30) {
            bail!("{} is still attached", device.display());
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

/// Unmounts; a file system that is busy for a moment is tried again.
fn unmount(point: &Path) -> Result<()> {
    let started = Instant::now();
    loop {
        let unmounted = Tool::as_root("umount").arg(point).run();
        match unmounted {
            Ok(_) => return Ok(()),
            Err(error) if started.elapsed() > Duration::from_secs(30) => return Err(error),
            Err(_) => std::thread::sleep(Duration::from_millis(100)),
        }
    }
}

/// A mounted file system.
#[derive(Debug)]
pub struct Mount {
    folder: Option<TempDir>,
}

impl Mount {
    pub fn new(kind: Kind, device: &Path) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("cairn-mount").tempdir()?;
        Tool::as_root("mount").args(["-t", kind.name()]).arg(device).arg(folder.path()).run()?;
        Ok(Self { folder: Some(folder) })
    }

    pub fn path(&self) -> &Path {
        self.folder.as_ref().expect("mounted until dropped").path()
    }

    pub fn unmount(mut self) -> Result<()> {
        let folder = self.folder.take().expect("mounted until dropped");
        unmount(folder.path())
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        if let Some(folder) = &self.folder
            && let Err(error) = unmount(folder.path())
        {
            eprintln!("unmounting: {error:#}");
        }
    }
}
