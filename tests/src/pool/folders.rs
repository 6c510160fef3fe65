//! Data nodes that are directories.
//!
//! What is taken away is renamed, so that it can come back as it was; what is wiped or put back from a copy is another directory under the same
//! name, as a disk that was changed is. What is damaged is damaged in its files.

use crate::random::Random;
use anyhow::{Context, Result, bail};
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

/// What says whose a node is.
const MARKER: &str = "cairn-node.json";
/// What holds its shards.
const SEGMENTS: &str = "segments";

#[derive(Debug)]
pub struct Folders {
    root: TempDir,
}

impl Folders {
    pub fn new() -> Result<Self> {
        Ok(Self { root: tempfile::Builder::new().prefix("cairn-nodes").tempdir()? })
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    pub fn url(&self, name: &str) -> String {
        format!("file://{}", self.path(name).display())
    }

    /// The node is gone, as a file system that is not mounted.
    pub fn take_away(&self, name: &str) -> Result<()> {
        Ok(fs::rename(self.path(name), self.beside(name, "away"))?)
    }

    pub fn bring_back(&self, name: &str) -> Result<()> {
        Ok(fs::rename(self.beside(name, "away"), self.path(name))?)
    }

    /// While the node is away, its disk is changed for one with the marker and nothing else.
    pub fn wipe_away(&self, name: &str) -> Result<()> {
        let (away, fresh) = (self.beside(name, "away"), self.beside(name, "fresh"));
        fs::create_dir(&fresh)?;
        fs::copy(away.join(MARKER), fresh.join(MARKER))?;
        fs::remove_dir_all(&away)?;
        Ok(fs::rename(fresh, away)?)
    }

    /// Another disk in its place, with nothing on it, or nothing but the marker.
    pub fn wipe(&self, name: &str, keeps_marker: bool) -> Result<()> {
        let fresh = self.beside(name, "fresh");
        fs::create_dir(&fresh)?;
        if keeps_marker {
            fs::copy(self.path(name).join(MARKER), fresh.join(MARKER))?;
        }
        self.exchange(name, &fresh)
    }

    /// The node as it is now, for [`Folders::restore_copy`].
    pub fn keep_copy(&self, name: &str) -> Result<()> {
        copy_tree(&self.path(name), &self.beside(name, "copy"))
    }

    /// The node is the older one that was kept.
    pub fn restore_copy(&self, name: &str) -> Result<()> {
        self.exchange(name, &self.beside(name, "copy"))
    }

    /// Each node has the other's directory.
    pub fn swap(&self, one: &str, other: &str) -> Result<()> {
        let between = self.beside(one, "between");
        fs::rename(self.path(one), &between)?;
        fs::rename(self.path(other), self.path(one))?;
        Ok(fs::rename(between, self.path(other))?)
    }

    fn exchange(&self, name: &str, fresh: &Path) -> Result<()> {
        let old = self.beside(name, "old");
        fs::rename(self.path(name), &old)?;
        fs::rename(fresh, self.path(name))?;
        // Whoever still writes there may make it again meanwhile.
        for _ in 0..100 {
            match fs::remove_dir_all(&old) {
                Ok(()) => return Ok(()),
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
                Err(_) => std::thread::sleep(std::time::Duration::from_millis(10)),
            }
        }
        bail!("{} cannot be removed", old.display())
    }

    fn beside(&self, name: &str, what: &str) -> PathBuf {
        self.root.path().join(format!("{name}.{what}"))
    }

    /// The shards that are there and their lengths, by key.
    pub fn shards(&self, name: &str) -> Result<BTreeMap<String, u64>> {
        let (root, mut found) = (self.path(name), BTreeMap::new());
        visit(&root.join(SEGMENTS), &mut |path| {
            // What is deleted meanwhile is not there.
            let Ok(metadata) = fs::metadata(path) else { return Ok(()) };
            found.insert(path.strip_prefix(&root)?.to_string_lossy().into_owned(), metadata.len());
            Ok(())
        })?;
        Ok(found)
    }

    /// Flips one bit in every shard of the node. How many.
    pub fn flip_bits(&self, name: &str, random: &mut Random) -> Result<usize> {
        let shards = self.shards(name)?;
        for (key, length) in &shards {
            let path = self.path(name).join(key);
            let file = fs::OpenOptions::new().read(true).write(true).open(&path);
            let file = file.with_context(|| format!("damaging {}", path.display()))?;
            let (at, mut byte) = (random.below(*length), [0]);
            file.read_exact_at(&mut byte, at)?;
            byte[0] ^= 1 << random.below(8);
            file.write_all_at(&byte, at)?;
        }
        Ok(shards.len())
    }

    /// Flips a bit in every 4 KiB of every shard: no read of it is right. How many shards.
    pub fn spoil(&self, name: &str) -> Result<usize> {
        let shards = self.shards(name)?;
        for key in shards.keys() {
            let path = self.path(name).join(key);
            let mut bytes = fs::read(&path)?;
            bytes.iter_mut().skip(100).step_by(4096).for_each(|byte| *byte ^= 0x10);
            // In its place, as a disk does it: whoever has the file open sees it too.
            fs::OpenOptions::new().write(true).open(&path)?.write_all_at(&bytes, 0)?;
        }
        Ok(shards.len())
    }

    /// Every shard of the node ends in the middle. How many.
    pub fn truncate(&self, name: &str) -> Result<usize> {
        let shards = self.shards(name)?;
        for (key, length) in &shards {
            fs::OpenOptions::new().write(true).open(self.path(name).join(key))?.set_len(length / 2)?;
        }
        Ok(shards.len())
    }
}

fn visit(folder: &Path, seen: &mut impl FnMut(&Path) -> Result<()>) -> Result<()> {
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_dir() { visit(&entry.path(), seen)? } else { seen(&entry.path())? }
    }
    Ok(())
}

fn copy_tree(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy_tree(&entry.path(), &target)?;
        } else {
            fs::copy(entry.path(), target)?;
        }
    }
    Ok(())
}
