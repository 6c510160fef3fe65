//! Records of the index as bytes. Version 1.
//!
//! ```text
//! owner: the content of the marker file, and a record of the store
//!      0   8  magic "cairnfpi"
//!      8   4  version, LE
//!     12   4  zero
//!     16  16  site
//!     32   8  id of the key that tags are made with
//!     40   8  zero
//!     48  16  tag over 0..48
//!
//! anchor: key = fingerprint XOR domain (16 bytes)
//!      0  16  container
//!     16   4  tag over domain, fingerprint, container
//!
//! list of a container: key = container (16 bytes; they sort by age)
//!      0  16  domain
//!     16   4  number of chunks, LE
//!     20   c  blocks of each chunk, 1..=16
//!      …  16b fingerprint of each block
//!      …  16  tag over the container and all before
//! ```
//!
//! A tag is keyed BLAKE3, cut off, under a key derived from the secret that the index was given, this version and the site. So a record that was
//! damaged, comes from another site, or was made by somebody without the key is not accepted.
//!
//! An anchor's tag is short: what it guards is only the reading of a list. Whatever is answered comes from a list, under 16 bytes of tag. For
//! the same reason an anchor's key needs no room for both domain and fingerprint: two pairs with the same XOR overwrite each other's hint.

use crate::WipeReason;
use cairn_model::crypto::{KeyId, SecretKey};
use cairn_model::{ContainerFingerprints, ContainerId, DomainId, Fingerprint, SiteId};

pub(crate) const VERSION: u32 = 1;
pub(crate) const OWNER_BYTES: usize = 64;
pub(crate) const ANCHOR_BYTES: usize = 16 + ANCHOR_TAG_BYTES;

const MAGIC: &[u8; 8] = b"cairnfpi";
const MAGIC_GIVEN_UP: &[u8; 8] = b"cairnfpx";
const ANCHOR_TAG_BYTES: usize = 4;
const TAG_BYTES: usize = 16;
const LIST_HEAD_BYTES: usize = 20;
const CONTEXT: &str = "cairn 2026-11 fingerprint index record tags";

/// A record that nobody with the key made for this place.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Damaged;

/// Makes and checks the records of one site under one key.
#[derive(Debug)]
pub(crate) struct Records {
    site: SiteId,
    key_id: KeyId,
    tags: SecretKey,
}

impl Records {
    pub(crate) fn new(site: SiteId, key: &SecretKey) -> Self {
        let identity = [&VERSION.to_le_bytes()[..], site.as_bytes()].concat();
        Self { site, key_id: key.id(), tags: key.derive(CONTEXT, &identity) }
    }

    /// `kind` keeps a record of one sort from being taken for one of another.
    fn tag<const N: usize>(&self, kind: u8, parts: &[&[u8]]) -> [u8; N] {
        let mut hasher = blake3::Hasher::new_keyed(self.tags.expose());
        hasher.update(&[kind]);
        for part in parts {
            hasher.update(part);
        }
        let mut tag = [0; N];
        tag.copy_from_slice(&hasher.finalize().as_bytes()[..N]);
        tag
    }

    pub(crate) fn owner(&self) -> [u8; OWNER_BYTES] {
        let mut bytes = [0; OWNER_BYTES];
        bytes[..8].copy_from_slice(MAGIC);
        bytes[8..12].copy_from_slice(&VERSION.to_le_bytes());
        bytes[16..32].copy_from_slice(self.site.as_bytes());
        bytes[32..40].copy_from_slice(self.key_id.as_bytes());
        let tag: [u8; TAG_BYTES] = self.tag(b'o', &[&bytes[..48]]);
        bytes[48..].copy_from_slice(&tag);
        bytes
    }

    /// What the marker says after the index was given up: the next run begins with an empty one.
    pub(crate) fn given_up(&self) -> [u8; OWNER_BYTES] {
        let mut bytes = self.owner();
        bytes[..8].copy_from_slice(MAGIC_GIVEN_UP);
        bytes
    }

    /// Whether `bytes` say that the index is of this site, version and key; if not, why.
    pub(crate) fn check_owner(&self, bytes: &[u8]) -> Result<(), WipeReason> {
        if bytes == self.owner() {
            return Ok(());
        }
        let damaged = |detail: &str| Err(WipeReason::Damaged { detail: detail.to_owned() });
        if bytes.len() < OWNER_BYTES {
            return damaged("the record of its owner is cut off");
        }
        if bytes.starts_with(MAGIC_GIVEN_UP) {
            return Err(WipeReason::GivenUp);
        }
        if !bytes.starts_with(MAGIC) {
            return damaged("the record of its owner is none");
        }
        let version = u32::from_le_bytes(bytes[8..12].try_into().expect("four bytes"));
        if version != VERSION {
            return Err(WipeReason::OtherVersion { found: version });
        }
        let site = SiteId::from_bytes(bytes[16..32].try_into().expect("16 bytes"));
        if site != self.site {
            return Err(WipeReason::OtherSite { found: site });
        }
        let key = KeyId::from_bytes(bytes[32..40].try_into().expect("eight bytes"));
        if key != self.key_id {
            return Err(WipeReason::OtherKey { found: key });
        }
        damaged("the record of its owner fails its tag")
    }

    pub(crate) fn anchor(
        &self,
        domain: DomainId,
        print: &Fingerprint,
        container: ContainerId,
    ) -> [u8; ANCHOR_BYTES] {
        let mut bytes = [0; ANCHOR_BYTES];
        let parts = [domain.as_bytes().as_slice(), print.as_bytes(), container.as_bytes()];
        let tag: [u8; ANCHOR_TAG_BYTES] = self.tag(b'a', &parts);
        bytes[..16].copy_from_slice(container.as_bytes());
        bytes[16..].copy_from_slice(&tag);
        bytes
    }

    /// The container that an anchor's record names.
    pub(crate) fn read_anchor(
        &self,
        domain: DomainId,
        print: &Fingerprint,
        bytes: &[u8],
    ) -> Result<ContainerId, Damaged> {
        let container = anchored(bytes).ok_or(Damaged)?;
        if bytes == self.anchor(domain, print, container) { Ok(container) } else { Err(Damaged) }
    }

    pub(crate) fn list(&self, domain: DomainId, prints: &ContainerFingerprints) -> Vec<u8> {
        let (chunks, blocks) = (prints.chunk_blocks(), prints.blocks());
        let mut bytes = Vec::with_capacity(
            LIST_HEAD_BYTES + chunks.len() + blocks.len() * Fingerprint::BYTES + TAG_BYTES,
        );
        bytes.extend_from_slice(domain.as_bytes());
        let count = u32::try_from(chunks.len()).expect("a container's chunks have indexes of 32 bits");
        bytes.extend_from_slice(&count.to_le_bytes());
        bytes.extend_from_slice(chunks);
        for print in blocks {
            bytes.extend_from_slice(print.as_bytes());
        }
        let tag: [u8; TAG_BYTES] = self.tag(b'l', &[prints.container().as_bytes(), &bytes]);
        bytes.extend_from_slice(&tag);
        bytes
    }

    /// The list kept for `container`. Allocates no more than the record is long.
    pub(crate) fn read_list(
        &self,
        container: ContainerId,
        bytes: &[u8],
    ) -> Result<(DomainId, ContainerFingerprints), Damaged> {
        let length = bytes.len().checked_sub(TAG_BYTES).ok_or(Damaged)?;
        let (body, tag) = bytes.split_at(length);
        if tag != self.tag::<TAG_BYTES>(b'l', &[container.as_bytes(), body]) || length < LIST_HEAD_BYTES {
            return Err(Damaged);
        }
        read_list_body(container, body)
    }
}

/// What an authentic record says.
pub(crate) fn read_list_body(
    container: ContainerId,
    body: &[u8],
) -> Result<(DomainId, ContainerFingerprints), Damaged> {
    let (head, rest) = body.split_at_checked(LIST_HEAD_BYTES).ok_or(Damaged)?;
    let domain = DomainId::from_bytes(head[..16].try_into().expect("16 bytes"));
    let chunks = u32::from_le_bytes(head[16..].try_into().expect("four bytes"));
    let chunks = usize::try_from(chunks).map_err(|_| Damaged)?;
    let (chunks, blocks) = rest.split_at_checked(chunks).ok_or(Damaged)?;
    let (blocks, left) = blocks.as_chunks::<{ Fingerprint::BYTES }>();
    if !left.is_empty() {
        return Err(Damaged);
    }
    let blocks = blocks.iter().map(|print| Fingerprint::from_bytes(*print)).collect();
    let prints = ContainerFingerprints::new(container, chunks.to_vec(), blocks).ok_or(Damaged)?;
    Ok((domain, prints))
}

/// What the tag of a list covers, without the container: for whoever checks decoding alone.
pub(crate) fn list_body(list: &[u8]) -> &[u8] {
    &list[..list.len() - TAG_BYTES]
}

/// Where the store has the anchor for `print`.
pub(crate) fn anchor_key(domain: DomainId, print: &Fingerprint) -> [u8; 16] {
    let mut key = *print.as_bytes();
    key.iter_mut().zip(domain.as_bytes()).for_each(|(byte, domain)| *byte ^= domain);
    key
}

/// The container that an anchor's record names, whether or not its tag is right.
pub(crate) fn anchored(bytes: &[u8]) -> Option<ContainerId> {
    let id = bytes.get(..16)?.try_into().expect("16 bytes");
    (bytes.len() == ANCHOR_BYTES).then(|| ContainerId::from_bytes(id))
}

#[cfg(test)]
mod tests {
    use super::*;

    const DOMAIN: DomainId = DomainId::from_bytes([5; 16]);

    fn records(site: u8, key: u8) -> Records {
        Records::new(SiteId::from_bytes([site; 16]), &SecretKey::from_bytes([key; 32]))
    }

    fn prints() -> ContainerFingerprints {
        let blocks = (0..6).map(|byte| Fingerprint::from_bytes([byte; 16])).collect();
        ContainerFingerprints::new(ContainerId::from_bytes([7; 16]), vec![2, 4], blocks).unwrap()
    }

    #[test]
    fn records_read_back_and_any_changed_byte_is_noticed() {
        let (records, prints) = (records(1, 2), prints());
        let list = records.list(DOMAIN, &prints);
        assert_eq!(list.len(), 20 + 2 + 6 * 16 + 16);
        assert_eq!(records.read_list(prints.container(), &list), Ok((DOMAIN, prints.clone())));
        let print = prints.blocks()[5];
        let anchor = records.anchor(DOMAIN, &print, prints.container());
        assert_eq!(records.read_anchor(DOMAIN, &print, &anchor), Ok(prints.container()));
        assert_eq!(records.check_owner(&records.owner()), Ok(()));
        for at in 0..list.len() {
            let mut changed = list.clone();
            changed[at] ^= 0x10;
            assert_eq!(records.read_list(prints.container(), &changed), Err(Damaged));
            assert_eq!(records.read_list(prints.container(), &list[..at]), Err(Damaged));
        }
        for at in 0..anchor.len() {
            let mut changed = anchor;
            changed[at] ^= 0x10;
            assert_eq!(records.read_anchor(DOMAIN, &print, &changed), Err(Damaged));
            assert_eq!(records.read_anchor(DOMAIN, &print, &anchor[..at]), Err(Damaged));
        }
        for at in 0..OWNER_BYTES {
            let mut changed = records.owner();
            changed[at] ^= 0x10;
            assert!(records.check_owner(&changed).is_err());
        }
    }

    #[test]
    fn records_are_bound_to_their_place_site_and_key() {
        let (own, prints) = (records(1, 2), prints());
        let print = prints.blocks()[5];
        let (list, anchor) = (own.list(DOMAIN, &prints), own.anchor(DOMAIN, &print, prints.container()));
        for other in [records(2, 2), records(1, 3)] {
            assert_eq!(other.read_list(prints.container(), &list), Err(Damaged));
            assert_eq!(other.read_anchor(DOMAIN, &print, &anchor), Err(Damaged));
        }
        assert_eq!(own.read_list(ContainerId::from_bytes([8; 16]), &list), Err(Damaged));
        assert_eq!(own.read_anchor(DOMAIN, &prints.blocks()[4], &anchor), Err(Damaged));
        assert_eq!(own.read_anchor(DomainId::DEFAULT, &print, &anchor), Err(Damaged));
    }
}
