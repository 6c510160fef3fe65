//! Keys and the AEAD, in one place.
//!
//! Everything that leaves the process is sealed with AES-256-GCM (NIST SP 800-38D) under a key that is derived
//! with BLAKE3's key derivation mode from a parent key, a context and an identity that is never reused. A nonce is a counter
//! below such a key, so a (key, nonce) pair never repeats. `aws-lc-rs` does the work; `aes-gcm` is its oracle in the tests
//! (`docs/decisions/` has the measurements).

mod locked;

pub use locked::locked_pages;

use aws_lc_rs::aead;
use locked::Slot;
use std::fmt;
use zeroize::Zeroize;

/// Bytes that sealing adds.
pub const TAG_BYTES: usize = 16;

/// A 256-bit secret, in memory that is not swapped out. Zeroised when dropped; never printed.
pub struct SecretKey(Slot);

impl SecretKey {
    pub const BYTES: usize = 32;

    /// The key of these bytes, which stay where they are: a caller that holds a real key zeroises them.
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self::filled(|key| *key = bytes)
    }

    /// The key that `fill` writes, which is nowhere else.
    pub fn filled(fill: impl FnOnce(&mut [u8; 32])) -> Self {
        let mut slot = Slot::new();
        fill(slot.bytes_mut());
        Self(slot)
    }

    pub fn random(entropy: &dyn crate::Entropy) -> Self {
        Self::filled(|key| entropy.fill(key))
    }

    /// The key below this one for `identity`. `context` is a constant, globally unique sentence per purpose
    /// (BLAKE3 `derive_key`).
    pub fn derive(&self, context: &'static str, identity: &[u8]) -> Self {
        let mut hasher = blake3::Hasher::new_derive_key(context);
        hasher.update(self.expose());
        hasher.update(identity);
        let mut output = hasher.finalize();
        let key = Self::filled(|key| *key = *output.as_bytes());
        output.zeroize();
        hasher.zeroize();
        key
    }

    /// A public name for the key: tells keys apart, tells nothing about them.
    pub fn id(&self) -> KeyId {
        let mut id = [0; 8];
        id.copy_from_slice(&self.derive("cairn 2026-11 key id", &[]).expose()[..8]);
        KeyId(id)
    }

    /// For wrapping and for writing key files only.
    pub fn expose(&self) -> &[u8; 32] {
        self.0.bytes()
    }
}

impl Clone for SecretKey {
    fn clone(&self) -> Self {
        Self::filled(|key| *key = *self.expose())
    }
}

impl fmt::Debug for SecretKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretKey(redacted)")
    }
}

/// The public name of a key.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct KeyId([u8; 8]);

impl KeyId {
    pub const fn from_bytes(bytes: [u8; 8]) -> Self {
        Self(bytes)
    }

    pub const fn as_bytes(&self) -> &[u8; 8] {
        &self.0
    }
}

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KeyId:{self}")
    }
}

/// How the stored bytes of a domain are protected.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Encryption {
    /// AES-256-GCM under keys derived from the domain's.
    #[default]
    Aes256Gcm,
    /// None: stored bytes can be read by whoever has them. They carry a checksum of the same length as a tag.
    Off,
}

impl Encryption {
    /// Stable name, in the catalog, in `--json` and for people.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Aes256Gcm => "aes-256-gcm",
            Self::Off => "off",
        }
    }

    /// The one of that name.
    pub fn parse(name: &str) -> Option<Self> {
        [Self::Aes256Gcm, Self::Off].into_iter().find(|encryption| encryption.name() == name)
    }
}

/// Bytes failed authentication: damaged, moved, or sealed under another key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("authentication failed: the bytes are damaged or belong to another key")]
pub struct Unauthentic;

/// AES-256-GCM under one key. Nonces are counters that the caller never repeats for a key.
pub struct Cipher(aead::LessSafeKey);

impl Cipher {
    pub fn new(key: &SecretKey) -> Self {
        let key = aead::UnboundKey::new(&aead::AES_256_GCM, key.expose()).expect("the key has 32 bytes");
        Self(aead::LessSafeKey::new(key))
    }

    fn nonce(counter: u64) -> aead::Nonce {
        let mut nonce = [0; 12];
        nonce[4..].copy_from_slice(&counter.to_be_bytes());
        aead::Nonce::assume_unique_for_key(nonce)
    }

    /// Encrypts `bytes` in place and returns the tag, which also covers `aad`.
    pub fn seal_in_place(&self, counter: u64, aad: &[u8], bytes: &mut [u8]) -> [u8; TAG_BYTES] {
        let tag = self
            .0
            .seal_in_place_separate_tag(Self::nonce(counter), aead::Aad::from(aad), bytes)
            .expect("a message is far below AES-GCM's length limit");
        let mut out = [0; TAG_BYTES];
        out.copy_from_slice(tag.as_ref());
        out
    }

    /// Decrypts `ciphertext || tag` in place and returns the plaintext's part of it. On failure the content of
    /// `bytes` is unspecified and must not be used.
    pub fn open_in_place<'a>(
        &self,
        counter: u64,
        aad: &[u8],
        bytes: &'a mut [u8],
    ) -> Result<&'a mut [u8], Unauthentic> {
        self.0.open_in_place(Self::nonce(counter), aead::Aad::from(aad), bytes).map_err(|_| Unauthentic)
    }
}

impl fmt::Debug for Cipher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Cipher(redacted)")
    }
}

/// Bytes of a wrapped key: 32 sealed and a tag, preceded by the 32 random bytes that its wrapping key is derived from.
pub const WRAPPED_KEY_BYTES: usize = 32 + SecretKey::BYTES + TAG_BYTES;

const WRAP_CONTEXT: &str = "cairn 2026-11 key wrap";

/// Seals `key` under `wrapping`, bound to `purpose`.
pub fn wrap(
    wrapping: &SecretKey,
    purpose: &[u8],
    key: &SecretKey,
    entropy: &dyn crate::Entropy,
) -> [u8; WRAPPED_KEY_BYTES] {
    let mut out = [0; WRAPPED_KEY_BYTES];
    let (salt, sealed) = out.split_at_mut(32);
    entropy.fill(salt);
    let (body, tag) = sealed.split_at_mut(SecretKey::BYTES);
    body.copy_from_slice(key.expose());
    tag.copy_from_slice(&Cipher::new(&wrapping.derive(WRAP_CONTEXT, salt)).seal_in_place(0, purpose, body));
    out
}

/// Opens what [`wrap`] sealed; fails when the wrapping key or the purpose differs, or the bytes are damaged.
pub fn unwrap(wrapping: &SecretKey, purpose: &[u8], wrapped: &[u8]) -> Result<SecretKey, Unauthentic> {
    if wrapped.len() != WRAPPED_KEY_BYTES {
        return Err(Unauthentic);
    }
    let (salt, sealed) = wrapped.split_at(32);
    let mut sealed = zeroize::Zeroizing::new(sealed.to_vec());
    let opened = Cipher::new(&wrapping.derive(WRAP_CONTEXT, salt)).open_in_place(0, purpose, &mut sealed)?;
    Ok(SecretKey::filled(|key| key.copy_from_slice(opened)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use aes_gcm::aead::{Aead, KeyInit, Payload};
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn agrees_with_an_independent_implementation(
            key: [u8; 32], counter: u64,
            aad in prop::collection::vec(any::<u8>(), 0..64),
            plain in prop::collection::vec(any::<u8>(), 0..5000),
        ) {
            let cipher = Cipher::new(&SecretKey::from_bytes(key));
            let mut sealed = plain.clone();
            let tag = cipher.seal_in_place(counter, &aad, &mut sealed);
            sealed.extend_from_slice(&tag);
            let mut nonce = [0u8; 12];
            nonce[4..].copy_from_slice(&counter.to_be_bytes());
            let oracle = aes_gcm::Aes256Gcm::new(&key.into());
            let expected = oracle.encrypt(&nonce.into(), Payload { msg: &plain, aad: &aad }).unwrap();
            prop_assert_eq!(&sealed, &expected);
            prop_assert_eq!(cipher.open_in_place(counter, &aad, &mut sealed).unwrap(), &plain[..]);
        }
    }

    #[test]
    fn a_flipped_bit_another_nonce_or_other_aad_is_refused() {
        let cipher = Cipher::new(&SecretKey::from_bytes([7; 32]));
        let mut body = b"some bytes".to_vec();
        let tag = cipher.seal_in_place(1, b"here", &mut body);
        body.extend_from_slice(&tag);
        for flip in 0..body.len() {
            let mut damaged = body.clone();
            damaged[flip] ^= 1;
            assert!(cipher.open_in_place(1, b"here", &mut damaged).is_err());
        }
        assert!(cipher.open_in_place(2, b"here", &mut body.clone()).is_err());
        assert!(cipher.open_in_place(1, b"there", &mut body.clone()).is_err());
        assert!(cipher.open_in_place(1, b"here", &mut body).is_ok());
    }

    #[test]
    fn a_wrapped_key_opens_with_its_own_wrapping_key_only() {
        let entropy = crate::SeededEntropy::new(1);
        let (master, key) = (SecretKey::random(&entropy), SecretKey::random(&entropy));
        let wrapped = wrap(&master, b"domain", &key, &entropy);
        assert_eq!(unwrap(&master, b"domain", &wrapped).unwrap().expose(), key.expose());
        assert!(unwrap(&key, b"domain", &wrapped).is_err());
        assert!(unwrap(&master, b"other", &wrapped).is_err());
        assert!(unwrap(&master, b"domain", &wrapped[1..]).is_err());
    }

    #[test]
    fn a_copy_of_a_key_outlives_it() {
        let key = SecretKey::from_bytes([0x41; 32]);
        let copy = key.clone();
        drop(key);
        assert_eq!(copy.expose(), &[0x41; 32]);
    }

    #[test]
    fn debug_output_hides_keys() {
        assert_eq!(format!("{:?}", SecretKey::from_bytes([0x41; 32])), "SecretKey(redacted)");
    }
}
