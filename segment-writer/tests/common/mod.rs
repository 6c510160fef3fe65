//! What several test programs share.
#![allow(dead_code, reason = "each test program uses its part")]
#![allow(clippy::unwrap_used, reason = "this is test code")]

use bytes::Bytes;
use cairn_model::crypto::{Encryption, SecretKey};
use cairn_model::{
    BLOCK_SIZE, BatchId, Clock, DomainId, Entropy, GatewayId, Generation, Lba, LbaRange, LineageId, MapDelta,
    MapTarget, Monotonic, NodeId, ObjectPlace, Placement, Ports, SeededEntropy, SiteId, ThreadSpawn,
    VolumeId, WallTime, WriteSeq,
};
use cairn_segment_writer::{
    BatchHeader, ContainerCipher, ContainerLocation, DataNode, Dedupe, Domain, NodeAccess, NodeUrl,
    PackConfig, PackedBatch, PackedDelta, Packer, Pool, RequestPolicy, SealedSegment, VolumeDelta,
    VolumeHeader, VolumePacking,
};
use object_store::ObjectStore;
use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

pub(crate) const BLOCK: usize = BLOCK_SIZE as usize;

pub(crate) fn site() -> SiteId {
    SiteId::from_bytes([1; 16])
}

/// The domain that is meant when nothing else is said.
pub(crate) fn domain() -> Domain {
    Domain::new(DomainId::DEFAULT, SecretKey::from_bytes([7; 32]), Encryption::Aes256Gcm)
}

/// One without encryption.
pub(crate) fn open_domain() -> Domain {
    Domain::new(DomainId::from_bytes([20; 16]), SecretKey::from_bytes([21; 32]), Encryption::Off)
}

pub(crate) fn packing() -> VolumePacking {
    VolumePacking::new(domain())
}

pub(crate) fn batch() -> BatchHeader {
    BatchHeader {
        site: site(),
        gateway: GatewayId::from_bytes([2; 16]),
        batch: BatchId::from_bytes([3; 16]),
        attempt: 1,
        previous: Some(BatchId::from_bytes([4; 16])),
    }
}

pub(crate) fn volume(number: u8) -> VolumeHeader {
    VolumeHeader {
        volume: VolumeId::from_bytes([number; 16]),
        lineage: LineageId::from_bytes([number + 100; 16]),
        generation: Generation::new(5),
        base: WriteSeq::new(10),
        through: WriteSeq::new(20),
    }
}

pub(crate) fn packer<'a>(config: PackConfig) -> Packer<'a> {
    Packer::new(config, batch(), Ports::system())
}

/// Bytes that do not compress.
pub(crate) fn random(blocks: usize, seed: u64) -> Bytes {
    let mut bytes = vec![0; blocks * BLOCK];
    SeededEntropy::new(seed).fill(&mut bytes);
    bytes.into()
}

/// Bytes that compress.
pub(crate) fn text(blocks: usize, seed: u64) -> Bytes {
    let mut bytes = Vec::with_capacity(blocks * BLOCK);
    let mut number = seed.wrapping_mul(1_000_003);
    while bytes.len() < blocks * BLOCK {
        number = number.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        bytes.extend_from_slice(format!("line {} of a log that says little\n", number >> 40).as_bytes());
    }
    bytes.truncate(blocks * BLOCK);
    bytes.into()
}

/// Tokio's clock, which tests can pause: waits then take no time.
#[derive(Debug)]
pub(crate) struct TokioClock(tokio::time::Instant);

impl Clock for TokioClock {
    fn now(&self) -> Monotonic {
        Monotonic::from_origin(self.0.elapsed())
    }

    fn wall(&self) -> WallTime {
        WallTime::from_unix_millis(1_790_000_000_000)
    }

    #[expect(clippy::disallowed_methods, reason = "this implements the port")]
    fn sleep(&self, duration: Duration) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        Box::pin(tokio::time::sleep(duration))
    }
}

/// Ports under which one seed is one schedule.
pub(crate) fn seeded_ports(seed: u64) -> Ports {
    Ports {
        clock: Arc::new(TokioClock(tokio::time::Instant::now())),
        entropy: Arc::new(SeededEntropy::new(seed)),
        spawn: Arc::new(ThreadSpawn),
    }
}

/// A pool of one node on that store.
pub(crate) fn store_pool(store: Arc<dyn ObjectStore>) -> Pool {
    let id = NodeId::from_bytes([9; 16]);
    Pool::single(DataNode::with_store(id, "mem://node", store, policy(), seeded_ports(1)))
}

/// Impatient: what fails for good fails soon.
pub(crate) fn policy() -> RequestPolicy {
    RequestPolicy {
        put_attempt_timeout: Duration::from_millis(500),
        get_attempt_timeout: Duration::from_millis(500),
        put_give_up: Duration::from_secs(2),
        get_give_up: Duration::from_secs(2),
        backoff_first: Duration::from_millis(5),
        backoff_max: Duration::from_millis(50),
    }
}

pub(crate) async fn directory_pool(folder: &std::path::Path) -> Pool {
    let access = NodeAccess { policy: policy(), ..NodeAccess::new(NodeUrl::Directory(folder.join("pool"))) };
    Pool::single(DataNode::attach(&access, site(), Ports::system()).await.unwrap())
}

pub(crate) fn node_id(pool: &Pool) -> NodeId {
    pool.nodes()[0].id()
}

/// Where a segment is on the pool's only node.
pub(crate) fn place_of(pool: &Pool, key: &str, length_bytes: u64) -> ObjectPlace {
    ObjectPlace { key: key.to_owned(), length_bytes, placement: Placement::single(node_id(pool)) }
}

/// A batch with all its segments.
pub(crate) struct Packed {
    pub(crate) segments: Vec<SealedSegment>,
    pub(crate) batch: PackedBatch,
}

pub(crate) fn finish(mut packer: Packer<'_>) -> Packed {
    let mut segments = Vec::new();
    while let Some(segment) = packer.next_segment() {
        segments.push(segment);
    }
    let mut batch = packer.finish();
    segments.append(&mut batch.segments);
    assert_eq!(segments.len(), batch.segments_total as usize);
    Packed { segments, batch }
}

/// What a footer tells of a volume when it tells all of it.
pub(crate) fn told(packed: &PackedDelta) -> VolumeDelta {
    VolumeDelta { header: packed.header, delta: packed.delta.clone() }
}

/// All blocks that a delta maps into segments of that domain, read from the pool: `None` for holes.
pub(crate) async fn read_back(
    pool: &Pool,
    domain: &Domain,
    segments: &[SealedSegment],
    delta: &MapDelta,
) -> BTreeMap<Lba, Option<Bytes>> {
    let mut chunks = BTreeMap::new();
    for segment in segments {
        for container in segment.containers().iter().filter(|container| container.domain == domain.id()) {
            let place = place_of(pool, segment.key(), segment.length_bytes());
            let location = ContainerLocation { place, offset: container.offset };
            let cipher = ContainerCipher::new(domain, container.id);
            let count = u32::try_from(container.directory.len()).unwrap();
            for (index, bytes) in
                pool.read_chunks(&location, &container.directory, &cipher, 0..count, None).await.unwrap()
            {
                chunks.insert((container.id, index), bytes);
            }
        }
    }
    let mut blocks = BTreeMap::new();
    for op in &delta.ops {
        for offset in 0..op.range.blocks() {
            let block = match op.target {
                MapTarget::Hole => None,
                MapTarget::Chunk(at) => {
                    let start = (usize::from(at.block) + usize::try_from(offset).unwrap()) * BLOCK;
                    Some(chunks[&(at.chunk.container, at.chunk.index)].slice(start..start + BLOCK))
                }
            };
            assert!(blocks.insert(op.range.start().plus(offset), block).is_none(), "a block is mapped twice");
        }
    }
    blocks
}

/// A run's first block and its pieces.
pub(crate) type FixtureRun = (Lba, Vec<Bytes>);

/// What the fixtures of every version hold.
pub(crate) fn fixture_content() -> Vec<(VolumeHeader, Vec<FixtureRun>)> {
    vec![
        (volume(1), vec![(Lba::new(6), vec![text(11, 1)]), (Lba::new(1000), vec![random(1, 2), text(2, 3)])]),
        (volume(2), vec![(Lba::new(1 << 33), vec![random(3, 4)])]),
    ]
}

/// What the fixtures discard in the first volume.
pub(crate) fn fixture_discard() -> LbaRange {
    LbaRange::new(Lba::new(5000), 1 << 30).unwrap()
}

/// The same in either protection, with blocks that are shared. The second volume is not fingerprinted, so there are two segments.
pub(crate) fn fixture_segments(domain: &Domain) -> Vec<SealedSegment> {
    let mut packer = Packer::new(PackConfig::default(), batch(), seeded_ports(2026));
    for (header, runs) in fixture_content() {
        let dedupe = if header == volume(1) { Dedupe::On } else { Dedupe::Off };
        packer.volume(header, VolumePacking { dedupe, ..VolumePacking::new(domain.clone()) });
        for (start, pieces) in runs {
            packer.run(start, &pieces);
        }
        if header == volume(1) {
            packer.run(fixture_repeat(), &[text(11, 1)]);
            packer.discard(fixture_discard());
        }
    }
    finish(packer).segments
}

/// Where the fixtures from version 2 on have the first run's content again.
pub(crate) fn fixture_repeat() -> Lba {
    Lba::new(3000)
}
