//! What can go wrong with the log.

use cairn_model::crypto::KeyId;
use cairn_model::{ErrorKind, GatewayId, Kinded, Lsn, SiteId};
use std::sync::Arc;

/// An error of the write-ahead log.
#[derive(Debug, Clone, thiserror::Error)]
pub enum WalError {
    #[error("write-ahead log settings: {reason}")]
    Config { reason: String },
    #[error("write-ahead log: cannot {operation} {file}: {source}")]
    Io { operation: &'static str, file: String, source: Arc<std::io::Error> },
    #[error(
        "write-ahead log: no space to allocate {bytes} bytes for {file}; free some space or lower the log's capacity"
    )]
    OutOfSpace { file: String, bytes: u64, source: Arc<std::io::Error> },
    #[error(
        "no write-ahead log in {location}; if this gateway wrote one, its disk is missing or not mounted: put it back"
    )]
    NotFound { location: String },
    #[error("write-ahead log {location} is in use by another process; stop that one first")]
    Locked { location: String },
    #[error(
        "write-ahead log {file} is damaged at byte {offset}: {detail}. Writes that were acknowledged as durable are \
         affected, so nothing was replayed past this point. Keep the files and repair from a copy"
    )]
    Corrupt { file: String, offset: u64, detail: String },
    #[error(
        "write-ahead log in {location} lacks its file of epoch {epoch}, which holds writes that are not in the pool \
         yet; put the file back"
    )]
    MissingFile { location: String, epoch: u64 },
    #[error(
        "write-ahead log {file} was written under key {found}, but the configured key is {expected}; configure the key that \
         wrote it"
    )]
    WrongKey { file: String, expected: KeyId, found: KeyId },
    #[error(
        "write-ahead log {file} belongs to gateway {found_gateway} of site {found_site}, not to gateway {gateway} of \
         site {site}; every gateway needs a directory of its own"
    )]
    WrongIdentity {
        file: String,
        site: SiteId,
        gateway: GatewayId,
        found_site: SiteId,
        found_gateway: GatewayId,
    },
    #[error(
        "write-ahead log {file} was written by a newer version ({detail}); start that version or a later one"
    )]
    NewerVersion { file: String, detail: String },
    #[error(
        "the write-ahead log acknowledges nothing more after a failure ({cause}); check the disk, then restart"
    )]
    Poisoned { cause: Arc<str> },
    #[error("the write-ahead log is closed")]
    Closed,
    #[error("log record {lsn} has been freed")]
    Freed { lsn: Lsn },
    #[error("log record {lsn} does not exist; the next one will be {next}")]
    NotAppended { lsn: Lsn, next: Lsn },
    #[error("log record {lsn} carries no data")]
    NoData { lsn: Lsn },
    #[error("record refused: {reason}")]
    InvalidRecord { reason: String },
}

impl WalError {
    pub(crate) fn io(operation: &'static str, file: &str, source: std::io::Error) -> Self {
        Self::Io { operation, file: file.to_owned(), source: Arc::new(source) }
    }

    pub(crate) fn corrupt(file: &str, offset: u64, detail: impl Into<String>) -> Self {
        Self::Corrupt { file: file.to_owned(), offset, detail: detail.into() }
    }
}

impl Kinded for WalError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::Io { source, .. } => ErrorKind::of_io(source),
            Self::OutOfSpace { .. } => ErrorKind::OutOfSpace,
            Self::NotFound { .. } | Self::Freed { .. } => ErrorKind::NotFound,
            Self::Locked { .. } | Self::WrongIdentity { .. } | Self::WrongKey { .. } => ErrorKind::Conflict,
            Self::Corrupt { .. } | Self::MissingFile { .. } => ErrorKind::Corrupt,
            Self::Config { .. } | Self::NewerVersion { .. } | Self::InvalidRecord { .. } => {
                ErrorKind::Unsupported
            }
            Self::Closed => ErrorKind::Unavailable,
            Self::Poisoned { .. } | Self::NotAppended { .. } | Self::NoData { .. } => ErrorKind::Internal,
        }
    }
}
