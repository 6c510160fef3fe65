//! What the writers put into a block, so that a reader can tell which write it sees, and whether it sees all of it.
//!
//! ```text
//! block, 4096 bytes = 8 sectors of 512, so that a block torn at any sector shows
//!   sector: magic 8 | volume 8 | block 8 | write number 8 | sector 8 | fill 472, derived from the five
//! ```

use crate::random::Random;
use std::fmt;

pub const BLOCK: usize = 4096;
const SECTOR: usize = 512;
const MAGIC: u64 = 0x4341_4952_4e5f_5354;
const HEADER: usize = 40;

/// What a block holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Seen {
    Zero,
    Write(u64),
}

/// What is wrong with a block on its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Damage {
    /// Sectors of different writes, or of a write and of nothing.
    Torn { sectors: Vec<Option<u64>> },
    /// A whole stamp, but of another place or another volume.
    Misplaced { volume: u64, block: u64 },
    /// Bytes that no write put there.
    Alien { sector: usize },
}

impl fmt::Display for Damage {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Damage::Torn { sectors } => write!(formatter, "torn: its sectors are of the writes {sectors:?}"),
            Damage::Misplaced { volume, block } => {
                write!(formatter, "holds the bytes of block {block} of volume {volume}")
            }
            Damage::Alien { sector } => write!(formatter, "sector {sector} holds bytes that nobody wrote"),
        }
    }
}

/// Fills `bytes`, whole blocks beginning at `first_block`, with the stamps of one write.
pub fn stamp(bytes: &mut [u8], volume: u64, first_block: u64, write: u64) {
    for (block, bytes) in (first_block..).zip(bytes.chunks_exact_mut(BLOCK)) {
        for (sector, bytes) in (0_u64..).zip(bytes.chunks_exact_mut(SECTOR)) {
            stamp_sector(bytes, [MAGIC, volume, block, write, sector]);
        }
    }
}

fn stamp_sector(bytes: &mut [u8], header: [u64; 5]) {
    for (field, bytes) in header.iter().zip(bytes.chunks_exact_mut(8)) {
        bytes.copy_from_slice(&field.to_le_bytes());
    }
    let seed = header.iter().fold(0_u64, |mixed, field| mixed.rotate_left(23) ^ field);
    Random::seeded(seed).fill(&mut bytes[HEADER..]);
}

/// Reads one block back.
pub fn read(bytes: &[u8], volume: u64, block: u64) -> Result<Seen, Damage> {
    let mut writes = Vec::with_capacity(BLOCK / SECTOR);
    let mut home = (volume, block);
    for (sector, bytes) in bytes.chunks_exact(SECTOR).enumerate() {
        if bytes.iter().all(|byte| *byte == 0) {
            writes.push(None);
            continue;
        }
        let field =
            |index: usize| u64::from_le_bytes(bytes[index * 8..index * 8 + 8].try_into().expect("8 bytes"));
        let header: [u64; 5] = std::array::from_fn(field);
        let mut expected = [0; SECTOR];
        stamp_sector(&mut expected, header);
        if header[0] != MAGIC || header[4] != sector as u64 || bytes != expected {
            return Err(Damage::Alien { sector });
        }
        if (header[1], header[2]) != (volume, block) {
            home = (header[1], header[2]);
        }
        writes.push(Some(header[3]));
    }
    if writes.iter().any(|write| *write != writes[0]) {
        return Err(Damage::Torn { sectors: writes });
    }
    if home != (volume, block) {
        return Err(Damage::Misplaced { volume: home.0, block: home.1 });
    }
    Ok(writes[0].map_or(Seen::Zero, Seen::Write))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(write: u64) -> Vec<u8> {
        let mut bytes = vec![0; BLOCK];
        stamp(&mut bytes, 7, 5, write);
        bytes
    }

    #[test]
    fn a_stamped_block_tells_its_write() {
        assert_eq!(read(&block(9), 7, 5), Ok(Seen::Write(9)));
        assert_eq!(read(&[0; BLOCK], 7, 5), Ok(Seen::Zero));
    }

    #[test]
    fn a_block_of_two_writes_is_torn() {
        let mut bytes = block(9);
        bytes[1024..].copy_from_slice(&block(10)[1024..]);
        assert!(matches!(read(&bytes, 7, 5), Err(Damage::Torn { .. })));
    }

    #[test]
    fn a_block_half_written_over_nothing_is_torn() {
        let mut bytes = block(9);
        bytes[3584..].fill(0);
        assert!(matches!(read(&bytes, 7, 5), Err(Damage::Torn { .. })));
    }

    #[test]
    fn a_block_of_another_place_or_volume_is_misplaced() {
        assert_eq!(read(&block(9), 7, 6), Err(Damage::Misplaced { volume: 7, block: 5 }));
        assert_eq!(read(&block(9), 8, 5), Err(Damage::Misplaced { volume: 7, block: 5 }));
    }

    #[test]
    fn one_changed_bit_is_alien() {
        let mut bytes = block(9);
        bytes[2000] ^= 1;
        assert_eq!(read(&bytes, 7, 5), Err(Damage::Alien { sector: 3 }));
    }
}
