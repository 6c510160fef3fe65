//! Reading extent maps: deltas and leaves.

use super::columns::{Columns, KEYS_AT_ONCE, KeyListQuery, filled_up, int};
use super::{Result, SqliteCatalog, failed};
use crate::{CatalogError, LEAF_BLOCKS, LeafIndex, MapLeaf};
use cairn_model::{CommitSeq, LbaRange, LineageId, MapDelta};
use sqlx::sqlite::SqliteRow;
use std::sync::LazyLock;

pub(super) async fn unfolded(
    catalog: &SqliteCatalog,
    lineage: LineageId,
) -> Result<Vec<(CommitSeq, MapDelta)>> {
    let sql = "SELECT commit_seq, delta FROM deltas WHERE lineage = $1 ORDER BY commit_seq";
    let rows = sqlx::query(sql)
        .bind(&lineage.as_bytes()[..])
        .fetch_all(&catalog.readers)
        .await
        .map_err(failed("reading map deltas"))?;
    let delta = |row: SqliteRow| {
        let columns = Columns::new(&row, "map delta");
        let bytes: &[u8] = columns.get("delta")?;
        let delta = MapDelta::decode(bytes).map_err(|error| CatalogError::of_blob("map delta", error))?;
        Ok((CommitSeq::new(columns.number("commit_seq")?), delta))
    };
    rows.into_iter().map(delta).collect()
}

pub(super) async fn leaf(
    catalog: &SqliteCatalog,
    lineage: LineageId,
    index: LeafIndex,
) -> Result<Option<MapLeaf>> {
    let sql =
        "SELECT leaf, data FROM leaves WHERE lineage = $1 AND leaf = $2 ORDER BY commit_seq DESC LIMIT 1";
    let row = sqlx::query(sql)
        .bind(&lineage.as_bytes()[..])
        .bind(i64::from(index.get()))
        .fetch_optional(&catalog.readers)
        .await
        .map_err(failed("reading a map leaf"))?;
    row.map(|row| leaf_of(&row).map(|(_, leaf)| leaf)).transpose()
}

pub(super) async fn leaves(
    catalog: &SqliteCatalog,
    lineage: LineageId,
    indices: &[LeafIndex],
) -> Result<Vec<(LeafIndex, MapLeaf)>> {
    static LEAVES: LazyLock<KeyListQuery> = LazyLock::new(|| {
        let sql = "SELECT leaf, data FROM leaves l WHERE lineage = $1 AND leaf IN ({keys}) AND commit_seq = \
                   (SELECT max(commit_seq) FROM leaves v WHERE v.lineage = l.lineage AND v.leaf = l.leaf) ORDER BY leaf";
        KeyListQuery::new(sql, 2)
    });
    let mut wanted = indices.to_vec();
    wanted.sort_unstable();
    wanted.dedup();
    let mut leaves = Vec::with_capacity(wanted.len());
    for keys in wanted.chunks(KEYS_AT_ONCE) {
        let (sql, length) = KeyListQuery::for_length(&LEAVES, keys.len());
        let mut query = sqlx::query(sql).bind(&lineage.as_bytes()[..]);
        for index in filled_up(keys, length) {
            query = query.bind(i64::from(index.get()));
        }
        let rows = query.fetch_all(&catalog.readers).await.map_err(failed("reading map leaves"))?;
        for row in &rows {
            leaves.push(leaf_of(row)?);
        }
    }
    Ok(leaves)
}

fn leaf_of(row: &SqliteRow) -> Result<(LeafIndex, MapLeaf)> {
    let columns = Columns::new(row, "map leaf");
    let index = index_of(&columns)?;
    let leaf = MapLeaf::decode(index, columns.get("data")?)
        .map_err(|error| CatalogError::of_blob("map leaf", error))?;
    Ok((index, leaf))
}

pub(super) fn index_of(columns: &Columns<'_>) -> Result<LeafIndex> {
    let index = columns.small_number("leaf")?;
    LeafIndex::new(index).ok_or_else(|| columns.bad("leaf", &index.to_string()))
}

pub(super) async fn present(
    catalog: &SqliteCatalog,
    lineage: LineageId,
    range: LbaRange,
    limit: u32,
) -> Result<Vec<LeafIndex>> {
    if range.is_empty() {
        return Ok(Vec::new());
    }
    let sql = "SELECT DISTINCT leaf FROM leaves WHERE lineage = $1 AND leaf >= $2 AND leaf < $3 ORDER BY leaf LIMIT $4";
    let rows = sqlx::query(sql)
        .bind(&lineage.as_bytes()[..])
        .bind(int(range.start().get() / LEAF_BLOCKS)?)
        .bind(int(range.end().get().div_ceil(LEAF_BLOCKS))?)
        .bind(i64::from(limit))
        .fetch_all(&catalog.readers)
        .await
        .map_err(failed("looking for map leaves"))?;
    rows.iter().map(|row| index_of(&Columns::new(row, "map leaf"))).collect()
}
