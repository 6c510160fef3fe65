//! Where content is that is stored already: fingerprints of blocks to places in containers.
//!
//! The index keeps one *anchor* for each chunk (its last block's fingerprint, which leads to the container) and for each container the *list* of all
//! its blocks. Any block of incoming data may hit an anchor; then the container's whole list is loaded into memory, where the blocks around it
//! are found: what was written together is usually read together. After Zhu, Li, Patterson, "Avoiding the Disk Bottleneck in the Data Domain
//! Deduplication File System" (FAST 2008) and Lillibridge et al., "Sparse Indexing" (FAST 2009).
//!
//! Invariants:
//! - An answer was given to the index for that domain and that fingerprint. It may be of no use any more, but it is never wrong: ids of containers
//!   are not reused, and containers do not change.
//! - The index is a cache of what the catalog and the pool have. It may lack anything at any time, and may be removed.
//! - It never fails and, but for reads and writes of its disk, never waits.
//!
//! Most blocks are new, and a filter in memory says so without the disk (`filter`).
//!
//! What a crash leaves and what is done on errors of the disk: `disk`. Bytes: `format`. Files, and which of them may be removed: `place`. Memory:
//! `ram`. Choice of the store: `docs/decisions/0011-fingerprint-index.md`.

mod config;
mod counters;
mod disk;
mod error;
mod failures;
mod filter;
mod format;
#[doc(hidden)]
pub mod fuzzing;
mod horizon;
mod index;
mod manifest;
mod place;
mod ram;
mod store;

pub use config::{IndexConfig, IndexStatus, Opened, WipeReason};
pub use error::IndexError;
pub use index::FingerprintIndex;
