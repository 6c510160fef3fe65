//! Data nodes.

use super::columns::{Columns, int};
use super::{Result, SqliteCatalog, failed, is_duplicate};
use crate::{CatalogError, NodeRow, NodeState};
use cairn_model::{NodeId, WallTime};
use sqlx::sqlite::SqliteRow;

const fn state_name(state: NodeState) -> &'static str {
    match state {
        NodeState::Active => "active",
        NodeState::Draining => "draining",
    }
}

pub(super) async fn add(catalog: &SqliteCatalog, node: &NodeRow) -> Result<()> {
    let doing = "adding a node";
    let mut change = catalog.begin().await?;
    let namesake = sqlx::query("SELECT id FROM nodes WHERE name = $1")
        .bind(&node.name)
        .fetch_optional(&mut *change)
        .await
        .map_err(failed(doing))?;
    if namesake.is_some() {
        return Err(CatalogError::NameTaken { what: "node", name: node.name.clone() });
    }
    let sql = "INSERT INTO nodes (id, name, url, domain, state, created_at, options) \
               VALUES ($1, $2, $3, $4, $5, $6, $7)";
    let added = sqlx::query(sql)
        .bind(&node.id.as_bytes()[..])
        .bind(&node.name)
        .bind(&node.url)
        .bind(&node.domain)
        .bind(state_name(node.state))
        .bind(int(node.created_at.unix_millis())?)
        .bind(&node.options)
        .execute(&mut *change)
        .await;
    match added {
        Err(error) if is_duplicate(&error) => {
            Err(CatalogError::AlreadyExists { what: "node", id: node.id.to_string() })
        }
        Err(error) => Err(failed(doing)(error)),
        Ok(_) => change.commit().await.map_err(failed(doing)),
    }
}

pub(super) async fn all(catalog: &SqliteCatalog) -> Result<Vec<NodeRow>> {
    let rows = sqlx::query("SELECT * FROM nodes ORDER BY name")
        .fetch_all(&catalog.readers)
        .await
        .map_err(failed("reading the nodes"))?;
    rows.iter().map(node_of).collect()
}

pub(super) async fn by_id(catalog: &SqliteCatalog, id: NodeId) -> Result<NodeRow> {
    let row = sqlx::query("SELECT * FROM nodes WHERE id = $1")
        .bind(&id.as_bytes()[..])
        .fetch_optional(&catalog.readers)
        .await
        .map_err(failed("reading a node"))?;
    node_of(&row.ok_or_else(|| CatalogError::not_found("node", &id))?)
}

pub(super) async fn by_name(catalog: &SqliteCatalog, name: &str) -> Result<NodeRow> {
    let row = sqlx::query("SELECT * FROM nodes WHERE name = $1")
        .bind(name)
        .fetch_optional(&catalog.readers)
        .await
        .map_err(failed("reading a node"))?;
    node_of(&row.ok_or_else(|| CatalogError::not_found("node", &name))?)
}

fn node_of(row: &SqliteRow) -> Result<NodeRow> {
    let columns = Columns::new(row, "node");
    let state = match columns.get("state")? {
        "active" => NodeState::Active,
        "draining" => NodeState::Draining,
        other => return Err(columns.bad("state", other)),
    };
    Ok(NodeRow {
        id: columns.identity("id", NodeId::from_bytes)?,
        name: columns.get("name")?,
        url: columns.get("url")?,
        domain: columns.get("domain")?,
        state,
        created_at: WallTime::from_unix_millis(columns.number("created_at")?),
        options: columns.get("options")?,
    })
}

pub(super) async fn set_state(catalog: &SqliteCatalog, id: NodeId, state: NodeState) -> Result<()> {
    let changed = sqlx::query("UPDATE nodes SET state = $1 WHERE id = $2")
        .bind(state_name(state))
        .bind(&id.as_bytes()[..])
        .execute(&catalog.writer)
        .await
        .map_err(failed("changing a node"))?;
    if changed.rows_affected() == 0 { Err(CatalogError::not_found("node", &id)) } else { Ok(()) }
}

pub(super) async fn remove(catalog: &SqliteCatalog, id: NodeId) -> Result<()> {
    let doing = "removing a node";
    let mut change = catalog.begin().await?;
    let name: Option<String> = sqlx::query_scalar("SELECT name FROM nodes WHERE id = $1")
        .bind(&id.as_bytes()[..])
        .fetch_optional(&mut *change)
        .await
        .map_err(failed(doing))?;
    let name = name.ok_or_else(|| CatalogError::not_found("node", &id))?;
    let segment = sqlx::query("SELECT id FROM segments WHERE node = $1 UNION ALL SELECT segment FROM doomed WHERE node = $1 LIMIT 1")
        .bind(&id.as_bytes()[..])
        .fetch_optional(&mut *change)
        .await
        .map_err(failed(doing))?;
    if segment.is_some() {
        return Err(CatalogError::NodeInUse { name });
    }
    sqlx::query("DELETE FROM nodes WHERE id = $1")
        .bind(&id.as_bytes()[..])
        .execute(&mut *change)
        .await
        .map_err(failed(doing))?;
    change.commit().await.map_err(failed(doing))
}
