//! Why there is no key, and what to do about it. No message repeats a key or a passphrase.

use super::source::PassphraseOrigin;
use cairn_model::crypto::KeyId;
use cairn_model::{ErrorKind, Kinded};
use std::fmt;
use std::io;
use std::path::PathBuf;

/// Where a key came from, for messages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    File(PathBuf),
    /// The program, without its arguments.
    Command(String),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => write!(f, "the key file {}", path.display()),
            Self::Command(program) => write!(f, "the key command {program}"),
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    #[error("the key file {path} is missing, and without it no data of this site can be read")]
    Missing { path: PathBuf },
    #[error("the {what} file {path} can be read by others than its owner (mode {mode:04o})")]
    Exposed { what: &'static str, path: PathBuf, mode: u32 },
    #[error("the {what} file {path} belongs to user {owner}, not to the user this program runs as ({user})")]
    ForeignOwner { what: &'static str, path: PathBuf, owner: u32, user: u32 },
    #[error("{origin} {} a Cairn key: {problem}", if matches!(origin, Origin::File(_)) { "is not" } else { "did not print" })]
    Malformed { origin: Origin, problem: &'static str },
    #[error("{origin} has version `{version}`, which this version of Cairn does not know")]
    NewerVersion { origin: Origin, version: String },
    #[error(
        "{origin} is not the key of this site: it is key {given}, and what the catalog holds was wrapped with key {}",
        listed(expected)
    )]
    WrongKey { origin: Origin, given: KeyId, expected: Vec<KeyId> },
    #[error("the catalog has no keys, although this site was complete: it is damaged or not this site's")]
    NoKeys,
    #[error("the key of domain {name} is damaged in the catalog: it does not open with key {master}")]
    DamagedDomainKey { name: String, master: KeyId },
    #[error("cannot use the {what} file {path}")]
    Io { what: &'static str, path: PathBuf, source: io::Error },
    #[error("the passphrase does not open {origin}; it was read from {read}")]
    WrongPassphrase { origin: Origin, read: PassphraseOrigin },
    #[error("{origin} needs a passphrase, and there is no terminal to ask for it")]
    NoPassphrase { origin: Origin },
    #[error("there is no terminal to ask for {what}")]
    NoTerminal { what: &'static str },
    #[error("the passphrase cannot be used: {problem}")]
    BadPassphrase { problem: &'static str },
    #[error("no passphrase was given")]
    Cancelled,
    #[error(
        "making a key of the passphrase takes {mib} MiB of memory, which this machine does not have free"
    )]
    NoMemory { mib: u32 },
    #[error("cannot run the key command {program}")]
    CommandStart { program: String, source: io::Error },
    #[error("the key command {program} failed: {problem}")]
    CommandFailed { program: String, problem: String },
    #[error("the key command {program} did not end within {seconds} s and was stopped")]
    CommandTimeout { program: String, seconds: u64 },
}

fn listed(keys: &[KeyId]) -> String {
    keys.iter().map(ToString::to_string).collect::<Vec<_>>().join(" or ")
}

impl KeyError {
    /// What to do next.
    pub fn hint(&self) -> Option<String> {
        Some(match self {
            Self::Missing { path } => {
                format!("put the key back from its copy, as {}, mode 0600", path.display())
            }
            Self::Exposed { path, .. } => format!("run: chmod 600 '{}'", path.display()),
            Self::ForeignOwner { path, .. } => {
                format!("run as that user, or change the owner of {}", path.display())
            }
            Self::Malformed { origin: Origin::File(path), .. } => {
                format!("put the key back from its copy, as {}", path.display())
            }
            Self::Malformed { origin: Origin::Command(_), .. } => {
                "let it print the text of a key file, or 64 hexadecimal digits, on standard output".to_owned()
            }
            Self::NewerVersion { .. } => "use the version of Cairn that wrote it, or a later one".to_owned(),
            Self::WrongKey { expected, .. } => {
                format!("put back the key with the id {}; keys cannot be exchanged", listed(expected))
            }
            Self::NoKeys | Self::DamagedDomainKey { .. } => "restore the catalog from a copy".to_owned(),
            Self::WrongPassphrase { .. } => "try again; nothing was changed".to_owned(),
            Self::NoPassphrase { .. } => "run it on a terminal, or name a file that holds the passphrase: \
                CAIRN_PASSPHRASE_FILE, [key] passphrase_file, or the systemd credential cairn-passphrase"
                .to_owned(),
            Self::NoTerminal { .. } => "run it on a terminal, or name a file that holds it".to_owned(),
            Self::BadPassphrase { .. } => "choose several words that nobody else would choose".to_owned(),
            Self::NoMemory { .. } => "free memory, and try again".to_owned(),
            Self::CommandStart { .. } | Self::CommandFailed { .. } | Self::CommandTimeout { .. } => {
                "run it by hand to see what is wrong; [key] command names it".to_owned()
            }
            Self::Io { .. } | Self::Cancelled => return None,
        })
    }
}

impl Kinded for KeyError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::Missing { .. } => ErrorKind::NotFound,
            Self::Io { source, .. } | Self::CommandStart { source, .. } => ErrorKind::of_io(source),
            Self::NewerVersion { .. }
            | Self::BadPassphrase { .. }
            | Self::NoPassphrase { .. }
            | Self::NoTerminal { .. } => ErrorKind::Unsupported,
            Self::Malformed { .. } | Self::NoKeys | Self::DamagedDomainKey { .. } => ErrorKind::Corrupt,
            Self::Exposed { .. }
            | Self::ForeignOwner { .. }
            | Self::WrongKey { .. }
            | Self::WrongPassphrase { .. }
            | Self::Cancelled => ErrorKind::Conflict,
            Self::NoMemory { .. } | Self::CommandFailed { .. } | Self::CommandTimeout { .. } => {
                ErrorKind::Unavailable
            }
        }
    }
}
