//! Data nodes.

use super::columns::{Columns, int};
use super::{Result, SqliteCatalog, failed, is_duplicate};
use crate::{CatalogError, NodeChange, NodeRow, NodeState, NodeUsage};
use cairn_model::{NodeId, WallTime};
use sqlx::SqliteConnection;
use sqlx::sqlite::SqliteRow;

const fn state_name(state: NodeState) -> &'static str {
    match state {
        NodeState::Active => "active",
        NodeState::Draining => "draining",
        NodeState::Failed => "failed",
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
    let sql = "INSERT INTO nodes (id, name, url, domain, state, created_at, options, capacity_bytes) \
               VALUES ($1, $2, $3, $4, $5, $6, $7, $8)";
    let added = sqlx::query(sql)
        .bind(&node.id.as_bytes()[..])
        .bind(&node.name)
        .bind(&node.url)
        .bind(&node.domain)
        .bind(state_name(node.state))
        .bind(int(node.created_at.unix_millis())?)
        .bind(&node.options)
        .bind(node.capacity_bytes.map(int).transpose()?)
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
        "failed" => NodeState::Failed,
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
        capacity_bytes: match columns.get::<Option<i64>>("capacity_bytes")? {
            Some(_) => Some(columns.number("capacity_bytes")?),
            None => None,
        },
    })
}

pub(super) async fn update(catalog: &SqliteCatalog, id: NodeId, change: &NodeChange) -> Result<()> {
    let sql = "UPDATE nodes SET url = coalesce($1, url), state = coalesce($2, state), options = coalesce($3, options), \
               domain = CASE WHEN $4 THEN $5 ELSE domain END, \
               capacity_bytes = CASE WHEN $6 THEN $7 ELSE capacity_bytes END WHERE id = $8";
    let updated = sqlx::query(sql)
        .bind(change.url.as_deref())
        .bind(change.state.map(state_name))
        .bind(change.options.as_deref())
        .bind(change.domain.is_some())
        .bind(change.domain.as_ref().and_then(Option::as_deref))
        .bind(change.capacity_bytes.is_some())
        .bind(change.capacity_bytes.flatten().map(int).transpose()?)
        .bind(&id.as_bytes()[..])
        .execute(&catalog.writer)
        .await
        .map_err(failed("changing a node"))?;
    if updated.rows_affected() == 0 { Err(CatalogError::not_found("node", &id)) } else { Ok(()) }
}

pub(super) async fn usage(catalog: &SqliteCatalog) -> Result<Vec<NodeUsage>> {
    let rows = sqlx::query("SELECT id, shards, shard_bytes FROM nodes ORDER BY id")
        .fetch_all(&catalog.readers)
        .await
        .map_err(failed("reading what nodes hold"))?;
    let usage = |row: &SqliteRow| {
        let columns = Columns::new(row, "node");
        Ok(NodeUsage {
            node: columns.identity("id", NodeId::from_bytes)?,
            shards: columns.number("shards")?,
            bytes: columns.number("shard_bytes")?,
        })
    };
    rows.iter().map(usage).collect()
}

pub(super) async fn remove(catalog: &SqliteCatalog, id: NodeId, force: bool) -> Result<()> {
    let doing = "removing a node";
    let mut change = catalog.begin().await?;
    let name: Option<String> = sqlx::query_scalar("SELECT name FROM nodes WHERE id = $1")
        .bind(&id.as_bytes()[..])
        .fetch_optional(&mut *change)
        .await
        .map_err(failed(doing))?;
    let name = name.ok_or_else(|| CatalogError::not_found("node", &id))?;
    if force {
        lose_shards(&mut change, id, &name).await?;
    } else {
        let sql = "SELECT EXISTS (SELECT 1 FROM shards WHERE node = $1) OR EXISTS (SELECT 1 FROM doomed WHERE node = $1)";
        let held = sqlx::query_scalar(sql).bind(&id.as_bytes()[..]).fetch_one(&mut *change).await;
        if held.map_err(failed(doing))? {
            return Err(CatalogError::NodeInUse { name });
        }
    }
    sqlx::query("DELETE FROM nodes WHERE id = $1")
        .bind(&id.as_bytes()[..])
        .execute(&mut *change)
        .await
        .map_err(failed(doing))?;
    change.commit().await.map_err(failed(doing))
}

/// The shards on a node that is about to go are missing, unless some segment could not be read any more. Its sums go with its row.
async fn lose_shards(change: &mut SqliteConnection, node: NodeId, name: &str) -> Result<()> {
    let doing = "removing a node by force";
    // A node in service is not let go where that leaves what failed nodes may not have any more.
    let sql = "SELECT coalesce(sum(s.spare = 0 OR (n.state <> 'failed' AND s.spare <= ( \
                 SELECT count(*) FROM shards o JOIN nodes f ON f.id = o.node \
                 WHERE o.segment = s.id AND f.state = 'failed'))), 0) AS lost, \
               coalesce(sum(s.missing = 0), 0) AS degraded, coalesce(sum(s.spare = 1), 0) AS at_risk \
               FROM shards h JOIN segments s ON s.id = h.segment JOIN nodes n ON n.id = h.node WHERE h.node = $1";
    let row = sqlx::query(sql).bind(&node.as_bytes()[..]).fetch_one(&mut *change).await;
    let row = row.map_err(failed(doing))?;
    let columns = Columns::new(&row, "node");
    let lost = columns.number("lost")?;
    if lost > 0 {
        return Err(CatalogError::SegmentsLost { name: name.to_owned(), segments: lost });
    }
    sqlx::query("UPDATE totals SET degraded_segments = degraded_segments + $1, at_risk_segments = at_risk_segments + $2")
        .bind(int(columns.number("degraded")?)?)
        .bind(int(columns.number("at_risk")?)?)
        .execute(&mut *change)
        .await
        .map_err(failed(doing))?;
    for sql in [
        "UPDATE segments SET missing = missing + 1, spare = spare - 1 WHERE id IN (SELECT segment FROM shards WHERE node = $1)",
        "DELETE FROM shards WHERE node = $1",
        "DELETE FROM doomed WHERE node = $1",
    ] {
        sqlx::query(sql).bind(&node.as_bytes()[..]).execute(&mut *change).await.map_err(failed(doing))?;
    }
    Ok(())
}
