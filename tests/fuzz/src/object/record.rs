//! The record of the catalog: its pieces and manifests, as whoever can write to the pool may make them, and what is behind their seals.
//!
//! What must hold: nobody makes one up; what is accepted behind the seal is read back as it was written; nothing allocates more than its length justifies.

use crate::{Seeds, lie, memory};
use cairn_segment_writer::fuzzing::{record_manifest, record_piece};

pub(crate) fn run(bytes: &[u8]) {
    let Some((&kind, rest)) = bytes.split_first() else { return };
    // Compression has contexts of its own.
    let accepted = memory::bounded(512 * bytes.len() + (4 << 20), || {
        if kind & 1 == 0 { record_piece(rest) } else { record_manifest(rest) }
    });
    assert!(!(accepted && lie::told()), "something is accepted that is none");
}

pub(crate) fn seeds() -> Seeds {
    let piece = [&[0, 4][..], b"head", &[2, 3], b"row", &[0]].concat();
    let mut manifest = vec![1, 1, 10];
    manifest.extend_from_slice(&[3, 1]);
    manifest.extend_from_slice(&[7; 32]);
    manifest.extend_from_slice(&[100, 2]);
    let object = [&[0][..], b"CAIRNREC", &[1], &[0; 7], &[1; 16], &[0; 40]].concat();
    [("piece", piece), ("manifest", manifest), ("object", object)]
        .map(|(name, bytes)| (name.to_owned(), bytes))
        .into()
}
