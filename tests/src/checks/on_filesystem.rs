//! Real kernel file systems on the export.

use crate::export::Export;
use crate::filesystem::{Disk, Kind, Mount};
use crate::image::Tree;
use crate::tool::Tool;
use anyhow::{Result, bail};
use std::time::{Duration, Instant};

/// Makes the file system and copies real trees into it; takes everything apart, attaches it again and compares every
/// file; then deletes one tree, trims, writes another, and has the file system checked each time.
pub fn holds_a_real_tree(export: &Export, kind: Kind, bytes: u64) -> Result<()> {
    let disk = Disk::attach(export)?;
    kind.make(disk.device())?;
    let mount = Mount::new(kind, disk.device())?;
    let kept = copy(&mount, "kept", bytes)?;
    let deleted = copy(&mount, "deleted", bytes / 4)?;
    take_apart(disk, mount)?;

    let (disk, mount) = attach_checked(export, kind)?;
    kept.compare(&mount.path().join("kept"))?;
    deleted.compare(&mount.path().join("deleted"))?;
    Tool::as_root("rm").arg("-rf").arg(mount.path().join("deleted")).run()?;
    Tool::as_root("fstrim").arg(mount.path()).run()?;
    let added = copy(&mount, "added", bytes / 4)?;
    take_apart(disk, mount)?;

    let (disk, mount) = attach_checked(export, kind)?;
    kept.compare(&mount.path().join("kept"))?;
    added.compare(&mount.path().join("added"))?;
    take_apart(disk, mount)
}

fn copy(mount: &Mount, folder: &str, bytes: u64) -> Result<Tree> {
    let target = mount.path().join(folder);
    Tool::as_root("mkdir").arg(&target).run()?;
    Tree::copy(&target, bytes)
}

fn attach_checked(export: &Export, kind: Kind) -> Result<(Disk, Mount)> {
    let disk = Disk::attach(export)?;
    kind.check(disk.device())?;
    let mount = Mount::new(kind, disk.device())?;
    Ok((disk, mount))
}

fn take_apart(disk: Disk, mount: Mount) -> Result<()> {
    mount.unmount()?;
    disk.detach()
}

/// `mkfs.ext4`, which discards the whole device first, ends in time; returns what it took.
pub fn makes_ext4_within(export: &Export, limit: Duration) -> Result<Duration> {
    let disk = Disk::attach(export)?;
    let started = Instant::now();
    Kind::Ext4.make(disk.device())?;
    let took = started.elapsed();
    Kind::Ext4.check(disk.device())?;
    disk.detach()?;
    if took > limit {
        bail!("mkfs.ext4 took {:.1} s, the limit is {:.1} s", took.as_secs_f64(), limit.as_secs_f64());
    }
    Ok(took)
}
