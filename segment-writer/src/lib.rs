//! Bytes to immutable objects and back.
//!
//! Packing ([`Packer`]) turns the blocks of a batch into sealed segments, the pool ([`Pool`]) makes them durable on
//! data nodes, and reading ([`Pool::read_chunks`]) brings verified chunks back. A segment's way is one of types: an open
//! one inside the packer, a [`SealedSegment`], and after [`Pool::put`] an [`UploadReceipt`](cairn_model::UploadReceipt),
//! without which the catalog publishes nothing.

mod admin;
mod chunk;
mod compress;
mod container;
mod domain;
mod error;
#[doc(hidden)]
pub mod fuzzing;
mod pool;
mod reader;
mod record;
mod seal;
mod segment;
#[doc(hidden)]
pub mod testing;

pub use admin::{Capabilities, S3Admin, Versioning};
pub use chunk::ChunkShape;
pub use compress::{Codec, Compression};
pub use container::{CONTAINER_BYTES_MAX, ChunkEntry, ContainerDirectory};
pub use domain::{Domain, FingerprintKey};
pub use error::{Action, Damaged, PoolError};
pub use pool::{
    BreakerState, Candidate, Credentials, DamagedShard, DataNode, Domains, EncodedSegment, FoundSegment,
    GET_BYTES_MAX, HealthSnapshot, KEYS_BYTES_MAX, KEYS_KEY, LastError, ListedObject, MARKER_KEY, Member,
    NodeAccess, NodeHealth, NodeState, NodeUrl, ObjectIdentity, ObjectTally, Pool, PoolSettings, Refusal,
    RequestPolicy, S3Url, ShardLook, ShardState, Stray, choose,
};
pub use reader::{ContainerLocation, FetchedChunks, StoredSink};
pub use record::{
    Copies, Manifest, ManifestId, ManifestPiece, Piece, PieceCutter, PieceName, RecordKey, RecordListing,
    RecordStore, SealedPiece,
};
pub use seal::ContainerCipher;
pub use segment::{
    BatchHeader, Check, Checker, ChunkSink, Dedupe, Finder, Footer, HEADER_BYTES, PackConfig, PackStats,
    PackedBatch, PackedDelta, Packer, Regrouped, SEGMENTS_PREFIX, SealedSegment, SegmentContainer,
    TRAILER_BYTES, VolumeDelta, VolumeHeader, VolumePacking,
};
