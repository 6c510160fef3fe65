//! The packer and the fingerprint index as they ship.

use crate::images::Image;
use crate::tally::{BLOCK, ChunkSize, ImageTally, Tally};
use bytes::Bytes;
use cairn_fingerprints::{FingerprintIndex, IndexConfig};
use cairn_model::crypto::{Encryption, SecretKey};
use cairn_model::{
    BatchId, ContainerId, DomainId, Fingerprint, GatewayId, Generation, Lba, LineageId, MapTarget, Ports,
    Reduction, SiteId, VolumeId, WriteSeq,
};
use cairn_segment_writer::{
    BatchHeader, ChunkShape, ContainerDirectory, Domain, PackConfig, PackedBatch, Packer, SealedSegment,
    VolumeHeader, VolumePacking,
};
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

/// Data of one batch, as a gateway's by default.
const BATCH_BYTES: u64 = 64 << 20;

/// Memory for lists of fingerprints, on purpose much less than the lists of the image set need.
const INDEX_CACHE_BYTES: u64 = 4 << 20;

/// A pool with what was written so far.
pub(crate) struct Study {
    index: FingerprintIndex,
    directories: HashMap<ContainerId, Arc<ContainerDirectory>>,
    anchors: HashSet<Fingerprint>,
    packing: VolumePacking,
    ports: Ports,
    /// With the index; removed last.
    _folder: tempfile::TempDir,
}

/// Writes every image to a volume of its own.
pub(crate) fn measure(images: &[Image], shape: ChunkShape) -> Tally {
    let mut study = Study::new(shape, INDEX_CACHE_BYTES);
    let mut tally = Tally::new(format!("{}/{}", shape.target(), shape.max()));
    for (number, image) in (1..).zip(images) {
        study.image(number, image, &mut tally);
    }
    tally.entries = study.anchors.len() as u64;
    tally
}

impl Study {
    pub(crate) fn new(shape: ChunkShape, index_cache_bytes: u64) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let key = SecretKey::from_bytes([7; 32]);
        let config = IndexConfig {
            path: folder.path().join("index"),
            cache_bytes: index_cache_bytes,
            containers_max: 1 << 20,
        };
        let (index, _) = FingerprintIndex::open(&config, SiteId::from_bytes([1; 16]), &key).unwrap();
        let domain = Domain::new(DomainId::DEFAULT, key, Encryption::Aes256Gcm);
        Self {
            index,
            directories: HashMap::new(),
            anchors: HashSet::new(),
            packing: VolumePacking { shape, ..VolumePacking::new(domain) },
            ports: Ports::system(),
            _folder: folder,
        }
    }

    pub(crate) fn image(&mut self, volume: u8, image: &Image, tally: &mut Tally) {
        let mut sum = ImageTally::default();
        let mut pieces = image.pieces().peekable();
        while pieces.peek().is_some() {
            let mut bytes = 0;
            let batch = std::iter::from_fn(|| {
                let piece = if bytes < BATCH_BYTES { pieces.next() } else { None }?;
                bytes += piece.1.len() as u64;
                Some(piece)
            });
            let (segments, done) = self.pack(volume, batch, tally);
            self.committed(&segments, tally);
            self.mapped(&done, tally, &mut sum);
        }
        tally.images.push(sum);
    }

    /// Packs a batch and forgets it.
    pub(crate) fn try_out(&self, pieces: impl Iterator<Item = (Lba, Bytes)>, tally: &mut Tally) -> Reduction {
        self.pack(0, pieces, tally).1.stats.reduction
    }

    fn pack(
        &self,
        volume: u8,
        pieces: impl Iterator<Item = (Lba, Bytes)>,
        tally: &mut Tally,
    ) -> (Vec<SealedSegment>, PackedBatch) {
        let header = BatchHeader {
            site: SiteId::from_bytes([1; 16]),
            gateway: GatewayId::from_bytes([2; 16]),
            batch: BatchId::fresh(&*self.ports.clock, &*self.ports.entropy),
            attempt: 1,
            previous: None,
        };
        let volume = VolumeHeader {
            volume: VolumeId::from_bytes([volume; 16]),
            lineage: LineageId::from_bytes([volume; 16]),
            generation: Generation::new(1),
            base: WriteSeq::ZERO,
            through: WriteSeq::new(1),
        };
        let (levels, index) = (&mut tally.levels, &self.index);
        let (chunks, chunk_bytes) = (&mut tally.chunks, &mut tally.chunk_bytes);
        let mut packer = Packer::new(PackConfig::default(), header, self.ports.clone())
            .with_chunk_sink(Box::new(|_, chunk| {
                levels.see(chunk);
                *chunks += 1;
                *chunk_bytes += chunk.len() as u64;
            }))
            .with_finder(Box::new(|domain, print| index.find(domain, print)));
        packer.volume(volume, self.packing.clone());
        let mut segments = Vec::new();
        for (at, piece) in pieces {
            packer.run(at, &[piece]);
            segments.extend(std::iter::from_fn(|| packer.next_segment()));
        }
        let mut done = packer.finish();
        segments.append(&mut done.segments);
        (segments, done)
    }

    /// What a gateway tells its index when the catalog has the batch.
    fn committed(&mut self, segments: &[SealedSegment], tally: &mut Tally) {
        for container in segments.iter().flat_map(SealedSegment::containers) {
            self.directories.insert(container.id, Arc::clone(&container.directory));
            if let Some(list) = &container.fingerprints {
                self.anchors.extend(list.anchors());
                tally.list_bytes +=
                    (list.blocks().len() * Fingerprint::BYTES + list.chunk_blocks().len()) as u64;
                self.index.committed(container.domain, list);
            }
        }
    }

    fn mapped(&self, done: &PackedBatch, tally: &mut Tally, sum: &mut ImageTally) {
        for volume in &done.deltas {
            sum.written_bytes += volume.reduction.written_bytes - volume.reduction.zero_bytes;
            sum.unique_bytes += volume.reduction.unique_bytes;
            sum.stored_bytes += volume.reduction.stored_bytes;
            for op in &volume.delta.ops {
                let MapTarget::Chunk(to) = op.target else { continue };
                let entry = self.directories[&to.chunk.container].get(to.chunk.index).unwrap();
                let size = ChunkSize {
                    raw_bytes: u64::from(entry.raw_blocks) * BLOCK,
                    stored_bytes: u64::from(entry.stored_bytes),
                };
                tally.map.add(op.range.start(), op.range.blocks(), to, size);
            }
        }
    }
}
