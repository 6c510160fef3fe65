//! Proofs as values: what was not done cannot be expressed.

use crate::{Lsn, ObjectPlace, SegmentId};

/// The write-ahead log is durable through a position. Only a completed sync makes one, so only a completed
/// sync can acknowledge a flush.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub struct FlushReceipt {
    durable_through: Lsn,
}

impl FlushReceipt {
    /// For the write-ahead log's writer, right after its sync returned success.
    pub const fn attest(durable_through: Lsn) -> Self {
        Self { durable_through }
    }

    pub const fn durable_through(self) -> Lsn {
        self.durable_through
    }
}

/// A segment is durable in the pool. Only a completed put makes one; the catalog publishes nothing else.
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use]
pub struct UploadReceipt {
    segment: SegmentId,
    place: ObjectPlace,
}

impl UploadReceipt {
    /// For the pool alone (a lint says so), right after the nodes acknowledged enough of the shards.
    pub const fn attest(segment: SegmentId, place: ObjectPlace) -> Self {
        Self { segment, place }
    }

    pub const fn segment(&self) -> SegmentId {
        self.segment
    }

    pub const fn place(&self) -> &ObjectPlace {
        &self.place
    }

    /// Object key inside a node's prefix.
    pub fn key(&self) -> &str {
        &self.place.key
    }

    pub const fn length_bytes(&self) -> u64 {
        self.place.length_bytes
    }
}
