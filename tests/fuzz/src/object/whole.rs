//! Whole segments, read as the gateway and the recovery of a lost catalog read them: damaged ones, and authentic ones whose
//! footer says anything.
//!
//! What must hold: what is read of a damaged segment is what was written or an error, chunk by chunk, also when the damage hides
//! behind a mended checksum; an authentic footer that makes no sense leads to errors, never to a panic or to
//! bytes of another chunk.

use super::{KEY, block_on, domain, node_id, open_domain, pool_with};
use crate::input::Input;
use crate::{Seeds, lie, memory};
use bytes::Bytes;
use cairn_model::{ObjectPlace, Placement, varint};
use cairn_segment_writer::fuzzing::{mend_checksum, sealed_object};
use cairn_segment_writer::{ContainerCipher, ContainerDirectory, ContainerLocation, Domain, Footer, Pool};
use std::sync::OnceLock;

pub(super) const FIXTURE: &[u8] =
    include_bytes!("../../../../segment-writer/tests/fixtures/segment-v2-0.bin");
/// The same without encryption.
const OPEN_FIXTURE: &[u8] = include_bytes!("../../../../segment-writer/tests/fixtures/segment-v2-open-0.bin");
pub(super) const FIXTURE_1: &[u8] =
    include_bytes!("../../../../segment-writer/tests/fixtures/segment-v1.bin");

const HEADER_BYTES: usize = 64;

/// A segment as it is read back.
#[derive(Debug)]
struct Opened {
    footer: Footer,
    /// Of each container, its chunks; what cannot be read is `None`.
    chunks: Vec<Vec<Option<Bytes>>>,
}

pub(crate) fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let kind = input.byte();
    if kind & 1 == 0 {
        damaged(&mut input, kind & 2 != 0, fixture(kind >> 2));
    } else {
        let domain = if kind & 4 == 0 { domain() } else { open_domain() };
        let containers = input.string().to_vec();
        let object = sealed_object(&domain, &containers, input.rest());
        // What a footer claims about chunks that are not there leads nowhere.
        if let Some(opened) = memory::bounded(192 * object.len() + (4 << 20), || open(&object, &domain)) {
            let told = opened.chunks.iter().flatten().any(Option::is_some) || lie::told();
            assert!(!told, "a chunk came out of a segment that holds none: {opened:?}");
        }
    }
}

/// A sound segment, and what it says and holds.
struct Fixture {
    object: &'static [u8],
    domain: Domain,
    opened: Opened,
}

fn fixture(kind: u8) -> &'static Fixture {
    static FIXTURES: OnceLock<[Fixture; 3]> = OnceLock::new();
    let fixtures = FIXTURES.get_or_init(|| {
        [(FIXTURE, domain()), (OPEN_FIXTURE, open_domain()), (FIXTURE_1, domain())].map(|(object, domain)| {
            let opened = open(object, &domain).expect("the fixture opens");
            assert!(opened.chunks.iter().flatten().all(Option::is_some), "all of the fixture is readable");
            Fixture { object, domain, opened }
        })
    });
    &fixtures[usize::from(kind) % fixtures.len()]
}

/// The fixture with damage in up to eight places.
fn damaged(input: &mut Input<'_>, mend: bool, sound: &Fixture) {
    let mut object = sound.object.to_vec();
    for _ in 0..8 {
        if input.is_empty() {
            break;
        }
        let (kind, at) = (input.byte(), usize::from(input.number::<u16>()));
        // The ends of a segment say where everything is.
        let at = match kind & 3 {
            0 => at % object.len(),
            1 => at % HEADER_BYTES,
            _ => object.len() - 1 - at % object.len().min(700),
        } % object.len();
        match kind >> 2 & 3 {
            0 | 1 => object[at] ^= input.byte().max(1),
            2 => object.truncate(at.max(1)),
            _ => {
                let from = usize::from(input.number::<u16>()) % object.len();
                let length = usize::from(input.byte()).min(object.len() - at.max(from));
                object.copy_within(from..from + length, at);
            }
        }
    }
    if mend {
        mend_checksum(&mut object);
    }
    let original = &sound.opened;
    let Some(mut found) = open(&object, &sound.domain) else {
        assert_ne!(object, sound.object, "a sound segment is refused");
        return;
    };
    if lie::told() {
        found.footer.index += 1;
    }
    assert_eq!(found.footer, original.footer, "a damaged footer is believed");
    for (found, original) in found.chunks.iter().flatten().zip(original.chunks.iter().flatten()) {
        assert!(found.is_none() || found == original, "a damaged chunk is believed");
    }
    let readable = |opened: &Opened| opened.chunks.iter().flatten().flatten().count();
    assert!(object != sound.object || readable(&found) == readable(original), "a sound chunk is refused");
}

fn open(object: &[u8], domain: &Domain) -> Option<Opened> {
    let pool = pool_with(object);
    let place = ObjectPlace {
        key: KEY.to_owned(),
        length_bytes: object.len() as u64,
        placement: Placement::single(node_id()),
    };
    let footer = block_on(pool.nodes()[0].read_footer(KEY, domain)).ok()?;
    let chunks = footer.containers.iter().map(|container| {
        let location = ContainerLocation { place: place.clone(), offset: container.offset };
        let cipher = ContainerCipher::new(domain, container.id);
        read(&pool, &location, &container.directory, &cipher)
    });
    let chunks = chunks.collect();
    Some(Opened { footer, chunks })
}

/// The first chunks of a container, one by one.
fn read(
    pool: &Pool,
    location: &ContainerLocation,
    directory: &ContainerDirectory,
    cipher: &ContainerCipher,
) -> Vec<Option<Bytes>> {
    let count = u32::try_from(directory.len()).unwrap().min(16);
    let one = |index| {
        let chunks = block_on(pool.read_chunks(location, directory, cipher, index..index + 1, None)).ok()?;
        Some(chunks.into_iter().next().expect("one chunk was asked for").1)
    };
    (0..count).map(one).collect()
}

/// Where a footer is whose segment has one container with this directory.
pub(super) fn footer_offset(directory: &[u8]) -> u64 {
    let decoded = ContainerDirectory::decode(directory).unwrap();
    HEADER_BYTES as u64 + u64::from(decoded.stored_bytes())
}

/// A footer of one container and one volume without changes; from version 2 on with these fingerprints.
pub(super) fn footer_plaintext(directory: &[u8], fingerprints: Option<&[[u8; 16]]>) -> Vec<u8> {
    let mut out = [&[3; 16][..], &[2; 16], &[1], &[4; 16]].concat();
    out.extend_from_slice(&[0, 1, 1]);
    out.extend_from_slice(&[8; 16]);
    varint::put(&mut out, HEADER_BYTES as u64);
    varint::put(&mut out, directory.len() as u64);
    out.extend_from_slice(directory);
    if let Some(fingerprints) = fingerprints {
        varint::put(&mut out, fingerprints.len() as u64);
        out.extend_from_slice(fingerprints.as_flattened());
    }
    out.push(1);
    out.extend_from_slice(&[[5; 16], [6; 16]].concat());
    out.extend_from_slice(&[5, 10, 20]);
    let delta = cairn_model::MapDelta::default().encode().unwrap();
    varint::put(&mut out, delta.len() as u64);
    out.extend_from_slice(&delta);
    out
}

pub(crate) fn seeds() -> Seeds {
    // A footer without containers, and one of a container with one chunk that fills what is there.
    let empty = [&[1, 0][..], &[3; 32], &[0, 0, 1, 0, 0]].concat();
    let directory = [1, 1, 0x10, 100];
    let one = |kind, fingerprints: &[[u8; 16]]| {
        [&[kind, 100][..], &[0x77; 100], &footer_plaintext(&directory, Some(fingerprints))].concat()
    };
    vec![
        ("sound".to_owned(), vec![0]),
        ("flipped".to_owned(), vec![0, 0, 0, 2, 1]),
        ("footer-flipped".to_owned(), vec![2, 2, 60, 0, 1]),
        ("trailer-flipped".to_owned(), vec![0, 2, 1, 0, 1]),
        ("header-flipped".to_owned(), vec![2, 1, 20, 0, 1]),
        ("cut".to_owned(), vec![0, 10, 10, 0]),
        ("moved".to_owned(), vec![0, 12, 100, 0, 200, 1, 50]),
        ("authentic-empty".to_owned(), empty),
        ("authentic-one".to_owned(), one(1, &[])),
        ("authentic-fingerprinted".to_owned(), one(1, &[[9; 16]])),
        ("authentic-too-many-fingerprints".to_owned(), one(1, &[[9; 16]; 2])),
        ("authentic-open".to_owned(), one(5, &[[9; 16]])),
        ("open-sound".to_owned(), vec![4]),
        ("open-flipped".to_owned(), vec![4, 0, 0, 2, 1]),
        ("open-footer-flipped".to_owned(), vec![6, 2, 60, 0, 1]),
        ("open-header-flipped".to_owned(), vec![6, 1, 10, 0, 1]),
        ("version-1-sound".to_owned(), vec![8]),
        ("version-1-footer-flipped".to_owned(), vec![10, 2, 60, 0, 1]),
    ]
}
