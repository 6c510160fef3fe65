//! Wrapped keys.

use super::columns::{Columns, int};
use super::{Result, SqliteCatalog, failed, is_duplicate};
use crate::{CatalogError, KeyRow};
use cairn_model::WallTime;
use cairn_model::crypto::KeyId;
use sqlx::sqlite::SqliteRow;
use sqlx::{Sqlite, SqliteExecutor};

pub(super) async fn put(catalog: &SqliteCatalog, key: &KeyRow) -> Result<()> {
    insert(&catalog.writer, key).await
}

pub(super) async fn insert(change: impl SqliteExecutor<'_>, key: &KeyRow) -> Result<()> {
    let sql =
        "INSERT INTO keys (purpose, key_id, wrapped_by, wrapped, created_at) VALUES ($1, $2, $3, $4, $5)";
    match write(change, sql, key).await? {
        Err(error) if is_duplicate(&error) => {
            Err(CatalogError::AlreadyExists { what: "key", id: key.key_id.to_string() })
        }
        put => put.map_err(failed("storing a key")),
    }
}

async fn write(
    change: impl SqliteExecutor<'_>,
    sql: &'static str,
    key: &KeyRow,
) -> Result<std::result::Result<(), sqlx::Error>> {
    let written = sqlx::query::<Sqlite>(sql)
        .bind(&key.purpose)
        .bind(&key.key_id.as_bytes()[..])
        .bind(&key.wrapped_by.as_bytes()[..])
        .bind(&key.wrapped)
        .bind(int(key.created_at.unix_millis())?)
        .execute(change)
        .await;
    Ok(written.map(drop))
}

pub(super) async fn all(catalog: &SqliteCatalog) -> Result<Vec<KeyRow>> {
    let sql = "SELECT purpose, key_id, wrapped_by, wrapped, created_at FROM keys ORDER BY created_at, purpose, key_id";
    let rows = sqlx::query(sql).fetch_all(&catalog.readers).await.map_err(failed("reading the keys"))?;
    let key = |row: &SqliteRow| {
        let columns = Columns::new(row, "key");
        Ok(KeyRow {
            purpose: columns.get("purpose")?,
            key_id: KeyId::from_bytes(columns.array("key_id")?),
            wrapped_by: KeyId::from_bytes(columns.array("wrapped_by")?),
            wrapped: columns.get("wrapped")?,
            created_at: WallTime::from_unix_millis(columns.number("created_at")?),
        })
    };
    rows.iter().map(key).collect()
}

pub(super) async fn replace(catalog: &SqliteCatalog, rows: &[KeyRow], keep: KeyId) -> Result<()> {
    let doing = "replacing the keys";
    if let Some(stray) = rows.iter().find(|row| row.wrapped_by != keep) {
        return Err(CatalogError::stray_key(stray, keep));
    }
    let mut change = catalog.begin().await?;
    let sql = "INSERT INTO keys (purpose, key_id, wrapped_by, wrapped, created_at) VALUES ($1, $2, $3, $4, $5) \
               ON CONFLICT (purpose, key_id, wrapped_by) DO UPDATE SET wrapped = excluded.wrapped, \
               created_at = excluded.created_at";
    for row in rows {
        write(&mut *change, sql, row).await?.map_err(failed(doing))?;
    }
    let sql = "SELECT purpose, key_id FROM keys k WHERE wrapped_by <> $1 AND NOT EXISTS (SELECT 1 FROM keys n \
               WHERE n.purpose = k.purpose AND n.key_id = k.key_id AND n.wrapped_by = $1) LIMIT 1";
    let lost = sqlx::query(sql)
        .bind(&keep.as_bytes()[..])
        .fetch_optional(&mut *change)
        .await
        .map_err(failed(doing))?;
    if let Some(row) = lost {
        let columns = Columns::new(&row, "key");
        let key = KeyId::from_bytes(columns.array("key_id")?);
        return Err(CatalogError::KeyLost { purpose: columns.get("purpose")?, key });
    }
    sqlx::query("DELETE FROM keys WHERE wrapped_by <> $1")
        .bind(&keep.as_bytes()[..])
        .execute(&mut *change)
        .await
        .map_err(failed(doing))?;
    change.commit().await.map_err(failed(doing))
}
