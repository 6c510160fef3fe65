//! The copy of the wrapped keys on each data node, so that the bucket and the master key (its file, or its passphrase) are enough to read
//! the data, whatever became of the gateway's directory.
//!
//! ```text
//! line 1   cairn-keys-1
//! line 2   64 hexadecimal digits    BLAKE3 of the rest: tells damage
//! line 3   64 hexadecimal digits    keyed BLAKE3 of the rest, under a key derived from the master key and the site: tells forgery
//! rest     one JSON object:
//!          site      whose keys they are
//!          revision  number of the change that it shows, and `tag`, 16 random hexadecimal digits of that change
//!          master    id of the key that wraps the others
//!          key_file  the key file, if it needs a passphrase; never the key itself
//!          domains   each with id, name, encryption, key_id and wrapped (80 bytes, as in the catalog)
//! ```
//!
//! At most 1 MiB. Whoever can write to the bucket can remove it or put back an older one, but cannot make one up.

use super::KeyFile;
use super::{Origin, file};
use cairn_model::crypto::{Encryption, KeyId, SecretKey, WRAPPED_KEY_BYTES};
use cairn_model::{DomainId, SiteId};
use cairn_segment_writer::KEYS_BYTES_MAX;
use serde::{Deserialize, Serialize};

const HEADER: &str = "cairn-keys-1";
const HEADER_STEM: &str = "cairn-keys-";
const MAC_CONTEXT: &str = "cairn 2026-11 keys on a data node";
const HASH_BYTES: usize = 32;

/// Most domains of a site: their keys fit in the object.
pub const DOMAINS_MAX: usize = 1024;

/// What is wrong with a keys object.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PublishedError {
    #[error("it has version `{0}`, which this version of Cairn does not know")]
    Newer(String),
    #[error("{0}")]
    Damaged(&'static str),
}

/// One change of a site's keys. The tag tells it from the change that had the same number in a catalog that was put back from a copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Revision {
    pub number: u64,
    pub tag: [u8; 8],
}

/// A domain's key as it is published.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublishedDomain {
    pub id: DomainId,
    pub name: String,
    pub encryption: Encryption,
    pub key_id: KeyId,
    pub wrapped: Vec<u8>,
}

/// A keys object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublishedKeys {
    pub site: SiteId,
    pub revision: Revision,
    pub master: KeyId,
    /// The text of the key file, if it needs a passphrase.
    pub key_file: Option<String>,
    pub domains: Vec<PublishedDomain>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Json {
    site: SiteId,
    revision: u64,
    tag: String,
    master: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    key_file: Option<String>,
    domains: Vec<JsonDomain>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct JsonDomain {
    id: DomainId,
    name: String,
    encryption: String,
    key_id: String,
    wrapped: String,
}

impl PublishedKeys {
    /// The object, which only a holder of `master` can make.
    pub fn encode(&self, master: &SecretKey) -> Vec<u8> {
        let body = self.body();
        let sum = blake3::hash(body.as_bytes());
        let mac = self.mac(master, &body);
        let object = format!("{HEADER}\n{}\n{}\n{body}", sum.to_hex(), mac.to_hex()).into_bytes();
        assert!(object.len() as u64 <= KEYS_BYTES_MAX, "a site has at most {DOMAINS_MAX} domains");
        object
    }

    fn mac(&self, master: &SecretKey, body: &str) -> blake3::Hash {
        blake3::keyed_hash(master.derive(MAC_CONTEXT, self.site.as_bytes()).expose(), body.as_bytes())
    }

    /// What is checked and authenticated.
    pub(super) fn body(&self) -> String {
        let domain = |domain: &PublishedDomain| JsonDomain {
            id: domain.id,
            name: domain.name.clone(),
            encryption: domain.encryption.name().to_owned(),
            key_id: domain.key_id.to_string(),
            wrapped: hex::encode(&domain.wrapped),
        };
        let json = Json {
            site: self.site,
            revision: self.revision.number,
            tag: hex::encode(self.revision.tag),
            master: self.master.to_string(),
            key_file: self.key_file.clone(),
            domains: self.domains.iter().map(domain).collect(),
        };
        serde_json::to_string_pretty(&json).expect("strings and numbers always become JSON") + "\n"
    }

    /// Reads an object, which is whole but may be forged: see [`PublishedKeys::is_authentic`].
    pub fn decode(object: &[u8]) -> Result<Self, PublishedError> {
        Self::decode_with_mac(object).map(|(keys, _, _)| keys)
    }

    /// Whether a holder of `master` made `object`.
    pub fn is_authentic(object: &[u8], master: &SecretKey) -> bool {
        // The comparison of hashes takes the same time wherever they differ.
        Self::decode_with_mac(object).is_ok_and(|(keys, mac, body)| keys.mac(master, body) == mac)
    }

    fn decode_with_mac(object: &[u8]) -> Result<(Self, blake3::Hash, &str), PublishedError> {
        use PublishedError::Damaged;
        if object.len() as u64 > KEYS_BYTES_MAX {
            return Err(Damaged("it is longer than 1 MiB"));
        }
        let text = std::str::from_utf8(object).map_err(|_| Damaged("it is not text"))?;
        let mut parts = text.splitn(4, '\n');
        let mut part = || parts.next().unwrap_or_default();
        let header = part();
        if header != HEADER {
            let version = header.strip_prefix(HEADER_STEM).filter(|version| version.len() <= 4);
            return Err(version.map_or(Damaged("its first line is not `cairn-keys-1`"), |version| {
                PublishedError::Newer(version.to_owned())
            }));
        }
        let sum: [u8; HASH_BYTES] = digits(part()).ok_or(Damaged("its second line is no hash"))?;
        let mac: [u8; HASH_BYTES] = digits(part()).ok_or(Damaged("its third line is no hash"))?;
        let body = part();
        if blake3::hash(body.as_bytes()) != sum {
            return Err(Damaged("it was changed: its hash does not match"));
        }
        let json: Json = serde_json::from_str(body).map_err(|_| Damaged("its JSON is not that of keys"))?;
        Ok((Self::checked(json).map_err(Damaged)?, mac.into(), body))
    }

    fn checked(json: Json) -> Result<Self, &'static str> {
        if json.domains.len() > DOMAINS_MAX {
            return Err("it has more domains than a site");
        }
        let key_id = |text: &str| digits(text).map(KeyId::from_bytes).ok_or("an id of a key is none");
        let domain = |domain: JsonDomain| {
            let wrapped: [u8; WRAPPED_KEY_BYTES] = digits(&domain.wrapped).ok_or("a wrapped key is none")?;
            Ok::<_, &'static str>(PublishedDomain {
                id: domain.id,
                encryption: Encryption::parse(&domain.encryption).ok_or("an encryption is unknown")?,
                name: domain.name,
                key_id: key_id(&domain.key_id)?,
                wrapped: wrapped.to_vec(),
            })
        };
        let keys = Self {
            site: json.site,
            revision: Revision { number: json.revision, tag: digits(&json.tag).ok_or("its tag is none")? },
            master: key_id(&json.master)?,
            key_file: json.key_file,
            domains: json.domains.into_iter().map(domain).collect::<Result<_, _>>()?,
        };
        if let Some(text) = &keys.key_file {
            match file::parse(text.as_bytes(), &Origin::File("cairn-keys".into())) {
                Ok(KeyFile::Sealed(sealed)) if sealed.id() == keys.master => {}
                _ => return Err("its key file is not one that needs a passphrase"),
            }
        }
        Ok(keys)
    }
}

fn digits<const N: usize>(text: &str) -> Option<[u8; N]> {
    let mut bytes = [0; N];
    hex::decode_to_slice(text, &mut bytes).ok().map(|()| bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::{Cost, Passphrase, SealedKey};
    use cairn_model::SeededEntropy;
    use cairn_model::crypto::wrap;

    fn keys() -> (PublishedKeys, SecretKey) {
        let entropy = SeededEntropy::new(5);
        let master = SecretKey::random(&entropy);
        let domain = |number: u8| {
            let key = SecretKey::random(&entropy);
            PublishedDomain {
                id: DomainId::from_bytes([number; 16]),
                name: format!("domain-{number}"),
                encryption: if number == 0 { Encryption::Aes256Gcm } else { Encryption::Off },
                key_id: key.id(),
                wrapped: wrap(&master, b"data", &key, &entropy).to_vec(),
            }
        };
        let keys = PublishedKeys {
            site: SiteId::from_bytes([9; 16]),
            revision: Revision { number: 7, tag: [1; 8] },
            master: master.id(),
            key_file: None,
            domains: (0..3).map(domain).collect(),
        };
        (keys, master)
    }

    #[test]
    fn published_keys_are_read_back() {
        let (keys, master) = keys();
        let object = keys.encode(&master);
        assert_eq!(PublishedKeys::decode(&object).unwrap(), keys);
        assert!(PublishedKeys::is_authentic(&object, &master));
    }

    #[test]
    fn a_key_file_that_needs_a_passphrase_is_enough_with_it() {
        let (mut keys, master) = keys();
        let passphrase = Passphrase::from_line(b"correct horse").unwrap();
        let sealed = SealedKey::seal(&master, &passphrase, Cost::LEAST, &SeededEntropy::new(6)).unwrap();
        keys.key_file = Some(sealed.to_string());
        let read = PublishedKeys::decode(&keys.encode(&master)).unwrap();
        let text = read.key_file.unwrap();
        let Ok(KeyFile::Sealed(sealed)) = file::parse(text.as_bytes(), &Origin::File("x".into())) else {
            panic!("it is not sealed")
        };
        assert_eq!(sealed.open(&passphrase).unwrap().unwrap().expose(), master.expose());
    }

    #[test]
    fn the_master_key_itself_is_never_published() {
        let (mut keys, master) = keys();
        keys.key_file = Some(KeyFile::Plain(master.clone()).text().to_string());
        assert!(PublishedKeys::decode(&keys.encode(&master)).is_err());
    }

    #[test]
    fn every_change_and_every_cut_is_noticed() {
        let (keys, master) = keys();
        let object = keys.encode(&master);
        for at in 0..object.len() {
            let mut changed = object.clone();
            changed[at] = if changed[at] == b'7' { b'8' } else { b'7' };
            // Line 3 is checked with the key.
            let noticed = PublishedKeys::decode(&changed).is_err();
            assert!(noticed || !PublishedKeys::is_authentic(&changed, &master), "byte {at}");
            assert!(PublishedKeys::decode(&object[..at]).is_err(), "cut at {at}");
        }
    }

    #[test]
    fn a_forged_object_is_told_from_a_real_one() {
        let (mut keys, master) = keys();
        keys.domains[0].encryption = Encryption::Off;
        let forged = keys.encode(&SecretKey::from_bytes([3; 32]));
        assert!(PublishedKeys::decode(&forged).is_ok());
        assert!(!PublishedKeys::is_authentic(&forged, &master));
    }

    #[test]
    fn a_newer_version_says_so() {
        let refused = PublishedKeys::decode(b"cairn-keys-2\nwhatever");
        assert_eq!(refused, Err(PublishedError::Newer("2".to_owned())));
    }

    #[test]
    fn the_most_domains_that_a_site_may_have_fit() {
        let (mut keys, master) = keys();
        let mut domain = keys.domains[0].clone();
        domain.name = "n".repeat(255);
        keys.domains = vec![domain; DOMAINS_MAX];
        let object = keys.encode(&master);
        assert_eq!(PublishedKeys::decode(&object).unwrap().domains.len(), DOMAINS_MAX);
        keys.domains.push(keys.domains[0].clone());
        assert!(PublishedKeys::decode(&keys.encode(&master)).is_err());
    }
}
