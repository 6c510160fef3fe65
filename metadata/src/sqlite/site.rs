//! Site, keys, gateways, totals.

use super::columns::{Columns, int};
use super::{Result, SqliteCatalog, failed, is_duplicate};
use crate::{CatalogError, GatewayRow, KeyRow, SiteRow, Totals, WalState};
use cairn_model::crypto::KeyId;
use cairn_model::{GatewayId, SiteId, WallTime};
use sqlx::sqlite::SqliteRow;

pub(super) async fn create(catalog: &SqliteCatalog, site: &SiteRow) -> Result<()> {
    let sql = "INSERT INTO site (singleton, id, name, created_at, format_version) VALUES (1, $1, $2, $3, $4)";
    let created = sqlx::query(sql)
        .bind(&site.id.as_bytes()[..])
        .bind(&site.name)
        .bind(int(site.created_at.unix_millis())?)
        .bind(i64::from(site.format_version))
        .execute(&catalog.writer)
        .await;
    match created {
        Err(error) if is_duplicate(&error) => {
            Err(CatalogError::AlreadyExists { what: "the site of this catalog", id: site.id.to_string() })
        }
        created => created.map(drop).map_err(failed("creating the site")),
    }
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

pub(super) async fn put_key(catalog: &SqliteCatalog, key: &KeyRow) -> Result<()> {
    let sql =
        "INSERT INTO keys (purpose, key_id, wrapped_by, wrapped, created_at) VALUES ($1, $2, $3, $4, $5)";
    let put = sqlx::query(sql)
        .bind(&key.purpose)
        .bind(&key.key_id.as_bytes()[..])
        .bind(&key.wrapped_by.as_bytes()[..])
        .bind(&key.wrapped)
        .bind(int(key.created_at.unix_millis())?)
        .execute(&catalog.writer)
        .await;
    match put {
        Err(error) if is_duplicate(&error) => {
            Err(CatalogError::AlreadyExists { what: "key", id: key.key_id.to_string() })
        }
        put => put.map(drop).map_err(failed("storing a key")),
    }
}

pub(super) async fn keys(catalog: &SqliteCatalog) -> Result<Vec<KeyRow>> {
    let sql = "SELECT purpose, key_id, wrapped_by, wrapped, created_at FROM keys ORDER BY created_at, purpose, key_id";
    let rows = sqlx::query(sql).fetch_all(&catalog.readers).await.map_err(failed("reading the keys"))?;
    let key = |row: &SqliteRow| {
        let columns = Columns::new(row, "key");
        Ok(KeyRow {
            purpose: columns.get("purpose")?,
            key_id: KeyId::from_bytes(columns.array("key_id")?),
            wrapped_by: KeyId::from_bytes(columns.array("wrapped_by")?),
            wrapped: columns.get("wrapped")?,
            created_at: WallTime::from_unix_millis(columns.number("created_at")?),
        })
    };
    rows.iter().map(key).collect()
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

pub(super) async fn totals(catalog: &SqliteCatalog) -> Result<Totals> {
    let row = sqlx::query("SELECT volumes, segments, segment_bytes, containers FROM totals")
        .fetch_one(&catalog.readers)
        .await
        .map_err(failed("reading the totals"))?;
    let columns = Columns::new(&row, "totals");
    Ok(Totals {
        volumes: columns.number("volumes")?,
        segments: columns.number("segments")?,
        segment_bytes: columns.number("segment_bytes")?,
        containers: columns.number("containers")?,
    })
}
