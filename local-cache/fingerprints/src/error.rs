//! Why there is no index on disk. Nothing else of the index fails: what goes wrong later is counted.

use cairn_model::{ErrorKind, Kinded};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The fingerprint index cannot be opened.
#[derive(Clone, Debug, thiserror::Error)]
pub enum IndexError {
    #[error("fingerprint index settings: {reason}")]
    Config { reason: String },
    #[error("fingerprint index: cannot {operation} {}: {source}", path.display())]
    Io { operation: &'static str, path: PathBuf, source: Arc<std::io::Error> },
    #[error(
        "{} has files that are not of a fingerprint index; nothing in it was touched. Name an empty directory or one that does \
         not exist yet",
        path.display()
    )]
    NotOurs { path: PathBuf },
    #[error("fingerprint index {} is in use by another process; stop that one first", path.display())]
    Locked { path: PathBuf },
    #[error("fingerprint index: cannot make a new store in {}: {detail}", path.display())]
    Store { path: PathBuf, detail: String },
}

impl IndexError {
    pub(crate) fn io(operation: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        move |source| Self::Io { operation, path: path.to_owned(), source: Arc::new(source) }
    }
}

impl Kinded for IndexError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::Config { .. } => ErrorKind::Unsupported,
            Self::Io { source, .. } => ErrorKind::of_io(source),
            Self::NotOurs { .. } | Self::Locked { .. } => ErrorKind::Conflict,
            Self::Store { .. } => ErrorKind::Internal,
        }
    }
}
