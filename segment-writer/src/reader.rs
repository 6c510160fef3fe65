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
use cairn_model::{ChunkIndex, ObjectPlace, ShardPlace, boxed};
use std::ops::Range;
use std::sync::Arc;

/// Read in the first step of reading a footer: enough for nearly all of them. The fingerprints of a full container are some 64 KiB
/// when its data compresses to half.
const FOOTER_GUESS_BYTES: u64 = 128 << 10;

/// Where a container is today.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ContainerLocation {
    pub place: ObjectPlace,
    /// Of the container's first byte in the segment.
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

    /// Another try at a chunk that failed verification: the damage may have happened on the way, or there is a good copy elsewhere.
    async fn read_again(
        &self,
        location: &ContainerLocation,
        directory: &ContainerDirectory,
        cipher: &ContainerCipher,
        index: u32,
        damaged: Damaged,
    ) -> Result<Bytes, PoolError> {
        let nodes = self.nodes_of(&location.place);
        let mut holders = location.place.placement.present();
        // Where there are several it is not known yet which one it was.
        if let (Some((_, shard)), None) = (holders.next(), holders.next()) {
            self.node(shard.node)?.health().damaged_chunk();
        }
        tracing::warn!(
            nodes, key = %location.place.key, container = %cipher.container(), index, %damaged,
            "a chunk fails verification; reading it from whatever has it"
        );
        let corrupt = |damaged: Damaged| PoolError::Corrupt {
            node: nodes.as_str().into(),
            key: location.place.key.clone(),
            part: format!("chunk {index} of container {}", cipher.container()),
            reason: damaged.to_string(),
        };
        let entry = directory.get(ChunkIndex::new(index)).ok_or_else(|| corrupt(damaged))?;
        let range = location.offset.saturating_add(entry.range().start)
            ..location.offset.saturating_add(entry.range().end);
        let mut latest = damaged;
        let opened = self.get_checked(&location.place, range, |stored| {
            let opened = cipher.open_chunk(ChunkIndex::new(index), entry, &mut BytesMut::from(stored));
            opened.map_err(|damaged| latest = damaged).ok()
        });
        opened.await?.ok_or_else(|| corrupt(latest))
    }

    /// The nodes that hold a segment, for messages.
    fn nodes_of(&self, place: &ObjectPlace) -> String {
        let name = |(_, shard): (usize, ShardPlace)| match self.node(shard.node) {
            Ok(node) => node.name().to_string(),
            Err(_) => shard.node.to_string(),
        };
        place.placement.present().map(name).collect::<Vec<_>>().join(", ")
    }

    /// The stored bytes of consecutive chunks, with one request. For callers that open them elsewhere.
    #[boxed]
    pub async fn fetch_chunks(
        &self,
        location: &ContainerLocation,
        directory: &ContainerDirectory,
        chunks: Range<u32>,
    ) -> Result<FetchedChunks, PoolError> {
        let known = if chunks.end as usize <= directory.len() { chunks.clone() } else { 0..0 };
        let mut present = directory.iter_within(known).map(|(_, entry)| entry);
        let first = present.next();
        let Some((first, last)) = first.map(|first| (first, present.last().unwrap_or(first))) else {
            return Err(PoolError::Corrupt {
                node: self.nodes_of(&location.place).into(),
                key: location.place.key.clone(),
                part: format!("chunks {} to {}", chunks.start, chunks.end),
                reason: "its directory has no such chunks: the map or the directory is damaged".to_owned(),
            });
        };
        let range = location.offset.saturating_add(first.range().start)
            ..location.offset.saturating_add(last.range().end);
        let bytes = self.get_range(&location.place, range).await?;
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

impl Pool {
    /// What a segment of `domain` says about itself: with one request, or two when its footer is large, and one for its
    /// header.
    #[boxed]
    pub async fn read_footer(&self, place: &ObjectPlace, domain: &Domain) -> Result<Footer, PoolError> {
        self.read_footer_of(place, &|key| (key == domain.key_id()).then(|| domain.clone())).await
    }

    /// The same for a segment of any domain: `domains` knows it by the name of its key.
    #[boxed]
    pub async fn read_footer_of(
        &self,
        place: &ObjectPlace,
        domains: &(dyn Fn(KeyId) -> Option<Domain> + Send + Sync),
    ) -> Result<Footer, PoolError> {
        let size = place.length_bytes;
        let object = Object { node: self.nodes_of(place).into(), key: &place.key, size };
        let tail = self.get_range(place, size.saturating_sub(FOOTER_GUESS_BYTES)..size).await?;
        match object.footer(tail, domains, |range| self.get_range(place, range)).await {
            Err(PoolError::Corrupt { key, .. }) if key == place.key => {}
            result => return result,
        }
        // One node may have returned something else. All of the segment at once: this is rare, and it is in no more than the memory of a put.
        let mut latest = Damaged("nothing of it is there");
        let read = self.get_checked(place, 0..size, |whole| {
            let footer = object.footer_of_whole(&whole, domains);
            footer.map_err(|error| latest = error).ok()
        });
        read.await?.ok_or_else(|| object.corrupt(latest))
    }
}

impl DataNode {
    /// What a segment of `domain` says about itself, whatever its length.
    #[boxed]
    pub async fn read_footer(&self, key: &str, domain: &Domain) -> Result<Footer, PoolError> {
        self.read_footer_of(key, |key| (key == domain.key_id()).then(|| domain.clone())).await
    }

    /// The same for a segment of any domain: `domains` knows it by the name of its key.
    pub async fn read_footer_of(
        &self,
        key: &str,
        domains: impl FnOnce(KeyId) -> Option<Domain> + Send,
    ) -> Result<Footer, PoolError> {
        let (tail, size) = self.get_suffix(key, FOOTER_GUESS_BYTES).await?;
        let object = Object { node: Arc::clone(self.name()), key, size };
        object.footer(tail, domains, |range| self.get_range(key, range)).await
    }
}

/// A segment that is read from its end.
struct Object<'a> {
    /// For messages.
    node: Arc<str>,
    key: &'a str,
    size: u64,
}

impl Object<'_> {
    /// Its footer, out of all its bytes. A footer of a newer version is for who reads it first to tell.
    fn footer_of_whole(
        &self,
        whole: &[u8],
        domains: impl FnOnce(KeyId) -> Option<Domain>,
    ) -> Result<Footer, Damaged> {
        const CUT: Damaged = Damaged("it is too short for a segment");
        let (rest, trailer) = whole.split_last_chunk::<TRAILER_BYTES>().ok_or(CUT)?;
        let header = whole.first_chunk::<HEADER_BYTES>().ok_or(CUT)?;
        let trailer = Trailer::decode(trailer, self.size)?;
        let start = rest.len().checked_sub(trailer.footer.length as usize).ok_or(CUT)?;
        open_footer(domains, header, &trailer, &mut rest[start..].to_vec()).map_err(|error| match error {
            HeaderError::Damaged(damaged) => damaged,
            HeaderError::Newer(_) => Damaged("it is of a newer version; upgrade this program"),
        })
    }

    /// Its footer, of which `tail` has the end and perhaps all; `get` returns exactly the bytes of a range.
    async fn footer<F>(
        &self,
        tail: Bytes,
        domains: impl FnOnce(KeyId) -> Option<Domain> + Send,
        get: impl Fn(Range<u64>) -> F,
    ) -> Result<Footer, PoolError>
    where
        F: Future<Output = Result<Bytes, PoolError>>,
    {
        let (rest, trailer) = tail
            .split_last_chunk::<TRAILER_BYTES>()
            .filter(|_| self.size >= (HEADER_BYTES + TRAILER_BYTES) as u64)
            .ok_or_else(|| self.corrupt(Damaged("it is too short for a segment")))?;
        let trailer = Trailer::decode(trailer, self.size).map_err(|damaged| self.corrupt(damaged))?;
        let length = trailer.footer.length as usize;
        debug_assert!(trailer.footer.length <= FOOTER_BYTES_MAX);
        let mut sealed = if let Some(start) = rest.len().checked_sub(length) {
            rest[start..].to_vec()
        } else {
            let end = trailer.footer.offset + u64::from(trailer.footer.length);
            get(trailer.footer.offset..end).await?.to_vec()
        };
        let header = match tail.first_chunk::<HEADER_BYTES>() {
            Some(header) if tail.len() as u64 == self.size => *header,
            _ => {
                let bytes = get(0..HEADER_BYTES as u64).await?;
                *bytes.first_chunk().expect("it returns what was asked for")
            }
        };
        open_footer(domains, &header, &trailer, &mut sealed).map_err(|error| match error {
            HeaderError::Damaged(damaged) => self.corrupt(damaged),
            HeaderError::Newer(version) => PoolError::NewerFormat {
                node: Arc::clone(&self.node),
                key: self.key.to_owned(),
                found: u64::from(version),
                known: u64::from(VERSION),
            },
        })
    }

    fn corrupt(&self, damaged: Damaged) -> PoolError {
        PoolError::Corrupt {
            node: Arc::clone(&self.node),
            key: self.key.to_owned(),
            part: "the segment".to_owned(),
            reason: damaged.to_string(),
        }
    }
}
