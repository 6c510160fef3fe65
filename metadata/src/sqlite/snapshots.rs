//! Snapshots, and the volumes that are made of them: clones and reverts. None of it touches a leaf.
//!
//! A snapshot is inserted unsettled by the transaction that makes its commit, and settled by the one that has folded through exactly that.
//! Only from a settled one does a lineage branch off, so below a parent point there are leaves alone.

use super::columns::{Columns, int};
use super::leases::check_held;
use super::prune::{self, mark};
use super::volumes::{self, Beginning};
use super::{Result, SqliteCatalog, domains, failed, group_runs, is_duplicate, usage};
use crate::{CatalogError, HeldLease, MapPoint, NewSnapshot, NewVolume, SnapshotName, SnapshotRow};
use cairn_model::{CommitSeq, DomainId, GatewayId, LineageId, SnapshotId, VolumeId, WallTime, WriteSeq};
use sqlx::SqliteConnection;
use sqlx::sqlite::SqliteRow;

macro_rules! select_snapshots {
    ($rest:literal) => {
        concat!(
            "SELECT s.*, (SELECT count(*) FROM lineages c WHERE c.parent = s.lineage AND c.parent_commit = s.commit_seq) ",
            "AS children, (SELECT k.until FROM snapshot_locks k WHERE k.snapshot = s.id) AS locked_until FROM snapshots s WHERE ",
            $rest
        )
    };
}

pub(super) async fn all(catalog: &SqliteCatalog, volume: VolumeId) -> Result<Vec<SnapshotRow>> {
    let rows = sqlx::query(select_snapshots!("s.volume = $1"))
        .bind(&volume.as_bytes()[..])
        .fetch_all(&catalog.readers)
        .await
        .map_err(failed("reading the snapshots"))?;
    let mut snapshots = rows.iter().map(snapshot_of).collect::<Result<Vec<_>>>()?;
    SnapshotRow::sort_oldest_first(&mut snapshots);
    Ok(snapshots)
}

pub(super) async fn by_id(catalog: &SqliteCatalog, id: SnapshotId) -> Result<SnapshotRow> {
    let row = sqlx::query(select_snapshots!("s.id = $1"))
        .bind(&id.as_bytes()[..])
        .fetch_optional(&catalog.readers)
        .await
        .map_err(failed("reading a snapshot"))?;
    snapshot_of(&row.ok_or_else(|| CatalogError::not_found("snapshot", &id))?)
}

pub(super) async fn by_name(
    catalog: &SqliteCatalog,
    volume: VolumeId,
    name: &SnapshotName,
) -> Result<SnapshotRow> {
    let row = sqlx::query(select_snapshots!("s.volume = $1 AND s.name = $2"))
        .bind(&volume.as_bytes()[..])
        .bind(name.as_str())
        .fetch_optional(&catalog.readers)
        .await
        .map_err(failed("reading a snapshot"))?;
    snapshot_of(&row.ok_or_else(|| CatalogError::not_found("snapshot", name))?)
}

fn snapshot_of(row: &SqliteRow) -> Result<SnapshotRow> {
    let columns = Columns::new(row, "snapshot");
    let logical_bytes = match columns.get::<Option<i64>>("logical_bytes")? {
        Some(_) => Some(columns.number("logical_bytes")?),
        None => None,
    };
    let lineage = columns.identity("lineage", LineageId::from_bytes)?;
    Ok(SnapshotRow {
        id: columns.identity("id", SnapshotId::from_bytes)?,
        volume: columns.identity("volume", VolumeId::from_bytes)?,
        name: name_of(&columns)?,
        at: MapPoint { lineage, commit: CommitSeq::new(columns.number("commit_seq")?) },
        size_bytes: columns.number("size_bytes")?,
        created_at: WallTime::from_unix_millis(columns.number("created_at")?),
        logical_bytes,
        children: columns.number("children")?,
        locked_until: columns.optional_time("locked_until")?,
    })
}

fn name_of(columns: &Columns<'_>) -> Result<SnapshotName> {
    let name: &str = columns.get("name")?;
    SnapshotName::new(name).map_err(|error| CatalogError::corrupt("snapshot", &error))
}

/// Takes the snapshots that come with the commit `at` of `volume`.
pub(super) async fn take(
    change: &mut SqliteConnection,
    volume: VolumeId,
    at: MapPoint,
    snapshots: &[NewSnapshot],
) -> Result<()> {
    let doing = "taking a snapshot";
    for snapshot in snapshots {
        let name = free_name(change, volume, snapshot).await?;
        let sql = "INSERT INTO snapshots (id, volume, name, lineage, commit_seq, size_bytes, created_at) \
                   VALUES ($1, $2, $3, $4, $5, $6, $7)";
        let taken = sqlx::query(sql)
            .bind(&snapshot.id.as_bytes()[..])
            .bind(&volume.as_bytes()[..])
            .bind(name.as_str())
            .bind(&at.lineage.as_bytes()[..])
            .bind(int(at.commit.get())?)
            .bind(int(snapshot.size_bytes)?)
            .bind(int(snapshot.created_at.unix_millis())?)
            .execute(&mut *change)
            .await;
        match taken {
            Err(error) if is_duplicate(&error) => {
                return Err(CatalogError::AlreadyExists { what: "snapshot", id: snapshot.id.to_string() });
            }
            taken => taken.map_err(failed(doing))?,
        };
    }
    if snapshots.is_empty() { Ok(()) } else { count(change, int(snapshots.len() as u64)?).await }
}

/// The first of the names that the snapshot tries which the volume does not have.
async fn free_name(
    change: &mut SqliteConnection,
    volume: VolumeId,
    snapshot: &NewSnapshot,
) -> Result<SnapshotName> {
    let mut candidates = snapshot.name.candidates(snapshot.id);
    loop {
        let name = candidates.next().expect("candidates have no end");
        let sql = "SELECT EXISTS (SELECT 1 FROM snapshots WHERE volume = $1 AND name = $2)";
        let is_taken: bool = sqlx::query_scalar(sql)
            .bind(&volume.as_bytes()[..])
            .bind(name.as_str())
            .fetch_one(&mut *change)
            .await
            .map_err(failed("looking for a snapshot's name"))?;
        if !is_taken {
            return Ok(name);
        }
    }
}

/// Adds to the number of snapshots.
async fn count(change: &mut SqliteConnection, snapshots: i64) -> Result<()> {
    sqlx::query("UPDATE totals SET snapshots = snapshots + $1")
        .bind(snapshots)
        .execute(change)
        .await
        .map(drop)
        .map_err(failed("counting snapshots"))
}

/// Everything through `folded` is in the leaves of the volume, and nothing else: so what its head maps is what these snapshots map.
pub(super) async fn settle(
    change: &mut SqliteConnection,
    lineage: LineageId,
    volume: VolumeId,
    folded: CommitSeq,
) -> Result<()> {
    let sql = "UPDATE snapshots SET logical_bytes = (SELECT logical_bytes FROM volumes WHERE id = $1) \
               WHERE lineage = $2 AND commit_seq <= $3 AND logical_bytes IS NULL";
    sqlx::query(sql)
        .bind(&volume.as_bytes()[..])
        .bind(&lineage.as_bytes()[..])
        .bind(int(folded.get())?)
        .execute(change)
        .await
        .map(drop)
        .map_err(failed("settling snapshots"))
}

pub(super) async fn delete(
    catalog: &SqliteCatalog,
    gateway: GatewayId,
    held: HeldLease,
    id: SnapshotId,
    now: WallTime,
) -> Result<()> {
    let doing = "deleting a snapshot";
    let mut change = catalog.begin().await?;
    check_held(&mut change, gateway, held).await?;
    check_unlocked(&mut change, held.volume, Some(id), now).await?;
    let row = sqlx::query("DELETE FROM snapshots WHERE id = $1 AND volume = $2 RETURNING lineage")
        .bind(&id.as_bytes()[..])
        .bind(&held.volume.as_bytes()[..])
        .fetch_optional(&mut *change)
        .await
        .map_err(failed(doing))?
        .ok_or_else(|| CatalogError::not_found("snapshot", &id))?;
    mark(&mut change, Columns::new(&row, "snapshot").identity("lineage", LineageId::from_bytes)?).await?;
    count(&mut change, -1).await?;
    for sql in ["DELETE FROM snapshot_locks WHERE snapshot = $1", group_runs::FORGET_SNAPSHOT] {
        sqlx::query(sql).bind(&id.as_bytes()[..]).execute(&mut *change).await.map_err(failed(doing))?;
    }
    change.commit().await.map_err(failed(doing))
}

/// Fails when a snapshot of the volume is locked, also one that is in the log alone.
pub(super) async fn check_volume_unlocked(
    change: &mut SqliteConnection,
    volume: VolumeId,
    now: WallTime,
) -> Result<()> {
    check_unlocked(change, volume, None, now).await
}

/// Fails when the snapshot of the volume is locked, or any of the volume's.
async fn check_unlocked(
    change: &mut SqliteConnection,
    volume: VolumeId,
    snapshot: Option<SnapshotId>,
    now: WallTime,
) -> Result<()> {
    // One in the log alone has its name from the run that it is to belong to.
    let sql = "SELECT k.snapshot, k.until, v.name AS volume_name, coalesce(s.name, (SELECT m.snapshot_name FROM group_members m \
               WHERE m.snapshot = k.snapshot)) AS snapshot_name \
               FROM snapshot_locks k JOIN volumes v ON v.id = k.volume LEFT JOIN snapshots s ON s.id = k.snapshot \
               WHERE k.volume = $1 AND k.until > $2 AND ($3 IS NULL OR k.snapshot = $3) ORDER BY k.until DESC LIMIT 1";
    let row = sqlx::query(sql)
        .bind(&volume.as_bytes()[..])
        .bind(int(now.unix_millis())?)
        .bind(snapshot.as_ref().map(|id| &id.as_bytes()[..]))
        .fetch_optional(change)
        .await
        .map_err(failed("looking for locks"))?;
    let Some(row) = row else { return Ok(()) };
    let columns = Columns::new(&row, "lock");
    let volume: &str = columns.get("volume_name")?;
    let name = match columns.get::<Option<&str>>("snapshot_name")? {
        Some(name) => name.to_owned(),
        None => columns.identity("snapshot", SnapshotId::from_bytes)?.to_string(),
    };
    let until = WallTime::from_unix_millis(columns.number("until")?);
    Err(CatalogError::Locked { name: format!("{volume}@{name}"), until })
}

pub(super) async fn locks(catalog: &SqliteCatalog, volume: VolumeId) -> Result<Vec<(SnapshotId, WallTime)>> {
    let rows = sqlx::query("SELECT snapshot, until FROM snapshot_locks WHERE volume = $1 ORDER BY snapshot")
        .bind(&volume.as_bytes()[..])
        .fetch_all(&catalog.readers)
        .await
        .map_err(failed("reading locks"))?;
    let lock = |row: &SqliteRow| {
        let columns = Columns::new(row, "lock");
        let until = WallTime::from_unix_millis(columns.number("until")?);
        Ok((columns.identity("snapshot", SnapshotId::from_bytes)?, until))
    };
    rows.iter().map(lock).collect()
}

/// Deletes the snapshots of a volume that is being deleted.
pub(super) async fn delete_all(change: &mut SqliteConnection, volume: VolumeId) -> Result<()> {
    prune::mark_snapshots(change, volume).await?;
    let deleted = sqlx::query("DELETE FROM snapshots WHERE volume = $1")
        .bind(&volume.as_bytes()[..])
        .execute(&mut *change)
        .await
        .map_err(failed("deleting a volume's snapshots"))?;
    for sql in ["DELETE FROM snapshot_locks WHERE volume = $1", group_runs::FORGET_VOLUME] {
        let forgotten = sqlx::query(sql).bind(&volume.as_bytes()[..]).execute(&mut *change).await;
        forgotten.map_err(failed("deleting a volume's snapshots"))?;
    }
    count(change, -int(deleted.rows_affected())?).await
}

/// A snapshot that is in the leaves.
struct Settled {
    volume: VolumeId,
    domain: DomainId,
    beginning: Beginning,
    size_bytes: u64,
}

/// What a lineage that branches off at the snapshot begins with. The closure looks at it before it is asked whether it is settled.
async fn settled(
    change: &mut SqliteConnection,
    id: SnapshotId,
    check: impl FnOnce(&Settled, &SnapshotName) -> Result<()>,
) -> Result<Settled> {
    let sql = "SELECT s.*, v.domain FROM snapshots s JOIN volumes v ON v.id = s.volume WHERE s.id = $1";
    let row = sqlx::query(sql)
        .bind(&id.as_bytes()[..])
        .fetch_optional(change)
        .await
        .map_err(failed("reading a snapshot"))?
        .ok_or_else(|| CatalogError::not_found("snapshot", &id))?;
    let columns = Columns::new(&row, "snapshot");
    let (lineage, name) = (columns.identity("lineage", LineageId::from_bytes)?, name_of(&columns)?);
    let parent = MapPoint { lineage, commit: CommitSeq::new(columns.number("commit_seq")?) };
    let is_settled = columns.get::<Option<i64>>("logical_bytes")?.is_some();
    let logical_bytes = if is_settled { columns.number("logical_bytes")? } else { 0 };
    let snapshot = Settled {
        volume: columns.identity("volume", VolumeId::from_bytes)?,
        domain: columns.identity("domain", DomainId::from_bytes)?,
        beginning: Beginning { parent: Some(parent), logical_bytes },
        size_bytes: columns.number("size_bytes")?,
    };
    check(&snapshot, &name)?;
    if is_settled { Ok(snapshot) } else { Err(CatalogError::NotSettled { name }) }
}

pub(super) async fn clone(catalog: &SqliteCatalog, volume: &NewVolume, from: SnapshotId) -> Result<()> {
    let doing = "creating a clone";
    let mut change = catalog.begin().await?;
    volumes::refuse_namesake(&mut change, &volume.name, None).await?;
    if !domains::exists(&mut change, volume.domain).await? {
        return Err(CatalogError::not_found("domain", &volume.domain));
    }
    let same_domain = |snapshot: &Settled, name: &SnapshotName| {
        if snapshot.domain == volume.domain { Ok(()) } else { Err(CatalogError::other_domain(name, volume)) }
    };
    let snapshot = settled(&mut change, from, same_domain).await?;
    volumes::insert(&mut change, volume, &snapshot.beginning).await?;
    change.commit().await.map_err(failed(doing))
}

pub(super) async fn revert(
    catalog: &SqliteCatalog,
    gateway: GatewayId,
    held: HeldLease,
    through: WriteSeq,
    to: SnapshotId,
    lineage: LineageId,
) -> Result<()> {
    let doing = "reverting a volume";
    let mut change = catalog.begin().await?;
    check_held(&mut change, gateway, held).await?;
    let sql = "SELECT v.lineage, v.destaged_through, v.logical_bytes, n.last_commit, n.folded_through \
               FROM volumes v JOIN lineages n ON n.id = v.lineage WHERE v.id = $1";
    let row = sqlx::query(sql)
        .bind(&held.volume.as_bytes()[..])
        .fetch_one(&mut *change)
        .await
        .map_err(failed(doing))?;
    let columns = Columns::new(&row, "volume");
    let old = columns.identity("lineage", LineageId::from_bytes)?;
    if old == lineage {
        return Ok(());
    }
    let committed = WriteSeq::new(columns.number("destaged_through")?);
    if committed != through {
        return Err(CatalogError::NotNext { volume: held.volume, base: through, committed });
    }
    let is_folded = columns.number("folded_through")? == columns.number("last_commit")?;
    let own_and_folded = |snapshot: &Settled, name: &SnapshotName| {
        if snapshot.volume != held.volume {
            return Err(CatalogError::not_found("snapshot", &to));
        }
        if is_folded { Ok(()) } else { Err(CatalogError::NotSettled { name: name.clone() }) }
    };
    let snapshot = settled(&mut change, to, own_and_folded).await?;
    match volumes::insert_lineage(&mut change, lineage, snapshot.beginning.parent).await? {
        Err(error) if is_duplicate(&error) => {
            return Err(CatalogError::AlreadyExists { what: "lineage", id: lineage.to_string() });
        }
        inserted => inserted.map_err(failed(doing))?,
    }
    let logical_bytes = int(snapshot.beginning.logical_bytes)?;
    sqlx::query("UPDATE volumes SET lineage = $1, size_bytes = $2, logical_bytes = $3 WHERE id = $4")
        .bind(&lineage.as_bytes()[..])
        .bind(int(snapshot.size_bytes)?)
        .bind(logical_bytes)
        .bind(&held.volume.as_bytes()[..])
        .execute(&mut *change)
        .await
        .map_err(failed(doing))?;
    usage::change_total(&mut change, logical_bytes - int(columns.number("logical_bytes")?)?).await?;
    mark(&mut change, old).await?;
    change.commit().await.map_err(failed(doing))
}
