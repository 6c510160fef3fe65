//! The flash cache: sealed chunks on a local device, warm after a restart.
//!
//! It keeps what the pool has, so losing any of it costs a fetch and nothing else: every failure is a miss, everything it returns is
//! authenticated by the caller, and a device that fails too often is retired and the service goes on without it.
//!
//! foyer is the cache: its store keeps what is on the way to the device, compares keys and drives an engine. The engine is ours
//! (`engine`, through foyer's `Engine` port): a ring of regions that are overwritten in turn, oldest first, read without
//! a change of threads when the page cache has the bytes. Why, and what it costs: `docs/decisions/0009-flash-cache.md`.
//!
//! Bytes on the device: `format`. Order of durable effects: `writer`, `recovery`. Who may enter: `admission`.

mod admission;
mod cache;
mod config;
mod device;
mod directory;
mod engine;
mod format;
mod headroom;
mod health;
mod index;
mod key;
mod queue;
mod reader;
mod recovery;
mod ring;
mod status;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
#[cfg(test)]
mod tests;
mod writer;

pub use cache::FlashCache;
pub use config::{CAPACITY_BYTES_MIN, ConfigError, FlashConfig, PAYLOAD_BYTES_MAX};
pub use status::FlashStatus;
#[cfg(any(test, feature = "testing"))]
pub use testing::MemoryFlash;

use bytes::Bytes;
use cairn_model::ChunkId;
use std::fmt::Debug;

/// Where a chunk offered to the cache comes from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Source {
    /// Just written by this gateway. Gives way first: nobody has asked for it yet.
    Destage,
    /// Just fetched from the pool because somebody reads it or its neighbour.
    Fetch,
}

/// A cache of chunks as they are stored: sealed.
#[async_trait::async_trait]
pub trait SealedCache: Send + Sync + Debug {
    /// The chunk's stored bytes, not verified: the caller authenticates them, and tells [`SealedCache::damaged`] if that fails.
    async fn get(&self, chunk: ChunkId) -> Option<Bytes>;

    /// Offers a chunk. Never waits; it may be dropped. A chunk's bytes never change, so offering one again changes nothing.
    fn insert(&self, chunk: ChunkId, stored: Bytes, source: Source);

    /// What [`SealedCache::get`] returned failed its authentication: it is counted and forgotten, and too much of it retires
    /// the device.
    fn damaged(&self, chunk: ChunkId);

    fn status(&self) -> FlashStatus;

    /// Writes what was inserted and stops. Afterwards nothing is found and nothing is taken.
    async fn close(&self);
}
