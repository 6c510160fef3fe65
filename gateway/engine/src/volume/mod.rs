//! One virtual disk.
//!
//! Order: a write gets its [`WriteSeq`] and its place in the log and in the write buffer in one critical section of the volume's state,
//! so buffer order, log order and replay order are the same. Nothing awaits inside it.
//!
//! Acknowledgement: a write is acknowledged when its frame was handed to the operating system (it survives the
//! gateway's death, so a client that reconnects after a restart finds every write it saw acknowledged), and when it is
//! durable if the write or the volume asks for that. A read does not show a write before that point either.

pub(crate) mod buffer;
mod changes;
pub(crate) mod map;
mod plan;
mod read;
mod write;

use crate::engine::Shared;
use crate::error::EngineError;
use crate::lease::LeaseTerm;
use crate::patience::patiently;
use crate::read::ReadStreams;
use crate::recovery::OpenVolume;
use buffer::WriteBuffer;
use bytes::Bytes;
use cairn_metadata::{CatalogError, SnapshotRow};
use cairn_model::planted::{Bug, is_planted};
use cairn_model::{
    AllocationExtent, BlockDevice, ChangeExtent, DeviceInfo, Durability, Generation, LineageId, Lsn,
    Monotonic, ReadBuffer, VolumeId, WriteFlags, WriteSeq,
};
use cairn_segment_writer::VolumePacking;
use map::{ExtentMap, MapTerm};
use parking_lot::Mutex;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use tokio::sync::Notify;

/// Whether a volume still answers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Condition {
    Serving,
    Fenced,
    Deleted,
    /// What the catalog has of it is not known.
    Unsure,
}

#[derive(Debug)]
pub(crate) struct VolumeState {
    pub(crate) name: String,
    pub(crate) size_bytes: u64,
    pub(crate) read_only: bool,
    pub(crate) condition: Condition,
    pub(crate) buffer: WriteBuffer,
    pub(crate) map: ExtentMap,
    /// When the last batch with a part of the volume was committed.
    pub(crate) committed_at: Monotonic,
    /// Changes wait: the volume is being reverted.
    held: bool,
}

/// A virtual disk that this gateway owns and serves.
#[derive(Debug)]
pub struct Volume {
    id: VolumeId,
    durability: Durability,
    packing: VolumePacking,
    lease: Arc<LeaseTerm>,
    shared: Arc<Shared>,
    state: Mutex<VolumeState>,
    streams: ReadStreams,
    /// Somebody has read since the last sync that a request asked for.
    read_since_flush: AtomicBool,
    /// Changes are not held any more.
    released: Notify,
}

impl Volume {
    pub(crate) fn new(open: OpenVolume, shared: Arc<Shared>) -> Self {
        let OpenVolume { row, packing, lease, map, buffer, .. } = open;
        let state = VolumeState {
            name: row.name.to_string(),
            size_bytes: row.size_bytes,
            read_only: row.read_only,
            condition: Condition::Serving,
            buffer,
            map,
            committed_at: shared.ports.clock.now(),
            held: false,
        };
        Self::assemble(row.id, row.durability, packing, Arc::new(lease), state, shared)
    }

    /// A settled snapshot of this volume, to be read. In no registry: it is not written, so no cut needs it. It answers as long as this gateway
    /// owns the volume: another owner may delete it.
    pub(crate) fn view(&self, snapshot: &SnapshotRow) -> Self {
        let shared = Arc::clone(&self.shared);
        let state = VolumeState {
            name: format!("{}@{}", self.name(), snapshot.name),
            size_bytes: snapshot.size_bytes,
            read_only: true,
            condition: Condition::Serving,
            buffer: WriteBuffer::after(WriteSeq::ZERO),
            map: ExtentMap::new(MapTerm::snapshot(snapshot.at), snapshot.at.commit),
            committed_at: shared.ports.clock.now(),
            held: false,
        };
        let (packing, lease) = (self.packing.clone(), Arc::clone(&self.lease));
        Self::assemble(self.id, self.durability, packing, lease, state, shared)
    }

    fn assemble(
        id: VolumeId,
        durability: Durability,
        packing: VolumePacking,
        lease: Arc<LeaseTerm>,
        state: VolumeState,
        shared: Arc<Shared>,
    ) -> Self {
        Self {
            id,
            durability,
            packing,
            lease,
            shared,
            state: Mutex::new(state),
            streams: ReadStreams::default(),
            read_since_flush: AtomicBool::new(false),
            released: Notify::new(),
        }
    }

    pub fn id(&self) -> VolumeId {
        self.id
    }

    pub fn name(&self) -> String {
        self.state.lock().name.clone()
    }

    pub fn size_bytes(&self) -> u64 {
        self.state.lock().size_bytes
    }

    pub fn durability(&self) -> Durability {
        self.durability
    }

    /// How its data is packed.
    pub(crate) fn packing(&self) -> &VolumePacking {
        &self.packing
    }

    pub fn generation(&self) -> Generation {
        self.lease.generation()
    }

    pub(crate) fn lease(&self) -> &LeaseTerm {
        &self.lease
    }

    pub(crate) fn shares_lease_with(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.lease, &other.lease)
    }

    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    pub(crate) fn lineage(&self) -> LineageId {
        self.state.lock().map.lineage()
    }

    pub(crate) fn state(&self) -> &Mutex<VolumeState> {
        &self.state
    }

    /// From here on changes wait, until [`Volume::release`].
    pub(crate) fn hold(&self) {
        self.state.lock().held = true;
    }

    pub(crate) fn release(&self) {
        self.state.lock().held = false;
        self.released.notify_waiters();
    }

    async fn until_released(&self) {
        loop {
            let released = self.released.notified();
            tokio::pin!(released);
            released.as_mut().enable();
            if !self.state.lock().held {
                return;
            }
            released.await;
        }
    }

    /// Checks that the gateway may answer for the volume: ownership has not lapsed. Waits while renewal is late.
    pub(crate) async fn owned(&self) -> Result<(), EngineError> {
        let clock = &*self.shared.ports.clock;
        if self.lease.is_current(clock.now()) || is_planted(Bug::AnswerWithoutLease) {
            return Ok(());
        }
        let renewed =
            cairn_model::timeout(clock, self.shared.config.lease_ttl, self.lease.renewed(clock)).await;
        match renewed {
            Ok(true) => Ok(()),
            Ok(false) => Err(EngineError::Fenced(self.name())),
            Err(cairn_model::Elapsed) => Err(EngineError::LeaseLapsed(self.name())),
        }
    }

    /// Asks the catalog on behalf of a guest, who waits while it is away.
    async fn ask_catalog<T, F>(&self, ask: impl FnMut() -> F) -> Result<T, EngineError>
    where
        F: Future<Output = Result<T, CatalogError>>,
    {
        let (clock, limit) = (&*self.shared.ports.clock, self.shared.config.read_deadline);
        patiently(clock, limit, "a guest waits for the catalog", EngineError::CatalogSilent, ask).await
    }

    async fn durable(&self, through: Lsn) -> Result<(), EngineError> {
        // A guest that reads meanwhile should not wait for the sync: it is left to the log's thread.
        let wal = &self.shared.wal;
        let receipt = if self.read_since_flush.swap(false, Ordering::Relaxed) {
            wal.synced(through).await?
        } else {
            wal.synced_by_caller(through).await?
        };
        debug_assert!(receipt.durable_through() >= through, "a receipt covers what was asked");
        Ok(())
    }
}

impl VolumeState {
    pub(crate) fn check_serving(&self) -> Result<(), EngineError> {
        match self.condition {
            Condition::Serving => Ok(()),
            Condition::Fenced => Err(EngineError::Fenced(self.name.clone())),
            Condition::Deleted => Err(EngineError::Deleted(self.name.clone())),
            Condition::Unsure => Err(EngineError::Unsure(self.name.clone())),
        }
    }

    fn check_range(&self, offset: u64, length: u64) -> Result<(), EngineError> {
        match offset.checked_add(length) {
            Some(end) if end <= self.size_bytes => Ok(()),
            _ => Err(EngineError::OutOfRange { offset, length, size: self.size_bytes }),
        }
    }

    fn check_writable(&self) -> Result<(), EngineError> {
        if self.read_only { Err(EngineError::ReadOnly(self.name.clone())) } else { Ok(()) }
    }
}

impl BlockDevice for Volume {
    type Error = EngineError;
    type Earlier = Arc<Self>;

    fn info(&self) -> DeviceInfo {
        let state = self.state.lock();
        DeviceInfo { size_bytes: state.size_bytes, read_only: state.read_only }
    }

    async fn read(&self, offset: u64, length_bytes: u32) -> Result<ReadBuffer, EngineError> {
        if !self.read_since_flush.load(Ordering::Relaxed) {
            self.read_since_flush.store(true, Ordering::Relaxed);
        }
        self.read_bytes(offset, length_bytes).await
    }

    async fn write(&self, offset: u64, data: Bytes, flags: WriteFlags) -> Result<(), EngineError> {
        let last = self.write_bytes(offset, data).await?;
        self.acknowledge(last, flags).await
    }

    async fn flush(&self) -> Result<(), EngineError> {
        self.state.lock().check_serving()?;
        // Everything acknowledged on any session of any volume has its place in the log by now.
        let through = self.shared.wal.written_through();
        if !is_planted(Bug::FlushWithoutSync) {
            self.durable(through).await?;
        }
        self.owned().await
    }

    async fn write_zeroes(
        &self,
        offset: u64,
        length_bytes: u64,
        flags: WriteFlags,
    ) -> Result<(), EngineError> {
        let last = self.zero_bytes(offset, length_bytes).await?;
        self.acknowledge(last, flags).await
    }

    async fn discard(&self, offset: u64, length_bytes: u64, flags: WriteFlags) -> Result<(), EngineError> {
        let last = self.discard_bytes(offset, length_bytes).await?;
        self.acknowledge(last, flags).await
    }

    async fn prefetch(&self, offset: u64, length_bytes: u64) -> Result<(), EngineError> {
        self.state.lock().check_range(offset, length_bytes)?;
        self.prefetch_bytes(offset, length_bytes).await
    }

    async fn allocation(
        &self,
        offset: u64,
        length_bytes: u64,
        extents_max: usize,
    ) -> Result<Vec<AllocationExtent>, EngineError> {
        self.allocation_bytes(offset, length_bytes, extents_max).await
    }

    async fn earlier(&self) -> Result<Vec<String>, EngineError> {
        self.earlier_snapshots().await
    }

    async fn open_earlier(&self, name: &str) -> Result<Option<Arc<Self>>, EngineError> {
        self.open_earlier_snapshot(name).await
    }

    async fn changes(
        &self,
        since: &Arc<Self>,
        offset: u64,
        length_bytes: u64,
        extents_max: usize,
    ) -> Result<Vec<ChangeExtent>, EngineError> {
        self.changes_bytes(since, offset, length_bytes, extents_max).await
    }
}
