//! How many blocks leaves map, and the sums of it.
//!
//! Invariant: `volumes.logical_bytes` is what the head of the volume's lineage shows, inherited or not, and `totals.logical_bytes` its
//! sum over the volumes that are not deleted. Whatever changes what a head shows changes both in its transaction.

use super::columns::int;
use super::versions::{self, PAGE};
use super::{Result, failed};
use crate::{LEAVES_MAX, MapPoint};
use cairn_model::{BLOCK_SIZE, LineageId, VolumeId};
use sqlx::SqliteConnection;

const DOING: &str = "counting mapped blocks";

/// Blocks that the head of `lineage` maps.
pub(super) async fn mapped_blocks(change: &mut SqliteConnection, lineage: LineageId) -> Result<u64> {
    mapped_at(change, MapPoint::head(lineage)).await
}

/// Blocks that the leaves map that a point shows.
pub(super) async fn mapped_at(change: &mut SqliteConnection, at: MapPoint) -> Result<u64> {
    let (mut from, mut blocks) = (0, 0);
    loop {
        let page = (from, i64::from(LEAVES_MAX));
        let shown = versions::within(change, at, page, PAGE).await?;
        let Some(last) = shown.last() else { return Ok(blocks) };
        from = i64::from(last.version.index.get()) + 1;
        for leaf in &shown {
            blocks += leaf.blocks(change).await?;
        }
    }
}

/// Counts `mapped` blocks more and `unmapped` blocks less.
pub(super) async fn change(
    change: &mut SqliteConnection,
    volume: VolumeId,
    mapped: u64,
    unmapped: u64,
) -> Result<()> {
    let bytes = int(mapped * u64::from(BLOCK_SIZE))? - int(unmapped * u64::from(BLOCK_SIZE))?;
    if bytes == 0 {
        return Ok(());
    }
    sqlx::query("UPDATE volumes SET logical_bytes = logical_bytes + $1 WHERE id = $2")
        .bind(bytes)
        .bind(&volume.as_bytes()[..])
        .execute(&mut *change)
        .await
        .map_err(failed(DOING))?;
    change_total(change, bytes).await
}

/// Adds to the sum over the volumes.
pub(super) async fn change_total(change: &mut SqliteConnection, bytes: i64) -> Result<()> {
    sqlx::query("UPDATE totals SET logical_bytes = logical_bytes + $1")
        .bind(bytes)
        .execute(change)
        .await
        .map(drop)
        .map_err(failed(DOING))
}
