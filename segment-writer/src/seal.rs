//! Sealing of chunks: AES-256-GCM under a key that belongs to one container alone.
//!
//! ```text
//! key         domain key, derived with "cairn 2026-11 container" and the container id
//! nonce       the chunk's index in the container
//! plaintext   the chunk as its codec left it
//! AAD         container id (16) | chunk index (u32 LE) | raw bytes (u32 LE) | codec (u8)
//! stored      ciphertext | tag (16)
//! ```
//!
//! A container id is fresh at every attempt and an index is used once, so a (key, nonce) pair never repeats. The AAD
//! binds a chunk to its identity: the bytes of another chunk, or under another directory entry, are refused.

use crate::compress::{Codec, decompress};
use crate::container::ChunkEntry;
use crate::error::Damaged;
use bytes::Bytes;
use cairn_model::crypto::{Cipher, SecretKey, TAG_BYTES};
use cairn_model::{ChunkIndex, ContainerId};

/// Context of the key derivation of containers.
const CONTAINER_CONTEXT: &str = "cairn 2026-11 container";

const AAD_BYTES: usize = 16 + 4 + 4 + 1;

/// Seals and opens the chunks of one container.
#[derive(Debug)]
pub struct ContainerCipher {
    container: ContainerId,
    cipher: Cipher,
}

impl ContainerCipher {
    pub fn new(domain_key: &SecretKey, container: ContainerId) -> Self {
        let key = domain_key.derive(CONTAINER_CONTEXT, container.as_bytes());
        Self { container, cipher: Cipher::new(&key) }
    }

    pub const fn container(&self) -> ContainerId {
        self.container
    }

    fn aad(&self, index: ChunkIndex, raw_bytes: u32, codec: Codec) -> [u8; AAD_BYTES] {
        let mut aad = [0; AAD_BYTES];
        aad[..16].copy_from_slice(self.container.as_bytes());
        aad[16..20].copy_from_slice(&index.get().to_le_bytes());
        aad[20..24].copy_from_slice(&raw_bytes.to_le_bytes());
        aad[24] = codec.to_byte();
        aad
    }

    /// Encrypts `bytes` in place; the tag goes behind them. Each index is sealed once.
    pub(crate) fn seal(
        &self,
        index: ChunkIndex,
        raw_bytes: u32,
        codec: Codec,
        bytes: &mut [u8],
    ) -> [u8; TAG_BYTES] {
        self.cipher.seal_in_place(u64::from(index.get()), &self.aad(index, raw_bytes, codec), bytes)
    }

    /// The plaintext of a chunk from its stored bytes, which are spoilt. CPU work: some 30 µs for 32 KiB.
    pub fn open_chunk(
        &self,
        index: ChunkIndex,
        entry: ChunkEntry,
        stored: &mut [u8],
    ) -> Result<Bytes, Damaged> {
        if stored.len() != entry.stored_bytes as usize {
            return Err(Damaged("a chunk has another length than its directory says"));
        }
        let aad = self.aad(index, entry.raw_bytes(), entry.codec);
        let opened = self
            .cipher
            .open_in_place(u64::from(index.get()), &aad, stored)
            .map_err(|_| Damaged("a chunk fails authentication"))?;
        decompress(entry.codec, opened, entry.raw_bytes() as usize).map(Bytes::from)
    }
}
