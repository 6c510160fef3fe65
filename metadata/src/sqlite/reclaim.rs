//! Containers that are closed and removed.
//!
//! Invariants:
//! - a commit does not point anew at a closed container (`commit`), so a closed container that a look finds dead stays dead while it is closed;
//!   whoever removes it says by which pass it was closed, so that it was so all the time;
//! - the objects of a segment become doomed ones in the transaction that takes away its last container.

use super::columns::{Columns, int};
use super::tally::Tally;
use super::{Result, SqliteCatalog, failed, placements, uncounted};
use crate::CatalogError;
use cairn_model::{ContainerId, PassId, SegmentId};
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
    let mut tally = Tally::default();
    for segment in segments {
        placements::doom_if_empty(&mut change, segment, &mut tally).await?;
    }
    tally.write(&mut change).await?;
    change.commit().await.map_err(failed(doing))
}
