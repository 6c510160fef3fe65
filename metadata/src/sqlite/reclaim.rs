//! Containers that are closed and removed, and objects that are to be deleted.
//!
//! Invariants:
//! - a commit does not point anew at a closed container (`commit`), so a closed container that a look finds dead stays dead while it is closed;
//!   whoever removes it says by which pass it was closed, so that it was so all the time;
//! - a segment's row becomes a doomed one in the transaction that takes away its last container.

use super::columns::{Columns, int};
use super::{Result, SqliteCatalog, failed, uncounted};
use crate::{CatalogError, DoomedObject};
use cairn_model::{ContainerId, NodeId, PassId, SegmentId};
use sqlx::SqliteConnection;
use sqlx::sqlite::SqliteRow;
use std::collections::BTreeSet;

pub(super) async fn close(catalog: &SqliteCatalog, pass: PassId, ids: &[ContainerId]) -> Result<()> {
    let doing = "closing containers";
    let mut change = catalog.begin().await?;
    for id in ids {
        let sql = "INSERT INTO closed (container, pass) SELECT id, $1 FROM containers WHERE id = $2 \
                   ON CONFLICT (container) DO UPDATE SET pass = excluded.pass";
        sqlx::query(sql)
            .bind(&pass.as_bytes()[..])
            .bind(&id.as_bytes()[..])
            .execute(&mut *change)
            .await
            .map_err(failed(doing))?;
    }
    change.commit().await.map_err(failed(doing))
}

pub(super) async fn open(catalog: &SqliteCatalog, pass: Option<PassId>) -> Result<()> {
    let doing = "opening containers";
    // Without a look at the writer, who may be busy.
    let any = "SELECT EXISTS (SELECT 1 FROM closed)";
    if !sqlx::query_scalar(any).fetch_one(&catalog.readers).await.map_err(failed(doing))? {
        return Ok(());
    }
    let pass = pass.map(|pass| pass.as_bytes().to_vec());
    sqlx::query("DELETE FROM closed WHERE $1 IS NULL OR pass = $1")
        .bind(pass)
        .execute(&catalog.writer)
        .await
        .map(drop)
        .map_err(failed(doing))
}

pub(super) async fn remove(catalog: &SqliteCatalog, pass: PassId, ids: &[ContainerId]) -> Result<()> {
    let doing = "removing containers";
    let mut change = catalog.begin().await?;
    let mut segments = BTreeSet::new();
    let (mut removed, mut stored, mut raw) = (0, 0, 0);
    for id in ids {
        let sql = "SELECT c.segment, c.length_bytes, c.raw_bytes, CASE WHEN c.raw_bytes IS NULL THEN c.directory END AS directory, \
                   l.pass FROM containers c LEFT JOIN closed l ON l.container = c.id WHERE c.id = $1";
        let row = sqlx::query(sql).bind(&id.as_bytes()[..]).fetch_optional(&mut *change).await;
        // Removed before, by an attempt whose answer was lost.
        let Some(row) = row.map_err(failed(doing))? else { continue };
        let columns = Columns::new(&row, "container");
        if columns.optional_identity("pass", PassId::from_bytes)? != Some(pass) {
            return Err(CatalogError::ContainerOpen { container: *id });
        }
        segments.insert(columns.identity("segment", SegmentId::from_bytes)?);
        removed += 1;
        stored += columns.number("length_bytes")?;
        raw += match columns.get::<Option<&[u8]>>("directory")? {
            Some(directory) => uncounted::raw_bytes(directory),
            None => columns.number("raw_bytes")?,
        };
        for sql in [
            "DELETE FROM closed WHERE container = $1",
            "DELETE FROM thinned WHERE container = $1",
            "DELETE FROM containers WHERE id = $1",
        ] {
            sqlx::query(sql).bind(&id.as_bytes()[..]).execute(&mut *change).await.map_err(failed(doing))?;
        }
    }
    let sql = "UPDATE totals SET containers = containers - $1, container_bytes = container_bytes - $2, \
               container_raw_bytes = container_raw_bytes - $3";
    sqlx::query(sql)
        .bind(int(removed)?)
        .bind(int(stored)?)
        .bind(int(raw)?)
        .execute(&mut *change)
        .await
        .map_err(failed(doing))?;
    for segment in segments {
        doom_if_empty(&mut change, segment).await?;
    }
    change.commit().await.map_err(failed(doing))
}

pub(super) async fn doom_if_empty(change: &mut SqliteConnection, segment: SegmentId) -> Result<()> {
    let doing = "dooming a segment";
    let sql = "INSERT INTO doomed (segment, node, object_key, length_bytes) \
               SELECT id, node, object_key, length_bytes FROM segments s WHERE s.id = $1 \
               AND NOT EXISTS (SELECT 1 FROM containers c WHERE c.segment = s.id) \
               ON CONFLICT (segment) DO UPDATE SET object_key = excluded.object_key RETURNING length_bytes";
    let length: Option<i64> = sqlx::query_scalar(sql)
        .bind(&segment.as_bytes()[..])
        .fetch_optional(&mut *change)
        .await
        .map_err(failed(doing))?;
    let Some(length) = length else { return Ok(()) };
    sqlx::query("DELETE FROM segments WHERE id = $1")
        .bind(&segment.as_bytes()[..])
        .execute(&mut *change)
        .await
        .map_err(failed(doing))?;
    sqlx::query("UPDATE totals SET segments = segments - 1, segment_bytes = segment_bytes - $1")
        .bind(length)
        .execute(change)
        .await
        .map(drop)
        .map_err(failed(doing))
}

pub(super) async fn doomed(
    catalog: &SqliteCatalog,
    after: Option<SegmentId>,
    limit: u32,
) -> Result<Vec<DoomedObject>> {
    let sql = "SELECT segment, node, object_key, length_bytes FROM doomed WHERE segment > $1 ORDER BY segment LIMIT $2";
    let rows = sqlx::query(sql)
        .bind(after.map_or_else(Vec::new, |segment| segment.as_bytes().to_vec()))
        .bind(i64::from(limit))
        .fetch_all(&catalog.readers)
        .await
        .map_err(failed("reading what is to be deleted"))?;
    let object = |row: &SqliteRow| {
        let columns = Columns::new(row, "doomed object");
        Ok(DoomedObject {
            segment: columns.identity("segment", SegmentId::from_bytes)?,
            node: columns.identity("node", NodeId::from_bytes)?,
            key: columns.get("object_key")?,
            length_bytes: columns.number("length_bytes")?,
        })
    };
    rows.iter().map(object).collect()
}

pub(super) async fn forget_doomed(catalog: &SqliteCatalog, segment: SegmentId) -> Result<()> {
    sqlx::query("DELETE FROM doomed WHERE segment = $1")
        .bind(&segment.as_bytes()[..])
        .execute(&catalog.writer)
        .await
        .map(drop)
        .map_err(failed("forgetting a deleted object"))
}
