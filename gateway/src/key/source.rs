//! Which source the master key comes from, and the key from it.

use super::file::{self, read_private, read_up_to};
use super::passphrase::PASSPHRASE_BYTES_MAX;
use super::{Cost, KeyError, KeyFile, Origin, Passphrase, SealedKey, command, prompt};
use crate::config::KeyConfig;
use cairn_model::crypto::{KeyId, SecretKey};
use cairn_model::{Entropy, Ports};
use std::fmt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Names a file that holds the passphrase; before `[key] passphrase_file`.
pub const PASSPHRASE_FILE_VARIABLE: &str = "CAIRN_PASSPHRASE_FILE";

/// What systemd calls the folder of a service's credentials.
const CREDENTIALS_VARIABLE: &str = "CREDENTIALS_DIRECTORY";

/// The credential that holds the passphrase.
pub const CREDENTIAL: &str = "cairn-passphrase";

/// How the master key is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Protection {
    /// In a file, as it is.
    Plain,
    /// In a file, under a passphrase.
    Passphrase(SealedKey),
    /// By a program.
    Command,
}

impl Protection {
    /// Stable name, in `--json` and for people.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Plain => "file",
            Self::Passphrase(_) => "passphrase",
            Self::Command => "command",
        }
    }
}

/// The master key, and where it came from.
#[derive(Debug, Clone)]
pub struct Master {
    pub key: SecretKey,
    pub protection: Protection,
    pub origin: Origin,
}

impl Master {
    pub fn id(&self) -> KeyId {
        self.key.id()
    }
}

/// A master key that was just opened, and the passphrase that opened it: whoever seals another key under it needs it once more.
#[derive(Debug)]
pub struct Unlocked {
    pub master: Master,
    pub passphrase: Option<Passphrase>,
}

/// Where a passphrase was read, for messages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PassphraseOrigin {
    /// The file that `CAIRN_PASSPHRASE_FILE` names.
    Variable(PathBuf),
    /// The file that `[key] passphrase_file` names.
    Configured(PathBuf),
    /// systemd's.
    Credential(PathBuf),
    Terminal,
    /// The command that needs it.
    Given,
}

impl fmt::Display for PassphraseOrigin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Variable(path) => write!(f, "{}, which {PASSPHRASE_FILE_VARIABLE} names", path.display()),
            Self::Configured(path) => write!(f, "{}, which [key] passphrase_file names", path.display()),
            Self::Credential(path) => write!(f, "{}, systemd's credential", path.display()),
            Self::Terminal => f.write_str("the terminal"),
            Self::Given => f.write_str("what was just given"),
        }
    }
}

/// Where the configuration says that the key is.
pub fn origin(config: &KeyConfig) -> Origin {
    match config {
        KeyConfig::File { path, .. } => Origin::File(path.clone()),
        KeyConfig::Command { program, .. } => Origin::Command(program.clone()),
    }
}

/// The key from where the configuration says it is; asks for a passphrase where that takes one.
pub async fn obtain(config: &KeyConfig, ports: &Ports) -> Result<Unlocked, KeyError> {
    obtain_with(config, None, ports).await
}

/// [`obtain`] with the passphrase at hand, in case that it takes one.
pub async fn obtain_with(
    config: &KeyConfig,
    given: Option<Passphrase>,
    ports: &Ports,
) -> Result<Unlocked, KeyError> {
    let origin = origin(config);
    match config {
        KeyConfig::Command { program, arguments } => {
            let key = command::run(program, arguments, command::TIME_MAX, &*ports.clock).await?;
            let master = Master { key, protection: Protection::Command, origin };
            Ok(Unlocked { master, passphrase: None })
        }
        KeyConfig::File { path, .. } => match file::load(path)? {
            KeyFile::Plain(key) => {
                let master = Master { key, protection: Protection::Plain, origin };
                Ok(Unlocked { master, passphrase: None })
            }
            KeyFile::Sealed(sealed) => {
                let found = match given {
                    Some(passphrase) => Some((passphrase, PassphraseOrigin::Given)),
                    None => configured_passphrase(config)?,
                };
                let (passphrase, read) = match found {
                    Some(found) => found,
                    None if prompt::is_possible() => {
                        let question = format!("Passphrase of {}: ", path.display());
                        (prompt::ask(question, "the passphrase").await?, PassphraseOrigin::Terminal)
                    }
                    None => return Err(KeyError::NoPassphrase { origin }),
                };
                let (opened, passphrase) = open(sealed.clone(), passphrase).await?;
                let key = opened.ok_or_else(|| KeyError::WrongPassphrase { origin: origin.clone(), read })?;
                let master = Master { key, protection: Protection::Passphrase(sealed), origin };
                Ok(Unlocked { master, passphrase: Some(passphrase) })
            }
        },
    }
}

/// The passphrase from the file that the environment, the configuration or systemd names, if one does, and which file that is.
pub fn configured_passphrase(config: &KeyConfig) -> Result<Option<(Passphrase, PassphraseOrigin)>, KeyError> {
    let Some(origin) = passphrase_origin(config) else { return Ok(None) };
    let passphrase = match &origin {
        PassphraseOrigin::Variable(path) | PassphraseOrigin::Configured(path) => passphrase_from(path)?,
        PassphraseOrigin::Credential(path) => credential(path)?,
        PassphraseOrigin::Terminal | PassphraseOrigin::Given => return Ok(None),
    };
    Ok(Some((passphrase, origin)))
}

/// Which file is named to hold the passphrase, if one is.
pub fn passphrase_origin(config: &KeyConfig) -> Option<PassphraseOrigin> {
    let named = std::env::var_os(PASSPHRASE_FILE_VARIABLE).filter(|path| !path.is_empty());
    if let Some(path) = named {
        return Some(PassphraseOrigin::Variable(path.into()));
    }
    if let KeyConfig::File { passphrase_file: Some(path), .. } = config {
        return Some(PassphraseOrigin::Configured(path.clone()));
    }
    let path = PathBuf::from(std::env::var_os(CREDENTIALS_VARIABLE)?).join(CREDENTIAL);
    path.exists().then_some(PassphraseOrigin::Credential(path))
}

/// The passphrase in a file that only its owner can read.
pub fn passphrase_from(path: &Path) -> Result<Passphrase, KeyError> {
    Passphrase::from_line(&read_private(path, "passphrase", PASSPHRASE_BYTES_MAX + 2)?)
}

/// systemd's file, whose access it grants by an access list that shows as rights of the group.
fn credential(path: &Path) -> Result<Passphrase, KeyError> {
    let failed = |source| KeyError::Io { what: "passphrase", path: path.to_owned(), source };
    let file = std::fs::File::open(path).map_err(failed)?;
    let mode = file.metadata().map_err(failed)?.mode() & 0o7777;
    if mode & 0o007 != 0 {
        return Err(KeyError::Exposed { what: "passphrase", path: path.to_owned(), mode });
    }
    Passphrase::from_line(&read_up_to(file, PASSPHRASE_BYTES_MAX + 2).map_err(failed)?)
}

/// [`SealedKey::open`] on a thread that may work.
async fn open(
    sealed: SealedKey,
    passphrase: Passphrase,
) -> Result<(Option<SecretKey>, Passphrase), KeyError> {
    let opening = tokio::task::spawn_blocking(move || Ok((sealed.open(&passphrase)?, passphrase)));
    opening.await.unwrap_or(Err(KeyError::Cancelled))
}

/// [`SealedKey::seal`] on a thread that may work.
pub async fn seal(
    key: &SecretKey,
    passphrase: Passphrase,
    entropy: &Arc<dyn Entropy>,
) -> Result<SealedKey, KeyError> {
    let (key, entropy) = (key.clone(), Arc::clone(entropy));
    let sealing =
        tokio::task::spawn_blocking(move || SealedKey::seal(&key, &passphrase, Cost::DEFAULT, &*entropy));
    sealing.await.unwrap_or(Err(KeyError::Cancelled))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_passphrase_file_that_others_can_read_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("passphrase");
        std::fs::write(&path, "correct horse\n").unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).unwrap();
        assert!(matches!(passphrase_from(&path), Err(KeyError::Exposed { what: "passphrase", .. })));
        assert!(credential(&path).is_ok());
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
        assert!(matches!(credential(&path), Err(KeyError::Exposed { .. })));
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        assert!(passphrase_from(&path).is_ok());
    }

    #[test]
    fn a_passphrase_file_that_is_too_long_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("passphrase");
        std::fs::write(&path, vec![b'a'; 1 << 20]).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        assert!(matches!(passphrase_from(&path), Err(KeyError::BadPassphrase { .. })));
        assert!(matches!(passphrase_from(&folder.path().join("none")), Err(KeyError::Io { .. })));
    }
}
