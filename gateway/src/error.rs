//! The gateway's error: what happened, to what; with [`GatewayError::hint`] what to do next.

use crate::config::ConfigError;
use crate::directory::DirectoryError;
use crate::image::ImageError;
use crate::key::KeyError;
use cairn_engine::EngineError;
use cairn_metadata::{CatalogError, InvalidName};
use cairn_model::{ErrorKind, Kinded};
use cairn_nbd::NbdError;
use cairn_policy::PolicyError;
use cairn_segment_writer::PoolError;
use cairn_wal::WalError;
use std::io;
use std::path::PathBuf;

#[derive(Debug, thiserror::Error)]
pub enum GatewayError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Directory(#[from] DirectoryError),
    #[error(transparent)]
    Key(#[from] KeyError),
    #[error(transparent)]
    Image(#[from] ImageError),
    #[error(transparent)]
    Catalog(#[from] CatalogError),
    #[error(transparent)]
    Engine(#[from] EngineError),
    #[error(transparent)]
    Pool(#[from] PoolError),
    #[error(transparent)]
    Wal(#[from] WalError),
    #[error(transparent)]
    Nbd(#[from] NbdError),
    #[error(transparent)]
    Name(#[from] InvalidName),
    #[error(transparent)]
    Policy(#[from] PolicyError),
    /// An answer of a running gateway; its message is complete.
    #[error("{message}")]
    Api { kind: ErrorKind, message: String, hint: Option<String> },
    /// A request that the state does not allow, or that makes no sense.
    #[error("{what}")]
    Refused { kind: ErrorKind, what: String, next: Option<String> },
    /// A command line that could never work, whatever the state is.
    #[error("{what}")]
    Usage { what: String, next: Option<String> },
    /// What a check found, with the exit status that says so.
    #[error("{what}")]
    Found { code: u8, what: String, next: String },
    #[error("cannot listen on {address}")]
    Listen { address: String, source: io::Error },
    #[error("cannot {action} {path}")]
    File { action: &'static str, path: PathBuf, source: io::Error },
    #[error("the gateway at {path} does not answer")]
    Unreachable { path: PathBuf, source: Box<dyn std::error::Error + Send + Sync> },
    #[error("the gateway at {path} gave an answer that makes no sense: {problem}")]
    BadAnswer { path: PathBuf, problem: String },
    #[error("reading the image ended unexpectedly: the image is damaged in a way that was not foreseen")]
    ImageReaderDied,
    #[error("cannot {action}")]
    System { action: &'static str, source: io::Error },
}

impl GatewayError {
    /// A refusal with what to do instead.
    pub fn refused(kind: ErrorKind, what: impl Into<String>, next: impl Into<String>) -> Self {
        Self::Refused { kind, what: what.into(), next: Some(next.into()) }
    }

    /// The error as one of the command line it was found in.
    pub fn into_usage(self) -> Self {
        Self::Usage { what: self.full_message(), next: self.hint() }
    }

    /// What to do next, when the message does not say it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Directory(error) => error.hint(),
            Self::Key(error) => error.hint(),
            Self::Image(error) => error.hint(),
            Self::Api { hint, .. } => hint.clone(),
            Self::Refused { next, .. } | Self::Usage { next, .. } => next.clone(),
            Self::Found { next, .. } => Some(next.clone()),
            Self::Listen { address, source } if source.kind() == io::ErrorKind::AddrInUse => Some(format!(
                "stop what listens on {address}, or choose another address with --nbd or in cairn.toml"
            )),
            Self::Unreachable { .. } => Some("see the gateway's log, or stop it and try again".to_owned()),
            Self::ImageReaderDied => {
                Some("try: qemu-img check, or qemu-img convert to a raw image".to_owned())
            }
            _ => None,
        }
    }

    /// The message with its sources, on one line.
    pub fn full_message(&self) -> String {
        let mut text = self.to_string();
        // The messages of the crates below say all there is to say; their sources repeat it at length.
        if matches!(
            self,
            Self::Catalog(_)
                | Self::Engine(_)
                | Self::Pool(_)
                | Self::Wal(_)
                | Self::Nbd(_)
                | Self::Api { .. }
        ) {
            return text;
        }
        let mut source = std::error::Error::source(self);
        while let Some(error) = source {
            text.push_str(": ");
            text.push_str(&error.to_string());
            source = error.source();
        }
        text
    }
}

impl Kinded for GatewayError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::Config(_) | Self::Name(_) | Self::Policy(_) | Self::Usage { .. } => ErrorKind::Unsupported,
            Self::Directory(error) => match error {
                DirectoryError::Missing { .. } => ErrorKind::NotFound,
                DirectoryError::Io { source, .. } => ErrorKind::of_io(source),
                DirectoryError::Newer { .. } => ErrorKind::Unsupported,
                DirectoryError::DamagedFormat { .. }
                | DirectoryError::DamagedGateway { .. }
                | DirectoryError::DamagedRecovery { .. } => ErrorKind::Corrupt,
                DirectoryError::Incomplete { .. }
                | DirectoryError::Foreign { .. }
                | DirectoryError::AlreadyInitialised { .. }
                | DirectoryError::Unrecovered { .. }
                | DirectoryError::NotTakenOver { .. }
                | DirectoryError::RecoveredInPart { .. }
                | DirectoryError::Locked { .. } => ErrorKind::Conflict,
            },
            Self::Key(error) => error.kind(),
            Self::Image(error) => match error {
                ImageError::Io { source, .. } => ErrorKind::of_io(source),
                ImageError::Exists { .. }
                | ImageError::Busy { .. }
                | ImageError::Unfinished { .. }
                | ImageError::UnknownUpdate { .. } => ErrorKind::Conflict,
                ImageError::Damaged { .. } => ErrorKind::Corrupt,
                ImageError::NotAnImage { .. }
                | ImageError::Unsupported { .. }
                | ImageError::NotRaw { .. }
                | ImageError::Empty { .. } => ErrorKind::Unsupported,
            },
            Self::Catalog(error) => error.kind(),
            Self::Engine(error) => error.kind(),
            Self::Pool(error) => error.kind(),
            Self::Wal(error) => error.kind(),
            Self::Nbd(error) => error.kind(),
            Self::Api { kind, .. } | Self::Refused { kind, .. } => *kind,
            Self::Listen { source, .. } | Self::File { source, .. } | Self::System { source, .. } => {
                ErrorKind::of_io(source)
            }
            Self::Unreachable { .. } => ErrorKind::Unavailable,
            Self::BadAnswer { .. } => ErrorKind::Internal,
            Self::Found { .. } | Self::ImageReaderDied => ErrorKind::Corrupt,
        }
    }
}
