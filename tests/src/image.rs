//! Real input: parts of this machine's own Debian tree, as files in a file system and as a whole disk image.

use crate::filesystem;
use crate::tool::Tool;
use anyhow::{Context, Result, bail};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Folders whose children are copied, in this order. They are on every Debian machine that can run the tests.
const SOURCES: [&str; 5] =
    ["/usr/bin", "/usr/include", "/usr/share", "/usr/lib/x86_64-linux-gnu", "/usr/lib"];

/// A copy of some of the tree, which remembers what it was made from.
#[derive(Debug)]
pub struct Tree {
    /// Where each part came from, and its name in the copy.
    parts: Vec<(PathBuf, String)>,
    pub bytes: u64,
}

impl Tree {
    /// Copies whole folders and files, about `bytes` of them, into `target`.
    pub fn copy(target: &Path, bytes: u64) -> Result<Self> {
        let mut tree = Self { parts: Vec::new(), bytes: 0 };
        for source in SOURCES {
            let mut children: Vec<PathBuf> =
                std::fs::read_dir(source)?.map(|child| Ok(child?.path())).collect::<Result<_>>()?;
            children.sort();
            for chunk in children.chunks(200) {
                tree.copy_fitting(target, chunk, bytes)?;
            }
        }
        if tree.bytes < bytes / 10 * 9 {
            bail!("this machine's /usr holds only {} bytes to copy, {bytes} are needed", tree.bytes);
        }
        Ok(tree)
    }

    fn copy_fitting(&mut self, target: &Path, children: &[PathBuf], bytes: u64) -> Result<()> {
        let sizes = Tool::as_root("du").args(["-s", "-b"]).args(children.iter().cloned()).run()?;
        let mut chosen = Vec::new();
        for line in sizes.stdout.lines() {
            let (size, path) = line.split_once('\t').with_context(|| format!("du said {line:?}"))?;
            let size: u64 = size.parse()?;
            let path = PathBuf::from(path);
            let name = path.to_string_lossy().trim_start_matches('/').replace('/', "_");
            if size > 0 && self.bytes + size <= bytes {
                self.bytes += size;
                self.parts.push((path.clone(), name.clone()));
                chosen.push((path, name));
            }
        }
        for (path, name) in chosen {
            Tool::as_root("cp")
                .arg("-a")
                .arg(path)
                .arg(target.join(name))
                .timeout(Duration::from_mins(5))
                .run()?;
        }
        Ok(())
    }

    /// Compares every byte of the copy in `target` with what it was made from.
    pub fn compare(&self, target: &Path) -> Result<()> {
        for (path, name) in &self.parts {
            let tool =
                Tool::as_root("diff").args(["-r", "--no-dereference"]).arg(path).arg(target.join(name));
            tool.timeout(Duration::from_mins(5)).run()?;
        }
        Ok(())
    }
}

/// Makes a disk image: an ext4 file system of `size` bytes with about `bytes` of a real tree in it.
pub fn make_disk_image(file: &Path, size: u64, bytes: u64) -> Result<()> {
    std::fs::File::create(file)?.set_len(size)?;
    filesystem::Kind::Ext4.make(file)?;
    let mount = tempfile::tempdir()?;
    Tool::as_root("mount").args(["-o", "loop"]).arg(file).arg(mount.path()).run()?;
    let copied = Tree::copy(mount.path(), bytes);
    Tool::as_root("umount").arg(mount.path()).run()?;
    copied.map(drop)
}
