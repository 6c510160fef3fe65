//! Containers that nothing points at, and objects that are to be deleted.
//!
//! Invariants:
//! - the look at what is pointed at is one read transaction: a pointer that a fold moves from a delta to a leaf, or from an old version of a
//!   leaf to a new one, is seen in the one place or in the other. What cannot be read is an error, never taken for nothing;
//! - a commit does not point anew at a closed container (`commit`), so a closed container that a look finds dead stays dead while it is closed;
//!   whoever removes it says by which pass it was closed, so that it was so all the time;
//! - a segment's row becomes a doomed one in the transaction that takes away its last container.

use super::columns::{Columns, int};
use super::versions::index_of;
use super::{Result, SqliteCatalog, failed, uncounted};
use crate::{CatalogError, DoomedObject, MapLeaf, UnreferencedContainer, UnreferencedPage};
use cairn_model::{ContainerId, MapDelta, MapTarget, NodeId, PassId, SegmentId};
use sqlx::SqliteConnection;
use sqlx::sqlite::SqliteRow;
use std::collections::{BTreeMap, BTreeSet};

/// Rows with blobs read at once.
const BLOBS_AT_ONCE: i64 = 16;
/// Rows of an index read at once.
const ROWS_AT_ONCE: i64 = 4096;
const LOOKING: &str = "looking for what nothing points at";

pub(super) async fn unreferenced(
    catalog: &SqliteCatalog,
    after: Option<ContainerId>,
    window: u32,
) -> Result<UnreferencedPage> {
    let mut look = catalog.readers.begin().await.map_err(failed(LOOKING))?;
    let (mut left, next) = containers(&mut look, after, window).await?;
    of_leaves(&mut look, &mut left).await?;
    of_deltas(&mut look, &mut left).await?;
    let containers = left.into_iter().map(|(id, length)| UnreferencedContainer { id, length }).collect();
    Ok(UnreferencedPage { containers, next })
}

/// The first `window` containers after one, with their lengths, and the last of them if there may be more.
async fn containers(
    look: &mut SqliteConnection,
    after: Option<ContainerId>,
    window: u32,
) -> Result<(BTreeMap<ContainerId, u32>, Option<ContainerId>)> {
    let mut found = BTreeMap::new();
    let mut after = after.map_or_else(Vec::new, |id| id.as_bytes().to_vec());
    let mut wanted = i64::from(window);
    loop {
        let sql = "SELECT id, length_bytes FROM containers WHERE id > $1 ORDER BY id LIMIT $2";
        let asked = wanted.min(ROWS_AT_ONCE);
        let rows = sqlx::query(sql).bind(&after).bind(asked).fetch_all(&mut *look).await;
        let rows = rows.map_err(failed(LOOKING))?;
        for row in &rows {
            let columns = Columns::new(row, "container");
            let id = columns.identity("id", ContainerId::from_bytes)?;
            found.insert(id, columns.small_number("length_bytes")?);
            after = id.as_bytes().to_vec();
            wanted -= 1;
        }
        if wanted == 0 {
            let next = found.last_key_value().map(|(id, _)| *id);
            return Ok((found, next));
        }
        if rows.is_empty() {
            return Ok((found, None));
        }
    }
}

/// The rows of a table with blobs, page by page in the order of their number.
async fn pages(
    look: &mut SqliteConnection,
    sql: &'static str,
    mut take: impl FnMut(&SqliteRow) -> Result<()>,
) -> Result<()> {
    let mut after = i64::MIN;
    loop {
        let rows = sqlx::query(sql).bind(after).bind(BLOBS_AT_ONCE).fetch_all(&mut *look).await;
        let rows = rows.map_err(failed(LOOKING))?;
        let Some(last) = rows.last() else { return Ok(()) };
        after = Columns::new(last, "map").get("number")?;
        rows.iter().try_for_each(&mut take)?;
    }
}

/// Strikes out what a leaf points at.
async fn of_leaves(look: &mut SqliteConnection, left: &mut BTreeMap<ContainerId, u32>) -> Result<()> {
    let sql = "SELECT rowid AS number, leaf, data FROM leaves WHERE rowid > $1 ORDER BY rowid LIMIT $2";
    pages(look, sql, |row| {
        let columns = Columns::new(row, "map leaf");
        let leaf = MapLeaf::decode(index_of(&columns)?, columns.get("data")?);
        for container in leaf.map_err(|error| CatalogError::of_blob("map leaf", error))?.containers() {
            left.remove(container);
        }
        Ok(())
    })
    .await
}

/// Strikes out what a delta points at.
async fn of_deltas(look: &mut SqliteConnection, left: &mut BTreeMap<ContainerId, u32>) -> Result<()> {
    let sql = "SELECT rowid AS number, delta FROM deltas WHERE rowid > $1 ORDER BY rowid LIMIT $2";
    pages(look, sql, |row| {
        let delta = MapDelta::decode(Columns::new(row, "map delta").get("delta")?);
        for op in delta.map_err(|error| CatalogError::of_blob("map delta", error))?.ops {
            if let MapTarget::Chunk(target) = op.target {
                left.remove(&target.chunk.container);
            }
        }
        Ok(())
    })
    .await
}

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
        for sql in ["DELETE FROM closed WHERE container = $1", "DELETE FROM containers WHERE id = $1"] {
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
               AND NOT EXISTS (SELECT 1 FROM containers c WHERE c.segment = s.id) RETURNING length_bytes";
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
