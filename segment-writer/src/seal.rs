//! Sealing of chunks: AES-256-GCM under a key that belongs to one container alone, or a checksum where the domain has no
//! encryption.
//!
//! ```text
//! encrypted
//!   key         domain key, derived with "cairn 2026-11 container" and the container id
//!   nonce       the chunk's index in the container
//!   plaintext   the chunk as its codec left it
//!   AAD         container id (16) | chunk index (u32 LE) | raw bytes (u32 LE) | codec (u8)
//!   stored      ciphertext | tag (16)
//!
//! not encrypted
//!   key         the container id, derived with "cairn 2026-11 container checksum": no secret
//!   stored      the chunk as its codec left it | first 16 bytes of keyed BLAKE3(chunk | AAD)
//! ```
//!
//! A container id is fresh at every attempt and an index is used once, so a (key, nonce) pair never repeats. The AAD
//! binds a chunk to its identity: the bytes of another chunk, or under another directory entry, are refused. So are those of an
//! encrypted domain in one without encryption, and the other way round. The checksum notices damage, not malice.

use crate::compress::{Codec, decompress};
use crate::container::ChunkEntry;
use crate::domain::Domain;
use crate::error::Damaged;
use bytes::Bytes;
use cairn_model::crypto::{Cipher, Encryption, TAG_BYTES, Unauthentic};
use cairn_model::{ChunkIndex, ContainerId};

/// Contexts of the key derivation of one kind of sealed bytes.
pub(crate) struct Purpose {
    sealed: &'static str,
    checked: &'static str,
}

const CONTAINER: Purpose =
    Purpose { sealed: "cairn 2026-11 container", checked: "cairn 2026-11 container checksum" };

pub(crate) const FOOTER: Purpose =
    Purpose { sealed: "cairn 2026-11 segment footer", checked: "cairn 2026-11 segment footer checksum" };

/// What is put behind stored bytes, and must be there when they are read.
#[derive(Debug)]
pub(crate) enum Protection {
    /// The tag of the AEAD.
    Sealed(Cipher),
    /// A checksum under a key that is no secret.
    Checked([u8; 32]),
}

impl Protection {
    /// For the bytes of `identity`, which is never used again.
    pub(crate) fn new(domain: &Domain, purpose: &Purpose, identity: &[u8]) -> Self {
        match domain.encryption() {
            Encryption::Aes256Gcm => {
                Self::Sealed(Cipher::new(&domain.key().derive(purpose.sealed, identity)))
            }
            Encryption::Off => Self::Checked(blake3::derive_key(purpose.checked, identity)),
        }
    }

    /// Makes `bytes` what is stored, but for the tag that is returned and goes behind them. Each counter is used once.
    pub(crate) fn seal_in_place(&self, counter: u64, aad: &[u8], bytes: &mut [u8]) -> [u8; TAG_BYTES] {
        match self {
            Self::Sealed(cipher) => cipher.seal_in_place(counter, aad, bytes),
            Self::Checked(key) => checksum(key, bytes, aad),
        }
    }

    /// Makes `stored | tag` what was sealed.
    pub(crate) fn open_in_place<'a>(
        &self,
        counter: u64,
        aad: &[u8],
        stored: &'a mut [u8],
    ) -> Result<&'a mut [u8], Unauthentic> {
        match self {
            Self::Sealed(cipher) => cipher.open_in_place(counter, aad, stored),
            Self::Checked(key) => {
                let (bytes, tag) = stored.split_last_chunk_mut::<TAG_BYTES>().ok_or(Unauthentic)?;
                if *tag == checksum(key, bytes, aad) { Ok(bytes) } else { Err(Unauthentic) }
            }
        }
    }
}

/// The AAD has a fixed length per purpose, and comes last: hashing is fastest from an even beginning.
fn checksum(key: &[u8; 32], bytes: &[u8], aad: &[u8]) -> [u8; TAG_BYTES] {
    let mut hasher = blake3::Hasher::new_keyed(key);
    hasher.update(bytes).update(aad);
    *hasher.finalize().as_bytes().first_chunk().expect("a hash has 32 bytes")
}

const AAD_BYTES: usize = 16 + 4 + 4 + 1;

/// Seals and opens the chunks of one container.
#[derive(Debug)]
pub struct ContainerCipher {
    container: ContainerId,
    protection: Protection,
}

impl ContainerCipher {
    pub fn new(domain: &Domain, container: ContainerId) -> Self {
        Self { container, protection: Protection::new(domain, &CONTAINER, container.as_bytes()) }
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

    /// Seals `bytes` in place; the tag goes behind them. Each index is sealed once.
    pub(crate) fn seal(
        &self,
        index: ChunkIndex,
        raw_bytes: u32,
        codec: Codec,
        bytes: &mut [u8],
    ) -> [u8; TAG_BYTES] {
        let aad = self.aad(index, raw_bytes, codec);
        self.protection.seal_in_place(u64::from(index.get()), &aad, bytes)
    }

    /// Whether these are the chunk's stored bytes. `scratch` is spoilt instead of them.
    pub fn verify_chunk(
        &self,
        index: ChunkIndex,
        entry: ChunkEntry,
        stored: &[u8],
        scratch: &mut Vec<u8>,
    ) -> Result<(), Damaged> {
        scratch.clear();
        scratch.extend_from_slice(stored);
        self.unseal(index, entry, scratch).map(drop)
    }

    fn unseal<'a>(
        &self,
        index: ChunkIndex,
        entry: ChunkEntry,
        stored: &'a mut [u8],
    ) -> Result<&'a mut [u8], Damaged> {
        if stored.len() != entry.stored_bytes as usize {
            return Err(Damaged("a chunk has another length than its directory says"));
        }
        let aad = self.aad(index, entry.raw_bytes(), entry.codec);
        let opened = self.protection.open_in_place(u64::from(index.get()), &aad, stored);
        opened.map_err(|_| Damaged("a chunk fails authentication"))
    }

    /// The plaintext of a chunk from its stored bytes, which are spoilt. CPU work: some 30 µs for 32 KiB.
    pub fn open_chunk(
        &self,
        index: ChunkIndex,
        entry: ChunkEntry,
        stored: &mut [u8],
    ) -> Result<Bytes, Damaged> {
        let opened = self.unseal(index, entry, stored)?;
        decompress(entry.codec, opened, entry.raw_bytes() as usize).map(Bytes::from)
    }
}
