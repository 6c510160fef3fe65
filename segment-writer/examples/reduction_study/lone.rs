//! Files by themselves, with nothing known around them: the worst case for an index that has one entry per chunk.

use crate::images::{Image, is_zero};
use crate::shipped::Study;
use crate::tally::{Tally, float};
use bytes::Bytes;
use cairn_model::crypto::{Encryption, SecretKey};
use cairn_model::{DomainId, Fingerprint, Lba};
use cairn_segment_writer::{ChunkShape, Domain, FingerprintKey};
use std::collections::HashSet;

/// Room for the lists of a few containers: for nearly all that is found, an entry of the index has to lead to it.
const INDEX_CACHE_BYTES: u64 = 512 << 10;

const FILES_MAX: usize = 2000;

/// About a file: blocks up to one that ends in zeros, or to a hole.
struct Piece {
    at: Lba,
    bytes: Bytes,
    prints: Vec<Fingerprint>,
}

/// Writes `known`, then files of `other` one at a time.
pub(crate) fn report(known: &[Image], other: &Image, shapes: &[ChunkShape]) {
    let domain = Domain::new(DomainId::DEFAULT, SecretKey::from_bytes([7; 32]), Encryption::Aes256Gcm);
    let key = domain.fingerprints();
    let blocks: HashSet<Fingerprint> = known
        .iter()
        .flat_map(Image::pieces)
        .flat_map(|(_, piece)| piece.chunks(4096).map(|block| key.of(block)).collect::<Vec<_>>())
        .collect();
    let pieces = pieces(other, &key);
    let findable =
        pieces.iter().flat_map(|piece| &piece.prints).filter(|print| blocks.contains(print)).count();
    let small = |piece: &&Piece| piece.prints.len() <= 3;
    let findable_small = pieces
        .iter()
        .filter(small)
        .flat_map(|piece| &piece.prints)
        .filter(|print| blocks.contains(print))
        .count();
    println!("| chunks | of known blocks, found | in files of at most 3 blocks |\n|---|---|---|");
    for shape in shapes {
        eprintln!("lone files {}/{}", shape.target(), shape.max());
        let mut tally = Tally::new(String::new());
        let mut study = Study::new(*shape, INDEX_CACHE_BYTES);
        for (number, image) in (1..).zip(known) {
            study.image(number, image, &mut tally);
        }
        let (mut found, mut found_small) = (0, 0);
        for piece in &pieces {
            let one = std::iter::once((piece.at, piece.bytes.clone()));
            let shared = study.try_out(one, &mut tally).shared_bytes / 4096;
            found += shared;
            found_small += if small(&piece) { shared } else { 0 };
        }
        println!(
            "| {}/{} | {:.1} % | {:.1} % |",
            shape.target(),
            shape.max(),
            100.0 * float(found) / float(findable as u64),
            100.0 * float(found_small) / float(findable_small as u64)
        );
    }
}

/// In the order of their content's names, which is none.
fn pieces(image: &Image, key: &FingerprintKey) -> Vec<Piece> {
    let mut pieces: Vec<Piece> = Vec::new();
    for (start, stretch) in image.pieces() {
        let mut begun = 0;
        for (number, block) in stretch.chunks(4096).enumerate() {
            let end = if is_zero(block) { number } else { number + 1 };
            if is_zero(block) || block.ends_with(&[0; 64]) {
                pieces.extend((begun < end).then(|| {
                    let bytes = stretch.slice(begun * 4096..end * 4096);
                    let prints = bytes.chunks(4096).map(|block| key.of(block)).collect();
                    Piece { at: start.plus(begun as u64), bytes, prints }
                }));
                begun = number + 1;
            }
        }
    }
    pieces.sort_by_key(|piece| piece.prints[0]);
    pieces.truncate(FILES_MAX);
    pieces
}
