//! New places of containers.
//!
//! Invariants:
//! - all of a move is one transaction: readers find a container in its old place or in its new one, and both objects are there;
//! - chunks are only left out of a container that the pass itself closed and nobody opened or closed since: what pointed at them when it
//!   was looked at is all that can. From the same transaction on, `thinned` says which are there, and a commit asks it;
//! - the objects of an old segment become doomed ones in the transaction that takes away its last container.

use super::columns::{Columns, int};
use super::tally::Tally;
use super::{Result, SqliteCatalog, failed, placements, uncounted};
use crate::{CatalogError, ContainerMove, MovedContainer};
use cairn_model::{ContainerId, DomainId, PassId, SegmentId};
use sqlx::SqliteConnection;
use std::collections::BTreeSet;

const DOING: &str = "moving containers";

pub(super) async fn move_containers(catalog: &SqliteCatalog, moved: &ContainerMove) -> Result<()> {
    let receipt = &moved.segment.receipt;
    let segment = receipt.segment();
    let mut change = catalog.begin().await?;
    let known = sqlx::query_scalar("SELECT EXISTS (SELECT 1 FROM segments WHERE id = $1)")
        .bind(&segment.as_bytes()[..])
        .fetch_one(&mut *change)
        .await
        .map_err(failed(DOING))?;
    // Done before, by an attempt whose answer was lost.
    if known {
        return Ok(());
    }
    let mut tally = Tally::default();
    placements::insert(&mut change, segment, receipt.place(), &mut tally).await?;
    let mut left = BTreeSet::from([segment]);
    for container in &moved.containers {
        left.extend(move_one(&mut change, moved.pass, container).await?);
    }
    for segment in left {
        placements::doom_if_empty(&mut change, segment, &mut tally).await?;
    }
    placements::refuse_doomed(&mut change, segment, receipt.place()).await?;
    tally.write(&mut change).await?;
    change.commit().await.map_err(failed(DOING))
}

/// Returns the segment that the container was in, unless it is gone.
async fn move_one(
    change: &mut SqliteConnection,
    pass: PassId,
    moved: &MovedContainer,
) -> Result<Option<SegmentId>> {
    let row = &moved.row;
    let sql = "SELECT c.segment, c.length_bytes, c.raw_bytes, c.domain, CASE WHEN c.raw_bytes IS NULL THEN c.directory END AS directory, \
               l.pass FROM containers c LEFT JOIN closed l ON l.container = c.id WHERE c.id = $1";
    let found = sqlx::query(sql).bind(&row.id.as_bytes()[..]).fetch_optional(&mut *change).await;
    let Some(found) = found.map_err(failed(DOING))? else { return Ok(None) };
    let columns = Columns::new(&found, "container");
    if columns.optional_identity("pass", PassId::from_bytes)? != Some(pass) {
        return Err(CatalogError::ContainerOpen { container: row.id });
    }
    if columns.identity("domain", DomainId::from_bytes)? != row.domain {
        return Err(CatalogError::Invalid(format!("container {} moved to another domain", row.id)));
    }
    let (stored, old) =
        (columns.number("length_bytes")?, columns.identity("segment", SegmentId::from_bytes)?);
    let raw = match columns.get::<Option<&[u8]>>("directory")? {
        Some(directory) => uncounted::raw_bytes(directory),
        None => columns.number("raw_bytes")?,
    };
    let sql = "UPDATE containers SET segment = $2, segment_offset = $3, length_bytes = $4, raw_bytes = $5, directory = $6 WHERE id = $1";
    sqlx::query(sql)
        .bind(&row.id.as_bytes()[..])
        .bind(&row.segment.as_bytes()[..])
        .bind(int(row.offset)?)
        .bind(i64::from(row.length))
        .bind(int(row.raw_bytes)?)
        .bind(&row.directory[..])
        .execute(&mut *change)
        .await
        .map_err(failed(DOING))?;
    thin(change, row.id, &moved.present.to_bytes()).await?;
    let sql = "UPDATE totals SET container_bytes = container_bytes - $1, container_raw_bytes = container_raw_bytes - $2";
    sqlx::query(sql)
        .bind(int(stored)? - i64::from(row.length))
        .bind(int(raw)? - int(row.raw_bytes)?)
        .execute(change)
        .await
        .map_err(failed(DOING))?;
    Ok(Some(old))
}

async fn thin(change: &mut SqliteConnection, container: ContainerId, present: &[u8]) -> Result<()> {
    let sql = "INSERT INTO thinned (container, present) VALUES ($1, $2) \
               ON CONFLICT (container) DO UPDATE SET present = excluded.present";
    let done = sqlx::query(sql).bind(&container.as_bytes()[..]).bind(present).execute(change).await;
    done.map(drop).map_err(failed(DOING))
}
