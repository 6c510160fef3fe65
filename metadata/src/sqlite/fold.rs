//! Folding: new versions of leaves, and in the last step the deltas go.
//!
//! Invariant: the deltas that remain, laid over the leaves in commit order, give the same map before and after every step. A leaf may
//! therefore be ahead of the deltas but never behind one that is gone: `forget` is the caller's word that all leaves have it, and only the
//! owner of the lease may give it. What leaves map is counted with them (`usage`).

use super::columns::{Columns, int};
use super::leases::LeaseState;
use super::usage::{self, LEAVES_AT_ONCE, Leaves};
use super::{Result, SqliteCatalog, failed};
use crate::{CatalogError, FoldPlan, LEAF_BLOCKS, LeafIndex, MapLeaf};
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
    let (mut mapped, mut unmapped) = (0, 0);
    for (from, to) in emptied {
        unmapped += delete_leaves(&mut change, plan, from, to).await?;
    }
    let (empty, filled): (Vec<_>, Vec<_>) = plan.leaves.iter().partition(|(_, leaf)| leaf.is_empty());
    for (index, _) in empty {
        let index = i64::from(index.get());
        unmapped += delete_leaves(&mut change, plan, index, index + 1).await?;
    }
    for leaves in filled.chunks(LEAVES_AT_ONCE) {
        let replaced = count_replaced(&mut change, plan, leaves).await?;
        (mapped, unmapped) = (mapped + replaced.mapped, unmapped + replaced.unmapped);
        write_leaves(&mut change, plan, leaves).await?;
    }
    usage::change(&mut change, volume, mapped, unmapped).await?;
    if let Some(forget) = plan.forget {
        forget_deltas(&mut change, plan, forget.max(folded_through)).await?;
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

/// Fails unless the gateway owns the lineage's volume and the plan fits its commits. Returns the volume and what is
/// folded already.
async fn check(change: &mut SqliteConnection, plan: &FoldPlan) -> Result<(VolumeId, CommitSeq)> {
    let sql = "SELECT v.id, n.last_commit, n.folded_through, l.gateway, l.generation, l.held_since, l.released, \
               l.expires_at FROM lineages n JOIN volumes v ON v.lineage = n.id AND v.deleted = 0 \
               LEFT JOIN leases l ON l.volume = v.id WHERE n.id = $1";
    let row = sqlx::query(sql)
        .bind(&plan.lineage.as_bytes()[..])
        .fetch_optional(change)
        .await
        .map_err(failed(DOING))?
        .ok_or_else(|| CatalogError::not_found("volume with lineage", &plan.lineage))?;
    let columns = Columns::new(&row, "lineage");
    let volume = columns.identity("id", VolumeId::from_bytes)?;
    LeaseState::check(LeaseState::of(&row)?.as_ref(), volume, plan.gateway, plan.generation)?;
    let last = CommitSeq::new(columns.number("last_commit")?);
    if plan.through > last {
        return Err(CatalogError::FoldBeyond { lineage: plan.lineage, through: plan.through, last });
    }
    Ok((volume, CommitSeq::new(columns.number("folded_through")?)))
}

/// Deletes the leaves `[from, to)`: as many rows as there are, however long the range. Returns how many blocks are mapped no more.
async fn delete_leaves(change: &mut SqliteConnection, plan: &FoldPlan, from: i64, to: i64) -> Result<u64> {
    let leaves = Leaves { lineage: plan.lineage, from, to, through: int(plan.through.get())? };
    let unmapped = usage::mapped_blocks(change, &leaves).await?;
    let sql = "DELETE FROM leaves WHERE lineage = $1 AND leaf >= $2 AND leaf < $3 AND commit_seq <= $4";
    sqlx::query(sql)
        .bind(&plan.lineage.as_bytes()[..])
        .bind(from)
        .bind(to)
        .bind(int(plan.through.get())?)
        .execute(change)
        .await
        .map_err(failed(DOING))?;
    Ok(unmapped)
}

#[derive(Default)]
struct Replaced {
    mapped: u64,
    unmapped: u64,
}

/// What writing `leaves`, at most [`LEAVES_AT_ONCE`], changes in blocks. A leaf behind a newer version of it changes nothing.
async fn count_replaced(
    change: &mut SqliteConnection,
    plan: &FoldPlan,
    leaves: &[&(LeafIndex, Arc<MapLeaf>)],
) -> Result<Replaced> {
    let indices: Vec<LeafIndex> = leaves.iter().map(|(index, _)| *index).collect();
    let present = usage::newest(change, plan.lineage, &indices).await?;
    let through = int(plan.through.get())?;
    let mut replaced = Replaced::default();
    for (index, leaf) in leaves {
        match present.get(index) {
            Some((version, _)) if *version > through => {}
            old => {
                replaced.mapped += leaf.blocks();
                replaced.unmapped += old.map_or(0, |(_, blocks)| *blocks);
            }
        }
    }
    Ok(replaced)
}

struct WriteQuery {
    insert: String,
    delete_older: String,
}

impl WriteQuery {
    /// Parameters: lineage, commit, then index, bytes and blocks of each leaf; to delete: lineage, commit, indices.
    fn new(leaves: usize) -> Self {
        let row = |number: usize| {
            let first = 3 * number + 3;
            format!("($1, ${first}, $2, ${}, ${})", first + 1, first + 2)
        };
        let rows: Vec<String> = (0..leaves).map(row).collect();
        let indices: Vec<String> = (0..leaves).map(|number| format!("${}", number + 3)).collect();
        Self {
            insert: format!(
                "INSERT INTO leaves (lineage, leaf, commit_seq, data, blocks) VALUES {} \
                 ON CONFLICT (lineage, leaf, commit_seq) DO UPDATE SET data = excluded.data, blocks = excluded.blocks",
                rows.join(", ")
            ),
            delete_older: format!(
                "DELETE FROM leaves WHERE lineage = $1 AND commit_seq < $2 AND leaf IN ({})",
                indices.join(", ")
            ),
        }
    }
}

/// Writes the new versions; the older ones go, as no snapshot needs them.
async fn write_leaves(
    change: &mut SqliteConnection,
    plan: &FoldPlan,
    leaves: &[&(LeafIndex, Arc<MapLeaf>)],
) -> Result<()> {
    static MANY: LazyLock<WriteQuery> = LazyLock::new(|| WriteQuery::new(LEAVES_AT_ONCE));
    static ONE: LazyLock<WriteQuery> = LazyLock::new(|| WriteQuery::new(1));
    let (sql, at_once): (&'static WriteQuery, usize) =
        if leaves.len() == LEAVES_AT_ONCE { (&MANY, LEAVES_AT_ONCE) } else { (&ONE, 1) };
    let through = int(plan.through.get())?;
    for leaves in leaves.chunks(at_once) {
        let mut insert = sqlx::query(sql.insert.as_str()).bind(&plan.lineage.as_bytes()[..]).bind(through);
        let mut older =
            sqlx::query(sql.delete_older.as_str()).bind(&plan.lineage.as_bytes()[..]).bind(through);
        for (index, leaf) in leaves {
            insert = insert.bind(i64::from(index.get())).bind(leaf.encode(*index)).bind(int(leaf.blocks())?);
            older = older.bind(i64::from(index.get()));
        }
        older.execute(&mut *change).await.map_err(failed(DOING))?;
        insert.execute(&mut *change).await.map_err(failed(DOING))?;
    }
    Ok(())
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
