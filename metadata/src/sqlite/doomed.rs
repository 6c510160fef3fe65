//! Objects that are to be deleted from the pool.

use super::columns::{Columns, int};
use super::{Result, SqliteCatalog, failed};
use crate::DoomedObject;
use cairn_model::{NodeId, ObjectPlace, SegmentId};
use sqlx::SqliteConnection;
use sqlx::sqlite::SqliteRow;

/// Writes down objects of a segment, each once.
pub(super) async fn add(
    change: &mut SqliteConnection,
    segment: SegmentId,
    objects: impl IntoIterator<Item = (NodeId, String, u64)>,
) -> Result<()> {
    for (node, key, length_bytes) in objects {
        let sql = "INSERT INTO doomed (segment, node, object_key, length_bytes) VALUES ($1, $2, $3, $4) \
                   ON CONFLICT (node, object_key) DO NOTHING";
        sqlx::query(sql)
            .bind(&segment.as_bytes()[..])
            .bind(&node.as_bytes()[..])
            .bind(key)
            .bind(int(length_bytes)?)
            .execute(&mut *change)
            .await
            .map_err(failed("dooming an object"))?;
    }
    Ok(())
}

pub(super) async fn contains(change: &mut SqliteConnection, node: NodeId, key: &str) -> Result<bool> {
    sqlx::query_scalar("SELECT EXISTS (SELECT 1 FROM doomed WHERE node = $1 AND object_key = $2)")
        .bind(&node.as_bytes()[..])
        .bind(key)
        .fetch_one(change)
        .await
        .map_err(failed("looking for a doomed object"))
}

/// The key of an object of a segment's that is doomed, if one is.
pub(super) async fn of_segment(change: &mut SqliteConnection, place: &ObjectPlace) -> Result<Option<String>> {
    // Nearly always none is: one look tells.
    let sql = "SELECT EXISTS (SELECT 1 FROM doomed)";
    if !sqlx::query_scalar::<_, bool>(sql)
        .fetch_one(&mut *change)
        .await
        .map_err(failed("looking for doomed objects"))?
    {
        return Ok(None);
    }
    for (node, key, _) in place.objects() {
        if contains(change, node, &key).await? {
            return Ok(Some(key));
        }
    }
    Ok(None)
}

pub(super) async fn after(
    catalog: &SqliteCatalog,
    after: Option<u64>,
    limit: u32,
) -> Result<Vec<DoomedObject>> {
    let sql =
        "SELECT id, segment, node, object_key, length_bytes FROM doomed WHERE id > $1 ORDER BY id LIMIT $2";
    let rows = sqlx::query(sql)
        .bind(int(after.unwrap_or(0))?)
        .bind(i64::from(limit))
        .fetch_all(&catalog.readers)
        .await
        .map_err(failed("reading what is to be deleted"))?;
    let object = |row: &SqliteRow| {
        let columns = Columns::new(row, "doomed object");
        Ok(DoomedObject {
            id: columns.number("id")?,
            segment: columns.identity("segment", SegmentId::from_bytes)?,
            node: columns.identity("node", NodeId::from_bytes)?,
            key: columns.get("object_key")?,
            length_bytes: columns.number("length_bytes")?,
        })
    };
    rows.iter().map(object).collect()
}

pub(super) async fn forget(catalog: &SqliteCatalog, id: u64) -> Result<()> {
    sqlx::query("DELETE FROM doomed WHERE id = $1")
        .bind(int(id)?)
        .execute(&catalog.writer)
        .await
        .map(drop)
        .map_err(failed("forgetting a deleted object"))
}
