//! What an error means to whoever must act on it.

/// The few things a caller can do something about. Each crate's error maps to one of these in one exhaustive
/// match, and each protocol maps these to its own codes in another.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum ErrorKind {
    /// Somebody else owns the volume now; this gateway must stop serving it.
    Fenced,
    /// A dependency does not answer; the same call may succeed later.
    Unavailable,
    /// No space where the bytes must go.
    OutOfSpace,
    /// The address is beyond the end of the volume.
    OutOfRange,
    /// The volume or the attachment takes no writes.
    ReadOnly,
    /// Bytes fail their checksum or authentication, and no good copy was found.
    Corrupt,
    /// The named thing does not exist.
    NotFound,
    /// The name is taken, or the state does not allow it now.
    Conflict,
    /// The request makes no sense here or asks for what does not exist in this version.
    Unsupported,
    /// A broken invariant, or an operating-system error with no better name.
    Internal,
}

impl ErrorKind {
    /// Stable lower-case name for `--json` and the admin API.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Fenced => "fenced",
            Self::Unavailable => "unavailable",
            Self::OutOfSpace => "out_of_space",
            Self::OutOfRange => "out_of_range",
            Self::ReadOnly => "read_only",
            Self::Corrupt => "corrupt",
            Self::NotFound => "not_found",
            Self::Conflict => "conflict",
            Self::Unsupported => "unsupported",
            Self::Internal => "internal",
        }
    }

    /// The kind of an operating-system error, for errors of files and sockets.
    pub fn of_io(error: &std::io::Error) -> Self {
        use std::io::ErrorKind as Io;
        match error.kind() {
            Io::NotFound => Self::NotFound,
            Io::StorageFull | Io::QuotaExceeded => Self::OutOfSpace,
            Io::ReadOnlyFilesystem => Self::ReadOnly,
            Io::TimedOut | Io::ConnectionRefused | Io::ConnectionReset | Io::ConnectionAborted => {
                Self::Unavailable
            }
            Io::AlreadyExists => Self::Conflict,
            Io::Unsupported => Self::Unsupported,
            _ => Self::Internal,
        }
    }
}

/// An error that knows its kind.
pub trait Kinded: std::error::Error {
    fn kind(&self) -> ErrorKind;
}
