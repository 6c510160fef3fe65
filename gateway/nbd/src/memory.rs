//! A device in memory, for examples, tests, fuzzing and as the floor that benchmarks compare with.

use bytes::{Bytes, BytesMut};
use cairn_model::{
    AllocationExtent, BlockDevice, ChangeExtent, DeviceInfo, ErrorKind, Exports, Kinded, ReadBuffer,
    WriteFlags,
};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

const PAGE: u64 = 4096;

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum MemoryError {
    #[error("the range goes beyond the end of the device")]
    OutOfRange,
    #[error("the device is read-only")]
    ReadOnly,
}

impl Kinded for MemoryError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::OutOfRange => ErrorKind::OutOfRange,
            Self::ReadOnly => ErrorKind::ReadOnly,
        }
    }
}

type Pages = BTreeMap<u64, Bytes>;

/// What a [`MemoryDevice`] was when it was told to remember.
#[derive(Clone, Debug)]
pub struct Remembered(Arc<Pages>);

/// Pages that were written; all others are holes. Whole pages are shared with the buffers they came in.
#[derive(Debug)]
pub struct MemoryDevice {
    size_bytes: AtomicU64,
    read_only: bool,
    pages: RwLock<Pages>,
    earlier: RwLock<Vec<(String, Remembered)>>,
}

impl MemoryDevice {
    pub fn new(size_bytes: u64) -> Self {
        Self {
            size_bytes: AtomicU64::new(size_bytes),
            read_only: false,
            pages: RwLock::default(),
            earlier: RwLock::default(),
        }
    }

    pub fn read_only(mut self) -> Self {
        self.read_only = true;
        self
    }

    /// From here on it can be compared with what it is now.
    pub fn remember(&self, name: &str) {
        let now = Remembered(Arc::new(self.pages.read().unwrap_or_else(PoisonError::into_inner).clone()));
        self.earlier.write().unwrap_or_else(PoisonError::into_inner).push((name.to_owned(), now));
    }

    pub fn resize(&self, size_bytes: u64) {
        self.size_bytes.store(size_bytes, Ordering::Release);
    }

    fn check(&self, offset: u64, length: u64) -> Result<(), MemoryError> {
        let size = self.size_bytes.load(Ordering::Acquire);
        offset.checked_add(length).filter(|end| *end <= size).map(drop).ok_or(MemoryError::OutOfRange)
    }

    fn check_write(&self, offset: u64, length: u64) -> Result<(), MemoryError> {
        self.check(offset, length)?;
        if self.read_only { Err(MemoryError::ReadOnly) } else { Ok(()) }
    }

    fn clear(&self, offset: u64, length: u64, whole_pages_only: bool) {
        let mut pages = self.pages.write().unwrap_or_else(PoisonError::into_inner);
        let end = offset + length;
        let whole = offset.div_ceil(PAGE)..end / PAGE;
        if whole.start < whole.end {
            let gone: Vec<u64> = pages.range(whole).map(|(page, _)| *page).collect();
            for page in gone {
                pages.remove(&page);
            }
        }
        if !whole_pages_only {
            let last = (end - 1) / PAGE * PAGE;
            for start in [offset, last.max(offset)] {
                let (page, from, to) = pieces(start, end - start).next().expect("the range is not empty");
                if (to - from) < PAGE && pages.contains_key(&page) {
                    patch(&mut pages, page, usize_of(from), &vec![0; usize_of(to - from)]);
                }
            }
        }
    }
}

/// The parts of a range, page by page: page, first byte and end within it.
fn pieces(offset: u64, length: u64) -> impl Iterator<Item = (u64, u64, u64)> {
    let end = offset + length;
    (offset / PAGE..end.div_ceil(PAGE)).map(move |page| {
        let start = page * PAGE;
        (page, offset.max(start) - start, end.min(start + PAGE) - start)
    })
}

fn usize_of(value: u64) -> usize {
    usize::try_from(value).expect("fits in memory")
}

fn patch(pages: &mut Pages, page: u64, at: usize, data: &[u8]) {
    let mut bytes = match pages.get(&page) {
        Some(old) => BytesMut::from(&old[..]),
        None => BytesMut::zeroed(usize_of(PAGE)),
    };
    bytes[at..at + data.len()].copy_from_slice(data);
    pages.insert(page, bytes.freeze());
}

impl BlockDevice for MemoryDevice {
    type Error = MemoryError;
    type Earlier = Remembered;

    fn info(&self) -> DeviceInfo {
        DeviceInfo { size_bytes: self.size_bytes.load(Ordering::Acquire), read_only: self.read_only }
    }

    async fn read(&self, offset: u64, length_bytes: u32) -> Result<ReadBuffer, MemoryError> {
        self.check(offset, length_bytes.into())?;
        let pages = self.pages.read().unwrap_or_else(PoisonError::into_inner);
        let mut buffer = ReadBuffer::default();
        for (page, from, to) in pieces(offset, length_bytes.into()) {
            match pages.get(&page) {
                Some(bytes) => buffer.push(bytes.slice(usize_of(from)..usize_of(to))),
                None => buffer.push_zeros(usize_of(to - from)),
            }
        }
        Ok(buffer)
    }

    async fn write(&self, offset: u64, data: Bytes, _flags: WriteFlags) -> Result<(), MemoryError> {
        self.check_write(offset, data.len() as u64)?;
        let mut pages = self.pages.write().unwrap_or_else(PoisonError::into_inner);
        let mut rest = data;
        for (page, from, to) in pieces(offset, rest.len() as u64) {
            let piece = rest.split_to(usize_of(to - from));
            if piece.len() as u64 == PAGE {
                pages.insert(page, piece);
            } else {
                patch(&mut pages, page, usize_of(from), &piece);
            }
        }
        Ok(())
    }

    async fn flush(&self) -> Result<(), MemoryError> {
        Ok(())
    }

    async fn write_zeroes(
        &self,
        offset: u64,
        length_bytes: u64,
        _flags: WriteFlags,
    ) -> Result<(), MemoryError> {
        self.check_write(offset, length_bytes)?;
        self.clear(offset, length_bytes, false);
        Ok(())
    }

    async fn discard(&self, offset: u64, length_bytes: u64, _flags: WriteFlags) -> Result<(), MemoryError> {
        self.check_write(offset, length_bytes)?;
        self.clear(offset, length_bytes, true);
        Ok(())
    }

    async fn prefetch(&self, offset: u64, length_bytes: u64) -> Result<(), MemoryError> {
        self.check(offset, length_bytes)
    }

    async fn allocation(
        &self,
        offset: u64,
        length_bytes: u64,
        extents_max: usize,
    ) -> Result<Vec<AllocationExtent>, MemoryError> {
        self.check(offset, length_bytes)?;
        let pages = self.pages.read().unwrap_or_else(PoisonError::into_inner);
        let end = offset + length_bytes;
        let mut extents: Vec<AllocationExtent> = Vec::new();
        let mut at = offset;
        while at < end {
            let allocated = pages.contains_key(&(at / PAGE));
            let next = if allocated {
                at / PAGE + 1
            } else {
                pages.range(at / PAGE..).next().map_or(u64::MAX / PAGE, |(page, _)| *page)
            };
            let length = (next * PAGE).min(end) - at;
            at += length;
            let full = extents.len() == extents_max;
            match extents.last_mut() {
                Some(last) if last.allocated == allocated => last.length_bytes += length,
                _ if full => break,
                _ => extents.push(AllocationExtent { length_bytes: length, allocated }),
            }
        }
        Ok(extents)
    }

    async fn earlier(&self) -> Result<Vec<String>, MemoryError> {
        let earlier = self.earlier.read().unwrap_or_else(PoisonError::into_inner);
        Ok(earlier.iter().map(|(name, _)| name.clone()).collect())
    }

    async fn open_earlier(&self, name: &str) -> Result<Option<Remembered>, MemoryError> {
        let earlier = self.earlier.read().unwrap_or_else(PoisonError::into_inner);
        Ok(earlier.iter().find(|(known, _)| known == name).map(|(_, remembered)| remembered.clone()))
    }

    async fn changes(
        &self,
        since: &Remembered,
        offset: u64,
        length_bytes: u64,
        extents_max: usize,
    ) -> Result<Vec<ChangeExtent>, MemoryError> {
        self.check(offset, length_bytes)?;
        let pages = self.pages.read().unwrap_or_else(PoisonError::into_inner);
        let mut extents: Vec<ChangeExtent> = Vec::new();
        for (page, from, to) in pieces(offset, length_bytes) {
            let changed = pages.get(&page) != since.0.get(&page);
            let full = extents.len() == extents_max;
            match extents.last_mut() {
                Some(last) if last.changed == changed => last.length_bytes += to - from,
                _ if full => break,
                _ => extents.push(ChangeExtent { length_bytes: to - from, changed }),
            }
        }
        Ok(extents)
    }
}

/// Named devices; the first is the default export.
#[derive(Debug)]
pub struct DeviceTable<D> {
    devices: Vec<(String, Arc<D>)>,
}

impl<D: BlockDevice> DeviceTable<D> {
    pub fn new(devices: impl IntoIterator<Item = (String, Arc<D>)>) -> Self {
        Self { devices: devices.into_iter().collect() }
    }
}

impl<D: BlockDevice> Exports for DeviceTable<D> {
    type Device = D;

    fn names(&self) -> Vec<String> {
        self.devices.iter().map(|(name, _)| name.clone()).collect()
    }

    async fn open(&self, name: &str) -> Option<Arc<D>> {
        let found = self.devices.iter().find(|(known, _)| name.is_empty() || known == name);
        found.map(|(_, device)| device.clone())
    }
}
