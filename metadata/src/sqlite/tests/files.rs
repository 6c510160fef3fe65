//! Which files are opened, and what they say about themselves.

use super::FileStore;
use crate::conformance::{TTL, World, at, refusal};
use crate::{Catalog, CatalogError, FORMAT_VERSION, SiteRow, SqliteCatalog};
use cairn_model::{ErrorKind, SiteId};
use std::time::Duration;

fn site() -> SiteRow {
    let id = SiteId::from_bytes([4; 16]);
    SiteRow { id, name: "home".to_owned(), created_at: at(1), format_version: FORMAT_VERSION }
}

async fn change(store: &FileStore, sql: &'static str) {
    let catalog = store.open_file().await;
    sqlx::query(sql).execute(&catalog.writer).await.unwrap();
    catalog.close().await;
}

#[tokio::test]
async fn a_missing_file_is_an_error_and_stays_missing() {
    let store = FileStore::new().await;
    let refused = refusal(SqliteCatalog::open(&store.path()).await);
    assert_eq!(refused.0, ErrorKind::NotFound);
    assert!(refused.1.contains("catalog.db"), "{}", refused.1);
    assert!(!store.path().exists());
}

#[tokio::test]
async fn a_creation_that_was_cut_short_goes_on() {
    let store = FileStore::new().await;
    std::fs::write(store.path(), b"").unwrap();
    SqliteCatalog::create(&store.path()).await.unwrap().close().await;
    let catalog = SqliteCatalog::create(&store.path()).await.unwrap();
    catalog.create_site(&site()).await.unwrap();
    assert_eq!(SqliteCatalog::open(&store.path()).await.unwrap().site().await.unwrap(), site());
}

#[tokio::test]
async fn a_creation_that_was_cut_short_before_its_first_migration_goes_on() {
    use sqlx::Connection;
    let store = FileStore::new().await;
    let options = sqlx::sqlite::SqliteConnectOptions::new().filename(store.path()).create_if_missing(true);
    let mut begun = sqlx::SqliteConnection::connect_with(&options).await.unwrap();
    // What sqlx makes, in a transaction of its own, before it applies anything.
    let bookkeeping = "CREATE TABLE _sqlx_migrations (version BIGINT PRIMARY KEY, description TEXT NOT NULL, \
                       installed_on TIMESTAMP NOT NULL DEFAULT CURRENT_TIMESTAMP, success BOOLEAN NOT NULL, \
                       checksum BLOB NOT NULL, execution_time BIGINT NOT NULL)";
    sqlx::query(bookkeeping).execute(&mut begun).await.unwrap();
    begun.close().await.unwrap();
    let catalog = SqliteCatalog::create(&store.path()).await.unwrap();
    catalog.create_site(&site()).await.unwrap();
    assert_eq!(catalog.site().await.unwrap(), site());
}

#[tokio::test]
async fn the_leases_of_a_catalog_of_version_1_last_30_seconds() {
    let store = FileStore::new().await;
    let world = World::new(&store).await;
    let volume = world.held_volume("a").await.volume;
    world.catalog.close().await;
    change(&store, "ALTER TABLE leases DROP COLUMN term_ms").await;
    change(&store, "DELETE FROM _sqlx_migrations WHERE version = 2").await;
    let catalog = store.open_file().await;
    let refused = catalog.acquire_lease(volume, world.other, at(2000), TTL, None).await;
    assert!(
        matches!(&refused, Err(CatalogError::LeaseHeld { term, .. }) if *term == Duration::from_secs(30)),
        "{refused:?}"
    );
}

#[tokio::test]
async fn a_newer_schema_is_refused_with_both_versions_and_not_touched() {
    let store = FileStore::new().await;
    let newer = "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time) \
                 VALUES (99, 'later', 1, x'00', 0)";
    change(&store, newer).await;
    let before = std::fs::read(store.path()).unwrap();
    let refused = refusal(SqliteCatalog::open(&store.path()).await);
    assert_eq!(refused.0, ErrorKind::Unsupported);
    assert!(refused.1.contains("has schema version 99, this program knows up to 10"), "{}", refused.1);
    assert_eq!(std::fs::read(store.path()).unwrap(), before);
}

#[tokio::test]
async fn a_newer_format_is_refused_with_both_versions() {
    let store = FileStore::new().await;
    store.open_file().await.create_site(&site()).await.unwrap();
    change(&store, "UPDATE site SET format_version = 7").await;
    let refused = refusal(SqliteCatalog::open(&store.path()).await);
    assert_eq!(refused.0, ErrorKind::Unsupported);
    assert!(refused.1.contains("has format version 7, this program knows up to 1"), "{}", refused.1);
}

#[tokio::test]
async fn a_schema_that_was_changed_by_hand_is_refused() {
    let store = FileStore::new().await;
    change(&store, "UPDATE _sqlx_migrations SET checksum = x'00'").await;
    let refused = refusal(SqliteCatalog::open(&store.path()).await);
    assert_eq!(refused.0, ErrorKind::Internal);
    assert!(refused.1.contains("has been modified"), "{}", refused.1);
}

#[tokio::test]
async fn another_sqlite_file_is_refused_and_not_touched() {
    use sqlx::Connection;
    let store = FileStore::new().await;
    let options = sqlx::sqlite::SqliteConnectOptions::new().filename(store.path()).create_if_missing(true);
    let mut foreign = sqlx::SqliteConnection::connect_with(&options).await.unwrap();
    // Made by the same migration tool, at the same version.
    for sql in [
        "CREATE TABLE recipes (name TEXT)",
        "CREATE TABLE _sqlx_migrations (version BIGINT PRIMARY KEY, success BOOLEAN, checksum BLOB)",
        "INSERT INTO _sqlx_migrations VALUES (1, 1, x'00')",
    ] {
        sqlx::query(sql).execute(&mut foreign).await.unwrap();
    }
    foreign.close().await.unwrap();
    let before = std::fs::read(store.path()).unwrap();
    for refused in [SqliteCatalog::open(&store.path()).await, SqliteCatalog::create(&store.path()).await] {
        let refused = refusal(refused);
        assert_eq!(refused.0, ErrorKind::Unsupported);
        assert!(refused.1.contains("is not a Cairn catalog"), "{}", refused.1);
    }
    assert_eq!(std::fs::read(store.path()).unwrap(), before);
}

#[tokio::test]
async fn a_file_that_is_no_database_is_refused_and_not_touched() {
    let store = FileStore::new().await;
    let text = "a shopping list, long enough to be a header ".repeat(100);
    std::fs::write(store.path(), &text).unwrap();
    let refused = refusal(SqliteCatalog::create(&store.path()).await);
    assert_eq!(refused.0, ErrorKind::Unsupported);
    assert!(refused.1.contains("is not a Cairn catalog"), "{}", refused.1);
    assert_eq!(std::fs::read_to_string(store.path()).unwrap(), text);
}

#[tokio::test]
async fn the_writing_connection_is_durable_and_checks_references() {
    let store = FileStore::new().await;
    let catalog = store.open_file().await;
    let settings: (String, i64, i64, i64) = sqlx::query_as(
        "SELECT (SELECT journal_mode FROM pragma_journal_mode), (SELECT synchronous FROM pragma_synchronous), \
         (SELECT foreign_keys FROM pragma_foreign_keys), (SELECT application_id FROM pragma_application_id)",
    )
    .fetch_one(&catalog.writer)
    .await
    .unwrap();
    assert_eq!(settings, ("wal".to_owned(), 2, 1, i64::from(u32::from_be_bytes(*b"Carn"))));
}

#[tokio::test]
async fn a_closed_catalog_does_not_answer() {
    let store = FileStore::new().await;
    let world = World::new(&store).await;
    world.catalog.close().await;
    assert_eq!(refusal(world.catalog.totals().await).0, ErrorKind::Unavailable);
    assert_eq!(refusal(world.catalog.create_volume(&world.new_volume("a")).await).0, ErrorKind::Unavailable);
}
