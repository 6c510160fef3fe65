//! The port under the log. Faults are decorators on it; the simulation supplies its own.

use std::fmt;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;

/// A disk operation. [`crate::FileDisk`]'s complete at the first poll: they block. The log awaits them on threads of its
/// own, but for those of a caller that serves itself.
pub type DiskFuture<'a, T> = Pin<Box<dyn Future<Output = io::Result<T>> + Send + 'a>>;

/// Where a file's write-back is started, so that a sync finds little left to do.
pub const WRITE_BACK_BYTES: u64 = 8 << 20;

/// A directory of files.
pub trait Disk: Send + Sync + fmt::Debug {
    /// Names the directory in messages.
    fn location(&self) -> String;

    /// Whether writes and syncs of files complete at their first poll. Then a lone caller may serve itself
    /// instead of waking the log's thread.
    fn completes_at_once(&self) -> bool;

    /// Names of the files in it.
    fn list(&self) -> DiskFuture<'_, Vec<String>>;

    /// Makes an empty file, replacing one of that name.
    fn create<'a>(&'a self, name: &'a str) -> DiskFuture<'a, Arc<dyn DiskFile>>;

    fn open<'a>(&'a self, name: &'a str) -> DiskFuture<'a, Arc<dyn DiskFile>>;

    /// Gives a file another name; durable when it returns.
    fn rename<'a>(&'a self, from: &'a str, to: &'a str) -> DiskFuture<'a, ()>;

    /// Removes a file; durable when it returns.
    fn remove<'a>(&'a self, name: &'a str) -> DiskFuture<'a, ()>;
}

/// A file. Offsets, lengths and the addresses of buffers are multiples of 4096.
pub trait DiskFile: Send + Sync + fmt::Debug {
    fn length(&self) -> DiskFuture<'_, u64>;

    /// Fills `into`; an end of file inside it is an error.
    fn read<'a>(&'a self, offset: u64, into: &'a mut [u8]) -> DiskFuture<'a, ()>;

    /// Like [`DiskFile::read`], but of what the device holds: never a page that the operating system failed to write
    /// and still keeps.
    fn read_device<'a>(&'a self, offset: u64, into: &'a mut [u8]) -> DiskFuture<'a, ()>;

    /// Hands bytes to the operating system; a write that reaches a multiple of [`WRITE_BACK_BYTES`] may start
    /// write-back. The bytes survive the end of the process, and, after [`DiskFile::sync`], more.
    fn write<'a>(&'a self, offset: u64, bytes: &'a [u8]) -> DiskFuture<'a, ()>;

    /// Advice that these bytes will be synced soon: the device may begin with them. Waits at most for room in the device's
    /// queue. What fails is reported by [`DiskFile::sync`].
    fn start_write_back(&self, _offset: u64, _length: u64) {}

    /// Makes durable what was written when it began, also what an earlier process wrote. Writes may go on beside it, other syncs of
    /// the same file do not. Never retried after a failure.
    fn sync(&self) -> DiskFuture<'_, ()>;
}
