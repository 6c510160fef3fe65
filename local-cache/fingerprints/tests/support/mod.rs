//! Containers of made-up content, and directories to keep an index in.
#![allow(dead_code, reason = "each test file uses its part")]

use cairn_fingerprints::{FingerprintIndex, IndexConfig, Opened};
use cairn_model::crypto::SecretKey;
use cairn_model::{ChunkRef, ContainerFingerprints, ContainerId, DomainId, Fingerprint, SiteId};
use std::path::Path;
use std::sync::Arc;

pub(crate) const DOMAIN: DomainId = DomainId::DEFAULT;
pub(crate) const OTHER_DOMAIN: DomainId = DomainId::from_bytes([9; 16]);
pub(crate) const SITE: SiteId = SiteId::from_bytes([1; 16]);

pub(crate) fn key(byte: u8) -> SecretKey {
    SecretKey::from_bytes([byte; 32])
}

/// Ids grow with their number, as they do with time.
pub(crate) fn id(number: u64) -> ContainerId {
    let mut bytes = [3; 16];
    bytes[..8].copy_from_slice(&number.to_be_bytes());
    ContainerId::from_bytes(bytes)
}

/// The fingerprint of content number `content`.
pub(crate) fn print(content: u64) -> Fingerprint {
    let mixed = (u128::from(content) + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835);
    Fingerprint::from_bytes(mixed.to_be_bytes())
}

/// A container of those contents, four to a chunk.
pub(crate) fn container(number: u64, contents: impl IntoIterator<Item = u64>) -> ContainerFingerprints {
    let blocks: Vec<_> = contents.into_iter().map(print).collect();
    let chunks = blocks.chunks(4).map(|chunk| u8::try_from(chunk.len()).unwrap()).collect();
    ContainerFingerprints::new(id(number), chunks, blocks).unwrap()
}

/// Container `number` with `blocks` blocks that no other has.
pub(crate) fn unique(number: u64, blocks: u64) -> ContainerFingerprints {
    container(number, number * 100_000..number * 100_000 + blocks)
}

pub(crate) fn config(path: &Path) -> IndexConfig {
    IndexConfig { path: path.to_owned(), cache_bytes: 8 << 20, containers_max: 1000 }
}

pub(crate) fn open(path: &Path) -> (FingerprintIndex, Opened) {
    FingerprintIndex::open(&config(path), SITE, &key(2)).unwrap()
}

pub(crate) fn commit(index: &FingerprintIndex, domain: DomainId, prints: &ContainerFingerprints) {
    index.add_in_flight(domain, Arc::new(prints.clone()));
    index.committed(domain, prints);
}

/// The place of block `block` of the container.
pub(crate) fn place(prints: &ContainerFingerprints, block: usize) -> ChunkRef {
    prints.refs().nth(block).unwrap().1
}

/// Asks for the last block of the first chunk, which every index on disk has, and then for all blocks.
pub(crate) fn found(index: &FingerprintIndex, domain: DomainId, prints: &ContainerFingerprints) -> bool {
    let anchor = prints.anchors().next().unwrap();
    if index.find(domain, &anchor).is_none() {
        return false;
    }
    prints.refs().all(|(print, place)| index.find(domain, &print) == Some(place))
}

/// Everything under `path` that is a file.
pub(crate) fn files(path: &Path) -> Vec<std::path::PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(path).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { found.extend(files(&path)) } else { found.push(path) }
    }
    found.sort();
    found
}

pub(crate) fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let target = to.join(path.file_name().unwrap());
        if path.is_dir() {
            copy(&path, &target);
        } else if std::fs::copy(&path, &target).is_err() {
            // The store removed it meanwhile.
            assert!(!path.exists());
        }
    }
}
