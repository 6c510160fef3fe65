//! The directory of an index, and the right to remove what is in it.
//!
//! ```text
//! PATH/cairn-fingerprints         marker: whose index this is (`format`, owner)
//! PATH/cairn-fingerprints.new     the next marker while it is written
//! PATH/cairn-fingerprints.lock    held while the index is open
//! PATH/cairn-fingerprints.store/  the store
//! ```
//!
//! Only these names are ever removed, and only in a directory that was empty, has the marker, or has nothing but them. The marker is put in
//! place (written, synced, renamed) before the store is made; a wipe removes the store first and then renews the marker. So a crash leaves no
//! store without a marker, and one between the two steps leaves a marker for another's index without a store: wiped again, which removes nothing.

use crate::IndexError;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

const MARKER: &str = "cairn-fingerprints";
const MARKER_NEW: &str = "cairn-fingerprints.new";
const LOCK: &str = "cairn-fingerprints.lock";
const STORE: &str = "cairn-fingerprints.store";
/// What a file system puts into its own root.
const LOST_AND_FOUND: &str = "lost+found";
const MARKER_READ_MAX: u64 = 4096;

#[derive(Debug)]
pub(crate) struct Place {
    path: PathBuf,
    _lock: File,
}

impl Place {
    /// Takes the directory, which is made when it is not there.
    pub(crate) fn claim(path: &Path) -> Result<Self, IndexError> {
        std::fs::create_dir_all(path).map_err(IndexError::io("create", path))?;
        if !is_ours(path).map_err(IndexError::io("read", path))? {
            return Err(IndexError::NotOurs { path: path.to_owned() });
        }
        let file = path.join(LOCK);
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&file)
            .map_err(IndexError::io("lock", &file))?;
        match lock.try_lock() {
            Ok(()) => Ok(Self { path: path.to_owned(), _lock: lock }),
            Err(TryLockError::WouldBlock) => Err(IndexError::Locked { path: path.to_owned() }),
            Err(TryLockError::Error(error)) => Err(IndexError::io("lock", &file)(error)),
        }
    }

    pub(crate) fn store(&self) -> PathBuf {
        self.path.join(STORE)
    }

    /// What the marker says; `None` without one.
    pub(crate) fn marker(&self) -> Result<Option<Vec<u8>>, IndexError> {
        let path = self.path.join(MARKER);
        let mut bytes = Vec::new();
        match File::open(&path).and_then(|file| file.take(MARKER_READ_MAX).read_to_end(&mut bytes)) {
            Ok(_) => Ok(Some(bytes)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(IndexError::io("read", &path)(error)),
        }
    }

    /// Removes the store and says whose the next one is.
    pub(crate) fn wipe(&self, owner: &[u8]) -> Result<(), IndexError> {
        let store = self.store();
        match std::fs::remove_dir_all(&store) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(IndexError::io("remove", &store)(error)),
        }
        self.mark(owner)
    }

    /// Replaces the marker, durably.
    pub(crate) fn mark(&self, owner: &[u8]) -> Result<(), IndexError> {
        let (new, marker) = (self.path.join(MARKER_NEW), self.path.join(MARKER));
        let write = || {
            let mut file = File::create(&new)?;
            file.write_all(owner)?;
            file.sync_all()?;
            std::fs::rename(&new, &marker)?;
            File::open(&self.path)?.sync_all()
        };
        write().map_err(IndexError::io("write", &marker))
    }
}

/// Whether everything in the directory that an index would remove was made by an index.
fn is_ours(path: &Path) -> io::Result<bool> {
    let mut others = false;
    for entry in std::fs::read_dir(path)? {
        let name = entry?.file_name();
        if name == MARKER {
            return Ok(true);
        }
        others |= ![MARKER_NEW, LOCK, STORE, LOST_AND_FOUND].iter().any(|own| name == *own);
    }
    Ok(!others)
}
