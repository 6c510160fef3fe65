//! Reading extent maps: deltas and leaves.

use super::columns::{Columns, KEYS_AT_ONCE, KeyListQuery, filled_up, int};
use super::versions::{self, commit_of, index_of, with_shown};
use super::{Result, SqliteCatalog, failed};
use crate::{CatalogError, LEAF_BLOCKS, LeafIndex, LeafVersion, MapLeaf, MapPoint};
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

pub(super) async fn leaf(catalog: &SqliteCatalog, at: MapPoint, index: LeafIndex) -> Result<Option<MapLeaf>> {
    let leaves = leaves(catalog, at, &[index]).await?;
    Ok(leaves.into_iter().next().map(|(_, leaf)| leaf))
}

/// Each statement reads one state of the catalog, whatever is folded or purged meanwhile.
pub(super) async fn leaves(
    catalog: &SqliteCatalog,
    at: MapPoint,
    indices: &[LeafIndex],
) -> Result<Vec<(LeafIndex, MapLeaf)>> {
    static LEAVES: LazyLock<KeyListQuery> = LazyLock::new(|| {
        let sql = with_shown!(
            "SELECT l.leaf, l.data FROM shown s CROSS JOIN leaves l ON l.lineage = s.lineage AND l.leaf = s.leaf \
             AND l.commit_seq = s.version"
        );
        KeyListQuery::new(sql, 3)
    });
    let mut wanted = indices.to_vec();
    wanted.sort_unstable();
    wanted.dedup();
    let mut leaves = Vec::with_capacity(wanted.len());
    for keys in wanted.chunks(KEYS_AT_ONCE) {
        let (sql, length) = KeyListQuery::for_length(&LEAVES, keys.len());
        let mut query = sqlx::query(sql).bind(&at.lineage.as_bytes()[..]).bind(commit_of(at));
        for index in filled_up(keys, length) {
            query = query.bind(i64::from(index.get()));
        }
        let rows = query.fetch_all(&catalog.readers).await.map_err(failed("reading map leaves"))?;
        for row in &rows {
            leaves.push(leaf_of(row)?);
        }
    }
    leaves.sort_unstable_by_key(|(index, _)| *index);
    Ok(leaves)
}

fn leaf_of(row: &SqliteRow) -> Result<(LeafIndex, MapLeaf)> {
    let columns = Columns::new(row, "map leaf");
    let index = index_of(&columns)?;
    let leaf = MapLeaf::decode(index, columns.get("data")?)
        .map_err(|error| CatalogError::of_blob("map leaf", error))?;
    Ok((index, leaf))
}

pub(super) async fn leaf_versions(
    catalog: &SqliteCatalog,
    at: MapPoint,
    range: LbaRange,
    limit: u32,
) -> Result<Vec<LeafVersion>> {
    let doing = "looking for map leaves";
    if range.is_empty() || limit == 0 {
        return Ok(Vec::new());
    }
    let wanted = (int(range.start().get() / LEAF_BLOCKS)?, int(range.end().get().div_ceil(LEAF_BLOCKS))?);
    // One state of the catalog for all lineages on the way.
    let mut state = catalog.readers.begin().await.map_err(failed(doing))?;
    let shown = versions::within(&mut state, at, wanted, limit).await?;
    state.commit().await.map_err(failed(doing))?;
    Ok(shown.into_iter().map(|shown| shown.version).collect())
}
