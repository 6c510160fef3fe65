//! The site's master key: where it comes from, and how it is kept.
//!
//! | module | idea |
//! |---|---|
//! | [`file`] | the key file: the key itself, or the key sealed under a passphrase |
//! | [`passphrase`] | passphrases, and the keys that Argon2id makes of them |
//! | [`prompt`] | asking for one on a terminal |
//! | [`command`] | a program that knows the key |
//! | [`source`] | which of them it is, and the key from it |
//! | [`published`] | the copy of the wrapped keys on each data node |
//!
//! Nothing here says whether a key is *this site's*: that is told by opening what the catalog holds wrapped under it.

pub mod command;
mod error;
pub mod file;
pub mod passphrase;
pub mod prompt;
pub mod published;
pub mod source;

pub use error::{KeyError, Origin};
pub use file::{KeyFile, SealedKey};
pub use passphrase::{Cost, Passphrase};
pub use source::{Master, Protection, Unlocked};

#[doc(hidden)]
pub mod fuzzing {
    use super::{KeyError, KeyFile, Origin, SealedKey, file};
    use cairn_model::SiteId;
    use cairn_model::crypto::SecretKey;

    fn parse(data: &[u8]) -> Result<KeyFile, String> {
        file::parse(data, &Origin::File("key".into())).map_err(|error: KeyError| error.to_string())
    }

    /// Parses arbitrary bytes as a key file that holds the key itself.
    pub fn key_file(data: &[u8]) -> Result<SecretKey, String> {
        match parse(data)? {
            KeyFile::Plain(key) => Ok(key),
            KeyFile::Sealed(_) => Err("it is sealed".to_owned()),
        }
    }

    /// Parses arbitrary bytes as a key file that is sealed under a passphrase.
    pub fn sealed_key_file(data: &[u8]) -> Result<SealedKey, String> {
        match parse(data)? {
            KeyFile::Plain(_) => Err("it is not sealed".to_owned()),
            KeyFile::Sealed(sealed) => Ok(sealed),
        }
    }

    /// Parses arbitrary bytes as the keys of a data node; what is accepted, as it is written.
    pub fn published_keys(data: &[u8], site: SiteId) -> Result<String, String> {
        let keys = super::published::PublishedKeys::decode(data).map_err(|error| error.to_string())?;
        Ok(if keys.site == site { keys.body() } else { String::new() })
    }
}
