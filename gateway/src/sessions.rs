//! Who has which volume open: the engine's exports, counted.

use cairn_engine::{Engine, EngineError, Volume};
use cairn_model::{AllocationExtent, BlockDevice, DeviceInfo, Exports, ReadBuffer, VolumeId, WriteFlags};
use parking_lot::Mutex;
use std::collections::HashMap;
use std::future::Future;
use std::sync::Arc;

/// Open attachments by volume. Clones count together.
#[derive(Debug, Clone, Default)]
pub struct Sessions {
    open: Arc<Mutex<HashMap<VolumeId, u64>>>,
}

impl Sessions {
    /// Connections that have the volume open.
    pub fn of(&self, volume: VolumeId) -> u64 {
        self.open.lock().get(&volume).copied().unwrap_or(0)
    }

    pub fn total(&self) -> u64 {
        self.open.lock().values().sum()
    }

    fn begin(&self, volume: VolumeId) {
        *self.open.lock().entry(volume).or_insert(0) += 1;
    }

    fn end(&self, volume: VolumeId) {
        let mut open = self.open.lock();
        if let Some(count) = open.get_mut(&volume) {
            *count -= 1;
            if *count == 0 {
                open.remove(&volume);
            }
        }
    }
}

/// The engine's volumes as exports whose opening and closing is counted.
#[derive(Debug)]
pub struct CountedExports {
    engine: Arc<Engine>,
    sessions: Sessions,
}

impl CountedExports {
    pub fn new(engine: Arc<Engine>, sessions: Sessions) -> Self {
        Self { engine, sessions }
    }
}

impl Exports for CountedExports {
    type Device = Attached;

    fn names(&self) -> Vec<String> {
        self.engine.names()
    }

    fn open(&self, name: &str) -> Option<Arc<Attached>> {
        let volume = self.engine.open(name)?;
        self.sessions.begin(volume.id());
        Some(Arc::new(Attached { volume, sessions: self.sessions.clone() }))
    }
}

/// A volume that a client has open; counted until dropped.
#[derive(Debug)]
pub struct Attached {
    volume: Arc<Volume>,
    sessions: Sessions,
}

impl Drop for Attached {
    fn drop(&mut self) {
        self.sessions.end(self.volume.id());
    }
}

impl BlockDevice for Attached {
    type Error = EngineError;

    fn info(&self) -> DeviceInfo {
        self.volume.info()
    }

    fn read(
        &self,
        offset: u64,
        length_bytes: u32,
    ) -> impl Future<Output = Result<ReadBuffer, EngineError>> + Send {
        self.volume.read(offset, length_bytes)
    }

    fn write(
        &self,
        offset: u64,
        data: bytes::Bytes,
        flags: WriteFlags,
    ) -> impl Future<Output = Result<(), EngineError>> + Send {
        self.volume.write(offset, data, flags)
    }

    fn flush(&self) -> impl Future<Output = Result<(), EngineError>> + Send {
        self.volume.flush()
    }

    fn write_zeroes(
        &self,
        offset: u64,
        length_bytes: u64,
        flags: WriteFlags,
    ) -> impl Future<Output = Result<(), EngineError>> + Send {
        self.volume.write_zeroes(offset, length_bytes, flags)
    }

    fn discard(
        &self,
        offset: u64,
        length_bytes: u64,
        flags: WriteFlags,
    ) -> impl Future<Output = Result<(), EngineError>> + Send {
        self.volume.discard(offset, length_bytes, flags)
    }

    fn prefetch(
        &self,
        offset: u64,
        length_bytes: u64,
    ) -> impl Future<Output = Result<(), EngineError>> + Send {
        self.volume.prefetch(offset, length_bytes)
    }

    fn allocation(
        &self,
        offset: u64,
        length_bytes: u64,
        extents_max: usize,
    ) -> impl Future<Output = Result<Vec<AllocationExtent>, EngineError>> + Send {
        self.volume.allocation(offset, length_bytes, extents_max)
    }
}
