//! Images of disks, as somebody else made them.

pub(crate) mod qcow2;
pub(crate) mod raw;
mod reference;

use cairn_gateway::image::{ImageError, ImageFormat, ImageReader, Piece};
use rustix::fs::{MemfdFlags, memfd_create};
use std::fs::File;
use std::ops::ControlFlow;
use std::os::fd::AsRawFd;
use std::path::PathBuf;

/// Pieces and bytes of data that are looked at; an image may claim 64 TiB of either.
const PIECES_MAX: usize = 4096;
const DATA_BYTES_MAX: u64 = 8 << 20;

/// A file in memory and a path to it.
fn memory_file() -> (File, PathBuf) {
    let file = File::from(memfd_create("cairn-fuzz", MemfdFlags::CLOEXEC).unwrap());
    let path = PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()));
    (file, path)
}

/// Reads an image from its beginning: its size and its pieces, and whether that was all of it.
fn read(path: &std::path::Path, format: Option<ImageFormat>) -> Result<(u64, Vec<Piece>, bool), ImageError> {
    let reader = ImageReader::open(path, format)?;
    let size = reader.size_bytes();
    let (mut pieces, mut data, mut whole) = (Vec::new(), 0, true);
    reader.read_pieces(|piece| {
        if let Piece::Data { bytes, .. } = &piece {
            data += bytes.len() as u64;
        }
        pieces.push(piece);
        if pieces.len() < PIECES_MAX && data < DATA_BYTES_MAX {
            return ControlFlow::Continue(());
        }
        whole = false;
        ControlFlow::Break(())
    })?;
    Ok((size, pieces, whole))
}

/// Pieces follow one another from the first byte to the last of the disk.
fn check_order(size: u64, pieces: &[Piece], whole: bool) {
    let mut next = 0;
    for piece in pieces {
        let offset = match piece {
            Piece::Data { offset, .. } | Piece::Zero { offset, .. } => *offset,
        };
        assert_eq!(offset, next, "pieces follow one another");
        assert!(!piece.is_empty(), "an empty piece at {offset}");
        next = offset + piece.len();
        assert!(next <= size, "a piece goes beyond the disk");
    }
    assert!(!whole || next == size, "an image of {size} bytes ended at {next}");
}
