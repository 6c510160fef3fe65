//! Sums, counted anew and compared with what is recorded.
//!
//! What belongs together is counted in one state of the catalog: segments with all that is added up of them, and volumes with their total. No change waits for that. What lacks is added then, in short
//! transactions: everything else changes sums by what it adds and takes away, so what lacked lacks still, whatever was committed, folded and moved meanwhile. But:
//! - what a segment's row says of its shards is written as it is, not added to: it is taken from the shards in the transaction that sets it;
//! - a volume takes what is recorded of it out of the total when it is deleted, and what it lacked with it; so does one that is reverted, which begins anew with what its snapshot records;
//! - a node that is removed by force changes the total of degraded segments by what their rows say, which may be wrong too, and a snapshot that is settled meanwhile has what its volume's row says: then the next check finds it.
//!
//! Of two corrections at the same time each would add what lacks: there is one check at a time (`Fsck`).
//!
//! A segment of which the rows make no sense counts with what its own row says, so that one bad row does not make every sum wrong; what nodes hold is not judged then.

use super::super::columns::{Columns, int};
use super::super::placements::place_columns;
use super::super::tally::Tally;
use super::super::{Result, SqliteCatalog, failed, uncounted, usage};
use super::{DOING, OBJECT_BYTES_MAX, signed, sound_place};
use crate::check::WrongSum;
use crate::placements::spare;
use crate::{LeafIndex, LeafVersion, MapPoint};
use cairn_model::{BLOCK_SIZE, CommitSeq, LineageId, NodeId, SegmentId};
use sqlx::SqliteConnection;
use std::collections::BTreeMap;

const SEGMENTS_AT_ONCE: i64 = 500;
const DIRECTORIES_AT_ONCE: i64 = 64;
const SNAPSHOTS_AT_ONCE: i64 = 200;
/// Rows that are set in one transaction.
const SET_AT_ONCE: usize = 200;
/// Wrong sums that are told.
const TOLD_MAX: usize = 1000;
/// Wrong sums of segments and snapshots that are set; more are for the next time.
const SET_MAX: usize = 100_000;

/// What is wrong, and by how much.
#[derive(Default)]
pub(in super::super) struct Found {
    pub(in super::super) told: Vec<WrongSum>,
    /// Columns of the one row of totals.
    totals: BTreeMap<&'static str, i64>,
    nodes: Vec<(NodeId, i64, i64)>,
    volumes: Vec<(Vec<u8>, LineageId, i64)>,
    snapshots: Vec<(Vec<u8>, i64)>,
    /// Those that say something else of their shards than these do.
    segments: Vec<SegmentId>,
}

impl Found {
    /// What a sum lacks; `None`: it is right.
    fn compare(&mut self, what: impl FnOnce() -> String, recorded: i64, counted: i64) -> Option<i64> {
        self.compare_more(what, (recorded, counted), |_| false)
    }

    /// The same of a sum over maps.
    fn compare_maps(&mut self, what: impl FnOnce() -> String, recorded: i64, counted: i64) -> Option<i64> {
        self.compare_more(what, (recorded, counted), |lacking| lacking < 0)
    }

    fn compare_more(
        &mut self,
        what: impl FnOnce() -> String,
        (recorded, counted): (i64, i64),
        says_more: impl FnOnce(i64) -> bool,
    ) -> Option<i64> {
        if recorded == counted {
            return None;
        }
        let lacking = counted.wrapping_sub(recorded);
        if self.told.len() < TOLD_MAX {
            let says_more = says_more(lacking);
            self.told.push(WrongSum { what: what(), recorded, counted, says_more });
        }
        Some(lacking)
    }

    /// What the total of the volumes lacks only because they do that say more than is counted.
    fn of_more(&self) -> i64 {
        let of_more = self.volumes.iter().map(|(.., lacking)| *lacking).filter(|lacking| *lacking < 0);
        // What a damaged row says may be any number.
        of_more.fold(0, i64::wrapping_add)
    }

    /// Leaves out the sums over maps that say more than is counted.
    fn keep_more(&mut self) {
        let of_more = self.of_more();
        self.volumes.retain(|(.., lacking)| *lacking > 0);
        self.snapshots.retain(|(_, lacking)| *lacking > 0);
        self.told.retain(|sum| !sum.says_more);
        if of_more != 0 {
            // The total stays that of what is recorded of them.
            let total = self.totals.entry("logical_bytes").or_default();
            *total = total.wrapping_sub(of_more);
        }
    }
}

pub(super) async fn wrong(catalog: &SqliteCatalog) -> Result<Vec<WrongSum>> {
    Ok(find(catalog).await?.told)
}

pub(super) async fn recount(
    catalog: &SqliteCatalog,
    leaves: &[(LineageId, LeafIndex, CommitSeq)],
) -> Result<Vec<WrongSum>> {
    let mut told = Vec::new();
    for some in leaves.chunks(SET_AT_ONCE) {
        let mut change = catalog.begin().await?;
        told.extend(count_leaves(&mut change, some).await?);
        change.commit().await.map_err(failed(DOING))?;
    }
    let mut found = find(catalog).await?;
    found.keep_more();
    set(catalog, &found).await?;
    told.extend(found.told);
    Ok(told)
}

/// Compares, and changes nothing.
pub(in super::super) async fn find(catalog: &SqliteCatalog) -> Result<Found> {
    let mut found = Found::default();
    let mut look = catalog.readers.begin().await.map_err(failed(DOING))?;
    let (tally, are_sound) = segments(&mut look, &mut found).await?;
    if are_sound {
        nodes(&mut look, &tally.nodes, &mut found).await?;
    }
    totals_of_segments(&mut look, &tally, &mut found).await?;
    drop(look);
    let mut look = catalog.readers.begin().await.map_err(failed(DOING))?;
    let logical = volumes(&mut look, &mut found).await?;
    totals_of_volumes(&mut look, logical, &mut found).await?;
    drop(look);
    snapshots(catalog, &mut found).await?;
    Ok(found)
}

/// Adds what lacks.
pub(in super::super) async fn set(catalog: &SqliteCatalog, found: &Found) -> Result<()> {
    for some in found.segments.chunks(SET_AT_ONCE) {
        let mut change = catalog.begin().await?;
        for id in some {
            set_segment(&mut change, *id).await?;
        }
        change.commit().await.map_err(failed(DOING))?;
    }
    for some in found.snapshots.chunks(SET_AT_ONCE) {
        let mut change = catalog.begin().await?;
        for (id, bytes) in some {
            let sql = "UPDATE snapshots SET logical_bytes = logical_bytes + $1 WHERE id = $2";
            let query = sqlx::query(sql).bind(*bytes).bind(&id[..]);
            query.execute(&mut *change).await.map_err(failed(DOING))?;
        }
        change.commit().await.map_err(failed(DOING))?;
    }
    if found.totals.is_empty() && found.nodes.is_empty() && found.volumes.is_empty() {
        return Ok(());
    }
    let mut change = catalog.begin().await?;
    let mut totals = found.totals.clone();
    for (id, lineage, bytes) in &found.volumes {
        let sql = "UPDATE volumes SET logical_bytes = logical_bytes + $1 WHERE id = $2 AND lineage = $3 AND deleted = 0";
        let query = sqlx::query(sql).bind(*bytes).bind(&id[..]).bind(&lineage.as_bytes()[..]);
        let done = query.execute(&mut *change).await.map_err(failed(DOING))?;
        if done.rows_affected() == 0 {
            // It was deleted or reverted, and took that out of the total.
            let total = totals.entry("logical_bytes").or_default();
            *total = total.wrapping_sub(*bytes);
        }
    }
    for (id, shards, bytes) in &found.nodes {
        let sql = "UPDATE nodes SET shards = shards + $1, shard_bytes = shard_bytes + $2 WHERE id = $3";
        let query = sqlx::query(sql).bind(*shards).bind(*bytes).bind(&id.as_bytes()[..]);
        query.execute(&mut *change).await.map_err(failed(DOING))?;
    }
    for (column, lacking) in totals {
        let query = sqlx::query(add_to_total(column)).bind(lacking);
        query.execute(&mut *change).await.map_err(failed(DOING))?;
    }
    change.commit().await.map_err(failed(DOING))
}

fn add_to_total(column: &str) -> &'static str {
    match column {
        "volumes" => "UPDATE totals SET volumes = volumes + $1",
        "snapshots" => "UPDATE totals SET snapshots = snapshots + $1",
        "segments" => "UPDATE totals SET segments = segments + $1",
        "segment_bytes" => "UPDATE totals SET segment_bytes = segment_bytes + $1",
        "degraded_segments" => "UPDATE totals SET degraded_segments = degraded_segments + $1",
        "at_risk_segments" => "UPDATE totals SET at_risk_segments = at_risk_segments + $1",
        "containers" => "UPDATE totals SET containers = containers + $1",
        "container_bytes" => "UPDATE totals SET container_bytes = container_bytes + $1",
        "container_raw_bytes" => "UPDATE totals SET container_raw_bytes = container_raw_bytes + $1",
        _ => "UPDATE totals SET logical_bytes = logical_bytes + $1",
    }
}

/// Makes what a segment's row says of its shards what they are, if it is there yet and they make sense.
async fn set_segment(change: &mut SqliteConnection, id: SegmentId) -> Result<()> {
    let sql = concat!("SELECT ", place_columns!(), " FROM segments s WHERE s.id = $1");
    let row = sqlx::query(sql).bind(&id.as_bytes()[..]).fetch_optional(&mut *change).await;
    let Some(row) = row.map_err(failed(DOING))? else { return Ok(()) };
    let Ok(place) = sound_place(&Columns::new(&row, "segment")) else { return Ok(()) };
    sqlx::query("UPDATE segments SET missing = $1, spare = $2 WHERE id = $3")
        .bind(signed(place.placement.missing() as u64)?)
        .bind(signed(spare(&place.placement) as u64)?)
        .bind(&id.as_bytes()[..])
        .execute(change)
        .await
        .map(drop)
        .map_err(failed(DOING))
}

/// Sets what versions of leaves map, as their bytes say.
async fn count_leaves(
    change: &mut SqliteConnection,
    leaves: &[(LineageId, LeafIndex, CommitSeq)],
) -> Result<Vec<WrongSum>> {
    let mut told = Vec::new();
    for (lineage, index, commit) in leaves.iter().copied() {
        let key = (lineage.as_bytes().to_vec(), i64::from(index.get()), int(commit.get())?);
        let sql = "SELECT blocks FROM leaves WHERE lineage = $1 AND leaf = $2 AND commit_seq = $3";
        let row: Option<Option<i64>> = sqlx::query_scalar(sql)
            .bind(key.0.clone())
            .bind(key.1)
            .bind(key.2)
            .fetch_optional(&mut *change)
            .await
            .map_err(failed(DOING))?;
        let Some(recorded) = row else { continue };
        let version = LeafVersion { index, at: MapPoint { lineage, commit } };
        let counted = signed(uncounted::blocks_of(change, &version).await?)?;
        if recorded.is_none_or(|recorded| recorded == counted) {
            continue;
        }
        let sql = "UPDATE leaves SET blocks = $4 WHERE lineage = $1 AND leaf = $2 AND commit_seq = $3";
        sqlx::query(sql)
            .bind(key.0)
            .bind(key.1)
            .bind(key.2)
            .bind(counted)
            .execute(&mut *change)
            .await
            .map_err(failed(DOING))?;
        let what = leaf_name(lineage, index);
        told.push(WrongSum { what, recorded: recorded.unwrap_or(0), counted, says_more: false });
    }
    Ok(told)
}

pub(super) fn leaf_name(lineage: LineageId, index: LeafIndex) -> String {
    format!("blocks that leaf {} of map {lineage} maps", index.get())
}

/// Compares what segments say of their shards, and adds all of them up. Whether the rows of all of them make sense.
async fn segments(look: &mut SqliteConnection, found: &mut Found) -> Result<(Tally, bool)> {
    let sql = concat!(
        "SELECT s.id, s.missing, s.spare, ",
        place_columns!(),
        " FROM segments s WHERE s.id > $1 AND length(s.id) = 16 ORDER BY s.id LIMIT $2"
    );
    let (mut after, mut tally, mut are_sound) = (Vec::new(), Tally::default(), true);
    loop {
        let rows = sqlx::query(sql).bind(after).bind(SEGMENTS_AT_ONCE).fetch_all(&mut *look).await;
        let rows = rows.map_err(failed(DOING))?;
        let Some(last) = rows.last() else { return Ok((tally, are_sound)) };
        after = Columns::new(last, "segment").identity("id", SegmentId::from_bytes)?.as_bytes().to_vec();
        for row in &rows {
            let columns = Columns::new(row, "segment");
            let id = columns.identity("id", SegmentId::from_bytes)?;
            let (missing, spares): (i64, i64) = (columns.get("missing")?, columns.get("spare")?);
            let Ok(place) = sound_place(&columns) else {
                are_sound = false;
                tally.segments += 1;
                tally.segment_bytes += columns.get::<i64>("segment_bytes")?.clamp(0, int(OBJECT_BYTES_MAX)?);
                tally.degraded += i64::from(missing > 0);
                tally.at_risk += i64::from(missing > 0 && spares == 0);
                continue;
            };
            tally.add(&place)?;
            let counted =
                (signed(place.placement.missing() as u64)?, signed(spare(&place.placement) as u64)?);
            let lacking = [
                found.compare(|| format!("missing shards of segment {id}"), missing, counted.0),
                found.compare(|| format!("spare shards of segment {id}"), spares, counted.1),
            ];
            if lacking != [None, None] && found.segments.len() < SET_MAX {
                found.segments.push(id);
            }
        }
    }
}

async fn nodes(
    look: &mut SqliteConnection,
    counted: &BTreeMap<NodeId, (i64, i64)>,
    found: &mut Found,
) -> Result<()> {
    let rows =
        sqlx::query("SELECT id, name, shards, shard_bytes FROM nodes ORDER BY name").fetch_all(look).await;
    for row in &rows.map_err(failed(DOING))? {
        let columns = Columns::new(row, "node");
        let id = columns.identity("id", NodeId::from_bytes)?;
        let name: &str = columns.get("name")?;
        let (shards, bytes) = counted.get(&id).copied().unwrap_or_default();
        let shards = found.compare(|| format!("shards on node {name}"), columns.get("shards")?, shards);
        let bytes =
            found.compare(|| format!("bytes of shards on node {name}"), columns.get("shard_bytes")?, bytes);
        if shards.or(bytes).is_some() {
            found.nodes.push((id, shards.unwrap_or(0), bytes.unwrap_or(0)));
        }
    }
    Ok(())
}

/// Returns the sum over the volumes.
async fn volumes(look: &mut SqliteConnection, found: &mut Found) -> Result<i64> {
    let sql = "SELECT id, name, lineage, logical_bytes FROM volumes WHERE deleted = 0 ORDER BY name";
    let rows = sqlx::query(sql).fetch_all(&mut *look).await.map_err(failed(DOING))?;
    let mut sum = 0;
    for row in &rows {
        let columns = Columns::new(row, "volume");
        let lineage = columns.identity("lineage", LineageId::from_bytes)?;
        let counted = signed(usage::mapped_blocks(look, lineage).await? * u64::from(BLOCK_SIZE))?;
        sum += counted;
        let name: &str = columns.get("name")?;
        let what = || format!("bytes that volume {name} maps");
        if let Some(lacking) = found.compare_maps(what, columns.get("logical_bytes")?, counted) {
            found.volumes.push((columns.get("id")?, lineage, lacking));
        }
    }
    Ok(sum)
}

/// Of each by itself: nothing is added up of them.
async fn snapshots(catalog: &SqliteCatalog, found: &mut Found) -> Result<()> {
    let sql = "SELECT s.id, s.name, v.name AS volume_name, s.lineage, s.commit_seq, s.logical_bytes FROM snapshots s \
               JOIN volumes v ON v.id = s.volume WHERE s.logical_bytes IS NOT NULL AND length(s.lineage) = 16 AND s.id > $1 \
               ORDER BY s.id LIMIT $2";
    let mut after = Vec::new();
    loop {
        let mut look = catalog.readers.begin().await.map_err(failed(DOING))?;
        let rows = sqlx::query(sql).bind(after).bind(SNAPSHOTS_AT_ONCE).fetch_all(&mut *look).await;
        let rows = rows.map_err(failed(DOING))?;
        let Some(last) = rows.last() else { return Ok(()) };
        after = Columns::new(last, "snapshot").get("id")?;
        for row in &rows {
            let columns = Columns::new(row, "snapshot");
            let at = MapPoint {
                lineage: columns.identity("lineage", LineageId::from_bytes)?,
                commit: CommitSeq::new(columns.number("commit_seq")?),
            };
            let counted = signed(usage::mapped_at(&mut look, at).await? * u64::from(BLOCK_SIZE))?;
            let (volume, name): (&str, &str) = (columns.get("volume_name")?, columns.get("name")?);
            let what = || format!("bytes that snapshot {volume}@{name} maps");
            let lacking = found.compare_maps(what, columns.get("logical_bytes")?, counted);
            if let Some(lacking) = lacking.filter(|_| found.snapshots.len() < SET_MAX) {
                found.snapshots.push((columns.get("id")?, lacking));
            }
        }
    }
}

/// What numbers of containers are beyond that make no sense counts as that, so that the sum is one.
async fn totals_of_segments(look: &mut SqliteConnection, tally: &Tally, found: &mut Found) -> Result<()> {
    let sql = "SELECT t.*, (SELECT count(*) FROM containers) AS counted_containers, \
               (SELECT coalesce(sum(min(max(length_bytes, 0), 4294967295)), 0) FROM containers) AS counted_bytes, \
               (SELECT coalesce(sum(min(max(raw_bytes, 0), 4294967295)), 0) FROM containers) AS counted_raw FROM totals t";
    let row = sqlx::query(sql).fetch_one(&mut *look).await.map_err(failed(DOING))?;
    let raw = raw_of_uncounted(look).await?;
    let columns = Columns::new(&row, "totals");
    let counted = [
        ("segments", "segments of the pool", tally.segments),
        ("segment_bytes", "bytes of the pool's segments", tally.segment_bytes),
        ("degraded_segments", "segments that lack shards", tally.degraded),
        ("at_risk_segments", "segments at risk", tally.at_risk),
        ("containers", "containers", columns.get("counted_containers")?),
        ("container_bytes", "stored bytes of containers", columns.get("counted_bytes")?),
        ("container_raw_bytes", "plaintext bytes of containers", columns.get::<i64>("counted_raw")? + raw),
    ];
    totals(&columns, &counted, found)
}

async fn totals_of_volumes(look: &mut SqliteConnection, logical: i64, found: &mut Found) -> Result<()> {
    let sql = "SELECT t.*, (SELECT count(*) FROM volumes WHERE deleted = 0) AS counted_volumes, \
               (SELECT count(*) FROM snapshots) AS counted_snapshots FROM totals t";
    let row = sqlx::query(sql).fetch_one(look).await.map_err(failed(DOING))?;
    let columns = Columns::new(&row, "totals");
    let counted = [
        ("volumes", "volumes", columns.get("counted_volumes")?),
        ("snapshots", "snapshots", columns.get("counted_snapshots")?),
    ];
    totals(&columns, &counted, found)?;
    let (recorded, of_more) = (columns.get("logical_bytes")?, found.of_more());
    let what = || "bytes that all volumes map".to_owned();
    if let Some(lacking) = found.compare_more(what, (recorded, logical), |lacking| lacking == of_more) {
        found.totals.insert("logical_bytes", lacking);
    }
    Ok(())
}

fn totals(
    columns: &Columns<'_>,
    counted: &[(&'static str, &'static str, i64)],
    found: &mut Found,
) -> Result<()> {
    for (column, what, counted) in counted {
        if let Some(lacking) = found.compare(|| (*what).to_owned(), columns.get(column)?, *counted) {
            found.totals.insert(column, lacking);
        }
    }
    Ok(())
}

/// Plaintext of the containers whose rows do not say it.
async fn raw_of_uncounted(look: &mut SqliteConnection) -> Result<i64> {
    let sql = "SELECT id, directory FROM containers WHERE raw_bytes IS NULL AND id > $1 ORDER BY id LIMIT $2";
    let (mut after, mut sum) = (Vec::new(), 0);
    loop {
        let rows = sqlx::query(sql).bind(after).bind(DIRECTORIES_AT_ONCE).fetch_all(&mut *look).await;
        let rows = rows.map_err(failed(DOING))?;
        let Some(last) = rows.last() else { return Ok(sum) };
        after = Columns::new(last, "container").get("id")?;
        for row in &rows {
            sum += signed(uncounted::raw_bytes(Columns::new(row, "container").get("directory")?))?;
        }
    }
}
