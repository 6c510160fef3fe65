//! The real disk: a directory of a local file system.
//!
//! Writes go through the page cache, because "handed to the operating system" is all that an acknowledgement without a flush
//! promises, and that takes 3 µs there against 60 µs for direct I/O (`docs/decisions/0002-wal-io.md`). Write-back is
//! started every few megabytes, so that a sync finds little left to do and the log does not fill the page cache.
//! Recovery reads with direct I/O: after a failed sync the kernel keeps pages that it calls clean and that the device
//! does not have, and only the device's word counts.

use crate::WalError;
use crate::disk::{Disk, DiskFile, DiskFuture, WRITE_BACK_BYTES};
use crate::ring::Slot;
use rustix::fs::{Advice, FlockOperation, OFlags};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
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
        let path = self.directory.join(name);
        let file = options.read(true).write(true).open(&path)?;
        let direct_flag = i32::try_from(OFlags::DIRECT.bits()).expect("open flags fit an int");
        let direct = match OpenOptions::new().read(true).custom_flags(direct_flag).open(&path) {
            Ok(direct) => Some(direct),
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
                tracing::warn!(path = %path.display(), "the file system has no direct I/O; recovery reads its cache");
                None
            }
            Err(error) => return Err(error),
        };
        Ok(Arc::new(LocalFile { file, direct }))
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

fn ready<'a, T: Send + 'a>(result: io::Result<T>) -> DiskFuture<'a, T> {
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

#[derive(Debug)]
struct LocalFile {
    file: File,
    direct: Option<File>,
}

impl LocalFile {
    /// Starts write-back of what was written, in order, up to the multiple of [`WRITE_BACK_BYTES`] that this write
    /// reaches, if it does, and drops the clean pages before it. DONTNEED does both without waiting for the writes (Linux,
    /// mm/fadvise.c); it is advice, failing to follow it harms nothing.
    fn wrote(&self, offset: u64, length: u64) {
        let reached = (offset + length) / WRITE_BACK_BYTES * WRITE_BACK_BYTES;
        if reached > offset {
            let from = (offset / WRITE_BACK_BYTES * WRITE_BACK_BYTES).saturating_sub(WRITE_BACK_BYTES);
            let length = std::num::NonZero::new(reached - from);
            let _ = rustix::fs::fadvise(&self.file, from, length, Advice::DontNeed);
        }
    }
}

impl DiskFile for LocalFile {
    fn length(&self) -> DiskFuture<'_, u64> {
        ready(self.file.metadata().map(|metadata| metadata.len()))
    }

    fn read<'a>(&'a self, offset: u64, into: &'a mut [u8]) -> DiskFuture<'a, ()> {
        ready(self.file.read_exact_at(into, offset))
    }

    fn read_device<'a>(&'a self, offset: u64, into: &'a mut [u8]) -> DiskFuture<'a, ()> {
        ready(self.direct.as_ref().unwrap_or(&self.file).read_exact_at(into, offset))
    }

    fn write<'a>(&'a self, offset: u64, bytes: &'a [u8]) -> DiskFuture<'a, ()> {
        let written = self.file.write_all_at(bytes, offset);
        if written.is_ok() {
            self.wrote(offset, bytes.len() as u64);
        }
        ready(written)
    }

    fn start_write_back(&self, offset: u64, length: u64) {
        let (Ok(offset), Ok(length)) = (offset.try_into(), length.try_into()) else { return };
        // Advice: what cannot be written the next sync of this file reports, as it does for any write-back.
        // SAFETY: the call reads no memory, and the descriptor is open for as long as `self` is.
        let _ = unsafe {
            libc::sync_file_range(self.file.as_raw_fd(), offset, length, libc::SYNC_FILE_RANGE_WRITE)
        };
    }

    fn sync(&self) -> DiskFuture<'_, ()> {
        ready(self.file.sync_data())
    }
}
