//! What an index is told, and what it tells.

use crate::IndexError;
use std::path::PathBuf;

/// Where the index is and how large it may become.
#[derive(Clone, Debug)]
pub struct IndexConfig {
    /// A directory of its own: empty, not there yet, or made by an earlier run.
    pub path: PathBuf,
    /// Memory for the lists of containers. The store takes about 50 MiB and, with its filters, 10 bits for each anchor on top; the filter before it 10 to 20 bits for each,
    /// twice that while it is gathered anew.
    pub cache_bytes: u64,
    /// Containers on disk; beyond it the oldest are forgotten, or those whose ids are ahead of the clock. One of 8 MiB takes about 75 kB.
    pub containers_max: u64,
}

impl IndexConfig {
    pub(crate) fn check(&self) -> Result<(), IndexError> {
        if self.containers_max == 0 {
            let reason = "the number of containers must be at least 1".to_owned();
            return Err(IndexError::Config { reason });
        }
        Ok(())
    }
}

/// What was there.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Opened {
    /// Nothing: the index is new.
    Created,
    /// An index of this site with that many containers.
    Found { containers: u64 },
    /// Something that is of no use here. It was removed, the index is empty.
    Wiped { reason: WipeReason },
}

/// Why an index was thrown away.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum WipeReason {
    #[error("it was of site {found}")]
    OtherSite { found: cairn_model::SiteId },
    #[error("it was made under key {found}")]
    OtherKey { found: cairn_model::crypto::KeyId },
    #[error("it was of version {found}, which this program does not read")]
    OtherVersion { found: u32 },
    #[error("it was damaged: {detail}")]
    Damaged { detail: String },
    #[error("an earlier run gave it up after errors of its disk")]
    GivenUp,
}

/// The index in numbers.
#[derive(Clone, PartialEq, Eq, Debug, serde::Serialize)]
pub struct IndexStatus {
    /// Containers on disk; in memory, those that were committed and are still there.
    pub containers: u64,
    pub containers_max: u64,
    /// About how many anchors the store has: what it has not yet compacted away is counted too.
    pub anchors: u64,
    pub disk_bytes: u64,
    /// Memory of the filters, which answer for absent fingerprints.
    pub filter_bytes: u64,
    pub cache_bytes: u64,
    pub cache_bytes_max: u64,
    pub containers_cached: u64,
    pub containers_in_flight: u64,
    pub hits: u64,
    pub misses: u64,
    /// Lists read from disk.
    pub loads: u64,
    /// Records that failed their tag or contradicted each other. They are removed.
    pub damaged: u64,
    /// Anchors that named a forgotten container.
    pub stale: u64,
    /// Containers forgotten because the index was full.
    pub evicted: u64,
    /// Containers that were not kept because the store had not yet put away those before.
    pub skipped: u64,
    /// Containers that were not learned again, because all that the full index keeps are newer.
    pub refused: u64,
    /// Failures of the disk or the store.
    pub errors: u64,
    /// Why the index was emptied when it was opened.
    pub wiped: Option<String>,
    /// Why nothing is kept on disk.
    pub in_memory_only: Option<String>,
}
