//! Volumes, from creation to deletion.

use super::columns::{Columns, int};
use super::leases::check_held;
use super::{Result, SqliteCatalog, domains, failed, is_duplicate, snapshots};
use crate::{CatalogError, HeldLease, LeaseHolder, MapPoint, NewVolume, VolumeName, VolumeRow, VolumeUsage};
use cairn_model::{
    CommitSeq, DomainId, Durability, GatewayId, Generation, LineageId, Reduction, VolumeId, WallTime,
    WriteSeq,
};
use sqlx::SqliteConnection;
use sqlx::sqlite::SqliteRow;

/// What a volume begins with.
#[derive(Default)]
pub(super) struct Beginning {
    /// Where its lineage branches off; `None`: it is empty.
    pub(super) parent: Option<MapPoint>,
    pub(super) logical_bytes: u64,
}

pub(super) async fn create(catalog: &SqliteCatalog, volume: &NewVolume) -> Result<()> {
    let mut change = catalog.begin().await?;
    refuse_namesake(&mut change, &volume.name, None).await?;
    if !domains::exists(&mut change, volume.domain).await? {
        return Err(CatalogError::not_found("domain", &volume.domain));
    }
    insert(&mut change, volume, &Beginning::default()).await?;
    change.commit().await.map_err(failed("creating a volume"))
}

/// Inserts the volume with its lineage.
pub(super) async fn insert(
    change: &mut SqliteConnection,
    volume: &NewVolume,
    beginning: &Beginning,
) -> Result<()> {
    let inserted = match insert_lineage(change, volume.lineage, beginning.parent).await? {
        Ok(()) => insert_row(change, volume, beginning.logical_bytes).await?,
        refused => refused,
    };
    match inserted {
        Err(error) if is_duplicate(&error) => {
            Err(CatalogError::AlreadyExists { what: "volume or lineage", id: volume.id.to_string() })
        }
        Err(error) => Err(failed("creating a volume")(error)),
        Ok(()) => change_totals(change, 1, int(beginning.logical_bytes)?).await,
    }
}

pub(super) async fn insert_lineage(
    change: &mut SqliteConnection,
    lineage: LineageId,
    parent: Option<MapPoint>,
) -> Result<std::result::Result<(), sqlx::Error>> {
    let sql = "INSERT INTO lineages (id, last_commit, folded_through, parent, parent_commit) VALUES ($1, 0, 0, $2, $3)";
    let commit = parent.map(|parent| int(parent.commit.get())).transpose()?;
    let inserted = sqlx::query(sql)
        .bind(&lineage.as_bytes()[..])
        .bind(parent.as_ref().map(|parent| &parent.lineage.as_bytes()[..]))
        .bind(commit)
        .execute(change)
        .await;
    Ok(inserted.map(drop))
}

async fn insert_row(
    change: &mut SqliteConnection,
    volume: &NewVolume,
    logical_bytes: u64,
) -> Result<std::result::Result<(), sqlx::Error>> {
    let durability = match volume.durability {
        Durability::Flush => "flush",
        Durability::Always => "always",
    };
    let sql = "INSERT INTO volumes (id, name, size_bytes, durability, lineage, compress, dedupe, read_only, options, \
               created_at, domain, destaged_through, logical_bytes) \
               VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, 0, $12)";
    let inserted = sqlx::query(sql)
        .bind(&volume.id.as_bytes()[..])
        .bind(volume.name.as_str())
        .bind(int(volume.size_bytes)?)
        .bind(durability)
        .bind(&volume.lineage.as_bytes()[..])
        .bind(i64::from(volume.compress))
        .bind(i64::from(volume.dedupe))
        .bind(i64::from(volume.read_only))
        .bind(&volume.options)
        .bind(int(volume.created_at.unix_millis())?)
        .bind(&volume.domain.as_bytes()[..])
        .bind(int(logical_bytes)?)
        .execute(change)
        .await;
    Ok(inserted.map(drop))
}

/// Fails when another live volume than `except` has the name.
pub(super) async fn refuse_namesake(
    change: &mut SqliteConnection,
    name: &VolumeName,
    except: Option<VolumeId>,
) -> Result<()> {
    let namesake = sqlx::query("SELECT id FROM volumes WHERE name = $1 AND deleted = 0")
        .bind(name.as_str())
        .fetch_optional(change)
        .await
        .map_err(failed("looking for a volume's name"))?;
    match namesake {
        Some(row) if Some(Columns::new(&row, "volume").identity("id", VolumeId::from_bytes)?) != except => {
            Err(CatalogError::NameTaken { what: "volume", name: name.to_string() })
        }
        _ => Ok(()),
    }
}

async fn change_totals(change: &mut SqliteConnection, volumes: i64, logical_bytes: i64) -> Result<()> {
    sqlx::query("UPDATE totals SET volumes = volumes + $1, logical_bytes = logical_bytes + $2")
        .bind(volumes)
        .bind(logical_bytes)
        .execute(change)
        .await
        .map(drop)
        .map_err(failed("counting volumes"))
}

macro_rules! select_volumes {
    ($rest:literal) => {
        concat!(
            "SELECT v.*, n.last_commit, n.folded_through, l.gateway, l.generation, l.released, l.expires_at, ",
            "g.name AS gateway_name FROM volumes v JOIN lineages n ON n.id = v.lineage ",
            "LEFT JOIN leases l ON l.volume = v.id LEFT JOIN gateways g ON g.id = l.gateway ",
            "WHERE v.deleted = 0 ",
            $rest
        )
    };
}

pub(super) async fn all(catalog: &SqliteCatalog) -> Result<Vec<VolumeRow>> {
    let rows = sqlx::query(select_volumes!("ORDER BY v.name"))
        .fetch_all(&catalog.readers)
        .await
        .map_err(failed("reading the volumes"))?;
    rows.iter().map(volume_of).collect()
}

pub(super) async fn by_id(catalog: &SqliteCatalog, id: VolumeId) -> Result<VolumeRow> {
    let row = sqlx::query(select_volumes!("AND v.id = $1"))
        .bind(&id.as_bytes()[..])
        .fetch_optional(&catalog.readers)
        .await
        .map_err(failed("reading a volume"))?;
    volume_of(&row.ok_or_else(|| CatalogError::not_found("volume", &id))?)
}

pub(super) async fn by_name(catalog: &SqliteCatalog, name: &VolumeName) -> Result<VolumeRow> {
    let row = sqlx::query(select_volumes!("AND v.name = $1"))
        .bind(name.as_str())
        .fetch_optional(&catalog.readers)
        .await
        .map_err(failed("reading a volume"))?;
    volume_of(&row.ok_or_else(|| CatalogError::not_found("volume", &name))?)
}

fn volume_of(row: &SqliteRow) -> Result<VolumeRow> {
    let columns = Columns::new(row, "volume");
    let durability = match columns.get("durability")? {
        "flush" => Durability::Flush,
        "always" => Durability::Always,
        other => return Err(columns.bad("durability", other)),
    };
    let gateway = columns.optional_identity("gateway", GatewayId::from_bytes)?;
    let (generation, holder) = match gateway {
        None => (Generation::ZERO, None),
        Some(gateway) => {
            let holder = LeaseHolder {
                gateway,
                name: columns.get("gateway_name")?,
                expires_at: WallTime::from_unix_millis(columns.number("expires_at")?),
            };
            let released: bool = columns.get("released")?;
            (Generation::new(columns.number("generation")?), (!released).then_some(holder))
        }
    };
    Ok(VolumeRow {
        id: columns.identity("id", VolumeId::from_bytes)?,
        name: name_of(&columns)?,
        size_bytes: columns.number("size_bytes")?,
        durability,
        lineage: columns.identity("lineage", LineageId::from_bytes)?,
        compress: columns.get("compress")?,
        dedupe: columns.get("dedupe")?,
        read_only: columns.get("read_only")?,
        options: columns.get("options")?,
        created_at: WallTime::from_unix_millis(columns.number("created_at")?),
        destaged_through: WriteSeq::new(columns.number("destaged_through")?),
        commit: CommitSeq::new(columns.number("last_commit")?),
        folded_through: CommitSeq::new(columns.number("folded_through")?),
        generation,
        holder,
        domain: columns.identity("domain", DomainId::from_bytes)?,
        usage: usage_of(&columns)?,
    })
}

fn name_of(columns: &Columns<'_>) -> Result<VolumeName> {
    let name: &str = columns.get("name")?;
    VolumeName::new(name).map_err(|error| CatalogError::corrupt("volume", &error))
}

fn usage_of(columns: &Columns<'_>) -> Result<VolumeUsage> {
    Ok(VolumeUsage {
        logical_bytes: columns.number("logical_bytes")?,
        reduction: Reduction {
            written_bytes: columns.number("written_bytes")?,
            zero_bytes: columns.number("zero_bytes")?,
            shared_bytes: columns.number("shared_bytes")?,
            unique_bytes: columns.number("unique_bytes")?,
            stored_bytes: columns.number("stored_bytes")?,
        },
    })
}

pub(super) async fn resize(
    catalog: &SqliteCatalog,
    gateway: GatewayId,
    held: HeldLease,
    size_bytes: u64,
) -> Result<()> {
    let doing = "resizing a volume";
    let mut change = catalog.begin().await?;
    check_held(&mut change, gateway, held).await?;
    sqlx::query("UPDATE volumes SET size_bytes = $1 WHERE id = $2")
        .bind(int(size_bytes)?)
        .bind(&held.volume.as_bytes()[..])
        .execute(&mut *change)
        .await
        .map_err(failed(doing))?;
    change.commit().await.map_err(failed(doing))
}

pub(super) async fn set_read_only(catalog: &SqliteCatalog, id: VolumeId, read_only: bool) -> Result<()> {
    let changed = sqlx::query("UPDATE volumes SET read_only = $1 WHERE id = $2 AND deleted = 0")
        .bind(i64::from(read_only))
        .bind(&id.as_bytes()[..])
        .execute(&catalog.writer)
        .await
        .map_err(failed("changing a volume"))?;
    found(changed.rows_affected(), id)
}

pub(super) async fn rename(catalog: &SqliteCatalog, id: VolumeId, name: &VolumeName) -> Result<()> {
    let doing = "renaming a volume";
    let mut change = catalog.begin().await?;
    refuse_namesake(&mut change, name, Some(id)).await?;
    let renamed = sqlx::query("UPDATE volumes SET name = $1 WHERE id = $2 AND deleted = 0")
        .bind(name.as_str())
        .bind(&id.as_bytes()[..])
        .execute(&mut *change)
        .await
        .map_err(failed(doing))?;
    found(renamed.rows_affected(), id)?;
    change.commit().await.map_err(failed(doing))
}

fn found(rows: u64, id: VolumeId) -> Result<()> {
    if rows == 0 { Err(CatalogError::not_found("volume", &id)) } else { Ok(()) }
}

pub(super) async fn delete(
    catalog: &SqliteCatalog,
    id: VolumeId,
    with_snapshots: bool,
    now: WallTime,
) -> Result<()> {
    let doing = "deleting a volume";
    let mut change = catalog.begin().await?;
    let sql = "SELECT name, logical_bytes, (SELECT count(*) FROM snapshots s WHERE s.volume = v.id) AS snapshots \
               FROM volumes v WHERE id = $1 AND deleted = 0";
    let row = sqlx::query(sql)
        .bind(&id.as_bytes()[..])
        .fetch_optional(&mut *change)
        .await
        .map_err(failed(doing))?
        .ok_or_else(|| CatalogError::not_found("volume", &id))?;
    let columns = Columns::new(&row, "volume");
    let snapshots = columns.number("snapshots")?;
    if snapshots > 0 && !with_snapshots {
        return Err(CatalogError::HasSnapshots { name: name_of(&columns)?, snapshots });
    }
    snapshots::check_volume_unlocked(&mut change, id, now).await?;
    snapshots::delete_all(&mut change, id).await?;
    sqlx::query("UPDATE volumes SET deleted = 1 WHERE id = $1")
        .bind(&id.as_bytes()[..])
        .execute(&mut *change)
        .await
        .map_err(failed(doing))?;
    change_totals(&mut change, -1, -int(columns.number("logical_bytes")?)?).await?;
    change.commit().await.map_err(failed(doing))
}
