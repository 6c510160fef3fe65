//! qcow2 images of any bytes.
//!
//! What must hold: reading ends; what is read of a cluster is what another reader finds at its place in the file, and nothing
//! stands for bytes that the file does not have; a header that is refused is never read past. Only the library that reads below
//! the gateway's checks may panic, which the gateway catches (`ImageReaderDied`); a panic of anything else fails.

use super::reference::{Cluster, Reference};
use super::{check_order, memory_file, read};
use crate::{Seeds, lie, memory};
use cairn_gateway::fuzzing::qcow2_header;
use cairn_gateway::image::{ImageFormat, ImageWriter, Piece};
use std::os::unix::fs::FileExt;

/// What the reader may hold: pieces, tables, and its library's caches.
const BYTES_MAX: usize = 96 << 20;

pub(crate) fn run(bytes: &[u8]) {
    let accepted = qcow2_header(bytes);
    let (file, path) = memory_file();
    file.write_all_at(bytes, 0).unwrap();
    let read = || memory::bounded(BYTES_MAX, || read(&path, Some(ImageFormat::Qcow2)));
    let Some(Ok((size, pieces, whole))) = crate::expected_panic::tolerated(read) else { return };
    assert!(accepted, "an image is read whose header was refused");
    check_order(size, &pieces, whole);
    let reference = Reference::new(bytes);
    for piece in &pieces {
        check(&reference, piece);
    }
}

fn check(reference: &Reference<'_>, piece: &Piece) {
    let cluster_bytes = reference.cluster_bytes();
    let start = match piece {
        Piece::Data { offset, .. } | Piece::Zero { offset, .. } => *offset,
    };
    let (mut at, end) = (start, start + piece.len());
    // A hole may be terabytes: its beginning tells.
    let end = end.min(start + cluster_bytes * 256);
    while at < end {
        let within = at % cluster_bytes;
        let next = (at - within + cluster_bytes).min(end);
        let length = usize::try_from(next - at).unwrap();
        let expected = match reference.cluster(at) {
            Cluster::Compressed => None,
            Cluster::Zero => Some(vec![0; length]),
            Cluster::At(place) => {
                let bytes = reference.bytes(place + within, length);
                Some(bytes.expect("data stands for bytes that the file does not have").to_vec())
            }
            Cluster::Beyond => panic!("a table for byte {at} is not in the file and was read"),
        };
        if let Some(expected) = expected {
            let same = match piece {
                Piece::Data { bytes, .. } => {
                    let from = usize::try_from(at - start).unwrap();
                    bytes[from..from + length] == expected && !lie::told()
                }
                Piece::Zero { .. } => expected.iter().all(|&byte| byte == 0),
            };
            assert!(same, "byte {at} of the disk is not what its cluster has");
        }
        at = next;
    }
}

/// An image that the gateway writes; images of QEMU's are in the corpus.
pub(crate) fn seeds() -> Seeds {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("own.qcow2");
    let mut writer = ImageWriter::create(&path, ImageFormat::Qcow2, 200_000, false).unwrap();
    writer.write(65_536, &[0x61; 512]).unwrap();
    writer.finish().unwrap();
    let mut own = std::fs::read(&path).unwrap();
    own.truncate(own.iter().rposition(|&byte| byte != 0).unwrap() + 1);
    let header = own[..112].to_vec();
    vec![("own-cut".to_owned(), own), ("header".to_owned(), header)]
}
