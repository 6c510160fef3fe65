//! Pages of segments, each a range of an index.

use super::columns::Columns;
use super::placements::{place_columns, place_of};
use super::{Result, SqliteCatalog, failed};
use crate::SegmentPlace;
use cairn_model::{NodeId, Profile, SegmentId};
use sqlx::sqlite::SqliteRow;

const DOING: &str = "listing segments";

macro_rules! select_segments {
    ($rest:literal) => {
        concat!("SELECT s.id, ", place_columns!(), " FROM ", $rest)
    };
}

pub(super) const ALL: &str = select_segments!("segments s WHERE s.id > $1 ORDER BY s.id LIMIT $2");
pub(super) const LAST: &str = "SELECT id FROM segments ORDER BY id DESC LIMIT 1";
pub(super) const ON_NODE: &str = select_segments!(
    "shards n JOIN segments s ON s.id = n.segment WHERE n.segment > $1 AND n.node = $3 ORDER BY n.segment LIMIT $2"
);
pub(super) const DEGRADED: &str =
    select_segments!("segments s WHERE s.missing > 0 AND s.id > $1 ORDER BY s.id LIMIT $2");
pub(super) const OF_PROFILE: &str =
    select_segments!("segments s WHERE s.profile = $3 AND s.id > $1 ORDER BY s.id LIMIT $2");
pub(super) const NEXT_PROFILE: &str = "SELECT min(profile) FROM segments WHERE profile > $1";

/// Behind which a page begins, as the statements want it.
fn cursor(after: Option<SegmentId>) -> Vec<u8> {
    after.map_or_else(Vec::new, |id| id.as_bytes().to_vec())
}

fn segment_of(row: &SqliteRow) -> Result<SegmentPlace> {
    let columns = Columns::new(row, "segment");
    Ok(SegmentPlace { id: columns.identity("id", SegmentId::from_bytes)?, place: place_of(&columns)? })
}

pub(super) async fn all(
    catalog: &SqliteCatalog,
    after: Option<SegmentId>,
    limit: u32,
) -> Result<Vec<SegmentPlace>> {
    let query = sqlx::query(ALL).bind(cursor(after)).bind(i64::from(limit));
    let rows = query.fetch_all(&catalog.readers).await.map_err(failed(DOING))?;
    rows.iter().map(segment_of).collect()
}

pub(super) async fn last(catalog: &SqliteCatalog) -> Result<Option<SegmentId>> {
    let row = sqlx::query(LAST).fetch_optional(&catalog.readers).await.map_err(failed(DOING))?;
    row.map(|row| Columns::new(&row, "segment").identity("id", SegmentId::from_bytes)).transpose()
}

pub(super) async fn on_node(
    catalog: &SqliteCatalog,
    node: NodeId,
    after: Option<SegmentId>,
    limit: u32,
) -> Result<Vec<SegmentPlace>> {
    let query =
        sqlx::query(ON_NODE).bind(cursor(after)).bind(i64::from(limit)).bind(node.as_bytes().to_vec());
    let rows = query.fetch_all(&catalog.readers).await.map_err(failed(DOING))?;
    rows.iter().map(segment_of).collect()
}

pub(super) async fn degraded(
    catalog: &SqliteCatalog,
    after: Option<SegmentId>,
    limit: u32,
) -> Result<Vec<SegmentPlace>> {
    let query = sqlx::query(DEGRADED).bind(cursor(after)).bind(i64::from(limit));
    let rows = query.fetch_all(&catalog.readers).await.map_err(failed(DOING))?;
    rows.iter().map(segment_of).collect()
}

/// The profiles that there are are few: the index tells them one after the other, and each has its own page. All in one state of the catalog, so that a
/// segment that is converted meanwhile is there once.
pub(super) async fn of_other_profile(
    catalog: &SqliteCatalog,
    than: Profile,
    after: Option<SegmentId>,
    limit: u32,
) -> Result<Vec<SegmentPlace>> {
    let mut look = catalog.readers.begin().await.map_err(failed(DOING))?;
    let (than, after) = (than.to_string(), cursor(after));
    let mut found = Vec::new();
    let mut profile = String::new();
    loop {
        let next: Option<String> = sqlx::query_scalar(NEXT_PROFILE)
            .bind(&profile)
            .fetch_one(&mut *look)
            .await
            .map_err(failed(DOING))?;
        let Some(next) = next else { break };
        profile = next;
        if profile == than {
            continue;
        }
        let query = sqlx::query(OF_PROFILE).bind(&after).bind(i64::from(limit)).bind(&profile);
        let rows = query.fetch_all(&mut *look).await.map_err(failed(DOING))?;
        for row in &rows {
            found.push(segment_of(row)?);
        }
    }
    found.sort_unstable_by_key(|segment: &SegmentPlace| segment.id);
    found.truncate(usize::try_from(limit).unwrap_or(usize::MAX));
    Ok(found)
}
