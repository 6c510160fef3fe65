//! A file of a local file system.
//!
//! Short writes go through the page cache, because "handed to the operating system" is all that an acknowledgement without a
//! flush promises, and that takes 3 µs there against 60 µs for direct I/O (`docs/decisions/0002-wal-io.md`). Write-back is
//! started every few megabytes, so that a sync finds little left to do and the log does not fill the page cache.
//!
//! Long writes go past it: a copy into fresh pages, write-back of them and dropping them costs more processor time than the device takes. A
//! device that takes long is the exception: the page cache absorbs a burst that it cannot. Both kinds are in one file, and no page is
//! written by both at a time: there is one writer, and the kernel writes back and drops the pages of a range before
//! and after a direct write to it. A direct write is no more durable than the other one: the device's own cache is
//! flushed by the sync alone.
//!
//! Recovery reads with direct I/O: after a failed sync the kernel keeps pages that it calls clean and that the device
//! does not have, and only the device's word counts.

use crate::disk::{DiskFile, DiskFuture, WRITE_BACK_BYTES};
use crate::file_disk::ready;
use crate::format::PAGE;
use rustix::fs::{Advice, OFlags};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Reads and writes of so many bytes go past the page cache.
const DIRECT_BYTES_MIN: usize = 512 << 10;

/// A device that takes longer for 4 KiB of a direct write, 20 ms for a MiB, is too slow for them. One that is busy with destage as well takes a few.
const PAGE_TIME_MAX: Duration = Duration::from_nanos(20_000_000 / 256);

/// Bytes of long writes that go through the page cache after the device was slow. Then it is asked again.
const BYTES_AFTER_SLOW: u64 = 64 << 20;

#[derive(Debug)]
pub(crate) struct LocalFile {
    file: File,
    /// The same with direct I/O, where the file system has it.
    direct: Option<File>,
    /// Bytes of long writes that are still to go through the page cache.
    cached_bytes: AtomicU64,
}

impl LocalFile {
    pub(crate) fn open(path: &Path, options: &mut OpenOptions) -> io::Result<Self> {
        let file = options.read(true).write(true).open(path)?;
        let direct_flag = i32::try_from(OFlags::DIRECT.bits()).expect("open flags fit an int");
        let direct = match OpenOptions::new().read(true).write(true).custom_flags(direct_flag).open(path) {
            Ok(direct) => Some(direct),
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
                tracing::warn!(path = %path.display(), "the file system has no direct I/O; recovery reads its cache");
                None
            }
            Err(error) => return Err(error),
        };
        Ok(Self { file, direct, cached_bytes: AtomicU64::new(0) })
    }

    /// What long reads and writes go through.
    fn directly(&self, length: usize) -> Option<&File> {
        let is_direct = length >= DIRECT_BYTES_MIN && self.cached_bytes.load(Ordering::Relaxed) == 0;
        self.direct.as_ref().filter(|_| is_direct)
    }

    fn read_now(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        let Some(direct) = self.directly(into.len()) else { return self.file.read_exact_at(into, offset) };
        match direct.read_exact_at(into, offset) {
            Err(error) if is_refusal(&error) => {
                self.cached_bytes.store(u64::MAX, Ordering::Relaxed);
                self.file.read_exact_at(into, offset)
            }
            read => read,
        }
    }

    fn write_now(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.write_with(offset, bytes, |direct| direct.write_all_at(bytes, offset))
    }

    fn write_with(
        &self,
        offset: u64,
        bytes: &[u8],
        write_directly: impl FnOnce(&File) -> io::Result<()>,
    ) -> io::Result<()> {
        let Some(direct) = self.directly(bytes.len()) else {
            if bytes.len() >= DIRECT_BYTES_MIN {
                let cached = self.cached_bytes.load(Ordering::Relaxed);
                self.cached_bytes.store(cached.saturating_sub(bytes.len() as u64), Ordering::Relaxed);
            }
            return self.file.write_all_at(bytes, offset);
        };
        #[expect(clippy::disallowed_methods, reason = "a real device's time")]
        let began = Instant::now();
        match write_directly(direct) {
            // Some file systems say only now that they have no direct I/O of this kind. What went through is the same bytes in the same place.
            Err(error) if is_refusal(&error) => {
                self.cached_bytes.store(u64::MAX, Ordering::Relaxed);
                self.file.write_all_at(bytes, offset)
            }
            written => {
                let pages = u32::try_from(bytes.len() / PAGE).expect("a write is far below 2^32 pages");
                if began.elapsed() > PAGE_TIME_MAX * pages {
                    self.cached_bytes.store(BYTES_AFTER_SLOW, Ordering::Relaxed);
                }
                written
            }
        }
    }

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

/// Whether there is no direct I/O here, or not of this kind.
fn is_refusal(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::InvalidInput | io::ErrorKind::Unsupported)
}

impl DiskFile for LocalFile {
    fn length(&self) -> DiskFuture<'_, u64> {
        ready(self.file.metadata().map(|metadata| metadata.len()))
    }

    fn read<'a>(&'a self, offset: u64, into: &'a mut [u8]) -> DiskFuture<'a, ()> {
        ready(self.read_now(offset, into))
    }

    fn read_device<'a>(&'a self, offset: u64, into: &'a mut [u8]) -> DiskFuture<'a, ()> {
        ready(self.direct.as_ref().unwrap_or(&self.file).read_exact_at(into, offset))
    }

    fn write<'a>(&'a self, offset: u64, bytes: &'a [u8]) -> DiskFuture<'a, ()> {
        let written = self.write_now(offset, bytes);
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

#[cfg(test)]
mod tests {
    use super::*;
    use cairn_model::AlignedBuffer;
    use futures::FutureExt;

    const LONG: usize = DIRECT_BYTES_MIN;

    fn open(folder: &Path) -> LocalFile {
        LocalFile::open(&folder.join("file"), OpenOptions::new().create(true).truncate(true)).unwrap()
    }

    fn of(length: usize, seed: usize) -> AlignedBuffer {
        let mut bytes = AlignedBuffer::zeroed(length);
        bytes
            .iter_mut()
            .enumerate()
            .for_each(|(at, byte)| *byte = u8::try_from((at / PAGE * 31 + seed) % 251).unwrap());
        bytes
    }

    fn write(file: &LocalFile, offset: usize, bytes: &[u8]) {
        file.write(offset as u64, bytes).now_or_never().unwrap().unwrap();
    }

    fn is(file: &LocalFile, offset: usize, bytes: &[u8]) {
        for direct in [false, true] {
            let mut found = AlignedBuffer::zeroed(bytes.len());
            let read = if direct {
                file.read_device(offset as u64, &mut found)
            } else {
                file.read(offset as u64, &mut found)
            };
            read.now_or_never().unwrap().unwrap();
            assert!(*found == *bytes, "{} bytes at {offset}, direct: {direct}", bytes.len());
        }
    }

    #[test]
    fn long_and_short_writes_beside_and_over_each_other_are_all_there() {
        let folder = tempfile::tempdir().unwrap();
        let file = open(folder.path());
        for round in 0..3 {
            let lengths = [PAGE, LONG, 3 * PAGE, LONG - PAGE, 2 * LONG, PAGE, LONG + PAGE];
            // In every round at other places: what was written the one way is overwritten the other way.
            let places: Vec<_> = lengths
                .iter()
                .cycle()
                .skip(round)
                .take(5 * lengths.len())
                .scan(0, |end, &length| {
                    *end += length;
                    Some((*end - length, length))
                })
                .collect();
            for &(offset, length) in &places {
                write(&file, offset, &of(length, offset + round));
                // In the page cache from now on, and with it what is behind it and still of the round before.
                is(&file, offset, &of(length, offset + round));
            }
            for &(offset, length) in &places {
                is(&file, offset, &of(length, offset + round));
            }
        }
    }

    #[test]
    fn after_a_slow_write_the_page_cache_takes_over_for_a_while() {
        let folder = tempfile::tempdir().unwrap();
        let file = open(folder.path());
        file.cached_bytes.store(LONG as u64 + 1, Ordering::Relaxed);
        for (number, left) in [1, 0].into_iter().enumerate() {
            write(&file, number * LONG, &of(LONG, number));
            assert_eq!(file.cached_bytes.load(Ordering::Relaxed), left);
        }
        for number in 0..2 {
            is(&file, number * LONG, &of(LONG, number));
        }
    }

    #[test]
    fn a_file_system_that_refuses_direct_writes_gets_others() {
        let folder = tempfile::tempdir().unwrap();
        for kind in [io::ErrorKind::InvalidInput, io::ErrorKind::Unsupported] {
            let (file, bytes) = (open(folder.path()), of(LONG, 3));
            // In the middle, after some of it was written.
            file.write_with(0, &bytes, |direct| {
                direct.write_all_at(&bytes[..PAGE], 0)?;
                Err(kind.into())
            })
            .unwrap();
            is(&file, 0, &bytes);
            file.write_with(0, &bytes, |_| panic!("it is not asked again")).unwrap();
        }
    }

    #[test]
    fn a_file_system_that_refuses_direct_reads_gets_others() {
        let folder = tempfile::tempdir().unwrap();
        let (file, bytes) = (open(folder.path()), of(2 * LONG, 3));
        write(&file, 0, &bytes);
        let mut found = vec![0; LONG];
        // Where the file system takes it directly, all the better; most refuse an odd place.
        file.read_now(1, &mut found).unwrap();
        assert!(found == bytes[1..=LONG]);
        is(&file, 0, &bytes);
    }

    #[test]
    fn other_errors_of_direct_writes_are_the_callers() {
        let folder = tempfile::tempdir().unwrap();
        let (file, bytes) = (open(folder.path()), of(LONG, 3));
        let written = file.write_with(0, &bytes, |_| Err(io::ErrorKind::StorageFull.into()));
        assert_eq!(written.unwrap_err().kind(), io::ErrorKind::StorageFull);
        assert_eq!(file.file.metadata().unwrap().len(), 0);
    }
}
