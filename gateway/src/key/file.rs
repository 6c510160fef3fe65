//! The key file: a file that must not be lost and must not be read by others.
//!
//! ```text
//! line 1   cairn-key-1                               what it is, and its version
//! line 2   64 hexadecimal digits                     the 32 bytes
//! line 3   16 hexadecimal digits                     the key's public id: tells a mistyped key from a wrong one
//! ```
//!
//! Nothing authenticates version 1 but line 3, which is derived from line 2. Version 2 needs a passphrase:
//!
//! ```text
//! line 1   cairn-key-2
//! line 2   argon2id m=KIB t=PASSES p=LANES salt=HEX  how the passphrase becomes a key (RFC 9106), 16 bytes of salt
//! line 3   160 hexadecimal digits                    the master key, wrapped with that key: 32 random bytes, 32 sealed, tag
//! line 4   16 hexadecimal digits                     the master key's public id
//! line 5   16 hexadecimal digits                     BLAKE3 of lines 1 to 4: tells a damaged file from a wrong passphrase
//! ```
//!
//! The wrapping's tag also covers lines 1, 2 and 4. Costs are checked before they are paid.

use super::passphrase::{Cost, Derivation, Passphrase};
use super::{KeyError, Origin};
use crate::durable;
use cairn_model::Entropy;
use cairn_model::crypto::{self, KeyId, SecretKey, WRAPPED_KEY_BYTES};
use std::fmt;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use zeroize::Zeroizing;

const HEADER_STEM: &str = "cairn-key-";
const HEADER_PLAIN: &str = "cairn-key-1";
const HEADER_SEALED: &str = "cairn-key-2";

/// Larger than any key file; what is longer is something else.
pub const KEY_FILE_BYTES_MAX: usize = 4096;

/// What a key file holds.
#[derive(Debug)]
pub enum KeyFile {
    Plain(SecretKey),
    Sealed(SealedKey),
}

impl KeyFile {
    /// The public id of the key, known without the passphrase.
    pub fn id(&self) -> KeyId {
        match self {
            Self::Plain(key) => key.id(),
            Self::Sealed(sealed) => sealed.id,
        }
    }

    /// The file's text.
    pub fn text(&self) -> Zeroizing<String> {
        match self {
            Self::Plain(key) => {
                let mut digits = Zeroizing::new([0; 2 * SecretKey::BYTES]);
                hex::encode_to_slice(key.expose(), &mut *digits).expect("two digits for each byte");
                // Large enough at once: growing would leave copies behind.
                let mut text = Zeroizing::new(String::with_capacity(256));
                for line in [
                    HEADER_PLAIN,
                    std::str::from_utf8(&*digits).expect("digits are text"),
                    &key.id().to_string(),
                ] {
                    text.push_str(line);
                    text.push('\n');
                }
                text
            }
            Self::Sealed(sealed) => Zeroizing::new(sealed.to_string()),
        }
    }
}

/// A master key that only a passphrase opens. Holds nothing secret but what can be guessed.
#[derive(Clone, PartialEq, Eq)]
pub struct SealedKey {
    derivation: Derivation,
    wrapped: [u8; WRAPPED_KEY_BYTES],
    id: KeyId,
}

impl SealedKey {
    /// Seals `key`. Takes as long as opening does: never on an asynchronous thread.
    pub fn seal(
        key: &SecretKey,
        passphrase: &Passphrase,
        cost: Cost,
        entropy: &dyn Entropy,
    ) -> Result<Self, KeyError> {
        let derivation = Derivation::fresh(cost, entropy);
        let wrapping = derivation.derive(passphrase)?;
        let mut sealed = Self { derivation, wrapped: [0; WRAPPED_KEY_BYTES], id: key.id() };
        sealed.wrapped = crypto::wrap(&wrapping, sealed.covered().as_bytes(), key, entropy);
        let opened = crypto::unwrap(&wrapping, sealed.covered().as_bytes(), &sealed.wrapped);
        assert!(opened.is_ok(), "what was just sealed opens: the only copy of a key may depend on it");
        Ok(sealed)
    }

    /// The key, or `None` when the passphrase is another. Never on an asynchronous thread.
    pub fn open(&self, passphrase: &Passphrase) -> Result<Option<SecretKey>, KeyError> {
        let wrapping = self.derivation.derive(passphrase)?;
        let opened = crypto::unwrap(&wrapping, self.covered().as_bytes(), &self.wrapped);
        Ok(opened.ok().filter(|key| key.id() == self.id))
    }

    pub const fn id(&self) -> KeyId {
        self.id
    }

    /// What the wrapping is bound to.
    fn covered(&self) -> String {
        format!("{HEADER_SEALED}\nargon2id {}\n{}\n", self.derivation, self.id)
    }

    /// Lines 1 to 4.
    fn lines(&self) -> String {
        let wrapped = hex::encode(self.wrapped);
        format!("{HEADER_SEALED}\nargon2id {}\n{wrapped}\n{}\n", self.derivation, self.id)
    }

    /// Parses the lines after the first.
    fn parse<'a>(mut lines: impl Iterator<Item = &'a str>) -> Result<Self, &'static str> {
        let mut line = || lines.next().unwrap_or_default();
        let derivation =
            line().strip_prefix("argon2id ").ok_or("its second line does not begin with `argon2id`")?;
        let derivation = Derivation::parse(derivation)?;
        let mut wrapped = [0; WRAPPED_KEY_BYTES];
        hex::decode_to_slice(line(), &mut wrapped)
            .map_err(|_| "its third line has not 160 hexadecimal digits")?;
        let mut id = [0; 8];
        hex::decode_to_slice(line(), &mut id).map_err(|_| "its fourth line has not 16 hexadecimal digits")?;
        let sealed = Self { derivation, wrapped, id: KeyId::from_bytes(id) };
        if !line().eq_ignore_ascii_case(&checksum(&sealed.lines())) {
            return Err("it was changed: its last line does not match the others");
        }
        Ok(sealed)
    }
}

impl fmt::Display for SealedKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lines = self.lines();
        writeln!(f, "{lines}{}", checksum(&lines))
    }
}

impl fmt::Debug for SealedKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SealedKey({})", self.id)
    }
}

fn checksum(lines: &str) -> String {
    hex::encode(&blake3::hash(lines.as_bytes()).as_bytes()[..8])
}

/// Writes `key` as `path`, which must not exist: mode 0600, durable, all or nothing.
pub fn create(path: &Path, key: &KeyFile) -> Result<(), KeyError> {
    let failed = |source| KeyError::Io { what: "key", path: path.to_owned(), source };
    let (Some(folder), Some(name)) = (path.parent(), path.file_name().and_then(|name| name.to_str())) else {
        return Err(failed(io::ErrorKind::InvalidInput.into()));
    };
    let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
    durable::create_file(folder, name, key.text().as_bytes()).map_err(failed)
}

/// Reads the key file at `path`; refuses a file that others can read.
pub fn load(path: &Path) -> Result<KeyFile, KeyError> {
    let bytes = read_private(path, "key", KEY_FILE_BYTES_MAX).map_err(|error| match error {
        KeyError::Io { path, source, .. } if source.kind() == io::ErrorKind::NotFound => {
            KeyError::Missing { path }
        }
        other => other,
    })?;
    parse(&bytes, &Origin::File(path.to_owned()))
}

/// The first `bytes_max` bytes of a file that nobody but its owner can touch, and whose owner this process runs as.
pub(super) fn read_private(
    path: &Path,
    what: &'static str,
    bytes_max: usize,
) -> Result<Zeroizing<Vec<u8>>, KeyError> {
    let failed = |source: io::Error| KeyError::Io { what, path: path.to_owned(), source };
    let file = std::fs::File::open(path).map_err(failed)?;
    let metadata = file.metadata().map_err(failed)?;
    let mode = metadata.mode() & 0o7777;
    if mode & 0o077 != 0 {
        return Err(KeyError::Exposed { what, path: path.to_owned(), mode });
    }
    let user = rustix::process::geteuid().as_raw();
    if metadata.uid() != user && user != 0 {
        return Err(KeyError::ForeignOwner { what, path: path.to_owned(), owner: metadata.uid(), user });
    }
    read_up_to(file, bytes_max).map_err(failed)
}

/// At most `bytes_max` bytes, in one allocation: growing would leave copies behind.
pub(super) fn read_up_to(file: impl Read, bytes_max: usize) -> io::Result<Zeroizing<Vec<u8>>> {
    let mut bytes = Zeroizing::new(Vec::with_capacity(bytes_max + 1));
    file.take(bytes_max as u64).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Parses the text of a key file.
pub fn parse(bytes: &[u8], origin: &Origin) -> Result<KeyFile, KeyError> {
    let malformed = |problem| KeyError::Malformed { origin: origin.clone(), problem };
    let text = std::str::from_utf8(bytes).map_err(|_| malformed("it is not text"))?;
    let mut lines = text.lines();
    let header = lines.next().unwrap_or_default();
    let key = match header {
        HEADER_PLAIN => KeyFile::Plain(parse_plain(&mut lines).map_err(malformed)?),
        HEADER_SEALED => KeyFile::Sealed(SealedKey::parse(&mut lines).map_err(malformed)?),
        _ => {
            let version = header.strip_prefix(HEADER_STEM).filter(|version| is_a_version(version));
            return Err(match version {
                Some(version) => {
                    KeyError::NewerVersion { origin: origin.clone(), version: version.to_owned() }
                }
                None => malformed("its first line is not `cairn-key-1` or `cairn-key-2`"),
            });
        }
    };
    if lines.next().is_some() {
        return Err(malformed("it has more lines than a key"));
    }
    Ok(key)
}

fn parse_plain<'a>(mut lines: impl Iterator<Item = &'a str>) -> Result<SecretKey, &'static str> {
    let key = from_digits(lines.next().unwrap_or_default())
        .ok_or("its second line has not 64 hexadecimal digits")?;
    if lines.next().unwrap_or_default() != key.id().to_string() {
        return Err("its second line was changed: it does not match the third");
    }
    Ok(key)
}

/// The key of 64 hexadecimal digits.
pub(super) fn from_digits(digits: &str) -> Option<SecretKey> {
    let mut decoded = Ok(());
    let key = SecretKey::filled(|key| decoded = hex::decode_to_slice(digits, key));
    decoded.ok().map(|()| key)
}

/// A few digits. Anything longer may be the key itself, in a file that lost its line ends, and must not be repeated.
fn is_a_version(text: &str) -> bool {
    (1..=4).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;
    use cairn_model::SeededEntropy;
    use proptest::prelude::*;
    use std::os::unix::fs::PermissionsExt;
    use std::path::PathBuf;

    fn written() -> (tempfile::TempDir, PathBuf, SecretKey) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("key");
        let key = SecretKey::random(&SeededEntropy::new(1));
        create(&path, &KeyFile::Plain(key.clone())).unwrap();
        (directory, path, key)
    }

    fn plain(path: &Path) -> SecretKey {
        match load(path).unwrap() {
            KeyFile::Plain(key) => key,
            KeyFile::Sealed(_) => panic!("it is sealed"),
        }
    }

    fn passphrase(text: &str) -> Passphrase {
        Passphrase::from_line(text.as_bytes()).unwrap()
    }

    fn sealed() -> (SecretKey, SealedKey) {
        let entropy = SeededEntropy::new(2);
        let key = SecretKey::random(&entropy);
        let sealed = SealedKey::seal(&key, &passphrase("correct horse"), Cost::LEAST, &entropy).unwrap();
        (key, sealed)
    }

    fn parse_text(text: &str) -> Result<KeyFile, KeyError> {
        parse(text.as_bytes(), &Origin::File("key".into()))
    }

    fn rewrite(path: &Path, change: impl Fn(String) -> String) {
        let text = std::fs::read_to_string(path).unwrap();
        std::fs::write(path, change(text)).unwrap();
    }

    #[test]
    fn a_written_key_is_read_back() {
        let (_directory, path, key) = written();
        assert_eq!(plain(&path).expose(), key.expose());
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
    fn a_cost_is_read_only_as_it_is_written() {
        let text = sealed().1.to_string();
        assert!(parse_text(&text).is_ok());
        for (name, digits) in [("m=", "0"), ("t=", "+"), ("p=", "0"), ("p=", "00"), ("m=", " ")] {
            let changed = text.replacen(name, &format!("{name}{digits}"), 1);
            assert_ne!(changed, text);
            assert!(matches!(parse_text(&changed), Err(KeyError::Malformed { .. })), "{changed}");
        }
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
        rewrite(&path, |text| text.replace("cairn-key-1", "cairn-key-3"));
        assert!(matches!(load(&path), Err(KeyError::NewerVersion { version, .. }) if version == "3"));
    }

    #[test]
    fn a_key_file_that_lost_its_line_ends_is_refused_without_telling_the_key() {
        let (_directory, path, key) = written();
        let digits = hex::encode(key.expose());
        for end in ["", "0", " "] {
            std::fs::write(&path, format!("{HEADER_PLAIN}{end}{digits}{end}{}", key.id())).unwrap();
            let error = load(&path).unwrap_err();
            assert!(matches!(error, KeyError::Malformed { .. }), "{error}");
            assert!(!error.to_string().contains(&digits[..4]), "{error}");
        }
    }

    #[test]
    fn an_existing_key_is_never_replaced() {
        let (_directory, path, key) = written();
        let other = KeyFile::Plain(SecretKey::random(&SeededEntropy::new(2)));
        assert!(matches!(create(&path, &other), Err(KeyError::Io { .. })));
        assert_eq!(plain(&path).expose(), key.expose());
    }

    #[test]
    fn a_sealed_key_opens_with_its_passphrase_only() {
        let (key, sealed) = sealed();
        assert_eq!(sealed.open(&passphrase("correct horse")).unwrap().unwrap().expose(), key.expose());
        assert!(sealed.open(&passphrase("correct horsf")).unwrap().is_none());
        assert_eq!(sealed.id(), key.id());
    }

    #[test]
    fn a_sealed_key_file_is_read_back_and_tells_its_id() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("key");
        let (key, sealed) = sealed();
        create(&path, &KeyFile::Sealed(sealed.clone())).unwrap();
        match load(&path).unwrap() {
            KeyFile::Sealed(read) => assert_eq!(read, sealed),
            KeyFile::Plain(_) => panic!("it is plain"),
        }
        assert_eq!(load(&path).unwrap().id(), key.id());
    }

    #[test]
    fn a_changed_or_cut_sealed_key_file_is_noticed_before_a_passphrase_is_tried() {
        let text = sealed().1.to_string();
        for length in 0..text.len() - 1 {
            assert!(parse_text(&text[..length]).is_err(), "{length}");
        }
        for at in 0..text.len() {
            let mut bytes = text.clone().into_bytes();
            bytes[at] = if bytes[at] == b'1' { b'2' } else { b'1' };
            let changed = parse(&bytes, &Origin::File("key".into()));
            let end_of_file = at + 1 == text.len();
            assert!(changed.is_err() || end_of_file, "byte {at}");
        }
        assert!(parse_text(&(text.clone() + "more\n")).is_err());
        assert!(parse_text(&text.replace('\n', "\r\n")).is_ok());
    }

    #[test]
    fn a_sealed_key_is_bound_to_all_of_its_file() {
        let (_, one) = sealed();
        let other = SealedKey { id: KeyId::from_bytes([1; 8]), ..one.clone() };
        assert!(other.open(&passphrase("correct horse")).unwrap().is_none());
        let mut derivation = one.derivation;
        derivation.salt[0] ^= 1;
        let other = SealedKey { derivation, ..one };
        assert!(other.open(&passphrase("correct horse")).unwrap().is_none());
    }

    #[test]
    fn a_file_that_is_too_long_is_not_read_to_its_end() {
        let (_directory, path, _) = written();
        rewrite(&path, |text| text + &"x".repeat(1 << 20));
        assert!(matches!(load(&path), Err(KeyError::Malformed { .. })));
    }

    proptest! {
        #[test]
        fn no_text_makes_parsing_panic(text in "(cairn-key-[12]\n)?(argon2id m=[0-9]{1,12} t=[0-9]{1,12} p=[0-9]{1,3} salt=[0-9a-f]{32}\n)?[ -~\n]{0,200}") {
            let _ = parse_text(&text);
        }
    }
}
