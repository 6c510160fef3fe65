//! Folding: new versions of leaves, and in the last step the deltas go.
//!
//! Invariants:
//! - the deltas that remain, laid over the leaves in commit order, give the same map before and after every step. A leaf may therefore be
//!   ahead of the deltas but never behind one that is gone: `forget` is the caller's word that all leaves have it, and only the owner of
//!   the lease may give it;
//! - versions through `folded_through` are never written again, and no fold passes a snapshot beyond it: so what a settled snapshot shows,
//!   and a clone of it, does not change;
//! - an older version goes when a newer one is written, unless a pin needs it (`prune`);
//! - what leaves map is counted with them (`usage`).

use super::columns::{Columns, KeyListQuery, filled_up, int};
use super::leases::LeaseState;
use super::prune::pin_between;
use super::versions::{self, LEAVES_AT_ONCE, PAGE, Shown};
use super::{Result, SqliteCatalog, failed, snapshots, usage};
use crate::{CatalogError, FoldPlan, LEAF_BLOCKS, LeafIndex, MapLeaf, MapPoint};
use cairn_model::{CommitSeq, LbaRange, VolumeId};
use sqlx::SqliteConnection;
use std::sync::{Arc, LazyLock};

const DOING: &str = "folding a map";

pub(super) async fn fold(catalog: &SqliteCatalog, plan: &FoldPlan) -> Result<()> {
    let mut emptied = Vec::with_capacity(plan.emptied.len());
    for range in &plan.emptied {
        emptied.push(whole_leaves(*range)?);
    }
    plan.check()?;
    let mut change = catalog.begin().await?;
    let (volume, folded_through) = check(&mut change, plan).await?;
    // Otherwise the leaves have all of it, by the owner's word: the step was done before.
    if plan.through > folded_through {
        let mut step = Step { change: &mut change, plan, mapped: 0, unmapped: 0 };
        step.write(emptied).await?;
        let Step { mapped, unmapped, .. } = step;
        usage::change(&mut change, volume, mapped, unmapped).await?;
    }
    if let Some(forget) = plan.forget {
        let forget = forget.max(folded_through);
        forget_deltas(&mut change, plan, forget).await?;
        snapshots::settle(&mut change, plan.lineage, volume, forget).await?;
    }
    change.commit().await.map_err(failed(DOING))
}

/// The indices `[from, to)` of a range of whole leaves.
fn whole_leaves(range: LbaRange) -> Result<(i64, i64)> {
    let (start, end) = (range.start().get(), range.end().get());
    if !start.is_multiple_of(LEAF_BLOCKS) || !end.is_multiple_of(LEAF_BLOCKS) {
        return Err(CatalogError::Invalid(format!("emptying {range:?}, which is not made of whole leaves")));
    }
    Ok((int(start / LEAF_BLOCKS)?, int(end / LEAF_BLOCKS)?))
}

/// Fails unless the gateway owns the lineage's volume and the plan fits its commits and snapshots. Returns the volume and what is
/// folded already.
async fn check(change: &mut SqliteConnection, plan: &FoldPlan) -> Result<(VolumeId, CommitSeq)> {
    let sql = "SELECT v.id, n.last_commit, n.folded_through, l.gateway, l.generation, l.held_since, l.released, \
               l.expires_at, (SELECT min(s.commit_seq) FROM snapshots s WHERE s.lineage = n.id \
               AND s.commit_seq > n.folded_through) AS next_snapshot FROM lineages n \
               JOIN volumes v ON v.lineage = n.id AND v.deleted = 0 LEFT JOIN leases l ON l.volume = v.id WHERE n.id = $1";
    let row = sqlx::query(sql)
        .bind(&plan.lineage.as_bytes()[..])
        .fetch_optional(change)
        .await
        .map_err(failed(DOING))?
        .ok_or_else(|| CatalogError::not_found("volume with lineage", &plan.lineage))?;
    let columns = Columns::new(&row, "lineage");
    let volume = columns.identity("id", VolumeId::from_bytes)?;
    LeaseState::check(LeaseState::of(&row)?.as_ref(), volume, plan.gateway, plan.generation)?;
    let &FoldPlan { lineage, through, .. } = plan;
    let last = CommitSeq::new(columns.number("last_commit")?);
    if through > last {
        return Err(CatalogError::FoldBeyond { lineage, through, last });
    }
    if columns.get::<Option<i64>>("next_snapshot")?.is_some() {
        let snapshot = CommitSeq::new(columns.number("next_snapshot")?);
        if snapshot < through {
            return Err(CatalogError::FoldAcross { lineage, through, snapshot });
        }
    }
    Ok((volume, CommitSeq::new(columns.number("folded_through")?)))
}

/// Whether a step wrote a newer version already: then the plan has nothing to say about the leaf.
fn is_behind(plan: &FoldPlan, shown: &Shown) -> bool {
    let at = shown.version.at;
    at.lineage == plan.lineage && at.commit > plan.through
}

/// Writes the leaves of a plan and counts what it changes.
struct Step<'a> {
    change: &'a mut SqliteConnection,
    plan: &'a FoldPlan,
    mapped: u64,
    unmapped: u64,
}

impl Step<'_> {
    async fn write(&mut self, emptied: Vec<(i64, i64)>) -> Result<()> {
        for (from, to) in emptied {
            self.empty(from, to).await?;
        }
        let (empty, filled): (Vec<_>, Vec<_>) =
            self.plan.leaves.iter().partition(|(_, leaf)| leaf.is_empty());
        for (index, _) in empty {
            let index = i64::from(index.get());
            self.empty(index, index + 1).await?;
        }
        for leaves in filled.chunks(LEAVES_AT_ONCE) {
            self.fill(leaves).await?;
        }
        Ok(())
    }

    /// Writes up to [`LEAVES_AT_ONCE`] leaves that map something.
    async fn fill(&mut self, leaves: &[&(LeafIndex, Arc<MapLeaf>)]) -> Result<()> {
        let indices: Vec<LeafIndex> = leaves.iter().map(|(index, _)| *index).collect();
        let before = versions::of(self.change, MapPoint::head(self.plan.lineage), &indices).await?;
        let mut fresh = Vec::with_capacity(leaves.len());
        for (index, leaf) in leaves {
            match before.get(index) {
                Some(shown) if is_behind(self.plan, shown) => continue,
                Some(shown) => self.unmapped += shown.blocks(self.change).await?,
                None => {}
            }
            self.mapped += leaf.blocks();
            fresh.push((*index, &**leaf));
        }
        self.insert(&fresh).await?;
        let fresh: Vec<LeafIndex> = fresh.iter().map(|(index, _)| *index).collect();
        self.delete_older(&fresh).await
    }

    /// Empties the leaves `[from, to)`: as many as there are, own and inherited, however long the range.
    async fn empty(&mut self, mut from: i64, to: i64) -> Result<()> {
        let (plan, head) = (self.plan, MapPoint::head(self.plan.lineage));
        loop {
            let before = versions::within(self.change, head, (from, to), PAGE).await?;
            let Some(last) = before.last() else { return Ok(()) };
            let end = i64::from(last.version.index.get()) + 1;
            let is_to_hide = |shown: &Shown| shown.is_mapped() && !is_behind(plan, shown);
            let mut to_hide: Vec<Shown> = before.into_iter().filter(is_to_hide).collect();
            for shown in &to_hide {
                self.unmapped += shown.blocks(self.change).await?;
            }
            if to_hide.iter().any(|shown| shown.version.at.lineage == plan.lineage) {
                self.delete_through(from, end).await?;
                // What is behind them: what a pin needs, and what is inherited.
                let left = versions::within(self.change, head, (from, end), PAGE).await?;
                to_hide = left.into_iter().filter(is_to_hide).collect();
            }
            self.hide(&to_hide).await?;
            from = end;
        }
    }

    /// Writes holes over what is shown of these leaves.
    async fn hide(&mut self, shown: &[Shown]) -> Result<()> {
        let holes = MapLeaf::default();
        let leaves: Vec<_> = shown.iter().map(|shown| (shown.version.index, &holes)).collect();
        self.insert(&leaves).await
    }

    async fn insert(&mut self, leaves: &[(LeafIndex, &MapLeaf)]) -> Result<()> {
        static MANY: LazyLock<String> = LazyLock::new(|| insertion_of(LEAVES_AT_ONCE));
        static ONE: LazyLock<String> = LazyLock::new(|| insertion_of(1));
        let (many, few) = leaves.as_chunks::<LEAVES_AT_ONCE>();
        let many = many.iter().map(|leaves| (&*MANY, &leaves[..]));
        for (sql, leaves) in many.chain(few.chunks(1).map(|leaf| (&*ONE, leaf))) {
            let mut insert = sqlx::query(sql.as_str())
                .bind(&self.plan.lineage.as_bytes()[..])
                .bind(int(self.plan.through.get())?);
            for (index, leaf) in leaves {
                let index_number = i64::from(index.get());
                insert = insert.bind(index_number).bind(leaf.encode(*index)).bind(int(leaf.blocks())?);
            }
            insert.execute(&mut *self.change).await.map_err(failed(DOING))?;
        }
        Ok(())
    }

    /// Deletes older versions of these leaves, at most [`LEAVES_AT_ONCE`], that have just been written: those that no pin needs.
    async fn delete_older(&mut self, indices: &[LeafIndex]) -> Result<()> {
        static OLDER: LazyLock<KeyListQuery> = LazyLock::new(|| {
            let sql = concat!(
                "DELETE FROM leaves WHERE lineage = $1 AND leaf IN ({keys}) AND commit_seq < $2 AND NOT ",
                pin_between!(
                    "leaves.commit_seq",
                    "(SELECT min(n.commit_seq) FROM leaves n WHERE n.lineage = $1 AND n.leaf = leaves.leaf \
                     AND n.commit_seq > leaves.commit_seq)"
                )
            );
            KeyListQuery::with_length(sql, 3, LEAVES_AT_ONCE)
        });
        if indices.is_empty() {
            return Ok(());
        }
        let (sql, length) = KeyListQuery::for_length(&OLDER, indices.len());
        let mut delete =
            sqlx::query(sql).bind(&self.plan.lineage.as_bytes()[..]).bind(int(self.plan.through.get())?);
        for index in filled_up(indices, length) {
            delete = delete.bind(i64::from(index.get()));
        }
        delete.execute(&mut *self.change).await.map(drop).map_err(failed(DOING))
    }

    /// Deletes the versions of the leaves `[from, to)` that no pin needs once they are empty at the plan's commit.
    async fn delete_through(&mut self, from: i64, to: i64) -> Result<()> {
        let sql = concat!(
            "DELETE FROM leaves WHERE lineage = $1 AND leaf >= $2 AND leaf < $3 AND commit_seq <= $4 AND NOT EXISTS ",
            "(SELECT 1 FROM leaves n WHERE n.lineage = $1 AND n.leaf = leaves.leaf AND n.commit_seq > $4) AND NOT ",
            pin_between!(
                "leaves.commit_seq",
                "coalesce((SELECT min(n.commit_seq) FROM leaves n WHERE n.lineage = $1 AND n.leaf = leaves.leaf \
                 AND n.commit_seq > leaves.commit_seq), $4)"
            )
        );
        sqlx::query(sql)
            .bind(&self.plan.lineage.as_bytes()[..])
            .bind(from)
            .bind(to)
            .bind(int(self.plan.through.get())?)
            .execute(&mut *self.change)
            .await
            .map(drop)
            .map_err(failed(DOING))
    }
}

/// Parameters: lineage, commit, then index, bytes and blocks of each leaf.
fn insertion_of(leaves: usize) -> String {
    let row = |number: usize| {
        let first = 3 * number + 3;
        format!("($1, ${first}, $2, ${}, ${})", first + 1, first + 2)
    };
    let rows: Vec<String> = (0..leaves).map(row).collect();
    format!(
        "INSERT INTO leaves (lineage, leaf, commit_seq, data, blocks) VALUES {} \
         ON CONFLICT (lineage, leaf, commit_seq) DO UPDATE SET data = excluded.data, blocks = excluded.blocks",
        rows.join(", ")
    )
}

async fn forget_deltas(change: &mut SqliteConnection, plan: &FoldPlan, through: CommitSeq) -> Result<()> {
    sqlx::query("DELETE FROM deltas WHERE lineage = $1 AND commit_seq <= $2")
        .bind(&plan.lineage.as_bytes()[..])
        .bind(int(through.get())?)
        .execute(&mut *change)
        .await
        .map_err(failed(DOING))?;
    sqlx::query("UPDATE lineages SET folded_through = $1 WHERE id = $2")
        .bind(int(through.get())?)
        .bind(&plan.lineage.as_bytes()[..])
        .execute(change)
        .await
        .map(drop)
        .map_err(failed(DOING))
}
