//! The directory: whose it is, and that one process has it.
//!
//! ```text
//! marker             text: "cairn-flash 1\n" "site HEX\n" "region_bytes N\n" "boot ID\n" "check HEX\n"
//! cairn-flash.lock   empty, locked while a process has the cache open
//! chunks             the regions, see `format`
//! ```
//!
//! The check is the first 8 bytes of BLAKE3 over the lines above it; it finds damage and authenticates nothing. The marker is
//! there before anything else is, so a directory with other files and no marker is not ours and is left alone.
//! `boot` is the machine's boot in which the cache was last open: while it lasts, the page cache has all that was written.

use cairn_model::SiteId;
use rustix::fs::FlockOperation;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

const MARKER: &str = "marker";
const MARKER_NEW: &str = "marker.new";
const LOCK: &str = "cairn-flash.lock";
const FIRST_LINE: &str = "cairn-flash 1";
/// A marker is far shorter; anything longer is something else.
const MARKER_BYTES_MAX: u64 = 4096;

/// Why a directory is not used. The text is for the operator.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DirectoryError {
    #[error("cannot {operation} {path}: {source}")]
    Io { operation: &'static str, path: String, source: io::Error },
    #[error("cannot {operation} {path}: the disk is full; free some space on it, then restart")]
    Full { operation: &'static str, path: String },
    #[error("{path} holds {name:?} and no flash cache; give the cache a directory of its own")]
    NotOurs { path: String, name: String },
    #[error(
        "{path} holds the flash cache of site {found}, not of site {site}; use another directory or empty this one"
    )]
    OtherSite { path: String, site: SiteId, found: SiteId },
    #[error(
        "{path} holds a flash cache of another version ({found}); use that version or empty the directory"
    )]
    OtherFormat { path: String, found: String },
    #[error("the marker of the flash cache in {path} is damaged; check the disk, then empty the directory")]
    DamagedMarker { path: String },
    #[error("the flash cache in {path} is in use by another process; stop that one first")]
    Locked { path: String },
}

/// What the marker says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Marker {
    pub(crate) site: SiteId,
    pub(crate) region_bytes: u64,
    pub(crate) boot: String,
}

impl Marker {
    fn encode(&self) -> String {
        let lines = format!(
            "{FIRST_LINE}\nsite {}\nregion_bytes {}\nboot {}\n",
            self.site, self.region_bytes, self.boot
        );
        let check = check(&lines);
        format!("{lines}check {check}\n")
    }

    fn parse(text: &str) -> Option<Self> {
        let (lines, expected) = text.strip_suffix('\n')?.rsplit_once("check ")?;
        if check(lines) != expected {
            return None;
        }
        let mut lines = lines.lines().skip(1);
        let mut value = |name| lines.next()?.strip_prefix(name)?.strip_prefix(' ').map(str::to_owned);
        Some(Self {
            site: value("site")?.parse().ok()?,
            region_bytes: value("region_bytes")?.parse().ok()?,
            boot: value("boot")?,
        })
    }
}

fn check(lines: &str) -> String {
    blake3::hash(lines.as_bytes()).to_hex()[..16].to_owned()
}

/// The directory, locked.
#[derive(Debug)]
pub(crate) struct Directory {
    path: PathBuf,
    /// Holds the lock until the cache's writer ends, however it ends.
    _lock: File,
}

impl Directory {
    /// Opens the directory, making it if it is missing. With its marker, if it has one. Changes nothing in a directory
    /// that is not ours.
    pub(crate) fn open(path: &Path, site: SiteId) -> Result<(Self, Option<Marker>), DirectoryError> {
        match std::fs::create_dir(path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(failed("create", path)(error));
            }
            _ => {}
        }
        let _ = look(path, site)?;
        let lock_path = path.join(LOCK);
        let lock = OpenOptions::new().create(true).truncate(false).write(true).open(&lock_path);
        let lock = lock.map_err(failed("open", &lock_path))?;
        match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => {
                return Err(DirectoryError::Locked { path: path.display().to_string() });
            }
            Err(error) => return Err(failed("lock", &lock_path)(error.into())),
        }
        // Once more: the process that had the lock may have changed it.
        let marker = look(path, site)?;
        Ok((Self { path: path.to_owned(), _lock: lock }, marker))
    }

    pub(crate) fn chunks(&self) -> PathBuf {
        self.path.join("chunks")
    }

    /// Replaces the marker; durable when it returns.
    pub(crate) fn mark(&self, marker: &Marker) -> Result<(), DirectoryError> {
        let (new, path) = (self.path.join(MARKER_NEW), self.path.join(MARKER));
        let write = || -> io::Result<()> {
            let mut file = File::create(&new)?;
            file.write_all(marker.encode().as_bytes())?;
            file.sync_all()?;
            std::fs::rename(&new, &path)?;
            File::open(&self.path)?.sync_all()
        };
        write().map_err(failed("write", &path))
    }
}

pub(crate) fn failed(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> DirectoryError {
    let path = path.display().to_string();
    move |source| {
        if is_full(&source) {
            DirectoryError::Full { operation, path }
        } else {
            DirectoryError::Io { operation, path, source }
        }
    }
}

/// Whether the disk has no space: no fault of the device's.
pub(crate) fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// The marker of a directory that is ours; none of one that is empty.
fn look(path: &Path, site: SiteId) -> Result<Option<Marker>, DirectoryError> {
    let location = || path.display().to_string();
    let marker_path = path.join(MARKER);
    let bytes = match std::fs::metadata(&marker_path) {
        Ok(metadata) if metadata.len() > MARKER_BYTES_MAX => {
            return Err(DirectoryError::DamagedMarker { path: location() });
        }
        Ok(_) => std::fs::read(&marker_path).map_err(failed("read", &marker_path))?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return only_ours(path).map(|()| None);
        }
        Err(error) => return Err(failed("read", &marker_path)(error)),
    };
    let damaged = || DirectoryError::DamagedMarker { path: location() };
    let text = String::from_utf8(bytes).map_err(|_| damaged())?;
    let first = text.lines().next().unwrap_or_default();
    if first != FIRST_LINE && first.starts_with("cairn-flash ") && first.len() < 32 {
        return Err(DirectoryError::OtherFormat { path: location(), found: first.to_owned() });
    }
    let marker = Marker::parse(&text).ok_or_else(damaged)?;
    if marker.site != site {
        return Err(DirectoryError::OtherSite { path: location(), site, found: marker.site });
    }
    Ok(Some(marker))
}

/// Refuses a directory with anything in it that opening a cache for the first time does not leave there.
fn only_ours(path: &Path) -> Result<(), DirectoryError> {
    for entry in std::fs::read_dir(path).map_err(failed("list", path))? {
        let name = entry.map_err(failed("list", path))?.file_name();
        if ![LOCK, MARKER_NEW, "lost+found"].iter().any(|&ours| name == ours) {
            let name = name.to_string_lossy().into_owned();
            return Err(DirectoryError::NotOurs { path: path.display().to_string(), name });
        }
    }
    Ok(())
}

/// Names the machine's present boot. None where the system does not tell.
pub(crate) fn boot() -> Option<String> {
    let id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    Some(id.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn site(number: u8) -> SiteId {
        SiteId::from_bytes([number; 16])
    }

    fn marker() -> Marker {
        Marker { site: site(1), region_bytes: 1 << 20, boot: "b".to_owned() }
    }

    #[test]
    fn a_marker_survives_its_encoding() {
        assert_eq!(Marker::parse(&marker().encode()), Some(marker()));
    }

    #[test]
    fn no_flipped_bit_of_a_marker_goes_unseen() {
        let bytes = marker().encode().into_bytes();
        for bit in 0..bytes.len() * 8 {
            let mut changed = bytes.clone();
            changed[bit / 8] ^= 1 << (bit % 8);
            let parsed = String::from_utf8(changed).ok().and_then(|text| Marker::parse(&text));
            assert_eq!(parsed, None, "bit {bit}");
        }
    }

    #[test]
    fn a_directory_with_other_files_is_refused_and_left_as_it_was() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("thesis.odt"), "years of work").unwrap();
        let refused = Directory::open(folder.path(), site(1)).unwrap_err();
        assert!(refused.to_string().contains("thesis.odt"), "{refused}");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn two_cannot_have_one_directory() {
        let folder = tempfile::tempdir().unwrap();
        let (first, _) = Directory::open(folder.path(), site(1)).unwrap();
        assert!(matches!(Directory::open(folder.path(), site(1)), Err(DirectoryError::Locked { .. })));
        drop(first);
        assert!(Directory::open(folder.path(), site(1)).is_ok());
    }
}
