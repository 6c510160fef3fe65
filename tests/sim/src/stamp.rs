//! What a guest writes into a sector, so that a reader can tell whose it is and whether it is whole.
//!
//! ```text
//! sector, 512 bytes: magic 8 | volume 8 | sector 8 | write number 8 | fill 480, derived from the four
//! common sector:     magic 8 | colour 8 | part of the block 8 | 0 8 | fill 480
//! ```
//!
//! A common block is the same wherever it is written, in any volume: something to store once. No colour is written twice to one place, so
//! the place and the colour tell the write (see `volume`).
//!
//! The fill of even writes and colours is one word again and again, which compresses; that of odd ones is noise, which does not.

use crate::steps::BLOCK_SECTORS;
use system_tests::random::Random;

pub(crate) const SECTOR: usize = 512;
const HEADER: usize = 32;
const MAGIC: u64 = 0x4341_4952_4e53_494d;
const COMMON_MAGIC: u64 = 0x4341_4952_4e43_4f4d;
/// Common blocks that differ.
pub(crate) const COLOURS: u64 = 64;

/// What a sector holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Held {
    Zero,
    /// The stamp of this write.
    Write(u64),
    /// A part of a common block of this colour.
    Common(u64),
}

/// Fills `bytes`, whole sectors beginning at `first_sector`, with the stamps of one write.
pub(crate) fn stamp(bytes: &mut [u8], volume: u64, first_sector: u64, write: u64) {
    for (sector, bytes) in (first_sector..).zip(bytes.chunks_exact_mut(SECTOR)) {
        stamp_sector(bytes, [MAGIC, volume, sector, write]);
    }
}

/// Fills `bytes`, one block, with a common one.
pub(crate) fn colour(bytes: &mut [u8], colour: u64) {
    for (part, bytes) in (0..).zip(bytes.chunks_exact_mut(SECTOR)) {
        stamp_sector(bytes, [COMMON_MAGIC, colour, part, 0]);
    }
}

fn stamp_sector(bytes: &mut [u8], header: [u64; 4]) {
    for (field, bytes) in header.iter().zip(bytes.chunks_exact_mut(8)) {
        bytes.copy_from_slice(&field.to_le_bytes());
    }
    let seed = header.iter().fold(0_u64, |mixed, field| mixed.rotate_left(23) ^ field);
    let mut random = Random::seeded(seed);
    let tells = if header[0] == COMMON_MAGIC { header[1] } else { header[3] };
    if tells.is_multiple_of(2) {
        let word = random.word().to_le_bytes();
        bytes[HEADER..].chunks_exact_mut(8).for_each(|bytes| bytes.copy_from_slice(&word));
    } else {
        random.fill(&mut bytes[HEADER..]);
    }
}

/// Reads one sector back; the error says what is wrong with it.
pub(crate) fn read(bytes: &[u8], volume: u64, sector: u64) -> Result<Held, String> {
    if bytes.iter().all(|byte| *byte == 0) {
        return Ok(Held::Zero);
    }
    let field = |index: usize| u64::from_le_bytes(bytes[index * 8..][..8].try_into().expect("8 bytes"));
    let header: [u64; 4] = std::array::from_fn(field);
    let mut expected = [0; SECTOR];
    stamp_sector(&mut expected, header);
    if ![MAGIC, COMMON_MAGIC].contains(&header[0]) || bytes != expected {
        return Err(format!("sector {sector} holds bytes that nobody wrote"));
    }
    if header[0] == COMMON_MAGIC {
        let (colour, part) = (header[1], header[2]);
        if part == sector % BLOCK_SECTORS {
            return Ok(Held::Common(colour));
        }
        return Err(format!("sector {sector} holds part {part} of common block {colour}"));
    }
    if (header[1], header[2]) != (volume, sector) {
        let (volume, home, write) = (header[1], header[2], header[3]);
        return Err(format!("sector {sector} holds write {write} of sector {home} of volume {volume}"));
    }
    Ok(Held::Write(header[3]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sector_tells_its_write_and_any_other_byte_is_seen() {
        for write in [4, 5] {
            let mut bytes = [0; SECTOR];
            stamp(&mut bytes, 7, 9, write);
            assert_eq!(read(&bytes, 7, 9), Ok(Held::Write(write)));
            assert!(read(&bytes, 7, 8).is_err() && read(&bytes, 6, 9).is_err());
            for at in 0..SECTOR {
                let mut damaged = bytes;
                damaged[at] ^= 1;
                assert!(read(&damaged, 7, 9).is_err(), "byte {at}");
            }
        }
        assert_eq!(read(&[0; SECTOR], 7, 9), Ok(Held::Zero));
    }

    #[test]
    fn a_common_block_is_the_same_everywhere_and_any_other_byte_is_seen() {
        let mut bytes = [0; SECTOR * 8];
        colour(&mut bytes, 5);
        for (sector, bytes) in (16..).zip(bytes.chunks_exact(SECTOR)) {
            assert_eq!(read(bytes, 7, sector), Ok(Held::Common(5)));
            assert_eq!(read(bytes, 6, sector + 8), Ok(Held::Common(5)));
            assert!(read(bytes, 7, sector + 1).is_err());
            for at in 0..SECTOR {
                let mut damaged = bytes.to_vec();
                damaged[at] ^= 1;
                assert!(read(&damaged, 7, sector).is_err(), "byte {at}");
            }
        }
    }
}
