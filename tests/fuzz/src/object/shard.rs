//! What a shard of an erasure-coded segment says about itself.
//!
//! What must hold: what is accepted is of the shape that the format's document states, as it is computed here anew, and is written back as the same.

use crate::{Seeds, lie, memory};
use cairn_segment_writer::fuzzing::shard_trailer;

const END_BYTES: usize = 32;

/// First whether the checksum is made right, which nothing random is; then the object's length; then its end.
pub(crate) fn run(bytes: &[u8]) {
    let Some((&kind, rest)) = bytes.split_first() else { return };
    let Some((size, tail)) = rest.split_first_chunk() else { return };
    let size = u64::from_le_bytes(*size);
    let mut tail = tail.to_vec();
    if kind & 1 == 1 {
        mend(&mut tail);
    }
    let accepted = memory::bounded(8 * tail.len() + (64 << 10), || shard_trailer(&tail, size));
    if accepted || lie::told() {
        assert!(is_sound(&tail, size) && !lie::told(), "a trailer that no version writes is accepted");
    }
}

fn mend(tail: &mut [u8]) {
    if let Some(at) = tail.len().checked_sub(16) {
        let sum = blake3::hash(&tail[..at]);
        tail[at..at + 8].copy_from_slice(&sum.as_bytes()[..8]);
    }
}

fn is_sound(tail: &[u8], size: u64) -> bool {
    let number = |at: usize, bytes: usize| {
        let mut number = [0; 8];
        number[..bytes].copy_from_slice(&tail[at..at + bytes]);
        u64::from_le_bytes(number)
    };
    let Some(end) = tail.len().checked_sub(END_BYTES) else { return false };
    let (data, parity, index) = (number(2, 1), number(3, 1), number(4, 1));
    let shard_bytes = number(end + 8, 8);
    data >= 2
        && parity >= 1
        && data + parity <= 32
        && index < data + parity
        && number(0, 2) == 1
        && number(5, 3) == 0
        && number(8, 4) == 65536
        && number(12, 4) == 0
        && shard_bytes == number(48, 8).div_ceil(data).div_ceil(64) * 64
        && number(end, 4) == end as u64
        && number(end + 4, 4) == 0
        && end as u64 == 56 + 8 * shard_bytes.div_ceil(65536)
        && size == shard_bytes + tail.len() as u64
        && &tail[end + 24..] == b"CAIRNSHD"
        && tail[end + 16..end + 24] == blake3::hash(&tail[..end + 16]).as_bytes()[..8]
}

/// A trailer of `ec:4+2` for a segment of so many bytes, with its object's length before it. Its checksum is left to be made right.
fn trailer(segment_bytes: u64, index: u8) -> Vec<u8> {
    let shard_bytes = segment_bytes.div_ceil(4).div_ceil(64) * 64;
    let mut tail = vec![1, 0, 4, 2, index, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0];
    tail.extend_from_slice(&[1; 16]);
    tail.extend_from_slice(&[2; 16]);
    tail.extend_from_slice(&segment_bytes.to_le_bytes());
    for region in 0..shard_bytes.div_ceil(65536) {
        tail.extend_from_slice(&[region as u8; 8]);
    }
    let length = tail.len() as u32;
    tail.extend_from_slice(&length.to_le_bytes());
    tail.extend_from_slice(&[0; 4]);
    tail.extend_from_slice(&shard_bytes.to_le_bytes());
    tail.extend_from_slice(&[0; 8]);
    tail.extend_from_slice(b"CAIRNSHD");
    let size = shard_bytes + tail.len() as u64;
    [&size.to_le_bytes()[..], &tail].concat()
}

pub(crate) fn seeds() -> Seeds {
    let whole = [&[1], &trailer(1_000_000, 5)[..]].concat();
    let mut cut = whole.clone();
    cut.truncate(60);
    [
        ("whole", whole),
        ("small", [&[1], &trailer(1, 0)[..]].concat()),
        ("unmended", [&[0], &trailer(300, 1)[..]].concat()),
        ("cut", cut),
    ]
    .map(|(name, bytes)| (name.to_owned(), bytes))
    .into()
}
