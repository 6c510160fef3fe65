//! The real disk: a directory of a local file system.
//!
//! How its files are read and written: `local_file`.

use crate::WalError;
use crate::disk::{Disk, DiskFile, DiskFuture};
use crate::local_file::LocalFile;
use crate::ring::Slot;
use rustix::fs::FlockOperation;
use std::fs::{File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

const LOCK_NAME: &str = "lock";

/// A locked directory; one process has it at a time.
#[derive(Debug)]
pub struct FileDisk {
    directory: PathBuf,
    /// Open, so that names in it can be made durable.
    handle: File,
    /// Holds the lock until the process ends, however it ends.
    _lock: File,
}

impl FileDisk {
    /// Opens the directory and makes it (not its parents) if it is missing.
    pub fn open(directory: &Path) -> Result<Self, WalError> {
        let failed = |operation| failed(directory, operation);
        match std::fs::create_dir(directory) {
            Ok(()) => sync_parent(directory).map_err(failed("make durable"))?,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(failed("create")(error)),
        }
        Self::lock(directory)
    }

    /// Opens a directory that holds a log's files, and creates nothing in one that does not: an empty mount point stays
    /// empty.
    pub fn open_existing(directory: &Path) -> Result<Self, WalError> {
        if !Self::holds_log(directory).map_err(failed(directory, "list"))? {
            return Err(WalError::NotFound { location: directory.display().to_string() });
        }
        Self::lock(directory)
    }

    /// Whether the directory exists and holds files of a log.
    pub fn holds_log(directory: &Path) -> io::Result<bool> {
        let entries = match std::fs::read_dir(directory) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(error) => return Err(error),
        };
        for entry in entries {
            if entry?.file_name().to_str().and_then(Slot::number_of).is_some() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn lock(directory: &Path) -> Result<Self, WalError> {
        let failed = |operation| failed(directory, operation);
        let handle = File::open(directory).map_err(failed("open"))?;
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(directory.join(LOCK_NAME))
            .map_err(failed("lock"))?;
        match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => {
                return Err(WalError::Locked { location: directory.display().to_string() });
            }
            Err(error) => return Err(failed("lock")(error.into())),
        }
        Ok(Self { directory: directory.to_owned(), handle, _lock: lock })
    }

    fn open_file(&self, name: &str, options: &mut OpenOptions) -> io::Result<Arc<dyn DiskFile>> {
        Ok(Arc::new(LocalFile::open(&self.directory.join(name), options)?))
    }

    fn list_names(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in std::fs::read_dir(&self.directory)? {
            if let Ok(name) = entry?.file_name().into_string() {
                names.push(name);
            }
        }
        names.sort();
        Ok(names)
    }
}

fn failed(directory: &Path, operation: &'static str) -> impl FnOnce(io::Error) -> WalError {
    let location = directory.display().to_string();
    move |error| WalError::io(operation, &location, error)
}

fn sync_parent(directory: &Path) -> io::Result<()> {
    let parent = directory.parent().filter(|parent| !parent.as_os_str().is_empty());
    File::open(parent.unwrap_or(Path::new(".")))?.sync_all()
}

pub(crate) fn ready<'a, T: Send + 'a>(result: io::Result<T>) -> DiskFuture<'a, T> {
    Box::pin(std::future::ready(result))
}

impl Disk for FileDisk {
    fn location(&self) -> String {
        self.directory.display().to_string()
    }

    fn completes_at_once(&self) -> bool {
        true
    }

    fn list(&self) -> DiskFuture<'_, Vec<String>> {
        ready(self.list_names())
    }

    fn create<'a>(&'a self, name: &'a str) -> DiskFuture<'a, Arc<dyn DiskFile>> {
        ready(self.open_file(name, OpenOptions::new().create(true).truncate(true)))
    }

    fn open<'a>(&'a self, name: &'a str) -> DiskFuture<'a, Arc<dyn DiskFile>> {
        ready(self.open_file(name, &mut OpenOptions::new()))
    }

    fn rename<'a>(&'a self, from: &'a str, to: &'a str) -> DiskFuture<'a, ()> {
        let renamed = std::fs::rename(self.directory.join(from), self.directory.join(to));
        ready(renamed.and_then(|()| self.handle.sync_all()))
    }

    fn remove<'a>(&'a self, name: &'a str) -> DiskFuture<'a, ()> {
        ready(std::fs::remove_file(self.directory.join(name)).and_then(|()| self.handle.sync_all()))
    }
}
