//! Entry points for the fuzzers: everything that parses bytes of the index.

use crate::format::{Records, anchor_key, list_body, read_list_body};
use cairn_model::crypto::SecretKey;
use cairn_model::{ContainerFingerprints, ContainerId, DomainId, Fingerprint, SiteId};

/// The records of the index that the fuzzers read.
fn records() -> Records {
    Records::new(SiteId::from_bytes([1; 16]), &SecretKey::from_bytes([4; 32]))
}

/// The container that lists are read for.
pub fn container() -> ContainerId {
    ContainerId::from_bytes([7; 16])
}

/// A record of a list as the index writes it.
pub fn list(domain: DomainId, prints: &ContainerFingerprints) -> Vec<u8> {
    records().list(domain, prints)
}

/// Reads `bytes` as a record of a list; what is accepted is what the index would write.
pub fn parse_list(bytes: &[u8]) -> Option<(DomainId, ContainerFingerprints)> {
    let (domain, prints) = records().read_list(container(), bytes).ok()?;
    assert_eq!(list(domain, &prints), bytes, "a list reads back as it was written");
    let other = ContainerId::from_bytes([8; 16]);
    assert!(records().read_list(other, bytes).is_err(), "a list is taken for another container's");
    Some((domain, prints))
}

/// Reads `body` as what an authentic list says; what is accepted is written as the same bytes again.
pub fn parse_list_body(body: &[u8]) -> Option<(DomainId, ContainerFingerprints)> {
    let (domain, prints) = read_list_body(container(), body).ok()?;
    assert_eq!(list_body(&list(domain, &prints)), body, "a list reads back as it was written");
    Some((domain, prints))
}

/// A record of an anchor as the index writes it.
pub fn anchor(domain: DomainId, print: &Fingerprint, container: ContainerId) -> Vec<u8> {
    records().anchor(domain, print, container).to_vec()
}

/// Reads `bytes` as the record of an anchor.
pub fn parse_anchor(domain: DomainId, print: &Fingerprint, bytes: &[u8]) -> Option<ContainerId> {
    assert_eq!(anchor_key(DomainId::DEFAULT, print), *print.as_bytes());
    records().read_anchor(domain, print, bytes).ok()
}

/// The record that says whose the index is.
pub fn owner() -> Vec<u8> {
    records().owner().to_vec()
}

/// Whether `bytes` say that the index is that of the fuzzers.
pub fn parse_owner(bytes: &[u8]) -> bool {
    records().check_owner(bytes).is_ok()
}
