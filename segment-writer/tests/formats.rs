//! Bytes written by released versions still open.

#![allow(clippy::unwrap_used, reason = "this is test code")]

mod common;

use bytes::Bytes;
use cairn_model::crypto::{Encryption, SecretKey};
use cairn_model::{ChunkId, ChunkIndex, ChunkSet, DomainId, MapOp, MapTarget, VolumeId};
use cairn_segment_writer::{
    Codec, ContainerCipher, ContainerDirectory, ContainerLocation, DataNode, Domain, Footer, Pool,
};
use common::*;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

const SEGMENT_1: &[u8] = include_bytes!("fixtures/segment-v1.bin");
const SEGMENTS_2: [&[u8]; 2] =
    [include_bytes!("fixtures/segment-v2-0.bin"), include_bytes!("fixtures/segment-v2-1.bin")];
const OPEN_SEGMENTS_2: [&[u8]; 2] =
    [include_bytes!("fixtures/segment-v2-open-0.bin"), include_bytes!("fixtures/segment-v2-open-1.bin")];
const DIRECTORY: &[u8] = include_bytes!("fixtures/directory-v1.bin");
const THIN_DIRECTORY: &[u8] = include_bytes!("fixtures/directory-v2.bin");
const MARKER: &[u8] = include_bytes!("fixtures/node-v1.json");

/// The blocks of each volume.
type Content = BTreeMap<VolumeId, BTreeMap<u64, Bytes>>;

fn written() -> Content {
    let mut content = Content::new();
    for (header, runs) in fixture_content() {
        for (start, pieces) in runs {
            put(content.entry(header.volume).or_default(), start.get(), &pieces.concat());
        }
    }
    content
}

fn written_from_version_2() -> Content {
    let mut content = written();
    put(content.get_mut(&volume(1).volume).unwrap(), fixture_repeat().get(), &text(11, 1));
    content
}

fn put(blocks: &mut BTreeMap<u64, Bytes>, start: u64, bytes: &[u8]) {
    blocks.extend((start..).zip(bytes.chunks(BLOCK).map(Bytes::copy_from_slice)));
}

/// A pool with these objects.
async fn pool_of(objects: &[&'static [u8]]) -> Pool {
    let memory = Arc::new(InMemory::new());
    for (number, object) in objects.iter().enumerate() {
        memory.put(&Path::from(format!("segments/{number}")), (*object).into()).await.unwrap();
    }
    store_pool(memory)
}

/// What the segments of a batch tell and hold, from their own bytes and the key.
async fn read(domain: &Domain, objects: &[&'static [u8]]) -> (Vec<Footer>, Content) {
    let pool = pool_of(objects).await;
    let (mut footers, mut chunks) = (Vec::new(), HashMap::new());
    for (number, object) in objects.iter().enumerate() {
        let key = format!("segments/{number}");
        let footer = pool.nodes()[0].read_footer(&key, domain).await.unwrap();
        for container in &footer.containers {
            let location = ContainerLocation {
                place: place_of(&pool, &key, object.len() as u64),
                offset: container.offset,
            };
            let cipher = ContainerCipher::new(domain, container.id);
            let count = u32::try_from(container.directory.len()).unwrap();
            let read =
                pool.read_chunks(&location, &container.directory, &cipher, 0..count, None).await.unwrap();
            let named = |(index, bytes)| (ChunkId { container: container.id, index }, bytes);
            chunks.extend(read.into_iter().map(named));
        }
        footers.push(footer);
    }
    let mut content = Content::new();
    for told in footers.iter().flat_map(|footer| &footer.volumes) {
        let blocks = content.entry(told.header.volume).or_default();
        for MapOp { range, target } in &told.delta.ops {
            let MapTarget::Chunk(at) = target else {
                assert_eq!(*range, fixture_discard());
                continue;
            };
            let bytes = chunks[&at.chunk].slice(usize::from(at.block) * BLOCK..);
            put(blocks, range.start().get(), &bytes[..usize::try_from(range.bytes()).unwrap()]);
        }
    }
    (footers, content)
}

#[tokio::test]
async fn a_segment_of_version_1_opens_from_its_own_bytes_and_the_key() {
    let (footers, content) = read(&domain(), &[SEGMENT_1]).await;
    assert_eq!((footers[0].batch, footers[0].index, footers[0].last), (batch(), 0, true));
    assert_eq!(footers[0].containers[0].fingerprints, None);
    assert!(footers[0].volumes.iter().map(|told| told.header).eq([volume(1), volume(2)]));
    assert_eq!(content, written());
}

#[tokio::test]
async fn segments_of_version_2_open_from_their_own_bytes_and_the_key() {
    for (domain, objects) in [(domain(), SEGMENTS_2), (open_domain(), OPEN_SEGMENTS_2)] {
        let (footers, content) = read(&domain, &objects).await;
        assert_eq!(content, written_from_version_2());
        let places: Vec<_> = footers.iter().map(|footer| (footer.batch, footer.index, footer.last)).collect();
        assert_eq!(places, [(batch(), 0, false), (batch(), 1, true)]);
        let [fingerprinted, other] =
            [0, 1].map(|number| footers[number].containers[0].fingerprints.as_deref());
        assert_eq!(other, None);
        let key = domain.fingerprints();
        let names: Vec<_> =
            content[&volume(1).volume].range(..2000).map(|(_, block)| key.of(block)).collect();
        assert_eq!(fingerprinted.unwrap().blocks(), names);
    }
}

#[tokio::test]
async fn segments_open_in_their_own_domain_only() {
    let key = || SecretKey::from_bytes([7; 32]);
    let open_key = || SecretKey::from_bytes([21; 32]);
    for (object, domain, reason) in [
        (SEGMENT_1, open_domain(), "another domain key"),
        (SEGMENTS_2[0], open_domain(), "another domain key"),
        (OPEN_SEGMENTS_2[0], domain(), "another domain key"),
        (SEGMENT_1, Domain::new(DomainId::DEFAULT, key(), Encryption::Off), "other way round"),
        (SEGMENTS_2[0], Domain::new(DomainId::DEFAULT, key(), Encryption::Off), "other way round"),
        (
            OPEN_SEGMENTS_2[0],
            Domain::new(DomainId::DEFAULT, open_key(), Encryption::Aes256Gcm),
            "other way round",
        ),
    ] {
        let pool = pool_of(&[object]).await;
        let error = pool.nodes()[0].read_footer("segments/0", &domain).await.unwrap_err();
        assert!(error.to_string().contains(reason), "{error}");
    }
}

#[tokio::test]
async fn a_segment_is_found_to_be_of_a_domain_by_the_name_of_its_key() {
    let domains = [domain(), open_domain()];
    let pool = pool_of(&[SEGMENTS_2[0], OPEN_SEGMENTS_2[0]]).await;
    for (number, domain) in domains.iter().enumerate() {
        let key = format!("segments/{number}");
        let known = |id| domains.iter().find(|domain| domain.key_id() == id).cloned();
        assert_eq!(pool.nodes()[0].read_footer_of(&key, known).await.unwrap().domain, domain.id());
    }
}

#[test]
fn a_directory_that_chunks_were_left_out_of_opens() {
    let thin = ContainerDirectory::decode(THIN_DIRECTORY).unwrap();
    let whole = ContainerDirectory::decode(DIRECTORY).unwrap();
    let kept: ChunkSet = [1, 4].into_iter().map(ChunkIndex::new).collect();
    assert_eq!(whole.thinned(&kept), thin);
    assert_eq!(thin.present(), kept);
    assert_eq!(thin.len(), 5);
    assert_eq!(thin.chunk_blocks().filter(|blocks| *blocks == 0).count(), 3);
    assert_eq!(thin.encode(), THIN_DIRECTORY, "its bytes are the same today");
}

#[test]
fn a_directory_of_version_1_opens() {
    let directory = ContainerDirectory::decode(DIRECTORY).unwrap();
    let shapes: Vec<_> = directory.iter().map(|(_, entry)| (entry.raw_blocks, entry.codec)).collect();
    let expected = [(2, Codec::Zstd), (8, Codec::Zstd), (1, Codec::Zstd), (3, Codec::Zstd), (3, Codec::Raw)];
    assert_eq!(shapes, expected);
    assert_eq!(directory.get(ChunkIndex::new(5)), None);
    assert_eq!(directory.encode(), DIRECTORY, "its bytes are the same today");
}

#[tokio::test]
async fn a_node_of_version_1_opens() {
    let memory = Arc::new(InMemory::new());
    memory.put(&Path::from(cairn_segment_writer::MARKER_KEY), MARKER.into()).await.unwrap();
    let store = memory as Arc<dyn ObjectStore>;
    let id = "00112233445566778899aabbccddeeff".parse().unwrap();
    let node =
        DataNode::open_store(store, "mem://node", site(), id, policy(), seeded_ports(1)).await.unwrap();
    assert_eq!(node.id(), id);
}
