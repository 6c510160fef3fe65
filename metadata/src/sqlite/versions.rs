//! Which version of a leaf a point of a map shows: the newest one through its commit that the lineage has, or else what the point
//! shows where the lineage branched off, and so on.
//!
//! A version that maps nothing ends the search as any other does: it says that here are holes.

use super::columns::{Columns, KeyListQuery, filled_up, int};
use super::{Result, failed, uncounted};
use crate::{LEAF_BLOCKS, LeafIndex, LeafVersion, MapPoint};
use cairn_model::{CommitSeq, LineageId};
use sqlx::SqliteConnection;
use sqlx::sqlite::SqliteRow;
use std::collections::BTreeMap;
use std::sync::LazyLock;

const DOING: &str = "looking for versions of map leaves";

/// Leaves looked up by one statement of [`of`]: as many as a fold writes at once.
pub(super) const LEAVES_AT_ONCE: usize = 16;
/// Leaves that are taken from a range at once.
pub(super) const PAGE: u32 = 1024;

/// A version of a leaf that a point shows.
#[derive(Clone, Copy)]
pub(super) struct Shown {
    pub(super) version: LeafVersion,
    /// Blocks that it maps; `None` when the row does not say it, or says more than there are.
    blocks: Option<u64>,
}

impl Shown {
    fn of(row: &SqliteRow, lineage: LineageId) -> Result<Self> {
        let columns = Columns::new(row, "map leaf");
        let commit = CommitSeq::new(columns.number("commit_seq")?);
        let blocks = columns.get::<Option<i64>>("blocks")?.and_then(|blocks| u64::try_from(blocks).ok());
        let blocks = blocks.filter(|blocks| *blocks <= LEAF_BLOCKS);
        let version = LeafVersion { index: index_of(&columns)?, at: MapPoint { lineage, commit } };
        Ok(Self { version, blocks })
    }

    /// Whether there is something behind it.
    pub(super) fn is_mapped(&self) -> bool {
        self.blocks != Some(0)
    }

    /// Blocks that it maps.
    pub(super) async fn blocks(&self, change: &mut SqliteConnection) -> Result<u64> {
        match self.blocks {
            Some(blocks) => Ok(blocks),
            None => uncounted::blocks_of(change, &self.version).await,
        }
    }
}

pub(super) fn index_of(columns: &Columns<'_>) -> Result<LeafIndex> {
    let index = columns.small_number("leaf")?;
    LeafIndex::new(index).ok_or_else(|| columns.bad("leaf", &index.to_string()))
}

/// A point's commit as SQL holds it: every commit is at most that of a head.
pub(super) fn commit_of(at: MapPoint) -> i64 {
    i64::try_from(at.commit.get()).unwrap_or(i64::MAX)
}

/// The table `shown (leaf, lineage, version)`, in which each of the leaves of `{rows}` has one row whose version is not null: what the
/// point $1, $2 shows of it; none, when that is nothing. It takes two look-ups in indices for each leaf and lineage on the way.
macro_rules! with_shown {
    ($select:literal) => {
        concat!(
            "WITH RECURSIVE shown (leaf, lineage, version) AS (SELECT w.column1, $1, (SELECT max(v.commit_seq) FROM leaves v ",
            "WHERE v.lineage = $1 AND v.leaf = w.column1 AND v.commit_seq <= $2) FROM (VALUES {rows}) w ",
            "UNION SELECT s.leaf, n.parent, (SELECT max(v.commit_seq) FROM leaves v ",
            "WHERE v.lineage = n.parent AND v.leaf = s.leaf AND v.commit_seq <= n.parent_commit) ",
            "FROM shown s JOIN lineages n ON n.id = s.lineage WHERE s.version IS NULL AND n.parent IS NOT NULL) ",
            $select
        )
    };
}
pub(super) use with_shown;

/// What `at` shows of up to [`LEAVES_AT_ONCE`] leaves; those that exist.
pub(super) async fn of(
    change: &mut SqliteConnection,
    at: MapPoint,
    indices: &[LeafIndex],
) -> Result<BTreeMap<LeafIndex, Shown>> {
    static SHOWN: LazyLock<KeyListQuery> = LazyLock::new(|| {
        let sql = with_shown!(
            "SELECT l.leaf, l.lineage, l.commit_seq, l.blocks FROM shown s CROSS JOIN leaves l \
             INDEXED BY leaves_by_version ON l.lineage = s.lineage AND l.leaf = s.leaf AND l.commit_seq = s.version"
        );
        KeyListQuery::with_length(sql, 3, LEAVES_AT_ONCE)
    });
    let (sql, length) = KeyListQuery::for_length(&SHOWN, indices.len());
    let mut query = sqlx::query(sql).bind(&at.lineage.as_bytes()[..]).bind(commit_of(at));
    for index in filled_up(indices, length) {
        query = query.bind(i64::from(index.get()));
    }
    let rows = query.fetch_all(change).await.map_err(failed(DOING))?;
    let shown = |row: &SqliteRow| {
        let lineage = Columns::new(row, "map leaf").identity("lineage", LineageId::from_bytes)?;
        let shown = Shown::of(row, lineage)?;
        Ok((shown.version.index, shown))
    };
    rows.iter().map(shown).collect()
}

/// What `at` shows of the first `limit` leaves of `[from, to)` of which it shows something, by index.
///
/// Each lineage on the way is asked for its own first leaves: nothing behind the last of `limit` leaves that are found already.
pub(super) async fn within(
    change: &mut SqliteConnection,
    at: MapPoint,
    (from, mut to): (i64, i64),
    limit: u32,
) -> Result<Vec<Shown>> {
    // In the order of the index, which has all that is asked for; a column beside a single max() is of the row that has it.
    let sql = "SELECT leaf, max(commit_seq) AS commit_seq, blocks FROM leaves INDEXED BY leaves_by_version \
               WHERE lineage = $1 AND leaf >= $2 AND leaf < $3 AND commit_seq <= $4 GROUP BY leaf ORDER BY leaf LIMIT $5";
    let limit_of_all = usize::try_from(limit).unwrap_or(usize::MAX);
    let mut found: BTreeMap<LeafIndex, Shown> = BTreeMap::new();
    for point in way_up(change, at).await? {
        let rows = sqlx::query(sql)
            .bind(&point.lineage.as_bytes()[..])
            .bind(from)
            .bind(to)
            .bind(commit_of(point))
            .bind(i64::from(limit))
            .fetch_all(&mut *change)
            .await
            .map_err(failed(DOING))?;
        for row in &rows {
            let shown = Shown::of(row, point.lineage)?;
            found.entry(shown.version.index).or_insert(shown);
        }
        while found.len() > limit_of_all {
            found.pop_last();
        }
        if found.len() == limit_of_all {
            to = found.last_key_value().map_or(from, |(last, _)| i64::from(last.get()));
        }
    }
    Ok(found.into_values().collect())
}

/// The points at which a search from `at` looks, one after the other.
async fn way_up(change: &mut SqliteConnection, at: MapPoint) -> Result<Vec<MapPoint>> {
    let sql = "WITH RECURSIVE way (depth, lineage, commit_seq) AS (SELECT 0, $1, $2 UNION ALL \
               SELECT w.depth + 1, n.parent, n.parent_commit FROM way w JOIN lineages n ON n.id = w.lineage \
               WHERE n.parent IS NOT NULL) SELECT lineage, commit_seq FROM way ORDER BY depth";
    let rows = sqlx::query(sql)
        .bind(&at.lineage.as_bytes()[..])
        .bind(commit_of(at))
        .fetch_all(change)
        .await
        .map_err(failed(DOING))?;
    let point = |row: &SqliteRow| {
        let columns = Columns::new(row, "lineage");
        let commit = CommitSeq::new(columns.number("commit_seq")?);
        Ok(MapPoint { lineage: columns.identity("lineage", LineageId::from_bytes)?, commit })
    };
    rows.iter().map(point).collect()
}

/// Parameters that name the version: lineage, leaf, commit.
pub(super) fn key_of(version: &LeafVersion) -> Result<(Vec<u8>, i64, i64)> {
    let LeafVersion { index, at } = version;
    Ok((at.lineage.as_bytes().to_vec(), i64::from(index.get()), int(at.commit.get())?))
}
