//! The error numbers of the protocol, and what each kind of device error becomes.

use super::request::Command;
use cairn_model::ErrorKind;

/// The values a reply may carry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub(crate) enum Errno {
    Permission = 1,
    Io = 5,
    Invalid = 22,
    NoSpace = 28,
    Overflow = 75,
    Shutdown = 108,
}

/// What a device error of `kind` means to the client that sent `command`.
///
/// `Fenced` is ESHUTDOWN: this server must stop serving the volume, and the document tells the client to leave.
/// `Unavailable` is EIO, not ESHUTDOWN: the session is good and the same request may succeed later.
/// Beyond the end, the document asks for ENOSPC where bytes were to be stored and EINVAL elsewhere.
/// ENOTSUP is kept for FAST_ZERO, and zeroing is never slower than writing here, so it does not occur.
pub(crate) fn errno_of(kind: ErrorKind, command: Command) -> Errno {
    match kind {
        ErrorKind::Fenced => Errno::Shutdown,
        ErrorKind::OutOfSpace => Errno::NoSpace,
        ErrorKind::OutOfRange => match command {
            Command::Write | Command::WriteZeroes => Errno::NoSpace,
            Command::Read
            | Command::Disconnect
            | Command::Flush
            | Command::Trim
            | Command::Cache
            | Command::BlockStatus => Errno::Invalid,
        },
        ErrorKind::ReadOnly => Errno::Permission,
        ErrorKind::Unsupported => Errno::Invalid,
        ErrorKind::Unavailable
        | ErrorKind::Corrupt
        | ErrorKind::NotFound
        | ErrorKind::Conflict
        | ErrorKind::Internal => Errno::Io,
    }
}

/// The message of an error chunk. The device's own message may name hosts, paths and keys, so it is logged here
/// and this is sent.
pub(crate) const fn message_of(kind: ErrorKind) -> &'static str {
    match kind {
        ErrorKind::Fenced => "another gateway owns this volume now; connect there",
        ErrorKind::Unavailable => "the storage behind this volume does not answer; try again later",
        ErrorKind::OutOfSpace => "the pool has no space left",
        ErrorKind::OutOfRange => "the request goes beyond the end of the volume",
        ErrorKind::ReadOnly => "the volume is read-only",
        ErrorKind::Corrupt => "the stored data is damaged and no good copy was found",
        ErrorKind::NotFound => "the volume does not exist any more",
        ErrorKind::Conflict => "the volume's state does not allow this now",
        ErrorKind::Unsupported => "the volume does not support this request",
        ErrorKind::Internal => "internal error; the gateway's log has the details",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn past_the_end_is_no_space_for_writers_and_invalid_for_the_rest() {
        for command in [Command::Write, Command::WriteZeroes] {
            assert_eq!(errno_of(ErrorKind::OutOfRange, command), Errno::NoSpace);
        }
        for command in [Command::Read, Command::Trim, Command::Cache, Command::BlockStatus, Command::Flush] {
            assert_eq!(errno_of(ErrorKind::OutOfRange, command), Errno::Invalid);
        }
    }

    #[test]
    fn a_full_pool_is_no_space_and_not_an_input_output_error() {
        assert_eq!(errno_of(ErrorKind::OutOfSpace, Command::Write), Errno::NoSpace);
        assert_eq!(errno_of(ErrorKind::OutOfSpace, Command::Flush), Errno::NoSpace);
    }

    #[test]
    fn a_fenced_volume_sends_its_clients_away() {
        assert_eq!(errno_of(ErrorKind::Fenced, Command::Write), Errno::Shutdown);
        assert_eq!(errno_of(ErrorKind::Unavailable, Command::Write), Errno::Io);
    }
}
