//! Site, gateways, the pool's settings, totals.

use super::columns::{Columns, int};
use super::{Result, SqliteCatalog, failed, is_duplicate};
use crate::{CatalogError, GatewayRow, PoolSettings, SiteRow, Totals, WalState};
use cairn_model::{DomainId, GatewayId, SiteId, WallTime};
use sqlx::sqlite::SqliteRow;

pub(super) async fn create(catalog: &SqliteCatalog, site: &SiteRow) -> Result<()> {
    let doing = "creating the site";
    let mut change = catalog.begin().await?;
    let sql = "INSERT INTO site (singleton, id, name, created_at, format_version) VALUES (1, $1, $2, $3, $4)";
    let created = sqlx::query(sql)
        .bind(&site.id.as_bytes()[..])
        .bind(&site.name)
        .bind(int(site.created_at.unix_millis())?)
        .bind(i64::from(site.format_version))
        .execute(&mut *change)
        .await;
    match created {
        Err(error) if is_duplicate(&error) => {
            let id = site.id.to_string();
            return Err(CatalogError::AlreadyExists { what: "the site of this catalog", id });
        }
        created => created.map_err(failed(doing))?,
    };
    sqlx::query("UPDATE domains SET created_at = $1 WHERE id = $2")
        .bind(int(site.created_at.unix_millis())?)
        .bind(&DomainId::DEFAULT.as_bytes()[..])
        .execute(&mut *change)
        .await
        .map_err(failed(doing))?;
    change.commit().await.map_err(failed(doing))
}

pub(super) async fn get(catalog: &SqliteCatalog) -> Result<SiteRow> {
    let row = sqlx::query("SELECT id, name, created_at, format_version FROM site")
        .fetch_optional(&catalog.readers)
        .await
        .map_err(failed("reading the site"))?
        .ok_or_else(|| CatalogError::not_found("site in", &catalog.path.display()))?;
    let columns = Columns::new(&row, "site");
    Ok(SiteRow {
        id: columns.identity("id", SiteId::from_bytes)?,
        name: columns.get("name")?,
        created_at: WallTime::from_unix_millis(columns.number("created_at")?),
        format_version: columns.small_number("format_version")?,
    })
}

pub(super) async fn register_gateway(
    catalog: &SqliteCatalog,
    id: GatewayId,
    name: &str,
    now: WallTime,
) -> Result<()> {
    let sql = "INSERT INTO gateways (id, name, wal_state, created_at) VALUES ($1, $2, 'clean', $3) \
               ON CONFLICT (id) DO UPDATE SET name = excluded.name";
    let registered = sqlx::query(sql)
        .bind(&id.as_bytes()[..])
        .bind(name)
        .bind(int(now.unix_millis())?)
        .execute(&catalog.writer)
        .await;
    match registered {
        Err(error) if is_duplicate(&error) => {
            Err(CatalogError::NameTaken { what: "gateway", name: name.to_owned() })
        }
        registered => registered.map(drop).map_err(failed("registering a gateway")),
    }
}

pub(super) async fn gateway(catalog: &SqliteCatalog, id: GatewayId) -> Result<GatewayRow> {
    let row = sqlx::query("SELECT id, name, wal_state, created_at FROM gateways WHERE id = $1")
        .bind(&id.as_bytes()[..])
        .fetch_optional(&catalog.readers)
        .await
        .map_err(failed("reading a gateway"))?
        .ok_or_else(|| CatalogError::not_found("gateway", &id))?;
    gateway_of(&row)
}

pub(super) async fn gateways(catalog: &SqliteCatalog) -> Result<Vec<GatewayRow>> {
    let rows = sqlx::query("SELECT id, name, wal_state, created_at FROM gateways ORDER BY name")
        .fetch_all(&catalog.readers)
        .await
        .map_err(failed("reading the gateways"))?;
    rows.iter().map(gateway_of).collect()
}

fn gateway_of(row: &SqliteRow) -> Result<GatewayRow> {
    let columns = Columns::new(row, "gateway");
    let wal_state = match columns.get("wal_state")? {
        "clean" => WalState::Clean,
        "dirty" => WalState::Dirty,
        other => return Err(columns.bad("wal_state", other)),
    };
    Ok(GatewayRow {
        id: columns.identity("id", GatewayId::from_bytes)?,
        name: columns.get("name")?,
        wal_state,
        created_at: WallTime::from_unix_millis(columns.number("created_at")?),
    })
}

pub(super) async fn set_wal_state(catalog: &SqliteCatalog, id: GatewayId, state: WalState) -> Result<()> {
    let state = match state {
        WalState::Clean => "clean",
        WalState::Dirty => "dirty",
    };
    let changed = sqlx::query("UPDATE gateways SET wal_state = $1 WHERE id = $2")
        .bind(state)
        .bind(&id.as_bytes()[..])
        .execute(&catalog.writer)
        .await
        .map_err(failed("recording a log's state"))?;
    if changed.rows_affected() == 0 { Err(CatalogError::not_found("gateway", &id)) } else { Ok(()) }
}

pub(super) async fn pool_settings(catalog: &SqliteCatalog) -> Result<PoolSettings> {
    let row = sqlx::query("SELECT profile FROM pool")
        .fetch_one(&catalog.readers)
        .await
        .map_err(failed("reading the pool's settings"))?;
    let columns = Columns::new(&row, "pool");
    let profile: &str = columns.get("profile")?;
    Ok(PoolSettings { profile: profile.parse().map_err(|_| columns.bad("profile", profile))? })
}

pub(super) async fn set_pool_settings(catalog: &SqliteCatalog, settings: &PoolSettings) -> Result<()> {
    let PoolSettings { profile } = settings;
    sqlx::query("UPDATE pool SET profile = $1")
        .bind(profile.to_string())
        .execute(&catalog.writer)
        .await
        .map(drop)
        .map_err(failed("changing the pool's settings"))
}

pub(super) async fn totals(catalog: &SqliteCatalog) -> Result<Totals> {
    let row = sqlx::query("SELECT * FROM totals")
        .fetch_one(&catalog.readers)
        .await
        .map_err(failed("reading the totals"))?;
    let columns = Columns::new(&row, "totals");
    Ok(Totals {
        volumes: columns.number("volumes")?,
        snapshots: columns.number("snapshots")?,
        segments: columns.number("segments")?,
        segment_bytes: columns.number("segment_bytes")?,
        containers: columns.number("containers")?,
        logical_bytes: columns.number("logical_bytes")?,
        container_bytes: columns.number("container_bytes")?,
        container_raw_bytes: columns.number("container_raw_bytes")?,
        degraded_segments: columns.number("degraded_segments")?,
        at_risk_segments: columns.number("at_risk_segments")?,
    })
}
