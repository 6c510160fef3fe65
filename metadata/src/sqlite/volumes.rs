//! Volumes, from creation to the last purged row.

use super::columns::{Columns, int};
use super::leases::check_held;
use super::{Result, SqliteCatalog, domains, failed, is_duplicate};
use crate::{CatalogError, HeldLease, LeaseHolder, NewVolume, VolumeName, VolumeRow, VolumeUsage};
use cairn_model::{
    CommitSeq, DomainId, Durability, GatewayId, Generation, LineageId, Reduction, VolumeId, WallTime,
    WriteSeq,
};
use sqlx::sqlite::SqliteRow;
use sqlx::{Sqlite, SqliteConnection, Transaction};

pub(super) async fn create(catalog: &SqliteCatalog, volume: &NewVolume) -> Result<()> {
    let doing = "creating a volume";
    let mut change = catalog.begin().await?;
    refuse_namesake(&mut change, &volume.name, None).await?;
    if !domains::exists(&mut change, volume.domain).await? {
        return Err(CatalogError::not_found("domain", &volume.domain));
    }
    let created = insert(&mut change, volume).await?;
    if let Err(error) = created {
        if is_duplicate(&error) {
            return Err(CatalogError::AlreadyExists { what: "volume or lineage", id: volume.id.to_string() });
        }
        return Err(failed(doing)(error));
    }
    change_totals(&mut change, 1, 0).await?;
    change.commit().await.map_err(failed(doing))
}

async fn insert(
    change: &mut SqliteConnection,
    volume: &NewVolume,
) -> Result<std::result::Result<(), sqlx::Error>> {
    let durability = match volume.durability {
        Durability::Flush => "flush",
        Durability::Always => "always",
    };
    let lineage = sqlx::query("INSERT INTO lineages (id, last_commit, folded_through) VALUES ($1, 0, 0)")
        .bind(&volume.lineage.as_bytes()[..])
        .execute(&mut *change)
        .await;
    if let Err(error) = lineage {
        return Ok(Err(error));
    }
    let sql = "INSERT INTO volumes (id, name, size_bytes, durability, lineage, compress, dedupe, read_only, options, \
               created_at, domain, destaged_through) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, 0)";
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
        .execute(change)
        .await;
    Ok(inserted.map(drop))
}

/// Fails when another live volume than `except` has the name.
async fn refuse_namesake(
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
    let name: &str = columns.get("name")?;
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
        name: VolumeName::new(name).map_err(|error| CatalogError::corrupt("volume", &error))?,
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

pub(super) async fn delete(catalog: &SqliteCatalog, id: VolumeId) -> Result<()> {
    let doing = "deleting a volume";
    let mut change = catalog.begin().await?;
    let sql = "UPDATE volumes SET deleted = 1 WHERE id = $1 AND deleted = 0 RETURNING logical_bytes";
    let logical_bytes: Option<i64> = sqlx::query_scalar(sql)
        .bind(&id.as_bytes()[..])
        .fetch_optional(&mut *change)
        .await
        .map_err(failed(doing))?;
    let logical_bytes = logical_bytes.ok_or_else(|| CatalogError::not_found("volume", &id))?;
    change_totals(&mut change, -1, -logical_bytes).await?;
    change.commit().await.map_err(failed(doing))
}

/// Takes away rows of one deleted volume: leaves, then deltas, then what names it.
pub(super) async fn purge(catalog: &SqliteCatalog, rows_max: u32) -> Result<bool> {
    let doing = "purging deleted volumes";
    let mut change = catalog.begin().await?;
    let Some(row) = sqlx::query("SELECT id, lineage FROM volumes WHERE deleted = 1 LIMIT 1")
        .fetch_optional(&mut *change)
        .await
        .map_err(failed(doing))?
    else {
        return Ok(false);
    };
    let columns = Columns::new(&row, "volume");
    let volume = columns.identity("id", VolumeId::from_bytes)?;
    let lineage = columns.identity("lineage", LineageId::from_bytes)?;
    let mut left = u64::from(rows_max);
    for sql in [
        "DELETE FROM leaves WHERE lineage = $1 AND (leaf, commit_seq) IN \
         (SELECT leaf, commit_seq FROM leaves WHERE lineage = $1 ORDER BY leaf, commit_seq LIMIT $2)",
        "DELETE FROM deltas WHERE lineage = $1 AND commit_seq IN \
         (SELECT commit_seq FROM deltas WHERE lineage = $1 ORDER BY commit_seq LIMIT $2)",
    ] {
        let purged = sqlx::query(sql)
            .bind(&lineage.as_bytes()[..])
            .bind(int(left)?)
            .execute(&mut *change)
            .await
            .map_err(failed(doing))?;
        left -= purged.rows_affected();
    }
    if left > 0 {
        forget(&mut change, volume, lineage).await?;
    }
    let more: bool = sqlx::query_scalar("SELECT EXISTS (SELECT 1 FROM volumes WHERE deleted = 1)")
        .fetch_one(&mut *change)
        .await
        .map_err(failed(doing))?;
    change.commit().await.map_err(failed(doing))?;
    Ok(more)
}

async fn forget(
    change: &mut Transaction<'static, Sqlite>,
    volume: VolumeId,
    lineage: LineageId,
) -> Result<()> {
    for (sql, id) in [
        ("DELETE FROM leases WHERE volume = $1", volume.as_bytes()),
        ("DELETE FROM volumes WHERE id = $1", volume.as_bytes()),
        ("DELETE FROM lineages WHERE id = $1", lineage.as_bytes()),
    ] {
        sqlx::query(sql)
            .bind(&id[..])
            .execute(&mut **change)
            .await
            .map_err(failed("purging a deleted volume"))?;
    }
    Ok(())
}
