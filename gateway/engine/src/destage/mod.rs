//! From the log to the pool and the catalog.
//!
//! ```text
//! cut ─► pack (compute threads) ─► put segments ─► commit ─► retire layers ─► free the log
//!        └──── several batches overlap ────┘       in order, one at a time
//! ```
//!
//! Invariants, and what a crash leaves:
//! - a batch is every volume at one moment of the log: all writes through `through`, none after. A crash before
//!   its commit leaves objects that nothing names and a log that still has everything: the next start packs it again
//!   under fresh identities;
//! - a commit names only segments whose put was acknowledged, and only after the batches before it. A crash between
//!   commit and free leaves records that the catalog has already: recovery skips them by `destaged_through`;
//! - the log is freed after the commit returned, never on a guess. A commit whose reply was lost is repeated under the same
//!   batch id, which the catalog recognises;
//! - what a batch shares is checked by its commit; a batch that is refused for it is packed again (see `dedupe`);
//! - nothing is dropped: what fails is tried again until it succeeds, the problem is shown in the status, and writers
//!   wait when the log is full. Only losing ownership of a volume, or deleting it, ends its part of a batch.

mod commit;
mod fold;
mod prepare;
mod streams;

pub(crate) use fold::fold_until_stopped;

use crate::engine::Shared;
use crate::error::EngineError;
use crate::snapshot::encode_note;
use crate::status::DestageStatus;
use crate::volume::buffer::Layer;
use crate::volume::{Volume, VolumeState};
use crate::wal_state::DirtyPin;
use cairn_metadata::NewSnapshot;
use cairn_model::planted::{Bug, is_planted};
use cairn_model::{BatchId, Lsn};
use cairn_segment_writer::Dedupe;
use cairn_wal::{Permit, Record, RecordBody};
use commit::commit;
use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::FuturesOrdered;
use parking_lot::{Mutex, MutexGuard};
use prepare::{Prepared, Sharing, prepare};
use std::collections::{BTreeSet, VecDeque};
use std::future::pending;
use std::sync::Arc;
use tokio::sync::{mpsc, oneshot, watch};

/// Batches packed and uploaded at the same time, however many threads there are: each holds up to twice its size in memory.
const BATCHES_IN_FLIGHT_MAX: usize = 8;

/// Answers when everything written before the request is in the pool and in the catalog.
type Waiter = oneshot::Sender<()>;

/// A snapshot of one volume, to be taken at the next cut.
pub(crate) struct Mark {
    pub(crate) volume: Arc<Volume>,
    pub(crate) snapshot: NewSnapshot,
    /// Room for it in the log.
    pub(crate) permit: Permit,
}

/// What somebody wants of destage.
pub(crate) enum Request {
    /// Destage everything written so far.
    All(Waiter),
    /// Cut now, and mark the cut as the end of snapshots.
    Snapshot(Vec<Mark>, DirtyPin, oneshot::Sender<Result<Lsn, EngineError>>),
}

/// Every volume's layer of one cut.
pub(crate) struct Batch {
    id: BatchId,
    previous: Option<BatchId>,
    /// Its place in the order of commits, from 0.
    turn: u64,
    /// Times it was packed, or begun to be.
    attempts: u32,
    /// Last record of the cut.
    through: Lsn,
    /// Grouped by domain, and by whether they are deduplicated.
    parts: Vec<(Arc<Volume>, Arc<Layer>)>,
    waiters: Vec<Waiter>,
}

/// The handle on the destage task.
#[derive(Debug)]
pub(crate) struct Destage {
    requests: mpsc::Sender<Request>,
    /// How many wait until all that was written is in the pool.
    waiting: watch::Sender<usize>,
    /// Batches cut at recovery, oldest first, taken by the task when it starts.
    recovered: Mutex<VecDeque<Cut>>,
    status: Mutex<DestageStatus>,
}

/// What a cut froze.
pub(crate) struct Cut {
    pub(crate) through: Lsn,
    pub(crate) parts: Vec<(Arc<Volume>, Arc<Layer>)>,
}

impl std::fmt::Debug for Cut {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cut").field("through", &self.through).field("parts", &self.parts.len()).finish()
    }
}

struct Waiting<'a>(&'a watch::Sender<usize>);

impl<'a> Waiting<'a> {
    fn new(waiting: &'a watch::Sender<usize>) -> Self {
        waiting.send_modify(|waiting| *waiting += 1);
        Self(waiting)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.send_modify(|waiting| *waiting -= 1);
    }
}

impl Destage {
    pub(crate) fn new() -> (Self, mpsc::Receiver<Request>) {
        let (requests, receiver) = mpsc::channel(16);
        let destage = Self {
            requests,
            waiting: watch::Sender::new(0),
            recovered: Mutex::default(),
            status: Mutex::default(),
        };
        (destage, receiver)
    }

    /// Takes a batch that recovery cut.
    pub(crate) fn recovered(&self, cut: Cut) {
        self.recovered.lock().push_back(cut);
    }

    /// Destages everything written before the call.
    pub(crate) async fn all(&self) -> Result<(), EngineError> {
        let _waiting = Waiting::new(&self.waiting);
        let (waiter, done) = oneshot::channel();
        self.requests.send(Request::All(waiter)).await.map_err(|_| EngineError::Stopped)?;
        done.await.map_err(|_| EngineError::Stopped)
    }

    /// How many wait for [`Destage::all`], and every change of it.
    pub(crate) fn waiting(&self) -> watch::Receiver<usize> {
        self.waiting.subscribe()
    }

    /// Takes snapshots of volumes at one moment: no write of any of them lies between. They are in the catalog when what was written before is. All of them or none are in
    /// the write order then; the log has the last of them at what is returned. The log is dirty until then.
    pub(crate) async fn snapshot(&self, marks: Vec<Mark>, dirty: DirtyPin) -> Result<Lsn, EngineError> {
        let (reply, done) = oneshot::channel();
        self.requests.send(Request::Snapshot(marks, dirty, reply)).await.map_err(|_| EngineError::Stopped)?;
        done.await.unwrap_or(Err(EngineError::Stopped))
    }

    pub(crate) fn status(&self) -> DestageStatus {
        self.status.lock().clone()
    }

    fn problem(&self, error: &dyn std::fmt::Display) {
        self.status.lock().problem = Some(error.to_string());
    }

    fn no_problem(&self) {
        self.status.lock().problem = None;
    }
}

/// Freezes every volume at one moment. The caller must not hold any volume's state.
fn cut(shared: &Shared) -> Cut {
    cut_with(shared, Vec::new()).0
}

/// Freezes every volume at one moment, those of `marks` with a snapshot at their end.
fn cut_with(shared: &Shared, marks: Vec<Mark>) -> (Cut, Result<Lsn, EngineError>) {
    let registry = shared.registry.freeze();
    let mut states: Vec<_> = registry.values().map(|volume| (volume, volume.state().lock())).collect();
    // No append can happen now: every one of them needs a state, and no volume can come in.
    let (marks, late) =
        if is_planted(Bug::SnapshotCutsLate) { (Vec::new(), marks) } else { (marks, Vec::new()) };
    let mut marked = mark_all(shared, &mut states, marks);
    let through = shared.wal.usage().next_lsn;
    let through = Lsn::new(through.get() - 1);
    let mut parts = Vec::new();
    let strip = shared.pressure.is_over_memory();
    for (volume, state) in &mut states {
        let held = state.buffer.active_bytes();
        if let Some(layer) = state.buffer.freeze(strip) {
            if strip {
                shared.pressure.released(held);
            }
            parts.push((Arc::clone(volume), layer));
        }
    }
    if is_planted(Bug::SnapshotCutsLate) {
        marked = mark_all(shared, &mut states, late);
    }
    shared.pressure.was_cut();
    (Cut { through, parts }, marked)
}

/// Appends the marks to the log and to the write buffers, unless one of them cannot be.
fn mark_all(
    shared: &Shared,
    states: &mut [(&Arc<Volume>, MutexGuard<'_, VolumeState>)],
    marks: Vec<Mark>,
) -> Result<Lsn, EngineError> {
    if marks.is_empty() {
        return Ok(Lsn::ZERO);
    }
    let place = |states: &[(&Arc<Volume>, _)], mark: &Mark| {
        states.iter().position(|(volume, _)| Arc::ptr_eq(volume, &mark.volume))
    };
    for mark in &marks {
        let Some(at) = place(states, mark) else {
            return Err(EngineError::NoSuchVolume(mark.volume.name()));
        };
        states[at].1.check_serving()?;
    }
    let volumes: BTreeSet<_> = marks.iter().map(|mark| mark.volume.id()).collect();
    assert_eq!(volumes.len(), marks.len(), "one snapshot of a volume at a time");
    debug_assert!(shared.wal_state.is_dirty(), "whoever asks for marks has pinned it");
    let (mut records, mut marked) = (Vec::with_capacity(marks.len()), Vec::with_capacity(marks.len()));
    for mark in marks {
        let at = place(states, &mark).expect("looked at");
        let (volume, state) = &states[at];
        let seq = state.buffer.last_seq().next();
        let body = RecordBody::Mark { note: encode_note(&mark.snapshot) };
        let record = Record { volume: volume.id(), generation: volume.generation(), seq, body };
        records.push((mark.permit, record));
        marked.push((at, seq, mark.snapshot));
    }
    // In one frame: a crash leaves all of them or none.
    let last = shared.wal.append_together(records)?;
    for (at, seq, snapshot) in marked {
        states[at].1.buffer.mark(seq, snapshot);
    }
    Ok(last)
}

/// What the task does next.
enum Event {
    Prepared(Box<Prepared>),
    Committed(Result<Vec<Waiter>, EngineError>),
    Cut(Vec<Waiter>),
    Snapshot(Vec<Mark>, DirtyPin, oneshot::Sender<Result<Lsn, EngineError>>),
}

/// Cuts, prepares and commits until the engine stops and has nothing left to destage.
///
/// Cuts do not wait for room: a pool or a catalog that is away must not make the active layer grow, since only a frozen
/// layer can let go of its bytes.
pub(crate) async fn destage_until_stopped(shared: Arc<Shared>, mut requests: mpsc::Receiver<Request>) {
    let mut order = Order::default();
    let mut in_flight = FuturesOrdered::new();
    let mut committing: Option<BoxFuture<'_, Result<Vec<Waiter>, EngineError>>> = None;
    let recovered = std::mem::take(&mut *shared.destage.recovered.lock());
    let mut waiting: VecDeque<_> = recovered.into_iter().map(|cut| (cut, Vec::new())).collect();
    loop {
        let room = in_flight.len() < batches_max(&shared);
        if room && let Some((cut, waiters)) = waiting.pop_front() {
            in_flight.push_back(start(&shared, cut, &mut order, waiters));
            shared.destage.status.lock().batches_in_flight = in_flight.len() as u64;
            continue;
        }
        let is_idle = in_flight.is_empty() && committing.is_none();
        let event = tokio::select! {
            biased;
            waiters = async { committing.as_mut().expect("checked").await }, if committing.is_some() => {
                Event::Committed(waiters)
            }
            Some(prepared) = in_flight.next(), if committing.is_none() && !in_flight.is_empty() => match prepared {
                Ok(Some(Ok(prepared))) => Event::Prepared(prepared),
                // The engine is ending; the log has the batch.
                Ok(None) => return,
                Ok(Some(Err(error))) => return give_up(&shared, &error),
                Err(died) => return give_up(&shared, &died),
            },
            request = requests.recv() => match request {
                Some(Request::All(waiter)) => Event::Cut(vec![waiter]),
                Some(Request::Snapshot(marks, dirty, reply)) => Event::Snapshot(marks, dirty, reply),
                None => return,
            },
            () = due(&shared, room) => Event::Cut(Vec::new()),
            () = shared.stop.cancelled(), if is_idle => return,
        };
        match event {
            Event::Prepared(prepared) => committing = Some(Box::pin(commit(&shared, *prepared))),
            Event::Committed(Err(error)) => return give_up(&shared, &error),
            Event::Committed(Ok(waiters)) => {
                committing = None;
                shared.destage.status.lock().batches_in_flight = in_flight.len() as u64;
                if in_flight.is_empty() && waiting.is_empty() {
                    settle(&shared).await;
                }
                for waiter in waiters {
                    // Whoever asked may have stopped waiting.
                    let _ = waiter.send(());
                }
            }
            Event::Cut(waiters) => waiting.push_back((cut(&shared), waiters)),
            Event::Snapshot(marks, dirty, reply) => {
                let (cut, marked) = cut_with(&shared, marks);
                drop(dirty);
                waiting.push_back((cut, Vec::new()));
                // Whoever asked may have stopped waiting.
                let _ = reply.send(marked);
            }
        }
    }
}

/// A batch is packed by one compute thread at a time: fewer batches than threads would leave threads idle.
fn batches_max(shared: &Shared) -> usize {
    let configured = shared.config.batches_in_flight;
    shared.compute.threads().clamp(configured, configured.max(BATCHES_IN_FLIGHT_MAX))
}

/// A bug ends destage: trying again would end the same way. The log keeps everything for the next start.
fn give_up(shared: &Shared, error: &dyn std::fmt::Display) {
    shared.destage.problem(&format!("destage has stopped, restart the gateway: {error}"));
    tracing::error!(%error, "preparing a batch failed in a way that it must not; the log keeps everything");
}

/// The place of the next batch.
#[derive(Default)]
struct Order {
    previous: Option<BatchId>,
    turn: u64,
}

fn start(
    shared: &Arc<Shared>,
    cut: Cut,
    order: &mut Order,
    waiters: Vec<Waiter>,
) -> tokio::task::JoinHandle<Option<Result<Box<Prepared>, EngineError>>> {
    let id = BatchId::fresh(&*shared.ports.clock, &*shared.ports.entropy);
    let mut parts = cut.parts;
    // A segment is of one domain, and all of it is fingerprinted or none.
    parts.sort_by_key(|(volume, _)| (volume.packing().domain.id(), volume.packing().dedupe == Dedupe::Off));
    let turn = order.turn;
    order.turn += 1;
    let previous = order.previous.replace(id);
    let batch = Batch { id, previous, turn, attempts: 0, through: cut.through, parts, waiters };
    let shared_too = Arc::clone(shared);
    shared.tasks.spawn(async move { prepare(&shared_too, batch, Sharing::Indexed).await.map(Box::new) })
}

/// Completes when a cut is due: by size, and while there is room for another batch also by age and pressure.
async fn due(shared: &Shared, room: bool) {
    loop {
        let changed = shared.pressure.changed();
        let now = shared.ports.clock.now();
        match shared.pressure.cut_due(shared.config.batch_age, now, room) {
            Some(wait) if wait.is_zero() => return,
            Some(wait) => tokio::select! {
                biased;
                () = changed => {}
                () = shared.ports.clock.sleep(wait) => {}
            },
            None => changed.await,
        }
        if shared.stop.is_cancelled() {
            pending::<()>().await;
        }
    }
}

/// Nothing is in flight: if nothing was written either, the catalog learns that the log is empty.
async fn settle(shared: &Shared) {
    // Buffers are empty too where serving ended because the site was taken over. Then the log is not.
    if shared.record.check_owner().is_err() {
        return;
    }
    let lower_if_empty = |lower: &dyn Fn() -> bool| {
        let registry = shared.registry.freeze();
        let states: Vec<_> = registry.values().map(|volume| volume.state().lock()).collect();
        let is_ours = shared.record.check_owner().is_ok();
        is_ours && states.iter().all(|state| state.buffer.is_empty()) && lower()
    };
    if let Err(error) = shared.wal_state.make_clean(&*shared.catalog, lower_if_empty).await {
        tracing::debug!(%error, "the log stays marked as dirty");
    }
}
