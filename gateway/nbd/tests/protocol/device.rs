//! A device that does what a test tells it: waits, fails, lies, and remembers what it was asked.

use bytes::Bytes;
use cairn_model::{
    AllocationExtent, BlockDevice, ChangeExtent, DeviceInfo, ErrorKind, Kinded, ReadBuffer, WriteFlags,
};
use cairn_nbd::memory::{MemoryDevice, MemoryError, Remembered};
use std::collections::BTreeSet;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use tokio::sync::Notify;

#[derive(Debug, thiserror::Error)]
#[error("as the test asked: {0:?}")]
pub(crate) struct DeviceError(ErrorKind);

impl Kinded for DeviceError {
    fn kind(&self) -> ErrorKind {
        self.0
    }
}

impl From<MemoryError> for DeviceError {
    fn from(error: MemoryError) -> Self {
        Self(error.kind())
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Call {
    Read { offset: u64, length: u64 },
    Write { offset: u64, length: u64, fua: bool },
    Flush,
    WriteZeroes { offset: u64, length: u64, fua: bool },
    Discard { offset: u64, length: u64, fua: bool },
    Prefetch { offset: u64, length: u64 },
    Allocation { offset: u64, length: u64, extents_max: usize },
    Changes { offset: u64, length: u64, extents_max: usize },
}

/// How a device deceives.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Lie {
    DropsWrites,
    IgnoresFlushes,
    ReadsShort,
}

#[derive(Debug)]
pub(crate) struct TestDevice {
    memory: MemoryDevice,
    /// Offsets written and not flushed.
    volatile: Mutex<BTreeSet<u64>>,
    durable: Mutex<BTreeSet<u64>>,
    calls: Mutex<Vec<Call>>,
    held: Mutex<BTreeSet<u64>>,
    released: Notify,
    failure: Mutex<Option<ErrorKind>>,
    lie: Option<Lie>,
    running: AtomicUsize,
    running_bytes: AtomicU64,
    running_bytes_most: AtomicU64,
}

impl TestDevice {
    pub(crate) fn new(size_bytes: u64) -> Self {
        Self::from(MemoryDevice::new(size_bytes))
    }

    pub(crate) fn read_only(size_bytes: u64) -> Self {
        Self::from(MemoryDevice::new(size_bytes).read_only())
    }

    pub(crate) fn lying(size_bytes: u64, lie: Lie) -> Self {
        Self { lie: Some(lie), ..Self::new(size_bytes) }
    }

    /// From here on it can be compared with what it is now.
    pub(crate) fn remember(&self, name: &str) {
        self.memory.remember(name);
    }

    pub(crate) fn resize(&self, size_bytes: u64) {
        self.memory.resize(size_bytes);
    }

    /// Every call fails from now on, or none does.
    pub(crate) fn fail_with(&self, kind: Option<ErrorKind>) {
        *self.failure.lock().unwrap() = kind;
    }

    /// Calls at these offsets wait until they are released.
    pub(crate) fn hold(&self, offsets: impl IntoIterator<Item = u64>) {
        self.held.lock().unwrap().extend(offsets);
    }

    pub(crate) fn release(&self, offset: u64) {
        self.held.lock().unwrap().remove(&offset);
        self.released.notify_waiters();
    }

    pub(crate) fn release_all(&self) {
        self.held.lock().unwrap().clear();
        self.released.notify_waiters();
    }

    pub(crate) fn calls(&self) -> Vec<Call> {
        self.calls.lock().unwrap().clone()
    }

    pub(crate) fn is_durable(&self, offset: u64) -> bool {
        self.durable.lock().unwrap().contains(&offset)
    }

    /// Calls that began and did not end.
    pub(crate) fn running(&self) -> usize {
        self.running.load(Ordering::SeqCst)
    }

    /// The most payload that was ever with the device at once.
    pub(crate) fn running_bytes_most(&self) -> u64 {
        self.running_bytes_most.load(Ordering::SeqCst)
    }

    async fn enter(&self, call: Call, offset: u64, bytes: u64) -> Result<Running<'_>, DeviceError> {
        self.calls.lock().unwrap().push(call);
        self.running.fetch_add(1, Ordering::SeqCst);
        let now = self.running_bytes.fetch_add(bytes, Ordering::SeqCst) + bytes;
        self.running_bytes_most.fetch_max(now, Ordering::SeqCst);
        let running = Running { device: self, bytes };
        loop {
            let released = self.released.notified();
            if !self.held.lock().unwrap().contains(&offset) {
                break;
            }
            released.await;
        }
        let failure = *self.failure.lock().unwrap();
        failure.map_or(Ok(running), |kind| Err(DeviceError(kind)))
    }

    fn written(&self, offset: u64, fua: bool) {
        let set = if fua { &self.durable } else { &self.volatile };
        set.lock().unwrap().insert(offset);
    }
}

struct Running<'d> {
    device: &'d TestDevice,
    bytes: u64,
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.device.running.fetch_sub(1, Ordering::SeqCst);
        self.device.running_bytes.fetch_sub(self.bytes, Ordering::SeqCst);
    }
}

impl From<MemoryDevice> for TestDevice {
    fn from(memory: MemoryDevice) -> Self {
        Self {
            memory,
            volatile: Mutex::default(),
            durable: Mutex::default(),
            calls: Mutex::default(),
            held: Mutex::default(),
            released: Notify::new(),
            failure: Mutex::default(),
            lie: None,
            running: AtomicUsize::default(),
            running_bytes: AtomicU64::default(),
            running_bytes_most: AtomicU64::default(),
        }
    }
}

impl BlockDevice for TestDevice {
    type Error = DeviceError;
    type Earlier = Remembered;

    fn info(&self) -> DeviceInfo {
        self.memory.info()
    }

    async fn read(&self, offset: u64, length_bytes: u32) -> Result<ReadBuffer, DeviceError> {
        let length = u64::from(length_bytes);
        let _running = self.enter(Call::Read { offset, length }, offset, length).await?;
        let short = u32::from(self.lie == Some(Lie::ReadsShort));
        Ok(self.memory.read(offset, length_bytes - short).await?)
    }

    async fn write(&self, offset: u64, data: Bytes, flags: WriteFlags) -> Result<(), DeviceError> {
        let length = data.len() as u64;
        let _running = self.enter(Call::Write { offset, length, fua: flags.fua }, offset, length).await?;
        if self.lie != Some(Lie::DropsWrites) {
            self.memory.write(offset, data, flags).await?;
        }
        self.written(offset, flags.fua);
        Ok(())
    }

    async fn flush(&self) -> Result<(), DeviceError> {
        let _running = self.enter(Call::Flush, u64::MAX, 0).await?;
        if self.lie != Some(Lie::IgnoresFlushes) {
            let volatile = std::mem::take(&mut *self.volatile.lock().unwrap());
            self.durable.lock().unwrap().extend(volatile);
        }
        Ok(())
    }

    async fn write_zeroes(&self, offset: u64, length: u64, flags: WriteFlags) -> Result<(), DeviceError> {
        let _running = self.enter(Call::WriteZeroes { offset, length, fua: flags.fua }, offset, 0).await?;
        self.memory.write_zeroes(offset, length, flags).await?;
        self.written(offset, flags.fua);
        Ok(())
    }

    async fn discard(&self, offset: u64, length: u64, flags: WriteFlags) -> Result<(), DeviceError> {
        let _running = self.enter(Call::Discard { offset, length, fua: flags.fua }, offset, 0).await?;
        Ok(self.memory.discard(offset, length, flags).await?)
    }

    async fn prefetch(&self, offset: u64, length: u64) -> Result<(), DeviceError> {
        let _running = self.enter(Call::Prefetch { offset, length }, offset, 0).await?;
        Ok(self.memory.prefetch(offset, length).await?)
    }

    async fn allocation(
        &self,
        offset: u64,
        length: u64,
        extents_max: usize,
    ) -> Result<Vec<AllocationExtent>, DeviceError> {
        let _running = self.enter(Call::Allocation { offset, length, extents_max }, offset, 0).await?;
        Ok(self.memory.allocation(offset, length, extents_max).await?)
    }

    async fn earlier(&self) -> Result<Vec<String>, DeviceError> {
        Ok(self.memory.earlier().await?)
    }

    async fn open_earlier(&self, name: &str) -> Result<Option<Remembered>, DeviceError> {
        let failure = *self.failure.lock().unwrap();
        failure.map_or(Ok(()), |kind| Err(DeviceError(kind)))?;
        Ok(self.memory.open_earlier(name).await?)
    }

    async fn changes(
        &self,
        since: &Remembered,
        offset: u64,
        length: u64,
        extents_max: usize,
    ) -> Result<Vec<ChangeExtent>, DeviceError> {
        let _running = self.enter(Call::Changes { offset, length, extents_max }, offset, 0).await?;
        Ok(self.memory.changes(since, offset, length, extents_max).await?)
    }
}
