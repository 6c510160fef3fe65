//! Bytes of maps: one coder for the deltas of batches and for the leaves of the catalog.
//!
//! ```text
//!  0      kind       'd' a delta, 'l' a leaf
//!  1      version    1
//!  2      number     varint   leaf: its index. delta: 0
//!         containers varint   how many identities follow, at most one per run
//!         identity   16 bytes each, in the order of first use
//!         runs       varint   how many runs follow
//!         run        each:
//!           gap      varint   blocks since the end of the run before (the first: since the origin)
//!           shape    varint   blocks << 2 | form
//!           form 0            a hole (deltas only)
//!           form 1            varint container (position above), varint chunk, u8 block
//!           form 2            the next chunk of the same container as before, from its block 0
//!           form 3            the same container as before: zigzag varint (chunk - chunk before), u8 block
//!         checksum   8 bytes  the first of BLAKE3 over everything above
//! ```
//!
//! `varint` is LEB128 ([`crate::varint`]). The origin is block 0 of the volume for a delta, and the first block of the leaf for
//! a leaf. Runs are in address order and disjoint by construction: a gap cannot be negative.
//!
//! The checksum finds damage, not malice: where a map leaves the site's own catalog (segment footers), the AEAD around it
//! authenticates it.
//!
//! A sequential write costs two bytes a run, a random one about four, whatever the volume's size.

use crate::map::{DELTA_OPS_MAX, MapDelta, MapOp, MapTarget};
use crate::{
    BLOCKS_PER_CHUNK_MAX, ChunkId, ChunkIndex, ChunkRef, ContainerId, ErrorKind, Kinded, Lba, LbaRange,
    VOLUME_BLOCKS_MAX, varint,
};
use std::collections::HashMap;

const VERSION: u8 = 1;
const CHECKSUM_BYTES: usize = 8;
const IDENTITY_BYTES: usize = 16;
/// A run takes at least a gap and a shape.
const RUN_BYTES_MIN: usize = 2;

const FORM_HOLE: u64 = 0;
const FORM_EXPLICIT: u64 = 1;
const FORM_NEXT: u64 = 2;
const FORM_NEAR: u64 = 3;

/// Why bytes are no map, or a map has no bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum MapCodecError {
    #[error("a map's bytes are damaged: {0}")]
    Corrupt(&'static str),
    #[error("a map has format version {found}, this program knows up to {VERSION}: use a newer one")]
    Version { found: u8 },
    #[error("not a map: {0}")]
    Invalid(&'static str),
}

impl Kinded for MapCodecError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::Corrupt(_) => ErrorKind::Corrupt,
            Self::Version { .. } => ErrorKind::Unsupported,
            Self::Invalid(_) => ErrorKind::Internal,
        }
    }
}

/// What the bytes are a map of.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MapKind {
    Delta,
    Leaf,
}

impl MapKind {
    const fn byte(self) -> u8 {
        match self {
            Self::Delta => b'd',
            Self::Leaf => b'l',
        }
    }
}

/// A run in terms of its map's list of containers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CodedRun {
    /// First block, from the map's origin.
    pub start: u64,
    pub blocks: u64,
    /// `None` is a hole.
    pub source: Option<CodedSource>,
}

/// Where a run's blocks are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CodedSource {
    /// Position in the list of containers.
    pub container: u32,
    pub chunk: u32,
    pub block: u8,
}

/// The bytes of a map. `runs` must be in address order, disjoint, not empty, and name containers of the list.
pub fn encode(
    kind: MapKind,
    number: u64,
    containers: &[ContainerId],
    runs: impl ExactSizeIterator<Item = CodedRun>,
) -> Vec<u8> {
    let mut out = Vec::with_capacity(32 + containers.len() * IDENTITY_BYTES + runs.len() * 5);
    out.extend_from_slice(&[kind.byte(), VERSION]);
    varint::put(&mut out, number);
    varint::put(&mut out, containers.len() as u64);
    for container in containers {
        out.extend_from_slice(container.as_bytes());
    }
    varint::put(&mut out, runs.len() as u64);
    let mut end = 0;
    let mut before: Option<CodedSource> = None;
    for run in runs {
        varint::put(&mut out, run.start - end);
        end = run.start + run.blocks;
        put_shape(&mut out, run, before);
        before = run.source.or(before);
    }
    let checksum = checksum(&out);
    out.extend_from_slice(&checksum);
    out
}

fn put_shape(out: &mut Vec<u8>, run: CodedRun, before: Option<CodedSource>) {
    let Some(source) = run.source else {
        varint::put(out, run.blocks << 2 | FORM_HOLE);
        return;
    };
    match before.filter(|before| before.container == source.container) {
        Some(before) if before.chunk.checked_add(1) == Some(source.chunk) && source.block == 0 => {
            varint::put(out, run.blocks << 2 | FORM_NEXT);
        }
        Some(before) => {
            varint::put(out, run.blocks << 2 | FORM_NEAR);
            varint::put(out, zigzag(i64::from(source.chunk) - i64::from(before.chunk)));
            out.push(source.block);
        }
        None => {
            varint::put(out, run.blocks << 2 | FORM_EXPLICIT);
            varint::put(out, u64::from(source.container));
            varint::put(out, u64::from(source.chunk));
            out.push(source.block);
        }
    }
}

fn checksum(bytes: &[u8]) -> [u8; CHECKSUM_BYTES] {
    let mut checksum = [0; CHECKSUM_BYTES];
    checksum.copy_from_slice(&blake3::hash(bytes).as_bytes()[..CHECKSUM_BYTES]);
    checksum
}

#[expect(clippy::cast_sign_loss, reason = "zigzag is about the sign")]
const fn zigzag(value: i64) -> u64 {
    ((value << 1) ^ (value >> 63)) as u64
}

#[expect(clippy::cast_possible_wrap, reason = "zigzag is about the sign")]
const fn unzigzag(value: u64) -> i64 {
    (value >> 1) as i64 ^ -((value & 1) as i64)
}

/// What a reader accepts.
#[derive(Clone, Copy, Debug)]
pub struct MapLimits {
    /// No run ends after this block, counted from the origin.
    pub blocks_max: u64,
    pub runs_max: usize,
}

/// Reads a map's bytes: the list of containers at once, then run by run. Ends with an error when anything is wrong.
#[derive(Debug)]
pub struct MapReader<'a> {
    kind: MapKind,
    number: u64,
    containers: Vec<ContainerId>,
    rest: &'a [u8],
    runs_left: usize,
    blocks_max: u64,
    end: u64,
    before: Option<CodedSource>,
}

impl<'a> MapReader<'a> {
    /// Verifies the checksum, the version and the sizes.
    pub fn open(kind: MapKind, bytes: &'a [u8], limits: MapLimits) -> Result<Self, MapCodecError> {
        let body_length =
            bytes.len().checked_sub(CHECKSUM_BYTES).ok_or(MapCodecError::Corrupt("cut short"))?;
        let (body, stored) = bytes.split_at(body_length);
        let mut rest = body;
        if take_byte(&mut rest)? != kind.byte() {
            return Err(MapCodecError::Corrupt("of another kind"));
        }
        let version = take_byte(&mut rest)?;
        // The version comes before the checksum: a newer format may place its checksum elsewhere.
        if version != VERSION {
            return Err(MapCodecError::Version { found: version });
        }
        if checksum(body) != stored {
            return Err(MapCodecError::Corrupt("wrong checksum"));
        }
        let number = take(&mut rest)?;
        let containers = take_containers(&mut rest, limits.runs_max)?;
        let runs_left = take_count(&mut rest, limits.runs_max, RUN_BYTES_MIN, "more runs than it may have")?;
        if containers.len() > runs_left {
            return Err(MapCodecError::Corrupt("more containers than runs"));
        }
        let blocks_max = limits.blocks_max;
        Ok(Self { kind, number, containers, rest, runs_left, blocks_max, end: 0, before: None })
    }

    /// The leaf's index.
    pub fn number(&self) -> u64 {
        self.number
    }

    /// Runs not yet read.
    pub fn runs_left(&self) -> usize {
        self.runs_left
    }

    pub fn containers(&self) -> &[ContainerId] {
        &self.containers
    }

    pub fn into_containers(self) -> Vec<ContainerId> {
        self.containers
    }

    /// The next run; `None` after the last one, when nothing is left over.
    pub fn next_run(&mut self) -> Result<Option<CodedRun>, MapCodecError> {
        if self.runs_left == 0 {
            return if self.rest.is_empty() {
                Ok(None)
            } else {
                Err(MapCodecError::Corrupt("bytes left over after the last run"))
            };
        }
        self.runs_left -= 1;
        let gap = take(&mut self.rest)?;
        let shape = take(&mut self.rest)?;
        let (blocks, form) = (shape >> 2, shape & 3);
        let start = self.end.checked_add(gap).ok_or(BEYOND)?;
        let end = start.checked_add(blocks).filter(|end| *end <= self.blocks_max).ok_or(BEYOND)?;
        if blocks == 0 {
            return Err(MapCodecError::Corrupt("an empty run"));
        }
        let source = self.take_source(form, blocks)?;
        self.end = end;
        self.before = source.or(self.before);
        Ok(Some(CodedRun { start, blocks, source }))
    }

    fn take_source(&mut self, form: u64, blocks: u64) -> Result<Option<CodedSource>, MapCodecError> {
        let no_chunk = MapCodecError::Corrupt("a chunk number out of range");
        let source = match form {
            FORM_HOLE if self.kind == MapKind::Delta => return Ok(None),
            FORM_HOLE => return Err(MapCodecError::Corrupt("a hole in a leaf")),
            FORM_EXPLICIT => {
                let container = u32::try_from(take(&mut self.rest)?)
                    .ok()
                    .filter(|container| (*container as usize) < self.containers.len())
                    .ok_or(MapCodecError::Corrupt("a container that is not listed"))?;
                let chunk = u32::try_from(take(&mut self.rest)?).map_err(|_| no_chunk)?;
                CodedSource { container, chunk, block: take_byte(&mut self.rest)? }
            }
            form => {
                let before = self.before.ok_or(MapCodecError::Corrupt("a run that refers to none before"))?;
                let (step, block) = if form == FORM_NEXT {
                    (1, 0)
                } else {
                    (unzigzag(take(&mut self.rest)?), take_byte(&mut self.rest)?)
                };
                let chunk = i64::from(before.chunk).checked_add(step).ok_or(no_chunk)?;
                let chunk = u32::try_from(chunk).map_err(|_| no_chunk)?;
                CodedSource { container: before.container, chunk, block }
            }
        };
        if u64::from(source.block) + blocks > u64::from(BLOCKS_PER_CHUNK_MAX) {
            return Err(MapCodecError::Corrupt("a run longer than its chunk"));
        }
        Ok(Some(source))
    }
}

const BEYOND: MapCodecError = MapCodecError::Corrupt("a run beyond the end");

fn take(rest: &mut &[u8]) -> Result<u64, MapCodecError> {
    varint::take(rest).ok_or(MapCodecError::Corrupt("cut short"))
}

fn take_byte(rest: &mut &[u8]) -> Result<u8, MapCodecError> {
    let (&byte, after) = rest.split_first().ok_or(MapCodecError::Corrupt("cut short"))?;
    *rest = after;
    Ok(byte)
}

/// A count that the bytes left can hold at all.
fn take_count(
    rest: &mut &[u8],
    max: usize,
    bytes_each: usize,
    too_many: &'static str,
) -> Result<usize, MapCodecError> {
    let count = usize::try_from(take(rest)?).ok().filter(|count| *count <= max);
    let count = count.ok_or(MapCodecError::Corrupt(too_many))?;
    if count > rest.len() / bytes_each {
        return Err(MapCodecError::Corrupt("cut short"));
    }
    Ok(count)
}

fn take_containers(rest: &mut &[u8], max: usize) -> Result<Vec<ContainerId>, MapCodecError> {
    let count = take_count(rest, max, IDENTITY_BYTES, "more containers than it may have")?;
    let (bytes, after) = rest.split_at(count * IDENTITY_BYTES);
    *rest = after;
    Ok(bytes.as_chunks::<IDENTITY_BYTES>().0.iter().map(|id| ContainerId::from_bytes(*id)).collect())
}

/// Numbers containers in the order of their first use.
#[derive(Debug, Default)]
pub struct ContainerList {
    ids: Vec<ContainerId>,
    positions: HashMap<ContainerId, u32>,
    /// Neighbours mostly share a container: spares them the look-up.
    latest: Option<(ContainerId, u32)>,
}

impl ContainerList {
    /// Position of `container` in the list, appended if it is new.
    pub fn position(&mut self, container: ContainerId) -> u32 {
        if let Some((latest, position)) = self.latest
            && latest == container
        {
            return position;
        }
        let next = u32::try_from(self.ids.len()).expect("a map has fewer containers than runs");
        let position = *self.positions.entry(container).or_insert_with(|| {
            self.ids.push(container);
            next
        });
        self.latest = Some((container, position));
        position
    }

    pub fn ids(&self) -> &[ContainerId] {
        &self.ids
    }

    pub fn into_ids(self) -> Vec<ContainerId> {
        self.ids
    }
}

pub(super) fn encode_delta(delta: &MapDelta) -> Vec<u8> {
    let mut containers = ContainerList::default();
    let runs: Vec<CodedRun> = delta
        .ops
        .iter()
        .map(|op| CodedRun {
            start: op.range.start().get(),
            blocks: op.range.blocks(),
            source: match op.target {
                MapTarget::Hole => None,
                MapTarget::Chunk(ChunkRef { chunk, block }) => Some(CodedSource {
                    container: containers.position(chunk.container),
                    chunk: chunk.index.get(),
                    block,
                }),
            },
        })
        .collect();
    encode(MapKind::Delta, 0, containers.ids(), runs.into_iter())
}

pub(super) fn decode_delta(bytes: &[u8]) -> Result<MapDelta, MapCodecError> {
    let limits = MapLimits { blocks_max: VOLUME_BLOCKS_MAX, runs_max: DELTA_OPS_MAX };
    let mut reader = MapReader::open(MapKind::Delta, bytes, limits)?;
    let mut ops = Vec::with_capacity(reader.runs_left());
    while let Some(run) = reader.next_run()? {
        let target = match run.source {
            None => MapTarget::Hole,
            Some(CodedSource { container, chunk, block }) => {
                let container = reader.containers()[container as usize];
                let chunk = ChunkId { container, index: ChunkIndex::new(chunk) };
                MapTarget::Chunk(ChunkRef { chunk, block })
            }
        };
        let range = LbaRange::between(Lba::new(run.start), Lba::new(run.start + run.blocks));
        ops.push(MapOp { range, target });
    }
    Ok(MapDelta { ops })
}

#[cfg(test)]
mod tests;
