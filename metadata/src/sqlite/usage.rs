//! How many blocks leaves map, and the sums of it.
//!
//! Invariant: `volumes.logical_bytes` is what the newest versions of the volume's leaves map, and `totals.logical_bytes` its sum over the
//! volumes that are not deleted. Whatever changes leaves changes both in its transaction.

use super::columns::{Columns, KeyListQuery, filled_up, int};
use super::maps::index_of;
use super::{Result, failed, uncounted};
use crate::{LEAVES_MAX, LeafIndex};
use cairn_model::{BLOCK_SIZE, LineageId, VolumeId};
use sqlx::SqliteConnection;
use sqlx::sqlite::SqliteRow;
use std::collections::BTreeMap;
use std::sync::LazyLock;

const DOING: &str = "counting mapped blocks";
/// Leaves read at once that do not say how many blocks they map.
const UNCOUNTED_AT_ONCE: i64 = 64;

/// The leaves of a lineage with these indices, in versions through `through`.
pub(super) struct Leaves {
    pub(super) lineage: LineageId,
    pub(super) from: i64,
    pub(super) to: i64,
    pub(super) through: i64,
}

impl Leaves {
    pub(super) fn all_of(lineage: LineageId) -> Self {
        Self { lineage, from: 0, to: i64::from(LEAVES_MAX), through: i64::MAX }
    }
}

/// The leaves of [`Leaves`] that are the newest of their index.
macro_rules! newest_leaves {
    ($select:literal, $rest:literal) => {
        concat!(
            "SELECT ",
            $select,
            " FROM leaves l WHERE lineage = $1 AND leaf >= $2 AND leaf < $3 AND commit_seq <= $4 ",
            "AND NOT EXISTS (SELECT 1 FROM leaves n WHERE n.lineage = l.lineage AND n.leaf = l.leaf ",
            "AND n.commit_seq > l.commit_seq)",
            $rest
        )
    };
}

/// Blocks mapped by those of `leaves` that are the newest of their index.
pub(super) async fn mapped_blocks(change: &mut SqliteConnection, leaves: &Leaves) -> Result<u64> {
    let sql =
        newest_leaves!("coalesce(sum(blocks), 0) AS counted, count(*) - count(blocks) AS uncounted", "");
    let row = bound(sql, leaves).fetch_one(&mut *change).await.map_err(failed(DOING))?;
    let columns = Columns::new(&row, "map leaf");
    let mut blocks = columns.number("counted")?;
    if columns.number("uncounted")? == 0 {
        return Ok(blocks);
    }
    let Leaves { lineage, mut from, to, through } = *leaves;
    let sql = newest_leaves!("leaf, data", " AND blocks IS NULL ORDER BY leaf LIMIT $5");
    loop {
        let page = Leaves { lineage, from, to, through };
        let rows = bound(sql, &page).bind(UNCOUNTED_AT_ONCE).fetch_all(&mut *change).await;
        let rows = rows.map_err(failed(DOING))?;
        let Some(last) = rows.last() else { return Ok(blocks) };
        from = i64::from(index_of(&Columns::new(last, "map leaf"))?.get()) + 1;
        for row in &rows {
            let columns = Columns::new(row, "map leaf");
            blocks += uncounted::leaf_blocks(index_of(&columns)?, columns.get("data")?);
        }
    }
}

type Query = sqlx::query::Query<'static, sqlx::Sqlite, sqlx::sqlite::SqliteArguments>;

fn bound(sql: &'static str, leaves: &Leaves) -> Query {
    sqlx::query(sql)
        .bind(leaves.lineage.as_bytes().to_vec())
        .bind(leaves.from)
        .bind(leaves.to)
        .bind(leaves.through)
}

/// Leaves looked up by one statement: as many as a fold writes at once.
pub(super) const LEAVES_AT_ONCE: usize = 16;

/// Blocks mapped by the newest versions of up to [`LEAVES_AT_ONCE`] leaves, with the versions' commits; those that exist.
pub(super) async fn newest(
    change: &mut SqliteConnection,
    lineage: LineageId,
    indices: &[LeafIndex],
) -> Result<BTreeMap<LeafIndex, (i64, u64)>> {
    static NEWEST: LazyLock<KeyListQuery> = LazyLock::new(|| {
        let sql = "SELECT leaf, commit_seq, blocks, CASE WHEN blocks IS NULL THEN data END AS data FROM leaves l \
                   WHERE lineage = $1 AND leaf IN ({keys}) AND NOT EXISTS (SELECT 1 FROM leaves n \
                   WHERE n.lineage = l.lineage AND n.leaf = l.leaf AND n.commit_seq > l.commit_seq)";
        KeyListQuery::with_length(sql, 2, LEAVES_AT_ONCE)
    });
    let (sql, length) = KeyListQuery::for_length(&NEWEST, indices.len());
    let mut query = sqlx::query(sql).bind(&lineage.as_bytes()[..]);
    for index in filled_up(indices, length) {
        query = query.bind(i64::from(index.get()));
    }
    let rows = query.fetch_all(change).await.map_err(failed(DOING))?;
    rows.iter().map(newest_of).collect()
}

fn newest_of(row: &SqliteRow) -> Result<(LeafIndex, (i64, u64))> {
    let columns = Columns::new(row, "map leaf");
    let index = index_of(&columns)?;
    let blocks = match columns.get::<Option<&[u8]>>("data")? {
        Some(data) => uncounted::leaf_blocks(index, data),
        None => columns.number("blocks")?,
    };
    Ok((index, (columns.get("commit_seq")?, blocks)))
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
    sqlx::query("UPDATE totals SET logical_bytes = logical_bytes + $1")
        .bind(bytes)
        .execute(change)
        .await
        .map(drop)
        .map_err(failed(DOING))
}
