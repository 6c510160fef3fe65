//! Protection groups.

use super::columns::{Columns, int};
use super::{Result, SqliteCatalog, failed, group_runs, is_duplicate};
use crate::{CatalogError, GroupChange, GroupName, GroupRow};
use cairn_model::GroupId;
use sqlx::SqliteConnection;
use sqlx::sqlite::SqliteRow;

pub(super) async fn create(catalog: &SqliteCatalog, group: &GroupRow) -> Result<()> {
    let doing = "creating a group";
    let mut change = catalog.begin().await?;
    let namesake: bool =
        sqlx::query_scalar("SELECT EXISTS (SELECT 1 FROM protection_groups WHERE name = $1)")
            .bind(group.name.as_str())
            .fetch_one(&mut *change)
            .await
            .map_err(failed(doing))?;
    if namesake {
        return Err(CatalogError::NameTaken { what: "group", name: group.name.to_string() });
    }
    let sql = "INSERT INTO protection_groups (id, name, policy, paused, created_at, handled_through) \
               VALUES ($1, $2, $3, $4, $5, $6)";
    let created = sqlx::query(sql)
        .bind(&group.id.as_bytes()[..])
        .bind(group.name.as_str())
        .bind(&group.policy)
        .bind(i64::from(group.paused))
        .bind(int(group.created_at.unix_millis())?)
        .bind(int(group.handled_through.unix_millis())?)
        .execute(&mut *change)
        .await;
    match created {
        Err(error) if is_duplicate(&error) => {
            return Err(CatalogError::AlreadyExists { what: "group", id: group.id.to_string() });
        }
        created => created.map_err(failed(doing))?,
    };
    change.commit().await.map_err(failed(doing))
}

pub(super) async fn all(catalog: &SqliteCatalog) -> Result<Vec<GroupRow>> {
    let rows = sqlx::query("SELECT * FROM protection_groups ORDER BY name")
        .fetch_all(&catalog.readers)
        .await
        .map_err(failed("reading the groups"))?;
    rows.iter().map(group_of).collect()
}

pub(super) async fn by_name(catalog: &SqliteCatalog, name: &GroupName) -> Result<GroupRow> {
    let row = sqlx::query("SELECT * FROM protection_groups WHERE name = $1")
        .bind(name.as_str())
        .fetch_optional(&catalog.readers)
        .await
        .map_err(failed("reading a group"))?;
    group_of(&row.ok_or_else(|| CatalogError::not_found("group", name))?)
}

/// The name of a group; `NotFound` when there is none.
pub(super) async fn name(change: &mut SqliteConnection, id: GroupId) -> Result<GroupName> {
    let row = sqlx::query("SELECT * FROM protection_groups WHERE id = $1")
        .bind(&id.as_bytes()[..])
        .fetch_optional(change)
        .await
        .map_err(failed("reading a group"))?;
    Ok(group_of(&row.ok_or_else(|| CatalogError::not_found("group", &id))?)?.name)
}

fn group_of(row: &SqliteRow) -> Result<GroupRow> {
    let columns = Columns::new(row, "group");
    let name: &str = columns.get("name")?;
    Ok(GroupRow {
        id: columns.identity("id", GroupId::from_bytes)?,
        name: GroupName::new(name).map_err(|error| CatalogError::corrupt("group", &error))?,
        policy: columns.get("policy")?,
        paused: columns.get("paused")?,
        created_at: columns.time("created_at")?,
        handled_through: columns.time("handled_through")?,
    })
}

pub(super) async fn update(catalog: &SqliteCatalog, id: GroupId, change: &GroupChange) -> Result<()> {
    let sql = "UPDATE protection_groups SET policy = coalesce($1, policy), paused = coalesce($2, paused), \
               handled_through = coalesce($3, handled_through) WHERE id = $4";
    let updated = sqlx::query(sql)
        .bind(change.policy.as_deref())
        .bind(change.paused.map(i64::from))
        .bind(change.handled_through.map(|through| int(through.unix_millis())).transpose()?)
        .bind(&id.as_bytes()[..])
        .execute(&catalog.writer)
        .await
        .map_err(failed("changing a group"))?;
    if updated.rows_affected() == 0 { Err(CatalogError::not_found("group", &id)) } else { Ok(()) }
}

pub(super) async fn delete(catalog: &SqliteCatalog, id: GroupId) -> Result<()> {
    let doing = "deleting a group";
    let mut change = catalog.begin().await?;
    let name = name(&mut change, id).await?;
    group_runs::check_none_under_way(&mut change, id, &name).await?;
    // With their members.
    for sql in ["DELETE FROM group_runs WHERE group_id = $1", "DELETE FROM protection_groups WHERE id = $1"] {
        sqlx::query(sql).bind(&id.as_bytes()[..]).execute(&mut *change).await.map_err(failed(doing))?;
    }
    change.commit().await.map_err(failed(doing))
}
