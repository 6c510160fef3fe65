//! A directory as a data node.
//!
//! Invariants:
//! 1. A file under its key is complete: it is written under another name, synced, then renamed.
//! 2. When a put returns, the file's bytes, its name, and the names of all directories above it up to the root
//!    are synced. The directories are synced once per process even when they exist already: the process that made
//!    them may have died before it did.
//! 3. When a delete returns, the file's name is gone for good: the directory is synced.
//! 4. Objects go to and come from the directory that was opened, not to whatever has its path now: a file system that was
//!    unmounted leaves an empty directory behind, which must be neither filled nor believed, also not that an object is gone.
//!
//! Crash cases: before the rename the staging file is left behind, without a name that anybody looks for; the next
//! open removes it, told from a live one by its lock. After the rename and before the sync of the directory the file may be
//! there or not; nobody was told of it, and a later batch has other keys.

use super::staged::FileWriter;
use async_trait::async_trait;
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt};
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore, PutMode,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};
use parking_lot::Mutex;
use rustix::fs::FlockOperation;
use std::collections::HashSet;
use std::fs::{DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path as FilePath, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// What a fresh file system has in its root.
const LOST_AND_FOUND: &str = "lost+found";

/// Files being written; beside the objects so that a rename moves them.
const STAGING: &str = "staging";

/// An object store on a local file system whose puts are durable when they return.
#[derive(Debug)]
pub(crate) struct DirectoryStore {
    reads: LocalFileSystem,
    writer: Arc<Writer>,
}

#[derive(Debug)]
struct Writer {
    root: PathBuf,
    identity: RootIdentity,
    next: AtomicU64,
    files: FileWriter,
    /// Directories whose entry in their parent is known to be durable.
    synced: Mutex<HashSet<PathBuf>>,
}

/// Device and inode of the root.
type RootIdentity = (u64, u64);

fn identity_of(root: &FilePath) -> io::Result<RootIdentity> {
    let metadata = std::fs::metadata(root)?;
    if metadata.is_dir() {
        Ok((metadata.dev(), metadata.ino()))
    } else {
        Err(io::ErrorKind::NotADirectory.into())
    }
}

impl DirectoryStore {
    /// Opens a directory that exists, and removes what interrupted puts left in it.
    pub(crate) fn open(root: &FilePath) -> io::Result<Self> {
        let store = Self::open_untouched(root)?;
        remove_leftovers(&store.writer.root.join(STAGING))?;
        Ok(store)
    }

    /// [`DirectoryStore::open`] for whoever only reads: nothing is removed.
    pub(crate) fn open_untouched(root: &FilePath) -> io::Result<Self> {
        let root = root.canonicalize()?;
        let identity = identity_of(&root)?;
        let reads = LocalFileSystem::new_with_prefix(&root).map_err(io::Error::other)?;
        Ok(Self {
            reads,
            writer: Arc::new(Writer {
                root,
                identity,
                next: AtomicU64::new(0),
                files: FileWriter::default(),
                synced: Mutex::default(),
            }),
        })
    }

    /// Fails when another directory has the path of the one that was opened. Off the thread: a file system may hang.
    async fn check_root(&self, key: &Path) -> Result<()> {
        let writer = Arc::clone(&self.writer);
        let checked = tokio::task::spawn_blocking(move || writer.check_root()).await?;
        checked.map_err(|error| store_error(error, key))
    }

    /// Makes the directory, durably, unless it exists.
    pub(crate) fn create(root: &FilePath) -> io::Result<()> {
        let mut missing = Vec::new();
        let mut at = Some(root);
        while let Some(directory) = at.filter(|directory| !directory.exists()) {
            missing.push(directory);
            at = directory.parent();
        }
        for directory in missing.into_iter().rev() {
            create_directory(directory)?;
            sync_parent(directory)?;
        }
        Ok(())
    }
}

impl Writer {
    fn check_root(&self) -> io::Result<()> {
        if identity_of(&self.root)? == self.identity {
            Ok(())
        } else {
            Err(io::Error::new(
                io::ErrorKind::NotFound,
                "another directory is in its place: is its file system mounted?",
            ))
        }
    }

    fn put(&self, key: &Path, payload: &PutPayload, create_only: bool) -> io::Result<()> {
        self.check_root()?;
        let written = self.put_checked(key, payload, create_only);
        if written.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::NotFound) {
            // Somebody removed a directory below the root: the next put makes it again.
            self.synced.lock().clear();
        }
        written
    }

    fn put_checked(&self, key: &Path, payload: &PutPayload, create_only: bool) -> io::Result<()> {
        let target = self.root.join(key.as_ref());
        let parent = target.parent().ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
        self.ensure_directory(parent)?;
        let staging = self.root.join(STAGING);
        self.ensure_directory(&staging)?;
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let path = staging.join(format!("{}-{number}", std::process::id()));
        let written = write_staged(&self.files, &path, payload).and_then(|file| {
            if create_only {
                std::fs::hard_link(&path, &target)?;
            } else {
                std::fs::rename(&path, &target)?;
            }
            drop(file);
            sync_directory(parent)
        });
        if written.is_err() || create_only {
            // Failing to remove it leaves it to the next open.
            let _ = std::fs::remove_file(&path);
        }
        written
    }

    fn delete(&self, key: &Path) -> io::Result<()> {
        self.check_root()?;
        let target = self.root.join(key.as_ref());
        let parent = target.parent().ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
        match std::fs::remove_file(&target) {
            Ok(()) => {}
            // By an attempt whose answer was lost, perhaps before it was durable.
            Err(error) if error.kind() == io::ErrorKind::NotFound => self.check_root()?,
            Err(error) => return Err(error),
        }
        match sync_directory(parent) {
            // Whoever removed the directory removed the object with it.
            Err(error) if error.kind() == io::ErrorKind::NotFound => self.check_root(),
            synced => synced,
        }
    }

    /// Makes `directory` below the root and its entries in all parents durable.
    fn ensure_directory(&self, directory: &FilePath) -> io::Result<()> {
        if self.synced.lock().contains(directory) {
            return Ok(());
        }
        if directory != self.root {
            let parent = directory.parent().ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
            self.ensure_directory(parent)?;
            create_directory(directory)?;
        }
        sync_parent(directory)?;
        self.synced.lock().insert(directory.to_owned());
        Ok(())
    }
}

fn create_directory(directory: &FilePath) -> io::Result<()> {
    match DirBuilder::new().mode(0o700).create(directory) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        other => other,
    }
}

fn write_staged(files: &FileWriter, path: &FilePath, payload: &PutPayload) -> io::Result<File> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive)?;
    files.write(&mut file, payload)?;
    file.sync_all()?;
    Ok(file)
}

fn sync_directory(directory: &FilePath) -> io::Result<()> {
    File::open(directory)?.sync_all()
}

fn sync_parent(directory: &FilePath) -> io::Result<()> {
    directory.parent().map_or(Ok(()), sync_directory)
}

/// Removes staging files that no process holds.
fn remove_leftovers(staging: &FilePath) -> io::Result<()> {
    let entries = match std::fs::read_dir(staging) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other?,
    };
    for entry in entries {
        let path = entry?.path();
        let Ok(file) = File::open(&path) else { continue };
        if rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok()
            && let Err(error) = std::fs::remove_file(&path)
        {
            tracing::warn!(path = %path.display(), %error, "cannot remove what an interrupted put left behind");
        }
    }
    Ok(())
}

fn store_error(error: io::Error, key: &Path) -> object_store::Error {
    match error.kind() {
        io::ErrorKind::AlreadyExists => {
            object_store::Error::AlreadyExists { path: key.to_string(), source: Box::new(error) }
        }
        _ => object_store::Error::Generic { store: "directory", source: Box::new(error) },
    }
}

impl std::fmt::Display for DirectoryStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "directory {}", self.writer.root.display())
    }
}

#[async_trait]
impl ObjectStore for DirectoryStore {
    async fn put_opts(&self, key: &Path, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        let create_only = match options.mode {
            PutMode::Overwrite => false,
            PutMode::Create => true,
            PutMode::Update(_) => return Err(unsupported("conditional overwrite")),
        };
        let (writer, key) = (Arc::clone(&self.writer), key.clone());
        tokio::task::spawn_blocking(move || {
            writer.put(&key, &payload, create_only).map_err(|error| store_error(error, &key))
        })
        .await??;
        Ok(PutResult { e_tag: None, version: None, extensions: object_store::Extensions::default() })
    }

    async fn put_multipart_opts(&self, _: &Path, _: PutMultipartOptions) -> Result<Box<dyn MultipartUpload>> {
        Err(unsupported("multipart put"))
    }

    async fn get_opts(&self, key: &Path, options: GetOptions) -> Result<GetResult> {
        let result = self.reads.get_opts(key, options).await;
        // After the file is open or was not found: what is seen now is what it was looked for in. Also when it is there: a marker in another directory, as of a
        // copy of this one, says nothing about the directory that puts go to.
        self.check_root(key).await?;
        result
    }

    fn delete_stream(&self, keys: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        let writer = Arc::clone(&self.writer);
        let delete = move |key: Path| {
            let writer = Arc::clone(&writer);
            async move {
                tokio::task::spawn_blocking(move || match writer.delete(&key) {
                    Ok(()) => Ok(key),
                    Err(error) => Err(store_error(error, &key)),
                })
                .await?
            }
        };
        keys.and_then(delete).boxed()
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        let writer = Arc::clone(&self.writer);
        let check = async move {
            let checked = tokio::task::spawn_blocking(move || writer.check_root()).await;
            checked
                .map_err(object_store::Error::from)
                .and_then(|checked| checked.map_err(|error| store_error(error, &Path::default())))
        };
        // Behind all of them: who has seen the end knows what is not there.
        let check = futures::stream::once(check).filter_map(|checked| async { checked.err().map(Err) });
        self.reads.list(prefix).chain(check).boxed()
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        let mut listed = self.reads.list_with_delimiter(prefix).await?;
        self.check_root(&Path::default()).await?;
        listed.common_prefixes.retain(|folder| ![STAGING, LOST_AND_FOUND].contains(&folder.as_ref()));
        Ok(listed)
    }

    async fn copy_opts(&self, _: &Path, _: &Path, _: CopyOptions) -> Result<()> {
        Err(unsupported("copy"))
    }
}

fn unsupported(operation: &str) -> object_store::Error {
    object_store::Error::NotImplemented {
        operation: operation.to_owned(),
        implementer: "the directory store".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use object_store::ObjectStoreExt;

    #[tokio::test]
    async fn a_put_leaves_the_object_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let store = DirectoryStore::open(folder.path()).unwrap();
        let key = Path::from("segments/ab/object");
        store.put(&key, "first".into()).await.unwrap();
        store.put(&key, "second".into()).await.unwrap();
        assert_eq!(store.get(&key).await.unwrap().bytes().await.unwrap(), "second");
        assert_eq!(std::fs::read_dir(folder.path().join(STAGING)).unwrap().count(), 0);
    }

    #[tokio::test]
    async fn opening_removes_leftovers_but_not_files_being_written() {
        let folder = tempfile::tempdir().unwrap();
        let staging = folder.path().join(STAGING);
        std::fs::create_dir(&staging).unwrap();
        std::fs::write(staging.join("dead"), "x").unwrap();
        let live = write_staged(&FileWriter::default(), &staging.join("live"), &"y".into()).unwrap();
        DirectoryStore::open(folder.path()).unwrap();
        assert!(!staging.join("dead").exists());
        assert!(staging.join("live").exists());
        drop(live);
    }

    #[tokio::test]
    async fn a_create_only_put_does_not_overwrite() {
        let folder = tempfile::tempdir().unwrap();
        let store = DirectoryStore::open(folder.path()).unwrap();
        let key = Path::from("marker");
        store.put_opts(&key, "first".into(), PutMode::Create.into()).await.unwrap();
        let again = store.put_opts(&key, "second".into(), PutMode::Create.into()).await;
        assert!(matches!(again, Err(object_store::Error::AlreadyExists { .. })), "{again:?}");
        assert_eq!(store.get(&key).await.unwrap().bytes().await.unwrap(), "first");
        assert_eq!(std::fs::read_dir(folder.path().join(STAGING)).unwrap().count(), 0);
    }

    #[tokio::test]
    async fn a_delete_is_done_once_and_may_be_repeated() {
        let folder = tempfile::tempdir().unwrap();
        let store = DirectoryStore::open(folder.path()).unwrap();
        let key = Path::from("segments/ab/object");
        store.put(&key, "x".into()).await.unwrap();
        store.delete(&key).await.unwrap();
        assert!(matches!(store.get(&key).await, Err(object_store::Error::NotFound { .. })));
        store.delete(&key).await.unwrap();
        store.delete(&Path::from("no/such/folder")).await.unwrap();
    }

    #[tokio::test]
    async fn nothing_is_deleted_where_another_directory_is() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("pool");
        DirectoryStore::create(&root).unwrap();
        let store = DirectoryStore::open(&root).unwrap();
        let key = Path::from("object");
        store.put(&key, "x".into()).await.unwrap();
        // What an unmounted file system leaves behind.
        std::fs::rename(&root, folder.path().join("elsewhere")).unwrap();
        std::fs::create_dir(&root).unwrap();
        assert!(store.delete(&key).await.is_err());
        assert!(folder.path().join("elsewhere/object").exists());
    }

    #[tokio::test]
    async fn nothing_is_read_where_another_directory_is() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("pool");
        DirectoryStore::create(&root).unwrap();
        let store = DirectoryStore::open(&root).unwrap();
        let key = Path::from("object");
        store.put(&key, "x".into()).await.unwrap();
        std::fs::rename(&root, folder.path().join("elsewhere")).unwrap();
        DirectoryStore::create(&root).unwrap();
        let is_found = |result: Result<GetResult>| match result {
            Ok(_) | Err(object_store::Error::NotFound { .. }) => true,
            Err(error) => {
                assert!(error.to_string().contains("directory"), "{error}");
                false
            }
        };
        assert!(!is_found(store.get(&key).await), "nor that it is gone");
        // A copy, with all that is in it.
        std::fs::copy(folder.path().join("elsewhere/object"), root.join("object")).unwrap();
        assert!(!is_found(store.get(&key).await));
        assert!(store.list_with_delimiter(None).await.is_err());
        assert!(store.list(None).try_collect::<Vec<_>>().await.is_err());
        let copy = DirectoryStore::open(&root).unwrap();
        assert!(is_found(copy.get(&key).await));
    }

    #[tokio::test]
    async fn a_root_that_is_gone_is_an_error_and_not_made_anew() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("pool");
        DirectoryStore::create(&root).unwrap();
        let store = DirectoryStore::open(&root).unwrap();
        std::fs::remove_dir(&root).unwrap();
        assert!(store.put(&Path::from("a"), "x".into()).await.is_err());
        assert!(!root.exists());
        assert!(DirectoryStore::open(&root).is_err());
    }
}
