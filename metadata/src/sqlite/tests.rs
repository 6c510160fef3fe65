//! The suite on SQLite, and what is SQLite's own: the file, its versions, crashes, full disks, locks, damage.

use super::SqliteCatalog;
use crate::Catalog;
use crate::conformance::CatalogStore;
use async_trait::async_trait;
use std::path::PathBuf;
use std::sync::Arc;

mod check;
mod conformance {
    crate::catalog_conformance!(crate::sqlite::tests::FileStore::new);
}
mod crashes;
mod faults;
mod files;
mod leftovers;
mod plans;
mod record;
mod upgrade;

/// A catalog file of its own, gone with the test.
struct FileStore {
    directory: tempfile::TempDir,
}

impl FileStore {
    #[expect(clippy::unused_async, reason = "the suite makes stores asynchronously")]
    async fn new() -> Self {
        Self { directory: tempfile::tempdir().unwrap() }
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join("catalog.db")
    }

    async fn open_file(&self) -> Arc<SqliteCatalog> {
        Arc::new(SqliteCatalog::create(&self.path()).await.unwrap())
    }
}

#[async_trait]
impl CatalogStore for FileStore {
    async fn open(&self) -> Arc<dyn Catalog> {
        self.open_file().await
    }
}
