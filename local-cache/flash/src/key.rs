//! Chunks as foyer's keys.

use cairn_model::{ChunkId, ChunkIndex, ContainerId};
use foyer::{Code, Error, Result};
use std::hash::{BuildHasher, Hash, Hasher};
use std::io::{Read, Write};

/// Chunks whose neighbourhood is one for admission: about what one fetch brings.
const GROUP_CHUNKS: u32 = 64;

/// A chunk with its hash made by us, so that it is the same in every build.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Key(pub(crate) ChunkId);

impl Key {
    /// Container ids hold 80 random bits, so mixing them is all that is needed.
    pub(crate) fn hash64(self) -> u64 {
        mixed(self.0.container, u64::from(self.0.index.get()))
    }

    /// Names the neighbourhood of the chunk in its container.
    pub(crate) fn group64(self) -> u64 {
        mixed(self.0.container, u64::from(self.0.index.get() / GROUP_CHUNKS) | 1 << 63)
    }
}

fn mixed(container: ContainerId, number: u64) -> u64 {
    let (low, high) = container.as_bytes().split_at(8);
    let low = u64::from_le_bytes(low.try_into().expect("eight bytes"));
    let high = u64::from_le_bytes(high.try_into().expect("eight bytes"));
    mix(low ^ mix(high ^ mix(number.wrapping_add(0x9e37_79b9_7f4a_7c15))))
}

/// The finalizer of MurmurHash3: every bit of the input changes half the bits of the output.
pub(crate) fn mix(mut bits: u64) -> u64 {
    bits ^= bits >> 33;
    bits = bits.wrapping_mul(0xff51_afd7_ed55_8ccd);
    bits ^= bits >> 33;
    bits = bits.wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    bits ^ bits >> 33
}

impl Hash for Key {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.hash64());
    }
}

/// Passes on what [`Key`] hashed.
#[derive(Clone, Debug, Default)]
pub(crate) struct KeyHashing;

impl BuildHasher for KeyHashing {
    type Hasher = Passed;

    fn build_hasher(&self) -> Passed {
        Passed::default()
    }
}

/// A hasher for what is a hash already.
#[derive(Clone, Debug, Default)]
pub(crate) struct Passed(u64);

impl Hasher for Passed {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.0 = mix(self.0 ^ u64::from(byte));
        }
    }

    fn write_u64(&mut self, hash: u64) {
        self.0 = hash;
    }
}

/// foyer asks for this of every key; our engine has a format of its own and does not use it.
impl Code for Key {
    fn encode(&self, writer: &mut impl Write) -> Result<()> {
        writer.write_all(self.0.container.as_bytes()).map_err(Error::io_error)?;
        writer.write_all(&self.0.index.get().to_le_bytes()).map_err(Error::io_error)
    }

    fn decode(reader: &mut impl Read) -> Result<Self> {
        let (mut container, mut index) = ([0; 16], [0; 4]);
        reader.read_exact(&mut container).map_err(Error::io_error)?;
        reader.read_exact(&mut index).map_err(Error::io_error)?;
        Ok(Self(ChunkId {
            container: ContainerId::from_bytes(container),
            index: ChunkIndex::new(u32::from_le_bytes(index)),
        }))
    }

    fn estimated_size(&self) -> usize {
        20
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(container: u8, index: u32) -> Key {
        Key(ChunkId { container: ContainerId::from_bytes([container; 16]), index: ChunkIndex::new(index) })
    }

    #[test]
    fn a_key_survives_its_encoding() {
        let mut bytes = Vec::new();
        key(7, 9).encode(&mut bytes).unwrap();
        assert_eq!(bytes.len(), key(7, 9).estimated_size());
        assert_eq!(Key::decode(&mut bytes.as_slice()).unwrap(), key(7, 9));
    }

    #[test]
    fn chunks_of_one_container_have_different_hashes_and_share_their_neighbourhood() {
        assert_ne!(key(1, 0).hash64(), key(1, 1).hash64());
        assert_ne!(key(1, 0).hash64(), key(2, 0).hash64());
        assert_eq!(key(1, 0).group64(), key(1, 1).group64());
        assert_ne!(key(1, 0).group64(), key(1, GROUP_CHUNKS).group64());
        assert_ne!(key(1, 0).group64(), key(1, 0).hash64());
    }
}
