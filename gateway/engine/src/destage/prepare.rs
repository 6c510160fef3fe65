//! A batch becomes durable segments.

use super::Batch;
use super::streams::Streams;
use crate::dedupe::{Packing, ToCompare, bring_candidates, checker};
use crate::engine::Shared;
use crate::error::EngineError;
use crate::in_flight::OnItsWay;
use crate::volume::buffer::{Buffered, Layer};
use bytes::Bytes;
use cairn_flash::Source;
use cairn_model::planted::{Bug, is_planted};
use cairn_model::{BLOCK_SIZE, ErrorKind, Kinded, Lba, LbaRange, Lsn, UploadReceipt};
use cairn_segment_writer::{
    BatchHeader, Dedupe, PackedDelta, Packer, SealedSegment, SegmentContainer, VolumeHeader, VolumePacking,
};
use cairn_wal::WalError;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Semaphore;
use tokio_util::task::AbortOnDropHandle;

/// Blocks handed to the packer at a time: bounds what is read back from the log and how long a compute thread
/// is held. Runs are cut at its multiples, which are multiples of every chunk size.
const SLICE_BLOCKS: u64 = 1024;
/// Steps handed to the packer at a time: discards carry no blocks.
const SLICE_STEPS: usize = 2048;
const RETRY_PAUSE_FIRST: Duration = Duration::from_millis(200);
const RETRY_PAUSE_MAX: Duration = Duration::from_secs(10);

const BLOCK: usize = BLOCK_SIZE as usize;

/// A segment in the pool, and what it holds. Its bytes are let go of.
pub(super) struct StoredSegment {
    pub(super) containers: Vec<SegmentContainer>,
    pub(super) receipt: UploadReceipt,
    /// Until the catalog has answered.
    pub(super) _on_its_way: OnItsWay,
}

/// What a batch may share.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Sharing {
    /// What the index knows.
    Indexed,
    /// Only what it holds itself: the catalog did not have what the index knew.
    WithinBatch,
}

/// A batch whose segments are all durable. What it was made of may be committed now.
pub(super) struct Prepared {
    pub(super) batch: Batch,
    pub(super) segments: Vec<StoredSegment>,
    pub(super) deltas: Vec<PackedDelta>,
}

/// Packs and uploads until it succeeds. Only a panic, which would come again, is an error.
pub(super) async fn prepare(
    shared: &Arc<Shared>,
    mut batch: Batch,
    sharing: Sharing,
) -> Result<Prepared, EngineError> {
    let mut pause = RETRY_PAUSE_FIRST;
    loop {
        // What an attempt left in the pool is told from the next one's by the number.
        batch.attempts += 1;
        match try_prepare(shared, &batch, sharing).await {
            Ok((segments, deltas)) => return Ok(Prepared { batch, segments, deltas }),
            Err(error @ EngineError::Panicked(_)) => return Err(error),
            Err(error) => {
                shared.destage.problem(&error);
                tracing::error!(%error, "a batch cannot be packed; the log keeps it");
                shared.ports.clock.sleep(pause).await;
                pause = (pause * 2).min(RETRY_PAUSE_MAX);
            }
        }
    }
}

/// Ends with the attempt that it belongs to.
type Upload = AbortOnDropHandle<Option<StoredSegment>>;

/// The segments of an attempt on their way.
struct Uploads {
    running: Vec<Upload>,
    slots: Arc<Semaphore>,
    /// What they hold.
    packed: Packing,
}

impl Uploads {
    fn new(at_once: usize) -> Self {
        Self { running: Vec::new(), slots: Arc::new(Semaphore::new(at_once)), packed: Packing::new() }
    }

    /// Starts an upload when a slot is free; packing waits for it, which bounds the segments in memory.
    async fn start(&mut self, shared: &Arc<Shared>, segment: SealedSegment) {
        self.packed.extend(
            segment.containers().iter().filter_map(|container| {
                Some((container.domain, Arc::clone(container.fingerprints.as_ref()?)))
            }),
        );
        let slot = Arc::clone(&self.slots).acquire_owned().await.expect("the semaphore is never closed");
        let shared_too = Arc::clone(shared);
        let on_its_way = shared.in_flight.enter(segment.id());
        self.running.push(AbortOnDropHandle::new(shared.tasks.spawn(async move {
            let receipt = put(&shared_too, &segment).await;
            if let Some(flash) = &shared_too.flash {
                for (chunk, stored) in segment.stored_chunks() {
                    flash.insert(chunk, stored, Source::Destage);
                }
            }
            drop(slot);
            StoredSegment { containers: segment.containers().to_vec(), receipt, _on_its_way: on_its_way }
        })));
    }

    /// All of them in the pool.
    async fn end(self) -> Result<Vec<StoredSegment>, EngineError> {
        let mut segments = Vec::with_capacity(self.running.len());
        for upload in self.running {
            segments.push(upload.await.ok().flatten().ok_or(EngineError::Stopped)?);
        }
        Ok(segments)
    }
}

/// What goes to the packer in one go.
#[derive(Default)]
struct Slice {
    steps: Vec<Step>,
    blocks: u64,
}

enum Step {
    Volume(VolumeHeader, Box<VolumePacking>),
    Discard(LbaRange),
    /// Consecutive blocks, and whether their chunks go to the cache of decoded chunks.
    Run {
        start: Lba,
        pieces: Vec<Bytes>,
        kept: bool,
    },
}

async fn try_prepare(
    shared: &Arc<Shared>,
    batch: &Batch,
    sharing: Sharing,
) -> Result<(Vec<StoredSegment>, Vec<PackedDelta>), EngineError> {
    if batch.parts.is_empty() {
        shared.dedupe.packed(batch.turn, Packing::new());
        return Ok((Vec::new(), Vec::new()));
    }
    let mut packer = new_packer(shared, batch, sharing);
    let mut uploads = Uploads::new(shared.config.uploads_in_flight);
    let mut slice = Slice::default();
    let mut streams = Streams::default();
    for (volume, layer) in &batch.parts {
        let header = VolumeHeader {
            volume: volume.id(),
            lineage: volume.lineage(),
            generation: volume.generation(),
            base: layer.base,
            through: layer.through,
        };
        let is_compared = volume.packing().dedupe == Dedupe::Verify && sharing == Sharing::Indexed;
        let compared = is_compared.then(|| volume.packing());
        slice.steps.push(Step::Volume(header, Box::new(volume.packing().clone())));
        let read_back = read_back(shared, layer).await?;
        let left_out = is_planted(Bug::DropLastRun).then(|| layer.runs.iter().last()).flatten();
        for (range, what) in layer.runs.iter() {
            if left_out.is_some_and(|(left_out, _)| left_out == range) {
                continue;
            }
            match what {
                Buffered::Hole { .. } if is_planted(Bug::DropDiscards) => {}
                Buffered::Hole { .. } => slice.discard(range),
                Buffered::Data { lsn, skip_blocks, bytes } => {
                    let length = usize::try_from(range.bytes()).expect("a record is small");
                    let skip = *skip_blocks as usize * BLOCK;
                    let data = match bytes {
                        Some(bytes) => bytes.slice(..length),
                        None => read_back[lsn].slice(skip..skip + length),
                    };
                    slice.data(range.start(), data);
                }
            }
            if slice.blocks >= SLICE_BLOCKS || slice.steps.len() >= SLICE_STEPS {
                slice.bring_candidates(shared, compared).await;
                packer = pack(shared, packer, std::mem::take(&mut slice), &mut streams, &mut uploads).await?;
            }
        }
        slice.bring_candidates(shared, compared).await;
    }
    packer = pack(shared, packer, slice, &mut streams, &mut uploads).await?;
    let done = shared.compute.run(move || packer.finish()).await?;
    for segment in done.segments {
        uploads.start(shared, segment).await;
    }
    shared.dedupe.collided(done.stats.collisions);
    let fingerprints = std::mem::take(&mut uploads.packed);
    let containers: Vec<_> = fingerprints.iter().map(|(_, container)| container.container()).collect();
    let (shared_too, turn) = (Arc::clone(shared), batch.turn);
    shared.compute.run(move || shared_too.dedupe.packed(turn, fingerprints)).await?;
    match uploads.end().await {
        Ok(segments) => Ok((segments, done.deltas)),
        Err(error) => {
            // The next attempt has other containers.
            shared.dedupe.release(containers.into_iter());
            Err(error)
        }
    }
}

/// A packer for one attempt at the batch.
fn new_packer(shared: &Shared, batch: &Batch, sharing: Sharing) -> Packer<'static> {
    let header = BatchHeader {
        site: shared.site,
        gateway: shared.gateway,
        batch: batch.id,
        attempt: batch.attempts,
        previous: batch.previous,
    };
    let chunks = Arc::clone(&shared.chunks);
    // A copy: the cache must not keep a guest's whole request alive for one chunk of it.
    let sink = Box::new(move |id, bytes: &[u8]| chunks.keep(id, Bytes::copy_from_slice(bytes)));
    let packer = Packer::new(shared.config.pack, header, shared.ports.clone())
        .with_chunk_sink(sink)
        .with_checker(checker(&shared.chunks));
    match sharing {
        Sharing::Indexed => packer.with_finder(shared.dedupe.finder()),
        Sharing::WithinBatch => packer,
    }
}

impl Slice {
    /// Before the rest of a volume in this slice is packed: what it may share is brought in to be compared, if the volume wants that.
    async fn bring_candidates(&self, shared: &Shared, compared: Option<&VolumePacking>) {
        let Some(packing) = compared else { return };
        let own = self.steps.iter().rev().take_while(|step| !matches!(step, Step::Volume(..)));
        let runs = own.filter_map(|step| match step {
            Step::Run { pieces, .. } => Some(ToCompare {
                domain: packing.domain.id(),
                key: packing.domain.fingerprints(),
                pieces: pieces.clone(),
            }),
            Step::Volume(..) | Step::Discard(_) => None,
        });
        bring_candidates(shared, runs.collect()).await;
    }

    /// Keeps out of the cache what is part of a stream, unless there is room for it. Where blocks are compared with what is stored, those
    /// of the batch itself are compared in the cache.
    fn pass_streams_by(&mut self, streams: &mut Streams, has_room: bool) {
        for step in &mut self.steps {
            match step {
                Step::Volume(_, packing) => streams.begin(packing.dedupe == Dedupe::Verify),
                Step::Run { start, pieces, kept } => {
                    let is_stream = streams.has(*start, block_count(pieces), pieces.len());
                    *kept = !is_stream || has_room || streams.is_compared();
                }
                Step::Discard(_) => {}
            }
        }
    }

    fn discard(&mut self, range: LbaRange) {
        self.steps.push(Step::Discard(range));
    }

    /// Appends data, to the run before it when it follows on and no slice boundary lies between.
    fn data(&mut self, mut start: Lba, mut bytes: Bytes) {
        while !bytes.is_empty() {
            let to_boundary = SLICE_BLOCKS - start.get() % SLICE_BLOCKS;
            let room = usize::try_from(to_boundary).expect("less than a slice") * BLOCK;
            let part = bytes.split_to(bytes.len().min(room));
            let blocks = (part.len() / BLOCK) as u64;
            self.blocks += blocks;
            let follows = matches!(self.steps.last(), Some(Step::Run { start: run, pieces, .. })
                if run.plus(block_count(pieces)) == start && !start.get().is_multiple_of(SLICE_BLOCKS));
            match self.steps.last_mut() {
                Some(Step::Run { pieces, .. }) if follows => pieces.push(part),
                _ => self.steps.push(Step::Run { start, pieces: vec![part], kept: true }),
            }
            start = start.plus(blocks);
        }
    }
}

fn block_count(pieces: &[Bytes]) -> u64 {
    (pieces.iter().map(Bytes::len).sum::<usize>() / BLOCK) as u64
}

/// The records of a stripped layer, back from the log, which keeps them until the batch is committed. In log order, so that
/// each frame is read once; a layer is a batch at most, which bounds the memory.
async fn read_back(shared: &Shared, layer: &Layer) -> Result<HashMap<Lsn, Bytes>, EngineError> {
    let mut lsns: Vec<_> = layer
        .runs
        .iter()
        .filter_map(|(_, what)| match what {
            Buffered::Data { lsn, bytes: None, .. } => Some(*lsn),
            Buffered::Data { .. } | Buffered::Hole { .. } => None,
        })
        .collect();
    lsns.sort_unstable();
    lsns.dedup();
    let records = match shared.wal.read_many(lsns.clone()).await {
        Err(error @ WalError::Freed { .. }) => unreachable!("the log keeps what is not committed: {error}"),
        done => done?,
    };
    Ok(lsns.into_iter().zip(records).collect())
}

async fn pack(
    shared: &Arc<Shared>,
    mut packer: Packer<'static>,
    mut slice: Slice,
    streams: &mut Streams,
    uploads: &mut Uploads,
) -> Result<Packer<'static>, EngineError> {
    slice.pass_streams_by(streams, shared.chunks.has_room());
    let (packer, segments) = shared
        .compute
        .run(move || {
            for step in slice.steps {
                match step {
                    Step::Volume(header, packing) => packer.volume(header, *packing),
                    Step::Discard(range) => packer.discard(range),
                    Step::Run { start, pieces, kept } => {
                        packer.show_chunks(kept);
                        packer.run(start, &pieces);
                    }
                }
            }
            let segments: Vec<_> = std::iter::from_fn(|| packer.next_segment()).collect();
            (packer, segments)
        })
        .await?;
    for segment in segments {
        uploads.start(shared, segment).await;
    }
    Ok(packer)
}

/// Puts a segment until the pool takes it. The same key and the same bytes each time: a put whose reply was lost is
/// repeated onto itself.
async fn put(shared: &Shared, segment: &SealedSegment) -> UploadReceipt {
    let mut pause = RETRY_PAUSE_FIRST;
    let mut failed = false;
    loop {
        match shared.pool.put(segment).await {
            Ok(receipt) => {
                if failed {
                    shared.destage.no_problem();
                }
                shared.pressure.set_pool_full(false);
                return receipt;
            }
            Err(error) => {
                failed = true;
                shared.destage.problem(&error);
                if error.kind() == ErrorKind::OutOfSpace {
                    shared.pressure.set_pool_full(true);
                    shared.reclaim.pool_full();
                }
                tracing::warn!(%error, segment = %segment.id(), "a segment waits for the pool");
                shared.ports.clock.sleep(pause).await;
                pause = (pause * 2).min(RETRY_PAUSE_MAX);
            }
        }
    }
}
