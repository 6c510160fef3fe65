//! Every byte of a segment is accounted for.

#![allow(clippy::unwrap_used, reason = "this is test code")]

mod common;

use bytes::Bytes;
use cairn_model::crypto::{Encryption, SecretKey};
use cairn_model::{Lba, LbaRange};
use cairn_segment_writer::{
    ChunkShape, ContainerCipher, ContainerDirectory, Damaged, Dedupe, Domain, PackConfig, PoolError,
    SealedSegment, VolumePacking, fuzzing,
};
use common::*;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};
use proptest::prelude::*;
use std::sync::Arc;

/// One block that compresses well, one that does not, a hole, two volumes.
fn small_segment(domain: &Domain) -> SealedSegment {
    let mut packer = packer(PackConfig::default());
    packer.volume(volume(1), VolumePacking::new(domain.clone()));
    packer.run(Lba::ZERO, &[text(1, 1)]);
    packer.discard(LbaRange::new(Lba::new(100), 1 << 20).unwrap());
    packer.volume(volume(2), VolumePacking::new(domain.clone()));
    packer.run(Lba::new(8), &[random(1, 2)]);
    finish(packer).segments.remove(0)
}

fn open_chunks(domain: &Domain, segment: &SealedSegment, object: &[u8]) -> Result<Vec<Bytes>, Damaged> {
    let container = &segment.containers()[0];
    let cipher = ContainerCipher::new(domain, container.id);
    let start = usize::try_from(container.offset).unwrap();
    container
        .directory
        .iter()
        .map(|(index, entry)| {
            let range = start + entry.offset as usize..start + (entry.offset + entry.stored_bytes) as usize;
            cipher.open_chunk(index, entry, &mut object[range].to_vec())
        })
        .collect()
}

#[tokio::test]
async fn every_flipped_byte_is_noticed_where_it_matters() {
    for domain in [domain(), open_domain()] {
        let memory = Arc::new(InMemory::new());
        let pool = store_pool(Arc::clone(&memory) as Arc<dyn ObjectStore>);
        let segment = small_segment(&domain);
        let whole = segment.pieces().concat();
        let container = &segment.containers()[0];
        let data = usize::try_from(container.offset).unwrap()
            ..usize::try_from(container.offset + container.length_bytes()).unwrap();
        let key = Path::from(segment.key());
        for at in 0..whole.len() {
            for flip in [1, 0x80] {
                let mut damaged = whole.clone();
                damaged[at] ^= flip;
                memory.put(&key, damaged.clone().into()).await.unwrap();
                let footer = pool.nodes()[0].read_footer(segment.key(), &domain).await;
                assert_eq!(footer.is_ok(), data.contains(&at), "byte {at}: {footer:?}");
                // Also in the version: damage is no reason to upgrade.
                let is_damage = matches!(footer, Ok(_) | Err(PoolError::Corrupt { .. }));
                assert!(is_damage, "byte {at}: {footer:?}");
                assert_eq!(
                    open_chunks(&domain, &segment, &damaged).is_ok(),
                    !data.contains(&at),
                    "byte {at}"
                );
            }
        }
    }
}

#[tokio::test]
async fn another_domain_key_opens_nothing() {
    let memory: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
    let pool = store_pool(memory);
    let segment = small_segment(&domain());
    let _receipt = pool.put(&segment).await.unwrap();
    let other = Domain::new(domain().id(), SecretKey::from_bytes([8; 32]), Encryption::Aes256Gcm);
    let error = pool.nodes()[0].read_footer(segment.key(), &other).await.unwrap_err();
    assert!(error.to_string().contains("another domain key"), "{error}");
    let container = &segment.containers()[0];
    let cipher = ContainerCipher::new(&other, container.id);
    let (index, entry) = container.directory.iter().next().unwrap();
    let mut stored = segment.pieces().concat()[64..64 + entry.stored_bytes as usize].to_vec();
    assert!(cipher.open_chunk(index, entry, &mut stored).is_err());
}

#[tokio::test]
async fn a_newer_format_is_refused_as_such() {
    let memory = Arc::new(InMemory::new());
    let pool = store_pool(Arc::clone(&memory) as Arc<dyn ObjectStore>);
    let segment = small_segment(&domain());
    let mut newer = segment.pieces().concat();
    newer[8] = 3;
    fuzzing::mend_checksum(&mut newer);
    memory.put(&Path::from(segment.key()), newer.into()).await.unwrap();
    let error = pool.nodes()[0].read_footer(segment.key(), &domain()).await.unwrap_err();
    assert!(matches!(error, PoolError::NewerFormat { found: 3, known: 2, .. }), "{error}");
}

#[test]
fn a_chunk_under_the_identity_of_another_is_refused() {
    let mut packer = packer(PackConfig::default());
    // Two chunks of the same shape.
    let shape = ChunkShape::new(8, 8).unwrap();
    packer.volume(volume(1), VolumePacking { dedupe: Dedupe::Off, shape, ..packing() });
    packer.run(Lba::ZERO, &[random(16, 1)]);
    let segment = finish(packer).segments.remove(0);
    let container = &segment.containers()[0];
    let object = segment.pieces().concat();
    let entries: Vec<_> = container.directory.iter().collect();
    let (first, second) = (entries[0], entries[1]);
    assert_eq!(first.1.stored_bytes, second.1.stored_bytes);
    let stored = |entry: cairn_segment_writer::ChunkEntry| {
        object[64 + entry.offset as usize..64 + (entry.offset + entry.stored_bytes) as usize].to_vec()
    };
    let cipher = ContainerCipher::new(&domain(), container.id);
    assert!(cipher.open_chunk(first.0, first.1, &mut stored(first.1)).is_ok());
    assert!(cipher.open_chunk(first.0, first.1, &mut stored(second.1)).is_err());
    assert!(cipher.open_chunk(second.0, second.1, &mut stored(first.1)).is_err());
}

#[test]
fn a_chunk_of_one_protection_is_refused_under_the_other() {
    let key = || SecretKey::from_bytes([7; 32]);
    let ways = [Encryption::Aes256Gcm, Encryption::Off].map(|way| Domain::new(domain().id(), key(), way));
    for (own, other) in [(0, 1), (1, 0)] {
        let segment = small_segment(&ways[own]);
        let object = segment.pieces().concat();
        assert!(open_chunks(&ways[own], &segment, &object).is_ok());
        assert!(open_chunks(&ways[other], &segment, &object).is_err());
    }
}

#[test]
fn without_encryption_anyone_can_read_and_check_a_chunk() {
    let segment = small_segment(&open_domain());
    let other_key = Domain::new(open_domain().id(), SecretKey::from_bytes([99; 32]), Encryption::Off);
    let opened = open_chunks(&other_key, &segment, &segment.pieces().concat()).unwrap();
    assert_eq!(opened, [text(1, 1), random(1, 2)]);
    let stored: Vec<_> = segment.stored_chunks().map(|(_, stored)| stored).collect();
    assert_eq!(stored[1][..BLOCK], random(1, 2)[..], "what does not compress is stored as it is");
}

#[test]
fn nothing_of_the_plaintext_is_in_the_object() {
    let mut packer = packer(PackConfig::default());
    packer.volume(volume(42), packing());
    packer.run(Lba::ZERO, &[text(8, 1), random(8, 2)]);
    let segment = finish(packer).segments.remove(0);
    let object = segment.pieces().concat();
    let volume_id = volume(42).volume;
    let random = random(8, 2);
    for secret in
        [&b"of a log that says"[..], volume_id.as_bytes(), &random[100..116], &random[20_000..20_016]]
    {
        assert!(!object.windows(secret.len()).any(|window| window == secret));
    }
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic_a_parser(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        fuzzing::directory(&bytes);
        fuzzing::footer(&bytes);
        fuzzing::frame(&bytes);
    }

    #[test]
    fn a_changed_directory_is_refused_or_opens_no_other_data(
        at in any::<prop::sample::Index>(), flip in 1u8..,
    ) {
        let segment = small_segment(&domain());
        let container = &segment.containers()[0];
        let object = segment.pieces().concat();
        let expected = open_chunks(&domain(), &segment, &object).unwrap();
        let mut bytes = container.directory.encode().to_vec();
        let at = at.index(bytes.len());
        bytes[at] ^= flip;
        if let Ok(directory) = ContainerDirectory::decode(&bytes) {
            let cipher = ContainerCipher::new(&domain(), container.id);
            for (index, entry) in directory.iter() {
                let start = 64 + entry.offset as usize;
                let Some(stored) = object.get(start..start + entry.stored_bytes as usize) else { continue };
                if let Ok(plaintext) = cipher.open_chunk(index, entry, &mut stored.to_vec()) {
                    prop_assert_eq!(&plaintext, &expected[index.get() as usize]);
                }
            }
        }
    }
}
