//! Who has which volume open: the engine's exports, counted.

use crate::names::SEPARATOR;
use cairn_engine::{Engine, EngineError, Volume};
use cairn_model::{
    AllocationExtent, BlockDevice, ChangeExtent, DeviceInfo, Exports, ReadBuffer, VolumeId, WriteFlags,
};
use parking_lot::Mutex;
use std::collections::HashMap;
use std::future::Future;
use std::sync::Arc;

/// What a client has open: a volume, or a snapshot of it, which is no use of the volume itself.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Opened {
    volume: VolumeId,
    snapshot: Option<String>,
    /// Only to compare something later with it.
    to_compare: bool,
}

/// Open attachments by volume and snapshot. Clones of this count together.
#[derive(Debug, Clone, Default)]
pub struct Sessions {
    open: Arc<Mutex<HashMap<Opened, u64>>>,
}

impl Sessions {
    /// Connections that have the volume itself open.
    pub fn of(&self, volume: VolumeId) -> u64 {
        self.count(volume, None)
    }

    /// Connections that have the volume's snapshot of that name open, or compare something later with it.
    pub fn of_snapshot(&self, volume: VolumeId, name: &str) -> u64 {
        self.count(volume, Some(name))
    }

    pub fn total(&self) -> u64 {
        let open = self.open.lock();
        open.iter().filter(|(opened, _)| !opened.to_compare).map(|(_, count)| count).sum()
    }

    fn count(&self, volume: VolumeId, snapshot: Option<&str>) -> u64 {
        let open = self.open.lock();
        let of = |to_compare| {
            let opened = Opened { volume, snapshot: snapshot.map(str::to_owned), to_compare };
            open.get(&opened).copied().unwrap_or(0)
        };
        of(false) + of(true)
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
        let opened = Opened { volume: volume.id(), snapshot, to_compare: false };
        Some(Arc::new(Attached::new(volume, opened, &self.sessions)))
    }
}

/// A volume or a snapshot that a client has open; counted until dropped.
#[derive(Debug)]
pub struct Attached {
    volume: Arc<Volume>,
    opened: Opened,
    sessions: Sessions,
}

impl Attached {
    fn new(volume: Arc<Volume>, opened: Opened, sessions: &Sessions) -> Self {
        sessions.begin(opened.clone());
        Self { volume, opened, sessions: sessions.clone() }
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        self.sessions.end(&self.opened);
    }
}

impl BlockDevice for Attached {
    type Error = EngineError;
    /// A snapshot that is held open.
    type Earlier = Self;

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

    fn earlier(&self) -> impl Future<Output = Result<Vec<String>, EngineError>> + Send {
        self.volume.earlier()
    }

    async fn open_earlier(&self, name: &str) -> Result<Option<Self>, EngineError> {
        let Some(earlier) = self.volume.open_earlier(name).await? else { return Ok(None) };
        let opened = Opened { volume: earlier.id(), snapshot: Some(name.to_owned()), to_compare: true };
        Ok(Some(Self::new(earlier, opened, &self.sessions)))
    }

    fn changes(
        &self,
        since: &Self,
        offset: u64,
        length_bytes: u64,
        extents_max: usize,
    ) -> impl Future<Output = Result<Vec<ChangeExtent>, EngineError>> + Send {
        self.volume.changes(&since.volume, offset, length_bytes, extents_max)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_of_a_snapshot_are_no_clients_of_its_volume() {
        let sessions = Sessions::default();
        let volume = VolumeId::from_bytes([1; 16]);
        let of = |snapshot: Option<&str>| Opened {
            volume,
            snapshot: snapshot.map(str::to_owned),
            to_compare: false,
        };
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

    #[test]
    fn who_compares_with_a_snapshot_uses_it_and_is_no_further_connection() {
        let sessions = Sessions::default();
        let volume = VolumeId::from_bytes([1; 16]);
        sessions.begin(Opened { volume, snapshot: Some("monday".to_owned()), to_compare: true });
        assert_eq!(
            (sessions.of_snapshot(volume, "monday"), sessions.of(volume), sessions.total()),
            (1, 0, 0)
        );
    }
}
