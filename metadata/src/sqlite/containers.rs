//! Where containers are.

use super::columns::{Columns, KEYS_AT_ONCE, KeyListQuery, filled_up};
use super::{Result, SqliteCatalog, failed};
use crate::ContainerLocation;
use bytes::Bytes;
use cairn_model::{ContainerId, NodeId, SegmentId};
use sqlx::sqlite::SqliteRow;
use std::sync::LazyLock;

pub(super) async fn locate(catalog: &SqliteCatalog, ids: &[ContainerId]) -> Result<Vec<ContainerLocation>> {
    static LOCATE: LazyLock<KeyListQuery> = LazyLock::new(|| {
        let sql = "SELECT c.id, c.segment, c.segment_offset, c.length_bytes, c.directory, s.node, s.object_key \
                   FROM containers c JOIN segments s ON s.id = c.segment WHERE c.id IN ({keys})";
        KeyListQuery::new(sql, 1)
    });
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

fn location_of(row: &SqliteRow) -> Result<ContainerLocation> {
    let columns = Columns::new(row, "container");
    Ok(ContainerLocation {
        id: columns.identity("id", ContainerId::from_bytes)?,
        segment: columns.identity("segment", SegmentId::from_bytes)?,
        node: columns.identity("node", NodeId::from_bytes)?,
        key: columns.get("object_key")?,
        offset: columns.number("segment_offset")?,
        length: columns.small_number("length_bytes")?,
        directory: Bytes::from(columns.get::<Vec<u8>>("directory")?),
    })
}
