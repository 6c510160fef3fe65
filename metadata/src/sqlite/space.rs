//! Whose space. Everything of a page is of one read transaction.
//!
//! What may go is found by the index of versions by commit: what a lineage got since the pin before, or, if that is less, what it got until the pin
//! after, as a version that goes has a successor by then. Blobs are read only of leaves that go, and of what the pins beside them show of these.

use super::columns::{Columns, KEYS_AT_ONCE, KeyListQuery, filled_up, int};
use super::versions::{LEAVES_AT_ONCE, commit_of, index_of, with_shown};
use super::{Result, SqliteCatalog, failed, uncounted};
use crate::space::{CountedLeaves, Gap, Side, Thinned, gaps, leaf_space};
use crate::{
    CatalogError, ContainerShare, LeafIndex, MapLeaf, MapPoint, SnapshotName, SpaceBasis, SpaceCursor,
    SpaceOf, SpacePage,
};
use cairn_model::{CommitSeq, ContainerId, LineageId};
use sqlx::SqliteConnection;
use sqlx::sqlite::SqliteRow;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::LazyLock;

const DOING: &str = "looking whose space it is";
/// Versions that are counted to see on which side of a gap there are fewer.
const COUNTED_MAX: i64 = 1 << 20;

pub(super) async fn page(
    catalog: &SqliteCatalog,
    of: SpaceOf,
    from: Option<SpaceCursor>,
    counted: &CountedLeaves,
    leaves_max: u32,
) -> Result<SpacePage> {
    let mut state = catalog.readers.begin().await.map_err(failed(DOING))?;
    let gaps = gaps(&thinned(&mut state, of).await?);
    let mut page = SpacePage::default();
    let mut containers: BTreeMap<ContainerId, u64> = BTreeMap::new();
    let mut left = leaves_max.max(1);
    for (number, gap) in gaps.iter().enumerate().skip(from.map_or(0, |from| from.gap)) {
        let (side, behind) = match from.filter(|from| from.gap == number) {
            // Whatever is there now: rows of the other side would be others.
            Some(from) => (from.side, Some(from.row)),
            None => (cheaper(&mut state, gap).await?, None),
        };
        let rows = rows_behind(&mut state, gap, side, behind, left).await?;
        left -= u32::try_from(rows.len()).expect("no more than asked for");
        for some in rows.chunks(LEAVES_AT_ONCE) {
            let leaves = some.iter().map(|(_, leaf)| *leaf);
            let leaves: Vec<LeafIndex> =
                leaves.filter(|leaf| !counted.contains(leaf) && !page.leaves.contains(leaf)).collect();
            if !leaves.is_empty() {
                add_leaves(&mut state, (of, &gaps), &leaves, &mut page, &mut containers).await?;
            }
        }
        if left == 0 {
            page.next = rows.last().map(|row| SpaceCursor { gap: number, side, row: *row });
            break;
        }
    }
    page.containers = shares(&mut state, &containers).await?;
    page.basis = SpaceBasis(gaps);
    state.commit().await.map_err(failed(DOING))?;
    Ok(page)
}

/// The side of a gap with fewer rows.
async fn cheaper(state: &mut SqliteConnection, gap: &Gap) -> Result<Side> {
    let (Some(_), [pin]) = (gap.high, &gap.going[..]) else { return Ok(Side::First) };
    if *pin == MapPoint::END {
        return Ok(Side::First);
    }
    let first = count(state, gap, bounds(gap, Side::First)).await?;
    let successors = count(state, gap, bounds(gap, Side::Successors)).await?;
    Ok(if successors < first { Side::Successors } else { Side::First })
}

/// Commits of the rows: after the one, through the other.
fn bounds(gap: &Gap, side: Side) -> (i64, i64) {
    let sql = |commit: CommitSeq| commit_of(MapPoint { lineage: gap.lineage, commit });
    match side {
        Side::First => (gap.low.map_or(-1, sql), sql(gap.last())),
        Side::Successors => (sql(gap.last()), gap.high.map_or(i64::MAX, sql)),
    }
}

/// The next rows, by commit and leaf; of each leaf only the first, so that it is looked at once.
async fn rows_behind(
    state: &mut SqliteConnection,
    gap: &Gap,
    side: Side,
    behind: Option<(CommitSeq, LeafIndex)>,
    limit: u32,
) -> Result<Vec<(CommitSeq, LeafIndex)>> {
    let sql = "SELECT l.commit_seq, l.leaf FROM leaves l INDEXED BY leaves_by_commit WHERE l.lineage = $1 \
                   AND (l.commit_seq, l.leaf) > ($4, $5) AND l.commit_seq <= $3 AND NOT EXISTS \
                   (SELECT 1 FROM leaves o INDEXED BY leaves_by_version WHERE o.lineage = $1 AND o.leaf = l.leaf \
                   AND o.commit_seq > $2 AND o.commit_seq < l.commit_seq) ORDER BY l.commit_seq, l.leaf LIMIT $6";
    let (low, high) = bounds(gap, side);
    let (commit, leaf) = match behind {
        Some((commit, leaf)) => (int(commit.get())?, i64::from(leaf.get())),
        None => (low, i64::MAX),
    };
    let rows = sqlx::query(sql)
        .bind(gap.lineage.as_bytes().to_vec())
        .bind(low)
        .bind(high)
        .bind(commit)
        .bind(leaf)
        .bind(i64::from(limit))
        .fetch_all(state)
        .await
        .map_err(failed(DOING))?;
    let row = |row: &SqliteRow| {
        let columns = Columns::new(row, "map leaf");
        Ok((CommitSeq::new(columns.number("commit_seq")?), index_of(&columns)?))
    };
    rows.iter().map(row).collect()
}

async fn count(state: &mut SqliteConnection, gap: &Gap, (low, high): (i64, i64)) -> Result<i64> {
    let sql = "SELECT count(*) FROM (SELECT 1 FROM leaves INDEXED BY leaves_by_commit WHERE lineage = $1 \
               AND commit_seq > $2 AND commit_seq <= $3 LIMIT $4)";
    sqlx::query_scalar(sql)
        .bind(&gap.lineage.as_bytes()[..])
        .bind(low)
        .bind(high)
        .bind(COUNTED_MAX)
        .fetch_one(state)
        .await
        .map_err(failed(DOING))
}

/// Adds what goes of leaves, whole: of all gaps.
async fn add_leaves(
    state: &mut SqliteConnection,
    (of, gaps): (SpaceOf, &[Gap]),
    leaves: &[LeafIndex],
    page: &mut SpacePage,
    containers: &mut BTreeMap<ContainerId, u64>,
) -> Result<()> {
    let mut going: BTreeMap<LeafIndex, Vec<(usize, CommitSeq)>> = BTreeMap::new();
    for (at, gap) in gaps.iter().enumerate() {
        for (leaf, versions) in versions_in(state, gap, leaves).await? {
            let goes = gap.going_versions(&versions).map(|version| (at, version));
            going.entry(leaf).or_default().extend(goes);
        }
    }
    going.retain(|_, versions| !versions.is_empty());
    if going.is_empty() {
        return Ok(());
    }
    let wanted: Vec<LeafIndex> = going.keys().copied().collect();
    page.leaves.extend(&wanted);
    let mut staying: BTreeMap<LeafIndex, Vec<MapLeaf>> = BTreeMap::new();
    for side in gaps.iter().flat_map(|gap| &gap.sides) {
        for (leaf, shown) in shown(state, *side, &wanted).await? {
            staying.entry(leaf).or_default().push(shown);
        }
    }
    for (leaf, versions) in &going {
        let mut goes = Vec::with_capacity(versions.len());
        for (gap, version) in versions {
            goes.push(blob(state, gaps[*gap].lineage, *leaf, *version).await?);
        }
        let goes: Vec<&MapLeaf> = goes.iter().collect();
        let stays: Vec<&MapLeaf> = staying.get(leaf).into_iter().flatten().collect();
        let shown = goes.first().copied().filter(|_| !matches!(of, SpaceOf::Volume(_)));
        let space = leaf_space(*leaf, shown, &goes, &stays);
        page.unique_blocks += space.unique_blocks;
        for (container, blocks) in space.containers {
            *containers.entry(container).or_default() += blocks;
        }
    }
    Ok(())
}

/// The versions of leaves after the pin before the gap, through the one after, in order.
async fn versions_in(
    state: &mut SqliteConnection,
    gap: &Gap,
    leaves: &[LeafIndex],
) -> Result<BTreeMap<LeafIndex, Vec<CommitSeq>>> {
    static VERSIONS: LazyLock<KeyListQuery> = LazyLock::new(|| {
        let sql = "SELECT leaf, commit_seq FROM leaves INDEXED BY leaves_by_version WHERE lineage = $1 \
                   AND commit_seq > $2 AND commit_seq <= $3 AND leaf IN ({keys}) ORDER BY leaf, commit_seq";
        KeyListQuery::with_length(sql, 4, LEAVES_AT_ONCE)
    });
    let (sql, length) = KeyListQuery::for_length(&VERSIONS, leaves.len());
    let at = |commit| commit_of(MapPoint { lineage: gap.lineage, commit });
    let mut query = sqlx::query(sql)
        .bind(&gap.lineage.as_bytes()[..])
        .bind(gap.low.map_or(-1, at))
        .bind(gap.high.map_or(i64::MAX, at));
    for leaf in filled_up(leaves, length) {
        query = query.bind(i64::from(leaf.get()));
    }
    let rows = query.fetch_all(state).await.map_err(failed(DOING))?;
    let mut versions: BTreeMap<LeafIndex, Vec<CommitSeq>> = BTreeMap::new();
    for row in &rows {
        let columns = Columns::new(row, "map leaf");
        let commit = CommitSeq::new(columns.number("commit_seq")?);
        versions.entry(index_of(&columns)?).or_default().push(commit);
    }
    Ok(versions)
}

/// What a point shows of up to [`LEAVES_AT_ONCE`] leaves.
async fn shown(
    state: &mut SqliteConnection,
    at: MapPoint,
    leaves: &[LeafIndex],
) -> Result<Vec<(LeafIndex, MapLeaf)>> {
    static SHOWN: LazyLock<KeyListQuery> = LazyLock::new(|| {
        let sql = with_shown!(
            "SELECT l.leaf, l.data FROM shown s CROSS JOIN leaves l ON l.lineage = s.lineage AND l.leaf = s.leaf \
             AND l.commit_seq = s.version"
        );
        KeyListQuery::with_length(sql, 3, LEAVES_AT_ONCE)
    });
    let (sql, length) = KeyListQuery::for_length(&SHOWN, leaves.len());
    let mut query = sqlx::query(sql).bind(&at.lineage.as_bytes()[..]).bind(commit_of(at));
    for leaf in filled_up(leaves, length) {
        query = query.bind(i64::from(leaf.get()));
    }
    let rows = query.fetch_all(state).await.map_err(failed(DOING))?;
    rows.iter().map(|row| leaf_of(index_of(&Columns::new(row, "map leaf"))?, row)).collect()
}

async fn blob(
    state: &mut SqliteConnection,
    lineage: LineageId,
    leaf: LeafIndex,
    version: CommitSeq,
) -> Result<MapLeaf> {
    let row = sqlx::query("SELECT data FROM leaves WHERE lineage = $1 AND leaf = $2 AND commit_seq = $3")
        .bind(&lineage.as_bytes()[..])
        .bind(i64::from(leaf.get()))
        .bind(int(version.get())?)
        .fetch_one(state)
        .await
        .map_err(failed(DOING))?;
    leaf_of(leaf, &row).map(|(_, leaf)| leaf)
}

fn leaf_of(index: LeafIndex, row: &SqliteRow) -> Result<(LeafIndex, MapLeaf)> {
    let data = Columns::new(row, "map leaf").get("data")?;
    let leaf = MapLeaf::decode(index, data).map_err(|error| CatalogError::of_blob("map leaf", error))?;
    Ok((index, leaf))
}

/// What containers take, with the blocks that go of them.
async fn shares(
    state: &mut SqliteConnection,
    blocks: &BTreeMap<ContainerId, u64>,
) -> Result<Vec<ContainerShare>> {
    static SIZES: LazyLock<KeyListQuery> = LazyLock::new(|| {
        let sql = "SELECT id, length_bytes, raw_bytes, CASE WHEN raw_bytes IS NULL THEN directory END AS directory \
                   FROM containers WHERE id IN ({keys}) ORDER BY id";
        KeyListQuery::new(sql, 1)
    });
    let ids: Vec<ContainerId> = blocks.keys().copied().collect();
    let mut shares = Vec::with_capacity(ids.len());
    for some in ids.chunks(KEYS_AT_ONCE) {
        let (sql, length) = KeyListQuery::for_length(&SIZES, some.len());
        let mut query = sqlx::query(sql);
        for id in filled_up(some, length) {
            query = query.bind(id.as_bytes().to_vec());
        }
        let rows = query.fetch_all(&mut *state).await.map_err(failed(DOING))?;
        for row in &rows {
            let columns = Columns::new(row, "container");
            let container = columns.identity("id", ContainerId::from_bytes)?;
            let raw_bytes = match columns.get::<Option<Vec<u8>>>("directory")? {
                Some(directory) => uncounted::raw_bytes(&directory),
                None => columns.number("raw_bytes")?,
            };
            let length_bytes = columns.number("length_bytes")?;
            let blocks = blocks.get(&container).copied().unwrap_or(0);
            shares.push(ContainerShare { container, blocks, length_bytes, raw_bytes });
        }
    }
    Ok(shares)
}

/// The lineages of which pins go, that of the pin asked for first.
async fn thinned(state: &mut SqliteConnection, of: SpaceOf) -> Result<Vec<(LineageId, Thinned)>> {
    let mut going: Vec<(LineageId, BTreeSet<CommitSeq>)> = Vec::new();
    for pin in asked_for(state, of).await? {
        add(&mut going, pin);
    }
    let mut gone: BTreeSet<LineageId> = BTreeSet::new();
    loop {
        let mut orphaned = None;
        let mut thinned = Vec::with_capacity(going.len());
        for (id, pins) in &going {
            let staying = match of {
                SpaceOf::Volume(_) => all_staying(state, *id, of, &gone).await?,
                SpaceOf::Snapshot(_) | SpaceOf::Head(_) => {
                    staying_beside(state, *id, pins, of, &gone).await?
                }
            };
            let parent = parent_of(state, *id).await?;
            if staying.is_empty() && gone.insert(*id) && parent.is_some() {
                orphaned = parent;
                break;
            }
            thinned.push((*id, Thinned { parent, going: pins.clone(), staying }));
        }
        match orphaned {
            Some(parent) => add(&mut going, parent),
            None => return Ok(thinned),
        }
    }
}

fn add(going: &mut Vec<(LineageId, BTreeSet<CommitSeq>)>, pin: MapPoint) {
    match going.iter_mut().find(|(id, _)| *id == pin.lineage) {
        Some((_, pins)) => drop(pins.insert(pin.commit)),
        None => going.push((pin.lineage, BTreeSet::from([pin.commit]))),
    }
}

async fn asked_for(state: &mut SqliteConnection, of: SpaceOf) -> Result<Vec<MapPoint>> {
    let volume = match of {
        SpaceOf::Snapshot(id) => {
            let sql = "SELECT lineage, commit_seq, name, logical_bytes FROM snapshots WHERE id = $1";
            let row = sqlx::query(sql)
                .bind(&id.as_bytes()[..])
                .fetch_optional(state)
                .await
                .map_err(failed(DOING))?
                .ok_or_else(|| CatalogError::not_found("snapshot", &id))?;
            let columns = Columns::new(&row, "snapshot");
            if columns.get::<Option<i64>>("logical_bytes")?.is_none() {
                let name = SnapshotName::new(columns.get::<&str>("name")?);
                let name = name.map_err(|error| CatalogError::corrupt("snapshot", &error))?;
                return Err(CatalogError::NotSettled { name });
            }
            return Ok(vec![point_of(&columns)?]);
        }
        SpaceOf::Head(volume) | SpaceOf::Volume(volume) => volume,
    };
    let lineage = sqlx::query("SELECT lineage FROM volumes WHERE id = $1 AND deleted = 0")
        .bind(&volume.as_bytes()[..])
        .fetch_optional(&mut *state)
        .await
        .map_err(failed(DOING))?
        .ok_or_else(|| CatalogError::not_found("volume", &volume))?;
    let lineage = Columns::new(&lineage, "volume").identity("lineage", LineageId::from_bytes)?;
    let mut pins = vec![MapPoint::head(lineage)];
    if let SpaceOf::Volume(_) = of {
        let rows = sqlx::query("SELECT lineage, commit_seq FROM snapshots WHERE volume = $1")
            .bind(&volume.as_bytes()[..])
            .fetch_all(state)
            .await
            .map_err(failed(DOING))?;
        for row in &rows {
            pins.push(point_of(&Columns::new(row, "snapshot"))?);
        }
    }
    Ok(pins)
}

fn point_of(columns: &Columns<'_>) -> Result<MapPoint> {
    let lineage = columns.identity("lineage", LineageId::from_bytes)?;
    Ok(MapPoint { lineage, commit: CommitSeq::new(columns.number("commit_seq")?) })
}

async fn parent_of(state: &mut SqliteConnection, lineage: LineageId) -> Result<Option<MapPoint>> {
    let sql = "SELECT parent AS lineage, parent_commit AS commit_seq FROM lineages WHERE id = $1 AND parent IS NOT NULL";
    let row =
        sqlx::query(sql).bind(&lineage.as_bytes()[..]).fetch_optional(state).await.map_err(failed(DOING))?;
    row.map(|row| point_of(&Columns::new(&row, "lineage"))).transpose()
}

/// Identities that no row has where there is nothing to leave out.
const NONE: [u8; 0] = [];

/// The pins of a lineage that stay: at its only pin that goes, and on both sides of it. A few look-ups in indices, however many pins there are.
async fn staying_beside(
    state: &mut SqliteConnection,
    lineage: LineageId,
    pins: &BTreeSet<CommitSeq>,
    of: SpaceOf,
    gone: &BTreeSet<LineageId>,
) -> Result<BTreeSet<CommitSeq>> {
    let sql = "SELECT max(pin) AS pin FROM (SELECT max(commit_seq) AS pin FROM snapshots WHERE lineage = $1 AND commit_seq < $2 \
               UNION ALL SELECT max(parent_commit) FROM lineages WHERE parent = $1 AND parent_commit < $2) \
               UNION ALL SELECT min(pin) FROM (SELECT min(commit_seq) AS pin FROM snapshots WHERE lineage = $1 AND commit_seq > $2 \
               UNION ALL SELECT min(parent_commit) FROM lineages WHERE parent = $1 AND parent_commit > $2) \
               UNION ALL SELECT $2 WHERE EXISTS (SELECT 1 FROM snapshots WHERE lineage = $1 AND commit_seq = $2 AND id <> $3) \
               OR EXISTS (SELECT 1 FROM lineages WHERE parent = $1 AND parent_commit = $2 AND id <> $4)";
    let pin = *pins.first().expect("a lineage is looked at for a pin of it");
    debug_assert_eq!(pins.len(), 1, "one pin of each lineage goes");
    let snapshot = match of {
        SpaceOf::Snapshot(id) => id.as_bytes().to_vec(),
        SpaceOf::Head(_) | SpaceOf::Volume(_) => NONE.to_vec(),
    };
    // The one for whose sake this point goes is the only child here that is gone.
    let mut child = NONE.to_vec();
    for id in gone {
        if parent_of(state, *id).await? == Some(MapPoint { lineage, commit: pin }) {
            child = id.as_bytes().to_vec();
        }
    }
    let rows = sqlx::query(sql)
        .bind(&lineage.as_bytes()[..])
        .bind(commit_of(MapPoint { lineage, commit: pin }))
        .bind(snapshot)
        .bind(child)
        .fetch_all(&mut *state)
        .await
        .map_err(failed(DOING))?;
    let mut staying = BTreeSet::new();
    for row in &rows {
        let columns = Columns::new(row, "pin");
        if columns.get::<Option<i64>>("pin")?.is_some() {
            staying.insert(CommitSeq::new(columns.number("pin")?));
        }
    }
    if is_head_staying(state, lineage, of).await? {
        staying.insert(MapPoint::END);
    }
    Ok(staying)
}

/// All pins of a lineage that stay.
async fn all_staying(
    state: &mut SqliteConnection,
    lineage: LineageId,
    of: SpaceOf,
    gone: &BTreeSet<LineageId>,
) -> Result<BTreeSet<CommitSeq>> {
    let SpaceOf::Volume(volume) = of else { unreachable!("one pin has neighbours") };
    let sql = "SELECT commit_seq FROM snapshots WHERE lineage = $1 AND volume <> $2";
    let snapshots = sqlx::query(sql)
        .bind(&lineage.as_bytes()[..])
        .bind(&volume.as_bytes()[..])
        .fetch_all(&mut *state)
        .await
        .map_err(failed(DOING))?;
    let mut staying = BTreeSet::new();
    for row in &snapshots {
        staying.insert(CommitSeq::new(Columns::new(row, "snapshot").number("commit_seq")?));
    }
    let children = sqlx::query("SELECT id, parent_commit FROM lineages WHERE parent = $1")
        .bind(&lineage.as_bytes()[..])
        .fetch_all(&mut *state)
        .await
        .map_err(failed(DOING))?;
    for row in &children {
        let columns = Columns::new(row, "lineage");
        if !gone.contains(&columns.identity("id", LineageId::from_bytes)?) {
            staying.insert(CommitSeq::new(columns.number("parent_commit")?));
        }
    }
    if is_head_staying(state, lineage, of).await? {
        staying.insert(MapPoint::END);
    }
    Ok(staying)
}

async fn is_head_staying(state: &mut SqliteConnection, lineage: LineageId, of: SpaceOf) -> Result<bool> {
    let going = match of {
        SpaceOf::Head(volume) | SpaceOf::Volume(volume) => volume.as_bytes().to_vec(),
        SpaceOf::Snapshot(_) => NONE.to_vec(),
    };
    sqlx::query_scalar(
        "SELECT EXISTS (SELECT 1 FROM volumes WHERE lineage = $1 AND deleted = 0 AND id <> $2)",
    )
    .bind(&lineage.as_bytes()[..])
    .bind(going)
    .fetch_one(state)
    .await
    .map_err(failed(DOING))
}
