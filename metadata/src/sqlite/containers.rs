//! Where containers are.

use super::columns::{Columns, KEYS_AT_ONCE, KeyListQuery, filled_up};
use super::placements::{place_columns, place_of};
use super::{Result, SqliteCatalog, failed, uncounted};
use crate::ContainerLocation;
use bytes::Bytes;
use cairn_model::{ContainerId, DomainId, SegmentId};
use sqlx::sqlite::SqliteRow;
use std::sync::LazyLock;

macro_rules! select_containers {
    ($rest:literal) => {
        concat!(
            "SELECT c.id, c.segment, c.segment_offset, c.length_bytes, c.raw_bytes, c.domain, c.directory, ",
            place_columns!(),
            " FROM containers c JOIN segments s ON s.id = c.segment WHERE ",
            $rest
        )
    };
}

pub(super) async fn locate(catalog: &SqliteCatalog, ids: &[ContainerId]) -> Result<Vec<ContainerLocation>> {
    static LOCATE: LazyLock<KeyListQuery> =
        LazyLock::new(|| KeyListQuery::new(select_containers!("c.id IN ({keys})"), 1));
    let mut wanted = ids.to_vec();
    wanted.sort_unstable();
    wanted.dedup();
    let mut locations = Vec::with_capacity(wanted.len());
    for keys in wanted.chunks(KEYS_AT_ONCE) {
        let (sql, length) = KeyListQuery::for_length(&LOCATE, keys.len());
        let mut query = sqlx::query(sql);
        for id in filled_up(keys, length) {
            query = query.bind(id.as_bytes().to_vec());
        }
        let rows = query.fetch_all(&catalog.readers).await.map_err(failed("locating containers"))?;
        for row in &rows {
            locations.push(location_of(row)?);
        }
    }
    Ok(locations)
}

pub(super) async fn before(
    catalog: &SqliteCatalog,
    before: Option<ContainerId>,
    limit: u32,
) -> Result<Vec<ContainerLocation>> {
    // A blob that is longer than every identity and begins as the last one is behind them all.
    let before = before.map_or_else(|| vec![0xff; 17], |id| id.as_bytes().to_vec());
    let rows = sqlx::query(select_containers!("c.id < $1 ORDER BY c.id DESC LIMIT $2"))
        .bind(before)
        .bind(i64::from(limit))
        .fetch_all(&catalog.readers)
        .await
        .map_err(failed("listing containers"))?;
    rows.iter().map(location_of).collect()
}

fn location_of(row: &SqliteRow) -> Result<ContainerLocation> {
    let columns = Columns::new(row, "container");
    let directory = Bytes::from(columns.get::<Vec<u8>>("directory")?);
    let raw_bytes = match columns.get::<Option<i64>>("raw_bytes")? {
        Some(_) => columns.number("raw_bytes")?,
        None => uncounted::raw_bytes(&directory),
    };
    Ok(ContainerLocation {
        id: columns.identity("id", ContainerId::from_bytes)?,
        segment: columns.identity("segment", SegmentId::from_bytes)?,
        place: place_of(&columns)?,
        offset: columns.number("segment_offset")?,
        length: columns.small_number("length_bytes")?,
        raw_bytes,
        domain: columns.identity("domain", DomainId::from_bytes)?,
        directory,
    })
}
