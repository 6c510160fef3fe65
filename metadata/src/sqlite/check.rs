//! What a check of the catalog asks: rows as they are, and what nothing names.
//!
//! Every look is one read transaction. What is doomed here was named by nothing in the very transaction that doomed it, and cannot be named from then on: a commit, a move and a
//! change of a place look for that in theirs.

mod maps;
pub(super) mod sums;

use super::columns::{Columns, KEYS_AT_ONCE, KeyListQuery, filled_up, int};
use super::placements::{place_columns, place_of};
use super::{Result, SqliteCatalog, doomed, failed};
use crate::check::{
    CheckSource, CheckedContainer, CheckedSegment, MapKind, MapRows, MissingChanges, UnnamedObject, WrongSum,
};
use crate::{CatalogError, LeafIndex};
use async_trait::async_trait;
use bytes::Bytes;
use cairn_model::{CommitSeq, ContainerId, DomainId, LineageId, ObjectPlace, Profile, SegmentId, shard_key};
use sqlx::sqlite::SqliteRow;
use sqlx::{Row, SqliteConnection};
use std::collections::BTreeMap;
use std::sync::LazyLock;
use std::sync::atomic::Ordering;

const DOING: &str = "checking the catalog";
/// Problems of the file that are told.
const TOLD_MAX: usize = 20;

#[async_trait]
impl CheckSource for SqliteCatalog {
    async fn check_file(&self) -> Result<Vec<String>> {
        file(self).await
    }

    async fn segment_rows(&self, after: Option<SegmentId>, limit: u32) -> Result<Vec<CheckedSegment>> {
        let sql = concat!(
            "SELECT s.id, ",
            place_columns!(),
            " FROM segments s WHERE s.id > $1 AND length(s.id) = 16 ORDER BY s.id LIMIT $2"
        );
        let after = after.map_or_else(Vec::new, |id| id.as_bytes().to_vec());
        let query = sqlx::query(sql).bind(after).bind(i64::from(limit));
        let rows = query.fetch_all(&self.readers).await.map_err(failed(DOING))?;
        rows.iter().map(segment_of).collect()
    }

    async fn segments(&self, ids: &[SegmentId]) -> Result<Vec<CheckedSegment>> {
        static SEGMENTS: LazyLock<KeyListQuery> = LazyLock::new(|| {
            let sql = concat!("SELECT s.id, ", place_columns!(), " FROM segments s WHERE s.id IN ({keys})");
            KeyListQuery::new(sql, 1)
        });
        let mut found = Vec::with_capacity(ids.len());
        for keys in ids.chunks(KEYS_AT_ONCE) {
            let (sql, length) = KeyListQuery::for_length(&SEGMENTS, keys.len());
            let mut query = sqlx::query(sql);
            for id in filled_up(keys, length) {
                query = query.bind(id.as_bytes().to_vec());
            }
            let rows = query.fetch_all(&self.readers).await.map_err(failed(DOING))?;
            for row in &rows {
                found.push(segment_of(row)?);
            }
        }
        Ok(found)
    }

    async fn containers_in(&self, segments: &[SegmentId]) -> Result<Vec<CheckedContainer>> {
        let mut look = self.readers.begin().await.map_err(failed(DOING))?;
        let mut found = Vec::new();
        for segment in segments {
            let sql = container_rows!("c.segment = $1 ORDER BY c.segment_offset");
            let rows = sqlx::query(sql).bind(&segment.as_bytes()[..]).fetch_all(&mut *look).await;
            for row in &rows.map_err(failed(DOING))? {
                found.push(container_of(row)?);
            }
        }
        Ok(found)
    }

    async fn last_map_row(&self, kind: MapKind) -> Result<i64> {
        maps::last(self, kind).await
    }

    async fn map_rows(
        &self,
        kind: MapKind,
        after: i64,
        through: i64,
        is_known: &(dyn Fn(ContainerId) -> bool + Sync),
        take: &mut (dyn FnMut(Vec<CheckedContainer>) + Send),
    ) -> Result<MapRows> {
        maps::rows(self, kind, (after, through), is_known, take).await
    }

    async fn missing_changes(&self) -> Result<Vec<MissingChanges>> {
        maps::missing_changes(self).await
    }

    async fn lineage_domains(&self) -> Result<BTreeMap<LineageId, DomainId>> {
        maps::domains(self).await
    }

    async fn wrong_sums(&self) -> Result<Vec<WrongSum>> {
        sums::wrong(self).await
    }

    async fn recount(&self, leaves: &[(LineageId, LeafIndex, CommitSeq)]) -> Result<Vec<WrongSum>> {
        let counted = sums::recount(self, leaves).await;
        self.changes.batches.fetch_add(1, Ordering::Release);
        counted
    }

    async fn unnamed(&self, objects: &[UnnamedObject]) -> Result<Vec<UnnamedObject>> {
        let mut look = self.readers.begin().await.map_err(failed(DOING))?;
        unnamed(&mut look, objects).await
    }

    async fn named(&self, objects: &[UnnamedObject]) -> Result<Vec<UnnamedObject>> {
        let mut look = self.readers.begin().await.map_err(failed(DOING))?;
        let mut found = Vec::new();
        for object in objects {
            if keys_of(&mut look, object).await?.iter().any(|key| key.as_ref() == Some(&object.key)) {
                found.push(object.clone());
            }
        }
        Ok(found)
    }

    async fn keep_named(&self, objects: &[UnnamedObject]) -> Result<u64> {
        let mut change = self.begin().await?;
        let mut count = 0;
        for object in objects {
            if keys_of(&mut change, object).await?.iter().any(|key| key.as_ref() == Some(&object.key)) {
                let sql = "DELETE FROM doomed WHERE node = $1 AND object_key = $2";
                let query = sqlx::query(sql).bind(object.node.as_bytes().to_vec()).bind(&object.key);
                count += query.execute(&mut *change).await.map_err(failed(DOING))?.rows_affected();
            }
        }
        change.commit().await.map_err(failed(DOING))?;
        self.changes.batches.fetch_add(1, Ordering::Release);
        Ok(count)
    }

    async fn doom_unnamed(&self, objects: &[UnnamedObject]) -> Result<(u64, u64)> {
        let mut change = self.begin().await?;
        let (mut count, mut bytes) = (0, 0);
        for object in objects {
            // One after the other: the same object may be among them twice.
            if unnamed(&mut change, std::slice::from_ref(object)).await?.is_empty() {
                continue;
            }
            let is_node = sqlx::query_scalar::<_, bool>("SELECT EXISTS (SELECT 1 FROM nodes WHERE id = $1)")
                .bind(&object.node.as_bytes()[..])
                .fetch_one(&mut *change)
                .await
                .map_err(failed(DOING))?;
            if is_node {
                let one = [(object.node, object.key.clone(), object.length_bytes)];
                doomed::add(&mut change, object.segment, one).await?;
                (count, bytes) = (count + 1, bytes + object.length_bytes);
            }
        }
        change.commit().await.map_err(failed(DOING))?;
        self.changes.batches.fetch_add(1, Ordering::Release);
        Ok((count, bytes))
    }
}

/// Whether the row of a container `c` is one: identities that are, and numbers that are not beyond what they count. Those that are not are counted ([`UNSOUND`]), and left out everywhere else.
macro_rules! sound_container {
    () => {
        "length(c.id) = 16 AND length(c.segment) = 16 AND length(c.domain) = 16 AND c.segment_offset >= 0 \
         AND c.length_bytes BETWEEN 0 AND 4294967295 AND coalesce(c.raw_bytes, 0) >= 0"
    };
}
/// The same for a leaf `m` of a map, and for a delta `m`.
macro_rules! sound_leaf {
    () => {
        "length(m.lineage) = 16 AND m.leaf BETWEEN 0 AND 1048575 AND m.commit_seq >= 0 AND coalesce(m.blocks, 0) >= 0"
    };
}
macro_rules! sound_delta {
    () => {
        "length(m.lineage) = 16 AND m.commit_seq >= 0"
    };
}
use {sound_container, sound_delta, sound_leaf};

/// Rows that nobody can read, of each table.
const UNSOUND: [(&str, &str); 7] = [
    ("segments", "SELECT count(*) FROM segments WHERE length(id) <> 16"),
    ("shards", "SELECT count(*) FROM shards WHERE length(segment) <> 16 OR length(node) <> 16"),
    ("containers", concat!("SELECT count(*) FROM containers c WHERE NOT (", sound_container!(), ")")),
    ("leaves", concat!("SELECT count(*) FROM leaves m WHERE NOT (", sound_leaf!(), ")")),
    ("deltas", concat!("SELECT count(*) FROM deltas m WHERE NOT (", sound_delta!(), ")")),
    ("lineages", "SELECT count(*) FROM lineages WHERE length(id) <> 16 OR length(parent) <> 16"),
    ("snapshots", "SELECT count(*) FROM snapshots WHERE length(lineage) <> 16 OR commit_seq < 0"),
];

/// Columns of a container `c` that [`container_of`] reads.
macro_rules! container_rows {
    ($rest:literal) => {
        concat!(
            "SELECT c.id, c.segment, c.segment_offset, c.length_bytes, c.raw_bytes, c.domain, c.directory, t.present \
             FROM containers c LEFT JOIN thinned t ON t.container = c.id WHERE ",
            sound_container!(),
            " AND ",
            $rest
        )
    };
}
use container_rows;

fn container_of(row: &SqliteRow) -> Result<CheckedContainer> {
    let columns = Columns::new(row, "container");
    let raw_bytes = match columns.get::<Option<i64>>("raw_bytes")? {
        Some(_) => Some(columns.number("raw_bytes")?),
        None => None,
    };
    Ok(CheckedContainer {
        id: columns.identity("id", ContainerId::from_bytes)?,
        segment: columns.identity("segment", SegmentId::from_bytes)?,
        offset: columns.number("segment_offset")?,
        length: columns.small_number("length_bytes")?,
        raw_bytes,
        domain: columns.identity("domain", DomainId::from_bytes)?,
        directory: Bytes::from(columns.get::<Vec<u8>>("directory")?),
        thinned: columns.get("present")?,
    })
}

fn segment_of(row: &SqliteRow) -> Result<CheckedSegment> {
    let columns = Columns::new(row, "segment");
    let id = columns.identity("id", SegmentId::from_bytes)?;
    Ok(CheckedSegment { id, place: sound_place(&columns).map_err(|error| error.to_string()) })
}

/// No segment is nearly as long. Lengths through this can be added up.
const OBJECT_BYTES_MAX: u64 = 1 << 40;

/// Where a segment is, if that makes sense.
fn sound_place(columns: &Columns<'_>) -> Result<ObjectPlace> {
    let place = place_of(columns)?;
    if place.length_bytes > OBJECT_BYTES_MAX {
        return Err(columns.bad("segment_bytes", &place.length_bytes.to_string()));
    }
    Ok(place)
}

/// What the database says of itself, and rows that nobody can read.
///
/// Its check reads all of the file once, in one look that nobody can shorten: nothing waits for it, but the catalog's own log grows meanwhile.
async fn file(catalog: &SqliteCatalog) -> Result<Vec<String>> {
    let mut look = catalog.readers.acquire().await.map_err(failed(DOING))?;
    let mut told = Vec::new();
    let rows = sqlx::query("PRAGMA quick_check(20)").fetch_all(&mut *look).await.map_err(failed(DOING))?;
    for row in &rows {
        let text: String = row.try_get(0).map_err(failed(DOING))?;
        if text != "ok" {
            told.push(text);
        }
    }
    let rows = sqlx::query("PRAGMA foreign_key_check").fetch_all(&mut *look).await.map_err(failed(DOING))?;
    for row in rows.iter().take(TOLD_MAX) {
        let (table, parent): (String, String) =
            (row.try_get(0).map_err(failed(DOING))?, row.try_get(2).map_err(failed(DOING))?);
        told.push(format!("a row of table {table} refers to one of {parent} that is not there"));
    }
    for (table, sql) in UNSOUND {
        let count: i64 = sqlx::query_scalar(sql).fetch_one(&mut *look).await.map_err(failed(DOING))?;
        if count > 0 {
            told.push(format!("{count} rows of table {table} make no sense, and are left out of the check"));
        }
    }
    Ok(told)
}

/// Those that neither a segment nor a doomed row names.
async fn unnamed(look: &mut SqliteConnection, objects: &[UnnamedObject]) -> Result<Vec<UnnamedObject>> {
    let mut left = Vec::new();
    for object in objects {
        // A row that makes no sense may be the one that names it.
        let is_another = |key: &Option<String>| key.as_ref().is_some_and(|key| *key != object.key);
        let is_named = !keys_of(look, object).await?.iter().all(is_another);
        if !is_named && !doomed::contains(look, object.node, &object.key).await? {
            left.push(object.clone());
        }
    }
    Ok(left)
}

/// The objects that the segment has on the node, by its rows: one, or none. `None` for a row that makes no sense.
async fn keys_of(look: &mut SqliteConnection, object: &UnnamedObject) -> Result<Vec<Option<String>>> {
    let sql = "SELECT s.object_key, s.profile, h.shard, h.tag FROM shards h JOIN segments s ON s.id = h.segment \
               WHERE h.node = $1 AND h.segment = $2";
    let rows = sqlx::query(sql)
        .bind(&object.node.as_bytes()[..])
        .bind(&object.segment.as_bytes()[..])
        .fetch_all(look)
        .await
        .map_err(failed(DOING))?;
    Ok(rows.iter().map(|row| key_of(row).ok()).collect())
}

fn key_of(row: &SqliteRow) -> Result<String> {
    let columns = Columns::new(row, "shard");
    let profile: &str = columns.get("profile")?;
    let profile: Profile = profile.parse().map_err(|_| columns.bad("profile", profile))?;
    let index =
        usize::try_from(columns.number("shard")?).map_err(|error| CatalogError::corrupt("shard", &error))?;
    let key: &str = columns.get("object_key")?;
    Ok(shard_key(key, profile, index, columns.small_number("tag")?))
}

/// A sum as SQL holds it.
fn signed(value: u64) -> Result<i64> {
    int(value)
}
