//! The handle.

use crate::disk::Disk;
use crate::grower;
use crate::reader::{REQUESTS_MAX, ReadRequest, Reader};
use crate::record::Record;
use crate::recovery::Recovery;
use crate::self_service::SelfService;
use crate::shared::{Context, Permit, Shared};
use crate::syncer;
use crate::writer::{self, Current, Writer};
use crate::{WalConfig, WalError, WalIdentity};
use bytes::Bytes;
use cairn_model::crypto::SecretKey;
use cairn_model::{FlushReceipt, Lsn, Ports, boxed};
use std::future::{Future, poll_fn};
use std::sync::Arc;
use std::task::Poll;
use tokio::sync::{Mutex, mpsc, oneshot, watch};

/// The write-ahead log of a gateway. Clones share it; the log closes when it is told to or when the last clone is gone.
#[derive(Clone, Debug)]
pub struct Wal {
    shared: Arc<Shared>,
    self_service: SelfService,
    handle: Arc<Handle>,
}

#[derive(Debug)]
struct Handle {
    shared: Arc<Shared>,
    readers: parking_lot::Mutex<Vec<mpsc::Sender<ReadRequest>>>,
    /// Every thread of the log keeps a receiver until it ends.
    threads: watch::Sender<()>,
}

/// A look at the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WalUsage {
    /// Bytes that records can take when the ring has all its files.
    pub capacity_bytes: u64,
    /// Bytes of it that are taken or reserved.
    pub used_bytes: u64,
    /// Bytes of the files on disk.
    pub allocated_bytes: u64,
    /// Bytes that wait for the writer.
    pub queued_bytes: u64,
    /// The oldest record that is kept; equal to `next_lsn` when there is none.
    pub first_lsn: Lsn,
    pub next_lsn: Lsn,
    pub freed_through: Lsn,
    pub written_through: Lsn,
    pub synced_through: Lsn,
    /// Why the ring is smaller than configured.
    pub growth_stopped: Option<String>,
    /// Why nothing is acknowledged any more.
    pub poisoned: Option<String>,
}

impl Wal {
    /// Finds the log on `disk`, or makes one. The records it holds come out of the [`Recovery`]. Blocks on the disk.
    #[boxed]
    pub async fn open(
        config: WalConfig,
        identity: WalIdentity,
        key: &SecretKey,
        disk: Arc<dyn Disk>,
        ports: Ports,
    ) -> Result<Recovery, WalError> {
        Recovery::open(Context { config, identity, key: key.clone(), disk, ports }).await
    }

    pub(crate) fn start(shared: Arc<Shared>, current: Current) -> Result<Self, WalError> {
        let (threads, thread) = watch::channel(());
        let writer = Arc::new(Mutex::new(Writer::new(Arc::clone(&shared), current)));
        let readers = start_threads(&shared, &writer, &thread).inspect_err(|error| {
            // Those that did start end.
            shared.poison(&error.to_string());
            shared.writer_thread.wake();
        })?;
        let readers = parking_lot::Mutex::new(readers);
        let handle = Arc::new(Handle { shared: Arc::clone(&shared), readers, threads });
        let self_service = SelfService::new(Arc::clone(&shared), writer);
        Ok(Self { shared, self_service, handle })
    }

    /// Waits for room for a record with this many bytes of data: in the ring (the log may be full) and in
    /// the queue to the writer. First come, first served.
    pub async fn reserve(&self, data_bytes: usize) -> Result<Permit, WalError> {
        self.shared.reserve(data_bytes).await
    }

    /// Puts a record into the log; the order of calls is the order of the log. Never blocks, never fails for space.
    /// It is written once somebody waits, for it or for room.
    pub fn append(&self, permit: Permit, record: Record) -> Result<Lsn, WalError> {
        self.shared.append(permit, record)
    }

    /// Puts records into the log that belong together: after a crash all of them are there, or none. Returns the last one's number. They must fit
    /// one frame, some 1 MiB.
    pub fn append_together(&self, records: Vec<(Permit, Record)>) -> Result<Lsn, WalError> {
        self.shared.append_together(records)
    }

    /// Waits until record `lsn` survives the end of this process.
    pub async fn written(&self, lsn: Lsn) -> Result<(), WalError> {
        self.check_appended(lsn)?;
        if self.shared.written.reached() < lsn {
            gather().await;
            if self.shared.written.reached() < lsn {
                self.self_service.write();
            }
        }
        let done = self.shared.written.wait(lsn, || self.shared.writer_thread.wake()).await;
        done.map_err(|stopped| self.shared.stopped(stopped))
    }

    /// Every record up to here survives the end of this process.
    pub fn written_through(&self) -> Lsn {
        self.shared.written.reached()
    }

    /// Waits until record `lsn` and all before it are durable. The log syncs because of this call only.
    pub async fn synced(&self, lsn: Lsn) -> Result<FlushReceipt, WalError> {
        self.check_appended(lsn)?;
        let done = self.shared.synced.wait(lsn, || self.shared.writer_thread.wake()).await;
        done.map_err(|stopped| self.shared.stopped(stopped))?;
        Ok(FlushReceipt::attest(self.synced_through()))
    }

    /// Like [`Wal::synced`], for a caller whose task has nothing else to do for a guest: if the device is fast, its own
    /// thread does the work.
    pub async fn synced_by_caller(&self, lsn: Lsn) -> Result<FlushReceipt, WalError> {
        self.check_appended(lsn)?;
        if self.shared.synced.reached() < lsn {
            gather().await;
            if self.shared.synced.reached() < lsn {
                self.self_service.sync(lsn);
            }
        }
        self.synced(lsn).await
    }

    /// Every record up to here is durable.
    pub fn synced_through(&self) -> Lsn {
        self.shared.synced.reached()
    }

    fn check_appended(&self, lsn: Lsn) -> Result<(), WalError> {
        if lsn <= self.shared.written.reached() {
            return Ok(());
        }
        let next = self.shared.queue.lock().next_lsn;
        if lsn < next { Ok(()) } else { Err(WalError::NotAppended { lsn, next }) }
    }

    /// The data of write record `lsn`, read back from the log; [`WalError::Freed`] once it is freed.
    pub async fn read(&self, lsn: Lsn) -> Result<Bytes, WalError> {
        let mut data = self.read_many(vec![lsn]).await?;
        Ok(data.pop().expect("one record was asked for"))
    }

    /// The data of several write records, in the order of `lsns`. A frame is read and decrypted as a whole, so
    /// ascending numbers make each be read once.
    pub async fn read_many(&self, lsns: Vec<Lsn>) -> Result<Vec<Bytes>, WalError> {
        let Some(&first) = lsns.first() else { return Ok(Vec::new()) };
        let last = lsns.iter().max().expect("there is one");
        self.written(*last).await?;
        let frame = self.shared.ring.lock().locate(first).ok_or(WalError::Freed { lsn: first })?;
        let reader = {
            let readers = self.handle.readers.lock();
            // The same frame goes to the same reader, which remembers its last.
            let index = (frame.offset / crate::format::PAGE_BYTES) as usize % readers.len().max(1);
            readers.get(index).cloned().ok_or(WalError::Closed)?
        };
        let (reply, answer) = oneshot::channel();
        reader.send(ReadRequest { lsns, reply }).await.map_err(|_| self.shared.stop_error())?;
        answer.await.map_err(|_| self.shared.stop_error())?
    }

    /// Records up to `lsn` are no longer needed; their room is used again, file by file. To be called when the catalog
    /// durably has what they said.
    pub fn free_through(&self, lsn: Lsn) {
        self.shared.free_through(lsn);
    }

    pub fn usage(&self) -> WalUsage {
        let next_lsn = self.shared.queue.lock().next_lsn;
        let page = crate::format::PAGE_BYTES;
        let ring = self.shared.ring.lock();
        let available = self.shared.space.available_permits() as u64 * page;
        let queue_room = self.shared.queue_room.available_permits() as u64 * page;
        WalUsage {
            capacity_bytes: ring.capacity(),
            used_bytes: ring.capacity().saturating_sub(available + ring.missing()),
            allocated_bytes: ring.allocated_bytes(),
            queued_bytes: self.shared.context.config.queue_bytes.saturating_sub(queue_room),
            first_lsn: ring.first_lsn().min(next_lsn),
            next_lsn,
            freed_through: ring.freed_through(),
            written_through: self.shared.written.reached(),
            synced_through: self.shared.synced.reached(),
            growth_stopped: self.shared.growth_stopped.get().cloned(),
            poisoned: self.shared.poison_cause().map(ToString::to_string),
        }
    }

    /// Refuses new records, makes all earlier ones durable, ends the log's threads.
    #[boxed]
    pub async fn close(&self) -> Result<(), WalError> {
        self.handle.stop();
        self.handle.threads.closed().await;
        self.shared.check_alive()
    }
}

impl Handle {
    fn stop(&self) {
        self.shared.queue.lock().closing = true;
        self.shared.writer_thread.wake();
        self.shared.grower.wake();
        self.readers.lock().clear();
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Starts the log's threads; how to reach those that read.
fn start_threads(
    shared: &Arc<Shared>,
    writer: &Arc<Mutex<Writer>>,
    thread: &watch::Receiver<()>,
) -> Result<Vec<mpsc::Sender<ReadRequest>>, WalError> {
    spawn(shared, "wal-writer", 0, thread, writer::run(Arc::clone(shared), Arc::clone(writer)))?;
    spawn(shared, "wal-syncer", 0, thread, syncer::run(Arc::clone(shared)))?;
    spawn(shared, "wal-grower", 10, thread, grower::run(Arc::clone(shared)))?;
    let mut readers = Vec::new();
    for _ in 0..shared.context.config.readers {
        let (sender, requests) = mpsc::channel(REQUESTS_MAX);
        spawn(shared, "wal-reader", 0, thread, Reader::new(Arc::clone(shared), requests).run())?;
        readers.push(sender);
    }
    Ok(readers)
}

/// Lets the caller's task come to its other requests first: what they append goes into the same frame.
async fn gather() {
    let mut asked = false;
    poll_fn(|context| {
        if std::mem::replace(&mut asked, true) {
            return Poll::Ready(());
        }
        context.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

fn spawn(
    shared: &Shared,
    name: &'static str,
    nice: u8,
    thread: &watch::Receiver<()>,
    work: impl Future<Output = ()> + Send + 'static,
) -> Result<(), WalError> {
    let thread = thread.clone();
    let work = async move {
        work.await;
        drop(thread);
    };
    let spawned = shared.context.ports.spawn.dedicated(name, nice, Box::pin(work));
    spawned.map_err(|error| WalError::io("start the thread", name, error))
}
