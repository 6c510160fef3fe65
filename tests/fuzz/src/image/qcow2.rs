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

/// The header that the gateway writes, and the smallest image; images of QEMU's are in the corpus.
pub(crate) fn seeds() -> Seeds {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("own.qcow2");
    ImageWriter::create(&path, ImageFormat::Qcow2, 200_000, false).unwrap().finish().unwrap();
    let header = std::fs::read(&path).unwrap()[..112].to_vec();
    let tiny = |version| (format!("tiny-{version}"), tiny(version));
    vec![("own-header".to_owned(), header), tiny(2), tiny(3)]
}

/// The smallest clusters: header, L1 table, L2 table, one cluster of data, one compressed, nothing that reading does not need.
fn tiny(version: u32) -> Vec<u8> {
    /// 512 bytes "cairncairn...", deflated.
    const COMPRESSED: [u8; 12] = [0x4b, 0x4e, 0xcc, 0x2c, 0xca, 0x4b, 0x1e, 0x25, 0x46, 0x2a, 0x1, 0x0];
    const CLUSTER: usize = 512;
    let mut image = vec![0; 5 * CLUSTER];
    let mut put = |at: usize, bytes: &[u8]| image[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, b"QFI\xfb");
    put(4, &version.to_be_bytes());
    put(20, &9_u32.to_be_bytes());
    put(24, &(40 * CLUSTER as u64 + 100).to_be_bytes());
    put(36, &1_u32.to_be_bytes());
    put(40, &(CLUSTER as u64).to_be_bytes());
    put(48, &(2 * CLUSTER as u64).to_be_bytes());
    put(56, &1_u32.to_be_bytes());
    put(96, &4_u32.to_be_bytes());
    put(100, &104_u32.to_be_bytes());
    put(CLUSTER, &((1_u64 << 63) | (2 * CLUSTER as u64)).to_be_bytes());
    for (number, entry) in [
        (0, (1 << 63) | (3 * CLUSTER as u64)),
        (2, u64::from(version - 2)),
        (3, (1 << 62) | (4 * CLUSTER as u64)),
        (40, (1 << 63) | (3 * CLUSTER as u64)),
    ] {
        put(2 * CLUSTER + number * 8, &entry.to_be_bytes());
    }
    put(3 * CLUSTER, &[0x61; CLUSTER]);
    put(4 * CLUSTER, &COMPRESSED);
    image
}
