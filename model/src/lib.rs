//! Vocabulary and ports of Cairn: newtypes, errors, keys, and the traits behind which the outside world lives.
//!
//! This crate is the leaf of the workspace: everything depends on it, it depends on nothing of ours, and it
//! does no I/O beyond the production implementations of [`Clock`], [`Entropy`] and [`Spawn`].

mod address;
mod aligned;
mod calendar;
mod clock;
mod container;
pub mod crypto;
mod device;
mod entropy;
mod error;
mod fingerprint;
mod id;
pub mod map;
mod placement;
#[doc(hidden)]
pub mod planted;
mod range_map;
mod receipt;
mod reduction;
mod sequence;
mod spawn;
pub mod varint;

/// Boxes the future of an async function of a crate's face, so that its code is made once, in its own crate. Otherwise every crate that waits for it, and every test program,
/// compiles all that it awaits anew. Not for what runs with each request of a guest. `docs/decisions/0019-boxed-futures.md` has what that saves.
pub use async_recursion::async_recursion as boxed;

pub use address::{BLOCK_SIZE, Lba, LbaRange, VOLUME_BLOCKS_MAX, ZERO_BLOCK};
pub use aligned::AlignedBuffer;
pub use calendar::{Utc, utc};
pub use clock::{Clock, Elapsed, Monotonic, SystemClock, WallTime, timeout};
pub use container::{
    BLOCKS_PER_CHUNK_MAX, CHUNKS_PER_CONTAINER_MAX, ChunkId, ChunkIndex, ChunkRef, ChunkSet,
};
pub use device::{
    AllocationExtent, BlockDevice, ChangeExtent, DeviceInfo, Durability, Exports, ReadBuffer, WriteFlags,
};
pub use entropy::{Entropy, OsEntropy, SeededEntropy};
pub use error::{ErrorKind, Kinded};
pub use fingerprint::{ContainerFingerprints, Fingerprint};
pub use id::{
    BatchId, ContainerId, DomainId, GatewayId, GroupId, GroupRunId, LineageId, NodeId, PassId, SegmentId,
    SiteId, SnapshotId, VolumeId,
};
pub use map::{DELTA_OPS_MAX, MapDelta, MapOp, MapTarget};
pub use placement::{ObjectPlace, ParseProfileError, Placement, Profile, SHARDS_MAX, ShardPlace, shard_key};
pub use range_map::{RangeMap, RangeValue};
pub use receipt::{FlushReceipt, UploadReceipt};
pub use reduction::Reduction;
pub use sequence::{CommitSeq, Generation, Lsn, WriteSeq};
pub use spawn::{DedicatedWork, Spawn, ThreadSpawn, at_niceness};

/// The ports every component takes: time, randomness and threads.
///
/// Production passes [`Ports::system`]; the simulation passes its own, and one seed is one schedule.
#[derive(Clone, Debug)]
pub struct Ports {
    pub clock: std::sync::Arc<dyn Clock>,
    pub entropy: std::sync::Arc<dyn Entropy>,
    pub spawn: std::sync::Arc<dyn Spawn>,
}

impl Ports {
    /// The real clock, the operating system's randomness, real threads.
    pub fn system() -> Self {
        Self {
            clock: std::sync::Arc::new(SystemClock::new()),
            entropy: std::sync::Arc::new(OsEntropy),
            spawn: std::sync::Arc::new(ThreadSpawn),
        }
    }
}
