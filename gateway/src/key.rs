//! The site's master key: a file that must not be lost and must not be read by others.
//!
//! ```text
//! line 1   cairn-key-1                               what it is, and its version
//! line 2   64 hexadecimal digits                     the 32 bytes
//! line 3   16 hexadecimal digits                     the key's public id: tells a mistyped key from a wrong one
//! ```
//!
//! Nothing authenticates the file but line 3, which is derived from line 2. Whether the key is *this site's* key is
//! told by opening what the catalog holds wrapped under it.

use crate::durable;
use cairn_model::Entropy;
use cairn_model::crypto::SecretKey;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use zeroize::Zeroizing;

const HEADER: &str = "cairn-key-1";
const HEADER_STEM: &str = "cairn-key-";

/// Larger than any key file; what is longer is something else.
const KEY_FILE_BYTES_MAX: u64 = 4096;

/// Why there is no key.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    #[error("the key file {path} is missing, and without it no data of this site can be read")]
    Missing { path: PathBuf },
    #[error("the key file {path} can be read by others than its owner (mode {mode:04o})")]
    Exposed { path: PathBuf, mode: u32 },
    #[error("the key file {path} belongs to user {owner}, not to the user this program runs as ({user})")]
    ForeignOwner { path: PathBuf, owner: u32, user: u32 },
    #[error("the key file {path} is not a Cairn key: {problem}")]
    Malformed { path: PathBuf, problem: &'static str },
    #[error("the key file {path} has version `{version}`, which this version of Cairn does not know")]
    NewerVersion { path: PathBuf, version: String },
    #[error("the key file {path} is not the key of this site: what the catalog holds does not open with it")]
    WrongKey { path: PathBuf },
    #[error("cannot use the key file {path}")]
    Io { path: PathBuf, source: io::Error },
}

impl KeyError {
    /// What to do next.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Missing { path } => {
                Some(format!("put the key back from its copy, as {}, mode 0600", path.display()))
            }
            Self::Exposed { path, .. } => Some(format!("run: chmod 600 '{}'", path.display())),
            Self::ForeignOwner { path, .. } => {
                Some(format!("run as that user, or change the owner of {}", path.display()))
            }
            Self::Malformed { path, .. } => {
                Some(format!("put the key back from its copy, as {}", path.display()))
            }
            Self::NewerVersion { .. } => {
                Some("use the version of Cairn that wrote it, or a later one".to_owned())
            }
            Self::WrongKey { .. } => Some(
                "put back the key that was made with this directory; keys cannot be exchanged".to_owned(),
            ),
            Self::Io { .. } => None,
        }
    }
}

/// Makes a fresh key and writes it to `directory/key`. Never replaces an existing file.
pub fn create(directory: &Path, entropy: &dyn Entropy) -> Result<SecretKey, KeyError> {
    let key = SecretKey::random(entropy);
    let digits = Zeroizing::new(hex::encode(key.expose()));
    let text = Zeroizing::new(format!("{HEADER}\n{}\n{}\n", *digits, key.id()));
    durable::create_file(directory, "key", text.as_bytes())
        .map_err(|source| KeyError::Io { path: directory.join("key"), source })?;
    Ok(key)
}

/// Reads the key from `path`; refuses a file that others can read.
pub fn load(path: &Path) -> Result<SecretKey, KeyError> {
    let failed = |source: io::Error| match source.kind() {
        io::ErrorKind::NotFound => KeyError::Missing { path: path.to_owned() },
        _ => KeyError::Io { path: path.to_owned(), source },
    };
    let file = std::fs::File::open(path).map_err(failed)?;
    let metadata = file.metadata().map_err(failed)?;
    let mode = metadata.mode() & 0o7777;
    if mode & 0o077 != 0 {
        return Err(KeyError::Exposed { path: path.to_owned(), mode });
    }
    let user = rustix::process::geteuid().as_raw();
    if metadata.uid() != user && user != 0 {
        return Err(KeyError::ForeignOwner { path: path.to_owned(), owner: metadata.uid(), user });
    }
    let mut text = Zeroizing::new(String::with_capacity(256));
    file.take(KEY_FILE_BYTES_MAX).read_to_string(&mut text).map_err(|source| match source.kind() {
        io::ErrorKind::InvalidData => {
            KeyError::Malformed { path: path.to_owned(), problem: "it is not text" }
        }
        _ => failed(source),
    })?;
    parse(&text, path)
}

fn parse(text: &str, path: &Path) -> Result<SecretKey, KeyError> {
    let malformed = |problem| KeyError::Malformed { path: path.to_owned(), problem };
    let mut lines = text.lines();
    let header = lines.next().unwrap_or_default();
    if header != HEADER {
        if let Some(version) = header.strip_prefix(HEADER_STEM).filter(|version| is_a_version(version)) {
            return Err(KeyError::NewerVersion { path: path.to_owned(), version: version.to_owned() });
        }
        return Err(malformed("its first line is not `cairn-key-1`"));
    }
    let mut bytes = Zeroizing::new([0; SecretKey::BYTES]);
    hex::decode_to_slice(lines.next().unwrap_or_default(), &mut *bytes)
        .map_err(|_| malformed("its second line has not 64 hexadecimal digits"))?;
    let key = SecretKey::from_bytes(*bytes);
    if lines.next().unwrap_or_default() != key.id().to_string() {
        return Err(malformed("its second line was changed: it does not match the third"));
    }
    if lines.next().is_some() {
        return Err(malformed("it has more than three lines"));
    }
    Ok(key)
}

/// A few digits. Anything longer may be the key itself, in a file that lost its line ends, and must not be repeated.
fn is_a_version(text: &str) -> bool {
    (1..=4).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_digit())
}

#[doc(hidden)]
pub mod fuzzing {
    use cairn_model::crypto::SecretKey;
    use std::path::Path;

    /// Parses arbitrary bytes as a key file.
    pub fn key_file(data: &[u8]) -> Result<SecretKey, String> {
        let text = std::str::from_utf8(data).map_err(|error| error.to_string())?;
        super::parse(text, Path::new("key")).map_err(|error| error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cairn_model::SeededEntropy;
    use std::os::unix::fs::PermissionsExt;

    fn written() -> (tempfile::TempDir, PathBuf, SecretKey) {
        let directory = tempfile::tempdir().unwrap();
        let key = create(directory.path(), &SeededEntropy::new(1)).unwrap();
        let path = directory.path().join("key");
        (directory, path, key)
    }

    fn rewrite(path: &Path, change: impl Fn(String) -> String) {
        let text = std::fs::read_to_string(path).unwrap();
        std::fs::write(path, change(text)).unwrap();
    }

    #[test]
    fn a_written_key_is_read_back() {
        let (_directory, path, key) = written();
        assert_eq!(load(&path).unwrap().expose(), key.expose());
    }

    #[test]
    fn a_missing_key_is_told_from_other_errors() {
        let directory = tempfile::tempdir().unwrap();
        assert!(matches!(load(&directory.path().join("key")), Err(KeyError::Missing { .. })));
        assert!(matches!(load(directory.path()), Err(KeyError::Exposed { .. } | KeyError::Io { .. })));
    }

    #[test]
    fn a_key_that_group_or_others_can_touch_is_refused() {
        let (_directory, path, _) = written();
        for mode in [0o640, 0o604, 0o620, 0o601, 0o660] {
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
            match load(&path) {
                Err(KeyError::Exposed { mode: told, .. }) => assert_eq!(told, mode),
                other => panic!("mode {mode:o}: {other:?}"),
            }
        }
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o400)).unwrap();
        assert!(load(&path).is_ok());
    }

    #[test]
    fn a_mistyped_digit_is_noticed() {
        let (_directory, path, _) = written();
        rewrite(&path, |text| {
            let digit = if &text[12..13] == "0" { "1" } else { "0" };
            format!("{}{digit}{}", &text[..12], &text[13..])
        });
        assert!(matches!(load(&path), Err(KeyError::Malformed { .. })));
    }

    #[test]
    fn what_is_no_key_is_refused() {
        let (_directory, path, _) = written();
        for text in ["", "\n\n\n", "cairn-key-1\n", "cairn-key-1\nabcd\n", "-----BEGIN PRIVATE KEY-----\n"] {
            std::fs::write(&path, text).unwrap();
            assert!(matches!(load(&path), Err(KeyError::Malformed { .. })), "{text:?}");
        }
        std::fs::write(&path, [0xff, 0xfe]).unwrap();
        assert!(matches!(load(&path), Err(KeyError::Malformed { .. })));
    }

    #[test]
    fn a_key_of_a_newer_version_says_so() {
        let (_directory, path, _) = written();
        rewrite(&path, |text| text.replace("cairn-key-1", "cairn-key-2"));
        assert!(matches!(load(&path), Err(KeyError::NewerVersion { version, .. }) if version == "2"));
    }

    #[test]
    fn a_key_file_that_lost_its_line_ends_is_refused_without_telling_the_key() {
        let (_directory, path, key) = written();
        let digits = hex::encode(key.expose());
        for end in ["", "0", " "] {
            std::fs::write(&path, format!("{HEADER}{end}{digits}{end}{}", key.id())).unwrap();
            let error = load(&path).unwrap_err();
            assert!(matches!(error, KeyError::Malformed { .. }), "{error}");
            assert!(!error.to_string().contains(&digits[..4]), "{error}");
        }
    }

    #[test]
    fn an_existing_key_is_never_replaced() {
        let (directory, path, key) = written();
        assert!(matches!(create(directory.path(), &SeededEntropy::new(2)), Err(KeyError::Io { .. })));
        assert_eq!(load(&path).unwrap().expose(), key.expose());
    }
}
