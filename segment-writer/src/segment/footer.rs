//! The footer's content: what the catalog is told about a segment.

use super::frame::{HEADER_BYTES, Header, VERSION_1, array};
use super::{BatchHeader, VolumeHeader};
use crate::container::ContainerDirectory;
use crate::error::Damaged;
use cairn_model::{
    BatchId, CHUNKS_PER_CONTAINER_MAX, ContainerFingerprints, ContainerId, DomainId, Fingerprint, GatewayId,
    Generation, LineageId, MapDelta, SegmentId, VolumeId, WriteSeq, varint,
};
use std::sync::Arc;

const ITEMS_MAX: u64 = 65536;
/// Chunks of all containers together, with those that were left out: these take no bytes in the footer, and memory once they are read.
const CHUNKS_MAX: usize = super::Regrouped::CONTAINERS_MAX * CHUNKS_PER_CONTAINER_MAX;

const SHORT: Damaged = Damaged("its footer is cut short");

/// Everything a segment says about itself.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Footer {
    pub batch: BatchHeader,
    /// The domain of all that the segment holds and tells.
    pub domain: DomainId,
    pub segment: SegmentId,
    /// Position in the batch, from 0.
    pub index: u32,
    /// The batch ends with this segment: it has `index + 1` of them.
    pub last: bool,
    pub containers: Vec<SegmentContainer>,
    pub volumes: Vec<VolumeDelta>,
}

/// A container as a segment holds it: what the catalog records about it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SegmentContainer {
    pub id: ContainerId,
    /// Of its first byte in the object.
    pub offset: u64,
    pub directory: Arc<ContainerDirectory>,
    pub domain: DomainId,
    /// Of its blocks, when they were fingerprinted.
    pub fingerprints: Option<Arc<ContainerFingerprints>>,
}

impl SegmentContainer {
    /// Stored bytes.
    pub fn length_bytes(&self) -> u64 {
        u64::from(self.directory.stored_bytes())
    }
}

/// Changes of one volume: all of a batch, or a segment's share of them.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct VolumeDelta {
    pub header: VolumeHeader,
    pub delta: MapDelta,
}

impl Footer {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(4096);
        out.extend_from_slice(self.batch.batch.as_bytes());
        out.extend_from_slice(self.batch.gateway.as_bytes());
        out.push(u8::from(self.batch.previous.is_some()));
        if let Some(previous) = self.batch.previous {
            out.extend_from_slice(previous.as_bytes());
        }
        varint::put(&mut out, u64::from(self.batch.attempt));
        varint::put(&mut out, u64::from(self.index));
        out.push(u8::from(self.last));
        varint::put(&mut out, self.containers.len() as u64);
        for container in &self.containers {
            out.extend_from_slice(container.id.as_bytes());
            varint::put(&mut out, container.offset);
            put_bytes(&mut out, &container.directory.encode());
            let prints = container.fingerprints.as_ref().map_or(&[][..], |prints| prints.blocks());
            varint::put(&mut out, prints.len() as u64);
            out.extend(prints.iter().flat_map(Fingerprint::as_bytes));
        }
        varint::put(&mut out, self.volumes.len() as u64);
        for VolumeDelta { header, delta } in &self.volumes {
            out.extend_from_slice(header.volume.as_bytes());
            out.extend_from_slice(header.lineage.as_bytes());
            varint::put(&mut out, header.generation.get());
            varint::put(&mut out, header.base.get());
            varint::put(&mut out, header.through.get());
            put_bytes(
                &mut out,
                &delta.encode().expect("the packer makes deltas that are in order and within limits"),
            );
        }
        out
    }

    /// Reads the plaintext of the footer that begins at `footer_offset` behind `header`.
    pub(crate) fn decode(
        bytes: &[u8],
        header: &Header,
        domain: DomainId,
        footer_offset: u64,
    ) -> Result<Self, Damaged> {
        let mut input = Input(bytes);
        let mut batch = BatchHeader {
            site: header.site,
            batch: BatchId::from_bytes(input.id()?),
            gateway: GatewayId::from_bytes(input.id()?),
            previous: if input.flag()? { Some(BatchId::from_bytes(input.id()?)) } else { None },
            attempt: 1,
        };
        if header.version != VERSION_1 {
            batch.attempt = u32::try_from(input.varint()?)
                .map_err(|_| Damaged("its footer has an impossible attempt"))?;
        }
        let index =
            u32::try_from(input.varint()?).map_err(|_| Damaged("its footer has an impossible index"))?;
        let last = input.flag()?;
        let mut containers = Vec::new();
        let (mut at, mut chunks) = (HEADER_BYTES as u64, 0);
        for _ in 0..input.count()? {
            let container = input.container(header.version, domain)?;
            chunks += container.directory.len();
            if chunks > CHUNKS_MAX {
                return Err(Damaged("its containers have more chunks than a segment can"));
            }
            if container.offset != at {
                return Err(Damaged("its containers do not lie one behind the other"));
            }
            at += u64::from(container.directory.stored_bytes());
            containers.push(container);
        }
        if at != footer_offset {
            return Err(Damaged("its containers do not end where its footer begins"));
        }
        let mut volumes = Vec::new();
        for _ in 0..input.count()? {
            volumes.push(input.volume()?);
        }
        if !input.0.is_empty() {
            return Err(Damaged("its footer has bytes behind its end"));
        }
        Ok(Self { batch, domain, segment: header.segment, index, last, containers, volumes })
    }
}

fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    varint::put(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

/// What is left to parse.
struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    fn take(&mut self, length: usize) -> Result<&'a [u8], Damaged> {
        let (taken, rest) = self.0.split_at_checked(length).ok_or(SHORT)?;
        self.0 = rest;
        Ok(taken)
    }

    fn id(&mut self) -> Result<[u8; 16], Damaged> {
        self.take(16).map(array)
    }

    fn varint(&mut self) -> Result<u64, Damaged> {
        varint::take(&mut self.0).ok_or(SHORT)
    }

    fn flag(&mut self) -> Result<bool, Damaged> {
        match self.take(1)? {
            [0] => Ok(false),
            [1] => Ok(true),
            _ => Err(Damaged("its footer has a flag that is neither set nor unset")),
        }
    }

    fn count(&mut self) -> Result<u64, Damaged> {
        match self.varint()? {
            count @ 0..=ITEMS_MAX => Ok(count),
            _ => Err(Damaged("its footer claims more entries than it can have")),
        }
    }

    fn bytes(&mut self) -> Result<&'a [u8], Damaged> {
        let length = usize::try_from(self.varint()?).map_err(|_| SHORT)?;
        self.take(length)
    }

    fn container(&mut self, version: u16, domain: DomainId) -> Result<SegmentContainer, Damaged> {
        let id = ContainerId::from_bytes(self.id()?);
        let offset = self.varint()?;
        let directory = ContainerDirectory::decode(self.bytes()?)?;
        let fingerprints = if version == VERSION_1 { None } else { self.fingerprints(id, &directory)? };
        Ok(SegmentContainer { id, offset, directory: Arc::new(directory), domain, fingerprints })
    }

    /// None at all, or one for each block of the directory's chunks.
    fn fingerprints(
        &mut self,
        id: ContainerId,
        directory: &ContainerDirectory,
    ) -> Result<Option<Arc<ContainerFingerprints>>, Damaged> {
        const OTHER: Damaged =
            Damaged("its footer has another number of fingerprints than its containers have blocks");
        let count = self.varint()?;
        if count == 0 {
            return Ok(None);
        }
        let chunk_blocks: Vec<u8> = directory.chunk_blocks().collect();
        if chunk_blocks.iter().map(|blocks| u64::from(*blocks)).sum::<u64>() != count {
            return Err(OTHER);
        }
        let length =
            usize::try_from(count).map_err(|_| SHORT)?.checked_mul(Fingerprint::BYTES).ok_or(SHORT)?;
        let (prints, _) = self.take(length)?.as_chunks();
        let prints = prints.iter().copied().map(Fingerprint::from_bytes).collect();
        ContainerFingerprints::new(id, chunk_blocks, prints).map(|prints| Some(Arc::new(prints))).ok_or(OTHER)
    }

    fn volume(&mut self) -> Result<VolumeDelta, Damaged> {
        Ok(VolumeDelta {
            header: VolumeHeader {
                volume: VolumeId::from_bytes(self.id()?),
                lineage: LineageId::from_bytes(self.id()?),
                generation: Generation::new(self.varint()?),
                base: WriteSeq::new(self.varint()?),
                through: WriteSeq::new(self.varint()?),
            },
            delta: MapDelta::decode(self.bytes()?)
                .map_err(|_| Damaged("its footer has a map delta that does not parse"))?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compress::Codec;
    use crate::segment::VERSION;
    use cairn_model::crypto::{Encryption, KeyId};
    use cairn_model::{ChunkId, ChunkIndex, ChunkRef, Lba, LbaRange, MapOp, MapTarget, SiteId};
    use proptest::prelude::*;

    const DOMAIN: DomainId = DomainId::from_bytes([3; 16]);

    fn header(version: u16) -> Header {
        Header {
            version,
            encryption: Encryption::Aes256Gcm,
            key: KeyId::from_bytes([4; 8]),
            site: SiteId::from_bytes([1; 16]),
            segment: SegmentId::from_bytes([2; 16]),
        }
    }

    fn decode(bytes: &[u8], offset: u64) -> Result<Footer, Damaged> {
        Footer::decode(bytes, &header(VERSION), DOMAIN, offset)
    }

    fn fingerprints(id: ContainerId, directory: &ContainerDirectory, seed: u8) -> Arc<ContainerFingerprints> {
        let chunk_blocks: Vec<u8> = directory.iter().map(|(_, entry)| entry.raw_blocks).collect();
        let blocks = chunk_blocks.iter().map(|blocks| usize::from(*blocks)).sum();
        let prints =
            (0..blocks).map(|at| Fingerprint::from_bytes([seed ^ at.to_le_bytes()[0]; 16])).collect();
        Arc::new(ContainerFingerprints::new(id, chunk_blocks, prints).unwrap())
    }

    fn directories() -> impl Strategy<Value = ContainerDirectory> {
        prop::collection::vec((1u8..=16, 17u32..4096), 0..20).prop_map(|chunks| {
            let mut directory = ContainerDirectory::new();
            for (blocks, stored) in chunks {
                directory.push(stored, blocks, Codec::Zstd).unwrap();
            }
            directory
        })
    }

    fn deltas() -> impl Strategy<Value = MapDelta> {
        prop::collection::vec((1u64..1000, 1u64..8, any::<Option<([u8; 16], u32)>>()), 0..20).prop_map(
            |ops| {
                let mut at = 0;
                let ops = ops.into_iter().map(|(gap, blocks, target)| {
                    let range = LbaRange::new(Lba::new(at + gap), blocks).unwrap();
                    at = range.end().get();
                    let target = target.map_or(MapTarget::Hole, |(container, index)| {
                        let container = ContainerId::from_bytes(container);
                        let chunk = ChunkId { container, index: ChunkIndex::new(index) };
                        MapTarget::Chunk(ChunkRef { chunk, block: 0 })
                    });
                    MapOp { range, target }
                });
                MapDelta { ops: ops.collect() }
            },
        )
    }

    prop_compose! {
        fn footers()(
            batch: [u8; 16], gateway: [u8; 16], previous: Option<[u8; 16]>, attempt: u32, index: u32, last: bool,
            directories in prop::collection::vec((any::<[u8; 16]>(), directories(), any::<Option<u8>>()), 0..4),
            volumes in prop::collection::vec((any::<[[u8; 16]; 2]>(), any::<[u64; 3]>(), deltas()), 0..4),
        ) -> (Footer, u64) {
            let mut offset = HEADER_BYTES as u64;
            let containers = directories.into_iter().map(|(id, directory, prints)| {
                let id = ContainerId::from_bytes(id);
                let prints = prints.filter(|_| !directory.is_empty());
                let fingerprints = prints.map(|seed| fingerprints(id, &directory, seed));
                let directory = Arc::new(directory);
                let container = SegmentContainer { id, offset, directory, domain: DOMAIN, fingerprints };
                offset += container.length_bytes();
                container
            });
            let containers = containers.collect();
            let volumes = volumes.into_iter().map(|([volume, lineage], [generation, base, through], delta)| {
                let header = VolumeHeader {
                    volume: VolumeId::from_bytes(volume),
                    lineage: LineageId::from_bytes(lineage),
                    generation: Generation::new(generation),
                    base: WriteSeq::new(base),
                    through: WriteSeq::new(through),
                };
                VolumeDelta { header, delta }
            });
            let batch = BatchHeader {
                site: header(VERSION).site,
                batch: BatchId::from_bytes(batch),
                gateway: GatewayId::from_bytes(gateway),
                previous: previous.map(BatchId::from_bytes),
                attempt,
            };
            let segment = header(VERSION).segment;
            (Footer { batch, domain: DOMAIN, segment, index, last, containers, volumes: volumes.collect() }, offset)
        }
    }

    proptest! {
        #[test]
        fn round_trips((footer, offset) in footers()) {
            let bytes = footer.encode();
            prop_assert_eq!(decode(&bytes, offset).unwrap(), footer);
        }

        #[test]
        fn a_footer_cut_short_or_with_a_tail_is_refused((footer, offset) in footers(), cut in any::<prop::sample::Index>()) {
            let bytes = footer.encode();
            prop_assert!(decode(&bytes[..cut.index(bytes.len())], offset).is_err());
            prop_assert!(decode(&[&bytes[..], &[0]].concat(), offset).is_err());
        }

        #[test]
        fn containers_that_do_not_fill_the_object_are_refused((footer, offset) in footers(), other in 0u64..100_000) {
            prop_assume!(other != offset);
            prop_assert!(decode(&footer.encode(), other).is_err());
        }

        #[test]
        fn a_changed_footer_parses_or_is_refused(
            (footer, offset) in footers(), changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        ) {
            let mut bytes = footer.encode();
            for (at, value) in changes {
                let at = at.index(bytes.len());
                bytes[at] = value;
            }
            crate::fuzzing::footer(&[&offset.to_le_bytes(), &bytes[..]].concat());
        }
    }
}
