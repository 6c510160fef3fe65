//! Who has which volume open: the engine's exports, counted.

use crate::names::SEPARATOR;
use cairn_engine::{Engine, EngineError, Volume};
use cairn_model::{AllocationExtent, BlockDevice, DeviceInfo, Exports, ReadBuffer, VolumeId, WriteFlags};
use parking_lot::Mutex;
use std::collections::HashMap;
use std::future::Future;
use std::sync::Arc;

/// What a client has open: a volume, or a snapshot of it, which is no use of the volume itself.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Opened {
    volume: VolumeId,
    snapshot: Option<String>,
}

/// Open attachments by volume and snapshot. Clones of this count together.
#[derive(Debug, Clone, Default)]
pub struct Sessions {
    open: Arc<Mutex<HashMap<Opened, u64>>>,
}

impl Sessions {
    /// Connections that have the volume itself open.
    pub fn of(&self, volume: VolumeId) -> u64 {
        self.count(&Opened { volume, snapshot: None })
    }

    /// Connections that have the volume's snapshot of that name open.
    pub fn of_snapshot(&self, volume: VolumeId, name: &str) -> u64 {
        self.count(&Opened { volume, snapshot: Some(name.to_owned()) })
    }

    pub fn total(&self) -> u64 {
        self.open.lock().values().sum()
    }

    fn count(&self, opened: &Opened) -> u64 {
        self.open.lock().get(opened).copied().unwrap_or(0)
    }

    fn begin(&self, opened: Opened) {
        *self.open.lock().entry(opened).or_insert(0) += 1;
    }

    fn end(&self, opened: &Opened) {
        let mut open = self.open.lock();
        if let Some(count) = open.get_mut(opened) {
            *count -= 1;
            if *count == 0 {
                open.remove(opened);
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

    async fn open(&self, name: &str) -> Option<Arc<Attached>> {
        let volume = self.engine.open(name).await?;
        let snapshot = name.split_once(SEPARATOR).map(|(_, snapshot)| snapshot.to_owned());
        let opened = Opened { volume: volume.id(), snapshot };
        self.sessions.begin(opened.clone());
        Some(Arc::new(Attached { volume, opened, sessions: self.sessions.clone() }))
    }
}

/// A volume or a snapshot that a client has open; counted until dropped.
#[derive(Debug)]
pub struct Attached {
    volume: Arc<Volume>,
    opened: Opened,
    sessions: Sessions,
}

impl Drop for Attached {
    fn drop(&mut self) {
        self.sessions.end(&self.opened);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_of_a_snapshot_are_no_clients_of_its_volume() {
        let sessions = Sessions::default();
        let volume = VolumeId::from_bytes([1; 16]);
        let of = |snapshot: Option<&str>| Opened { volume, snapshot: snapshot.map(str::to_owned) };
        sessions.begin(of(Some("monday")));
        sessions.begin(of(Some("monday")));
        sessions.begin(of(None));
        assert_eq!(
            (sessions.of(volume), sessions.of_snapshot(volume, "monday"), sessions.total()),
            (1, 2, 3)
        );
        sessions.end(&of(None));
        sessions.end(&of(Some("monday")));
        assert_eq!(
            (sessions.of(volume), sessions.of_snapshot(volume, "monday"), sessions.total()),
            (0, 1, 1)
        );
        assert_eq!(sessions.of_snapshot(volume, "tuesday"), 0);
    }
}
