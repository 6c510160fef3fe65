//! The parsers behind seals and checksums, each on its own: container directories, footers, headers and trailers, and
//! the decompressor of chunks.
//!
//! What must hold: what is accepted is written back as the same; a chunk has the length its directory says or is refused; nothing
//! allocates more than its length justifies.

use crate::{Seeds, lie, memory};
use cairn_model::BLOCK_SIZE;
use cairn_segment_writer::fuzzing::{chunk, directory, footer, frame};

/// A chunk is decompressed into room for sixteen blocks; a thread's first one makes the context, some 160 KiB.
const CHUNK_BYTES_MAX: usize = 16 * BLOCK_SIZE as usize + (512 << 10);

pub(crate) fn run(bytes: &[u8]) {
    let Some((&kind, rest)) = bytes.split_first() else { return };
    memory::bounded(192 * bytes.len() + CHUNK_BYTES_MAX, || match kind % 4 {
        0 => directory(rest),
        1 => footer(rest),
        2 => frame(rest),
        _ => {
            let opened = chunk(rest);
            let raw = rest.first().is_some_and(|shape| (shape >> 4) & 1 == 0);
            if let Some(opened) = opened.filter(|_| raw) {
                let same = opened[..] == rest[1..] && !lie::told();
                assert!(same, "an uncompressed chunk is not what was sealed");
            }
        }
    });
}

pub(crate) fn seeds() -> Seeds {
    let fixture = super::whole::FIXTURE;
    let stored = include_bytes!("../../../../segment-writer/tests/fixtures/directory-v1.bin");
    let size = (fixture.len() as u64).to_le_bytes();
    let mut seeds = vec![
        ("directory".to_owned(), [&[0], &stored[..]].concat()),
        (
            "thin-directory".to_owned(),
            [&[0], &include_bytes!("../../../../segment-writer/tests/fixtures/directory-v2.bin")[..]]
                .concat(),
        ),
        ("frame".to_owned(), [&[2], &size[..], &fixture[..64], &fixture[fixture.len() - 32..]].concat()),
        ("raw-chunk".to_owned(), [&[3, 0x00][..], &[0x5a; 4096]].concat()),
        // One zstd frame of 4096 times the same byte, as the format's document has it: magic, header, an RLE block.
        (
            "zstd-chunk".to_owned(),
            vec![3, 0x10, 0x28, 0xb5, 0x2f, 0xfd, 0x60, 0x00, 0x0f, 0x03, 0x80, 0x00, b'x'],
        ),
        ("zstd-bomb".to_owned(), vec![3, 0x10, 0x28, 0xb5, 0x2f, 0xfd, 0x00, 0x58, 0xff, 0xff, 0x0f, b'x']),
    ];
    let offset = super::whole::footer_offset(stored).to_le_bytes();
    let prints: Vec<[u8; 16]> = (0..17).map(|block| [block; 16]).collect();
    for (name, prints) in
        [("footer-v1", None), ("footer", Some(&prints[..])), ("footer-without-fingerprints", Some(&[]))]
    {
        let plaintext = super::whole::footer_plaintext(stored, prints);
        seeds.push((name.to_owned(), [&[1], &offset[..], &plaintext].concat()));
    }
    let old = super::whole::FIXTURE_1;
    let size = (old.len() as u64).to_le_bytes();
    seeds.push(("frame-v1".to_owned(), [&[2], &size[..], &old[..64], &old[old.len() - 32..]].concat()));
    seeds
}
