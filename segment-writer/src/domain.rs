//! Dedupe domains: what is sealed under one key, and where equal blocks are stored once.

use cairn_model::crypto::{Encryption, KeyId, SecretKey};
use cairn_model::{DomainId, Fingerprint};
use std::fmt;
use std::sync::Arc;

/// Context of the key derivation of fingerprints.
const FINGERPRINT_CONTEXT: &str = "cairn 2026-11 block fingerprint";

/// A dedupe domain as packing and reading need it. Clones share one secret.
#[derive(Clone)]
pub struct Domain(Arc<Inner>);

struct Inner {
    id: DomainId,
    key: SecretKey,
    key_id: KeyId,
    encryption: Encryption,
}

impl Domain {
    /// A domain without encryption has a key too: its fingerprints and its public name come from it.
    pub fn new(id: DomainId, key: SecretKey, encryption: Encryption) -> Self {
        let key_id = key.id();
        Self(Arc::new(Inner { id, key, key_id, encryption }))
    }

    pub fn id(&self) -> DomainId {
        self.0.id
    }

    pub fn encryption(&self) -> Encryption {
        self.0.encryption
    }

    /// The public name of the domain's key: segments carry it in the clear.
    pub fn key_id(&self) -> KeyId {
        self.0.key_id
    }

    /// What names the blocks of the domain.
    pub fn fingerprints(&self) -> FingerprintKey {
        FingerprintKey(self.0.key.derive(FINGERPRINT_CONTEXT, &[]))
    }

    pub(crate) fn key(&self) -> &SecretKey {
        &self.0.key
    }
}

/// Whether chunks of the one can be read as chunks of the other.
impl PartialEq for Domain {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
            || (self.id() == other.id()
                && self.key_id() == other.key_id()
                && self.encryption() == other.encryption())
    }
}

impl Eq for Domain {}

impl fmt::Debug for Domain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Domain")
            .field("id", &self.0.id)
            .field("key", &self.0.key_id)
            .field("encryption", &self.0.encryption)
            .finish()
    }
}

/// Names blocks by their content. Belongs to one domain: the same block has another name in another one, so that
/// fingerprints tell nothing about blocks across domains.
#[derive(Clone, Debug)]
pub struct FingerprintKey(SecretKey);

impl FingerprintKey {
    /// The fingerprint of one block's plaintext. CPU work: some 2 µs.
    pub fn of(&self, block: &[u8]) -> Fingerprint {
        let hash = blake3::keyed_hash(self.0.expose(), block);
        Fingerprint::from_bytes(*hash.as_bytes().first_chunk().expect("a hash has 32 bytes"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn domain(id: u8, key: u8, encryption: Encryption) -> Domain {
        Domain::new(DomainId::from_bytes([id; 16]), SecretKey::from_bytes([key; 32]), encryption)
    }

    #[test]
    fn a_block_has_one_name_per_domain_key() {
        let own = domain(1, 1, Encryption::Aes256Gcm);
        let print = own.fingerprints().of(&[7; 4096]);
        assert_eq!(print, own.clone().fingerprints().of(&[7; 4096]));
        assert_ne!(print, own.fingerprints().of(&[8; 4096]));
        assert_ne!(print, domain(2, 2, Encryption::Aes256Gcm).fingerprints().of(&[7; 4096]));
    }

    #[test]
    fn fingerprints_stay_what_they_were() {
        // Footers and indexes of earlier versions hold them.
        let print = domain(1, 7, Encryption::Off).fingerprints().of(&[7; 4096]);
        assert_eq!(format!("{print:?}"), "fingerprint:80971dd9dd0f0a0312c9d9447a7081a2");
    }

    #[test]
    fn debug_output_hides_the_key() {
        let text = format!("{:?}", domain(1, 0x41, Encryption::Off).fingerprints());
        assert!(text.contains("redacted"), "{text}");
        let text = format!("{:?}", domain(1, 0x41, Encryption::Off));
        assert!(!text.contains("4141") && !text.contains("65, 65"), "{text}");
    }

    #[test]
    fn domains_are_the_same_when_id_key_and_encryption_are() {
        let own = domain(1, 1, Encryption::Aes256Gcm);
        assert_eq!(own, domain(1, 1, Encryption::Aes256Gcm));
        for other in [
            domain(2, 1, Encryption::Aes256Gcm),
            domain(1, 2, Encryption::Aes256Gcm),
            domain(1, 1, Encryption::Off),
        ] {
            assert_ne!(own, other);
        }
    }
}
