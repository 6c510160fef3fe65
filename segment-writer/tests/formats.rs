//! Bytes written by released versions still open.

#![allow(clippy::unwrap_used, reason = "this is test code")]

mod common;

use cairn_model::{ChunkIndex, MapOp, MapTarget};
use cairn_segment_writer::{Codec, ContainerCipher, ContainerDirectory, ContainerLocation, DataNode};
use common::*;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};
use std::collections::BTreeMap;
use std::sync::Arc;

const SEGMENT: &[u8] = include_bytes!("fixtures/segment-v1.bin");
const DIRECTORY: &[u8] = include_bytes!("fixtures/directory-v1.bin");
const MARKER: &[u8] = include_bytes!("fixtures/node-v1.json");

#[tokio::test]
async fn a_segment_of_version_1_opens_from_its_own_bytes_and_the_key() {
    let memory = Arc::new(InMemory::new());
    memory.put(&Path::from("segments/old"), SEGMENT.into()).await.unwrap();
    let pool = store_pool(memory);
    let footer = pool.nodes()[0].read_footer("segments/old", &domain_key()).await.unwrap();
    assert_eq!((footer.batch, footer.index, footer.last), (batch(), 0, true));

    let container = &footer.containers[0];
    let location =
        ContainerLocation { node: node_id(&pool), key: "segments/old".into(), offset: container.offset };
    let cipher = ContainerCipher::new(&domain_key(), container.id);
    let count = u32::try_from(container.directory.len()).unwrap();
    let chunks: BTreeMap<ChunkIndex, _> = pool
        .read_chunks(&location, &container.directory, &cipher, 0..count)
        .await
        .unwrap()
        .into_iter()
        .collect();

    for (told, (header, runs)) in footer.volumes.iter().zip(fixture_content()) {
        assert_eq!(told.header, header);
        let mut expected: BTreeMap<_, _> = BTreeMap::new();
        for (start, pieces) in runs {
            let bytes = pieces.concat();
            expected.extend((start.get()..).zip(bytes.chunks(BLOCK).map(<[u8]>::to_vec)));
        }
        let mut found = BTreeMap::new();
        for MapOp { range, target } in &told.delta.ops {
            let MapTarget::Chunk(at) = target else {
                assert_eq!(*range, fixture_discard());
                continue;
            };
            assert_eq!(at.chunk.container, container.id);
            let bytes = &chunks[&at.chunk.index][usize::from(at.block) * BLOCK..];
            let blocks = usize::try_from(range.blocks()).unwrap();
            found.extend(
                (range.start().get()..).zip(bytes[..blocks * BLOCK].chunks(BLOCK).map(<[u8]>::to_vec)),
            );
        }
        assert_eq!(found, expected);
    }
}

#[test]
fn a_directory_of_version_1_opens() {
    let directory = ContainerDirectory::decode(DIRECTORY).unwrap();
    let shapes: Vec<_> = directory.iter().map(|(_, entry)| (entry.raw_blocks, entry.codec)).collect();
    let expected = [(2, Codec::Zstd), (8, Codec::Zstd), (1, Codec::Zstd), (3, Codec::Zstd), (3, Codec::Raw)];
    assert_eq!(shapes, expected);
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
