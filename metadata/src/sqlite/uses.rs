//! What something points at, chunk by chunk.
//!
//! Invariant: a look is one read transaction over all leaves and deltas. A pointer that a fold moves from a delta to a leaf, or from an old
//! version of a leaf to a new one, is seen in the one place or in the other. What cannot be read is an error, never taken for nothing.

use super::columns::{Columns, KEYS_AT_ONCE, KeyListQuery, filled_up};
use super::versions::index_of;
use super::{Result, SqliteCatalog, failed};
use crate::{CatalogError, ContainerUse, MapLeaf, SegmentUse, UsePage};
use cairn_model::{ChunkIndex, ChunkSet, ContainerId, MapDelta, MapTarget, SegmentId};
use sqlx::SqliteConnection;
use sqlx::sqlite::SqliteRow;
use std::collections::HashMap;
use std::sync::LazyLock;

/// Rows with blobs read at once.
const BLOBS_AT_ONCE: i64 = 16;
/// Segments read at once.
const SEGMENTS_AT_ONCE: i64 = 512;
const LOOKING: &str = "looking for what is in use";

/// Which chunks of some containers are seen to be pointed at.
#[derive(Default)]
struct Seen {
    places: HashMap<ContainerId, usize>,
    chunks: Vec<ChunkSet>,
}

impl Seen {
    fn watch(&mut self, container: ContainerId) {
        let place = self.chunks.len();
        if *self.places.entry(container).or_insert(place) == place {
            self.chunks.push(ChunkSet::default());
        }
    }

    fn mark(&mut self, place: usize, chunk: ChunkIndex) -> Result<()> {
        if self.chunks[place].insert(chunk) {
            return Ok(());
        }
        Err(CatalogError::corrupt("map", &format!("{chunk:?} is beyond the largest container")))
    }

    fn take(&mut self, id: ContainerId, length: u32) -> ContainerUse {
        ContainerUse { id, length, live: std::mem::take(&mut self.chunks[self.places[&id]]) }
    }
}

pub(super) async fn of_segments(
    catalog: &SqliteCatalog,
    after: Option<SegmentId>,
    containers_max: u32,
) -> Result<UsePage> {
    let mut look = catalog.readers.begin().await.map_err(failed(LOOKING))?;
    let (mut page, lengths) = segments(&mut look, after, containers_max).await?;
    let mut seen = Seen::default();
    lengths.iter().flatten().for_each(|(id, _)| seen.watch(*id));
    of_leaves(&mut look, &mut seen).await?;
    of_deltas(&mut look, &mut seen).await?;
    for (segment, containers) in page.segments.iter_mut().zip(lengths) {
        segment.containers = containers.into_iter().map(|(id, length)| seen.take(id, length)).collect();
    }
    Ok(page)
}

/// Segments without their containers, and these beside them with their lengths.
async fn segments(
    look: &mut SqliteConnection,
    after: Option<SegmentId>,
    containers_max: u32,
) -> Result<(UsePage, Vec<Vec<(ContainerId, u32)>>)> {
    let (mut page, mut containers) = (UsePage::default(), Vec::new());
    let mut left = i64::from(containers_max);
    let mut after = after.map_or_else(Vec::new, |id| id.as_bytes().to_vec());
    while left > 0 {
        let sql = "SELECT id, length_bytes FROM segments WHERE id > $1 ORDER BY id LIMIT $2";
        let asked = left.min(SEGMENTS_AT_ONCE);
        let rows = sqlx::query(sql).bind(&after).bind(asked).fetch_all(&mut *look).await;
        let rows = rows.map_err(failed(LOOKING))?;
        for row in &rows {
            let columns = Columns::new(row, "segment");
            let id = columns.identity("id", SegmentId::from_bytes)?;
            let of_segment = containers_of(look, id).await?;
            // One without any counts too: a page is bounded.
            left -= i64::try_from(of_segment.len()).unwrap_or(i64::MAX).max(1);
            page.segments.push(SegmentUse {
                id,
                length_bytes: columns.number("length_bytes")?,
                containers: Vec::new(),
            });
            containers.push(of_segment);
            after = id.as_bytes().to_vec();
            if left <= 0 {
                page.next = Some(id);
                break;
            }
        }
        if rows.is_empty() {
            break;
        }
    }
    Ok((page, containers))
}

async fn containers_of(look: &mut SqliteConnection, segment: SegmentId) -> Result<Vec<(ContainerId, u32)>> {
    let sql = "SELECT id, length_bytes FROM containers WHERE segment = $1 ORDER BY id";
    let rows = sqlx::query(sql).bind(&segment.as_bytes()[..]).fetch_all(look).await;
    rows.map_err(failed(LOOKING))?.iter().map(id_and_length).collect()
}

fn id_and_length(row: &SqliteRow) -> Result<(ContainerId, u32)> {
    let columns = Columns::new(row, "container");
    Ok((columns.identity("id", ContainerId::from_bytes)?, columns.small_number("length_bytes")?))
}

pub(super) async fn of_containers(catalog: &SqliteCatalog, ids: &[ContainerId]) -> Result<Vec<ContainerUse>> {
    static LENGTHS: LazyLock<KeyListQuery> = LazyLock::new(|| {
        KeyListQuery::new("SELECT id, length_bytes FROM containers WHERE id IN ({keys})", 1)
    });
    let mut wanted = ids.to_vec();
    wanted.sort_unstable();
    wanted.dedup();
    let mut look = catalog.readers.begin().await.map_err(failed(LOOKING))?;
    let mut found = Vec::with_capacity(wanted.len());
    for keys in wanted.chunks(KEYS_AT_ONCE) {
        let (sql, length) = KeyListQuery::for_length(&LENGTHS, keys.len());
        let mut query = sqlx::query(sql);
        for id in filled_up(keys, length) {
            query = query.bind(id.as_bytes().to_vec());
        }
        let rows = query.fetch_all(&mut *look).await.map_err(failed(LOOKING))?;
        for row in &rows {
            found.push(id_and_length(row)?);
        }
    }
    found.sort_unstable();
    let mut seen = Seen::default();
    for (id, _) in &found {
        seen.watch(*id);
    }
    of_leaves(&mut look, &mut seen).await?;
    of_deltas(&mut look, &mut seen).await?;
    Ok(found.into_iter().map(|(id, length)| seen.take(id, length)).collect())
}

/// The rows of a table with blobs, page by page in the order of their number.
async fn pages(
    look: &mut SqliteConnection,
    sql: &'static str,
    mut take: impl FnMut(&SqliteRow) -> Result<()>,
) -> Result<()> {
    let mut after = i64::MIN;
    loop {
        let rows = sqlx::query(sql).bind(after).bind(BLOBS_AT_ONCE).fetch_all(&mut *look).await;
        let rows = rows.map_err(failed(LOOKING))?;
        let Some(last) = rows.last() else { return Ok(()) };
        after = Columns::new(last, "map").get("number")?;
        rows.iter().try_for_each(&mut take)?;
    }
}

/// Marks what a leaf points at.
async fn of_leaves(look: &mut SqliteConnection, seen: &mut Seen) -> Result<()> {
    let sql = "SELECT rowid AS number, leaf, data FROM leaves WHERE rowid > $1 ORDER BY rowid LIMIT $2";
    let mut places: Vec<Option<usize>> = Vec::new();
    pages(look, sql, |row| {
        let columns = Columns::new(row, "map leaf");
        let leaf = MapLeaf::decode(index_of(&columns)?, columns.get("data")?);
        let leaf = leaf.map_err(|error| CatalogError::of_blob("map leaf", error))?;
        places.clear();
        places.extend(leaf.containers().iter().map(|container| seen.places.get(container).copied()));
        leaf.chunks().try_for_each(|(container, chunk)| match places[container] {
            Some(place) => seen.mark(place, chunk),
            None => Ok(()),
        })
    })
    .await
}

/// Marks what a delta points at.
async fn of_deltas(look: &mut SqliteConnection, seen: &mut Seen) -> Result<()> {
    let sql = "SELECT rowid AS number, delta FROM deltas WHERE rowid > $1 ORDER BY rowid LIMIT $2";
    pages(look, sql, |row| {
        let delta = MapDelta::decode(Columns::new(row, "map delta").get("delta")?);
        for op in delta.map_err(|error| CatalogError::of_blob("map delta", error))?.ops {
            if let MapTarget::Chunk(target) = op.target
                && let Some(place) = seen.places.get(&target.chunk.container).copied()
            {
                seen.mark(place, target.chunk.index)?;
            }
        }
        Ok(())
    })
    .await
}
