//! Another master key, or the same in another wrapping: `cairn key rotate` and `cairn key passphrase`.
//!
//! No data is touched: only the domains' keys, of which there are few, are wrapped again. It works while the gateway serves, whose
//! engine has nothing but the domains' keys.
//!
//! Invariants:
//! 1. At every instant the key file, whichever it is then, opens every domain. The catalog holds each key under both master keys
//!    from before the file is replaced until after.
//! 2. The new key waits aside, as `.NAME-replacement` beside the key file NAME, only while the catalog has rows that it wraps, or wraps the
//!    same master key. A file of that name with another key is nobody's rest: it is kept, and stands in the way of a change.
//!
//! | crash after | key file | catalog | pool | the next start |
//! |---|---|---|---|---|
//! | nothing | old | old | old | |
//! | `Wrapped` | old | old and new | old | drops the new: as if nothing had happened |
//! | `Prepared` | old; new one aside | old and new | old | removes what is aside, drops the new |
//! | `Replaced` | new | old and new | old | drops the old, publishes: it is done |
//! | `Dropped` | new | new | old | publishes |
//! | `Published` | new | new | new | |
//!
//! What the next start does is [`Site::settle_keys`]: whatever the key file does not open is dropped, once the file's name is known to be
//! durable, and only if all that the file opens is everything. A new passphrase for the same master key goes the same way, with
//! nothing to wrap again.

use super::Site;
use super::keys::{Keyring, unwrap, wrapped};
use super::publish::{Revisions, is_revision};
use crate::durable;
use crate::error::GatewayError;
use crate::key::{KeyError, KeyFile, Master, Origin, Protection, file};
use cairn_metadata::KeyRow;
use cairn_model::crypto::{KeyId, SecretKey};
use cairn_model::{ErrorKind, crypto};
use cairn_segment_writer::Pool;
use std::ffi::OsString;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// What the wrapping of a master key on its way to the gateway is bound to.
const REPLACEMENT_PURPOSE: &[u8] = b"replacement of the master key";

/// The durable steps, in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReplaceStep {
    Wrapped,
    Prepared,
    Replaced,
    Dropped,
    Published,
}

impl ReplaceStep {
    pub const ALL: [Self; 5] =
        [Self::Wrapped, Self::Prepared, Self::Replaced, Self::Dropped, Self::Published];
}

/// A master key on its way to who shall work with it: sealed under the one that it replaces, so that nothing secret is said.
pub fn sealed_for_replacement(
    current: &SecretKey,
    new: &SecretKey,
    entropy: &dyn cairn_model::Entropy,
) -> Vec<u8> {
    crypto::wrap(current, REPLACEMENT_PURPOSE, new, entropy).to_vec()
}

type Observe<'a> = &'a mut (dyn FnMut(ReplaceStep) -> Result<(), GatewayError> + Send);

impl Site {
    /// [`Site::replace_master`] with what [`sealed_for_replacement`] sealed; the new key's id. It is opened within the change, so that one
    /// that was made with a key that another change replaced meanwhile is refused: it would undo that change.
    pub async fn replace_master_sealed(
        &self,
        sealed: &[u8],
        protection: Protection,
        pool: Option<&Pool>,
    ) -> Result<KeyId, GatewayError> {
        let keyring = self.keyring()?;
        let _change = keyring.change.lock().await;
        let key = open_replacement(&keyring.master(), sealed)?;
        let id = key.id();
        self.replace_within(keyring, key, protection, pool, &mut |_| Ok(())).await?;
        Ok(id)
    }

    /// Makes `key`, kept as `protection` says, the site's master key. It may be the one that it is already.
    pub async fn replace_master(
        &self,
        key: SecretKey,
        protection: Protection,
        pool: Option<&Pool>,
    ) -> Result<(), GatewayError> {
        self.replace_master_observed(key, protection, pool, &mut |_| Ok(())).await
    }

    /// [`Site::replace_master`], telling `observe` after each step is durable; an error from it ends the work there.
    pub async fn replace_master_observed(
        &self,
        key: SecretKey,
        protection: Protection,
        pool: Option<&Pool>,
        observe: Observe<'_>,
    ) -> Result<(), GatewayError> {
        let keyring = self.keyring()?;
        let _change = keyring.change.lock().await;
        self.replace_within(keyring, key, protection, pool, observe).await
    }

    /// The replacement, by who holds the lock of changes.
    async fn replace_within(
        &self,
        keyring: &Keyring,
        key: SecretKey,
        protection: Protection,
        pool: Option<&Pool>,
        observe: Observe<'_>,
    ) -> Result<(), GatewayError> {
        let old = keyring.master();
        let path = replaceable(&old)?;
        self.check_source()?;
        let contents = match &protection {
            Protection::Passphrase(sealed) => KeyFile::Sealed(sealed.clone()),
            Protection::Plain | Protection::Command => KeyFile::Plain(key.clone()),
        };
        let new = Master { key, protection, origin: old.origin.clone() };
        if contents.id() != new.id() {
            return Err(GatewayError::Refused {
                kind: ErrorKind::Unsupported,
                what: "the key file that was sent is of another key".to_owned(),
                next: None,
            });
        }
        let aside = aside(&path);
        clear_aside(&aside, &self.catalog.keys().await?, old.id())?;
        if let Err(error) = self.wrap_all(&old, &new).await {
            self.unwrap_all(&old).await;
            return Err(error);
        }
        observe(ReplaceStep::Wrapped)?;
        if let Err(error) = prepare(&path, &aside, &contents) {
            let _ = durable::remove_file(&aside);
            self.unwrap_all(&old).await;
            return Err(error.into());
        }
        observe(ReplaceStep::Prepared)?;
        if let Err(source) = durable::replace(&aside, &path) {
            if aside.try_exists().unwrap_or(false) {
                let _ = durable::remove_file(&aside);
                self.unwrap_all(&old).await;
            }
            // Else it has its name, perhaps not durably: which it is, is told by reading the file, before any further change and at the
            // next start.
            return Err(KeyError::Io { what: "key", path, source }.into());
        }
        observe(ReplaceStep::Replaced)?;
        let id = new.id();
        keyring.set_master(new);
        self.catalog.replace_keys(&[], id).await?;
        observe(ReplaceStep::Dropped)?;
        self.publish_to_all(pool, false).await;
        observe(ReplaceStep::Published)
    }

    /// Wraps every key with `new` as well, as the next revision.
    async fn wrap_all(&self, old: &Master, new: &Master) -> Result<(), GatewayError> {
        if new.id() == old.id() {
            return self.begin_change(old).await;
        }
        // Also drops the rest of a rotation that failed, and sees to it that there is a revision to go back to.
        self.begin_change(old).await?;
        let rows = self.catalog.keys().await?;
        let now = self.ports.clock.wall();
        let mut rewrapped: Vec<KeyRow> = Vec::with_capacity(rows.len());
        for row in rows.iter().filter(|row| !is_revision(row)) {
            let Some(key) = unwrap(row, old) else {
                return Err(GatewayError::refused(
                    ErrorKind::Corrupt,
                    format!(
                        "the key of purpose {} does not open with key {}, so it cannot be wrapped again",
                        row.purpose,
                        old.id()
                    ),
                    "restore the catalog, or delete that domain; nothing was changed",
                ));
            };
            rewrapped.push(wrapped(&row.purpose, &key, &new.key, &*self.ports.entropy, now));
        }
        let revisions = Revisions::of(&rows, old.id()).next(&*self.ports.entropy);
        rewrapped.push(revisions.row(new.id(), now));
        for row in &rewrapped {
            self.catalog.put_key(row).await?;
        }
        Ok(())
    }

    /// Undoes [`Site::wrap_all`]. Nothing is lost when this fails too: the next change or start does it.
    async fn unwrap_all(&self, old: &Master) {
        let _ = self.catalog.replace_keys(&[], old.id()).await;
    }

    /// Ends what a replacement that was interrupted left, in the direction in which the key file shows it went.
    pub(super) async fn settle_keys(&self, keyring: &Keyring) -> Result<(), GatewayError> {
        let master = keyring.master();
        let Ok(path) = replaceable(&master) else { return Ok(()) };
        remove_torn(&path);
        let aside = aside(&path);
        let begun = aside.symlink_metadata().is_ok();
        let rows = self.catalog.keys().await?;
        let rest = rows.iter().any(|row| row.wrapped_by != master.id());
        if !(begun || rest) {
            return Ok(());
        }
        if let Err(error) = folder(&path).and_then(durable::sync_directory) {
            tracing::warn!(%error, path = %path.display(), "a change of the key was interrupted; it cannot be ended, as the folder of the key cannot be synced");
            return Ok(());
        }
        if let Some(lost) = only_of_others(&rows, master.id()) {
            tracing::warn!(purpose = lost.purpose, key = %lost.wrapped_by, "the catalog holds a key that only another master key opens; all are left as they are");
            return Ok(());
        }
        // Before the rows that tell whose it is.
        if begun && let Err(error) = clear_aside(&aside, &rows, master.id()) {
            tracing::warn!(error = error.full_message(), "a key that is not used is kept");
        }
        if !rest {
            return Ok(());
        }
        // Refused, too, when something is wrapped with the other key alone.
        if let Err(error) = self.catalog.replace_keys(&[], master.id()).await {
            tracing::warn!(%error, "the catalog holds keys that this key does not open; they are left as they are");
            return Ok(());
        }
        tracing::info!(key = %master.id(), "a change of the master key was interrupted and is settled: this one is used");
        Ok(())
    }
}

/// Opens what [`sealed_for_replacement`] sealed.
fn open_replacement(current: &Master, sealed: &[u8]) -> Result<SecretKey, GatewayError> {
    crypto::unwrap(&current.key, REPLACEMENT_PURPOSE, sealed).map_err(|_| {
        GatewayError::refused(
            ErrorKind::Conflict,
            format!("the replacement was not made with key {}, which this site works with", current.id()),
            "somebody changed the key meanwhile: begin anew",
        )
    })
}

/// The file that holds the key; where a command has it, what to do instead.
fn replaceable(master: &Master) -> Result<PathBuf, GatewayError> {
    match &master.origin {
        // What the name leads to: a link stays a link.
        Origin::File(path) => Ok(path.canonicalize().map_err(|source| KeyError::Io {
            what: "key",
            path: path.clone(),
            source,
        })?),
        Origin::Command(program) => Err(GatewayError::refused(
            ErrorKind::Unsupported,
            format!("the master key comes from the command {program}, which only tells it"),
            "run `cairn key export FILE`, name that file as [key] path in the place of the command and restart, rotate, give the new key \
             to the command, and name the command again",
        )),
    }
}

/// Where the new key waits, beside the old one so that a rename takes its place.
fn aside(path: &Path) -> PathBuf {
    beside(path, ".", "-replacement")
}

/// Where an interrupted creation of the key file, or of its replacement, may have left a part of it.
fn torn(path: &Path) -> [PathBuf; 3] {
    [beside(path, ".", ".new"), beside(path, ".", ".new.new"), beside(path, "..", "-replacement.new")]
}

fn beside(path: &Path, before: &str, after: &str) -> PathBuf {
    let mut name = OsString::from(before);
    name.push(path.file_name().unwrap_or_default());
    name.push(after);
    path.with_file_name(name)
}

/// Whether `path` is a name that changes of the key file `key` use, and remove.
pub fn is_reserved(key: &Path, path: &Path) -> bool {
    let key = key.canonicalize().unwrap_or_else(|_| key.to_owned());
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    let folder = folder.canonicalize().unwrap_or_else(|_| folder.to_owned());
    let path = folder.join(path.file_name().unwrap_or_default());
    path == aside(&key) || torn(&key).contains(&path)
}

fn remove_torn(path: &Path) {
    for part in torn(path).iter().filter(|part| part.is_file()) {
        match durable::remove_file(part) {
            Ok(()) => {
                tracing::info!(path = %part.display(), "the rest of an interrupted creation of a key was removed");
            }
            Err(error) => {
                tracing::warn!(%error, path = %part.display(), "the rest of a key could not be removed");
            }
        }
    }
}

/// A key that no row wrapped by `master` has.
fn only_of_others(rows: &[KeyRow], master: KeyId) -> Option<&KeyRow> {
    let is_kept = |lost: &KeyRow| {
        rows.iter()
            .any(|row| (&row.purpose, row.key_id, row.wrapped_by) == (&lost.purpose, lost.key_id, master))
    };
    rows.iter().filter(|row| !is_revision(row)).find(|row| !is_kept(row))
}

/// Removes the new key of a change that did not end. Fails when what is there is none: it may be the only copy of something.
fn clear_aside(aside: &Path, rows: &[KeyRow], master: KeyId) -> Result<(), GatewayError> {
    let held = match file::load(aside) {
        Err(KeyError::Missing { .. }) => return Ok(()),
        held => held.map(|key| key.id()),
    };
    if let Ok(id) = held
        && (id == master || rows.iter().any(|row| row.wrapped_by == id))
    {
        return durable::remove_file(aside).map_err(|source| GatewayError::File {
            action: "remove",
            path: aside.to_owned(),
            source,
        });
    }
    let what = match held {
        Ok(id) => format!("{} holds key {id}, which this site does not know", aside.display()),
        Err(error) => format!("{} cannot be read as a key: {error}", aside.display()),
    };
    Err(GatewayError::refused(
        ErrorKind::Conflict,
        what,
        "this name is kept for changes of the key: move the file elsewhere, or remove it if nothing needs it",
    ))
}

fn folder(path: &Path) -> io::Result<&Path> {
    path.parent().ok_or_else(|| io::ErrorKind::InvalidInput.into())
}

/// Writes the new key file aside, for the owner of the old one.
fn prepare(path: &Path, aside: &Path, contents: &KeyFile) -> Result<(), KeyError> {
    let failed = |source| KeyError::Io { what: "key", path: aside.to_owned(), source };
    file::create(aside, contents)?;
    let before = std::fs::metadata(path).map_err(failed)?;
    let made = std::fs::metadata(aside).map_err(failed)?;
    if (before.uid(), before.gid()) != (made.uid(), made.gid()) {
        std::os::unix::fs::chown(aside, Some(before.uid()), Some(before.gid())).map_err(failed)?;
        std::fs::File::open(aside).and_then(|file| file.sync_all()).map_err(failed)?;
    }
    Ok(())
}
