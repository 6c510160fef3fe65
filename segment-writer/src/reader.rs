//! Reading: verified chunks and footers out of the pool.

use crate::container::{ChunkEntry, ContainerDirectory};
use crate::domain::Domain;
use crate::error::{Damaged, PoolError};
use crate::pool::{DataNode, Pool};
use crate::seal::ContainerCipher;
use crate::segment::{
    FOOTER_BYTES_MAX, Footer, HEADER_BYTES, HeaderError, TRAILER_BYTES, Trailer, VERSION, open_footer,
};
use bytes::{Bytes, BytesMut};
use cairn_model::crypto::KeyId;
use cairn_model::{ChunkIndex, NodeId};
use std::ops::Range;
use std::sync::Arc;

/// Read in the first step of reading a footer: enough for nearly all of them. The fingerprints of a full container are some 64 KiB
/// when its data compresses to half.
const FOOTER_GUESS_BYTES: u64 = 128 << 10;

/// Where a container is today.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ContainerLocation {
    pub node: NodeId,
    pub key: String,
    /// Of the container's first byte in the object.
    pub offset: u64,
}

/// Stored bytes of consecutive chunks, as a node returned them: not verified.
#[derive(Debug)]
pub struct FetchedChunks {
    first: u32,
    base: u32,
    bytes: BytesMut,
    /// Chunks from the first on whose bytes are spoilt.
    opened: Vec<bool>,
}

/// Is shown the stored bytes of every chunk that was verified, for a cache.
pub type StoredSink<'a> = &'a (dyn Fn(ChunkIndex, Bytes) + Sync);

impl Pool {
    /// The plaintext of those of the chunks `chunks` of a container that are there, fetched with one request. A chunk that fails verification
    /// is fetched once more by itself; if that fails too the error names it. `verified` is shown the stored form of those that were good at once.
    pub async fn read_chunks(
        &self,
        location: &ContainerLocation,
        directory: &ContainerDirectory,
        cipher: &ContainerCipher,
        chunks: Range<u32>,
        verified: Option<StoredSink<'_>>,
    ) -> Result<Vec<(ChunkIndex, Bytes)>, PoolError> {
        let mut fetched = self.fetch_chunks(location, directory, chunks.clone()).await?;
        let mut opened = Vec::with_capacity(chunks.len());
        for index in directory.iter_within(chunks).map(|(index, _)| index.get()) {
            // Opening spoils the stored bytes; whether they are good is known after.
            let stored = verified.and_then(|_| fetched.stored(directory, index)).map(Bytes::copy_from_slice);
            let plaintext = match fetched.open(directory, cipher, index) {
                Ok(plaintext) => {
                    if let (Some(sink), Some(stored)) = (verified, stored) {
                        sink(ChunkIndex::new(index), stored);
                    }
                    plaintext
                }
                Err(damaged) => self.read_again(location, directory, cipher, index, damaged).await?,
            };
            opened.push((ChunkIndex::new(index), plaintext));
        }
        Ok(opened)
    }

    /// A second try at a chunk that failed verification: the damage may have happened on the way.
    async fn read_again(
        &self,
        location: &ContainerLocation,
        directory: &ContainerDirectory,
        cipher: &ContainerCipher,
        index: u32,
        damaged: Damaged,
    ) -> Result<Bytes, PoolError> {
        let node = self.node(location.node)?;
        node.health().damaged_chunk();
        tracing::warn!(
            node = %node.name(), key = %location.key, container = %cipher.container(), index, %damaged,
            "a chunk fails verification; fetching it again"
        );
        let mut again = self.fetch_chunks(location, directory, index..index + 1).await?;
        again.open(directory, cipher, index).map_err(|damaged| {
            node.health().damaged_chunk();
            PoolError::Corrupt {
                node: Arc::clone(node.name()),
                key: location.key.clone(),
                part: format!("chunk {index} of container {}", cipher.container()),
                reason: damaged.to_string(),
            }
        })
    }

    /// The stored bytes of consecutive chunks, with one request. For callers that open them elsewhere.
    pub async fn fetch_chunks(
        &self,
        location: &ContainerLocation,
        directory: &ContainerDirectory,
        chunks: Range<u32>,
    ) -> Result<FetchedChunks, PoolError> {
        let node = self.node(location.node)?;
        let known = if chunks.end as usize <= directory.len() { chunks.clone() } else { 0..0 };
        let mut present = directory.iter_within(known).map(|(_, entry)| entry);
        let first = present.next();
        let Some((first, last)) = first.map(|first| (first, present.last().unwrap_or(first))) else {
            return Err(PoolError::Corrupt {
                node: Arc::clone(node.name()),
                key: location.key.clone(),
                part: format!("chunks {} to {}", chunks.start, chunks.end),
                reason: "its directory has no such chunks: the map or the directory is damaged".to_owned(),
            });
        };
        let range = location.offset.saturating_add(first.range().start)
            ..location.offset.saturating_add(last.range().end);
        let bytes = node.get_range(&location.key, range).await?;
        Ok(FetchedChunks {
            first: chunks.start,
            base: first.offset,
            bytes: BytesMut::from(bytes),
            opened: vec![false; chunks.len()],
        })
    }
}

impl FetchedChunks {
    /// Verifies and decompresses a chunk, once: its stored bytes are spoilt. CPU work.
    pub fn open(
        &mut self,
        directory: &ContainerDirectory,
        cipher: &ContainerCipher,
        index: u32,
    ) -> Result<Bytes, Damaged> {
        const ABSENT: Damaged = Damaged("the chunk is not among those fetched");
        let (at, entry, range) = self.place(directory, index).ok_or(ABSENT)?;
        self.opened[at] = true;
        let stored = self.bytes.get_mut(range).ok_or(ABSENT)?;
        cipher.open_chunk(ChunkIndex::new(index), entry, stored)
    }

    /// The stored bytes of a chunk that is not [opened](Self::open) yet, for a cache. They are not verified.
    pub fn stored(&self, directory: &ContainerDirectory, index: u32) -> Option<&[u8]> {
        let (at, _, range) = self.place(directory, index)?;
        if self.opened[at] { None } else { self.bytes.get(range) }
    }

    /// The stored bytes of a chunk that is not [opened](Self::open) yet, once they are verified. CPU work; `scratch` is spoilt.
    pub fn verified(
        &self,
        directory: &ContainerDirectory,
        cipher: &ContainerCipher,
        index: ChunkIndex,
        scratch: &mut Vec<u8>,
    ) -> Result<&[u8], Damaged> {
        const ABSENT: Damaged = Damaged("the chunk is not among those fetched");
        let stored = self.stored(directory, index.get()).ok_or(ABSENT)?;
        let entry = directory.get(index).ok_or(ABSENT)?;
        cipher.verify_chunk(index, entry, stored, scratch)?;
        Ok(stored)
    }

    /// Whether the chunk is among those fetched, if it is there at all.
    pub const fn holds(&self, index: ChunkIndex) -> bool {
        index.get() >= self.first && ((index.get() - self.first) as usize) < self.opened.len()
    }

    /// Which of the fetched chunks it is, and where its bytes are.
    fn place(&self, directory: &ContainerDirectory, index: u32) -> Option<(usize, ChunkEntry, Range<usize>)> {
        let at = index.checked_sub(self.first)? as usize;
        let entry = directory.get(ChunkIndex::new(index)).filter(|_| at < self.opened.len())?;
        let start = entry.offset.checked_sub(self.base)? as usize;
        Some((at, entry, start..start + entry.stored_bytes as usize))
    }
}

impl DataNode {
    /// What a segment of `domain` says about itself: with one request, or two when its footer is large, and one for its
    /// header.
    pub async fn read_footer(&self, key: &str, domain: &Domain) -> Result<Footer, PoolError> {
        self.read_footer_of(key, |key| (key == domain.key_id()).then(|| domain.clone())).await
    }

    /// The same for a segment of any domain: `domains` knows it by the name of its key.
    pub async fn read_footer_of(
        &self,
        key: &str,
        domains: impl FnOnce(KeyId) -> Option<Domain> + Send,
    ) -> Result<Footer, PoolError> {
        let corrupt = |damaged: Damaged| PoolError::Corrupt {
            node: Arc::clone(self.name()),
            key: key.to_owned(),
            part: "the segment".to_owned(),
            reason: damaged.to_string(),
        };
        let (tail, size) = self.get_suffix(key, FOOTER_GUESS_BYTES).await?;
        let (rest, trailer) = tail
            .split_last_chunk::<TRAILER_BYTES>()
            .filter(|_| size >= (HEADER_BYTES + TRAILER_BYTES) as u64)
            .ok_or_else(|| corrupt(Damaged("it is too short for a segment")))?;
        let trailer = Trailer::decode(trailer, size).map_err(corrupt)?;
        let length = trailer.footer.length as usize;
        debug_assert!(trailer.footer.length <= FOOTER_BYTES_MAX);
        let mut sealed = if let Some(start) = rest.len().checked_sub(length) {
            rest[start..].to_vec()
        } else {
            let end = trailer.footer.offset + u64::from(trailer.footer.length);
            self.get_range(key, trailer.footer.offset..end).await?.to_vec()
        };
        let header = match tail.first_chunk::<HEADER_BYTES>() {
            Some(header) if tail.len() as u64 == size => *header,
            _ => {
                let bytes = self.get_range(key, 0..HEADER_BYTES as u64).await?;
                *bytes.first_chunk().expect("get_range returns what was asked for")
            }
        };
        open_footer(domains, &header, &trailer, &mut sealed).map_err(|error| match error {
            HeaderError::Damaged(damaged) => corrupt(damaged),
            HeaderError::Newer(version) => PoolError::NewerFormat {
                node: Arc::clone(self.name()),
                key: key.to_owned(),
                found: u64::from(version),
                known: u64::from(VERSION),
            },
        })
    }
}
