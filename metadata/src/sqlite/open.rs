//! Opening a catalog file: is it one, is it not newer than this program, bring its schema up to date.

use super::{Changes, Result, SqliteCatalog, failed, primary_code, uncounted};
use crate::{CatalogError, FORMAT_VERSION};
use sqlx::migrate::{MigrateError, Migrator};
use sqlx::sqlite::{SqliteConnectOptions, SqlitePoolOptions, SqliteSynchronous};
use sqlx::{Connection, SqliteConnection, SqlitePool};
use std::path::Path;
use std::time::Duration;

pub(super) static MIGRATIONS: Migrator = sqlx::migrate!("../migrations/sqlite");

/// What the first migration writes into the file's header.
const APPLICATION_ID: i64 = 1_130_459_758;
/// How long a change waits for another process's.
const BUSY_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a call waits for a connection: longer than the slowest single change takes.
const ACQUIRE_TIMEOUT: Duration = Duration::from_mins(1);
const READERS: u32 = 4;

pub(super) async fn open(path: &Path, create: bool) -> Result<SqliteCatalog> {
    let file_error = |source| CatalogError::File { path: path.display().to_string(), source };
    if !create {
        tokio::fs::metadata(path).await.map_err(file_error)?;
    }
    let options = SqliteConnectOptions::new()
        .filename(path)
        .create_if_missing(create)
        .busy_timeout(BUSY_TIMEOUT)
        .synchronous(SqliteSynchronous::Full)
        .foreign_keys(true)
        .thread_name(|number| format!("catalog-{number}"));
    // A longer log between checkpoints, given back after: a fold may write a hundred MiB at once.
    let writing = options
        .clone()
        .pragma("cache_size", "-16384")
        .pragma("wal_autocheckpoint", "4096")
        .pragma("journal_size_limit", "67108864");
    let reading = options.create_if_missing(false).pragma("cache_size", "-4096").pragma("query_only", "ON");
    let writer = pool(1).connect_lazy_with(writing.clone());
    prepare(&writer, writing, path).await?;
    if create {
        sync_directory_of(path).await.map_err(file_error)?;
    }
    let readers = pool(READERS).connect_lazy_with(reading);
    Ok(SqliteCatalog { path: path.to_owned(), writer, readers, changes: Changes::default() })
}

fn pool(connections: u32) -> SqlitePoolOptions {
    SqlitePoolOptions::new()
        .max_connections(connections)
        .acquire_timeout(ACQUIRE_TIMEOUT)
        .idle_timeout(None)
        .max_lifetime(None)
        // The connection is in this process; only an interrupted transaction can spoil it, and that is no question to the database.
        .test_before_acquire(false)
        .before_acquire(|connection, _| Box::pin(async move { Ok(!connection.is_in_transaction()) }))
}

/// Nothing is written before the file is known to be ours and not newer.
async fn prepare(writer: &SqlitePool, options: SqliteConnectOptions, path: &Path) -> Result<()> {
    let doing = "opening the catalog";
    let name = || path.display().to_string();
    let mut connection = writer.acquire().await.map_err(|error| not_a_database(error, path))?;
    // A creation that was cut short may have left the migrations' own table and nothing else.
    let (application, tables): (i64, i64) = sqlx::query_as(
        "SELECT (SELECT application_id FROM pragma_application_id), \
         (SELECT count(*) FROM sqlite_master WHERE tbl_name <> '_sqlx_migrations')",
    )
    .fetch_one(&mut *connection)
    .await
    .map_err(|error| not_a_database(error, path))?;
    if tables > 0 && application != APPLICATION_ID {
        return Err(CatalogError::NotACatalog { path: name() });
    }
    let known = MIGRATIONS.iter().map(|migration| migration.version).max().unwrap_or(0);
    if let Some(found) = schema_version(&mut connection).await?.filter(|found| *found > known) {
        return Err(CatalogError::NewerSchema { catalog: name(), found, known });
    }
    let mode: String = sqlx::query_scalar("PRAGMA journal_mode = WAL")
        .fetch_one(&mut *connection)
        .await
        .map_err(failed(doing))?;
    if mode != "wal" {
        return Err(CatalogError::Invalid(format!(
            "{} does not support SQLite's WAL mode on its file system: use a local one",
            name()
        )));
    }
    migrate(options).await?;
    uncounted::sum_up(&mut connection).await?;
    drop(connection);
    let format: Option<u32> = sqlx::query_scalar("SELECT format_version FROM site")
        .fetch_optional(writer)
        .await
        .map_err(failed(doing))?;
    if let Some(found) = format.filter(|found| *found > FORMAT_VERSION) {
        return Err(CatalogError::NewerFormat { catalog: name(), found, known: FORMAT_VERSION });
    }
    Ok(())
}

/// Brings the schema up to date, over a connection without foreign keys: SQLite wants it so where tables change, and it cannot be switched
/// inside a transaction, which each migration is.
async fn migrate(options: SqliteConnectOptions) -> Result<()> {
    let migrating = pool(1).connect_lazy_with(options.foreign_keys(false));
    let migrated = MIGRATIONS.run(&migrating).await;
    migrating.close().await;
    migrated.map_err(|error| match error {
        MigrateError::Execute(source) | MigrateError::ExecuteMigration(source, _) => {
            failed("bringing the schema up to date")(source)
        }
        error => CatalogError::Migration(error),
    })
}

/// The last migration that was applied; `None` without any.
async fn schema_version(connection: &mut SqliteConnection) -> Result<Option<i64>> {
    let doing = "reading the schema's version";
    let tables: i64 =
        sqlx::query_scalar("SELECT count(*) FROM sqlite_master WHERE name = '_sqlx_migrations'")
            .fetch_one(&mut *connection)
            .await
            .map_err(failed(doing))?;
    if tables == 0 {
        return Ok(None);
    }
    sqlx::query_scalar("SELECT max(version) FROM _sqlx_migrations")
        .fetch_one(&mut *connection)
        .await
        .map_err(failed(doing))
}

fn not_a_database(error: sqlx::Error, path: &Path) -> CatalogError {
    // NOTADB
    if error.as_database_error().and_then(primary_code) == Some(26) {
        return CatalogError::NotACatalog { path: path.display().to_string() };
    }
    failed("opening the catalog")(error)
}

/// Makes a new file's name durable.
pub(super) async fn sync_directory_of(path: &Path) -> std::io::Result<()> {
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    tokio::fs::File::open(directory).await?.sync_all().await
}
