//! What can go wrong in the catalog.

use crate::{DomainName, KeyRow, LeaseStamp, NewVolume, SnapshotName, VolumeName};
use cairn_model::crypto::KeyId;
use cairn_model::map::codec::MapCodecError;
use cairn_model::{
    CommitSeq, ContainerId, ErrorKind, Generation, GroupRunId, Kinded, LineageId, SegmentId, VolumeId,
    WallTime, WriteSeq, utc,
};
use std::fmt::Display;
use std::time::Duration;

#[derive(Debug, thiserror::Error)]
pub enum CatalogError {
    #[error(
        "volume {volume} is not held by this gateway at generation {presented} any more \
         (the catalog is at {current}): stop serving it"
    )]
    Fenced { volume: VolumeId, presented: Generation, current: Generation },

    #[error(
        "volume {volume} is held by gateway {holder}: stop it there first, or wait until it has not been renewed for {} seconds",
        term.as_secs_f64()
    )]
    LeaseHeld {
        volume: VolumeName,
        holder: String,
        stamp: LeaseStamp,
        /// How long the lease lasts without renewal.
        term: Duration,
    },

    #[error("{what} {name} exists already: choose another name")]
    NameTaken { what: &'static str, name: String },

    #[error("{what} {id} exists already")]
    AlreadyExists { what: &'static str, id: String },

    #[error(
        "node {name} still holds segments: move them to other nodes with `cairn node drain {name}` before removing it"
    )]
    NodeInUse { name: String },

    #[error(
        "removing node {name} would lose {segments} segments, which have no shard to spare: bring the node back, or delete first what needs them"
    )]
    SegmentsLost { name: String, segments: u64 },

    #[error("segment {segment} was moved, repaired or removed in the meantime: look again where it is")]
    PlacementChanged { segment: SegmentId },

    #[error(
        "shard {shard} of segment {segment} stays on record although it is not there or damaged: without it too few are left to read anything of \
         the segment. What it alone held is lost unless its node comes back with it"
    )]
    LastShards { segment: SegmentId, shard: usize },

    #[error("domain {name} still has volumes or stored data: it can be deleted when both are gone")]
    DomainInUse { name: DomainName },

    #[error("the default domain cannot be deleted")]
    DefaultDomain,

    #[error(
        "key {key} of purpose {purpose} would be lost: it is not among the keys that replace the present ones: \
         read the keys again and begin anew"
    )]
    KeyLost { purpose: String, key: KeyId },

    #[error(
        "a batch of volume {volume} begins at write {base}, but writes are committed through {committed}: \
         the batch is not the one that follows"
    )]
    NotNext { volume: VolumeId, base: WriteSeq, committed: WriteSeq },

    #[error(
        "a batch of volume {volume} points at container {container}, which is neither in the batch nor in the catalog as one of \
         the volume's domain"
    )]
    UnknownContainer { volume: VolumeId, container: ContainerId },

    #[error(
        "object {key} of segment {segment} is to be deleted: nothing named it when that was decided. What it holds is to be put again, under another key"
    )]
    ObjectDoomed { segment: SegmentId, key: String },

    #[error("folding lineage {lineage} through {through} does not fit: it has commits through {last}")]
    FoldBeyond { lineage: LineageId, through: CommitSeq, last: CommitSeq },

    #[error("folding lineage {lineage} through {through} would pass its snapshot at {snapshot}")]
    FoldAcross { lineage: LineageId, through: CommitSeq, snapshot: CommitSeq },

    #[error(
        "container {container} was opened since this pass of reclaim closed it: something may need it again"
    )]
    ContainerOpen { container: ContainerId },

    #[error("snapshot {name} is not in the map's leaves yet: try again in a moment")]
    NotSettled { name: SnapshotName },

    #[error(
        "volume {name} has snapshots ({snapshots}): delete them first, or delete everything with --force"
    )]
    HasSnapshots { name: VolumeName, snapshots: u64 },

    #[error("snapshot {name} is locked until {}: neither it nor its volume can be deleted before, also not with --force", utc(*until))]
    Locked { name: String, until: WallTime },

    #[error("run {run} of group {name} has not ended yet: try again in a moment")]
    RunUnderWay { name: String, run: GroupRunId },

    #[error(
        "snapshots, clones or reverts came or went all the time while it was counted whose space it is: try again in a moment"
    )]
    Changing,

    #[error("there is no {what} {name}")]
    NotFound { what: &'static str, name: String },

    #[error("the catalog's {what} is damaged: {detail}")]
    Corrupt { what: &'static str, detail: String },

    #[error(
        "the catalog {catalog} has schema version {found}, this program knows up to {known}: use a newer program"
    )]
    NewerSchema { catalog: String, found: i64, known: i64 },

    #[error(
        "the catalog {catalog} has format version {found}, this program knows up to {known}: use a newer program"
    )]
    NewerFormat { catalog: String, found: u32, known: u32 },

    #[error("{path} is not a Cairn catalog but another SQLite database: check the catalog setting")]
    NotACatalog { path: String },

    #[error("the catalog's {what} has a newer format than this program knows: {detail}")]
    NewerBlob { what: &'static str, detail: String },

    #[error("the catalog cannot be asked this: {0}")]
    Invalid(String),

    #[error("the catalog does not answer ({doing}): {source}")]
    Unavailable { doing: &'static str, source: sqlx::Error },

    #[error("no space for the catalog ({doing}): free space on its file system: {source}")]
    OutOfSpace { doing: &'static str, source: sqlx::Error },

    #[error("the catalog's file is damaged ({doing}): restore it or rebuild it from the pool: {source}")]
    Damaged { doing: &'static str, source: sqlx::Error },

    #[error("the catalog failed ({doing}): {source}")]
    Database { doing: &'static str, source: sqlx::Error },

    #[error("the catalog's schema could not be brought up to date: {0}")]
    Migration(#[source] sqlx::migrate::MigrateError),

    #[error("catalog file {path}: {source}")]
    File { path: String, source: std::io::Error },
}

impl Kinded for CatalogError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::Fenced { .. } => ErrorKind::Fenced,
            Self::LeaseHeld { .. }
            | Self::NameTaken { .. }
            | Self::AlreadyExists { .. }
            | Self::NodeInUse { .. }
            | Self::SegmentsLost { .. }
            | Self::PlacementChanged { .. }
            | Self::LastShards { .. }
            | Self::DomainInUse { .. }
            | Self::DefaultDomain
            | Self::KeyLost { .. }
            | Self::NotNext { .. }
            | Self::HasSnapshots { .. }
            | Self::Locked { .. }
            | Self::RunUnderWay { .. }
            | Self::NotSettled { .. }
            | Self::ContainerOpen { .. }
            | Self::ObjectDoomed { .. }
            | Self::UnknownContainer { .. } => ErrorKind::Conflict,
            Self::NotFound { .. } => ErrorKind::NotFound,
            Self::Corrupt { .. } | Self::Damaged { .. } => ErrorKind::Corrupt,
            Self::NewerSchema { .. }
            | Self::NewerFormat { .. }
            | Self::NotACatalog { .. }
            | Self::NewerBlob { .. } => ErrorKind::Unsupported,
            Self::Unavailable { .. } | Self::Changing => ErrorKind::Unavailable,
            Self::OutOfSpace { .. } => ErrorKind::OutOfSpace,
            Self::FoldBeyond { .. }
            | Self::FoldAcross { .. }
            | Self::Invalid(_)
            | Self::Database { .. }
            | Self::Migration(_) => ErrorKind::Internal,
            Self::File { source, .. } => ErrorKind::of_io(source),
        }
    }
}

impl CatalogError {
    pub(crate) fn not_found(what: &'static str, name: &impl Display) -> Self {
        Self::NotFound { what, name: name.to_string() }
    }

    /// A key that would be deleted in the very change that puts it.
    pub(crate) fn stray_key(key: &KeyRow, keep: KeyId) -> Self {
        Self::Invalid(format!(
            "key {} wrapped by {}, and only what {keep} wraps is kept",
            key.key_id, key.wrapped_by
        ))
    }

    /// A clone that could not read what it shows.
    pub(crate) fn other_domain(snapshot: &SnapshotName, clone: &NewVolume) -> Self {
        Self::Invalid(format!(
            "snapshot {snapshot} is not of domain {}, which {} is to be in",
            clone.domain, clone.name
        ))
    }

    pub(crate) fn corrupt(what: &'static str, detail: &impl Display) -> Self {
        Self::Corrupt { what, detail: detail.to_string() }
    }

    pub(crate) fn of_blob(what: &'static str, error: MapCodecError) -> Self {
        match error {
            MapCodecError::Version { .. } => Self::NewerBlob { what, detail: error.to_string() },
            MapCodecError::Corrupt(_) => Self::corrupt(what, &error),
            MapCodecError::Invalid(_) => Self::Invalid(format!("{what}: {error}")),
        }
    }
}
