//! Reading: verified chunks and footers out of the pool.

use crate::container::ContainerDirectory;
use crate::error::{Damaged, PoolError};
use crate::pool::{DataNode, Pool};
use crate::seal::ContainerCipher;
use crate::segment::{
    FOOTER_BYTES_MAX, Footer, HEADER_BYTES, HeaderError, TRAILER_BYTES, Trailer, VERSION, open_footer,
};
use bytes::{Bytes, BytesMut};
use cairn_model::crypto::SecretKey;
use cairn_model::{ChunkIndex, NodeId};
use std::ops::Range;
use std::sync::Arc;

/// Read in the first step of reading a footer: enough for nearly all of them.
const FOOTER_GUESS_BYTES: u64 = 64 << 10;

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
}

impl Pool {
    /// The plaintext of the chunks `chunks` of a container, fetched with one request. A chunk that fails verification
    /// is fetched once more by itself; if that fails too the error names it.
    pub async fn read_chunks(
        &self,
        location: &ContainerLocation,
        directory: &ContainerDirectory,
        cipher: &ContainerCipher,
        chunks: Range<u32>,
    ) -> Result<Vec<(ChunkIndex, Bytes)>, PoolError> {
        let mut fetched = self.fetch_chunks(location, directory, chunks.clone()).await?;
        let mut opened = Vec::with_capacity(chunks.len());
        for index in chunks {
            let plaintext = match fetched.open(directory, cipher, index) {
                Ok(plaintext) => plaintext,
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
        let ends = chunks.clone().next().zip(chunks.end.checked_sub(1)).and_then(|(first, last)| {
            directory.get(ChunkIndex::new(first)).zip(directory.get(ChunkIndex::new(last)))
        });
        let Some((first, last)) = ends else {
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
        Ok(FetchedChunks { first: chunks.start, base: first.offset, bytes: BytesMut::from(bytes) })
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
        let index = ChunkIndex::new(index);
        let entry = directory.get(index).filter(|_| index.get() >= self.first).ok_or(ABSENT)?;
        let start = (entry.offset - self.base) as usize;
        let stored = self.bytes.get_mut(start..start + entry.stored_bytes as usize).ok_or(ABSENT)?;
        cipher.open_chunk(index, entry, stored)
    }
}

impl DataNode {
    /// What a segment says about itself: with one request, or two when its footer is large, and one for its header.
    pub async fn read_footer(&self, key: &str, domain_key: &SecretKey) -> Result<Footer, PoolError> {
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
        open_footer(domain_key, &header, &trailer, &mut sealed).map_err(|error| match error {
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
