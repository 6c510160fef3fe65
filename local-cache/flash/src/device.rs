//! The port to the device under the cache: one file. Faults are decorators on it (`testing`).

use rustix::fs::{Advice, FallocateFlags};
use rustix::io::{Errno, ReadWriteFlags};
use std::fmt::Debug;
use std::fs::{File, OpenOptions};
use std::io::{self, IoSliceMut};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// Where the regions are. Everything may block but [`Device::read_now`].
pub(crate) trait Device: Send + Sync + Debug {
    /// Reads what needs no wait for the device; how much that was, possibly nothing.
    fn read_now(&self, offset: u64, into: &mut [u8]) -> io::Result<usize>;

    /// Reads all of it, or up to the end of the file; how much that was.
    fn read(&self, offset: u64, into: &mut [u8]) -> io::Result<usize>;

    fn write(&self, offset: u64, bytes: &[u8]) -> io::Result<()>;

    /// Makes sure that there is space for writes to this range.
    fn allocate(&self, offset: u64, length: u64) -> io::Result<()>;

    /// Advice that the device may begin to write this range.
    fn start_write_back(&self, offset: u64, length: u64);

    /// Makes everything written durable.
    fn sync(&self) -> io::Result<()>;

    fn length(&self) -> io::Result<u64>;

    fn truncate(&self, length: u64) -> io::Result<()>;
}

/// A file of a local file system, through the page cache.
#[derive(Debug)]
pub(crate) struct FileDevice {
    file: File,
}

impl FileDevice {
    /// Opens the file, and makes it if it is missing. Whether it was there.
    pub(crate) fn open(path: &Path) -> io::Result<(Self, bool)> {
        let mut options = OpenOptions::new();
        options.read(true).write(true);
        let (file, existed) = match options.open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                (options.create_new(true).open(path)?, false)
            }
            opened => (opened?, true),
        };
        // Chunks are read here and there: reading ahead would read what nobody asked for. It is advice.
        let _ = rustix::fs::fadvise(&file, 0, None, Advice::Random);
        Ok((Self { file }, existed))
    }
}

impl Device for FileDevice {
    fn read_now(&self, offset: u64, into: &mut [u8]) -> io::Result<usize> {
        let mut parts = [IoSliceMut::new(into)];
        match rustix::io::preadv2(&self.file, &mut parts, offset, ReadWriteFlags::NOWAIT) {
            // Not in the page cache; or a file system or kernel that cannot tell.
            Err(Errno::AGAIN | Errno::OPNOTSUPP | Errno::NOSYS | Errno::INTR) => Ok(0),
            result => Ok(result?),
        }
    }

    fn read(&self, offset: u64, into: &mut [u8]) -> io::Result<usize> {
        let mut done = 0;
        while done < into.len() {
            match self.file.read_at(&mut into[done..], offset + done as u64) {
                Ok(0) => break,
                Ok(read) => done += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(done)
    }

    fn write(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all_at(bytes, offset)
    }

    fn allocate(&self, offset: u64, length: u64) -> io::Result<()> {
        match rustix::fs::fallocate(&self.file, FallocateFlags::empty(), offset, length) {
            // The file system cannot: what is missing will show at a write.
            Err(Errno::OPNOTSUPP) if self.length()? >= offset + length => Ok(()),
            Err(Errno::OPNOTSUPP) => self.truncate(offset + length),
            result => Ok(result?),
        }
    }

    fn start_write_back(&self, offset: u64, length: u64) {
        // To the kernel, no length means up to the end of the file.
        if length == 0 {
            return;
        }
        let (Ok(offset), Ok(length)) = (offset.try_into(), length.try_into()) else { return };
        // SAFETY: the call reads no memory, and the descriptor is open for as long as `self` is.
        let _ = unsafe {
            libc::sync_file_range(self.file.as_raw_fd(), offset, length, libc::SYNC_FILE_RANGE_WRITE)
        };
    }

    fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn length(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    fn truncate(&self, length: u64) -> io::Result<()> {
        self.file.set_len(length)
    }
}
