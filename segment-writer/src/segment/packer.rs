//! Packing: an ordered stream of block runs becomes sealed segments and map deltas.
//!
//! Everything here is CPU work without I/O. A block is named by its fingerprint while it is in the cache of the processor, then
//! either shared or gathered into a chunk, which content ends (see `chunk`); the chunk is compressed from where it is
//! into the segment's buffer, sealed there in place, and handed to the pool as it is. Bytes are copied only when a chunk
//! spans pieces of memory.
//!
//! # Sharing
//!
//! A block that the batch or the finder knows is not stored again: the map points at the one that is. Every such block is
//! shared, a lone one amid new data too: on random writes most blocks are alone, and what a lone one costs, an end of a
//! chunk and an operation of the map, is less than the block.
//!
//! An index that keeps some blocks of a container in reach and learns of the others when one is hit knows more behind a hit than
//! before it. So when the finder knows a block, it is asked again about those of the pending chunk: at most 15, each
//! asked twice at most. Chunks before that one ended where content ends them, at a block that such an index keeps.
//!
//! Invariants:
//!
//! - A block is shared within its domain only. The batch's own blocks are forgotten between domains, the finder is told the domain.
//! - What the finder says is a hint: the batch's commit must check that the containers are there.
//! - A block that is known to differ from the one of its fingerprint is stored, and named by a random fingerprint: the
//!   first one keeps its name, and nothing that is written later is taken for the second.
//! - All blocks of a container are fingerprinted or none, and a segment is of one domain: nothing that its footer
//!   says about a volume is sealed with another domain's key.

use super::frame::{HEADER_BYTES, seal_tail};
use super::open::Open;
use super::own::OwnBlocks;
use super::pending::Pending;
use super::volume::VolumeState;
use super::{BatchHeader, Footer, SealedSegment, SegmentContainer, VolumeHeader, segment_key};
use crate::chunk::{ChunkShape, is_zero_block};
use crate::compress::{Codec, Compression, Compressor};
use crate::domain::{Domain, FingerprintKey};
use bytes::Bytes;
use cairn_model::{
    BLOCK_SIZE, BLOCKS_PER_CHUNK_MAX, CHUNKS_PER_CONTAINER_MAX, ChunkId, ChunkRef, DomainId, Fingerprint,
    Lba, LbaRange, MapDelta, MapOp, MapTarget, Ports, Reduction, VOLUME_BLOCKS_MAX,
};
use std::collections::VecDeque;
use std::sync::Arc;

const BLOCK: usize = BLOCK_SIZE as usize;
const BLOCK_BYTES: u64 = BLOCK_SIZE as u64;

/// Map operations in one segment's footer at most: batches of very many discards take several segments.
const OPS_PER_SEGMENT_MAX: usize = 65536;

/// Longest byte form of one map operation: gap, shape, container identity and its number, chunk, block.
const OP_BYTES_MAX: usize = 10 + 10 + 16 + 3 + 5 + 1;

/// Longest description of one chunk: its directory entry and its fingerprints.
const CHUNK_BYTES_MAX: usize = 4 + BLOCKS_PER_CHUNK_MAX as usize * Fingerprint::BYTES;

const _: () = assert!(
    OPS_PER_SEGMENT_MAX * OP_BYTES_MAX + CHUNKS_PER_CONTAINER_MAX * CHUNK_BYTES_MAX
        < super::FOOTER_BYTES_MAX as usize / 2,
    "a footer is never larger than what readers accept"
);

/// How to pack.
#[derive(Clone, Copy, Debug)]
pub struct PackConfig {
    /// Stored bytes at which a container is full. At least one chunk fits whatever this says.
    pub container_bytes_max: u32,
}

impl Default for PackConfig {
    fn default() -> Self {
        Self { container_bytes_max: 8 << 20 }
    }
}

/// Whether blocks that are stored already are stored again.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Dedupe {
    /// They are. Blocks are not even fingerprinted, and chunks end at addresses that are multiples of the largest.
    Off,
    /// They are not. Blocks of one fingerprint are taken for equal (the chance that they are not: see [`Fingerprint`]).
    #[default]
    On,
    /// They are not when a comparison byte by byte says that they are the same, which needs their plaintext at hand.
    Verify,
}

impl Dedupe {
    /// Stable name, in the catalog, in `--json` and for people.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::On => "on",
            Self::Verify => "verify",
        }
    }

    /// The one of that name.
    pub fn parse(name: &str) -> Option<Self> {
        [Self::Off, Self::On, Self::Verify].into_iter().find(|dedupe| dedupe.name() == name)
    }
}

/// How to pack a volume.
#[derive(Clone, Debug)]
pub struct VolumePacking {
    pub domain: Domain,
    pub shape: ChunkShape,
    pub compression: Compression,
    pub dedupe: Dedupe,
}

impl VolumePacking {
    /// The defaults, in that domain.
    pub fn new(domain: Domain) -> Self {
        Self {
            domain,
            shape: ChunkShape::DEFAULT,
            compression: Compression::DEFAULT,
            dedupe: Dedupe::default(),
        }
    }
}

/// Is shown chunks' plaintext as they are sealed, for a cache.
pub type ChunkSink<'a> = Box<dyn FnMut(ChunkId, &[u8]) + Send + 'a>;

/// Where the domain has a block of that fingerprint, outside the batch.
pub type Finder<'a> = Box<dyn FnMut(DomainId, &Fingerprint) -> Option<ChunkRef> + Send + 'a>;

/// Compares a block with one that is stored, if its plaintext is at hand.
pub type Checker<'a> = Box<dyn FnMut(ChunkRef, &[u8]) -> Check + Send + 'a>;

/// What a [`Checker`] found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Check {
    Same,
    Different,
    /// The plaintext of the stored one is not at hand.
    Unknown,
}

/// What packing did.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct PackStats {
    /// Sum over the volumes.
    pub reduction: Reduction,
    pub chunks: u64,
    pub chunks_kept_raw: u64,
    /// Blocks that differ from a stored one of the same fingerprint, and were stored.
    pub collisions: u64,
    /// Blocks stored because the plaintext of the stored one was not at hand to be compared.
    pub unverified: u64,
}

/// All changes of a batch to one volume.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PackedDelta {
    pub header: VolumeHeader,
    pub delta: MapDelta,
    pub reduction: Reduction,
}

/// What remains when everything is packed.
#[derive(Debug)]
pub struct PackedBatch {
    /// The segments not taken yet, the batch's last one at the end.
    pub segments: Vec<SealedSegment>,
    /// Segments of the batch, with those taken before.
    pub segments_total: u32,
    /// One entry per volume, in the order the volumes were given.
    pub deltas: Vec<PackedDelta>,
    pub stats: PackStats,
}

/// How the volume at hand is packed.
struct Packing {
    how: VolumePacking,
    /// `None` when blocks are not fingerprinted.
    prints: Option<FingerprintKey>,
}

/// What a segment is the last of.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Ends {
    Nothing,
    Domain,
    Batch,
}

/// What to do with a block.
enum Verdict {
    Share(ChunkRef),
    /// The same, because the finder says so.
    ShareFound(ChunkRef),
    Store,
    /// Store it, but not under its fingerprint: another block has it.
    StoreUnnamed,
}

/// Why a block of the same fingerprint does not stand for another.
#[derive(Default)]
struct Doubt {
    different: bool,
    unverified: bool,
}

/// Packs one batch.
pub struct Packer<'a> {
    config: PackConfig,
    batch: BatchHeader,
    ports: Ports,
    compressor: Compressor,
    sink: Option<ChunkSink<'a>>,
    shows_chunks: bool,
    /// From the next run on.
    shows_next: bool,
    finder: Option<Finder<'a>>,
    checker: Option<Checker<'a>>,
    packing: Option<Packing>,
    volumes: Vec<VolumeState>,
    pending: Pending,
    /// Room for the pending chunk while it is looked over again.
    looked_over: Pending,
    own: OwnBlocks,
    open: Option<Open>,
    sealed: VecDeque<SealedSegment>,
    segments_total: u32,
    /// Room that the largest segment so far took: the next one of the batch likely takes as much.
    segment_bytes: usize,
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
    pub fn new(config: PackConfig, batch: BatchHeader, ports: Ports) -> Self {
        Self {
            config,
            batch,
            ports,
            compressor: Compressor::new(),
            sink: None,
            shows_chunks: true,
            shows_next: true,
            finder: None,
            checker: None,
            packing: None,
            volumes: Vec::new(),
            pending: Pending::default(),
            looked_over: Pending::default(),
            own: OwnBlocks::default(),
            open: None,
            sealed: VecDeque::new(),
            segments_total: 0,
            segment_bytes: 0,
            untold_ops: 0,
            gathered: Vec::new(),
            stats: PackStats::default(),
        }
    }

    /// Shows every chunk's plaintext to `sink`, but see [`show_chunks`](Self::show_chunks).
    pub fn with_chunk_sink(mut self, sink: ChunkSink<'a>) -> Self {
        self.sink = Some(sink);
        self
    }

    /// Whether the sink is shown the chunks of the runs that follow. One that goes on from the run before counts with the later run.
    pub fn show_chunks(&mut self, shown: bool) {
        self.shows_next = shown;
    }

    /// Asks `finder` for each block that the batch itself has not stored. Without one, blocks are shared within the batch.
    pub fn with_finder(mut self, finder: Finder<'a>) -> Self {
        self.finder = Some(finder);
        self
    }

    /// Shows every block that would be shared to `checker`. Without one, nothing is compared, and [`Dedupe::Verify`] shares nothing.
    pub fn with_checker(mut self, checker: Checker<'a>) -> Self {
        self.checker = Some(checker);
        self
    }

    /// What follows belongs to this volume. Each volume is given once per batch, also when it has no changes. A change of
    /// domain ends a segment, and so does a chunk that is fingerprinted behind one that is not: let volumes come
    /// grouped by domain, and by whether they are deduplicated.
    pub fn volume(&mut self, header: VolumeHeader, packing: VolumePacking) {
        assert!(
            self.volumes.iter().all(|volume| volume.header.volume != header.volume),
            "a volume is packed once per batch"
        );
        self.flush();
        if self.packing.as_ref().is_some_and(|packing_before| packing_before.how.domain != packing.domain) {
            if self.open.is_some() || self.volumes.iter().any(|volume| volume.has_news(true)) {
                self.seal_segment(Ends::Domain);
            }
            self.own.forget();
            self.segment_bytes = 0;
        }
        self.compressor.start_stream(packing.compression);
        let prints = (packing.dedupe != Dedupe::Off).then(|| packing.domain.fingerprints());
        self.packing = Some(Packing { how: packing, prints });
        self.volumes.push(VolumeState::new(header));
    }

    /// Makes a range of the volume read as zeros.
    pub fn discard(&mut self, range: LbaRange) {
        assert_in_volume(range);
        self.flush();
        if !range.is_empty() {
            self.push_hole(range);
        }
    }

    /// Packs consecutive blocks from `start`: the bytes of `pieces` one behind the other, each a whole number of
    /// blocks. Ranges given for one volume, discards included, do not overlap. A run that begins where the one before ended
    /// goes on with its last chunk: how runs are sliced changes nothing. Large runs fill several segments:
    /// take them with [`next_segment`](Self::next_segment) between calls.
    pub fn run(&mut self, start: Lba, pieces: &[Bytes]) {
        let blocks: u64 = pieces
            .iter()
            .map(|piece| {
                assert!(piece.len().is_multiple_of(BLOCK), "pieces are whole blocks");
                (piece.len() / BLOCK) as u64
            })
            .sum();
        assert_in_volume(LbaRange::new(start, blocks).expect("a run ends inside its volume"));
        if self.pending.range().end() != start {
            self.flush();
        }
        self.shows_chunks = self.shows_next;
        let mut at = start;
        for piece in pieces {
            for offset in (0..piece.len()).step_by(BLOCK) {
                self.block(at, piece, offset);
                at = at.plus(1);
            }
        }
    }

    /// The oldest complete segment not taken yet.
    pub fn next_segment(&mut self) -> Option<SealedSegment> {
        self.sealed.pop_front()
    }

    /// Ends the batch. Its last segment may hold no data: it tells the pool what the catalog is told. A batch without
    /// volumes has no segments.
    pub fn finish(mut self) -> PackedBatch {
        self.flush();
        if !self.volumes.is_empty() {
            self.seal_segment(Ends::Batch);
        }
        let mut stats = self.stats;
        let deltas: Vec<_> = self
            .volumes
            .into_iter()
            .map(|volume| {
                let (header, reduction) = (volume.header, volume.reduction);
                stats.reduction += reduction;
                PackedDelta { header, delta: volume.into_delta(), reduction }
            })
            .collect();
        PackedBatch { segments: self.sealed.into(), segments_total: self.segments_total, deltas, stats }
    }

    fn packing(&self) -> &Packing {
        self.packing.as_ref().expect("volume() comes before its runs and discards")
    }

    fn volume_mut(&mut self) -> &mut VolumeState {
        self.volumes.last_mut().expect("volume() comes before its runs and discards")
    }

    /// Packs the block at `offset` of `piece`.
    fn block(&mut self, at: Lba, piece: &Bytes, offset: usize) {
        let block = &piece[offset..offset + BLOCK];
        let shape = self.packing().how.shape;
        self.volume_mut().reduction.written_bytes += BLOCK_BYTES;
        if is_zero_block(block) {
            self.flush();
            self.volume_mut().reduction.zero_bytes += BLOCK_BYTES;
            self.push_hole(LbaRange::between(at, at.plus(1)));
            return;
        }
        let Some(print) = self.packing().prints.as_ref().map(|key| key.of(block)) else {
            self.pending.push(at, piece, offset, None);
            if at.plus(1).get().is_multiple_of(u64::from(shape.max())) {
                self.flush();
            }
            return;
        };
        let name = match self.judge(&print, block) {
            Verdict::Share(to) => return self.share(at, to),
            Verdict::ShareFound(to) => {
                self.look_back();
                return self.share(at, to);
            }
            Verdict::Store => print,
            Verdict::StoreUnnamed => self.random_fingerprint(),
        };
        self.pending.push(at, piece, offset, Some(name));
        if self.pending.blocks() == shape.max() || shape.ends(&print, block) {
            self.flush();
        }
    }

    /// Whether a stored block can stand for this one.
    fn judge(&mut self, print: &Fingerprint, block: &[u8]) -> Verdict {
        let mut doubt = Doubt::default();
        if let Some(place) = self.own.find(print) {
            let to = self.own.reference(place);
            if self.accept(to, block, &mut doubt) {
                self.own.shared(place);
                return Verdict::Share(to);
            }
        }
        if let Some(to) = self.find(print, block, &mut doubt) {
            return Verdict::ShareFound(to);
        }
        if doubt.different {
            self.stats.collisions += 1;
            return Verdict::StoreUnnamed;
        }
        self.stats.unverified += u64::from(doubt.unverified);
        Verdict::Store
    }

    /// Where the finder has a block that can stand for this one.
    fn find(&mut self, print: &Fingerprint, block: &[u8], doubt: &mut Doubt) -> Option<ChunkRef> {
        let domain = self.packing().how.domain.id();
        let to = self.finder.as_mut().and_then(|find| find(domain, print))?;
        // No map can point behind the end of the largest chunk.
        (to.block < BLOCKS_PER_CHUNK_MAX && self.accept(to, block, doubt)).then_some(to)
    }

    /// Whether the block at `to` can stand for this one, which has the same fingerprint.
    fn accept(&mut self, to: ChunkRef, block: &[u8], doubt: &mut Doubt) -> bool {
        match self.checker.as_mut().map_or(Check::Unknown, |check| check(to, block)) {
            Check::Same => true,
            Check::Different => {
                doubt.different = true;
                false
            }
            // A name that two blocks have says nothing by itself.
            Check::Unknown if doubt.different => false,
            Check::Unknown => {
                doubt.unverified = self.packing().how.dedupe == Dedupe::Verify;
                !doubt.unverified
            }
        }
    }

    /// Asks the finder again about the blocks of the pending chunk: it may know more since it knew the one behind them.
    fn look_back(&mut self) {
        if self.pending.blocks() == 0 {
            return;
        }
        let before = std::mem::replace(&mut self.pending, std::mem::take(&mut self.looked_over));
        let mut at = before.range().start();
        for (piece, offset, print) in before.iter() {
            let block = &piece[offset..offset + BLOCK];
            let mut doubt = Doubt::default();
            match print.and_then(|print| self.find(&print, block, &mut doubt)) {
                Some(to) => self.share(at, to),
                None if doubt.different => {
                    self.stats.collisions += 1;
                    let name = self.random_fingerprint();
                    self.pending.push(at, piece, offset, Some(name));
                }
                None => self.pending.push(at, piece, offset, print),
            }
            at = at.plus(1);
        }
        self.looked_over = before;
        self.looked_over.clear();
    }

    /// Maps the block at `at` to a stored one.
    fn share(&mut self, at: Lba, to: ChunkRef) {
        self.flush();
        self.volume_mut().reduction.shared_bytes += BLOCK_BYTES;
        if !self.volume_mut().extend_chunk(at, to) {
            self.push_op(MapOp { range: LbaRange::between(at, at.plus(1)), target: MapTarget::Chunk(to) });
        }
    }

    /// A name that no block has.
    fn random_fingerprint(&self) -> Fingerprint {
        let mut bytes = [0; Fingerprint::BYTES];
        self.ports.entropy.fill(&mut bytes);
        Fingerprint::from_bytes(bytes)
    }

    fn push_hole(&mut self, range: LbaRange) {
        if !self.volume_mut().extend_hole(range) {
            self.push_op(MapOp { range, target: MapTarget::Hole });
        }
    }

    fn push_op(&mut self, op: MapOp) {
        self.volume_mut().push(op);
        self.untold_ops += 1;
        if self.untold_ops == OPS_PER_SEGMENT_MAX {
            self.seal_segment(Ends::Nothing);
        }
    }

    /// Compresses and seals the pending chunk, if there is one, into the open segment.
    fn flush(&mut self) {
        let raw_blocks = self.pending.blocks();
        if raw_blocks == 0 {
            return;
        }
        let container_bytes_max = self.config.container_bytes_max;
        let raw_bytes = usize::from(raw_blocks) * BLOCK;
        let fingerprinted = self.packing().prints.is_some();
        if let Some(open) = &self.open
            && (open.fingerprinted != fingerprinted || open.is_full(raw_bytes, container_bytes_max))
        {
            self.seal_segment(Ends::Nothing);
        }
        let packing = self.packing.as_ref().expect("the chunk has a volume");
        let open = self.open.get_or_insert_with(|| {
            Open::new(&packing.how.domain, fingerprinted, self.segment_bytes, self.batch.site, &self.ports)
        });
        let raw = self.pending.bytes(&mut self.gathered);
        let stored = open.add(raw_blocks, raw, &mut self.compressor, container_bytes_max);
        if fingerprinted {
            self.own.add(open.container, self.pending.prints());
        }
        if let Some(sink) = self.sink.as_mut().filter(|_| self.shows_chunks) {
            sink(stored.chunk, raw);
        }
        self.stats.chunks += 1;
        self.stats.chunks_kept_raw += u64::from(stored.codec == Codec::Raw);
        let reduction = &mut self.volume_mut().reduction;
        reduction.unique_bytes += raw_bytes as u64;
        reduction.stored_bytes += u64::from(stored.bytes);
        let target = MapTarget::Chunk(ChunkRef { chunk: stored.chunk, block: 0 });
        let range = self.pending.range();
        self.pending.clear();
        self.push_op(MapOp { range, target });
    }

    /// Completes the open segment; makes an empty one when none is open.
    fn seal_segment(&mut self, ends: Ends) {
        let domain = self.packing().how.domain.clone();
        let open =
            self.open.take().unwrap_or_else(|| Open::new(&domain, false, 0, self.batch.site, &self.ports));
        self.segment_bytes = self.segment_bytes.max(open.buffer.capacity());
        let fingerprints = self.own.complete();
        let containers = if open.directory.is_empty() {
            Vec::new()
        } else {
            vec![SegmentContainer {
                id: open.container,
                offset: HEADER_BYTES as u64,
                directory: Arc::new(open.directory),
                domain: domain.id(),
                fingerprints,
            }]
        };
        let all = ends != Ends::Nothing;
        let footer = Footer {
            batch: self.batch,
            domain: domain.id(),
            segment: open.segment,
            index: self.segments_total,
            last: ends == Ends::Batch,
            containers,
            volumes: self.volumes.iter_mut().filter_map(|volume| volume.share(all)).collect(),
        };
        let offset = open.buffer.len() as u64;
        let tail = seal_tail(&domain, open.segment, &open.buffer[..HEADER_BYTES], &footer, offset);
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

fn assert_in_volume(range: LbaRange) {
    assert!(range.end().get() <= VOLUME_BLOCKS_MAX, "{range:?} ends beyond the largest volume");
}
