//! Events.

use super::columns::{Columns, int};
use super::{Result, SqliteCatalog, failed};
use crate::{EVENTS_MAX, EventRow};
use sqlx::SqliteConnection;
use sqlx::sqlite::SqliteRow;

const DOING: &str = "writing down an event";

pub(super) async fn add(catalog: &SqliteCatalog, event: &EventRow) -> Result<()> {
    let mut change = catalog.begin().await?;
    insert(&mut change, event).await?;
    change.commit().await.map_err(failed(DOING))
}

pub(super) async fn insert(change: &mut SqliteConnection, event: &EventRow) -> Result<()> {
    sqlx::query("INSERT INTO events (at, kind, subject, text) VALUES ($1, $2, $3, $4)")
        .bind(int(event.at.unix_millis())?)
        .bind(&event.kind)
        .bind(&event.subject)
        .bind(&event.text)
        .execute(&mut *change)
        .await
        .map_err(failed(DOING))?;
    let sql = "DELETE FROM events WHERE kind = $1 AND seq <= \
               (SELECT seq FROM events WHERE kind = $1 ORDER BY seq DESC LIMIT 1 OFFSET $2)";
    sqlx::query(sql)
        .bind(&event.kind)
        .bind(i64::from(EVENTS_MAX))
        .execute(change)
        .await
        .map(drop)
        .map_err(failed(DOING))
}

pub(super) async fn last(catalog: &SqliteCatalog, limit: u32) -> Result<Vec<EventRow>> {
    let rows = sqlx::query("SELECT * FROM events ORDER BY seq DESC LIMIT $1")
        .bind(i64::from(limit))
        .fetch_all(&catalog.readers)
        .await
        .map_err(failed("reading events"))?;
    rows.iter().map(event_of).collect()
}

fn event_of(row: &SqliteRow) -> Result<EventRow> {
    let columns = Columns::new(row, "event");
    Ok(EventRow {
        at: columns.time("at")?,
        kind: columns.get("kind")?,
        subject: columns.get("subject")?,
        text: columns.get("text")?,
    })
}
