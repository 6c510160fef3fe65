//! What the catalog has, and what the pool has of a segment.

use crate::error::GatewayError;
use cairn_metadata::{Catalog, SqliteCatalog};
use cairn_model::{NodeId, ObjectPlace, Profile, SegmentId};
use cairn_segment_writer::{Domain, Footer, FoundSegment, Pool, PoolError};
use std::collections::{HashMap, HashSet};

/// Segments whose rows are read at once.
const ROWS_AT_ONCE: u32 = 10_000;

/// Where the catalog's segments are.
pub(super) async fn recorded(
    catalog: &SqliteCatalog,
) -> Result<HashMap<SegmentId, ObjectPlace>, GatewayError> {
    let (mut recorded, mut after) = (HashMap::new(), None);
    loop {
        let rows = catalog.segment_places(after, ROWS_AT_ONCE).await?;
        let Some(last) = rows.last() else { return Ok(recorded) };
        after = Some(last.id);
        recorded.extend(rows.into_iter().map(|row| (row.id, row.place)));
    }
}

/// The objects that the catalog has doomed, and the segments that they were of.
pub(super) async fn doomed(
    catalog: &SqliteCatalog,
) -> Result<(HashSet<SegmentId>, HashSet<(NodeId, String)>), GatewayError> {
    let (mut segments, mut objects, mut after) = (HashSet::new(), HashSet::new(), None);
    loop {
        let rows = catalog.doomed_objects(after, ROWS_AT_ONCE).await?;
        let Some(last) = rows.last() else { return Ok((segments, objects)) };
        after = Some(last.id);
        segments.extend(rows.iter().map(|row| row.segment));
        objects.extend(rows.into_iter().map(|row| (row.node, row.key)));
    }
}

/// A segment that the catalog does not have, from the best place from which its footer can be read. `None`: too few of its shards are there.
pub(super) async fn read_found(
    pool: &Pool,
    domains: &[Domain],
    profile: Profile,
    found: &FoundSegment,
) -> Result<Option<(ObjectPlace, Footer)>, PoolError> {
    let mut failed = None;
    for place in pool.places_of(found, profile).await? {
        match read_footer(pool, domains, found.id, &place).await {
            Ok(footer) => return Ok(Some((place, footer))),
            // Another place may do.
            Err(error) => failed = Some(error),
        }
    }
    failed.map_or(Ok(None), Err)
}

pub(super) async fn read_footer(
    pool: &Pool,
    domains: &[Domain],
    id: SegmentId,
    place: &ObjectPlace,
) -> Result<Footer, PoolError> {
    let known = |key| domains.iter().find(|domain| domain.key_id() == key).cloned();
    let footer = pool.read_footer_of(place, &known).await?;
    if footer.segment == id {
        return Ok(footer);
    }
    Err(PoolError::Corrupt {
        node: "the pool".into(),
        key: place.key.clone(),
        part: "the segment".to_owned(),
        reason: format!("it is segment {} under another one's name", footer.segment),
    })
}
