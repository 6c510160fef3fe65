//! The catalog: what a site knows about its volumes, domains, leases, maps, containers, segments, nodes and keys.
//!
//! | module | idea |
//! |---|---|
//! | [`Catalog`] | the port; one conformance suite for every implementation |
//! | `placements` | the pool's settings, where segments are, and how that changes |
//! | `rows` | what the catalog holds, as types |
//! | `batch` | one destaged batch and one step of folding: the two big transactions |
//! | `reclaim` | what is in use, and where containers move |
//! | `groups` | protection groups, their runs, and events |
//! | `leaf` | a leaf of an extent map, in memory and in bytes |
//! | `space` | what a snapshot or a volume alone keeps |
//! | `check` | rows as they are, and sums beside what they should be, for a check of the catalog |
//! | `record` | all rows, for a record of the catalog elsewhere |
//! | `sqlite` | the catalog in one file |
//! | `memory` | a catalog in memory with faults, for simulations (feature `testing`) |
//! | `conformance` | the suite that every implementation passes (feature `conformance`) |
//!
//! The schema is documented where it is defined: `migrations/` at the root of the repository.
//!
//! The catalog is never on the path of a read or write of a guest: maps live in memory, a batch commits in one
//! transaction whose cost depends on the batch alone.

mod batch;
mod catalog;
mod check;
#[cfg(any(test, feature = "conformance"))]
#[doc(hidden)]
pub mod conformance;
mod error;
mod groups;
mod leaf;
#[cfg(any(test, feature = "testing"))]
#[doc(hidden)]
pub mod memory;
mod name;
mod placements;
mod reclaim;
mod record;
mod rows;
mod space;
mod sqlite;

pub use batch::{
    BatchCommit, CommitReceipt, ContainerLocation, ContainerRow, FoldPlan, SegmentRow, VolumeCommit,
    VolumeOutcome, VolumeReceipt,
};
pub use catalog::Catalog;
pub use check::{
    CheckSource, CheckedContainer, CheckedSegment, MapKind, MapRow, MapRows, MissingChanges, UnnamedObject,
    WrongSum,
};
pub use error::CatalogError;
pub use groups::{
    EVENTS_MAX, EventRow, GROUP_RUNS_MAX, GroupChange, GroupMember, GroupRow, GroupRunEnd, GroupRunRow,
    GroupSnapshot, MemberState, RunOutcome,
};
pub use leaf::{LEAF_BLOCKS, LEAVES_MAX, LeafIndex, MapLeaf};
pub use name::{DomainName, GroupName, InvalidName, SnapshotName, VolumeName};
pub use placements::{NodeChange, NodeUsage, PlacementChange, PoolSettings, SegmentPlace};
pub use reclaim::{ContainerMove, ContainerUse, DoomedObject, MovedContainer, SegmentUse, UsePage};
pub use record::{RecordChanges, RecordReader, RecordRows, RecordSource, check_recorded};
pub use rows::{
    DomainRow, GatewayRow, HeldLease, KeyRow, LeafVersion, Lease, LeaseHolder, LeaseStamp, MapPoint,
    NewSnapshot, NewVolume, NodeRow, NodeState, SiteRow, SnapshotRow, Totals, VolumeRow, VolumeUsage,
    WalState,
};
pub use space::{ContainerShare, CountedLeaves, Space, SpaceBasis, SpaceCursor, SpaceOf, SpacePage, space};
pub use sqlite::{RecordWriter, SqliteCatalog};

/// Version of what the rows and blobs mean. A catalog that says a higher one is refused, whatever its schema.
pub const FORMAT_VERSION: u32 = 1;
