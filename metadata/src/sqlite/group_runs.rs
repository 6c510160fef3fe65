//! Runs of protection groups, from the intent to the end.

use super::columns::{Columns, int};
use super::{Result, SqliteCatalog, events, failed, groups};
use crate::{
    CatalogError, EventRow, GROUP_RUNS_MAX, GroupMember, GroupName, GroupRunEnd, GroupRunRow, GroupSnapshot,
    MemberState, RunOutcome, SnapshotName, VolumeName,
};
use cairn_model::{GatewayId, GroupId, GroupRunId, SnapshotId, VolumeId, WallTime};
use sqlx::SqliteConnection;
use sqlx::sqlite::SqliteRow;

/// A snapshot is gone, and groups count on it no more.
pub(super) const FORGET_SNAPSHOT: &str = "UPDATE group_members SET state = 'deleted' WHERE snapshot = $1 AND state IN ('planned', 'taken', 'unknown')";
/// A volume is gone with its snapshots.
pub(super) const FORGET_VOLUME: &str = "UPDATE group_members SET state = 'deleted' WHERE volume = $1 AND state IN ('planned', 'taken', 'unknown')";

pub(super) async fn begin(
    catalog: &SqliteCatalog,
    run: &GroupRunRow,
    locked_until: Option<WallTime>,
    handled_through: WallTime,
) -> Result<()> {
    let doing = "beginning a group's run";
    let mut change = catalog.begin().await?;
    if seq_of(&mut change, run.id).await?.is_some() {
        return Ok(());
    }
    let name = groups::name(&mut change, run.group).await?;
    check_none_under_way(&mut change, run.group, &name).await?;
    let sql = "SELECT EXISTS (SELECT 1 FROM group_runs WHERE group_id = $1 AND label = $2)";
    let is_taken: bool = sqlx::query_scalar(sql)
        .bind(&run.group.as_bytes()[..])
        .bind(&run.label)
        .fetch_one(&mut *change)
        .await
        .map_err(failed(doing))?;
    if is_taken {
        return Err(CatalogError::NameTaken { what: "run", name: format!("{name}-{}", run.label) });
    }
    let sql = "INSERT INTO group_runs (id, group_id, gateway, label, planned, missed, began_at) \
               VALUES ($1, $2, $3, $4, $5, $6, $7)";
    let begun = sqlx::query(sql)
        .bind(&run.id.as_bytes()[..])
        .bind(&run.group.as_bytes()[..])
        .bind(&run.gateway.as_bytes()[..])
        .bind(&run.label)
        .bind(run.planned.map(|planned| int(planned.unix_millis())).transpose()?)
        .bind(int(run.missed)?)
        .bind(int(run.began_at.unix_millis())?)
        .execute(&mut *change)
        .await
        .map_err(failed(doing))?;
    for member in &run.members {
        insert_member(&mut change, begun.last_insert_rowid(), member).await?;
        if let Some(until) = locked_until.filter(|_| member.state == MemberState::Planned) {
            lock(&mut change, member, until).await?;
        }
    }
    set_handled(&mut change, run.group, handled_through).await?;
    change.commit().await.map_err(failed(doing))
}

async fn insert_member(change: &mut SqliteConnection, run: i64, member: &GroupMember) -> Result<()> {
    let sql = "INSERT INTO group_members (run, snapshot, volume, volume_name, snapshot_name, state, error) \
               VALUES ($1, $2, $3, $4, $5, $6, $7)";
    sqlx::query(sql)
        .bind(run)
        .bind(&member.snapshot.as_bytes()[..])
        .bind(&member.volume.as_bytes()[..])
        .bind(member.volume_name.as_str())
        .bind(member.snapshot_name.as_str())
        .bind(member.state.name())
        .bind(member.error.as_deref())
        .execute(change)
        .await
        .map(drop)
        .map_err(failed("beginning a group's run"))
}

async fn lock(change: &mut SqliteConnection, member: &GroupMember, until: WallTime) -> Result<()> {
    sqlx::query("INSERT INTO snapshot_locks (snapshot, volume, until) VALUES ($1, $2, $3)")
        .bind(&member.snapshot.as_bytes()[..])
        .bind(&member.volume.as_bytes()[..])
        .bind(int(until.unix_millis())?)
        .execute(change)
        .await
        .map(drop)
        .map_err(failed("locking a snapshot"))
}

async fn set_handled(change: &mut SqliteConnection, group: GroupId, through: WallTime) -> Result<()> {
    sqlx::query("UPDATE protection_groups SET handled_through = $1 WHERE id = $2")
        .bind(int(through.unix_millis())?)
        .bind(&group.as_bytes()[..])
        .execute(change)
        .await
        .map(drop)
        .map_err(failed("noting what a group has dealt with"))
}

async fn seq_of(change: &mut SqliteConnection, run: GroupRunId) -> Result<Option<i64>> {
    sqlx::query_scalar("SELECT seq FROM group_runs WHERE id = $1")
        .bind(&run.as_bytes()[..])
        .fetch_optional(change)
        .await
        .map_err(failed("reading a group's run"))
}

/// Fails when a run of the group has not ended.
pub(super) async fn check_none_under_way(
    change: &mut SqliteConnection,
    group: GroupId,
    name: &GroupName,
) -> Result<()> {
    let row = sqlx::query("SELECT id FROM group_runs WHERE group_id = $1 AND ended_at IS NULL LIMIT 1")
        .bind(&group.as_bytes()[..])
        .fetch_optional(change)
        .await
        .map_err(failed("looking for a group's runs"))?;
    let Some(row) = row else { return Ok(()) };
    let run = Columns::new(&row, "run").identity("id", GroupRunId::from_bytes)?;
    Err(CatalogError::RunUnderWay { name: name.to_string(), run })
}

pub(super) async fn end(catalog: &SqliteCatalog, end: &GroupRunEnd, event: &EventRow) -> Result<()> {
    let doing = "ending a group's run";
    let mut change = catalog.begin().await?;
    let row = sqlx::query("SELECT seq, group_id, ended_at FROM group_runs WHERE id = $1")
        .bind(&end.run.as_bytes()[..])
        .fetch_optional(&mut *change)
        .await
        .map_err(failed(doing))?
        .ok_or_else(|| CatalogError::not_found("run", &end.run))?;
    let columns = Columns::new(&row, "run");
    if columns.optional_time("ended_at")?.is_some() {
        return Ok(());
    }
    let seq: i64 = columns.get("seq")?;
    let group = columns.identity("group_id", GroupId::from_bytes)?;
    sqlx::query("UPDATE group_runs SET ended_at = $1, outcome = $2, error = $3 WHERE seq = $4")
        .bind(int(end.at.unix_millis())?)
        .bind(end.outcome.name())
        .bind(end.error.as_deref())
        .bind(seq)
        .execute(&mut *change)
        .await
        .map_err(failed(doing))?;
    for (snapshot, state, error) in &end.members {
        end_member(&mut change, seq, *snapshot, *state, error.as_deref()).await?;
    }
    if let Some(through) = end.handled_through {
        set_handled(&mut change, group, through).await?;
    }
    events::insert(&mut change, event).await?;
    forget_oldest(&mut change, group).await?;
    change.commit().await.map_err(failed(doing))
}

async fn end_member(
    change: &mut SqliteConnection,
    run: i64,
    snapshot: SnapshotId,
    state: MemberState,
    error: Option<&str>,
) -> Result<()> {
    let doing = "ending a group's run";
    // What was deleted in between stays so.
    let sql = "UPDATE group_members SET state = $1, error = $2 WHERE run = $3 AND snapshot = $4 AND state = 'planned'";
    sqlx::query(sql)
        .bind(state.name())
        .bind(error)
        .bind(run)
        .bind(&snapshot.as_bytes()[..])
        .execute(&mut *change)
        .await
        .map_err(failed(doing))?;
    if state == MemberState::Failed {
        sqlx::query("DELETE FROM snapshot_locks WHERE snapshot = $1")
            .bind(&snapshot.as_bytes()[..])
            .execute(change)
            .await
            .map_err(failed(doing))?;
    }
    Ok(())
}

/// Forgets old runs of which nothing is left.
async fn forget_oldest(change: &mut SqliteConnection, group: GroupId) -> Result<()> {
    let sql = "DELETE FROM group_runs WHERE group_id = $1 AND ended_at IS NOT NULL AND seq <= \
               (SELECT seq FROM group_runs WHERE group_id = $1 ORDER BY seq DESC LIMIT 1 OFFSET $2) \
               AND NOT EXISTS (SELECT 1 FROM group_members m WHERE m.run = group_runs.seq \
               AND m.state IN ('planned', 'taken', 'unknown'))";
    sqlx::query(sql)
        .bind(&group.as_bytes()[..])
        .bind(i64::from(GROUP_RUNS_MAX))
        .execute(change)
        .await
        .map(drop)
        .map_err(failed("forgetting old runs of a group"))
}

pub(super) async fn record_pruning(
    catalog: &SqliteCatalog,
    run: GroupRunId,
    pruned: u64,
    error: Option<&str>,
) -> Result<()> {
    let recorded = sqlx::query("UPDATE group_runs SET pruned = $1, prune_error = $2 WHERE id = $3")
        .bind(int(pruned)?)
        .bind(error)
        .bind(&run.as_bytes()[..])
        .execute(&catalog.writer)
        .await
        .map_err(failed("noting what retention did"))?;
    if recorded.rows_affected() == 0 { Err(CatalogError::not_found("run", &run)) } else { Ok(()) }
}

pub(super) async fn last(catalog: &SqliteCatalog, group: GroupId, limit: u32) -> Result<Vec<GroupRunRow>> {
    let rows = sqlx::query("SELECT * FROM group_runs WHERE group_id = $1 ORDER BY seq DESC LIMIT $2")
        .bind(&group.as_bytes()[..])
        .bind(i64::from(limit))
        .fetch_all(&catalog.readers)
        .await
        .map_err(failed("reading a group's runs"))?;
    with_members(catalog, &rows).await
}

pub(super) async fn unfinished(catalog: &SqliteCatalog) -> Result<Vec<GroupRunRow>> {
    let rows = sqlx::query("SELECT * FROM group_runs WHERE ended_at IS NULL ORDER BY seq")
        .fetch_all(&catalog.readers)
        .await
        .map_err(failed("reading unfinished runs"))?;
    with_members(catalog, &rows).await
}

async fn with_members(catalog: &SqliteCatalog, rows: &[SqliteRow]) -> Result<Vec<GroupRunRow>> {
    let mut runs = Vec::with_capacity(rows.len());
    for row in rows {
        let seq: i64 = Columns::new(row, "run").get("seq")?;
        let members =
            sqlx::query("SELECT * FROM group_members WHERE run = $1 ORDER BY volume_name, snapshot")
                .bind(seq)
                .fetch_all(&catalog.readers)
                .await
                .map_err(failed("reading a run's members"))?;
        let members = members.iter().map(member_of).collect::<Result<_>>()?;
        runs.push(run_of(row, members)?);
    }
    Ok(runs)
}

fn run_of(row: &SqliteRow, members: Vec<GroupMember>) -> Result<GroupRunRow> {
    let columns = Columns::new(row, "run");
    let ended = match columns.optional_time("ended_at")? {
        Some(at) => {
            let outcome: &str = columns.get("outcome")?;
            let known = RunOutcome::named(outcome).ok_or_else(|| columns.bad("outcome", outcome))?;
            Some((at, known))
        }
        None => None,
    };
    Ok(GroupRunRow {
        id: columns.identity("id", GroupRunId::from_bytes)?,
        group: columns.identity("group_id", GroupId::from_bytes)?,
        gateway: columns.identity("gateway", GatewayId::from_bytes)?,
        label: columns.get("label")?,
        planned: columns.optional_time("planned")?,
        missed: columns.number("missed")?,
        began_at: columns.time("began_at")?,
        ended,
        error: columns.get("error")?,
        pruned: columns.number("pruned")?,
        prune_error: columns.get("prune_error")?,
        members,
    })
}

fn member_of(row: &SqliteRow) -> Result<GroupMember> {
    let columns = Columns::new(row, "member");
    let state: &str = columns.get("state")?;
    Ok(GroupMember {
        volume: columns.identity("volume", VolumeId::from_bytes)?,
        volume_name: volume_name(&columns)?,
        snapshot: columns.identity("snapshot", SnapshotId::from_bytes)?,
        snapshot_name: snapshot_name(&columns)?,
        state: MemberState::named(state).ok_or_else(|| columns.bad("state", state))?,
        error: columns.get("error")?,
    })
}

fn volume_name(columns: &Columns<'_>) -> Result<VolumeName> {
    let name: &str = columns.get("volume_name")?;
    VolumeName::new(name).map_err(|error| CatalogError::corrupt("member", &error))
}

fn snapshot_name(columns: &Columns<'_>) -> Result<SnapshotName> {
    let name: &str = columns.get("snapshot_name")?;
    SnapshotName::new(name).map_err(|error| CatalogError::corrupt("member", &error))
}

pub(super) async fn snapshots(catalog: &SqliteCatalog, group: GroupId) -> Result<Vec<GroupSnapshot>> {
    // By what they are called now; those in the log alone by what they will be.
    let sql = "SELECT m.volume, m.snapshot, r.began_at, coalesce(v.name, m.volume_name) AS volume_name, \
               coalesce(s.name, m.snapshot_name) AS snapshot_name, k.until \
               FROM group_runs r JOIN group_members m ON m.run = r.seq LEFT JOIN volumes v ON v.id = m.volume \
               LEFT JOIN snapshots s ON s.id = m.snapshot LEFT JOIN snapshot_locks k ON k.snapshot = m.snapshot \
               WHERE r.group_id = $1 AND r.ended_at IS NOT NULL AND m.state IN ('taken', 'unknown') \
               ORDER BY r.seq, m.volume_name, m.snapshot";
    let rows = sqlx::query(sql)
        .bind(&group.as_bytes()[..])
        .fetch_all(&catalog.readers)
        .await
        .map_err(failed("reading a group's snapshots"))?;
    let snapshot = |row: &SqliteRow| {
        let columns = Columns::new(row, "member");
        Ok(GroupSnapshot {
            volume: columns.identity("volume", VolumeId::from_bytes)?,
            volume_name: volume_name(&columns)?,
            snapshot: columns.identity("snapshot", SnapshotId::from_bytes)?,
            snapshot_name: snapshot_name(&columns)?,
            began_at: columns.time("began_at")?,
            locked_until: columns.optional_time("until")?,
        })
    };
    rows.iter().map(snapshot).collect()
}

/// One that is there stays counted on. Its lock stays too: should it turn up after all, it is locked.
pub(super) async fn forget(catalog: &SqliteCatalog, snapshot: SnapshotId) -> Result<()> {
    let sql = "UPDATE group_members SET state = 'deleted' WHERE snapshot = $1 AND state IN ('taken', 'unknown') \
               AND NOT EXISTS (SELECT 1 FROM snapshots s WHERE s.id = $1)";
    sqlx::query(sql)
        .bind(&snapshot.as_bytes()[..])
        .execute(&catalog.writer)
        .await
        .map(drop)
        .map_err(failed("forgetting a group's snapshot"))
}
