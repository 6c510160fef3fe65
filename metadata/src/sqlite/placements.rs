//! Where segments are, and how that changes.
//!
//! Invariants:
//! - a segment has a row in `shards` for each shard that is somewhere, at least as many as it takes to read; `missing` and `spare` in its own
//!   row follow from them;
//! - an object that a segment needs no more becomes a doomed one in the transaction that takes it from the segment, and a doomed object never becomes
//!   a shard: what deletes doomed objects deletes nothing that is needed;
//! - all of a change is one transaction, conditional on the whole place: readers find the old place or the new one. The objects of both are in the
//!   pool then, those of the old one until somebody reads what is doomed.

use super::columns::{Columns, int};
use super::tally::Tally;
use super::{Result, SqliteCatalog, doomed, failed, is_duplicate};
use crate::placements::{object_is_doomed, spare};
use crate::{CatalogError, PlacementChange};
use cairn_model::{NodeId, ObjectPlace, Placement, Profile, SHARDS_MAX, SegmentId, ShardPlace};
use sqlx::SqliteConnection;
use std::sync::LazyLock;

/// Columns of a segment `s` that [`place_of`] reads: all of its place in one row, so that one statement sees one state, and what else is in the row
/// is there once. In another database `group_concat` may be called `string_agg`.
macro_rules! place_columns {
    () => {
        "s.object_key, s.length_bytes AS segment_bytes, s.profile, \
         (SELECT group_concat(h.shard || ' ' || h.tag || ' ' || hex(h.node)) FROM shards h WHERE h.segment = s.id) AS shards"
    };
}
pub(super) use place_columns;

pub(super) fn place_of(columns: &Columns<'_>) -> Result<ObjectPlace> {
    let profile: &str = columns.get("profile")?;
    let profile: Profile = profile.parse().map_err(|_| columns.bad("profile", profile))?;
    let shards: &str = columns.get::<Option<&str>>("shards")?.unwrap_or_default();
    let placement = read_shards(profile, shards)
        .ok_or_else(|| columns.bad("shards", &format!("{shards:?} of {profile}")))?;
    Ok(ObjectPlace {
        key: columns.get("object_key")?,
        length_bytes: columns.number("segment_bytes")?,
        placement,
    })
}

/// `0 0 00..ff,1 0 00..ff`: shard, tag and node of each, in any order.
fn read_shards(profile: Profile, text: &str) -> Option<Placement> {
    let mut shards = vec![None; profile.shards()];
    for row in text.split_terminator(',') {
        let (shard, row) = row.split_once(' ')?;
        let (tag, node) = row.split_once(' ')?;
        let mut bytes = [0; 16];
        if node.len() != 32 {
            return None;
        }
        for (byte, digits) in bytes.iter_mut().zip(node.as_bytes().chunks_exact(2)) {
            *byte = u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?;
        }
        let place = ShardPlace { node: NodeId::from_bytes(bytes), tag: tag.parse().ok()? };
        *shards.get_mut(shard.parse::<usize>().ok()?)? = Some(place);
    }
    Placement::new(profile, shards)
}

/// Records a segment with its shards, and counts it.
pub(super) async fn insert(
    change: &mut SqliteConnection,
    segment: SegmentId,
    place: &ObjectPlace,
    tally: &mut Tally,
) -> Result<()> {
    let doing = "recording a segment";
    let sql = "INSERT INTO segments (id, object_key, length_bytes, profile, missing, spare) VALUES ($1, $2, $3, $4, $5, $6)";
    let inserted = sqlx::query(sql)
        .bind(&segment.as_bytes()[..])
        .bind(&place.key)
        .bind(int(place.length_bytes)?)
        .bind(place.placement.profile().to_string())
        .bind(int(place.placement.missing() as u64)?)
        .bind(int(spare(&place.placement) as u64)?)
        .execute(&mut *change)
        .await;
    match inserted {
        Err(error) if is_duplicate(&error) => {
            return Err(CatalogError::AlreadyExists { what: "segment", id: segment.to_string() });
        }
        inserted => inserted.map_err(failed(doing))?,
    };
    insert_shards(change, segment, &place.placement).await?;
    tally.add(place)
}

/// Fails when an object of a segment that is recorded is doomed: a check of the pool found that nothing named it. A segment that is not recorded any more is no matter.
pub(super) async fn refuse_doomed(
    change: &mut SqliteConnection,
    segment: SegmentId,
    place: &ObjectPlace,
) -> Result<()> {
    let Some(key) = doomed::of_segment(change, place).await? else { return Ok(()) };
    let sql = "SELECT EXISTS (SELECT 1 FROM segments WHERE id = $1)";
    let is_recorded = sqlx::query_scalar(sql).bind(&segment.as_bytes()[..]).fetch_one(change).await;
    if is_recorded.map_err(failed("looking for a segment"))? {
        return Err(CatalogError::ObjectDoomed { segment, key });
    }
    Ok(())
}

async fn insert_shards(
    change: &mut SqliteConnection,
    segment: SegmentId,
    placement: &Placement,
) -> Result<()> {
    /// For so many shards, and one.
    static INSERT: LazyLock<[String; SHARDS_MAX]> = LazyLock::new(|| {
        std::array::from_fn(|last| {
            let row =
                |shard: usize| format!("($1, ${}, ${}, ${})", 3 * shard + 2, 3 * shard + 3, 3 * shard + 4);
            let rows: Vec<_> = (0..=last).map(row).collect();
            format!("INSERT INTO shards (segment, shard, node, tag) VALUES {}", rows.join(", "))
        })
    });
    let present: Vec<_> = placement.present().collect();
    let sql: &'static str = &INSERT[present.len() - 1];
    let mut query = sqlx::query(sql).bind(segment.as_bytes().to_vec());
    for (shard, ShardPlace { node, tag }) in &present {
        query = query.bind(int(*shard as u64)?).bind(node.as_bytes().to_vec()).bind(i64::from(*tag));
    }
    let Err(error) = query.execute(&mut *change).await else { return Ok(()) };
    let kind = error.as_database_error().map(sqlx::error::DatabaseError::kind);
    if matches!(kind, Some(sqlx::error::ErrorKind::ForeignKeyViolation)) {
        for (_, shard) in present {
            let sql = "SELECT EXISTS (SELECT 1 FROM nodes WHERE id = $1)";
            let known =
                sqlx::query_scalar(sql).bind(&shard.node.as_bytes()[..]).fetch_one(&mut *change).await;
            if !known.map_err(failed("looking for a node"))? {
                return Err(CatalogError::not_found("node", &shard.node));
            }
        }
    }
    Err(failed("recording shards")(error))
}

async fn delete_shards(change: &mut SqliteConnection, segment: SegmentId) -> Result<()> {
    sqlx::query("DELETE FROM shards WHERE segment = $1")
        .bind(&segment.as_bytes()[..])
        .execute(change)
        .await
        .map(drop)
        .map_err(failed("taking away shards"))
}

/// A segment that has no container any more goes, and its objects are doomed.
pub(super) async fn doom_if_empty(
    change: &mut SqliteConnection,
    segment: SegmentId,
    tally: &mut Tally,
) -> Result<()> {
    let doing = "dooming a segment";
    let sql = concat!(
        "SELECT ",
        place_columns!(),
        " FROM segments s WHERE s.id = $1 AND NOT EXISTS (SELECT 1 FROM containers c WHERE c.segment = s.id)"
    );
    let row = sqlx::query(sql).bind(&segment.as_bytes()[..]).fetch_optional(&mut *change).await;
    let Some(row) = row.map_err(failed(doing))? else { return Ok(()) };
    let place = place_of(&Columns::new(&row, "segment"))?;
    doomed::add(change, segment, place.objects()).await?;
    delete_shards(change, segment).await?;
    sqlx::query("DELETE FROM segments WHERE id = $1")
        .bind(&segment.as_bytes()[..])
        .execute(change)
        .await
        .map_err(failed(doing))?;
    tally.remove(&place)
}

pub(super) async fn change(catalog: &SqliteCatalog, asked: &PlacementChange) -> Result<()> {
    let doing = "changing where a segment is";
    asked.check()?;
    let segment = asked.segment;
    let mut change = catalog.begin().await?;
    let sql = concat!("SELECT ", place_columns!(), " FROM segments s WHERE s.id = $1");
    let row = sqlx::query(sql).bind(&segment.as_bytes()[..]).fetch_optional(&mut *change).await;
    let row = row.map_err(failed(doing))?.ok_or(CatalogError::PlacementChanged { segment })?;
    let place = place_of(&Columns::new(&row, "segment"))?;
    // Done before, by an attempt whose answer was lost.
    if place == asked.to {
        return Ok(());
    }
    if place != asked.from {
        return Err(CatalogError::PlacementChanged { segment });
    }
    let placement = &asked.to.placement;
    delete_shards(&mut change, segment).await?;
    insert_shards(&mut change, segment, placement).await?;
    for (node, key, _) in asked.added() {
        if doomed::contains(&mut change, node, &key).await? {
            return Err(object_is_doomed(node, &key));
        }
    }
    sqlx::query("UPDATE segments SET profile = $1, missing = $2, spare = $3 WHERE id = $4")
        .bind(placement.profile().to_string())
        .bind(int(placement.missing() as u64)?)
        .bind(int(spare(placement) as u64)?)
        .bind(&segment.as_bytes()[..])
        .execute(&mut *change)
        .await
        .map_err(failed(doing))?;
    doomed::add(&mut change, segment, asked.left()).await?;
    let mut tally = Tally::default();
    tally.remove(&asked.from)?;
    tally.add(&asked.to)?;
    tally.write(&mut change).await?;
    change.commit().await.map_err(failed(doing))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shards_that_make_no_placement_are_refused() {
        let node = |digit: &str| digit.repeat(32);
        let replica = Profile::replica(2).unwrap();
        let text = format!("1 7 {},0 0 {}", node("B"), node("A"));
        let placement = read_shards(replica, &text).unwrap();
        assert_eq!(placement.shards()[1], Some(ShardPlace { node: NodeId::from_bytes([0xbb; 16]), tag: 7 }));
        assert_eq!(placement.missing(), 0);
        for text in [
            String::new(),
            "0 0".to_owned(),
            format!("0 0 {}", &node("A")[1..]),
            format!("2 0 {}", node("A")),
            format!("0 -1 {}", node("A")),
            format!("0 4294967296 {}", node("A")),
            format!("0 0 {}", node("G")),
            format!("0 0 {0},1 0 {0}", node("A")),
        ] {
            assert_eq!(read_shards(replica, &text), None, "{text}");
        }
    }
}
