//! Taking away, in bounded steps, what nothing shows any more: rows of deleted volumes, versions of leaves that no pin needs, and
//! lineages without a pin.
//!
//! Whoever lets go of something marks its lineage; a pass then goes over the leaves of the lineage, in the order of their key, and notes
//! in its row how far it is.
//!
//! Invariants:
//! - a step looks at the pins inside its transaction: what was true when the lineage was marked decides nothing;
//! - deleting a version that no pin needs changes what no pin shows, so the order of deletions does not matter, and a pass may be cut
//!   short anywhere;
//! - a lineage that is let go of during a pass gets another one, from the beginning;
//! - a lineage goes after its last row, and only then is it no pin of its parent any more.
//!
//! The blobs are not read for it: indices say all that it asks.

use super::columns::{Columns, KeyListQuery, filled_up, int};
use super::versions::{self, LEAVES_AT_ONCE, Shown, index_of};
use super::{Result, SqliteCatalog, failed};
use crate::{LeafIndex, MapPoint};
use cairn_model::{CommitSeq, LineageId, VolumeId};
use sqlx::SqliteConnection;
use std::collections::BTreeMap;
use std::sync::LazyLock;

const DOING: &str = "purging what was deleted";

/// Whether a pin of lineage $1, other than the head, is in `[$from, $to)`.
macro_rules! pin_between {
    ($from:literal, $to:literal) => {
        concat!(
            "(EXISTS (SELECT 1 FROM snapshots s WHERE s.lineage = $1 AND s.commit_seq >= ",
            $from,
            " AND s.commit_seq < ",
            $to,
            ") OR EXISTS (SELECT 1 FROM lineages c WHERE c.parent = $1 AND c.parent_commit >= ",
            $from,
            " AND c.parent_commit < ",
            $to,
            "))"
        )
    };
}
pub(super) use pin_between;

macro_rules! mark_lineages {
    ($rest:literal) => {
        concat!(
            "UPDATE lineages SET prune_passes = CASE WHEN pruned_leaf < 0 THEN 1 ELSE 2 END WHERE ",
            $rest
        )
    };
}

/// Something of the lineage may be needed no more.
pub(super) async fn mark(change: &mut SqliteConnection, lineage: LineageId) -> Result<()> {
    sqlx::query(mark_lineages!("id = $1"))
        .bind(&lineage.as_bytes()[..])
        .execute(change)
        .await
        .map(drop)
        .map_err(failed(DOING))
}

/// Marks the lineages that the volume has snapshots of.
pub(super) async fn mark_snapshots(change: &mut SqliteConnection, volume: VolumeId) -> Result<()> {
    sqlx::query(mark_lineages!("id IN (SELECT lineage FROM snapshots WHERE volume = $1)"))
        .bind(&volume.as_bytes()[..])
        .execute(change)
        .await
        .map(drop)
        .map_err(failed(DOING))
}

macro_rules! anything_left {
    () => {
        "SELECT EXISTS (SELECT 1 FROM volumes WHERE deleted = 1) \
         OR EXISTS (SELECT 1 FROM lineages WHERE prune_passes > 0)"
    };
}

/// Looks at about `rows_max` rows. Returns whether there is more to do.
pub(super) async fn purge(catalog: &SqliteCatalog, rows_max: u32) -> Result<bool> {
    // Without a look at the writer, who may be busy.
    if !sqlx::query_scalar(anything_left!()).fetch_one(&catalog.readers).await.map_err(failed(DOING))? {
        return Ok(false);
    }
    let mut change = catalog.begin().await?;
    let mut left = i64::from(rows_max.max(1));
    while left > 0 {
        left -= match forget_volume(&mut change).await? {
            Some(rows) => rows,
            None => match Pass::next(&mut change).await? {
                Some(pass) => pass.step(&mut change, left).await?,
                None => break,
            },
        };
    }
    let more = sqlx::query_scalar(anything_left!()).fetch_one(&mut *change).await.map_err(failed(DOING))?;
    change.commit().await.map_err(failed(DOING))?;
    Ok(more)
}

/// Takes away the row of a deleted volume and its lease, and marks its lineage; its snapshots went with the deletion. Returns how many
/// rows, `None` when there is no such volume.
async fn forget_volume(change: &mut SqliteConnection) -> Result<Option<i64>> {
    let row = sqlx::query("SELECT id, lineage FROM volumes WHERE deleted = 1 LIMIT 1")
        .fetch_optional(&mut *change)
        .await
        .map_err(failed(DOING))?;
    let Some(row) = row else { return Ok(None) };
    let columns = Columns::new(&row, "volume");
    let volume = columns.identity("id", VolumeId::from_bytes)?;
    mark(change, columns.identity("lineage", LineageId::from_bytes)?).await?;
    for sql in ["DELETE FROM leases WHERE volume = $1", "DELETE FROM volumes WHERE id = $1"] {
        sqlx::query(sql).bind(&volume.as_bytes()[..]).execute(&mut *change).await.map_err(failed(DOING))?;
    }
    Ok(Some(2))
}

/// A row of `leaves` in the order of its key: leaf, commit.
type Row = (i64, i64);

const BEFORE_ALL: Row = (-1, -1);
const BEHIND_ALL: Row = (i64::MAX, i64::MAX);

/// A pass over the leaves of a lineage.
struct Pass {
    lineage: LineageId,
    parent: Option<MapPoint>,
    /// Whether it is the lineage of a volume that is not deleted: its newest versions are needed.
    is_head: bool,
    /// The last row that was looked at.
    from: Row,
    /// Passes to be made, this one included.
    passes: i64,
}

impl Pass {
    async fn next(change: &mut SqliteConnection) -> Result<Option<Self>> {
        let sql = "SELECT n.*, EXISTS (SELECT 1 FROM volumes v WHERE v.lineage = n.id AND v.deleted = 0) AS is_head \
                   FROM lineages n WHERE n.prune_passes > 0 LIMIT 1";
        let row = sqlx::query(sql).fetch_optional(change).await.map_err(failed(DOING))?;
        let Some(row) = row else { return Ok(None) };
        let columns = Columns::new(&row, "lineage");
        let parent = match columns.optional_identity("parent", LineageId::from_bytes)? {
            Some(lineage) => {
                Some(MapPoint { lineage, commit: CommitSeq::new(columns.number("parent_commit")?) })
            }
            None => None,
        };
        Ok(Some(Self {
            lineage: columns.identity("id", LineageId::from_bytes)?,
            parent,
            is_head: columns.get("is_head")?,
            from: (columns.get("pruned_leaf")?, columns.get("pruned_commit")?),
            passes: columns.get("prune_passes")?,
        }))
    }

    /// Looks at up to `rows_max` rows. Returns at how many; at least one, so that steps end.
    async fn step(&self, change: &mut SqliteConnection, rows_max: i64) -> Result<i64> {
        let mut rows = 0;
        if !self.is_head {
            rows += self.delete_deltas(change, rows_max).await?;
            if rows == rows_max {
                return Ok(rows);
            }
        }
        let (to, looked_at) = self.page(change, rows_max - rows).await?;
        rows += looked_at;
        self.delete_unneeded(change, to).await?;
        self.delete_idle_holes(change, to).await?;
        if to < BEHIND_ALL {
            self.note(change, to, self.passes).await?;
        } else {
            self.finish(change).await?;
        }
        Ok(rows.max(1))
    }

    async fn delete_deltas(&self, change: &mut SqliteConnection, rows_max: i64) -> Result<i64> {
        let sql = "DELETE FROM deltas WHERE lineage = $1 AND commit_seq IN \
                   (SELECT commit_seq FROM deltas WHERE lineage = $1 ORDER BY commit_seq LIMIT $2)";
        let deleted = sqlx::query(sql)
            .bind(&self.lineage.as_bytes()[..])
            .bind(rows_max)
            .execute(change)
            .await
            .map_err(failed(DOING))?;
        int(deleted.rows_affected())
    }

    /// The next `rows_max` rows: the last of them, [`BEHIND_ALL`] when there are no more, and how many.
    async fn page(&self, change: &mut SqliteConnection, rows_max: i64) -> Result<(Row, i64)> {
        let sql = "SELECT leaf, commit_seq FROM leaves WHERE lineage = $1 AND (leaf, commit_seq) > ($2, $3) \
                   ORDER BY leaf, commit_seq LIMIT $4";
        let rows: Vec<Row> = sqlx::query_as(sql)
            .bind(&self.lineage.as_bytes()[..])
            .bind(self.from.0)
            .bind(self.from.1)
            .bind(rows_max)
            .fetch_all(change)
            .await
            .map_err(failed(DOING))?;
        let looked_at = int(rows.len() as u64)?;
        let last = rows.last().copied().filter(|_| looked_at == rows_max);
        Ok((last.unwrap_or(BEHIND_ALL), looked_at))
    }

    /// Deletes the versions through `to` that no pin needs.
    async fn delete_unneeded(&self, change: &mut SqliteConnection, to: Row) -> Result<()> {
        let sql = concat!(
            "DELETE FROM leaves WHERE lineage = $1 AND (leaf, commit_seq) > ($2, $3) ",
            "AND (leaf, commit_seq) <= ($4, $5) AND NOT ($6 AND NOT EXISTS (SELECT 1 FROM leaves n ",
            "WHERE n.lineage = $1 AND n.leaf = leaves.leaf AND n.commit_seq > leaves.commit_seq)) AND NOT ",
            pin_between!(
                "leaves.commit_seq",
                "coalesce((SELECT min(n.commit_seq) FROM leaves n WHERE n.lineage = $1 AND n.leaf = leaves.leaf \
                 AND n.commit_seq > leaves.commit_seq), 9223372036854775807)"
            )
        );
        self.bound(sql, to).bind(self.is_head).execute(change).await.map(drop).map_err(failed(DOING))
    }

    /// Deletes the versions through `to` that say "holes" with nothing behind them that would show instead. Only the oldest of a leaf can be
    /// one, and when it goes the next may be.
    async fn delete_idle_holes(&self, change: &mut SqliteConnection, to: Row) -> Result<()> {
        let sql = "SELECT leaf FROM leaves WHERE lineage = $1 AND (leaf, commit_seq) > ($2, $3) \
                   AND (leaf, commit_seq) <= ($4, $5) AND blocks = 0 AND NOT EXISTS \
                   (SELECT 1 FROM leaves o WHERE o.lineage = $1 AND o.leaf = leaves.leaf \
                   AND o.commit_seq < leaves.commit_seq)";
        loop {
            let rows = self.bound(sql, to).fetch_all(&mut *change).await.map_err(failed(DOING))?;
            let holes = rows.iter().map(|row| index_of(&Columns::new(row, "map leaf")));
            let mut is_any_idle = false;
            for holes in holes.collect::<Result<Vec<_>>>()?.chunks(LEAVES_AT_ONCE) {
                let inherited = match self.parent {
                    Some(parent) => versions::of(change, parent, holes).await?,
                    None => BTreeMap::new(),
                };
                let is_idle = |index: &LeafIndex| !inherited.get(index).is_some_and(Shown::is_mapped);
                let idle: Vec<LeafIndex> = holes.iter().copied().filter(is_idle).collect();
                is_any_idle |= !idle.is_empty();
                self.delete_oldest_holes(change, &idle).await?;
            }
            if !is_any_idle {
                return Ok(());
            }
        }
    }

    async fn delete_oldest_holes(&self, change: &mut SqliteConnection, indices: &[LeafIndex]) -> Result<()> {
        static OLDEST: LazyLock<KeyListQuery> = LazyLock::new(|| {
            let sql = "DELETE FROM leaves WHERE lineage = $1 AND leaf IN ({keys}) AND blocks = 0 AND NOT EXISTS \
                       (SELECT 1 FROM leaves o WHERE o.lineage = $1 AND o.leaf = leaves.leaf \
                       AND o.commit_seq < leaves.commit_seq)";
            KeyListQuery::with_length(sql, 2, LEAVES_AT_ONCE)
        });
        if indices.is_empty() {
            return Ok(());
        }
        let (sql, length) = KeyListQuery::for_length(&OLDEST, indices.len());
        let mut delete = sqlx::query(sql).bind(&self.lineage.as_bytes()[..]);
        for index in filled_up(indices, length) {
            delete = delete.bind(i64::from(index.get()));
        }
        delete.execute(change).await.map(drop).map_err(failed(DOING))
    }

    /// A statement about the rows behind the last one looked at, through `to`: parameters 1 to 5.
    fn bound(&self, sql: &'static str, to: Row) -> Query {
        sqlx::query(sql)
            .bind(self.lineage.as_bytes().to_vec())
            .bind(self.from.0)
            .bind(self.from.1)
            .bind(to.0)
            .bind(to.1)
    }

    async fn note(&self, change: &mut SqliteConnection, at: Row, passes: i64) -> Result<()> {
        let sql = "UPDATE lineages SET pruned_leaf = $1, pruned_commit = $2, prune_passes = $3 WHERE id = $4";
        sqlx::query(sql)
            .bind(at.0)
            .bind(at.1)
            .bind(passes)
            .bind(&self.lineage.as_bytes()[..])
            .execute(change)
            .await
            .map(drop)
            .map_err(failed(DOING))
    }

    /// The pass came to the end. A lineage without a pin goes, if it is empty; if not, or if it was marked again, another pass begins.
    async fn finish(&self, change: &mut SqliteConnection) -> Result<()> {
        let sql = concat!(
            "SELECT ",
            pin_between!("0", "9223372036854775807"),
            " AS is_pinned, EXISTS (SELECT 1 FROM leaves WHERE lineage = $1) AS has_leaves"
        );
        let row = sqlx::query(sql)
            .bind(&self.lineage.as_bytes()[..])
            .fetch_one(&mut *change)
            .await
            .map_err(failed(DOING))?;
        let columns = Columns::new(&row, "lineage");
        let is_pinned = self.is_head || columns.get("is_pinned")?;
        if is_pinned {
            return self.note(change, BEFORE_ALL, self.passes - 1).await;
        }
        if columns.get("has_leaves")? {
            return self.note(change, BEFORE_ALL, 1).await;
        }
        sqlx::query("DELETE FROM lineages WHERE id = $1")
            .bind(&self.lineage.as_bytes()[..])
            .execute(&mut *change)
            .await
            .map_err(failed(DOING))?;
        match self.parent {
            Some(parent) => mark(change, parent.lineage).await,
            None => Ok(()),
        }
    }
}

type Query = sqlx::query::Query<'static, sqlx::Sqlite, sqlx::sqlite::SqliteArguments>;
