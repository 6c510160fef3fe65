//! Sharing: what is stored already is not stored again.
//!
//! ```text
//! pack ──find──► index ◄── in flight ── packed ──► committed: learned
//!                  ▲                          └──► refused: forgotten, packed again without the index
//!                  └── relearn: catalog and segment footers, after every start
//! ```
//!
//! Invariants:
//! - a hit is a hint. The transaction that commits a batch checks that every container it points at is there and of the volume's domain, and
//!   refuses the batch whole if not; it is then packed again without the index, under fresh identities. A container never changes and its
//!   identity is never used again, so an old entry of the index may be useless but never wrong;
//! - batches commit in the order of their cuts, so a batch may share what an earlier one has packed and not committed. If that one is packed
//!   again, this one is refused and packed again too;
//! - the index learns a container durably only after its commit. A crash in between costs reduction, until the next start has
//!   compared the index with the catalog.
//!
//! No guest waits for the index: it is asked on the compute threads, and what it writes, forgets or lists is done by a thread of its own, which nobody
//! waits for: what finds no room in that thread's queue is left out.

mod relearn;

pub(crate) use relearn::relearn_until_stopped;

use crate::compute::ComputePool;
use crate::engine::Shared;
use crate::error::EngineError;
use crate::read::ChunkReader;
use bytes::Bytes;
use cairn_fingerprints::FingerprintIndex;
use cairn_model::planted::{Bug, is_planted};
use cairn_model::{BLOCK_SIZE, ChunkId, ChunkRef, ContainerFingerprints, ContainerId, DomainId, Spawn};
use cairn_segment_writer::{Check, Checker, Finder, FingerprintKey, SegmentContainer};
use futures::StreamExt;
use parking_lot::Mutex;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;

const BLOCK: usize = BLOCK_SIZE as usize;
/// What waits to be learned or forgotten on disk. What finds no room is left out: destage does not wait for the index's disk.
const LESSONS_WAITING: usize = 16;
/// How long packing waits for what is to be compared. What has not come by then is not shared.
const COMPARISON_LIMIT: Duration = Duration::from_secs(2);
/// Stored chunks brought in at the same time, to be compared.
const COMPARISONS_AT_ONCE: usize = 16;

/// Containers forgotten in one go of the index's thread.
const FORGOTTEN_AT_ONCE: usize = 64;

/// The containers of one batch.
pub(crate) type Packing = Vec<(DomainId, Arc<ContainerFingerprints>)>;

/// A change of the index on disk.
pub(crate) enum Lesson {
    Committed(Packing),
    Gone(Vec<ContainerId>),
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Dedupe {
    index: Arc<FingerprintIndex>,
    lessons: mpsc::Sender<Lesson>,
    /// The thread that works on the index's disk.
    hand: ComputePool,
    packed: Mutex<Packed>,
    /// Blocks that differ from a stored block of their fingerprint.
    collisions: AtomicU64,
    /// Batches that were refused because of what they shared.
    refused: AtomicU64,
    /// The index is to be compared with the catalog again.
    relearn: Notify,
}

/// Batches whose packing ended, until those before them have.
#[derive(Debug, Default)]
struct Packed {
    next: u64,
    waiting: BTreeMap<u64, Packing>,
}

/// The engine's end of the queue of what is to be learned.
pub(crate) type Lessons = mpsc::Receiver<Lesson>;

impl Dedupe {
    pub(crate) fn new(
        index: Arc<FingerprintIndex>,
        spawn: Arc<dyn Spawn>,
    ) -> Result<(Self, Lessons), EngineError> {
        let (lessons, receiver) = mpsc::channel(LESSONS_WAITING);
        let hand = ComputePool::start("cairn-index", 1, spawn)?;
        let (packed, collisions, refused) = (Mutex::default(), AtomicU64::new(0), AtomicU64::new(0));
        let relearn = Notify::new();
        Ok((Self { index, lessons, hand, packed, collisions, refused, relearn }, receiver))
    }

    pub(crate) fn index(&self) -> &Arc<FingerprintIndex> {
        &self.index
    }

    /// What the packer asks for a block's place.
    pub(crate) fn finder(&self) -> Finder<'static> {
        let index = Arc::clone(&self.index);
        Box::new(move |domain, fingerprint| {
            let found = index.find(domain, fingerprint)?;
            let beside = u8::from(is_planted(Bug::ShareNeighbour));
            Some(ChunkRef { block: found.block ^ beside, ..found })
        })
    }

    /// Runs something that may wait for the index's disk.
    pub(crate) async fn on_disk<T: Send + 'static>(
        &self,
        work: impl FnOnce(&FingerprintIndex) -> T + Send + 'static,
    ) -> Result<T, EngineError> {
        let index = Arc::clone(&self.index);
        self.hand.run(move || work(&index)).await
    }

    /// Writes what is to be kept and lets go of the files.
    pub(crate) async fn close(&self) {
        if let Err(error) = self.on_disk(FingerprintIndex::close).await {
            tracing::debug!(%error, "the index of fingerprints was left open");
        }
        self.hand.end().await;
    }

    /// Containers of a batch that is packed: those after it may share them. Not before the batches before it are packed too: an earlier
    /// batch that shared a later one's would be refused. Every batch is told of, also one without containers. Hashes every block: for a
    /// compute thread.
    pub(crate) fn packed(&self, turn: u64, containers: Packing) {
        let mut due = Vec::new();
        {
            let mut packed = self.packed.lock();
            packed.waiting.insert(turn, containers);
            while packed.waiting.first_key_value().is_some_and(|(turn, _)| *turn <= packed.next) {
                let (turn, containers) = packed.waiting.pop_first().expect("looked at");
                packed.next = packed.next.max(turn + 1);
                due.extend(containers);
            }
        }
        for (domain, fingerprints) in due {
            self.index.add_in_flight(domain, fingerprints);
        }
    }

    /// Containers of a batch that is committed.
    pub(crate) fn committed<'a>(&self, containers: impl Iterator<Item = &'a SegmentContainer>) {
        let learned: Packing = containers
            .map(|container| (container.domain, known(container.id, container.fingerprints.as_ref())))
            .collect();
        if learned.is_empty() {
            return;
        }
        if let Err(refused) = self.lessons.try_send(Lesson::Committed(learned)) {
            let (TrySendError::Full(lesson) | TrySendError::Closed(lesson)) = refused;
            if let Lesson::Committed(containers) = lesson {
                tracing::debug!(containers = containers.len(), "the index of fingerprints does not keep up");
                self.release(containers.iter().map(|(_, container)| container.container()));
            }
        }
    }

    /// Containers of a batch that was refused for sharing `missing`: they will never be in the catalog.
    pub(crate) fn refused<'a>(
        &self,
        missing: ContainerId,
        containers: impl Iterator<Item = &'a SegmentContainer>,
    ) {
        self.refused.fetch_add(1, Ordering::Relaxed);
        self.release(containers.map(|container| container.id).chain([missing]));
        // Where there is no room for it, the next batch that meets it is refused too.
        let _ = self.lessons.try_send(Lesson::Gone(vec![missing]));
    }

    /// Containers that are about to be taken out of the catalog: nothing new is to be shared with them.
    pub(crate) async fn gone(&self, containers: &[ContainerId]) {
        self.release(containers.iter().copied());
        for some in containers.chunks(FORGOTTEN_AT_ONCE) {
            let some = some.to_vec();
            let forget =
                move |index: &FingerprintIndex| some.iter().for_each(|container| index.forget(*container));
            if let Err(error) = self.on_disk(forget).await {
                tracing::debug!(%error, "the index keeps what is gone; batches that meet it are packed again");
                return;
            }
        }
    }

    /// What the index was told is gone is there after all: it is compared with the catalog again.
    pub(crate) fn relearn(&self) {
        self.relearn.notify_one();
    }

    /// Containers that nothing will be shared with any more, for now: they leave the memory.
    pub(crate) fn release(&self, containers: impl Iterator<Item = ContainerId>) {
        containers.for_each(|container| self.index.release(container));
    }

    pub(crate) fn collided(&self, blocks: u64) {
        if blocks > 0 {
            self.collisions.fetch_add(blocks, Ordering::Relaxed);
            tracing::error!(
                blocks,
                "blocks have the fingerprint of a stored block and other bytes; they were stored by themselves. \
                 Fingerprints do not collide by chance: please report this"
            );
        }
    }

    pub(crate) fn collisions(&self) -> u64 {
        self.collisions.load(Ordering::Relaxed)
    }

    pub(crate) fn refusals(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }
}

/// What the index keeps of a container; of one without fingerprints, that it need not be looked at again.
fn known(id: ContainerId, fingerprints: Option<&Arc<ContainerFingerprints>>) -> Arc<ContainerFingerprints> {
    fingerprints.cloned().unwrap_or_else(|| {
        Arc::new(ContainerFingerprints::new(id, Vec::new(), Vec::new()).expect("nothing fits nothing"))
    })
}

/// Tells the index what was committed, until the engine stops. What is not learned then is learned after the next start.
pub(crate) async fn learn_until_stopped(shared: Arc<Shared>, mut lessons: Lessons) {
    loop {
        let lesson = tokio::select! {
            biased;
            () = shared.stop.cancelled() => return,
            lesson = lessons.recv() => lesson,
        };
        let Some(lesson) = lesson else { return };
        let learned = shared.dedupe.on_disk(move |index| match lesson {
            Lesson::Committed(containers) => {
                for (domain, container) in containers {
                    index.committed(domain, &container);
                }
            }
            Lesson::Gone(containers) => {
                for container in containers {
                    index.forget(container);
                }
            }
        });
        if let Err(error) = learned.await {
            tracing::error!(%error, "the index of fingerprints did not learn what was committed");
        }
    }
}

/// Compares a block with the stored one of the same fingerprint, if that is in RAM.
pub(crate) fn checker(chunks: &Arc<ChunkReader>) -> Checker<'static> {
    let chunks = Arc::clone(chunks);
    Box::new(move |at, block| match chunks.peek(at.chunk) {
        None => Check::Unknown,
        Some(chunk) => {
            let start = usize::from(at.block) * BLOCK;
            if chunk.get(start..start + BLOCK) == Some(block) { Check::Same } else { Check::Different }
        }
    })
}

/// Runs of a volume whose hits must be compared.
pub(crate) struct ToCompare {
    pub(crate) domain: DomainId,
    pub(crate) key: FingerprintKey,
    pub(crate) pieces: Vec<Bytes>,
}

/// Brings the stored chunks that these runs may share into RAM, for [`checker`]. What does not come is not shared.
pub(crate) async fn bring_candidates(shared: &Shared, runs: Vec<ToCompare>) {
    if runs.is_empty() {
        return;
    }
    let index = Arc::clone(shared.dedupe.index());
    let candidates = shared.compute.run(move || {
        let mut chunks = BTreeSet::new();
        for run in &runs {
            for block in run.pieces.iter().flat_map(|piece| piece.chunks_exact(BLOCK)) {
                chunks.extend(index.find(run.domain, &run.key.of(block)).map(|found| found.chunk));
            }
        }
        chunks
    });
    // A chunk in flight, or gone: then it is not shared.
    let fetch = |chunk: ChunkId| async move { drop(shared.chunks.fetch(chunk).await) };
    let bring = async {
        let chunks = futures::stream::iter(candidates.await.unwrap_or_default());
        chunks.for_each_concurrent(COMPARISONS_AT_ONCE, fetch).await;
    };
    if cairn_model::timeout(&*shared.ports.clock, COMPARISON_LIMIT, bring).await.is_err() {
        tracing::debug!("what is to be compared does not come in time and is not shared");
    }
}
