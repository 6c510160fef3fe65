//! Errors of the engine.

use cairn_metadata::CatalogError;
use cairn_model::{ErrorKind, Kinded};
use cairn_segment_writer::{ManifestId, PoolError};
use cairn_wal::WalError;
use std::sync::Arc;

/// What went wrong, to what, and what to do next. Cheap to clone: one failed fetch answers every reader that waited for it.
#[derive(Debug, Clone, thiserror::Error)]
pub enum EngineError {
    #[error("the range at byte {offset}, {length} bytes long, ends beyond the volume's {size} bytes")]
    OutOfRange { offset: u64, length: u64, size: u64 },
    #[error("volume {0} is read-only")]
    ReadOnly(String),
    #[error("there is no volume named {0}; `cairn volume list` shows those there are")]
    NoSuchVolume(String),
    #[error("this gateway does not serve volume {0}: `cairn status` says why")]
    NotServedHere(String),
    #[error(
        "this gateway still serves another volume as {0}: restart it, and it knows the volumes' names again"
    )]
    NameServed(String),
    #[error("there is no snapshot {0}; `cairn snapshot list` shows those there are")]
    NoSuchSnapshot(String),
    #[error("snapshot {0} exists already: choose another name")]
    SnapshotExists(String),
    #[error("group {group} cannot run: {reason}")]
    BadPolicy { group: String, reason: String },
    #[error("volume {0} is named twice: a volume has one snapshot at one moment")]
    NamedTwice(String),
    #[error("snapshot {0} is being read: disconnect its readers first")]
    SnapshotInUse(String),
    #[error(
        "the write-ahead log holds a mark that this program does not know ({0}): a newer one wrote it, start that one"
    )]
    UnknownMark(String),
    #[error(
        "volume {0} has as many snapshots on their way to the pool as it can have: try again when the pool has taken them"
    )]
    TooManySnapshots(String),
    #[error(
        "the log has not taken the snapshot in time, and may have it all the same: `cairn snapshot list` shows what there is"
    )]
    SnapshotLate,
    #[error(
        "what the catalog has of volume {0} is not known, and serving it has ended: restart the gateway, which reads it anew"
    )]
    Unsure(String),
    #[error("volume {0} was deleted")]
    Deleted(String),
    #[error("volume {0} is owned by another gateway now; this one has stopped serving it")]
    Fenced(String),
    #[error("the pool is full: free space or add a data node; the write was not taken, nothing is lost")]
    PoolFull,
    #[error(
        "the write-ahead log of this gateway is missing, and it held writes that are not in the pool. Restore {0}, or start with --accept-lost-wal to go on without them"
    )]
    LostWal(String),
    #[error(
        "the write-ahead log skips from write {expected} to write {found} of volume {volume}: acknowledged writes are missing. Keep the directory as it is and ask for help"
    )]
    LogGap { volume: String, expected: u64, found: u64 },
    #[error("{0}")]
    Wal(Arc<WalError>),
    #[error("{0}")]
    Catalog(Arc<CatalogError>),
    #[error("{0}")]
    Pool(Arc<PoolError>),
    #[error("the catalog names container {0} but has no place for it: the catalog is damaged")]
    NoSuchContainer(cairn_model::ContainerId),
    #[error(
        "a write of volume {0} is in neither the log nor the pool, which is a bug: restart the gateway, which reads both anew"
    )]
    Astray(String),
    #[error("the key of dedupe domain {0} is not open here; `cairn domain list` says why")]
    DomainClosed(cairn_model::DomainId),
    #[error("the settings of a volume cannot be used: {0}")]
    BadOptions(String),
    #[error("the pool did not answer within {0} seconds; see `cairn status`")]
    PoolSilent(u64),
    #[error("a checkpoint of the catalog was given up after {0} hours; the next one goes on where it was")]
    CheckpointTooLong(u64),
    #[error("the catalog did not answer in time")]
    CatalogSilent,
    #[error("work on a batch panicked, which is a bug: {0}")]
    Panicked(String),
    #[error("this gateway could not renew its ownership of volume {0} and waits until it can")]
    LeaseLapsed(String),
    #[error("cannot start a thread: {0}")]
    Thread(#[source] Arc<std::io::Error>),
    #[error(
        "another catalog, made from the pool, has taken this site over (checkpoint {0}): this gateway works on an old one, and deletes nothing any more. Stop it"
    )]
    Superseded(ManifestId),
    #[error(
        "the pool has a later checkpoint of this catalog ({0}) than this catalog knows of: it is an older copy, or another one was made of the same checkpoint. Nothing is recorded or deleted with it; `cairn recover` makes the newest one. Where another recovery left that checkpoint, and is gone, see docs/recovery.md"
    )]
    OlderCatalog(ManifestId),
    #[error("another check of the site is under way: wait for it, or stop it")]
    FsckUnderWay,
    #[error("the plan of this repair is not that of the last check: check again")]
    NoSuchPlan,
    #[error("this kind of catalog keeps nothing that could be checked")]
    NothingToCheck,
    #[error("the gateway is stopping")]
    Stopped,
}

impl Kinded for EngineError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::OutOfRange { .. } => ErrorKind::OutOfRange,
            Self::NameServed(_)
            | Self::NotServedHere(_)
            | Self::SnapshotExists(_)
            | Self::FsckUnderWay
            | Self::NoSuchPlan
            | Self::SnapshotInUse(_) => ErrorKind::Conflict,
            Self::DomainClosed(_)
            | Self::BadOptions(_)
            | Self::NothingToCheck
            | Self::BadPolicy { .. }
            | Self::UnknownMark(_)
            | Self::NamedTwice(_) => ErrorKind::Unsupported,
            Self::ReadOnly(_) => ErrorKind::ReadOnly,
            Self::NoSuchVolume(_) | Self::NoSuchSnapshot(_) | Self::Deleted(_) => ErrorKind::NotFound,
            Self::Fenced(_) | Self::Superseded(_) | Self::OlderCatalog(_) => ErrorKind::Fenced,
            Self::PoolFull => ErrorKind::OutOfSpace,
            Self::LostWal(_) | Self::LogGap { .. } | Self::NoSuchContainer(_) | Self::Astray(_) => {
                ErrorKind::Corrupt
            }
            Self::Wal(error) => error.kind(),
            Self::Catalog(error) => error.kind(),
            Self::Pool(error) => error.kind(),
            Self::PoolSilent(_)
            | Self::CheckpointTooLong(_)
            | Self::CatalogSilent
            | Self::LeaseLapsed(_)
            | Self::TooManySnapshots(_)
            | Self::SnapshotLate
            | Self::Unsure(_)
            | Self::Stopped => ErrorKind::Unavailable,
            Self::Thread(error) => ErrorKind::of_io(error),
            Self::Panicked(_) => ErrorKind::Internal,
        }
    }
}

impl EngineError {
    /// Whether a chunk is not where it should be: lost, or taken back since somebody asked where it is.
    pub(crate) fn is_absence(&self) -> bool {
        match self {
            Self::NoSuchContainer(_) => true,
            Self::Pool(error) => matches!(**error, PoolError::NotFound { .. }),
            _ => false,
        }
    }
}

impl EngineError {
    /// Whether the pool has a later catalog of the site than this gateway's.
    pub(crate) const fn is_of_another_catalog(&self) -> bool {
        matches!(self, Self::Superseded(_) | Self::OlderCatalog(_))
    }

    /// Whether a chunk that was looked for in its old place may be found in a new one.
    pub(crate) fn may_have_moved(&self) -> bool {
        match self {
            Self::Pool(error) => matches!(
                **error,
                PoolError::NotFound { .. } | PoolError::Corrupt { .. } | PoolError::UnknownNode { .. }
            ),
            _ => self.is_absence(),
        }
    }
}

impl From<WalError> for EngineError {
    fn from(error: WalError) -> Self {
        Self::Wal(Arc::new(error))
    }
}

impl From<CatalogError> for EngineError {
    fn from(error: CatalogError) -> Self {
        Self::Catalog(Arc::new(error))
    }
}

impl From<PoolError> for EngineError {
    fn from(error: PoolError) -> Self {
        Self::Pool(Arc::new(error))
    }
}
