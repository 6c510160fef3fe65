//! Packing: an ordered stream of block runs becomes sealed segments and map deltas.
//!
//! Everything here is CPU work without I/O. The bytes of a chunk are touched once per step and copied at most
//! once: zstd reads them where they are (or gathered, when a chunk spans pieces) and writes into the segment's
//! buffer, which is sealed in place and handed to the pool as it is.

use super::cursor::Cursor;
use super::frame::{HEADER_BYTES, Header, seal_tail};
use super::{BatchHeader, Footer, SealedSegment, SegmentContainer, VolumeDelta, VolumeHeader, segment_key};
use crate::chunk::{ChunkBlocksMax, Cut, cut, is_zero_block};
use crate::compress::{Compression, Compressor};
use crate::container::{CHUNKS_PER_CONTAINER_MAX, CONTAINER_BYTES_MAX, ContainerDirectory};
use crate::seal::ContainerCipher;
use bytes::Bytes;
use cairn_model::crypto::{SecretKey, TAG_BYTES};
use cairn_model::{
    BLOCK_SIZE, ChunkId, ChunkIndex, ChunkRef, ContainerId, Lba, LbaRange, MapDelta, MapOp, MapTarget, Ports,
    SegmentId, VOLUME_BLOCKS_MAX,
};
use std::collections::VecDeque;
use std::sync::Arc;

const BLOCK: usize = BLOCK_SIZE as usize;

/// First size of a segment's buffer, which then doubles: most batches of an idle volume are small.
const BUFFER_BYTES_FIRST: usize = 256 << 10;

/// Map operations in one segment's footer at most: batches of very many discards take several segments.
const OPS_PER_SEGMENT_MAX: usize = 65536;

/// Longest byte form of one map operation: gap, shape, container identity and its number, chunk, block.
const OP_BYTES_MAX: usize = 10 + 10 + 16 + 3 + 5 + 1;

const _: () = assert!(
    OPS_PER_SEGMENT_MAX * OP_BYTES_MAX + CHUNKS_PER_CONTAINER_MAX * 4 < super::FOOTER_BYTES_MAX as usize / 2,
    "a footer is never larger than what readers accept"
);

/// How to pack.
#[derive(Clone, Copy, Debug)]
pub struct PackConfig {
    pub chunk_blocks_max: ChunkBlocksMax,
    /// Stored bytes at which a container is full. At least one chunk fits whatever this says.
    pub container_bytes_max: u32,
    pub compression: Compression,
}

impl Default for PackConfig {
    fn default() -> Self {
        Self {
            chunk_blocks_max: ChunkBlocksMax::DEFAULT,
            container_bytes_max: 8 << 20,
            compression: Compression::DEFAULT,
        }
    }
}

/// Is shown every chunk's plaintext as it is sealed, for a cache. The bytes may share a larger buffer of the caller.
pub type ChunkSink<'a> = Box<dyn FnMut(ChunkId, Bytes) + Send + 'a>;

/// What packing did.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct PackStats {
    pub chunks: u64,
    /// Plaintext of all chunks.
    pub raw_bytes: u64,
    /// The chunks as stored, with tags.
    pub stored_bytes: u64,
    /// Blocks given that were all zeros.
    pub zero_blocks: u64,
    pub chunks_kept_raw: u64,
}

/// What remains when everything is packed.
#[derive(Debug)]
pub struct PackedBatch {
    /// The segments not taken yet, the batch's last one at the end.
    pub segments: Vec<SealedSegment>,
    /// Segments of the batch, with those taken before.
    pub segments_total: u32,
    /// All changes, one entry per volume, in the order the volumes were given.
    pub deltas: Vec<VolumeDelta>,
    pub stats: PackStats,
}

struct Open {
    container: ContainerId,
    cipher: ContainerCipher,
    directory: ContainerDirectory,
    segment: SegmentId,
    /// The object from its header on.
    buffer: Vec<u8>,
}

struct VolumeState {
    header: VolumeHeader,
    ops: Vec<MapOp>,
    /// Ops before this one are in the footers of earlier segments.
    told: usize,
    /// A segment's footer names the volume.
    named: bool,
}

/// Packs one batch.
pub struct Packer<'a> {
    config: PackConfig,
    domain_key: SecretKey,
    batch: BatchHeader,
    ports: Ports,
    compressor: Compressor,
    sink: Option<ChunkSink<'a>>,
    volumes: Vec<VolumeState>,
    open: Option<Open>,
    sealed: VecDeque<SealedSegment>,
    segments_total: u32,
    /// Map operations not yet in a footer.
    untold_ops: usize,
    /// Where a chunk that spans pieces is gathered.
    gathered: Vec<u8>,
    stats: PackStats,
}

impl std::fmt::Debug for Packer<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Packer")
            .field("batch", &self.batch)
            .field("stats", &self.stats)
            .finish_non_exhaustive()
    }
}

impl<'a> Packer<'a> {
    pub fn new(config: PackConfig, domain_key: &SecretKey, batch: BatchHeader, ports: Ports) -> Self {
        Self {
            config,
            domain_key: domain_key.clone(),
            batch,
            ports,
            compressor: Compressor::new(config.compression),
            sink: None,
            volumes: Vec::new(),
            open: None,
            sealed: VecDeque::new(),
            segments_total: 0,
            untold_ops: 0,
            gathered: Vec::new(),
            stats: PackStats::default(),
        }
    }

    /// Shows every chunk's plaintext to `sink`.
    pub fn with_chunk_sink(mut self, sink: ChunkSink<'a>) -> Self {
        self.sink = Some(sink);
        self
    }

    /// What follows belongs to this volume. Each volume is given once per batch, also when it has no changes.
    pub fn volume(&mut self, header: VolumeHeader) {
        assert!(
            self.volumes.iter().all(|volume| volume.header.volume != header.volume),
            "a volume is packed once per batch"
        );
        self.compressor.start_stream();
        self.volumes.push(VolumeState { header, ops: Vec::new(), told: 0, named: false });
    }

    /// Makes a range of the volume read as zeros.
    pub fn discard(&mut self, range: LbaRange) {
        assert_in_volume(range);
        if !range.is_empty() {
            self.push_hole(range);
        }
    }

    /// Packs consecutive blocks from `start`: the bytes of `pieces` one behind the other, each a whole number of
    /// blocks. Ranges given for one volume, discards included, do not overlap. Large runs fill several segments:
    /// take them with [`next_segment`](Self::next_segment) between calls.
    pub fn run(&mut self, start: Lba, pieces: &[Bytes]) {
        let blocks: u64 = pieces
            .iter()
            .map(|piece| {
                assert!(piece.len().is_multiple_of(BLOCK), "pieces are whole blocks");
                (piece.len() / BLOCK) as u64
            })
            .sum();
        let run = LbaRange::new(start, blocks).expect("a run ends inside its volume");
        assert_in_volume(run);
        let mut scan = Cursor::new(pieces);
        let mut data = Cursor::new(pieces);
        for part in cut(run, self.config.chunk_blocks_max, |_| is_zero_block(scan.block())) {
            match part {
                Cut::Hole(range) => {
                    data.skip(range.blocks());
                    self.stats.zero_blocks += range.blocks();
                    self.push_hole(range);
                }
                Cut::Chunk(range) => self.chunk(range, &mut data),
            }
        }
    }

    /// The oldest complete segment not taken yet.
    pub fn next_segment(&mut self) -> Option<SealedSegment> {
        self.sealed.pop_front()
    }

    /// Ends the batch. Its last segment may hold no data: it tells the pool what the catalog is told.
    pub fn finish(mut self) -> PackedBatch {
        self.seal_segment(true);
        let deltas = self
            .volumes
            .into_iter()
            .map(|volume| VolumeDelta { header: volume.header, delta: ordered(volume.ops) })
            .collect();
        PackedBatch {
            segments: self.sealed.into(),
            segments_total: self.segments_total,
            deltas,
            stats: self.stats,
        }
    }

    fn current_volume(&mut self) -> &mut VolumeState {
        self.volumes.last_mut().expect("volume() comes before its runs and discards")
    }

    fn push_hole(&mut self, range: LbaRange) {
        if !self.current_volume().extend_hole(range) {
            self.push_op(MapOp { range, target: MapTarget::Hole });
        }
    }

    fn push_op(&mut self, op: MapOp) {
        self.current_volume().ops.push(op);
        self.untold_ops += 1;
        if self.untold_ops == OPS_PER_SEGMENT_MAX {
            self.seal_segment(false);
        }
    }

    fn chunk(&mut self, range: LbaRange, data: &mut Cursor<'_>) {
        let raw_blocks = u8::try_from(range.blocks()).expect("a cut makes chunks of at most 16 blocks");
        let raw_bytes = usize::from(raw_blocks) * BLOCK;
        let mut gathered = std::mem::take(&mut self.gathered);
        let (raw, shared) = data.take(raw_bytes, &mut gathered);
        let chunk = self.seal_chunk(raw_blocks, raw);
        if let Some(sink) = &mut self.sink {
            sink(chunk, shared.unwrap_or_else(|| Bytes::copy_from_slice(raw)));
        }
        self.gathered = gathered;
        let target = MapTarget::Chunk(ChunkRef { chunk, block: 0 });
        self.push_op(MapOp { range, target });
    }

    /// Compresses and seals a chunk into the open segment.
    fn seal_chunk(&mut self, raw_blocks: u8, raw: &[u8]) -> ChunkId {
        if self.open.as_ref().is_some_and(|open| open.is_full(raw.len(), self.config.container_bytes_max)) {
            self.seal_segment(false);
        }
        let open = self.open.get_or_insert_with(|| Open::new(&self.domain_key, self.batch.site, &self.ports));
        let index =
            ChunkIndex::new(u32::try_from(open.directory.len()).expect("a container's chunks are counted"));
        open.reserve(raw.len(), self.config.container_bytes_max);
        let start = open.buffer.len();
        let codec = self.compressor.compress(raw, &mut open.buffer);
        let raw_bytes = u32::try_from(raw.len()).expect("a chunk is at most 64 KiB");
        let tag = open.cipher.seal(index, raw_bytes, codec, &mut open.buffer[start..]);
        open.buffer.extend_from_slice(&tag);
        let stored_bytes =
            u32::try_from(open.buffer.len() - start).expect("a stored chunk is at most 64 KiB and a tag");
        open.directory.push(stored_bytes, raw_blocks, codec).expect("a chunk that fits was made");
        self.stats.chunks += 1;
        self.stats.raw_bytes += u64::from(raw_bytes);
        self.stats.stored_bytes += u64::from(stored_bytes);
        self.stats.chunks_kept_raw += u64::from(codec == crate::compress::Codec::Raw);
        ChunkId { container: open.container, index }
    }

    /// Completes the open segment; makes an empty one when none is open.
    fn seal_segment(&mut self, last: bool) {
        let open =
            self.open.take().unwrap_or_else(|| Open::new(&self.domain_key, self.batch.site, &self.ports));
        let containers = if open.directory.is_empty() {
            Vec::new()
        } else {
            vec![SegmentContainer {
                id: open.container,
                offset: HEADER_BYTES as u64,
                directory: Arc::new(open.directory),
            }]
        };
        let footer = Footer {
            batch: self.batch,
            segment: open.segment,
            index: self.segments_total,
            last,
            containers,
            volumes: self.volumes.iter_mut().filter_map(|volume| volume.share(last)).collect(),
        };
        let tail = seal_tail(
            &self.domain_key,
            open.segment,
            &open.buffer[..HEADER_BYTES],
            &footer,
            open.buffer.len() as u64,
        );
        self.sealed.push_back(SealedSegment {
            id: open.segment,
            key: segment_key(open.segment),
            index: footer.index,
            body: open.buffer.into(),
            tail: tail.into(),
            containers: footer.containers,
        });
        self.segments_total += 1;
        self.untold_ops = 0;
    }
}

impl Open {
    fn new(domain_key: &SecretKey, site: cairn_model::SiteId, ports: &Ports) -> Self {
        let container = ContainerId::fresh(&*ports.clock, &*ports.entropy);
        let segment = SegmentId::fresh(&*ports.clock, &*ports.entropy);
        let header = Header { key: domain_key.id(), site, segment }.encode();
        Self {
            container,
            cipher: ContainerCipher::new(domain_key, container),
            directory: ContainerDirectory::new(),
            segment,
            buffer: header.to_vec(),
        }
    }

    /// Whether a chunk of `raw_bytes` might make the container larger than `container_bytes_max`.
    fn is_full(&self, raw_bytes: usize, container_bytes_max: u32) -> bool {
        let limit = container_bytes_max.min(CONTAINER_BYTES_MAX) as usize;
        self.directory.len() == CHUNKS_PER_CONTAINER_MAX
            || self.directory.stored_bytes() as usize + raw_bytes + TAG_BYTES > limit
    }

    /// Makes room for a chunk. The buffer doubles, but never beyond what a full container needs.
    fn reserve(&mut self, raw_bytes: usize, container_bytes_max: u32) {
        let chunk = Compressor::bound(raw_bytes) + TAG_BYTES;
        if self.buffer.capacity() - self.buffer.len() < chunk {
            let full = HEADER_BYTES + container_bytes_max.min(CONTAINER_BYTES_MAX) as usize + chunk;
            let wanted = (self.buffer.capacity() * 2).clamp(BUFFER_BYTES_FIRST, full.max(BUFFER_BYTES_FIRST));
            self.buffer.reserve_exact(wanted.saturating_sub(self.buffer.len()).max(chunk));
        }
    }
}

impl VolumeState {
    /// Makes the last operation longer when it is a hole that ends where `range` begins and no footer has it yet.
    fn extend_hole(&mut self, range: LbaRange) -> bool {
        if self.ops.len() > self.told
            && let Some(MapOp { range: last, target: MapTarget::Hole }) = self.ops.last_mut()
            && last.end() == range.start()
        {
            *last = LbaRange::between(last.start(), range.end());
            return true;
        }
        false
    }

    /// What this segment's footer says of the volume; nothing when there is nothing to say yet.
    fn share(&mut self, last: bool) -> Option<VolumeDelta> {
        let untold = &self.ops[self.told..];
        if untold.is_empty() && (self.named || !last) {
            return None;
        }
        let delta = ordered(untold.to_vec());
        self.told = self.ops.len();
        self.named = true;
        Some(VolumeDelta { header: self.header, delta })
    }
}

fn assert_in_volume(range: LbaRange) {
    assert!(range.end().get() <= VOLUME_BLOCKS_MAX, "{range:?} ends beyond the largest volume");
}

/// A delta's runs are disjoint and in address order. Overlapping input has no meaning, and would lose a write.
fn ordered(mut ops: Vec<MapOp>) -> MapDelta {
    ops.sort_by_key(|op| op.range.start());
    for pair in ops.windows(2) {
        assert!(
            pair[0].range.end() <= pair[1].range.start(),
            "{:?} and {:?} of one batch overlap",
            pair[0].range,
            pair[1].range
        );
    }
    MapDelta { ops }
}
